//! `cargo xtask kube`: real Kubernetes on real kernels, our product installed by Helm.
//!
//! Called by people. Builds what is missing (half an hour, once: Kubernetes and the sidecars come from source), then
//! lets `meshstor-demo kube` run the scenarios.

use crate::{build, workspace};
use anyhow::{Context, Result};
use meshstor_lab::{ControlPlane, Lab, kubernetes};
use std::process::{Command, ExitCode};

/// Kubelets in guests, the control plane here, our chart installed; what users and misfortune do to it.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask kube --transport tcp\n  cargo xtask kube --transport rdma --only drain\n  \
                        cargo xtask kube --transport tcp --kubernetes 1.33\n  cargo xtask kube --down"
)]
pub struct Arguments {
    /// Which network carries volumes: `tcp`, or `rdma` (soft-RoCE, with TCP as the second path)
    #[arg(long, default_value = "tcp", value_parser = ["tcp", "rdma"])]
    transport: String,
    /// Minor version of Kubernetes; older ones down to 1.33 are emulated by the same programs
    #[arg(long, default_value_t = kubernetes())]
    kubernetes: String,
    /// Debian kernel series of the guests
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// How many guests
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=9))]
    nodes: u8,
    /// Only scenarios whose name contains this (or one of these, with commas); the installation always runs
    #[arg(long, default_value = "")]
    only: String,
    /// How often the scenario `reboots` reboots its node
    #[arg(long, default_value_t = 20)]
    reboots: usize,
    /// Leave guests and control plane running at the end
    #[arg(long)]
    keep: bool,
    /// Go on with the cluster that an earlier run kept, with the product that it has
    #[arg(long, conflicts_with = "down")]
    again: bool,
    /// End what an earlier run left
    #[arg(long)]
    down: bool,
}

/// Builds and runs; the last line is `kube: N passed, N failed in N s`.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.down {
        return down();
    }
    let binaries = build::binaries()?;
    let mut command = Command::new(binaries.join("meshstor-demo"));
    command.args(["kube", "--transport", &arguments.transport, "--kubernetes", &arguments.kubernetes]);
    command.args(["--kernel", &arguments.kernel, "--nodes", &arguments.nodes.to_string(), "--only", &arguments.only]);
    command.arg("--source").arg(workspace::root()?).arg("--binaries").arg(&binaries);
    command.args(["--reboots", &arguments.reboots.to_string()]);
    command.args(arguments.keep.then_some("--keep")).args(arguments.again.then_some("--again"));
    let status = command.status().context("run meshstor-demo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn down() -> Result<ExitCode> {
    if let Ok(control) = ControlPlane::attach() {
        control.down()?;
    }
    if let Ok(lab) = Lab::attach() {
        lab.down()?;
    }
    println!("kube: all guests and the control plane ended, drives kept");
    Ok(ExitCode::SUCCESS)
}
