//! Guards: which nodes a drain may empty, and which it has to wait for.

use crate::world::*;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, Patch, PatchParams, PostParams};
use meshstor_api::MeshStorVolume;
use meshstor_controller::{ControllerConfig, ControllerService, GuardConfig};
use serde_json::json;
use std::time::Duration;

const NAMESPACE: &str = "meshstor-system";

/// Three nodes of which a and b hold a volume that a uses; the Deployment that guards belong to.
async fn cluster() -> (World, ControllerService) {
    let world = World::new(&[("a", 50), ("b", 40), ("c", 3)]).await;
    for name in ["a", "b", "c"] {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": name}, "spec": {}})).unwrap();
        world.api::<Node>().create(&PostParams::default(), &node).await.unwrap();
    }
    let owner = json!({"metadata": {"name": "meshstor-controller", "namespace": NAMESPACE}});
    let api: Api<Deployment> = Api::namespaced(world.client.clone(), NAMESPACE);
    api.create(&PostParams::default(), &serde_json::from_value(owner).unwrap()).await.unwrap();
    let service = guarding(&world, "c1");
    create(&service, "pvc-1", 1).await.unwrap();
    publish(&service, "pvc-1", "a").await.unwrap();
    (world, service)
}

fn guarding(world: &World, name: &str) -> ControllerService {
    let guard = GuardConfig {
        namespace: NAMESPACE.into(),
        image: "meshstor:1".into(),
        pull_policy: "Never".into(),
        pull_secrets: vec!["secret".into()],
        owner: "meshstor-controller".into(),
    };
    world.running(name, ControllerConfig { guard: Some(guard), ..ControllerConfig::default() })
}

async fn cordon(world: &World, node: &str, cordoned: bool) {
    let body = json!({"spec": {"unschedulable": cordoned}});
    world.api::<Node>().patch(node, &PatchParams::default(), &Patch::Merge(&body)).await.unwrap();
}

fn stay(world: &World, node: &str) -> Option<i64> {
    let budget = world.store.get("poddisruptionbudgets", NAMESPACE, &format!("meshstor-guard-{node}"))?;
    budget.pointer("/spec/minAvailable")?.as_i64()
}

fn stays(world: &World) -> [Option<i64>; 3] {
    ["a", "b", "c"].map(|node| stay(world, node))
}

/// What was told of a node for this reason.
async fn notes(world: &World, reason: &str) -> Vec<String> {
    let api: Api<Event> = Api::all(world.client.clone());
    let events = api.list(&Default::default()).await.unwrap().items;
    let told = events.into_iter().filter(|event| event.reason.as_deref() == Some(reason));
    let told = told.filter(|event| event.regarding.as_ref().is_some_and(|r| r.kind.as_deref() == Some("Node")));
    told.filter_map(|event| event.note).collect()
}

async fn record(world: &World, in_sync: &[&str]) {
    world.merge_status::<MeshStorVolume>("pvc-1", &json!({"status": {"inSync": in_sync}})).await;
}

/// Longer than a look, a drain's own repetition included.
async fn a_while() {
    tokio::time::sleep(Duration::from_secs(20)).await;
}

#[tokio::test(start_paused = true)]
async fn every_node_has_a_guard_that_may_not_be_evicted() {
    let (world, _service) = cluster().await;
    eventually("budgets", || stays(&world) == [Some(1); 3]).await;
    let guard = || world.store.get("pods", NAMESPACE, "meshstor-guard-b");
    eventually("a guard", || guard().is_some()).await;
    let guard = guard().unwrap();
    assert_eq!(guard["spec"]["nodeName"], "b");
    assert_eq!(guard["spec"]["imagePullSecrets"], json!([{"name": "secret"}]));
    let owner = &guard["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["kind"], &owner["controller"]), (&json!("Deployment"), &json!(true)), "drain refuses orphans");
    let budget = world.store.get("poddisruptionbudgets", NAMESPACE, "meshstor-guard-b").unwrap();
    assert_eq!(budget["spec"]["selector"]["matchLabels"]["csi.meshstor.io/guards"], "b");
    assert_eq!(guard["metadata"]["labels"]["csi.meshstor.io/guards"], "b");
}

#[tokio::test(start_paused = true)]
async fn two_nodes_do_not_go_on_the_strength_of_each_others_copies() {
    let (world, _service) = cluster().await;
    eventually("budgets", || stays(&world) == [Some(1); 3]).await;
    cordon(&world, "a", true).await;
    eventually("a may go", || stays(&world) == [Some(0), Some(1), Some(1)]).await;
    cordon(&world, "b", true).await;
    a_while().await;
    assert_eq!(stays(&world), [Some(0), Some(1), Some(1)]);
    let note = "volume pvc-1 (used on a) has its other complete copies on nodes that are away or may go at any time: a";
    assert_eq!(notes(&world, "DrainWaits").await, [note]);
    cordon(&world, "a", false).await;
    eventually("a is back, b may go", || stays(&world) == [Some(1), Some(0), Some(1)]).await;
    cordon(&world, "b", false).await;
    eventually("all are back", || stays(&world) == [Some(1); 3]).await;
}

#[tokio::test(start_paused = true)]
async fn the_last_complete_copy_stays_until_there_is_another() {
    let (world, _service) = cluster().await;
    record(&world, &["r0"]).await;
    let holder = world.copies("pvc-1")["r0"].clone();
    cordon(&world, &holder, true).await;
    a_while().await;
    assert_eq!(stay(&world, &holder), Some(1));
    assert_eq!(notes(&world, "DrainWaits").await, ["volume pvc-1 (used on a) has no other complete copy"]);
    record(&world, &["r0", "r1"]).await;
    eventually("it may go", || stay(&world, &holder) == Some(0)).await;
    assert_eq!(notes(&world, "DrainAllowed").await.len(), 1);
}

/// Cordoned in the morning, drained in the evening.
#[tokio::test(start_paused = true)]
async fn leave_is_taken_back_while_the_guard_stands() {
    let (world, _service) = cluster().await;
    eventually("budgets", || stays(&world) == [Some(1); 3]).await;
    let holder = world.copies("pvc-1")["r0"].clone();
    cordon(&world, &holder, true).await;
    eventually("it may go", || stay(&world, &holder) == Some(0)).await;
    record(&world, &["r0"]).await;
    eventually("it may not any more", || stay(&world, &holder) == Some(1)).await;
    assert_eq!(notes(&world, "DrainWaits").await, ["volume pvc-1 (used on a) has no other complete copy"]);
    record(&world, &["r0", "r1"]).await;
    eventually("it may go again", || stay(&world, &holder) == Some(0)).await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_is_no_other_copy() {
    let (world, _service) = cluster().await;
    eventually("budgets", || stays(&world) == [Some(1); 3]).await;
    world.vices("b", |vices| vices.dead = true);
    tokio::time::sleep(Duration::from_secs(90)).await;
    cordon(&world, "a", true).await;
    a_while().await;
    assert_eq!(stay(&world, "a"), Some(1));
    world.vices("b", |vices| vices.dead = false);
    eventually("a may go", || stay(&world, "a") == Some(0)).await;
}

#[tokio::test(start_paused = true)]
async fn two_controllers_let_one_of_two_nodes_go() {
    for latency in [0, 3, 17, 60] {
        let (world, _one) = cluster().await;
        let _two = guarding(&world, "c2");
        world.store.faults().set_latency("c2", Duration::from_millis(latency), Duration::from_millis(5));
        eventually("budgets", || stays(&world) == [Some(1); 3]).await;
        tokio::join!(cordon(&world, "a", true), cordon(&world, "b", true));
        eventually("one may go", || stays(&world).contains(&Some(0))).await;
        a_while().await;
        let gone = stays(&world).iter().filter(|stay| **stay == Some(0)).count();
        assert_eq!(gone, 1, "{:?}", stays(&world));
    }
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_was_evicted_comes_back_with_its_node() {
    let (world, _service) = cluster().await;
    let guard = || world.store.get("pods", NAMESPACE, "meshstor-guard-c");
    eventually("a guard", || guard().is_some()).await;
    cordon(&world, "c", true).await;
    eventually("c may go", || stay(&world, "c") == Some(0)).await;
    let api: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(world.client.clone(), NAMESPACE);
    api.delete("meshstor-guard-c", &Default::default()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(90)).await;
    assert!(guard().is_none(), "a drained node is left alone");
    cordon(&world, "c", false).await;
    eventually("it is back", || guard().is_some() && stay(&world, "c") == Some(1)).await;
}

#[tokio::test(start_paused = true)]
async fn guard_and_budget_go_with_a_node_that_is_forgotten() {
    let (world, _service) = cluster().await;
    let guard = || world.store.get("pods", NAMESPACE, "meshstor-guard-c");
    eventually("a guard", || guard().is_some() && stay(&world, "c") == Some(1)).await;
    world.vices("c", |vices| vices.dead = true);
    world.api::<meshstor_api::MeshStorNode>().delete("c", &Default::default()).await.unwrap();
    eventually("both are gone", || guard().is_none() && stay(&world, "c").is_none()).await;
    assert_eq!(stays(&world), [Some(1), Some(1), None]);
}
