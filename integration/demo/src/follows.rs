//! Scenario: a volume with one copy is moved from node to node, and its data follow the pod.
//!
//! Called by `scenarios`. The move is unpublish and publish, as Kubernetes does it; what follows is the product's own doing
//! (docs/protocol.md, *Moves*). Every step of the record is watched: the old copy may go only when the new one is in sync.

use crate::cluster::{AGENT_LOG, Cluster, agent_command, wait};
use crate::copies;
use crate::csi::{Access, Wanted};
use crate::history::Running;
use crate::scenarios::Scenario;
use crate::story::*;
use anyhow::{Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// The scenarios of this file.
pub const ALL: &[(&str, Scenario)] = &[
    ("copy-follows: a volume of one copy moves there and on, its data follow, always written to", copy_follows),
    ("follows-killed: the data follow, and both nodes' agents are killed after each step", follows_killed),
];

/// The smallest volume: all of it is copied, twice, by emulated machines.
const SMALL: i64 = 320 * MIB;
/// For a delay of seconds, a partition, a whole copy under load, and a wipe.
const PATIENCE: Duration = Duration::from_secs(180);
/// The same when agents begin anew after each of some twenty steps, and take up to ten seconds until they have looked at
/// everything again.
const PATIENCE_KILLED: Duration = Duration::from_secs(400);
/// A program in the guest kills its agent until this file is there.
const ENOUGH: &str = "/run/meshstor/enough";
/// What it writes down: for each kill the step that had just been taken.
const KILLS: &str = "/run/meshstor/kills";
/// Fewer kills than this on a node would mean that its steps were not met: the one that loses its copy fences, takes its
/// export away and removes the partition; the other one does far more.
const KILLS_MIN: usize = 3;

fn copy_follows(cluster: &mut Cluster) -> Result<String> {
    let (mut volume, mut running) = bring_up_small(cluster, "follows")?;
    let mut lines = Vec::new();
    for to in ["node-a", "node-c"] {
        let moved = go(cluster, &mut volume, &mut running, to)?;
        lines.push(settle(cluster, &volume, &running, &moved, PATIENCE)?);
    }
    lines.push(end(cluster, volume, running)?);
    Ok(lines.join("\n"))
}

fn follows_killed(cluster: &mut Cluster) -> Result<String> {
    let (mut volume, mut running) = bring_up_small(cluster, "follows-killed")?;
    // Before the kills: nobody repeats the calls of the move here, as kubelet does.
    let moved = go(cluster, &mut volume, &mut running, "node-a")?;
    let nodes = ["node-a", "node-b"];
    for node in nodes {
        kill_after_each_step(cluster, node)?;
    }
    let settled = settle(cluster, &volume, &running, &moved, PATIENCE_KILLED);
    // Both first: a failure of one must not leave the other's agent under fire.
    let kills = nodes.map(|node| no_more_kills(cluster, node));
    let mut lines = vec![settled?];
    for kills in kills {
        lines.push(kills?);
    }
    lines.push(end(cluster, volume, running)?);
    Ok(lines.join("\n"))
}

/// Has the agent killed as soon as its log says that it changed something, and started again at once.
///
/// In the guest itself: over ssh a kill would come seconds after the step. It comes within 0.1 s of the step's end, which
/// is amid the next one if that takes longer. (The simulator kills at every `await`.)
fn kill_after_each_step(cluster: &Cluster, node: &str) -> Result<()> {
    let start = agent_command(node);
    let program = format!(
        "rm -f {ENOUGH} {KILLS}; touch {KILLS}; \
         steps() {{ grep -a ' audit: .*outcome=\"changed\"' {AGENT_LOG}; }}; \
         seen=$(steps | wc -l); \
         while [ ! -e {ENOUGH} ]; do \
           if [ $(steps | wc -l) -gt $seen ]; then \
             p=$(cat /run/meshstor/agent.pid); kill -9 $p; while kill -0 $p 2>/dev/null; do sleep 0.02; done; \
             steps | tail -n +$((seen + 1)) | tail -n 1 >>{KILLS}; seen=$(steps | wc -l); \
             {start}; \
           fi; \
           sleep 0.05; \
         done"
    );
    let guest = cluster.guest(node)?;
    guest.ssh_checked(&format!("cat >/run/kill-after-each-step <<'END'\n{program}\nEND"))?;
    guest
        .ssh_checked("setsid nohup bash /run/kill-after-each-step >/run/kill-after-each-step.log 2>&1 </dev/null &")
        .map(drop)
}

/// Ends that. Answers how often which step was the last one before a kill.
fn no_more_kills(cluster: &Cluster, node: &str) -> Result<String> {
    let guest = cluster.guest(node)?;
    let steps = guest.ssh_checked(&format!("touch {ENOUGH}; sleep 1; cat {KILLS}; rm -f {KILLS}"))?;
    cluster.await_agent(node)?;
    let killed = steps.lines().count();
    ensure!(killed >= KILLS_MIN, "{node}'s agent was killed {killed} times only:\n{steps}");
    let mut after: BTreeMap<&str, usize> = BTreeMap::new();
    for step in steps.lines().filter_map(op_word) {
        *after.entry(step).or_default() += 1;
    }
    let after: Vec<String> = after.iter().map(|(step, times)| format!("{times}x {step}")).collect();
    Ok(format!("{node}'s agent killed {killed} times, after {}", after.join(", ")))
}

/// The first word of the step that an audit line is about.
fn op_word(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once(" op=")?;
    let rest = rest.strip_prefix('"').unwrap_or(rest);
    rest.split([' ', '"']).next()
}

/// A volume with its one copy on node-b, and its writer there.
fn bring_up_small(cluster: &Cluster, name: &str) -> Result<(Volume, Running)> {
    let parameters = [("replicaCount", "1"), ("relocationDelay", "3")];
    let wanted = Wanted { access: Access::Xfs, name, bytes: SMALL, parameters: &parameters, nodes: &["node-b"] };
    let (volume, _) = bring_up(cluster, &wanted, "node-b")?;
    let running = begin(cluster, &volume)?;
    running.wait_for(50, Duration::from_secs(60))?;
    Ok((volume, running))
}

/// Reads everything back, from the volume and from its copy by itself, and takes the volume down.
fn end(cluster: &Cluster, mut volume: Volume, running: Running) -> Result<String> {
    volume.history.append(&stop(cluster, &volume, running)?);
    verify(cluster, &volume)?;
    detach(cluster, &volume.id, &volume.at)?;
    let line = copies::verify_each(cluster, &volume)?;
    remove(cluster, &volume)?;
    Ok(line)
}

/// A writer with the pauses of a program that does something else as well: a copy gets its share beside it.
fn begin(cluster: &Cluster, volume: &Volume) -> Result<Running> {
    start_writer(cluster, volume, &format!("--pause-ms 20 {}", until(volume)))
}

/// What [`settle`] has to know of a move.
struct Moved {
    from: String,
    /// The copies as they were before, by node.
    old: BTreeMap<String, String>,
    line: String,
}

/// The pod ends, starts on another node and writes on.
fn go(cluster: &Cluster, volume: &mut Volume, running: &mut Running, to: &str) -> Result<Moved> {
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
    let line = format!("{from} → {to}: {times}; {blocks} blocks verified over the network");
    Ok(Moved { from, old, line })
}

/// The copy comes after, and the old one goes.
fn settle(cluster: &Cluster, volume: &Volume, running: &Running, moved: &Moved, patience: Duration) -> Result<String> {
    let begun = Instant::now();
    let seen = follow(cluster, volume, &moved.old, patience)?;
    let took = begun.elapsed().as_secs_f64();
    running.wait_for(50, Duration::from_secs(60))?;
    let gone = format!("! lsblk -rno PARTLABEL | grep -q meshstor-{}-", &volume.data_id[..8]);
    let old_node = cluster.guest(&moved.from)?;
    wait("the old partition is gone", patience, || Ok(old_node.ssh(&gone)?.ok()))?;
    let longest = running.so_far().longest().as_secs_f64();
    Ok(format!(
        "{}; the copy followed after {took:.0} s ({seen}), the old one is wiped; longest write {longest:.2} s",
        moved.line
    ))
}

fn tell(cluster: &Cluster, volume: &Volume, command: &str) -> Result<()> {
    cluster.guest(&volume.at)?.ssh_checked(&format!("{command} {}", stop_file(volume))).map(drop)
}

/// Watches the record until the only copy is where the consumer is. Answers the sets that were seen.
fn follow(cluster: &Cluster, volume: &Volume, old: &BTreeMap<String, String>, patience: Duration) -> Result<String> {
    let old: BTreeSet<&String> = old.values().collect();
    let mut seen: Vec<String> = Vec::new();
    let begin = Instant::now();
    loop {
        // The copies first: one that is in the set now was an object before.
        let copies = cluster.replicas(&volume.id)?;
        let set = cluster.in_sync(&volume.id)?;
        let new = copies.get(&volume.at).filter(|id| !old.contains(id));
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
        if begin.elapsed() > patience {
            let log = cluster.agent_log(&volume.at, 20);
            anyhow::bail!("after {patience:?} the copies are {copies:?}, the set {set:?}\n{log}");
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_of_an_audit_line_is_its_first_word() {
        let line =
            "2026-01-01T00:00:00Z  INFO audit: kind=\"array\" key=v1 op=\"connect r0 at node-b\" outcome=\"changed\"";
        assert_eq!(op_word(line), Some("connect"));
        assert_eq!(op_word("… audit: op=shrink outcome=\"changed\""), Some("shrink"));
        assert_eq!(op_word("no audit line"), None);
    }
}
