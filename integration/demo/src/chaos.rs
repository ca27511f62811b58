//! Rounds of faults drawn by a seed, under load, on a whole cluster of ours: no promise may be broken.
//!
//! Called by `meshstor-demo chaos`. Four volumes of one, two and three copies are written to without a break. A round
//! draws one or two faults, proves that they happened, heals them, brings the volumes back as Kubernetes would, waits for
//! all copies, and compares every acknowledged write with the array and with each copy by itself. A round that fails is
//! kept (logs in the cache directory), and the next one starts on a fresh cluster.

mod fault;
mod settle;

use crate::checks;
use crate::cluster::{Cluster, wait};
use crate::csi::{Access, Wanted};
use crate::history::{History, Running};
use crate::story::*;
use anyhow::{Context, Result, bail, ensure};
use fault::{Fault, KINDS};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Name, use, copies, nodes of the copies, first consumer.
const VOLUMES: [(&str, Access, &str, &[&str], &str); 4] = [
    ("chaos-one", Access::Xfs, "1", &["node-b"], "node-a"),
    ("chaos-two", Access::Xfs, "2", &["node-a", "node-b"], "node-a"),
    ("chaos-ext4", Access::Ext4, "2", &["node-b", "node-c"], "node-c"),
    ("chaos-raw", Access::Block, "3", &["node-a", "node-b", "node-c"], "node-b"),
];
/// Sequence numbers of one consumer's life; a later life's are all higher.
const LIFE: u64 = 1 << 32;
/// Upper ends of the pauses' classes, in seconds.
const CLASSES: [(u64, &str); 6] =
    [(1, "<1 s"), (5, "1-5 s"), (15, "5-15 s"), (30, "15-30 s"), (60, "30-60 s"), (u64::MAX, "more")];

/// A volume and what writes to it.
pub struct Load {
    volume: Volume,
    /// Copies that it is to have.
    copies: usize,
    running: Option<Running>,
    /// Counts forced moves.
    life: u64,
    /// Unpublished without unstage in this round.
    forced: bool,
    /// What the consumer of this life found.
    first_read: Option<String>,
    pauses: Vec<Duration>,
    writes: usize,
}

/// What a round's checks found.
#[derive(Default)]
pub struct Checked {
    blocks: usize,
    copies: usize,
    writes: usize,
    pauses: Vec<Duration>,
}

impl Load {
    fn first_of_life(&self) -> u64 {
        self.life * LIFE
    }

    /// A writer that goes on where the history ends, above the numbers of former lives.
    fn start(&mut self, cluster: &Cluster) -> Result<()> {
        let first = self.volume.history.next().max(self.first_of_life());
        let options = format!("--blocks {BLOCKS} --first {first} --pause-ms 20 --until /run/stop-writing");
        let line = format!("write --file {} {options}", file(&self.volume));
        self.running = Some(Running::start(cluster.helper(&self.volume.at, &line)?)?);
        Ok(())
    }

    /// Waits for the writer's end and takes over what it was told. Answers the volume's history.
    fn end(&mut self, within: Duration) -> Result<&mut History> {
        if let Some(running) = self.running.take() {
            let history = running.finish(within)?;
            self.pauses.push(history.longest());
            self.writes += history.acks.len();
            self.volume.history.append(&history);
        }
        Ok(&mut self.volume.history)
    }
}

/// What all rounds did.
#[derive(Default)]
struct Table {
    faults: BTreeMap<&'static str, usize>,
    pauses: Vec<Duration>,
    writes: usize,
    blocks: usize,
    copies: usize,
    moves: usize,
    broken: Vec<String>,
}

/// Which rounds of which seed.
#[derive(clap::Args)]
pub struct Draw {
    /// How many rounds
    #[arg(long, default_value_t = 5)]
    rounds: u64,
    /// The first of them: many rounds of one seed can be run in pieces
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// What the faults are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs the rounds.
pub fn run(binaries: &Path, kernel: &str, draw: &Draw, keep: bool) -> Result<()> {
    let Draw { rounds, first, seed } = *draw;
    let begin = Instant::now();
    let mut table = Table::default();
    let mut world: Option<(Cluster, Vec<Load>)> = None;
    let last = first + rounds - 1;
    for round in first..=last {
        let (mut cluster, mut loads) = match world.take() {
            Some(world) => world,
            None => fresh(binaries, kernel)?,
        };
        let mut rng = fastrand::Rng::with_seed(seed.wrapping_mul(1_000_003).wrapping_add(round));
        let faults = fault::draw(&mut rng, cluster.lab.guests().len(), loads.len());
        let started = Instant::now();
        let done = one_round(&mut cluster, &mut loads, &faults, &mut rng, &mut table);
        let line = format!("round {round} of {last}: {faults:?}: ");
        match done {
            Ok(proof) => {
                println!("[{:>4}s] {line}{proof}, {:.0} s", begin.elapsed().as_secs(), started.elapsed().as_secs_f64());
                world = Some((cluster, loads));
            }
            Err(error) => {
                println!("[{:>4}s] {line}BROKEN: {error:#}", begin.elapsed().as_secs());
                table.broken.push(format!("round {round}, {faults:?}: {error:#}"));
                let kept =
                    keep_logs(&cluster, seed, round).map_or_else(|e| format!("{e:#}"), |d| d.display().to_string());
                println!("            logs: {kept}");
                if keep {
                    bail!("a round failed; everything is left as it is");
                }
                drop(loads);
                cluster.down()?;
            }
        }
    }
    if let Some((cluster, loads)) = world {
        end(cluster, &loads, keep, &mut table)?;
    }
    report(&table, rounds, seed)
}

fn fresh(binaries: &Path, kernel: &str) -> Result<(Cluster, Vec<Load>)> {
    let cluster = Cluster::up(binaries, kernel, 3)?;
    let mut loads = Vec::new();
    for (name, access, copies, nodes, consumer) in VOLUMES {
        let wanted = Wanted { access, name, bytes: SIZE, parameters: &[("replicaCount", copies)], nodes };
        let (volume, _) = bring_up(&cluster, &wanted, consumer)?;
        let copies = copies.parse().context("a number of copies")?;
        let load =
            Load { volume, copies, running: None, life: 0, forced: false, first_read: None, pauses: vec![], writes: 0 };
        loads.push(load);
    }
    Ok((cluster, loads))
}

fn one_round(
    cluster: &mut Cluster,
    loads: &mut [Load],
    faults: &[Fault],
    rng: &mut fastrand::Rng,
    table: &mut Table,
) -> Result<String> {
    let begun = Instant::now();
    for load in loads.iter_mut() {
        load.start(cluster)?;
    }
    for load in loads.iter() {
        let running = load.running.as_ref().context("a writer")?;
        running.wait_for(10, Duration::from_secs(60)).with_context(|| load.volume.id.clone())?;
    }
    for fault in faults {
        fault::strike(cluster, loads, fault).with_context(|| format!("{fault:?}"))?;
        *table.faults.entry(fault.kind()).or_default() += 1;
        std::thread::sleep(Duration::from_millis(rng.u64(..4000)));
    }
    std::thread::sleep(faults.iter().map(Fault::lasts).max().unwrap_or_default());
    for fault in faults {
        fault::heal(cluster, fault).with_context(|| format!("end of {fault:?}"))?;
    }
    let struck = begun.elapsed();
    settle::settle(cluster, loads, faults)?;
    let settled = begun.elapsed() - struck;
    let checked = settle::check(cluster, loads)?;
    let compared = begun.elapsed() - settled - struck;
    let moves = settle::reattach(cluster, loads, rng)?;
    let moved = begun.elapsed() - compared - settled - struck;
    let longest = checked.pauses.iter().max().copied().unwrap_or_default();
    let seconds = [struck, settled, compared, moved].map(|time| time.as_secs());
    let line = format!(
        "ok, {} writes, longest {:.1} s, {} blocks and {} copies verified, {moves} moved \
         (faults {} s, whole again {} s, comparing {} s, moving {} s)",
        checked.writes,
        longest.as_secs_f64(),
        checked.blocks,
        checked.copies,
        seconds[0],
        seconds[1],
        seconds[2],
        seconds[3],
    );
    table.pauses.extend(checked.pauses);
    table.writes += checked.writes;
    table.blocks += checked.blocks;
    table.copies += checked.copies;
    table.moves += moves;
    Ok(line)
}

/// Everything is deleted; nothing may be left.
fn end(cluster: Cluster, loads: &[Load], keep: bool, table: &mut Table) -> Result<()> {
    for load in loads {
        settle::patient("detach", || detach(&cluster, &load.volume.id, &load.volume.at))?;
        settle::patient("DeleteVolume", || Ok(cluster.csi.delete(&load.volume.id).0?))?;
    }
    let mut left = String::new();
    let clean = wait("nothing left", Duration::from_secs(60), || {
        left = checks::no_leaks(&cluster).err().map(|e| format!("{e:#}")).unwrap_or_default();
        Ok(left.is_empty())
    });
    if clean.is_err() {
        table.broken.push(format!("a leak: {left}"));
    }
    if keep { Ok(()) } else { cluster.down() }
}

/// Logs of agents, controller and kernels, and all objects, for whoever looks for the cause.
fn keep_logs(cluster: &Cluster, seed: u64, round: u64) -> Result<PathBuf> {
    let dir = cluster.lab.paths().root().join(format!("chaos/seed-{seed}-round-{round}"));
    std::fs::create_dir_all(&dir)?;
    for guest in cluster.lab.guests() {
        let name = guest.name();
        let ask = |command: &str| match guest.ssh_within(command, Duration::from_secs(20)) {
            Ok(out) => out.stdout,
            Err(error) => format!("{error:#}"),
        };
        std::fs::write(dir.join(format!("{name}.agent.log")), ask("cat /var/log/meshstor-node.log"))?;
        let kernel =
            "dmesg -T; cat /proc/mdstat; grep -H . /sys/class/nvme/nvme*/{state,address,subsysnqn}; mount | grep md";
        std::fs::write(dir.join(format!("{name}.kernel.log")), ask(kernel))?;
    }
    std::fs::copy(cluster.controller_log(), dir.join("controller.log"))?;
    let objects = cluster.control.kubectl(&["--request-timeout=10s", "get", "msvol,msrep,msnode,msnd", "-o", "yaml"]);
    std::fs::write(dir.join("objects.yaml"), objects.unwrap_or_else(|e| format!("{e:#}")))?;
    Ok(dir)
}

fn report(table: &Table, rounds: u64, seed: u64) -> Result<()> {
    println!("faults:");
    for kind in KINDS {
        println!("  {kind:<16} {:>4}", table.faults.get(kind).copied().unwrap_or(0));
    }
    println!("  {:<16} {:>4}", "orderly move", table.moves);
    println!("longest pause of each writer:");
    for (name, count) in histogram(&table.pauses) {
        println!("  {name:<16} {count:>4}");
    }
    println!("{} writes acknowledged, {} blocks and {} copies verified", table.writes, table.blocks, table.copies);
    for broken in &table.broken {
        println!("BROKEN: {broken}");
    }
    let failed = (table.broken.len() as u64).min(rounds);
    println!("promises broken: {}, seed {seed}", table.broken.len());
    println!("chaos: {} rounds passed, {failed} failed (seed {seed})", rounds - failed);
    ensure!(failed == 0, "{failed} rounds failed");
    Ok(())
}

fn histogram(pauses: &[Duration]) -> Vec<(&'static str, usize)> {
    let class =
        |pause: &Duration| CLASSES.iter().position(|(end, _)| pause.as_secs() < *end).unwrap_or(CLASSES.len() - 1);
    let count = |n: usize| pauses.iter().filter(|pause| class(pause) == n).count();
    CLASSES.iter().enumerate().map(|(n, (_, name))| (*name, count(n))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_fall_into_their_classes() {
        let pauses = [0, 999, 1000, 14_999, 15_000, 61_000].map(Duration::from_millis);
        let counts: Vec<usize> = histogram(&pauses).into_iter().map(|(_, count)| count).collect();
        assert_eq!(counts, [2, 1, 1, 1, 0, 1]);
    }
}
