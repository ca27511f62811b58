//! Scenarios of cables, machines and servers that are cut while volumes are written to.
//!
//! Called by `scenarios`. Each proves that its fault really happened, and reads each copy by itself where copies could
//! have gone apart; each leaves the cluster as it found it.

use crate::cluster::{Cluster, wait};
use crate::csi::{Access, Wanted};
use crate::history::{History, Running};
use crate::scenarios::{Scenario, said};
use crate::story::*;
use crate::{checks, copies};
use anyhow::{Context, Result, bail, ensure};
use meshstor_lab::Guest;
use std::process::Command;
use std::time::Duration;

/// The scenarios of this file.
pub const ALL: &[(&str, Scenario)] = &[
    ("api-cut: a deposed consumer writes on, cut off from the API server alone", api_cut),
    ("engines: O_DIRECT, io_uring and AIO writers of a deposed consumer", engines),
    ("storage-cut: a deposed consumer is cut off from the storage network alone", storage_cut),
    ("last-copy-dead: takeover waits for the dead node's copy, and says so", last_copy_dead),
    ("cable-flap: two seconds without a cable, one remote copy", cable_flap),
    ("api-outage: more than a minute without an API server", api_outage),
    ("target-reboots: a target with several exports, orderly and by power cut", target_reboots),
];

/// Longer than every timeout of ours, the heartbeat's minute included; by hand it is ten minutes.
const OUTAGE: Duration = Duration::from_secs(75);
/// Sequence numbers of a new consumer's writer: none of the old one's reaches them.
const NEW_LIFE: u64 = 1_000_000;
/// For boots, fences and resyncs on emulated machines that share two processors.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A volume's writer that runs until `stop`.
pub fn writing(cluster: &Cluster, volume: &Volume) -> Result<Running> {
    let running = start_writer(cluster, volume, &until(volume))?;
    running.wait_for(50, Duration::from_secs(60))?;
    Ok(running)
}

/// Waits until a volume has so many copies in sync.
pub fn await_copies(cluster: &Cluster, volume: &str, count: usize) -> Result<()> {
    wait(&format!("{count} copies of {volume} in sync"), PATIENCE, || Ok(cluster.in_sync(volume)?.len() == count))
}

/// Boots a node that is off and waits for its agent.
pub fn boot(cluster: &mut Cluster, node: &str) -> Result<()> {
    let guest = cluster.guest(node)?;
    guest.power_on()?;
    cluster.start_agent(&guest)?;
    cluster.await_agent(node)
}

/// Whether a guest's storage card has a carrier.
pub fn carrier(guest: &Guest, card: &str) -> Result<bool> {
    Ok(guest.ssh_checked(&format!("cat /sys/class/net/{card}/carrier"))? == "1")
}

/// Waits for all copies, reads each by itself, deletes the volume.
pub fn finish(cluster: &Cluster, volume: &Volume, copies: usize) -> Result<String> {
    let line = read_each(cluster, volume, copies)?;
    remove(cluster, volume)?;
    Ok(line)
}

/// Waits for all copies, detaches the volume and reads each of them by itself.
pub fn read_each(cluster: &Cluster, volume: &Volume, copies: usize) -> Result<String> {
    await_copies(cluster, &volume.id, copies)?;
    detach(cluster, &volume.id, &volume.at)?;
    copies::verify_each(cluster, volume)
}

fn api_cut(cluster: &mut Cluster) -> Result<String> {
    let (mut volume, _) = bring_up(cluster, &two_copies("api-cut"), "node-a")?;
    let old = writing(cluster, &volume)?;
    let guest = cluster.guest("node-a")?;
    guest.api_cable(false)?;
    ensure!(!carrier(&guest, "api0")?, "the API cable is not cut");
    // Healthy and merely out of touch: it goes on.
    old.wait_for(50, Duration::from_secs(60))?;
    let line = deposed(cluster, &mut volume, old, Vec::new(), |_| guest.api_cable(true))?;
    let end = finish(cluster, &volume, 2)?;
    Ok(format!("{line}; {end}"))
}

/// Programs that write past the page cache, by io_uring and by AIO: none of them may be told of a success that the new
/// consumer does not have (F7, X4).
fn engines(cluster: &mut Cluster) -> Result<String> {
    let (mut volume, _) = bring_up(cluster, &two_copies("engines"), "node-a")?;
    let old = writing(cluster, &volume)?;
    let guest = cluster.guest("node-a")?;
    let mut others = Vec::new();
    for how in ["direct", "uring", "aio"] {
        let path = format!("{}-{how}", file(&volume));
        let command = match how {
            "aio" => aio_writer(&guest, &path)?,
            how => cluster.helper("node-a", &format!("write --file {path} --blocks 512 --how {how}"))?,
        };
        let running = Running::start(command)?;
        running.wait_for(50, Duration::from_secs(60)).with_context(|| format!("the writer {how}"))?;
        others.push((path, running));
    }
    guest.api_cable(false)?;
    ensure!(!carrier(&guest, "api0")?, "the API cable is not cut");
    let line = deposed(cluster, &mut volume, old, others, |_| guest.api_cable(true))?;
    let end = finish(cluster, &volume, 2)?;
    Ok(format!("{line}; {end}"))
}

/// A writer by the older kernel AIO, which no library of ours speaks: each block goes where its number says, again and
/// again.
fn aio_writer(guest: &Guest, path: &str) -> Result<Command> {
    let out = guest.ssh_with_input("cat >/tmp/aio.pl", include_str!("files/aio.pl").as_bytes())?;
    ensure!(out.ok(), "{}", out.stderr);
    guest.ssh_checked("/host/meshstor-demo write --file /tmp/aio.blocks --blocks 4096 --count 4095 >/dev/null")?;
    guest.ssh_command(&format!("perl /tmp/aio.pl /tmp/aio.blocks {path}"))
}

fn storage_cut(cluster: &mut Cluster) -> Result<String> {
    let (mut volume, _) = bring_up(cluster, &two_copies("storage-cut"), "node-a")?;
    let old = writing(cluster, &volume)?;
    let guest = cluster.guest("node-a")?;
    guest.cable(false)?;
    ensure!(!carrier(&guest, "stor0")?, "the storage cable is not cut");
    let line = deposed(cluster, &mut volume, old, Vec::new(), |_| guest.cable(true))?;
    let end = finish(cluster, &volume, 2)?;
    Ok(format!("{line}; {end}"))
}

/// The volume is published to node-b while its old consumer, which is cut off, writes on, `others` to files of their own;
/// then the cut is `healed`.
pub fn deposed(
    cluster: &Cluster,
    volume: &mut Volume,
    old: Running,
    others: Vec<(String, Running)>,
    healed: impl FnOnce(&Cluster) -> Result<()>,
) -> Result<String> {
    cluster.csi.unpublish(&volume.id, "node-a").0.context("ControllerUnpublishVolume")?;
    let times = attach(cluster, &volume.id, "node-b")?;
    volume.at = "node-b".into();
    // The first read of the new life: whatever of the old one is not here now must never appear.
    let first = read_back(cluster, volume)?;
    let reads = |path: &String| read_file(cluster, "node-b", path);
    let others_first = others.iter().map(|(path, _)| reads(path)).collect::<Result<Vec<_>>>()?;
    let arguments = format!("write --file {} --blocks {BLOCKS} --first {NEW_LIFE} --count 100", file(volume));
    let new = Running::start(cluster.helper("node-b", &arguments)?)?.finish(PATIENCE)?;
    ensure!(new.errors.is_empty() && new.acks.len() == 100, "{} of 100: {:?}", new.acks.len(), new.errors);
    healed(cluster)?;
    let old = old.finish(PATIENCE)?;
    ensure!(!old.acks.is_empty(), "the old consumer never wrote");
    // All it was ever told, whenever that was: nothing acknowledged after the first read may be missing there.
    old.verify(&first).context("the old consumer's acknowledged writes on the new one")?;
    let mut lines = Vec::new();
    for ((path, running), first) in others.into_iter().zip(others_first) {
        let told = running.finish(PATIENCE)?;
        told.verify(&first).with_context(|| format!("what was acknowledged for {path}"))?;
        let last = told.errors.first().map_or("then nothing", String::as_str);
        lines.push(format!("; {path}: {} acknowledged, {last}", told.acks.len()));
    }
    await_copies(cluster, &volume.id, 2)?;
    let last = read_back(cluster, volume)?;
    no_ghosts(&first, &last, NEW_LIFE)?;
    volume.history.append(&old);
    volume.history.acks.extend(&new.acks);
    let blocks = verify(cluster, volume)?;
    let agent = cluster.node("node-a")?;
    agent.node_unpublish(&volume.id).0.context("NodeUnpublishVolume on the old consumer")?;
    agent.unstage(&volume.id).0.context("NodeUnstageVolume on the old consumer")?;
    Ok(format!(
        "{} writes acknowledged to the old consumer ({}), all on the new one{}; {times}; {blocks} blocks verified, no ghost",
        old.acks.len(),
        old.errors.first().map_or("then killed or frozen", String::as_str),
        lines.concat(),
    ))
}

/// Every block is as the new consumer found it, or as it wrote it: with a number from `new_life` on.
pub fn no_ghosts(first: &str, last: &str, new_life: u64) -> Result<()> {
    let mut before = first.lines().map(str::to_string).collect::<std::collections::BTreeSet<_>>();
    before.insert(String::new());
    for line in last.lines().filter(|line| !before.contains(*line)) {
        let sequence = line.split_whitespace().nth(2).and_then(|n| n.parse::<u64>().ok());
        // A block that lies beyond the first read's end was only now made by a longer file.
        ensure!(sequence.is_some_and(|n| n >= new_life || n == 0), "a write of the old consumer came later: {line}");
    }
    Ok(())
}

fn last_copy_dead(cluster: &mut Cluster) -> Result<String> {
    let (mut volume, _) = bring_up(cluster, &two_copies("last-copy"), "node-a")?;
    let running = start_writer(cluster, &volume, "")?;
    running.wait_for(50, Duration::from_secs(60))?;
    cluster.guest("node-b")?.power_cut()?;
    await_copies(cluster, &volume.id, 1)?;
    running.wait_for(50, Duration::from_secs(60))?;
    cluster.guest("node-a")?.power_cut()?;
    volume.history.append(&running.finish(Duration::from_secs(5))?);
    boot(cluster, "node-b")?;
    cluster.csi.unpublish(&volume.id, "node-a").0?;
    let waits = cluster.csi.publish_within(&volume.id, "node-b", Duration::from_secs(15)).0;
    let Err(waits) = waits else { bail!("taken over from a stale copy") };
    ensure!(crate::csi::retriable(&waits), "{waits}");
    let dead = cluster.replicas(&volume.id)?.get("node-a").cloned().context("a copy on node-a")?;
    ensure!(waits.message().contains("node-a") || waits.message().contains(&dead), "{waits}");
    let told = wait_for_reason(cluster, &volume.id, "AwaitingFence")?;
    wait("an event says so", Duration::from_secs(30), || cluster.has_event(&volume.id, "AwaitingFence"))?;
    boot(cluster, "node-a")?;
    // The sidecar calls again.
    let times = attach(cluster, &volume.id, "node-b")?;
    volume.at = "node-b".into();
    let blocks = verify(cluster, &volume)?;
    let end = finish(cluster, &volume, 2)?;
    Ok(format!(
        "the call says: {}\nthe condition says: {told}\n{times}; {blocks} blocks verified; {end}",
        waits.message()
    ))
}

fn wait_for_reason(cluster: &Cluster, volume: &str, reason: &str) -> Result<String> {
    let mut message = String::new();
    wait(&format!("a condition with reason {reason}"), Duration::from_secs(30), || {
        message = said(&cluster.get(&["msvol", volume])?, reason).unwrap_or_default();
        Ok(!message.is_empty())
    })?;
    Ok(message)
}

/// A volume with one copy, away from its consumer, which it does not follow.
pub fn one_remote<'a>(name: &'a str, nodes: &'a [&'a str]) -> Wanted<'a> {
    Wanted {
        access: Access::Xfs,
        name,
        bytes: SIZE,
        parameters: &[("replicaCount", "1"), ("relocationDelay", "never")],
        nodes,
    }
}

/// What the kernel of a guest said about file systems, arrays and failed I/O since its log was cleared. An error on a
/// single path (`nvme2c2n1`) is none: the head sends the request another way.
fn complaints(guest: &Guest) -> Result<String> {
    let words = "I/O error|XFS.*(rror|hutdown)|Disk failure|shut ?down";
    guest.ssh_checked(&format!("dmesg | grep -E '{words}' | grep -vE 'dev nvme[0-9]+c[0-9]+n' || true"))
}

fn cable_flap(cluster: &mut Cluster) -> Result<String> {
    let (mut volume, _) = bring_up(cluster, &one_remote("flap", &["node-b"]), "node-a")?;
    let (a, b) = (cluster.guest("node-a")?, cluster.guest("node-b")?);
    a.ssh_checked("dmesg -C")?;
    let running = writing(cluster, &volume)?;
    for _ in 0..3 {
        b.cable(false)?;
        ensure!(!carrier(&b, "stor0")?, "the cable is not cut");
        std::thread::sleep(Duration::from_secs(2));
        b.cable(true)?;
        running.wait_for(30, PATIENCE)?;
    }
    let history = stop(cluster, &volume, running)?;
    ensure!(history.longest() > Duration::from_secs(1), "no write noticed: {:?}", history.longest());
    volume.history.append(&history);
    let said = complaints(&a)?;
    ensure!(said.is_empty(), "an error reached the file system:\n{said}");
    let blocks = verify(cluster, &volume)?;
    take_down(cluster, &volume)?;
    Ok(format!("3 flaps, {} writes, longest {:?}, {blocks} blocks verified", history.acks.len(), history.longest()))
}

fn api_outage(cluster: &mut Cluster) -> Result<String> {
    let (mut local, _) = bring_up(cluster, &two_copies("outage"), "node-a")?;
    let (mut remote, _) = bring_up(cluster, &one_remote("outage-one", &["node-c"]), "node-b")?;
    let writers = [writing(cluster, &local)?, writing(cluster, &remote)?];
    cluster.control.stop_api()?;
    ensure!(cluster.control.kubectl(&["--request-timeout=2s", "get", "msvol"]).is_err(), "the API server answers");
    std::thread::sleep(outage());
    cluster.control.start_api()?;
    let mut lines = Vec::new();
    for (volume, running) in [&mut local, &mut remote].into_iter().zip(writers) {
        running.wait_for(20, Duration::from_secs(60))?;
        let history = stop(cluster, volume, running)?;
        ensure!(history.longest() < Duration::from_secs(3), "{}: a write took {:?}", volume.id, history.longest());
        lines.push(format!("{}: {} writes, longest {:?}", volume.id, history.acks.len(), history.longest()));
        volume.history.append(&history);
    }
    detach(cluster, &remote.id, &remote.at)?;
    cluster.csi.delete(&remote.id).0?;
    lines.push(finish(cluster, &local, 2)?);
    Ok(format!("{} s without: {}", outage().as_secs(), lines.join("; ")))
}

/// `MESHSTOR_OUTAGE_SECONDS` makes the outage longer by hand.
fn outage() -> Duration {
    let wanted = std::env::var("MESHSTOR_OUTAGE_SECONDS").ok().and_then(|text| text.parse().ok());
    wanted.map_or(OUTAGE, Duration::from_secs)
}

/// A reboot that the kernel of the guest makes itself: devices are shut down while the network still answers.
fn orderly(guest: &Guest) -> Result<()> {
    // The reboot system call: 169 on x86-64, with its two magic numbers and RESTART.
    let call = "perl -e 'syscall(169, 0xfee1dead, 672274793, 0x1234567, 0)'";
    guest.ssh_checked(&format!(
        "sync; setsid sh -c \"sleep 0.5; {}\" >/dev/null 2>&1 </dev/null &",
        call.replace('"', "\\\"")
    ))?;
    wait("the guest ends by itself", Duration::from_secs(60), || Ok(!guest.is_on()?))?;
    // Only the lab's own memory of it: the machine is off already.
    guest.power_cut()
}

fn target_reboots(cluster: &mut Cluster) -> Result<String> {
    let plan = [("reboot-one", "node-a", "1"), ("reboot-two", "node-a", "2"), ("reboot-three", "node-c", "1")];
    let mut volumes = Vec::new();
    for (name, consumer, copies) in plan {
        let parameters = [("replicaCount", copies), ("relocationDelay", "never")];
        let nodes: &[&str] = if copies == "1" { &["node-b"] } else { &["node-a", "node-b"] };
        let wanted = Wanted { access: Access::Xfs, name, bytes: SIZE, parameters: &parameters, nodes };
        volumes.push(bring_up(cluster, &wanted, consumer)?.0);
    }
    let mut lines = Vec::new();
    for power_cut in [true, false] {
        lines.push(one_reboot(cluster, &mut volumes, power_cut)?);
    }
    for volume in &volumes {
        detach(cluster, &volume.id, &volume.at)?;
        lines.push(copies::verify_each(cluster, volume)?);
        cluster.csi.delete(&volume.id).0?;
    }
    wait("nothing left", Duration::from_secs(30), || Ok(checks::no_leaks(cluster).is_ok()))?;
    Ok(lines.join("\n"))
}

/// node-b goes and comes back while all its consumers write.
fn one_reboot(cluster: &mut Cluster, volumes: &mut [Volume], power_cut: bool) -> Result<String> {
    let guest = cluster.guest("node-b")?;
    let before = guest.boot_id()?;
    let held = |volume: &Volume| checks::controllers(cluster, &volume.at, &volume.data_id);
    let controllers = volumes.iter().map(held).collect::<Result<Vec<_>>>()?;
    let writers = volumes.iter().map(|v| writing(cluster, v)).collect::<Result<Vec<_>>>()?;
    if power_cut {
        guest.power_cut()?
    } else {
        orderly(&guest)?
    }
    boot(cluster, "node-b")?;
    ensure!(guest.boot_id()? != before, "the same boot");
    let mut histories: Vec<History> = Vec::new();
    for (volume, running) in volumes.iter().zip(writers) {
        running.wait_for(20, PATIENCE).with_context(|| format!("{} after the reboot", volume.id))?;
        histories.push(stop(cluster, volume, running)?);
    }
    for (volume, before) in volumes.iter().zip(&controllers) {
        // A volume with another copy lets go of the lost one on purpose.
        let now = checks::controllers(cluster, &volume.at, &volume.data_id)?;
        let alone = cluster.replicas(&volume.id)?.len() == 1;
        ensure!(!alone || now == *before, "{}: controllers {before:?} became {now:?}", volume.id);
    }
    let mut lines = Vec::new();
    for (volume, history) in volumes.iter_mut().zip(histories) {
        volume.history.append(&history);
        await_copies(cluster, &volume.id, cluster.replicas(&volume.id)?.len())?;
        let blocks = verify(cluster, volume)?;
        lines.push(format!("{} longest {:.1} s, {blocks} blocks", volume.id, history.longest().as_secs_f64()));
    }
    Ok(format!("{}: {}", if power_cut { "power cut" } else { "reboot" }, lines.join("; ")))
}
