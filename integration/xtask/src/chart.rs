//! `cargo xtask chart`: the Helm chart on a real API server.
//!
//! Called by people and by `cargo xtask test`. Builds the product and Helm, starts etcd and a kube-apiserver on loopback; needs
//! no guest.

use crate::{build, workspace};
use anyhow::{Context, Result};
use meshstor_lab::{Paths, tools};
use std::process::{Command, ExitCode};

/// The chart: linted, rendered, accepted by a real API server; and what a node's account may do there.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  cargo xtask chart")]
pub struct Arguments {}

/// Builds and runs; the last line is `chart: N passed, N failed`.
pub fn run(_: &Arguments) -> Result<ExitCode> {
    let status = command()?.status().context("run meshstor-demo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The command that runs the checks, everything they need being built.
pub fn command() -> Result<Command> {
    let paths = Paths::from_env()?;
    tools::ensure_control_plane(&paths)?;
    let helm = tools::helm(&paths)?;
    let binaries = build::binaries()?;
    let mut command = Command::new(binaries.join("meshstor-demo"));
    command.arg("chart").arg("--chart").arg(workspace::root()?.join("deploy/helm/meshstor"));
    command.arg("--helm").arg(helm).arg("--binary").arg(binaries.join("meshstor"));
    Ok(command)
}
