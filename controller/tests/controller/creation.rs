//! CreateVolume: idempotence, placement, reservations nobody accepts, and leaving nothing behind.

use crate::world::*;
use meshstor_api::node::MeshStorNodeDevice;
use meshstor_csi::proto::controller_server::Controller as _;
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Code;

#[tokio::test(start_paused = true)]
async fn a_volume_is_recorded_once_all_its_partitions_are_ready() {
    let world = World::new(&[("a", 10), ("b", 20), ("c", 5)]).await;
    let service = world.controller("c1");
    let volume = create(&service, "pvc-1", 1).await.unwrap();
    assert_eq!((volume.volume_id.as_str(), volume.capacity_bytes), ("pvc-1", GIB as i64));
    assert!(nodes_of(&volume).is_empty());
    assert_eq!(volume.accessible_topology[0].segments["csi.meshstor.io/fabric"], "default");
    let copies = world.copies("pvc-1");
    assert_eq!(copies.values().cloned().collect::<Vec<_>>(), ["b", "a"], "most free first: {copies:?}");
    let object = world.volume("pvc-1").unwrap();
    assert_eq!(object["status"]["inSync"], serde_json::json!(["r0", "r1"]));
    assert_eq!(object["status"]["recordOf"], object["metadata"]["uid"]);
    assert_eq!(world.attachment("pvc-1"), (0, None));
    assert!(held(&object) && held(&world.replica("pvc-1-r0").unwrap()));
    assert_eq!(object["metadata"]["labels"]["velero.io/exclude-from-backup"], "true");
    assert!(object["metadata"].get("ownerReferences").is_none());
}

#[tokio::test(start_paused = true)]
async fn the_same_name_is_the_same_volume() {
    let world = World::new(&[("a", 10), ("b", 10)]).await;
    let service = world.controller("c1");
    let first = create(&service, "pvc-1", 1).await.unwrap();
    let mut elsewhere = create_request("pvc-1", 1);
    elsewhere.accessibility_requirements = near("b");
    assert_eq!(create_with(&service, elsewhere).await.unwrap(), first);
    let larger = create(&service, "pvc-1", 2).await.unwrap_err();
    assert_eq!(larger.code(), Code::AlreadyExists);
    assert!(
        larger.message().contains("it has 1073741824 bytes, asked for are required_bytes 2147483648"),
        "{larger:?}"
    );
    let mut single = create_request("pvc-1", 1);
    single.parameters = parameters(&[("replicaCount", "1")]);
    let single = create_with(&service, single).await.unwrap_err();
    assert!(single.message().ends_with("replicaCount is 2, asked for is 1"), "{single:?}");
    let strange = create(&service, "A name with spaces", 1).await.unwrap();
    assert!(strange.volume_id.starts_with("msv-"), "{strange:?}");
    assert_eq!(create(&service, "A name with spaces", 1).await.unwrap(), strange);
}

#[tokio::test(start_paused = true)]
async fn two_controllers_make_one_volume() {
    let world = World::new(&[("a", 10), ("b", 10), ("c", 10), ("d", 10)]).await;
    let (one, two) = (world.controller("c1"), world.controller("c2"));
    for round in 0..10 {
        let name = format!("pvc-{round}");
        world.store.faults().set_latency("c2", Duration::from_millis(round * 7), Duration::from_millis(3));
        let (first, second) = tokio::join!(create(&one, &name, 1), create(&two, &name, 1));
        assert_eq!(first.unwrap(), second.unwrap());
        let copies = world.copies(&name);
        let nodes: std::collections::BTreeSet<&String> = copies.values().collect();
        assert_eq!((copies.len(), nodes.len()), (2, 2), "{copies:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reservation_nobody_accepts_is_placed_elsewhere() {
    let world = World::new(&[("a", 50), ("b", 40), ("c", 30)]).await;
    let service = world.controller("c1");
    world.vices("a", |vices| vices.ignores_reservations = true);
    world.vices("a", |vices| vices.never_wipes = true);
    let start = Instant::now();
    create(&service, "pvc-1", 1).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(7), "{:?}", start.elapsed());
    assert_eq!(world.copies("pvc-1"), [("r1".into(), "b".into()), ("r2".into(), "c".into())].into());
    let buried = world.replica("pvc-1-r0").unwrap();
    assert_eq!(buried["spec"]["tombstone"]["reason"], "ReservationRefused");
    assert_eq!(buried["spec"]["tombstone"]["volumeID"], buried["spec"]["volumeID"]);
    assert!(buried["metadata"].get("deletionTimestamp").is_some() && held(&buried));
    assert_eq!(world.volume("pvc-1").unwrap()["status"]["inSync"], serde_json::json!(["r1", "r2"]));
}

/// A busy cluster: every agent takes longer than the patience with one of them. Nothing would be won by beginning anew.
#[tokio::test(start_paused = true)]
async fn slow_nodes_are_waited_for_when_there_is_no_other_place() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let service = world.controller("c1");
    for node in ["a", "b"] {
        world.vices(node, |vices| vices.ignores_reservations = true);
    }
    let wake = async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        for node in ["a", "b"] {
            world.vices(node, |vices| vices.ignores_reservations = false);
        }
    };
    let (made, ()) = tokio::join!(create(&service, "pvc-1", 1), wake);
    made.unwrap();
    assert_eq!(world.copies("pvc-1"), [("r0".into(), "a".into()), ("r1".into(), "b".into())].into());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_never_answers_is_given_up_in_the_end() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let service = world.controller("c1");
    world.vices("a", |vices| vices.ignores_reservations = true);
    let start = Instant::now();
    let error = loop {
        match create(&service, "pvc-1", 1).await.unwrap_err() {
            error if error.code() == Code::DeadlineExceeded => {}
            error => break error,
        }
    };
    assert!(start.elapsed() >= Duration::from_secs(120) && start.elapsed() < Duration::from_secs(180), "{start:?}");
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().contains("a has not accepted the reservation r0 within 120 s"), "{}", error.message());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_says_no_is_not_waited_for() {
    let world = World::new(&[("a", 50), ("b", 40), ("c", 30)]).await;
    let service = world.controller("c1");
    world.vices("a", |vices| vices.refuses = true);
    let start = Instant::now();
    create(&service, "pvc-1", 1).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    eventually("the withdrawn reservation goes", || world.replica("pvc-1-r0").is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn without_room_there_is_a_sentence_and_nothing_is_left() {
    let world = World::new(&[("a", 50), ("b", 1), ("c", 50)]).await;
    let service = world.controller("c1");
    world.vices("c", |vices| vices.dead = true);
    tokio::time::sleep(Duration::from_secs(90)).await;
    let error = create(&service, "pvc-1", 2).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    for words in [
        "no room for volume pvc-1: 2 nodes with 2152726528 bytes free on one drive are needed, 1 found: ",
        "b drive d-b has no free extent of 2152726528 bytes, the largest is 1073741824",
        "c is silent: status.heartbeat is 90 s old, allowed are 60 s",
    ] {
        assert!(error.message().contains(words), "{}", error.message());
    }
    assert_eq!(world.volume("pvc-1"), None);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_finished_is_withdrawn() {
    let world = World::new(&[("a", 50), ("b", 50)]).await;
    let service = world.controller("c1");
    world.vices("b", |vices| vices.refuses = true);
    let error = create(&service, "pvc-1", 1).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().contains("b refused r1: no free extent (NoSpace)"), "{}", error.message());
    eventually("all is withdrawn", || world.volume("pvc-1").is_none() && world.copies("pvc-1").is_empty()).await;
    world.vices("b", |vices| vices.refuses = false);
    create(&service, "pvc-1", 1).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_local_copy_is_preferred_or_required() {
    let world = World::new(&[("a", 50), ("b", 40), ("c", 3)]).await;
    let service = world.controller("c1");
    let ask = |name: &str, gib, local: &str, node: &str| {
        let mut request = create_request(name, gib);
        request.parameters = parameters(&[("localCopy", local)]);
        request.accessibility_requirements = near(node);
        request
    };
    create_with(&service, ask("p1", 1, "preferred", "c")).await.unwrap();
    assert_eq!(world.copies("p1")["r0"], "c");
    create_with(&service, ask("p2", 10, "preferred", "c")).await.unwrap();
    assert!(!world.copies("p2").values().any(|node| node == "c"));
    let required = create_with(&service, ask("p3", 1, "required", "b")).await.unwrap();
    assert_eq!(nodes_of(&required), ["a".to_string(), "b".to_string()].into());
    let error = create_with(&service, ask("p4", 10, "required", "c")).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().contains("localCopy is required and c cannot hold a copy"), "{}", error.message());
}

#[tokio::test(start_paused = true)]
async fn a_call_is_held_to_its_deadline_and_the_work_goes_on() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let service = world.controller("c1");
    for node in ["a", "b"] {
        world.vices(node, |vices| vices.never_ready = true);
    }
    let start = Instant::now();
    let error = service.create_volume(within(10, create_request("pvc-1", 1))).await.unwrap_err();
    assert_eq!((error.code(), start.elapsed().as_secs()), (Code::DeadlineExceeded, 9));
    let sentence = "CreateVolume pvc-1: partitions are awaited: r0 on a (accepted), r1 on b (accepted)";
    assert!(error.message().starts_with(sentence), "{}", error.message());
    for node in ["a", "b"] {
        world.vices(node, |vices| vices.never_ready = false);
    }
    eventually("it is finished without a caller", || {
        world.volume("pvc-1").is_some_and(|volume| volume.pointer("/status/inSync").is_some())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_record_is_never_made_again() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    publish(&service, "pvc-1", "a").await.unwrap();
    unpublish(&service, "pvc-1", "a").await.unwrap();
    eventually("fenced", || world.replica("pvc-1-r0").unwrap()["status"]["fencedEpoch"] == 2).await;
    // Restored from a backup made before it was recorded: the copies know better.
    let mut old = world.volume("pvc-1").unwrap();
    let api = world.api::<meshstor_api::MeshStorVolume>();
    let body = serde_json::json!({"metadata": {"finalizers": null}});
    api.patch("pvc-1", &Default::default(), &kube::api::Patch::Merge(&body)).await.unwrap();
    api.delete("pvc-1", &Default::default()).await.unwrap();
    old["metadata"] = serde_json::json!({"name": "pvc-1", "finalizers": ["csi.meshstor.io/data"]});
    old["spec"]["attachment"] = serde_json::json!({"epoch": 0});
    old.as_object_mut().unwrap().remove("status");
    write_by_hand(&world, old).await;
    let error = create(&service, "pvc-1", 1).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(
        error.message().contains("status.inSync is absent in epoch 0, r0 has been fenced for epoch 2"),
        "{error:?}"
    );
    let error = publish(&service, "pvc-1", "a").await.unwrap_err();
    assert!(error.message().contains("rebuild it with: meshstor recover"), "{error:?}");
    eventually("the loop says so", || world.condition("pvc-1", "Ready").is_some_and(|c| c.reason == "RecordLost"))
        .await;
    assert!(world.volume("pvc-1").unwrap().pointer("/status/inSync").is_none());
}

/// K8, K11: whatever two controllers promise at the same time, the nodes give each byte once.
#[tokio::test(start_paused = true)]
async fn the_last_extent_is_given_to_one_of_two_volumes_at_most() {
    let world = World::new(&[("a", 10), ("b", 10)]).await;
    let (one, two) = (world.controller("c1"), world.controller("c2"));
    for node in ["a", "b"] {
        world.vices(node, |vices| vices.finite = true);
    }
    let mut both_lost = 0;
    for round in 0..20 {
        // Late by nothing, by less than a node's look, by more.
        world.store.faults().set_latency("c2", Duration::from_millis(round * 5), Duration::from_millis(7));
        let (x, y) = (format!("x-{round}"), format!("y-{round}"));
        let done = std::cell::Cell::new(false);
        let calls = async {
            let ends = tokio::join!(create(&one, &x, 8), create(&two, &y, 8));
            done.set(true);
            ends
        };
        let watch = async {
            while !done.get() {
                for node in ["a", "b"] {
                    assert!(world.taken(node) <= 10 * GIB, "{node} holds {} bytes", world.taken(node));
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        };
        let ((first, second), ()) = tokio::join!(calls, watch);
        let won: Vec<&str> =
            [(&x, &first), (&y, &second)].iter().filter(|(_, end)| end.is_ok()).map(|w| w.0.as_str()).collect();
        assert!(won.len() <= 1, "{first:?} {second:?}");
        both_lost += usize::from(won.is_empty());
        for error in [&first, &second].into_iter().filter_map(|end| end.as_ref().err()) {
            assert_eq!(error.code(), Code::ResourceExhausted, "{error:?}");
            let (message, least) = (error.message(), 8 * GIB + (5 << 20));
            assert!(message.contains(&format!("2 nodes with {least} bytes free on one drive are needed")), "{message}");
            let lacks = |node: &str| {
                message.contains(&format!("{node} drive d-{node} has no free extent of {least} bytes, the largest is"))
                    || message.contains(&format!("{node} refused r"))
            };
            assert!(lacks("a") || lacks("b"), "{message}");
        }
        for volume in won {
            delete(&one, volume).await.unwrap();
        }
        eventually("the nodes are empty again", || world.store.list("meshstorreplicas").is_empty()).await;
    }
    assert!(both_lost < 20, "somebody gets it as a rule");
    create(&two, "z", 8).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn copies_are_spread_over_zones_by_the_word_of_the_class() {
    let world = World::new(&[("a", 50), ("b", 40), ("c", 9), ("d", 60)]).await;
    world.zones(&[("a", "z1"), ("b", "z1"), ("c", "z2"), ("d", "")]).await;
    let service = world.controller("c1");
    let ask = |name: &str, gib, spread: &str, copies: &str| {
        let mut request = create_request(name, gib);
        request.parameters = parameters(&[("topologySpread", spread), ("replicaCount", copies)]);
        request
    };
    let nodes = |volume: &str| world.copies(volume).into_values().collect::<Vec<_>>();
    create_with(&service, ask("p1", 1, "zone", "2")).await.unwrap();
    assert_eq!(nodes("p1"), ["a", "c"]);
    assert_eq!(world.volume("p1").unwrap()["spec"]["topologySpread"], "zone");
    create_with(&service, ask("p2", 1, "none", "2")).await.unwrap();
    assert_eq!(nodes("p2"), ["d", "a"]);
    let mut near = ask("p3", 1, "zone", "2");
    near.accessibility_requirements = near_only("b");
    create_with(&service, near).await.unwrap();
    assert_eq!(nodes("p3"), ["b", "c"]);

    let few = create_with(&service, ask("p4", 1, "zone", "3")).await.unwrap_err();
    assert_eq!(few.code(), Code::ResourceExhausted);
    for words in [
        "topologySpread is zone: 3 zones with a node with 1078984704 bytes free on one drive are needed, 2 found: ",
        "b has room in zone z1",
        "d has no zone (its Node has no label topology.kubernetes.io/zone)",
    ] {
        assert!(few.message().contains(words), "{}", few.message());
    }
    assert_eq!(world.volume("p4"), None);
    create_with(&service, ask("p5", 1, "zonePreferred", "3")).await.unwrap();
    assert_eq!(nodes("p5"), ["d", "a", "c"]);
    create_with(&service, ask("p6", 10, "zonePreferred", "3")).await.unwrap();
    assert_eq!(nodes("p6"), ["d", "a", "b"], "c has no room for it");
    let other = create_with(&service, ask("p1", 1, "zonePreferred", "2")).await.unwrap_err();
    assert!(other.message().ends_with("topologySpread is zone, asked for is zonePreferred"), "{other:?}");
}

#[tokio::test(start_paused = true)]
async fn a_reservation_placed_again_keeps_to_the_zones() {
    let world = World::new(&[("a", 50), ("b", 40), ("c", 30), ("d", 20)]).await;
    world.zones(&[("a", "z1"), ("b", "z2"), ("c", "z1"), ("d", "z2")]).await;
    let service = world.controller("c1");
    world.vices("b", |vices| vices.refuses = true);
    let mut request = create_request("pvc-1", 1);
    request.parameters = parameters(&[("topologySpread", "zone")]);
    create_with(&service, request).await.unwrap();
    let nodes: Vec<String> = world.copies("pvc-1").into_values().collect();
    assert_eq!(nodes, ["a", "d"], "c has more room than d");
}

/// Immediate binding with `allowedTopologies`: where the pod will run is not known, any allowed node will do.
#[tokio::test(start_paused = true)]
async fn a_required_local_copy_goes_to_any_requisite_node_that_has_room() {
    let world = World::new(&[("a", 50), ("b", 40), ("c", 3)]).await;
    let service = world.controller("c1");
    let mut request = create_request("pvc-1", 10);
    request.parameters = parameters(&[("localCopy", "required")]);
    let both = vec![place("c"), place("b")];
    let topology = meshstor_csi::proto::TopologyRequirement { requisite: both.clone(), preferred: both };
    request.accessibility_requirements = Some(topology);
    let volume = create_with(&service, request).await.unwrap();
    assert_eq!(world.copies("pvc-1")["r0"], "b");
    assert!(nodes_of(&volume).contains("b"));
}

async fn sectors(world: &World, node: &str, bytes: u32) {
    world.merge_status::<MeshStorNodeDevice>(&format!("{node}-d"), &json!({"status": {"sectorSize": bytes}})).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_wish_all_drives_of_a_volume_have_one_sector_size_and_4096_comes_first() {
    let world = World::new(&[("a", 50), ("b", 40), ("c", 70), ("d", 60)]).await;
    for node in ["b", "c", "d"] {
        sectors(&world, node, 512).await;
    }
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    let nodes = |volume: &str| world.copies(volume).into_values().collect::<Vec<_>>();
    assert_eq!(
        (nodes("pvc-1"), &world.volume("pvc-1").unwrap()["spec"]["sectorSize"]),
        (vec!["c".into(), "d".into()], &json!(512))
    );
    // There is more room on the others.
    sectors(&world, "b", 4096).await;
    create(&service, "pvc-2", 1).await.unwrap();
    assert_eq!(
        (nodes("pvc-2"), &world.volume("pvc-2").unwrap()["spec"]["sectorSize"]),
        (vec!["a".into(), "b".into()], &json!(4096))
    );
    create(&service, "pvc-1", 1).await.unwrap();
    let mut request = create_request("pvc-1", 1);
    request.parameters = parameters(&[("sectorSize", "4096")]);
    let error = create_with(&service, request).await.unwrap_err();
    assert!(error.message().contains("sectorSize is 512, asked for is 4096"), "{error:?}");
}
