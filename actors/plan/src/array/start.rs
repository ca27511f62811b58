//! Getting an array running under the recorded epoch: create or assemble, record who is in it, then open it for writes.

use super::*;
use crate::record::{Change, DepartureRecord, FormatRecord};
use meshstor_kernel::facts::{BlankData, Superblock};
use meshstor_kernel::mutant::{self, Mutant};
use meshstor_kernel::ops::Op;

/// No array yet. Waits for the in-sync copies, then creates (first time) or assembles.
pub(super) fn begin(record: &VolumeRecord, look: &ArrayLook) -> Plan<ArrayReport> {
    let in_sync = trusted(record);
    let here: BTreeMap<ReplicaId, (&ExportKey, &Candidate)> = in_sync
        .iter()
        .filter_map(|r| {
            let (key, _) = record.usable_export(*r)?;
            let (key, candidate) = look.candidates.get_key_value(&key)?;
            (answers(key, look) && candidate.probe.is_some()).then_some((*r, (key, candidate)))
        })
        .collect();
    let absent: BTreeSet<ReplicaId> = in_sync.iter().filter(|r| !here.contains_key(r)).copied().collect();
    // One copy is enough, with patience for the others; with more of it before the first activation, so that the first
    // array is whole. Nothing was ever acknowledged then, and whoever is absent leaves the set with the activation.
    let first_time = first_time(record);
    let patience = if first_time { FIRST_PATIENCE } else { START_PATIENCE };
    if !absent.is_empty() && (here.is_empty() || look.waiting_for < patience) {
        return Plan::look_in(report(look, Some(awaited(record, absent))), SOON);
    }
    if first_time { create(record, &here, look) } else { assemble(record, &here, look) }
}

/// The copies that a start may use: the recorded set.
fn trusted(record: &VolumeRecord) -> BTreeSet<ReplicaId> {
    match mutant::on(Mutant::TrustStaleCopy) && record.activated_epoch > 0 {
        true => record.replicas.keys().copied().collect(),
        false => record.in_sync.clone().unwrap_or_default(),
    }
}

/// Whether the volume never had an array that was used.
pub fn first_time(record: &VolumeRecord) -> bool {
    record.activated_epoch == 0 && record.format == FormatRecord::Never
}

/// Fence or connection, whichever comes first.
fn awaited(record: &VolumeRecord, absent: BTreeSet<ReplicaId>) -> Reason {
    let fenced = |r: &ReplicaId| record.replicas.get(r).is_some_and(|x| x.fenced_epoch >= record.epoch);
    let unfenced: BTreeSet<ReplicaId> = absent.iter().filter(|r| !fenced(r)).copied().collect();
    if unfenced.is_empty() {
        Reason::AwaitingConnection { replicas: absent }
    } else {
        Reason::AwaitingFence { replicas: unfenced, epoch: record.epoch }
    }
}

type Here<'a> = BTreeMap<ReplicaId, (&'a ExportKey, &'a Candidate)>;

/// The first array of a volume, over members each seen blank. Local first: the lowest slot is read while a resync is pending.
fn create(record: &VolumeRecord, here: &Here<'_>, look: &ArrayLook) -> Plan<ArrayReport> {
    let mut ordered: Vec<_> = here.iter().collect();
    ordered.sort_by_key(|(r, (_, c))| (!c.local, **r));
    let mut members: Vec<BlankData> = Vec::new();
    for (replica, (_, candidate)) in ordered {
        match candidate.probe.as_ref().and_then(|p| p.blank.clone()) {
            Some(blank) => members.push(blank),
            None => {
                let what = format!("{replica} of a new volume is not blank");
                return Plan::rest(report(look, Some(Reason::DataMissing { what })));
            }
        }
    }
    let local = here.values().filter(|(_, candidate)| candidate.local).count();
    let op = Op::CreateArray { volume: record.volume, members, local, component_bytes: record.size_bytes };
    Plan::step(op, report(look, None))
}

/// Assembles the freshest copies: one that a fresher superblock marks missing, or that is not whole by its own word, stays out.
fn assemble(record: &VolumeRecord, here: &Here<'_>, look: &ArrayLook) -> Plan<ArrayReport> {
    let whole: Vec<(ReplicaId, &Candidate, &Superblock)> = here
        .iter()
        .filter_map(|(r, (_, c))| Some((*r, *c, c.probe.as_ref()?.superblock.as_ref()?)))
        .filter(|(_, _, s)| s.set_uuid == record.volume.md_uuid() && s.active_slot().is_some())
        .collect();
    // One that somebody else assembled may have been written to (F11): it stays out when another one holds everything.
    let sound = whole.iter().any(|(_, candidate, _)| !candidate.tainted());
    let whole: Vec<_> = whole.into_iter().filter(|(_, candidate, _)| !sound || !candidate.tainted()).collect();
    let Some(freshest) = whole.iter().map(|(_, _, s)| *s).max_by_key(|s| s.events) else {
        let what = "no reachable in-sync copy carries a whole superblock of this volume".to_string();
        return Plan::look_in(report(look, Some(Reason::DataMissing { what })), SOON);
    };
    let members: Vec<String> =
        whole.iter().filter(|(_, _, s)| trusted_by(freshest, s)).map(|(_, c, _)| c.path.clone()).collect();
    Plan::step(Op::AssembleArray { volume: record.volume, members }, report(look, None))
}

/// Whether the freshest superblock has this device as a live member.
fn trusted_by(freshest: &Superblock, other: &Superblock) -> bool {
    freshest.roles.get(other.dev_number as usize).is_some_and(|role| *role < 0xfff0)
}

/// Assembled or created, not yet recorded: the set becomes exactly the active members (F4), and only then is it opened.
pub(super) fn activate(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Plan<ArrayReport> {
    let created = first_time(record);
    // Whatever is not our own read-only assembly was started by somebody else (udev, an operator): take it down.
    if !ours(&array.name) || (array.state != "readonly" && !created) {
        return Plan::step(Op::StopArray { volume: record.volume }, report(look, Some(Reason::Releasing)));
    }
    let now: BTreeMap<ReplicaId, &ExportKey> = active(array, look);
    let in_sync = trusted(record);
    let set: BTreeSet<ReplicaId> = match mutant::on(Mutant::ActivateOldSet) {
        true => in_sync.clone(),
        false => now.keys().copied().collect(),
    };
    if set.is_empty() || !set.is_subset(&in_sync) {
        return Plan::step(Op::StopArray { volume: record.volume }, report(look, Some(Reason::Releasing)));
    }
    let events = look.candidates.values().filter_map(|c| c.probe.as_ref()?.superblock.as_ref()).map(|s| s.events);
    let events = events.max().unwrap_or(0);
    let left = || in_sync.difference(&set);
    let departures = left()
        .map(|r| {
            let generation = record.replicas.get(r).map_or(0, |x| x.wanted_export.1);
            (*r, DepartureRecord { epoch: record.epoch, generation, events })
        })
        .collect();
    let flaps = left().map(|r| (*r, flap::leaves(record, *r, look.now))).collect();
    Plan::step(change(record, Change::Activate { in_sync: set, departures, flaps }), report(look, None))
}

/// Recorded: read-write with sync frozen, all members' bitmaps united (F1), then sync released.
pub(super) fn open(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Plan<ArrayReport> {
    let volume = record.volume;
    if array.state == "readonly" {
        return Plan::step(Op::ActivateArray { volume }, report(look, None));
    }
    // The flag comes along in the superblocks. While a resync is pending it changes which member is read (F17).
    let flagged = || array.members.iter().find(|(_, m)| m.flags.contains("write_mostly"));
    let wait = !array.resync_done && !mutant::on(Mutant::WriteMostlyDuringResync);
    if let (true, Some((component, _))) = (wait, flagged()) {
        let op = Op::SetWriteMostly { volume, component: component.clone(), on: false };
        return Plan::step(op, report(look, None));
    }
    let bitmaps: Vec<&BTreeSet<u64>> = active(array, look)
        .values()
        .filter_map(|k| Some(&look.candidates.get(*k)?.probe.as_ref()?.superblock.as_ref()?.bitmap.as_ref()?.dirty))
        .collect();
    let union: BTreeSet<u64> = bitmaps.iter().flat_map(|b| b.iter()).copied().collect();
    let united = bitmaps.iter().all(|b| **b == union);
    if array.sync_action == "frozen" && array.has_bitmap && !united {
        return Plan::step(Op::MergeBitmap { volume, chunks: union }, report(look, None));
    }
    Plan::step(Op::ReleaseSync { volume }, report(look, None))
}
