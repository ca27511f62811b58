//! `cargo xtask sim` and `cargo xtask mutants`: whole clusters of the production code on simulated kernels, seed after seed;
//! and the same with known bugs in it, each of which has to be found.
//!
//! Called by people and by `cargo xtask test`. It builds the simulator and passes the arguments on.

use crate::build;
use anyhow::{Context, Result};
use std::process::{Command, ExitCode};

/// The production code on simulated kernels, with faults.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask sim\n  cargo xtask sim --seeds 20000 --release\n  cargo xtask sim --seed 4711\n  \
                        cargo xtask sim --seed 4711 --mutant fence-skipped\n  \
                        cargo xtask sim --scene floor-ignored --mutant floor-ignored"
)]
pub struct Arguments {
    /// How many seeds
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first one
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Run this one alone and print its trace, one line for each event
    #[arg(long)]
    seed: Option<u64>,
    /// With --seed or --scene: put this known bug into the program
    #[arg(long)]
    mutant: Option<String>,
    /// Play the scene that is made for this known bug, with --mutant with the bug in it, and print its trace
    #[arg(long, conflicts_with = "seed")]
    scene: Option<String>,
    /// Build it optimised first, which takes minutes once: for thousands of seeds
    #[arg(long)]
    release: bool,
}

/// Known bugs, put into the program one at a time: the simulator has to see each.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask mutants\n  cargo xtask mutants --only fence\n  \
                        cargo xtask mutants --only drop-before-record --seeds 2000")]
pub struct Mutants {
    /// Only those whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Seeds at most for each
    #[arg(long, default_value_t = 400)]
    seeds: u64,
    /// Build it optimised first, which takes minutes once: for the hunt of all of them
    #[arg(long)]
    release: bool,
}

/// Builds and runs the simulator; its last line is `sim: N passed, N failed`.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut command = simulator(arguments.release)?;
    command.args(["--first", &arguments.first.to_string(), "--seeds", &arguments.seeds.to_string()]);
    if let Some(seed) = arguments.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    if let Some(scene) = &arguments.scene {
        command.args(["--scene", scene]);
    }
    if let Some(mutant) = &arguments.mutant {
        command.args(["--mutant", mutant]);
    }
    finish(command)
}

/// Builds the simulator and hunts the mutants; the last line is `mutants: N passed, N failed`.
pub fn hunt(arguments: &Mutants) -> Result<ExitCode> {
    let mut command = simulator(arguments.release)?;
    command.args(["--mutants", "--seeds", &arguments.seeds.to_string()]);
    command.args(["--only", &arguments.only]);
    finish(command)
}

fn finish(mut command: Command) -> Result<ExitCode> {
    let status = command.status().context("run meshstor-sim")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn simulator(release: bool) -> Result<Command> {
    let directory = if release { build::optimised()? } else { build::binaries()? };
    Ok(Command::new(directory.join("meshstor-sim")))
}

/// The simulator over these seeds.
pub fn command(first: u64, seeds: u64) -> Result<Command> {
    let mut command = simulator(false)?;
    command.args(["--first", &first.to_string(), "--seeds", &seeds.to_string()]);
    Ok(command)
}

/// The simulator hunting mutants.
pub fn mutants(seeds: u64) -> Result<Command> {
    let mut command = simulator(false)?;
    command.args(["--mutants", "--seeds", &seeds.to_string()]);
    Ok(command)
}
