//! Deleting the controllers of one export, in the order that releases waiting I/O soonest.
//!
//! Called by `fabrics.rs` alone. Writing `delete_controller` returns only after a running attempt to reconnect has ended
//! (core.c `nvme_do_delete_ctrl`: the controller is stopped first, its namespaces are removed afterwards). Over TCP that
//! is three seconds at most. Over RDMA it is more than a minute when the target lost its power while its address could
//! still be resolved: the connection manager repeats its request 15 times, 4 s each (cma.c `CMA_MAX_CM_RETRIES`). And a
//! controller that is `deleting` still counts as a path (multipath.c `nvme_path_is_disabled`): what waits is sent to it
//! and comes back, over and over.
//!
//! ```text
//!  TCP deleted ─▶ gone, 3 s at most ─▶ an RDMA path beside it that only reconnects has `fast_io_fail_tmo` behind it, so
//!  no path is left ─▶ what waits fails, MD lets go ─▶ RDMA deleted, in a thread that may stay as long as it has to
//! ```
//!
//! It never waits in the kernel itself: each write has a thread of its own, and what it does shows in sysfs.

use super::{Controller, LOOK_AGAIN, controllers_of};
use crate::error::{KernelError, Result};
use crate::facts::Transport;
use crate::id::Nqn;
use crate::linux::attr;
use crate::linux::root::Root;
use crate::ops::Changed;
use std::collections::BTreeSet;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long deletions may take before the caller looks again: 3.3 s when TCP's attempt at a dead address is under way, and
/// some for a busy machine.
const GONE_DEADLINE: Duration = Duration::from_secs(8);
/// Seconds after which an RDMA path that reconnects, beside a TCP one, no longer holds I/O by itself. Below the five
/// seconds after which a member counts as lost, so that it has happened when the TCP controller is deleted.
const EXPENDABLE: &str = "2";

/// The deletion of all controllers of one export.
pub struct Deletion<'a> {
    root: &'a Root,
    op: &'a str,
    nqn: &'a Nqn,
    /// Names of those that are deleted first.
    first: BTreeSet<String>,
    /// Those that are left for later.
    last: Vec<Controller>,
    failures: (mpsc::Sender<KernelError>, mpsc::Receiver<KernelError>),
}

impl<'a> Deletion<'a> {
    /// Begins with all controllers, but for RDMA ones that merely reconnect beside a TCP one.
    pub fn begin(root: &'a Root, op: &'a str, nqn: &'a Nqn) -> Result<Deletion<'a>> {
        let all = controllers_of(root, nqn);
        let tcp = all.iter().any(|controller| controller.fact.address.transport == Transport::Tcp);
        let later = |c: &Controller| tcp && c.fact.address.transport == Transport::Rdma && c.fact.state == "connecting";
        let (last, first): (Vec<_>, Vec<_>) = all.into_iter().partition(later);
        let names = first.iter().map(|controller| controller.name.clone()).collect();
        let deletion = Deletion { root, op, nqn, first: names, last, failures: mpsc::channel() };
        first.iter().try_for_each(|controller| deletion.delete(controller))?;
        Ok(deletion)
    }

    /// Whether there was anything to delete.
    pub fn changed(&self) -> Changed {
        if self.first.is_empty() && self.last.is_empty() { Changed::No } else { Changed::Yes }
    }

    /// Begins with those that were left for later.
    pub fn rest(&mut self) -> Result<()> {
        let last = std::mem::take(&mut self.last);
        self.first.extend(last.iter().map(|controller| controller.name.clone()));
        last.iter().try_for_each(|controller| self.delete(controller))
    }

    /// Waits until those are gone that were begun with.
    pub fn gone(&self) -> Result<()> {
        self.until(|left| left.iter().all(|controller| !self.first.contains(&controller.name)))
    }

    /// Deletes everything and waits until nothing is left.
    pub fn finish(mut self) -> Result<Changed> {
        let changed = self.changed();
        self.gone()?;
        self.rest()?;
        self.until(<[Controller]>::is_empty)?;
        Ok(changed)
    }

    fn until(&self, done: impl Fn(&[Controller]) -> bool) -> Result<()> {
        let end = Instant::now() + GONE_DEADLINE;
        while Instant::now() < end {
            if let Ok(failure) = self.failures.1.try_recv() {
                return Err(failure);
            }
            if done(&controllers_of(self.root, self.nqn)) {
                return Ok(());
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Err(KernelError::retry(self.op, &self.nqn.0, "a controller is still being deleted"))
    }

    fn delete(&self, controller: &Controller) -> Result<()> {
        let file = self.root.sys.join("class/nvme").join(&controller.name).join("delete_controller");
        let (op, failed) = (self.op.to_string(), self.failures.0.clone());
        let write = move || match attr::write(&op, &file, "1") {
            // Somebody else's deletion is under way or done: the attribute goes first.
            Err(e) if !matches!(e.errno, Some(2 | 19)) => drop(failed.send(e)),
            _ => {}
        };
        let thread = std::thread::Builder::new().name(format!("delete-{}", controller.name));
        thread.spawn(write).map(drop).map_err(|e| KernelError::io(self.op, &controller.name, &e))
    }
}

/// Makes RDMA controllers of an export expendable while a TCP one is there to hold the I/O of a lost target. Alone they
/// have to hold it themselves (P8).
pub fn expendable(root: &Root, nqn: &Nqn) {
    let all = controllers_of(root, nqn);
    let tcp = |c: &Controller| c.fact.address.transport == Transport::Tcp && !c.fact.state.starts_with("deleting");
    let value = if all.iter().any(tcp) { EXPENDABLE } else { "-1" };
    let rdma = all.iter().filter(|controller| controller.fact.address.transport == Transport::Rdma);
    for controller in rdma {
        let file = root.sys.join("class/nvme").join(&controller.name).join("fast_io_fail_tmo");
        // Without it a lost target is let go of later, which is no reason to do without the path.
        if let Err(error) = attr::write("connect", &file, value) {
            tracing::warn!(%error, "an RDMA path could not be made expendable");
        }
    }
}
