//! Wall time as the store sees it: only creationTimestamp and deletionTimestamp come from here. Chosen through
//! [`crate::Builder::clock`]; a simulation injects its own. Never used for timers: watch timeouts run on tokio's
//! clock, which a simulation pauses.

pub use k8s_openapi::jiff::Timestamp;

/// Source of the timestamps the store writes into objects.
pub trait Clock: Send + Sync {
    /// The present moment.
    fn now(&self) -> Timestamp;
}

impl<F: Fn() -> Timestamp + Send + Sync> Clock for F {
    fn now(&self) -> Timestamp {
        self()
    }
}

/// The machine's clock; the default.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// A wall clock that starts where it is told and moves with tokio's clock, so that a paused runtime also stops the
/// timestamps.
#[derive(Clone, Copy, Debug)]
pub struct TokioClock {
    start: Timestamp,
    origin: tokio::time::Instant,
}

impl TokioClock {
    /// A clock that reads `start` now.
    pub fn starting_at(start: Timestamp) -> Self {
        Self { start, origin: tokio::time::Instant::now() }
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Timestamp {
        // Saturates at the end of representable time, year 9999, rather than failing.
        self.start.saturating_add(self.origin.elapsed()).unwrap_or(Timestamp::MAX)
    }
}
