//! An array that uses more of its members (`update_size`, `raid1_resize`, `md_bitmap_resize` of 6.12, in the order in which
//! our own binding goes about it).
//!
//! Called by the job dispatch. Cut short it leaves what the real order leaves: the new size, sync frozen, and a resync of
//! the new part pending. It never looks at what the new part holds: whether that reads zero everywhere is for the oracle.

use super::super::job::{Step, errno};
use super::super::state::State;
use super::Dirty;
use super::bitmap::Bit;
use crate::error::KernelError;
use crate::facts::{COMPONENT_MAX, DATA_OFFSET};
use crate::id::VolumeId;
use crate::ops::{Changed, Op};

impl State {
    pub(in super::super) fn op_grow_array(
        &mut self,
        node: usize,
        op: &Op,
        volume: VolumeId,
        bytes: u64,
        job: u64,
        half: bool,
    ) -> Step {
        let Some(id) = self.array_of(node, volume) else { return Step::no_array(op, volume) };
        let begun = self.jobs.get(&job).is_some_and(|j| j.stage > 0);
        let Some(a) = self.arrays.get(&id) else { return Step::no_array(op, volume) };
        if begun {
            // The write of `component_size` returns when the superblocks are written.
            return if a.pending() { Step::Wait } else { Step::done(Changed::Yes) };
        }
        if bytes > COMPONENT_MAX {
            return Step::fail(KernelError::refuse(op.name(), a.name.clone(), "its bitmap has no room for that"));
        }
        if bytes <= a.component_bytes {
            return Step::done(Changed::No);
        }
        if let Some(why) = self.unquiet(id) {
            let name = self.arrays.get(&id).map(|a| a.name.clone()).unwrap_or_default();
            return Step::fail(KernelError::wait(op.name(), name, why));
        }
        let short = a.members.iter().find(|(_, m)| self.device_bytes(node, m.dev) < bytes + DATA_OFFSET);
        if let Some(name) = short.map(|(name, _)| name.clone()) {
            return Step::fail(errno(op, name, errno::ENOSPC));
        }
        let old = a.chunks();
        let Some(a) = self.arrays.get_mut(&id) else { return Step::no_array(op, volume) };
        a.component_bytes = bytes;
        let new = a.chunks();
        if let Some(bits) = &mut a.bitmap {
            // "new space. It needs to be resynced, so we set NEEDED_MASK."
            let bit = Bit { needed: true, writes: 0, passes: 2, on_disk: false };
            bits.chunks.extend((old..new).map(|chunk| (chunk, bit)));
            bits.unwritten = true;
        }
        a.dirty(Dirty::Devices);
        if half {
            a.resync_from = Some(old);
            a.sync_frozen = true;
        }
        let line = format!("{} has {bytes} bytes{}", a.name, a.of_volume());
        self.say(node, line);
        self.hint_array(id);
        if half {
            return Step::fail(KernelError::retry(op.name(), volume.to_string(), "interrupted behind component_size"));
        }
        if let Some(job) = self.jobs.get_mut(&job) {
            job.stage = 1;
        }
        Step::Wait
    }

    /// Why an array may not grow now.
    fn unquiet(&self, id: u64) -> Option<&'static str> {
        let a = self.arrays.get(&id)?;
        if a.read_only || a.broken || a.pending() {
            Some("it is read-only, broken or writes its superblocks")
        } else if a.sync.is_some() || a.sync_frozen || a.resync_from.is_some() {
            Some("a sync runs, is frozen or pending")
        } else if a.held {
            Some("a recovery to come is held at the old end")
        } else if a.members.values().any(|m| !m.good() || m.blocked) {
            Some("a member is not whole, or blocked")
        } else {
            None
        }
    }
}
