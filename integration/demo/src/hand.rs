//! The same kernel commands run by hand in the same guests, so that our own share of a stage can be told.
//!
//! Used by the script once. It uses a drive that the product does not use, and cleans up after itself.

use crate::cluster::Cluster;
use anyhow::{Context, Result};
use std::time::Duration;

const NQN: &str = "nqn.2025-12.io.meshstor.hand:1";

/// What the commands took, without ssh.
pub struct ByHand {
    /// Partition, zeroing, export on both nodes' side, connect, array, file system, mount.
    pub total: Duration,
}

/// Runs partition → export → connect → array → mkfs → mount by hand for a two-copy volume and takes it down again.
pub fn two_copies(cluster: &Cluster, consumer: &str, target: &str, mib: u64) -> Result<ByHand> {
    let (a, b) = (cluster.guest(consumer)?, cluster.guest(target)?);
    let (drive_a, drive_b) = (a.drive_path(1), b.drive_path(1));
    let address = b.address();
    let timed =
        |script: &str| format!("s=$(date +%s%N); set -e; {script}; e=$(date +%s%N); echo took $(( (e-s)/1000 ))");
    let partition =
        |drive: &str| format!("sgdisk -n 1:0:+{mib}M {drive} >/dev/null; udevadm settle; blkdiscard -z {drive}-part1");
    let export = format!(
        "cd /sys/kernel/config/nvmet; mkdir subsystems/{NQN}; echo 1 >subsystems/{NQN}/attr_allow_any_host; \
         mkdir subsystems/{NQN}/namespaces/1; echo -n {drive_b}-part1 >subsystems/{NQN}/namespaces/1/device_path; \
         echo 1 >subsystems/{NQN}/namespaces/1/enable; mkdir ports/9; echo tcp >ports/9/addr_trtype; \
         echo ipv4 >ports/9/addr_adrfam; echo {address} >ports/9/addr_traddr; echo 30009 >ports/9/addr_trsvcid; \
         ln -s /sys/kernel/config/nvmet/subsystems/{NQN} ports/9/subsystems/"
    );
    let assemble = format!(
        "nvme connect -t tcp -a {address} -s 30009 -n {NQN} >/dev/null; \
         for i in $(seq 100); do r=$(ls -d /sys/class/nvme-subsystem/*/nvme*n1 2>/dev/null | while read p; do \
           grep -q {NQN} $(dirname $p)/subsysnqn && basename $p; done | head -1); [ -b /dev/$r ] && [ -n \"$r\" ] && break; sleep 0.02; done; \
         mdadm --create /dev/md900 --run --metadata=1.2 --level=1 --raid-devices=2 --assume-clean --bitmap=internal \
           --homehost=none {drive_a}-part1 /dev/$r >/dev/null 2>&1; \
         mkfs.xfs -q -K /dev/md900; mkdir -p /mnt/hand; mount /dev/md900 /mnt/hand"
    );
    let mut micros = 0u64;
    for (guest, script) in [(&a, partition(&drive_a)), (&b, partition(&drive_b)), (&b, export), (&a, assemble)] {
        let out = guest.ssh_checked(&timed(&script))?;
        let took = out.lines().find_map(|l| l.strip_prefix("took ")).context("the timed script prints its time")?;
        micros += took.trim().parse::<u64>()?;
    }
    a.ssh_checked(&format!(
        "umount /mnt/hand; mdadm --stop /dev/md900 2>/dev/null; nvme disconnect -n {NQN} >/dev/null; sgdisk -Z {drive_a} >/dev/null; \
         blkdiscard {drive_a}"
    ))?;
    b.ssh_checked(&format!(
        "cd /sys/kernel/config/nvmet; rm ports/9/subsystems/{NQN}; rmdir ports/9; echo 0 >subsystems/{NQN}/namespaces/1/enable; \
         rmdir subsystems/{NQN}/namespaces/1 subsystems/{NQN}; sgdisk -Z {drive_b} >/dev/null; blkdiscard {drive_b}"
    ))?;
    Ok(ByHand { total: Duration::from_micros(micros) })
}
