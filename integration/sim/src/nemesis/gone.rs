//! Copies that have to be made again: retired by an operator, or lost with their machine.
//!
//! Called by the nemesis. A machine is lost for good only while every volume has a complete copy elsewhere: what was lost
//! with its only copy is no fault of ours.

use super::{Harm, Nemesis};
use crate::cluster::Cluster;
use crate::records::{REPLICAS, Records, VOLUMES};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Machines that a cluster needs to lose one: a volume of three copies fits on the others.
const ENOUGH: usize = 4;

impl Nemesis {
    /// One copy is to be somewhere else.
    pub(super) fn retire(&self) {
        let copies: Vec<String> = self.records.names(REPLICAS);
        if copies.is_empty() {
            return;
        }
        let name = copies[self.rng.borrow_mut().usize(..copies.len())].clone();
        let Some(mut object) = self.cluster.store.get(REPLICAS, "", &name).map(|object| (*object).clone()) else {
            return;
        };
        // With a copy on every node there is no place for another one, and an operator is told so.
        let siblings = self
            .cluster
            .store
            .list(REPLICAS)
            .iter()
            .filter(|o| o["spec"]["volume"] == object["spec"]["volume"])
            .count();
        let volume = object["spec"]["volume"].as_str().and_then(|name| self.cluster.store.get(VOLUMES, "", name));
        let wanted = volume.and_then(|volume| volume["spec"]["replicaCount"].as_u64());
        if wanted != Some(siblings as u64) || siblings >= self.cluster.nodes.len() {
            return;
        }
        object["spec"]["role"] = json!("Retiring");
        self.cluster.store.force(REPLICAS, "", &name, Some(object));
        self.say(format!("{name} is retired"));
    }

    /// No power, and no Node object any more; then both again.
    pub(super) async fn remove(&self, node: &str, time: f64) {
        if self.down.borrow().iter().any(|down| down == node) {
            return;
        }
        self.cluster.unregister(node);
        self.down(Harm::PowerCut, node, time + 10.0).await;
        self.cluster.register(node).await;
    }

    /// See [`Harm::NodeLost`]; the run repairs it at its end.
    pub(super) async fn lose(&self, node: &str) {
        let spared = || self.records.spared(node);
        if self.cluster.nodes.len() < ENOUGH || !self.down.borrow().is_empty() || !spared() {
            return;
        }
        self.down.borrow_mut().push(node.into());
        self.cluster.kill_agent(node).await;
        if self.over.get() || !spared() {
            self.down.borrow_mut().retain(|down| down != node);
            return self.cluster.start_agent(node);
        }
        self.cluster.world.power_cut(node);
        self.cluster.lose(node);
        self.say(format!("{node} is lost for good"));
    }
}

impl Records {
    /// Whether every volume has a complete copy on other machines than this one.
    pub(super) fn spared(&self, node: &str) -> bool {
        let replicas = self.store.list(REPLICAS);
        self.store.list(VOLUMES).iter().all(|volume| {
            let complete: BTreeSet<&str> =
                volume["status"]["inSync"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            replicas.iter().any(|replica| {
                replica["spec"]["volume"] == volume["metadata"]["name"]
                    && replica["spec"]["node"].as_str() != Some(node)
                    && replica["spec"]["replica"].as_str().is_some_and(|id| complete.contains(id))
            })
        })
    }

    /// A machine that holds the only complete copy of a volume after all is found again.
    pub(super) fn save(&self, cluster: &Cluster) {
        if cluster.nodes.iter().any(|node| cluster.is_lost(node) && !self.spared(node)) {
            cluster.repair();
        }
    }
}
