//! The write-intent bitmap of a running array, with the rules of md-bitmap.c: when a bit is set, when it is NEEDED,
//! when the daemon forgets it, and what is loaded from disk at assembly.
//!
//! The trap of docs/kernel-hazards.md, F1 is here on purpose: a bit found on disk by an array that starts on its last
//! survivor is loaded without NEEDED, and the daemon clears it although the other member may lack the data. Called by
//! the I/O path, by assembly and by operations. It never merges another member's bitmap: that is MergeBitmap's work.

use super::super::bio::Load;
use super::super::event::What;
use super::super::host::Reach;
use super::super::job::{Step, errno};
use super::super::state::State;
use super::Array;
use crate::error::KernelError;
use crate::facts::Bitmap;
use crate::id::VolumeId;
use crate::ops::{Changed, Op};
use std::collections::{BTreeMap, BTreeSet};

/// Passes of the daemon that a chunk stays set after its last write.
const PASSES: u8 = 2;

/// One set bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Bit {
    /// A member lacks something in this chunk.
    pub(in super::super) needed: bool,
    /// Writes under way.
    pub(in super::super) writes: u32,
    /// Passes of the daemon that are left.
    pub(in super::super) passes: u8,
    /// Durable on every member.
    pub(in super::super) on_disk: bool,
}

/// The bitmap in memory: absent chunks are clean.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Bits {
    pub(in super::super) chunks: BTreeMap<u64, Bit>,
    pub(in super::super) events_cleared: u64,
    /// Bits or header are newer than on disk.
    pub(in super::super) unwritten: bool,
    /// A bit was cleared or the header moved: the next pass of the daemon writes it.
    pub(in super::super) lazy: bool,
    /// Our own assembly puts the daemon to sleep, so that no bit is forgotten before ReleaseSync.
    pub(in super::super) asleep: bool,
}

impl Bits {
    /// `md_bitmap_startwrite`: sets the chunk's bit; data may follow when it is on disk.
    pub(in super::super) fn start_write(&mut self, chunk: u64) {
        let bit = self.chunks.entry(chunk).or_insert(Bit { needed: false, writes: 0, passes: PASSES, on_disk: false });
        self.unwritten |= !bit.on_disk;
        bit.writes += 1;
        bit.passes = PASSES;
    }

    /// `md_bitmap_endwrite`: a write that missed a slot leaves the chunk NEEDED.
    pub(in super::super) fn end_write(&mut self, chunk: u64, whole: bool, events: u64) {
        if let Some(bit) = self.chunks.get_mut(&chunk) {
            bit.writes = bit.writes.saturating_sub(1);
            bit.needed |= !whole;
        }
        if whole && self.events_cleared < events {
            self.events_cleared = events;
            self.lazy = true;
        }
    }

    /// The chunk is the same everywhere again (`md_bitmap_end_sync`).
    pub(in super::super) fn synced(&mut self, chunk: u64) {
        if let Some(bit) = self.chunks.get_mut(&chunk) {
            bit.needed = false;
            bit.passes = PASSES;
        }
    }

    /// Marks a chunk NEEDED. The page goes to every member, whatever one of them has (`md_bitmap_file_set_bit`).
    fn need(&mut self, chunk: u64) {
        let bit = self.chunks.entry(chunk).or_insert(Bit { needed: false, writes: 0, passes: PASSES, on_disk: false });
        self.unwritten = true;
        bit.needed = true;
    }

    /// First chunk from `from` on that has to be copied.
    pub(in super::super) fn next_needed(&self, from: u64) -> Option<u64> {
        self.chunks.range(from..).find(|(_, b)| b.needed).map(|(c, _)| *c)
    }

    /// One pass of the daemon: chunks idle for long enough are forgotten, NEEDED ones never.
    fn pass(&mut self) {
        let idle = |b: &Bit| b.writes == 0 && !b.needed && b.on_disk;
        let before = self.chunks.len();
        self.chunks.retain(|_, b| !(idle(b) && b.passes == 0));
        for bit in self.chunks.values_mut().filter(|b| idle(b)) {
            bit.passes = bit.passes.saturating_sub(1);
        }
        self.lazy |= self.chunks.len() != before;
        self.unwritten |= std::mem::take(&mut self.lazy);
    }
}

impl Array {
    /// What `md_bitmap_load` makes of the bitmap of one member. `chunks` is the array's size in chunks.
    pub(in super::super) fn load_bits(&self, disk: &Bitmap) -> Bits {
        let mut bits = Bits { events_cleared: disk.events_cleared, ..Bits::default() };
        let stale = disk.events < self.events || disk.uuid != self.set_uuid;
        // "start" of md_bitmap_load: bits below it are taken as set but not NEEDED.
        let trusted = self.degraded() == 0 || disk.events_cleared == self.events;
        let start = if trusted { self.resync_from } else { Some(0) };
        let all: BTreeSet<u64> = if stale { (0..self.chunks()).collect() } else { disk.dirty.clone() };
        for chunk in all {
            let needed = stale || start.is_some_and(|s| chunk >= s);
            bits.chunks.insert(chunk, Bit { needed, writes: 0, passes: PASSES, on_disk: !stale });
        }
        // What the other members have on disk stays until the daemon writes a page.
        bits.lazy = true;
        bits
    }
}

impl State {
    /// A pass of the daemon of one array; it runs on read-only arrays as well.
    pub(in super::super) fn bitmap_daemon(&mut self, id: u64) {
        let Some(a) = self.arrays.get_mut(&id) else { return };
        let Some(bits) = &mut a.bitmap else { return };
        if !bits.asleep {
            bits.pass();
        }
        let node = a.node;
        self.after(self.config.bitmap_daemon, node, What::Daemon { array: id });
    }

    pub(in super::super) fn start_daemon(&mut self, id: u64) {
        if let Some(node) = self.arrays.get(&id).filter(|a| a.bitmap.is_some()).map(|a| a.node) {
            self.after(self.config.bitmap_daemon, node, What::Daemon { array: id });
        }
    }

    pub(in super::super) fn op_merge_bitmap(
        &mut self,
        node: usize,
        op: &Op,
        volume: VolumeId,
        chunks: &BTreeSet<u64>,
        job: u64,
    ) -> Step {
        let Some(id) = self.array_of(node, volume) else { return Step::no_array(op, volume) };
        if self.jobs.get(&job).is_some_and(|j| j.stage == 1) {
            return self.when_bits_are_written(id);
        }
        let Some(a) = self.arrays.get_mut(&id) else { return Step::done(Changed::No) };
        let last = a.chunks();
        if chunks.is_empty() {
            return Step::done(Changed::No);
        }
        if a.read_only {
            return Step::fail(KernelError::refuse(op.name(), a.name.clone(), "the array is read-only"));
        }
        // Setting a bit moves resync_offset down, and reads above it go to the lowest slot, in sync or not (F17).
        if a.members.values().any(|m| m.active() && !m.in_sync) {
            return Step::fail(KernelError::wait(op.name(), a.name.clone(), "a member is recovering"));
        }
        let Some(bits) = &mut a.bitmap else {
            return Step::fail(KernelError::refuse(op.name(), a.name.clone(), "the array has no bitmap"));
        };
        if let Some(beyond) = chunks.iter().find(|c| **c >= last) {
            let detail = format!("chunk {beyond} lies beyond the array's {last} chunks");
            return Step::fail(KernelError::refuse(op.name(), a.name.clone(), detail));
        }
        // Always done when asked for: a bit that is set already may be one that MD does not mean to resync.
        chunks.iter().for_each(|c| bits.need(*c));
        // `md_bitmap_dirty_bits` moves resync_offset back: the array is as dirty as that.
        let first = chunks.first().copied();
        a.resync_from = match (a.resync_from, first) {
            (Some(old), Some(first)) => Some(old.min(first)),
            (old, first) => old.or(first),
        };
        if let Some(job) = self.jobs.get_mut(&job) {
            job.stage = 1;
        }
        Step::Wait
    }

    fn when_bits_are_written(&self, id: u64) -> Step {
        match self.arrays.get(&id) {
            Some(a) if a.bits_write.is_some() || a.bitmap.as_ref().is_some_and(|b| b.unwritten) => Step::Wait,
            _ => Step::done(Changed::Yes),
        }
    }

    pub(in super::super) fn op_remove_bitmap(&mut self, node: usize, op: &Op, volume: VolumeId) -> Step {
        let Some(id) = self.array_of(node, volume) else { return Step::no_array(op, volume) };
        let Some(a) = self.arrays.get(&id) else { return Step::done(Changed::No) };
        if a.bitmap.is_none() {
            return Step::done(Changed::No);
        }
        if a.members.len() > 1 {
            return Step::fail(KernelError::refuse(op.name(), a.name.clone(), "the array has several devices"));
        }
        if a.sync.is_some() || a.read_only {
            return Step::fail(errno(op, a.name.clone(), errno::EBUSY));
        }
        // MD suspends the array for this, as for the addition.
        let busy = self.ios.values().any(|io| io.array == id && io.passed_gate());
        if busy || a.pending() || a.bits_write.is_some() {
            return Step::Wait;
        }
        let devs: Vec<_> = a.members.values().map(|m| m.dev).collect();
        for dev in devs {
            if let Reach::There { drive, extent } = self.reach(node, dev) {
                self.write_through(drive, extent, &Load::Bits { bitmap: None });
            }
        }
        if let Some(a) = self.arrays.get_mut(&id) {
            a.bitmap = None;
            a.dirty(super::Dirty::Devices);
        }
        self.hint_array(id);
        Step::done(Changed::Yes)
    }

    pub(in super::super) fn op_add_bitmap(&mut self, node: usize, op: &Op, volume: VolumeId, job: u64) -> Step {
        let Some(id) = self.array_of(node, volume) else { return Step::no_array(op, volume) };
        if self.jobs.get(&job).is_some_and(|j| j.stage == 1) {
            return self.when_bits_are_written(id);
        }
        let Some(a) = self.arrays.get_mut(&id) else { return Step::done(Changed::No) };
        if a.bitmap.is_some() {
            return Step::done(Changed::No);
        }
        if a.sync.is_some() || a.read_only {
            return Step::fail(errno(op, a.name.clone(), errno::EBUSY));
        }
        // MD suspends the array for this: a write under way would not be in the bitmap.
        if a.pending() || self.ios.values().any(|io| io.array == id && io.passed_gate()) {
            return Step::Wait;
        }
        let Some(a) = self.arrays.get_mut(&id) else { return Step::done(Changed::No) };
        a.bitmap = Some(Bits { events_cleared: a.events, unwritten: true, ..Bits::default() });
        a.dirty(super::Dirty::Devices);
        self.start_daemon(id);
        if let Some(job) = self.jobs.get_mut(&job) {
            job.stage = 1;
        }
        Step::Wait
    }
}
