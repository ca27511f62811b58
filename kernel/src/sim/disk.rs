//! A simulated drive: its partition table, its blocks, and the metadata that lies inside partitions.
//!
//! Content belongs to the drive: it survives crashes of any node and travels when the drive is plugged in elsewhere.
//! Only the volatile cache is lost, at a power cut. Called by the block layer and by the drive operations; it never
//! decides whether a write is lawful.

use super::config::SimDrive;
use super::state::Time;
use crate::facts::{ALIGNMENT, Bitmap, DATA_OFFSET, EpochRecord, Extent, PartitionEntry, Superblock};
use crate::id::PARTITION_TYPE;
use std::collections::BTreeMap;
use std::ops::Range;

/// What we and MD keep in the first 4 MiB of a partition, by content instead of bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Meta {
    /// MD superblock; its `bitmap` is kept apart, in the next field.
    pub(super) superblock: Option<Superblock>,
    pub(super) bitmap: Option<Bitmap>,
    pub(super) record: Option<EpochRecord>,
}

/// One drive.
#[derive(Debug, Clone)]
pub(super) struct Drive {
    pub(super) spec: SimDrive,
    /// Node it is plugged in at; `None` when pulled.
    pub(super) home: Option<usize>,
    /// The partition table, when there is one.
    pub(super) table: Option<BTreeMap<u32, PartitionEntry>>,
    /// When each of our entries was made: fresh ones may collide with a plan made just before.
    pub(super) made_at: BTreeMap<u32, Time>,
    /// Why the whole drive is somebody else's.
    pub(super) foreign: Option<String>,
    /// Durable content by absolute block; absent is zero.
    blocks: BTreeMap<u64, u64>,
    /// Written and not yet flushed, newer than `blocks`. Empty on drives without a volatile cache.
    cache: BTreeMap<u64, u64>,
    /// By first byte of the partition: stale metadata stays where it lies when a table entry goes.
    meta: BTreeMap<u64, Meta>,
    /// The volatile cache was turned off since the power came.
    pub(super) cache_off: bool,
    /// Times it was plugged in.
    pub(super) plugs: u64,
    /// Commands are accepted and never finish.
    pub(super) hung: bool,
    /// Writes that come over the network and are held back for so long, each by itself: how many still, how long.
    pub(super) throttled: (u32, Time),
    /// Every command fails with a media error.
    pub(super) broken: bool,
}

impl Drive {
    pub(super) fn new(spec: SimDrive, home: usize) -> Drive {
        Drive {
            spec,
            home: Some(home),
            table: None,
            made_at: BTreeMap::new(),
            foreign: None,
            blocks: BTreeMap::new(),
            cache: BTreeMap::new(),
            meta: BTreeMap::new(),
            cache_off: false,
            plugs: 0,
            hung: false,
            throttled: Default::default(),
            broken: false,
        }
    }

    pub(super) fn entry(&self, number: u32) -> Option<&PartitionEntry> {
        self.table.as_ref()?.get(&number)
    }

    /// Whether nothing was ever written to it.
    pub(super) fn is_blank(&self) -> bool {
        let zero = |blocks: &BTreeMap<u64, u64>| blocks.values().all(|tag| *tag == 0);
        self.table.is_none() && self.foreign.is_none() && zero(&self.blocks) && zero(&self.cache)
    }

    /// Whether some entry of the table is not ours.
    pub(super) fn has_foreign_entries(&self) -> bool {
        self.table.iter().flat_map(|t| t.values()).any(|e| e.type_guid != PARTITION_TYPE)
    }

    pub(super) fn read(&self, block: u64) -> u64 {
        self.cache.get(&block).or_else(|| self.blocks.get(&block)).copied().unwrap_or(0)
    }

    pub(super) fn write(&mut self, block: u64, tag: u64) {
        if self.volatile() {
            self.cache.insert(block, tag);
        } else {
            self.blocks.insert(block, tag);
        }
    }

    /// Whether its volatile cache is on.
    pub(super) fn volatile(&self) -> bool {
        self.spec.volatile_cache && !self.cache_off
    }

    pub(super) fn flush(&mut self) {
        self.blocks.append(&mut self.cache);
    }

    /// The power goes: what was not flushed is gone. Answers how many blocks that were.
    pub(super) fn lose_cache(&mut self) -> usize {
        let lost = self.cache.len();
        self.cache_off = false;
        self.cache.clear();
        lost
    }

    /// Zeroes an extent durably, metadata included.
    pub(super) fn discard(&mut self, extent: Extent, block_bytes: u64) {
        let range = extent.start / block_bytes..extent.end().div_ceil(block_bytes);
        self.blocks.retain(|block, _| !range.contains(block));
        self.cache.retain(|block, _| !range.contains(block));
        self.meta.retain(|start, _| *start < extent.start || *start >= extent.end());
    }

    pub(super) fn meta(&self, start: u64) -> Meta {
        self.meta.get(&start).cloned().unwrap_or_default()
    }

    /// Metadata is always written with flush and forced unit access (`md_super_write`), so the cache goes first.
    pub(super) fn edit_meta(&mut self, start: u64, edit: impl FnOnce(&mut Meta)) {
        self.flush();
        edit(self.meta.entry(start).or_default());
    }

    /// Non-zero blocks of a partition's data area, counted from its first block: as read now, or what would survive.
    pub(super) fn data(&self, extent: Extent, block_bytes: u64, durable_only: bool) -> BTreeMap<u64, u64> {
        self.data_in(extent, block_bytes, 0..u64::MAX, durable_only)
    }

    /// The same for a range of blocks.
    pub(super) fn data_in(
        &self,
        extent: Extent,
        block_bytes: u64,
        range: Range<u64>,
        durable_only: bool,
    ) -> BTreeMap<u64, u64> {
        let first = (extent.start + DATA_OFFSET) / block_bytes;
        let last = (extent.end() / block_bytes).max(first);
        let from = first.saturating_add(range.start).min(last);
        let to = first.saturating_add(range.end).clamp(from, last);
        let mut content: BTreeMap<u64, u64> = self.blocks.range(from..to).map(|(b, t)| (b - first, *t)).collect();
        if !durable_only {
            content.extend(self.cache.range(from..to).map(|(b, t)| (b - first, *t)));
        }
        content.retain(|_, tag| *tag != 0);
        content
    }

    /// Extents of at least [`ALIGNMENT`] that no entry covers. The first and last [`ALIGNMENT`] hold the tables.
    pub(super) fn free(&self) -> Vec<Extent> {
        let mut used: Vec<Extent> = self.table.iter().flat_map(|table| table.values()).map(|e| e.extent).collect();
        used.sort();
        let last = (self.spec.size / ALIGNMENT).saturating_sub(1) * ALIGNMENT;
        let mut free = Vec::new();
        let mut at = ALIGNMENT;
        for extent in used {
            let start = extent.start / ALIGNMENT * ALIGNMENT;
            if start > at {
                free.push(Extent { start: at, length: start - at });
            }
            at = at.max(extent.end().div_ceil(ALIGNMENT) * ALIGNMENT);
        }
        if last > at {
            free.push(Extent { start: at, length: last - at });
        }
        free
    }
}
