//! `cargo xtask sanity`: csi-sanity, the conformance suite of the Kubernetes CSI project, against `meshstor dev`.
//!
//! Called by people and by `cargo xtask test`. Builds the product and the suite; needs no root and no guest.

use crate::build;
use anyhow::{Context, Result};
use meshstor_lab::{Paths, tools};
use std::process::{Command, ExitCode};

/// csi-sanity against a simulated cluster.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  cargo xtask sanity")]
pub struct Arguments {}

/// Builds and runs, for mounted and for raw block volumes; the last line is `sanity: N passed, N failed, N skipped`.
pub fn run(_: &Arguments) -> Result<ExitCode> {
    let status = command()?.status().context("run meshstor-demo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The command that runs the suite, everything it needs being built.
pub fn command() -> Result<Command> {
    let suite = tools::csi_sanity(&Paths::from_env()?)?;
    let binaries = build::binaries()?;
    let mut command = Command::new(binaries.join("meshstor-demo"));
    command.arg("sanity").arg("--binary").arg(binaries.join("meshstor")).arg("--suite").arg(suite);
    Ok(command)
}
