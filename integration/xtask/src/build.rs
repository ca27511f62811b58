//! Building the product's binaries, with what that needs on a fresh Debian machine.
//!
//! Called by the subcommands that run the product. It installs only what is missing.

use crate::workspace;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

/// Debian packages that the product's build needs: the udev crate links libudev.
pub const BUILD_PACKAGES: &[&str] = &["libudev-dev", "pkg-config"];

/// Installs the packages that the build needs, if they are not there.
pub fn ensure_packages() -> Result<()> {
    let found = Command::new("pkg-config").args(["--exists", "libudev"]).status().is_ok_and(|s| s.success());
    if found {
        return Ok(());
    }
    println!("install {}", BUILD_PACKAGES.join(" "));
    meshstor_lab::tools::install(BUILD_PACKAGES)
}

/// Builds the workspace's binaries and returns the directory they are in. All of them with all features: a subset would have
/// other features below it, and everything would be built twice on a machine that also runs the tests.
pub fn binaries() -> Result<PathBuf> {
    built(false)
}

/// The same, optimised: some minutes more, once, for runs of an hour.
pub fn optimised() -> Result<PathBuf> {
    built(true)
}

fn built(optimised: bool) -> Result<PathBuf> {
    ensure_packages()?;
    let begin = Instant::now();
    println!("build all binaries");
    let mut cargo = workspace::cargo();
    // The kernel crate's console goes with them: the regressions run it in guests.
    let wanted = ["build", "--workspace", "--bins", "--example", "kernel-suite", "--all-features"];
    cargo.args(wanted).args(optimised.then_some("--release")).current_dir(workspace::root()?);
    if !cargo.status().context("run cargo build")?.success() {
        bail!("the build failed");
    }
    println!("built in {} s", begin.elapsed().as_secs());
    Ok(workspace::target()?.join(if optimised { "release" } else { "debug" }))
}

/// The story's program, built with the product: `run` tells the story, the others do harm.
pub fn story(what: &str, kernel: &str, keep: bool) -> Result<Command> {
    let binaries = binaries()?;
    let mut command = Command::new(binaries.join("meshstor-demo"));
    command.args([what, "--kernel", kernel, "--binaries"]).arg(&binaries);
    if keep {
        command.arg("--keep");
    }
    Ok(command)
}
