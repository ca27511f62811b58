//! A node drained: its pods go elsewhere, and it is let go only while everybody's data stay within reach.
//!
//! Called by `kube`.

use super::Scenario;
use super::cluster::{Kube, NAMESPACE, PATIENCE, Transport, is_ready};
use super::daily::transport_seen;
use super::pods::{Set, text};
use crate::cluster::wait;
use anyhow::{Context, Result, ensure};
use meshstor_lab::Guest;
use std::time::Instant;

pub const ALL: &[(&str, Scenario)] = &[
    ("drain: the node of a pod drained during writes, and uncordoned", drain),
    ("drain-waits: the last complete copy's node is drained; the drain ends when there is another copy", drain_waits),
];

fn drain(kube: &Kube) -> Result<String> {
    let mut set = Set::up(kube, "drained", 2)?;
    set.wait_for(50)?;
    kube.await_whole()?;
    let from = set.writers[0].guest(kube)?.name();
    let before: Vec<String> = set.writers.iter().map(|writer| writer.uid().to_string()).collect();
    let begin = Instant::now();
    kubectl_drain(kube, &from, PATIENCE.as_secs()).with_context(|| kube.diagnosis())?;
    let drained = begin.elapsed();
    let mut moved = 0;
    for (writer, uid) in set.writers.iter_mut().zip(before) {
        writer.await_ready(kube)?;
        let now = writer.guest(kube)?.name();
        ensure!(now != from, "{} is still on {from}", writer.pod);
        if writer.uid() != uid {
            writer.follow(kube)?;
            moved += 1;
        }
    }
    ensure!(moved > 0, "no pod has moved");
    let ready = begin.elapsed();
    set.wait_for(50)?;
    let compared = set.verify(kube)?;
    kube.control.kubectl(&["uncordon", &from])?;
    kube.await_whole()?;
    wait("the drained node has its pods again", PATIENCE, || {
        let set = kube.get(&["daemonset", "meshstor-node", "-n", NAMESPACE])?;
        Ok(set["status"]["numberReady"] == set["status"]["desiredNumberScheduled"])
    })?;
    let carried = if kube.transport == Transport::Rdma { transport_seen(kube, &set)? } else { String::new() };
    let gone = set.down(kube)?;
    Ok(format!(
        "{from} drained in {:.1} s, {moved} pods ready elsewhere after {:.1} s, {compared} blocks verified {carried}\n{gone}",
        drained.as_secs_f64(),
        ready.as_secs_f64()
    ))
}

/// `kubectl drain`, within so many seconds.
fn kubectl_drain(kube: &Kube, node: &str, seconds: u64) -> Result<String> {
    let timeout = format!("--timeout={seconds}s");
    kube.control.kubectl(&["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", &timeout])
}

fn drain_waits(kube: &Kube) -> Result<String> {
    let mut set = Set::up(kube, "waits", 1)?;
    set.wait_for(50)?;
    kube.await_whole()?;
    let from = set.writers[0].guest(kube)?.name();
    let other = other_copy(kube, &set, &from)?;
    other.power_cut()?;
    wait(&format!("{} not ready", other.name()), PATIENCE, || Ok(!is_ready(&kube.get(&["node", &other.name()])?)))?;
    wait("the copy there out of the record", PATIENCE, || Ok(in_sync(kube, &set)? == 1))
        .with_context(|| kube.diagnosis())?;
    let begin = Instant::now();
    let refused = kubectl_drain(kube, &from, 60);
    let refused = format!("{:#}", refused.err().context("the node of the last complete copy was drained")?);
    ensure!(refused.contains("disruption budget"), "the drain failed for another reason: {refused}");
    let told = told(kube, &from, "DrainWaits")?;
    other.power_on()?;
    other.rejoin()?;
    kubectl_drain(kube, &from, PATIENCE.as_secs()).with_context(|| kube.diagnosis())?;
    let drained = begin.elapsed();
    ensure!(in_sync(kube, &set)? == 2, "the node went before the other copy was complete");
    let writer = &mut set.writers[0];
    writer.await_ready(kube)?;
    ensure!(writer.guest(kube)?.name() != from, "{} is still on {from}", writer.pod);
    writer.follow(kube)?;
    set.wait_for(50)?;
    let compared = set.verify(kube)?;
    kube.control.kubectl(&["uncordon", &from])?;
    kube.await_agents()?;
    kube.await_whole()?;
    let gone = set.down(kube)?;
    Ok(format!(
        "{} without power: drain of {from} refused for 60 s ({told}); power back, drained after {:.1} s in all, {compared} \
         blocks verified\n{gone}",
        other.name(),
        drained.as_secs_f64()
    ))
}

/// The node of a volume's copy that is not on this one.
fn other_copy(kube: &Kube, set: &Set, node: &str) -> Result<Guest> {
    let volume = set.writers[0].volume(kube)?;
    let copies = kube.items(&["msrep"])?;
    let nodes =
        copies.iter().filter(|copy| copy["spec"]["volume"] == volume.as_str()).map(|copy| text(&copy["spec"]["node"]));
    let other = nodes.into_iter().find(|other| other != node).context("no copy on another node")?;
    kube.lab.guest(&other)
}

/// How many copies the record of a set's first volume has.
fn in_sync(kube: &Kube, set: &Set) -> Result<usize> {
    let volume = kube.get(&["msvol", &set.writers[0].volume(kube)?])?;
    Ok(volume["status"]["inSync"].as_array().map_or(0, Vec::len))
}

/// The sentence of an event on a node.
fn told(kube: &Kube, node: &str, reason: &str) -> Result<String> {
    let events = kube.items(&["events.events.k8s.io", "-n", "default"])?;
    let event = events.iter().find(|e| e["reason"] == reason && e["regarding"]["name"] == node);
    Ok(text(&event.with_context(|| format!("no event {reason} on {node}"))?["note"]))
}
