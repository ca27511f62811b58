//! Which objects have an operation under way. A deadline drops the wait, not the operation: it may still run in the
//! kernel, and a second one on the same object must not meet it there.
//!
//! Called by `apply.rs` alone. It never waits: an object that is taken is an error that says by what and since when.

use crate::error::{KernelError, Result};
use crate::ops::Op;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

/// The objects taken, each with the audit line of the operation and its start.
#[derive(Debug, Clone, Default)]
pub struct Busy(Arc<Mutex<BTreeMap<String, (String, Instant)>>>);

/// The right to work on one object; given back when dropped, by whoever finishes the work.
#[derive(Debug)]
pub struct Ticket {
    busy: Busy,
    object: String,
}

impl Busy {
    /// Takes the object of an operation.
    pub fn claim(&self, op: &Op) -> Result<Ticket> {
        let object = object(op);
        let mut taken = self.lock();
        if let Some((running, since)) = taken.get(&object) {
            let detail = format!("still running since {} s: {running}", since.elapsed().as_secs());
            return Err(KernelError::retry(op.to_string(), object, detail));
        }
        taken.insert(object.clone(), (op.to_string(), Instant::now()));
        Ok(Ticket { busy: self.clone(), object })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, (String, Instant)>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.busy.lock().remove(&self.object);
    }
}

/// What an operation works on. What must get through while an array hangs on a stuck member (dropping it, freezing,
/// killing, shutting down) is an object of its own.
fn object(op: &Op) -> String {
    match op {
        Op::LabelDrive { evidence } => format!("drive {}", evidence.drive()),
        Op::AddPartition { drive, .. } => format!("drive {drive}"),
        Op::AnnouncePartition { key } | Op::WriteRecord { key, .. } => format!("partition {key}"),
        Op::BlankPartition { evidence, .. } | Op::RemovePartition { evidence } => {
            format!("partition {}", evidence.key())
        }
        Op::Export { key, .. } | Op::Fence { key } | Op::RemoveExport { key } => format!("export {}", key.replica),
        Op::Connect { key, .. } | Op::Disconnect { key } | Op::DropMember { key, .. } | Op::Abandon { key, .. } => {
            format!("connection {key}")
        }
        Op::CreateArray { volume, .. }
        | Op::AssembleArray { volume, .. }
        | Op::ActivateArray { volume }
        | Op::MergeBitmap { volume, .. }
        | Op::ReleaseSync { volume }
        | Op::ReAddMember { volume, .. }
        | Op::AddMember { volume, .. }
        | Op::FailMember { volume, .. }
        | Op::RemoveFaulty { volume, .. }
        | Op::SetWriteMostly { volume, .. }
        | Op::AddBitmap { volume }
        | Op::RemoveBitmap { volume }
        | Op::SetRaidDisks { volume, .. }
        | Op::MakeFilesystem { volume, .. }
        | Op::StopArray { volume } => format!("array {volume}"),
        Op::FreezeWrites { volume, .. } => format!("freezer of {volume}"),
        Op::KillOpeners { volume } => format!("openers of {volume}"),
        Op::ShutdownFilesystem { volume } => format!("file system of {volume}"),
        Op::StopForeignArray { name } => format!("foreign array {name}"),
        Op::Mount { target, .. } | Op::BindMount { target, .. } | Op::Unmount { target, .. } => {
            format!("mount point {}", super::mounts::tidy(target))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;
    use crate::linux::md::tests::volume;

    #[test]
    fn an_object_is_taken_once_and_others_are_free() {
        let busy = Busy::default();
        let ticket = busy.claim(&Op::ActivateArray { volume: volume() }).unwrap();
        let error = busy.claim(&Op::StopArray { volume: volume() }).unwrap_err();
        assert!(error.class == Class::Retry && error.detail.contains("activate-array"), "{error}");
        // A stuck array must not keep us from freezing, killing or shutting down.
        busy.claim(&Op::KillOpeners { volume: volume() }).unwrap();
        busy.claim(&Op::FreezeWrites { volume: volume(), component: "x".into(), frozen: true }).unwrap();
        drop(ticket);
        busy.claim(&Op::StopArray { volume: volume() }).unwrap();
    }
}
