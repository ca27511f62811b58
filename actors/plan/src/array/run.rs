//! Keeping a running array: the record stays ahead of the kernel (shrink before degrade, grow after proof), members
//! return only as resync targets of a new export generation, the last copy is frozen and never failed.

use super::*;
use crate::record::{Change, DepartureRecord};
use meshstor_kernel::facts::{MemberFact, OtherCopyInSync, Superblock};
use meshstor_kernel::mutant::{self, Mutant};
use meshstor_kernel::ops::Op;

/// The record cannot be read or does not exist: whatever runs goes on. A member that MD failed by itself freezes the
/// volume's writes until the loss can be recorded (P6).
pub(super) fn unrecorded(volume: VolumeId, look: &ArrayLook, reason: Reason) -> Plan<ArrayReport> {
    let Some(array) = &look.array else { return Plan::rest(report(look, Some(reason))) };
    if mutant::on(Mutant::DropBeforeRecord)
        && let Some(step) = drop_stuck(volume, array, look)
    {
        return step;
    }
    if let Some(component) = to_freeze(array) {
        let op = Op::FreezeWrites { volume, component: component.clone(), frozen: true };
        return Plan::step(op, in_use(look, Some(reason)));
    }
    Plan::rest(in_use(look, Some(reason)))
}

/// The member to freeze writes by, when one has failed and they still go on.
pub fn to_freeze(array: &ArrayFact) -> Option<&String> {
    let lost = array.members.values().any(|m| m.flags.contains("faulty"));
    let (component, _) = array.members.iter().find(|(_, m)| m.in_sync())?;
    (lost && !frozen(array)).then_some(component)
}

/// The steady state. The first rule that has something to do decides the step.
pub(super) fn keep(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Plan<ArrayReport> {
    let rules = [
        broken,
        lost,
        thaw,
        unrecorded_member,
        unreachable,
        discard_faulty,
        leave::retire,
        write_mostly,
        pace::pace,
        pace::let_end,
        grow::grow,
        seatless,
        comes_back,
        leave::shed,
    ];
    rules.iter().find_map(|rule| rule(record, array, look)).unwrap_or_else(|| rest(record, array, look))
}

/// Nothing to do now; a copy may wait for leave to be copied to, or for the end of its patience.
fn rest(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Plan<ArrayReport> {
    let health = health(record, array).or_else(|| grow::waits(record, array, look));
    if !matches!(health, Some(Reason::Degraded { .. })) {
        return Plan::rest(in_use(look, health));
    }
    if let Some(reason) = grow::too_small(record, array, look) {
        return Plan::rest(in_use(look, Some(reason)));
    }
    if let Some(replica) = pace::waiting(record, array, look) {
        return Plan::rest(in_use(look, Some(Reason::WaitsForResyncBudget { replica })));
    }
    match flap::waiting(record, look.now) {
        Some((reason, left)) => Plan::look_in(in_use(look, Some(reason)), left),
        None => Plan::rest(in_use(look, health)),
    }
}

pub(super) type Rule = Option<Plan<ArrayReport>>;

pub(super) fn in_sync(record: &VolumeRecord) -> BTreeSet<ReplicaId> {
    record.in_sync.clone().unwrap_or_default()
}

fn frozen(array: &ArrayFact) -> bool {
    array.members.values().any(|m| m.in_sync() && is_blocked(m))
}

/// Whether writes wait for this member. One that failed shows the flag until its failure is on the others' superblocks.
pub(super) fn is_blocked(member: &MemberFact) -> bool {
    member.flags.contains("blocked") && !member.flags.contains("faulty")
}

/// MD refuses every write, and every other change, since the last member failed: a rule that wanted one would fail for ever
/// and hide what is wrong (simulator, seed 2374).
fn broken(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Rule {
    let gone = in_sync(record).into_iter().next().filter(|_| array.state == "broken")?;
    let reason = Some(Reason::LastCopyFailed { replica: gone });
    let status = ArrayReport { phase: ArrayPhase::Broken, ..report(look, reason) };
    revive(record, array, status.clone()).or_else(|| Some(Plan::rest(status)))
}

/// Whether nothing is mounted from it or stacked on it.
pub(super) fn unused(array: &ArrayFact) -> bool {
    array.mounts.is_empty() && array.holders.is_empty()
}

/// An array that takes no writes any more, as the kernel lost every recorded copy (its drive was pulled and put back, say),
/// is taken down when nothing uses it, so that a new one can begin from the recorded copies. Whoever has it open without a
/// mount holds up the stop.
fn revive(record: &VolumeRecord, array: &ArrayFact, status: ArrayReport) -> Rule {
    unused(array).then(|| Plan::step(Op::StopArray { volume: record.volume }, status))
}

/// A recorded copy has no active member: the kernel dropped it by itself. Freeze all writes, record, go on.
fn lost(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Rule {
    let now = active(array, look);
    let gone = in_sync(record).into_iter().find(|r| !now.contains_key(r))?;
    let survivor = now.iter().find(|(r, _)| in_sync(record).contains(r)).map(|(_, k)| *k);
    let Some(component) = survivor.and_then(|k| look.candidates.get(k)).map(|c| c.component.clone()) else {
        return Some(freeze_all(record, gone, array, look));
    };
    let reason = Some(Reason::Degraded { missing: [gone].into() });
    // A freeze can wait for MD's mutex. The record must not wait for the freeze: every second of that is acknowledged on
    // copies that the record does not tell from the lost one (simulator, seed 393).
    if !frozen(array) && !look.freeze_failed && !mutant::on(Mutant::DropBeforeRecord) {
        let op = Op::FreezeWrites { volume: record.volume, component, frozen: true };
        return Some(Plan::step(op, in_use(look, reason)));
    }
    Some(Plan::step(change(record, shrink(record, gone, look)), in_use(look, reason)))
}

/// No recorded copy is left in the array. Whatever else is active there, because its connection is not deleted yet, must
/// not take writes that the record knows nothing of (the model's `last-recorded-unfrozen`).
fn freeze_all(record: &VolumeRecord, gone: ReplicaId, array: &ArrayFact, look: &ArrayLook) -> Plan<ArrayReport> {
    let status = in_use(look, Some(Reason::LastCopyFrozen { replica: gone }));
    match array.members.iter().find(|(_, member)| member.in_sync()) {
        Some((component, _)) if !(frozen(array) || look.freeze_failed && unused(array)) => {
            let op = Op::FreezeWrites { volume: record.volume, component: component.clone(), frozen: true };
            Plan::step(op, status)
        }
        _ => revive(record, array, status.clone()).unwrap_or_else(|| Plan::rest(status)),
    }
}

pub(super) fn shrink(record: &VolumeRecord, replica: ReplicaId, look: &ArrayLook) -> Change {
    let probed = look.candidates.values().filter_map(|c| c.probe.as_ref()?.superblock.as_ref());
    let events = probed.map(|s| s.events).max().unwrap_or(0);
    let generation = record.replicas.get(&replica).map_or(0, |r| match &r.export {
        Some(export) if export.epoch == record.epoch => export.generation.max(r.wanted_export.1),
        _ => r.wanted_export.1,
    });
    let departure = DepartureRecord { epoch: record.epoch, generation, events };
    Change::Shrink { replica, departure, flap: flap::leaves(record, replica, look.now) }
}

/// Everything the kernel lost or has gained is recorded: let writes go on.
fn thaw(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Rule {
    let (component, _) = array.members.iter().find(|(_, m)| is_blocked(m))?;
    if pace::ends(record, array, look) {
        return None;
    }
    let op = Op::FreezeWrites { volume: record.volume, component: component.clone(), frozen: false };
    Some(Plan::step(op, in_use(look, None)))
}

/// A member that the record does not have: either it was taken out, or is to leave, and has yet to be dropped
/// (irrevocable, F9), or it has recovered and its own superblock has to prove it (F15).
fn unrecorded_member(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Rule {
    let set = in_sync(record);
    let (key, member) = members(array, look).find(|(k, m)| {
        let done = m.in_sync() || leave::must_part(record, k) || mutant::on(Mutant::GrowBeforeProof);
        !set.contains(&k.replica.replica) && done && !m.flags.contains("faulty")
    })?;
    if leave::must_part(record, key) && !(mutant::on(Mutant::DropCalledOff) && answers(key, look)) {
        return leave::part(record, key, array, look);
    }
    let newest = active(array, look)
        .iter()
        .filter(|(r, _)| set.contains(r))
        .filter_map(|(_, k)| superblock(look, k))
        .map(|s| s.events)
        .max();
    let own = superblock(look, key);
    let proven = own.is_some_and(|s| {
        s.active_slot().map(u32::from) == member.slot && newest.is_some_and(|events| s.events >= events)
    }) || mutant::on(Mutant::GrowBeforeProof);
    let status = in_use(look, Some(Reason::Degraded { missing: [key.replica.replica].into() }));
    if proven {
        return Some(Plan::step(change(record, Change::Grow { replica: key.replica.replica }), status));
    }
    // One whose path is lost proves nothing any more; what to do about that is the next rule's.
    answers(key, look).then(|| Plan::look_in(status, pace::ENDING))
}

fn superblock<'a>(look: &'a ArrayLook, key: &ExportKey) -> Option<&'a Superblock> {
    look.candidates.get(key)?.probe.as_ref()?.superblock.as_ref()
}

/// Whether this life of the replica was taken out of the record: it may never be written to again.
pub(super) fn departed(record: &VolumeRecord, key: &ExportKey) -> bool {
    let life = (key.epoch, key.generation);
    record.departures.get(&key.replica.replica).is_some_and(|d| life <= (d.epoch, d.generation))
}

/// A member that cannot be reached, in sync or still recovering: out of the record first, if another one answers now
/// (P8, F14). A recovering one is written to as well, so it holds up the volume just the same.
fn unreachable(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Rule {
    let set = in_sync(record);
    let now = active(array, look);
    let (replica, connection) = members(array, look)
        .filter(|(_, m)| !m.flags.contains("faulty"))
        .filter_map(|(k, _)| Some((k.replica.replica, look.connections.get(k)?)))
        .find(|(_, c)| !c.live() || !c.down_for.is_zero() || c.stalled_for >= UNREACHABLE)?;
    let other = now.iter().any(|(r, k)| *r != replica && set.contains(r) && answers(k, look));
    if !other {
        return Some(Plan::look_in(in_use(look, Some(Reason::LastCopyFrozen { replica })), SOON));
    }
    let patience =
        UNREACHABLE.saturating_sub(connection.down_for).min(STALLED.saturating_sub(connection.stalled_for).max(SOON));
    let due = connection.down_for >= UNREACHABLE || connection.stalled_for >= STALLED;
    let reason = Some(Reason::AwaitingConnection { replicas: [replica].into() });
    if due && mutant::on(Mutant::DropBeforeRecord) {
        return drop_stuck(record.volume, array, look);
    }
    Some(match due {
        true => Plan::step(change(record, shrink(record, replica, look)), in_use(look, reason)),
        false => Plan::look_in(in_use(look, reason), patience.max(Duration::from_millis(50))),
    })
}

/// Drops a member that has been gone for its time, record or not: what [`Mutant::DropBeforeRecord`] does.
fn drop_stuck(volume: VolumeId, array: &ArrayFact, look: &ArrayLook) -> Rule {
    let gone = |key: &ExportKey| look.connections.get(key).is_some_and(|c| !c.live() || c.down_for >= UNREACHABLE);
    let key = members(array, look).find(|(k, m)| m.in_sync() && gone(k))?.0;
    let survivor = active(array, look).into_values().find(|k| *k != key && answers(k, look))?;
    let (lost, stays) = (&look.candidates.get(key)?.component, &look.candidates.get(survivor)?.component);
    let evidence = OtherCopyInSync::prove(array, lost, stays, true)?;
    Some(Plan::step(Op::DropMember { key: *key, volume, evidence }, in_use(look, None)))
}

/// A failed device that the record no longer has: free its slot.
fn discard_faulty(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Rule {
    let (component, _) = array.members.iter().find(|(_, m)| m.flags.contains("faulty"))?;
    let op = Op::RemoveFaulty { volume: record.volume, component: component.clone() };
    Some(Plan::step(op, in_use(look, health(record, array))))
}

/// Reads stay local: remote members are write-mostly, but only while no resync is pending (F17) and a local member exists.
fn write_mostly(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Rule {
    let has_local = active(array, look).values().any(|k| look.candidates.get(*k).is_some_and(|c| c.local));
    let settled = (array.resync_done && array.sync_action != "resync") || mutant::on(Mutant::WriteMostlyDuringResync);
    look.candidates.values().find_map(|c| {
        // One that is still being copied to keeps what it came with.
        let member = array.members.get(&c.component).filter(|member| member.in_sync() || !settled)?;
        let wanted = settled && has_local && !c.local;
        let is = member.flags.contains("write_mostly");
        let op = Op::SetWriteMostly { volume: record.volume, component: c.component.clone(), on: wanted };
        (wanted != is).then(|| Plan::step(op, in_use(look, health(record, array))))
    })
}

/// A copy outside the set with a new export life: merge its bitmap and re-add it, or recover it wholly.
fn comes_back(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Rule {
    // One that would be too many waits until the controller has decided which is to go.
    if leave::staying(record) >= record.replica_count as usize {
        return None;
    }
    let may = |ready: &pace::Ready<'_>| ready.dirty.is_some() || pace::granted(record, ready.key);
    let pace::Ready { candidate, dirty, .. } = pace::ready(record, array, look).find(may)?;
    let volume = record.volume;
    let reason = || health(record, array);
    // A merge leaves a resync pending that nobody starts by itself: `bitmap_set_bits` only lowers `resync_start`.
    if array.sync_action == "idle" && !array.resync_done {
        return Some(Plan::step(Op::ReleaseSync { volume }, in_use(look, reason())));
    }
    // One at a time, also in the moment before MD has begun with the last one; and never while a resync is pending (F17).
    let coming = array.members.values().any(|member| !member.in_sync() && !member.flags.contains("faulty"));
    if array.sync_action != "idle" || coming {
        return None;
    }
    if !array.has_bitmap {
        return Some(Plan::step(Op::AddBitmap { volume }, in_use(look, reason())));
    }
    if array.degraded == 0 {
        let op = Op::SetRaidDisks { volume, count: array.raid_disks + 1 };
        return Some(Plan::step(op, in_use(look, reason())));
    }
    let device = candidate.path.clone();
    let held = |step: Op| held(step, record, array, look);
    let Some(own) = dirty else {
        return Some(held(Op::AddMember { volume, device }));
    };
    // Every dirty chunk of the returning copy is merged and resynced first, whatever the survivors' bitmap shows (F1).
    // Until the re-add the array stays degraded, and a degraded array keeps the chunks marked (md-bitmap.c,
    // `md_bitmap_start_sync`: NEEDED goes only when no member is missing).
    let mut missing: BTreeSet<u64> = own.difference(&look.merged).copied().collect();
    if mutant::on(Mutant::ReAddWithoutMerge) {
        missing.clear();
    }
    Some(match missing.is_empty() {
        true => held(Op::ReAddMember { volume, device }),
        false => Plan::step(Op::MergeBitmap { volume, chunks: missing }, in_use(look, reason())),
    })
}

/// A step after which MD copies: the copy's end is held first.
fn held(step: Op, record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Plan<ArrayReport> {
    let volume = record.volume;
    match array.sync_held || mutant::on(Mutant::EndsAlone) {
        true => Plan::step(step, in_use(look, health(record, array))),
        false => Plan::step(Op::HoldSync { volume, held: true }, in_use(look, health(record, array))),
    }
}

/// A member without a slot: it was added while the only vacant one was being filled by another. It gets one of its own
/// (simulator, seed 2879).
fn seatless(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Rule {
    let waits = |(key, member): &(&ExportKey, &MemberFact)| {
        member.slot.is_none() && !member.flags.contains("faulty") && !leave::must_part(record, key)
    };
    members(array, look).find(waits)?;
    let wanted = leave::staying(record) < record.replica_count as usize;
    let settled = array.sync_action == "idle" && array.resync_done && array.degraded == 0;
    let op = Op::SetRaidDisks { volume: record.volume, count: array.raid_disks + 1 };
    (wanted && settled).then(|| held(op, record, array, look))
}

/// The chunks to copy to one whose lineage allows a bitmap-based return: its own dirty ones and the last one. `None`: anything
/// doubtful is recovered wholly.
pub(super) fn bitmap_return(
    record: &VolumeRecord,
    key: &ExportKey,
    candidate: &Candidate,
    look: &ArrayLook,
) -> Option<BTreeSet<u64>> {
    let departure = record.departures.get(&key.replica.replica)?;
    let own = candidate.probe.as_ref()?.superblock.as_ref().filter(|_| !candidate.tainted())?;
    let bitmap = own.bitmap.as_ref()?;
    let array = look.array.as_ref()?;
    let survivor = active(array, look).into_values().find_map(|k| superblock(look, k)?.bitmap.as_ref())?;
    let lineage = own.set_uuid == record.volume.md_uuid()
        && own.level == 1
        && own.recovery_offset.is_none()
        && own.active_slot().is_some()
        && own.events <= departure.events
        // It was away when the array grew: MD does not take it back by its bitmap (md.c `bind_rdev_to_array`), nor do we.
        && own.component_bytes == array.size_bytes;
    // Bits that the survivors have cleared since are gone: MD refuses such a re-add (md.c `super_1_validate`), for ever.
    let covered = own.events >= survivor.events_cleared;
    let bits = bitmap.uuid == own.set_uuid && bitmap.chunk_bytes == survivor.chunk_bytes && bitmap.events >= own.events;
    if !(lineage && covered && bits) {
        return None;
    }
    let mut chunks = bitmap.dirty.clone();
    // A recovery by bitmap passes chunks that are clean in one leap, and the point where it is held with them (raid1.c
    // `raid1_sync_request`, md.c `md_do_sync`): the last chunk has to be copied, or its end would come without us.
    if !mutant::on(Mutant::HoldLeapt) {
        chunks.insert(array.size_bytes.saturating_sub(1).checked_div(bitmap.chunk_bytes)?);
    }
    Some(chunks)
}

/// What is wrong while it runs.
pub(super) fn health(record: &VolumeRecord, array: &ArrayFact) -> Option<Reason> {
    if let Some((done, all)) = array.sync_completed {
        return Some(Reason::Resyncing { percent: (done * 100).checked_div(all).unwrap_or(100) as u32 });
    }
    let set = in_sync(record);
    // Others may be wanted as well while copies move.
    if set.len() >= record.replica_count as usize {
        return None;
    }
    let wanted = record.replicas.iter().filter(|(_, r)| r.wanted).map(|(id, _)| *id);
    let missing: BTreeSet<ReplicaId> = wanted.filter(|r| !set.contains(r)).collect();
    (!missing.is_empty()).then_some(Reason::Degraded { missing })
}
