//! ControllerExpandVolume: room everywhere first, nothing shrinks, and what is said when there is no room.

use crate::world::*;
use meshstor_api::MeshStorReplica;
use meshstor_controller::ControllerService;
use meshstor_csi::proto::controller_server::Controller as _;
use meshstor_csi::proto::*;
use serde_json::json;
use tonic::{Code, Status};

const MIB: u64 = 1 << 20;

fn expansion(volume: &str, required: u64, limit: u64) -> ControllerExpandVolumeRequest {
    ControllerExpandVolumeRequest {
        volume_id: volume.into(),
        capacity_range: Some(CapacityRange { required_bytes: required as i64, limit_bytes: limit as i64 }),
        ..ControllerExpandVolumeRequest::default()
    }
}

async fn expand(service: &ControllerService, required: u64, limit: u64) -> Result<(u64, bool), Status> {
    let message = within(20, expansion("pvc-1", required, limit));
    let answer = service.controller_expand_volume(message).await?.into_inner();
    Ok((answer.capacity_bytes as u64, answer.node_expansion_required))
}

fn size(world: &World) -> u64 {
    world.volume("pvc-1").unwrap()["spec"]["sizeBytes"].as_u64().unwrap()
}

/// What a copy's partition is to have, and has, beyond what 1 GiB takes.
fn partition(world: &World, replica: &str) -> (u64, u64) {
    let object = world.replica(&format!("pvc-1-{replica}")).unwrap();
    let number = |path: &str| object.pointer(path).and_then(|n| n.as_u64()).unwrap();
    let base = GIB + 5 * MIB;
    (number("/spec/partitionBytes") - base, number("/status/partition/sizeBytes") - base)
}

#[tokio::test(start_paused = true)]
async fn every_copy_has_the_room_before_the_volume_is_larger() {
    let world = World::new(&[("a", 10), ("b", 10)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    world.vices("b", |vices| vices.dead = true);
    let waits = expand(&service, 2 * GIB, 0).await.unwrap_err();
    assert_eq!(waits.code(), Code::DeadlineExceeded);
    assert!(waits.message().contains("larger partitions are awaited: "), "{}", waits.message());
    assert!(
        waits.message().contains("on node b, drive d-b (has 1078984704 of 2152726528 bytes)"),
        "{}",
        waits.message()
    );
    assert_eq!(size(&world), GIB, "one complete copy is too small for more");
    world.vices("b", |vices| vices.dead = false);
    assert_eq!(expand(&service, 2 * GIB, 0).await.unwrap(), (2 * GIB, true));
    for replica in ["r0", "r1"] {
        assert_eq!(partition(&world, replica), (GIB, GIB));
    }
    // Asked again, for as much and for less: the size that it has, and the node always has to look.
    let before = world.changes_by("c1");
    for required in [2 * GIB, GIB, 1] {
        assert_eq!(expand(&service, required, 0).await.unwrap(), (2 * GIB, true));
    }
    assert_eq!(world.changes_by("c1"), before, "nothing was written for that");
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_is_away_does_not_hold_the_others_up_and_is_asked_as_well() {
    let world = World::new(&[("a", 10), ("b", 10)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    let away = world.copies("pvc-1").into_iter().find(|(_, node)| node == "b").unwrap().0;
    let stays = if away == "r0" { "r1" } else { "r0" };
    let mut object = world.volume("pvc-1").unwrap();
    object["status"]["inSync"] = json!([stays]);
    world.store.force("meshstorvolumes", "", "pvc-1", Some(object));
    world.vices("b", |vices| vices.dead = true);
    assert_eq!(expand(&service, 3 * GIB, 0).await.unwrap(), (3 * GIB, true));
    assert_eq!(partition(&world, &away), (2 * GIB, 0));
}

#[tokio::test(start_paused = true)]
async fn without_room_behind_a_copy_there_is_a_sentence_and_the_wish_is_taken_back() {
    let world = World::new(&[("a", 10), ("b", 10)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    let copies = world.copies("pvc-1");
    let on = |node: &str| copies.iter().find(|(_, at)| *at == node).unwrap().0.clone();
    world.vices("b", |vices| vices.cramped = true);
    let refused = expand(&service, 2 * GIB, 0).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let words = format!("no room to make volume pvc-1 larger: {} on node b, drive d-b: lacks 1073741824", on("b"));
    assert_eq!(refused.message(), words);
    assert_eq!(size(&world), GIB);
    assert_eq!(partition(&world, &on("b")), (0, 0), "its drive is asked for nothing any more");
    let (wanted, has) = partition(&world, &on("a"));
    assert!(wanted == has && (has == 0 || has == GIB), "what has grown stays, what has not is not asked for");
    // As much again, when there is room, or less at once.
    world.vices("b", |vices| vices.cramped = false);
    eventually("its node says so no more", || {
        world.replica(&format!("pvc-1-{}", on("b"))).unwrap().pointer("/status/conditions/0").is_none()
    })
    .await;
    assert_eq!(expand(&service, 2 * GIB, 0).await.unwrap(), (2 * GIB, true));
}

#[tokio::test(start_paused = true)]
async fn what_drives_cannot_have_changes_nothing() {
    let world = World::new(&[("a", 10), ("b", 10)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    let before = world.changes_by("c1");
    let refused = expand(&service, 20 * GIB, 0).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    for words in ["r0 on node ", "lacks 20401094656 bytes, the largest free extent there has 10737418240"] {
        assert!(refused.message().contains(words), "{}", refused.message());
    }
    assert_eq!((world.changes_by("c1"), size(&world)), (before, GIB));
}

#[tokio::test(start_paused = true)]
async fn bad_requests_name_the_field_and_what_is_allowed() {
    let world = World::new(&[("a", 10), ("b", 10)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 2).await.unwrap();
    let table = [
        (expansion("pvc-2", GIB, 0), Code::NotFound, "volume_id is \"pvc-2\": there is no such volume"),
        (expansion("A/b", GIB, 0), Code::InvalidArgument, "volume_id"),
        (expansion("A_b", GIB, 0), Code::NotFound, "volume_id is \"A_b\""),
        (expansion("", GIB, 0), Code::InvalidArgument, "volume_id is missing"),
        (expansion("pvc-1", 0, 0), Code::InvalidArgument, "capacity_range.required_bytes is missing"),
        (expansion("pvc-1", 3 * GIB, 3 * GIB - 1), Code::InvalidArgument, "capacity_range.limit_bytes"),
        (expansion("pvc-1", 3 * GIB + 1, 3 * GIB + 2), Code::OutOfRange, "whole MiB"),
        (expansion("pvc-1", GIB, GIB), Code::OutOfRange, "volumes never shrink"),
        (expansion("pvc-1", 1 << 50, 0), Code::OutOfRange, "capacity_range.required_bytes is 1125899906842624"),
    ];
    for (message, code, words) in table {
        let status = service.controller_expand_volume(within(20, message)).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(words), "{words:?} is not in {:?}", status.message());
    }
    let none = ControllerExpandVolumeRequest { volume_id: "pvc-1".into(), ..Default::default() };
    let status = service.controller_expand_volume(within(20, none)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(size(&world), 2 * GIB);
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_was_made_too_small_is_asked_to_grow_without_a_call() {
    let world = World::new(&[("a", 10), ("b", 10)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    let mut object = world.volume("pvc-1").unwrap();
    object["spec"]["sizeBytes"] = json!(2 * GIB);
    world.store.force("meshstorvolumes", "", "pvc-1", Some(object));
    let large = |replica: &str| {
        let object = world.replica(&format!("pvc-1-{replica}")).unwrap();
        let replica: MeshStorReplica = serde_json::from_value(object).unwrap();
        replica.spec.partition_bytes == 2 * GIB + 5 * MIB
    };
    eventually("both are asked for as much as the volume needs", || large("r0") && large("r1")).await;
}
