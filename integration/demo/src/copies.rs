//! Each copy of a detached volume read by itself, past MD: what one drive alone would give back.
//!
//! Used by `cuts` and `chaos`. Mounts a copy read-only on a loop device over its partition, without replaying its log, and
//! takes it down again; nothing is written.

use crate::cluster::Cluster;
use crate::story::Volume;
use anyhow::{Context, Result};

/// Members' data begin here (`DATA_OFFSET` of the kernel crate).
const DATA_OFFSET: u64 = 4 << 20;

/// Compares every recorded copy of a detached volume with its history. Returns what was compared, by node.
pub fn verify_each(cluster: &Cluster, volume: &Volume) -> Result<String> {
    let in_sync = cluster.in_sync(&volume.id)?;
    let mut lines = Vec::new();
    for (node, replica) in cluster.replicas(&volume.id)? {
        if in_sync.contains(&replica) {
            let read = read(cluster, volume, &node)?;
            let blocks = volume.history.verify(&read).with_context(|| format!("the copy on {node} ({replica})"))?;
            lines.push(format!("{node} {blocks}"));
        }
    }
    Ok(format!("blocks verified on each copy: {}", lines.join(", ")))
}

/// What the checksummed file holds on one node's copy.
fn read(cluster: &Cluster, volume: &Volume, node: &str) -> Result<String> {
    let label = volume.data_id.get(..8).context("a volume id of more than eight digits")?;
    let script = format!(
        "p=$(lsblk -rno PATH,PARTLABEL | grep ' meshstor-{label}-' | cut -d' ' -f1); [ -b \"$p\" ] || exit 1; \
         blockdev --flushbufs $p; mkdir -p /run/copy-{label}; l=$(losetup -r -f --show -o {DATA_OFFSET} $p) || exit 1; \
         mount -t xfs -o ro,norecovery,nouuid $l /run/copy-{label} && /host/meshstor-demo read --file /run/copy-{label}/blocks; e=$?; \
         umount /run/copy-{label}; losetup -d $l; exit $e"
    );
    cluster.guest(node)?.ssh_checked(&script).with_context(|| format!("read the copy of {} on {node}", volume.id))
}
