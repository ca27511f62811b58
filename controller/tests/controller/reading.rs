//! Calls that only read: lists in pages, capacity, capabilities; and objects that cannot be read.

use crate::world::*;
use meshstor_csi::proto::controller_server::Controller as _;
use meshstor_csi::proto::*;
use serde_json::json;
use tonic::{Code, Request};

#[tokio::test(start_paused = true)]
async fn lists_come_in_pages_and_leave_the_unfinished_out() {
    let world = World::new(&[("a", 500), ("b", 400)]).await;
    let service = world.controller("c1");
    for index in [2, 0, 1] {
        create(&service, &format!("pvc-{index}"), 1).await.unwrap();
    }
    world.vices("a", |vices| vices.never_ready = true);
    let unfinished = service.create_volume(within(3, create_request("pvc-3", 1))).await.unwrap_err();
    assert_eq!(unfinished.code(), Code::DeadlineExceeded);
    let page = |token: String| {
        let message = ListVolumesRequest { max_entries: 2, starting_token: token };
        async { service.list_volumes(Request::new(message)).await.unwrap().into_inner() }
    };
    let ids = |page: &ListVolumesResponse| -> Vec<String> {
        page.entries.iter().map(|entry| entry.volume.clone().unwrap().volume_id).collect()
    };
    let first = page(String::new()).await;
    assert_eq!(ids(&first), ["pvc-0", "pvc-1"]);
    let second = page(first.next_token.clone()).await;
    assert_eq!((ids(&second), second.next_token.as_str()), (vec!["pvc-2".to_string()], ""));
    // A token names a place in the order, not an entry: it outlives what it was made of, and any controller takes it.
    delete(&service, "pvc-1").await.unwrap();
    let message = ListVolumesRequest { max_entries: 2, starting_token: first.next_token };
    let other = world.controller("c2");
    assert_eq!(ids(&other.list_volumes(Request::new(message)).await.unwrap().into_inner()), ["pvc-2"]);
    for foreign in ["7", "after:", "after:../x", "pvc-0"] {
        let message = ListVolumesRequest { max_entries: 2, starting_token: foreign.into() };
        let error = service.list_volumes(Request::new(message)).await.unwrap_err();
        assert_eq!(error.code(), Code::Aborted, "{foreign}");
        assert!(error.message().contains("starting_token is"), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_whose_consumer_is_silent_is_abnormal_and_still_published() {
    let world = World::new(&[("a", 100), ("b", 10), ("c", 10)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    publish(&service, "pvc-1", "c").await.unwrap();
    let ask = || async {
        let message = ControllerGetVolumeRequest { volume_id: "pvc-1".into() };
        let one = service.controller_get_volume(Request::new(message)).await.unwrap().into_inner().status.unwrap();
        let all = service.list_volumes(Request::new(Default::default())).await.unwrap().into_inner();
        let listed = all.entries[0].status.clone().unwrap();
        assert_eq!(one.volume_condition, listed.volume_condition);
        assert_eq!(
            (&one.published_node_ids, &listed.published_node_ids),
            (&vec!["c".to_string()], &vec!["c".to_string()])
        );
        one.volume_condition.unwrap()
    };
    assert!(!ask().await.abnormal);
    world.vices("c", |vices| vices.dead = true);
    tokio::time::sleep(std::time::Duration::from_secs(90)).await;
    let condition = ask().await;
    assert!(condition.abnormal && condition.message.starts_with("NodeSilent: node c is silent: "), "{condition:?}");
}

#[tokio::test(start_paused = true)]
async fn capacity_is_the_largest_volume_that_would_be_made() {
    let world = World::new(&[("a", 100), ("b", 10), ("c", 50)]).await;
    let service = world.controller("c1");
    let ask = |node: &str, pairs: &[(&str, &str)]| {
        let message = GetCapacityRequest {
            parameters: parameters(pairs),
            accessible_topology: Some(place(node)),
            ..GetCapacityRequest::default()
        };
        let service = &service;
        async move {
            let answer = service.get_capacity(Request::new(message)).await.unwrap().into_inner();
            assert_eq!(answer.maximum_volume_size, Some(answer.available_capacity));
            answer.available_capacity as u64
        }
    };
    let overhead = 5 << 20;
    for node in ["a", "b", "c"] {
        assert_eq!(ask(node, &[]).await, 50 * GIB - overhead);
    }
    assert_eq!(ask("b", &[("localCopy", "required")]).await, 10 * GIB - overhead);
    assert_eq!(ask("a", &[("replicaCount", "4")]).await, 0);
    let largest = ask("a", &[]).await;
    let mut request = create_request("pvc-1", 1);
    request.capacity_range = Some(CapacityRange { required_bytes: largest as i64 + 1, limit_bytes: 0 });
    assert_eq!(create_with(&service, request.clone()).await.unwrap_err().code(), Code::ResourceExhausted);
    request.capacity_range = Some(CapacityRange { required_bytes: largest as i64, limit_bytes: 0 });
    create_with(&service, request).await.unwrap();
}

/// K11, over everything a class can say: one mebibyte more finds no room, the answer itself does.
#[tokio::test(start_paused = true)]
async fn what_capacity_says_is_made_and_not_a_mebibyte_more() {
    let world = World::new(&[("a", 7), ("b", 3), ("c", 5), ("d", 2)]).await;
    let service = world.controller("c1");
    let fabric = json!({"status": {"fabric": "blue"}});
    world.merge_status::<meshstor_api::MeshStorNode>("d", &fabric).await;
    let at = |node: &str| {
        let fabric = if node == "d" { "blue" } else { "default" };
        Topology { segments: parameters(&[("csi.meshstor.io/node", node), ("csi.meshstor.io/fabric", fabric)]) }
    };
    let mut made = 0;
    for (count, local, node) in [1, 2, 3].into_iter().flat_map(|count| {
        ["preferred", "required", "none"].into_iter().flat_map(move |l| ["a", "b", "c", "d"].map(|n| (count, l, n)))
    }) {
        let class = parameters(&[("replicaCount", &count.to_string()), ("localCopy", local)]);
        let message = GetCapacityRequest {
            parameters: class.clone(),
            accessible_topology: Some(at(node)),
            ..GetCapacityRequest::default()
        };
        let answer = service.get_capacity(Request::new(message)).await.unwrap().into_inner();
        let largest = answer.available_capacity;
        let mut request = create_request(&format!("pvc-{count}-{local}-{node}"), 1);
        request.parameters = class;
        let here = TopologyRequirement { requisite: vec![at(node)], preferred: vec![at(node)] };
        request.accessibility_requirements = Some(here);
        let more = largest + (1 << 20);
        request.capacity_range = Some(CapacityRange { required_bytes: more, limit_bytes: 0 });
        let error = create_with(&service, request.clone()).await.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted, "{count} {local} {node}: {largest}");
        if largest > 0 {
            request.capacity_range = Some(CapacityRange { required_bytes: largest, limit_bytes: 0 });
            create_with(&service, request).await.unwrap_or_else(|e| panic!("{count} {local} {node} {largest}: {e}"));
            made += 1;
        }
    }
    assert_eq!(made, 30, "on node d alone one copy fits and no more");
}

#[tokio::test(start_paused = true)]
async fn room_for_less_than_the_smallest_volume_is_no_room() {
    let world = World::new(&[("a", 1)]).await;
    let service = world.controller("c1");
    for (mib, expected) in [(304, 0), (305, 300)] {
        let body = json!({"status": {"freeBytes": mib << 20, "largestFreeBytes": mib << 20}});
        world.merge_status::<meshstor_api::node::MeshStorNodeDevice>("a-d", &body).await;
        let class = parameters(&[("replicaCount", "1")]);
        let message = GetCapacityRequest { parameters: class.clone(), ..GetCapacityRequest::default() };
        let answer = service.get_capacity(Request::new(message)).await.unwrap().into_inner();
        assert_eq!(answer.available_capacity >> 20, expected);
        let mut request = create_request(&format!("pvc-{mib}"), 1);
        request.parameters = class;
        request.capacity_range = Some(CapacityRange { required_bytes: 1, limit_bytes: 0 });
        assert_eq!(create_with(&service, request).await.is_ok(), expected > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn capabilities_are_validated_against_the_volume() {
    let world = World::new(&[("a", 100), ("b", 10)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    let ask = |volume: &str, mode: i32, pairs: &[(&str, &str)]| {
        let mut wanted = capability();
        wanted.access_mode.as_mut().unwrap().mode = mode;
        let message = ValidateVolumeCapabilitiesRequest {
            volume_id: volume.into(),
            volume_capabilities: vec![wanted],
            parameters: parameters(pairs),
            ..ValidateVolumeCapabilitiesRequest::default()
        };
        let service = &service;
        async move { service.validate_volume_capabilities(Request::new(message)).await.map(|r| r.into_inner()) }
    };
    assert!(ask("pvc-1", 1, &[]).await.unwrap().confirmed.is_some());
    assert!(ask("pvc-1", 1, &[("numberOfCopies", "2")]).await.unwrap().confirmed.is_some());
    let many = ask("pvc-1", 5, &[]).await.unwrap();
    assert!(many.confirmed.is_none() && many.message.contains("one node at a time"), "{many:?}");
    let three = ask("pvc-1", 1, &[("replicaCount", "3")]).await.unwrap();
    assert_eq!((three.confirmed, three.message.as_str()), (None, "replicaCount is 2, asked for is 3"));
    assert_eq!(ask("pvc-9", 1, &[]).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(start_paused = true)]
async fn one_volume_is_described_with_its_health() {
    let world = World::new(&[("a", 100), ("b", 10)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    eventually("a summary", || world.condition("pvc-1", "Ready").is_some()).await;
    let ask = |volume: &str| {
        let message = ControllerGetVolumeRequest { volume_id: volume.into() };
        let service = &service;
        async move { service.controller_get_volume(Request::new(message)).await.map(|r| r.into_inner()) }
    };
    let answer = ask("pvc-1").await.unwrap();
    let condition = answer.status.unwrap().volume_condition.unwrap();
    assert!(!condition.abnormal && condition.message.starts_with("Detached: "), "{condition:?}");
    assert_eq!(ask("pvc-9").await.unwrap_err().code(), Code::NotFound);
    let offered = service.controller_get_capabilities(Request::new(Default::default())).await.unwrap().into_inner();
    assert_eq!(offered.capabilities.len(), 9);
    let modify = ControllerModifyVolumeRequest { volume_id: "pvc-1".into(), ..Default::default() };
    let modify = service.controller_modify_volume(Request::new(modify)).await.unwrap_err();
    assert_eq!(modify.code(), Code::Unimplemented);
}

#[tokio::test(start_paused = true)]
async fn garbage_harms_only_itself() {
    let world = World::new(&[("a", 100), ("b", 10)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    let mut odd = world.volume("pvc-1").unwrap();
    odd["metadata"] = json!({"name": "odd"});
    odd["spec"]["volumeID"] = json!("not-a-uuid");
    let mut shapeless = odd.clone();
    shapeless["metadata"] = json!({"name": "shapeless"});
    shapeless["spec"] = json!({"sizeBytes": "large"});
    write_by_hand(&world, odd).await;
    write_by_hand(&world, shapeless).await;
    create(&service, "pvc-2", 1).await.unwrap();
    publish(&service, "pvc-1", "a").await.unwrap();
    assert!(list(&service).await.iter().any(|(id, nodes)| id == "pvc-1" && nodes == &["a"]));
    for (volume, words) in [
        ("odd", "MeshStorVolume odd: spec.volumeID is \"not-a-uuid\": allowed is a hyphenated lower-case uuid"),
        ("shapeless", "MeshStorVolume shapeless cannot be read"),
    ] {
        let error = publish(&service, volume, "a").await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message().contains(words), "{}", error.message());
    }
    eventually("it is reported", || world.condition("odd", "Ready").is_some_and(|c| c.reason == "Failing")).await;
}
