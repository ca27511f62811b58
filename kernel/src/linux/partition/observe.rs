//! Facts about replica partitions, read through the ring.
//!
//! Called by the real kernel's `partition` and `replicas`. Bytes come from the whole drive at the extent the table
//! says, so that a partition the kernel has not been told about is seen as well. It never writes.

use super::locate::{entry_of, one_of};
use crate::error::Result;
use crate::facts::{DATA_OFFSET, EpochRecord, PartitionEntry, PartitionFact};
use crate::id::{DriveId, PARTITION_TYPE, ReplicaKey};
use crate::linux::classify::{TABLE_BYTES, Window, read_table};
use crate::linux::drives::{READ_DEADLINE, Seen, look, read_ends};
use crate::linux::probe::{self, Metadata, Part};
use crate::linux::root::Root;
use crate::linux::share::Share;
use crate::linux::uring::Ring;
use std::collections::BTreeMap;
use std::time::Instant;
use uuid::Uuid;

/// Enough of the data area's start to see a file system's superblock (XFS at 0, ext4 at 1 KiB, btrfs at 64 KiB).
const ZEROED_BYTES: usize = 128 << 10;

/// One replica's partition; `None` when no table on this node has it.
pub async fn observe(
    ring: &Ring,
    root: &Root,
    shared: &SharedTables,
    key: ReplicaKey,
) -> Result<Option<PartitionFact>> {
    let mut found = Vec::new();
    let mut unread = BTreeMap::new();
    for (seen, result) in tables(ring, root, shared).await? {
        match result {
            Ok(entries) => {
                if let Some((number, entry)) = entry_of(&entries, key.partition_uuid()) {
                    found.push((seen.namespace.clone(), number, (entry.clone(), seen)));
                }
            }
            Err(error) => drop(unread.insert(seen.namespace.name, error)),
        }
    }
    match one_of(key, found, unread)? {
        None => Ok(None),
        Some((_, number, (entry, seen))) => fact(ring, seen, number, entry).await.map(Some),
    }
}

async fn fact(ring: &Ring, mut seen: Seen, number: u32, entry: PartitionEntry) -> Result<PartitionFact> {
    let extent = entry.extent;
    let part = Part { device: seen.namespace.path.clone(), start: extent.start, length: extent.length };
    let device = part.device.clone();
    // A partition that holds no data has no data area to read.
    let first = extent.length.saturating_sub(DATA_OFFSET).min(ZEROED_BYTES as u64) as usize;
    let data = ring.read(&device, extent.start.saturating_add(DATA_OFFSET), first, true, READ_DEADLINE);
    let metadata = probe::metadata(ring, &part, Instant::now() + READ_DEADLINE);
    let (metadata, data) = futures::future::join(metadata, data).await;
    let (Metadata { superblock, record }, data) = (metadata?, data?);
    // Another start under the same number is another partition, whatever its node is called.
    let kernel = seen.kernel.remove(&number).filter(|partition| partition.extent.start == extent.start);
    Ok(PartitionFact {
        drive: seen.namespace.id,
        number,
        extent,
        path: kernel.as_ref().map(|partition| partition.path.display().to_string()),
        kernel_bytes: kernel.as_ref().map(|partition| partition.extent.length),
        volatile_cache: seen.namespace.volatile_cache,
        power: seen.namespace.power,
        holders: kernel.map(|partition| partition.holders).unwrap_or_default(),
        zeroed: record.is_some() && !data.is_empty() && data.iter().all(|b| *b == 0),
        superblock,
        record,
    })
}

/// Every partition of our type on this node's drives, with the record in it.
pub async fn replicas(
    ring: &Ring,
    root: &Root,
    shared: &SharedTables,
) -> Result<BTreeMap<DriveId, Vec<(Uuid, Option<EpochRecord>)>>> {
    let mut all = BTreeMap::new();
    for (seen, result) in tables(ring, root, shared).await? {
        let entries = match result {
            Ok(entries) => entries,
            // Left out: a report about orphans must not depend on the worst drive.
            Err(error) => {
                tracing::warn!(%error, drive = %seen.namespace.id, "drive not read");
                continue;
            }
        };
        let ours = entries.values().filter(|entry| entry.type_guid == PARTITION_TYPE);
        let records = ours.map(|entry| {
            let PartitionEntry { unique_guid, extent, .. } = *entry;
            let part = Part { device: seen.namespace.path.clone(), start: extent.start, length: extent.length };
            async move {
                let metadata = probe::metadata(ring, &part, Instant::now() + READ_DEADLINE).await;
                (unique_guid, metadata.ok().and_then(|metadata| metadata.record))
            }
        });
        let records = futures::future::join_all(records).await;
        if !records.is_empty() {
            all.insert(seen.namespace.id, records);
        }
    }
    Ok(all)
}

/// The entries of each drive, or why it could not be read.
pub type Tables = Vec<(Seen, Result<BTreeMap<u32, PartitionEntry>>)>;

/// Tables read for all who ask at the same time.
pub type SharedTables = Share<Result<Tables>>;

async fn tables(ring: &Ring, root: &Root, shared: &SharedTables) -> Result<Tables> {
    let (ring, root) = (ring.clone(), root.clone());
    shared.look(move || async move { read_tables(&ring, &root).await }).await
}

/// The trusted entries of every drive, all drives at once.
async fn read_tables(ring: &Ring, root: &Root) -> Result<Tables> {
    let tables = look(root).await?.into_iter().map(|seen| async move {
        let entries = match read_ends(ring, &seen.namespace, TABLE_BYTES).await {
            Ok((first, last)) => {
                let window = Window { geometry: seen.namespace.geometry(), first: &first, last: &last };
                Ok(read_table(window).ok().flatten().map(|table| table.entries).unwrap_or_default())
            }
            Err(error) => Err(error),
        };
        (seen, entries)
    });
    Ok(futures::future::join_all(tables).await)
}
