//! The mutants: each known bug is put into the program alone, and seeds run until one fails; a bug whose conditions are
//! rare has a scene that is made for it. A mutant that nobody sees means that the oracle is blind, or that the bug cannot
//! do harm: either has to be understood.
//!
//! Called by `main` for `cargo xtask mutants`. A run counts as caught by what the oracle says at its end, as for the
//! program without a bug; nothing here knows how a bug shows.

use crate::Arguments;
use crate::batch::each;
use crate::directed::{self, Scene};
use crate::run::run;
use meshstor_kernel::mutant::Mutant;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Seeds that have seen a mutant before, tried first: most seeds never meet the conditions of the rarer ones.
const SEEN: &str = include_str!("../mutants.txt");

/// The mutant of this name.
pub fn named(name: &str) -> Option<Mutant> {
    Mutant::ALL.into_iter().find(|mutant| mutant.name() == name)
}

/// Seeds that have seen it.
fn seen(mutant: Mutant) -> Vec<u64> {
    let lines = SEEN.lines().filter_map(|line| line.split_once(' ')).filter(|(name, _)| *name == mutant.name());
    lines.filter_map(|(_, seed)| seed.trim().parse().ok()).collect()
}

/// Runs all of them that are asked for; answers whether each was caught.
pub fn all(arguments: &Arguments) -> bool {
    let asked = |m: &Mutant| {
        m.name().contains(&arguments.only) && (!arguments.seen || !seen(*m).is_empty() || directed::of(*m).is_some())
    };
    let chosen: Vec<Mutant> = Mutant::ALL.into_iter().filter(asked).collect();
    let (mut caught, mut missed) = (0, Vec::new());
    for mutant in chosen {
        let caught_it = match directed::of(mutant) {
            Some(scene) => played(mutant, scene),
            None => hunt(mutant, arguments),
        };
        match caught_it {
            true => caught += 1,
            false => missed.push(mutant.name()),
        }
    }
    if !missed.is_empty() {
        println!("mutants: nobody saw {}", missed.join(", "));
    }
    println!("mutants: {caught} passed, {} failed", missed.len());
    missed.is_empty()
}

/// Plays the scene that is made for a mutant: without the bug nothing may be wrong, with it something has to be.
fn played(mutant: Mutant, scene: &'static Scene) -> bool {
    let (sound, with_bug) = (scene.run(None), scene.run(Some(mutant)));
    let name = mutant.name();
    match (sound.failures.first(), with_bug.failures.first()) {
        (Some(failure), _) => println!("{name}: its scene fails without the bug: {failure}"),
        (None, Some(failure)) => println!("{name}: caught by its scene: {failure}"),
        (None, None) => println!("{name}: NOT CAUGHT by its scene"),
    }
    sound.failures.is_empty() && !with_bug.failures.is_empty()
}

/// Runs seeds with the bug until one fails.
fn hunt(mutant: Mutant, arguments: &Arguments) -> bool {
    let begin = Instant::now();
    let mut seeds = seen(mutant);
    seeds.extend(arguments.first..arguments.first + arguments.seeds);
    let (mut runs, mut found) = (0, Vec::new());
    each(
        &seeds,
        arguments.jobs(),
        |index, stop| {
            let mut outcome = run(seeds[index], arguments.harm, Some(mutant));
            // A seed that fails without the bug as well has not seen the bug.
            if !outcome.failures.is_empty() && !run(seeds[index], arguments.harm, None).failures.is_empty() {
                outcome.failures.clear();
            }
            if !outcome.failures.is_empty() {
                stop.store(true, Ordering::Relaxed);
            }
            outcome
        },
        |index, outcome| {
            runs += 1;
            found.extend(outcome.failures.first().map(|failure| (seeds[index], failure.clone())));
        },
    );
    let seconds = begin.elapsed().as_secs_f64();
    match found.first() {
        Some((seed, failure)) => {
            println!(
                "{}: caught by {} of {runs} seeds, seed {seed}: {failure} ({seconds:.0} s)",
                mutant.name(),
                found.len()
            );
        }
        None => println!("{}: NOT CAUGHT in {runs} seeds ({seconds:.0} s)", mutant.name()),
    }
    !found.is_empty()
}
