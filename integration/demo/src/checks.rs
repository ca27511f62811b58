//! What the kernels of the guests show: which transport carries a volume, what is left behind.
//!
//! Used by the script. Reads guests over ssh; decides nothing.

use crate::cluster::Cluster;
use anyhow::{Result, bail};
use meshstor_lab::Guest;
use std::collections::BTreeSet;

/// `transport state` of each controller of a volume on its consumer, as sysfs shows them.
pub fn transports(cluster: &Cluster, node: &str, volume_id: &str) -> Result<BTreeSet<String>> {
    let script = format!(
        "for c in /sys/class/nvme/nvme*; do grep -q '{volume_id}' $c/subsysnqn 2>/dev/null && \
         echo $(cat $c/transport) $(cat $c/state) $(cat $c/address); done; true"
    );
    Ok(cluster.guest(node)?.ssh_checked(&script)?.lines().map(Into::into).collect())
}

/// Kernel names of the controllers of a volume on its consumer, with their transports. One that was lost comes back under
/// another name or none.
pub fn controllers(cluster: &Cluster, node: &str, volume_id: &str) -> Result<BTreeSet<String>> {
    let script = format!(
        "for c in /sys/class/nvme/nvme*; do grep -q '{volume_id}' $c/subsysnqn 2>/dev/null && \
         echo $(basename $c) $(cat $c/transport) $(stat -c %i $c/subsysnqn); done; true"
    );
    Ok(cluster.guest(node)?.ssh_checked(&script)?.lines().map(Into::into).collect())
}

/// Which transport carries the I/O now: the path that multipath would use, by ANA state.
pub fn carrier(cluster: &Cluster, node: &str, volume_id: &str) -> Result<String> {
    carrier_on(&cluster.guest(node)?, volume_id)
}

/// The same for a guest of any cluster.
pub fn carrier_on(guest: &Guest, volume_id: &str) -> Result<String> {
    let script = format!(
        "for c in /sys/class/nvme/nvme*; do grep -q '{volume_id}' $c/subsysnqn 2>/dev/null || continue; \
         for p in $c/nvme*c*n1; do [ -e $p/ana_state ] && echo $(cat $p/ana_state) $(cat $c/transport); done; done; true"
    );
    let paths = guest.ssh_checked(&script)?;
    let best = paths.lines().find(|l| l.starts_with("optimized")).or(paths.lines().next()).unwrap_or("none");
    Ok(best.split_whitespace().last().unwrap_or("none").to_string())
}

/// Established NVMe/TCP connections of a node, as `ss` shows them, to any of the given ports.
pub fn sockets(cluster: &Cluster, node: &str, ports: &BTreeSet<u16>) -> Result<usize> {
    let text = cluster.guest(node)?.ssh_checked("ss -Htn state established")?;
    let to = |line: &str| {
        ports.iter().any(|p| line.split_whitespace().nth(3).is_some_and(|a| a.ends_with(&format!(":{p}"))))
    };
    Ok(text.lines().filter(|l| to(l)).count())
}

/// Everything of ours that a node's kernel and drives hold. Empty after everything was deleted.
pub fn leftovers(guest: &Guest) -> Result<Vec<String>> {
    let script = "for t in $(ls /dev/nvme*n* | grep -v p); do \
            sgdisk -p $t 2>/dev/null | grep meshstor- | sed \"s|^|gpt $t |\"; \
        done; \
        for d in subsystems ports; do ls -1 /sys/kernel/config/nvmet/$d 2>/dev/null | sed \"s|^|nvmet $d |\"; done; \
        grep -l meshstor /sys/class/nvme/nvme*/subsysnqn 2>/dev/null | sed 's/^/controller /'; \
        grep ^md /proc/mdstat | sed 's/^/array /'; grep /dev/md /proc/mounts | sed 's/^/mount /'; true";
    Ok(guest.ssh_checked(script)?.lines().map(|l| format!("{}: {l}", guest.name())).collect())
}

/// Fails with everything that is left on any node or in the API.
pub fn no_leaks(cluster: &Cluster) -> Result<String> {
    let mut found = Vec::new();
    let guests = cluster.lab.guests();
    for guest in &guests {
        found.extend(leftovers(guest)?);
    }
    for kind in ["msvol", "msrep"] {
        let items = cluster.get(&[kind])?["items"].as_array().cloned().unwrap_or_default();
        found.extend(items.iter().map(|i| format!("{kind} {}", i["metadata"]["name"])));
    }
    if !found.is_empty() {
        bail!("left behind:\n  {}", found.join("\n  "));
    }
    Ok(format!("{} nodes: no GPT entry, subsystem, port, controller, array, mount or object left", guests.len()))
}
