//! Scenarios of drives: one is pulled under load and put back; one hangs while volumes on it and beside it change hands; the
//! last one of a volume is out of reach while its pod ends.
//!
//! Called by `scenarios`. They look at the drives themselves, from outside and in the kernels of the guests.

use crate::cluster::{Cluster, wait};
use crate::csi::{Wanted, retriable};
use crate::cuts::{PATIENCE, await_copies, carrier, finish, one_remote, read_each, writing};
use crate::history::Running;
use crate::regressions::suite;
use crate::scenarios::{Scenario, said};
use crate::story::*;
use anyhow::{Context, Result, bail, ensure};
use meshstor_lab::Guest;
use std::time::{Duration, Instant};

/// The scenarios of this file.
pub const ALL: &[(&str, Scenario)] = &[
    ("crowded-table: many edits of one drive's partition table at the same time", crowded_table),
    ("drive-pulled: a target's drive is pulled under load and put back", drive_pulled),
    ("hung-drive: one drive of a target hangs while volumes on both of its drives change hands", hung_drive),
    ("frozen-unstage: a pod ends while the only copy of its volume is out of reach", frozen_unstage),
];

/// Slot of the drive with 4096-byte sectors.
const SLOT: usize = 0;
/// Bytes a second: nothing gets through while anything here lasts.
const ALMOST_NOTHING: u64 = 1;

/// F8: the target answers with an error that is final, and MD drops the member by itself. X7 in part: a drive comes back
/// with its volatile cache on, and it must be off again before a copy on it counts.
fn drive_pulled(cluster: &mut Cluster) -> Result<String> {
    let (mut volume, _) = bring_up(cluster, &two_copies("pulled"), "node-a")?;
    let target = cluster.guest("node-b")?;
    ensure!(!cache_is_on(&target)?, "the cache of a drive with a copy is on");
    let running = writing(cluster, &volume)?;
    target.drive_pull(SLOT)?;
    await_copies(cluster, &volume.id, 1)?;
    running.wait_for(100, PATIENCE)?;
    target.drive_insert(SLOT)?;
    await_copies(cluster, &volume.id, 2)?;
    ensure!(!cache_is_on(&target)?, "the copy counts, and the cache of its drive is on");
    running.wait_for(50, PATIENCE)?;
    let history = stop(cluster, &volume, running)?;
    volume.history.append(&history);
    let blocks = verify(cluster, &volume)?;
    let end = finish(cluster, &volume, 2)?;
    Ok(format!(
        "{} writes, no error, longest {:?}, cache off before and after, {blocks} blocks verified; {end}",
        history.acks.len(),
        history.longest()
    ))
}

/// Nobody has the drive: the edits are made beside the agent, by the same code.
fn crowded_table(cluster: &mut Cluster) -> Result<String> {
    const AT_ONCE: usize = 12;
    let guest = cluster.guest("node-c")?;
    let serial = guest.drive_serials().pop().context("no drive")?;
    let said = suite(&guest, &[&format!("crowd {serial}-1 {AT_ONCE}")])?;
    let done = said.lines().find(|line| line.contains("none lost")).context("the console says nothing")?;
    Ok(done.split("-> ").last().unwrap_or_default().to_string())
}

/// Whether the drive's volatile write cache is on, as the drive says (feature 06h).
fn cache_is_on(guest: &Guest) -> Result<bool> {
    let said = guest.ssh_checked(&format!("nvme get-feature -f 6 {}", guest.drive_path(SLOT)))?;
    let value = said.rsplit(':').next().context("a value")?.trim();
    let value = u32::from_str_radix(value.trim_start_matches("0x"), 16).with_context(|| said.clone())?;
    Ok(value & 1 == 1)
}

/// F21: a drain of the hung drive's namespace holds what every other fence of the node needs. The volumes go on elsewhere
/// all the same.
fn hung_drive(cluster: &mut Cluster) -> Result<String> {
    let other = Wanted { parameters: &[("replicaCount", "2"), ("sectorSize", "512")], ..two_copies("hung-beside") };
    let mut volumes = Vec::new();
    for wanted in [two_copies("hung-on-it"), other] {
        volumes.push(bring_up(cluster, &wanted, "node-a")?.0);
    }
    let target = cluster.guest("node-b")?;
    let writers = volumes.iter().map(|v| start_writer(cluster, v, "")).collect::<Result<Vec<_>>>()?;
    for running in &writers {
        running.wait_for(50, PATIENCE)?;
    }
    target.drive_throttle(SLOT, Some(ALMOST_NOTHING))?;
    let told = while_hung(cluster, &mut volumes, &writers[0]);
    // Whatever became of it: the next scenario wants a drive that works.
    target.drive_throttle(SLOT, None)?;
    let told = told?;
    let mut ends = Vec::new();
    for (volume, running) in volumes.iter_mut().zip(writers) {
        volume.history.append(&running.finish(PATIENCE)?);
        let blocks = verify(cluster, volume)?;
        let agent = cluster.node("node-a")?;
        agent.node_unpublish(&volume.id).0.context("NodeUnpublishVolume on the old consumer")?;
        agent.unstage(&volume.id).0.context("NodeUnstageVolume on the old consumer")?;
        ends.push(format!("{blocks} blocks verified; {}", read_each(cluster, volume, 2)?));
        cluster.csi.delete(&volume.id).0.with_context(|| format!("DeleteVolume {}", volume.id))?;
    }
    wait("nothing left", Duration::from_secs(30), || Ok(crate::checks::no_leaks(cluster).is_ok()))?;
    Ok(format!("{told}; {}", ends.join("; ")))
}

/// F23: nothing can be unmounted that waits for its last copy. The call says so, and everything ends when the copy is back.
fn frozen_unstage(cluster: &mut Cluster) -> Result<String> {
    let (mut volume, _) = bring_up(cluster, &one_remote("frozen", &["node-b"]), "node-a")?;
    let running = start_writer(cluster, &volume, "")?;
    running.wait_for(50, PATIENCE)?;
    let (a, b) = (cluster.guest("node-a")?, cluster.guest("node-b")?);
    b.cable(false)?;
    ensure!(!carrier(&b, "stor0")?, "the cable is not cut");
    wait("the volume says that it is frozen", Duration::from_secs(60), || {
        Ok(said(&cluster.get(&["msvol", &volume.id])?, "LastCopyFrozen").is_some())
    })?;
    // As a kubelet ends a container, whose process waits in the kernel.
    a.ssh_checked("pkill -9 -x meshstor-demo || true")?;
    let agent = cluster.node("node-a")?;
    let _pod_ends = agent.node_unpublish(&volume.id);
    let (answer, took) = agent.unstage(&volume.id);
    let Err(waits) = answer else { bail!("unstaged, while its last write waits for a copy that is away") };
    ensure!(retriable(&waits) && waits.message().contains("last in-sync copy"), "{waits}");
    b.cable(true)?;
    volume.history.append(&running.finish(PATIENCE)?);
    wait("it is unstaged now", PATIENCE, || {
        Ok(agent.node_unpublish(&volume.id).0.is_ok() && agent.unstage(&volume.id).0.is_ok())
    })?;
    cluster.csi.unpublish(&volume.id, "node-a").0.context("ControllerUnpublishVolume")?;
    let times = attach(cluster, &volume.id, "node-a")?;
    let blocks = verify(cluster, &volume)?;
    take_down(cluster, &volume)?;
    Ok(format!(
        "after {:.0} s the call says: {}\n{times}; {blocks} blocks verified",
        took.as_secs_f64(),
        waits.message()
    ))
}

/// Both volumes are taken from node-a, which still writes, and brought to node-c.
fn while_hung(cluster: &Cluster, volumes: &mut [Volume], on_it: &Running) -> Result<String> {
    wait("a write waits inside the drive", Duration::from_secs(60), || {
        let before = on_it.so_far().acks.len();
        std::thread::sleep(Duration::from_secs(2));
        Ok(on_it.so_far().acks.len() == before)
    })?;
    // The one on the hung drive first: its fence is what the other's has to get past.
    for volume in volumes.iter() {
        cluster.csi.unpublish(&volume.id, "node-a").0.context("ControllerUnpublishVolume")?;
    }
    let mut lines = Vec::new();
    for volume in volumes {
        let begin = Instant::now();
        attach(cluster, &volume.id, "node-c")?;
        volume.at = "node-c".into();
        lines.push(format!("{} on node-c after {:.1} s", volume.id, begin.elapsed().as_secs_f64()));
    }
    Ok(lines.join(", "))
}
