//! Scenarios of a record that goes back in time: etcd restored from an old snapshot while volumes live, and the recovery
//! of records from drives by `meshstor recover`, as an operator calls it.
//!
//! Called by `scenarios`.

use crate::cluster::{Cluster, wait};
use crate::copies;
use crate::csi::retriable;
use crate::cuts::{await_copies, boot, writing};
use crate::scenarios::Scenario;
use crate::story::*;
use anyhow::{Context, Result, bail, ensure};
use std::time::Duration;

/// The scenarios of this file.
pub const ALL: &[(&str, Scenario)] = &[
    ("rewind: etcd goes back two moves; nothing starts from it; recovered from the drives", rewind),
    ("lost-last: the only complete copy is gone for good; a person takes the stale one by name", lost_last),
];

/// How long nothing may happen.
const STILL: Duration = Duration::from_secs(45);
/// Operations that give anybody data, as the audit lines name them: `remove-export` is none.
const OFFERS: [&str; 3] = [r#"op="export "#, r#"op="assemble-array "#, r#"op="create-array "#];

/// Runs `meshstor recover`; answers what it printed, and whether it says that all is written.
fn recover(cluster: &Cluster, arguments: &[&str]) -> Result<(bool, String)> {
    let mut command = cluster.product()?;
    let out = command.arg("recover").args(arguments).output().context("meshstor recover")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if text.is_empty() {
        bail!("meshstor recover {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok((out.status.success(), text))
}

/// How many operations that give anybody data each node has applied so far.
fn offers(cluster: &Cluster) -> Result<usize> {
    let mut count = 0;
    for guest in cluster.lab.guests() {
        let audit = cluster.audit(&guest.name())?;
        count += audit.iter().filter(|line| OFFERS.iter().any(|word| line.contains(word))).count();
    }
    Ok(count)
}

/// From one node to another, in good order.
fn move_to(cluster: &Cluster, volume: &mut Volume, node: &str) -> Result<()> {
    detach(cluster, &volume.id, &volume.at)?;
    attach(cluster, &volume.id, node)?;
    volume.at = node.into();
    let history = write(cluster, volume, 200)?;
    volume.history.append(&history);
    Ok(())
}

fn rewind(cluster: &mut Cluster) -> Result<String> {
    let (mut volume, _) = bring_up(cluster, &two_copies("rewind"), "node-a")?;
    let history = write(cluster, &volume, 200)?;
    volume.history.append(&history);
    cluster.control.keep()?;
    let old = cluster.epoch(&volume.id)?;
    move_to(cluster, &mut volume, "node-b")?;
    move_to(cluster, &mut volume, "node-a")?;
    detach(cluster, &volume.id, "node-a")?;
    let seen = cluster.epoch(&volume.id)?;
    ensure!(seen > old + 3, "two moves went from epoch {old} to {seen}");
    let before = offers(cluster)?;
    ensure!(before > 0, "two moves exported and assembled nothing");
    cluster.control.rewind()?;
    ensure!(cluster.epoch(&volume.id)? == old, "etcd did not go back");
    let mut refusal = String::new();
    wait("a copy says EpochRegressed", Duration::from_secs(90), || {
        refusal =
            cluster.control.kubectl(&["get", "msrep", "-o", "jsonpath={.items[*].status.conditions[*].reason}"])?;
        Ok(refusal.contains("EpochRegressed"))
    })?;
    // The record names node-a as the consumer: kubelet would stage there.
    std::thread::sleep(STILL);
    let Err(refused) = cluster.csi.publish(&volume.id, "node-a").0 else {
        bail!("published from a record of the past")
    };
    ensure!(!retriable(&refused) && refused.message().contains("epoch"), "{refused}");
    let after = offers(cluster)?;
    ensure!(after == before, "{} times something was exported or assembled from a record of the past", after - before);
    let (_, table) = recover(cluster, &["--dry-run", &volume.id])?;
    let proposed = format!("proposed: epoch {}, in sync r0, r1", seen + 1);
    ensure!(table.contains(&proposed) && table.contains("nothing that was acknowledged is lost"), "{table}");
    ensure!(cluster.epoch(&volume.id)? == old, "a dry run changed the record");
    let (written, said) = recover(cluster, &["--all"])?;
    ensure!(written && said.contains("1 written"), "{said}");
    ensure!(cluster.epoch(&volume.id)? > seen, "the epoch is not above the drives'");
    let times = attach(cluster, &volume.id, "node-b")?;
    volume.at = "node-b".into();
    let blocks = verify(cluster, &volume)?;
    await_copies(cluster, &volume.id, 2)?;
    detach(cluster, &volume.id, "node-b")?;
    let each = copies::verify_each(cluster, &volume)?;
    remove(cluster, &volume)?;
    Ok(format!("refused: {}\n{table}{times}; {blocks} blocks verified; {each}", refused.message()))
}

fn lost_last(cluster: &mut Cluster) -> Result<String> {
    let (mut volume, _) = bring_up(cluster, &two_copies("lost-last"), "node-a")?;
    let history = write(cluster, &volume, 200)?;
    volume.history.append(&history);
    let safe = volume.history.clone();
    // From here on only node-a's copy has what is written.
    cluster.guest("node-b")?.power_cut()?;
    await_copies(cluster, &volume.id, 1)?;
    let running = writing(cluster, &volume)?;
    cluster.guest("node-a")?.power_cut()?;
    let _cut_off = running.finish(Duration::from_secs(5));
    boot(cluster, "node-b")?;
    cluster.csi.unpublish(&volume.id, "node-a").0?;
    let Err(waits) = cluster.csi.publish(&volume.id, "node-b").0 else { bail!("taken over from a stale copy") };
    let (_, table) = recover(cluster, &["--dry-run", "--patience", "30", &volume.id])?;
    ensure!(table.contains("sound"), "a sound record is left alone: {table}");
    let stale = cluster.replicas(&volume.id)?.get("node-b").cloned().context("a copy on node-b")?;
    let named = format!("{}={stale}", volume.id);
    let (written, said) = recover(cluster, &["--accept-data-loss", &named, "--patience", "30"])?;
    ensure!(written && said.contains("LOST, as accepted"), "{said}");
    let reason = cluster.control.kubectl(&[
        "get",
        "msvol",
        &volume.id,
        "-o",
        r#"jsonpath={.status.conditions[?(@.type=="Recovered")].reason}"#,
    ])?;
    ensure!(reason == "DataLossAccepted", "the condition says {reason:?}");
    let events = cluster.control.kubectl(&["get", "events.events.k8s.io", "-o", "jsonpath={.items[*].reason}"])?;
    ensure!(events.contains("DataLossAccepted"), "the events say {events:?}");
    attach(cluster, &volume.id, "node-b")?;
    volume.at = "node-b".into();
    // What both copies had is there; later writes were given up.
    let blocks = safe.verify(&read_back(cluster, &volume)?)?;
    boot(cluster, "node-a")?;
    await_copies(cluster, &volume.id, 2)?;
    take_down(cluster, &volume)?;
    Ok(format!("before: {}\n{said}{blocks} blocks of before the loss verified", waits.message()))
}
