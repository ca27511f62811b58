//! Many seeds, several at a time: those that once found something first, then a range. Some run twice, and must leave the
//! same trace byte for byte.
//!
//! Called by `main`. Every run has a thread's state of its own; results are printed in the order of the seeds.

use crate::Arguments;
use crate::run::{Outcome, run};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Instant;

/// Seeds that once found something, with what it was.
const KEPT: &str = include_str!("../seeds.txt");
/// Lines of the trace shown for a seed that failed in a longer run.
const TAIL: usize = 25;
/// One seed in so many runs twice.
const TWICE: usize = 25;

/// Runs them all; answers whether all passed.
pub fn all(arguments: &Arguments) -> bool {
    let mut seeds = kept();
    let range = arguments.first..arguments.first + arguments.seeds;
    seeds.extend(range.filter(|seed| !kept().contains(seed)));
    let begin = Instant::now();
    let (mut failed, mut acknowledged, mut done, mut twice) = (Vec::new(), 0, 0, 0);
    each(
        &seeds,
        arguments.jobs(),
        |index, stop| {
            let outcome = run(seeds[index], arguments.harm, None);
            let outcome =
                if index.is_multiple_of(TWICE) { repeated(outcome, seeds[index], arguments.harm) } else { outcome };
            if arguments.fail_fast && !outcome.failures.is_empty() {
                stop.store(true, Ordering::Relaxed);
            }
            outcome
        },
        |index, outcome| {
            acknowledged += outcome.acknowledged;
            done += 1;
            twice += usize::from(index.is_multiple_of(TWICE));
            if !outcome.failures.is_empty() {
                show(seeds[index], &outcome);
                failed.push(seeds[index]);
            }
            if done % 50 == 0 {
                println!("… {done} seeds, {} failed, {:.0} s", failed.len(), begin.elapsed().as_secs_f64());
            }
        },
    );
    let minutes = begin.elapsed().as_secs_f64() / 60.0;
    let speed = done as f64 / minutes.max(f64::MIN_POSITIVE);
    println!(
        "sim: {acknowledged} writes acknowledged, {speed:.0} seeds per minute, {twice} of them run twice and compared"
    );
    if let Some(first) = failed.first() {
        println!("sim: failing seeds {failed:?}; look at one with: cargo xtask sim --seed {first}");
    }
    println!("sim: {} passed, {} failed", done - failed.len(), failed.len());
    failed.is_empty()
}

/// The seeds of the file, without their comments.
fn kept() -> Vec<u64> {
    KEPT.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
}

fn show(seed: u64, outcome: &Outcome) {
    println!("seed {seed} FAILED:");
    outcome.failures.iter().for_each(|failure| println!("  {failure}"));
    let from = outcome.trace.len().saturating_sub(TAIL);
    outcome.trace[from..].iter().for_each(|line| println!("    {line}"));
}

/// The outcome, which has failed when a second run is another one.
fn repeated(mut outcome: Outcome, seed: u64, harm: u64) -> Outcome {
    let again = run(seed, harm, None);
    let differs = outcome.trace.iter().zip(&again.trace).find(|(one, other)| one != other);
    if let Some((one, other)) = differs {
        outcome.failures.push(format!("the same seed again is another run: first {one:?}, then {other:?}"));
    } else if outcome.trace.len() != again.trace.len() || outcome.failures != again.failures {
        let (one, other) = (outcome.trace.len(), again.trace.len());
        outcome.failures.push(format!("the same seed again is another run: {one} lines of trace, then {other}"));
    }
    outcome
}

/// Runs `work` for each seed by index on `jobs` threads, and hands the results to `take` in order.
pub fn each<R: Send>(
    seeds: &[u64],
    jobs: usize,
    work: impl Fn(usize, &AtomicBool) -> R + Sync,
    mut take: impl FnMut(usize, R),
) {
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (send, results) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            let (send, work, next, stop) = (send.clone(), &work, &next, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= seeds.len() || send.send((index, work(index, stop))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        let (mut early, mut due) = (BTreeMap::new(), 0);
        for (index, result) in results {
            early.insert(index, result);
            while let Some(result) = early.remove(&due) {
                take(due, result);
                due += 1;
            }
        }
    });
}
