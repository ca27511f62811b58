//! Reads, writes and flushes on an array, one small state machine each.
//!
//! ```text
//!   write: gate ──▶ bits ──▶ legs ──▶ (held until the superblock says who failed) ──▶ over
//!   read:  gate ──▶ leg ──▶ over, or another member
//!   flush: gate ──▶ legs ──▶ over
//! ```
//!
//! A write is answered when every member that was active at its start has it or has been failed. Called by the
//! workload and by the file system operations; moved on by `pump`. It never times out: a stuck member means waiting.

use super::super::bio::{Answer, Load, Owner};
use super::super::event::What;
use super::super::state::State;
use super::{Array, Dirty};
use crate::facts::BITMAP_CHUNK;
use std::collections::{BTreeMap, BTreeSet};

/// What is asked of the array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Ask {
    Write { block: u64, tag: u64 },
    Read { block: u64 },
    Flush,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Gate,
    Bits,
    Legs,
    /// A leg failed first here: answered only when the failure is in the superblocks.
    Held,
    Over(Result<u64, ()>),
}

/// One request.
#[derive(Debug, Clone)]
pub(in super::super) struct Io {
    pub(in super::super) array: u64,
    pub(in super::super) ask: Ask,
    stage: Stage,
    /// Commands under way, with their component.
    legs: BTreeMap<u64, String>,
    good_legs: u32,
    /// A member was missing or failed under this write.
    missed: bool,
    hold: bool,
    read: u64,
    /// Members that a read has tried in vain.
    tried: BTreeSet<String>,
}

impl Io {
    /// Whether it went past the gate, into the bitmap or to the members.
    pub(in super::super) fn passed_gate(&self) -> bool {
        !matches!(self.stage, Stage::Gate | Stage::Over(_))
    }
}

impl State {
    /// Starts a request on an array. Its result is fetched with `io_result`, or goes to the workload's caller.
    pub(in super::super) fn ask(&mut self, array: u64, ask: Ask) -> u64 {
        let id = self.id();
        let io = Io {
            array,
            ask,
            stage: Stage::Gate,
            legs: BTreeMap::new(),
            good_legs: 0,
            missed: false,
            hold: false,
            read: 0,
            tried: BTreeSet::new(),
        };
        self.ios.insert(id, io);
        id
    }

    /// The result of a request that is over, and forgets it.
    pub(in super::super) fn io_result(&mut self, io: u64) -> Option<Result<u64, ()>> {
        let Stage::Over(result) = self.ios.get(&io)?.stage else { return None };
        self.ios.remove(&io);
        Some(result)
    }

    /// Requests under way on an array.
    pub(in super::super) fn busy(&self, array: u64) -> bool {
        self.ios.values().any(|io| io.array == array && !matches!(io.stage, Stage::Over(_)))
    }

    pub(in super::super) fn chunk_of(&self, block: u64) -> u64 {
        block * self.config.block_bytes / BITMAP_CHUNK
    }

    /// Moves one request on; answers whether it moved.
    pub(in super::super) fn pump_io(&mut self, id: u64) -> bool {
        let Some(io) = self.ios.get(&id) else { return false };
        let Some(a) = self.arrays.get(&io.array) else {
            // The array was stopped under it: that is its result, told once.
            return if matches!(io.stage, Stage::Over(_)) { self.deliver(id) } else { self.io_over(id, Err(())) };
        };
        if !self.nodes[a.node].running() {
            return false;
        }
        match (io.stage, io.ask) {
            (Stage::Over(_), _) => self.deliver(id),
            (Stage::Gate, Ask::Write { block, .. }) => self.write_gate(id, block),
            (Stage::Gate, Ask::Read { block }) => self.read_gate(id, block),
            (Stage::Gate, Ask::Flush) => self.send_legs(id, Load::Flush),
            (Stage::Bits, Ask::Write { block, tag }) => {
                let chunk = self.chunk_of(block);
                let durable = a.bitmap.as_ref().is_none_or(|b| b.chunks.get(&chunk).is_none_or(|c| c.on_disk));
                durable && self.send_legs(id, Load::Write { block, tag })
            }
            (Stage::Legs, Ask::Write { .. } | Ask::Flush) => io.legs.is_empty() && self.legs_done(id),
            (Stage::Legs, Ask::Read { .. }) => io.legs.is_empty() && self.read_done(id),
            (Stage::Held, _) => !a.pending() && self.io_over(id, Ok(0)),
            // Only writes have a bitmap step.
            (Stage::Bits, _) => self.io_over(id, Err(())),
        }
    }

    fn set_stage(&mut self, id: u64, stage: Stage) -> bool {
        if let Some(io) = self.ios.get_mut(&id) {
            io.stage = stage;
        }
        true
    }

    fn io_over(&mut self, id: u64, result: Result<u64, ()>) -> bool {
        self.set_stage(id, Stage::Over(result))
    }

    /// `md_write_start` and `wait_blocked_rdev`.
    fn write_gate(&mut self, id: u64, block: u64) -> bool {
        let chunk = self.chunk_of(block);
        let Some(io) = self.ios.get(&id) else { return false };
        let Some(a) = self.arrays.get_mut(&io.array) else { return false };
        if a.broken || a.read_only {
            return self.io_over(id, Err(()));
        }
        let frozen = a.members.values().any(|m| m.blocked && !m.faulty);
        let barrier = a.sync.as_ref().is_some_and(|s| s.barrier == Some(chunk));
        if a.pending() || frozen || barrier || a.quiet {
            return false;
        }
        if a.clean {
            a.clean = false;
            a.dirty(Dirty::Clean);
            return true;
        }
        if let Some(bits) = &mut a.bitmap {
            bits.start_write(chunk);
        }
        self.set_stage(id, Stage::Bits)
    }

    /// Sends a command to every active member.
    fn send_legs(&mut self, id: u64, load: Load) -> bool {
        let Some(array) = self.ios.get(&id).map(|io| io.array) else { return false };
        let Some(a) = self.arrays.get(&array) else { return false };
        let (node, missed) = (a.node, a.slot_missing());
        let devs: Vec<_> = a.members.iter().filter(|(_, m)| m.active()).map(|(n, m)| (n.clone(), m.dev)).collect();
        let legs =
            devs.into_iter().map(|(name, dev)| (self.submit(node, dev, load.clone(), Owner::Io(id), array), name));
        let legs = legs.collect();
        if let Some(io) = self.ios.get_mut(&id) {
            io.legs = legs;
            io.missed = missed;
        }
        self.set_stage(id, Stage::Legs)
    }

    /// A command of a request ended.
    pub(in super::super) fn leg_ended(&mut self, id: u64, bio: u64, answer: Answer) {
        let Some(io) = self.ios.get_mut(&id) else { return };
        let Some(name) = io.legs.remove(&bio) else { return };
        let (array, is_read) = (io.array, matches!(io.ask, Ask::Read { .. }));
        match answer {
            Answer::Done(tag) => {
                // A member that is being rebuilt does not make a write good (raid1_end_write_request: R1BIO_Uptodate).
                let member = self.arrays.get(&array).and_then(|a| a.members.get(&name));
                io.good_legs += u32::from(is_read || member.is_some_and(super::Member::good));
                io.read = tag;
            }
            Answer::Failed => {
                io.tried.insert(name.clone());
                io.missed = true;
                let known = self.arrays.get(&array).and_then(|a| a.members.get(&name)).is_none_or(|m| m.faulty);
                // Only the first failure holds its write back; one that comes when the member is faulty already is
                // answered at once (raid1_end_write_request, "device is faulty").
                if let Some(io) = self.ios.get_mut(&id) {
                    io.hold |= !known && !is_read;
                }
                self.fail_member(array, &name, "command failed");
            }
        }
    }

    fn legs_done(&mut self, id: u64) -> bool {
        let Some(io) = self.ios.get(&id) else { return false };
        let (array, good, missed, hold, ask) = (io.array, io.good_legs > 0, io.missed, io.hold, io.ask);
        let now = self.now;
        let Some(a) = self.arrays.get_mut(&array) else { return self.io_over(id, Err(())) };
        if let Ask::Write { block, .. } = ask {
            a.last_write = now;
            let (events, chunk) = (a.events, block * self.config.block_bytes / BITMAP_CHUNK);
            if let Some(bits) = &mut a.bitmap {
                bits.end_write(chunk, !missed, events);
            }
            self.arm_safe_mode(array);
        }
        match (good, hold) {
            (false, _) => self.io_over(id, Err(())),
            (true, true) => self.set_stage(id, Stage::Held),
            (true, false) => self.io_over(id, Ok(0)),
        }
    }

    /// Chooses the member to read (`read_balance`): while a resync is pending beyond the block, the lowest slot,
    /// whatever its flags; else one that is in sync and not write-mostly, drawn by the seed.
    fn read_gate(&mut self, id: u64, block: u64) -> bool {
        let chunk = self.chunk_of(block);
        let Some(io) = self.ios.get(&id) else { return false };
        let (array, tried) = (io.array, io.tried.clone());
        let Some(a) = self.arrays.get(&array).filter(|a| !a.quiet) else { return false };
        let unsynced = a.resync_from.is_some_and(|from| chunk >= from);
        let open = |a: &Array, mostly: bool| {
            let fits = |m: &super::Member| m.good() && m.write_mostly == mostly;
            let names = a.members.iter().filter(|(n, m)| fits(m) && !tried.contains(*n));
            names.map(|(n, _)| n.clone()).collect::<Vec<_>>()
        };
        let name = if unsynced {
            let left = a.members.iter().filter(|(n, m)| m.active() && !tried.contains(*n));
            left.min_by_key(|(_, m)| m.slot).map(|(n, _)| n.clone())
        } else {
            let mut names = open(a, false);
            if names.is_empty() {
                names = open(a, true);
            }
            let at = self.rng.below(names.len() as u64) as usize;
            names.get(at).cloned()
        };
        let target = name.and_then(|n| self.arrays.get(&array)?.members.get(&n).map(|m| (n, m.dev)));
        let Some((name, dev)) = target else { return self.io_over(id, Err(())) };
        let Some(node) = self.arrays.get(&array).map(|a| a.node) else { return false };
        let leg = self.submit(node, dev, Load::Read { block }, Owner::Io(id), array);
        if let Some(io) = self.ios.get_mut(&id) {
            io.legs.insert(leg, name);
        }
        self.set_stage(id, Stage::Legs)
    }

    fn read_done(&mut self, id: u64) -> bool {
        let Some(io) = self.ios.get(&id) else { return false };
        if io.good_legs > 0 { self.io_over(id, Ok(io.read)) } else { self.set_stage(id, Stage::Gate) }
    }

    /// An array in safe mode goes clean after a quiet while.
    fn arm_safe_mode(&mut self, id: u64) {
        let Some(a) = self.arrays.get(&id).filter(|a| a.safe_mode) else { return };
        let (node, after) = (a.node, a.last_write);
        self.after(self.config.safe_mode_delay, node, What::SafeMode { array: id, after });
    }

    pub(in super::super) fn safe_mode(&mut self, id: u64, after: super::super::state::Time) {
        let writing = self.busy(id);
        let Some(a) = self.arrays.get_mut(&id) else { return };
        if a.safe_mode && !a.clean && !a.read_only && a.last_write == after && !writing && !a.pending() {
            a.clean = true;
            a.dirty(Dirty::Clean);
        }
    }
}
