//! The health of a volume in the words of CSI: abnormal or not, and one sentence. Pure.
//!
//! Called by ListVolumes and ControllerGetVolume. What the consumer wrote last may be older than its death, so its silence
//! and the recorded set are asked beside it. It never writes; conditions are the affair of `decide` and of the consumer.

use meshstor_api::condition::Condition;
use meshstor_api::volume::MeshStorVolume;
use meshstor_csi::proto::VolumeCondition;
use meshstor_plan::Reason;

/// How a volume is. `silent`: why its consumer's last report is too old to be believed, if it is.
pub(crate) fn health(volume: &MeshStorVolume, silent: Option<String>) -> VolumeCondition {
    let trouble = by_hand(volume).or_else(|| of_consumer(volume, silent)).or_else(|| of_copies(volume));
    let said = trouble.or_else(|| find(volume, "Ready").filter(|ready| bad(volume, ready)).map(sentence));
    match said {
        Some(message) => VolumeCondition { abnormal: true, message },
        None => {
            let ready = find(volume, "Ready").map(sentence);
            VolumeCondition { abnormal: false, message: ready.unwrap_or_else(|| "no summary was reported yet".into()) }
        }
    }
}

fn find<'a>(volume: &'a MeshStorVolume, type_: &str) -> Option<&'a Condition> {
    let conditions = volume.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    conditions.iter().find(|condition| condition.type_ == type_)
}

fn sentence(condition: &Condition) -> String {
    match condition.message.as_str() {
        "" => condition.reason.clone(),
        message => format!("{}: {message}", condition.reason),
    }
}

fn in_words(reason: &Reason) -> String {
    format!("{}: {reason}", reason.word())
}

/// A volume that is attached and not mounted yet, or not any more, lacks nothing.
fn bad(volume: &MeshStorVolume, ready: &Condition) -> bool {
    let idle = matches!(ready.reason.as_str(), "NotMounted" | "Stopped") && volume.spec.attachment.consumer.is_some();
    ready.status != "True" && !idle
}

fn by_hand(volume: &MeshStorVolume) -> Option<String> {
    let by_hand = volume.metadata.deletion_timestamp.is_some() && volume.spec.deletion_requested.is_none();
    by_hand.then(|| in_words(&Reason::DeletedByHand))
}

/// What is wrong where it is used.
fn of_consumer(volume: &MeshStorVolume, silent: Option<String>) -> Option<String> {
    let node = volume.spec.attachment.consumer.clone()?;
    if let Some(why) = silent {
        return Some(in_words(&Reason::NodeSilent { node, why }));
    }
    ["Takeover", "Healthy"]
        .iter()
        .find_map(|type_| find(volume, type_).filter(|said| said.status == "False").map(sentence))
}

/// What is wrong with the recorded set, whatever anybody has reported.
fn of_copies(volume: &MeshStorVolume) -> Option<String> {
    let recorded = volume.status.as_ref().and_then(|status| status.in_sync.clone());
    let Some(mut in_sync) = recorded else {
        let what = format!("status.inSync is absent in epoch {}", volume.spec.attachment.epoch);
        return Some(in_words(&Reason::RecordLost { what }));
    };
    let wanted = volume.spec.replica_count as usize;
    if in_sync.len() >= wanted {
        return None;
    }
    in_sync.sort();
    let last = if in_sync.len() == 1 { ", the last one" } else { "" };
    Some(format!("Degraded: {} of {wanted} copies are complete: {}{last}", in_sync.len(), in_sync.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn volume(change: impl FnOnce(&mut Value)) -> MeshStorVolume {
        let mut object = json!({
            "apiVersion": "csi.meshstor.io/v1alpha1", "kind": "MeshStorVolume", "metadata": {"name": "pvc-1"},
            "spec": {
                "volumeID": "11111111-1111-4111-8111-111111111111", "clusterID": "11111111-1111-4111-8111-111111111111",
                "sizeBytes": 1 << 30, "replicaCount": 2, "stripeWidth": 1, "sectorSize": 4096, "filesystem": "xfs",
                "memberMissingTimeoutSeconds": 900, "localCopy": "preferred", "attachment": {"epoch": 1, "consumer": "a"},
            },
            "status": {"inSync": ["r0", "r1"], "conditions": []},
        });
        change(&mut object);
        serde_json::from_value(object).unwrap()
    }

    fn said(type_: &str, status: &str, reason: &str, message: &str) -> Value {
        json!({"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": "t"})
    }

    fn with(conditions: Vec<Value>) -> MeshStorVolume {
        volume(|object| object["status"]["conditions"] = json!(conditions))
    }

    fn check(volume: &MeshStorVolume, silent: Option<&str>) -> (bool, String) {
        let said = health(volume, silent.map(str::to_string));
        (said.abnormal, said.message)
    }

    #[test]
    fn a_volume_in_use_with_all_its_copies_is_normal() {
        let good = with(vec![said("Ready", "True", "Healthy", ""), said("Healthy", "True", "Healthy", "")]);
        assert_eq!(check(&good, None), (false, "Healthy".into()));
        assert_eq!(check(&with(vec![]), None), (false, "no summary was reported yet".into()));
        let detached = volume(|o| {
            o["spec"]["attachment"] = json!({"epoch": 2});
            o["status"]["conditions"] = json!([said("Ready", "True", "Detached", "not published to a node")]);
        });
        assert_eq!(check(&detached, None), (false, "Detached: not published to a node".into()));
        let between = with(vec![said("Ready", "False", "NotMounted", "not mounted on its consumer")]);
        assert!(!check(&between, None).0, "published, and its pod has not come yet");
    }

    #[test]
    fn what_the_consumer_says_last_is_not_believed_for_ever() {
        let good = with(vec![said("Ready", "True", "Healthy", ""), said("Healthy", "True", "Healthy", "")]);
        let silent = check(&good, Some("status.heartbeat is 61 s old, allowed are 60 s"));
        assert_eq!(
            silent,
            (true, "NodeSilent: node a is silent: status.heartbeat is 61 s old, allowed are 60 s".into())
        );
        let detached = volume(|o| o["spec"]["attachment"] = json!({"epoch": 2}));
        assert!(!check(&detached, Some("x")).0, "nobody uses it");
    }

    #[test]
    fn every_trouble_is_abnormal_with_its_reason() {
        let frozen = with(vec![
            said("Ready", "False", "LastCopyFrozen", "r0"),
            said("Healthy", "False", "LastCopyFrozen", "r0 is the last in-sync copy"),
        ]);
        assert_eq!(check(&frozen, None), (true, "LastCopyFrozen: r0 is the last in-sync copy".into()));
        let waits = with(vec![said("Takeover", "False", "AwaitingFence", "r0 on b is fenced for epoch 0")]);
        assert_eq!(check(&waits, None), (true, "AwaitingFence: r0 on b is fenced for epoch 0".into()));
        let short = volume(|o| o["status"]["inSync"] = json!(["r1"]));
        assert_eq!(check(&short, None), (true, "Degraded: 1 of 2 copies are complete: r1, the last one".into()));
        let three = volume(|o| {
            o["spec"]["replicaCount"] = json!(3);
            o["status"]["inSync"] = json!(["r2", "r0"]);
        });
        assert_eq!(check(&three, None), (true, "Degraded: 2 of 3 copies are complete: r0, r2".into()));
        let lost = volume(|o| o["status"] = json!({}));
        assert!(check(&lost, None).1.starts_with("RecordLost: "), "{:?}", check(&lost, None));
        let by_hand = volume(|o| o["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
        assert!(check(&by_hand, None).1.starts_with("DeletedByHand: "));
        let asked = volume(|o| {
            o["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            o["spec"]["deletionRequested"] = json!({"by": "csi.DeleteVolume", "at": "2026-01-01T00:00:00Z"});
        });
        assert!(!check(&asked, None).0);
        let one = volume(|o| {
            o["spec"]["replicaCount"] = json!(1);
            o["status"]["inSync"] = json!(["r0"]);
        });
        assert!(!check(&one, None).0, "one copy was asked for");
    }
}
