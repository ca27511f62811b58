//! WATCH: selectors, resumption, 410, bookmarks, and the same through `kube::runtime::watcher`.

use crate::world::{Note, NoteSpec, Volume, VolumeStatus, World, builder, next, nothing, version, watch, world};
use futures::{StreamExt, TryStreamExt, pin_mut};
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use kube::runtime::watcher::{Config, Error, Event};
use kube::{Resource, ResourceExt};
use std::time::Duration;

fn mine() -> WatchParams {
    WatchParams::default().fields("spec.consumer=n1")
}

#[tokio::test(start_paused = true)]
async fn leaving_a_field_selector_is_a_delete_with_the_old_content() {
    let w = world();
    let made = w.create("a", 7, "n1").await;
    let mut events = watch(&w.volumes, &mine(), &made.resource_version().unwrap()).await;
    let moved = w.set_consumer("a", 8, "n2").await;
    // The event names the old epoch and the old consumer, under the version of the change.
    assert_eq!(next(&mut events).await, format!("DELETED a 7 n1 @{}", version(&moved)));
    w.set_consumer("a", 9, "n2").await;
    nothing(&mut events).await;
    let back = w.set_consumer("a", 10, "n1").await;
    assert_eq!(next(&mut events).await, format!("ADDED a 10 n1 @{}", version(&back)));
    w.volumes.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(next(&mut events).await, format!("DELETED a 10 n1 @{}", version(&back) + 1));
}

#[tokio::test(start_paused = true)]
async fn labels_namespaces_and_kinds_are_filtered_too() {
    let w = world();
    let from = w.store.resource_version().to_string();
    let notes: Api<Note> = Api::namespaced(w.client.clone(), "x");
    let events = notes.watch(&WatchParams::default().labels("keep"), &from).await.unwrap();
    pin_mut!(events);
    w.create("a", 1, "").await;
    let elsewhere: Api<Note> = Api::namespaced(w.client.clone(), "y");
    for (api, text, label) in
        [(&elsewhere, "wrong namespace", true), (&notes, "no label", false), (&notes, "yes", true)]
    {
        let mut note = Note::new(&text.replace(' ', "-"), NoteSpec { text: text.into() });
        if label {
            note.labels_mut().insert("keep".into(), String::new());
        }
        api.create(&PostParams::default(), &note).await.unwrap();
    }
    match events.try_next().await.unwrap().unwrap() {
        kube::api::WatchEvent::Added(note) => assert_eq!(note.spec.text, "yes"),
        other => panic!("{other:?}"),
    }
    assert!(tokio::time::timeout(Duration::from_secs(1), events.next()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_watch_resumes_after_the_version_it_names() {
    let w = world();
    let first = w.create("a", 1, "n1").await;
    let second = w.set_consumer("a", 2, "n1").await;
    w.set_consumer("a", 3, "n1").await;
    let (first, second) = (version(&first), version(&second));
    let mut events = watch(&w.volumes, &WatchParams::default(), &first.to_string()).await;
    assert_eq!(next(&mut events).await, format!("MODIFIED a 2 n1 @{second}"));
    assert_eq!(next(&mut events).await, format!("MODIFIED a 3 n1 @{}", second + 1));
    nothing(&mut events).await;
    let mut resumed = watch(&w.volumes, &WatchParams::default(), &second.to_string()).await;
    assert_eq!(next(&mut resumed).await, format!("MODIFIED a 3 n1 @{}", second + 1));
    for any in ["0", ""] {
        let mut from_now = watch(&w.volumes, &WatchParams::default(), any).await;
        assert_eq!(next(&mut from_now).await, format!("ADDED a 3 n1 @{}", second + 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_compacted_version_is_gone_but_open_watches_go_on() {
    let w = world();
    let made = w.create("a", 1, "n1").await;
    let mut open = watch(&w.volumes, &WatchParams::default(), &made.resource_version().unwrap()).await;
    let changed = w.set_consumer("a", 2, "n1").await;
    w.store.compact();
    assert_eq!(next(&mut open).await, format!("MODIFIED a 2 n1 @{}", version(&changed)));
    let mut late = watch(&w.volumes, &WatchParams::default(), &made.resource_version().unwrap()).await;
    assert_eq!(next(&mut late).await, "ERROR 410 Expired");
    assert_eq!(next(&mut late).await, "end");
    let mut fresh = watch(&w.volumes, &WatchParams::default(), &changed.resource_version().unwrap()).await;
    nothing(&mut fresh).await;
    let exact = ListParams::default().at(&made.resource_version().unwrap()).matching(kube::api::VersionMatch::Exact);
    assert_eq!(crate::world::refusal(w.volumes.list(&exact).await).code, 410);
}

#[tokio::test(start_paused = true)]
async fn history_is_bounded_and_disconnects_the_slow() {
    let w = World::of(builder().history(3).build());
    let made = w.create("a", 1, "n1").await;
    let mut slow = watch(&w.volumes, &WatchParams::default(), &made.resource_version().unwrap()).await;
    for epoch in 2..=5 {
        w.set_consumer("a", epoch, "n1").await;
    }
    assert_eq!(next(&mut slow).await, "end");
    let mut again = watch(&w.volumes, &WatchParams::default(), &made.resource_version().unwrap()).await;
    assert_eq!(next(&mut again).await, "ERROR 410 Expired");
    assert!(w.store.changes_since(version(&made)).is_none());
    assert_eq!(w.store.changes_since(version(&made) + 1).unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn bookmarks_come_by_the_minute_and_the_server_ends_the_watch() {
    let w = world();
    let from = w.store.resource_version();
    let mut events = watch(&w.volumes, &mine().timeout(100), &from.to_string()).await;
    let start = tokio::time::Instant::now();
    w.create("other", 1, "n2").await;
    let bookmark = tokio::time::timeout(Duration::from_secs(90), events.next()).await;
    assert!(matches!(bookmark, Ok(Some(Ok(kube::api::WatchEvent::Bookmark(mark))))
        if mark.metadata.resource_version == (from + 1).to_string()));
    assert_eq!(start.elapsed().as_secs(), 60);
    assert!(tokio::time::timeout(Duration::from_secs(90), events.next()).await.unwrap().is_none());
    assert_eq!(start.elapsed().as_secs(), 100);
    let mut without = watch(&w.volumes, &mine().timeout(100).disable_bookmarks(), &from.to_string()).await;
    assert!(tokio::time::timeout(Duration::from_secs(101), without.next()).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn streaming_lists_end_with_their_bookmark() {
    let w = world();
    w.create("b", 1, "n1").await;
    w.create("a", 1, "n1").await;
    w.create("c", 1, "n2").await;
    let now = w.store.resource_version();
    let params = WatchParams { field_selector: Some("spec.consumer=n1".into()), ..WatchParams::streaming_lists() };
    let mut events = watch(&w.volumes, &params, "0").await;
    assert_eq!(next(&mut events).await, format!("ADDED a 1 n1 @{}", now - 1));
    assert_eq!(next(&mut events).await, format!("ADDED b 1 n1 @{}", now - 2));
    assert_eq!(next(&mut events).await, format!("BOOKMARK initial-end @{now}"));
    w.set_consumer("c", 2, "n1").await;
    assert_eq!(next(&mut events).await, format!("ADDED c 2 n1 @{}", now + 1));
}

/// What a watcher says, in short.
fn short(event: Result<Event<Volume>, Error>) -> String {
    match event {
        Ok(Event::Init) => "init".into(),
        Ok(Event::InitDone) => "done".into(),
        Ok(Event::InitApply(volume)) => format!("init {} {}", volume.name_any(), volume.spec.epoch),
        Ok(Event::Apply(volume)) => format!("apply {} {}", volume.name_any(), volume.spec.epoch),
        Ok(Event::Delete(volume)) => format!("delete {} {}", volume.name_any(), volume.spec.epoch),
        Err(Error::WatchError(status)) => format!("error {}", status.code),
        Err(error) => format!("error {error}"),
    }
}

#[tokio::test(start_paused = true)]
async fn the_runtime_watcher_lists_watches_and_survives_410() {
    for config in [Config::default(), Config::default().streaming_lists(), Config::default().any_semantic()] {
        let w = world();
        w.create("a", 1, "n1").await;
        let events = watcher(w.volumes.clone(), config).map(short);
        pin_mut!(events);
        let mut expect = async |text: &str| assert_eq!(events.next().await.unwrap(), text);
        expect("init").await;
        expect("init a 1").await;
        expect("done").await;
        w.set_consumer("a", 2, "n1").await;
        expect("apply a 2").await;
        w.create("b", 1, "n1").await;
        expect("apply b 1").await;
        // The server hangs up, changes happen, history is compacted: the watcher has to list again.
        w.store.faults().close_watches(None, meshstor_memstore::WatchEnd::Clean);
        w.volumes.delete("b", &DeleteParams::default()).await.unwrap();
        w.store.compact();
        expect("error 410").await;
        expect("init").await;
        expect("init a 2").await;
        expect("done").await;
        w.volumes.delete("a", &DeleteParams::default()).await.unwrap();
        expect("delete a 2").await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_runtime_watcher_resumes_over_server_timeouts() {
    let w = world();
    w.create("a", 1, "n1").await;
    let events = watcher(w.volumes.clone(), Config::default()).map(short);
    pin_mut!(events);
    for text in ["init", "init a 1", "done"] {
        assert_eq!(events.next().await.unwrap(), text);
    }
    // Ten minutes: at least two watches end by their timeout, and none of it is visible.
    assert!(tokio::time::timeout(Duration::from_secs(600), events.next()).await.is_err());
    w.set_consumer("a", 2, "n1").await;
    assert_eq!(events.next().await.unwrap(), "apply a 2");
    let watches = w.store.counters().requests[&("test".into(), meshstor_memstore::Verb::Watch, "volumes".into())];
    assert!((3..=4).contains(&watches), "{watches}");
}

#[tokio::test(start_paused = true)]
async fn metadata_watches_carry_no_spec() {
    let w = world();
    let made = w.create("a", 1, "n1").await;
    let partial: Api<PartialObjectMeta<Volume>> = Api::all(w.client.clone());
    let events = watcher(partial, Config::default());
    pin_mut!(events);
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.push(events.try_next().await.unwrap().unwrap());
    }
    assert!(matches!(&seen[1], Event::InitApply(partial) if partial.metadata == *made.meta()));
    w.set_consumer("a", 2, "n1").await;
    assert!(matches!(events.try_next().await.unwrap().unwrap(), Event::Apply(_)));
}

#[tokio::test(start_paused = true)]
async fn a_status_write_reaches_watches_of_the_spec() {
    let w = world();
    let mut made = w.create("a", 1, "n1").await;
    let mut events = watch(&w.volumes, &mine(), &made.resource_version().unwrap()).await;
    made.status = Some(VolumeStatus { in_sync: vec!["r".into()] });
    let put = w.volumes.replace_status("a", &PostParams::default(), &made).await.unwrap();
    assert_eq!(next(&mut events).await, format!("MODIFIED a 1 n1 @{}", version(&put)));
}
