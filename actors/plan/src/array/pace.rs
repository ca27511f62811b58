//! How much copying a volume may do (P10): whole copies wait for the controller's leave, and every copy for its speed.
//!
//! Called by `run` and by the report. A return by bitmap takes seconds and needs no leave; a whole copy takes hours on a
//! large drive, and a node that died leaves many of them at once. Who may begin is decided where all volumes are known: by
//! the controller, most endangered volume first (`controller/src/budget.rs`), which writes it into the copy's `msrep` for
//! one export life. The consumer asks in its volume's status. No leave is ever needed for what keeps a promise of the
//! protocol: a resync after a takeover, a shrink, a drop.

use super::run::{Rule, bitmap_return, in_sync};
use super::*;
use meshstor_kernel::facts::{HELD_BACK, MemberFact, SyncSpeed};
use meshstor_kernel::mutant::{self, Mutant};
use meshstor_kernel::ops::Op;

/// Sectors before the end at which a held recovery has arrived: twice what it leaves.
const NEARLY: u64 = 2 * HELD_BACK;

/// How soon to look again at a recovery that is about to end: it has 64 KiB to copy and superblocks to write.
pub(super) const ENDING: Duration = Duration::from_millis(50);

/// Speeds of a node's resyncs, in KiB/s for each member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncSpeeds {
    /// Whatever the pod does meanwhile: low, so that it hardly notices.
    pub min_kib: u32,
    /// The same for a volume with one complete copy only, which would else wait for ever beside a busy pod.
    pub endangered_min_kib: u32,
    /// While nothing else goes on.
    pub max_kib: u32,
}

impl Default for SyncSpeeds {
    fn default() -> Self {
        SyncSpeeds { min_kib: 1 << 10, endangered_min_kib: 16 << 10, max_kib: 400 << 10 }
    }
}

/// A copy that could be added now.
pub(super) struct Ready<'a> {
    pub(super) key: &'a ExportKey,
    pub(super) candidate: &'a Candidate,
    /// The chunks it lacks at most; `None`: it has to be copied wholly.
    pub(super) dirty: Option<BTreeSet<u64>>,
}

/// Copies outside of the set that are here, answer, and may come back.
pub(super) fn ready<'a>(
    record: &'a VolumeRecord,
    array: &'a ArrayFact,
    look: &'a ArrayLook,
) -> impl Iterator<Item = Ready<'a>> {
    let set = in_sync(record);
    let may = move |r: &&ReplicaId| !set.contains(r) && flap::returns_at(record, **r, look.now).is_none();
    record.replicas.keys().filter(may).filter_map(|r| {
        let (key, _) = record.usable_export(*r)?;
        let (key, candidate) = look.candidates.get_key_value(&key)?;
        let free = !array.members.contains_key(&candidate.component) && grow::fits(record, array, candidate);
        (free && answers(key, look) && candidate.probe.is_some()).then(|| {
            let dirty = bitmap_return(record, key, candidate, look);
            Ready { key, candidate, dirty: dirty.filter(|_| !look.re_add_failed.contains(&candidate.path)) }
        })
    })
}

/// Whether the controller lets this life of the copy be copied to wholly.
pub(super) fn granted(record: &VolumeRecord, key: &ExportKey) -> bool {
    record.replicas.get(&key.replica.replica).is_some_and(|r| r.granted == Some((key.epoch, key.generation)))
}

/// The copy that waits for the controller's leave.
pub(super) fn waiting(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Option<ReplicaId> {
    if leave::staying(record) >= record.replica_count as usize || array.sync_action != "idle" {
        return None;
    }
    let waits = |ready: &Ready<'_>| ready.dirty.is_none() && !granted(record, ready.key);
    ready(record, array, look).find(waits).map(|ready| ready.key.replica.replica)
}

/// The copy that is copied to wholly, or waits for leave: what the controller counts.
pub(super) fn copying(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Option<ReplicaId> {
    let set = in_sync(record);
    let filled = members(array, look).find(|(key, member)| {
        let filling = !member.in_sync() && !member.flags.contains("faulty");
        filling && !set.contains(&key.replica.replica) && granted(record, key)
    });
    filled.map(|(key, _)| key.replica.replica).or_else(|| waiting(record, array, look))
}

/// A resync that runs, at the speed that it should.
pub(super) fn pace(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Rule {
    let now = array.sync_speed.filter(|_| matches!(array.sync_action.as_str(), "resync" | "recover"))?;
    let SyncSpeeds { min_kib, endangered_min_kib, max_kib } = look.speeds;
    let endangered = in_sync(record).len() < 2;
    let min_kib = if endangered { endangered_min_kib } else { min_kib };
    let speed = SyncSpeed { min_kib, max_kib };
    let op = Op::SetSyncSpeed { volume: record.volume, speed };
    (now != speed).then(|| Plan::step(op, in_use(look, run::health(record, array))))
}

/// A recovery that has come to where it is held ends now, with the record at hand and all writes frozen until the copy is
/// recorded: else a member that the kernel counts and the record does not could outlive all that are recorded, and what is
/// acknowledged on it alone is lost at the next takeover (rule 3; simulator, seeds 3054, 3593 and 6455). Whatever else is
/// held, a resync say, is not meant.
pub(super) fn let_end(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Rule {
    let over = arrived(array) || array.sync_action == "resync";
    if !over {
        return None;
    }
    let status = in_use(look, run::health(record, array));
    if array.sync_held {
        // Each of them: one that fails takes its own `blocked` with it.
        let open = |(_, member): &(&String, &MemberFact)| !member.flags.contains("faulty") && !run::is_blocked(member);
        let open = array.members.iter().find(open).filter(|_| arrived(array) && !look.freeze_failed);
        let op = match open.filter(|_| !mutant::on(Mutant::EndsUnfrozen)) {
            Some((component, _)) => {
                Op::FreezeWrites { volume: record.volume, component: component.clone(), frozen: true }
            }
            None => Op::HoldSync { volume: record.volume, held: false },
        };
        return Some(Plan::step(op, status));
    }
    // From its end to its record the copy is one that only the kernel knows: no hint is waited for.
    arrived(array).then(|| Plan::look_in(status, ENDING))
}

/// Whether a recovery has come to its end, held or not.
fn arrived(array: &ArrayFact) -> bool {
    let done = array.sync_completed.is_some_and(|(done, all)| done.saturating_add(NEARLY) >= all);
    array.sync_action == "recover" && done
}

/// Whether a copy is about to be one that the kernel counts and the record does not, or is one: writes stay frozen.
pub(super) fn ends(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> bool {
    let set = in_sync(record);
    members(array, look).any(|(key, member)| {
        let coming = !set.contains(&key.replica.replica) && !leave::must_part(record, key);
        coming && !member.flags.contains("faulty") && (member.in_sync() || arrived(array))
    })
}

#[cfg(test)]
#[path = "pace_tests.rs"]
mod tests;
