//! One table: what a [`Reason`] or a [`Failure`] means to whoever made a CSI call.
//!
//! Called by `csi_node`. A final code makes kubelet forget the volume, so that no unstage follows: it is given only for
//! what no waiting mends, and only after everything the call did is undone (K7.3). All else is held until shortly before
//! the caller's deadline and then answered with `DeadlineExceeded` and the sentence.

use crate::failure::Failure;
use meshstor_kernel::Class;
use meshstor_plan::Reason;
use tonic::{Code, Status};

/// What to do with a call that waits for this reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Hold it: this passes, or somebody else's work ends it.
    Hold,
    /// Answer with this code after undoing what was done: only people can change this.
    Final(Code),
}

/// The table. No wildcard: a new reason has to be given a thought.
pub fn verdict(reason: &Reason) -> Verdict {
    match reason {
        // Waiting mends none of these; the sentence says what does.
        Reason::RecordLost { .. } | Reason::EpochRegressed { .. } | Reason::DataMissing { .. } => {
            Verdict::Final(Code::FailedPrecondition)
        }
        Reason::VolumeMissing => Verdict::Final(Code::NotFound),
        // The controller's, a peer's, the network's or the kernel's work ends these.
        Reason::ApiUnreachable
        | Reason::NotConsumer { .. }
        | Reason::NewBoot
        | Reason::AwaitingFence { .. }
        | Reason::AwaitingConnection { .. }
        | Reason::AwaitingPartition { .. }
        | Reason::LastCopyFrozen { .. }
        | Reason::LastCopyFailed { .. }
        | Reason::StaleCopy { .. }
        | Reason::Resyncing { .. }
        | Reason::Degraded { .. }
        | Reason::Flapping { .. }
        | Reason::WaitsForResyncBudget { .. }
        | Reason::CacheLost { .. }
        | Reason::HeldByArray { .. }
        | Reason::Busy { .. }
        | Reason::DriveRefused { .. }
        | Reason::DriveUnreadable { .. }
        | Reason::DriveGone
        | Reason::NoSpace { .. }
        | Reason::NoRoomBehind { .. }
        | Reason::AwaitingSize { .. }
        | Reason::NeedsGrowBeforeRejoin { .. }
        | Reason::NoPort
        | Reason::NoAddress
        | Reason::Failing { .. }
        | Reason::NodeSilent { .. }
        | Reason::NodeDeleted { .. }
        | Reason::Replacing { .. }
        | Reason::Moving { .. }
        | Reason::NoRoom { .. }
        | Reason::StillInSync { .. }
        | Reason::Releasing
        | Reason::DeletedByHand
        | Reason::Orphaned
        | Reason::Deposed { .. } => Verdict::Hold,
    }
}

/// A failure of work that left nothing behind: binding, asking, looking up.
pub fn status(failure: &Failure) -> Status {
    let code = match (failure, failure.class()) {
        (Failure::Raced { .. }, _) => Code::Aborted,
        (_, Class::Retry | Class::Wait) => Code::Unavailable,
        // Not final in kubelet's eyes either way: the bind is tried again, the sentence is what helps.
        (_, Class::Refuse | Class::Bug) => Code::Internal,
    };
    Status::new(code, failure.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_by_itself_is_never_final() {
        for reason in [
            Reason::ApiUnreachable,
            Reason::NewBoot,
            Reason::AwaitingConnection { replicas: Default::default() },
            Reason::Failing { error: "x".into() },
        ] {
            assert_eq!(verdict(&reason), Verdict::Hold, "{}", reason.word());
        }
    }

    #[test]
    fn final_codes_are_ones_that_kubelet_takes_as_final() {
        let not_final =
            [Code::Cancelled, Code::DeadlineExceeded, Code::Unavailable, Code::ResourceExhausted, Code::Aborted];
        for reason in [Reason::RecordLost { what: String::new() }, Reason::VolumeMissing] {
            let Verdict::Final(code) = verdict(&reason) else { panic!("{}", reason.word()) };
            assert!(!not_final.contains(&code));
        }
    }
}
