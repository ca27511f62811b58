//! What the loop does without a call: new epochs after reboots, returns of departed copies, summaries; and what it does not.

use crate::world::*;
use kube::api::{Patch, PatchParams};
use meshstor_api::patch;
use meshstor_api::{MeshStorNode, MeshStorReplica, MeshStorVolume, convert};
use meshstor_kernel::id::ReplicaId;
use meshstor_plan::record::{Change, DepartureRecord, FlapRecord, RecordOp};
use meshstor_plan::wall::WallTime;
use serde_json::json;
use std::time::Duration;

/// A first departure.
pub const FLAP: FlapRecord = FlapRecord { count: 1, last: WallTime(0) };

/// What the consumer writes, by way of the record.
pub async fn record(world: &World, volume: &str, change: Change) {
    let stored = world.api::<MeshStorVolume>().get(volume).await.unwrap();
    let cluster = stored.spec.cluster_id.parse().unwrap();
    let replicas = world.api::<MeshStorReplica>().list(&Default::default()).await.unwrap();
    let record = convert::volume_record(&stored, &replicas.items, cluster).unwrap();
    let patch = patch::record(&RecordOp { expect: record.expect(), change }, &stored).unwrap();
    let patch = Patch::Json::<()>(patch);
    world.api::<MeshStorVolume>().patch_status(volume, &PatchParams::default(), &patch).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_rebooted_gets_a_new_epoch() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    publish(&service, "pvc-1", "a").await.unwrap();
    for boot in ["boot-a-1", ""] {
        world.merge_status::<MeshStorNode>("a", &json!({"status": {"bootID": boot}})).await;
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert_eq!(world.attachment("pvc-1"), (1, Some("a".into())), "boot id {boot:?}");
    }
    world.merge_status::<MeshStorNode>("a", &json!({"status": {"bootID": "boot-a-2"}})).await;
    eventually("a new epoch", || world.attachment("pvc-1") == (2, Some("a".into()))).await;
    assert_eq!(world.volume("pvc-1").unwrap()["spec"]["attachment"]["consumerBoot"], "boot-a-2");
    eventually("copies hear of it", || world.replica("pvc-1-r1").unwrap()["status"]["export"]["epoch"] == 2).await;
    assert_eq!(publish(&service, "pvc-1", "a").await.unwrap(), 2, "same consumer, same answer");
    assert_eq!(world.attachment("pvc-1").0, 2);
}

#[tokio::test(start_paused = true)]
async fn a_departed_copy_returns_through_a_new_generation() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    publish(&service, "pvc-1", "a").await.unwrap();
    let departure = DepartureRecord { epoch: 1, generation: 0, events: 9 };
    record(&world, "pvc-1", Change::Shrink { replica: ReplicaId(1), departure, flap: FLAP }).await;
    let generation = |id: &str| world.replica(&format!("pvc-1-{id}")).unwrap()["spec"]["export"]["generation"].as_u64();
    eventually("the departed copy is exported anew", || generation("r1") == Some(1)).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!((generation("r0"), generation("r1")), (Some(0), Some(1)), "once, and no other copy");
    record(&world, "pvc-1", Change::Grow { replica: ReplicaId(1) }).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(generation("r1"), Some(1));
    // A copy that left in an earlier epoch needs no new generation: the epoch itself is new.
    let departure = DepartureRecord { epoch: 1, generation: 1, events: 12 };
    record(&world, "pvc-1", Change::Shrink { replica: ReplicaId(1), departure, flap: FLAP }).await;
    unpublish(&service, "pvc-1", "a").await.unwrap();
    publish(&service, "pvc-1", "a").await.unwrap();
    eventually("epoch 3", || world.replica("pvc-1-r1").unwrap()["spec"]["export"]["epoch"] == 3).await;
    assert_eq!(generation("r1"), Some(0));
}

#[tokio::test(start_paused = true)]
async fn exports_follow_even_if_the_caller_died() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    let body = json!({"spec": {"attachment": {"epoch": 1, "consumer": "b", "consumerBoot": "boot-b-1"}}});
    world.api::<MeshStorVolume>().patch("pvc-1", &Default::default(), &Patch::Merge(&body)).await.unwrap();
    eventually("copies are exported", || world.replica("pvc-1-r0").unwrap()["status"]["export"]["epoch"] == 1).await;
}

#[tokio::test(start_paused = true)]
async fn the_summary_of_a_detached_volume() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    let reason = |reason: &'static str| {
        let world = &world;
        move || world.condition("pvc-1", "Ready").is_some_and(|condition| condition.reason == reason)
    };
    eventually("healthy", reason("Detached")).await;
    let ready = world.condition("pvc-1", "Ready").unwrap();
    assert_eq!((ready.status.as_str(), ready.message.as_str()), ("True", "not published to a node; in sync: r0, r1"));
    publish(&service, "pvc-1", "a").await.unwrap();
    let departure = DepartureRecord { epoch: 1, generation: 0, events: 9 };
    record(&world, "pvc-1", Change::Shrink { replica: ReplicaId(1), departure, flap: FLAP }).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(
        world.condition("pvc-1", "Ready").unwrap().reason,
        "Detached",
        "attached, the summary is the consumer's"
    );
    unpublish(&service, "pvc-1", "a").await.unwrap();
    eventually("degraded", reason("Degraded")).await;
    assert_eq!(world.condition("pvc-1", "Ready").unwrap().message, "not in sync: r1");
}

#[tokio::test(start_paused = true)]
async fn an_idle_volume_costs_no_write() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    create(&service, "pvc-2", 1).await.unwrap();
    publish(&service, "pvc-1", "a").await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let before = world.changes_by("c1");
    tokio::time::sleep(Duration::from_secs(900)).await;
    assert_eq!(world.changes_by("c1"), before);
}
