//! The recorded truth as plans see it, and the compare-and-swaps that change it.
//!
//! Built from custom resources by the API crate, never from a cache that may lag when a decision depends on it.

use crate::wall::WallTime;
use meshstor_kernel::content::Content;
use meshstor_kernel::facts::Listen;
use meshstor_kernel::id::{BootId, ClusterId, Epoch, ExportKey, Generation, NodeName, ReplicaId, ReplicaKey, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A volume as recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Name of the object.
    pub name: String,
    /// `metadata.uid` of the object.
    pub uid: String,
    /// Identity of the data.
    pub volume: VolumeId,
    /// Cluster it belongs to.
    pub cluster: ClusterId,
    /// Usable bytes promised.
    pub size_bytes: u64,
    /// What the volume holds.
    pub content: Content,
    /// Number of copies wanted.
    pub replica_count: u32,
    /// Epoch.
    pub epoch: Epoch,
    /// Who may write.
    pub consumer: Option<NodeName>,
    /// The consumer's boot id when the epoch began.
    pub consumer_boot: Option<BootId>,
    /// Complete copies; `None` is unknown.
    pub in_sync: Option<BTreeSet<ReplicaId>>,
    /// Why the record is not this object's own (restored from a backup, another cluster); `None` when it is.
    pub foreign: Option<String>,
    /// Epoch whose consumer last confirmed the set.
    pub activated_epoch: Epoch,
    /// How replicas left.
    pub departures: BTreeMap<ReplicaId, DepartureRecord>,
    /// How often replicas left lately.
    pub flaps: BTreeMap<ReplicaId, FlapRecord>,
    /// State of the file system's making.
    pub format: FormatRecord,
    /// Highest epoch whose consumer confirmed its stop.
    pub released_epoch: Epoch,
    /// The copies.
    pub replicas: BTreeMap<ReplicaId, ReplicaRecord>,
}

/// State of the file system's making.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FormatRecord {
    /// Never begun.
    #[default]
    Never,
    /// mkfs may have run; nobody was given the result.
    Started,
    /// It exists.
    Done,
}

/// How a replica left the in-sync set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DepartureRecord {
    /// Epoch in which it left.
    pub epoch: Epoch,
    /// Export generation it had; it returns under a higher one only.
    pub generation: Generation,
    /// Events of the survivors then.
    pub events: u64,
}

/// How often a replica left, each time within an hour of the time before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlapRecord {
    /// Departures.
    pub count: u32,
    /// The last one, by the clock of the consumer it had then.
    pub last: WallTime,
}

/// One copy as recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaRecord {
    /// Node that holds it.
    pub node: NodeName,
    /// Whether it should be in the array.
    pub wanted: bool,
    /// Partition bytes.
    pub partition_bytes: u64,
    /// Epoch and generation it is to be exported for.
    pub wanted_export: (Epoch, Generation),
    /// Highest epoch its node has fenced for.
    pub fenced_epoch: Epoch,
    /// Its live export, as its node reports it.
    pub export: Option<ExportRecord>,
    /// The export life in which it may be copied to wholly.
    pub granted: Option<(Epoch, Generation)>,
}

/// A live export as its node reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportRecord {
    /// Epoch.
    pub epoch: Epoch,
    /// Generation.
    pub generation: Generation,
    /// Where it listens; empty for a local copy.
    pub listen: BTreeSet<Listen>,
    /// Whether it may be used.
    pub ready: bool,
}

impl VolumeRecord {
    /// Key of a replica.
    pub fn key(&self, replica: ReplicaId) -> ReplicaKey {
        ReplicaKey { volume: self.volume, replica }
    }

    /// The export of a replica that may be used now: fenced and exported for the current epoch, newer than its departure.
    /// A complete copy is used for as long as it is one, even if it is to leave.
    pub fn usable_export(&self, replica: ReplicaId) -> Option<(ExportKey, &ExportRecord)> {
        let record = self.replicas.get(&replica)?;
        let export = record.export.as_ref()?;
        let departed =
            self.departures.get(&replica).is_some_and(|d| (export.epoch, export.generation) <= (d.epoch, d.generation));
        let current = export.epoch == self.epoch && record.fenced_epoch == self.epoch && export.ready;
        let key = ExportKey { replica: self.key(replica), epoch: export.epoch, generation: export.generation };
        let complete = self.in_sync.as_ref().is_some_and(|set| set.contains(&replica));
        (current && !departed && (record.wanted || complete)).then_some((key, export))
    }

    /// What every compare-and-swap on this record tests.
    pub fn expect(&self) -> Expect {
        Expect {
            name: self.name.clone(),
            uid: self.uid.clone(),
            epoch: self.epoch,
            consumer: self.consumer.clone(),
            in_sync: self.in_sync.clone(),
        }
    }
}

/// What a compare-and-swap tests: refused when any of it has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expect {
    /// Object.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Epoch.
    pub epoch: Epoch,
    /// Consumer.
    pub consumer: Option<NodeName>,
    /// Old in-sync set.
    pub in_sync: Option<BTreeSet<ReplicaId>>,
}

/// A change of the record by the consumer. After a refusal: look again and decide again, never send it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordOp {
    /// What must still hold.
    pub expect: Expect,
    /// The change.
    pub change: Change,
}

/// What a consumer may change in the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The set is exactly the active members; from here on the consumer may write.
    Activate {
        /// The new set.
        in_sync: BTreeSet<ReplicaId>,
        /// Those that were in it and are not active.
        departures: BTreeMap<ReplicaId, DepartureRecord>,
        /// How often these have left, this time included.
        flaps: BTreeMap<ReplicaId, FlapRecord>,
    },
    /// A member is out, before the array loses it.
    Shrink {
        /// Which.
        replica: ReplicaId,
        /// Proof needed for its return.
        departure: DepartureRecord,
        /// How often it has left, this time included.
        flap: FlapRecord,
    },
    /// A member is in, after its own superblock says so.
    Grow {
        /// Which.
        replica: ReplicaId,
    },
    /// mkfs is about to run.
    FormatStarted,
    /// mkfs is done.
    FormatDone,
    /// The array of this epoch is stopped and its connections are gone.
    Released,
}

impl RecordOp {
    /// Short name: metric label and trace.
    pub fn name(&self) -> &'static str {
        match self.change {
            Change::Activate { .. } => "record-activate",
            Change::Shrink { .. } => "record-shrink",
            Change::Grow { .. } => "record-grow",
            Change::FormatStarted => "record-format-started",
            Change::FormatDone => "record-format-done",
            Change::Released => "record-released",
        }
    }
}

impl fmt::Display for RecordOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Expect { name: volume, epoch, .. } = &self.expect;
        write!(f, "{} {volume} epoch {epoch}", self.name())?;
        match &self.change {
            Change::Activate { in_sync, .. } => in_sync.iter().try_for_each(|r| write!(f, " {r}")),
            Change::Shrink { replica, departure, .. } => write!(f, " without {replica} at events {}", departure.events),
            Change::Grow { replica } => write!(f, " with {replica}"),
            Change::FormatStarted | Change::FormatDone | Change::Released => Ok(()),
        }
    }
}
