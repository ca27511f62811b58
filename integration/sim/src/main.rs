//! The simulator: whole clusters of the production code on simulated kernels and an in-memory API server, one thread, a
//! paused clock, one seed for each run. Called by `cargo xtask sim`.
//!
//! A run has two phases. In the first, volumes live their lives while a nemesis does harm; the oracle then reads the
//! simulated disks, never an actor. In the second, all harm ends, and everything has to come right: copies in sync,
//! data there, nothing left after deletion. A seed is a whole run; the fault model is written in `kernel/src/sim/faults.rs`.

mod cluster;
mod nemesis;
mod oracle;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod repair_tests;
mod run;
mod workload;

use clap::Parser;
use std::process::ExitCode;
use std::time::Instant;

/// Runs seeds.
#[derive(Parser)]
#[command(
    name = "meshstor-sim",
    after_help = "Examples:\n  meshstor-sim --seeds 200\n  meshstor-sim --seed 4711\n  meshstor-sim --first 1000 --seeds 500"
)]
struct Arguments {
    /// How many seeds
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
    /// Stop at the first seed that fails
    #[arg(long)]
    fail_fast: bool,
}

/// Lines of the trace shown for a seed that failed in a longer run.
const TAIL: usize = 25;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(seed) = arguments.seed {
        let outcome = run::run(seed, arguments.harm);
        outcome.trace.iter().for_each(|line| println!("{line}"));
        outcome.failures.iter().for_each(|failure| println!("FAILED: {failure}"));
        println!("seed {seed}: {} writes acknowledged, {} failures", outcome.acknowledged, outcome.failures.len());
        return code(outcome.failures.is_empty());
    }
    let begin = Instant::now();
    let (mut failed, mut acknowledged) = (Vec::new(), 0);
    for seed in arguments.first..arguments.first + arguments.seeds {
        let outcome = run::run(seed, arguments.harm);
        acknowledged += outcome.acknowledged;
        if !outcome.failures.is_empty() {
            println!("seed {seed} FAILED:");
            outcome.failures.iter().for_each(|failure| println!("  {failure}"));
            let from = outcome.trace.len().saturating_sub(TAIL);
            outcome.trace[from..].iter().for_each(|line| println!("    {line}"));
            failed.push(seed);
            if arguments.fail_fast {
                break;
            }
        }
        let done = seed - arguments.first + 1;
        if done.is_multiple_of(50) {
            println!("… {done} seeds, {} failed, {:.0} s", failed.len(), begin.elapsed().as_secs_f64());
        }
    }
    let minutes = begin.elapsed().as_secs_f64() / 60.0;
    let speed = arguments.seeds as f64 / minutes.max(f64::MIN_POSITIVE);
    println!("sim: {acknowledged} writes acknowledged, {speed:.0} seeds per minute");
    if !failed.is_empty() {
        println!("sim: failing seeds {failed:?}; look at one with: cargo xtask sim --seed {}", failed[0]);
    }
    println!("sim: {} passed, {} failed", arguments.seeds as usize - failed.len(), failed.len());
    code(failed.is_empty())
}

fn code(passed: bool) -> ExitCode {
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
