//! Resync and recovery: which of them runs, chunk by chunk at the configured rate, and what its end changes.
//!
//! A resync copies NEEDED chunks between members that are all in sync by name; a recovery fills a member that is not.
//! One chunk is copied in one moment, behind a barrier that keeps writes to it out, as MD's own barrier does. Called
//! by `pump` and by the queue; it never starts while sync is frozen or nobody asked.

use super::super::bio::{Dev, Landing, Load};
use super::super::event::What;
use super::super::host::Reach;
use super::super::job::{Step, errno};
use super::super::state::{State, Time};
use super::{Array, Dirty};
use crate::error::KernelError;
use crate::facts::{BITMAP_CHUNK, SyncSpeed};
use crate::hint::Hint;
use crate::id::VolumeId;
use crate::ops::{Changed, Op};
use std::collections::BTreeSet;

/// Which kind of sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Kind {
    Resync,
    Recover,
}

impl Kind {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Kind::Resync => "resync",
            Kind::Recover => "recover",
        }
    }
}

/// A sync under way.
#[derive(Debug, Clone)]
pub(in super::super) struct Sync {
    pub(in super::super) kind: Kind,
    /// Tells a step of this run from one of an interrupted one.
    run: u64,
    /// Chunk that is copied next.
    pub(in super::super) next: u64,
    /// Chunk that writes must stay out of.
    pub(in super::super) barrier: Option<u64>,
    /// The time of `next` has passed: it is copied as soon as its members answer.
    due: bool,
    /// All but the end is copied, and the end is held.
    pub(in super::super) waits: bool,
}

impl Array {
    /// Next chunk that this sync has to copy.
    fn next_chunk(&self, kind: Kind, from: u64) -> Option<u64> {
        let end = self.chunks();
        let everything = self.bitmap.is_none() || (kind == Kind::Recover && self.full_sync);
        let next = match &self.bitmap {
            Some(bits) if !everything => bits.next_needed(from)?,
            _ => from,
        };
        (next < end).then_some(next)
    }

    /// A member that is being filled.
    fn recovering(&self) -> bool {
        self.members.values().any(|m| m.active() && !m.in_sync)
    }
}

impl State {
    /// Moves sync work of an array on; answers whether something moved.
    pub(super) fn pump_sync(&mut self, id: u64) -> bool {
        let Some(a) = self.arrays.get(&id) else { return false };
        match &a.sync {
            Some(sync) => sync.due && self.copy_due_chunk(id),
            None => a.kick && self.choose_sync(id),
        }
    }

    /// `md_choose_sync_action`: spares first, then a pending resync.
    fn choose_sync(&mut self, id: u64) -> bool {
        let Some(a) = self.arrays.get_mut(&id) else { return false };
        if a.sync_frozen || a.read_only || a.broken || a.pending() {
            a.quiet = false;
            return false;
        }
        self.seat_spares(id);
        if self.waits_for_requests(id) {
            return false;
        }
        let Some(a) = self.arrays.get_mut(&id) else { return false };
        a.kick = false;
        let kind = if a.recovering() {
            Kind::Recover
        } else if a.resync_from.is_some() {
            Kind::Resync
        } else {
            return true;
        };
        if kind == Kind::Recover {
            a.dirty(Dirty::Devices);
        }
        let from = if kind == Kind::Resync { a.resync_from.unwrap_or(0) } else { 0 };
        let (name, node) = (a.name.clone(), a.node);
        let run = self.id();
        self.say(node, format!("{name} starts {}", kind.name()));
        if let Some(a) = self.arrays.get_mut(&id) {
            a.sync = Some(Sync { kind, run, next: from, barrier: None, due: false, waits: false });
        }
        self.hint_array(id);
        self.next_step(id, from);
        true
    }

    /// A recovery by bitmap begins behind every request that began before it (md.c `md_do_sync`, the calls of `quiesce`): a
    /// write that missed the member marks its chunk only when it ends, and the recovery would have passed it (seed 5205).
    fn waits_for_requests(&mut self, id: u64) -> bool {
        let busy = self.ios.values().any(|io| io.array == id && io.passed_gate());
        let Some(a) = self.arrays.get_mut(&id) else { return false };
        a.quiet = busy && a.bitmap.is_some() && a.recovering();
        a.quiet
    }

    /// Gives spares a vacant slot: the one they had, if it is free.
    fn seat_spares(&mut self, id: u64) {
        let Some(a) = self.arrays.get_mut(&id) else { return };
        let spares: Vec<String> =
            a.members.iter().filter(|(_, m)| m.slot.is_none() && !m.faulty).map(|(n, _)| n.clone()).collect();
        for name in spares {
            let saved = a.members.get(&name).and_then(|m| m.saved_slot);
            let taken = |s: u32| a.members.values().any(|m| m.active() && m.slot == Some(s));
            let own = saved.filter(|s| *s < a.raid_disks && !taken(*s));
            let Some(slot) = own.or_else(|| a.vacant_slot()) else { continue };
            a.full_sync |= saved.is_none();
            if let Some(member) = a.members.get_mut(&name) {
                member.slot = Some(slot);
                member.in_sync = false;
            }
            a.dirty(Dirty::Devices);
        }
    }

    /// Goes to the next chunk to copy from `from` on, or ends.
    fn next_step(&mut self, id: u64, from: u64) {
        let Some(a) = self.arrays.get_mut(&id) else { return };
        let (node, end, speed) = (a.node, a.chunks(), a.speed);
        let copies = a.members.values().filter(|m| m.active()).count() > 1;
        let Some(sync) = &a.sync else { return };
        let (kind, run) = (sync.kind, sync.run);
        // Alone there is nowhere to write: the pass is over at once and the bits stay.
        let next = if copies { a.next_chunk(kind, from) } else { None };
        let bytes = BITMAP_CHUNK.min(a.component_bytes);
        // Clean chunks are passed in one leap, and the point where it is held with them (raid1.c `raid1_sync_request`).
        let waits = a.held && next.is_none() && from >= end;
        if let Some(sync) = &mut a.sync {
            sync.next = next.unwrap_or(end);
            sync.due = false;
            sync.barrier = None;
            sync.waits = waits;
        }
        if waits {
            return self.hint_array(id);
        }
        let rate = self.config.sync_rate.min(u64::from(speed.max_kib) << 10).max(1);
        let time = Time::from_secs_f64(bytes as f64 / rate as f64);
        let delay = if next.is_some() { time } else { Time::from_millis(10) };
        self.after(delay, node, What::SyncStep { array: id, run });
    }

    pub(in super::super) fn sync_step(&mut self, id: u64, run: u64) {
        let Some(a) = self.arrays.get_mut(&id) else { return };
        let end = a.chunks();
        match &mut a.sync {
            Some(sync) if sync.run == run && sync.next >= end => self.end_sync(id),
            Some(sync) if sync.run == run => {
                sync.due = true;
                sync.barrier = Some(sync.next);
            }
            _ => {}
        }
    }

    /// Copies the chunk that is due once no write is in it and its members answer.
    fn copy_due_chunk(&mut self, id: u64) -> bool {
        let Some(a) = self.arrays.get(&id) else { return false };
        let Some((kind, chunk)) = a.sync.as_ref().map(|s| (s.kind, s.next)) else { return false };
        let node = a.node;
        let in_chunk = |ask: &super::io::Ask| match ask {
            super::io::Ask::Write { block, .. } => self.chunk_of(*block) == chunk,
            _ => false,
        };
        if self.ios.values().any(|io| io.array == id && io.passed_gate() && in_chunk(&io.ask)) {
            return false;
        }
        let good = a.members.iter().filter(|(_, m)| m.good());
        let source = good.min_by_key(|(_, m)| (m.write_mostly, m.slot)).map(|(n, m)| (n.clone(), m.dev));
        let Some((source, from)) = source else { return false };
        let wanted = |m: &super::Member| m.active() && (kind == Kind::Resync || !m.in_sync);
        let targets: Vec<(String, Dev)> =
            a.members.iter().filter(|(n, m)| **n != source && wanted(m)).map(|(n, m)| (n.clone(), m.dev)).collect();
        let mut places = Vec::new();
        for (name, dev) in std::iter::once((source, from)).chain(targets) {
            match self.reach(node, dev) {
                Reach::There { drive, extent } => places.push((drive, extent, dev)),
                Reach::Stuck => return false,
                Reach::Gone => {
                    self.fail_member(id, &name, "sync I/O failed");
                    return true;
                }
            }
        }
        self.copy_chunk(id, chunk, &places);
        let Some(a) = self.arrays.get_mut(&id) else { return true };
        // Bits of a chunk that some slot still lacks stay.
        if !a.slot_missing()
            && let Some(bits) = &mut a.bitmap
        {
            bits.synced(chunk);
        }
        if kind == Kind::Resync {
            a.resync_from = Some(chunk + 1);
        }
        self.next_step(id, chunk + 1);
        true
    }

    fn copy_chunk(&mut self, id: u64, chunk: u64, places: &[(usize, crate::facts::Extent, Dev)]) {
        let Some(((drive, extent, _), targets)) = places.split_first() else { return };
        let per_chunk = BITMAP_CHUNK / self.config.block_bytes;
        let range = chunk * per_chunk..(chunk + 1) * per_chunk;
        let content = |d: usize, e| self.drives[d].data_in(e, self.config.block_bytes, range.clone(), false);
        let source = content(*drive, *extent);
        let mut stale = Vec::new();
        for (drive, extent, dev) in targets {
            let old = content(*drive, *extent);
            let blocks: BTreeSet<u64> = source.keys().chain(old.keys()).copied().collect();
            let differs = |b: &u64| source.get(b) != old.get(b);
            stale.push((*drive, *extent, *dev, blocks.into_iter().filter(differs).collect::<Vec<u64>>()));
        }
        for (drive, extent, dev, blocks) in stale {
            self.law_sync_target(id, dev);
            for block in blocks {
                let tag = source.get(&block).copied().unwrap_or(0);
                self.write_through(drive, extent, &Load::Write { block, tag });
            }
        }
    }

    fn end_sync(&mut self, id: u64) {
        let Some(a) = self.arrays.get_mut(&id) else { return };
        let Some(sync) = a.sync.take() else { return };
        match sync.kind {
            Kind::Resync => a.resync_from = None,
            Kind::Recover => {
                // `raid1_spare_active`: in sync from now on, in the superblocks a little later.
                for member in a.members.values_mut().filter(|m| m.active() && !m.in_sync) {
                    member.in_sync = true;
                    member.saved_slot = None;
                }
                a.full_sync = false;
            }
        }
        a.held = false;
        a.dirty(Dirty::Devices);
        a.kick = true;
        let (node, line) = (a.node, format!("{} ends {}{}", a.name, sync.kind.name(), a.of_volume()));
        self.say(node, line);
        self.hint_array(id);
    }

    pub(in super::super) fn hint_array(&mut self, id: u64) {
        if let Some((node, volume)) = self.arrays.get(&id).map(|a| (a.node, a.volume)) {
            self.hint(node, volume.map_or(Hint::Arrays, Hint::Array));
        }
    }

    pub(in super::super) fn op_release_sync(&mut self, node: usize, op: &Op, volume: VolumeId) -> Step {
        let Some(id) = self.array_of(node, volume) else { return Step::no_array(op, volume) };
        let Some(a) = self.arrays.get_mut(&id) else { return Step::done(Changed::No) };
        if a.pending() {
            return Step::Wait;
        }
        if a.read_only {
            return Step::fail(KernelError::refuse(op.name(), a.name.clone(), "the array is read-only"));
        }
        let idle_work = a.sync.is_none() && !a.kick && a.resync_from.is_some();
        let asleep = a.bitmap.as_mut().is_some_and(|b| std::mem::replace(&mut b.asleep, false));
        if !a.sync_frozen && !a.safe_mode && !idle_work && !asleep {
            return Step::done(Changed::No);
        }
        a.sync_frozen = false;
        a.safe_mode = false;
        a.kick = true;
        self.hint_array(id);
        Step::done(Changed::Yes)
    }

    pub(in super::super) fn op_sync_speed(&mut self, node: usize, op: &Op, volume: VolumeId, speed: SyncSpeed) -> Step {
        let Some(a) = self.array_of(node, volume).and_then(|id| self.arrays.get_mut(&id)) else {
            return Step::no_array(op, volume);
        };
        Step::changed(std::mem::replace(&mut a.speed, speed) != speed)
    }

    /// `max_sync_store`: not lower while a sync runs.
    pub(in super::super) fn op_hold_sync(&mut self, node: usize, op: &Op, volume: VolumeId, held: bool) -> Step {
        let Some(id) = self.array_of(node, volume) else { return Step::no_array(op, volume) };
        let Some(a) = self.arrays.get_mut(&id) else { return Step::done(Changed::No) };
        if held && !a.held && a.sync.is_some() {
            return Step::fail(errno(op, a.name.clone(), errno::EBUSY));
        }
        let changed = std::mem::replace(&mut a.held, held) != held;
        if let Some(sync) = a.sync.as_mut().filter(|sync| sync.waits && !held) {
            sync.waits = false;
            let run = sync.run;
            self.after(Time::from_millis(10), node, What::SyncStep { array: id, run });
        }
        Step::changed(changed)
    }

    /// One writer also for what a sync copies.
    fn law_sync_target(&mut self, id: u64, dev: Dev) {
        let Some(node) = self.arrays.get(&id).map(|a| a.node) else { return };
        if let Some((node, drive, number)) = self.place_of(node, dev) {
            let load = Load::Flush;
            self.law_one_writer(&Landing { node, drive, number, load, writer: id, bio: 0, assoc: None });
        }
    }
}
