//! Decisions about one volume, as pure functions of what was read: no request is made here.
//!
//! Called by the calls and by the loop alike, so that both do the same. Every function looks at one consistent reading
//! (the volume, its copies); what it decides takes effect only by compare-and-swap on that reading.

use meshstor_api::condition::Condition;
use meshstor_api::replica::{ExportSpec, MeshStorReplica};
use meshstor_api::volume::MeshStorVolume;
use meshstor_kernel::id::ReplicaId;
use meshstor_plan::Reason;
use meshstor_plan::record::VolumeRecord;
use std::collections::BTreeSet;
use std::time::Duration;

/// The condition that says that a takeover waits, and for whom.
const TAKEOVER: &str = "Takeover";
/// How long a consumer has been without a copy to begin with before that is worth a condition: every attachment waits for
/// its fences, a second or two.
pub(crate) const TAKEOVER_PATIENCE: Duration = Duration::from_secs(10);

/// What is known of a volume's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// Its creation is not finished.
    NotYet,
    /// It is there and it is this object's own.
    Yes(BTreeSet<ReplicaId>),
    /// Nobody knows which copies are complete.
    Lost(Reason),
}

/// Reads the state of the record. Absent means unknown, except before anything can have been written: in epoch 0, with
/// no copy that was ever fenced for a later one (K1).
pub(crate) fn recorded(record: &VolumeRecord) -> Recorded {
    let lost = |what: String| Recorded::Lost(Reason::RecordLost { what });
    match (&record.in_sync, &record.foreign) {
        (_, Some(foreign)) => lost(foreign.clone()),
        (Some(in_sync), None) => Recorded::Yes(in_sync.clone()),
        (None, None) if record.epoch > 0 => lost(format!("status.inSync is absent in epoch {}", record.epoch)),
        (None, None) => match record.replicas.iter().find(|(_, replica)| replica.fenced_epoch > 0) {
            Some((id, replica)) => {
                let drive = replica.fenced_epoch;
                lost(format!("status.inSync is absent in epoch 0, {id} has been fenced for epoch {drive}"))
            }
            None => Recorded::NotYet,
        },
    }
}

/// Why a volume may be attached to nobody; `None` when it may.
pub(crate) fn unattachable(volume: &MeshStorVolume, record: &VolumeRecord) -> Option<String> {
    if let Some(request) = &volume.spec.deletion_requested {
        return Some(format!("it is being deleted (spec.deletionRequested by {} at {})", request.by, request.at));
    }
    match recorded(record) {
        Recorded::Yes(_) => None,
        Recorded::NotYet => Some("its creation is not finished: CreateVolume has to be answered first".to_string()),
        Recorded::Lost(reason) => Some(reason.to_string()),
    }
}

/// For whom a copy is to be exported from now on; `None` when its specification says so already.
///
/// Follows the volume's attachment. A member that left the set is exported anew under a higher generation, so that it
/// can return through a drained export (docs/protocol.md, rule 6). Never goes back.
pub(crate) fn wanted_export(
    volume: &MeshStorVolume,
    record: &VolumeRecord,
    replica: &MeshStorReplica,
) -> Option<ExportSpec> {
    let (have, attachment) = (&replica.spec.export, &volume.spec.attachment);
    // A buried copy is taken down by its tombstone, whatever epoch it is for.
    if replica.spec.tombstone.is_some() || have.epoch > attachment.epoch {
        return None;
    }
    if have.epoch < attachment.epoch {
        return Some(ExportSpec { epoch: attachment.epoch, generation: 0, consumer: attachment.consumer.clone() });
    }
    let id: ReplicaId = replica.spec.replica.parse().ok()?;
    let member = record.replicas.get(&id).is_some_and(|replica| replica.wanted);
    let in_sync = record.in_sync.as_ref().is_some_and(|set| set.contains(&id));
    let left = record.departures.get(&id).filter(|left| (left.epoch, left.generation) >= (have.epoch, have.generation));
    match left {
        Some(left) if member && !in_sync && attachment.consumer.is_some() && left.epoch == have.epoch => {
            Some(ExportSpec { generation: left.generation + 1, ..have.clone() })
        }
        _ => None,
    }
}

/// A copy whose node was told of a higher epoch than the record names: the record went back in time.
pub(crate) fn regressed(volume: &MeshStorVolume, replicas: &[MeshStorReplica]) -> Option<Reason> {
    let record = volume.spec.attachment.epoch;
    let seen = |replica: &MeshStorReplica| {
        replica.spec.export.epoch.max(replica.status.as_ref().map_or(0, |status| status.fenced_epoch))
    };
    let drive = replicas.iter().filter(|replica| belongs(volume, replica)).map(seen).max()?;
    (drive > record).then_some(Reason::EpochRegressed { drive, record })
}

/// Whether a copy belongs to this very volume, not to an earlier one of the same name.
pub(crate) fn belongs(volume: &MeshStorVolume, replica: &MeshStorReplica) -> bool {
    Some(&replica.spec.volume) == volume.metadata.name.as_ref() && replica.spec.volume_id == volume.spec.volume_id
}

/// The copies of a volume that its record says are complete.
pub(crate) fn complete<'a>(
    volume: &MeshStorVolume,
    replicas: &'a [MeshStorReplica],
) -> impl Iterator<Item = &'a MeshStorReplica> {
    let set = volume.status.as_ref().and_then(|status| status.in_sync.clone()).unwrap_or_default();
    replicas
        .iter()
        .filter(move |copy| belongs(volume, copy) && copy.spec.tombstone.is_none() && set.contains(&copy.spec.replica))
}

/// Which in-sync copies could be used by the consumer now.
pub(crate) fn usable(record: &VolumeRecord) -> BTreeSet<ReplicaId> {
    let in_sync = record.in_sync.iter().flatten();
    in_sync.filter(|replica| record.usable_export(**replica).is_some()).copied().collect()
}

/// What an attachment waits for, copy by copy.
pub(crate) fn awaited_exports(record: &VolumeRecord) -> String {
    let one = |id: &ReplicaId| {
        let Some(replica) = record.replicas.get(id) else { return format!("{id} has no MeshStorReplica object") };
        let node = &replica.node;
        if replica.fenced_epoch < record.epoch {
            return format!("{id} on {node} is fenced for epoch {}", replica.fenced_epoch);
        }
        match &replica.export {
            Some(export) if export.epoch == record.epoch && export.ready => format!("{id} on {node} has left the set"),
            _ => format!("{id} on {node} is fenced, its export is not ready"),
        }
    };
    let copies: Vec<String> = record.in_sync.iter().flatten().map(one).collect();
    format!(
        "at least one in-sync copy fenced and exported for epoch {} is awaited: {}",
        record.epoch,
        copies.join(", ")
    )
}

/// Whether a volume has a consumer that cannot begin: no complete copy is fenced and exported for it (rule 4). When the set
/// is a dead node's copy alone this stays so until that node is back.
pub(crate) fn takeover_waits(record: &VolumeRecord) -> bool {
    let recorded = record.in_sync.as_ref().is_some_and(|set| !set.is_empty());
    record.consumer.is_some() && record.activated_epoch < record.epoch && recorded && usable(record).is_empty()
}

/// The conditions that the controller owes a volume: the summary while nobody is attached, the word of a takeover that
/// has waited for long, and the note that somebody deleted the object by hand. `garbage` is what could not be read.
pub(crate) fn conditions(
    volume: &MeshStorVolume,
    record: Result<&VolumeRecord, String>,
    attached_for: Duration,
    now: &str,
) -> Vec<Condition> {
    let mut list = volume.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
    let old = list.clone();
    let mut set = |type_: &str, status: bool, reason: &str, message: &str| {
        meshstor_api::condition::set(&mut list, type_, status, reason, message, now);
    };
    let by_hand = volume.metadata.deletion_timestamp.is_some() && volume.spec.deletion_requested.is_none();
    if by_hand {
        let reason = Reason::DeletedByHand;
        set(reason.word(), true, reason.word(), &reason.to_string());
    }
    if volume.spec.attachment.consumer.is_none() {
        let summary = match &record {
            Ok(record) => summary(record),
            Err(garbage) => Some((false, "Failing", garbage.clone())),
        };
        if let Some((status, reason, message)) = summary {
            set("Ready", status, reason, &message);
        }
    }
    match record.ok().filter(|record| takeover_waits(record)) {
        Some(record) if attached_for >= TAKEOVER_PATIENCE => {
            set(TAKEOVER, false, "AwaitingFence", &awaited_exports(record));
        }
        None if old.iter().any(|condition| condition.type_ == TAKEOVER) => set(TAKEOVER, true, "Healthy", ""),
        _ => {}
    }
    list.retain(|condition| !old.contains(condition));
    list
}

/// The `Ready` condition of a detached volume; none while it is being created.
fn summary(record: &VolumeRecord) -> Option<(bool, &'static str, String)> {
    let in_sync = match recorded(record) {
        Recorded::NotYet => return None,
        Recorded::Lost(reason) => return Some((false, reason.word(), reason.to_string())),
        Recorded::Yes(in_sync) => in_sync,
    };
    let list = in_sync.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if in_sync.len() >= record.replica_count as usize {
        return Some((true, "Detached", format!("not published to a node; in sync: {list}")));
    }
    let wanted = record.replicas.iter().filter(|(_, replica)| replica.wanted).map(|(id, _)| *id);
    let missing: BTreeSet<ReplicaId> = wanted.filter(|id| !in_sync.contains(id)).collect();
    let reason = Reason::Degraded { missing: missing.clone() };
    let count = record.replica_count;
    let message = match missing.is_empty() {
        true => format!("{} of {count} copies are there; in sync: {list}", in_sync.len()),
        false => reason.to_string(),
    };
    Some((false, reason.word(), message))
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
