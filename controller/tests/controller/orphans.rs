//! Volumes whose claim is gone: what was never finished goes, what may hold data stays and says so.

use crate::events::request;
use crate::world::*;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim};
use kube::api::{Api, PostParams};
use meshstor_api::{MeshStorReplica, MeshStorVolume};
use serde_json::json;
use std::time::Duration;

/// A claim under the name of the one that the volume was made for; bound to a PersistentVolume or not yet.
async fn claim(world: &World, bound: Option<&str>) {
    let claim = json!({"metadata": {"name": "db", "namespace": "prod"}, "spec": {"volumeName": bound}});
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(world.client.clone(), "prod");
    claims.create(&PostParams::default(), &serde_json::from_value(claim).unwrap()).await.unwrap();
}

async fn persistent_volume(world: &World, name: &str) {
    let volume = json!({
        "metadata": {"name": name}, "spec": {"csi": {"driver": "io.meshstor.csi.mesh", "volumeHandle": "pvc-1"}},
    });
    world
        .api::<PersistentVolume>()
        .create(&PostParams::default(), &serde_json::from_value(volume).unwrap())
        .await
        .unwrap();
}

async fn minutes(count: u64) {
    tokio::time::sleep(Duration::from_secs(count * 60)).await;
}

/// What a CreateVolume leaves behind that dies with its controller: all objects, and nobody who goes on.
async fn unfinished(world: &World) {
    let cluster = world.api::<Namespace>().get("kube-system").await.unwrap().metadata.uid.unwrap();
    let (id, finalizers) = ("b063da9a-4a22-4900-9203-381b1b798272", ["csi.meshstor.io/data"]);
    let volume = json!({
        "metadata": {"name": "pvc-1", "finalizers": finalizers},
        "spec": {
            "volumeID": id, "clusterID": cluster, "sizeBytes": 1 << 30, "replicaCount": 2, "stripeWidth": 1, "sectorSize": 4096,
            "filesystem": "xfs", "memberMissingTimeoutSeconds": 900, "localCopy": "preferred",
            "claim": {"namespace": "prod", "name": "db", "persistentVolume": "pvc-1"}, "attachment": {"epoch": 0},
        },
    });
    let volume: MeshStorVolume = serde_json::from_value(volume).unwrap();
    world.api::<MeshStorVolume>().create(&PostParams::default(), &volume).await.unwrap();
    for (replica, node) in [("r0", "a"), ("r1", "b")] {
        let copy = json!({
            "metadata": {"name": format!("pvc-1-{replica}"), "finalizers": finalizers},
            "spec": {
                "volume": "pvc-1", "volumeID": id, "clusterID": cluster, "replica": replica, "node": node,
                "drive": format!("d-{node}"), "partitionBytes": (1 << 30) + (6 << 20), "role": "Member",
                "export": {"epoch": 0, "generation": 0},
            },
        });
        let copy: MeshStorReplica = serde_json::from_value(copy).unwrap();
        world.api::<MeshStorReplica>().create(&PostParams::default(), &copy).await.unwrap();
    }
}

async fn two_nodes() -> World {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    world.controller("c1");
    world
}

#[tokio::test(start_paused = true)]
async fn what_was_never_finished_goes_once_its_claim_is_gone() {
    let world = two_nodes().await;
    unfinished(&world).await;
    minutes(9).await;
    assert!(world.volume("pvc-1").is_some(), "the provisioner may ask again");
    minutes(3).await;
    assert!(world.volume("pvc-1").is_none() && world.copies("pvc-1").is_empty(), "{:?}", world.volume("pvc-1"));
}

#[tokio::test(start_paused = true)]
async fn a_claim_keeps_what_is_being_made_for_it() {
    let world = two_nodes().await;
    unfinished(&world).await;
    claim(&world, None).await;
    minutes(30).await;
    assert!(world.volume("pvc-1").is_some());
    assert_eq!(world.condition("pvc-1", "Claimed"), None);
}

#[tokio::test(start_paused = true)]
async fn a_later_claim_of_that_name_keeps_nothing() {
    let world = two_nodes().await;
    unfinished(&world).await;
    claim(&world, Some("pvc-2")).await;
    minutes(12).await;
    assert!(world.volume("pvc-1").is_none(), "{:?}", world.volume("pvc-1"));
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_has_not_spoken_may_hold_data() {
    let world = two_nodes().await;
    world.vices("b", |vices| vices.ignores_reservations = true);
    unfinished(&world).await;
    minutes(1).await;
    assert!(world.replica("pvc-1-r1").unwrap().get("status").is_none());
    minutes(30).await;
    assert_eq!(world.copies("pvc-1").len(), 2);
    assert_eq!(world.condition("pvc-1", "Claimed").unwrap().reason, "Orphaned");
}

#[tokio::test(start_paused = true)]
async fn what_may_hold_data_stays_and_says_so_until_somebody_leads_to_it() {
    let world = World::new(&[("a", 50), ("b", 40)]).await;
    let service = world.controller("c1");
    create_with(&service, request()).await.unwrap();
    minutes(9).await;
    assert_eq!(world.condition("pvc-1", "Claimed"), None, "its PersistentVolume may be on the way");
    minutes(3).await;
    let said = world.condition("pvc-1", "Claimed").unwrap();
    assert_eq!((said.status.as_str(), said.reason.as_str()), ("False", "Orphaned"));
    minutes(60).await;
    assert_eq!(world.copies("pvc-1").len(), 2);
    persistent_volume(&world, "brought-back").await;
    eventually("somebody leads to it", || world.condition("pvc-1", "Claimed").unwrap().status == "True").await;
}
