//! How many volumes and copies there are and how they are: the gauges of the loop.
//!
//! The watches of `loops` tell what they show; [`run`] counts a little later, and only when something has changed. Nothing
//! is asked of the API server, and nothing is decided by these numbers. Every controller counts the same, so a graph takes
//! the largest of them, not the sum.

use crate::telemetry::{self, CopyState};
use kube::api::DynamicObject;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// Changes come in bursts, and nobody reads gauges more often than this.
const PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Volume {
    wanted: usize,
    /// `None`: being made, or unknown.
    in_sync: Option<BTreeSet<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Copy {
    volume: String,
    replica: String,
    buried: bool,
    retiring: bool,
    ready: bool,
}

#[derive(Debug, Default)]
struct View {
    volumes: BTreeMap<String, Volume>,
    copies: BTreeMap<String, Copy>,
}

/// What was counted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    volumes: usize,
    copies: BTreeMap<CopyState, usize>,
    short: usize,
}

/// What the watches have shown.
#[derive(Debug, Default)]
pub(crate) struct Census {
    view: Mutex<View>,
    changed: Notify,
}

impl Census {
    pub(crate) fn volume(&self, object: &DynamicObject) {
        self.change(|view| view.volumes.insert(name(object), volume(&object.data)));
    }

    pub(crate) fn volume_gone(&self, object: &DynamicObject) {
        self.change(|view| view.volumes.remove(&name(object)));
    }

    pub(crate) fn volumes_listed<T>(&self, known: &BTreeMap<String, T>) {
        self.change(|view| view.volumes.retain(|name, _| known.contains_key(name)));
    }

    pub(crate) fn copy(&self, object: &DynamicObject) {
        self.change(|view| view.copies.insert(name(object), copy(&object.data)));
    }

    pub(crate) fn copy_gone(&self, object: &DynamicObject) {
        self.change(|view| view.copies.remove(&name(object)));
    }

    pub(crate) fn copies_listed(&self, known: &BTreeSet<(String, String)>) {
        let listed = |copy: &Copy| known.contains(&(copy.volume.clone(), copy.replica.clone()));
        self.change(|view| view.copies.retain(|_, copy| listed(copy)));
    }

    fn change<T>(&self, change: impl FnOnce(&mut View) -> T) {
        change(&mut self.lock());
        self.changed.notify_one();
    }

    fn count(&self) -> Count {
        let view = self.lock();
        let mut copies: BTreeMap<CopyState, usize> = CopyState::ALL.iter().map(|state| (*state, 0)).collect();
        for copy in view.copies.values() {
            *copies.entry(view.state(copy)).or_default() += 1;
        }
        let short = |volume: &Volume| volume.in_sync.as_ref().map_or(0, |set| volume.wanted.saturating_sub(set.len()));
        Count { volumes: view.volumes.len(), copies, short: view.volumes.values().map(short).sum() }
    }

    /// Nothing panics while holding this lock, and what it guards is never half changed.
    fn lock(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl View {
    fn state(&self, copy: &Copy) -> CopyState {
        let in_sync = self.volumes.get(&copy.volume).and_then(|volume| volume.in_sync.as_ref());
        match copy {
            Copy { buried: true, .. } => CopyState::Buried,
            Copy { retiring: true, .. } => CopyState::Retiring,
            Copy { ready: false, .. } => CopyState::Preparing,
            copy if in_sync.is_some_and(|set| set.contains(&copy.replica)) => CopyState::InSync,
            _ => CopyState::Behind,
        }
    }
}

/// Counts whenever something has changed, for ever.
pub(crate) async fn run(census: &Census) {
    loop {
        census.changed.notified().await;
        let Count { volumes, copies, short } = census.count();
        telemetry::census(volumes, &copies, short);
        tokio::time::sleep(PAUSE).await;
    }
}

fn name(object: &DynamicObject) -> String {
    object.metadata.name.clone().unwrap_or_default()
}

fn volume(object: &Value) -> Volume {
    let wanted = object.pointer("/spec/replicaCount").and_then(Value::as_u64).unwrap_or(0);
    let set = object.pointer("/status/inSync").and_then(Value::as_array);
    let in_sync = set.map(|set| set.iter().filter_map(Value::as_str).map(str::to_string).collect());
    Volume { wanted: usize::try_from(wanted).unwrap_or(usize::MAX), in_sync }
}

fn copy(object: &Value) -> Copy {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
    Copy {
        volume: text("/spec/volume").to_string(),
        replica: text("/spec/replica").to_string(),
        buried: object.pointer("/spec/tombstone").is_some(),
        retiring: text("/spec/role") == "Retiring",
        ready: text("/status/partition/state") == "Ready",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::api::ApiResource;
    use meshstor_api::{MeshStorReplica, MeshStorVolume};
    use serde_json::json;

    fn object<K: kube::Resource<DynamicType = ()>>(name: &str, data: Value) -> DynamicObject {
        DynamicObject { data, ..DynamicObject::new(name, &ApiResource::erase::<K>(&())) }
    }

    fn volume(name: &str, wanted: u32, in_sync: Value) -> DynamicObject {
        object::<MeshStorVolume>(name, json!({"spec": {"replicaCount": wanted}, "status": {"inSync": in_sync}}))
    }

    fn copy(volume: &str, replica: &str, role: &str, state: &str) -> DynamicObject {
        let spec = json!({"volume": volume, "replica": replica, "role": role});
        object::<MeshStorReplica>(
            &format!("{volume}-{replica}"),
            json!({"spec": spec, "status": {"partition": {"state": state}}}),
        )
    }

    #[test]
    fn every_copy_is_in_one_state_and_what_is_missing_is_counted() {
        let census = Census::default();
        census.volume(&volume("x", 3, json!(["r0"])));
        census.volume(&volume("y", 2, json!(["r0", "r1", "r2"])));
        census.volume(&volume("made", 2, Value::Null));
        for (volume, replica, role, state) in [
            ("x", "r0", "Member", "Ready"),
            ("x", "r1", "Member", "Ready"),
            ("x", "r2", "Retiring", "Ready"),
            ("made", "r0", "Member", "Accepted"),
            ("gone", "r0", "Member", "Ready"),
        ] {
            census.copy(&copy(volume, replica, role, state));
        }
        let mut buried = copy("y", "r3", "Retiring", "Ready");
        buried.data["spec"]["tombstone"] = json!({});
        census.copy(&buried);
        let count = census.count();
        assert_eq!((count.volumes, count.short), (3, 2), "one that has more than enough makes up for nobody");
        let of = |state| count.copies[&state];
        use CopyState::*;
        assert_eq!([InSync, Behind, Preparing, Retiring, Buried].map(of), [1, 2, 1, 1, 1]);
    }

    #[test]
    fn what_is_gone_is_not_counted() {
        let census = Census::default();
        for name in ["x", "y"] {
            census.volume(&volume(name, 2, json!(["r0"])));
            census.copy(&copy(name, "r0", "Member", "Ready"));
        }
        census.volumes_listed(&BTreeMap::from([("y".to_string(), ())]));
        census.copies_listed(&[("y".to_string(), "r0".to_string())].into());
        let left = census.count();
        assert_eq!((left.volumes, left.short, left.copies[&CopyState::InSync]), (1, 1, 1));
        census.volume_gone(&volume("y", 2, json!([])));
        census.copy_gone(&copy("y", "r0", "Member", "Ready"));
        let none = census.count();
        assert_eq!((none.volumes, none.copies.values().sum::<usize>()), (0, 0));
    }
}
