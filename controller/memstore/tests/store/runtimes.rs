//! The store on both kinds of tokio runtime: lost updates, lost wake-ups, and the same run twice.

use crate::world::{Volume, World, builder, volume};
use futures::{StreamExt, TryStreamExt, future::join_all, pin_mut};
use kube::Api;
use kube::api::{PostParams, WatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use meshstor_memstore::{Faults, ReplyBody, Store, StoreService, Timestamp, TokioClock};
use std::time::Duration;

/// Increments by compare-and-swap; every refusal is read and tried again.
async fn increment(api: &Api<Volume>, times: u64) {
    let mut done = 0;
    while done < times {
        let mut current = api.get("a").await.unwrap();
        tokio::task::yield_now().await;
        current.spec.epoch += 1;
        match api.replace("a", &PostParams::default(), &current).await {
            Ok(_) => done += 1,
            Err(kube::Error::Api(status)) if status.is_conflict() => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_update_and_no_event_is_lost_between_threads() {
    let w = World::of(builder().build());
    let made = w.create("a", 0, "").await;
    let from = made.metadata.resource_version.unwrap();
    let watching = tokio::spawn({
        let api = w.volumes_of("watcher");
        async move {
            let events = api.watch(&WatchParams::default(), &from).await.unwrap();
            pin_mut!(events);
            let mut epochs = Vec::new();
            while epochs.last() != Some(&100) {
                match events.try_next().await.unwrap().unwrap() {
                    kube::api::WatchEvent::Modified(volume) => epochs.push(volume.spec.epoch),
                    other => panic!("{other:?}"),
                }
            }
            epochs
        }
    });
    let writers = (0..4).map(|node| {
        let api = w.volumes_of(&format!("node-{node}"));
        tokio::spawn(async move { increment(&api, 25).await })
    });
    for writer in tokio::time::timeout(Duration::from_secs(60), join_all(writers)).await.unwrap() {
        writer.unwrap();
    }
    let epochs = tokio::time::timeout(Duration::from_secs(30), watching).await.unwrap().unwrap();
    assert_eq!(epochs, (1..=100).collect::<Vec<u64>>());
}

/// Nodes that race for one volume while they watch it; the log of changes is the result.
async fn race() -> Vec<String> {
    let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let w = World::of(builder().seed(3).clock(TokioClock::starting_at(start)).build());
    tokio::time::sleep(Duration::from_secs(90)).await;
    w.create("a", 0, "").await;
    let nodes = (0..5).map(|node| {
        let name = format!("node-{node}");
        let api = w.volumes_of(&name);
        w.store.faults().set_latency(&name, Duration::from_millis(node), Duration::from_millis(3));
        tokio::spawn(async move {
            let events = watcher(api.clone(), watcher::Config::default()).applied_objects();
            pin_mut!(events);
            while let Some(Ok(mut seen)) = events.next().await {
                if seen.spec.epoch >= 20 {
                    break;
                }
                seen.spec.epoch += 1;
                seen.spec.consumer = Some(name.clone());
                // A conflict is as good as a success: the winner's change comes through the watch.
                let _ = api.replace("a", &PostParams::default(), &seen).await;
            }
        })
    });
    for node in tokio::time::timeout(Duration::from_secs(600), join_all(nodes)).await.unwrap() {
        node.unwrap();
    }
    let log = w.store.changes_since(0).unwrap();
    log.iter().map(|change| format!("{} {} {:?}", change.resource_version, change.client, change.new)).collect()
}

#[test]
fn the_same_run_twice_is_the_same_run() {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(race())
    };
    let (first, second) = (run(), run());
    assert!(first.len() > 20);
    assert!(first.iter().any(|line| line.contains("2026-01-01T00:01:30Z")), "{first:?}");
    assert_eq!(first, second);
}

#[tokio::test]
async fn a_panicking_validator_leaves_the_store_whole() {
    let store = builder().validator(|_, _, new| if new["spec"]["epoch"] == 13 { panic!("unlucky") } else { Ok(()) });
    let w = World::of(store.build());
    let api = w.volumes.clone();
    let task = tokio::spawn(async move { api.create(&PostParams::default(), &volume("a", 13, "")).await });
    assert!(task.await.is_err());
    w.create("b", 1, "").await;
    assert_eq!(w.store.list("volumes").len(), 1);
}

#[test]
fn everything_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    fn sent<T: Send>() {}
    shared::<Store>();
    shared::<Faults>();
    shared::<StoreService>();
    sent::<ReplyBody>();
}
