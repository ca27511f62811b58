//! `cargo xtask sim`: whole clusters of the production code on simulated kernels, seed after seed.
//!
//! Called by people and by `cargo xtask test`. It builds the simulator and passes the arguments on.

use crate::build;
use anyhow::{Context, Result};
use std::process::{Command, ExitCode};

/// The production code on simulated kernels, with faults.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask sim\n  cargo xtask sim --seeds 2000\n  cargo xtask sim --seed 4711")]
pub struct Arguments {
    /// How many seeds
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first one
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Run this one alone and print its trace
    #[arg(long)]
    seed: Option<u64>,
}

/// Builds and runs the simulator; its last line is `sim: N passed, N failed`.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut command = command(arguments.first, arguments.seeds)?;
    if let Some(seed) = arguments.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    let status = command.status().context("run meshstor-sim")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The simulator over these seeds.
pub fn command(first: u64, seeds: u64) -> Result<Command> {
    let mut command = Command::new(build::binaries()?.join("meshstor-sim"));
    command.args(["--first", &first.to_string(), "--seeds", &seeds.to_string()]);
    Ok(command)
}
