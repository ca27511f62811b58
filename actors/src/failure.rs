//! Why a round failed, and how long to leave it alone.
//!
//! Made by the worlds (`worlds/`, `api.rs`), read by the shell. It never decides what to do instead: after any failure
//! the shell looks again, because what failed may have happened.

use meshstor_kernel::{Class, KernelError};
use std::time::Duration;

/// The shortest and the longest pause after a transient failure.
pub const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// The pause where something outside has to change first: a hint usually comes sooner.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// The pause after something that trying again does not mend.
const SLOW: Duration = Duration::from_secs(30);
/// The pause after a lost race: the record has moved on, and a fresh look decides anew.
const RACE: Duration = Duration::from_millis(50);
/// Lost races in a row that are ordinary: our own status and the controller write to the same object.
const RACES: u32 = 5;

/// A failed observation or step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The kernel refused or did not answer.
    #[error("{0}")]
    Kernel(#[from] KernelError),
    /// The API server did not answer, or answered with something that is not an answer.
    #[error("{what}: {error}")]
    Api {
        /// What was being asked.
        what: String,
        /// The client's sentence.
        error: String,
    },
    /// The record changed since it was read: nothing was written.
    #[error("{what}: the record has changed meanwhile")]
    Raced {
        /// What was to be written.
        what: String,
    },
    /// The API server will not take what was sent.
    #[error("{what}: refused by the API server: {error}")]
    Refused {
        /// What was sent.
        what: String,
        /// The server's sentence.
        error: String,
    },
    /// No answer in time; it may still happen.
    #[error("{what} took longer than {} s; it may still end", .after.as_secs())]
    TimedOut {
        /// What.
        what: String,
        /// How long it was given.
        after: Duration,
    },
    /// The step was done, changed nothing, and is still wanted.
    #[error("{what} changed nothing, and is still needed")]
    NoEffect {
        /// Which step.
        what: String,
    },
}

impl Failure {
    /// What to do about it.
    pub fn class(&self) -> Class {
        match self {
            Failure::Kernel(error) => error.class,
            // The server is elsewhere: it comes back when it comes back.
            Failure::Api { .. } => Class::Wait,
            Failure::Raced { .. } | Failure::TimedOut { .. } | Failure::NoEffect { .. } => Class::Retry,
            Failure::Refused { .. } => Class::Refuse,
        }
    }

    /// How long to leave it alone after the `failures`-th failure in a row (counted from one).
    pub fn pause(&self, failures: u32) -> Duration {
        let doubled = RETRY_MIN * 2u32.saturating_pow(failures.saturating_sub(1).min(8));
        match (self, self.class()) {
            (Failure::Raced { .. }, _) if failures <= RACES => RACE * failures,
            (_, Class::Retry) => doubled.min(RETRY_MAX),
            (_, Class::Wait) => doubled.min(WAIT_MAX),
            (_, Class::Refuse | Class::Bug) => SLOW,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_class_limit() {
        let kernel = |class| Failure::Kernel(KernelError { class, ..KernelError::retry("op", "path", "detail") });
        let seconds = |failure: &Failure| [1, 2, 5, 60].map(|n| failure.pause(n).as_millis());
        assert_eq!(seconds(&kernel(Class::Retry)), [500, 1000, 8000, 10_000]);
        assert_eq!(seconds(&kernel(Class::Wait)), [500, 1000, 5000, 5000]);
        assert_eq!(seconds(&kernel(Class::Refuse)), [30_000; 4]);
        assert_eq!(seconds(&kernel(Class::Bug)), [30_000; 4]);
        assert_eq!(seconds(&Failure::Raced { what: "shrink".into() }), [50, 100, 250, 10_000]);
    }
}
