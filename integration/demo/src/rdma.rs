//! Scenario: RDMA fails under load and comes back, twice: first its packets are lost without a word, then its card goes.
//!
//! Called by `scenarios`. The volume's remote copy has both transports; I/O has to go on over TCP and return to RDMA by
//! itself, and the agent has to say so (metric and log line).

use crate::checks;
use crate::cluster::{Cluster, wait};
use crate::cuts::{PATIENCE, finish, writing};
use crate::scenarios::Scenario;
use crate::story::*;
use anyhow::{Context, Result, ensure};
use std::time::Duration;

/// The scenarios of this file.
pub const ALL: &[(&str, Scenario)] = &[("rdma-cut: RDMA fails under load, TCP takes over, RDMA comes back", rdma_cut)];

/// Drops what arrives for RoCE (UDP 4791) and nothing else. Not `rdma link del` on the target: nvmet's listener does not
/// survive that.
const DEAF: &str = "tc qdisc add dev stor0 ingress && tc filter add dev stor0 ingress protocol ip u32 \
                    match ip protocol 17 0xff match ip dport 4791 0xffff action drop";
/// How long it may take until the kernel knows that packets vanish: its keep-alive of 5 s, and one more when the last was
/// answered just before.
const SILENCE: Duration = Duration::from_secs(12);
/// How long a write may wait for a card that says that it goes.
const BLINK: Duration = Duration::from_secs(1);

fn rdma_cut(cluster: &mut Cluster) -> Result<String> {
    let (mut volume, _) = bring_up(cluster, &two_copies("rdma-cut"), "node-a")?;
    await_paths(cluster, &volume, "rdma+tcp")?;
    let lines = [silence(cluster, &mut volume)?, removal(cluster, &mut volume)?, finish(cluster, &volume, 2)?];
    Ok(lines.join("\n"))
}

/// Packets are lost on their way to the target.
fn silence(cluster: &Cluster, volume: &mut Volume) -> Result<String> {
    let b = cluster.guest("node-b")?;
    let lost = metric(cluster, "meshstor_paths_lost_total")?;
    let running = writing(cluster, volume)?;
    b.ssh_checked(DEAF)?;
    await_paths(cluster, volume, "tcp")?;
    running.wait_for(50, PATIENCE)?;
    ensure!(paths(cluster, volume)? == "tcp", "{}", paths(cluster, volume)?);
    let dropped = b.ssh_checked("tc -s filter show dev stor0 ingress | grep -o 'dropped [0-9]*' | head -1")?;
    ensure!(dropped != "dropped 0" && !dropped.is_empty(), "no packet of RDMA was dropped: {dropped}");
    told(cluster, volume, 0.0, lost + 1.0)?;
    b.ssh_checked("tc qdisc del dev stor0 ingress")?;
    back(cluster, volume)?;
    running.wait_for(50, PATIENCE)?;
    let history = stop(cluster, volume, running)?;
    ensure!(history.longest() < SILENCE, "a write took {:?}", history.longest());
    volume.history.append(&history);
    let longest = history.longest();
    Ok(format!("packets lost ({dropped}): {} writes, no error, longest {longest:?}, back on RDMA", history.acks.len()))
}

/// The consumer's RDMA card goes and comes.
fn removal(cluster: &Cluster, volume: &mut Volume) -> Result<String> {
    let a = cluster.guest("node-a")?;
    let lost = metric(cluster, "meshstor_paths_lost_total")?;
    let running = writing(cluster, volume)?;
    a.ssh_checked("rdma link del rxe0")?;
    await_paths(cluster, volume, "tcp")?;
    running.wait_for(50, PATIENCE)?;
    told(cluster, volume, 0.0, lost + 1.0)?;
    a.ssh_checked("rdma link add rxe0 type rxe netdev stor0")?;
    back(cluster, volume)?;
    running.wait_for(50, PATIENCE)?;
    let history = stop(cluster, volume, running)?;
    ensure!(history.longest() < BLINK, "a write took {:?}", history.longest());
    volume.history.append(&history);
    Ok(format!("card removed: {} writes, no error, longest {:?}, back on RDMA", history.acks.len(), history.longest()))
}

fn back(cluster: &Cluster, volume: &Volume) -> Result<()> {
    await_paths(cluster, volume, "rdma+tcp")?;
    let carrier = checks::carrier(cluster, "node-a", &volume.data_id)?;
    ensure!(carrier == "rdma", "I/O did not go back to RDMA but to {carrier}");
    wait(
        "the metric says that RDMA is back",
        Duration::from_secs(20),
        || Ok(metric(cluster, "meshstor_paths")? > 0.0),
    )?;
    wait("an event says so, too", Duration::from_secs(20), || cluster.has_event(&volume.id, "PathBack"))
}

/// Live transports of the volume's remote copy, sorted.
fn paths(cluster: &Cluster, volume: &Volume) -> Result<String> {
    let all = checks::transports(cluster, "node-a", &volume.data_id)?;
    let live = all.iter().filter(|line| line.contains(" live"));
    let mut live: Vec<&str> = live.filter_map(|line| line.split(' ').next()).collect();
    live.sort_unstable();
    Ok(live.join("+"))
}

fn await_paths(cluster: &Cluster, volume: &Volume, wanted: &str) -> Result<()> {
    wait(&format!("paths {wanted}"), PATIENCE, || Ok(paths(cluster, volume)? == wanted))
}

/// The agent's metrics, its log and an event name the loss.
fn told(cluster: &Cluster, volume: &Volume, paths: f64, lost: f64) -> Result<()> {
    let so =
        || Ok(metric(cluster, "meshstor_paths")? == paths && metric(cluster, "meshstor_paths_lost_total")? >= lost);
    wait("the metrics say that RDMA is gone", Duration::from_secs(20), so)?;
    let copy = &volume.data_id[..8];
    let line = format!("grep -a 'live paths.*{copy}.*rdma.*now=0' /var/log/meshstor-node.log | tail -1");
    ensure!(!cluster.guest("node-a")?.ssh_checked(&line)?.is_empty(), "no word of it in the agent's log");
    wait("an event", Duration::from_secs(20), || cluster.has_event(&volume.id, "PathLost"))
}

/// A metric of RDMA paths on node-a; 0 while it was never counted.
fn metric(cluster: &Cluster, name: &str) -> Result<f64> {
    let ask =
        "exec 3<>/dev/tcp/127.0.0.1/9808; printf 'GET /metrics HTTP/1.0\\r\\nHost: node\\r\\n\\r\\n' >&3; cat <&3";
    let page = cluster.guest("node-a")?.ssh_checked(&format!("bash -c '{}'", ask.replace('\'', "\"")))?;
    ensure!(page.contains("meshstor_actors"), "no metrics: {page}");
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("{name}{{transport=\"rdma\"}} ")));
    line.map_or(Ok(0.0), |value| value.trim().parse().context("a number"))
}
