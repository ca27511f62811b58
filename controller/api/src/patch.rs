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

use crate::condition::Condition;
use crate::replica::{ExportSpec, MeshStorReplica, Tombstone};
use crate::volume::{Attachment, DeletionRequest, Departure, Format, FormatState, MeshStorVolume, VolumeStatus};
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation, TestOperation};
use jsonptr::PointerBuf;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use meshstor_kernel::id::{Epoch, ReplicaId};
use meshstor_plan::record::{Change, DepartureRecord, Expect, RecordOp};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A change that would break a promise, whatever the server holds. It is never sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The object was not read from a server.
    #[error("{object}: metadata.{field} is absent: a change needs an object as the API server answered it")]
    NotRead {
        /// Name of the object.
        object: String,
        /// What is missing.
        field: &'static str,
    },
    /// The in-sync set would become empty.
    #[error("{object}: status.inSync would become empty: at least one replica must stay in it")]
    Empty {
        /// Name of the volume.
        object: String,
    },
    /// Nobody knows which copies are complete, so nobody can change the set.
    #[error("{object}: status.inSync is absent, which means unknown: only meshstor recover may set it")]
    Unknown {
        /// Name of the volume.
        object: String,
    },
    /// A set would gain a member without the proof that growing demands.
    #[error("{object}: {replica} is not in status.inSync: an activation may only keep or drop members")]
    Gained {
        /// Name of the volume.
        object: String,
        /// The replica that would sneak in.
        replica: ReplicaId,
    },
    /// The file system exists already.
    #[error("{object}: status.format.state is done: a file system is made at most once")]
    Formatted {
        /// Name of the volume.
        object: String,
    },
    /// The epoch would not rise.
    #[error("{object}: spec.attachment.epoch would go from {from} to {to}: it only ever rises")]
    EpochNotRaised {
        /// Name of the volume.
        object: String,
        /// Epoch in the record.
        from: Epoch,
        /// Epoch wished for.
        to: Epoch,
    },
    /// The volume was recorded before.
    #[error("{object}: the record exists already (epoch {epoch}): it is made once, at creation")]
    Recorded {
        /// Name of the volume.
        object: String,
        /// Its epoch.
        epoch: Epoch,
    },
}

/// Why a compare-and-swap did not happen, or may not have happened.
#[derive(Debug, thiserror::Error)]
pub enum CasError {
    /// What was tested has changed since it was read, or a rule of the server forbids the change.
    #[error(transparent)]
    Refused(#[from] CasRefused),
    /// The object does not exist.
    #[error("{object} does not exist")]
    Missing {
        /// Name of the object.
        object: String,
    },
    /// The change must never be sent.
    #[error(transparent)]
    Forbidden(#[from] PatchError),
    /// The API server could not be asked, or failed: the change may have happened.
    #[error("{object}: the API server does not answer as it should: {source}")]
    Api {
        /// Name of the object.
        object: String,
        /// What happened.
        #[source]
        source: Box<kube::Error>,
    },
}

/// The server refused a compare-and-swap: look again and decide again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object} has changed since it was read ({message})")]
pub struct CasRefused {
    /// Name of the object.
    pub object: String,
    /// The server's words.
    pub message: String,
}

impl CasError {
    /// What the answer to a patch of `object` means.
    pub fn from_kube(object: &str, error: kube::Error) -> CasError {
        let object = object.to_string();
        match error {
            // 422 is a failed test or a broken rule, 409 a lost race for the object itself.
            kube::Error::Api(status) if status.code == 422 || status.code == 409 => {
                CasError::Refused(CasRefused { object, message: status.message.clone() })
            }
            kube::Error::Api(status) if status.code == 404 => CasError::Missing { object },
            other => CasError::Api { object, source: Box::new(other) },
        }
    }

    /// Whether looking and deciding again is all there is to do.
    pub fn is_refused(&self) -> bool {
        matches!(self, CasError::Refused(_))
    }
}

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
    if let Some(old) = in_sync {
        status.draft.test("/status/inSync", json!(old));
    }
    let known = || in_sync.clone().ok_or_else(|| PatchError::Unknown { object: name.clone() });
    match &op.change {
        Change::Activate { in_sync: new, departures } => {
            let old = known()?;
            if let Some(gained) = new.difference(&old).next() {
                return Err(PatchError::Gained { object: name.clone(), replica: *gained });
            }
            status.in_sync(name, new)?;
            status.set("activatedEpoch", json!(epoch))?;
            status.departures(departures, new);
        }
        Change::Shrink { replica, departure } => {
            let mut new = known()?;
            new.remove(replica);
            status.in_sync(name, &new)?;
            status.departures(&BTreeMap::from([(*replica, *departure)]), &new);
        }
        Change::Grow { replica } => {
            let mut new = known()?;
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
        Some(_) => fresh.iter().for_each(|want| draft.add("/status/conditions/-", json!(want))),
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

// ----------------------------------------------------------------------------------------------- drafting

/// The tests that every change of a volume's spec begins with.
fn volume_draft(stored: &MeshStorVolume) -> Result<Draft, PatchError> {
    let attachment = &stored.spec.attachment;
    let mut draft = Draft::default();
    draft.test("/metadata/uid", uid(&stored.metadata)?);
    draft.test("/spec/attachment/epoch", json!(attachment.epoch));
    if let Some(consumer) = &attachment.consumer {
        draft.test("/spec/attachment/consumer", json!(consumer));
    }
    Ok(draft)
}

fn name(metadata: &ObjectMeta) -> String {
    metadata.name.clone().unwrap_or_default()
}

fn uid(metadata: &ObjectMeta) -> Result<Value, PatchError> {
    let uid = metadata.uid.as_ref();
    uid.map(|uid| json!(uid)).ok_or_else(|| PatchError::NotRead { object: name(metadata), field: "uid" })
}

fn version(metadata: &ObjectMeta) -> Result<Value, PatchError> {
    let version = metadata.resource_version.as_ref();
    let absent = || PatchError::NotRead { object: name(metadata), field: "resourceVersion" };
    version.map(|version| json!(version)).ok_or_else(absent)
}

/// A patch being written.
#[derive(Default)]
struct Draft(Vec<PatchOperation>);

impl Draft {
    fn test(&mut self, path: &str, value: Value) {
        self.0.push(PatchOperation::Test(TestOperation { path: pointer(path), value }));
    }

    fn add(&mut self, path: &str, value: Value) {
        self.0.push(PatchOperation::Add(AddOperation { path: pointer(path), value }));
    }

    fn replace(&mut self, path: &str, value: Value) {
        self.0.push(PatchOperation::Replace(ReplaceOperation { path: pointer(path), value }));
    }

    fn remove(&mut self, path: &str) {
        self.0.push(PatchOperation::Remove(RemoveOperation { path: pointer(path) }));
    }

    /// A field that may be absent: set it, take it away, or leave it alone.
    fn optional(&mut self, path: &str, old: &Option<String>, new: &Option<String>) {
        match (old, new) {
            (_, Some(value)) => self.add(path, json!(value)),
            (Some(_), None) => self.remove(path),
            (None, None) => {}
        }
    }

    fn finish(self) -> Patch {
        Patch(self.0)
    }
}

/// None of our paths holds a `~` or an escaped `/`, so splitting is reading.
fn pointer(path: &str) -> PointerBuf {
    PointerBuf::from_tokens(path.split('/').skip(1))
}

/// Changes of a volume's status, which may not exist yet.
struct StatusDraft<'a> {
    draft: Draft,
    volume: &'a MeshStorVolume,
    /// No field was set yet.
    first: bool,
}

impl StatusDraft<'_> {
    /// Sets one field. An absent status is added first, and then nobody may have added one meanwhile.
    fn set(&mut self, field: &str, value: Value) -> Result<(), PatchError> {
        if self.first && self.volume.status.is_none() {
            self.draft.test("/metadata/resourceVersion", version(&self.volume.metadata)?);
            self.draft.add("/status", json!({}));
        }
        self.first = false;
        self.draft.add(&format!("/status/{field}"), value);
        Ok(())
    }

    fn in_sync(&mut self, object: &str, set: &BTreeSet<ReplicaId>) -> Result<(), PatchError> {
        if set.is_empty() {
            return Err(PatchError::Empty { object: object.to_string() });
        }
        self.set("inSync", json!(set))
    }

    /// P4: `started` is recorded once before anything is made, and nothing leads back from `done`.
    fn format(&mut self, object: &str, state: FormatState, epoch: Epoch) -> Result<(), PatchError> {
        match self.stored().and_then(|status| status.format.as_ref()).map(|format| format.state) {
            Some(FormatState::Done) if state == FormatState::Started => {
                return Err(PatchError::Formatted { object: object.to_string() });
            }
            Some(old) => self.draft.test("/status/format/state", json!(old)),
            None => self.draft.test("/metadata/resourceVersion", version(&self.volume.metadata)?),
        }
        self.set("format", json!(Format { state, epoch }))
    }

    /// Records who left and forgets who is in sync again, entry by entry.
    fn departures(&mut self, left: &BTreeMap<ReplicaId, DepartureRecord>, in_sync: &BTreeSet<ReplicaId>) {
        let stored: Vec<(usize, String)> = self
            .stored()
            .map(|status| status.departures.iter().map(|d| d.replica.clone()).enumerate().collect())
            .unwrap_or_default();
        let known: BTreeSet<&String> = stored.iter().map(|(_, replica)| replica).collect();
        let fresh: Vec<Departure> = left
            .iter()
            .filter(|(replica, _)| !known.contains(&replica.to_string()))
            .map(|(replica, record)| departure(*replica, record))
            .collect();
        // From the end, so that a removal moves no entry that is still to be touched.
        for (index, replica) in stored.iter().rev() {
            let at = format!("/status/departures/{index}");
            self.draft.test(&format!("{at}/replica"), json!(replica));
            let id: Option<ReplicaId> = replica.parse().ok();
            if id.is_some_and(|id| in_sync.contains(&id)) {
                self.draft.remove(&at);
            } else if let Some(record) = id.and_then(|id| left.get(&id)) {
                self.draft.replace(&format!("{at}/epoch"), json!(record.epoch));
                self.draft.replace(&format!("{at}/generation"), json!(record.generation));
                self.draft.replace(&format!("{at}/events"), json!(record.events));
            }
        }
        match stored.is_empty() {
            _ if fresh.is_empty() => {}
            true => self.draft.add("/status/departures", json!(fresh)),
            false => fresh.iter().for_each(|departure| self.draft.add("/status/departures/-", json!(departure))),
        }
    }

    fn stored(&self) -> Option<&VolumeStatus> {
        self.volume.status.as_ref()
    }
}

fn departure(replica: ReplicaId, record: &DepartureRecord) -> Departure {
    let DepartureRecord { epoch, generation, events } = *record;
    Departure { replica: replica.to_string(), epoch, generation, events }
}

#[cfg(test)]
#[path = "patch_tests.rs"]
mod tests;
