//! `cargo xtask image`: the product's container image without a container engine.
//!
//! Called by people and release jobs. The same packages as `deploy/Dockerfile`, from the machine's own Debian mirror, and a
//! binary built here; it pushes nothing.

use crate::{build, workspace};
use anyhow::{Context, Result};
use meshstor_lab::{Paths, container, tools};
use std::path::PathBuf;
use std::process::ExitCode;

/// The product's image as a tar for `ctr images import`, `podman load` or `docker load`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask image\n  cargo xtask image --output meshstor.tar\n  \
                        ctr --namespace k8s.io images import meshstor.tar")]
pub struct Arguments {
    /// Where to put it [default: meshstor-VERSION.tar in the target directory]
    #[arg(long)]
    output: Option<PathBuf>,
    /// The image's name with its tag [default: what the chart installs]
    #[arg(long)]
    name: Option<String>,
    /// The binary of a debug build: seconds instead of minutes, larger and slower
    #[arg(long)]
    debug: bool,
}

/// Builds the binary and the image; the last line names file and digest.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let paths = Paths::from_env()?;
    tools::ensure_images()?;
    let binaries = if arguments.debug { build::binaries()? } else { build::optimised()? };
    let name = arguments.name.clone().map_or_else(chart_image, Ok)?;
    let image = container::product(&paths, &binaries.join("meshstor"), &name)?;
    let version = name.rsplit_once(':').map_or("", |(_, tag)| tag);
    let output = match &arguments.output {
        Some(output) => output.clone(),
        None => workspace::target()?.join(format!("meshstor-{version}.tar")),
    };
    std::fs::copy(&image.file, &output).with_context(|| format!("write {}", output.display()))?;
    println!("image: {name} {} in {}", image.digest, output.display());
    Ok(ExitCode::SUCCESS)
}

/// The name that the chart installs by default: its repository and its version.
fn chart_image() -> Result<String> {
    let chart = workspace::root()?.join("deploy/helm/meshstor");
    let read = |file: &str| -> Result<serde_yaml::Value> {
        let path = chart.join(file);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        serde_yaml::from_str(&text).with_context(|| format!("understand {}", path.display()))
    };
    let (values, about) = (read("values.yaml")?, read("Chart.yaml")?);
    let repository = values["image"]["repository"].as_str().context("image.repository in values.yaml")?;
    let tag = values["image"]["tag"].as_str().filter(|tag| !tag.is_empty()).or(about["appVersion"].as_str());
    Ok(format!("{repository}:{}", tag.context("appVersion in Chart.yaml")?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_default_name_is_what_the_chart_installs() {
        let name = super::chart_image().unwrap();
        assert_eq!(name.rsplit_once(':').unwrap(), ("ghcr.io/meshstor/meshstor", env!("CARGO_PKG_VERSION")));
    }
}
