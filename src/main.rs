//! The `meshstor` binary: controller, node agent and the tools around them. Each subcommand is a file of its own.

mod controller;
mod crds;
mod dev;
mod doctor;
mod guard;
mod node;
mod options;
mod recover;
mod telemetry;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Replicated NVMe volumes for Kubernetes on the Linux kernel's own data path.
#[derive(Parser)]
#[command(name = "meshstor", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the node agent (a DaemonSet pod; needs root and the node's kernel)
    Node(node::Arguments),
    /// Run the controller (a Deployment pod; any number of replicas)
    Controller(controller::Arguments),
    /// Run a whole simulated cluster in this process: no root, no Kubernetes
    Dev(dev::Arguments),
    /// Print the custom resource definitions as YAML, or apply them
    Crds(crds::Arguments),
    /// Check what this node can do and say what is missing
    Doctor(doctor::Arguments),
    /// Wait for a signal: the pod that `kubectl drain` has to evict before a node may go
    Guard,
    /// Rebuild the record of volumes from their drives, after etcd went back in time or objects were lost
    Recover(recover::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Node(arguments) => node::run(&arguments),
        Command::Controller(arguments) => controller::run(&arguments),
        Command::Dev(arguments) => dev::run(&arguments),
        Command::Crds(arguments) => crds::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Guard => guard::run(),
        Command::Recover(arguments) => recover::run(&arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Arguments::command().debug_assert();
    }
}
