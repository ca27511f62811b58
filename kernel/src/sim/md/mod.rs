//! Simulated MD RAID1: what an array is and what it shows.
//!
//! ```text
//!   assemble ──▶ read-only, sync frozen ──▶ active ──▶ stopped
//!   io        write: gate ▶ bitmap bit on every member ▶ data on every member ▶ answer
//!   meta      superblocks and bitmaps on their way to the members
//!   bitmap    which chunks may differ, what the daemon forgets
//!   sync      resync and recovery, chunk by chunk
//!   members   add, re-add, drop, flags
//!   grow      more of every member
//! ```
//!
//! The semantics are those read in raid1.c, md.c and md-bitmap.c of 6.12, the traps included. Called by the job
//! dispatch, the event dispatch and the workload. It never consults our custom resources: MD knows only its members.

pub(super) mod assemble;
pub(super) mod bitmap;
pub(super) mod grow;
pub(super) mod io;
pub(super) mod members;
pub(super) mod meta;
pub(super) mod sync;

use super::bio::Dev;
use super::fs::Instance;
use super::state::{State, Time};
use crate::facts::{ArrayFact, BITMAP_CHUNK, MemberFact, SyncSpeed};
use crate::id::{ExportKey, VolumeId};
use bitmap::Bits;
use meta::MetaWrite;
use std::collections::{BTreeMap, BTreeSet};
use sync::Sync;
use uuid::Uuid;

/// One component device of an array.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) dev: Dev,
    /// `dev_number`: index into the role table.
    pub(super) number: u32,
    pub(super) device_uuid: Uuid,
    pub(super) slot: Option<u32>,
    pub(super) in_sync: bool,
    pub(super) faulty: bool,
    /// Written `blocked` by us.
    pub(super) blocked: bool,
    pub(super) write_mostly: bool,
    /// Came back by re-add with this slot: a recovery by bitmap suffices.
    pub(super) saved_slot: Option<u32>,
    pub(super) failed_at: Option<Time>,
}

impl Member {
    /// MD writes to it.
    pub(super) fn active(&self) -> bool {
        self.slot.is_some() && !self.faulty
    }

    /// MD trusts it wholly.
    pub(super) fn good(&self) -> bool {
        self.active() && self.in_sync
    }
}

/// A device that is added: without a slot, not in sync.
pub(super) fn new_member(dev: Dev, number: u32, device_uuid: Uuid) -> Member {
    Member {
        dev,
        number,
        device_uuid,
        slot: None,
        in_sync: false,
        faulty: false,
        blocked: false,
        write_mostly: false,
        saved_slot: None,
        failed_at: None,
    }
}

/// Why the superblocks have to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Dirty {
    /// Only clean became dirty or dirty clean.
    Clean,
    /// Members or sync state changed.
    Devices,
}

/// A running array. Ids rise, so a higher id is a later assembly.
pub(super) struct Array {
    pub(super) node: usize,
    pub(super) name: String,
    /// `None` for an assembly that is not ours (udev's).
    pub(super) volume: Option<VolumeId>,
    pub(super) set_uuid: Uuid,
    pub(super) set_name: String,
    pub(super) raid_disks: u32,
    pub(super) component_bytes: u64,
    pub(super) events: u64,
    /// `can_decrease_events`: the last bump was a plain clean-to-dirty.
    pub(super) can_decrease: bool,
    /// No write since the superblocks said clean.
    pub(super) clean: bool,
    /// First chunk that a resync has still to look at; `None` when no resync is pending.
    pub(super) resync_from: Option<u64>,
    pub(super) read_only: bool,
    pub(super) sync_frozen: bool,
    pub(super) broken: bool,
    pub(super) safe_mode: bool,
    pub(super) speed: SyncSpeed,
    /// Syncs wait before their end.
    pub(super) held: bool,
    pub(super) members: BTreeMap<String, Member>,
    pub(super) bitmap: Option<Bits>,
    pub(super) sb_dirty: Option<Dirty>,
    pub(super) sb_write: Option<MetaWrite>,
    pub(super) bits_write: Option<MetaWrite>,
    pub(super) sync: Option<Sync>,
    /// `sync_action` was written or something changed: look for sync work.
    pub(super) kick: bool,
    /// A recovery waits for the requests under way, and new ones wait for it to begin.
    pub(super) quiet: bool,
    /// A member without bitmap history is being recovered: copy everything.
    pub(super) full_sync: bool,
    pub(super) last_write: Time,
    pub(super) started: Time,
    pub(super) fs: Option<Instance>,
    /// Kernel objects on top: `dm-3`, `loop0`.
    pub(super) holders: BTreeSet<String>,
}

impl Array {
    pub(super) fn good_members(&self) -> usize {
        self.members.values().filter(|m| m.good()).count()
    }

    pub(super) fn degraded(&self) -> u32 {
        self.raid_disks.saturating_sub(self.good_members() as u32)
    }

    /// Some slot has no device that is written to: MD neither sets nor clears bits for good then.
    pub(super) fn slot_missing(&self) -> bool {
        (self.members.values().filter(|m| m.active()).count() as u32) < self.raid_disks
    }

    /// `MD_SB_CHANGE_PENDING`.
    pub(super) fn pending(&self) -> bool {
        self.sb_dirty.is_some() || self.sb_write.is_some()
    }

    pub(super) fn chunks(&self) -> u64 {
        self.component_bytes.div_ceil(BITMAP_CHUNK)
    }

    /// Of which volume it is, for a line of the trace.
    pub(super) fn of_volume(&self) -> String {
        self.volume.map(|volume| format!(" of {}", volume.short())).unwrap_or_default()
    }

    pub(super) fn dirty(&mut self, why: Dirty) {
        self.sb_dirty = self.sb_dirty.max(Some(why));
    }

    /// First slot without a device.
    pub(super) fn vacant_slot(&self) -> Option<u32> {
        let taken = |s: &u32| self.members.values().any(|m| m.active() && m.slot == Some(*s));
        (0..self.raid_disks).find(|s| !taken(s))
    }

    fn state_name(&self) -> &'static str {
        if self.broken {
            "broken"
        } else if self.read_only {
            "readonly"
        } else if self.pending() {
            "write-pending"
        } else if self.clean {
            "clean"
        } else {
            "active"
        }
    }

    fn sync_name(&self) -> &'static str {
        match &self.sync {
            Some(sync) => sync.kind.name(),
            None if self.sync_frozen => "frozen",
            None => "idle",
        }
    }
}

fn flags_of(member: &Member) -> BTreeSet<String> {
    let spare = !member.in_sync && !member.faulty;
    let all = [
        ("in_sync", member.in_sync && !member.faulty),
        ("faulty", member.faulty),
        ("blocked", member.blocked),
        ("write_mostly", member.write_mostly),
        ("spare", spare),
    ];
    all.into_iter().filter(|(_, on)| *on).map(|(name, _)| name.to_string()).collect()
}

impl State {
    /// Our array of a volume on a node.
    pub(super) fn array_of(&self, node: usize, volume: VolumeId) -> Option<u64> {
        self.arrays.iter().find(|(_, a)| a.node == node && a.volume == Some(volume)).map(|(id, _)| *id)
    }

    /// Name of an array of the node that has a head of this export as a member, failed ones included.
    pub(super) fn array_with_export(&self, node: usize, key: ExportKey) -> Option<String> {
        let head = self.head_of(node, key)?;
        let holds = |a: &&Array| a.members.values().any(|m| m.dev == Dev::Head { head });
        self.arrays.values().filter(|a| a.node == node).find(holds).map(|a| a.name.clone())
    }

    /// A device of a node by its path, with its component name.
    pub(super) fn device(&self, node: usize, path: &str) -> Option<(String, Dev)> {
        let name = path.strip_prefix("/dev/")?;
        let n = &self.nodes[node];
        if let Some((id, head)) = n.heads.iter().find(|(_, h)| h.name == name) {
            return Some((head.name.clone(), Dev::Head { head: *id }));
        }
        let mut known = n.known.keys().filter(|(d, _)| self.drives[*d].home == Some(node));
        let (drive, number) = known.find(|(d, p)| self.partition_path(node, *d, *p) == path)?;
        Some((name.to_string(), Dev::Part { drive: *drive, number: *number }))
    }

    pub(super) fn array_fact(&self, id: u64) -> Option<ArrayFact> {
        let a = self.arrays.get(&id)?;
        let sector = |chunk: u64| chunk * (BITMAP_CHUNK / 512);
        let mounts = self.nodes[a.node].mounts.iter().filter(|(_, layers)| layers.iter().any(|m| m.array == id));
        let openers = self.nodes[a.node].openers.iter().filter(|(_, o)| o.array == id);
        Some(ArrayFact {
            name: a.name.clone(),
            path: format!("/dev/{}", a.name),
            state: a.state_name().into(),
            raid_disks: a.raid_disks,
            degraded: a.degraded(),
            size_bytes: a.component_bytes,
            sync_action: a.sync_name().into(),
            // The last of a held one is less than a chunk.
            sync_completed: a.sync.as_ref().map(|s| {
                let back = if s.waits { crate::facts::HELD_BACK } else { 0 };
                (sector(s.next).saturating_sub(back), sector(a.chunks()))
            }),
            resync_done: a.resync_from.is_none(),
            has_bitmap: a.bitmap.is_some(),
            keeps_bitmap: false,
            safe_mode_off: !a.safe_mode,
            sync_speed: Some(a.speed),
            sync_held: a.held,
            members: a
                .members
                .iter()
                .map(|(name, m)| (name.clone(), MemberFact { flags: flags_of(m), slot: m.slot }))
                .collect(),
            mounts: mounts.map(|(target, _)| target.clone()).collect(),
            holders: a.holders.iter().cloned().chain(openers.map(|(id, _)| format!("process {id}"))).collect(),
        })
    }
}

impl State {
    /// Moves an array on; answers whether something moved.
    pub(super) fn pump_array(&mut self, id: u64) -> bool {
        self.pump_meta(id) | self.pump_sync(id)
    }
}
