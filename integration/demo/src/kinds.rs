//! Scenarios of the other kinds of volumes, ext4 and raw block: whoever uses one on a consumer that was deposed is told of no
//! success that the new consumer does not have.
//!
//! Called by `scenarios`. What is proven is the same as for XFS (`cuts`); how a deposed consumer ends differs for each.

use crate::cluster::{Cluster, wait};
use crate::csi::{Access, Wanted};
use crate::cuts::{PATIENCE, carrier, deposed, finish, writing};
use crate::scenarios::Scenario;
use crate::story::*;
use anyhow::{Result, ensure};
use std::time::Duration;

/// The scenarios of this file.
pub const ALL: &[(&str, Scenario)] = &[
    ("ext4-cut: a deposed consumer writes on to ext4, cut off from the API server", ext4_cut),
    ("raw-cut: a deposed consumer writes on to a raw block volume, cut off from the API server", raw_cut),
    ("raw-loop: the same, while a loop device is on the volume as kubelet keeps one", raw_loop),
];

fn ext4_cut(cluster: &mut Cluster) -> Result<String> {
    cut_off(cluster, "ext4-cut", Access::Ext4, false)
}

fn raw_cut(cluster: &mut Cluster) -> Result<String> {
    cut_off(cluster, "raw-cut", Access::Block, false)
}

fn raw_loop(cluster: &mut Cluster) -> Result<String> {
    cut_off(cluster, "raw-loop", Access::Block, true)
}

fn cut_off(cluster: &mut Cluster, name: &str, access: Access, looped: bool) -> Result<String> {
    let wanted = Wanted { access, ..two_copies(name) };
    let (mut volume, _) = bring_up(cluster, &wanted, "node-a")?;
    let guest = cluster.guest("node-a")?;
    if looped {
        // As kubelet does for every raw block volume in use, and keeps it until the pod is gone (autoclear is off).
        guest.ssh_checked(&format!("losetup -f {}", file(&volume)))?;
    }
    let old = writing(cluster, &volume)?;
    guest.api_cable(false)?;
    ensure!(!carrier(&guest, "api0")?, "the API cable is not cut");
    old.wait_for(50, Duration::from_secs(60))?;
    let line = deposed(cluster, &mut volume, old, Vec::new(), |_| {
        guest.api_cable(true)?;
        if looped {
            // The array cannot stop under it, and nobody else may take the loop device away; kubelet will.
            wait("every write to the old device is refused", PATIENCE, || {
                let probe = "for l in $(losetup -nO NAME); do dd if=/dev/zero of=$l bs=4k count=1 seek=4000 oflag=direct \
                             2>&1 && echo written; done; true";
                Ok(!guest.ssh_within(probe, Duration::from_secs(20))?.stdout.contains("written"))
            })?;
            guest.ssh_checked("losetup -D")?;
        }
        Ok(())
    })?;
    let end = finish(cluster, &volume, 2)?;
    Ok(format!("{line}; {end}"))
}
