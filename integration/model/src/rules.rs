//! Bounds of the exploration, and the rules of the protocol that can be broken one by one.
//!
//! Used by [`crate::steps`], which asks before each guarded step whether its rule holds, and by [`crate::check`].

use crate::state::Budget;

/// What is broken. One name for each rule, or part of a rule, of docs/protocol.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Rule 2: the controller is deleted first, the record changed afterwards.
    DegradeBeforeRecord,
    /// Rule 2: a drop is taken back when the path returns, and its deletion still lands (F9).
    DropRevocable,
    /// Rule 2: a member is taken out although no other one answers (P8).
    LastMemberDropped,
    /// Rule 2: a member that the kernel failed does not freeze the writes (F8).
    NoFreeze,
    /// Rule 3: a member enters the set while it is still copied to.
    GrowBeforeProof,
    /// Rule 4: a replica reports the new epoch while its old export still answers.
    FenceSkipped,
    /// Rule 4: a replica reports the new epoch after the unlink, without waiting for what is in flight.
    DrainSkipped,
    /// Rule 4: the allowed host goes before the port is unlinked, so that the old consumer is refused (F2).
    RefusedByFence,
    /// Rule 4: the old consumer's own replica reports the epoch while its old array still runs (F6).
    LocalFenceEarly,
    /// Rule 4: the new consumer assembles any fenced replica.
    OutsideTheSet,
    /// Rule 4: activation confirms the epoch and leaves the set as it was (F4).
    ActivateKeepsSet,
    /// Rule 4: a consumer that rebooted goes on in its old epoch (F6c).
    RebootKeepsEpoch,
    /// Rule 6: a returning member's own bitmap is not looked at (F1).
    NoMerge,
    /// Rule 6: a replica returns through the export it left by (F20).
    ReturnUndrained,
    /// Rule 7: the controllers are deleted before the file system is shut down (F7).
    ReleaseBeforeShutdown,
    /// Rule 9: an absent set is read as all replicas.
    AbsentIsAll,
    /// Limit: the write in flight when the kernel fails a member counts at once.
    LimitFailureInFlight,
    /// Limit: what is read before the first resync after a takeover has finished counts at once.
    LimitReadBeforeResync,
    /// Rule 3: writes are not frozen between the end of a recovery and the patch that takes the member in.
    GrowUnfrozen,
    /// Limit: an array assembled again in the same epoch is opened without a new activation.
    RestageNotActivated,
    /// Limit: no freeze when the kernel fails the last recorded member while a departed one is still in the array.
    LastRecordedUnfrozen,
}

/// A variant with its words.
pub struct Named {
    /// The variant.
    pub variant: Variant,
    /// Its name on the command line.
    pub name: &'static str,
    /// What is broken.
    pub about: &'static str,
    /// Whether it is a known limit rather than a broken rule.
    pub limit: bool,
}

const fn broken(variant: Variant, name: &'static str, about: &'static str) -> Named {
    Named { variant, name, about, limit: false }
}

const fn limit(variant: Variant, name: &'static str, about: &'static str) -> Named {
    Named { variant, name, about, limit: true }
}

/// All of them, in the order of the rules.
pub const VARIANTS: &[Named] = &[
    broken(Variant::DegradeBeforeRecord, "degrade-before-record", "rule 2: dropped first, recorded afterwards"),
    broken(
        Variant::DropRevocable,
        "drop-revocable",
        "rule 2, F9: a dropped member is taken back, its delete lands late",
    ),
    broken(Variant::LastMemberDropped, "last-member-dropped", "rule 2, P8: dropped although no other member answers"),
    broken(Variant::NoFreeze, "no-freeze", "rule 2, F8: the kernel fails a member and writes go on"),
    broken(Variant::GrowBeforeProof, "grow-before-proof", "rule 3: in the set while it is still copied to"),
    broken(Variant::GrowUnfrozen, "grow-unfrozen", "rule 3: writes go on between the end of a recovery and its record"),
    broken(Variant::FenceSkipped, "fence-skipped", "rule 4: exported anew while the old export still answers"),
    broken(Variant::DrainSkipped, "drain-skipped", "rule 4: fence reported with commands in flight"),
    broken(Variant::RefusedByFence, "refused-by-fence", "rule 4, F2: the fence refuses the old consumer"),
    broken(Variant::LocalFenceEarly, "local-fence-early", "rule 4, F6: fence reported while the old array runs"),
    broken(Variant::OutsideTheSet, "outside-the-set", "rule 4: takeover from a replica outside the set"),
    broken(Variant::ActivateKeepsSet, "activate-keeps-set", "rule 4, F4: the set is not made the active members"),
    broken(Variant::RebootKeepsEpoch, "reboot-keeps-epoch", "rule 4, F6c: a rebooted consumer keeps its epoch"),
    broken(Variant::NoMerge, "no-merge", "rule 6, F1: re-add without the returning member's bitmap"),
    broken(Variant::ReturnUndrained, "return-undrained", "rule 6, F20: return through the export it left by"),
    broken(Variant::ReleaseBeforeShutdown, "release-before-shutdown", "rule 7, F7: waiting writes are released first"),
    broken(Variant::AbsentIsAll, "absent-is-all", "rule 9: an absent set is read as all"),
    limit(Variant::LimitFailureInFlight, "limit-failure-in-flight", "the write in flight at a kernel failure counts"),
    limit(Variant::LimitReadBeforeResync, "limit-read-before-resync", "reads before the first resync ends count"),
    broken(
        Variant::RestageNotActivated,
        "restage-not-activated",
        "rule 4: assembled again in the same epoch, opened without activation",
    ),
    broken(
        Variant::LastRecordedUnfrozen,
        "last-recorded-unfrozen",
        "rule 2: no freeze when no recorded member is left",
    ),
];

/// How far the exploration goes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Two or three replicas.
    pub replicas: usize,
    /// Highest epoch.
    pub epochs: u8,
    /// Generations of an export in one epoch.
    pub generations: u8,
    /// Writes.
    pub writes: u8,
    /// Whether the volume may be unstaged and staged again inside an epoch.
    pub restage: bool,
    /// Faults.
    pub faults: Budget,
}
