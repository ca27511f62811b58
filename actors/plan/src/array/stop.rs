//! Letting go of an array: the orderly end after an unstage, and the end of a deposed consumer.

use super::*;
use crate::record::Change;
use meshstor_kernel::content::Content;
use meshstor_kernel::mutant::{self, Mutant};
use meshstor_kernel::ops::Op;

/// Nobody wants it staged: stop it when nothing uses it, delete the connections, say so in the record. Works from
/// kernel facts alone: the object may be gone, the API server away, the volume published elsewhere.
pub(super) fn release(volume: VolumeId, look: &ArrayLook) -> Plan<ArrayReport> {
    let releasing = || report(look, Some(Reason::Releasing));
    if let Some(array) = &look.array {
        // Unstaged after the volume went elsewhere (forced detach): an orderly unmount would wait for fenced copies.
        // A record older than the array deposes nobody: it went back in time (F16).
        if let RecordLook::Fresh(record) = &look.record
            && newest_epoch(look).is_none_or(|epoch| epoch <= record.epoch)
            && (record.consumer.as_ref() != Some(&look.me) || outlived(array, record, look))
        {
            return depose(record, array, look);
        }
        let users = array.mounts.iter().chain(&array.holders).cloned().collect::<Vec<_>>();
        if !users.is_empty() {
            return Plan::look_in(report(look, Some(Reason::Busy { holder: users.join(", ") })), SOON);
        }
        return Plan::step(Op::StopArray { volume }, releasing());
    }
    if let Some(key) = look.connections.keys().next() {
        return Plan::step(Op::Disconnect { key: *key }, releasing());
    }
    let done = ArrayReport { phase: ArrayPhase::Released, ..report(look, None) };
    match &look.record {
        RecordLook::Fresh(record)
            if record.consumer.as_ref() == Some(&look.me) && record.released_epoch < record.epoch =>
        {
            // Before NodeUnstage answers: afterwards the epoch moves on, and nobody could confirm this one any more.
            Plan::step(change(record, Change::Released), releasing())
        }
        _ => Plan::rest(done),
    }
}

/// A higher epoch has another consumer: shut the file system down before anything that waits can be released as a
/// success on the local copy, then delete the controllers, unmount lazily, stop the array. The data are kept.
pub(super) fn depose(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Plan<ArrayReport> {
    let (volume, epoch) = (record.volume, record.epoch);
    if record.content == Content::Block {
        return depose_raw(record, array, look);
    }
    let status = report(look, Some(Reason::Deposed { epoch }));
    let too_early = mutant::on(Mutant::ReleaseBeforeShutdown) && look.connections.keys().any(|key| key.epoch < epoch);
    if !(look.live_mounts.is_empty() || too_early) {
        return Plan::step(Op::ShutdownFilesystem { volume }, status);
    }
    // Kernel holders (dm, loop) cannot be killed: stay frozen and say so.
    if !array.holders.is_empty() {
        let holder = array.holders.iter().cloned().collect::<Vec<_>>().join(", ");
        return Plan::look_in(report(look, Some(Reason::Busy { holder })), SOON);
    }
    // This node may be the consumer of the higher epoch itself, and connected under it already.
    if let Some(key) = look.connections.keys().find(|key| key.epoch < epoch) {
        return Plan::step(Op::Abandon { key: *key, deposed_by: epoch }, status);
    }
    if let Some(target) = array.mounts.iter().next() {
        return Plan::step(Op::Unmount { target: target.clone(), lazy: true }, status);
    }
    // Writes that were frozen until a loss could be recorded would hold up the stop for ever. Nobody hears of them any more.
    if let Some((component, _)) = array.members.iter().find(|(_, member)| run::is_blocked(member)) {
        let op = Op::FreezeWrites { volume, component: component.clone(), frozen: false };
        return Plan::step(op, status);
    }
    Plan::step(Op::StopArray { volume }, status)
}

/// The same without a file system that could be shut down. Whoever has the device open is killed before anything that
/// waits is released ([`Op::Abandon`] does both). But a container that kubelet starts anew has it open again, and would
/// write to the local copy alone: so that one is frozen before the last connection goes, and thawed when the array
/// refuses every write ([`Op::CutOff`]).
fn depose_raw(record: &VolumeRecord, array: &ArrayFact, look: &ArrayLook) -> Plan<ArrayReport> {
    let (volume, epoch) = (record.volume, record.epoch);
    let status = report(look, Some(Reason::Deposed { epoch }));
    // Whoever uses what a kernel holder (dm) makes of it cannot be killed: stay frozen and say so.
    let kernel: Vec<String> = array.kernel_holders().cloned().collect();
    if !kernel.is_empty() {
        return Plan::look_in(report(look, Some(Reason::Busy { holder: kernel.join(", ") })), SOON);
    }
    if let Some(key) = look.connections.keys().find(|key| key.epoch < epoch) {
        let op = match open_local(array, look) {
            // A freeze that hangs on MD's mutex must not keep what is fenced already: then the kill has to do.
            Some(component) if !look.freeze_failed => Op::FreezeWrites { volume, component, frozen: true },
            _ => Op::Abandon { key: *key, deposed_by: epoch },
        };
        return Plan::step(op, status);
    }
    if !look.cut_off {
        return Plan::step(Op::CutOff { volume, deposed_by: epoch }, status);
    }
    if let Some(target) = array.mounts.iter().next() {
        return Plan::step(Op::Unmount { target: target.clone(), lazy: true }, status);
    }
    Plan::step(Op::StopArray { volume }, status)
}

/// This node's own member, while it takes writes.
fn open_local(array: &ArrayFact, look: &ArrayLook) -> Option<String> {
    let open = |member: &MemberFact| member.in_sync() && !member.flags.contains("blocked");
    let mut local = look.candidates.values().filter(|candidate| candidate.local);
    let found = local.find(|candidate| array.members.get(&candidate.component).is_some_and(open));
    found.map(|candidate| candidate.component.clone())
}
