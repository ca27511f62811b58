//! Scenario: a volume is made larger while it is written to, and once more while one of its copies is away.
//!
//! Called by `scenarios`. What csi-resizer and kubelet call is called here; the devices, the array and the file system are
//! looked at with the system's own tools.

use crate::cluster::{Cluster, wait};
use crate::copies;
use crate::csi::{KUBELET, Wanted, target};
use crate::cuts;
use crate::scenarios::Scenario;
use crate::story::*;
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};

/// The scenarios of this file.
pub const ALL: &[(&str, Scenario)] = &[(
    "expand: 320 MiB become 640 under a writer, and 960 while a target is without power; each copy verified",
    expand,
)];

/// The smallest volume that XFS takes, and some.
const SMALL: i64 = 320 * MIB;
const LARGER: i64 = 2 * SMALL;
const LARGEST: i64 = 3 * SMALL;

fn expand(cluster: &mut Cluster) -> Result<String> {
    let wanted = Wanted { bytes: SMALL, ..two_copies("larger") };
    let (mut volume, _) = bring_up(cluster, &wanted, "node-a")?;
    let running = start_writer(cluster, &volume, &until(&volume))?;
    running.wait_for(200, Duration::from_secs(60))?;
    let undisturbed = running.so_far().longest();
    let mut lines = vec![grow(cluster, &volume, LARGER)?];
    running.wait_for(200, Duration::from_secs(60))?;
    ensure!(cluster.in_sync(&volume.id)?.len() == 2, "a copy has left the set meanwhile");
    let longest = running.so_far().longest();
    lines.push(format!("longest write {longest:?} (undisturbed {undisturbed:?})"));

    cluster.guest("node-b")?.power_cut()?;
    wait("the copy on node-b is out of the set", Duration::from_secs(60), || {
        Ok(cluster.in_sync(&volume.id)?.len() == 1)
    })?;
    lines.push(format!("without node-b: {}", grow(cluster, &volume, LARGEST)?));
    cuts::boot(cluster, "node-b")?;
    cuts::await_copies(cluster, &volume.id, 2)?;
    lines.push(format!("node-b is back: its partition has {} bytes", partition(cluster, &volume, "node-b")?));
    volume.history.append(&stop(cluster, &volume, running)?);
    let compared = verify(cluster, &volume)?;
    detach(cluster, &volume.id, &volume.at)?;
    lines.push(format!("{compared} blocks verified; {}", copies::verify_each(cluster, &volume)?));
    remove(cluster, &volume)?;
    Ok(lines.join("\n"))
}

/// Both calls, and what is there then.
fn grow(cluster: &Cluster, volume: &Volume, bytes: i64) -> Result<String> {
    let begin = Instant::now();
    let (answer, controller) = cluster.csi.expand(&volume.id, volume.access, bytes);
    let answered = answer.with_context(|| format!("ControllerExpandVolume {}", volume.id))?;
    ensure!(answered.capacity_bytes == bytes && answered.node_expansion_required, "{answered:?}");
    let (answer, node) = cluster.node(&volume.at)?.node_expand(&volume.id, volume.access, bytes);
    let has = answer.with_context(|| format!("NodeExpandVolume {}", volume.id))?;
    ensure!(has == bytes, "the node says {has} bytes, asked for were {bytes}");
    let took = begin.elapsed().as_secs_f64();
    // Once more, for nothing.
    ensure!(
        cluster.csi.expand(&volume.id, volume.access, bytes).0?.capacity_bytes == bytes,
        "another answer to the same call"
    );
    ensure!(
        cluster.node(&volume.at)?.node_expand(&volume.id, volume.access, bytes).0? == bytes,
        "another answer to the same call"
    );
    let guest = cluster.guest(&volume.at)?;
    let mount = target(KUBELET, &volume.id);
    let script = format!(
        "m=$(findmnt -no SOURCE {mount} | cut -d'[' -f1); s=/sys/block/${{m#/dev/}}; \
         echo $(blockdev --getsize64 $m) $(cat $s/md/sync_action) $(cat $s/md/resync_start) $(stat -f -c '%b %S' {mount})"
    );
    let said = guest.ssh_checked(&script)?;
    let words: Vec<&str> = said.split_whitespace().collect();
    let [array, action, resync, blocks, size] = words[..] else { anyhow::bail!("{script}: {said}") };
    ensure!(array == bytes.to_string(), "the array has {array} bytes, not {bytes}");
    ensure!(action == "idle" && resync == "none", "the array grew with a sync: {action}, {resync}");
    // A file system keeps its log and some tables to itself.
    let filled = blocks.parse::<i64>()? * size.parse::<i64>()?;
    ensure!(filled > bytes - bytes / 4, "the file system has {filled} bytes of {bytes}");
    Ok(format!(
        "{bytes} bytes after {took:.2} s (controller {:.2} s, node {:.2} s), file system {filled}, no resync",
        controller.as_secs_f64(),
        node.as_secs_f64()
    ))
}

fn partition(cluster: &Cluster, volume: &Volume, node: &str) -> Result<String> {
    let script = format!("{}; blockdev --getsize64 $p", copies::locate(volume)?);
    Ok(cluster.guest(node)?.ssh_checked(&script)?.trim().to_string())
}
