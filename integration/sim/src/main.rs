//! The simulator: whole clusters of the production code on simulated kernels and an in-memory API server, one thread, a
//! paused clock, one seed for each run. Called by `cargo xtask sim` and `cargo xtask mutants`.
//!
//! A run has two phases. In the first, volumes live their lives while a nemesis does harm; the oracle then reads the
//! simulated disks, never an actor. In the second, all harm ends, and everything has to come right: copies in sync,
//! data there, nothing left after deletion. A seed is a whole run; the fault model is written in `kernel/src/sim/faults.rs`.
//! Seeds that once found something are kept in `seeds.txt` and run again first.

mod batch;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod capacity_tests;
mod cluster;
mod directed;
mod mutants;
mod nemesis;
mod oracle;
mod records;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod recover_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod repair_tests;
mod run;
mod workload;

use clap::Parser;
use std::process::ExitCode;

/// A run is mostly small allocations: with this one more than a tenth is saved.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs seeds.
#[derive(Parser)]
#[command(
    name = "meshstor-sim",
    after_help = "Examples:\n  meshstor-sim --seeds 200\n  meshstor-sim --seed 4711\n  RUST_LOG=info meshstor-sim --seed 4711\n  meshstor-sim --first 1000 --seeds 500\n  \
                  meshstor-sim --mutants\n  meshstor-sim --mutants --only fence-skipped\n  \
                  meshstor-sim --scene floor-ignored --mutant floor-ignored"
)]
pub struct Arguments {
    /// How many seeds; for mutants: how many at most for each
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first one
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Run this one alone and print its trace, one line for each event
    #[arg(long)]
    seed: Option<u64>,
    /// Simulated seconds of harm
    #[arg(long, default_value_t = 240)]
    harm: u64,
    /// Runs at the same time; by default as many as there are processors
    #[arg(long)]
    jobs: Option<usize>,
    /// Stop at the first seed that fails
    #[arg(long)]
    fail_fast: bool,
    /// Put each known bug into the program and demand that some seed finds it
    #[arg(long)]
    mutants: bool,
    /// Only mutants whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Only mutants that a kept seed has seen, or that have a scene
    #[arg(long)]
    seen: bool,
    /// With --seed or --scene: the run has this bug in it
    #[arg(long)]
    mutant: Option<String>,
    /// Play the scene that is made for this bug, with --mutant with the bug in it, and print its trace
    #[arg(long)]
    scene: Option<String>,
}

impl Arguments {
    fn jobs(&self) -> usize {
        self.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get())).max(1)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // For one run: what the program would have logged, without times of day.
    if let (true, Ok(filter)) = (arguments.seed.is_some() || arguments.scene.is_some(), std::env::var("RUST_LOG")) {
        let log = tracing_subscriber::fmt().with_env_filter(filter).without_time().with_ansi(false);
        log.with_writer(std::io::stderr).init();
    }
    let single = arguments.seed.or(arguments.scene.is_some().then_some(0));
    let passed = match (single, arguments.mutants) {
        (Some(seed), _) => one(seed, &arguments),
        (None, true) => mutants::all(&arguments),
        (None, false) => batch::all(&arguments),
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One seed, or one scene, with its whole trace.
fn one(seed: u64, arguments: &Arguments) -> bool {
    let known = |flag: &str, name: Option<&str>| {
        let named = name.map(mutants::named);
        if let Some(None) = named {
            eprintln!("error: {flag} is {:?}: there is no such mutant", name.unwrap_or_default());
        }
        named.map_or(Ok(None), |mutant| mutant.map(Some).ok_or(()))
    };
    let (Ok(mutant), Ok(scene)) =
        (known("--mutant", arguments.mutant.as_deref()), known("--scene", arguments.scene.as_deref()))
    else {
        return false;
    };
    let (what, outcome) = match scene.map(|made_for| (made_for, directed::of(made_for))) {
        Some((made_for, Some(scene))) => (format!("scene {}", made_for.name()), scene.run(mutant)),
        Some((made_for, None)) => {
            eprintln!("error: --scene is {}: no scene is made for this mutant, seeds see it", made_for.name());
            return false;
        }
        None => (format!("seed {seed}"), run::run(seed, arguments.harm, mutant)),
    };
    outcome.trace.iter().for_each(|line| println!("{line}"));
    outcome.failures.iter().for_each(|failure| println!("FAILED: {failure}"));
    println!("{what}: {} writes acknowledged, {} failures", outcome.acknowledged, outcome.failures.len());
    outcome.failures.is_empty()
}
