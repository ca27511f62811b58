//! The resync budget (P10): who may copy a replica wholly, so that a node that died does not have all its volumes copied
//! at once; the most endangered volume first.
//!
//! A consumer asks in its volume's status (`array.copying`); the loop gives leave in the copy's object (`spec.recovery`),
//! for one export life. What runs is counted from the objects that the watches show: a recovery counts from its leave
//! until the copy is in the set, its life is over, or its consumer is silent. Two controllers come to the same order, and
//! when both are late they give a little too much leave: a budget carries no correctness.
//!
//! Called by `reconcile` and by the watches of `loops`. Nothing but whole copies ever waits here.

use crate::Context;
use crate::error::ControlError;
use crate::reconcile::Next;
use crate::telemetry;
use crate::writer::Endpoint;
use kube::api::DynamicObject;
use meshstor_api::patch;
use meshstor_api::replica::MeshStorReplica;
use meshstor_api::volume::MeshStorVolume;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How many whole copies may be made at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResyncLimits {
    /// That a node takes part in, from whichever end.
    pub node: usize,
    /// In the cluster.
    pub cluster: usize,
}

impl Default for ResyncLimits {
    fn default() -> Self {
        ResyncLimits { node: 2, cluster: 16 }
    }
}

/// A volume that asks for leave, or has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ask {
    /// Number of the copy.
    replica: String,
    consumer: String,
    /// Complete copies.
    in_sync: usize,
}

/// A copy's place and life.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Copy {
    node: String,
    granted: bool,
}

/// One recovery, wanted or under way.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Recovery {
    volume: String,
    consumer: String,
    target: String,
    in_sync: usize,
    granted: bool,
}

/// The volumes whose turn it is, the most endangered first; those that have leave keep it.
fn grants(mut asks: Vec<Recovery>, limits: ResyncLimits) -> BTreeSet<String> {
    asks.sort_by(|a, b| (!a.granted, a.in_sync, &a.volume).cmp(&(!b.granted, b.in_sync, &b.volume)));
    let mut load: BTreeMap<String, usize> = BTreeMap::new();
    let mut all = 0;
    let mut given = BTreeSet::new();
    for ask in asks {
        let ends: BTreeSet<String> = [ask.consumer, ask.target].into();
        let full = |node: &String| load.get(node).is_some_and(|running| *running >= limits.node);
        if !ask.granted && (all >= limits.cluster || ends.iter().any(full)) {
            continue;
        }
        all += 1;
        ends.into_iter().for_each(|node| *load.entry(node).or_default() += 1);
        given.insert(ask.volume);
    }
    given
}

#[derive(Default)]
struct View {
    volumes: BTreeMap<String, Ask>,
    copies: BTreeMap<(String, String), Copy>,
    heard: BTreeMap<String, Instant>,
    /// Both lists were seen whole once.
    listed: (bool, bool),
}

impl View {
    fn recoveries(&self, silent: Duration) -> Vec<Recovery> {
        let alive = |node: &String| self.heard.get(node).is_some_and(|at| at.elapsed() < silent);
        let asks = self.volumes.iter().filter(|(_, ask)| alive(&ask.consumer));
        asks.filter_map(|(volume, ask)| {
            let copy = self.copies.get(&(volume.clone(), ask.replica.clone()))?;
            Some(Recovery {
                volume: volume.clone(),
                consumer: ask.consumer.clone(),
                target: copy.node.clone(),
                in_sync: ask.in_sync,
                granted: copy.granted,
            })
        })
        .collect()
    }
}

/// What the watches show of recoveries.
#[derive(Default)]
pub(crate) struct Budget(Mutex<View>);

impl Budget {
    /// A volume as a watch shows it.
    pub(crate) fn volume(&self, object: &DynamicObject) {
        let mut view = self.lock();
        let name = object.metadata.name.clone().unwrap_or_default();
        match ask(&object.data) {
            Some(ask) => view.volumes.insert(name, ask),
            None => view.volumes.remove(&name),
        };
    }

    /// These are all volumes.
    pub(crate) fn volumes_listed(&self, known: &BTreeMap<String, Option<String>>) {
        let mut view = self.lock();
        view.volumes.retain(|name, _| known.contains_key(name));
        view.listed.0 = true;
    }

    /// A copy as a watch shows it.
    pub(crate) fn copy(&self, object: &DynamicObject) -> Option<(String, String)> {
        let text = |path: &str| object.data.pointer(path).and_then(Value::as_str).map(str::to_string);
        let key = (text("/spec/volume")?, text("/spec/replica")?);
        let life = |of: &str| {
            let number = |field: &str| object.data.pointer(&format!("/spec/{of}/{field}")).and_then(Value::as_u64);
            Some((number("epoch")?, number("generation")?))
        };
        let granted = life("recovery").is_some_and(|recovery| Some(recovery) == life("export"));
        self.lock().copies.insert(key.clone(), Copy { node: text("/spec/node")?, granted });
        Some(key)
    }

    /// A copy's object is gone.
    pub(crate) fn copy_gone(&self, object: &DynamicObject) {
        if let Some(key) = self.copy(object) {
            self.lock().copies.remove(&key);
        }
    }

    /// These are all copies.
    pub(crate) fn copies_listed(&self, known: &BTreeSet<(String, String)>) {
        let mut view = self.lock();
        view.copies.retain(|key, _| known.contains(key));
        view.listed.1 = true;
    }

    /// A node's object has changed: it lives.
    pub(crate) fn heard(&self, node: String) {
        self.lock().heard.insert(node, Instant::now());
    }

    /// Whether it is a volume's turn. `ask` and `copy` are fresher than what the watches have shown.
    fn turn(&self, volume: &str, ask: Ask, copy: Copy, limits: ResyncLimits, silent: Duration) -> bool {
        let mut view = self.lock();
        if view.listed != (true, true) {
            return false;
        }
        let key = (volume.to_string(), ask.replica.clone());
        view.volumes.insert(volume.to_string(), ask);
        view.copies.insert(key.clone(), copy);
        let recoveries = view.recoveries(silent);
        let given = grants(recoveries.clone(), limits).contains(volume);
        // Counted at once: the watch shows it a little later.
        if let Some(copy) = view.copies.get_mut(&key).filter(|_| given) {
            copy.granted = true;
        }
        let running = recoveries.iter().filter(|recovery| recovery.granted).count() + usize::from(given);
        telemetry::resyncs(running, recoveries.len().saturating_sub(running), limits.cluster);
        given
    }

    /// Nothing panics while holding this lock, and what it guards is never half changed.
    fn lock(&self) -> MutexGuard<'_, View> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ask(object: &Value) -> Option<Ask> {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).map(str::to_string);
    let in_sync = object.pointer("/status/inSync").and_then(Value::as_array).map_or(0, Vec::len);
    Some(Ask { replica: text("/status/array/copying")?, consumer: text("/spec/attachment/consumer")?, in_sync })
}

/// Gives a volume leave to copy a replica wholly when it is its turn. `None`: it does not ask, or has it.
pub(crate) async fn step(
    context: &Context,
    volume: &MeshStorVolume,
    replicas: &[MeshStorReplica],
) -> Result<Option<Next>, ControlError> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let status = volume.status.as_ref();
    let copying = status.and_then(|status| status.array.as_ref()?.copying.clone());
    let (Some(replica), Some(consumer)) = (copying, volume.spec.attachment.consumer.clone()) else { return Ok(None) };
    let belongs = |copy: &&MeshStorReplica| crate::decide::belongs(volume, copy) && copy.spec.replica == replica;
    let Some(copy) = replicas.iter().find(belongs) else { return Ok(None) };
    let Some(patch) = patch::recovery(copy)? else { return Ok(None) };
    let in_sync = status.and_then(|status| status.in_sync.as_ref()).map_or(0, Vec::len);
    let ask = Ask { replica, consumer, in_sync };
    let place = Copy { node: copy.spec.node.clone(), granted: false };
    let config = &context.config;
    if !context.budget.turn(name, ask, place, config.resyncs, config.heartbeat_max) {
        // The end of another volume's recovery is no hint for this one.
        return Ok(Some(Next::After(config.repair_poll)));
    }
    let object = copy.metadata.name.as_deref().unwrap_or_default();
    tracing::info!(volume = %name, copy = %object, in_sync, "may be copied wholly");
    match context.writer.patch::<MeshStorReplica>(object, Endpoint::Main, patch).await {
        Err(error) if !error.is_stale() => Err(error),
        _ => Ok(None),
    }
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
