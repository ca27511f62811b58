//! The seam between decisions and a node's kernel: observe facts, apply one operation, hear hints.
//!
//! Called by the actors' shell and by `meshstor doctor`. Implemented by `linux` (the node's own kernel) and `sim`.

use crate::error::Result;
use crate::facts::{
    ArrayFact, ConnectionFact, DriveFact, EpochRecord, ExportFact, FsFact, MemberProbe, NodeFact, PartitionFact,
};
use crate::hint::Hint;
use crate::id::{DriveId, ExportKey, ReplicaKey, VolumeId};
use crate::ops::{Changed, Op};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// The seam between decisions and a node's kernel. One implementation is real, one simulated.
///
/// Futures are not `Send`: actors live on one thread. Implementations move blocking work elsewhere themselves.
#[async_trait::async_trait(?Send)]
pub trait Kernel: 'static {
    /// The node itself: boot id, addresses, preflight.
    async fn node(&self) -> Result<NodeFact>;

    /// Every NVMe drive with a local (not fabric) transport.
    async fn drives(&self) -> Result<Vec<DriveFact>>;

    /// One drive; `None` when it is gone.
    async fn drive(&self, drive: &DriveId) -> Result<Option<DriveFact>>;

    /// A replica's partition on any of this node's drives, found by its unique GUID; `None` when no table has it.
    async fn partition(&self, key: ReplicaKey) -> Result<Option<PartitionFact>>;

    /// Every replica partition of ours on this node's drives (type GUID and a valid record), for orphan reports.
    async fn replicas(&self) -> Result<BTreeMap<DriveId, Vec<(uuid::Uuid, Option<EpochRecord>)>>>;

    /// Every volume that this kernel holds something of: a partition, a connection, an array. What an agent that has
    /// just started has to look after. Every member of an array is a partition or a connection, so an implementation
    /// adds the connections' volumes to those of the partitions.
    async fn volumes(&self) -> Result<BTreeSet<VolumeId>> {
        let replicas = self.replicas().await?;
        Ok(replicas.into_values().flatten().filter_map(|(_, record)| Some(record?.volume)).collect())
    }

    /// What nvmet holds for a replica.
    async fn exports(&self, key: ReplicaKey) -> Result<ExportFact>;

    /// What the nvme host holds for an export.
    async fn connection(&self, key: ExportKey) -> Result<ConnectionFact>;

    /// Every export of this volume that the nvme host has a controller for, of any epoch.
    async fn connections(&self, volume: VolumeId) -> Result<BTreeMap<ExportKey, ConnectionFact>>;

    /// The volume's array on this node; `None` when there is none.
    async fn array(&self, volume: VolumeId) -> Result<Option<ArrayFact>>;

    /// Reads a member's superblock, bitmap, record and (when `data_too`) whether its data area is blank.
    /// `device` is a local partition or a fabric head. A read that hangs fails after 5 s and hurts nothing else.
    async fn probe(&self, device: &str, data_too: bool) -> Result<MemberProbe>;

    /// Where the volume's array is mounted, and whether each mount answers, without its signature. Reads no device: it
    /// works while members are stuck, which is when a deposed consumer has to let go.
    async fn mounts(&self, volume: VolumeId) -> Result<FsFact>;

    /// What lies on the volume's array and where it is mounted. Fails while an array that is not mounted cannot be read.
    async fn filesystem(&self, volume: VolumeId) -> Result<FsFact>;

    /// Whether `target` is a mount point now, and of which volume of ours.
    async fn mount_at(&self, target: &str) -> Result<Option<MountFact>>;

    /// Does one thing. What is already so answers [`Changed::No`].
    async fn apply(&self, op: &Op) -> Result<Changed>;

    /// A stream of hints; each call makes a new subscription.
    fn hints(&self) -> tokio::sync::broadcast::Receiver<Hint>;
}

/// A kernel shared by the actors of one node.
pub type SharedKernel = Rc<dyn Kernel>;

/// A mount point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountFact {
    /// The volume whose array is mounted there; `None` for anything else.
    pub volume: Option<VolumeId>,
    /// Device that is mounted, as the kernel names it.
    pub source: String,
    /// Whether the file system answers, or the device is there.
    pub alive: bool,
    /// It is no file system but the device itself: a raw block volume.
    pub raw: bool,
    /// Whether it is mounted read-only.
    pub read_only: bool,
}
