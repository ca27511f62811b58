//! Operations as jobs: queued, begun after their latency, repeated while they wait, answered once.
//!
//! A job goes on when its caller stops waiting for it, as a system call does whose thread is stuck in the kernel:
//! that is how a late delete lands after somebody changed his mind (docs/kernel-hazards.md, F9). Called by the `Kernel`
//! implementation and by the event dispatch; it never decides whether an operation is wise.

use super::event::What;
use super::faults::OpFault;
use super::state::State;
use crate::error::{KernelError, Result};
use crate::id::VolumeId;
use crate::ops::{Changed, Op};
use std::time::Duration;
use tokio::sync::oneshot;

/// Errno numbers that operations answer with (asm-generic/errno.h).
pub(super) mod errno {
    pub(crate) const ENOENT: i32 = 2;
    pub(crate) const EINTR: i32 = 4;
    pub(crate) const EIO: i32 = 5;
    pub(crate) const EBUSY: i32 = 16;
    pub(crate) const ENODEV: i32 = 19;
    pub(crate) const EINVAL: i32 = 22;
    pub(crate) const ENOSPC: i32 = 28;
    pub(crate) const EROFS: i32 = 30;
    pub(crate) const ETIMEDOUT: i32 = 110;
    pub(crate) const ECONNREFUSED: i32 = 111;
}

/// The error of an operation that got an errno.
pub(super) fn errno(op: &Op, path: impl Into<String>, number: i32) -> KernelError {
    KernelError::io(op.name(), path, &std::io::Error::from_raw_os_error(number))
}

/// How far an operation got.
pub(super) enum Step {
    Done(Result<Changed>),
    /// Something has to happen first; it is tried again after each event.
    Wait,
}

impl Step {
    pub(super) fn done(changed: Changed) -> Step {
        Step::Done(Ok(changed))
    }

    pub(super) fn changed(changed: bool) -> Step {
        Step::done(if changed { Changed::Yes } else { Changed::No })
    }

    pub(super) fn fail(error: KernelError) -> Step {
        Step::Done(Err(error))
    }

    /// An operation on an array that is not there.
    pub(super) fn no_array(op: &Op, volume: VolumeId) -> Step {
        Step::fail(KernelError::refuse(op.name(), volume.short(), "the volume has no array on this node"))
    }

    /// An operation that was sent to the wrong function: a slip in the dispatch below.
    pub(super) fn not_this(op: &Op) -> Step {
        Step::fail(KernelError::bug(op.name(), "sim", "dispatched to the wrong place"))
    }
}

/// An operation under way.
pub(super) struct Job {
    pub(super) node: usize,
    pub(super) op: Op,
    pub(super) begun: bool,
    waiting: bool,
    fault: Option<OpFault>,
    /// I/O that the operation started and waits for.
    pub(super) io: Option<u64>,
    /// How many steps of it are behind.
    pub(super) stage: u8,
    reply: oneshot::Sender<Result<Changed>>,
}

impl State {
    /// Queues an operation; its answer comes through the channel.
    pub(super) fn enqueue(&mut self, node: usize, op: &Op) -> oneshot::Receiver<Result<Changed>> {
        let (reply, answer) = oneshot::channel();
        // What a deadline gave up is still under way: a second one must not meet it (linux/busy.rs).
        let object = op.object();
        let mut under_way = self.jobs.values().filter(|job| job.node == node);
        if let Some(job) = under_way.find(|job| job.op.object() == object || job.op.meets(op)) {
            let _nobody_listens =
                reply.send(Err(KernelError::retry(op.name(), object, format!("still running: {}", job.op))));
            return answer;
        }
        let fault = self.draw_op_fault(node, op);
        let (low, high) = self.config.op_latency;
        let mut delay = self.rng.between(low, high) + self.op_delay(node, op);
        if let Some(OpFault::Slow(by)) = fault {
            delay += by;
        }
        let id = self.id();
        let job = Job { node, op: op.clone(), begun: false, waiting: false, fault, io: None, stage: 0, reply };
        self.jobs.insert(id, job);
        self.after(delay, node, What::JobStart { job: id });
        answer
    }

    /// What an operation takes beyond its plain latency.
    fn op_delay(&self, node: usize, op: &Op) -> Duration {
        match op {
            Op::Connect { .. } => self.config.connect_latency,
            Op::Disconnect { key } | Op::DropMember { key, .. } | Op::Abandon { key, .. } => {
                self.delete_delay(node, *key)
            }
            _ => Duration::ZERO,
        }
    }

    pub(super) fn start_job(&mut self, id: u64) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.begun = true;
        if job.fault == Some(OpFault::Before) {
            let error = KernelError::retry(job.op.name(), "sim", "failed before it did anything");
            self.finish_job(id, Err(error));
            return;
        }
        self.pump_job(id);
    }

    pub(super) fn waiting_jobs(&self) -> Vec<u64> {
        let waits = |j: &Job| j.begun && j.waiting && self.nodes[j.node].running();
        self.jobs.iter().filter(|(_, j)| waits(j)).map(|(id, _)| *id).collect()
    }

    /// Tries a job; answers whether it got further.
    pub(super) fn pump_job(&mut self, id: u64) -> bool {
        let Some(before) = self.jobs.get(&id).map(|j| (j.waiting, j.io, j.stage)) else { return false };
        match self.run_op(id) {
            Step::Done(result) => {
                self.finish_job(id, result);
                true
            }
            Step::Wait => {
                let Some(job) = self.jobs.get_mut(&id) else { return true };
                let first = !job.waiting;
                job.waiting = true;
                let moved = before != (true, job.io, job.stage);
                if first {
                    let (node, line) = (job.node, format!("{} waits", job.op));
                    self.say(node, line);
                }
                moved
            }
        }
    }

    fn finish_job(&mut self, id: u64, mut result: Result<Changed>) {
        let Some(job) = self.jobs.remove(&id) else { return };
        if result.is_ok() && matches!(job.fault, Some(OpFault::After | OpFault::Half)) {
            result = Err(KernelError::retry(job.op.name(), "sim", "failed after it was done"));
        }
        let outcome = match &result {
            Ok(Changed::Yes) => "yes".to_string(),
            Ok(Changed::No) => "no".to_string(),
            Err(error) => format!("error: {}", error.detail),
        };
        self.say(job.node, format!("{} -> {outcome}", job.op));
        // The caller may have stopped waiting.
        let _ = job.reply.send(result);
    }

    fn run_op(&mut self, id: u64) -> Step {
        let Some(job) = self.jobs.get(&id) else { return Step::Wait };
        let (node, op, half) = (job.node, job.op.clone(), job.fault == Some(OpFault::Half));
        match &op {
            Op::LabelDrive { evidence } => self.op_label(node, &op, evidence.drive()),
            Op::DisableCache { drive } => self.op_disable_cache(node, &op, drive),
            Op::AddPartition { .. } => self.op_add_partition(node, &op, half),
            Op::GrowPartition { .. } => self.op_grow_partition(node, &op, half),
            Op::AnnouncePartition { key } => self.op_announce(node, &op, *key),
            Op::BlankPartition { evidence, record } => self.op_blank(node, &op, evidence.key(), record, half),
            Op::WriteRecord { key, record } => self.op_write_record(node, &op, *key, record, half),
            Op::RemovePartition { evidence } => self.op_remove_partition(node, &op, evidence.key(), half),
            Op::Export { .. } => self.op_export(node, &op, id, half),
            Op::Fence { key } => self.op_fence(node, *key, id, half),
            Op::RevalidateExport { key } => self.op_revalidate(node, &op, *key, id),
            Op::RemoveExport { key } => self.op_remove_export(node, &op, *key, id),
            Op::Connect { .. } => self.op_connect(node, &op),
            Op::Disconnect { key } => self.op_disconnect(node, &op, *key),
            Op::DropMember { .. } => self.op_drop_member(node, &op),
            Op::Abandon { .. } => self.op_abandon(node, &op),
            Op::CreateArray { .. } => self.op_create_array(node, &op, half),
            Op::AssembleArray { .. } => self.op_assemble(node, &op),
            Op::ActivateArray { volume } => self.op_activate(node, &op, *volume),
            Op::MergeBitmap { volume, chunks } => self.op_merge_bitmap(node, &op, *volume, chunks, id),
            Op::ReleaseSync { volume } => self.op_release_sync(node, &op, *volume),
            Op::ReAddMember { volume, device } => self.op_re_add(node, &op, *volume, device),
            Op::AddMember { volume, device } => self.op_add(node, &op, *volume, device),
            Op::FailMember { volume, component, .. } => self.op_fail_member(node, &op, *volume, component),
            Op::RemoveFaulty { volume, component } => self.op_remove_faulty(node, &op, *volume, component),
            Op::FreezeWrites { volume, component, frozen } => {
                self.op_set_flag(node, &op, *volume, component, |m| &mut m.blocked, *frozen)
            }
            Op::SetWriteMostly { volume, component, on } => self.op_write_mostly(node, &op, *volume, component, *on),
            Op::AddBitmap { volume } => self.op_add_bitmap(node, &op, *volume, id),
            Op::RemoveBitmap { volume } => self.op_remove_bitmap(node, &op, *volume),
            Op::SetRaidDisks { volume, count } => self.op_set_raid_disks(node, &op, *volume, *count),
            Op::GrowArray { volume, component_bytes } => {
                self.op_grow_array(node, &op, *volume, *component_bytes, id, half)
            }
            Op::HoldSync { volume, held } => self.op_hold_sync(node, &op, *volume, *held),
            Op::SetSyncSpeed { volume, speed } => self.op_sync_speed(node, &op, *volume, *speed),
            Op::StopArray { volume } => self.op_stop(node, &op, *volume, id),
            Op::StopForeignArray { name } => self.op_stop_foreign(node, &op, name),
            Op::MakeFilesystem { volume, filesystem, permit } => {
                self.op_mkfs(node, &op, (*volume, *filesystem), permit, id, half)
            }
            Op::Mount { .. } => self.op_mount(node, &op, id),
            Op::GrowFilesystem { volume, target } => self.op_grow_filesystem(node, &op, *volume, target, id, half),
            Op::BindMount { .. } => self.op_bind(node, &op),
            Op::Unmount { target, lazy } => self.op_unmount(node, &op, target, *lazy, id),
            Op::KillOpeners { volume } => self.op_kill_openers(node, *volume),
            Op::ShutdownFilesystem { volume } => self.op_shutdown(node, *volume),
            Op::CutOff { volume, .. } => self.op_cut_off(node, &op, *volume),
        }
    }
}
