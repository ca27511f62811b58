//! Operations on drives and partitions: label, add, announce, blank, write the record, remove.
//!
//! Called by the job dispatch. Each looks at the drive's content at that moment, as the real ones do, and never
//! trusts that the caller's observation still holds.

use super::disk::Drive;
use super::job::{Step, errno};
use super::laws::Law;
use super::state::State;
use crate::error::KernelError;
use crate::facts::{ALIGNMENT, DATA_OFFSET, EpochRecord, Extent, PartitionEntry, PartitionFact};
use crate::id::{DriveId, PARTITION_TYPE, ReplicaKey};
use crate::ops::{Changed, Op};
use std::collections::BTreeSet;

/// A GPT has this many entries (UEFI 2.10, section 5.3.2).
const ENTRIES_MAX: u32 = 128;

/// Whether a record says what the drive has already; the sequence is the writer's own business.
fn same_record(wanted: &EpochRecord, there: &EpochRecord) -> bool {
    EpochRecord { sequence: there.sequence, ..wanted.clone() } == *there
}

impl State {
    pub(super) fn op_label(&mut self, node: usize, op: &Op, id: &DriveId) -> Step {
        let Some(drive) = self.drive_at(node, id) else { return Step::fail(errno(op, id.to_string(), errno::ENOENT)) };
        let d = &self.drives[drive];
        if d.table.is_some() && d.foreign.is_none() && !d.has_foreign_entries() {
            return Step::done(Changed::No);
        }
        if !d.is_blank() {
            self.violate(node, Law::ForeignBytes, format!("label-drive {id}: the drive is not blank"));
            return Step::fail(KernelError::refuse(op.name(), id.to_string(), "the drive is not blank"));
        }
        self.drives[drive].table = Some(Default::default());
        self.hint_drive(node, drive);
        Step::done(Changed::Yes)
    }

    pub(super) fn op_disable_cache(&mut self, node: usize, op: &Op, id: &DriveId) -> Step {
        let Some(drive) = self.drive_at(node, id) else { return Step::fail(errno(op, id.to_string(), errno::ENOENT)) };
        if let Some(step) = self.not_ready(op, drive) {
            return step;
        }
        if !self.drives[drive].volatile() {
            return Step::done(Changed::No);
        }
        if !self.drives[drive].spec.cache_switch {
            return Step::fail(KernelError::refuse(op.name(), id.to_string(), "the drive cannot turn its cache off"));
        }
        self.drives[drive].flush();
        self.drives[drive].cache_off = true;
        self.hint_drive(node, drive);
        Step::done(Changed::Yes)
    }

    pub(super) fn op_add_partition(&mut self, node: usize, op: &Op, half: bool) -> Step {
        let Op::AddPartition { key, drive: id, extent } = op else { return Step::not_this(op) };
        self.learn(*key);
        let Some(drive) = self.drive_at(node, id) else { return Step::fail(errno(op, id.to_string(), errno::ENOENT)) };
        if let Some((there, number)) = self.find_partition(node, *key) {
            let same = there == drive && self.drives[drive].entry(number).is_some_and(|e| e.extent == *extent);
            if !same {
                return Step::fail(KernelError::refuse(op.name(), id.to_string(), "the replica has another partition"));
            }
            let new = self.nodes[node].known.insert((drive, number), *extent).is_none();
            return Step::changed(new);
        }
        if let Some(step) = self.not_ready(op, drive) {
            return step;
        }
        if let Some(refusal) = self.refuse_extent(node, op, drive, *extent) {
            return Step::fail(refusal);
        }
        let Some(table) = self.drives[drive].table.as_mut() else {
            return Step::fail(errno(op, id.to_string(), errno::ENOENT));
        };
        let Some(number) = (1..=ENTRIES_MAX).find(|n| !table.contains_key(n)) else {
            return Step::fail(errno(op, id.to_string(), errno::ENOSPC));
        };
        let entry = PartitionEntry {
            type_guid: PARTITION_TYPE,
            unique_guid: key.partition_uuid(),
            name: key.partition_name(),
            extent: *extent,
        };
        table.insert(number, entry);
        let now = self.now;
        self.drives[drive].made_at.insert(number, now);
        if half {
            return Step::fail(KernelError::retry(op.name(), id.to_string(), "table written, kernel not told"));
        }
        self.nodes[node].known.insert((drive, number), *extent);
        self.hint_drive(node, drive);
        Step::done(Changed::Yes)
    }

    pub(super) fn op_grow_partition(&mut self, node: usize, op: &Op, half: bool) -> Step {
        let Op::GrowPartition { key, drive: id, bytes } = op else { return Step::not_this(op) };
        let Some((drive, number, extent)) = self.our_partition(node, *key) else {
            return Step::fail(errno(op, key.to_string(), errno::ENOENT));
        };
        if self.drives[drive].spec.id() != *id {
            return Step::fail(KernelError::refuse(op.name(), id.to_string(), "the partition is not on that drive"));
        }
        if *bytes <= extent.length {
            return self.op_announce(node, op, *key);
        }
        if let Some(step) = self.not_ready(op, drive) {
            return step;
        }
        let added = Extent { start: extent.end(), length: bytes - extent.length };
        if let Some(refusal) = self.refuse_extent(node, op, drive, added) {
            return Step::fail(refusal);
        }
        let block_bytes = self.config.block_bytes;
        self.drives[drive].discard(added, block_bytes);
        let whole = Extent { start: extent.start, length: *bytes };
        let entry = self.drives[drive].table.as_mut().and_then(|table| table.get_mut(&number));
        entry.into_iter().for_each(|entry| entry.extent = whole);
        if half {
            return Step::fail(KernelError::retry(op.name(), id.to_string(), "table written, kernel not told"));
        }
        self.nodes[node].known.insert((drive, number), whole);
        self.hint_drive(node, drive);
        Step::done(Changed::Yes)
    }

    /// Why an extent of a drive cannot be taken.
    fn refuse_extent(&mut self, node: usize, op: &Op, drive: usize, extent: Extent) -> Option<KernelError> {
        let d = &self.drives[drive];
        let id = d.spec.id().to_string();
        if let Some(owner) = d.foreign.clone() {
            self.violate(node, Law::ForeignBytes, format!("{op}: the drive holds {owner}"));
            return Some(KernelError::refuse(op.name(), id, format!("the drive holds {owner}")));
        }
        if d.table.is_none() {
            return Some(KernelError::refuse(op.name(), id, "the drive has no partition table"));
        }
        if !extent.start.is_multiple_of(ALIGNMENT) || !extent.length.is_multiple_of(ALIGNMENT) || extent.length == 0 {
            return Some(errno(op, id, errno::EINVAL));
        }
        if d.free().iter().any(|f| f.start <= extent.start && extent.end() <= f.end()) {
            return None;
        }
        self.law_overlap(node, op, drive, extent);
        Some(KernelError::refuse(op.name(), id, "the extent is not free"))
    }

    pub(super) fn op_announce(&mut self, node: usize, op: &Op, key: ReplicaKey) -> Step {
        let Some((drive, number)) = self.find_partition(node, key) else {
            return Step::fail(errno(op, key.to_string(), errno::ENOENT));
        };
        let extent = self.drives[drive].entry(number).map(|e| e.extent).unwrap_or(Extent { start: 0, length: 0 });
        let changed = self.nodes[node].known.insert((drive, number), extent) != Some(extent);
        if changed {
            self.hint_drive(node, drive);
        }
        Step::changed(changed)
    }

    pub(super) fn op_blank(&mut self, node: usize, op: &Op, key: ReplicaKey, record: &EpochRecord, half: bool) -> Step {
        let Some((drive, number, extent)) = self.our_partition(node, key) else {
            return Step::fail(errno(op, key.to_string(), errno::ENOENT));
        };
        let block_bytes = self.config.block_bytes;
        let d = &self.drives[drive];
        let there = d.meta(extent.start);
        if let Some(old) = &there.record {
            let same = same_record(record, old);
            if same && d.data(extent, block_bytes, false).is_empty() && there.superblock.is_none() {
                return Step::done(Changed::No);
            }
            return Step::fail(KernelError::refuse(op.name(), key.to_string(), "the partition has a record"));
        }
        if there.superblock.is_some() {
            let detail = "it is a member of an array but has no record";
            return Step::fail(KernelError::refuse(op.name(), key.to_string(), detail));
        }
        if self.in_use(node, drive, number) {
            return Step::fail(KernelError::wait(op.name(), key.to_string(), "the partition is held or exported"));
        }
        if let Some(step) = self.not_ready(op, drive) {
            return step;
        }
        self.drives[drive].discard(extent, block_bytes);
        if half {
            return Step::fail(KernelError::retry(op.name(), key.to_string(), "zeroed, record not written"));
        }
        let first = EpochRecord { sequence: 1, ..record.clone() };
        self.drives[drive].edit_meta(extent.start, |meta| meta.record = Some(first));
        self.hint_drive(node, drive);
        Step::done(Changed::Yes)
    }

    pub(super) fn op_write_record(
        &mut self,
        node: usize,
        op: &Op,
        key: ReplicaKey,
        record: &EpochRecord,
        half: bool,
    ) -> Step {
        let Some((drive, _, extent)) = self.our_partition(node, key) else {
            return Step::fail(errno(op, key.to_string(), errno::ENOENT));
        };
        if let Some(step) = self.not_ready(op, drive) {
            return step;
        }
        let old = self.drives[drive].meta(extent.start).record;
        if old.is_none() {
            return Step::fail(KernelError::refuse(op.name(), key.to_string(), "it was never blanked: no record yet"));
        }
        if let Some(old) = &old {
            if same_record(record, old) {
                return Step::done(Changed::No);
            }
            if (old.epoch, old.generation) > (record.epoch, record.generation) {
                let detail = format!("the drive has epoch {}.{}", old.epoch, old.generation);
                return Step::fail(KernelError::refuse(op.name(), key.to_string(), detail));
            }
            if (old.volume, old.cluster, old.replica) != (record.volume, record.cluster, record.replica) {
                return Step::fail(KernelError::refuse(op.name(), key.to_string(), "the drive has another replica"));
            }
        }
        if half {
            // A torn write spoils one slot; the older record is in the other.
            return Step::fail(KernelError::retry(op.name(), key.to_string(), "torn write"));
        }
        let next = EpochRecord { sequence: old.map_or(1, |o| o.sequence + 1), ..record.clone() };
        self.drives[drive].edit_meta(extent.start, |meta| meta.record = Some(next));
        self.hint_drive(node, drive);
        Step::done(Changed::Yes)
    }

    pub(super) fn op_remove_partition(&mut self, node: usize, op: &Op, key: ReplicaKey, half: bool) -> Step {
        self.learn(key);
        let Some((drive, number, extent)) = self.our_partition(node, key) else { return Step::done(Changed::No) };
        if self.in_use(node, drive, number) {
            return Step::fail(KernelError::wait(op.name(), key.to_string(), "the partition is held or exported"));
        }
        if let Some(step) = self.not_ready(op, drive) {
            return step;
        }
        let block_bytes = self.config.block_bytes;
        self.drives[drive].discard(extent, block_bytes);
        if half {
            return Step::fail(KernelError::retry(op.name(), key.to_string(), "discarded, entry not removed"));
        }
        if let Some(table) = self.drives[drive].table.as_mut() {
            table.remove(&number);
        }
        self.nodes[node].known.remove(&(drive, number));
        self.hint_drive(node, drive);
        Step::done(Changed::Yes)
    }

    /// What an operation meets on a drive that does not answer, or that is going down with its node.
    fn not_ready(&self, op: &Op, drive: usize) -> Option<Step> {
        let d = &self.drives[drive];
        let stopping = d.home.is_some_and(|n| self.nodes[n].stopping);
        match (d.broken || stopping, d.hung) {
            (true, _) => Some(Step::fail(errno(op, d.spec.id().to_string(), errno::EIO))),
            (false, true) => Some(Step::Wait),
            (false, false) => None,
        }
    }

    /// Whether the drive with a replica's partition does not answer a read.
    pub(super) fn unreadable(&self, node: usize, key: ReplicaKey) -> bool {
        self.find_partition(node, key).is_some_and(|(d, _)| self.drives[d].hung || self.drives[d].broken)
    }

    /// A replica's partition with its extent.
    pub(super) fn our_partition(&self, node: usize, key: ReplicaKey) -> Option<(usize, u32, Extent)> {
        let (drive, number) = self.find_partition(node, key)?;
        Some((drive, number, self.drives[drive].entry(number)?.extent))
    }

    /// Whether an array of the node holds the partition, or an export of it is open.
    fn in_use(&self, node: usize, drive: usize, number: u32) -> bool {
        !self.holders_of(node, drive, number).is_empty() || self.export_of(node, drive, number).is_some()
    }

    /// Names of the arrays of the node that hold a partition. Failed members are held until they are removed.
    pub(super) fn holders_of(&self, node: usize, drive: usize, number: u32) -> BTreeSet<String> {
        let dev = super::bio::Dev::Part { drive, number };
        let arrays = self.arrays.values().filter(|a| a.node == node);
        arrays.filter(|a| a.members.values().any(|m| m.dev == dev)).map(|a| a.name.clone()).collect()
    }

    pub(super) fn drive_name(&self, node: usize, drive: usize) -> String {
        format!("nvme{}n1", self.nodes[node].drive_numbers.get(&drive).copied().unwrap_or_default())
    }

    pub(super) fn partition_path(&self, node: usize, drive: usize, number: u32) -> String {
        format!("/dev/{}p{number}", self.drive_name(node, drive))
    }

    /// What a node shows of a replica's partition.
    pub(super) fn partition_fact(&self, node: usize, key: ReplicaKey) -> Option<PartitionFact> {
        let (drive, number, extent) = self.our_partition(node, key)?;
        let d: &Drive = &self.drives[drive];
        let known = self.nodes[node].known.get(&(drive, number));
        let meta = d.meta(extent.start);
        let head_blocks = DATA_OFFSET / self.config.block_bytes;
        let data = d.data(extent, self.config.block_bytes, false);
        let mut superblock = meta.superblock;
        if let Some(superblock) = &mut superblock {
            superblock.bitmap = meta.bitmap;
        }
        Some(PartitionFact {
            drive: d.spec.id(),
            number,
            extent,
            path: known.map(|_| self.partition_path(node, drive, number)),
            kernel_bytes: known.map(|e| e.length),
            volatile_cache: d.volatile(),
            power: format!("{}/{}", self.nodes[node].boot.0, d.plugs),
            holders: self.holders_of(node, drive, number),
            superblock,
            zeroed: meta.record.is_some() && data.range(..head_blocks).next().is_none(),
            record: meta.record,
        })
    }
}
