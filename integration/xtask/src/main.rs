//! The one front door: `cargo xtask <command>`.
//!
//! A thin dispatcher: each subcommand is a file of its own with an argument type and a `run` function. Nothing here is
//! part of the product.

mod tools;
mod vm;

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
    /// Real kernels in QEMU and a real control plane
    Vm(vm::Arguments),
    /// Programs that the lab needs: install or build them now
    Tools(tools::Arguments),
}

fn main() -> std::process::ExitCode {
    let result = match Arguments::parse().command {
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
