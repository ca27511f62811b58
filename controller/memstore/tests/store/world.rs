//! The kinds, the store and the small helpers every test starts from.

use futures::StreamExt;
use kube::api::{ObjectMeta, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::core::Status;
use kube::{Api, Client, CustomResource, CustomResourceExt};
use meshstor_memstore::{Builder, Schema, Store, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::pin::Pin;
use std::time::Duration;

/// A volume in miniature: what MeshStor's compare-and-swap needs of its kinds.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "test.meshstor.io", version = "v1", kind = "Volume", plural = "volumes", status = "VolumeStatus")]
#[kube(selectable = ".spec.consumer", selectable = ".spec.epoch", derive = "PartialEq")]
#[serde(rename_all = "camelCase")]
pub struct VolumeSpec {
    #[serde(default)]
    pub epoch: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStatus {
    #[serde(default)]
    pub in_sync: Vec<String>,
}

/// A namespaced kind without status subresource.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "test.meshstor.io", version = "v1", kind = "Note", namespaced)]
pub struct NoteSpec {
    #[serde(default)]
    pub text: String,
}

pub const BIRTHDAY: &str = "2026-01-02T03:04:05Z";

pub fn builder() -> Builder {
    let birthday: Timestamp = BIRTHDAY.parse().unwrap();
    Store::builder()
        .schemas([Schema::from_crd(&Volume::crd()).unwrap(), Schema::from_crd(&Note::crd()).unwrap()])
        .clock(move || birthday)
}

/// A store, one client of it and that client's volumes.
pub struct World {
    pub store: Store,
    pub client: Client,
    pub volumes: Api<Volume>,
}

pub fn world() -> World {
    World::of(builder().build())
}

impl World {
    pub fn of(store: Store) -> Self {
        let client = store.client_for("test");
        let volumes = Api::all(client.clone());
        Self { store, client, volumes }
    }

    /// The volumes as seen by another client.
    pub fn volumes_of(&self, name: &str) -> Api<Volume> {
        Api::all(self.store.client_for(name))
    }

    pub async fn create(&self, name: &str, epoch: u64, consumer: &str) -> Volume {
        self.volumes.create(&PostParams::default(), &volume(name, epoch, consumer)).await.unwrap()
    }

    /// A change of the spec past all optimistic locks, by the plain client.
    pub async fn set_consumer(&self, name: &str, epoch: u64, consumer: &str) -> Volume {
        let patch = serde_json::json!({"spec": {"epoch": epoch, "consumer": consumer}});
        self.volumes.patch(name, &PatchParams::default(), &kube::api::Patch::Merge(patch)).await.unwrap()
    }
}

pub fn volume(name: &str, epoch: u64, consumer: &str) -> Volume {
    let consumer = (!consumer.is_empty()).then(|| consumer.to_owned());
    Volume::new(name, VolumeSpec { epoch, consumer })
}

pub fn meta(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() }
}

pub fn version(volume: &Volume) -> u64 {
    volume.metadata.resource_version.as_ref().unwrap().parse().unwrap()
}

/// The server's refusal; anything else fails the test.
pub fn refusal<T: Debug>(result: kube::Result<T>) -> Box<Status> {
    match result {
        Err(kube::Error::Api(status)) => status,
        other => panic!("expected a refusal by the server, got {other:?}"),
    }
}

/// The error text of a broken connection; anything else fails the test.
pub fn broken_link<T: Debug>(result: kube::Result<T>) -> String {
    match result {
        Err(kube::Error::Service(error)) => error.to_string(),
        other => panic!("expected a broken connection, got {other:?}"),
    }
}

pub type Events = Pin<Box<dyn futures::Stream<Item = kube::Result<WatchEvent<Volume>>> + Send>>;

pub async fn watch(api: &Api<Volume>, params: &WatchParams, from: &str) -> Events {
    api.watch(params, from).await.unwrap().boxed()
}

/// The next event in short: `ADDED a epoch consumer @version`.
pub async fn next(events: &mut Events) -> String {
    let event = tokio::time::timeout(Duration::from_secs(5), events.next()).await.expect("no event within 5 s");
    let show = |kind: &str, volume: Volume| {
        let consumer = volume.spec.consumer.clone().unwrap_or_default();
        let name = volume.metadata.name.clone().unwrap();
        format!("{kind} {name} {} {consumer} @{}", volume.spec.epoch, version(&volume))
    };
    match event {
        Some(Ok(WatchEvent::Added(volume))) => show("ADDED", volume),
        Some(Ok(WatchEvent::Modified(volume))) => show("MODIFIED", volume),
        Some(Ok(WatchEvent::Deleted(volume))) => show("DELETED", volume),
        Some(Ok(WatchEvent::Bookmark(mark))) => {
            let end = mark.metadata.annotations.contains_key("k8s.io/initial-events-end");
            format!("BOOKMARK{} @{}", if end { " initial-end" } else { "" }, mark.metadata.resource_version)
        }
        Some(Ok(WatchEvent::Error(status))) => format!("ERROR {} {}", status.code, status.reason),
        Some(Err(error)) => format!("broken: {error}"),
        None => "end".into(),
    }
}

/// Nothing arrives, although everything that is going to happen has happened. Needs a paused clock.
pub async fn nothing(events: &mut Events) {
    let event = tokio::time::timeout(Duration::from_secs(1), events.next()).await;
    assert!(event.is_err(), "expected silence");
}
