//! File systems that grow: their size stands in the mark that makes them one, so that it is on every copy, and outlives
//! whoever had it grown.
//!
//! Called by the job dispatch and by the rest of the file system layer. Everything goes through the array.

use super::fs::{JobIo, MARK};
use super::job::{Step, errno};
use super::md::io::Ask;
use super::state::State;
use crate::error::KernelError;
use crate::id::VolumeId;
use crate::ops::{Changed, Op};

/// The size of a file system stands in its mark, in MiB.
const SIZE_SHIFT: u32 = 8;
const SIZE_MASK: u64 = 0xffff_ff00;

/// The mark of a file system of so many bytes.
pub(super) fn sized(mark: u64, bytes: u64) -> u64 {
    mark & !SIZE_MASK | ((bytes >> 20) << SIZE_SHIFT) & SIZE_MASK
}

/// The size in a mark.
pub(super) fn bytes_in(mark: u64) -> u64 {
    ((mark & SIZE_MASK) >> SIZE_SHIFT) << 20
}

impl State {
    /// Growing writes the mark anew, as the real ones write their superblock.
    pub(super) fn op_grow_filesystem(
        &mut self,
        node: usize,
        op: &Op,
        volume: VolumeId,
        target: &str,
        job: u64,
        half: bool,
    ) -> Step {
        let Some(array) = self.array_of(node, volume) else { return Step::no_array(op, volume) };
        let top = self.nodes[node].mounts.get(target).and_then(|layers| layers.last());
        match top {
            Some(mount) if mount.array == array && !mount.raw && !mount.read_only && self.fs_alive(array) => {}
            _ => return Step::fail(KernelError::refuse(op.name(), target, "not mounted there for writing")),
        }
        let Some(a) = self.arrays.get(&array) else { return Step::no_array(op, volume) };
        let mark = a.fs.as_ref().map_or(0, |fs| fs.mark);
        let grown = sized(mark, a.component_bytes);
        let begun = self.jobs.get(&job).is_some_and(|j| j.io.is_some() || j.stage > 0);
        if !begun && bytes_in(grown) <= bytes_in(mark) {
            return Step::done(Changed::No);
        }
        match self.job_io(job, 0, array, Ask::Write { block: MARK, tag: grown }) {
            JobIo::Waits => return Step::Wait,
            JobIo::Failed => return Step::fail(errno(op, target, errno::EIO)),
            JobIo::Ended(_) | JobIo::Behind => {}
        }
        // Half: it is on the drives and nobody says so.
        if let Some(fs) = self.arrays.get_mut(&array).and_then(|a| a.fs.as_mut()).filter(|_| !half) {
            fs.mark = grown;
        }
        Step::done(Changed::Yes)
    }
}
