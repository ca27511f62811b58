//! What simulations break, and that it breaks for whom it should and no longer than it should.

use crate::world::{Volume, World, broken_link, next, nothing, refusal, version, volume, watch, world};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchParams};
use meshstor_memstore::{Fault, Link, Outcome, Verb, WatchEnd};
use serde_json::json;
use std::time::Duration;
use tokio::time::timeout;

fn epoch(epoch: u64) -> Patch<serde_json::Value> {
    Patch::Merge(json!({"spec": {"epoch": epoch}, "status": {"inSync": [epoch.to_string()]}}))
}

async fn set_epoch(api: &Api<Volume>, to: u64) -> kube::Result<Volume> {
    api.patch("a", &PatchParams::default(), &epoch(to)).await
}

fn stored_epoch(w: &World) -> u64 {
    w.store.get("volumes", "", "a").unwrap()["spec"]["epoch"].as_u64().unwrap()
}

#[tokio::test]
async fn before_the_effect_nothing_happens() {
    let w = world();
    w.create("a", 1, "").await;
    let rule = Fault::before_effect(Outcome::Status(503)).verb(Verb::Patch).resource("volumes").times(2);
    w.store.faults().inject(rule);
    for _ in 0..2 {
        let refused = refusal(set_epoch(&w.volumes, 2).await);
        assert_eq!((refused.code, refused.reason.as_str()), (503, "ServiceUnavailable"));
        w.volumes.get("a").await.unwrap();
    }
    assert_eq!(stored_epoch(&w), 1);
    assert_eq!(w.store.faults().pending(), 0);
    set_epoch(&w.volumes, 2).await.unwrap();
}

#[tokio::test]
async fn after_the_effect_only_the_reply_is_lost() {
    let w = world();
    w.create("a", 1, "").await;
    w.store.faults().inject(Fault::after_effect(Outcome::Reset).verb(Verb::Patch));
    assert!(broken_link(set_epoch(&w.volumes, 2).await).contains("reset"));
    assert_eq!(stored_epoch(&w), 2);
    w.store.faults().inject(Fault::after_effect(Outcome::Status(504)).verb(Verb::Create));
    assert_eq!(refusal(w.volumes.create(&PostParams::default(), &volume("b", 1, "")).await).reason, "Timeout");
    let again = refusal(w.volumes.create(&PostParams::default(), &volume("b", 1, "")).await);
    assert!(again.is_already_exists(), "the retry meets its own first attempt");
    w.store.faults().inject(Fault::after_effect(Outcome::Reset).verb(Verb::Delete).name("b"));
    broken_link(w.volumes.delete("b", &DeleteParams::default()).await);
    assert!(w.store.get("volumes", "", "b").is_none());
}

#[tokio::test(start_paused = true)]
async fn rules_are_narrow_and_hanging_is_for_ever() {
    let w = world();
    w.create("a", 1, "").await;
    let other = w.volumes_of("other");
    let faults = w.store.faults();
    faults.inject(Fault::before_effect(Outcome::Hang).client("test").resource("volumes/status").name("a"));
    set_epoch(&w.volumes, 2).await.unwrap();
    other.patch_status("a", &PatchParams::default(), &epoch(3)).await.unwrap();
    assert_eq!(faults.pending(), 1);
    let params = PatchParams::default();
    let (patch, limit) = (epoch(4), Duration::from_secs(3600));
    assert!(timeout(limit, w.volumes.patch_status("a", &params, &patch)).await.is_err());
    w.volumes.patch_status("a", &params, &patch).await.unwrap();
    faults.inject(Fault::before_effect(Outcome::Status(500)).resource("volumes"));
    let status = w.volumes.patch_status("a", &params, &epoch(5)).await;
    assert_eq!(refusal(status).code, 500, "the plural covers the status");
    faults.inject(Fault::before_effect(Outcome::Status(500)).name("b"));
    w.volumes.get("a").await.unwrap();
    assert_eq!(refusal(w.volumes.get("b").await).code, 500);
    faults.inject(Fault::before_effect(Outcome::Status(500)).verb(Verb::Watch));
    assert_eq!(refusal(w.volumes.watch(&WatchParams::default(), "0").await.map(|_| ())).code, 500);
}

#[tokio::test(start_paused = true)]
async fn a_cut_client_hangs_and_catches_up() {
    let w = world();
    let made = w.create("a", 1, "n1").await;
    let node = w.volumes_of("node-a");
    let mut events = watch(&node, &WatchParams::default(), made.metadata.resource_version.as_ref().unwrap()).await;
    w.store.faults().cut("node-a", true);
    set_epoch(&w.volumes, 2).await.unwrap();
    nothing(&mut events).await;
    let request = tokio::spawn({
        let node = node.clone();
        async move { set_epoch(&node, 3).await }
    });
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!request.is_finished());
    assert_eq!(stored_epoch(&w), 2, "a hung request has had no effect");
    // A request given up on must not come back to life when the link does.
    assert!(timeout(Duration::from_secs(5), set_epoch(&node, 99)).await.is_err());
    w.store.faults().cut("node-a", false);
    let late = timeout(Duration::from_secs(5), request).await.unwrap().unwrap().unwrap();
    assert_eq!((late.spec.epoch, stored_epoch(&w)), (3, 3));
    assert_eq!(next(&mut events).await, format!("MODIFIED a 2 n1 @{}", version(&made) + 1));
    assert_eq!(next(&mut events).await, format!("MODIFIED a 3 n1 @{}", version(&made) + 2));
}

#[tokio::test(start_paused = true)]
async fn a_refused_client_errs_at_once_and_loses_its_watches() {
    let w = world();
    let made = w.create("a", 1, "n1").await;
    let node = w.volumes_of("node-a");
    let mut events = watch(&node, &WatchParams::default(), made.metadata.resource_version.as_ref().unwrap()).await;
    w.store.faults().set_link("node-a", Link::Refuse);
    assert!(broken_link(node.get("a").await).contains("refused"));
    assert!(next(&mut events).await.starts_with("broken"));
    assert_eq!(next(&mut events).await, "end");
    w.volumes.get("a").await.unwrap();
    w.store.faults().set_link("node-a", Link::Up);
    node.get("a").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_cut_during_the_reply_loses_the_reply() {
    let w = world();
    w.create("a", 1, "n1").await;
    let node = w.volumes_of("node-a");
    let faults = w.store.faults();
    faults.set_latency("node-a", Duration::from_secs(2), Duration::from_secs(3));
    let start = tokio::time::Instant::now();
    let request = tokio::spawn({
        let node = node.clone();
        async move { set_epoch(&node, 2).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(stored_epoch(&w), 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(stored_epoch(&w), 2);
    faults.set_link("node-a", Link::Refuse);
    assert!(broken_link(request.await.unwrap()).contains("reset"));
    assert_eq!(start.elapsed().as_secs(), 5);
    faults.clear();
    node.get("a").await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn dropped_events_leave_no_trace() {
    let w = world();
    let made = w.create("a", 1, "n1").await;
    let from = made.metadata.resource_version.clone().unwrap();
    let mut lossy = watch(&w.volumes_of("node-a"), &WatchParams::default(), &from).await;
    let mut whole = watch(&w.volumes_of("node-b"), &WatchParams::default(), &from).await;
    w.store.faults().drop_events("node-a", Some("notes"), 1);
    w.store.faults().drop_events("node-a", Some("volumes"), 2);
    for epoch in 2..=4 {
        set_epoch(&w.volumes, epoch).await.unwrap();
    }
    assert_eq!(next(&mut lossy).await, format!("MODIFIED a 4 n1 @{}", version(&made) + 3));
    assert_eq!(next(&mut whole).await, format!("MODIFIED a 2 n1 @{}", version(&made) + 1));
}

#[tokio::test(start_paused = true)]
async fn held_watches_grow_stale_while_requests_pass() {
    let w = world();
    let made = w.create("a", 1, "n1").await;
    let node = w.volumes_of("node-a");
    let mut events = watch(&node, &WatchParams::default(), made.metadata.resource_version.as_ref().unwrap()).await;
    w.store.faults().hold_events("node-a", true);
    set_epoch(&node, 2).await.unwrap();
    nothing(&mut events).await;
    assert_eq!(node.get("a").await.unwrap().spec.epoch, 2);
    w.store.faults().hold_events("node-a", false);
    assert_eq!(next(&mut events).await, format!("MODIFIED a 2 n1 @{}", version(&made) + 1));
}

#[tokio::test(start_paused = true)]
async fn watches_can_be_closed_in_three_ways() {
    for (end, first, second) in [
        (WatchEnd::Clean, "end", "end"),
        (WatchEnd::Reset, "broken", "end"),
        (WatchEnd::Expired, "ERROR 410 Expired", "end"),
    ] {
        let w = world();
        let from = w.store.resource_version().to_string();
        let mut hit = watch(&w.volumes_of("node-a"), &WatchParams::default(), &from).await;
        let mut spared = watch(&w.volumes_of("node-b"), &WatchParams::default(), &from).await;
        w.store.faults().close_watches(Some("node-a"), end);
        assert!(next(&mut hit).await.starts_with(first));
        assert_eq!(next(&mut hit).await, second);
        nothing(&mut spared).await;
    }
}

#[tokio::test(start_paused = true)]
async fn counters_and_the_change_log_name_the_clients() {
    let w = world();
    let from = w.store.resource_version();
    let (a, idle) = (w.volumes_of("node-a"), w.volumes_of("idle"));
    let mine = WatchParams::default().fields("spec.consumer=node-a");
    let nobody = WatchParams::default().fields("spec.consumer=idle");
    let mut events = watch(&a, &mine, &from.to_string()).await;
    let mut silence = watch(&idle, &nobody, &from.to_string()).await;
    w.create("a", 1, "node-a").await;
    set_epoch(&a, 2).await.unwrap();
    set_epoch(&a, 2).await.unwrap();
    a.list(&ListParams::default()).await.unwrap();
    next(&mut events).await;
    next(&mut events).await;
    nothing(&mut silence).await;
    let counters = w.store.counters();
    let key = |client: &str| (client.to_owned(), "volumes".to_owned());
    assert_eq!(counters.events.get(&key("node-a")), Some(&2));
    assert_eq!(counters.events.get(&key("idle")), None, "who hosts nothing hears nothing");
    assert_eq!(counters.changes.get(&key("node-a")), Some(&1), "a no-op is no change");
    assert_eq!(counters.requests[&("node-a".into(), Verb::Patch, "volumes".into())], 2);
    let log = w.store.changes_since(from).unwrap();
    let short: Vec<_> = log.iter().map(|it| (it.client.as_str(), it.name.as_str(), it.old.is_some())).collect();
    assert_eq!(short, [("test", "a", false), ("node-a", "a", true)]);
    w.store.reset_counters();
    assert!(w.store.counters().requests.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_blocked_reader_is_woken_by_the_next_change() {
    let w = world();
    let made = w.create("a", 1, "n1").await;
    let from = made.metadata.resource_version.clone().unwrap();
    let mut events = watch(&w.volumes_of("node-a"), &WatchParams::default(), &from).await;
    let start = tokio::time::Instant::now();
    let reader = tokio::spawn(async move { next(&mut events).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    set_epoch(&w.volumes, 2).await.unwrap();
    assert_eq!(reader.await.unwrap(), format!("MODIFIED a 2 n1 @{}", version(&made) + 1));
    assert_eq!(start.elapsed().as_secs(), 1, "woken by the change, not by some timer");
}
