//! One operation: claim its object, run it detached, wait for its deadline.
//!
//! Called by the seam. It knows which file carries out what, and nothing else.

use super::{
    Shared, cache, cut_off, fabrics, fs, gpt, growfs, join, md, mdadm, mdops, nvmet, openers, pace, partition, probe,
};
use crate::error::{KernelError, Result};
use crate::facts::{BlankData, Listen};
use crate::id::{ExportKey, NodeName, Nqn, VolumeId};
use crate::linux::root::Root;
use crate::ops::{Changed, Op};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// Does one thing. When the deadline passes the operation goes on by itself, its object stays taken, and the answer is
/// "look again".
pub(crate) async fn apply(shared: &Arc<Shared>, op: &Op) -> Result<Changed> {
    let ticket = shared.busy.claim(op)?;
    let (running, owned) = (shared.clone(), op.clone());
    let task = tokio::spawn(async move {
        let _ticket = ticket;
        run(&running, owned).await
    });
    match tokio::time::timeout(op.deadline(), task).await {
        Ok(Ok(done)) => done,
        Ok(Err(e)) => Err(KernelError::bug(op.to_string(), "operation", format!("it did not end: {e}"))),
        Err(_) => {
            let detail = format!("not done after {} s; it goes on by itself", op.deadline().as_secs_f64());
            Err(KernelError::retry(op.to_string(), "operation", detail))
        }
    }
}

async fn run(shared: &Arc<Shared>, op: Op) -> Result<Changed> {
    match op {
        Op::DisableCache { drive } => shared.blocking("disable-cache", move |s| cache::disable(&s.root, &drive)).await,
        Op::LabelDrive { .. }
        | Op::AddPartition { .. }
        | Op::GrowPartition { .. }
        | Op::AnnouncePartition { .. }
        | Op::BlankPartition { .. }
        | Op::WriteRecord { .. }
        | Op::RemovePartition { .. } => shared.blocking("partition", move |s| partitions(s, &op)).await,
        Op::Export { key, host, listen } => export(shared, key, host, listen).await,
        Op::Fence { key } => shared.blocking("fence", move |s| nvmet::fence(&s.root, key)).await,
        Op::RevalidateExport { key } => shared.blocking("revalidate-export", move |s| revalidate(s, key)).await,
        Op::RemoveExport { key } => shared.blocking("remove-export", move |s| nvmet::remove(&s.root, key)).await,
        Op::Connect { key, node, address } => connect(shared, key, node, address).await,
        Op::Disconnect { key } => shared.blocking("disconnect", move |s| fabrics::disconnect(&s.root, key)).await,
        Op::DropMember { key, volume, evidence } => {
            let work = move |s: &Shared| fabrics::drop_member(&s.root, key, volume, evidence.survivor());
            shared.blocking("drop-member", work).await
        }
        Op::Abandon { key, deposed_by } => {
            shared.blocking("abandon", move |s| fabrics::abandon(&s.root, key, deposed_by)).await
        }
        Op::StopForeignArray { name } => stop_foreign(shared, name).await,
        other => array_or_mount(shared, other).await,
    }
}

fn partitions(shared: &Shared, op: &Op) -> Result<Changed> {
    let root = &shared.root;
    match op {
        Op::LabelDrive { evidence } => gpt::label(root, evidence),
        Op::AddPartition { key, drive, extent } => partition::add(root, *key, drive, *extent),
        Op::GrowPartition { key, drive, bytes } => partition::grow::grow(root, *key, drive, *bytes),
        Op::AnnouncePartition { key } => partition::announce(root, *key),
        Op::BlankPartition { evidence, record } => partition::blank(root, evidence, record),
        Op::WriteRecord { key, record } => partition::write_record(root, *key, record),
        Op::RemovePartition { evidence } => partition::remove(root, evidence),
        other => Err(KernelError::bug(other.to_string(), "apply", "not an operation on partitions")),
    }
}

async fn array_or_mount(shared: &Arc<Shared>, op: Op) -> Result<Changed> {
    if let Some(volume) = volume_of(&op) {
        shared.volumes.note(volume);
    }
    if matches!(&op, Op::CreateArray { .. } | Op::AssembleArray { .. } | Op::ReAddMember { .. } | Op::AddMember { .. })
    {
        let taking = op.clone();
        shared.blocking(op.name(), move |s| unexported(&s.root, &taking)).await?;
    }
    match op {
        Op::CreateArray { volume, members, local, component_bytes } => {
            mdadm::create(shared, volume, &members, local, component_bytes).await
        }
        Op::ReAddMember { volume, device } => mdadm::re_add(shared, volume, &device).await,
        Op::AddMember { volume, device } => join::add(shared, volume, &device).await,
        Op::AddBitmap { volume } => mdadm::add_bitmap(shared, volume).await,
        Op::RemoveBitmap { volume } => mdadm::remove_bitmap(shared, volume).await,
        Op::MakeFilesystem { volume, filesystem, permit } => fs::make(shared, volume, filesystem, &permit).await,
        other => shared.blocking(other.name(), move |s| through_attributes(s, &other)).await,
    }
}

/// Operations that are attribute writes and system calls only.
fn through_attributes(shared: &Shared, op: &Op) -> Result<Changed> {
    let root = &shared.root;
    match op {
        Op::AssembleArray { volume, members } => mdops::assemble(root, &shared.minors, *volume, members),
        Op::ActivateArray { volume } => mdops::activate(root, *volume),
        Op::MergeBitmap { volume, chunks } => mdops::merge_bitmap(root, *volume, chunks),
        Op::ReleaseSync { volume } => mdops::release_sync(root, *volume),
        Op::FailMember { volume, component, evidence } => {
            mdops::fail_member(root, *volume, component, evidence.survivor())
        }
        Op::RemoveFaulty { volume, component } => mdops::remove_faulty(root, *volume, component),
        Op::FreezeWrites { volume, component, frozen } => mdops::freeze_writes(root, *volume, component, *frozen),
        Op::SetWriteMostly { volume, component, on } => mdops::set_write_mostly(root, *volume, component, *on),
        Op::SetRaidDisks { volume, count } => mdops::set_raid_disks(root, *volume, *count),
        Op::GrowArray { volume, component_bytes } => mdops::grow::grow(root, *volume, *component_bytes),
        Op::GrowFilesystem { volume, target } => growfs::grow(root, *volume, target),
        Op::HoldSync { volume, held } => pace::hold(root, *volume, *held),
        Op::SetSyncSpeed { volume, speed } => pace::set_speed(root, *volume, *speed),
        Op::StopArray { volume } => mdops::stop(root, *volume),
        Op::Mount { volume, target, fs, options } => fs::mount(root, *volume, target, *fs, options),
        Op::BindMount { source, target, read_only } => fs::bind(root, source, target, *read_only),
        Op::Unmount { target, lazy } => fs::unmount(root, target, *lazy),
        Op::ShutdownFilesystem { volume } => fs::shut_down(root, *volume),
        Op::CutOff { volume, .. } => cut_off::cut_off(root, *volume, &op.to_string()),
        Op::KillOpeners { volume } => {
            let device = md::find(root, *volume).and_then(|name| md::device_number(root, &name));
            device.map_or(Ok(Changed::No), |device| openers::kill_all(root, &op.to_string(), device))
        }
        other => Err(KernelError::bug(other.to_string(), "apply", "no file carries this operation out")),
    }
}

/// Nothing that an array is to take is exported from here. Looked at when the operation begins, not when it was decided:
/// nvmet does not claim its device, so MD would take it all the same, and two nodes would write to one partition
/// (simulator, seed 894). No export can begin meanwhile ([`Op::meets`]).
fn unexported(root: &Root, op: &Op) -> Result<()> {
    let devices: Vec<&str> = match op {
        Op::CreateArray { members, .. } => members.iter().map(BlankData::device).collect(),
        Op::AssembleArray { members, .. } => members.iter().map(String::as_str).collect(),
        Op::ReAddMember { device, .. } | Op::AddMember { device, .. } => vec![device],
        _ => vec![],
    };
    for device in devices {
        if let Some(subsystem) = partition::export::exporter(root, Path::new(device))? {
            return Err(KernelError::wait(op.name(), device, format!("exported by {subsystem}")));
        }
    }
    Ok(())
}

fn volume_of(op: &Op) -> Option<VolumeId> {
    match op {
        Op::CreateArray { volume, .. } | Op::AssembleArray { volume, .. } | Op::Mount { volume, .. } => Some(*volume),
        _ => None,
    }
}

async fn export(shared: &Arc<Shared>, key: ExportKey, host: Nqn, listen: BTreeSet<Listen>) -> Result<Changed> {
    let op = format!("export {key}");
    let found = partition::observe(&shared.ring, &shared.root, &shared.tables, key.replica).await?;
    let found = found.ok_or_else(|| KernelError::retry(&op, key.replica.partition_name(), "no drive has it"))?;
    // Looked at when the operation begins, not when it was decided: one that was held up may find a later epoch (F9, F12).
    if let Some(floor) = found.record.as_ref().map(|record| record.epoch).filter(|floor| *floor > key.epoch) {
        return Err(KernelError::refuse(&op, key.replica.partition_name(), format!("the drive has epoch {floor}")));
    }
    let absent = || KernelError::retry(&op, key.replica.partition_name(), "the kernel does not know the partition");
    let bytes = found.kernel_bytes;
    let wanted = nvmet::Wanted { key, device: found.path.ok_or_else(absent)?, host, listen };
    let work = move |s: &Shared| {
        let changed = nvmet::export(&s.root, &wanted)?;
        // Enabled just now, so not smaller than what was seen before. One that was there already has told what it has told.
        if let (Changed::Yes, Some(bytes)) = (changed, bytes) {
            s.told.note(key, bytes);
        }
        Ok(changed)
    };
    shared.blocking("export", work).await
}

/// The size is read before nvmet reads it: what is noted is never more than what was told.
fn revalidate(shared: &Shared, key: ExportKey) -> Result<Changed> {
    let (bytes, known) = (nvmet::size::device_bytes(&shared.root, key), shared.told.of(key));
    let changed = nvmet::size::revalidate(&shared.root, key)?;
    if let Some(bytes) = bytes {
        shared.told.note(key, bytes);
    }
    // After a start nobody knows what was told: it is told once more, which changes nothing unless it grew meanwhile.
    Ok(if known.is_some() { changed } else { Changed::No })
}

async fn connect(shared: &Arc<Shared>, key: ExportKey, node: NodeName, address: Listen) -> Result<Changed> {
    let op = format!("connect {key}");
    let wanted = address.clone();
    if shared.look(&op, move |s| Ok(fabrics::connected(&s.root, key, &wanted))).await? {
        return Ok(Changed::No);
    }
    fabrics::dial(&op, &address).await?;
    let permit = shared.dialling.clone().acquire_owned().await;
    let work = move |s: &Shared| {
        // Held until the kernel is done with this one.
        let _permit = permit;
        fabrics::connect(&s.root, key, &node, &address)
    };
    shared.blocking("connect", work).await
}

/// A foreign array is stopped only when one of its components carries a record of ours.
async fn stop_foreign(shared: &Arc<Shared>, name: String) -> Result<Changed> {
    let op = format!("stop-foreign-array {name}");
    let foreign = name.clone();
    let look = move |s: &Shared| {
        let dir = md::dir(&s.root, &foreign);
        Ok((dir.is_dir(), md::members(&dir)))
    };
    let (there, members) = shared.look(&op, look).await?;
    let mut ours = !there;
    for component in members.into_keys() {
        let device = shared.root.dev.join(component).to_string_lossy().into_owned();
        ours |= probe::member(&shared.ring, &device, false).await.is_ok_and(|probe| probe.record.is_some());
    }
    if !ours {
        return Err(KernelError::refuse(op, name, "none of its components is a replica of ours"));
    }
    shared.blocking("stop-foreign-array", move |s| mdops::stop_foreign(&s.root, &name)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;
    use crate::linux::md::tests::volume;

    #[test]
    fn an_array_does_not_take_what_is_exported() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        let namespace = root.configfs.join("nvmet/subsystems/nqn.of-r2/namespaces/1");
        std::fs::create_dir_all(&namespace).unwrap();
        std::fs::write(namespace.join("device_path"), "/dev/nvme0n1p7\n").unwrap();
        let take = |device: &str| {
            let device = device.to_string();
            let assemble = Op::AssembleArray { volume: volume(), members: vec!["/dev/nvme9n1".into(), device.clone()] };
            [
                Op::AddMember { volume: volume(), device: device.clone() },
                Op::ReAddMember { volume: volume(), device },
                assemble,
            ]
        };
        for (enabled, refused) in [("0\n", false), ("1\n", true)] {
            std::fs::write(namespace.join("enable"), enabled).unwrap();
            for op in take("/dev/nvme0n1p7") {
                let answer = unexported(&root, &op);
                assert_eq!(answer.as_ref().err().map(|e| e.class), refused.then_some(Class::Wait), "{op}: {answer:?}");
            }
            for op in take("/dev/nvme0n1p8") {
                assert_eq!(unexported(&root, &op), Ok(()));
            }
        }
    }
}
