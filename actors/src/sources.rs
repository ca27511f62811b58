//! Kubernetes watches turned into messages to the root actor.
//!
//! Runs on the multi-thread side (or, in simulations, in the one runtime there is). A node watches only what is its own:
//! replicas and drives by `spec.node`, volumes by `spec.attachment.consumer`, its own node objects by name, and for each
//! volume it has staged the volume's replicas. What is missing from a list or was deleted is passed on as a hint; the root
//! actor asks for it by name (K5). A broken watch begins anew, for ever: a network that is down is never fatal here.

use crate::events;
use actix::{Message, Recipient};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use kube::runtime::watcher::{self, Event};
use meshstor_api::{MeshStorNode, MeshStorNodeDevice, MeshStorReplica, MeshStorVolume};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

/// Pause after a broken watch, doubled up to the maximum while it stays broken.
const AGAIN_MIN: Duration = Duration::from_millis(500);
const AGAIN_MAX: Duration = Duration::from_secs(15);
/// A watch that has answered for this long was sound.
const SOUND: Duration = Duration::from_secs(30);

/// What a watch saw.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub enum Seen {
    /// Replicas on this node.
    Replica(Change<MeshStorReplica>),
    /// Volumes this node consumes.
    Volume(Change<MeshStorVolume>),
    /// Drives of this node.
    Device(Change<MeshStorNodeDevice>),
    /// This node's own object.
    Own(Change<MeshStorNode>),
    /// This node's Kubernetes object: its annotations.
    Machine(BTreeMap<String, String>),
    /// Some replica of this volume, on whatever node.
    CopyOf(String),
}

/// A change of one kind's objects.
#[derive(Debug)]
pub enum Change<K> {
    /// All there are.
    Listed(Vec<K>),
    /// One is new or changed.
    Applied(Box<K>),
    /// One was deleted, or no longer matches the selector: only a hint.
    Gone(String),
}

/// Begins watches.
#[derive(Clone)]
pub struct Sources {
    runtime: Handle,
    client: kube::Client,
    to: Recipient<Seen>,
}

/// A running watch; dropping it ends it.
#[derive(Debug)]
pub struct Watching(AbortHandle);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Sources {
    /// Watches run on `runtime` and tell `to`.
    pub fn new(runtime: Handle, client: kube::Client, to: Recipient<Seen>) -> Sources {
        Sources { runtime, client, to }
    }

    /// Begins the watches that every node has.
    pub fn watch_own(&self, node: &str) -> Vec<Watching> {
        vec![
            self.watch::<MeshStorReplica>("replica", format!("spec.node={node}"), Seen::Replica),
            self.watch::<MeshStorVolume>("volume", format!("spec.attachment.consumer={node}"), Seen::Volume),
            self.watch::<MeshStorNodeDevice>("device", format!("spec.node={node}"), Seen::Device),
            self.watch::<MeshStorNode>("node", format!("metadata.name={node}"), Seen::Own),
            self.watch::<Node>("machine", format!("metadata.name={node}"), |change| {
                let node = match change {
                    Change::Listed(nodes) => nodes.into_iter().next(),
                    Change::Applied(node) => Some(*node),
                    Change::Gone(_) => None,
                };
                Seen::Machine(node.and_then(|node| node.metadata.annotations).unwrap_or_default())
            }),
        ]
    }

    /// Begins the watch of all replicas of a volume.
    pub fn watch_copies(&self, volume: &str) -> Watching {
        let name = volume.to_string();
        self.watch::<MeshStorReplica>("copy", format!("spec.volume={volume}"), move |_| Seen::CopyOf(name.clone()))
    }

    fn watch<K>(
        &self,
        kind: &'static str,
        fields: String,
        tell: impl Fn(Change<K>) -> Seen + Send + 'static,
    ) -> Watching
    where
        K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    {
        let api: Api<K> = Api::all(self.client.clone());
        let task = self.runtime.spawn(follow(kind, api, fields, self.to.clone(), tell));
        Watching(task.abort_handle())
    }
}

/// Follows one watch until nobody listens any more.
async fn follow<K>(
    kind: &'static str,
    api: Api<K>,
    fields: String,
    to: Recipient<Seen>,
    tell: impl Fn(Change<K>) -> Seen,
) where
    K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut pause = AGAIN_MIN;
    loop {
        let begun = tokio::time::Instant::now();
        let mut events = watcher::watcher(api.clone(), watcher::Config::default().fields(&fields)).boxed();
        let mut listed = Vec::new();
        let error = loop {
            let change = match events.try_next().await {
                Ok(Some(Event::Init)) => {
                    listed.clear();
                    continue;
                }
                Ok(Some(Event::InitApply(object))) => {
                    listed.push(object);
                    continue;
                }
                Ok(Some(Event::InitDone)) => Change::Listed(std::mem::take(&mut listed)),
                Ok(Some(Event::Apply(object))) => Change::Applied(Box::new(object)),
                Ok(Some(Event::Delete(object))) => Change::Gone(object.meta().name.clone().unwrap_or_default()),
                Ok(None) => break "the stream ended".to_string(),
                Err(error) => break error.to_string(),
            };
            if to.send(tell(change)).await.is_err() {
                return;
            }
        };
        events::watch_failed(kind, &error);
        pause = if begun.elapsed() >= SOUND { AGAIN_MIN } else { pause };
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(AGAIN_MAX);
    }
}
