//! Runs the checker over scopes and variants and keeps what it found.
//!
//! Called by the program and by tests.

use crate::rules::{Bounds, Variant};
use crate::state::{Budget, State};
use crate::{Protocol, actions::Action};
use stateright::{Checker, HasDiscoveries, Model};
use std::time::{Duration, Instant};

/// A named part of the state space that is explored to its end.
pub struct Scope {
    /// Name.
    pub name: &'static str,
    /// Bounds.
    pub bounds: Bounds,
}

const fn faults(crashes: u8, cuts: u8, failures: u8, losses: u8) -> Budget {
    Budget { crashes, cuts, failures, losses }
}

/// Seconds: for tests and CI.
pub const SMALL: &[Scope] = &[Scope {
    name: "two replicas",
    bounds: Bounds { replicas: 2, epochs: 3, generations: 2, writes: 2, restage: false, faults: faults(1, 1, 0, 0) },
}];

/// What a run found.
pub struct Outcome {
    /// States generated, repeats included.
    pub generated: usize,
    /// Different states.
    pub unique: usize,
    /// Length of the longest shortest way to a state.
    pub depth: usize,
    /// Time.
    pub took: Duration,
    /// Broken promise and the way to it.
    pub violation: Option<(&'static str, Vec<(State, Option<Action>)>)>,
    /// Things that must be possible and were not seen.
    pub unseen: Vec<&'static str>,
}

/// Explores to the end, or to the first broken promise.
pub fn run(bounds: Bounds, broken: Option<Variant>) -> Outcome {
    let protocol = Protocol { bounds, broken };
    let begin = Instant::now();
    let checker = protocol.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let mut found = checker.discoveries();
    let mut violation = None;
    let mut unseen = Vec::new();
    for property in protocol.properties() {
        let failure = property.expectation.discovery_is_failure();
        match found.remove(property.name) {
            Some(path) if failure => {
                let path = path.into_vec();
                if violation.as_ref().is_none_or(|(_, old): &(_, Vec<_>)| path.len() < old.len()) {
                    violation = Some((property.name, path));
                }
            }
            None if !failure => unseen.push(property.name),
            _ => {}
        }
    }
    Outcome {
        generated: checker.state_count(),
        unique: checker.unique_state_count(),
        depth: checker.max_depth(),
        took: begin.elapsed(),
        violation,
        unseen,
    }
}
