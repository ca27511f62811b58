//! Members come and go: failing, dropping, adding, re-adding, flags, number of slots.
//!
//! Called by the job dispatch and by every failing command. Operations that need MD's mutex wait while a superblock
//! round is stuck; deleting a controller does not need it, which is why DropMember works when nothing else does.

use super::super::bio::{Dev, Load};
use super::super::host::Reach;
use super::super::job::{Step, errno};
use super::super::state::State;
use super::{Dirty, Member, new_member};
use crate::error::KernelError;
use crate::facts::{EpochRecord, Superblock};
use crate::id::VolumeId;
use crate::ops::{Changed, Op};

impl State {
    /// `md_error`: fails a member, or breaks the array when it is the last good one.
    pub(in super::super) fn fail_member(&mut self, id: u64, name: &str, why: &str) {
        let now = self.now;
        let Some(a) = self.arrays.get_mut(&id) else { return };
        let last = a.good_members() == 1;
        let Some(member) = a.members.get_mut(name).filter(|m| !m.faulty) else { return };
        let node = a.node;
        let line = if member.good() && last {
            if std::mem::replace(&mut a.broken, true) {
                return;
            }
            a.sync = None;
            format!("{} broken: last member {name}: {why}", a.name)
        } else {
            member.faulty = true;
            member.in_sync = false;
            member.blocked = false;
            member.slot = None;
            member.failed_at = Some(now);
            a.sync = None;
            a.kick = true;
            a.dirty(Dirty::Devices);
            format!("{} fails {name}{}: {why}", a.name, a.of_volume())
        };
        self.say(node, line);
        self.hint_array(id);
    }

    /// The array of an operation, and whether MD's mutex is free.
    fn array_for(&self, node: usize, op: &Op, volume: VolumeId) -> Result<u64, Step> {
        let id = self.array_of(node, volume).ok_or_else(|| Step::no_array(op, volume))?;
        // A superblock round in flight holds the mutex (md_super_wait).
        if self.arrays.get(&id).is_some_and(|a| a.sb_write.is_some()) { Err(Step::Wait) } else { Ok(id) }
    }

    pub(in super::super) fn op_drop_member(&mut self, node: usize, op: &Op) -> Step {
        let Op::DropMember { key, volume, evidence } = op else { return Step::not_this(op) };
        let Some(id) = self.array_of(node, *volume) else { return Step::no_array(op, *volume) };
        let head = self.head_of(node, *key);
        let leaving = head.and_then(|head| self.member_on(id, Dev::Head { head }));
        if let Some(refusal) = self.refuse_drop(node, op, id, leaving.as_deref(), evidence.survivor()) {
            return Step::fail(refusal);
        }
        let changed = self.delete_controllers(node, *key);
        let waiting = head.is_some_and(|head| self.has_commands(node, Dev::Head { head }));
        let read_only = self.arrays.get(&id).is_some_and(|a| a.read_only);
        if let Some(leaving) = leaving.filter(|_| !waiting && !read_only) {
            // Waiting commands fail now and MD drops the member by itself; an idle array is made to notice.
            self.fail_member(id, &leaving, "its controller was deleted");
        }
        Step::changed(changed)
    }

    /// The evidence was true when it was taken; it must be true in the same step as the delete (F22).
    fn refuse_drop(
        &mut self,
        node: usize,
        op: &Op,
        id: u64,
        leaving: Option<&str>,
        survivor: &str,
    ) -> Option<KernelError> {
        let a = self.arrays.get(&id)?;
        if a.broken {
            return Some(KernelError::refuse(op.name(), a.name.clone(), "the array is broken"));
        }
        let good = |name: &str| a.members.get(name).is_some_and(Member::good);
        let answers = a.members.get(survivor).is_some_and(|m| self.answers(node, m.dev));
        if good(survivor) && answers && leaving != Some(survivor) {
            return None;
        }
        if leaving.is_some_and(good) && !good(survivor) {
            self.law_last_copy(node, op, id, survivor);
        }
        Some(KernelError::refuse(op.name(), survivor, "the survivor is not in sync, or does not answer"))
    }

    /// Whether the device is there and some path to it is live.
    fn answers(&self, node: usize, dev: Dev) -> bool {
        match dev {
            Dev::Head { head } => self.best_path(node, head).is_some(),
            Dev::Part { drive, .. } => self.drives[drive].home == Some(node),
        }
    }

    /// Name of the member on a device that is not failed yet.
    fn member_on(&self, id: u64, dev: Dev) -> Option<String> {
        let mut members = self.arrays.get(&id)?.members.iter();
        members.find(|(_, m)| m.dev == dev && !m.faulty).map(|(name, _)| name.clone())
    }

    fn has_commands(&self, node: usize, dev: Dev) -> bool {
        self.bios.values().any(|b| b.node == node && b.dev == dev)
    }

    pub(in super::super) fn op_abandon(&mut self, node: usize, op: &Op) -> Step {
        let Op::Abandon { key, deposed_by } = op else { return Step::not_this(op) };
        let refuse = |detail: &str| Step::fail(KernelError::refuse(op.name(), key.to_string(), detail));
        if *deposed_by <= key.epoch {
            return refuse("that epoch does not depose this one");
        }
        if let Some(id) = self.array_of(node, key.replica.volume) {
            let fs = self.arrays.get(&id).and_then(|a| a.fs.as_ref());
            if fs.is_some_and(|fs| fs.alive) {
                return refuse("the volume is mounted and alive");
            }
            // On a file system that was shut down nobody hears of success; on a raw device any living process may.
            if fs.is_none() && self.processes(id) > 0 {
                self.op_kill_openers(node, key.replica.volume);
            }
        }
        Step::changed(self.delete_controllers(node, *key))
    }

    pub(in super::super) fn op_write_mostly(
        &mut self,
        node: usize,
        op: &Op,
        volume: VolumeId,
        name: &str,
        on: bool,
    ) -> Step {
        let pending = self.array_of(node, volume).and_then(|id| self.arrays.get(&id)?.resync_from);
        if on && pending.is_some() {
            // Until the resync is done reads go to the lowest slot, and would change their answer with the flag (F17).
            return Step::fail(KernelError::wait(op.name(), name, "a resync is pending"));
        }
        let step = self.op_set_flag(node, op, volume, name, |m| &mut m.write_mostly, on);
        // The flag lies in the member's own superblock (`devflags`), which is written soon (`state_store`).
        if let (Step::Done(Ok(Changed::Yes)), Some(id)) = (&step, self.array_of(node, volume))
            && let Some(a) = self.arrays.get_mut(&id)
        {
            a.dirty(Dirty::Devices);
        }
        step
    }

    /// `faulty` written to a local member: `md_error`, which breaks the array when it is the last.
    pub(in super::super) fn op_fail_member(&mut self, node: usize, op: &Op, volume: VolumeId, name: &str) -> Step {
        let Op::FailMember { evidence, .. } = op else { return Step::not_this(op) };
        let Some(id) = self.array_of(node, volume) else { return Step::no_array(op, volume) };
        let Some(a) = self.arrays.get(&id) else { return Step::done(Changed::No) };
        if a.members.get(name).is_none_or(|m| m.faulty) {
            return Step::done(Changed::No);
        }
        if a.pending() || a.read_only {
            return Step::fail(KernelError::wait(op.name(), a.name.clone(), "a superblock is being written"));
        }
        if let Some(refusal) = self.refuse_drop(node, op, id, Some(name), evidence.survivor()) {
            return Step::fail(refusal);
        }
        self.fail_member(id, name, "it was told to leave");
        Step::done(Changed::Yes)
    }

    pub(in super::super) fn op_remove_faulty(&mut self, node: usize, op: &Op, volume: VolumeId, name: &str) -> Step {
        let id = match self.array_for(node, op, volume) {
            Ok(id) => id,
            Err(step) => return step,
        };
        let Some(a) = self.arrays.get_mut(&id) else { return Step::done(Changed::No) };
        match a.members.get(name) {
            None => Step::done(Changed::No),
            Some(member) if !member.faulty => {
                Step::fail(KernelError::refuse(op.name(), name, "the member is not faulty"))
            }
            Some(_) => {
                a.members.remove(name);
                self.hint_array(id);
                Step::done(Changed::Yes)
            }
        }
    }

    pub(in super::super) fn op_set_flag(
        &mut self,
        node: usize,
        op: &Op,
        volume: VolumeId,
        name: &str,
        flag: impl FnOnce(&mut Member) -> &mut bool,
        on: bool,
    ) -> Step {
        let id = match self.array_for(node, op, volume) {
            Ok(id) => id,
            Err(step) => return step,
        };
        let member = self.arrays.get_mut(&id).and_then(|a| a.members.get_mut(name));
        let Some(member) = member else {
            return Step::fail(KernelError::refuse(op.name(), name, "the array has no such member"));
        };
        let (may, lacks) = match op {
            Op::FreezeWrites { .. } => (!member.faulty, "the member is faulty"),
            _ => (member.good(), "the member is not in sync"),
        };
        let there = flag(member);
        if *there != on && on && !may {
            return Step::fail(KernelError::refuse(op.name(), name, lacks));
        }
        let changed = std::mem::replace(there, on) != on;
        if changed {
            self.hint_array(id);
        }
        Step::changed(changed)
    }

    /// What stands before adding a device: the array is active, the device is free and answers.
    fn device_to_add(&mut self, node: usize, op: &Op, id: u64, path: &str) -> Result<(String, Dev), Step> {
        let Some((name, dev)) = self.device(node, path) else {
            return Err(Step::fail(errno(op, path, errno::ENOENT)));
        };
        let Some(a) = self.arrays.get(&id) else { return Err(Step::done(Changed::No)) };
        if let Some(there) = a.members.get(&name).filter(|m| m.dev == dev) {
            let error = KernelError::refuse(op.name(), path, "the faulty member has to be removed first");
            return Err(if there.faulty { Step::fail(error) } else { Step::done(Changed::No) });
        }
        if a.read_only || a.broken {
            return Err(Step::fail(errno(op, a.name.clone(), errno::EROFS)));
        }
        if a.resync_from.is_some() {
            // Below resync_offset reads go to the lowest slot, be it recovered or not (F17).
            return Err(Step::fail(KernelError::wait(op.name(), a.name.clone(), "a resync is pending")));
        }
        if let Some(holder) = self.held_on(node, dev) {
            return Err(Step::fail(KernelError::wait(op.name(), path, format!("{holder} holds it"))));
        }
        match self.reach(node, dev) {
            // The read of the superblock goes through the ring and times out.
            Reach::Stuck => Err(Step::fail(errno(op, path, errno::ETIMEDOUT))),
            Reach::Gone => Err(Step::fail(errno(op, path, errno::EIO))),
            Reach::There { .. } if self.device_bytes(node, dev) < a.component_bytes + crate::facts::DATA_OFFSET => {
                Err(Step::fail(errno(op, path, errno::ENOSPC)))
            }
            Reach::There { drive, extent } => {
                let meta = self.drives[drive].meta(extent.start);
                if meta.record.is_none_or(|r| Some(r.volume) != a.volume) {
                    let detail = "the device carries no record of this volume";
                    return Err(Step::fail(KernelError::refuse(op.name(), path, detail)));
                }
                if meta.superblock.is_some_and(|sb| sb.set_uuid != a.set_uuid) {
                    let detail = "the device is a member of another array";
                    return Err(Step::fail(KernelError::refuse(op.name(), path, detail)));
                }
                if let Some(key) = self.exported_here(node, dev) {
                    return Err(Step::fail(KernelError::wait(op.name(), path, format!("exported as {key}"))));
                }
                Ok((name, dev))
            }
        }
    }

    /// Name of the array of this node that holds a device.
    pub(in super::super) fn held_on(&self, node: usize, dev: Dev) -> Option<String> {
        let arrays = self.arrays.values().filter(|a| a.node == node);
        let mut holding = arrays.filter(|a| a.members.values().any(|m| m.dev == dev));
        holding.next().map(|a| a.name.clone())
    }

    pub(in super::super) fn op_add(&mut self, node: usize, op: &Op, volume: VolumeId, path: &str) -> Step {
        let id = match self.array_for(node, op, volume) {
            Ok(id) => id,
            Err(step) => return step,
        };
        let (name, dev) = match self.device_to_add(node, op, id, path) {
            Ok(found) => found,
            Err(step) => return step,
        };
        let device_uuid = self.rng.uuid();
        let own = self.record_at(node, dev).map(|r| r.replica.0);
        let Some(a) = self.arrays.get_mut(&id) else { return Step::done(Changed::No) };
        if a.degraded() == 0 {
            return Step::fail(KernelError::refuse(op.name(), a.name.clone(), "the array has no free slot"));
        }
        // The replica's own number where it is free, so that one number means one replica in every superblock.
        let free = |n: &u32| a.members.values().all(|m| m.number != *n);
        let number = own.filter(free).or_else(|| (a.raid_disks..).find(free)).unwrap_or_default();
        let member = new_member(dev, number, device_uuid);
        self.write_first_superblock(id, &member);
        self.join(id, name, member)
    }

    pub(in super::super) fn op_re_add(&mut self, node: usize, op: &Op, volume: VolumeId, path: &str) -> Step {
        let id = match self.array_for(node, op, volume) {
            Ok(id) => id,
            Err(step) => return step,
        };
        let (name, dev) = match self.device_to_add(node, op, id, path) {
            Ok(found) => found,
            Err(step) => return step,
        };
        let superblock = self.superblock_at(node, dev);
        let Some(a) = self.arrays.get(&id) else { return Step::done(Changed::No) };
        // "This was a hot-add request, but events doesn't match, so reject it." (md_add_new_disk)
        let fits = |sb: &Superblock| {
            let fresh = match &a.bitmap {
                Some(bits) => sb.events >= bits.events_cleared,
                None => sb.events >= a.events,
            };
            let number_free = a.members.values().all(|m| m.number != sb.dev_number);
            (sb.set_uuid == a.set_uuid && fresh && number_free).then(|| sb.active_slot()).flatten()
        };
        // "make sure rdev->sectors exceeds mddev->dev_sectors" (bind_rdev_to_array): what the superblock says it uses.
        if superblock.as_ref().is_some_and(|sb| sb.component_bytes < a.component_bytes) {
            return Step::fail(errno(op, path, errno::ENOSPC));
        }
        let found = superblock.and_then(|sb| fits(&sb).map(|slot| (sb, slot)));
        let Some((sb, slot)) = found else { return Step::fail(errno(op, path, errno::EINVAL)) };
        self.law_re_add(node, id, dev);
        let mut member = new_member(dev, sb.dev_number, sb.device_uuid);
        member.saved_slot = Some(u32::from(slot));
        self.join(id, name, member)
    }

    fn join(&mut self, id: u64, name: String, member: Member) -> Step {
        if let Some(a) = self.arrays.get_mut(&id) {
            a.members.insert(name, member);
            a.kick = true;
            a.dirty(Dirty::Devices);
        }
        self.hint_array(id);
        Step::done(Changed::Yes)
    }

    /// The superblock and empty bitmap that are written on a device before it is added anew.
    fn write_first_superblock(&mut self, id: u64, member: &Member) {
        let Some(a) = self.arrays.get(&id) else { return };
        let mut superblock = a.superblock_of(member);
        superblock.roles.resize(superblock.roles.len().max(member.number as usize + 1), 0xffff);
        let bitmap = a.bitmap_image();
        if let Reach::There { drive, extent } = self.reach(a.node, member.dev) {
            self.write_through(drive, extent, &Load::Bits { bitmap });
            self.write_through(drive, extent, &Load::Super { superblock, header: None });
        }
    }

    fn record_at(&self, node: usize, dev: Dev) -> Option<EpochRecord> {
        let Reach::There { drive, extent } = self.reach(node, dev) else { return None };
        self.drives[drive].meta(extent.start).record
    }

    /// The superblock that a device shows now, its bitmap included.
    pub(in super::super) fn superblock_at(&self, node: usize, dev: Dev) -> Option<Superblock> {
        let Reach::There { drive, extent } = self.reach(node, dev) else { return None };
        let meta = self.drives[drive].meta(extent.start);
        meta.superblock.map(|sb| Superblock { bitmap: meta.bitmap, ..sb })
    }

    pub(in super::super) fn op_set_raid_disks(&mut self, node: usize, op: &Op, volume: VolumeId, count: u32) -> Step {
        let id = match self.array_for(node, op, volume) {
            Ok(id) => id,
            Err(step) => return step,
        };
        let Some(a) = self.arrays.get_mut(&id) else { return Step::done(Changed::No) };
        if a.raid_disks == count {
            return Step::done(Changed::No);
        }
        let active = a.members.values().filter(|m| m.active()).count() as u32;
        if count == 0 || active > count || a.sync.is_some() || a.read_only {
            return Step::fail(errno(op, a.name.clone(), errno::EBUSY));
        }
        // `raid1_reshape` packs the slots.
        let mut seated: Vec<&mut Member> = a.members.values_mut().filter(|m| m.active()).collect();
        seated.sort_by_key(|m| m.slot);
        for (slot, member) in seated.into_iter().enumerate() {
            member.slot = Some(slot as u32);
        }
        a.raid_disks = count;
        a.kick = true;
        a.dirty(Dirty::Devices);
        self.hint_array(id);
        Step::done(Changed::Yes)
    }
}
