//! The story: four volumes, a power cut, a return, a takeover, a move, everything deleted. Each step is timed and printed.
//!
//! Called by `meshstor-demo run`. A step that cannot show what it claims fails the whole run.

use crate::checks;
use crate::cluster::{Cluster, wait};
use crate::csi::{Access, Wanted};
use crate::hand;
use crate::history::History;
use crate::story::*;
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

/// Runs the story. `kernel` is a Debian series; `keep` leaves everything running.
pub fn run(binaries: &Path, kernel: &str, keep: bool) -> Result<()> {
    let mut story = Story::begin();
    let mut cluster = story.step("three guests, a control plane, our controller and agents", || {
        let cluster = Cluster::up(binaries, kernel, 3)?;
        Ok((cluster, format!("kernel series {kernel}; CRDs applied; three agents ready")))
    })?;
    let result = tell(&mut story, &mut cluster);
    if let Err(error) = &result {
        println!("\nFAILED: {error:#}");
        for guest in cluster.lab.guests() {
            println!("--- agent log of {}\n{}", guest.name(), cluster.agent_log(&guest.name(), 40));
        }
    }
    if !keep {
        cluster.down()?;
    }
    result?;
    println!("demo: passed in {} s", story.begin.elapsed().as_secs());
    Ok(())
}

fn tell(story: &mut Story, cluster: &mut Cluster) -> Result<()> {
    let mut volumes = create_all(story, cluster)?;
    transports(story, cluster, &volumes)?;
    let by_hand = story.step("the same kernel commands by hand, for comparison", || {
        let by_hand = hand::two_copies(cluster, "node-a", "node-c", 516)?;
        Ok((
            by_hand.total,
            format!("partition, zero, export, connect, array, mkfs, mount: {:.2} s", by_hand.total.as_secs_f64()),
        ))
    })?;
    compare(story, cluster, by_hand)?;
    for volume in volumes.values_mut() {
        story.step(&format!("write to {} and read back", volume.id), || {
            let running = write(cluster, volume, 60)?;
            volume.history.append(&running);
            let compared = verify(cluster, volume)?;
            Ok(((), format!("{} synchronous writes, {compared} blocks verified", running.acks.len())))
        })?;
    }
    let tcp = volumes.get_mut("demo-tcp").context("the tcp volume")?;
    power_cut(story, cluster, tcp)?;
    comes_back(story, cluster, tcp)?;
    taken_away(story, cluster, tcp)?;
    let rdma = volumes.get_mut("demo-rdma").context("the rdma volume")?;
    moves(story, cluster, rdma)?;
    delete_all(story, cluster, &volumes)
}

/// Creates, publishes, stages and mounts the four volumes.
fn create_all(story: &mut Story, cluster: &Cluster) -> Result<BTreeMap<String, Volume>> {
    // node-c has no RDMA link in this story: what has a copy there runs over TCP.
    let plan: [(&str, &str, &[&str]); 4] = [
        ("demo-one", "1", &["node-a"]),
        ("demo-tcp", "2", &["node-a", "node-c"]),
        ("demo-rdma", "2", &["node-a", "node-b"]),
        ("demo-three", "3", &["node-a", "node-b", "node-c"]),
    ];
    let mut volumes = BTreeMap::new();
    for (name, copies, nodes) in plan {
        let volume =
            story.step(&format!("{name}: {copies} copies, created, published, staged, mounted on node-a"), || {
                let wanted =
                    Wanted { access: Access::Xfs, name, bytes: SIZE, parameters: &[("replicaCount", copies)], nodes };
                let (volume, times) = bring_up(cluster, &wanted, "node-a")?;
                let replicas = cluster.replicas(&volume.id)?;
                let at: Vec<&String> = replicas.keys().collect();
                ensure!(at.iter().map(|s| s.as_str()).eq(nodes.iter().copied()), "copies on {at:?}, wanted {nodes:?}");
                Ok((volume, format!("{times}; copies on {at:?}")))
            })?;
        volumes.insert(name.to_string(), volume);
    }
    Ok(volumes)
}

fn compare(story: &mut Story, cluster: &Cluster, by_hand: Duration) -> Result<()> {
    story.step("our own share: create → mounted for two copies against the commands by hand", || {
        let wanted = Wanted {
            access: Access::Xfs,
            name: "demo-timed",
            bytes: SIZE,
            parameters: &[("replicaCount", "2")],
            nodes: &["node-a", "node-c"],
        };
        let begin = Instant::now();
        let (volume, times) = bring_up(cluster, &wanted, "node-a")?;
        let ours = begin.elapsed();
        detach(cluster, &volume.id, "node-a")?;
        cluster.csi.delete(&volume.id).0?;
        let ratio = ours.as_secs_f64() / by_hand.as_secs_f64();
        Ok(((), format!("{times}\ncreate → mounted {:.2} s, ratio to by hand {ratio:.2}", ours.as_secs_f64())))
    })
}

fn transports(story: &mut Story, cluster: &Cluster, volumes: &BTreeMap<String, Volume>) -> Result<()> {
    story.step("which volume runs over which transport", || {
        let mut lines = Vec::new();
        for (name, expected) in [("demo-tcp", "tcp"), ("demo-rdma", "rdma")] {
            let volume = &volumes[name];
            let carrier = checks::carrier(cluster, &volume.at, &volume.data_id)?;
            ensure!(carrier == expected, "{name} runs over {carrier}");
            lines.push(format!("{name}: I/O over {carrier}"));
            lines.extend(
                checks::transports(cluster, &volume.at, &volume.data_id)?.into_iter().map(|l| format!("  {l}")),
            );
            let sockets = checks::sockets(cluster, &volume.at, &ports(cluster, &volume.id)?)?;
            lines.push(format!("  {sockets} established NVMe/TCP sockets (ss)"));
        }
        Ok(((), lines.join("\n")))
    })
}

fn ports(cluster: &Cluster, volume: &str) -> Result<BTreeSet<u16>> {
    let items = cluster.get(&["msrep"])?["items"].as_array().cloned().unwrap_or_default();
    let of = items.iter().filter(|i| i["spec"]["volume"] == volume);
    let listen = of.flat_map(|i| i["status"]["export"]["listen"].as_array().cloned().unwrap_or_default());
    Ok(listen.filter(|l| l["transport"] == "tcp").filter_map(|l| l["port"].as_u64().map(|p| p as u16)).collect())
}

/// The remote copy's node loses power while a writer runs.
fn power_cut(story: &mut Story, cluster: &Cluster, volume: &mut Volume) -> Result<()> {
    story.step("the power of node-c cut during writing to demo-tcp", || {
        let lost = cluster.replicas(&volume.id)?.get("node-c").cloned().context("a copy on node-c")?;
        let audited = cluster.audit(&volume.at)?.len();
        let running = start_writer(cluster, volume, &until(volume))?;
        running.wait_for(20, Duration::from_secs(30))?;
        cluster.guest("node-c")?.power_cut()?;
        wait("the in-sync set shrinks", Duration::from_secs(40), || Ok(!cluster.in_sync(&volume.id)?.contains(&lost)))?;
        running.wait_for(50, Duration::from_secs(40))?;
        let history = stop(cluster, volume, running)?;
        // The operation's line is written when it has ended; the writes go on as soon as it has begun.
        wait("the dropped member is in the audit log", Duration::from_secs(15), || {
            Ok(cluster.audit(&volume.at)?[audited..].iter().any(|line| line.contains("drop-member")))
        })?;
        let order = proof_of_order(&cluster.audit(&volume.at)?[audited..], &history)?;
        volume.history.append(&history);
        let pause = history.longest();
        Ok((
            (),
            format!("{} writes, no error, longest pause {:.1} s\n{order}", history.acks.len(), pause.as_secs_f64()),
        ))
    })
}

/// The record was written before the first write was acknowledged without the lost copy: times of one guest's clock.
fn proof_of_order(audit: &[String], history: &History) -> Result<String> {
    let recorded = audit.iter().find(|l| l.contains("record-shrink demo-tcp") && l.contains("outcome=\"changed\""));
    let key = recorded.and_then(|l| l.split_once("key=\"")?.1.split('"').next());
    let dropped = audit.iter().find(|l| l.contains("drop-member") && key.is_some_and(|key| l.contains(key)));
    let (Some(recorded), Some(dropped)) = (recorded, dropped) else {
        bail!("no record-shrink and drop-member in the audit log:\n{}", audit.join("\n"));
    };
    let recorded = micros_of(recorded)?;
    let slowest = history.slowest().context("at least one write")?;
    ensure!(micros_of(dropped)? - took(dropped)? >= recorded, "the member was dropped before the loss was recorded");
    ensure!(slowest.begin < recorded, "the write that waited was issued before the record");
    ensure!(slowest.end > recorded, "a write was acknowledged without the copy before the loss was recorded");
    let before = history.acks.iter().filter(|a| a.end > slowest.begin && a.end < recorded).count();
    ensure!(before == 0, "{before} writes were acknowledged between the loss and its record");
    let after = (slowest.end - recorded) as f64 / 1000.0;
    Ok(format!("in-sync set shrunk in the record {after:.0} ms before the first write acknowledged without the copy"))
}

/// How long an operation took by its audit line, in microseconds.
fn took(line: &str) -> Result<u128> {
    let number =
        line.split_once("milliseconds=").and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<u128>().ok());
    Ok(number.with_context(|| format!("no duration in {line:?}"))? * 1000)
}

/// The RFC 3339 time at the start of a log line, in microseconds since 1970.
fn micros_of(line: &str) -> Result<u128> {
    let stamp = line.split_whitespace().next().unwrap_or_default();
    let (date, clock) = stamp.trim_end_matches('Z').split_once('T').with_context(|| format!("no time in {line:?}"))?;
    let part = |text: &str, separator, index: usize| -> Result<f64> {
        text.split(separator).nth(index).and_then(|p| p.parse().ok()).with_context(|| format!("no time in {line:?}"))
    };
    let (y, m, d) = (part(date, '-', 0)? as i64, part(date, '-', 1)? as i64, part(date, '-', 2)? as i64);
    // Days from civil, Howard Hinnant's algorithm.
    let (y, m) = if m <= 2 { (y - 1, m + 9) } else { (y, m - 3) };
    let era = y.div_euclid(400);
    let day_of_year = (153 * m + 2) / 5 + d - 1;
    let year = y.rem_euclid(400);
    let days = era * 146_097 + year * 365 + year / 4 - year / 100 + day_of_year - 719_468;
    let seconds = part(clock, ':', 0)? * 3600.0 + part(clock, ':', 1)? * 60.0 + part(clock, ':', 2)?;
    Ok(days as u128 * 86_400_000_000 + (seconds * 1e6) as u128)
}

/// The node returns: it rejoins by a merged bitmap, and only dirty regions are copied.
fn comes_back(story: &mut Story, cluster: &mut Cluster, volume: &mut Volume) -> Result<()> {
    story.step("node-c gets its power back and demo-tcp its second copy", || {
        let replica = cluster.replicas(&volume.id)?.get("node-c").cloned().context("a copy on node-c")?;
        let audited = cluster.audit(&volume.at)?.len();
        let guest = cluster.guest("node-c")?;
        guest.power_on()?;
        cluster.start_agent(&guest)?;
        cluster.await_agent("node-c")?;
        let begin = Instant::now();
        wait("the in-sync set grows", Duration::from_secs(120), || Ok(cluster.in_sync(&volume.id)?.contains(&replica)))
            .with_context(|| cluster.agent_log(&volume.at, 20))?;
        let lines = cluster.audit(&volume.at)?;
        let re_added = lines[audited..].iter().any(|l| l.contains("re-add-member"));
        ensure!(re_added, "the copy came back by a full recovery:\n{}", lines[audited..].join("\n"));
        let copied = copied_bytes(cluster, volume)?;
        // Eight chunks of the bitmap: what was written lies in a few, and the last one is copied always (F24).
        ensure!(copied < SIZE as u64 / 4 * 3, "{copied} bytes were copied: not only dirty regions");
        let mib = |bytes: u64| bytes as f64 / MIB as f64;
        Ok((
            (),
            format!(
                "in sync {:.1} s after its agent was ready; {:.1} MiB of {:.0} MiB copied",
                begin.elapsed().as_secs_f64(),
                mib(copied),
                mib(SIZE as u64)
            ),
        ))
    })
}

/// Bytes written to the returned copy's device since it was connected.
fn copied_bytes(cluster: &Cluster, volume: &Volume) -> Result<u64> {
    let script = format!(
        "for s in /sys/class/nvme-subsystem/nvme-subsys*; do grep -q '{}' $s/subsysnqn || continue; \
         for b in $s/nvme*n1; do awk '{{print $7}}' /sys/block/$(basename $b)/stat; done; done",
        volume.data_id
    );
    let sectors: u64 =
        cluster.guest(&volume.at)?.ssh_checked(&script)?.split_whitespace().filter_map(|s| s.parse::<u64>().ok()).sum();
    Ok(sectors * 512)
}

/// The consumer dies; the copy that returned is now the only one, on another consumer.
fn taken_away(story: &mut Story, cluster: &mut Cluster, volume: &mut Volume) -> Result<()> {
    story.step("more writes, then the power of node-a cut: takeover on node-b from the returned copy alone", || {
        let before = cluster.epoch(&volume.id)?;
        let running = start_writer(cluster, volume, "")?;
        running.wait_for(100, Duration::from_secs(60))?;
        cluster.guest("node-a")?.power_cut()?;
        let history = running.finish(Duration::from_secs(5))?;
        volume.history.append(&history);
        cluster.csi.unpublish(&volume.id, "node-a").0?;
        let times = attach(cluster, &volume.id, "node-b")?;
        volume.at = "node-b".into();
        let compared = verify(cluster, volume)?;
        let after = cluster.epoch(&volume.id)?;
        ensure!(after > before, "the epoch did not rise");
        let set = cluster.in_sync(&volume.id)?;
        ensure!(set.len() == 1, "in-sync set {set:?}");
        Ok(((), format!("{} writes before the cut; {times}; {compared} blocks verified; epoch {before} → {after}, in sync {set:?}", history.acks.len())))
    })?;
    story.step("node-a returns and its copy with it", || {
        let guest = cluster.guest("node-a")?;
        guest.power_on()?;
        cluster.start_agent(&guest)?;
        cluster.await_agent("node-a")?;
        wait("two copies in sync", Duration::from_secs(120), || Ok(cluster.in_sync(&volume.id)?.len() == 2))
            .with_context(|| cluster.agent_log("node-b", 20))?;
        let compared = verify(cluster, volume)?;
        Ok(((), format!("{compared} blocks verified")))
    })
}

/// A planned move by unpublish and publish.
fn moves(story: &mut Story, cluster: &mut Cluster, volume: &mut Volume) -> Result<()> {
    story.step("demo-rdma moved to node-b by unpublish and publish", || {
        // Its consumer lost power a moment ago: what it had written is verified on the other node.
        let before = cluster.epoch(&volume.id)?;
        cluster.csi.unpublish(&volume.id, "node-a").0?;
        let times = attach(cluster, &volume.id, "node-b")?;
        volume.at = "node-b".into();
        let compared = verify(cluster, volume)?;
        let history = write(cluster, volume, 20)?;
        volume.history.append(&history);
        detach(cluster, &volume.id, "node-b")?;
        let back = attach(cluster, &volume.id, "node-a")?;
        volume.at = "node-a".into();
        let again = verify(cluster, volume)?;
        let after = cluster.epoch(&volume.id)?;
        Ok(((), format!("{times}; {compared} blocks verified\nand back: {back}; {again} blocks verified; epoch {before} → {after}")))
    })
}

fn delete_all(story: &mut Story, cluster: &Cluster, volumes: &BTreeMap<String, Volume>) -> Result<()> {
    story.step("everything unpublished and deleted", || {
        for volume in volumes.values() {
            detach(cluster, &volume.id, &volume.at)?;
            cluster.csi.delete(&volume.id).0.with_context(|| format!("DeleteVolume {}", volume.id))?;
        }
        Ok(((), String::new()))
    })?;
    story.step("nothing is left behind", || {
        let line = wait_for_no_leaks(cluster)?;
        Ok(((), line))
    })
}

/// Exports of detached volumes are removed in the background: a short patience, then the list.
fn wait_for_no_leaks(cluster: &Cluster) -> Result<String> {
    let begin = Instant::now();
    loop {
        match checks::no_leaks(cluster) {
            Ok(line) => return Ok(line),
            Err(error) if begin.elapsed() > Duration::from_secs(30) => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(500)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_log_lines_are_microseconds_since_1970() {
        assert_eq!(micros_of("1970-01-02T00:00:01.5Z x").unwrap(), 86_401_500_000);
        assert_eq!(micros_of("2026-11-21T00:00:00.000001Z x").unwrap(), 1_795_219_200_000_001);
        assert!(micros_of("garbage").is_err());
    }
}
