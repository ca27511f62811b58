//! Compare-and-swap as JSON patches: `test` what was read, then change as little as possible (K9).
//!
//! The node agents send [`record`], the controller everything else; both hand the object they read and get a patch for
//! the endpoint that the function names. Nothing here talks to a server. Rules kept by every function:
//!
//! * `metadata.uid` is tested, so that a re-created object of the same name is never meant.
//! * The epoch is tested, and the consumer when there is one. JSON patch cannot test that a field is absent; it need not:
//!   the API server refuses any change of the consumer without a higher epoch, so the epoch alone names the consumer.
//! * Where absence itself decides (no status, no in-sync set, no format, no intent to delete, no sign of life from a
//!   reservation) `metadata.resourceVersion` is tested.
//! * Single fields are changed, never whole structures with unknown newer fields inside.
//!
//! A refused patch ([`CasError::Refused`]) means: look again and decide again. Sending it again is the bug.

mod draft;
mod error;
mod recover;

pub use error::{CasError, CasRefused, PatchError};
pub use recover::{recovered_epoch, recovered_record};

use crate::condition::Condition;
use crate::replica::{ExportSpec, MeshStorReplica, RecoverySpec, ReplicaRole, Tombstone};
use crate::volume::{Attachment, DeletionRequest, FormatState, MeshStorVolume};
use draft::{Draft, StatusDraft, name, uid, version, volume_draft};
use json_patch::Patch;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use meshstor_kernel::id::ReplicaId;
use meshstor_kernel::mutant::{self, Mutant};
use meshstor_plan::record::{Change, Expect, RecordOp};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

// ------------------------------------------------------------------------------------------------ record

/// A consumer's change of the record, for the volume's `/status`.
///
/// `stored` is the object as last read; it says where lists and absent fields are. What is compared comes from
/// `op.expect`, so a newer `stored` cannot smuggle in a decision made on older facts.
pub fn record(op: &RecordOp, stored: &MeshStorVolume) -> Result<Patch, PatchError> {
    let Expect { uid, epoch, consumer, in_sync, name } = &op.expect;
    let mut draft = Draft::default();
    draft.test("/metadata/uid", json!(uid));
    draft.test("/spec/attachment/epoch", json!(epoch));
    if let Some(consumer) = consumer {
        draft.test("/spec/attachment/consumer", json!(consumer));
    }
    let mut status = StatusDraft { draft, volume: stored, first: true };
    let absent = stored.status.as_ref().is_none_or(|status| status.in_sync.is_none());
    if let Some(old) = in_sync
        && !(absent && mutant::on(Mutant::AbsentIsAll))
    {
        status.draft.test("/status/inSync", json!(old));
    }
    let known = || in_sync.clone().ok_or_else(|| PatchError::Unknown { object: name.clone() });
    match &op.change {
        Change::Activate { in_sync: new, departures, flaps } => {
            let old = known()?;
            if let Some(gained) = new.difference(&old).next() {
                return Err(PatchError::Gained { object: name.clone(), replica: *gained });
            }
            status.in_sync(name, new)?;
            status.set("activatedEpoch", json!(epoch))?;
            status.departures(departures, new);
            status.flaps(flaps);
        }
        Change::Shrink { replica, departure, flap } => {
            let mut new = known()?;
            new.remove(replica);
            status.in_sync(name, &new)?;
            status.departures(&BTreeMap::from([(*replica, *departure)]), &new);
            status.flaps(&BTreeMap::from([(*replica, *flap)]));
        }
        Change::Grow { replica } => {
            let mut new = known()?;
            // Decided on the copy not being dismissed, of which there may be no field to test.
            status.draft.test("/metadata/resourceVersion", version(&stored.metadata)?);
            new.insert(*replica);
            status.in_sync(name, &new)?;
            status.departures(&BTreeMap::new(), &new);
        }
        Change::FormatStarted => {
            known()?;
            status.format(name, FormatState::Started, *epoch)?;
        }
        Change::FormatDone => {
            known()?;
            status.format(name, FormatState::Done, *epoch)?;
        }
        Change::Released => status.set("releasedEpoch", json!(epoch))?,
    }
    Ok(status.draft.finish())
}

/// The first record of a new volume, for `/status`: the one time that the in-sync set goes from absent to present.
pub fn first_record(stored: &MeshStorVolume, in_sync: &BTreeSet<ReplicaId>) -> Result<Patch, PatchError> {
    let (object, epoch) = (name(&stored.metadata), stored.spec.attachment.epoch);
    let recorded = stored.status.as_ref().is_some_and(|s| s.in_sync.is_some() || s.record_of.is_some());
    if recorded || epoch != 0 {
        return Err(PatchError::Recorded { object, epoch });
    }
    let mut draft = volume_draft(stored)?;
    draft.test("/metadata/resourceVersion", version(&stored.metadata)?);
    let mut status = StatusDraft { draft, volume: stored, first: true };
    status.set("recordOf", uid(&stored.metadata)?)?;
    status.in_sync(&object, in_sync)?;
    Ok(status.draft.finish())
}

/// Conditions of a volume, for `/status`. `None` when all of them stand there already.
pub fn volume_conditions(stored: &MeshStorVolume, wanted: &[Condition]) -> Result<Option<Patch>, PatchError> {
    let have = stored.status.as_ref().map(|status| status.conditions.as_slice());
    conditions(&stored.metadata, have, wanted)
}

/// Conditions of any object of ours, for `/status`: `have` is `None` when it has no status. Each is found by its type,
/// the others are left alone. `None` when all of them stand there already.
pub fn conditions(
    metadata: &ObjectMeta,
    have: Option<&[Condition]>,
    wanted: &[Condition],
) -> Result<Option<Patch>, PatchError> {
    let old = have.unwrap_or_default();
    let position = |type_: &str| old.iter().position(|have| have.type_ == type_);
    let fresh: Vec<&Condition> = wanted.iter().filter(|want| position(&want.type_).is_none()).collect();
    let changed: Vec<(usize, &Condition)> = wanted
        .iter()
        .filter_map(|want| Some((position(&want.type_)?, want)))
        .filter(|(index, want)| old.get(*index) != Some(*want))
        .collect();
    if fresh.is_empty() && changed.is_empty() {
        return Ok(None);
    }
    let mut draft = Draft::default();
    draft.test("/metadata/uid", uid(metadata)?);
    for (index, want) in changed {
        let at = format!("/status/conditions/{index}");
        draft.test(&format!("{at}/type"), json!(want.type_));
        draft.add(&format!("{at}/status"), json!(want.status));
        draft.add(&format!("{at}/reason"), json!(want.reason));
        draft.add(&format!("{at}/message"), json!(want.message));
        draft.add(&format!("{at}/lastTransitionTime"), json!(want.last_transition_time));
    }
    match have {
        _ if fresh.is_empty() => {}
        // What is absent is added whole, so nobody may have added it meanwhile.
        None => {
            draft.test("/metadata/resourceVersion", version(metadata)?);
            draft.add("/status", json!({ "conditions": fresh }));
        }
        Some([]) => {
            draft.test("/metadata/resourceVersion", version(metadata)?);
            draft.add("/status/conditions", json!(fresh));
        }
        // A server that knows the list as a map refuses a second one of a type, others would store it.
        Some(_) => {
            draft.test("/metadata/resourceVersion", version(metadata)?);
            fresh.iter().for_each(|want| draft.add("/status/conditions/-", json!(want)));
        }
    }
    Ok(Some(draft.finish()))
}

// ------------------------------------------------------------------------------------------ specification

/// A new attachment, for the volume's main endpoint. Its epoch must be higher.
pub fn attachment(stored: &MeshStorVolume, new: &Attachment) -> Result<Patch, PatchError> {
    let old = &stored.spec.attachment;
    if new.epoch <= old.epoch {
        return Err(PatchError::EpochNotRaised { object: name(&stored.metadata), from: old.epoch, to: new.epoch });
    }
    let mut draft = volume_draft(stored)?;
    if old.consumer.is_none() && new.consumer.is_some() {
        // Decided on there being no intent to delete.
        draft.test("/metadata/resourceVersion", version(&stored.metadata)?);
    }
    draft.replace("/spec/attachment/epoch", json!(new.epoch));
    draft.optional("/spec/attachment/consumer", &old.consumer, &new.consumer);
    draft.optional("/spec/attachment/consumerBoot", &old.consumer_boot, &new.consumer_boot);
    draft.optional("/spec/attachment/since", &old.since, &new.since);
    Ok(draft.finish())
}

/// The recorded wish to destroy a volume, for its main endpoint.
pub fn deletion_request(stored: &MeshStorVolume, request: &DeletionRequest) -> Result<Patch, PatchError> {
    let mut draft = volume_draft(stored)?;
    if stored.status.as_ref().is_none_or(|status| status.in_sync.is_none()) {
        // An unfinished volume is withdrawn: nobody may have finished it meanwhile.
        draft.test("/metadata/resourceVersion", version(&stored.metadata)?);
    }
    draft.add("/spec/deletionRequested", json!(request));
    Ok(draft.finish())
}

/// Lets a copy go for ever, for the volume's main endpoint. It is outside of the in-sync set, and any change since, by
/// whomever, refuses this: whoever takes copies into the set tests the same (see [`record`]).
///
/// `existing` are the copies that still have an object. Of those let go earlier the others are forgotten: there is
/// nothing left to be taken in. But for the highest number, below which no new copy may be made.
pub fn dismissal(
    stored: &MeshStorVolume,
    replica: ReplicaId,
    existing: &BTreeSet<ReplicaId>,
) -> Result<Patch, PatchError> {
    let object = name(&stored.metadata);
    let text = replica.to_string();
    let set = stored.status.as_ref().and_then(|status| status.in_sync.as_ref());
    let set = set.ok_or_else(|| PatchError::Unknown { object: object.clone() })?;
    if set.contains(&text) {
        return Err(PatchError::StillInSync { object, replica });
    }
    let mut draft = volume_draft(stored)?;
    draft.test("/metadata/resourceVersion", version(&stored.metadata)?);
    let mut dismissed: BTreeSet<ReplicaId> = stored.spec.dismissed.iter().filter_map(|id| id.parse().ok()).collect();
    dismissed.retain(|id| existing.contains(id));
    dismissed.insert(replica);
    draft.add("/spec/dismissed", json!(dismissed));
    Ok(draft.finish())
}

/// The number of a copy to be made is used up, for the main endpoint. Numbers never go back.
pub fn numbered(stored: &MeshStorVolume, replica: ReplicaId) -> Result<Patch, PatchError> {
    let (object, used) = (name(&stored.metadata), stored.spec.next_replica);
    if replica.0 < used {
        return Err(PatchError::NumberUsed { object, replica, next: used });
    }
    let mut draft = volume_draft(stored)?;
    draft.test("/metadata/resourceVersion", version(&stored.metadata)?);
    draft.add("/spec/nextReplica", json!(replica.0.saturating_add(1)));
    Ok(draft.finish())
}

/// More bytes promised to the user, for the main endpoint: every complete copy has them. Refused when anything of the
/// volume has changed since that was seen, its set above all. Sizes never fall.
pub fn volume_size(stored: &MeshStorVolume, bytes: u64) -> Result<Patch, PatchError> {
    let (object, from) = (name(&stored.metadata), stored.spec.size_bytes);
    if bytes < from {
        return Err(PatchError::Shrinks { object, field: "spec.sizeBytes", from, to: bytes });
    }
    let mut draft = volume_draft(stored)?;
    draft.test("/metadata/resourceVersion", version(&stored.metadata)?);
    draft.replace("/spec/sizeBytes", json!(bytes));
    Ok(draft.finish())
}

/// How large a copy's partition is to be, for the replica's main endpoint. What it has already it keeps: a wish is taken
/// back only as far as its node has not reported it done, and not if it has reported anything since.
pub fn partition_size(stored: &MeshStorReplica, bytes: u64) -> Result<Patch, PatchError> {
    let partition = stored.status.as_ref().and_then(|status| status.partition.as_ref());
    let from = stored.spec.partition_bytes.min(partition.map_or(u64::MAX, |partition| partition.size_bytes));
    if bytes < from {
        let object = name(&stored.metadata);
        return Err(PatchError::Shrinks { object, field: "spec.partitionBytes", from, to: bytes });
    }
    let mut draft = Draft::default();
    draft.test("/metadata/uid", uid(&stored.metadata)?);
    draft.test("/metadata/resourceVersion", version(&stored.metadata)?);
    draft.replace("/spec/partitionBytes", json!(bytes));
    Ok(draft.finish())
}

/// The set of a detached volume without one copy, for `/status`.
pub fn detached_shrink(stored: &MeshStorVolume, replica: ReplicaId) -> Result<Patch, PatchError> {
    let object = name(&stored.metadata);
    let status = stored.status.as_ref().and_then(|status| status.in_sync.as_ref());
    let set = status.ok_or_else(|| PatchError::Unknown { object: object.clone() })?;
    let new: BTreeSet<ReplicaId> =
        set.iter().filter_map(|text| text.parse().ok()).filter(|other| *other != replica).collect();
    let attachment = &stored.spec.attachment;
    if attachment.consumer.is_some() {
        return Err(PatchError::Attached { object });
    }
    let mut draft = volume_draft(stored)?;
    // Decided on nobody being attached.
    draft.test("/metadata/resourceVersion", version(&stored.metadata)?);
    draft.test("/status/inSync", json!(set));
    let mut status = StatusDraft { draft, volume: stored, first: true };
    status.in_sync(&object, &new)?;
    Ok(status.draft.finish())
}

/// Whether a copy is to leave, for the replica's main endpoint; refused when anything of it has changed.
pub fn role(
    stored: &MeshStorReplica,
    role: ReplicaRole,
    move_to: Option<String>,
    retired_by: Option<String>,
) -> Result<Patch, PatchError> {
    let old = &stored.spec;
    let mut draft = Draft::default();
    draft.test("/metadata/uid", uid(&stored.metadata)?);
    draft.test("/metadata/resourceVersion", version(&stored.metadata)?);
    draft.replace("/spec/role", json!(role));
    draft.optional("/spec/moveTo", &old.move_to, &move_to);
    draft.optional("/spec/retiredBy", &old.retired_by, &retired_by);
    Ok(draft.finish())
}

/// Leave to copy a replica wholly in its present export life, for its main endpoint; `None` when it has it.
pub fn recovery(stored: &MeshStorReplica) -> Result<Option<Patch>, PatchError> {
    let ExportSpec { epoch, generation, .. } = stored.spec.export;
    let leave = RecoverySpec { epoch, generation };
    if stored.spec.recovery.as_ref() == Some(&leave) {
        return Ok(None);
    }
    let mut draft = Draft::default();
    draft.test("/metadata/uid", uid(&stored.metadata)?);
    draft.test("/spec/export/epoch", json!(epoch));
    draft.test("/spec/export/generation", json!(generation));
    draft.add("/spec/recovery", json!(leave));
    Ok(Some(draft.finish()))
}

/// For whom a replica is exported, for its main endpoint.
pub fn export(stored: &MeshStorReplica, new: &ExportSpec) -> Result<Patch, PatchError> {
    let old = &stored.spec.export;
    let mut draft = Draft::default();
    draft.test("/metadata/uid", uid(&stored.metadata)?);
    draft.test("/spec/export/epoch", json!(old.epoch));
    draft.test("/spec/export/generation", json!(old.generation));
    if let Some(consumer) = &old.consumer {
        draft.test("/spec/export/consumer", json!(consumer));
    }
    draft.replace("/spec/export/epoch", json!(new.epoch));
    draft.replace("/spec/export/generation", json!(new.generation));
    draft.optional("/spec/export/consumer", &old.consumer, &new.consumer);
    Ok(draft.finish())
}

/// The recorded wish to wipe one copy, for the replica's main endpoint. Refused when the copy has reported anything
/// since it was read: a reservation that is accepted after all must not be buried.
pub fn tombstone(stored: &MeshStorReplica, tombstone: &Tombstone) -> Result<Patch, PatchError> {
    let mut draft = Draft::default();
    draft.test("/metadata/uid", uid(&stored.metadata)?);
    draft.test("/metadata/resourceVersion", version(&stored.metadata)?);
    draft.test("/spec/volumeID", json!(stored.spec.volume_id));
    draft.add("/spec/tombstone", json!(tombstone));
    Ok(draft.finish())
}

/// The removal of one finalizer, for the main endpoint; `None` when the object does not have it.
pub fn without_finalizer(metadata: &ObjectMeta, finalizer: &str) -> Result<Option<Patch>, PatchError> {
    let list = metadata.finalizers.as_deref().unwrap_or_default();
    let Some(index) = list.iter().position(|have| have == finalizer) else { return Ok(None) };
    let at = format!("/metadata/finalizers/{index}");
    let mut draft = Draft::default();
    draft.test("/metadata/uid", uid(metadata)?);
    draft.test(&at, json!(finalizer));
    draft.remove(&at);
    Ok(Some(draft.finish()))
}

#[cfg(test)]
#[path = "patch_tests.rs"]
mod tests;
