//! Reading records: what is absent stays unknown, what is wrong is named.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::*;
use serde_json::{Value, json};

const CLUSTER: &str = "11111111-2222-4333-8444-555555555555";
const VOLUME: &str = "0f9a2c56-1c1b-4a1e-9f43-0d8a1c2b3e4f";

fn volume() -> Value {
    json!({
        "apiVersion": "csi.meshstor.io/v1alpha1", "kind": "MeshStorVolume",
        "metadata": {"name": "pvc-1", "uid": "u1", "resourceVersion": "7"},
        "spec": {
            "volumeID": VOLUME, "clusterID": CLUSTER, "sizeBytes": 1 << 30, "replicaCount": 2, "stripeWidth": 1,
            "sectorSize": 4096, "filesystem": "xfs", "memberMissingTimeoutSeconds": 900, "localCopy": "preferred",
            "attachment": {"epoch": 3, "consumer": "a", "consumerBoot": "b1"}
        },
        "status": {
            "recordOf": "u1", "inSync": ["r2", "r10"], "activatedEpoch": 2, "format": {"state": "done", "epoch": 1},
            "departures": [{"replica": "r3", "epoch": 2, "generation": 1, "events": 40}]
        }
    })
}

fn replica(id: &str) -> Value {
    json!({
        "apiVersion": "csi.meshstor.io/v1alpha1", "kind": "MeshStorReplica",
        "metadata": {"name": format!("pvc-1-{id}"), "uid": "u2", "resourceVersion": "8"},
        "spec": {
            "volume": "pvc-1", "volumeID": VOLUME, "clusterID": CLUSTER, "replica": id, "node": "a", "drive": "d1",
            "partitionBytes": 1 << 30, "role": "Member", "export": {"epoch": 3, "generation": 1, "consumer": "a"}
        },
        "status": {
            "fencedEpoch": 3,
            "export": {
                "epoch": 3, "generation": 1, "ready": true, "boot": "t1",
                "listen": [{"transport": "tcp", "address": "10.0.0.1", "port": 4500}]
            }
        }
    })
}

fn read(volume: Value, replicas: Vec<Value>) -> Result<VolumeRecord, Garbage> {
    let volume: MeshStorVolume = serde_json::from_value(volume).unwrap();
    let replicas: Vec<MeshStorReplica> = replicas.into_iter().map(|r| serde_json::from_value(r).unwrap()).collect();
    volume_record(&volume, &replicas, CLUSTER.parse().unwrap())
}

fn with(mut object: Value, path: &str, value: Value) -> Value {
    *object.pointer_mut(path).unwrap() = value;
    object
}

#[test]
fn a_healthy_volume_reads_whole() {
    let record = read(volume(), vec![replica("r2"), replica("r10")]).unwrap();
    assert_eq!(record.in_sync, Some([ReplicaId(2), ReplicaId(10)].into()));
    assert_eq!((record.epoch, record.consumer.clone()), (3, Some(NodeName("a".into()))));
    assert_eq!((record.foreign.clone(), record.format), (None, FormatRecord::Done));
    assert_eq!(record.departures[&ReplicaId(3)].events, 40);
    assert!(record.usable_export(ReplicaId(2)).is_some());
}

#[test]
fn absent_is_unknown_and_restored_is_foreign() {
    let mut fresh = volume();
    fresh.as_object_mut().unwrap().remove("status");
    let record = read(fresh, vec![]).unwrap();
    assert_eq!((record.in_sync, record.foreign), (None, None));
    let restored = read(with(volume(), "/metadata/uid", json!("u9")), vec![]).unwrap();
    assert_eq!(restored.foreign.as_deref(), Some("status.recordOf is u1, this object is u9"));
    let mut unnamed = volume();
    unnamed["status"].as_object_mut().unwrap().remove("recordOf");
    assert!(read(unnamed.clone(), vec![]).unwrap().foreign.unwrap().contains("recordOf is absent"));
    unnamed["status"].as_object_mut().unwrap().remove("inSync");
    assert_eq!(read(unnamed, vec![]).unwrap().foreign, None, "nothing was recorded yet");
    let other = "99999999-2222-4333-8444-555555555555";
    let elsewhere = read(with(volume(), "/spec/clusterID", json!(other)), vec![]).unwrap();
    assert!(elsewhere.foreign.unwrap().starts_with("spec.clusterID is 99999999"));
}

#[test]
fn copies_of_another_volume_do_not_count_and_those_that_go_are_not_wanted() {
    let mut buried = replica("r1");
    buried["spec"]["tombstone"] =
        json!({"partitionUUID": "p", "clusterID": CLUSTER, "volumeID": VOLUME, "reason": "x"});
    let retiring = with(replica("r2"), "/spec/role", json!("Retiring"));
    let leftover = with(replica("r0"), "/spec/volumeID", json!("aaaaaaaa-1c1b-4a1e-9f43-0d8a1c2b3e4f"));
    let record = read(volume(), vec![replica("r3"), buried, retiring, leftover]).unwrap();
    let wanted: Vec<(String, bool)> = record.replicas.iter().map(|(id, r)| (id.to_string(), r.wanted)).collect();
    assert_eq!(wanted, [("r1".into(), false), ("r2".into(), false), ("r3".into(), true)]);
}

#[test]
fn garbage_names_field_value_and_what_is_allowed() {
    let listen = "/status/export/listen/0/";
    let volumes = [
        ("/spec/volumeID", json!("x"), "MeshStorVolume pvc-1: spec.volumeID is \"x\": allowed is a hyphenated"),
        ("/spec/clusterID", json!(""), "spec.clusterID is \"\": allowed is the uid of a kube-system namespace"),
        ("/spec/attachment/consumer", json!(""), "spec.attachment.consumer is \"\": allowed is the name of a node, or"),
        ("/status/inSync", json!(["r01"]), "status.inSync is \"r01\": allowed is r and a number"),
        ("/status/inSync", json!(["r10", "r2"]), "status.inSync is \"r10 r2\": allowed is different replicas in"),
        ("/status/inSync", json!(["r2", "r2"]), "status.inSync is \"r2 r2\""),
        ("/status/inSync", json!([]), "status.inSync is \"[]\": allowed is at least one replica, or no such field"),
        ("/status/departures/0/replica", json!("3"), "status.departures[0].replica is \"3\""),
        ("/metadata/uid", json!(""), "metadata.uid is \"\""),
    ];
    for (path, value, sentence) in volumes {
        let error = read(with(volume(), path, value), vec![]).unwrap_err().to_string();
        assert!(error.contains(sentence), "{path}: {error}");
    }
    let replicas = [
        ("/spec/replica", json!("q"), "MeshStorReplica pvc-1-r2: spec.replica is \"q\""),
        (&format!("{listen}transport"), json!("fc"), "status.export.listen[0].transport is \"fc\": allowed is tcp or"),
        (&format!("{listen}address"), json!("host"), "status.export.listen[0].address is \"host\": allowed is an IP"),
        (&format!("{listen}port"), json!(0), "status.export.listen[0].port is \"0\""),
        ("/spec/node", json!(""), "spec.node is \"\""),
    ];
    for (path, value, sentence) in replicas {
        let error = read(volume(), vec![with(replica("r2"), path, value)]).unwrap_err().to_string();
        assert!(error.contains(sentence), "{path}: {error}");
    }
    let twins = read(volume(), vec![replica("r2"), replica("r2")]).unwrap_err().to_string();
    assert!(twins.contains("allowed is a number no other copy has"), "{twins}");
    let long = read(with(volume(), "/spec/volumeID", json!("x".repeat(9999))), vec![]).unwrap_err().to_string();
    assert!(long.len() < 200, "{}", long.len());
}

#[test]
fn a_copy_reads_back_from_its_drives_object() {
    let record = EpochRecord {
        tainted: None,
        unflushed: None,
        content: Content::Files(meshstor_kernel::content::Filesystem::Ext4),
        volume: VolumeId(Uuid::from_u128(7)),
        cluster: ClusterId(Uuid::from_u128(8)),
        replica: ReplicaId(1),
        epoch: 4,
        generation: 2,
        in_sync: [ReplicaId(0), ReplicaId(1)].into(),
        volume_name: "pvc-1".into(),
        sequence: 0,
    };
    let member = Member {
        set_uuid: Uuid::from_u128(9),
        events: 12,
        number: 1,
        active: [0, 1].into(),
        recovering: false,
        component_bytes: 1 << 30,
    };
    let holders = BTreeSet::from(["md1000".to_string()]);
    let copy = drive_copy(5 << 20, &record, &holders, Some(&member));
    let spec = crate::node::NodeDeviceSpec { node: "a".into(), drive: "d".into(), r#use: Default::default() };
    let mut device = MeshStorNodeDevice::new("a-d", spec);
    device.status = Some(crate::node::NodeDeviceStatus { copies: vec![copy], ..Default::default() });
    let read = copy_reports(&device).unwrap();
    let (node, drive) = (NodeName("a".into()), DriveId("d".into()));
    assert_eq!(read, [CopyReport { node, drive, bytes: 5 << 20, record, member: Some(member), holders }]);
    device.status.as_mut().unwrap().copies[0].in_sync[1] = "second".into();
    let garbage = copy_reports(&device).unwrap_err();
    assert_eq!((garbage.field.as_str(), garbage.value.as_str()), ("status.copies[0].inSync", "second"));
}
