//! Runs the checker over scopes and variants and keeps what it found.
//!
//! Called by the program and by tests.

use crate::rules::{Bounds, Variant};
use crate::state::{Budget, State};
use crate::{Protocol, actions::Action, properties};
use stateright::{Checker, HasDiscoveries, Model, Path};
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

/// Two replicas, a crash and a cut: what most variants need, and the beginning of every scope.
pub const LEAST: Bounds =
    Bounds { replicas: 2, epochs: 3, generations: 2, writes: 2, restage: false, faults: faults(1, 1, 0, 0) };

/// Seconds: for CI.
pub const SMALL: &[Scope] = &[
    Scope { name: "two copies, four epochs: a crash, a cut", bounds: Bounds { epochs: 4, ..LEAST } },
    Scope {
        name: "two copies: a crash, a cut, a kernel failure",
        bounds: Bounds { faults: faults(1, 1, 1, 0), ..LEAST },
    },
    Scope {
        name: "two copies, staged again: a crash, a cut, a lost set",
        bounds: Bounds { restage: true, faults: faults(1, 1, 0, 1), ..LEAST },
    },
    Scope {
        name: "three copies, one write: a crash",
        bounds: Bounds { replicas: 3, writes: 1, faults: faults(1, 0, 0, 0), ..LEAST },
    },
];

/// About two minutes of one idle core, and at most 1.1 GB.
pub const FULL: &[Scope] = &[
    Scope { name: "three copies: a crash, a cut", bounds: Bounds { replicas: 3, ..LEAST } },
    Scope {
        name: "three copies, one write: a crash, a kernel failure",
        bounds: Bounds { replicas: 3, writes: 1, faults: faults(1, 0, 1, 0), ..LEAST },
    },
    Scope { name: "two copies, five epochs: a crash, a cut", bounds: Bounds { epochs: 5, ..LEAST } },
    Scope {
        name: "two copies, four epochs, three writes: two crashes, a cut",
        bounds: Bounds { epochs: 4, writes: 3, faults: faults(2, 1, 0, 0), ..LEAST },
    },
    Scope {
        name: "two copies, four epochs, three generations: a crash, two cuts",
        bounds: Bounds { epochs: 4, generations: 3, faults: faults(1, 2, 0, 0), ..LEAST },
    },
    Scope {
        name: "two copies: a crash, a cut, two kernel failures",
        bounds: Bounds { faults: faults(1, 1, 2, 0), ..LEAST },
    },
    Scope {
        name: "two copies, four epochs, staged again: a crash, a cut, a lost set",
        bounds: Bounds { epochs: 4, restage: true, faults: faults(1, 1, 0, 1), ..LEAST },
    },
];

/// Bounds in which a variant shows: the least ones, with the fault it is about.
pub fn bounds_of(variant: Variant) -> Bounds {
    use Variant::*;
    match variant {
        NoFreeze | LimitFailureInFlight | GrowUnfrozen | LastRecordedUnfrozen => {
            Bounds { faults: faults(1, 1, 1, 0), ..LEAST }
        }
        AbsentIsAll => Bounds { faults: faults(1, 1, 0, 1), ..LEAST },
        RestageNotActivated => Bounds { restage: true, ..LEAST },
        _ => LEAST,
    }
}

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
    /// The way to a broken promise.
    pub violation: Option<Violation>,
    /// Things that must be possible and were not seen.
    pub unseen: Vec<&'static str>,
}

/// A way to a broken promise; a short one, for the search is breadth first.
pub struct Violation {
    /// The promises broken in the last state.
    pub promises: Vec<&'static str>,
    /// What happened.
    pub trace: Vec<Action>,
}

impl Violation {
    fn of(path: Path<State, Action>) -> Violation {
        let promises = properties::broken(path.last_state());
        Violation { promises, trace: path.into_actions() }
    }
}

impl Outcome {
    /// The correct protocol: nothing broken, and nothing that must be possible missing.
    pub fn holds(&self) -> bool {
        self.violation.is_none() && self.unseen.is_empty()
    }
}

/// Explores to the end, or to the first broken promise.
pub fn run(bounds: Bounds, broken: Option<Variant>) -> Outcome {
    let protocol = Protocol { bounds, broken };
    let begin = Instant::now();
    let checker = protocol.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let mut found = checker.discoveries();
    let mut violations = Vec::new();
    let mut unseen = Vec::new();
    for property in protocol.properties() {
        let failure = property.expectation.discovery_is_failure();
        match found.remove(property.name) {
            Some(path) if failure => violations.push(Violation::of(path)),
            None if !failure => unseen.push(property.name),
            _ => {}
        }
    }
    Outcome {
        generated: checker.state_count(),
        unique: checker.unique_state_count(),
        depth: checker.max_depth(),
        took: begin.elapsed(),
        violation: violations.into_iter().min_by_key(|violation| violation.trace.len()),
        unseen,
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
