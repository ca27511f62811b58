//! Repair as the API server sees it: who is replaced and when, what becomes of the loser, moves asked for and moves to
//! the pod, with controllers that die. The consumer's part, changes of the set, is played by the tests.

use crate::repair::{FLAP, record};
use crate::world::*;
use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use meshstor_api::{MeshStorReplica, MeshStorVolume};
use meshstor_kernel::id::ReplicaId;
use meshstor_plan::record::{Change, DepartureRecord};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Copies on a and b, c has room; each node is a machine of the cluster, too.
async fn cluster() -> World {
    let world = World::new(&[("a", 50), ("b", 40), ("c", 30)]).await;
    for name in ["a", "b", "c"] {
        let mut node = Node::default();
        node.metadata.name = Some(name.into());
        world.api::<Node>().create(&PostParams::default(), &node).await.unwrap();
    }
    world
}

async fn shrink(world: &World, replica: u32) {
    let departure = DepartureRecord { epoch: 1, generation: 0, events: 9 };
    record(world, "pvc-1", Change::Shrink { replica: ReplicaId(replica), departure, flap: FLAP }).await;
}

async fn grow(world: &World, replica: u32) {
    record(world, "pvc-1", Change::Grow { replica: ReplicaId(replica) }).await;
}

/// The consumer begins.
async fn activate(world: &World) {
    let in_sync = world.volume("pvc-1").unwrap()["status"]["inSync"].as_array().unwrap().clone();
    let in_sync = in_sync.iter().map(|id| id.as_str().unwrap().parse().unwrap()).collect();
    record(world, "pvc-1", Change::Activate { in_sync, departures: BTreeMap::new(), flaps: BTreeMap::new() }).await;
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

fn on(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(id, node)| (id.to_string(), node.to_string())).collect()
}

fn both() -> BTreeMap<String, String> {
    on(&[("r0", "a"), ("r1", "b")])
}

async fn retire(world: &World, replica: &str) {
    let patch = Patch::Merge(json!({"spec": {"role": "Retiring"}}));
    world.api::<MeshStorReplica>().patch(replica, &PatchParams::default(), &patch).await.unwrap();
}

/// A volume on a and b, used on a, whose copy on b is out of the set and whose node is dead.
async fn degraded(world: &World, service: &meshstor_controller::ControllerService) {
    create(service, "pvc-1", 1).await.unwrap();
    publish(service, "pvc-1", "a").await.unwrap();
    world.vices("b", |vices| vices.dead = true);
    shrink(world, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_copy_is_replaced_once_after_its_time_and_wiped_when_its_node_returns() {
    let world = cluster().await;
    let service = world.controller("c1");
    let _second = world.controller("c2");
    degraded(&world, &service).await;
    pass(880).await;
    assert_eq!(world.copies("pvc-1"), both(), "not yet");
    let missing = &world.replica("pvc-1-r1").unwrap()["status"]["conditions"];
    assert!(missing.as_array().unwrap().iter().any(|c| c["type"] == "Missing" && c["reason"] == "NodeSilent"));
    let three = on(&[("r0", "a"), ("r1", "b"), ("r2", "c")]);
    eventually("one more", || world.copies("pvc-1") == three).await;
    pass(400).await;
    assert_eq!(world.copies("pvc-1"), three, "one, however long it takes, and the old one may still come back");
    assert_eq!(world.condition("pvc-1", "Repair").unwrap().reason, "Replacing");
    grow(&world, 2).await;
    eventually("the old one is let go", || world.copies("pvc-1") == on(&[("r0", "a"), ("r2", "c")])).await;
    let volume = world.volume("pvc-1").unwrap();
    assert_eq!(volume["spec"]["dismissed"], json!(["r1"]));
    let tombstone = &world.replica("pvc-1-r1").unwrap()["spec"]["tombstone"];
    assert_eq!((&tombstone["reason"], &tombstone["volumeID"]), (&json!("Dismissed"), &volume["spec"]["volumeID"]));
    world.vices("b", |vices| vices.dead = false);
    eventually("wiped", || world.replica("pvc-1-r1").is_none()).await;
    pass(400).await;
    assert_eq!(world.copies("pvc-1"), on(&[("r0", "a"), ("r2", "c")]));
    assert_eq!(world.condition("pvc-1", "Repair").unwrap().status, "False");
}

#[tokio::test(start_paused = true)]
async fn a_node_taken_out_of_the_cluster_is_not_waited_for() {
    let world = cluster().await;
    let service = world.controller("c1");
    degraded(&world, &service).await;
    world.api::<Node>().delete("b", &DeleteParams::default()).await.unwrap();
    eventually("replaced", || world.copies("pvc-1").len() == 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_object_that_is_gone_says_nothing_while_the_agent_speaks() {
    let world = cluster().await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    publish(&service, "pvc-1", "a").await.unwrap();
    shrink(&world, 1).await;
    world.api::<Node>().delete("b", &DeleteParams::default()).await.unwrap();
    pass(1500).await;
    assert_eq!(world.copies("pvc-1"), both(), "reachable, or being copied to: not replaced");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_there_meanwhile_has_all_its_time_again() {
    let world = cluster().await;
    let service = world.controller("c1");
    degraded(&world, &service).await;
    for _ in 0..5 {
        pass(700).await;
        world.vices("b", |vices| vices.dead = false);
        pass(30).await;
        world.vices("b", |vices| vices.dead = true);
    }
    assert_eq!(world.copies("pvc-1"), both());
    // The same with nobody to see it: the node's own sign of life moves the clock on.
    pass(700).await;
    world.store.faults().set_link("c1", meshstor_memstore::Link::Hang);
    world.vices("b", |vices| vices.dead = false);
    pass(30).await;
    world.vices("b", |vices| vices.dead = true);
    pass(100).await;
    world.store.faults().set_link("c1", meshstor_memstore::Link::Up);
    pass(500).await;
    assert_eq!(world.copies("pvc-1"), both());
}

#[tokio::test(start_paused = true)]
async fn a_drive_whose_data_are_gone_is_not_waited_for() {
    let world = cluster().await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    publish(&service, "pvc-1", "a").await.unwrap();
    shrink(&world, 1).await;
    let said = json!({"status": {"conditions": [{
        "type": "Ready", "status": "False", "reason": "DataMissing", "message": "m", "lastTransitionTime": "t"}]}});
    world.merge_status::<MeshStorReplica>("pvc-1-r1", &said).await;
    eventually("replaced", || world.copies("pvc-1").len() == 3).await;
}

#[tokio::test(start_paused = true)]
async fn the_old_one_wins_when_it_is_back_first() {
    let world = cluster().await;
    let service = world.controller("c1");
    degraded(&world, &service).await;
    pass(1000).await;
    assert_eq!(world.copies("pvc-1").len(), 3);
    world.vices("b", |vices| vices.dead = false);
    pass(60).await;
    assert_eq!(world.copies("pvc-1").len(), 3, "neither is in sync");
    grow(&world, 1).await;
    eventually("the new one is let go and wiped", || world.replica("pvc-1-r2").is_none()).await;
    pass(400).await;
    assert_eq!(world.copies("pvc-1"), both());
    assert_eq!(world.volume("pvc-1").unwrap()["spec"]["dismissed"], json!(["r2"]));
}

#[tokio::test(start_paused = true)]
async fn an_operator_moves_a_copy_and_numbers_are_never_used_twice() {
    let world = cluster().await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    publish(&service, "pvc-1", "a").await.unwrap();
    retire(&world, "pvc-1-r1").await;
    eventually("its successor", || world.copies("pvc-1").get("r2").is_some_and(|node| node == "c")).await;
    pass(400).await;
    assert!(world.replica("pvc-1-r1").unwrap()["spec"].get("tombstone").is_none(), "it is in the set");
    assert_eq!(world.condition("pvc-1", "Repair").unwrap().reason, "Moving");
    grow(&world, 2).await;
    pass(400).await;
    assert_eq!(world.copies("pvc-1").len(), 3, "the set is the consumer's");
    shrink(&world, 1).await;
    eventually("gone", || world.replica("pvc-1-r1").is_none()).await;
    // And back again, detached half way.
    retire(&world, "pvc-1-r2").await;
    eventually("its successor", || world.copies("pvc-1").get("r3").is_some_and(|node| node == "b")).await;
    grow(&world, 3).await;
    unpublish(&service, "pvc-1", "a").await.unwrap();
    eventually("gone", || world.replica("pvc-1-r2").is_none()).await;
    assert_eq!(world.volume("pvc-1").unwrap()["status"]["inSync"], json!(["r0", "r3"]));
    delete(&service, "pvc-1").await.unwrap();
    assert!(world.store.list("meshstorreplicas").is_empty());
}

#[tokio::test(start_paused = true)]
async fn without_room_everything_stays_and_says_so() {
    let world = cluster().await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 35).await.unwrap();
    publish(&service, "pvc-1", "a").await.unwrap();
    retire(&world, "pvc-1-r1").await;
    eventually("said", || world.condition("pvc-1", "Repair").is_some_and(|c| c.reason == "NoRoom")).await;
    assert!(world.condition("pvc-1", "Repair").unwrap().message.contains("c drive d-c has no free extent"));
    pass(600).await;
    assert_eq!(world.copies("pvc-1"), both());
    // The operator thinks again.
    let patch = Patch::Merge(json!({"spec": {"role": "Member"}}));
    world.api::<MeshStorReplica>().patch("pvc-1-r1", &PatchParams::default(), &patch).await.unwrap();
    eventually("quiet", || world.condition("pvc-1", "Repair").is_some_and(|c| c.status == "False")).await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_reservation_is_made_elsewhere() {
    let world = cluster().await;
    world.add_node("d", 20).await;
    world.vices("c", |vices| vices.refuses = true);
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    publish(&service, "pvc-1", "a").await.unwrap();
    retire(&world, "pvc-1-r1").await;
    eventually("on d", || world.copies("pvc-1").values().any(|node| node == "d")).await;
    pass(600).await;
    assert_eq!(world.copies("pvc-1").len(), 3);
}

/// Runs repair with a controller that is killed after each single change, its answer lost.
async fn with_mortal_controllers(world: &World, seconds: u64, mut done: impl FnMut(&World) -> bool) -> u32 {
    let begun = Instant::now();
    for life in 0.. {
        let name = format!("mortal-{life}");
        let controller = world.idle_controller(&name);
        let running = tokio::spawn(async move { controller.run(std::future::pending()).await });
        while world.changes_by(&name) == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if done(world) {
                return life;
            }
            assert!(begun.elapsed().as_secs() < seconds, "{:?}", world.copies("pvc-1"));
        }
        running.abort();
    }
    0
}

#[tokio::test(start_paused = true)]
async fn controllers_that_die_after_each_change_repair_as_well() {
    let world = cluster().await;
    let service = world.idle_controller("c1").service();
    degraded(&world, &service).await;
    let lives = with_mortal_controllers(&world, 1500, |world| world.copies("pvc-1").len() == 3).await;
    assert!(lives >= 2, "{lives}");
    with_mortal_controllers(&world, 1600, |world| {
        world.replica("pvc-1-r2").unwrap()["status"]["export"]["ready"] == true
    })
    .await;
    grow(&world, 2).await;
    world.vices("b", |vices| vices.dead = false);
    let lives = with_mortal_controllers(&world, 1500, |world| world.replica("pvc-1-r1").is_none()).await;
    assert!(lives >= 3, "marked, dismissed, buried: {lives}");
    assert_eq!(world.copies("pvc-1"), on(&[("r0", "a"), ("r2", "c")]));
}

#[tokio::test(start_paused = true)]
async fn one_copy_follows_its_pod_after_a_while_and_not_one_that_moves_on() {
    let world = cluster().await;
    let service = world.controller("c1");
    let mut request = create_request("pvc-1", 1);
    request.parameters = parameters(&[("replicaCount", "1"), ("relocationDelay", "300")]);
    create_with(&service, request).await.unwrap();
    let activate = async || activate(&world).await;
    publish(&service, "pvc-1", "b").await.unwrap();
    pass(900).await;
    assert_eq!(world.copies("pvc-1"), on(&[("r0", "a")]), "not in use");
    activate().await;
    eventually("a copy on b", || world.copies("pvc-1") == on(&[("r0", "a"), ("r1", "b")])).await;
    let old = &world.replica("pvc-1-r0").unwrap()["spec"];
    assert_eq!(
        (&old["role"], &old["moveTo"], &old["retiredBy"]),
        (&json!("Retiring"), &json!("b"), &json!("Relocation"))
    );
    // The pod moves on before the copy is whole.
    unpublish(&service, "pvc-1", "b").await.unwrap();
    publish(&service, "pvc-1", "c").await.unwrap();
    activate().await;
    eventually("only the old one", || world.replica("pvc-1-r1").is_none()).await;
    assert_eq!(world.replica("pvc-1-r0").unwrap()["spec"]["role"], "Member");
    pass(250).await;
    assert_eq!(world.copies("pvc-1"), on(&[("r0", "a")]), "its stay begins anew");
    eventually("a copy on c", || world.copies("pvc-1") == on(&[("r0", "a"), ("r2", "c")])).await;
    grow(&world, 2).await;
    let stored = world.api::<MeshStorVolume>().get("pvc-1").await.unwrap();
    let epoch = stored.spec.attachment.epoch;
    let departure = DepartureRecord { epoch, generation: 0, events: 9 };
    record(&world, "pvc-1", Change::Shrink { replica: ReplicaId(0), departure, flap: FLAP }).await;
    eventually("moved", || world.replica("pvc-1-r0").is_none()).await;
    pass(400).await;
    assert_eq!(world.copies("pvc-1"), on(&[("r2", "c")]));
}

#[tokio::test(start_paused = true)]
async fn a_volume_deleted_in_the_middle_leaves_nothing() {
    let world = cluster().await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    publish(&service, "pvc-1", "a").await.unwrap();
    retire(&world, "pvc-1-r1").await;
    eventually("under way", || world.copies("pvc-1").len() == 3).await;
    unpublish(&service, "pvc-1", "a").await.unwrap();
    delete(&service, "pvc-1").await.unwrap();
    pass(60).await;
    assert!(world.store.list("meshstorreplicas").is_empty());
}

/// A volume with a zone for each copy, on a (z1) and b (z2), used on a.
async fn spread(nodes: &[(&str, u64)], zones: &[(&str, &str)]) -> (World, meshstor_controller::ControllerService) {
    let world = World::new(nodes).await;
    world.zones(zones).await;
    let service = world.controller("c1");
    let mut request = create_request("pvc-1", 1);
    request.parameters = parameters(&[("topologySpread", "zone"), ("memberMissingTimeout", "60")]);
    create_with(&service, request).await.unwrap();
    assert_eq!(world.copies("pvc-1"), both());
    (world, service)
}

#[tokio::test(start_paused = true)]
async fn a_lost_copy_is_replaced_in_its_own_zone_and_not_beside_another_one() {
    let nodes = [("a", 50), ("b", 40), ("c", 30), ("d", 20)];
    let (world, service) = spread(&nodes, &[("a", "z1"), ("b", "z2"), ("c", "z1"), ("d", "z2")]).await;
    publish(&service, "pvc-1", "a").await.unwrap();
    world.vices("b", |vices| vices.dead = true);
    shrink(&world, 1).await;
    pass(60).await;
    eventually("one more", || world.copies("pvc-1").len() == 3).await;
    assert_eq!(world.copies("pvc-1")["r2"], "d", "c has more room, in the zone of a");
}

#[tokio::test(start_paused = true)]
async fn without_a_zone_for_it_a_lost_copy_is_waited_for_and_the_volume_says_so() {
    let (world, service) = spread(&[("a", 50), ("b", 40), ("c", 30)], &[("a", "z1"), ("b", "z2"), ("c", "z1")]).await;
    publish(&service, "pvc-1", "a").await.unwrap();
    world.vices("b", |vices| vices.dead = true);
    shrink(&world, 1).await;
    pass(60).await;
    let repair = || world.condition("pvc-1", "Repair").map(|c| (c.reason, c.message));
    eventually("it says so", || repair().is_some_and(|(reason, _)| reason == "NoRoom")).await;
    let (_, message) = repair().unwrap();
    assert!(message.contains("c is in zone z1, which holds a copy of it"), "{message}");
    assert_eq!(world.copies("pvc-1"), both());
}

#[tokio::test(start_paused = true)]
async fn the_copy_that_follows_the_pod_leaves_the_pods_own_zone() {
    let nodes = [("a", 50), ("b", 40), ("c", 30)];
    let (world, service) = spread(&nodes, &[("a", "z1"), ("b", "z2"), ("c", "z1")]).await;
    publish(&service, "pvc-1", "c").await.unwrap();
    activate(&world).await;
    pass(301).await;
    eventually("a copy for c", || world.copies("pvc-1").values().any(|node| node == "c")).await;
    let retiring = |name: &str| world.replica(name).unwrap()["spec"]["role"] == "Retiring";
    assert!(retiring("pvc-1-r0") && !retiring("pvc-1-r1"), "r1 is the only one in z2");
}
