//! Scenarios on real kernels that the story has no room for: agents killed under I/O, a consumer rebooted, objects deleted
//! or restored by hand; and the list of all of them.
//!
//! Called by `meshstor-demo scenarios`. All run in one cluster, one after the other; each leaves it as it found it.

use crate::cluster::{Cluster, wait};
use crate::cuts;
use crate::drives;
use crate::follows;
use crate::held;
use crate::inputs;
use crate::kinds;
use crate::larger;
use crate::rdma;
use crate::rewind;
use crate::story::*;
use crate::throttled;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// One scenario: harm, and what was proven.
pub type Scenario = fn(&mut Cluster) -> Result<String>;

const ALL: &[(&str, Scenario)] = &[
    ("agent-killed: SIGKILL in a loop under I/O", agent_killed),
    ("consumer-rebooted: power cut without unpublish, same node again", consumer_rebooted),
    ("object-deleted: kubectl delete under I/O, and the record gone", object_deleted),
    // The last one: a definition that is being deleted cannot be had back.
    ("crd-deleted: the definitions deleted under I/O", definitions_deleted),
];

/// Runs the scenarios whose name contains `only`, or one of its parts between commas. After one that failed the next
/// begins with a fresh cluster: whatever was left cut, stuck or half-made is nobody else's business. With `keep` it is
/// left for whoever wants to look at it, and nothing else runs.
pub fn run(binaries: &Path, kernel: &str, only: &str, keep: bool) -> Result<()> {
    let mut story = Story::begin();
    let mut world: Option<Cluster> = None;
    let (mut passed, mut failed) = (0, 0);
    let wanted = |name: &str| only.split(',').any(|part| name.contains(part));
    for (name, scenario) in [
        cuts::ALL,
        kinds::ALL,
        rdma::ALL,
        follows::ALL,
        larger::ALL,
        held::ALL,
        throttled::ALL,
        drives::ALL,
        inputs::ALL,
        ALL,
        rewind::ALL,
    ]
    .into_iter()
    .flatten()
    .filter(|(name, _)| wanted(name))
    {
        let mut cluster = match world.take() {
            Some(cluster) => cluster,
            None => story.step("a fresh cluster", || {
                Ok((Cluster::up(binaries, kernel, 3)?, format!("kernel series {kernel}")))
            })?,
        };
        match story.step(name, || Ok(((), scenario(&mut cluster)?))) {
            Ok(()) => {
                passed += 1;
                world = Some(cluster);
            }
            Err(error) => {
                failed += 1;
                println!("            FAILED: {error:#}");
                for guest in cluster.lab.guests() {
                    println!("--- agent log of {}\n{}", guest.name(), cluster.agent_log(&guest.name(), 25));
                }
                if keep {
                    bail!("{name} failed; everything is left as it is");
                }
                cluster.down()?;
            }
        }
    }
    if let Some(cluster) = world.filter(|_| !keep) {
        cluster.down()?;
    }
    println!("scenarios: {passed} passed, {failed} failed in {} s", story.begin.elapsed().as_secs());
    match (passed, failed) {
        (0, 0) => bail!("no scenario is called {only:?}"),
        (_, 0) => Ok(()),
        _ => bail!("{failed} scenarios failed"),
    }
}

fn agent_killed(cluster: &mut Cluster) -> Result<String> {
    const KILLS: usize = 10;
    let (mut volume, _) = bring_up(cluster, &two_copies("killed"), "node-a")?;
    let running = start_writer(cluster, &volume, &until(&volume))?;
    // What this machine does to an undisturbed writer, for whoever reads of a stall: a busy machine makes some by itself.
    running.wait_for(300, Duration::from_secs(60))?;
    let undisturbed = running.so_far().longest();
    let mut changes = Vec::new();
    for kill in 0..KILLS {
        // The consumer's agent and the target's in turn.
        let guest = cluster.guest(if kill % 2 == 0 { "node-a" } else { "node-b" })?;
        let audited = cluster.audit(&guest.name())?.len();
        guest.ssh_checked("kill -9 $(cat /run/meshstor/agent.pid)")?;
        running.wait_for(5, Duration::from_secs(20))?;
        cluster.start_agent(&guest)?;
        wait("the agent answers", Duration::from_secs(30), || {
            Ok(guest.ssh("curl -s 127.0.0.1:9808/readyz | grep -q ok || wget -qO- 127.0.0.1:9808/readyz | grep -q ok || (exec 3<>/dev/tcp/127.0.0.1/9808)")?.ok())
        })?;
        running.wait_for(100, Duration::from_secs(60))?;
        std::thread::sleep(Duration::from_secs(3));
        let lines = cluster.audit(&guest.name())?;
        changes.extend(lines[audited..].iter().filter(|l| l.contains("outcome=\"changed\"")).cloned());
    }
    let history = stop(cluster, &volume, running)?;
    let longest = history.longest();
    volume.history.append(&history);
    ensure!(changes.is_empty(), "a restarted agent changed something:\n{}", changes.join("\n"));
    // An agent needs longer than this to come back: what waited for it would show. What the machine does besides is allowed.
    let limit = Duration::from_secs(1) + 2 * undisturbed;
    ensure!(longest < limit, "a write took {longest:?}; undisturbed the longest took {undisturbed:?}");
    let compared = verify(cluster, &volume)?;
    take_down(cluster, &volume)?;
    Ok(format!(
        "{KILLS} kills, {} writes, longest {longest:?} (undisturbed {undisturbed:?}), no op that changed anything, {compared} blocks verified",
        history.acks.len()
    ))
}

fn consumer_rebooted(cluster: &mut Cluster) -> Result<String> {
    let (mut volume, _) = bring_up(cluster, &two_copies("rebooted"), "node-a")?;
    let running = start_writer(cluster, &volume, "")?;
    running.wait_for(100, Duration::from_secs(60))?;
    let before = cluster.epoch(&volume.id)?;
    let guest = cluster.guest("node-a")?;
    guest.power_cut()?;
    volume.history.append(&running.finish(Duration::from_secs(5))?);
    guest.power_on()?;
    cluster.start_agent(&guest)?;
    cluster.await_agent("node-a")?;
    // The kubelet calls NodeStage and NodePublish again; no ControllerPublish comes.
    let context = [("attachEpoch".to_string(), before.to_string())].into();
    let (staged, took) = cluster.node("node-a")?.stage(&volume.id, &context);
    staged.context("NodeStageVolume after the reboot, first call")?;
    cluster.node("node-a")?.node_publish(&volume.id, &context).0?;
    let after = cluster.epoch(&volume.id)?;
    ensure!(after > before, "staged in the epoch of the former boot ({before})");
    let audit = cluster.audit("node-a")?;
    let boot = audit.iter().rposition(|l| l.contains("assemble-array")).context("an assembly after the reboot")?;
    ensure!(!audit[boot..].iter().any(|l| l.contains("make-filesystem")), "formatted again");
    let compared = verify(cluster, &volume)?;
    take_down(cluster, &volume)?;
    Ok(format!(
        "epoch {before} → {after}, staged in {:.1} s, {compared} blocks verified, nothing formatted",
        took.as_secs_f64()
    ))
}

fn object_deleted(cluster: &mut Cluster) -> Result<String> {
    let (mut volume, _) = bring_up(cluster, &two_copies("deleted"), "node-a")?;
    let yaml = cluster.control.kubectl(&["get", "msvol", &volume.id, "-o", "yaml"])?;
    let running = start_writer(cluster, &volume, &until(&volume))?;
    running.wait_for(20, Duration::from_secs(30))?;
    cluster.control.kubectl(&["delete", "msvol", &volume.id, "--wait=false"])?;
    cluster.control.kubectl(&["delete", "msrep", "--all", "--wait=false"])?;
    running.wait_for(100, Duration::from_secs(60))?;
    let mut reason = String::new();
    wait("the condition says what happened", Duration::from_secs(30), || {
        reason = said(&cluster.get(&["msvol", &volume.id])?, "DeletedByHand").unwrap_or_default();
        Ok(!reason.is_empty())
    })?;
    let mut lines = vec![format!("deleted by hand: {reason}")];
    lines.push(record_removed(cluster, &volume)?);
    // Now really gone, as after a lost finalizer: the agents keep serving what they serve.
    for what in [format!("msvol/{}", volume.id)].into_iter().chain(replica_objects(cluster, &volume.id)?) {
        cluster.control.kubectl(&["patch", &what, "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#])?;
    }
    running.wait_for(200, Duration::from_secs(60))?;
    let history = stop(cluster, &volume, running)?;
    volume.history.append(&history);
    let compared = verify(cluster, &volume)?;
    lines.push(format!(
        "objects gone: {} writes, no error, longest {:?}, {compared} blocks verified",
        history.acks.len(),
        history.longest()
    ));
    lines.push(restored(cluster, &volume, &yaml)?);
    Ok(lines.join("\n"))
}

/// Somebody takes the in-sync set out of the record: the server refuses and says what to do instead.
fn record_removed(cluster: &Cluster, volume: &Volume) -> Result<String> {
    let patch = r#"[{"op":"remove","path":"/status/inSync"}]"#;
    let words = ["patch", "msvol", &volume.id, "--subresource=status", "--type=json", "-p", patch];
    let Err(refused) = cluster.control.kubectl(&words) else { bail!("the in-sync set could be removed") };
    let refused = format!("{refused:#}");
    ensure!(refused.contains("status.inSync") && refused.contains("meshstor recover"), "{refused}");
    Ok(format!("in-sync set removed by hand: {}", refused.lines().last().unwrap_or_default().trim()))
}

fn replica_objects(cluster: &Cluster, volume: &str) -> Result<Vec<String>> {
    let items = cluster.get(&["msrep"])?["items"].as_array().cloned().unwrap_or_default();
    let of = items.iter().filter(|i| i["spec"]["volume"] == volume);
    Ok(of.filter_map(|i| Some(format!("msrep/{}", i["metadata"]["name"].as_str()?))).collect())
}

/// The object re-applied from YAML, without its record: nothing is made, formatted or wiped, and it says so.
fn restored(cluster: &Cluster, volume: &Volume, yaml: &str) -> Result<String> {
    let file = cluster.lab.paths().run().join("restored.yaml");
    let dropped = ["  uid:", "  resourceVersion:", "  creationTimestamp:", "  generation:"];
    let text: Vec<&str> = yaml.lines().filter(|l| !dropped.iter().any(|d| l.starts_with(d))).collect();
    std::fs::write(&file, text.join("\n"))?;
    let audited = cluster.audit("node-a")?.len();
    cluster.control.kubectl(&["apply", "-f", &file.display().to_string()])?;
    std::thread::sleep(Duration::from_secs(15));
    let changed: Vec<String> =
        cluster.audit("node-a")?[audited..].iter().filter(|l| l.contains("outcome=\"changed\"")).cloned().collect();
    ensure!(changed.is_empty(), "a restored object made the agent change something:\n{}", changed.join("\n"));
    let compared = verify(cluster, volume)?;
    let mut message = String::new();
    wait("the restored object says that its record is lost", Duration::from_secs(30), || {
        message = said(&cluster.get(&["msvol", &volume.id])?, "RecordLost").unwrap_or_default();
        Ok(!message.is_empty())
    })?;
    Ok(format!("object restored from YAML without its record: nothing changed, {compared} blocks verified; {message}"))
}

/// The message of the condition with this reason.
pub fn said(object: &Value, reason: &str) -> Option<String> {
    let condition = object["status"]["conditions"].as_array()?.iter().find(|c| c["reason"] == reason)?;
    condition["message"].as_str().map(Into::into)
}

/// All objects get a deletion timestamp at once; nobody asked for the data to go.
fn definitions_deleted(cluster: &mut Cluster) -> Result<String> {
    let (mut volume, _) = bring_up(cluster, &two_copies("crd"), "node-a")?;
    let (idle, _) = create_on(cluster, &two_copies("crd-idle"))?;
    let before = partition_hashes(cluster, &idle.volume_id)?;
    let running = start_writer(cluster, &volume, &until(&volume))?;
    running.wait_for(20, Duration::from_secs(30))?;
    for kind in ["meshstorvolumes", "meshstorreplicas"] {
        cluster.control.kubectl(&["delete", "crd", &format!("{kind}.csi.meshstor.io"), "--wait=false"])?;
    }
    running.wait_for(200, Duration::from_secs(60))?;
    let mut message = String::new();
    wait("the condition says what happened", Duration::from_secs(60), || {
        message = said(&cluster.get(&["msvol", &volume.id])?, "DeletedByHand").unwrap_or_default();
        Ok(!message.is_empty())
    })?;
    let history = stop(cluster, &volume, running)?;
    volume.history.append(&history);
    let compared = verify(cluster, &volume)?;
    ensure!(before == partition_hashes(cluster, &idle.volume_id)?, "bytes of an idle volume have changed");
    Ok(format!(
        "{} writes, no error, longest {:?}, {compared} blocks verified; {} partitions of an idle volume unchanged; {message}",
        history.acks.len(),
        history.longest(),
        before.len()
    ))
}

/// A hash of every byte of a volume's partitions, by node.
fn partition_hashes(cluster: &Cluster, volume: &str) -> Result<Vec<(String, String)>> {
    let data_id = cluster.get(&["msvol", volume])?["spec"]["volumeID"].as_str().context("spec.volumeID")?.to_string();
    let mut hashes = Vec::new();
    for node in cluster.replicas(volume)?.into_keys() {
        let script = format!(
            "p=$(lsblk -rno PATH,PARTLABEL | grep ' meshstor-{}-' | cut -d' ' -f1); [ -b \"$p\" ] || exit 1; \
             blockdev --flushbufs $p; sha256sum <$p",
            &data_id[..8]
        );
        hashes.push((node.clone(), cluster.guest(&node)?.ssh_checked(&script)?));
    }
    Ok(hashes)
}
