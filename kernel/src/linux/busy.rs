//! Which objects have an operation under way. A deadline drops the wait, not the operation: it may still run in the
//! kernel, and a second one on the same object must not meet it there.
//!
//! Called by `apply.rs` alone. It never waits: an object that is taken is an error that says by what and since when.

use crate::error::{KernelError, Result};
use crate::ops::Op;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

/// The objects taken, each with the operation that has it.
#[derive(Debug, Clone, Default)]
pub struct Busy(Arc<Mutex<BTreeMap<String, Running>>>);

/// An operation under way.
#[derive(Debug, Clone)]
struct Running {
    op: Op,
    since: Instant,
}

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
        let same = taken.get(&object);
        let in_the_way = || taken.values().find(|running| running.op.meets(op));
        if let Some(Running { op: running, since }) = same.or_else(in_the_way) {
            let detail = format!("still running since {} s: {running}", since.elapsed().as_secs());
            return Err(KernelError::retry(op.to_string(), object, detail));
        }
        taken.insert(object.clone(), Running { op: op.clone(), since: Instant::now() });
        Ok(Ticket { busy: self.clone(), object })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.busy.lock().remove(&self.object);
    }
}

/// The object of an operation; a mount point by its canonical spelling.
fn object(op: &Op) -> String {
    match op {
        Op::Mount { target, .. } | Op::BindMount { target, .. } | Op::Unmount { target, .. } => {
            format!("mount point {}", super::mounts::tidy(target))
        }
        other => other.object(),
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

    #[test]
    fn an_array_that_takes_a_member_and_an_export_of_the_volume_wait_for_each_other() {
        let busy = Busy::default();
        let key = crate::id::ExportKey {
            replica: crate::id::ReplicaKey { volume: volume(), replica: crate::id::ReplicaId(1) },
            epoch: 3,
            generation: 0,
        };
        let export = Op::Export { key, host: crate::id::NodeName("b".into()).host_nqn(), listen: Default::default() };
        let add = Op::AddMember { volume: volume(), device: "/dev/nvme0n1p1".into() };
        let late = busy.claim(&add).unwrap();
        assert!(busy.claim(&export).unwrap_err().detail.contains("add-member"));
        drop(late);
        let _exporting = busy.claim(&export).unwrap();
        assert!(busy.claim(&add).unwrap_err().detail.contains("export"));
        // What ends things must get through.
        busy.claim(&Op::StopArray { volume: volume() }).unwrap();
    }
}
