//! The one front door: `cargo xtask <command>`.
//!
//! A thin dispatcher: each subcommand is a file of its own with an argument type and a `run` function. Nothing here is
//! part of the product.

mod build;
mod chart;
mod demo;
mod image;
mod kube;
mod model;
mod sanity;
mod sim;
mod test;
mod tidy;
mod tools;
mod vm;
mod vm_check;
mod workspace;

use clap::{Parser, Subcommand};

/// Everything a developer or a CI job runs, under one name.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The main job on real kernels, timed and verified
    Demo(demo::Arguments),
    /// The protocol as a model, explored exhaustively; and each of its rules broken once
    Model(model::Arguments),
    /// The production code on simulated kernels, with faults, seed after seed
    Sim(sim::Arguments),
    /// Known bugs in the production code, one at a time: the simulator has to see each
    Mutants(sim::Mutants),
    /// The Helm chart on a real API server
    Chart(chart::Arguments),
    /// The product's container image, as a tar
    Image(image::Arguments),
    /// Real Kubernetes on real kernels, the product installed by Helm
    Kube(kube::Arguments),
    /// csi-sanity against a simulated cluster
    Sanity(sanity::Arguments),
    /// Everything CI runs
    Test(test::Arguments),
    /// Style rules and pages that a machine can check
    Tidy(tidy::Arguments),
    /// Real kernels in QEMU and a real control plane
    Vm(vm::Arguments),
    /// Programs that the lab needs: install or build them now
    Tools(tools::Arguments),
}

fn main() -> std::process::ExitCode {
    let result = match Arguments::parse().command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Model(arguments) => model::run(&arguments),
        Command::Sim(arguments) => sim::run(&arguments),
        Command::Mutants(arguments) => sim::hunt(&arguments),
        Command::Chart(arguments) => chart::run(&arguments),
        Command::Image(arguments) => image::run(&arguments),
        Command::Kube(arguments) => kube::run(&arguments),
        Command::Sanity(arguments) => sanity::run(&arguments),
        Command::Test(arguments) => test::run(arguments),
        Command::Tidy(arguments) => tidy::run(&arguments),
        Command::Vm(arguments) => vm::run(arguments),
        Command::Tools(arguments) => tools::run(arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
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
