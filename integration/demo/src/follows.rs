//! Scenario: a volume with one copy is moved from node to node, and its data follow the pod.
//!
//! Called by `scenarios`. The move is unpublish and publish, as Kubernetes does it; what follows is the product's own doing
//! (docs/protocol.md, *Moves*). Every step of the record is watched: the old copy may go only when the new one is in sync.

use crate::cluster::{Cluster, wait};
use crate::copies;
use crate::csi::{Access, Wanted};
use crate::history::Running;
use crate::scenarios::Scenario;
use crate::story::*;
use anyhow::{Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// The scenarios of this file.
pub const ALL: &[(&str, Scenario)] =
    &[("copy-follows: a volume of one copy moves there and on, its data follow, always written to", copy_follows)];

/// The smallest volume: all of it is copied, twice, by emulated machines.
const SMALL: i64 = 320 * MIB;
/// For a delay of seconds, a partition, a whole copy under load, and a wipe.
const PATIENCE: Duration = Duration::from_secs(180);

fn copy_follows(cluster: &mut Cluster) -> Result<String> {
    let parameters = [("replicaCount", "1"), ("relocationDelay", "3")];
    let wanted =
        Wanted { access: Access::Xfs, name: "follows", bytes: SMALL, parameters: &parameters, nodes: &["node-b"] };
    let (mut volume, _) = bring_up(cluster, &wanted, "node-b")?;
    let mut running = begin(cluster, &volume)?;
    running.wait_for(50, Duration::from_secs(60))?;
    let mut lines = Vec::new();
    for to in ["node-a", "node-c"] {
        lines.push(one_move(cluster, &mut volume, &mut running, to)?);
    }
    volume.history.append(&stop(cluster, &volume, running)?);
    verify(cluster, &volume)?;
    detach(cluster, &volume.id, &volume.at)?;
    lines.push(copies::verify_each(cluster, &volume)?);
    remove(cluster, &volume)?;
    Ok(lines.join("\n"))
}

/// A writer with the pauses of a program that does something else as well: a copy gets its share beside it.
fn begin(cluster: &Cluster, volume: &Volume) -> Result<Running> {
    start_writer(cluster, volume, &format!("--pause-ms 20 {}", until(volume)))
}

/// The pod ends, starts on another node and writes on; its copy comes after.
fn one_move(cluster: &Cluster, volume: &mut Volume, running: &mut Running, to: &str) -> Result<String> {
    let from = volume.at.clone();
    let old = cluster.replicas(&volume.id)?;
    ensure!(old.keys().eq([&from]), "the copy is at {old:?}, the consumer at {from}");
    tell(cluster, volume, "touch")?;
    // The writer ends by itself: what it was told belongs to the history.
    wait("the writer ends", Duration::from_secs(30), || running.ended())?;
    volume.history.append(&running.so_far());
    ensure!(running.so_far().errors.is_empty(), "write errors: {:?}", running.so_far().errors);
    tell(cluster, volume, "rm -f")?;
    detach(cluster, &volume.id, &from)?;
    let times = attach(cluster, &volume.id, to)?;
    volume.at = to.into();
    let blocks = verify(cluster, volume)?;
    *running = begin(cluster, volume)?;
    let begun = Instant::now();
    let seen = follow(cluster, volume, &old, to)?;
    let took = begun.elapsed().as_secs_f64();
    running.wait_for(50, Duration::from_secs(60))?;
    let gone = format!("! lsblk -rno PARTLABEL | grep -q meshstor-{}-", &volume.data_id[..8]);
    let old_node = cluster.guest(&from)?;
    wait("the old partition is gone", Duration::from_secs(60), || Ok(old_node.ssh(&gone)?.ok()))?;
    let longest = running.so_far().longest().as_secs_f64();
    Ok(format!(
        "{from} → {to}: {times}; {blocks} blocks verified over the network; the copy followed after {took:.0} s ({seen}), \
         the old one is wiped; longest write {longest:.2} s"
    ))
}

fn tell(cluster: &Cluster, volume: &Volume, command: &str) -> Result<()> {
    cluster.guest(&volume.at)?.ssh_checked(&format!("{command} {}", stop_file(volume))).map(drop)
}

/// Watches the record until the only copy is on `to`. Answers the sets that were seen.
fn follow(cluster: &Cluster, volume: &Volume, old: &BTreeMap<String, String>, to: &str) -> Result<String> {
    let old: BTreeSet<&String> = old.values().collect();
    let mut seen: Vec<String> = Vec::new();
    let begin = Instant::now();
    loop {
        // The copies first: one that is in the set now was an object before.
        let copies = cluster.replicas(&volume.id)?;
        let set = cluster.in_sync(&volume.id)?;
        let new = copies.get(to).filter(|id| !old.contains(id));
        let arrived = new.is_some_and(|id| set.contains(id));
        let kept = set.iter().any(|id| old.contains(id));
        ensure!(arrived || kept, "neither the old nor the new copy is in the set: {set:?}, copies {copies:?}");
        let text = format!("{{{}}}", set.join(","));
        if seen.last() != Some(&text) {
            seen.push(text);
        }
        if arrived && copies.len() == 1 {
            return Ok(seen.join(" "));
        }
        if begin.elapsed() > PATIENCE {
            let log = cluster.agent_log(&volume.at, 20);
            anyhow::bail!("after {PATIENCE:?} the copies are {copies:?}, the set {set:?}\n{log}");
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}
