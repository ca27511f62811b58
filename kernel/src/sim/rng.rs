//! The one source of chance: a SplitMix64 generator that starts from the world's seed. Called by every part of the
//! simulator that draws; never reads a clock or the operating system's randomness, so that a seed is a whole run.

use std::time::Duration;
use uuid::Uuid;

/// A generator small enough to read and good enough to choose faults.
#[derive(Debug, Clone)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 when `n` is 0.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.next() % n }
    }

    /// True with probability `p`. A probability of zero draws nothing, so that switching a fault off does not shift
    /// the rest of the run.
    pub(super) fn chance(&mut self, p: f64) -> bool {
        p > 0.0 && (self.next() >> 11) as f64 / ((1u64 << 53) as f64) < p
    }

    /// A duration from `low` to `high`, both included.
    pub(super) fn between(&mut self, low: Duration, high: Duration) -> Duration {
        let span = high.saturating_sub(low).as_nanos() as u64;
        low + Duration::from_nanos(self.below(span.saturating_add(1)))
    }

    pub(super) fn uuid(&mut self) -> Uuid {
        let high = u128::from(self.next());
        uuid::Builder::from_random_bytes(((high << 64) | u128::from(self.next())).to_be_bytes()).into_uuid()
    }
}
