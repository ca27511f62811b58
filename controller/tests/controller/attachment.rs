//! ControllerPublish and Unpublish: who may have a volume, since when, and what each answer waits for.

use crate::world::*;
use meshstor_csi::proto::controller_server::Controller as _;
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Code;

#[tokio::test(start_paused = true)]
async fn create_publish_unpublish_delete() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    assert_eq!(publish(&service, "pvc-1", "a").await.unwrap(), 1);
    let object = world.volume("pvc-1").unwrap();
    assert_eq!(
        object["spec"]["attachment"],
        json!({
        "epoch": 1, "consumer": "a", "consumerBoot": "boot-a-1", "since": "2026-01-01T00:00:00Z"})
    );
    let export = &world.replica("pvc-1-r1").unwrap()["spec"]["export"];
    assert_eq!(*export, json!({"epoch": 1, "generation": 0, "consumer": "a"}));
    assert_eq!(list(&service).await, [("pvc-1".to_string(), vec!["a".to_string()])]);
    unpublish(&service, "pvc-1", "a").await.unwrap();
    assert_eq!(world.attachment("pvc-1"), (2, None));
    eventually("copies hear of it", || world.replica("pvc-1-r1").unwrap()["status"]["fencedEpoch"] == 2).await;
    assert_eq!(publish(&service, "pvc-1", "b").await.unwrap(), 3);
    unpublish(&service, "pvc-1", "b").await.unwrap();
    delete(&service, "pvc-1").await.unwrap();
    assert_eq!((world.volume("pvc-1"), world.replica("pvc-1-r0")), (None, None));
    delete(&service, "pvc-1").await.unwrap();
    unpublish(&service, "pvc-1", "b").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_hundred_publishes_are_one_epoch() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let (one, two) = (world.controller("c1"), world.controller("c2"));
    create(&one, "pvc-1", 1).await.unwrap();
    let calls = (0..100).map(|index| publish(if index % 2 == 0 { &one } else { &two }, "pvc-1", "a"));
    for epoch in futures::future::join_all(calls).await {
        assert_eq!(epoch.unwrap(), 1);
    }
    for _ in 0..10 {
        assert_eq!(publish(&one, "pvc-1", "a").await.unwrap(), 1);
    }
    assert_eq!(world.attachment("pvc-1"), (1, Some("a".into())));
}

#[tokio::test(start_paused = true)]
async fn publish_never_takes_over() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    publish(&service, "pvc-1", "a").await.unwrap();
    let error = publish(&service, "pvc-1", "b").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("it is published to node a, wanted is b"), "{}", error.message());
    unpublish(&service, "pvc-1", "b").await.unwrap();
    assert_eq!(world.attachment("pvc-1"), (1, Some("a".into())), "a late Unpublish of another node changes nothing");
    let error = delete(&service, "pvc-1").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("it is published to node a; it must be unpublished first"));
    assert!(world.volume("pvc-1").unwrap()["spec"].get("deletionRequested").is_none());
}

/// K3: external-attacher compares what ListVolumes says with its attachments every minute, and calls Publish again for
/// each that differs. One that is left of a former consumer must not get the volume back.
#[tokio::test(start_paused = true)]
async fn the_attachers_forced_sync_of_a_stale_attachment_changes_nothing() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let (one, two) = (world.controller("c1"), world.controller("c2"));
    create(&one, "pvc-1", 1).await.unwrap();
    publish(&one, "pvc-1", "a").await.unwrap();
    unpublish(&one, "pvc-1", "a").await.unwrap();
    let epoch = publish(&one, "pvc-1", "b").await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    // Both attachments say that they are attached; somebody keeps that of node a alive by hand.
    let attachments = [("a", true), ("b", true)];
    let (mut forced, before) = (0, world.changes_by("c1") + world.changes_by("c2"));
    for minute in 0..10 {
        let service = if minute % 2 == 0 { &one } else { &two };
        let published = list(service).await;
        assert_eq!(published, [("pvc-1".to_string(), vec!["b".to_string()])]);
        for (node, attached) in attachments {
            if attached != published[0].1.contains(&node.to_string()) {
                forced += 1;
                let error = publish(service, "pvc-1", node).await.unwrap_err();
                assert_eq!(error.code(), Code::FailedPrecondition);
                assert!(error.message().contains("it is published to node b"), "{}", error.message());
            }
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    assert_eq!((forced, world.attachment("pvc-1")), (10, (epoch, Some("b".into()))));
    assert_eq!(world.changes_by("c1") + world.changes_by("c2"), before, "nothing was written");
    // Once b has let go, the attachment of a is as good as any: it is asked for, and nobody else has the volume.
    unpublish(&one, "pvc-1", "b").await.unwrap();
    assert_eq!(publish(&two, "pvc-1", "a").await.unwrap(), epoch + 2);
}

#[tokio::test(start_paused = true)]
async fn unknown_volumes_and_nodes_are_named() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    for (volume, node, words) in [
        ("pvc-9", "a", "volume_id is \"pvc-9\": there is no such volume"),
        ("pvc-1?watch=1", "a", "there is no such volume"),
        ("pvc-1", "z", "node_id is \"z\": there is no MeshStorNode of that name"),
        ("pvc-1", "a?b", "there is no MeshStorNode of that name"),
    ] {
        let error = publish(&service, volume, node).await.unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
        assert!(error.message().contains(words), "{}", error.message());
    }
    unpublish(&service, "pvc-9", "a").await.unwrap();
    unpublish(&service, "No Such Name", "a").await.unwrap();
    unpublish(&service, "pvc-1", "z").await.unwrap();
    delete(&service, "No Such Name").await.unwrap();
    let mut readonly = publish_request("pvc-1", "a");
    readonly.readonly = true;
    let error = service.controller_publish_volume(within(15, readonly)).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test(start_paused = true)]
async fn publish_waits_for_one_copy_and_unpublish_for_none() {
    let world = World::new(&[("a", 50), ("b", 40), ("c", 1)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 5).await.unwrap();
    world.vices("a", |vices| vices.never_fences = true);
    assert_eq!(publish(&service, "pvc-1", "c").await.unwrap(), 1, "one fenced copy is enough");
    unpublish(&service, "pvc-1", "c").await.unwrap();
    world.vices("b", |vices| vices.never_fences = true);
    tokio::time::sleep(Duration::from_secs(1)).await;

    let start = Instant::now();
    let error = publish(&service, "pvc-1", "c").await.unwrap_err();
    assert_eq!((error.code(), start.elapsed().as_secs()), (Code::DeadlineExceeded, 14));
    for words in [
        "at least one in-sync copy fenced and exported for epoch 3 is awaited",
        "r0 on a is fenced for epoch 0",
        "r1 on b is fenced for epoch",
    ] {
        assert!(error.message().contains(words), "{}", error.message());
    }
    // The first call still waits; another one joins it and hears of the end at once.
    let waiting = publish(&service, "pvc-1", "c");
    let end = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let start = Instant::now();
        unpublish(&service, "pvc-1", "c").await.unwrap();
        assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
    };
    let (waited, ()) = tokio::join!(waiting, end);
    let error = waited.unwrap_err();
    assert_eq!(error.code(), Code::Aborted);
    assert!(error.message().contains("was unpublished from c while this call waited"), "{}", error.message());
    assert_eq!(world.attachment("pvc-1"), (4, None));
    world.vices("b", |vices| vices.never_fences = false);
    assert_eq!(publish(&service, "pvc-1", "a").await.unwrap(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_node_without_a_boot_id_is_waited_for() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    let node = meshstor_api::MeshStorNode::new("new", Default::default());
    world.api::<meshstor_api::MeshStorNode>().create(&Default::default(), &node).await.unwrap();
    let error = publish(&service, "pvc-1", "new").await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert!(error.message().contains("the boot id of node new is awaited"), "{}", error.message());
    assert_eq!(world.attachment("pvc-1"), (0, None));
    world.merge_status::<meshstor_api::MeshStorNode>("new", &json!({"status": {"bootID": "b"}})).await;
    assert_eq!(publish(&service, "pvc-1", "new").await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_went_back_in_time_is_not_published() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    publish(&service, "pvc-1", "a").await.unwrap();
    unpublish(&service, "pvc-1", "a").await.unwrap();
    eventually("all copies are fenced", || {
        ["r0", "r1"].iter().all(|id| world.replica(&format!("pvc-1-{id}")).unwrap()["status"]["fencedEpoch"] == 2)
    })
    .await;
    // etcd restored for the volume alone: a copy's node says what it has seen.
    world.merge_status::<meshstor_api::MeshStorReplica>("pvc-1-r0", &json!({"status": {"fencedEpoch": 9}})).await;
    let error = publish(&service, "pvc-1", "a").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("the drive has seen epoch 9, the record says 2"), "{}", error.message());
}

/// The same on an ordinary runtime with threads and real time.
#[test]
fn it_works_on_many_threads() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let world = World::new(&[("a", 50), ("b", 40)]).await;
        let service = world.controller("c1");
        let volumes: Vec<String> = (0..8).map(|index| format!("pvc-{index}")).collect();
        let cycles = volumes.iter().map(|volume| async {
            create(&service, volume, 1).await.unwrap();
            publish(&service, volume, "a").await.unwrap();
            unpublish(&service, volume, "a").await.unwrap();
            delete(&service, volume).await.unwrap();
        });
        futures::future::join_all(cycles).await;
        assert!(list(&service).await.is_empty());
    });
}
