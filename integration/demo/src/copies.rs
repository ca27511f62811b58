//! Each copy of a detached volume read by itself, past MD: what one drive alone would give back.
//!
//! Used by `cuts`, `kinds` and `chaos`. Mounts a copy read-only on a loop device over its partition, without replaying its
//! log, and takes it down again; a raw block volume is read from the loop device. Nothing is written.

use crate::cluster::Cluster;
use crate::csi::Access;
use crate::story::{BLOCKS, Volume};
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

/// A piece of script that leaves the device of a volume's partition in `$p`, or fails. By the table of partitions: udev does
/// not know the name at every moment, and the kernel not of one that was added since it read the table. A drive that was
/// pulled and put back may be `nvme0n2`.
pub fn locate(volume: &Volume) -> Result<String> {
    let label = volume.data_id.get(..8).context("a volume id of more than eight digits")?;
    let number = format!("s/^ *\\([0-9]*\\) .* meshstor-{label}-[^ ]*$/\\1/p");
    Ok(format!(
        "for d in $(ls /dev/nvme*n* | grep -v p); do \
            n=$(sgdisk -p $d 2>/dev/null | sed -n '{number}'); [ -n \"$n\" ] && p=${{d}}p$n; \
         done; \
         [ -b \"$p\" ] || {{ echo \"no partition of meshstor-{label}\" >&2; exit 1; }}"
    ))
}

/// What the checksummed file holds on one node's copy.
fn read(cluster: &Cluster, volume: &Volume, node: &str) -> Result<String> {
    let label = volume.data_id.get(..8).context("a volume id of more than eight digits")?;
    let read = format!("/host/meshstor-demo read --blocks {BLOCKS} --file");
    let looks = |fs: &str, options: &str| {
        format!(
            "mount -t {fs} -o ro,{options} $l /run/copy-{label} && {read} /run/copy-{label}/blocks; e=$?; umount /run/copy-{label}"
        )
    };
    let look = match volume.access {
        Access::Xfs => looks("xfs", "norecovery,nouuid"),
        Access::Ext4 => looks("ext4", "noload"),
        Access::Block => format!("{read} $l; e=$?"),
    };
    let script = format!(
        "{}; blockdev --flushbufs $p; mkdir -p /run/copy-{label}; \
         l=$(losetup -r -f --show -o {DATA_OFFSET} $p) || exit 1; {look}; losetup -d $l; exit $e",
        locate(volume)?
    );
    cluster.guest(node)?.ssh_checked(&script).with_context(|| format!("read the copy of {} on {node}", volume.id))
}
