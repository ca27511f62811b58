//! Scenario: a write is stuck inside a target's drive when its consumer loses its power, boots again and goes on. The old
//! write must not come up behind a newer one (F6, rule 4: the consumer is a node and a boot of it).
//!
//! Called by `scenarios`. It looks at the drive itself, from outside and in the target's kernel, not at what the product says.

use crate::cluster::{Cluster, wait};
use crate::cuts::{PATIENCE, await_copies, boot, finish};
use crate::history::Running;
use crate::scenarios::Scenario;
use crate::story::*;
use anyhow::{Context, Result, ensure};
use meshstor_lab::Guest;
use std::time::Duration;

/// The scenarios of this file.
pub const ALL: &[(&str, Scenario)] =
    &[("throttled: an old write waits inside a target while its consumer reboots and writes on", throttled)];

/// Bytes a second: one 4 KiB block takes an hour, longer than anything here lasts.
const ALMOST_NOTHING: u64 = 1;
/// The slot of the drive that volumes are put on.
const SLOT: usize = 0;
/// Blocks that the new life writes around the one that is stuck.
const AROUND: u64 = 60;

fn throttled(cluster: &mut Cluster) -> Result<String> {
    let (mut volume, _) = bring_up(cluster, &two_copies("throttled"), "node-a")?;
    let target = cluster.guest("node-b")?;
    let running = start_writer(cluster, &volume, "")?;
    running.wait_for(100, Duration::from_secs(60))?;
    target.drive_throttle(SLOT, Some(ALMOST_NOTHING))?;
    let told = while_stuck(cluster, &mut volume, &target, running);
    // Whatever became of it: the next scenario wants a drive that works.
    target.drive_throttle(SLOT, None)?;
    let told = told?;
    await_copies(cluster, &volume.id, 2)?;
    ensure!(in_flight(&target)? == 0, "the drive still holds writes");
    let blocks = verify(cluster, &volume)?;
    let end = finish(cluster, &volume, 2)?;
    Ok(format!("{told}; {blocks} blocks verified; {end}"))
}

/// The consumer's power cut, its next boot, and new data over the block whose old write waits in the drive.
fn while_stuck(cluster: &mut Cluster, volume: &mut Volume, target: &Guest, old: Running) -> Result<String> {
    wait("a write waits inside the drive", Duration::from_secs(60), || {
        let before = old.so_far().acks.len();
        std::thread::sleep(Duration::from_secs(2));
        Ok(in_flight(target)? > 0 && old.so_far().acks.len() == before)
    })?;
    let epoch = cluster.epoch(&volume.id)?;
    cluster.guest("node-a")?.power_cut()?;
    let old = old.finish(Duration::from_secs(5))?;
    volume.history.append(&old);
    let stuck = old.acks.last().context("the old life acknowledged nothing")?.sequence + 1;
    boot(cluster, "node-a")?;
    let held = in_flight(target)?;
    ensure!(held > 0, "the old write is no longer in the drive");
    let context = [("attachEpoch".to_string(), epoch.to_string())].into();
    let (staged, took) = cluster.node("node-a")?.stage(&volume.id, &context);
    staged.context("NodeStageVolume after the reboot, first call")?;
    cluster.node("node-a")?.node_publish(&volume.id, &context).0?;
    let after = cluster.epoch(&volume.id)?;
    ensure!(after > epoch, "staged in the epoch of the former boot ({epoch})");
    // Numbers far above the old life's that meet the same blocks.
    let first = (stuck / BLOCKS + 100) * BLOCKS + stuck % BLOCKS - AROUND.min(stuck % BLOCKS);
    let arguments = format!("write --file {} --blocks {BLOCKS} --first {first} --count {}", file(volume), 2 * AROUND);
    let new = Running::start(cluster.helper("node-a", &arguments)?)?.finish(PATIENCE)?;
    ensure!(new.errors.is_empty() && new.acks.len() as u64 == 2 * AROUND, "{}: {:?}", new.acks.len(), new.errors);
    ensure!(new.acks.iter().any(|ack| ack.index == stuck % BLOCKS), "the block of the stuck write was not met");
    volume.history.append(&new);
    let still = in_flight(target)?;
    ensure!(still > 0, "the old write ended before the new ones were acknowledged");
    Ok(format!(
        "{held} requests of the former boot in the drive, {still} of them still after {} newer writes; epoch {epoch} → {after}, staged in {:.1} s",
        new.acks.len(),
        took.as_secs_f64()
    ))
}

/// Writes that the target's kernel has given to the drive and not got back.
fn in_flight(target: &Guest) -> Result<u64> {
    let drive = target.drive_path(SLOT);
    let text = target.ssh_checked(&format!("cat /sys/class/block/$(basename $(readlink -f {drive}))/inflight"))?;
    let writes = text.split_whitespace().nth(1).context("reads and writes in flight")?;
    Ok(writes.parse()?)
}
