//! Copies that are to leave: a retiring one goes out of the record when enough others are complete, then out of the array,
//! and the array gets its former shape back (docs/protocol.md, moves).
//!
//! Called by `run` only. N copies become N + 1 by the ordinary return of one that is outside of the set; what is here is
//! the way back. Interrupted anywhere, the ordinary rules apply: each step is decided from the record and the array
//! alone. It never takes out a copy that the set cannot spare, and never uses `want_replacement` (F3).

use super::run::{Rule, departed, in_sync, shrink};
use super::*;
use meshstor_kernel::facts::OtherCopyInSync;
use meshstor_kernel::ops::Op;

/// Whether a copy is meant to stay. One whose object is gone is: absence is no wish (K2).
pub(super) fn stays(record: &VolumeRecord, replica: ReplicaId) -> bool {
    record.replicas.get(&replica).is_none_or(|copy| copy.wanted)
}

/// Complete copies that are meant to stay.
pub(super) fn staying(record: &VolumeRecord) -> usize {
    in_sync(record).into_iter().filter(|replica| stays(record, *replica)).count()
}

/// A complete copy is to leave: out of the record, once as many others as the volume has copies are in sync, are meant
/// to stay, and answer *now*; and never while something is being copied.
pub(super) fn retire(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Rule {
    let (set, now) = (in_sync(record), active(array, look));
    let leaving = set.iter().find(|replica| !stays(record, **replica) && now.contains_key(*replica))?;
    let stay = |(replica, key): &(&ReplicaId, &&ExportKey)| {
        set.contains(*replica) && stays(record, **replica) && answers(key, look)
    };
    let others = now.iter().filter(stay).count();
    let busy = array.sync_action != "idle" || !array.resync_done;
    if busy || others < record.replica_count.max(1) as usize {
        return None;
    }
    Some(Plan::step(change(record, shrink(record, *leaving, look)), in_use(look, None)))
}

/// A member that may not be in the array any more, with the proof that another one is in sync and answers: a remote one
/// loses its controllers, one of this node's own is failed.
pub(super) fn part(record: &VolumeRecord, key: &ExportKey, array: &ArrayFact, look: &ArrayLook) -> Rule {
    let set = in_sync(record);
    let leaving = look.candidates.get(key)?;
    let survivors = active(array, look)
        .into_iter()
        .filter(|(r, k)| set.contains(r) && *r != key.replica.replica && answers(k, look));
    // One that is meant to stay is the better witness.
    let (_, survivor) = survivors.max_by_key(|(r, _)| stays(record, *r))?;
    let survivor_component = &look.candidates.get(survivor)?.component;
    let evidence = OtherCopyInSync::prove(array, &leaving.component, survivor_component, answers(survivor, look))?;
    let volume = record.volume;
    let op = match leaving.local {
        true => Op::FailMember { volume, component: leaving.component.clone(), evidence },
        false => Op::DropMember { key: *key, volume, evidence },
    };
    let replica = key.replica.replica;
    let reason = stays(record, replica).then(|| Reason::Degraded { missing: [replica].into() });
    Some(Plan::step(op, in_use(look, reason)))
}

/// Whether this life of a member, outside of the set, has to leave the array.
pub(super) fn must_part(record: &VolumeRecord, key: &ExportKey) -> bool {
    departed(record, key) || !stays(record, key.replica.replica)
}

/// Everything is in sync and nobody is awaited: as many slots as copies, and no bitmap for one alone, unless the kernel
/// could not give it back when a second copy comes.
pub(super) fn shed(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Rule {
    let set = in_sync(record);
    let awaited = record.replicas.iter().any(|(replica, copy)| copy.wanted && !set.contains(replica));
    let moving = set.iter().any(|replica| !stays(record, *replica));
    let settled = array.sync_action == "idle" && array.resync_done && array.members.values().all(MemberFact::in_sync);
    if awaited || moving || !settled {
        return None;
    }
    let volume = record.volume;
    let members = array.members.len() as u32;
    let count = members.max(record.replica_count);
    if array.raid_disks > count {
        return Some(Plan::step(Op::SetRaidDisks { volume, count }, in_use(look, None)));
    }
    let spare = count == 1 && array.has_bitmap && !array.keeps_bitmap;
    spare.then(|| Plan::step(Op::RemoveBitmap { volume }, in_use(look, None)))
}
