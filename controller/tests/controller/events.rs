//! Events where people look: claims, PersistentVolumes and pods hear of a volume's troubles, each once.

use crate::repair::{FLAP, record};
use crate::world::*;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, PostParams};
use meshstor_api::MeshStorVolume;
use meshstor_api::condition::{Condition, set};
use meshstor_kernel::id::ReplicaId;
use meshstor_memstore::{Fault, Outcome};
use meshstor_plan::record::{Change, DepartureRecord};
use serde_json::{Value, json};
use std::time::Duration;

const VOLUME: &str = "pvc-1";

/// What external-provisioner says with `--extra-create-metadata`.
pub fn request() -> meshstor_csi::proto::CreateVolumeRequest {
    let mut request = create_request(VOLUME, 1);
    request.parameters = parameters(&[
        ("csi.storage.k8s.io/pvc/name", "db"),
        ("csi.storage.k8s.io/pvc/namespace", "prod"),
        ("csi.storage.k8s.io/pv/name", VOLUME),
    ]);
    request
}

/// The claim, its PersistentVolume, and pods of its namespace.
async fn kubernetes(world: &World) {
    let claim = json!({"metadata": {"name": "db", "namespace": "prod"}, "spec": {"volumeName": VOLUME}});
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(world.client.clone(), "prod");
    let made = claims.create(&PostParams::default(), &serde_json::from_value(claim).unwrap()).await.unwrap();
    let volume = json!({
        "metadata": {"name": VOLUME},
        "spec": {
            "csi": {"driver": "io.meshstor.csi.mesh", "volumeHandle": VOLUME},
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "prod", "name": "db",
                         "uid": made.metadata.uid},
        },
    });
    let volumes: Api<PersistentVolume> = Api::all(world.client.clone());
    volumes.create(&PostParams::default(), &serde_json::from_value(volume).unwrap()).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "prod");
    for (name, node, claim) in [("db-0", "a", "db"), ("other", "a", "else"), ("old", "b", "db")] {
        let pod = json!({
            "metadata": {"name": name, "namespace": "prod"},
            "spec": {"nodeName": node, "containers": [{"name": "c"}],
                     "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]},
        });
        pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    }
}

/// Reports as the volume's consumer does.
async fn say(world: &World, status: bool, reason: &str, message: &str) {
    let stored = world.api::<MeshStorVolume>().get(VOLUME).await.unwrap();
    let mut list: Vec<Condition> = stored.status.unwrap_or_default().conditions;
    set(&mut list, "Healthy", status, reason, message, "2026-01-01T00:00:00Z");
    world.merge_status::<MeshStorVolume>(VOLUME, &json!({"status": {"conditions": list}})).await;
}

/// Events of objects that are not ours: kind, name, type, reason, note.
async fn told(world: &World) -> Vec<(String, String, String, String, String)> {
    let text = |event: &Value, path: &str| event.pointer(path).and_then(Value::as_str).unwrap_or_default().to_string();
    let api: Api<Event> = Api::all(world.store.client_for("reader"));
    let events = api.list(&Default::default()).await.unwrap().items;
    let events: Vec<Value> = events.into_iter().map(|event| serde_json::to_value(event).unwrap()).collect();
    let foreign = events.iter().filter(|event| text(event, "/regarding/kind") != "MeshStorVolume");
    let mut told: Vec<_> = foreign
        .map(|event| {
            assert_eq!(event["regarding"]["namespace"].as_str().unwrap_or("default"), event["metadata"]["namespace"]);
            assert!(event["regarding"]["uid"].is_string(), "kubectl describe looks for it: {event}");
            assert_eq!(event["related"]["kind"], "MeshStorVolume");
            let [kind, name, type_, reason, note] =
                ["/regarding/kind", "/regarding/name", "/type", "/reason", "/note"].map(|path| text(event, path));
            (kind, name, type_, reason, note)
        })
        .collect();
    told.sort();
    told
}

fn all_hear(type_: &str, reason: &str, note: &str) -> Vec<(String, String, String, String, String)> {
    let one = |kind: &str, name: &str| (kind.into(), name.into(), type_.into(), reason.into(), note.into());
    vec![one("PersistentVolume", VOLUME), one("PersistentVolumeClaim", "db"), one("Pod", "db-0")]
}

#[tokio::test(start_paused = true)]
async fn a_trouble_and_its_end_are_told_once_to_claim_volume_and_pod_by_however_many_controllers() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let (service, _second) = (world.controller("c1"), world.controller("c2"));
    create_with(&service, request()).await.unwrap();
    let claim = json!({"namespace": "prod", "name": "db", "persistentVolume": VOLUME});
    assert_eq!(world.volume(VOLUME).unwrap()["spec"]["claim"], claim);
    kubernetes(&world).await;
    publish(&service, VOLUME, "a").await.unwrap();
    say(&world, true, "Healthy", "").await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(told(&world).await, [], "nothing has happened");

    say(&world, false, "Degraded", "not in sync: r1").await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let mut expected = all_hear("Warning", "Degraded", "not in sync: r1");
    assert_eq!(told(&world).await, expected);
    say(&world, false, "Degraded", "not in sync: r1, still").await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(told(&world).await, expected, "other words for the same are no news");

    say(&world, true, "Healthy", "").await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    expected.extend(all_hear("Normal", "Healthy", "Degraded is over"));
    expected.sort();
    assert_eq!(told(&world).await, expected);
    // The same trouble again, and a third controller that begins in the middle of it.
    say(&world, false, "Degraded", "not in sync: r1").await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(told(&world).await.len(), 9);
    for name in ["c3", "c4"] {
        world.controller(name);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(
            told(&world).await.len(),
            12,
            "what is wrong when a controller begins is told by its own time, once"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_repair_is_told_and_a_volume_without_a_claim_concerns_nobody() {
    let world = World::new(&[("a", 50), ("b", 40), ("c", 30)]).await;
    let service = world.controller("c1");
    create_with(&service, request()).await.unwrap();
    create(&service, "unclaimed", 1).await.unwrap();
    kubernetes(&world).await;
    publish(&service, VOLUME, "a").await.unwrap();
    world.vices("b", |vices| vices.dead = true);
    let departure = DepartureRecord { epoch: 1, generation: 0, events: 9 };
    record(&world, VOLUME, Change::Shrink { replica: ReplicaId(1), departure, flap: FLAP }).await;
    tokio::time::sleep(Duration::from_secs(1000)).await;
    let told = told(&world).await;
    let replacing = "r1 is lost, r2 is being made in its place".to_string();
    let expected = ("PersistentVolumeClaim".into(), "db".into(), "Warning".into(), "Replacing".into(), replacing);
    assert!(told.contains(&expected), "{told:?}");
    assert!(told.iter().all(|(.., name, _, _, _)| name != "unclaimed"));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_takes_no_events_holds_nothing_up() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let service = world.controller("c1");
    create_with(&service, request()).await.unwrap();
    kubernetes(&world).await;
    world.store.faults().inject(Fault::before_effect(Outcome::Hang).client("c1").resource("events").times(u32::MAX));
    publish(&service, VOLUME, "a").await.unwrap();
    for round in 0..20 {
        say(&world, round % 2 == 0, "Degraded", "x").await;
    }
    let start = tokio::time::Instant::now();
    unpublish(&service, VOLUME, "a").await.unwrap();
    assert_eq!(publish(&service, VOLUME, "b").await.unwrap(), 3);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(told(&world).await, []);
}

#[tokio::test(start_paused = true)]
async fn a_claim_of_the_same_name_that_is_another_one_is_told_nothing() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let service = world.controller("c1");
    create_with(&service, request()).await.unwrap();
    let claim = json!({"metadata": {"name": "db", "namespace": "prod"}, "spec": {"volumeName": "pvc-2"}});
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(world.client.clone(), "prod");
    claims.create(&PostParams::default(), &serde_json::from_value(claim).unwrap()).await.unwrap();
    publish(&service, VOLUME, "a").await.unwrap();
    say(&world, false, "Degraded", "x").await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(told(&world).await, []);
}
