//! Tells people of a volume's troubles where they look: at the claim, its PersistentVolume and the pods that use it. (P9)
//!
//! Called by the watch of volumes with every object that it shows; that costs no request and never waits. What is to be
//! told goes into a queue, and [`run`] sends it beside the loop. Nothing depends on an event: when the queue is full or the
//! server takes none, it is counted and forgotten. Every controller does the same under the same names, so the server
//! takes each event once. It changes nothing but events.
//!
//! ```text
//! watch msvol ─▶ news (pure) ─▶ queue ─▶ run: PersistentVolume ─▶ claim ─▶ pods on the consumer ─▶ one event each
//! ```

mod news;

use crate::Context;
use crate::names;
use crate::telemetry::{self, Telling};
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DynamicObject, ListParams, PostParams};
use kube::{Client, Resource};
use meshstor_api::condition::Condition;
use meshstor_api::tell::NOTE_MAX;
use meshstor_api::volume::{Claim, MeshStorVolume};
use news::{News, event_name, news, uses};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// The death of a node is news of each of its volumes; more than twice the number that a node uses need not be kept.
const QUEUE_MAX: usize = 512;
/// How long a request for an event may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// A claim that more pods than these use on one node at a time tells the others nothing.
const PODS_MAX: usize = 16;
/// Who speaks.
const REPORTER: &str = "csi.meshstor.io/controller";

/// News of one volume.
pub(crate) struct Message {
    volume: ObjectReference,
    claim: Claim,
    consumer: Option<String>,
    news: Vec<News>,
}

/// What the watch has shown, and the way to tell.
pub(crate) struct Herald {
    seen: Mutex<BTreeMap<String, Vec<Condition>>>,
    queue: Sender<Message>,
}

impl Herald {
    /// With the end from which [`run`] sends.
    pub(crate) fn new() -> (Herald, Receiver<Message>) {
        let (queue, messages) = channel(QUEUE_MAX);
        (Herald { seen: Mutex::default(), queue }, messages)
    }

    /// A volume as the watch shows it.
    pub(crate) fn volume(&self, object: &DynamicObject) {
        let part = |path: &str| object.data.pointer(path).cloned().unwrap_or_default();
        let now: Vec<Condition> = serde_json::from_value(part("/status/conditions")).unwrap_or_default();
        let consumer = part("/spec/attachment/consumer").as_str().map(str::to_string);
        let name = object.metadata.name.clone().unwrap_or_default();
        let before = self.lock().insert(name.clone(), now.clone());
        let Ok(claim) = serde_json::from_value::<Claim>(part("/spec/claim")) else { return };
        let version = object.metadata.resource_version.as_deref().unwrap_or_default();
        let news = news(before.as_deref(), &now, consumer.is_some(), version);
        if news.is_empty() {
            return;
        }
        let volume = ObjectReference {
            api_version: Some(MeshStorVolume::api_version(&()).into_owned()),
            kind: Some(MeshStorVolume::kind(&()).into_owned()),
            name: Some(name),
            uid: object.metadata.uid.clone(),
            ..ObjectReference::default()
        };
        if self.queue.try_send(Message { volume, claim, consumer, news }).is_err() {
            telemetry::told(Telling::Dropped);
        }
    }

    /// A volume is gone.
    pub(crate) fn gone(&self, name: &str) {
        self.lock().remove(name);
    }

    /// These are all volumes.
    pub(crate) fn listed<T>(&self, known: &BTreeMap<String, T>) {
        self.lock().retain(|name, _| known.contains_key(name));
    }

    /// Nothing panics while holding this lock, and what it guards is never half changed.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<Condition>>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends what is to be told, one volume after the other, for ever.
pub(crate) async fn run(context: &Context, mut messages: Receiver<Message>) {
    while let Some(message) = messages.recv().await {
        let client = context.writer.client();
        let audience = audience(&client, &message).await;
        for news in &message.news {
            for listener in &audience {
                send(&client, listener, &message.volume, news, (context.config.now)()).await;
            }
        }
    }
}

/// Whom a message concerns; those that cannot be asked for hear nothing.
async fn audience(client: &Client, message: &Message) -> Vec<ObjectReference> {
    let Claim { namespace, name, persistent_volume } = &message.claim;
    let mut audience = Vec::new();
    let mut claim = None;
    let handle = message.volume.name.as_deref().unwrap_or_default();
    if let Some(wanted) = persistent_volume.as_ref().filter(|name| names::is_node_name(name)) {
        let found = asked(Api::<PersistentVolume>::all(client.clone()).get_opt(wanted)).await.flatten();
        if let Some(volume) = found.filter(|volume| leads_to(volume, handle)) {
            // A volume that was kept and bound anew belongs to another claim by now.
            claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone());
            audience.push(volume.object_ref(&()));
        }
    }
    if claim.is_none() && names::is_node_name(namespace) && names::is_node_name(name) {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
        let found = asked(api.get_opt(name)).await.flatten();
        claim = found.filter(|found| made_for(found, &message.claim)).map(|found| found.object_ref(&()));
    }
    if let Some(claim) = claim {
        let pods = pods(client, &claim, message.consumer.as_deref()).await;
        audience.push(claim);
        audience.extend(pods);
    }
    audience
}

/// Whether a PersistentVolume is the volume of this name.
pub(crate) fn leads_to(volume: &PersistentVolume, handle: &str) -> bool {
    let source = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
    source.is_some_and(|source| source.driver == meshstor_api::DRIVER && source.volume_handle == handle)
}

/// Whether a claim is the one that a volume was made for: one of the same name that was made since has a volume of its own.
pub(crate) fn made_for(found: &PersistentVolumeClaim, claim: &Claim) -> bool {
    let bound = found.spec.as_ref().and_then(|spec| spec.volume_name.as_ref());
    bound.is_none_or(|name| Some(name) == claim.persistent_volume.as_ref())
}

/// The pods that use a claim where its volume is.
async fn pods(client: &Client, claim: &ObjectReference, consumer: Option<&str>) -> Vec<ObjectReference> {
    let (Some(namespace), Some(name)) = (&claim.namespace, &claim.name) else { return Vec::new() };
    let Some(node) = consumer.filter(|node| names::is_node_name(node)) else { return Vec::new() };
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let found = asked(api.list(&params)).await.map(|list| list.items).unwrap_or_default();
    found.iter().filter(|pod| uses(pod, name)).take(PODS_MAX).map(|pod| pod.object_ref(&())).collect()
}

/// An answer in time; `None` when there was none, which is no more than a line in the log.
async fn asked<T>(request: impl Future<Output = kube::Result<T>>) -> Option<T> {
    match tokio::time::timeout(PATIENCE, request).await {
        Ok(Ok(answer)) => return Some(answer),
        Ok(Err(error)) => tracing::debug!(%error, "nobody could be told"),
        Err(_elapsed) => tracing::debug!("nobody could be told in time"),
    }
    telemetry::told(Telling::Failed);
    None
}

async fn send(client: &Client, listener: &ObjectReference, volume: &ObjectReference, news: &News, now: Timestamp) {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    // What has no namespace is told of in this one, as Kubernetes demands.
    let namespace = listener.namespace.clone().unwrap_or_else(|| "default".to_string());
    let name = event_name(&text(&listener.name), &text(&listener.uid), &text(&volume.uid), &news.mark);
    let metadata = ObjectMeta { name: Some(name), namespace: Some(namespace.clone()), ..ObjectMeta::default() };
    let event = Event {
        metadata,
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(REPORTER.to_string()),
        reporting_instance: Some(REPORTER.to_string()),
        action: Some("Watch".to_string()),
        reason: Some(news.reason.clone()),
        note: Some(news.note.chars().take(NOTE_MAX).collect()),
        type_: Some(if news.warning { "Warning" } else { "Normal" }.to_string()),
        regarding: Some(listener.clone()),
        related: Some(volume.clone()),
        ..Event::default()
    };
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    let outcome = match tokio::time::timeout(PATIENCE, api.create(&PostParams::default(), &event)).await {
        Ok(Ok(_)) => Telling::Sent,
        // Another controller was first.
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => Telling::Known,
        Ok(Err(error)) => {
            tracing::debug!(%error, reason = news.reason, "no event could be written");
            Telling::Failed
        }
        Err(_elapsed) => Telling::Failed,
    };
    telemetry::told(outcome);
}
