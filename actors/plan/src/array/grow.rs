//! An array that uses as much of its members as the volume is to have.
//!
//! Called by `run`. The record's size rises only after every complete copy's partition has grown; what was added to a
//! partition was zeroed before it became a part of it, so all members agree on it and nothing is resynced. One step at a
//! time, each on facts just looked at: the device of *every* member is large enough, nothing is synced, pending or held,
//! every member is whole. It never shrinks, and what is in its way is a reason, not a failure.

use super::run::{Rule, health};
use super::*;
use meshstor_kernel::facts::{COMPONENT_MAX, DATA_OFFSET};
use meshstor_kernel::ops::Op;

/// Bytes that a device has to have to be a member of an array of this size.
fn device_bytes(component: u64) -> u64 {
    component.saturating_add(DATA_OFFSET)
}

/// The size that the array is to have, when that is more than it has.
fn wanted(record: &VolumeRecord, array: &ArrayFact) -> Option<u64> {
    (record.size_bytes > array.size_bytes && array.size_bytes > 0).then_some(record.size_bytes)
}

/// Grows the array when it is to be larger and nothing is in the way.
pub(super) fn grow(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Rule {
    let component_bytes = wanted(record, array)?;
    // What was merged for a copy that is too small by now: nobody begins that resync by itself, and neither the copy returns
    // nor the array grows before it is over (simulator, seed 100029).
    if array.sync_action == "idle" && !array.resync_done {
        return Some(Plan::step(Op::ReleaseSync { volume: record.volume }, in_use(look, health(record, array))));
    }
    if blocked(record, array, look, component_bytes).is_some() || !quiet(array) {
        return None;
    }
    let status = in_use(look, health(record, array));
    // Of a recovery that never began: MD would hold the next one at the old end.
    if array.sync_held {
        return Some(Plan::step(Op::HoldSync { volume: record.volume, held: false }, status));
    }
    Some(Plan::step(Op::GrowArray { volume: record.volume, component_bytes }, status))
}

/// What a healthy array waits for before it can grow.
pub(super) fn waits(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Option<Reason> {
    blocked(record, array, look, wanted(record, array)?)
}

/// What is in the way and does not pass by itself.
fn blocked(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook, component: u64) -> Option<Reason> {
    if component > COMPONENT_MAX {
        return Some(Reason::NoRoom { what: format!("for a bitmap of more than {COMPONENT_MAX} bytes") });
    }
    let bytes = device_bytes(component);
    let enough = |name: &String| look.candidates.values().any(|c| c.component == *name && c.bytes >= bytes);
    if array.members.keys().all(enough) {
        return None;
    }
    let small = |(key, _): &(&ExportKey, &MemberFact)| look.candidates.get(*key).is_none_or(|c| c.bytes < bytes);
    let known: BTreeSet<ReplicaId> = members(array, look).filter(small).map(|(key, _)| key.replica.replica).collect();
    // A member whose device is not known any more is about to be lost: which one it is the record says.
    let lacking = || record.in_sync.iter().flatten().filter(|r| !active(array, look).contains_key(r)).copied();
    let replicas = if known.is_empty() { lacking().collect() } else { known };
    Some(Reason::AwaitingSize { replicas, bytes })
}

/// Nothing is synced, about to be or pending, and every member is whole. A member that is missing altogether is no
/// obstacle: it returns by a whole recovery.
fn quiet(array: &ArrayFact) -> bool {
    let whole = |member: &MemberFact| member.in_sync() && !member.flags.contains("blocked");
    matches!(array.state.as_str(), "clean" | "active" | "active-idle")
        && array.sync_action == "idle"
        && array.resync_done
        && array.members.values().all(whole)
}

/// Whether a device is large enough to become a member, of the array as it is and as it is to be. MD refuses one that is
/// too small for the first; one that is too small for the second would keep the volume from growing.
pub(super) fn fits(record: &VolumeRecord, array: &ArrayFact, candidate: &Candidate) -> bool {
    candidate.bytes >= device_bytes(record.size_bytes.max(array.size_bytes))
}

/// A copy outside of the set that is here and waits for its partition to grow.
pub(super) fn too_small(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Option<Reason> {
    let set = run::in_sync(record);
    let outside = record.replicas.keys().filter(|replica| !set.contains(replica));
    outside.filter_map(|replica| Some((*replica, look.candidates.get(&record.usable_export(*replica)?.0)?))).find_map(
        |(replica, candidate)| {
            let small = !array.members.contains_key(&candidate.component) && !fits(record, array, candidate);
            let wanted = device_bytes(record.size_bytes.max(array.size_bytes));
            small.then_some(Reason::NeedsGrowBeforeRejoin { replica, has: candidate.bytes, wanted })
        },
    )
}
