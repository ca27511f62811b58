//! Patches applied to documents: what passes, what is refused, and what unknown newer fields live through.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::*;
use meshstor_kernel::id::NodeName;
use meshstor_plan::record::{DepartureRecord, FlapRecord};
use meshstor_plan::wall::WallTime;
use serde_json::Value;

const CLUSTER: &str = "11111111-2222-4333-8444-555555555555";
const VOLUME: &str = "0f9a2c56-1c1b-4a1e-9f43-0d8a1c2b3e4f";

fn document() -> Value {
    json!({
        "apiVersion": "csi.meshstor.io/v1alpha1", "kind": "MeshStorVolume",
        "metadata": {"name": "pvc-1", "uid": "u1", "resourceVersion": "7", "finalizers": ["x/y", "csi.meshstor.io/data"]},
        "spec": {
            "volumeID": VOLUME, "clusterID": CLUSTER, "sizeBytes": 1 << 30, "replicaCount": 2, "stripeWidth": 1,
            "sectorSize": 4096, "filesystem": "xfs", "memberMissingTimeoutSeconds": 900, "localCopy": "preferred",
            "attachment": {"epoch": 3, "consumer": "a", "consumerBoot": "b1", "newer": 1}, "newer": true
        },
        "status": {
            "recordOf": "u1", "inSync": ["r0", "r1", "r2"], "activatedEpoch": 2, "newer": [1],
            "departures": [
                {"replica": "r3", "epoch": 2, "generation": 1, "events": 40, "newer": "n"},
                {"replica": "r4", "epoch": 2, "generation": 5, "events": 41, "newer": "m"}
            ]
        }
    })
}

fn typed(document: &Value) -> MeshStorVolume {
    serde_json::from_value(document.clone()).unwrap()
}

fn ids(list: &[u32]) -> BTreeSet<ReplicaId> {
    list.iter().copied().map(ReplicaId).collect()
}

fn op(change: Change) -> RecordOp {
    let consumer = Some(NodeName("a".into()));
    let expect = Expect { name: "pvc-1".into(), uid: "u1".into(), epoch: 3, consumer, in_sync: Some(ids(&[0, 1, 2])) };
    RecordOp { expect, change }
}

const FLAP: FlapRecord = FlapRecord { count: 2, last: WallTime(1_700_000_000) };
const LEFT: DepartureRecord = DepartureRecord { epoch: 3, generation: 2, events: 77 };

/// Applies a patch made from `seen` to `now`; `None` when a test in it fails.
fn apply(patch: &Patch, now: &Value) -> Option<Value> {
    let mut result = now.clone();
    json_patch::patch(&mut result, patch).ok().map(|()| result)
}

fn applied(change: Change) -> Value {
    let document = document();
    let result = apply(&record(&op(change), &typed(&document)).unwrap(), &document).unwrap();
    assert_eq!(result["status"]["newer"], json!([1]), "a newer version's field must live through");
    assert_eq!(result["spec"], document["spec"], "a consumer never changes the spec");
    result["status"].clone()
}

#[test]
fn a_shrink_records_the_departure() {
    let status = applied(Change::Shrink { replica: ReplicaId(1), departure: LEFT, flap: FLAP });
    assert_eq!(status["inSync"], json!(["r0", "r2"]));
    assert_eq!(status["departures"][2], json!({"replica": "r1", "epoch": 3, "generation": 2, "events": 77}));
    assert_eq!(status["departures"][0]["newer"], "n");
}

#[test]
fn departures_are_counted_replica_by_replica_and_forgotten_when_calm() {
    let mut now = document();
    now["status"]["flaps"] = json!([
        {"replica": "r4", "count": 9, "last": "2023-11-14T21:13:20Z"},
        {"replica": "r1", "count": 1, "last": "2023-11-14T22:00:00Z", "newer": "n"},
        {"replica": "r0", "count": 3, "last": "2023-11-14T21:13:21Z"},
        {"replica": "r5", "count": 3, "last": "yesterday"}
    ]);
    let change = Change::Shrink { replica: ReplicaId(1), departure: LEFT, flap: FLAP };
    let once = apply(&record(&op(change), &typed(&now)).unwrap(), &now).unwrap();
    assert_eq!(
        once["status"]["flaps"],
        json!([
            {"replica": "r1", "count": 2, "last": "2023-11-14T22:13:20Z", "newer": "n"},
            {"replica": "r0", "count": 3, "last": "2023-11-14T21:13:21Z"}
        ]),
        "an hour to the second is calm"
    );
    let flaps = BTreeMap::from([(ReplicaId(2), FLAP)]);
    let status = applied(Change::Activate { in_sync: ids(&[0, 1]), departures: BTreeMap::new(), flaps });
    assert_eq!(status["flaps"], json!([{"replica": "r2", "count": 2, "last": "2023-11-14T22:13:20Z"}]));
}

#[test]
fn a_second_departure_of_a_replica_replaces_the_first() {
    let left = BTreeMap::from([(ReplicaId(4), LEFT), (ReplicaId(2), LEFT)]);
    let status = applied(Change::Activate { in_sync: ids(&[0, 1]), departures: left, flaps: BTreeMap::new() });
    assert_eq!(status["inSync"], json!(["r0", "r1"]));
    assert_eq!(status["activatedEpoch"], 3);
    assert_eq!(
        status["departures"],
        json!([
            {"replica": "r3", "epoch": 2, "generation": 1, "events": 40, "newer": "n"},
            {"replica": "r4", "epoch": 3, "generation": 2, "events": 77, "newer": "m"},
            {"replica": "r2", "epoch": 3, "generation": 2, "events": 77}
        ])
    );
}

#[test]
fn growing_forgets_the_departure() {
    let status = applied(Change::Grow { replica: ReplicaId(3) });
    assert_eq!(status["inSync"], json!(["r0", "r1", "r2", "r3"]));
    assert_eq!(status["departures"].as_array().map(Vec::len), Some(1));
    assert_eq!(status["departures"][0]["replica"], "r4");
}

#[test]
fn format_goes_from_nothing_to_started_to_done_and_never_back() {
    let mut now = document();
    for (change, state) in [(Change::FormatStarted, "started"), (Change::FormatDone, "done")] {
        now = apply(&record(&op(change), &typed(&now)).unwrap(), &now).unwrap();
        assert_eq!(now["status"]["format"], json!({"state": state, "epoch": 3}));
    }
    let back = record(&op(Change::FormatStarted), &typed(&now));
    assert_eq!(back, Err(PatchError::Formatted { object: "pvc-1".into() }));
    // Decided on an older sight of the object, when nothing was formatted yet.
    now["metadata"]["resourceVersion"] = json!("9");
    assert_eq!(apply(&record(&op(Change::FormatStarted), &typed(&document())).unwrap(), &now), None);
}

#[test]
fn release_names_the_epoch_and_needs_no_set() {
    assert_eq!(applied(Change::Released)["releasedEpoch"], 3);
    let mut bare = document();
    bare.as_object_mut().unwrap().remove("status");
    let mut released = op(Change::Released);
    released.expect.in_sync = None;
    let patch = record(&released, &typed(&bare)).unwrap();
    assert_eq!(apply(&patch, &bare).unwrap()["status"], json!({"releasedEpoch": 3}));
    // Somebody recorded a status meanwhile: it must not be replaced.
    let mut raced = document();
    raced["metadata"]["resourceVersion"] = json!("8");
    assert_eq!(apply(&patch, &raced), None);
}

#[test]
fn every_change_is_refused_when_anything_it_was_decided_on_has_changed() {
    let changes = [
        Change::Activate { in_sync: ids(&[0]), departures: BTreeMap::new(), flaps: BTreeMap::new() },
        Change::Shrink { replica: ReplicaId(1), departure: LEFT, flap: FLAP },
        Change::Grow { replica: ReplicaId(3) },
        Change::FormatStarted,
        Change::FormatDone,
        Change::Released,
    ];
    let drifts = [
        ("/metadata/uid", json!("u2")),
        ("/spec/attachment/epoch", json!(4)),
        ("/spec/attachment/consumer", json!("b")),
        ("/status/inSync", json!(["r0", "r1"])),
    ];
    for change in changes {
        let patch = record(&op(change.clone()), &typed(&document())).unwrap();
        for (path, value) in &drifts {
            let mut now = document();
            *now.pointer_mut(path).unwrap() = value.clone();
            assert_eq!(apply(&patch, &now), None, "{change:?} against {path}");
        }
    }
}

#[test]
fn what_would_break_a_promise_is_never_sent() {
    let volume = typed(&document());
    let object = || "pvc-1".to_string();
    let mut last = op(Change::Shrink { replica: ReplicaId(0), departure: LEFT, flap: FLAP });
    last.expect.in_sync = Some(ids(&[0]));
    assert_eq!(record(&last, &volume), Err(PatchError::Empty { object: object() }));
    let mut unknown = op(Change::Grow { replica: ReplicaId(0) });
    unknown.expect.in_sync = None;
    assert_eq!(record(&unknown, &volume), Err(PatchError::Unknown { object: object() }));
    let gain = op(Change::Activate { in_sync: ids(&[0, 3]), departures: BTreeMap::new(), flaps: BTreeMap::new() });
    assert_eq!(record(&gain, &volume), Err(PatchError::Gained { object: object(), replica: ReplicaId(3) }));
    let none = op(Change::Activate { in_sync: ids(&[]), departures: BTreeMap::new(), flaps: BTreeMap::new() });
    assert_eq!(record(&none, &volume), Err(PatchError::Empty { object: object() }));
    let same =
        attachment(&volume, &Attachment { epoch: 3, consumer: Some("b".into()), consumer_boot: None, since: None });
    assert_eq!(same, Err(PatchError::EpochNotRaised { object: object(), from: 3, to: 3 }));
    assert!(matches!(first_record(&volume, &ids(&[0])), Err(PatchError::Recorded { .. })));
}

#[test]
fn the_first_record_is_made_once() {
    let mut fresh = document();
    fresh.as_object_mut().unwrap().remove("status");
    fresh["spec"]["attachment"] = json!({"epoch": 0});
    let patch = first_record(&typed(&fresh), &ids(&[0, 1])).unwrap();
    let recorded = apply(&patch, &fresh).unwrap();
    assert_eq!(recorded["status"], json!({"recordOf": "u1", "inSync": ["r0", "r1"]}));
    let mut raced = recorded.clone();
    raced["metadata"]["resourceVersion"] = json!("8");
    assert_eq!(apply(&patch, &raced), None);
    // Conditions that were there before stay.
    fresh["status"] = json!({"conditions": [], "activatedEpoch": 0});
    let patch = first_record(&typed(&fresh), &ids(&[0])).unwrap();
    let status = &apply(&patch, &fresh).unwrap()["status"];
    assert_eq!(*status, json!({"conditions": [], "activatedEpoch": 0, "recordOf": "u1", "inSync": ["r0"]}));
}

#[test]
fn attachments_come_and_go_without_touching_what_we_do_not_know() {
    let document = document();
    let detached = Attachment { epoch: 4, consumer: None, consumer_boot: None, since: None };
    let patch = attachment(&typed(&document), &detached).unwrap();
    let now = apply(&patch, &document).unwrap();
    assert_eq!(now["spec"]["attachment"], json!({"epoch": 4, "newer": 1}));
    assert_eq!(apply(&patch, &now), None, "a repetition is refused");
    let attached = Attachment { epoch: 5, consumer: Some("b".into()), consumer_boot: Some("b2".into()), since: None };
    let patch = attachment(&typed(&now), &attached).unwrap();
    let mut doomed = now.clone();
    doomed["metadata"]["resourceVersion"] = json!("8");
    assert_eq!(apply(&patch, &doomed), None, "an intent to delete may stand there now");
    let now = apply(&patch, &now).unwrap();
    let expected = json!({"epoch": 5, "consumer": "b", "consumerBoot": "b2", "newer": 1});
    assert_eq!(now["spec"]["attachment"], expected);
}

#[test]
fn intents_exports_and_finalizers() {
    let document = document();
    let request = DeletionRequest { by: "csi.DeleteVolume".into(), at: "t".into() };
    let now = apply(&deletion_request(&typed(&document), &request).unwrap(), &document).unwrap();
    assert_eq!(now["spec"]["deletionRequested"]["by"], "csi.DeleteVolume");

    let metadata = typed(&document).metadata;
    let patch = without_finalizer(&metadata, "csi.meshstor.io/data").unwrap().unwrap();
    assert_eq!(apply(&patch, &document).unwrap()["metadata"]["finalizers"], json!(["x/y"]));
    let mut moved = document.clone();
    moved["metadata"]["finalizers"] = json!(["csi.meshstor.io/data", "x/y"]);
    assert_eq!(apply(&patch, &moved), None);
    assert_eq!(without_finalizer(&metadata, "other"), Ok(None));

    let replica = json!({
        "apiVersion": "csi.meshstor.io/v1alpha1", "kind": "MeshStorReplica",
        "metadata": {"name": "pvc-1-r0", "uid": "u5", "resourceVersion": "6"},
        "spec": {
            "volume": "pvc-1", "volumeID": VOLUME, "clusterID": CLUSTER, "replica": "r0", "node": "a", "drive": "d1",
            "partitionBytes": 1, "role": "Member", "export": {"epoch": 3, "generation": 1, "consumer": "a"}
        }
    });
    let typed: MeshStorReplica = serde_json::from_value(replica.clone()).unwrap();
    let patch = export(&typed, &ExportSpec { epoch: 4, generation: 0, consumer: None }).unwrap();
    let now = apply(&patch, &replica).unwrap();
    assert_eq!(now["spec"]["export"], json!({"epoch": 4, "generation": 0}));
    assert_eq!(apply(&patch, &now), None);
    let wish = Tombstone {
        partition_uuid: "p".into(),
        cluster_id: CLUSTER.into(),
        volume_id: VOLUME.into(),
        reason: "VolumeDeleted".into(),
    };
    let patch = tombstone(&typed, &wish).unwrap();
    assert_eq!(apply(&patch, &replica).unwrap()["spec"]["tombstone"]["reason"], "VolumeDeleted");
    let mut alive = replica.clone();
    alive["metadata"]["resourceVersion"] = json!("7");
    assert_eq!(apply(&patch, &alive), None, "the copy has reported since");
}

#[test]
fn conditions_change_by_type_and_leave_others_alone() {
    let condition = |type_: &str, status: &str| Condition {
        type_: type_.into(),
        status: status.into(),
        reason: "R".into(),
        message: "m".into(),
        last_transition_time: "t".into(),
    };
    let mut now = document();
    let first = volume_conditions(&typed(&now), &[condition("Ready", "True")]).unwrap().unwrap();
    now = apply(&first, &now).unwrap();
    assert_eq!(volume_conditions(&typed(&now), &[condition("Ready", "True")]), Ok(None));
    now["status"]["conditions"][0]["newer"] = json!(1);
    let wanted = [condition("DeletedByHand", "True"), condition("Ready", "False")];
    now = apply(&volume_conditions(&typed(&now), &wanted).unwrap().unwrap(), &now).unwrap();
    assert_eq!(now["status"]["conditions"][0]["status"], "False");
    assert_eq!(now["status"]["conditions"][0]["newer"], 1);
    assert_eq!(now["status"]["conditions"][1]["type"], "DeletedByHand");
    let mut bare = document();
    bare.as_object_mut().unwrap().remove("status");
    let patch = volume_conditions(&typed(&bare), &wanted).unwrap().unwrap();
    assert_eq!(apply(&patch, &bare).unwrap()["status"]["conditions"].as_array().map(Vec::len), Some(2));
    let mut raced = document();
    raced["metadata"]["resourceVersion"] = json!("8");
    assert_eq!(apply(&patch, &raced), None, "a status made meanwhile must not be replaced");
}

#[test]
fn answers_of_the_server_are_told_apart() {
    let answer = |code: u16| {
        let status = kube::core::Status { code, message: "m".into(), ..Default::default() };
        CasError::from_kube("pvc-1", kube::Error::Api(Box::new(status)))
    };
    assert!(answer(409).is_refused() && answer(422).is_refused());
    assert!(matches!(answer(404), CasError::Missing { .. }));
    assert!(matches!(answer(500), CasError::Api { .. }));
}

#[test]
fn a_copy_is_let_go_only_outside_of_the_set_and_growing_sees_it() {
    let document = document();
    let patch = dismissal(&typed(&document), ReplicaId(3), &ids(&[3])).unwrap();
    let mut now = apply(&patch, &document).unwrap();
    assert_eq!(now["spec"]["dismissed"], json!(["r3"]));
    now["metadata"]["resourceVersion"] = json!("8");
    // The consumer that had looked before may not take it in any more, and neither may the controller let go twice.
    let grow = record(&op(Change::Grow { replica: ReplicaId(3) }), &typed(&document)).unwrap();
    assert_eq!((apply(&grow, &now), apply(&patch, &now)), (None, None));
    let second = dismissal(&typed(&now), ReplicaId(4), &ids(&[3, 4])).unwrap();
    assert_eq!(apply(&second, &now).unwrap()["spec"]["dismissed"], json!(["r3", "r4"]));
    let error = dismissal(&typed(&document), ReplicaId(1), &ids(&[1])).unwrap_err();
    assert_eq!(error, PatchError::StillInSync { object: "pvc-1".into(), replica: ReplicaId(1) });
}

#[test]
fn no_number_of_a_copy_comes_twice() {
    let document = document();
    let patch = numbered(&typed(&document), ReplicaId(4)).unwrap();
    let mut now = apply(&patch, &document).unwrap();
    assert_eq!(now["spec"]["nextReplica"], json!(5));
    now["metadata"]["resourceVersion"] = json!("8");
    assert_eq!(apply(&patch, &now), None, "another controller was quicker");
    let error = numbered(&typed(&now), ReplicaId(4)).unwrap_err();
    assert_eq!(error, PatchError::NumberUsed { object: "pvc-1".into(), replica: ReplicaId(4), next: 5 });
    assert_eq!(apply(&numbered(&typed(&now), ReplicaId(5)).unwrap(), &now).unwrap()["spec"]["nextReplica"], json!(6));
}

#[test]
fn of_copies_let_go_those_without_an_object_are_forgotten() {
    let mut document = document();
    document["spec"]["dismissed"] = json!(["r3", "r4", "r12"]);
    let next = |existing: &[u32]| {
        let patch = dismissal(&typed(&document), ReplicaId(6), &ids(existing)).unwrap();
        apply(&patch, &document).unwrap()["spec"]["dismissed"].clone()
    };
    assert_eq!(next(&[0, 4, 6]), json!(["r4", "r6"]));
    assert_eq!(next(&[6]), json!(["r6"]));
    // What is left of their departures goes with the next change of the set.
    document["spec"]["dismissed"] = json!(["r4"]);
    let shrink = op(Change::Shrink { replica: ReplicaId(1), departure: LEFT, flap: FLAP });
    let now = apply(&record(&shrink, &typed(&document)).unwrap(), &document).unwrap();
    let left: Vec<_> = now["status"]["departures"].as_array().unwrap().iter().map(|d| d["replica"].clone()).collect();
    assert_eq!(left, ["r3", "r1"]);
}

#[test]
fn the_set_of_an_attached_volume_is_the_consumers() {
    let mut document = document();
    let attached = detached_shrink(&typed(&document), ReplicaId(1));
    assert_eq!(attached, Err(PatchError::Attached { object: "pvc-1".into() }));
    document["spec"]["attachment"] = json!({"epoch": 4});
    let patch = detached_shrink(&typed(&document), ReplicaId(1)).unwrap();
    assert_eq!(apply(&patch, &document).unwrap()["status"]["inSync"], json!(["r0", "r2"]));
    document["metadata"]["resourceVersion"] = json!("8");
    assert_eq!(apply(&patch, &document), None, "published meanwhile, perhaps");
    document["status"]["inSync"] = json!(["r1"]);
    let last = detached_shrink(&typed(&document), ReplicaId(1));
    assert_eq!(last, Err(PatchError::Empty { object: "pvc-1".into() }));
}

#[test]
fn a_volume_only_grows_and_only_as_it_was_seen() {
    let mut document = document();
    let patch = volume_size(&typed(&document), 2 << 30).unwrap();
    assert_eq!(apply(&patch, &document).unwrap()["spec"]["sizeBytes"], json!(2u64 << 30));
    let shrinks = PatchError::Shrinks { object: "pvc-1".into(), field: "spec.sizeBytes", from: 1 << 30, to: 1 << 29 };
    assert_eq!(volume_size(&typed(&document), 1 << 29), Err(shrinks));
    document["status"]["inSync"] = json!(["r0", "r1", "r2", "r3"]);
    document["metadata"]["resourceVersion"] = json!("8");
    assert_eq!(apply(&patch, &document), None, "a smaller copy may be in the set by now");
}

#[test]
fn a_partitions_wish_is_taken_back_as_far_as_it_was_not_fulfilled() {
    let document = |has: Value| {
        json!({
            "apiVersion": "csi.meshstor.io/v1alpha1", "kind": "MeshStorReplica",
            "metadata": {"name": "pvc-1-r0", "uid": "u2", "resourceVersion": "7"},
            "spec": {
                "volume": "pvc-1", "volumeID": VOLUME, "clusterID": CLUSTER, "replica": "r0", "node": "a", "drive": "d",
                "partitionBytes": 300, "role": "Member", "export": {"epoch": 0, "generation": 0}, "newer": true
            },
            "status": has
        })
    };
    let typed = |document: &Value| serde_json::from_value::<MeshStorReplica>(document.clone()).unwrap();
    let partly = document(json!({"partition": {"state": "Ready", "sizeBytes": 200}}));
    for bytes in [200, 250, 300, 400] {
        let patch = partition_size(&typed(&partly), bytes).unwrap();
        let now = apply(&patch, &partly).unwrap();
        assert_eq!((&now["spec"]["partitionBytes"], &now["spec"]["newer"]), (&json!(bytes), &json!(true)));
        let mut reported = partly.clone();
        reported["metadata"]["resourceVersion"] = json!("8");
        assert_eq!(apply(&patch, &reported), None, "it may have grown by now");
    }
    let shrinks = |from, to| PatchError::Shrinks { object: "pvc-1-r0".into(), field: "spec.partitionBytes", from, to };
    assert_eq!(partition_size(&typed(&partly), 199), Err(shrinks(200, 199)));
    assert_eq!(partition_size(&typed(&document(json!({}))), 299), Err(shrinks(300, 299)), "nobody knows what it has");
}
