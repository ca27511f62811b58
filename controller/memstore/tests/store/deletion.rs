//! DELETE: preconditions, finalizers, collections.

use crate::world::{BIRTHDAY, Volume, World, next, refusal, version, volume, watch, world};
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, WatchParams};
use serde_json::json;

async fn held(w: &World, name: &str, finalizers: &[&str]) -> Volume {
    let mut body = volume(name, 1, "n1");
    body.metadata.finalizers = Some(finalizers.iter().map(|it| (*it).to_owned()).collect());
    w.volumes.create(&PostParams::default(), &body).await.unwrap()
}

fn set_finalizers(finalizers: &[&str]) -> Patch<serde_json::Value> {
    Patch::Merge(json!({"metadata": {"finalizers": finalizers}}))
}

#[tokio::test]
async fn without_finalizers_an_object_goes_at_once() {
    let w = world();
    let made = w.create("a", 1, "").await;
    let status = w.volumes.delete("a", &DeleteParams::default()).await.unwrap().right().unwrap();
    assert!(status.is_success());
    assert_eq!(status.details.unwrap().uid, made.uid().unwrap());
    assert_eq!(w.store.resource_version(), version(&made) + 1);
    assert!(refusal(w.volumes.delete("a", &DeleteParams::default()).await).is_not_found());
}

#[tokio::test]
async fn preconditions_protect_a_successor_of_the_same_name() {
    let w = world();
    let first = w.create("a", 1, "").await;
    w.volumes.delete("a", &DeleteParams::default()).await.unwrap();
    let second = w.create("a", 1, "").await;
    let only = |uid: Option<String>, resource_version: Option<String>| {
        DeleteParams::default().preconditions(Preconditions { uid, resource_version })
    };
    let refused = refusal(w.volumes.delete("a", &only(first.uid(), None)).await);
    assert!(refused.is_conflict());
    assert!(refused.message.contains("Precondition failed: UID"), "{}", refused.message);
    assert!(refusal(w.volumes.delete("a", &only(None, first.resource_version())).await).is_conflict());
    w.volumes.delete("a", &only(second.uid(), second.resource_version())).await.unwrap();
    assert!(w.store.get("volumes", "", "a").is_none());
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_gone() {
    let w = world();
    let made = held(&w, "a", &["x/one", "x/two"]).await;
    let mut events = watch(&w.volumes, &WatchParams::default(), &made.resource_version().unwrap()).await;
    let marked = w.volumes.delete("a", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(marked.metadata.deletion_timestamp.as_ref().unwrap().0.to_string(), BIRTHDAY);
    assert_eq!(marked.metadata.generation, Some(2), "a real server counts the mark as a change of generation");
    let version_of_mark = version(&marked);

    let again = w.volumes.delete("a", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(again, marked, "a second DELETE is a no-op");
    assert_eq!(w.store.resource_version(), version_of_mark);

    let refused = refusal(w.volumes.patch("a", &PatchParams::default(), &set_finalizers(&["x/new"])).await);
    assert_eq!((refused.code, refused.details.unwrap().causes[0].reason.as_str()), (422, "FieldValueForbidden"));
    let undo = Patch::Merge(json!({"metadata": {"deletionTimestamp": null}, "spec": {"epoch": 2}}));
    let still = w.volumes.patch("a", &PatchParams::default(), &undo).await.unwrap();
    assert!(still.metadata.deletion_timestamp.is_some(), "deletion cannot be taken back");

    w.volumes.patch("a", &PatchParams::default(), &set_finalizers(&["x/two"])).await.unwrap();
    let last = w.volumes.patch("a", &PatchParams::default(), &set_finalizers(&[])).await.unwrap();
    assert_eq!(last.finalizers().len(), 0);
    assert!(refusal(w.volumes.get("a").await).is_not_found());
    let from = version_of_mark;
    assert_eq!(next(&mut events).await, format!("MODIFIED a 1 n1 @{from}"));
    assert_eq!(next(&mut events).await, format!("MODIFIED a 2 n1 @{}", from + 1));
    assert_eq!(next(&mut events).await, format!("MODIFIED a 2 n1 @{}", from + 2));
    assert_eq!(next(&mut events).await, format!("DELETED a 2 n1 @{}", from + 3));
}

#[tokio::test]
async fn dry_run_and_status_writes_do_not_delete() {
    let w = world();
    held(&w, "a", &["x/one"]).await;
    w.create("b", 1, "").await;
    let before = w.store.resource_version();
    let dry = DeleteParams::default().dry_run();
    w.volumes.delete("a", &dry).await.unwrap();
    w.volumes.delete("b", &dry).await.unwrap();
    assert_eq!(w.store.resource_version(), before);
    w.volumes.delete("a", &DeleteParams::default()).await.unwrap();
    w.volumes.patch_status("a", &PatchParams::default(), &set_finalizers(&[])).await.unwrap();
    assert_eq!(w.volumes.get("a").await.unwrap().finalizers(), ["x/one"]);
}

#[tokio::test]
async fn removing_a_finalizer_early_deletes_nothing() {
    let w = world();
    held(&w, "a", &["x/one"]).await;
    w.volumes.patch("a", &PatchParams::default(), &set_finalizers(&[])).await.unwrap();
    assert!(w.volumes.get("a").await.is_ok());
}

#[tokio::test]
async fn delete_collection_takes_what_the_selector_takes() {
    let w = world();
    held(&w, "a", &["x/one"]).await;
    w.create("b", 1, "n1").await;
    w.create("c", 1, "n2").await;
    let chosen = ListParams::default().fields("spec.consumer=n1");
    let list = w.volumes.delete_collection(&DeleteParams::default(), &chosen).await.unwrap().left().unwrap();
    assert_eq!(list.items.len(), 2);
    let left = w.volumes.list(&ListParams::default()).await.unwrap().items;
    let names: Vec<_> = left.iter().map(|it| (it.name_any(), it.metadata.deletion_timestamp.is_some())).collect();
    assert_eq!(names, [("a".into(), true), ("c".into(), false)]);
}
