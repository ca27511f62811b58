//! The background loop: watches give hints, a timer covers lost ones, every look asks the API server itself.
//!
//! Run by `Controller::run`, in every controller process for now: it carries no correctness, so a second one only costs
//! requests. What a watch says is never believed, only taken as a reason to look (K5).
//!
//! ```text
//! watch msvol ──┐                          ┌─▶ reconcile(volume) ─▶ rest │ again after …
//! watch msrep ──┼─▶ dirty volumes (queue) ─┤
//! watch msnode ─┤    one look at a time    └─▶ a failed look comes back after `retry`
//! resync timer ─┘    for each volume
//! ```
//!
//! What the watches show goes to the herald as well, who tells claims and pods, and to the census, which counts.

use crate::Context;
use crate::census::{self, Census};
use crate::herald::{self, Herald};
use crate::reconcile::{self, Next};
use crate::telemetry;
use crate::writer::Kind;
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use kube::api::DynamicObject;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use meshstor_api::{MeshStorNode, MeshStorReplica, MeshStorVolume};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Looks that run at the same time.
const PARALLEL: usize = 16;
/// With nothing due the worker sleeps until it is woken, at most this long.
const IDLE: Duration = Duration::from_secs(3600);

/// Runs for ever.
pub(crate) async fn run(context: Arc<Context>) {
    let (herald, news) = Herald::new();
    let state = State {
        queue: Mutex::default(),
        wake: Notify::new(),
        consumers: Mutex::default(),
        herald,
        census: Census::default(),
    };
    let context = &*context;
    futures::join!(
        volumes(context, &state),
        replicas(context, &state),
        nodes(context, &state),
        resync(context, &state),
        work(context, &state),
        herald::run(context, news),
        census::run(&state.census)
    );
}

/// What the loop remembers: hints only.
struct State {
    /// Volumes to look at, and when.
    queue: Mutex<BTreeMap<String, Instant>>,
    wake: Notify,
    /// Consumer of each volume we know of.
    consumers: Mutex<BTreeMap<String, Option<String>>>,
    herald: Herald,
    census: Census,
}

impl State {
    /// Looks at a volume after `delay`, or earlier if that was asked for before.
    fn mark(&self, volume: &str, delay: Duration) {
        let due = Instant::now() + delay;
        let mut queue = lock(&self.queue);
        let at = queue.entry(volume.to_string()).or_insert(due);
        *at = due.min(*at);
        drop(queue);
        self.wake.notify_one();
    }

    /// A volume that is due and not being looked at.
    fn take(&self, busy: &BTreeSet<String>) -> Option<String> {
        let now = Instant::now();
        let mut queue = lock(&self.queue);
        let due = queue.iter().filter(|(name, at)| **at <= now && !busy.contains(*name)).min_by_key(|(_, at)| **at);
        let name = due.map(|(name, _)| name.clone())?;
        queue.remove(&name);
        Some(name)
    }

    /// When the next volume will be due.
    fn next(&self, busy: &BTreeSet<String>) -> Instant {
        let queue = lock(&self.queue);
        let next = queue.iter().filter(|(name, _)| !busy.contains(*name)).map(|(_, at)| *at).min();
        next.unwrap_or_else(|| Instant::now() + IDLE)
    }
}

/// Takes due volumes and looks at them.
async fn work(context: &Context, state: &State) {
    let mut busy = BTreeSet::new();
    let mut running = FuturesUnordered::new();
    loop {
        while running.len() < PARALLEL
            && let Some(name) = state.take(&busy)
        {
            busy.insert(name.clone());
            running.push(look(context, name));
        }
        let next = state.next(&busy);
        tokio::select! {
            Some((name, again)) = running.next(), if !running.is_empty() => {
                busy.remove(&name);
                if let Some(delay) = again {
                    state.mark(&name, delay);
                }
            }
            () = state.wake.notified() => {}
            () = tokio::time::sleep_until(next), if running.len() < PARALLEL => {}
        }
    }
}

/// One look; answers when the next one is due, if a hint is not enough.
async fn look(context: &Context, name: String) -> (String, Option<Duration>) {
    let result = reconcile::reconcile(context, &name).await;
    telemetry::reconciled(result.is_ok());
    let again = match result {
        Ok(Next::Rest) => None,
        Ok(Next::After(delay)) => Some(delay),
        Err(error) => {
            tracing::warn!(volume = %name, %error, "looking again");
            Some(context.config.retry)
        }
    };
    (name, again)
}

/// Everything is looked at now and then: a lost hint costs time, nothing else.
async fn resync(context: &Context, state: &State) {
    loop {
        tokio::time::sleep(context.config.resync).await;
        let known: Vec<String> = lock(&state.consumers).keys().cloned().collect();
        known.iter().for_each(|volume| state.mark(volume, Duration::ZERO));
    }
}

// ------------------------------------------------------------------------------------------------ watches

async fn volumes(context: &Context, state: &State) {
    let mut fresh: BTreeMap<String, Option<String>> = BTreeMap::new();
    let mut events = pin!(watched::<MeshStorVolume>(context));
    while let Some(event) = events.next().await {
        match event {
            Event::Init => fresh.clear(),
            Event::InitApply(object) => {
                context.budget.volume(&object);
                state.herald.volume(&object);
                state.census.volume(&object);
                fresh.insert(name(&object), text(&object, "/spec/attachment/consumer"));
            }
            Event::InitDone => {
                let known = std::mem::take(&mut fresh);
                for volume in known.keys() {
                    changed(context, state, volume);
                }
                context.budget.volumes_listed(&known);
                state.herald.listed(&known);
                state.census.volumes_listed(&known);
                *lock(&state.consumers) = known;
            }
            Event::Apply(object) => {
                context.budget.volume(&object);
                state.herald.volume(&object);
                state.census.volume(&object);
                lock(&state.consumers).insert(name(&object), text(&object, "/spec/attachment/consumer"));
                changed(context, state, &name(&object));
            }
            Event::Delete(object) => {
                state.herald.gone(&name(&object));
                state.census.volume_gone(&object);
                lock(&state.consumers).remove(&name(&object));
                changed(context, state, &name(&object));
            }
        }
    }
}

async fn replicas(context: &Context, state: &State) {
    let mut fresh = BTreeSet::new();
    let mut events = pin!(watched::<MeshStorReplica>(context));
    while let Some(event) = events.next().await {
        match &event {
            Event::Init => fresh.clear(),
            Event::InitApply(object) => {
                state.census.copy(object);
                fresh.extend(context.budget.copy(object));
            }
            Event::InitDone => {
                let known = std::mem::take(&mut fresh);
                state.census.copies_listed(&known);
                context.budget.copies_listed(&known);
            }
            Event::Apply(object) => {
                state.census.copy(object);
                context.budget.copy(object);
            }
            Event::Delete(object) => {
                state.census.copy_gone(object);
                context.budget.copy_gone(object);
            }
        }
        if let Event::InitApply(object) | Event::Apply(object) | Event::Delete(object) = event
            && let Some(volume) = text(&object, "/spec/volume")
        {
            changed(context, state, &volume);
        }
    }
}

/// A node's heartbeat is no news; another boot id is, for the volumes it consumes.
async fn nodes(context: &Context, state: &State) {
    let mut boots: BTreeMap<String, String> = BTreeMap::new();
    let mut events = pin!(watched::<MeshStorNode>(context));
    while let Some(event) = events.next().await {
        if let Event::Delete(object) = &event {
            context.signs.gone(&name(object));
        }
        let (Event::InitApply(object) | Event::Apply(object)) = event else { continue };
        context.signs.heartbeat(&name(&object), &text(&object, "/status/heartbeat").unwrap_or_default());
        let (node, boot) = (name(&object), text(&object, "/status/bootID").unwrap_or_default());
        context.budget.heard(node.clone());
        if boots.insert(node.clone(), boot.clone()).is_some_and(|known| known == boot) {
            continue;
        }
        let consumers = lock(&state.consumers).clone();
        for (volume, _) in consumers.iter().filter(|(_, consumer)| consumer.as_ref() == Some(&node)) {
            changed(context, state, volume);
        }
    }
}

/// Objects are watched untyped, so that one that cannot be read does not end the watch of all others.
fn watched<K: Kind>(context: &Context) -> impl Stream<Item = Event<DynamicObject>> + use<K> {
    let stream = watch(context.writer.api::<K>(), watcher::Config::default()).default_backoff();
    stream.filter_map(|event| async {
        event.inspect_err(|error| tracing::debug!(%error, kind = %K::kind(&()), "watch broken; it begins anew")).ok()
    })
}

fn changed(context: &Context, state: &State, volume: &str) {
    context.hints.ring(volume);
    state.mark(volume, Duration::ZERO);
}

fn name(object: &DynamicObject) -> String {
    object.metadata.name.clone().unwrap_or_default()
}

fn text(object: &DynamicObject, path: &str) -> Option<String> {
    object.data.pointer(path).and_then(Value::as_str).map(str::to_string)
}

/// Nothing panics while holding these locks, and what they guard is never half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
