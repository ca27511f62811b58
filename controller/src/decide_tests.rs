//! Decisions by table: what is recorded, which export is wanted, what a summary says.

use super::*;
use meshstor_api::convert::volume_record;
use meshstor_api::volume::Departure;
use serde_json::{Value, json};

const CLUSTER: &str = "11111111-2222-4333-8444-555555555555";
const VOLUME: &str = "0f9a2c56-1c1b-4a1e-9f43-0d8a1c2b3e4f";

fn volume(epoch: u64, consumer: Option<&str>, in_sync: Option<&[&str]>) -> MeshStorVolume {
    let mut document = json!({
        "apiVersion": "csi.meshstor.io/v1alpha1", "kind": "MeshStorVolume",
        "metadata": {"name": "v", "uid": "u1", "resourceVersion": "7"},
        "spec": {
            "volumeID": VOLUME, "clusterID": CLUSTER, "sizeBytes": 1 << 30, "replicaCount": 2, "stripeWidth": 1,
            "sectorSize": 4096, "filesystem": "xfs", "memberMissingTimeoutSeconds": 900, "localCopy": "preferred",
            "attachment": {"epoch": epoch, "consumer": consumer}
        }
    });
    if let Some(in_sync) = in_sync {
        document["status"] = json!({"recordOf": "u1", "inSync": in_sync});
    }
    serde_json::from_value(document).unwrap()
}

fn replica(id: &str, epoch: u64, generation: u64, fenced: u64) -> MeshStorReplica {
    let document: Value = json!({
        "apiVersion": "csi.meshstor.io/v1alpha1", "kind": "MeshStorReplica",
        "metadata": {"name": format!("v-{id}"), "uid": format!("u-{id}"), "resourceVersion": "8"},
        "spec": {
            "volume": "v", "volumeID": VOLUME, "clusterID": CLUSTER, "replica": id, "node": format!("n{id}"),
            "drive": "d1", "partitionBytes": 1 << 30, "role": "Member",
            "export": {"epoch": epoch, "generation": generation, "consumer": "a"}
        },
        "status": {"fencedEpoch": fenced}
    });
    serde_json::from_value(document).unwrap()
}

fn record(volume: &MeshStorVolume, replicas: &[MeshStorReplica]) -> VolumeRecord {
    volume_record(volume, replicas, CLUSTER.parse().unwrap()).unwrap()
}

fn left(mut volume: MeshStorVolume, epoch: u64, generation: u64) -> MeshStorVolume {
    let departure = Departure { replica: "r1".into(), epoch, generation, events: 5 };
    volume.status.as_mut().unwrap().departures = vec![departure];
    volume
}

#[test]
fn absent_means_not_yet_only_before_anything_can_have_been_written() {
    let fresh = volume(0, None, None);
    assert_eq!(recorded(&record(&fresh, &[replica("r0", 0, 0, 0)])), Recorded::NotYet);
    for (volume, replicas, words) in [
        (volume(0, None, None), vec![replica("r0", 0, 0, 3)], "r0 has been fenced for epoch 3"),
        (volume(4, None, None), vec![], "status.inSync is absent in epoch 4"),
    ] {
        match recorded(&record(&volume, &replicas)) {
            Recorded::Lost(reason) => assert!(reason.to_string().contains(words), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
    let mut restored = volume(0, None, Some(&["r0"]));
    restored.metadata.uid = Some("u9".into());
    assert!(matches!(recorded(&record(&restored, &[])), Recorded::Lost(_)));
    assert_eq!(recorded(&record(&volume(3, None, Some(&["r0"])), &[])), Recorded::Yes([ReplicaId(0)].into()));
}

#[test]
fn exports_follow_the_attachment_and_never_go_back() {
    let both: &[&str] = &["r0", "r1"];
    let (attached, detached) = (volume(5, Some("b"), Some(both)), volume(5, None, Some(both)));
    let one: &[&str] = &["r0"];
    let new = |epoch, generation, consumer: Option<&str>| {
        Some(ExportSpec { epoch, generation, consumer: consumer.map(str::to_string) })
    };
    let table = [
        ("older epoch", attached.clone(), replica("r1", 4, 7, 0), new(5, 0, Some("b"))),
        ("older epoch, detached", detached.clone(), replica("r1", 4, 7, 0), new(5, 0, None)),
        ("up to date", attached.clone(), replica("r1", 5, 2, 0), None),
        ("record went back", attached.clone(), replica("r1", 6, 0, 0), None),
        ("left", left(volume(5, Some("b"), Some(one)), 5, 2), replica("r1", 5, 2, 0), new(5, 3, Some("a"))),
        ("left long ago", left(volume(5, Some("b"), Some(one)), 5, 2), replica("r1", 5, 3, 0), None),
        ("left in an older epoch", left(volume(5, Some("b"), Some(one)), 4, 9), replica("r1", 5, 0, 0), None),
        ("back in the set", left(volume(5, Some("b"), Some(both)), 5, 2), replica("r1", 5, 2, 0), None),
        ("left, detached", left(volume(5, None, Some(one)), 5, 2), replica("r1", 5, 2, 0), None),
    ];
    for (what, volume, replica, expected) in table {
        let record = record(&volume, std::slice::from_ref(&replica));
        assert_eq!(wanted_export(&volume, &record, &replica), expected, "{what}");
    }
    let mut retiring = replica("r1", 5, 2, 0);
    retiring.spec.role = meshstor_api::replica::ReplicaRole::Retiring;
    let volume = left(volume(5, Some("b"), Some(one)), 5, 2);
    let reading = record(&volume, std::slice::from_ref(&retiring));
    assert_eq!(wanted_export(&volume, &reading, &retiring), None, "a retiring copy need not return");
}

#[test]
fn a_copy_that_has_seen_more_gives_the_record_away() {
    let volume = volume(5, None, Some(&["r0"]));
    assert_eq!(regressed(&volume, &[replica("r0", 5, 0, 5)]), None);
    assert_eq!(regressed(&volume, &[]), None);
    for replica in [replica("r0", 6, 0, 5), replica("r0", 5, 0, 6)] {
        assert_eq!(regressed(&volume, &[replica]), Some(Reason::EpochRegressed { drive: 6, record: 5 }));
    }
    let mut other = replica("r0", 6, 0, 6);
    other.spec.volume_id = "aaaaaaaa-1c1b-4a1e-9f43-0d8a1c2b3e4f".into();
    assert_eq!(regressed(&volume, &[other]), None, "a copy of an earlier volume of this name");
}

#[test]
fn conditions_are_written_when_they_change_and_by_whom_they_belong_to() {
    let mut detached = volume(5, None, Some(&["r0", "r1"]));
    let reading = record(&detached, &[]);
    let list = conditions(&detached, Ok(&reading), Duration::ZERO, "t1");
    assert_eq!((list.len(), list[0].reason.as_str(), list[0].status.as_str()), (1, "Detached", "True"));
    detached.status.as_mut().unwrap().conditions = list;
    assert!(conditions(&detached, Ok(&reading), Duration::ZERO, "t2").is_empty());
    let attached = volume(5, Some("b"), Some(&["r0"]));
    assert!(conditions(&attached, Ok(&record(&attached, &[])), Duration::ZERO, "t").is_empty());
    let short = volume(5, None, Some(&["r0"]));
    let list = conditions(&short, Ok(&record(&short, &[])), Duration::ZERO, "t");
    assert_eq!(
        (list[0].reason.as_str(), list[0].message.as_str()),
        ("Degraded", "1 of 2 copies are there; in sync: r0")
    );
    let unfinished = volume(0, None, None);
    assert!(conditions(&unfinished, Ok(&record(&unfinished, &[])), Duration::ZERO, "t").is_empty());
    let list = conditions(&unfinished, Err("spec.volumeID is \"x\"".into()), Duration::ZERO, "t");
    assert_eq!((list[0].reason.as_str(), list[0].status.as_str()), ("Failing", "False"));
}

#[test]
fn a_takeover_that_waits_for_long_says_for_whom_and_then_that_it_is_over() {
    let mut taken = volume(5, Some("b"), Some(&["r0"]));
    // The copy of the set is on a node that is dead, the other one is fenced and outside of the set.
    let replicas = [replica("r0", 5, 0, 3), replica("r1", 5, 0, 5)];
    let reading = record(&taken, &replicas);
    assert!(
        conditions(&taken, Ok(&reading), Duration::from_secs(2), "t1").is_empty(),
        "every attachment waits for a moment"
    );
    let list = conditions(&taken, Ok(&reading), TAKEOVER_PATIENCE, "t1");
    assert_eq!((list.len(), list[0].type_.as_str(), list[0].status.as_str()), (1, "Takeover", "False"));
    assert_eq!(list[0].reason, "AwaitingFence");
    assert!(list[0].message.contains("r0 on nr0 is fenced for epoch 3"), "{}", list[0].message);
    taken.status.as_mut().unwrap().conditions = list;
    assert!(conditions(&taken, Ok(&reading), TAKEOVER_PATIENCE * 2, "t2").is_empty());
    let mut back = replicas;
    back[0] = replica("r0", 5, 0, 5);
    let listen = json!([{"transport": "tcp", "address": "10.0.0.1", "port": 20001}]);
    let export = json!({"epoch": 5, "generation": 0, "listen": listen, "ready": true, "boot": "b1"});
    back[0].status.as_mut().unwrap().export = serde_json::from_value(export).unwrap();
    let list = conditions(&taken, Ok(&record(&taken, &back)), TAKEOVER_PATIENCE * 2, "t3");
    assert_eq!((list.len(), list[0].status.as_str(), list[0].reason.as_str()), (1, "True", "Healthy"));
}

#[test]
fn what_an_attachment_waits_for_is_said_copy_by_copy() {
    let volume = volume(5, Some("b"), Some(&["r0", "r1", "r2"]));
    let replicas = [replica("r0", 5, 0, 4), replica("r1", 5, 0, 5)];
    assert_eq!(
        awaited_exports(&record(&volume, &replicas)),
        "at least one in-sync copy fenced and exported for epoch 5 is awaited: r0 on nr0 is fenced for epoch 4, \
         r1 on nr1 is fenced, its export is not ready, r2 has no MeshStorReplica object"
    );
}
