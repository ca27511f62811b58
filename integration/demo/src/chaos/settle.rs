//! The end of a round: everything healed is brought back into service as Kubernetes would, then everything is checked.
//!
//! Used by `chaos`. It does only what kubelets and sidecars do (restart pods, repeat calls) and waits; it never repairs.

use super::fault::Fault;
use super::{Checked, Load};
use crate::cluster::Cluster;
use crate::cuts::no_ghosts;
use crate::history::History;
use crate::story::*;
use crate::{copies, csi};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// For boots, takeovers and full copies on emulated machines that share two processors.
const PATIENCE: Duration = Duration::from_secs(300);

/// Agents run, volumes are staged where they belong, all copies are in sync, writers go on.
pub fn settle(cluster: &mut Cluster, loads: &mut [Load], faults: &[Fault]) -> Result<()> {
    let guests = cluster.lab.guests();
    for fault in faults {
        if let (Fault::PowerCut(n) | Fault::AgentKill(n, _), Some(guest)) = (fault, fault.node().map(|n| &guests[n])) {
            debug_assert!(*n < guests.len());
            cluster.start_agent(guest)?;
        }
    }
    for guest in &guests {
        cluster.await_agent(&guest.name())?;
    }
    for load in loads.iter_mut() {
        let at = guests.iter().position(|g| g.name() == load.volume.at).context("the consumer's guest")?;
        let rebooted = faults.contains(&Fault::PowerCut(at));
        let pulled = faults.iter().any(|f| matches!(f, Fault::DrivePull(..)));
        if load.forced {
            moved(cluster, load, guests.len())?;
        } else if rebooted {
            // The kubelet stages again; no ControllerPublish comes.
            let epoch = cluster.epoch(&load.volume.id)?;
            let context = [("attachEpoch".to_string(), epoch.to_string())].into();
            staged(cluster, load, &context).with_context(|| format!("{} after a reboot", load.volume.id))?;
            resume(cluster, load)?;
        } else if pulled && load.running.as_ref().is_some_and(|r| !r.so_far().errors.is_empty()) {
            // Its only copy was on that drive: the pod failed, and is started again.
            ensure!(load.copies == 1, "{}: errors beside a good copy", load.volume.id);
            load.end(Duration::from_secs(5))?.errors.clear();
            patient("detach", || detach(cluster, &load.volume.id, &load.volume.at))?;
            attach_patiently(cluster, load)?;
            resume(cluster, load)?;
        }
    }
    for load in loads.iter() {
        let id = &load.volume.id;
        await_whole(cluster, id, load.copies)?;
        let running = load.running.as_ref().context("a writer")?;
        running.wait_for(10, Duration::from_secs(120)).with_context(|| format!("the writer of {id}"))?;
    }
    Ok(())
}

/// Waits until all copies are in sync and none is on its way, for as long as something goes forward: a busy machine copies
/// slowly, one copy after another, and a copy may follow its pod meanwhile.
fn await_whole(cluster: &Cluster, id: &str, copies: usize) -> Result<()> {
    let (mut begin, mut before) = (Instant::now(), Value::Null);
    while !(cluster.whole(id)? && cluster.in_sync(id)?.len() == copies) {
        let status = cluster.get(&["msvol", id])?["status"].clone();
        let now = json!([status["inSync"], status["array"], cluster.replicas(id)?]);
        if now != before {
            (begin, before) = (Instant::now(), now);
        }
        ensure!(begin.elapsed() < PATIENCE, "{copies} copies of {id} in sync: nothing new for {PATIENCE:?}: {before}");
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

/// A forced move's second half: published elsewhere, then the old consumer's remains are cleaned up as its kubelet does.
fn moved(cluster: &Cluster, load: &mut Load, nodes: usize) -> Result<()> {
    let old = load.volume.at.clone();
    let letter = old.bytes().last().context("a node's name")? - b'a';
    let to = char::from(b'a' + (letter + 1) % nodes as u8);
    load.volume.at = format!("node-{to}");
    attach_patiently(cluster, load)?;
    let first = read_back(cluster, &load.volume)?;
    let ended = load.end(Duration::from_secs(60))?;
    ended.errors.clear();
    // All it was ever told must be in the new consumer's first read.
    load.volume.history.verify(&first).context("the old consumer's writes on the new one")?;
    load.life += 1;
    load.first_read = Some(first);
    let agent = cluster.node(&old)?;
    patient("NodeUnpublish on the old consumer", || Ok(agent.node_unpublish(&load.volume.id).0?))?;
    patient("NodeUnstage on the old consumer", || Ok(agent.unstage(&load.volume.id).0?))?;
    resume(cluster, load)
}

fn resume(cluster: &Cluster, load: &mut Load) -> Result<()> {
    if load.running.is_some() {
        load.end(Duration::from_secs(5))?.errors.clear();
    }
    load.start(cluster)
}

fn attach_patiently(cluster: &Cluster, load: &Load) -> Result<()> {
    let mut context = Default::default();
    patient("ControllerPublish", || {
        let Volume { id, at, access, .. } = &load.volume;
        context = cluster.csi.publish_as(id, at, *access, csi::PATIENCE).0?;
        Ok(())
    })?;
    staged(cluster, load, &context)
}

fn staged(cluster: &Cluster, load: &Load, context: &std::collections::HashMap<String, String>) -> Result<()> {
    let Volume { id, at, access, .. } = &load.volume;
    let agent = cluster.node(at)?;
    patient("NodeStage", || Ok(agent.stage_as(id, *access, context).0?))?;
    patient("NodePublish", || Ok(agent.node_publish_as(id, *access, context).0?))
}

/// Repeats a call as a sidecar or a kubelet does.
pub fn patient(what: &str, mut call: impl FnMut() -> Result<()>) -> Result<()> {
    let begin = Instant::now();
    loop {
        match call() {
            Ok(()) => return Ok(()),
            Err(error) if begin.elapsed() > PATIENCE => {
                return Err(error.context(format!("{what}, repeated for {PATIENCE:?}")));
            }
            Err(error) => {
                let status = error.downcast_ref::<tonic::Status>();
                if status.is_some_and(|s| s.code() == tonic::Code::NotFound || s.code() == tonic::Code::InvalidArgument)
                {
                    return Err(error.context(what.to_string()));
                }
                if !status.is_some_and(csi::retriable) {
                    println!("            {what}: {error:#}");
                }
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    }
}

/// Stops the writers, compares every history with the array and with each copy by itself. The volumes are detached then.
pub fn check(cluster: &Cluster, loads: &mut [Load]) -> Result<Checked> {
    let mut checked = Checked::default();
    for load in loads.iter_mut() {
        cluster.guest(&load.volume.at)?.ssh_checked("touch /run/stop-writing")?;
    }
    for load in loads.iter_mut() {
        let ended: &mut History = load.end(Duration::from_secs(60))?;
        if let Some(error) = ended.errors.first() {
            bail!("a writer met an error: {error}");
        }
    }
    for guest in cluster.lab.guests() {
        guest.ssh_checked("rm -f /run/stop-writing")?;
    }
    for result in each(loads, |load| check_one(cluster, load)) {
        let (blocks, copies) = result?;
        checked.blocks += blocks;
        checked.copies += copies;
    }
    for load in loads.iter_mut() {
        checked.pauses.append(&mut load.pauses);
        checked.writes += std::mem::take(&mut load.writes);
        load.forced = false;
    }
    Ok(checked)
}

/// Answers how many blocks and copies were compared.
fn check_one(cluster: &Cluster, load: &mut Load) -> Result<(usize, usize)> {
    let id = load.volume.id.clone();
    let now = read_back(cluster, &load.volume)?;
    let blocks = load.volume.history.verify(&now).with_context(|| id.clone())?;
    if let Some(first) = load.first_read.take() {
        no_ghosts(&first, &now, load.first_of_life()).with_context(|| id.clone())?;
    }
    patient("detach", || detach(cluster, &id, &load.volume.at))?;
    copies::verify_each(cluster, &load.volume).with_context(|| id.clone())?;
    Ok((blocks, cluster.replicas(&id)?.len()))
}

/// All volumes at once: most of the time is spent waiting for emulated machines.
fn each<R: Send>(loads: &mut [Load], work: impl Fn(&mut Load) -> Result<R> + Sync) -> Vec<Result<R>> {
    std::thread::scope(|scope| {
        let started: Vec<_> = loads.iter_mut().map(|load| scope.spawn(|| work(load))).collect();
        started.into_iter().map(|thread| thread.join().unwrap_or_else(|_| bail!("a check panicked"))).collect()
    })
}

/// Attaches every volume to a node drawn anew: an orderly move for those that get another one.
pub fn reattach(cluster: &Cluster, loads: &mut [Load], rng: &mut fastrand::Rng) -> Result<usize> {
    let guests = cluster.lab.guests();
    let mut moves = 0;
    for load in loads.iter_mut() {
        let to = guests[rng.usize(..guests.len())].name();
        if to != load.volume.at {
            moves += 1;
            load.volume.at = to;
        }
    }
    each(loads, |load| attach_patiently(cluster, load)).into_iter().collect::<Result<Vec<()>>>()?;
    Ok(moves)
}
