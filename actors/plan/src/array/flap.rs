//! Copies that keep leaving: each return within an hour of calm costs more patience than the one before.
//!
//! Called by `run` and `start`. What is gone by is recorded in the volume's status (`status.flaps`), so it outlives the
//! agent and moves with the consumer. Every departure stops the volume's writes for the time that it takes to notice it,
//! and every return costs a resync: a link that flaps must not make the pod pay for both again and again.
//!
//! It delays a return, nothing else: it decides neither who leaves nor what is proof.

use super::run::in_sync;
use super::*;
use crate::record::FlapRecord;
use crate::wall::WallTime;

/// Without a departure for this long, all is forgotten.
pub const CALM: Duration = Duration::from_secs(3600);
/// Before the second return.
pub const FIRST: Duration = Duration::from_secs(30);
/// Before any.
pub const LONGEST: Duration = Duration::from_secs(900);

/// How long a copy stays outside that has left so many times: not at all, then 30 s, 60 s, 120 s, …, 15 min.
fn delay(count: u32) -> Duration {
    match count {
        0 | 1 => Duration::ZERO,
        _ => FIRST.saturating_mul(1 << (count - 2).min(16)).min(LONGEST),
    }
}

/// How long ago a departure was. Another node's clock may have recorded it: what lies ahead a little has just been, what
/// lies ahead further than the longest delay was written by a clock that was wrong, and counts for nothing.
fn age(last: WallTime, now: WallTime) -> Duration {
    if last.since(now) > LONGEST { CALM } else { now.since(last) }
}

/// What is recorded of a copy that leaves now.
pub(super) fn leaves(record: &VolumeRecord, replica: ReplicaId, now: WallTime) -> FlapRecord {
    let before = record.flaps.get(&replica).filter(|flap| age(flap.last, now) < CALM);
    FlapRecord { count: before.map_or(1, |flap| flap.count.saturating_add(1)), last: now }
}

/// When a copy may come back, if not now.
///
/// A volume that is down to its last complete copy waits no longer than the first step: what its pod suffers from a
/// flapping member is a pause, what it would suffer from the loss of the last copy is everything written since.
pub(super) fn returns_at(record: &VolumeRecord, replica: ReplicaId, now: WallTime) -> Option<WallTime> {
    let flap = record.flaps.get(&replica)?;
    let longest = if in_sync(record).len() > 1 { LONGEST } else { FIRST };
    let left = delay(flap.count).min(longest).checked_sub(age(flap.last, now)).filter(|left| !left.is_zero())?;
    Some(now.after(left))
}

/// The copy whose patience ends first, and how long that takes.
pub(super) fn waiting(record: &VolumeRecord, now: WallTime) -> Option<(Reason, Duration)> {
    let set = in_sync(record);
    let outside = record.replicas.iter().filter(|(replica, copy)| copy.wanted && !set.contains(replica));
    let waits = outside.filter_map(|(replica, _)| Some((returns_at(record, *replica, now)?, *replica)));
    let (until, replica) = waits.min()?;
    let times = record.flaps.get(&replica).map_or(0, |flap| flap.count);
    Some((Reason::Flapping { replica, times, until }, until.since(now)))
}

#[cfg(test)]
#[path = "flap_tests.rs"]
mod tests;
