//! Superblock and bitmap writes of an array: composed, sent to every reachable member, waited for.
//!
//! One superblock round and one bitmap round can be under way at a time. A member whose write fails is failed, which
//! asks for another round. While a superblock round is pending no new write passes (`MD_SB_CHANGE_PENDING`), and
//! operations that need MD's mutex wait. Called by `pump` and by the end of each command.

use super::super::bio::{Answer, Load, Owner};
use super::super::state::State;
use super::{Array, Dirty, Member};
use crate::facts::{Bitmap, DATA_OFFSET, Superblock};
use std::collections::{BTreeMap, BTreeSet};

/// A round of metadata writes.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct MetaWrite {
    /// Commands not yet ended, with the component each goes to.
    waiting: BTreeMap<u64, String>,
    failed: BTreeSet<String>,
    /// Bits that this round makes durable.
    bits: BTreeSet<u64>,
}

const ROLE_SPARE: u16 = 0xffff;
const ROLE_FAULTY: u16 = 0xfffe;

/// Role table entry of a member (`super_1_sync`).
fn role_of(member: &Member) -> u16 {
    match member.slot {
        _ if member.faulty => ROLE_FAULTY,
        Some(slot) => slot as u16,
        None => ROLE_SPARE,
    }
}

impl Array {
    /// The superblock of one member. A member that was removed leaves a hole that reads as spare.
    pub(in super::super) fn superblock_of(&self, member: &Member) -> Superblock {
        let size = self.members.values().map(|m| m.number + 1).max().unwrap_or(0).max(self.raid_disks);
        let mut roles = vec![ROLE_SPARE; size as usize];
        for other in self.members.values() {
            roles[other.number as usize] = role_of(other);
        }
        Superblock {
            set_uuid: self.set_uuid,
            name: self.set_name.clone(),
            level: 1,
            raid_disks: self.raid_disks,
            events: self.events,
            dev_number: member.number,
            roles,
            device_uuid: member.device_uuid,
            data_offset: DATA_OFFSET,
            component_bytes: self.component_bytes,
            recovery_offset: (member.slot.is_some() && !member.in_sync).then_some(0),
            write_mostly: member.write_mostly,
            resync_pending: !self.clean || self.resync_from.is_some(),
            bitmap: None,
        }
    }

    /// The bitmap as it is to be on disk.
    pub(in super::super) fn bitmap_image(&self) -> Option<Bitmap> {
        let bits = self.bitmap.as_ref()?;
        Some(Bitmap {
            uuid: self.set_uuid,
            events: self.events,
            events_cleared: bits.events_cleared,
            chunk_bytes: crate::facts::BITMAP_CHUNK,
            dirty: bits.chunks.keys().copied().collect(),
        })
    }

    /// `md_update_sb`: the event counter goes up, or back when a clean state returns untouched.
    fn count_event(&mut self, why: Dirty) {
        // On a degraded array skipping spares is "both dangerous and fairly pointless": such a step is never undone.
        let plain = why == Dirty::Clean && self.degraded() == 0;
        if plain && self.clean && self.resync_from.is_none() && self.can_decrease && self.events != 1 {
            self.events -= 1;
            self.can_decrease = false;
        } else {
            self.events += 1;
            self.can_decrease = plain;
        }
        if let Some(bits) = &mut self.bitmap {
            bits.events_cleared = bits.events_cleared.min(self.events);
        }
    }
}

impl State {
    /// Moves the metadata of an array on; answers whether something moved.
    pub(super) fn pump_meta(&mut self, id: u64) -> bool {
        let finished = self.finish_super(id) | self.finish_bits(id);
        let started = self.start_super(id) | self.start_bits(id);
        finished || started
    }

    fn start_super(&mut self, id: u64) -> bool {
        let Some(a) = self.arrays.get_mut(&id) else { return false };
        // A read-only array writes no superblocks; what has changed is written when it goes active.
        if a.sb_write.is_some() || a.read_only {
            return false;
        }
        let Some(why) = a.sb_dirty.take() else { return false };
        a.count_event(why);
        a.sb_write = Some(MetaWrite::default());
        let header = a.bitmap.as_ref().map(|b| (a.events, b.events_cleared));
        let live = a.members.iter().filter(|(_, m)| !m.faulty);
        let loads: Vec<_> = live
            .map(|(name, m)| (name.clone(), m.dev, Load::Super { superblock: a.superblock_of(m), header }))
            .collect();
        let node = a.node;
        let mut waiting = BTreeMap::new();
        for (name, dev, load) in loads {
            waiting.insert(self.submit(node, dev, load, Owner::Super(id), id), name);
        }
        if let Some(write) = self.arrays.get_mut(&id).and_then(|a| a.sb_write.as_mut()) {
            write.waiting = waiting;
        }
        true
    }

    /// Sends the bitmap when some bit, or its header, is newer in memory than on disk.
    fn start_bits(&mut self, id: u64) -> bool {
        let Some(a) = self.arrays.get_mut(&id) else { return false };
        if a.bits_write.is_some() || !a.bitmap.as_ref().is_some_and(|b| b.unwritten) {
            return false;
        }
        let image = a.bitmap_image();
        let bits = image.iter().flat_map(|i| i.dirty.iter().copied()).collect();
        if let Some(b) = &mut a.bitmap {
            b.unwritten = false;
        }
        a.bits_write = Some(MetaWrite { bits, ..MetaWrite::default() });
        let node = a.node;
        let devs: Vec<_> = a.members.iter().filter(|(_, m)| m.active()).map(|(n, m)| (n.clone(), m.dev)).collect();
        let mut waiting = BTreeMap::new();
        for (name, dev) in devs {
            let load = Load::Bits { bitmap: image.clone() };
            waiting.insert(self.submit(node, dev, load, Owner::Bits(id), id), name);
        }
        if let Some(write) = self.arrays.get_mut(&id).and_then(|a| a.bits_write.as_mut()) {
            write.waiting = waiting;
        }
        true
    }

    fn finish_super(&mut self, id: u64) -> bool {
        let Some(a) = self.arrays.get_mut(&id) else { return false };
        let Some(write) = a.sb_write.take_if(|w| w.waiting.is_empty()) else { return false };
        for name in write.failed {
            self.fail_member(id, &name, "superblock write failed");
        }
        self.hint_array(id);
        true
    }

    fn finish_bits(&mut self, id: u64) -> bool {
        let Some(a) = self.arrays.get_mut(&id) else { return false };
        let Some(write) = a.bits_write.take_if(|w| w.waiting.is_empty()) else { return false };
        if let Some(b) = &mut a.bitmap {
            for chunk in write.bits {
                if let Some(bit) = b.chunks.get_mut(&chunk) {
                    bit.on_disk = true;
                }
            }
        }
        for name in write.failed {
            self.fail_member(id, &name, "bitmap write failed");
        }
        true
    }

    /// A metadata command ended.
    pub(in super::super) fn meta_ended(&mut self, id: u64, bio: u64, answer: Answer) {
        let Some(a) = self.arrays.get_mut(&id) else { return };
        for write in [&mut a.sb_write, &mut a.bits_write].into_iter().flatten() {
            if let Some(name) = write.waiting.remove(&bio)
                && answer == Answer::Failed
            {
                write.failed.insert(name);
            }
        }
    }
}
