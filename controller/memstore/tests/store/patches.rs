//! PATCH and `/status`: the compare-and-swap MeshStor's truth rests on.

use crate::world::{Note, NoteSpec, VolumeStatus, refusal, version, volume, world};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

type Json = Patch<()>;

fn json_patch(operations: Value) -> Json {
    Patch::Json(serde_json::from_value(operations).unwrap())
}

fn plain() -> PatchParams {
    PatchParams::default()
}

#[tokio::test]
async fn a_status_patch_may_test_the_spec() {
    let w = world();
    w.create("a", 7, "n1").await;
    let set = |epoch: u64, was: Value, to: Value| {
        json_patch(json!([
            {"op": "test", "path": "/spec/epoch", "value": epoch},
            {"op": "test", "path": "/spec/consumer", "value": "n1"},
            {"op": "test", "path": "/status", "value": was},
            {"op": "add", "path": "/status", "value": {"inSync": to}},
        ]))
    };
    let done = w.volumes.patch_status("a", &plain(), &set(7, Value::Null, json!(["r1", "r2"]))).await.unwrap();
    assert_eq!(done.status.as_ref().unwrap().in_sync, ["r1", "r2"]);
    assert_eq!(done.metadata.generation, Some(1), "status is no spec");

    let stale = set(6, json!({"inSync": ["r1", "r2"]}), json!([]));
    let refused = refusal(w.volumes.patch_status("a", &plain(), &stale).await);
    assert_eq!((refused.code, refused.reason.as_str()), (422, "Invalid"));
    assert!(refused.details.unwrap().causes.is_empty(), "a failed test names no cause, a failed validation does");
    let second_set = set(7, Value::Null, json!([]));
    assert_eq!(refusal(w.volumes.patch_status("a", &plain(), &second_set).await).code, 422, "absent -> set, once");
    assert_eq!(w.volumes.get("a").await.unwrap(), done);
}

#[tokio::test]
async fn a_refused_patch_applies_none_of_its_operations() {
    let w = world();
    let made = w.create("a", 7, "n1").await;
    let before = w.store.resource_version();
    let patch = json_patch(json!([
        {"op": "replace", "path": "/spec/consumer", "value": "n2"},
        {"op": "test", "path": "/spec/epoch", "value": 6},
    ]));
    assert_eq!(refusal(w.volumes.patch("a", &plain(), &patch).await).code, 422);
    assert_eq!(w.volumes.get("a").await.unwrap(), made);
    assert_eq!(w.store.resource_version(), before);
}

#[tokio::test]
async fn status_and_spec_do_not_reach_into_each_other() {
    let w = world();
    w.create("a", 7, "n1").await;
    let both = json!({"metadata": {"labels": {"l": "1"}}, "spec": {"epoch": 8}, "status": {"inSync": ["r1"]}});
    let by_status = w.volumes.patch_status("a", &plain(), &Patch::Merge(both.clone())).await.unwrap();
    assert_eq!((by_status.spec.epoch, by_status.labels().len()), (7, 0));
    assert_eq!(by_status.status.as_ref().unwrap().in_sync, ["r1"]);
    assert_eq!(by_status.metadata.generation, Some(1));

    let other = json!({"metadata": {"labels": {"l": "1"}}, "spec": {"epoch": 8}, "status": {"inSync": ["evil"]}});
    let by_main = w.volumes.patch("a", &plain(), &Patch::Merge(other)).await.unwrap();
    assert_eq!((by_main.spec.epoch, by_main.labels().len()), (8, 1));
    assert_eq!(by_main.status.as_ref().unwrap().in_sync, ["r1"]);
    assert_eq!(by_main.metadata.generation, Some(2));

    let mut made = by_main.clone();
    made.spec.epoch = 99;
    made.status = Some(VolumeStatus { in_sync: vec!["r2".into()] });
    let put = w.volumes.replace_status("a", &PostParams::default(), &made).await.unwrap();
    assert_eq!((put.spec.epoch, put.metadata.generation), (8, Some(2)));
    assert_eq!(put.status.as_ref().unwrap().in_sync, ["r2"]);
    let refused = refusal(w.volumes.replace_status("a", &PostParams::default(), &made).await);
    assert!(refused.is_conflict(), "spec and status share one version");
    let mut without = put.clone();
    without.status = None;
    assert_eq!(w.volumes.replace("a", &PostParams::default(), &without).await.unwrap(), put, "a PUT cannot lose it");
}

#[tokio::test]
async fn a_patch_that_changes_nothing_keeps_the_version() {
    let w = world();
    w.create("a", 7, "n1").await;
    let status = json!({"status": {"inSync": ["r1"]}});
    let made = w.volumes.patch_status("a", &plain(), &Patch::Merge(status.clone())).await.unwrap();
    let before = w.store.resource_version();
    let again = [
        w.volumes.patch("a", &plain(), &Patch::Merge(json!({"spec": {"epoch": 7}}))).await,
        w.volumes.patch_status("a", &plain(), &Patch::Merge(status)).await,
        w.volumes.patch("a", &plain(), &json_patch(json!([{"op": "test", "path": "/spec/epoch", "value": 7}]))).await,
        w.volumes.patch("a", &plain(), &Patch::Merge(json!({"status": {"inSync": ["evil"]}}))).await,
        w.volumes.patch("a", &plain(), &Patch::Merge(json!({"metadata": {"finalizers": [], "labels": {}}}))).await,
    ];
    for same in again {
        assert_eq!(same.unwrap(), made);
    }
    assert_eq!(w.store.resource_version(), before);
}

#[tokio::test]
async fn a_patch_may_carry_an_optimistic_lock() {
    let w = world();
    let made = w.create("a", 7, "n1").await;
    let locked = |version: u64| json!({"metadata": {"resourceVersion": version.to_string()}, "spec": {"epoch": 8}});
    let wrong = Patch::Merge(locked(version(&made) - 1));
    assert!(refusal(w.volumes.patch("a", &plain(), &wrong).await).is_conflict());
    w.volumes.patch("a", &plain(), &Patch::Merge(locked(version(&made)))).await.unwrap();
    let uid = Patch::Merge(json!({"metadata": {"uid": "00000000-0000-4000-8000-000000000000"}}));
    assert_eq!(refusal(w.volumes.patch("a", &plain(), &uid).await).code, 422);
    let kind = Patch::Merge(json!({"kind": "Other"}));
    assert_eq!(refusal(w.volumes.patch("a", &plain(), &kind).await).code, 400);
    let root = json_patch(json!([{"op": "replace", "path": "", "value": []}]));
    assert_eq!(refusal(w.volumes.patch("a", &plain(), &root).await).code, 422);
}

#[tokio::test]
async fn patches_of_what_is_not_there() {
    let w = world();
    let merge = Patch::Merge(json!({"spec": {"epoch": 8}}));
    assert_eq!(refusal(w.volumes.patch("a", &plain(), &merge).await).code, 404);
    let apply = Patch::Apply(json!({"apiVersion": "test.meshstor.io/v1", "kind": "Volume", "status": {"inSync": []}}));
    assert_eq!(refusal(w.volumes.patch_status("a", &PatchParams::apply("m"), &apply).await).code, 404);
    w.create("a", 1, "").await;
    let strategic = Patch::Strategic(json!({"spec": {"epoch": 8}}));
    assert_eq!(refusal(w.volumes.patch("a", &plain(), &strategic).await).code, 415, "custom resources have none");
}

#[tokio::test]
async fn apply_creates_merges_and_is_idempotent() {
    let w = world();
    let mine = PatchParams::apply("test").force();
    let made = w.volumes.patch("a", &mine, &Patch::Apply(volume("a", 7, "n1"))).await.unwrap();
    assert_eq!((made.spec.epoch, made.metadata.generation), (7, Some(1)));
    let before = w.store.resource_version();
    assert_eq!(w.volumes.patch("a", &mine, &Patch::Apply(volume("a", 7, "n1"))).await.unwrap(), made);
    assert_eq!(w.store.resource_version(), before);
    let kind = json!({"apiVersion": "test.meshstor.io/v1", "kind": "Volume"});
    let mut partial = kind.clone();
    partial["spec"] = json!({"epoch": 8});
    let merged = w.volumes.patch("a", &mine, &Patch::Apply(partial.clone())).await.unwrap();
    assert_eq!((merged.spec.epoch, merged.spec.consumer.as_deref()), (8, Some("n1")));
    let mut status = kind;
    status["status"] = json!({"inSync": ["r1"]});
    let with_status = w.volumes.patch_status("a", &mine, &Patch::Apply(status)).await.unwrap();
    assert_eq!(with_status.status.unwrap().in_sync, ["r1"]);
    let nobody = refusal(w.volumes.patch("a", &plain(), &Patch::Apply(partial)).await);
    assert_eq!((nobody.code, nobody.details.unwrap().causes[0].field.as_str()), (422, "fieldManager"));
}

#[tokio::test]
async fn conditions_merge_by_type_on_nodes() {
    let w = world();
    let nodes: Api<Node> = Api::all(w.client.clone());
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
    let patch =
        json!({"status": {"conditions": [{"type": "Disk", "status": "True"}, {"type": "Ready", "status": "Unknown"}]}});
    let node = nodes.patch_status("n", &plain(), &Patch::Strategic(patch)).await.unwrap();
    let conditions = node.status.unwrap().conditions.unwrap();
    let short: Vec<_> = conditions.iter().map(|it| (it.type_.as_str(), it.status.as_str())).collect();
    assert_eq!(short, [("Ready", "Unknown"), ("Disk", "True")]);
}

#[tokio::test]
async fn fields_the_writer_does_not_know_survive_a_patch() {
    let w = world();
    let notes: Api<Note> = Api::namespaced(w.client.clone(), "x");
    notes.create(&PostParams::default(), &Note::new("n", NoteSpec::default())).await.unwrap();
    let newer = Patch::Merge(json!({"spec": {"future": 1}}));
    notes.patch("n", &plain(), &newer).await.unwrap();
    notes.patch("n", &plain(), &Patch::Merge(json!({"spec": {"text": "t"}}))).await.unwrap();
    assert_eq!(w.store.get("notes", "x", "n").unwrap()["spec"], json!({"text": "t", "future": 1}));
}
