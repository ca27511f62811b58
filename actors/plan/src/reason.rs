//! Reasons: why something waits or is refused. One closed list behind conditions, CSI messages, metric labels and
//! `docs/errors.md` (a test there ties the page to this list).

mod sentences;

use crate::wall::WallTime;
use meshstor_kernel::id::{Epoch, NodeName, ReplicaId};
use std::collections::BTreeSet;

/// Why nothing is being done although something is wanted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The API server does not answer, and the next step must be recorded there first.
    ApiUnreachable,
    /// The volume's object does not exist.
    VolumeMissing,
    /// `inSync` is absent, or the object was restored: nobody knows which copies are complete.
    RecordLost {
        /// What exactly does not match.
        what: String,
    },
    /// A drive has seen a higher epoch than the record names: the record went back in time.
    EpochRegressed {
        /// On the drive.
        drive: Epoch,
        /// In the record.
        record: Epoch,
    },
    /// Another node is the consumer, or none.
    NotConsumer {
        /// The recorded consumer.
        consumer: Option<NodeName>,
    },
    /// This node rebooted since the epoch began; a new epoch is on its way.
    NewBoot,
    /// These replicas' nodes have not fenced for this epoch.
    AwaitingFence {
        /// Which.
        replicas: BTreeSet<ReplicaId>,
        /// Epoch.
        epoch: Epoch,
    },
    /// These replicas have no export or no live connection yet.
    AwaitingConnection {
        /// Which.
        replicas: BTreeSet<ReplicaId>,
    },
    /// The partition of this replica is not ready.
    AwaitingPartition {
        /// Which.
        replica: ReplicaId,
    },
    /// The last in-sync copy cannot be reached: writes are frozen, not failed.
    LastCopyFrozen {
        /// Which.
        replica: ReplicaId,
    },
    /// The last in-sync copy failed under the array, which refuses every write since: it has to begin anew.
    LastCopyFailed {
        /// Which.
        replica: ReplicaId,
    },
    /// A copy looks older than another one that marks it missing.
    StaleCopy {
        /// Which.
        replica: ReplicaId,
    },
    /// Data were there and are not any more: never formatted again.
    DataMissing {
        /// What was found.
        what: String,
    },
    /// A resync or recovery is running.
    Resyncing {
        /// Percent done.
        percent: u32,
    },
    /// Fewer copies than wanted are in sync.
    Degraded {
        /// Those missing.
        missing: BTreeSet<ReplicaId>,
    },
    /// A copy that keeps leaving stays outside for a while.
    Flapping {
        /// Which.
        replica: ReplicaId,
        /// How often it has left.
        times: u32,
        /// When it may come back.
        until: WallTime,
    },
    /// A copy has to be made wholly and enough others are being made.
    WaitsForResyncBudget {
        /// Which.
        replica: ReplicaId,
    },
    /// The drive was without power and may have forgotten what it had acknowledged: its export does not answer again.
    CacheLost {
        /// Which.
        replica: ReplicaId,
    },
    /// An array of an older epoch still uses the partition on its node.
    HeldByArray {
        /// Its kernel name.
        array: String,
    },
    /// Something outside of us has the array or partition open.
    Busy {
        /// Who.
        holder: String,
    },
    /// The drive is not ours to use.
    DriveRefused {
        /// Why, in words.
        why: String,
    },
    /// What is on the drive cannot be told: it does not answer, fails reads, or answers with too little.
    DriveUnreadable {
        /// What came instead.
        why: String,
    },
    /// The drive is not there.
    DriveGone,
    /// No free extent of the size on the drive.
    NoSpace {
        /// Bytes wanted.
        wanted: u64,
        /// Largest free extent.
        largest: u64,
    },
    /// A partition is to be longer, and the space behind it is taken.
    NoRoomBehind {
        /// Bytes that it lacks.
        lacks: u64,
        /// Free bytes behind it.
        free: u64,
    },
    /// The array is to grow, and these members' devices are not that large yet.
    AwaitingSize {
        /// Which.
        replicas: BTreeSet<ReplicaId>,
        /// Bytes that each has to have.
        bytes: u64,
    },
    /// A copy outside of the set has a partition from before the volume grew: it returns when that has grown as well.
    NeedsGrowBeforeRejoin {
        /// Which.
        replica: ReplicaId,
        /// Bytes that it has.
        has: u64,
        /// Bytes that it has to have.
        wanted: u64,
    },
    /// No free port in the configured range.
    NoPort,
    /// No address to listen on.
    NoAddress,
    /// The step failed; it will be tried again.
    Failing {
        /// The error's sentence.
        error: String,
    },
    /// A node's agent has not been heard of.
    NodeSilent {
        /// Which.
        node: String,
        /// How long, in words.
        why: String,
    },
    /// A node is silent and its Node object is gone: it was taken out of the cluster.
    NodeDeleted {
        /// Which.
        node: String,
    },
    /// A lost copy is being replaced.
    Replacing {
        /// The lost one.
        replica: ReplicaId,
        /// The new one.
        by: ReplicaId,
    },
    /// A copy is to leave and waits for its successor.
    Moving {
        /// Which.
        replica: ReplicaId,
    },
    /// There is no place for one more copy.
    NoRoom {
        /// For what, and why not.
        what: String,
    },
    /// A copy that is to be wiped is recorded as complete.
    StillInSync {
        /// Which.
        replica: ReplicaId,
    },
    /// Something that is being undone: stop, disconnect, removal.
    Releasing,
    /// The object is being deleted by hand, without a recorded DeleteVolume: served on.
    DeletedByHand,
    /// No claim and no PersistentVolume leads to the volume.
    Orphaned,
    /// A higher epoch was seen: this node's array is being torn down and its data kept.
    Deposed {
        /// Epoch seen.
        epoch: Epoch,
    },
}

impl Reason {
    /// The word used in conditions, metric labels and `docs/errors.md`.
    pub fn word(&self) -> &'static str {
        match self {
            Reason::ApiUnreachable => "ApiUnreachable",
            Reason::VolumeMissing => "VolumeMissing",
            Reason::RecordLost { .. } => "RecordLost",
            Reason::EpochRegressed { .. } => "EpochRegressed",
            Reason::NotConsumer { .. } => "NotConsumer",
            Reason::NewBoot => "NewBoot",
            Reason::AwaitingFence { .. } => "AwaitingFence",
            Reason::AwaitingConnection { .. } => "AwaitingConnection",
            Reason::AwaitingPartition { .. } => "AwaitingPartition",
            Reason::LastCopyFrozen { .. } => "LastCopyFrozen",
            Reason::LastCopyFailed { .. } => "LastCopyFailed",
            Reason::StaleCopy { .. } => "StaleCopy",
            Reason::DataMissing { .. } => "DataMissing",
            Reason::Resyncing { .. } => "Resyncing",
            Reason::Degraded { .. } => "Degraded",
            Reason::Flapping { .. } => "Flapping",
            Reason::WaitsForResyncBudget { .. } => "WaitsForResyncBudget",
            Reason::CacheLost { .. } => "CacheLost",
            Reason::HeldByArray { .. } => "HeldByArray",
            Reason::Busy { .. } => "Busy",
            Reason::DriveRefused { .. } => "DriveRefused",
            Reason::DriveUnreadable { .. } => "DriveUnreadable",
            Reason::DriveGone => "DriveGone",
            Reason::NoSpace { .. } => "NoSpace",
            Reason::NoRoomBehind { .. } => "NoRoomBehind",
            Reason::AwaitingSize { .. } => "AwaitingSize",
            Reason::NeedsGrowBeforeRejoin { .. } => "NeedsGrowBeforeRejoin",
            Reason::NoPort => "NoPort",
            Reason::NoAddress => "NoAddress",
            Reason::Failing { .. } => "Failing",
            Reason::NodeSilent { .. } => "NodeSilent",
            Reason::NodeDeleted { .. } => "NodeDeleted",
            Reason::Replacing { .. } => "Replacing",
            Reason::Moving { .. } => "Moving",
            Reason::NoRoom { .. } => "NoRoom",
            Reason::StillInSync { .. } => "StillInSync",
            Reason::Releasing => "Releasing",
            Reason::DeletedByHand => "DeletedByHand",
            Reason::Orphaned => "Orphaned",
            Reason::Deposed { .. } => "Deposed",
        }
    }

    /// Every word, for the documentation and metric tests.
    pub const WORDS: &'static [&'static str] = &[
        "ApiUnreachable",
        "VolumeMissing",
        "RecordLost",
        "EpochRegressed",
        "NotConsumer",
        "NewBoot",
        "AwaitingFence",
        "AwaitingConnection",
        "AwaitingPartition",
        "LastCopyFrozen",
        "LastCopyFailed",
        "StaleCopy",
        "DataMissing",
        "Resyncing",
        "Degraded",
        "Flapping",
        "WaitsForResyncBudget",
        "CacheLost",
        "HeldByArray",
        "Busy",
        "DriveRefused",
        "DriveUnreadable",
        "DriveGone",
        "NoSpace",
        "NoRoomBehind",
        "AwaitingSize",
        "NeedsGrowBeforeRejoin",
        "NoPort",
        "NoAddress",
        "Failing",
        "NodeSilent",
        "NodeDeleted",
        "Replacing",
        "Moving",
        "NoRoom",
        "StillInSync",
        "Releasing",
        "DeletedByHand",
        "Orphaned",
        "Deposed",
    ];
}
