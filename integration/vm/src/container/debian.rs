//! The lowest layer of our image: Debian packages, those that `deploy/Dockerfile` names, without a container engine.
//!
//! Used by `container`. Packages come from the machine's own mirror; what is in the layer depends on them alone.

use super::archive::Layer;
use crate::exec::{run, run_logged, step};
use crate::image::digest;
use crate::paths::{Paths, make_dir};
use crate::tools::apt;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Raise it when the way of building changes without a change of the inputs.
const FORMAT: &str = "1";

const DOCKERFILE: &str = include_str!("../../../../deploy/Dockerfile");

/// As in Debian's own slim images.
const EXCLUDED: &[&str] =
    &["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*"];

/// The time that younger files get (2025-01-01): an archive must not tell when it was made.
const EPOCH: &str = "1735689600";

/// What tells of the machine that builds: a container gets its own, and installs nothing from a mirror.
const OWN: &[&str] = &["etc/resolv.conf", "etc/hostname", "etc/apt/sources.list.d/*"];

/// The suite of the last stage of the Dockerfile.
fn suite(dockerfile: &str) -> Option<&str> {
    let from = dockerfile.lines().rev().find_map(|line| line.strip_prefix("FROM debian:"))?;
    from.split(['-', ' ']).next()
}

/// The packages that the last stage of the Dockerfile installs.
fn packages(dockerfile: &str) -> Option<Vec<&str>> {
    let last = &dockerfile[dockerfile.rfind("\nFROM ")?..];
    let line = last.lines().find_map(|line| line.split_once("--no-install-recommends "))?.1;
    Some(line.trim_end_matches('\\').split_whitespace().collect())
}

/// The layer, made by mmdebstrap or taken from the cache.
pub(super) fn layer(paths: &Paths) -> Result<Layer> {
    let suite = suite(DOCKERFILE).context("deploy/Dockerfile has no stage FROM debian:…")?;
    let packages = packages(DOCKERFILE).context("deploy/Dockerfile installs no packages in its last stage")?.join(",");
    let key = digest(&[FORMAT, suite, &packages, &EXCLUDED.join(","), &OWN.join(","), EPOCH]);
    let archive = paths.containers().join(format!("debian-{key}.tar"));
    if !archive.is_file() {
        make_dir(&paths.containers())?;
        step("collect the image's Debian packages (about a minute)", || make(suite, &packages, &archive))?;
    }
    Layer::of_archive(&archive)
}

fn make(suite: &str, packages: &str, archive: &Path) -> Result<()> {
    let sources = archive.with_extension("sources");
    std::fs::write(&sources, apt::sources(&[suite])?).context("write the sources list")?;
    let part = archive.with_extension("part.tar");
    let mut command = Command::new("mmdebstrap");
    command
        .env("SOURCE_DATE_EPOCH", EPOCH)
        // No package manager in the image: nothing is installed where it runs.
        .args(["--variant=essential", &format!("--include={packages}")])
        // A container's /dev is its own.
        .arg("--skip=output/dev")
        .args(OWN.iter().map(|file| format!("--customize-hook=rm -f \"$1\"/{file}")))
        .args(EXCLUDED.iter().map(|path| format!("--dpkgopt=path-exclude={path}")))
        .arg("")
        .arg(&part)
        .arg(&sources);
    run_logged(&mut command, &archive.with_extension("log"))?;
    std::fs::rename(&part, archive).context("move the layer into place")
}

/// Debian's static busybox, for images that need a shell and nothing else.
pub(super) fn busybox(paths: &Paths) -> Result<PathBuf> {
    let suite = suite(DOCKERFILE).context("deploy/Dockerfile has no stage FROM debian:…")?;
    let dir = paths.containers().join(format!("busybox-{suite}"));
    // Debian moved it from /bin to /usr/bin.
    let find = || ["usr/bin/busybox", "bin/busybox"].map(|path| dir.join(path)).into_iter().find(|file| file.is_file());
    if let Some(program) = find() {
        return Ok(program);
    }
    let suites = apt::Suites::open(paths, &[suite])?;
    suites.update()?;
    let package = suites.download("busybox-static", &dir)?;
    run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&dir))?;
    find().context("busybox-static has no busybox")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suite_and_packages_are_those_of_the_dockerfile() {
        assert_eq!(suite(DOCKERFILE), Some("trixie"));
        let packages = packages(DOCKERFILE).unwrap();
        for wanted in ["ca-certificates", "e2fsprogs", "kmod", "libudev1", "mdadm", "mount", "xfsprogs"] {
            assert!(packages.contains(&wanted), "{wanted} is not in {packages:?}");
        }
        assert!(packages.iter().all(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))));
    }

    #[test]
    fn only_the_last_stage_counts() {
        let text = "FROM rust:1 AS build\nRUN apt-get install -y --no-install-recommends gcc\n\nFROM debian:trixie-slim\n\
                    RUN x \\\n && apt-get install -y --no-install-recommends a b \\\n && c\n";
        assert_eq!(packages(text), Some(vec!["a", "b"]));
        assert_eq!(suite(text), Some("trixie"));
        assert_eq!(packages("FROM debian:x\n"), None);
    }
}
