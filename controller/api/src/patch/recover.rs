//! The two changes by which `meshstor recover` writes a record anew. Nobody else may send them.
//!
//! First the set, while the epoch is still below that of the drives and nothing can start from it; then the epoch, above
//! everything that was seen. Both test the resourceVersion of what was looked at.

use super::PatchError;
use super::draft::{Draft, StatusDraft, name, uid, version, volume_draft};
use crate::condition::Condition;
use crate::volume::{Format, FormatState, MeshStorVolume};
use json_patch::Patch;
use meshstor_plan::recover::Proposal;
use serde_json::json;

/// The proposed set, for `/status`. Who had left is forgotten: whoever is outside comes back by a whole copy.
pub fn recovered_record(
    stored: &MeshStorVolume,
    proposal: &Proposal,
    conditions: &[Condition],
) -> Result<Patch, PatchError> {
    let object = name(&stored.metadata);
    let mut draft = volume_draft(stored)?;
    draft.test("/metadata/resourceVersion", version(&stored.metadata)?);
    let mut status = StatusDraft { draft, volume: stored, first: true };
    status.in_sync(&object, &proposal.in_sync)?;
    status.set("recordOf", uid(&stored.metadata)?)?;
    if proposal.activated > 0 {
        status.set("activatedEpoch", json!(proposal.activated))?;
        // What was used once is never formatted again (P4), whatever an older record says.
        status.set("format", json!(Format { state: FormatState::Done, epoch: proposal.activated }))?;
    }
    if stored.status.as_ref().is_some_and(|status| !status.departures.is_empty()) {
        status.draft.remove("/status/departures");
    }
    status.set("conditions", json!(conditions))?;
    Ok(status.draft.finish())
}

/// The epoch above everything that was seen, and no consumer, for the main endpoint; numbers of copies go on from
/// `next_replica` at least.
pub fn recovered_epoch(stored: &MeshStorVolume, proposal: &Proposal, next_replica: u32) -> Result<Patch, PatchError> {
    let old = &stored.spec.attachment;
    if proposal.epoch <= old.epoch {
        return Err(PatchError::EpochNotRaised { object: name(&stored.metadata), from: old.epoch, to: proposal.epoch });
    }
    let mut draft: Draft = volume_draft(stored)?;
    draft.test("/metadata/resourceVersion", version(&stored.metadata)?);
    draft.replace("/spec/attachment/epoch", json!(proposal.epoch));
    if next_replica > stored.spec.next_replica {
        draft.add("/spec/nextReplica", json!(next_replica));
    }
    draft.optional("/spec/attachment/consumer", &old.consumer, &None);
    draft.optional("/spec/attachment/consumerBoot", &old.consumer_boot, &None);
    draft.optional("/spec/attachment/since", &old.since, &None);
    Ok(draft.finish())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use meshstor_kernel::id::ReplicaId;
    use serde_json::Value;
    use std::collections::BTreeSet;

    fn document() -> Value {
        json!({
            "apiVersion": "csi.meshstor.io/v1alpha1", "kind": "MeshStorVolume",
            "metadata": {"name": "pvc-1", "uid": "u2", "resourceVersion": "7"},
            "spec": {
                "volumeID": "v", "clusterID": "c", "sizeBytes": 1 << 30, "replicaCount": 2, "stripeWidth": 1,
                "sectorSize": 4096, "filesystem": "xfs", "memberMissingTimeoutSeconds": 900, "localCopy": "preferred",
                "attachment": {"epoch": 3, "consumer": "a", "consumerBoot": "b1", "newer": 1}
            },
            "status": {
                "recordOf": "u1", "inSync": ["r0"], "activatedEpoch": 2, "format": {"state": "started", "epoch": 1},
                "departures": [{"replica": "r1", "epoch": 2, "generation": 1, "events": 40}], "releasedEpoch": 2
            }
        })
    }

    fn proposal() -> Proposal {
        Proposal {
            epoch: 9,
            in_sync: [ReplicaId(1), ReplicaId(2)].into(),
            activated: 8,
            size_bytes: None,
            given_up: BTreeSet::new(),
            overruled: BTreeSet::new(),
        }
    }

    fn apply(patch: &Patch, document: &Value) -> Option<Value> {
        let mut result = document.clone();
        json_patch::patch(&mut result, patch).ok().map(|()| result)
    }

    #[test]
    fn the_set_is_this_objects_own_and_what_was_used_counts_as_formatted() {
        let stored: MeshStorVolume = serde_json::from_value(document()).unwrap();
        let patch = recovered_record(&stored, &proposal(), &[]).unwrap();
        let status = apply(&patch, &document()).unwrap()["status"].clone();
        assert_eq!((status["recordOf"].clone(), status["inSync"].clone()), (json!("u2"), json!(["r1", "r2"])));
        assert_eq!((status["activatedEpoch"].clone(), status["format"]["state"].clone()), (json!(8), json!("done")));
        assert_eq!((status["departures"].clone(), status["releasedEpoch"].clone()), (Value::Null, json!(2)));
        let bare = MeshStorVolume { status: None, ..stored };
        let mut without = document();
        without.as_object_mut().unwrap().remove("status");
        let patch = recovered_record(&bare, &Proposal { activated: 0, ..proposal() }, &[]).unwrap();
        let status = apply(&patch, &without).unwrap()["status"].clone();
        assert_eq!(status, json!({"inSync": ["r1", "r2"], "recordOf": "u2", "conditions": []}));
    }

    #[test]
    fn the_epoch_rises_and_the_consumer_goes_and_nothing_else_changes() {
        let stored: MeshStorVolume = serde_json::from_value(document()).unwrap();
        let patch = recovered_epoch(&stored, &proposal(), 4).unwrap();
        let result = apply(&patch, &document()).unwrap();
        assert_eq!(result["spec"]["attachment"], json!({"epoch": 9, "newer": 1}));
        assert_eq!(result["status"], document()["status"]);
        let same = Proposal { epoch: 3, ..proposal() };
        assert!(matches!(recovered_epoch(&stored, &same, 4), Err(PatchError::EpochNotRaised { from: 3, to: 3, .. })));
    }

    #[test]
    fn whatever_was_changed_since_the_look_refuses_both() {
        let stored: MeshStorVolume = serde_json::from_value(document()).unwrap();
        let patches =
            [recovered_record(&stored, &proposal(), &[]).unwrap(), recovered_epoch(&stored, &proposal(), 4).unwrap()];
        let mut changed = document();
        changed["metadata"]["resourceVersion"] = json!("8");
        assert!(patches.iter().all(|patch| apply(patch, &document()).is_some()));
        assert!(patches.iter().all(|patch| apply(patch, &changed).is_none()));
    }
}
