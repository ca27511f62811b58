//! Parts of every story: steps that are timed and printed, volumes brought up and down by CSI calls, writers.
//!
//! Used by `script` (the demo) and `scenarios`. Every function fails with a sentence; none retries what must work at once.

use crate::checks;
use crate::cluster::Cluster;
use crate::csi::{Access, KUBELET, PATIENCE, Wanted, target};
use crate::history::{History, Running};
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};

/// Bytes of a mebibyte.
pub const MIB: i64 = 1 << 20;
/// A volume's size: above the smallest XFS (300 MiB), small enough for an emulated drive.
pub const SIZE: i64 = 512 * MIB;
/// Blocks of the checksummed file: 16 MiB, so that the dirty part of a volume is small beside its size.
pub const BLOCKS: u64 = 4096;

/// Prints the steps and remembers what they proved.
pub struct Story {
    /// When it began.
    pub begin: Instant,
    number: usize,
}

impl Story {
    /// A story that begins now.
    pub fn begin() -> Story {
        Story { begin: Instant::now(), number: 0 }
    }

    /// Runs one step, prints what it proved and how long it took.
    pub fn step<T>(&mut self, what: &str, run: impl FnOnce() -> Result<(T, String)>) -> Result<T> {
        self.number += 1;
        let begin = Instant::now();
        println!("[{:>3}s] {:>2}. {what} …", self.begin.elapsed().as_secs(), self.number);
        let (value, proof) = run().with_context(|| format!("step {}: {what}", self.number))?;
        for line in proof.lines() {
            println!("            {line}");
        }
        println!("            ok, {:.1} s", begin.elapsed().as_secs_f64());
        Ok(value)
    }
}

/// A volume of the story.
#[derive(Clone)]
pub struct Volume {
    /// CSI id: the object's name.
    pub id: String,
    /// `spec.volumeID`.
    pub data_id: String,
    /// Node it is mounted on.
    pub at: String,
    /// As what it is used.
    pub access: Access,
    /// What its writers were told.
    pub history: History,
}

/// CreateVolume → NodePublish, each call once; a call that fails fails the story.
pub fn bring_up(cluster: &Cluster, wanted: &Wanted<'_>, node: &str) -> Result<(Volume, String)> {
    let (created, create) = create_on(cluster, wanted)?;
    let id = created.volume_id;
    let data_id = cluster.get(&["msvol", &id])?["spec"]["volumeID"].as_str().context("spec.volumeID")?.to_string();
    let times = attach(cluster, &id, node)?;
    let line = format!("create {:.2} s, {times}", create.as_secs_f64());
    Ok((Volume { id, data_id, at: node.into(), access: wanted.access, history: History::default() }, line))
}

/// CreateVolume with the copies on exactly the wanted nodes: the others are in maintenance meanwhile, as an operator
/// would have it. Of a topology only the first node counts for placement.
pub fn create_on(cluster: &Cluster, wanted: &Wanted<'_>) -> Result<(meshstor_csi::proto::Volume, Duration)> {
    let names: Vec<String> = cluster.lab.guests().iter().map(|g| g.name()).collect();
    let others = || names.iter().filter(|n| !wanted.nodes.is_empty() && !wanted.nodes.contains(&n.as_str()));
    for other in others() {
        cluster.maintenance(other, true)?;
    }
    let created = cluster.csi.create(wanted);
    for other in others() {
        cluster.maintenance(other, false)?;
    }
    created
}

/// ControllerPublish → NodeStage → NodePublish, each answered at the first call.
pub fn attach(cluster: &Cluster, id: &str, node: &str) -> Result<String> {
    let access = match cluster.get(&["msvol", id])?["spec"]["filesystem"].as_str() {
        Some("ext4") => Access::Ext4,
        Some("none") => Access::Block,
        _ => Access::Xfs,
    };
    let (context, publish) = cluster.csi.publish_as(id, node, access, PATIENCE);
    let context = context.with_context(|| format!("ControllerPublishVolume {id} to {node}"))?;
    let agent = cluster.node(node)?;
    let (staged, stage) = agent.stage_as(id, access, &context);
    staged.with_context(|| format!("NodeStageVolume {id} on {node}, first call"))?;
    let (published, bind) = agent.node_publish_as(id, access, &context);
    published.with_context(|| format!("NodePublishVolume {id} on {node}"))?;
    let seconds = |d: Duration| d.as_secs_f64();
    Ok(format!("publish {:.2} s, stage {:.2} s, bind {:.2} s", seconds(publish), seconds(stage), seconds(bind)))
}

/// NodeUnpublish → NodeUnstage → ControllerUnpublish.
pub fn detach(cluster: &Cluster, id: &str, node: &str) -> Result<()> {
    let agent = cluster.node(node)?;
    agent.node_unpublish(id).0.with_context(|| format!("NodeUnpublishVolume {id}"))?;
    agent.unstage(id).0.with_context(|| format!("NodeUnstageVolume {id}"))?;
    cluster.csi.unpublish(id, node).0.with_context(|| format!("ControllerUnpublishVolume {id}"))
}

/// The checksummed file of a volume, as its pod would see it; of a raw block volume the device itself.
pub fn file(volume: &Volume) -> String {
    let target = target(KUBELET, &volume.id);
    if volume.access == Access::Block { target } else { format!("{target}/blocks") }
}

/// Starts a writer that goes on where the volume's history ends.
pub fn start_writer(cluster: &Cluster, volume: &Volume, more: &str) -> Result<Running> {
    let first = volume.history.next();
    let arguments = format!("write --file {} --blocks {BLOCKS} --first {first} {more}", file(volume));
    Running::start(cluster.helper(&volume.at, &arguments)?)
}

/// Writes `count` blocks and waits for the end.
pub fn write(cluster: &Cluster, volume: &Volume, count: u64) -> Result<History> {
    let history = start_writer(cluster, volume, &format!("--count {count}"))?.finish(Duration::from_secs(120))?;
    ensure!(history.errors.is_empty(), "write errors: {}", history.errors.join("; "));
    ensure!(history.acks.len() as u64 == count, "{} of {count} writes acknowledged", history.acks.len());
    Ok(history)
}

/// Reads everything back from the devices and compares. Returns the number of blocks compared.
pub fn verify(cluster: &Cluster, volume: &Volume) -> Result<usize> {
    volume.history.verify(&read_back(cluster, volume)?)
}

/// What the file holds, as a fresh reader on the consumer sees it: see [`History::verify`].
pub fn read_back(cluster: &Cluster, volume: &Volume) -> Result<String> {
    read_file(cluster, &volume.at, &file(volume))
}

/// What a file of a writer's holds on the devices, as seen on a node.
pub fn read_file(cluster: &Cluster, node: &str, path: &str) -> Result<String> {
    let read = format!("echo 3 >/proc/sys/vm/drop_caches; /host/meshstor-demo read --file {path} --blocks {BLOCKS}");
    cluster.guest(node)?.ssh_checked(&read)
}

/// A volume of two copies, on node-a and node-b.
pub fn two_copies(name: &str) -> Wanted<'_> {
    Wanted {
        access: Access::Xfs,
        name,
        bytes: SIZE,
        parameters: &[("replicaCount", "2")],
        nodes: &["node-a", "node-b"],
    }
}

/// Detaches and deletes a volume; nothing may be left.
pub fn take_down(cluster: &Cluster, volume: &Volume) -> Result<()> {
    detach(cluster, &volume.id, &volume.at)?;
    remove(cluster, volume)
}

/// Deletes a detached volume; nothing may be left.
pub fn remove(cluster: &Cluster, volume: &Volume) -> Result<()> {
    cluster.csi.delete(&volume.id).0.with_context(|| format!("DeleteVolume {}", volume.id))?;
    let begin = Instant::now();
    while let Err(error) = checks::no_leaks(cluster) {
        if begin.elapsed() > Duration::from_secs(30) {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// The option that makes a writer end when [`stop`] says so; each volume has a file of its own.
pub fn until(volume: &Volume) -> String {
    format!("--until {}", stop_file(volume))
}

/// The file that ends a volume's writer.
pub fn stop_file(volume: &Volume) -> String {
    format!("/run/stop-{}", volume.id)
}

/// Tells a writer to stop and returns its history; an error that it met is ours.
pub fn stop(cluster: &Cluster, volume: &Volume, running: Running) -> Result<History> {
    let stop_file = stop_file(volume);
    cluster.guest(&volume.at)?.ssh_checked(&format!("touch {stop_file}"))?;
    let history = running.finish(Duration::from_secs(60))?;
    cluster.guest(&volume.at)?.ssh_checked(&format!("rm -f {stop_file}"))?;
    ensure!(history.errors.is_empty(), "write errors: {}", history.errors.join("; "));
    Ok(history)
}
