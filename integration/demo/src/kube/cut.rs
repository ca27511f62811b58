//! A node that cannot reach the API server, and nothing else is wrong with it.
//!
//! Called by `kube`. Its pods write on, and nobody may take anything away from it.

use super::Scenario;
use super::cluster::{Kube, is_ready};
use super::pods::Set;
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

pub const ALL: &[(&str, Scenario)] =
    &[("api-cut: a pod's node without the API server for four minutes; nothing happens", api_cut)];

/// Longer than every patience of ours (30 s) and of Kubernetes until the node is not ready (50 s); shorter than the five
/// minutes after which Kubernetes asks for the pods of such a node to be deleted.
const CUT: Duration = Duration::from_secs(240);
/// Longer than a write takes in a busy lab, shorter than any stall that a path or a member has (5 s and more).
const PAUSE: Duration = Duration::from_secs(4);

fn api_cut(kube: &Kube) -> Result<String> {
    let set = Set::up(kube, "alone", 1)?;
    set.wait_for(50)?;
    kube.await_whole()?;
    let guest = set.writers[0].guest(kube)?;
    let (before, _) = set.told();
    guest.api_cable(false)?;
    let begin = Instant::now();
    let result = watch(kube, &set, begin);
    guest.api_cable(true)?;
    let unready = result?;
    let (during, _) = set.told();
    kube.await_node(&guest, true)?;
    kube.await_agents()?;
    set.wait_for(50)?;
    set.undisturbed(kube)?;
    let (_, longest) = set.told();
    ensure!(longest < PAUSE, "a write took {longest:?}");
    kube.await_whole()?;
    let compared = set.verify(kube)?;
    let gone = set.down(kube)?;
    Ok(format!(
        "node not ready after {:.1} s, cut for {:.1} s: {} writes meanwhile, longest {longest:?}, same pod, no mark, no taint of \
         ours, {compared} blocks verified\n{gone}",
        unready.as_secs_f64(),
        CUT.as_secs_f64(),
        during - before
    ))
}

/// Looks again and again for what must not happen. Returns when Kubernetes took the node for not ready.
fn watch(kube: &Kube, set: &Set, begin: Instant) -> Result<Duration> {
    let (writer, mut unready) = (&set.writers[0], None);
    let name = writer.guest(kube)?.name();
    let volume = writer.volume(kube)?;
    while begin.elapsed() < CUT {
        let node = kube.get(&["node", &name])?;
        if unready.is_none() && !is_ready(&node) {
            unready = Some(begin.elapsed());
        }
        let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        let ours = taints.iter().find(|taint| taint["key"].as_str().is_some_and(|key| key.contains("meshstor")));
        ensure!(ours.is_none(), "after {:?} the node is marked: {ours:?}", begin.elapsed());
        let pod = kube.get(&["pod", &writer.pod])?;
        let same = pod["metadata"]["uid"] == writer.uid() && pod["metadata"]["deletionTimestamp"].is_null();
        ensure!(same, "after {:?} the pod is being deleted", begin.elapsed());
        let consumer = &kube.get(&["msvol", &volume])?["spec"]["attachment"]["consumer"];
        ensure!(*consumer == name.as_str(), "after {:?} the consumer is {consumer}", begin.elapsed());
        std::thread::sleep(Duration::from_secs(1));
    }
    unready.ok_or_else(|| anyhow::anyhow!("the node was ready all the time: the cut did not happen"))
}
