//! Create, read, replace: metadata, versions, conflicts, selectors.

use crate::world::{
    BIRTHDAY, Note, NoteSpec, Volume, VolumeSpec, VolumeStatus, builder, refusal, version, volume, world,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{GetParams, ListParams, ObjectMeta, PostParams};
use kube::{Api, Resource, ResourceExt};

fn post() -> PostParams {
    PostParams::default()
}

#[tokio::test]
async fn create_fills_in_metadata_and_drops_status() {
    let w = world();
    let mut body = volume("a", 1, "n1");
    body.metadata.uid = Some("mine".into());
    body.metadata.generation = Some(9);
    body.status = Some(VolumeStatus { in_sync: vec!["r1".into()] });
    let made = w.volumes.create(&post(), &body).await.unwrap();
    assert_eq!(made.status, None);
    assert_eq!(made.metadata.generation, Some(1));
    assert_ne!(made.metadata.uid.as_deref(), Some("mine"));
    assert_eq!(made.metadata.uid.as_ref().unwrap().len(), 36);
    assert_eq!(made.creation_timestamp().unwrap().0.to_string(), BIRTHDAY);
    assert_eq!(version(&made), w.store.resource_version());
    assert_eq!(w.volumes.get("a").await.unwrap(), made);
}

#[tokio::test]
async fn a_kind_without_status_subresource_keeps_its_status() {
    let w = world();
    let notes: Api<kube::api::DynamicObject> =
        Api::namespaced_with(w.client.clone(), "x", &kube::api::ApiResource::erase::<Note>(&()));
    let body = serde_json::json!({"apiVersion": "test.meshstor.io/v1", "kind": "Note",
        "metadata": {"name": "n"}, "spec": {}, "status": {"a": 1}});
    let mut made = notes.create(&post(), &serde_json::from_value(body).unwrap()).await.unwrap();
    assert_eq!(made.data["status"]["a"], 1);
    assert_eq!(made.namespace().as_deref(), Some("x"));
    made.data["status"]["a"] = 2.into();
    let replaced = notes.replace("n", &post(), &made).await.unwrap();
    assert_eq!(replaced.metadata.generation, Some(2), "without the subresource status is content like any other");
    assert_eq!(refusal(notes.get_status("n").await).code, 404);
}

#[tokio::test]
async fn bad_creates_are_refused_as_by_a_real_server() {
    let w = world();
    w.create("a", 1, "").await;
    let twice = refusal(w.volumes.create(&post(), &volume("a", 1, "")).await);
    assert_eq!((twice.code, twice.reason.as_str()), (409, "AlreadyExists"));
    assert_eq!(twice.message, "volumes.test.meshstor.io \"a\" already exists");
    let name = refusal(w.volumes.create(&post(), &volume("Not_ok", 1, "")).await);
    assert_eq!((name.code, name.reason.as_str()), (422, "Invalid"));
    assert_eq!(name.details.unwrap().causes[0].field, "metadata.name");
    let mut body = volume("b", 1, "");
    body.metadata.resource_version = Some("5".into());
    assert_eq!(refusal(w.volumes.create(&post(), &body).await).code, 500);
    let notes: Api<Note> = Api::namespaced(w.client.clone(), "x");
    let mut note = Note::new("n", NoteSpec::default());
    note.metadata.namespace = Some("y".into());
    assert_eq!(refusal(notes.create(&post(), &note).await).code, 400);
    let everywhere: Api<Note> = Api::all(w.client.clone());
    assert_eq!(refusal(everywhere.create(&post(), &Note::new("n", NoteSpec::default())).await).code, 405);
}

#[tokio::test]
async fn generated_names_are_distinct_and_repeatable() {
    let mut runs = Vec::new();
    for seed in [7, 7, 8] {
        let w = crate::world::World::of(builder().seed(seed).build());
        let mut body = volume("", 1, "");
        body.metadata = ObjectMeta { generate_name: Some("v-".into()), ..ObjectMeta::default() };
        let first = w.volumes.create(&post(), &body).await.unwrap();
        let second = w.volumes.create(&post(), &body).await.unwrap();
        assert!(first.name_any().starts_with("v-") && first.name_any().len() == 7);
        assert_ne!(first.name_any(), second.name_any());
        runs.push((first.name_any(), first.uid(), second.uid()));
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}

#[tokio::test]
async fn replace_with_an_old_version_conflicts() {
    let w = world();
    let old = w.create("a", 1, "n1").await;
    let mut fresh = old.clone();
    fresh.spec.epoch = 2;
    let new = w.volumes.replace("a", &post(), &fresh).await.unwrap();
    assert_eq!((new.spec.epoch, new.metadata.generation), (2, Some(2)));
    let refused = refusal(w.volumes.replace("a", &post(), &old).await);
    assert!(refused.is_conflict());
    assert_eq!((refused.code, refused.reason.as_str()), (409, "Conflict"));
    assert!(refused.message.contains("the object has been modified"), "{}", refused.message);
    assert_eq!(w.volumes.get("a").await.unwrap(), new);
}

#[tokio::test]
async fn replace_needs_version_uid_name_and_object() {
    let w = world();
    let made = w.create("a", 1, "n1").await;
    let mut body = made.clone();
    body.metadata.resource_version = None;
    let refused = refusal(w.volumes.replace("a", &post(), &body).await);
    assert_eq!((refused.code, refused.reason.as_str()), (422, "Invalid"));
    assert!(refused.message.ends_with("must be specified for an update"));
    body = made.clone();
    body.metadata.uid = Some("00000000-0000-4000-8000-000000000000".into());
    assert_eq!(refusal(w.volumes.replace("a", &post(), &body).await).code, 409);
    assert_eq!(refusal(w.volumes.replace("b", &post(), &made).await).code, 404);
    w.create("b", 1, "").await;
    assert_eq!(refusal(w.volumes.replace("b", &post(), &made).await).code, 400);
}

#[tokio::test]
async fn core_kinds_may_be_replaced_without_a_version_but_leases_not() {
    let w = world();
    let nodes: Api<Node> = Api::all(w.client.clone());
    let mut node = Node { metadata: crate::world::meta("n"), ..Node::default() };
    nodes.create(&post(), &node).await.unwrap();
    node.labels_mut().insert("a".into(), "b".into());
    assert_eq!(nodes.replace("n", &post(), &node).await.unwrap().labels()["a"], "b");
    let leases: Api<Lease> = Api::namespaced(w.client.clone(), "x");
    let lease = Lease { metadata: crate::world::meta("l"), ..Lease::default() };
    leases.create(&post(), &lease).await.unwrap();
    assert_eq!(refusal(leases.replace("l", &post(), &lease).await).code, 422);
}

#[tokio::test]
async fn a_replace_that_changes_nothing_is_no_change() {
    let w = world();
    let made = w.create("a", 1, "n1").await;
    let before = w.store.resource_version();
    assert_eq!(w.volumes.replace("a", &post(), &made).await.unwrap(), made);
    assert_eq!(w.store.resource_version(), before);
    let mut labelled = made.clone();
    labelled.labels_mut().insert("l".into(), "1".into());
    let labelled = w.volumes.replace("a", &post(), &labelled).await.unwrap();
    assert_eq!(labelled.metadata.generation, Some(1), "metadata is no spec");
    assert_eq!(version(&labelled), before + 1);
}

#[tokio::test]
async fn the_version_counter_is_global() {
    let w = world();
    let a = w.create("a", 1, "").await;
    let notes: Api<Note> = Api::namespaced(w.client.clone(), "x");
    let note = notes.create(&post(), &Note::new("n", NoteSpec::default())).await.unwrap();
    assert_eq!(note.resource_version().unwrap(), (version(&a) + 1).to_string());
    let list = w.volumes.list(&ListParams::default()).await.unwrap();
    assert_eq!(list.metadata.resource_version, note.resource_version());
}

#[tokio::test]
async fn lists_are_ordered_and_filtered() {
    let w = world();
    for (name, epoch, consumer) in [("c", 1, "n1"), ("a", 1, "n2"), ("b", 2, "n1")] {
        let mut body = volume(name, epoch, consumer);
        body.labels_mut().insert("tier".into(), consumer.into());
        w.volumes.create(&post(), &body).await.unwrap();
    }
    let names = async |params: ListParams| -> Vec<String> {
        w.volumes.list(&params).await.unwrap().items.iter().map(ResourceExt::name_any).collect()
    };
    let all = ListParams::default;
    assert_eq!(names(all()).await, ["a", "b", "c"]);
    assert_eq!(names(all().limit(1)).await, ["a", "b", "c"], "a limit may be ignored");
    assert_eq!(names(all().match_any()).await, ["a", "b", "c"]);
    assert_eq!(names(all().labels("tier in (n1)")).await, ["b", "c"]);
    assert_eq!(names(all().fields("spec.consumer=n1")).await, ["b", "c"]);
    assert_eq!(names(all().fields("spec.consumer=n1,spec.epoch!=2")).await, ["c"]);
    assert_eq!(names(all().fields("metadata.name=a")).await, ["a"]);
    let refused = refusal(w.volumes.list(&all().fields("spec.other=1")).await);
    assert_eq!((refused.code, refused.message.as_str()), (400, "field label not supported: spec.other"));
}

#[tokio::test]
async fn namespaces_separate_objects() {
    let w = world();
    for space in ["x", "y"] {
        let notes: Api<Note> = Api::namespaced(w.client.clone(), space);
        notes.create(&post(), &Note::new("n", NoteSpec { text: space.into() })).await.unwrap();
    }
    let in_x: Api<Note> = Api::namespaced(w.client.clone(), "x");
    assert_eq!(in_x.get("n").await.unwrap().spec.text, "x");
    assert_eq!(in_x.list(&ListParams::default()).await.unwrap().items.len(), 1);
    let all: Api<Note> = Api::all(w.client.clone());
    assert_eq!(all.list(&ListParams::default()).await.unwrap().items.len(), 2);
    let selected = all.list(&ListParams::default().fields("metadata.namespace=y")).await.unwrap();
    assert_eq!(selected.items[0].spec.text, "y");
}

#[tokio::test]
async fn reads_refuse_the_future_and_unknown_kinds() {
    let w = world();
    w.create("a", 1, "").await;
    let future = refusal(w.volumes.get_with("a", &GetParams::at("999")).await);
    assert_eq!((future.code, future.reason.as_str()), (504, "Timeout"));
    assert_eq!(refusal(w.volumes.list(&ListParams::default().at("999")).await).code, 504);
    let missing = refusal(w.volumes.get("b").await);
    assert!(missing.is_not_found());
    assert_eq!(missing.message, "volumes.test.meshstor.io \"b\" not found");
    let secrets: Api<k8s_openapi::api::core::v1::Secret> = Api::namespaced(w.client.clone(), "x");
    assert_eq!(refusal(secrets.get("s").await).message, "the server could not find the requested resource");
}

#[tokio::test]
async fn metadata_alone_can_be_asked_for() {
    let w = world();
    let made = w.create("a", 1, "n1").await;
    let partial = w.volumes.get_metadata("a").await.unwrap();
    assert_eq!(partial.metadata, *made.meta());
    assert_eq!(partial.types.unwrap().kind, "PartialObjectMetadata");
    assert_eq!(w.volumes.list_metadata(&ListParams::default()).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let w = world();
    let before = w.store.resource_version();
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    assert_eq!(w.volumes.create(&dry, &volume("a", 1, "")).await.unwrap().metadata.generation, Some(1));
    let made = w.create("b", 1, "").await;
    let mut changed = made.clone();
    changed.spec.epoch = 2;
    assert_eq!(w.volumes.replace("b", &dry, &changed).await.unwrap().metadata.generation, Some(2));
    assert_eq!(w.store.resource_version(), before + 1);
    assert!(w.store.get("volumes", "", "a").is_none());
    assert_eq!(w.volumes.get("b").await.unwrap(), made);
}

#[tokio::test]
async fn the_validator_sees_old_and_new_and_answers_422() {
    let rule = |schema: &meshstor_memstore::Schema, old: Option<&serde_json::Value>, new: &serde_json::Value| {
        let epoch = |object: &serde_json::Value| object.pointer("/spec/epoch").and_then(serde_json::Value::as_u64);
        match old {
            Some(old) if schema.kind == "Volume" && epoch(new) < epoch(old) => Err("epoch went back".to_owned()),
            _ => Ok(()),
        }
    };
    let w = crate::world::World::of(builder().validator(rule).build());
    let mut made = w.create("a", 7, "").await;
    made.spec.epoch = 6;
    let refused = refusal(w.volumes.replace("a", &post(), &made).await);
    assert_eq!((refused.code, refused.reason.as_str()), (422, "Invalid"));
    assert_eq!(refused.message, "Volume.test.meshstor.io \"a\" is invalid: epoch went back");
    assert_eq!(w.volumes.get("a").await.unwrap().spec.epoch, 7);
    made.spec.epoch = 8;
    w.volumes.replace("a", &post(), &made).await.unwrap();
}

#[tokio::test]
async fn the_cluster_has_a_version_kinds_and_an_identity() {
    let w = world();
    assert_eq!(w.client.apiserver_version().await.unwrap().major, "1");
    let kinds = w.client.list_api_group_resources("test.meshstor.io/v1").await.unwrap().resources;
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name.as_str()).collect();
    assert_eq!(names, ["volumes", "volumes/status", "notes"]);
    let groups = w.client.list_api_groups().await.unwrap().groups;
    assert!(groups.iter().any(|group| group.name == "coordination.k8s.io"));
    let namespaces: Api<Namespace> = Api::all(w.client.clone());
    assert!(namespaces.get("kube-system").await.unwrap().uid().is_some());
    let pods: Api<Pod> = Api::namespaced(w.client.clone(), "default");
    assert!(pods.list(&ListParams::default().fields("spec.nodeName=n")).await.unwrap().items.is_empty());
}

#[test]
fn a_crd_tells_the_schema() {
    use kube::CustomResourceExt;
    let schema = meshstor_memstore::Schema::from_crd(&Volume::crd()).unwrap();
    assert!(!schema.namespaced && schema.status_subresource);
    assert_eq!(schema.selectable_fields, [".spec.consumer", ".spec.epoch"]);
    assert_eq!(VolumeSpec::default().epoch, 0);
}
