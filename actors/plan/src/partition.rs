//! Partition: the life of one replica's GPT entry, from free space to a zeroed, recorded partition, and its end.
//!
//! Called by the partition actor's shell. It never makes a partition anew where one with data has been (P1), never
//! uses a drive that is not ours (P3), and removes only on a tombstone that names this very partition (rule 10).

use crate::array::RecordLook;
use crate::drive::{DriveUsage, refusal};
use crate::{Machine, Plan, Reason};
use meshstor_kernel::content::Content;
use meshstor_kernel::facts::{DriveClass, DriveFact, EpochRecord, ExportFact, Extent, PartitionFact, Unclaimed};
use meshstor_kernel::id::{ClusterId, DriveId, ReplicaKey, VolumeId};
use meshstor_kernel::mutant::{self, Mutant};
use meshstor_kernel::ops::Op;
use std::collections::BTreeSet;
use uuid::Uuid;

/// A partition grows by so much at a time: zeroing that much stays within the operation's deadline, and how far it is can
/// be seen.
pub const GROWTH_STEP: u64 = 64 << 30;

/// The machine of one replica's partition.
pub struct Partition;

/// What is wanted of a replica's partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionWish {
    /// Whose.
    pub key: ReplicaKey,
    /// On which drive.
    pub drive: DriveId,
    /// Bytes.
    pub bytes: u64,
    /// What the operator allows on that drive.
    pub usage: DriveUsage,
    /// The cluster.
    pub cluster: ClusterId,
    /// Name of the volume's object.
    pub volume_name: String,
    /// What the volume holds.
    pub content: Content,
    /// It was reported ready before: if it is not there now, data are missing, and nothing is made in its place.
    pub was_ready: bool,
    /// The recorded wish to wipe it.
    pub tombstone: Option<TombstoneWish>,
}

/// What may be wiped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TombstoneWish {
    /// Unique GUID of the partition.
    pub partition_uuid: Uuid,
    /// Cluster in its record.
    pub cluster: ClusterId,
    /// Volume in its record.
    pub volume: VolumeId,
    /// The volume lives on without this copy: its record is asked at the time of the wipe.
    pub living: bool,
}

/// What was observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionLook {
    /// The drive it should be on.
    pub drive: Option<DriveFact>,
    /// The partition, wherever on this node it was found.
    pub partition: Option<PartitionFact>,
    /// Exports of the same replica.
    pub exports: ExportFact,
    /// The volume's record, read now, where a tombstone says that the volume lives on.
    pub record: Option<RecordLook>,
}

/// How far a partition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PartitionState {
    /// Nothing taken yet.
    #[default]
    Waiting,
    /// The space is taken; not usable yet.
    Accepted,
    /// Exists, zeroed, recorded.
    Ready,
    /// Gone as its tombstone demanded.
    Removed,
}

/// What is reported of a partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PartitionReport {
    /// How far it is.
    pub state: PartitionState,
    /// Bytes it has.
    pub bytes: u64,
    /// What it waits for.
    pub reason: Option<Reason>,
}

impl PartitionReport {
    fn of(state: PartitionState, partition: Option<&PartitionFact>, reason: Option<Reason>) -> PartitionReport {
        // What the kernel does not have yet cannot be used yet.
        let usable = |p: &PartitionFact| p.kernel_bytes.unwrap_or(p.extent.length).min(p.extent.length);
        PartitionReport { state, bytes: partition.map_or(0, usable), reason }
    }
}

impl Machine for Partition {
    const KIND: &'static str = "partition";
    type Desired = PartitionWish;
    type Fact = PartitionLook;
    type Status = PartitionReport;

    fn plan(desired: Option<&PartitionWish>, look: &PartitionLook) -> Plan<PartitionReport> {
        let Some(wish) = desired else {
            if let Some(partition) = look.partition.as_ref().filter(|_| mutant::on(Mutant::WipeOnAbsence))
                && let Some(evidence) = orphan(partition, look)
            {
                return Plan::step(Op::RemovePartition { evidence }, PartitionReport::default());
            }
            // Nobody asks for it: an absent object is never evidence. Kept as it is.
            let state = if look.partition.is_some() { PartitionState::Accepted } else { PartitionState::Waiting };
            return Plan::rest(PartitionReport::of(state, look.partition.as_ref(), Some(Reason::VolumeMissing)));
        };
        match (&wish.tombstone, &look.partition) {
            (Some(tombstone), Some(partition)) => remove(wish, tombstone, partition, look),
            (Some(_), None) if look.drive.is_some() => {
                Plan::rest(PartitionReport::of(PartitionState::Removed, None, None))
            }
            (Some(_), None) => waiting(Reason::DriveGone),
            (None, Some(partition)) => finish(wish, partition, look),
            (None, None) => make(wish, look),
        }
    }
}

fn waiting(reason: Reason) -> Plan<PartitionReport> {
    Plan::rest(PartitionReport::of(PartitionState::Waiting, None, Some(reason)))
}

/// The entry does not exist: take the smallest free extent that fits, so that large ones stay whole.
fn make(wish: &PartitionWish, look: &PartitionLook) -> Plan<PartitionReport> {
    let Some(drive) = &look.drive else { return waiting(Reason::DriveGone) };
    if wish.was_ready {
        return waiting(Reason::DataMissing { what: format!("partition {} of {}", wish.key, wish.drive) });
    }
    if let Some(reason) = refusal(wish.usage, &drive.class) {
        return waiting(reason);
    }
    if let DriveClass::Blank(evidence) = &drive.class {
        return Plan::step(Op::LabelDrive { evidence: evidence.clone() }, PartitionReport::default());
    }
    let fitting = drive.free.iter().filter(|e| e.length >= wish.bytes).min_by_key(|e| (e.length, e.start));
    let Some(place) = fitting else {
        let largest = drive.free.iter().map(|e| e.length).max().unwrap_or(0);
        return waiting(Reason::NoSpace { wanted: wish.bytes, largest });
    };
    let extent = Extent { start: place.start, length: wish.bytes };
    let op = Op::AddPartition { key: wish.key, drive: wish.drive.clone(), extent };
    Plan::step(op, PartitionReport::default())
}

/// The entry exists: make the kernel see it, zero it once, record it.
fn finish(wish: &PartitionWish, partition: &PartitionFact, look: &PartitionLook) -> Plan<PartitionReport> {
    let accepted = |reason| PartitionReport::of(PartitionState::Accepted, Some(partition), reason);
    if partition.record.is_some() && partition.kernel_bytes.is_some_and(|bytes| bytes < partition.extent.length) {
        // Grown in the table: as good as before until the kernel knows.
        let ready = PartitionReport::of(PartitionState::Ready, Some(partition), None);
        return Plan::step(Op::AnnouncePartition { key: wish.key }, ready);
    }
    if partition.path.is_none() || partition.kernel_bytes != Some(partition.extent.length) {
        return Plan::step(Op::AnnouncePartition { key: wish.key }, accepted(None));
    }
    match &partition.record {
        Some(record) if record.volume != wish.key.volume || record.cluster != wish.cluster => {
            let why = format!("the partition's record names volume {} of cluster {}", record.volume, record.cluster);
            Plan::rest(accepted(Some(Reason::DriveRefused { why })))
        }
        Some(_) => grow(wish, partition, look),
        None if wish.was_ready => {
            let what = format!("the record in partition {}", wish.key);
            Plan::rest(accepted(Some(Reason::DataMissing { what })))
        }
        None => match Unclaimed::prove(wish.key, partition, &look.exports) {
            Some(evidence) => {
                let record = first_record(wish);
                Plan::step(Op::BlankPartition { evidence, record }, accepted(None))
            }
            None => Plan::rest(accepted(Some(busy(partition)))),
        },
    }
}

/// It is there; longer when that is wanted and the space behind it is free, never shorter. It serves meanwhile.
fn grow(wish: &PartitionWish, partition: &PartitionFact, look: &PartitionLook) -> Plan<PartitionReport> {
    let ready = |reason| PartitionReport::of(PartitionState::Ready, Some(partition), reason);
    let Extent { length, .. } = partition.extent;
    let lacks = wish.bytes.saturating_sub(length);
    if lacks == 0 {
        return Plan::rest(ready(None));
    }
    let Some(drive) = look.drive.as_ref().filter(|drive| drive.id == partition.drive) else {
        return Plan::rest(ready(Some(Reason::DriveGone)));
    };
    if let Some(reason) = refusal(wish.usage, &drive.class) {
        return Plan::rest(ready(Some(reason)));
    }
    let behind = drive.free.iter().find(|free| free.start == partition.extent.end());
    let free = behind.map_or(0, |free| free.length);
    if free < lacks {
        // All or nothing: what is taken now is never given back.
        return Plan::rest(ready(Some(Reason::NoRoomBehind { lacks, free })));
    }
    let bytes = length.saturating_add(lacks.min(GROWTH_STEP));
    Plan::step(Op::GrowPartition { key: wish.key, drive: partition.drive.clone(), bytes }, ready(None))
}

/// A tombstone names it: remove it, when what lies there is what the tombstone names and nobody uses it.
fn remove(
    wish: &PartitionWish,
    tombstone: &TombstoneWish,
    partition: &PartitionFact,
    look: &PartitionLook,
) -> Plan<PartitionReport> {
    let kept = |reason| Plan::rest(PartitionReport::of(PartitionState::Accepted, Some(partition), Some(reason)));
    let named = tombstone.partition_uuid == wish.key.partition_uuid() && tombstone.volume == wish.key.volume;
    // Without a record the partition was never handed out; its GUID alone derives from the volume.
    let recorded = partition.record.as_ref().is_none_or(|r| {
        r.volume == tombstone.volume && r.cluster == tombstone.cluster && r.replica == wish.key.replica
    });
    if !named || !recorded {
        let why = "the tombstone names another partition, volume or cluster than the drive".to_string();
        return kept(Reason::DriveRefused { why });
    }
    if let Some(reason) = spared(wish, tombstone, look) {
        return kept(reason);
    }
    match Unclaimed::prove(wish.key, partition, &look.exports) {
        Some(evidence) => Plan::step(
            Op::RemovePartition { evidence },
            PartitionReport::of(PartitionState::Accepted, Some(partition), Some(Reason::Releasing)),
        ),
        None => kept(busy(partition)),
    }
}

/// Evidence to remove what no object names: only [`Mutant::WipeOnAbsence`] asks for it.
fn orphan(partition: &PartitionFact, look: &PartitionLook) -> Option<Unclaimed> {
    let record = partition.record.as_ref()?;
    Unclaimed::prove(ReplicaKey { volume: record.volume, replica: record.replica }, partition, &look.exports)
}

/// Why a copy of a volume that lives on may not be wiped now: the record has to say that others hold everything.
fn spared(wish: &PartitionWish, tombstone: &TombstoneWish, look: &PartitionLook) -> Option<Reason> {
    match &look.record {
        _ if !tombstone.living => None,
        None | Some(RecordLook::Unreachable) => Some(Reason::ApiUnreachable),
        // Deleted since, by its own intent: the tombstone stands.
        Some(RecordLook::Missing) => None,
        Some(RecordLook::Fresh(record)) => match &record.in_sync {
            _ if record.foreign.is_some() => {
                Some(Reason::RecordLost { what: "the record is not this object's".into() })
            }
            None => Some(Reason::RecordLost { what: "status.inSync is absent".into() }),
            Some(set) if set.contains(&wish.key.replica) => Some(Reason::StillInSync { replica: wish.key.replica }),
            Some(_) => None,
        },
    }
}

fn busy(partition: &PartitionFact) -> Reason {
    let holder = partition.holders.iter().cloned().collect::<Vec<_>>().join(", ");
    Reason::Busy { holder: if holder.is_empty() { "its export".into() } else { holder } }
}

fn first_record(wish: &PartitionWish) -> EpochRecord {
    EpochRecord {
        volume: wish.key.volume,
        cluster: wish.cluster,
        replica: wish.key.replica,
        epoch: 0,
        generation: 0,
        in_sync: BTreeSet::new(),
        volume_name: wish.volume_name.clone(),
        sequence: 0,
        tainted: None,
        unflushed: None,
        content: wish.content,
    }
}

#[cfg(test)]
#[path = "partition_tests.rs"]
mod tests;
