//! Kubernetes programs, built from source through the Go module proxy.
//!
//! Called by `tools`. There is no registry to pull images from where the lab runs, and the API server is the one part
//! of Kubernetes that no fake replaces. The versions and their checksums are pinned by `tools/kube/go.{mod,sum}`.

use crate::exec::{run, run_logged, step};
use crate::paths::{Paths, make_dir};
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The version that `go.mod` pins.
pub const VERSION: &str = "v1.36.3";

const GO_MOD: &str = include_str!("../../tools/kube/go.mod");
const GO_SUM: &str = include_str!("../../tools/kube/go.sum");

/// A program of the Kubernetes source tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KubeTool {
    /// The API server.
    Apiserver,
    /// The command-line client.
    Kubectl,
}

impl KubeTool {
    /// The program's file name.
    pub fn name(self) -> &'static str {
        match self {
            KubeTool::Apiserver => "kube-apiserver",
            KubeTool::Kubectl => "kubectl",
        }
    }

    fn package(self) -> String {
        format!("k8s.io/kubernetes/cmd/{}", self.name())
    }
}

/// Where a program lies once it is built.
pub(super) fn path(paths: &Paths, tool: KubeTool) -> PathBuf {
    dir(paths).join(tool.name())
}

/// Builds those programs that the cache lacks.
pub(super) fn ensure(paths: &Paths, tools: &[KubeTool]) -> Result<()> {
    let missing: Vec<KubeTool> = tools.iter().copied().filter(|tool| !path(paths, *tool).is_file()).collect();
    if !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(|tool| tool.name()).collect();
        step(&format!("build {} {VERSION} (minutes, once)", names.join(" and ")), || build(paths, &missing))?;
    }
    share_kubectl(paths)
}

fn dir(paths: &Paths) -> PathBuf {
    let digest = Sha256::new().chain_update(GO_MOD).chain_update(GO_SUM).finalize();
    let short: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    paths.root().join("kube").join(format!("{VERSION}-{short}"))
}

fn build(paths: &Paths, tools: &[KubeTool]) -> Result<()> {
    if super::find("go").is_none() {
        bail!("the Go toolchain is needed to build Kubernetes {VERSION}: install Go 1.26 or newer");
    }
    let target = dir(paths);
    let work = target.join("work");
    let module = work.join("module");
    make_dir(&module)?;
    std::fs::write(module.join("go.mod"), GO_MOD).context("write go.mod")?;
    std::fs::write(module.join("go.sum"), GO_SUM).context("write go.sum")?;
    let mut command = Command::new("nice");
    command
        .current_dir(&module)
        .env("CGO_ENABLED", "0")
        .env("GOBIN", work.join("bin"))
        .args(["go", "install", "-trimpath", "-ldflags", &link_flags()])
        .args(tools.iter().map(|tool| tool.package()));
    run_logged(&mut command, &target.join("build.log"))?;
    for tool in tools {
        // Renamed only when complete: a file in place is a finished file.
        std::fs::rename(work.join("bin").join(tool.name()), path(paths, *tool))
            .with_context(|| format!("move {} into place", tool.name()))?;
    }
    std::fs::remove_dir_all(&work).context("remove the build directory")
}

/// Without these the server reports an empty version, which clients refuse.
fn link_flags() -> String {
    let mut numbers = VERSION.trim_start_matches('v').split('.');
    let major = numbers.next().unwrap_or_default();
    let minor = numbers.next().unwrap_or_default();
    let mut flags = String::from("-s -w");
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        for (name, value) in [("gitVersion", VERSION), ("gitMajor", major), ("gitMinor", minor)] {
            flags.push_str(&format!(" -X {package}.{name}={value}"));
        }
    }
    flags
}

/// Guests see the shared directory, so kubectl must be a real file in it; a hard link costs no space.
fn share_kubectl(paths: &Paths) -> Result<()> {
    let (built, shared) = (path(paths, KubeTool::Kubectl), paths.bin().join("kubectl"));
    if !built.is_file() || same_file(&built, &shared) {
        return Ok(());
    }
    make_dir(&paths.bin())?;
    run(Command::new("ln").arg("-f").arg(&built).arg(&shared)).map(drop)
}

fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    id(a).is_some() && id(a) == id(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_the_pinned_one() {
        assert!(GO_MOD.contains(&format!("k8s.io/kubernetes {VERSION}")), "go.mod pins another version");
        assert!(link_flags().contains("gitMinor=36"));
    }
}
