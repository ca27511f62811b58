//! Facts: what was observed, in the kernel's own nouns. Values only; nothing here reads or decides.
//!
//! Filled by the implementations of [`crate::Kernel`], read by the plans. Evidence types ([`BlankExtent`],
//! [`Unclaimed`], [`BlankData`], [`OtherCopyInSync`]) can only be made from a fact that shows what they claim;
//! destructive operations demand them.

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
    /// Whether a volatile write cache is on (`queue/write_cache` says `write back`).
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
/// to its node (design section 4, rule 9).
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
}

// ------------------------------------------------------------------------------------------- superblock

/// An MD v1.2 superblock (`struct mdp_superblock_1`, linux/raid/md_p.h), checksum verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// `set_uuid`.
    pub set_uuid: Uuid,
    /// `set_name`, trailing zeros removed.
    pub name: String,
    /// RAID level: 1 or 10.
    pub level: i32,
    /// Slots of the array.
    pub raid_disks: u32,
    /// Event counter.
    pub events: u64,
    /// This device's number, the index into `roles`.
    pub dev_number: u32,
    /// Role of each device number: slot, `0xffff` spare, `0xfffe` faulty.
    pub roles: Vec<u16>,
    /// This device's own uuid.
    pub device_uuid: Uuid,
    /// `data_offset` in bytes.
    pub data_offset: u64,
    /// `size` in bytes: component size used by the array.
    pub component_bytes: u64,
    /// `recovery_offset` in bytes when the feature bit says it holds: the device is not fully recovered.
    pub recovery_offset: Option<u64>,
    /// Whether `resync_offset` says a resync is pending (dirty).
    pub resync_pending: bool,
    /// The write-intent bitmap that lies in this device, when the feature bit says so.
    pub bitmap: Option<Bitmap>,
}

impl Superblock {
    /// Role of this device: `Some(slot)` when it says of itself that it is an active, fully recovered member.
    pub fn active_slot(&self) -> Option<u16> {
        let role = *self.roles.get(self.dev_number as usize)?;
        (role < 0xfff0 && self.recovery_offset.is_none()).then_some(role)
    }

    /// Number of slots that this superblock knows to be filled by a live device.
    pub fn live_slots(&self) -> usize {
        self.roles.iter().filter(|r| **r < 0xfff0).collect::<BTreeSet<_>>().len()
    }
}

/// An on-disk write-intent bitmap (`struct bitmap_super_s`, md-bitmap.h).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    /// Array uuid in the bitmap's header.
    pub uuid: Uuid,
    /// Events when it was last written.
    pub events: u64,
    /// Events when bits were last cleared.
    pub events_cleared: u64,
    /// Bytes for each bit.
    pub chunk_bytes: u64,
    /// Chunks whose bit is set.
    pub dirty: BTreeSet<u64>,
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
    /// Allowed hosts.
    pub hosts: BTreeSet<Nqn>,
    /// Ports it is linked to.
    pub ports: BTreeSet<Listen>,
    /// Our ports for it that exist but are not linked.
    pub unlinked_ports: BTreeSet<Listen>,
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

// ----------------------------------------------------------------------------------------------- arrays

/// An MD array of ours, running or half-made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArrayFact {
    /// Kernel name (`md1001`).
    pub name: String,
    /// Device node.
    pub path: String,
    /// sysfs `array_state`: `clean`, `active`, `readonly`, `read-auto`, `write-pending`, `broken`, `inactive`, …
    pub state: String,
    /// Slots.
    pub raid_disks: u32,
    /// Missing active members.
    pub degraded: u32,
    /// Usable bytes.
    pub size_bytes: u64,
    /// sysfs `sync_action`: `idle`, `resync`, `recover`, `frozen`, …
    pub sync_action: String,
    /// Sectors done and in all of the running sync.
    pub sync_completed: Option<(u64, u64)>,
    /// Whether `resync_start` is `none`: no resync pending.
    pub resync_done: bool,
    /// Whether the array has a write-intent bitmap.
    pub has_bitmap: bool,
    /// `safe_mode_delay` is zero.
    pub safe_mode_off: bool,
    /// Members by kernel name of the component (`nvme0n1p2`, `nvme3n1`).
    pub members: BTreeMap<String, MemberFact>,
    /// Where its device is mounted (mount points in the agent's mount namespace).
    pub mounts: BTreeSet<String>,
    /// Processes or kernel objects that have the device open beyond mounts: sysfs `holders/`.
    pub holders: BTreeSet<String>,
}

/// One member of an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberFact {
    /// sysfs `dev-X/state` flags: `in_sync`, `faulty`, `blocked`, `write_mostly`, `spare`, …
    pub flags: BTreeSet<String>,
    /// Slot, when it has one.
    pub slot: Option<u32>,
}

impl MemberFact {
    /// Whether MD writes to it and trusts it wholly.
    pub fn in_sync(&self) -> bool {
        self.flags.contains("in_sync") && !self.flags.contains("faulty")
    }
}

/// What a look at one device with `O_DIRECT` through the ring showed; used for local partitions and fabric heads alike.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemberProbe {
    /// MD superblock.
    pub superblock: Option<Superblock>,
    /// Our record.
    pub record: Option<EpochRecord>,
    /// Proof that the data area is blank: its first 4 MiB and last 1 MiB read zero.
    pub blank: Option<BlankData>,
}

/// Evidence that a member holds no data yet. Made only from bytes just read from the member itself, never through the array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlankData {
    device: String,
}

impl BlankData {
    /// `head` and `tail` are the first and last bytes of the member's data area as read from `device`.
    pub fn from_bytes(device: &str, head: &[u8], tail: &[u8]) -> Option<BlankData> {
        let long_enough = head.len() >= BLANK_BYTES as usize && tail.len() >= BLANK_BYTES as usize;
        let zero = |bytes: &[u8]| bytes.iter().all(|b| *b == 0);
        (long_enough && zero(head) && zero(tail)).then(|| BlankData { device: device.to_string() })
    }

    /// Device that was read.
    pub fn device(&self) -> &str {
        &self.device
    }
}

/// Evidence that a member may leave: another member of the recorded in-sync set is active in the array and answers now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherCopyInSync {
    survivor: String,
}

impl OtherCopyInSync {
    /// `survivor` is a component other than `leaving`, in sync by MD, and `answers` (its path is live or local).
    pub fn prove(array: &ArrayFact, leaving: &str, survivor: &str, answers: bool) -> Option<OtherCopyInSync> {
        let in_sync = array.members.get(survivor).is_some_and(MemberFact::in_sync);
        (answers && in_sync && survivor != leaving).then(|| OtherCopyInSync { survivor: survivor.to_string() })
    }

    /// Kernel name of the surviving component.
    pub fn survivor(&self) -> &str {
        &self.survivor
    }
}

// ---------------------------------------------------------------------------------------- file systems

/// What lies on an array and where it is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FsFact {
    /// File system found by its magic on the device: `xfs`, `ext4`; `Some("unknown")` for any other non-zero content.
    pub signature: Option<String>,
    /// Mount points of the device, with whether the mounted file system still answers (`statfs` works, not shut down).
    pub mounts: BTreeMap<String, bool>,
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
