//! Facts: what was observed, in the kernel's own nouns. Values only; nothing here reads or decides.
//!
//! Filled by the implementations of [`crate::Kernel`], read by the plans. Evidence types ([`BlankExtent`],
//! [`Unclaimed`], [`BlankData`], [`OtherCopyInSync`]) can only be made from a fact that shows what they claim;
//! destructive operations demand them.

mod md;

pub use md::{ArrayFact, Bitmap, BlankData, MemberFact, MemberProbe, OtherCopyInSync, Superblock, SyncSpeed};

use crate::content::Content;
use crate::id::{
    BootId, ClusterId, DriveId, Epoch, ExportKey, Generation, NodeName, Nqn, ReplicaId, ReplicaKey, VolumeId,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;
use uuid::Uuid;

/// Bytes from the start of a replica's partition to its first data byte. The gap holds the MD superblock (at 4 KiB),
/// the bitmap (8 KiB to at most 136 KiB: mdadm reserves no more than 128 KiB) and our own record (at [`RECORD_OFFSET`]).
pub const DATA_OFFSET: u64 = 4 << 20;
/// Where the first of the two slots of the [`EpochRecord`] lies inside the partition: clear of any bitmap MD makes.
pub const RECORD_OFFSET: u64 = 3 << 20;
/// Distance of the second record slot from the first: another erase block, so one torn write spoils one slot.
pub const RECORD_STRIDE: u64 = 64 << 10;
/// One bit of the write-intent bitmap stands for this many bytes.
pub const BITMAP_CHUNK: u64 = 64 << 20;
/// Bytes that the bitmap may take, its header included: what mdadm reserves at most.
pub const BITMAP_BYTES: u64 = 128 << 10;
/// The largest component whose bitmap keeps its chunk in that space (`struct bitmap_super_s` has 256 bytes): beyond it MD
/// would double the chunk at a growth (md-bitmap.c `md_bitmap_resize`), and two bitmaps could not be compared any more.
pub const COMPONENT_MAX: u64 = (BITMAP_BYTES - 256) * 8 * BITMAP_CHUNK;
/// Sectors that a held recovery leaves to be copied at its end: as few as make a difference to `sync_completed` (64 KiB, the
/// unit in which MD resyncs: raid1.c, `RESYNC_BLOCK_SIZE`).
pub const HELD_BACK: u64 = 128;
/// Partitions start and end on multiples of this.
pub const ALIGNMENT: u64 = 1 << 20;
/// Bytes of a data area that have to read zero at each of its ends before it counts as blank. Whatever signs a device does
/// so within them: ZFS has two labels of 256 KiB at either end, all others are nearer to it (libblkid's probes).
pub const BLANK_BYTES: u64 = 512 << 10;

// ---------------------------------------------------------------------------------------------- drives

/// A drive of this node, as its bytes and sysfs show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveFact {
    /// Stable identity.
    pub id: DriveId,
    /// Device node now, for instance `/dev/nvme0n1`; changes between boots.
    pub path: String,
    /// Model string of the controller.
    pub model: String,
    /// Serial number of the controller.
    pub serial: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Logical block size in bytes: 512 or 4096.
    pub sector_bytes: u32,
    /// Whether a volatile write cache is on: what the drive has acknowledged and not flushed goes with its power.
    pub volatile_cache: bool,
    /// Whose drive it is.
    pub class: DriveClass,
    /// Used entries of the partition table, by number; empty when there is none we can trust.
    pub entries: BTreeMap<u32, PartitionEntry>,
    /// Unallocated extents of at least [`ALIGNMENT`], aligned, that neither the table nor the kernel uses.
    pub free: Vec<Extent>,
}

/// Whose drive it is. *Theirs* is the default: anything not proven otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriveClass {
    /// A healthy GPT whose every entry carries our type.
    Ours,
    /// A healthy GPT with foreign entries (and perhaps ours): usable only when an operator names the drive.
    Shared,
    /// No table, no signature, first and last 4 MiB all zero.
    Blank(BlankDrive),
    /// Somebody else's, with the reason in words a person can act on (`ext4 file system on the whole drive`).
    Theirs(String),
    /// Could not be read: never touched.
    Unreadable(String),
}

/// Evidence that a whole drive is blank. Made only by the classifier, from bytes just read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlankDrive {
    drive: DriveId,
}

impl BlankDrive {
    /// For the classifier alone: `first` and `last` are the drive's first and last bytes as read.
    /// `None` when any byte is set or a reading is short (under 1 MiB).
    pub fn from_bytes(drive: &DriveId, first: &[u8], last: &[u8]) -> Option<BlankDrive> {
        let long_enough = first.len() >= ALIGNMENT as usize && last.len() >= ALIGNMENT as usize;
        let zero = |bytes: &[u8]| bytes.iter().all(|b| *b == 0);
        (long_enough && zero(first) && zero(last)).then(|| BlankDrive { drive: drive.clone() })
    }

    /// The drive that was seen blank.
    pub fn drive(&self) -> &DriveId {
        &self.drive
    }
}

/// One used entry of a GPT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionEntry {
    /// Type GUID.
    pub type_guid: Uuid,
    /// Unique GUID.
    pub unique_guid: Uuid,
    /// Name.
    pub name: String,
    /// Where it lies.
    pub extent: Extent,
}

/// A range of a drive, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Extent {
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
}

impl Extent {
    /// One past the last byte.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }

    /// Whether some byte is in both.
    pub fn overlaps(&self, other: &Extent) -> bool {
        self.start < other.end() && other.start < self.end()
    }
}

// ------------------------------------------------------------------------------------------ partitions

/// One replica's partition on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionFact {
    /// The drive it is on.
    pub drive: DriveId,
    /// GPT entry number.
    pub number: u32,
    /// Where it lies.
    pub extent: Extent,
    /// Device node, when the kernel knows the partition.
    pub path: Option<String>,
    /// Sizes the kernel has (differs from the table between a table edit and `BLKPG`).
    pub kernel_bytes: Option<u64>,
    /// Whether the drive's volatile write cache is on.
    pub volatile_cache: bool,
    /// Which appearance of the drive in which boot this is. While two looks show the same, the drive has not lost its power
    /// between them; empty when that cannot be told.
    pub power: String,
    /// Kernel holders of the partition (`md127`, `dm-3`): names in sysfs `holders/`.
    pub holders: BTreeSet<String>,
    /// The MD superblock in it, read with `O_DIRECT`.
    pub superblock: Option<Superblock>,
    /// Our record in it.
    pub record: Option<EpochRecord>,
    /// Whether the data area was zeroed by us after the entry was made: the record exists, the first data bytes read zero.
    pub zeroed: bool,
}

/// Evidence that a GPT entry is ours and nothing uses it: no holder, no export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unclaimed {
    key: ReplicaKey,
}

impl Unclaimed {
    /// From a partition and the exports of the same replica, both just observed.
    pub fn prove(key: ReplicaKey, partition: &PartitionFact, exports: &ExportFact) -> Option<Unclaimed> {
        let exported = exports.entries.values().any(|e| e.enabled || !e.ports.is_empty());
        (partition.holders.is_empty() && !exported).then_some(Unclaimed { key })
    }

    /// The replica whose partition is unclaimed.
    pub fn key(&self) -> ReplicaKey {
        self.key
    }
}

/// The record each replica carries on its own drive, outside etcd: the epoch floor and the membership as last known
/// to its node (docs/protocol.md, rule 9).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EpochRecord {
    /// The volume whose data these are.
    pub volume: VolumeId,
    /// The cluster the volume belongs to.
    pub cluster: ClusterId,
    /// Which replica this is.
    pub replica: ReplicaId,
    /// Highest epoch this replica's node has fenced for.
    pub epoch: Epoch,
    /// Export generation inside the epoch.
    pub generation: Generation,
    /// The in-sync set as last seen by this node; for `meshstor recover` only, never for decisions while the CR is there.
    pub in_sync: BTreeSet<ReplicaId>,
    /// Name of the volume's custom resource, for recovery.
    pub volume_name: String,
    /// Raised by one at each write; the higher of two valid slots counts.
    pub sequence: u64,
    /// The member, by MD's `device_uuid`, from which somebody else assembled an array: its bitmap and its events prove
    /// nothing any more (F11). It speaks of that member only, and a whole recovery makes another one of the partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tainted: Option<Uuid>,
    /// The drive's [`PartitionFact::power`] when this export life was first offered with a volatile cache on: the life ends
    /// with it (rule 11). Absent: every write of this life was durable when it was acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unflushed: Option<String>,
    /// What the volume holds, for recovery: a device cannot tell whose file system lies on it. Absent: XFS.
    #[serde(default, skip_serializing_if = "Content::is_default")]
    pub content: Content,
}

impl EpochRecord {
    /// Whether somebody else has assembled an array from this member.
    pub fn taints(&self, superblock: &Superblock) -> bool {
        self.tainted == Some(superblock.device_uuid)
    }
}

// ---------------------------------------------------------------------------------------------- exports

/// Everything nvmet holds for one replica, of any epoch, and the ports that are taken on this node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExportFact {
    /// Subsystems of this replica.
    pub entries: BTreeMap<ExportKey, ExportEntry>,
    /// Service numbers (`trsvcid`) of every nvmet port that exists on this node, linked or not.
    pub ports_in_use: BTreeSet<u16>,
}

/// One subsystem and what hangs on it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExportEntry {
    /// Device path of namespace 1, when the namespace exists.
    pub device_path: Option<String>,
    /// uuid of namespace 1.
    pub namespace_uuid: Option<Uuid>,
    /// Whether namespace 1 is enabled.
    pub enabled: bool,
    /// It is enabled, and the drive was taken away since: nvmet holds a block device that is no more and answers every
    /// command with an error, also when the drive is back.
    pub gone: bool,
    /// Allowed hosts.
    pub hosts: BTreeSet<Nqn>,
    /// Ports it is linked to.
    pub ports: BTreeSet<Listen>,
    /// Our ports for it that exist but are not linked.
    pub unlinked_ports: BTreeSet<Listen>,
    /// The size that nvmet has told its hosts last; `None` when this process has not seen that.
    pub bytes: Option<u64>,
    /// Transports over which a host is connected to one of its ports now. A host that fell silent is in here until its
    /// keep-alive has run out (5 s, and what the target adds).
    pub connected: BTreeSet<Transport>,
}

/// NVMe-oF transports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// RDMA comes first: it is preferred where both ends have it.
    Rdma,
    /// TCP.
    Tcp,
}

impl Transport {
    /// The kernel's spelling (`trtype`, `transport=`).
    pub fn as_str(&self) -> &'static str {
        match self {
            Transport::Rdma => "rdma",
            Transport::Tcp => "tcp",
        }
    }
}

/// An address an export listens on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Listen {
    /// Transport.
    pub transport: Transport,
    /// IP address.
    pub address: IpAddr,
    /// Service number (`trsvcid`).
    pub port: u16,
}

// ------------------------------------------------------------------------------------------ connections

/// What the nvme host holds for one NQN.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConnectionFact {
    /// Controllers, by name (`nvme3`).
    pub controllers: BTreeMap<String, ControllerFact>,
    /// The namespace's head block device, when it exists.
    pub head: Option<BlockDevice>,
    /// How long no controller has been `live`; zero while one is. The implementation keeps the clock.
    pub down_for: Duration,
    /// How long I/O has been in flight without a single completion; zero otherwise.
    pub stalled_for: Duration,
}

impl ConnectionFact {
    /// Whether some controller is live.
    pub fn live(&self) -> bool {
        self.controllers.values().any(|c| c.state == "live")
    }
}

/// One nvme host controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerFact {
    /// `live`, `connecting`, `resetting`, `deleting`, …
    pub state: String,
    /// Where it dials.
    pub address: Listen,
}

/// A block device of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// Kernel name, for instance `nvme3n1`.
    pub name: String,
    /// Device node.
    pub path: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Logical block size in bytes.
    pub sector_bytes: u32,
    /// `uuid` attribute (NVMe heads only).
    pub uuid: Option<Uuid>,
}

// ---------------------------------------------------------------------------------------- file systems

/// What lies on an array and where it is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FsFact {
    /// File system found by its magic on the device: `xfs`, `ext4`; `Some("unknown")` for any other non-zero content.
    pub signature: Option<String>,
    /// Mount points of the device, with whether the mounted file system still answers (`statfs` works, not shut down).
    pub mounts: BTreeMap<String, bool>,
    /// Places where the device itself is bound to: those of a raw block volume.
    pub raw: BTreeSet<String>,
    /// Bytes that the mounted file system spans, where it can be asked.
    pub bytes: Option<u64>,
}

// ---------------------------------------------------------------------------------------------- node

/// This node, as `preflight` and the address discovery see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFact {
    /// Name.
    pub name: NodeName,
    /// Boot id.
    pub boot: BootId,
    /// `/etc/machine-id` or the DMI product uuid.
    pub machine_id: String,
    /// Kernel release (`uname -r`).
    pub kernel: String,
    /// Addresses usable for exports, with the network device; RDMA ones have an RDMA link on that device.
    pub addresses: BTreeSet<(Transport, IpAddr, String)>,
    /// Preflight checks by name.
    pub checks: BTreeMap<String, Check>,
}

/// One preflight check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Whether it passed.
    pub ok: bool,
    /// Whether the node can work without it (RDMA) or not (nvmet, MD).
    pub required: bool,
    /// What was found, in one sentence.
    pub message: String,
}
