//! A replica's partition: made, announced to the kernel, blanked, recorded on, removed.
//!
//! ```text
//!  add       zero both ends of the extent ─▶ table entry ─▶ kernel partition ─▶ node
//!  announce                                                kernel partition ─▶ node
//!  grow      zero the space behind ─▶ table entry ─▶ kernel partition
//!  blank     open exclusively ─▶ zero all ─▶ read back ─▶ first record
//!  remove    no holder, no opener ─▶ drop kernel partition ─▶ discard ─▶ drop table entry
//! ```
//!
//! Called by the real kernel's `apply`, on threads that may block. Each function answers [`Changed::No`] when what it
//! is asked for is already so, and completes what an earlier call that was cut short has begun. None touches a drive
//! that is not ours or shared, an entry of another type, or a partition that somebody holds (P3). `locate` finds the
//! partition by its own GUID, `bytes` reads and writes inside it, `observe` makes the facts.

use crate::error::{KernelError, Result};
use crate::facts::{ALIGNMENT, DATA_OFFSET, EpochRecord, Extent, PartitionEntry, Unclaimed};
use crate::id::{DriveId, PARTITION_TYPE, ReplicaKey};
use crate::linux::drives::{self, KernelPartition, Namespace};
use crate::linux::gpt::Editor;
use crate::linux::ioctl;
use crate::linux::root::Root;
use crate::ops::Changed;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

mod bytes;
pub(in crate::linux) mod export;
pub(in crate::linux) mod grow;
mod locate;
mod observe;
#[cfg(test)]
mod tests;

pub use observe::{SharedTables, observe, replicas};

use bytes::Bytes;
use locate::{Place, locate};

/// How long devtmpfs or udev may take to make a node for a partition the kernel has announced.
const NODE_WAIT: Duration = Duration::from_secs(5);
/// udev's prober opens a new partition for a moment; what has it open for longer is not udev.
const BUSY_WAIT: Duration = Duration::from_secs(3);

/// Adds a table entry in free space and tells the kernel.
pub fn add(root: &Root, key: ReplicaKey, drive: &DriveId, extent: Extent) -> Result<Changed> {
    let namespace = drives::find(root, drive)?;
    if let Some(place) = locate(root, key)? {
        if place.namespace.id != *drive || place.entry.extent != extent {
            return Err(refuse("add partition", &place, "the replica has a partition elsewhere"));
        }
        return announce_at(root, &place);
    }
    if let Some(why) = drives::unfit(root, &namespace)? {
        return Err(KernelError::refuse("add partition", namespace.path, why));
    }
    let editor = Editor::lock(&namespace)?;
    let known = drives::kernel_partitions(root, &namespace.name)?;
    let kernel: BTreeMap<u32, Extent> = known.iter().map(|(number, partition)| (*number, partition.extent)).collect();
    editor.check_free(&editor.table()?, extent, &kernel.values().copied().collect::<Vec<_>>())?;
    // Before the entry exists: as soon as the kernel announces the partition, udev's rules look for what an earlier
    // user of the space left behind, and would start an old array on it.
    let (head, tail) = (DATA_OFFSET.min(extent.length), ALIGNMENT.min(extent.length));
    let ends = [(extent.start, head), (extent.end() - tail, tail)];
    let zeroed = ends.iter().try_for_each(|(at, len)| bytes::zero_range(editor.file(), *at, *len));
    let zeroed = zeroed.and_then(|()| editor.file().sync_all());
    zeroed.map_err(|e| KernelError::io("zero free space", namespace.path.clone(), &e))?;
    let number = editor.add(&key.partition_name(), key.partition_uuid(), extent, &kernel)?;
    announce_locked(root, &editor, &namespace, number, extent)?;
    Ok(Changed::Yes)
}

/// Tells the kernel about an entry that the table has and the kernel has not, or has with another length.
pub fn announce(root: &Root, key: ReplicaKey) -> Result<Changed> {
    let place = require("announce partition", root, key)?;
    announce_at(root, &place)
}

fn announce_at(root: &Root, place: &Place) -> Result<Changed> {
    if place.announced().is_some() && place.node().is_some_and(Path::exists) {
        return Ok(Changed::No);
    }
    let editor = Editor::lock(&place.namespace)?;
    let table = editor.table()?;
    if table.entries.get(&place.number) != Some(&place.entry) {
        return Err(KernelError::retry("announce partition", place.name(), "the table has changed meanwhile"));
    }
    announce_locked(root, &editor, &place.namespace, place.number, place.entry.extent)
}

fn announce_locked(
    root: &Root,
    editor: &Editor,
    namespace: &Namespace,
    number: u32,
    extent: Extent,
) -> Result<Changed> {
    let known = drives::kernel_partitions(root, &namespace.name)?.remove(&number);
    let failed =
        |e: io::Error| KernelError::io("announce partition", format!("{} number {number}", namespace.path), &e);
    let changed = match known {
        Some(partition) if partition.extent == extent => Changed::No,
        Some(partition) if partition.extent.start == extent.start => {
            ioctl::resize_partition(editor.file(), number, extent.start, extent.length).map_err(failed)?;
            Changed::Yes
        }
        Some(partition) => {
            let detail = format!("the kernel still has {} at another place", partition.name);
            return Err(KernelError::wait("announce partition", namespace.path.clone(), detail));
        }
        None => {
            ioctl::add_partition(editor.file(), number, extent.start, extent.length).map_err(failed)?;
            Changed::Yes
        }
    };
    wait_for_node(root, namespace, number)?;
    Ok(changed)
}

fn wait_for_node(root: &Root, namespace: &Namespace, number: u32) -> Result<()> {
    let give_up = Instant::now() + NODE_WAIT;
    loop {
        match drives::kernel_partitions(root, &namespace.name)?.get(&number) {
            Some(partition) if partition.path.exists() => return Ok(()),
            _ if Instant::now() > give_up => {
                let detail = format!("no device node for partition {number} within {NODE_WAIT:?}");
                return Err(KernelError::retry("announce partition", namespace.path.clone(), detail));
            }
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Zeroes a partition just made by us and writes its first record.
pub fn blank(root: &Root, evidence: &Unclaimed, record: &EpochRecord) -> Result<Changed> {
    let key = evidence.key();
    check_identity(key, record)?;
    let place = require("blank partition", root, key)?;
    let partition = unheld(root, &place, "blank partition")?;
    // Exclusively, for as long as it takes: MD, a file system or a second call of this one cannot come in between.
    let bytes = Bytes::open_exclusive(partition, place.entry.extent.length)?;
    // Nothing can change number or place of a partition that is open, but it may have changed before.
    let again = require("blank partition", root, key)?;
    if again.entry != place.entry || again.announced().map(|p| &p.numbers) != Some(&partition.numbers) {
        return Err(KernelError::retry("blank partition", place.name(), "the table has changed meanwhile"));
    }
    if let Some(found) = bytes.record()? {
        let same = EpochRecord { sequence: found.sequence, ..record.clone() } == found;
        if same && bytes.data_is_blank()? {
            return Ok(Changed::No);
        }
        return Err(refuse("blank partition", &place, format!("it carries a record of epoch {}", found.epoch)));
    }
    // Made over zeroes at both ends: a superblock came later, so somebody has used it.
    if let Some(found) = bytes.superblock()? {
        let whose = if found.set_uuid == key.volume.md_uuid() { "this volume's" } else { "a foreign" };
        return Err(refuse("blank partition", &place, format!("it is a member of {whose} array but has no record")));
    }
    bytes.zero()?;
    if !bytes.data_is_blank()? {
        return Err(KernelError::bug("blank partition", place.name(), "it does not read zero after zeroing"));
    }
    bytes.write_record(&EpochRecord { sequence: 1, ..record.clone() })?;
    Ok(Changed::Yes)
}

/// Writes our record into the slot that does not hold the newest one, durably.
pub fn write_record(root: &Root, key: ReplicaKey, record: &EpochRecord) -> Result<Changed> {
    check_identity(key, record)?;
    let place = require("write record", root, key)?;
    let partition = place.announced().ok_or_else(|| not_announced("write record", &place))?;
    // Not exclusively: MD or nvmet serve from it meanwhile, and neither ever touches the record's blocks.
    let bytes = Bytes::open_shared(partition, place.entry.extent.length)?;
    let found = bytes.record()?.ok_or_else(|| refuse("write record", &place, "it was never blanked: no record yet"))?;
    if (found.volume, found.replica, found.cluster) != (record.volume, record.replica, record.cluster) {
        let whose = format!("it belongs to {}/{} of cluster {}", found.volume, found.replica, found.cluster);
        return Err(refuse("write record", &place, whose));
    }
    if (found.epoch, found.generation) > (record.epoch, record.generation) {
        let newer = format!("it has epoch {}.{} already", found.epoch, found.generation);
        return Err(refuse("write record", &place, newer));
    }
    if (EpochRecord { sequence: found.sequence, ..record.clone() }) == found {
        return Ok(Changed::No);
    }
    bytes.write_record(&EpochRecord { sequence: found.sequence + 1, ..record.clone() })?;
    Ok(Changed::Yes)
}

/// Discards the partition's bytes and removes its entry.
pub fn remove(root: &Root, evidence: &Unclaimed) -> Result<Changed> {
    let key = evidence.key();
    let Some(place) = locate(root, key)? else { return Ok(Changed::No) };
    let editor = Editor::lock(&place.namespace)?;
    let table = editor.table()?;
    let PartitionEntry { type_guid, unique_guid, extent, .. } = place.entry;
    if table.entries.get(&place.number) != Some(&place.entry) || type_guid != PARTITION_TYPE {
        return Err(KernelError::retry("remove partition", place.name(), "the table has changed meanwhile"));
    }
    let whole = Bytes::in_drive(editor.file(), &place.namespace.path, extent);
    if let Some(found) = whole.record()?.filter(|found| (found.volume, found.replica) != (key.volume, key.replica)) {
        let whose = format!("its record names {}/{}", found.volume, found.replica);
        return Err(refuse("remove partition", &place, whose));
    }
    forget_kernel_partition(root, &editor, &place)?;
    whole.discard()?;
    editor.remove(unique_guid)
}

/// Makes the kernel drop the partition, which it does only when nobody has it open: nvmet and MD included. From then
/// on nobody can open it either, so the wipe that follows cannot hit anyone.
fn forget_kernel_partition(root: &Root, editor: &Editor, place: &Place) -> Result<()> {
    let known = drives::kernel_partitions(root, &place.namespace.name)?;
    let here = |partition: &&KernelPartition| partition.extent.overlaps(&place.entry.extent);
    let same = known.get(&place.number).filter(|partition| partition.extent.start == place.entry.extent.start);
    let Some(partition) = same.cloned() else {
        // Nobody has these bytes open through a partition that the kernel does not have.
        return match known.values().find(here) {
            None => Ok(()),
            Some(other) => {
                Err(KernelError::wait("remove partition", place.name(), format!("the kernel has {} there", other.name)))
            }
        };
    };
    unheld(root, &Place { kernel: Some(partition.clone()), ..place.clone() }, "remove partition")?;
    let give_up = Instant::now() + BUSY_WAIT;
    loop {
        match ioctl::delete_partition(editor.file(), place.number) {
            Ok(()) => return Ok(()),
            Err(e) if e.raw_os_error() == Some(nix::libc::EBUSY) && Instant::now() < give_up => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(e) => return Err(KernelError::io("remove partition", partition.name, &e)),
        }
    }
}

// ------------------------------------------------------------------------------------------ conditions

/// The kernel's partition, when nothing holds it and nothing exports it.
fn unheld<'a>(root: &Root, place: &'a Place, op: &str) -> Result<&'a KernelPartition> {
    let partition = place.announced().ok_or_else(|| not_announced(op, place))?;
    if !partition.holders.is_empty() {
        let holders: Vec<&str> = partition.holders.iter().map(String::as_str).collect();
        return Err(KernelError::wait(op, partition.name.clone(), format!("held by {}", holders.join(", "))));
    }
    if let Some(subsystem) = export::exporter(root, &partition.path)? {
        return Err(KernelError::wait(op, partition.name.clone(), format!("exported by {subsystem}")));
    }
    Ok(partition)
}

fn require(op: &str, root: &Root, key: ReplicaKey) -> Result<Place> {
    locate(root, key)?.ok_or_else(|| KernelError::wait(op, key.to_string(), "no drive here has its partition"))
}

fn check_identity(key: ReplicaKey, record: &EpochRecord) -> Result<()> {
    if (key.volume, key.replica) == (record.volume, record.replica) {
        return Ok(());
    }
    let detail = format!("a record of {}/{} was to be written there", record.volume, record.replica);
    Err(KernelError::bug("write record", key.to_string(), detail))
}

fn not_announced(op: &str, place: &Place) -> KernelError {
    KernelError::wait(op, place.name(), "the kernel does not have the partition as the table says")
}

fn refuse(op: &str, place: &Place, detail: impl Into<String>) -> KernelError {
    KernelError::refuse(op, place.name(), detail)
}
