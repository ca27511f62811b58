//! Automatic fail-over: what is done about a node that is gone, and about all those that only look like it.

use crate::world::*;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::{Api, Patch, PatchParams, PostParams};
use meshstor_controller::ControllerService;
use serde_json::{Value, json};
use std::time::Duration;

const TAINT: &str = "meshstor.io/unreachable";
/// Longer than a patience of 30 s, all questions and answers included.
const LONG: Duration = Duration::from_secs(120);

async fn make<K>(api: Api<K>, object: Value)
where
    K: kube::Resource<DynamicType = ()> + serde::Serialize + serde::de::DeserializeOwned + Clone + std::fmt::Debug,
{
    let object: K = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap();
}

/// Three nodes, a volume with copies on a and b that is attached to a, and a pod there that uses it.
async fn cluster() -> (World, ControllerService) {
    let world = World::new(&[("a", 50), ("b", 40), ("c", 30)]).await;
    let service = world.failing_over("c1", 30);
    for name in ["a", "b", "c"] {
        make::<Node>(world.api(), json!({"metadata": {"name": name}, "spec": {}})).await;
    }
    attached(&world, &service, "pvc-1").await;
    pod(&world, "db-0", &["pvc-1"], &[]).await;
    (world, service)
}

async fn attached(world: &World, service: &ControllerService, volume: &str) {
    create(service, volume, 1).await.unwrap();
    publish(service, volume, "a").await.unwrap();
    let driver = meshstor_api::DRIVER;
    let spec = json!({
        "csi": {"driver": driver, "volumeHandle": volume},
        "claimRef": {"namespace": "default", "name": format!("claim-{volume}")},
    });
    make::<PersistentVolume>(world.api(), json!({"metadata": {"name": format!("pv-{volume}")}, "spec": spec})).await;
    let source = json!({"persistentVolumeName": format!("pv-{volume}")});
    let spec = json!({"attacher": driver, "nodeName": "a", "source": source});
    make::<VolumeAttachment>(world.api(), json!({"metadata": {"name": format!("va-{volume}")}, "spec": spec})).await;
    let mut used =
        world.api::<Node>().get("a").await.unwrap().status.unwrap_or_default().volumes_in_use.unwrap_or_default();
    used.push(format!("kubernetes.io/csi/{driver}^{volume}"));
    let body = json!({"status": {"volumesInUse": used}});
    world.api::<Node>().patch_status("a", &PatchParams::default(), &Patch::Merge(&body)).await.unwrap();
}

async fn pod(world: &World, name: &str, volumes: &[&str], more: &[Value]) {
    let claims =
        volumes.iter().map(|v| json!({"name": v, "persistentVolumeClaim": {"claimName": format!("claim-{v}")}}));
    let volumes: Vec<Value> = claims.chain(more.iter().cloned()).collect();
    let spec = json!({"nodeName": "a", "containers": [{"name": "x"}], "volumes": volumes});
    let api = Api::<Pod>::namespaced(world.client.clone(), "default");
    make(api, json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec})).await;
}

fn has_pod(world: &World, name: &str) -> bool {
    world.store.get("pods", "default", name).is_some()
}

fn in_use(world: &World) -> usize {
    let node = world.store.get("nodes", "", "a").unwrap();
    node.pointer("/status/volumesInUse").and_then(Value::as_array).map_or(0, Vec::len)
}

fn marked(world: &World) -> bool {
    let node = world.store.get("nodes", "", "a").unwrap();
    let taints = node.pointer("/spec/taints").and_then(Value::as_array).cloned().unwrap_or_default();
    taints.iter().any(|taint| taint["key"] == TAINT && taint["effect"] == "NoSchedule")
}

fn untouched(world: &World) {
    assert_eq!(world.attachment("pvc-1"), (1, Some("a".into())));
    assert!(has_pod(world, "db-0") && !marked(world) && in_use(world) == 1);
}

#[tokio::test(start_paused = true)]
async fn the_volumes_of_a_node_that_is_gone_are_fenced_and_its_pods_released() {
    let (world, service) = cluster().await;
    world.vices("a", |vices| vices.dead = true);
    let begin = tokio::time::Instant::now();
    eventually("the pod is deleted and the volume may detach", || !has_pod(&world, "db-0") && in_use(&world) == 0)
        .await;
    // A heartbeat each 20 s, 30 s of patience, a question.
    assert!(begin.elapsed() < Duration::from_secs(35), "{:?}", begin.elapsed());
    assert!(marked(&world));
    assert_eq!(world.attachment("pvc-1"), (2, None));
    let fenced = world.replica("pvc-1-r1").unwrap()["status"]["fencedEpoch"].as_u64();
    assert_eq!(fenced, Some(2), "fenced before anything was released");
    assert_eq!(publish(&service, "pvc-1", "b").await.unwrap(), 3);
    // It is detached, and the node comes back, with nothing of the old epoch.
    world.store.force("volumeattachments", "", "va-pvc-1", None);
    world.vices("a", |vices| vices.dead = false);
    eventually("pods may come again", || !marked(&world)).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_released_before_a_copy_is_fenced() {
    let (world, _service) = cluster().await;
    world.vices("b", |vices| vices.never_fences = true);
    world.vices("a", |vices| vices.dead = true);
    tokio::time::sleep(LONG).await;
    assert_eq!(world.attachment("pvc-1"), (2, None));
    assert!(has_pod(&world, "db-0") && in_use(&world) == 1 && marked(&world));
    world.vices("b", |vices| vices.never_fences = false);
    eventually("the fence releases it", || !has_pod(&world, "db-0")).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_lost_the_api_server_only_is_left_alone() {
    let (world, _service) = cluster().await;
    world.vices("b", |vices| vices.sees_host = true);
    world.vices("a", |vices| vices.dead = true);
    tokio::time::sleep(Duration::from_secs(240)).await;
    untouched(&world);
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_kubelet_lives_is_left_alone() {
    let (world, _service) = cluster().await;
    let leases = Api::<Lease>::namespaced(world.client.clone(), "kube-node-lease");
    make(leases.clone(), json!({"metadata": {"name": "a", "namespace": "kube-node-lease"}, "spec": {}})).await;
    world.vices("a", |vices| vices.dead = true);
    for second in 0..12 {
        let body = json!({"spec": {"renewTime": format!("2026-01-01T00:{second:02}:00.000000Z")}});
        leases.patch("a", &PatchParams::default(), &Patch::Merge(&body)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    untouched(&world);
    eventually("without a lease it goes its way", || !has_pod(&world, "db-0")).await;
}

#[tokio::test(start_paused = true)]
async fn pods_with_foreign_volumes_stay_where_they_are() {
    let (world, _service) = cluster().await;
    pod(&world, "mixed", &["pvc-1"], &[json!({"name": "x", "nfs": {"server": "s", "path": "/"}})]).await;
    pod(&world, "foreign", &[], &[json!({"name": "x", "persistentVolumeClaim": {"claimName": "other"}})]).await;
    world.vices("a", |vices| vices.dead = true);
    eventually("the pod whose volumes are all ours", || !has_pod(&world, "db-0")).await;
    tokio::time::sleep(LONG).await;
    assert!(has_pod(&world, "mixed") && has_pod(&world, "foreign"));
    assert_eq!(in_use(&world), 1, "a pod still uses it");
}

#[tokio::test(start_paused = true)]
async fn when_many_nodes_look_gone_nothing_is_done() {
    let (world, _service) = cluster().await;
    world.vices("a", |vices| vices.dead = true);
    world.vices("c", |vices| vices.dead = true);
    tokio::time::sleep(LONG).await;
    untouched(&world);
}

#[tokio::test(start_paused = true)]
async fn a_volume_whose_only_complete_copy_is_there_waits() {
    let (world, service) = cluster().await;
    let mut request = create_request("pvc-one", 1);
    request.parameters = parameters(&[("replicaCount", "1")]);
    request.accessibility_requirements = near("a");
    create_with(&service, request).await.unwrap();
    publish(&service, "pvc-one", "a").await.unwrap();
    world.vices("a", |vices| vices.dead = true);
    eventually("the other one", || !has_pod(&world, "db-0")).await;
    tokio::time::sleep(LONG).await;
    assert_eq!(world.attachment("pvc-one"), (1, Some("a".into())));
}

#[tokio::test(start_paused = true)]
async fn two_controllers_delete_one_pod_once() {
    let (world, _service) = cluster().await;
    let _second = world.failing_over("c2", 30);
    world.vices("a", |vices| vices.dead = true);
    eventually("the pod is deleted", || !has_pod(&world, "db-0")).await;
    // The StatefulSet makes it anew, elsewhere.
    let spec = json!({"nodeName": "b", "containers": [{"name": "x"}]});
    let api = Api::<Pod>::namespaced(world.client.clone(), "default");
    make(api, json!({"metadata": {"name": "db-0", "namespace": "default"}, "spec": spec})).await;
    tokio::time::sleep(LONG).await;
    assert!(has_pod(&world, "db-0"), "the new pod was deleted");
    assert_eq!(world.attachment("pvc-1"), (2, None), "the epoch rose once");
}

#[tokio::test(start_paused = true)]
async fn without_the_switch_nothing_happens() {
    let world = World::new(&[("a", 50), ("b", 40), ("c", 30)]).await;
    let service = world.controller("c1");
    make::<Node>(world.api(), json!({"metadata": {"name": "a"}, "spec": {}})).await;
    attached(&world, &service, "pvc-1").await;
    pod(&world, "db-0", &["pvc-1"], &[]).await;
    world.vices("a", |vices| vices.dead = true);
    tokio::time::sleep(Duration::from_secs(300)).await;
    untouched(&world);
}
