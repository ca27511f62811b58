//! Only an intent destroys: DeleteVolume, deletions by hand, dead nodes.

use crate::world::*;
use meshstor_api::{MeshStorReplica, MeshStorVolume};
use serde_json::json;
use std::time::Duration;
use tonic::Code;

#[tokio::test(start_paused = true)]
async fn tombstones_name_exactly_what_may_be_wiped() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    world.vices("b", |vices| vices.never_wipes = true);
    let error = delete(&service, "pvc-1").await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    let sentence = "the removal of partitions is awaited: r1 on b";
    assert!(error.message().contains(sentence), "{}", error.message());
    let (volume, replica) = (world.volume("pvc-1").unwrap(), world.replica("pvc-1-r1").unwrap());
    assert_eq!(volume["spec"]["deletionRequested"]["by"], "csi.DeleteVolume");
    assert!(held(&volume) && held(&replica));
    let key: meshstor_kernel::id::VolumeId = replica["spec"]["volumeID"].as_str().unwrap().parse().unwrap();
    let key = meshstor_kernel::id::ReplicaKey { volume: key, replica: meshstor_kernel::id::ReplicaId(1) };
    assert_eq!(
        replica["spec"]["tombstone"],
        json!({
            "partitionUUID": key.partition_uuid().to_string(), "clusterID": volume["spec"]["clusterID"],
            "volumeID": volume["spec"]["volumeID"], "reason": "VolumeDeleted"
        })
    );
    let error = publish(&service, "pvc-1", "a").await.unwrap_err();
    assert!(error.message().contains("it is being deleted (spec.deletionRequested by csi.DeleteVolume"), "{error:?}");
    let error = create(&service, "pvc-1", 1).await.unwrap_err();
    assert_eq!(error.code(), Code::Aborted);
    world.vices("b", |vices| vices.never_wipes = false);
    eventually("it goes without a caller", || world.volume("pvc-1").is_none()).await;
    create(&service, "pvc-1", 1).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_deletion_by_hand_is_no_wish() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    publish(&service, "pvc-1", "a").await.unwrap();
    world.api::<MeshStorVolume>().delete("pvc-1", &Default::default()).await.unwrap();
    world.api::<MeshStorReplica>().delete("pvc-1-r0", &Default::default()).await.unwrap();
    eventually("the loop says so", || world.condition("pvc-1", "DeletedByHand").is_some()).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let condition = world.condition("pvc-1", "DeletedByHand").unwrap();
    assert!(condition.message.contains("data are kept and served"), "{condition:?}");
    let (volume, replica) = (world.volume("pvc-1").unwrap(), world.replica("pvc-1-r0").unwrap());
    assert!(held(&volume) && held(&replica) && replica["spec"].get("tombstone").is_none());
    // Served on: detach, attach elsewhere.
    unpublish(&service, "pvc-1", "a").await.unwrap();
    assert_eq!(publish(&service, "pvc-1", "b").await.unwrap(), 3);
    unpublish(&service, "pvc-1", "b").await.unwrap();
    delete(&service, "pvc-1").await.unwrap();
    assert_eq!(world.volume("pvc-1"), None);
}

#[tokio::test(start_paused = true)]
async fn a_dead_node_does_not_hold_a_deletion_up() {
    let world = World::new(&[("a", 50), ("b", 40), ("c", 30)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    world.vices("a", |vices| vices.dead = true);
    tokio::time::sleep(Duration::from_secs(90)).await;
    delete(&service, "pvc-1").await.unwrap();
    assert_eq!(world.volume("pvc-1"), None);
    let left = world.replica("pvc-1-r0").unwrap();
    assert_eq!(left["spec"]["tombstone"]["reason"], "VolumeDeleted");
    assert!(held(&left));
    assert_eq!(world.replica("pvc-1-r1"), None);
    // A new volume of the same name is another volume: the leftover's number is not its own.
    create(&service, "pvc-1", 1).await.unwrap();
    assert_eq!(world.copies("pvc-1"), [("r1".into(), "b".into()), ("r2".into(), "c".into())].into());
    world.vices("a", |vices| vices.dead = false);
    eventually("the node wipes when it returns", || world.replica("pvc-1-r0").is_none()).await;
    assert_eq!(world.volume("pvc-1").unwrap()["status"]["inSync"], json!(["r1", "r2"]));
}

#[tokio::test(start_paused = true)]
async fn a_crash_in_the_middle_is_finished_by_any_controller() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let first = world.idle_controller("c1").service();
    create(&first, "pvc-1", 1).await.unwrap();
    // The intent is recorded, and that is all that happened.
    let body = json!({"spec": {"deletionRequested": {"by": "csi.DeleteVolume", "at": "2026-01-01T00:00:00Z"}}});
    world.api::<MeshStorVolume>().patch("pvc-1", &Default::default(), &kube::api::Patch::Merge(&body)).await.unwrap();
    let _second = world.controller("c2");
    eventually("it goes", || world.volume("pvc-1").is_none() && world.replica("pvc-1-r1").is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn data_of_another_cluster_are_not_ours_to_delete() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    let mut foreign = world.volume("pvc-1").unwrap();
    foreign["metadata"] = json!({"name": "pvc-2", "finalizers": ["csi.meshstor.io/data"]});
    foreign["spec"]["clusterID"] = json!("99999999-2222-4333-8444-555555555555");
    write_by_hand(&world, foreign).await;
    for error in [delete(&service, "pvc-2").await.unwrap_err(), publish(&service, "pvc-2", "a").await.unwrap_err()] {
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message().contains("spec.clusterID is 99999999-"), "{}", error.message());
    }
}

/// Whoever comes first wins, and a volume is never attached and doomed at once (the oracle sees every write).
#[tokio::test(start_paused = true)]
async fn deletion_and_publication_race() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let (one, two) = (world.controller("c1"), world.controller("c2"));
    for round in 0..64u64 {
        let name = format!("pvc-{round}");
        let none = Duration::ZERO;
        world.store.faults().set_latency("c1", none, none);
        create(&one, &name, 1).await.unwrap();
        world.store.faults().set_latency("c1", Duration::from_millis(round % 8), none);
        world.store.faults().set_latency("c2", Duration::from_millis(round / 8), none);
        let (published, deleted) = tokio::join!(publish(&one, &name, "a"), delete(&two, &name));
        assert!(published.is_ok() != deleted.is_ok(), "{published:?} {deleted:?}");
    }
}

/// A creation that is slower than the deletion of what it makes leaves no reservation behind.
#[tokio::test(start_paused = true)]
async fn creation_and_deletion_race() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let (slow, quick) = (world.controller("c1"), world.controller("c2"));
    for round in 0..40u64 {
        let name = format!("pvc-{round}");
        world.store.faults().set_latency(
            "c1",
            Duration::from_millis(40 + round % 7),
            Duration::from_millis(round % 11),
        );
        let made = create(&slow, &name, 1);
        let ended = async {
            tokio::time::sleep(Duration::from_millis(200 + 17 * round)).await;
            delete(&quick, &name).await.unwrap();
        };
        let (made, ()) = tokio::join!(made, ended);
        if let Err(error) = made {
            assert_eq!(error.code(), Code::Aborted, "{error:?}");
        }
        // A call that began only after the deletion made a volume of its own.
        delete(&quick, &name).await.unwrap();
        let nothing_left = || world.store.list("meshstorreplicas").is_empty() && world.volume(&name).is_none();
        eventually("nothing is left", nothing_left).await;
    }
}
