//! A JSON patch while it is being written: operations in order, and the little that every one of ours has in common.
//!
//! Used by the functions of [`super`] only.

use super::PatchError;
use crate::convert::wall;
use crate::volume::{Departure, Flap, Format, FormatState, MeshStorVolume, VolumeStatus};
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation, TestOperation};
use jsonptr::PointerBuf;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use meshstor_kernel::id::{Epoch, ReplicaId};
use meshstor_plan::array::CALM;
use meshstor_plan::record::{DepartureRecord, FlapRecord};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The tests that every change of a volume's spec begins with.
pub(super) fn volume_draft(stored: &MeshStorVolume) -> Result<Draft, PatchError> {
    let attachment = &stored.spec.attachment;
    let mut draft = Draft::default();
    draft.test("/metadata/uid", uid(&stored.metadata)?);
    draft.test("/spec/attachment/epoch", json!(attachment.epoch));
    if let Some(consumer) = &attachment.consumer {
        draft.test("/spec/attachment/consumer", json!(consumer));
    }
    Ok(draft)
}

pub(super) fn name(metadata: &ObjectMeta) -> String {
    metadata.name.clone().unwrap_or_default()
}

pub(super) fn uid(metadata: &ObjectMeta) -> Result<Value, PatchError> {
    let uid = metadata.uid.as_ref();
    uid.map(|uid| json!(uid)).ok_or_else(|| PatchError::NotRead { object: name(metadata), field: "uid" })
}

pub(super) fn version(metadata: &ObjectMeta) -> Result<Value, PatchError> {
    let version = metadata.resource_version.as_ref();
    let absent = || PatchError::NotRead { object: name(metadata), field: "resourceVersion" };
    version.map(|version| json!(version)).ok_or_else(absent)
}

/// A patch being written.
#[derive(Default)]
pub(super) struct Draft(Vec<PatchOperation>);

impl Draft {
    pub(super) fn test(&mut self, path: &str, value: Value) {
        self.0.push(PatchOperation::Test(TestOperation { path: pointer(path), value }));
    }

    pub(super) fn add(&mut self, path: &str, value: Value) {
        self.0.push(PatchOperation::Add(AddOperation { path: pointer(path), value }));
    }

    pub(super) fn replace(&mut self, path: &str, value: Value) {
        self.0.push(PatchOperation::Replace(ReplaceOperation { path: pointer(path), value }));
    }

    pub(super) fn remove(&mut self, path: &str) {
        self.0.push(PatchOperation::Remove(RemoveOperation { path: pointer(path) }));
    }

    /// A field that may be absent: set it, take it away, or leave it alone.
    pub(super) fn optional(&mut self, path: &str, old: &Option<String>, new: &Option<String>) {
        match (old, new) {
            (_, Some(value)) => self.add(path, json!(value)),
            (Some(_), None) => self.remove(path),
            (None, None) => {}
        }
    }

    pub(super) fn finish(self) -> Patch {
        Patch(self.0)
    }
}

/// None of our paths holds a `~` or an escaped `/`, so splitting is reading.
fn pointer(path: &str) -> PointerBuf {
    PointerBuf::from_tokens(path.split('/').skip(1))
}

/// Changes of a volume's status, which may not exist yet.
pub(super) struct StatusDraft<'a> {
    pub(super) draft: Draft,
    pub(super) volume: &'a MeshStorVolume,
    /// No field was set yet.
    pub(super) first: bool,
}

impl StatusDraft<'_> {
    /// Sets one field. An absent status is added first, and then nobody may have added one meanwhile.
    pub(super) fn set(&mut self, field: &str, value: Value) -> Result<(), PatchError> {
        if self.first && self.volume.status.is_none() {
            self.draft.test("/metadata/resourceVersion", version(&self.volume.metadata)?);
            self.draft.add("/status", json!({}));
        }
        self.first = false;
        self.draft.add(&format!("/status/{field}"), value);
        Ok(())
    }

    pub(super) fn in_sync(&mut self, object: &str, set: &BTreeSet<ReplicaId>) -> Result<(), PatchError> {
        if set.is_empty() {
            return Err(PatchError::Empty { object: object.to_string() });
        }
        self.set("inSync", json!(set))
    }

    /// P4: `started` is recorded once before anything is made, and nothing leads back from `done`.
    pub(super) fn format(&mut self, object: &str, state: FormatState, epoch: Epoch) -> Result<(), PatchError> {
        match self.stored().and_then(|status| status.format.as_ref()).map(|format| format.state) {
            Some(FormatState::Done) if state == FormatState::Started => {
                return Err(PatchError::Formatted { object: object.to_string() });
            }
            Some(old) => self.draft.test("/status/format/state", json!(old)),
            None => self.draft.test("/metadata/resourceVersion", version(&self.volume.metadata)?),
        }
        self.set("format", json!(Format { state, epoch }))
    }

    /// Records who left and forgets who is in sync again or was let go, entry by entry.
    pub(super) fn departures(&mut self, left: &BTreeMap<ReplicaId, DepartureRecord>, in_sync: &BTreeSet<ReplicaId>) {
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
            // One that was let go for ever needs no proof for its return.
            let dismissed = self.volume.spec.dismissed.contains(replica);
            if dismissed || id.is_some_and(|id| in_sync.contains(&id)) {
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

    /// Records how often those have left that leave now, and forgets everybody who has been calm since, entry by entry.
    pub(super) fn flaps(&mut self, left: &BTreeMap<ReplicaId, FlapRecord>) {
        let Some(now) = left.values().map(|flap| flap.last).max() else { return };
        let stored: Vec<Flap> = self.stored().map(|status| status.flaps.clone()).unwrap_or_default();
        let known = |replica: &ReplicaId| stored.iter().any(|flap| flap.replica == replica.to_string());
        let fresh: Vec<Flap> =
            left.iter().filter(|(replica, _)| !known(replica)).map(|(replica, flap)| entry(*replica, flap)).collect();
        for (index, flap) in stored.iter().enumerate().rev() {
            let at = format!("/status/flaps/{index}");
            self.draft.test(&format!("{at}/replica"), json!(flap.replica));
            let again = flap.replica.parse().ok().and_then(|id: ReplicaId| left.get(&id));
            let calm = wall(&flap.last).is_none_or(|last| now.since(last) >= CALM);
            if let Some(again) = again {
                self.draft.replace(&format!("{at}/count"), json!(again.count));
                self.draft.replace(&format!("{at}/last"), json!(again.last.to_string()));
            } else if calm {
                self.draft.remove(&at);
            }
        }
        match stored.is_empty() {
            _ if fresh.is_empty() => {}
            true => self.draft.add("/status/flaps", json!(fresh)),
            false => fresh.iter().for_each(|flap| self.draft.add("/status/flaps/-", json!(flap))),
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

fn entry(replica: ReplicaId, flap: &FlapRecord) -> Flap {
    Flap { replica: replica.to_string(), count: flap.count, last: flap.last.to_string() }
}
