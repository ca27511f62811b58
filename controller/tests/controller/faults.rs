//! Refused and half-answered requests, lost hints, an API server that does not answer.

use crate::world::*;
use meshstor_memstore::{Fault, Outcome, Verb};
use std::time::Duration;
use tonic::Code;

/// A patch of the volume that fails once, in every way it can.
fn mishaps() -> Vec<Fault> {
    let narrow = |fault: Fault| fault.client("c1").verb(Verb::Patch).resource("meshstorvolumes");
    vec![
        narrow(Fault::before_effect(Outcome::Status(409))),
        narrow(Fault::before_effect(Outcome::Status(422))),
        narrow(Fault::before_effect(Outcome::Status(500))),
        narrow(Fault::before_effect(Outcome::Reset)),
        narrow(Fault::before_effect(Outcome::Hang)),
        narrow(Fault::after_effect(Outcome::Status(500))),
        narrow(Fault::after_effect(Outcome::Reset)),
        narrow(Fault::after_effect(Outcome::Hang)),
        // The server says "refused" although it was done: looking again is the only right answer.
        narrow(Fault::after_effect(Outcome::Status(409))),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_call_asked_again_after_any_mishap_has_happened_once() {
    let world = World::new(&[("a", 500), ("b", 400)]).await;
    let controller = world.idle_controller("c1");
    let service = controller.service();
    for (index, fault) in mishaps().into_iter().enumerate() {
        let name = format!("pvc-{index}");
        create(&service, &name, 1).await.unwrap();
        world.store.faults().inject(fault.clone());
        let first = publish(&service, &name, "a").await;
        assert_eq!(world.store.faults().pending(), 0);
        if let Err(error) = first {
            assert_eq!(error.code(), Code::Unavailable, "{error:?}");
        }
        assert_eq!(publish(&service, &name, "a").await.unwrap(), 1);
        assert_eq!(world.attachment(&name), (1, Some("a".into())));

        world.store.faults().inject(fault.clone());
        if unpublish(&service, &name, "a").await.is_err() {
            unpublish(&service, &name, "a").await.unwrap();
        }
        assert_eq!(world.attachment(&name), (2, None));

        world.store.faults().inject(fault);
        if let Err(error) = delete(&service, &name).await {
            assert_eq!(error.code(), Code::Unavailable, "{error:?}");
            delete(&service, &name).await.unwrap();
        }
        assert_eq!(world.volume(&name), None);
        world.store.faults().clear();
    }
}

#[tokio::test(start_paused = true)]
async fn a_creation_survives_any_mishap() {
    let world = World::new(&[("a", 500), ("b", 400), ("c", 300)]).await;
    let service = world.controller("c1");
    let mut round = 0;
    for (verb, resource) in [
        (Verb::Create, "meshstorvolumes"),
        (Verb::Create, "meshstorreplicas"),
        (Verb::Patch, "meshstorvolumes/status"),
        (Verb::List, "meshstorreplicas"),
        (Verb::Get, "meshstorvolumes"),
    ] {
        for fault in [
            Fault::before_effect(Outcome::Status(500)),
            Fault::before_effect(Outcome::Reset),
            Fault::after_effect(Outcome::Reset),
            Fault::after_effect(Outcome::Hang),
        ] {
            round += 1;
            let name = format!("pvc-{round}");
            world.store.faults().inject(fault.client("c1").verb(verb).resource(resource));
            if let Err(error) = create(&service, &name, 1).await {
                assert_eq!(error.code(), Code::Unavailable, "{error:?}");
                create(&service, &name, 1).await.unwrap();
            }
            assert_eq!(world.copies(&name).len(), 2, "{verb:?} {resource}");
            assert_eq!(world.volume(&name).unwrap()["status"]["inSync"].as_array().unwrap().len(), 2);
            world.store.faults().clear();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn lost_hints_cost_time_and_nothing_else() {
    let world = World::new(&[("a", 500), ("b", 400)]).await;
    let service = world.controller("c1");
    world.store.faults().hold_events("c1", true);
    create(&service, "pvc-1", 1).await.unwrap();
    publish(&service, "pvc-1", "a").await.unwrap();
    unpublish(&service, "pvc-1", "a").await.unwrap();
    publish(&service, "pvc-1", "b").await.unwrap();
    unpublish(&service, "pvc-1", "b").await.unwrap();
    delete(&service, "pvc-1").await.unwrap();
    assert_eq!(world.volume("pvc-1"), None);
}

#[tokio::test(start_paused = true)]
async fn without_the_api_server_the_answer_says_so() {
    let world = World::new(&[("a", 500), ("b", 400)]).await;
    let service = world.controller("c1");
    create(&service, "pvc-1", 1).await.unwrap();
    world.store.faults().cut("c1", true);
    let error = publish(&service, "pvc-1", "a").await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("the API server does not answer as it should"), "{}", error.message());
    world.store.faults().cut("c1", false);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(publish(&service, "pvc-1", "a").await.unwrap(), 1);
}

/// Another controller, cut off in the middle of a Publish, must not act on what it saw before (F19).
#[tokio::test(start_paused = true)]
async fn a_delayed_call_acts_on_nothing_old() {
    let world = World::new(&[("a", 500), ("b", 400)]).await;
    let (slow, quick) = (world.idle_controller("c1").service(), world.controller("c2"));
    create(&quick, "pvc-1", 1).await.unwrap();
    world.store.faults().set_latency("c1", Duration::from_secs(1), Duration::ZERO);
    let late = tokio::spawn({
        let slow = slow.clone();
        async move { publish(&slow, "pvc-1", "a").await }
    });
    tokio::time::sleep(Duration::from_millis(2500)).await;
    publish(&quick, "pvc-1", "b").await.unwrap();
    unpublish(&quick, "pvc-1", "b").await.unwrap();
    let error = late.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Code::Aborted, "{error:?}");
    assert_eq!(world.attachment("pvc-1"), (2, None));

    publish(&quick, "pvc-1", "a").await.unwrap();
    let late = tokio::spawn({
        let slow = slow.clone();
        async move { unpublish(&slow, "pvc-1", "a").await }
    });
    tokio::time::sleep(Duration::from_millis(1500)).await;
    unpublish(&quick, "pvc-1", "a").await.unwrap();
    publish(&quick, "pvc-1", "a").await.unwrap();
    let error = late.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Code::Aborted, "{error:?}");
    assert_eq!(world.attachment("pvc-1"), (5, Some("a".into())), "the new attachment stands");
}
