//! What an actor says to its parent: its report while it lives, and that it has ended.
//!
//! Used by the shell alone. It decides nothing; a report that has not changed is not said again.

use super::{Failing, Report};
use crate::failure::Failure;
use crate::messages::{Died, Poke};
use actix::Recipient;
use meshstor_plan::Reason;
use std::rc::Rc;
use tokio::sync::watch;

/// The voice of an actor: its report, and the poke that goes with each change of it.
pub(super) struct Speaker<S> {
    pub(super) kind: &'static str,
    pub(super) key: Rc<str>,
    pub(super) report: Rc<watch::Sender<Report<S>>>,
    pub(super) poke: Recipient<Poke>,
}

impl<S> Clone for Speaker<S> {
    fn clone(&self) -> Self {
        Speaker { kind: self.kind, key: Rc::clone(&self.key), report: Rc::clone(&self.report), poke: self.poke.clone() }
    }
}

impl<S: PartialEq> Speaker<S> {
    pub(super) fn says(&self, status: S, revision: u64, well: bool) {
        self.change(|report| {
            let changed = report.status != status || report.revision != revision || well && report.failing.is_some();
            report.status = status;
            report.revision = revision;
            if well {
                report.failing = None;
            }
            changed
        });
    }

    pub(super) fn works(&self) {
        self.change(|report| report.failing.take().is_some());
    }

    pub(super) fn fails(&self, failure: &Failure) {
        let reason = match failure {
            Failure::Api { .. } => Reason::ApiUnreachable,
            other => Reason::Failing { error: other.to_string() },
        };
        let failing = Some(Failing { reason, class: failure.class() });
        tracing::debug!(kind = self.kind, key = %self.key, class = ?failure.class(), error = %failure, "round failed");
        self.change(|report| std::mem::replace(&mut report.failing, failing.clone()) != failing);
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Report<S>) -> bool) {
        if self.report.send_if_modified(change) {
            // A full mailbox holds messages that make the parent look at all reports anyway.
            let _ = self.poke.try_send(Poke);
        }
    }
}

/// Tells the parent that this life has ended: dropped with the actor, on a stop and while a panic unwinds alike.
pub(super) struct DeathWatch {
    pub(super) kind: &'static str,
    pub(super) key: Rc<str>,
    pub(super) generation: u64,
    pub(super) died: Recipient<Died>,
}

impl Drop for DeathWatch {
    fn drop(&mut self) {
        let died = Died { kind: self.kind, key: self.key.to_string(), generation: self.generation };
        // A parent that is full or gone finds the closed address by itself.
        let _ = self.died.try_send(died);
    }
}
