//! What a cluster's users do every day: a claim for a pod, a stateful set, a node drained.
//!
//! Called by `kube`. Every write that a pod was told of is read back from the devices.

use super::Scenario;
use super::cluster::{Kube, PATIENCE, Transport};
use super::pods::{Set, text};
use crate::cluster::wait;
use anyhow::{Context, Result, bail, ensure};
use std::time::Instant;

pub const ALL: &[(&str, Scenario)] = &[
    ("first-claim: a claim, a pod ready with it, writes, everything deleted", first_claim),
    ("stateful-set: three pods with two copies each, written to and read back", stateful_set),
    ("larger-claim: a claim patched to twice its size during writes", larger_claim),
    ("drain: the node of a pod drained during writes, and uncordoned", drain),
];

fn first_claim(kube: &Kube) -> Result<String> {
    let begin = Instant::now();
    let set = Set::up(kube, "first", 1)?;
    let ready = begin.elapsed();
    let writer = &set.writers[0];
    writer.wait_for(50)?;
    let volume = kube.get(&["msvol", &writer.volume(kube)?])?;
    ensure!(text(&volume["spec"]["filesystem"]) == "xfs", "the file system is not XFS: {volume}");
    let at = writer.guest(kube)?.name();
    let carrier = transport_seen(kube, &set)?;
    let compared = set.verify(kube)?;
    set.undisturbed(kube)?;
    let (acks, longest) = set.told();
    let gone = set.down(kube)?;
    Ok(format!(
        "claim → pod ready on {at} in {:.1} s; {carrier}\n{acks} writes, longest {longest:?}, {compared} blocks verified\n{gone}",
        ready.as_secs_f64()
    ))
}

/// Volumes with a copy elsewhere run over the transport that this run is about.
fn transport_seen(kube: &Kube, set: &Set) -> Result<String> {
    let (mut remote, mut all) = (0, 0);
    for writer in &set.writers {
        let carrier = writer.carrier(kube)?;
        all += 1;
        match carrier.as_str() {
            "none" => {}
            word if word == kube.transport.word() => remote += 1,
            word => bail!("{}'s remote copy is reached over {word}, not {}", writer.pod, kube.transport.word()),
        }
    }
    ensure!(remote > 0, "none of {all} volumes has a copy on another node");
    Ok(format!("{remote} of {all} volumes with a remote copy, over {}", kube.transport.word()))
}

fn stateful_set(kube: &Kube) -> Result<String> {
    let begin = Instant::now();
    let set = Set::up(kube, "db", 3)?;
    let ready = begin.elapsed();
    set.wait_for(100)?;
    let carrier = transport_seen(kube, &set)?;
    kube.await_whole()?;
    let compared = set.verify(kube)?;
    set.undisturbed(kube)?;
    let (acks, longest) = set.told();
    let gone = set.down(kube)?;
    Ok(format!(
        "3 pods ready in {:.1} s; {carrier}\n{acks} writes, no error, longest {longest:?}; {compared} blocks verified\n{gone}",
        ready.as_secs_f64()
    ))
}

fn larger_claim(kube: &Kube) -> Result<String> {
    let set = Set::up(kube, "larger", 1)?;
    let writer = &set.writers[0];
    writer.wait_for(50)?;
    kube.await_whole()?;
    let claim = format!("data-{}", writer.pod);
    let begin = Instant::now();
    let patch = r#"{"spec":{"resources":{"requests":{"storage":"1Gi"}}}}"#;
    kube.control.kubectl(&["patch", "pvc", &claim, "--type=merge", "-p", patch])?;
    wait("the claim has its new size", PATIENCE, || {
        Ok(kube.get(&["pvc", &claim])?["status"]["capacity"]["storage"] == "1Gi")
    })
    .with_context(|| kube.diagnosis())?;
    let took = begin.elapsed();
    writer.wait_for(50)?;
    let volume = kube.get(&["msvol", &writer.volume(kube)?])?;
    ensure!(volume["spec"]["sizeBytes"] == 1 << 30, "the volume has another size: {}", volume["spec"]["sizeBytes"]);
    let compared = set.verify(kube)?;
    set.undisturbed(kube)?;
    let (acks, longest) = set.told();
    let gone = set.down(kube)?;
    Ok(format!(
        "512 MiB → 1 GiB in {:.1} s; {acks} writes, no error, longest {longest:?}; {compared} blocks verified\n{gone}",
        took.as_secs_f64()
    ))
}

fn drain(kube: &Kube) -> Result<String> {
    let mut set = Set::up(kube, "drained", 2)?;
    set.wait_for(50)?;
    kube.await_whole()?;
    let from = set.writers[0].guest(kube)?.name();
    let before: Vec<String> = set.writers.iter().map(|writer| writer.uid().to_string()).collect();
    let begin = Instant::now();
    let timeout = format!("--timeout={}s", PATIENCE.as_secs());
    let words = ["drain", &from, "--ignore-daemonsets", "--delete-emptydir-data", &timeout];
    kube.control.kubectl(&words).with_context(|| kube.diagnosis())?;
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
        let set = kube.get(&["daemonset", "meshstor-node", "-n", super::cluster::NAMESPACE])?;
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
