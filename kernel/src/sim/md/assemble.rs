//! Arrays begin and end: create, assemble, activate, stop, and assemblies by somebody else.
//!
//! Assembly follows `md_run`: the freshest superblock rules, a member it calls faulty or that is more than one event
//! behind is refused, and an array that starts with one good member takes no resync to be pending. Called by the job
//! dispatch and by faults; it never starts a sync.

use super::super::bio::{Dev, Load};
use super::super::host::Reach;
use super::super::job::{Step, errno};
use super::super::laws::Law;
use super::super::state::{State, Time};
use super::{Array, Dirty, Member, new_member};
use crate::error::KernelError;
use crate::facts::{BlankData, DATA_OFFSET, Superblock, SyncSpeed};
use crate::id::VolumeId;
use crate::ops::{Changed, Op};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// First minor of our arrays: clear of the numbers that udev and mdadm take from 127 downwards.
const FIRST_MINOR: u32 = 1001;

/// A device with the superblock read from it.
struct Found {
    name: String,
    dev: Dev,
    superblock: Superblock,
}

impl State {
    fn free_md_name(&self, node: usize) -> String {
        let taken: BTreeSet<&String> = self.arrays.values().filter(|a| a.node == node).map(|a| &a.name).collect();
        let number = (FIRST_MINOR..).find(|k| !taken.contains(&format!("md{k}"))).unwrap_or(FIRST_MINOR);
        format!("md{number}")
    }

    /// Resolves device paths; every one must be free on this node.
    fn devices_for(&mut self, node: usize, op: &Op, paths: &[&str]) -> Result<Vec<(String, Dev)>, Step> {
        let mut found = Vec::new();
        for path in paths {
            let Some((name, dev)) = self.device(node, path) else {
                return Err(Step::fail(errno(op, *path, errno::ENOENT)));
            };
            if let Some(holder) = self.held_on(node, dev) {
                return Err(Step::fail(KernelError::wait(op.name(), *path, format!("{holder} holds it"))));
            }
            match self.reach(node, dev) {
                // The read of the superblock goes through the ring and times out.
                Reach::Stuck => return Err(Step::fail(errno(op, *path, errno::ETIMEDOUT))),
                Reach::Gone => return Err(Step::fail(errno(op, *path, errno::EIO))),
                Reach::There { .. } => {}
            }
            if let Some(key) = self.exported_here(node, dev) {
                return Err(Step::fail(KernelError::wait(op.name(), *path, format!("exported as {key}"))));
            }
            found.push((name, dev));
        }
        Ok(found)
    }

    pub(in super::super) fn op_create_array(&mut self, node: usize, op: &Op, half: bool) -> Step {
        let Op::CreateArray { volume, members, local, component_bytes } = op else { return Step::not_this(op) };
        self.volumes.insert(volume.md_uuid(), *volume);
        if self.array_of(node, *volume).is_some() {
            return Step::done(Changed::No);
        }
        let paths: Vec<&str> = members.iter().map(BlankData::device).collect();
        let devices = match self.devices_for(node, op, &paths) {
            Ok(devices) if !devices.is_empty() => devices,
            Ok(_) => return Step::fail(errno(op, volume.to_string(), errno::EINVAL)),
            Err(step) => return step,
        };
        for (name, dev) in &devices {
            if let Some(refusal) = self.refuse_create(node, op, *volume, name, *dev, *component_bytes) {
                return Step::fail(refusal);
            }
        }
        let mut array = self.blank_array(node, *volume, devices.len() as u32, *component_bytes);
        for (slot, (name, dev)) in devices.iter().enumerate() {
            let mut member = new_member(*dev, slot as u32, self.rng.uuid());
            member.slot = Some(slot as u32);
            member.in_sync = true;
            member.write_mostly = *local > 0 && slot >= *local;
            array.members.insert(name.clone(), member);
        }
        // A one-copy array carries no bitmap: it would cost half of its write speed.
        if devices.len() > 1 {
            array.bitmap = Some(super::bitmap::Bits { events_cleared: 1, ..Default::default() });
        }
        let count = if half { 1 } else { devices.len() };
        for (name, dev) in devices.iter().take(count) {
            if let (Some(member), Reach::There { drive, extent }) = (array.members.get(name), self.reach(node, *dev)) {
                let superblock = array.superblock_of(member);
                self.write_through(drive, extent, &Load::Bits { bitmap: array.bitmap_image() });
                self.write_through(drive, extent, &Load::Super { superblock, header: None });
            }
        }
        if half {
            return Step::fail(KernelError::retry(op.name(), volume.to_string(), "one superblock written"));
        }
        // A new array runs at once, with its sync policies set: there is nothing to merge or to compare.
        array.read_only = false;
        array.sync_frozen = false;
        array.safe_mode = false;
        self.start_array(array);
        Step::done(Changed::Yes)
    }

    /// A member of a new array must be blank now, whatever the evidence said. Superblocks of our own set on empty
    /// data are what an interrupted creation leaves.
    fn refuse_create(
        &mut self,
        node: usize,
        op: &Op,
        volume: VolumeId,
        name: &str,
        dev: Dev,
        component_bytes: u64,
    ) -> Option<KernelError> {
        let Reach::There { drive, extent } = self.reach(node, dev) else { return None };
        if extent.length < component_bytes + DATA_OFFSET {
            return Some(errno(op, name, errno::ENOSPC));
        }
        let data = self.drives[drive].data(extent, self.config.block_bytes, false);
        let superblock = self.drives[drive].meta(extent.start).superblock;
        let foreign = superblock.as_ref().is_some_and(|sb| sb.set_uuid != volume.md_uuid());
        if data.is_empty() && !foreign {
            return None;
        }
        self.violate(node, Law::CreateOverData, format!("{op}: {name} holds {} blocks", data.len()));
        Some(KernelError::refuse(op.name(), name, "the member is not blank"))
    }

    fn blank_array(&self, node: usize, volume: VolumeId, raid_disks: u32, component_bytes: u64) -> Array {
        Array {
            node,
            name: self.free_md_name(node),
            volume: Some(volume),
            set_uuid: volume.md_uuid(),
            set_name: format!("ms-{}", volume.short()),
            raid_disks,
            component_bytes,
            events: 1,
            can_decrease: false,
            clean: true,
            resync_from: None,
            read_only: true,
            sync_frozen: true,
            broken: false,
            safe_mode: true,
            speed: SyncSpeed { min_kib: 1000, max_kib: 200_000 },
            held: false,
            members: BTreeMap::new(),
            bitmap: None,
            sb_dirty: None,
            sb_write: None,
            bits_write: None,
            sync: None,
            kick: true,
            quiet: false,
            full_sync: false,
            last_write: Time::ZERO,
            fs: None,
            holders: BTreeSet::new(),
            started: self.now,
        }
    }

    fn start_array(&mut self, array: Array) {
        let (node, line) =
            (array.node, format!("{} runs with {} of {}", array.name, array.good_members(), array.raid_disks));
        let id = self.id();
        self.arrays.insert(id, array);
        self.say(node, line);
        self.start_daemon(id);
        self.hint_array(id);
    }

    pub(in super::super) fn op_assemble(&mut self, node: usize, op: &Op) -> Step {
        let Op::AssembleArray { volume, members } = op else { return Step::not_this(op) };
        self.volumes.insert(volume.md_uuid(), *volume);
        let paths: Vec<&str> = members.iter().map(String::as_str).collect();
        if let Some(id) = self.array_of(node, *volume) {
            let names: BTreeSet<&str> = paths.iter().filter_map(|p| p.strip_prefix("/dev/")).collect();
            let same = self.arrays.get(&id).is_some_and(|a| a.members.keys().map(String::as_str).eq(names));
            let other = KernelError::refuse(op.name(), volume.to_string(), "an array with other members runs");
            return if same { Step::done(Changed::No) } else { Step::fail(other) };
        }
        match self.assemble(node, op, Some(*volume), volume.md_uuid(), &paths) {
            Ok(array) => {
                self.start_array(array);
                Step::done(Changed::Yes)
            }
            Err(step) => step,
        }
    }

    fn assemble(
        &mut self,
        node: usize,
        op: &Op,
        volume: Option<VolumeId>,
        set_uuid: Uuid,
        paths: &[&str],
    ) -> Result<Array, Step> {
        let mut found = Vec::new();
        for (name, dev) in self.devices_for(node, op, paths)? {
            let superblock = self.superblock_at(node, dev).filter(|sb| sb.set_uuid == set_uuid);
            let Some(superblock) = superblock else { return Err(Step::fail(errno(op, name, errno::EINVAL))) };
            found.push(Found { name, dev, superblock });
        }
        let Some(freshest) = found.iter().max_by_key(|f| f.superblock.events).map(|f| f.superblock.clone()) else {
            return Err(Step::fail(errno(op, set_uuid.to_string(), errno::EINVAL)));
        };
        let mut array = self.blank_array(node, VolumeId(Uuid::nil()), freshest.raid_disks, freshest.component_bytes);
        array.volume = volume;
        array.set_uuid = set_uuid;
        array.set_name = freshest.name.clone();
        array.events = freshest.events;
        for f in &found {
            let member =
                seat(f, &freshest).map_err(|why| Step::fail(KernelError::refuse(op.name(), f.name.clone(), why)))?;
            array.members.insert(f.name.clone(), member);
        }
        if array.good_members() == 0 {
            return Err(Step::fail(errno(op, set_uuid.to_string(), errno::EINVAL)));
        }
        // raid1_run: "only one device left: no need to resync".
        let alone = array.raid_disks.saturating_sub(array.degraded()) == 1;
        array.resync_from = (freshest.resync_pending && !alone).then_some(0);
        // One member's bitmap is read, the first that is in sync; what the others have is not looked at.
        let first = found.iter().find(|f| array.members.get(&f.name).is_some_and(Member::good));
        array.bitmap = first.and_then(|f| f.superblock.bitmap.as_ref()).map(|disk| array.load_bits(disk));
        if let Some(bits) = &mut array.bitmap {
            bits.asleep = true;
        }
        Ok(array)
    }

    pub(in super::super) fn op_activate(&mut self, node: usize, op: &Op, volume: VolumeId) -> Step {
        let Some(id) = self.array_of(node, volume) else { return Step::no_array(op, volume) };
        let Some(a) = self.arrays.get_mut(&id) else { return Step::done(Changed::No) };
        let changed = std::mem::replace(&mut a.read_only, false);
        if changed {
            a.kick = true;
            self.hint_array(id);
        }
        Step::changed(changed)
    }

    pub(in super::super) fn op_stop(&mut self, node: usize, op: &Op, volume: VolumeId, job: u64) -> Step {
        match self.array_of(node, volume) {
            Some(id) => self.stop(node, op, id, job),
            None => Step::done(Changed::No),
        }
    }

    pub(in super::super) fn op_stop_foreign(&mut self, node: usize, op: &Op, name: &str) -> Step {
        let found = self.arrays.iter().find(|(_, a)| a.node == node && a.name == name);
        let Some((id, a)) = found.map(|(id, a)| (*id, a)) else { return Step::done(Changed::No) };
        if a.volume.is_some() {
            return Step::fail(KernelError::refuse(op.name(), name, "the array is one of ours"));
        }
        if self.open_count(id) > 0 {
            return Step::fail(KernelError::refuse(op.name(), name, "it is mounted or held"));
        }
        self.arrays.remove(&id);
        Step::done(Changed::Yes)
    }

    /// `array_state=inactive`: superblocks say clean first, which waits for every member.
    fn stop(&mut self, node: usize, op: &Op, id: u64, job: u64) -> Step {
        if self.open_count(id) > 0 {
            return Step::fail(KernelError::refuse(op.name(), id.to_string(), "it is mounted or held"));
        }
        let busy = self.busy(id);
        let begun = self.jobs.get(&job).is_some_and(|j| j.stage > 0);
        let Some(a) = self.arrays.get_mut(&id) else { return Step::done(Changed::No) };
        if busy {
            return Step::Wait;
        }
        if !begun {
            a.sync = None;
            a.sync_frozen = true;
            if !a.clean && !a.read_only && !a.broken {
                a.clean = true;
                a.dirty(Dirty::Clean);
            }
            if let Some(bits) = &mut a.bitmap {
                bits.unwritten |= bits.lazy;
            }
            if let Some(job) = self.jobs.get_mut(&job) {
                job.stage = 1;
            }
            return Step::Wait;
        }
        let bits_pending = a.bits_write.is_some() || a.bitmap.as_ref().is_some_and(|b| b.unwritten);
        if a.sb_write.is_some() || (a.sb_dirty.is_some() && !a.read_only && !a.broken) || bits_pending {
            return Step::Wait;
        }
        let volume = a.volume;
        self.arrays.remove(&id);
        self.nodes[node].openers.retain(|_, o| o.array != id);
        self.hint(node, volume.map_or(crate::hint::Hint::Arrays, crate::hint::Hint::Array));
        Step::done(Changed::Yes)
    }
}

/// The place of a device in an array that the freshest superblock describes; or why it has none.
fn seat(found: &Found, freshest: &Superblock) -> Result<Member, String> {
    let sb = &found.superblock;
    if sb.events + 1 < freshest.events {
        return Err(format!("not fresh: events {} of {}", sb.events, freshest.events));
    }
    let role = freshest.roles.get(sb.dev_number as usize).copied().unwrap_or(0xffff);
    if role >= 0xfff0 {
        return Err("the freshest member says it is missing".into());
    }
    let mut member = new_member(found.dev, sb.dev_number, sb.device_uuid);
    member.slot = Some(u32::from(role));
    member.in_sync = sb.recovery_offset.is_none();
    member.write_mostly = sb.write_mostly;
    Ok(member)
}

impl State {
    /// Somebody else (udev's `mdadm --incremental`) assembles partitions of a node, read-write, sync running.
    pub(in super::super) fn assemble_foreign(&mut self, node: usize, paths: &[&str]) -> bool {
        let uuid = paths.first().and_then(|p| self.device(node, p)).and_then(|(_, dev)| self.superblock_at(node, dev));
        let Some(set_uuid) = uuid.map(|sb| sb.set_uuid) else { return false };
        let op = Op::StopForeignArray { name: "md127".into() };
        match self.assemble(node, &op, None, set_uuid, paths) {
            Ok(mut array) => {
                array.name = "md127".into();
                array.read_only = false;
                array.sync_frozen = false;
                if let Some(bits) = &mut array.bitmap {
                    bits.asleep = false;
                }
                self.start_array(array);
                true
            }
            Err(_) => false,
        }
    }
}
