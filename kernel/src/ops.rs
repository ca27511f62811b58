//! Operations: the complete list of things we ever ask of a kernel. `Display` is the audit line.
//!
//! Made only by plans, carried out only by implementations of [`crate::Kernel`]. Every operation is idempotent:
//! when what it asks for is already so, it answers [`Changed::No`]. An operation that failed may have happened.

mod name;
mod under_way;
mod words;

use crate::content::Filesystem;
use crate::facts::{BlankData, BlankDrive, EpochRecord, Extent, Listen, OtherCopyInSync, SyncSpeed, Unclaimed};
use crate::id::{DriveId, Epoch, ExportKey, NodeName, Nqn, ReplicaKey, VolumeId};
use std::collections::BTreeSet;
use std::time::Duration;
use uuid::Uuid;

/// Whether an operation changed anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// It was already so.
    No,
    /// It is so now.
    Yes,
}

/// One thing to do to this node's kernel or drives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Write a fresh GPT on a drive proven blank.
    LabelDrive {
        /// The proof.
        evidence: BlankDrive,
    },
    /// Turn a drive's volatile write cache off and flush what is in it. Refused by a drive that cannot.
    DisableCache {
        /// The drive.
        drive: DriveId,
    },
    /// Add a GPT entry in free space and tell the kernel. Refused when the extent is not free at that moment.
    AddPartition {
        /// Whose entry.
        key: ReplicaKey,
        /// The drive.
        drive: DriveId,
        /// Where.
        extent: Extent,
    },
    /// Lengthen a replica's GPT entry in place, in use or not: the space behind it is zeroed durably, then the entry is
    /// changed, then the kernel is told. Refused when that space is not free at that moment; it never shortens.
    GrowPartition {
        /// Whose entry.
        key: ReplicaKey,
        /// The drive.
        drive: DriveId,
        /// Bytes it is to have.
        bytes: u64,
    },
    /// Tell the kernel about an entry that the table has and the kernel has not.
    AnnouncePartition {
        /// Whose entry.
        key: ReplicaKey,
    },
    /// Zero a partition just made by us and write its first record. Refused when it has a record, a holder or an export.
    BlankPartition {
        /// Proof that nobody uses it.
        evidence: Unclaimed,
        /// Its first record.
        record: EpochRecord,
    },
    /// Write our record on the replica's own drive, durably. Refused when the drive has a higher (epoch, generation).
    WriteRecord {
        /// Whose.
        key: ReplicaKey,
        /// The record; `sequence` is set by the implementation.
        record: EpochRecord,
    },
    /// Discard the partition's bytes and remove its entry.
    RemovePartition {
        /// Proof that nobody uses it.
        evidence: Unclaimed,
    },
    /// Build an export wholly: subsystem, namespace with fixed ids, enable, allowed host, port link last. One operation,
    /// so that a linked port without host and enabled namespace cannot be expressed (docs/protocol.md, rule 4).
    Export {
        /// Identity.
        key: ExportKey,
        /// The one allowed host.
        host: Nqn,
        /// Where to listen; a TCP address beside an RDMA one is offered as non-optimized.
        listen: BTreeSet<Listen>,
    },
    /// Fence an export: unlink from all its ports, then disable the namespace and wait until nothing is in flight.
    Fence {
        /// Identity.
        key: ExportKey,
    },
    /// Have nvmet look at the size of an export's partition again and tell its host.
    RevalidateExport {
        /// Identity.
        key: ExportKey,
    },
    /// Remove a fenced export's objects.
    RemoveExport {
        /// Identity.
        key: ExportKey,
    },
    /// Connect to one address of an export (pre-dialled), with our host NQN and host id, `ctrl_loss_tmo=-1`.
    Connect {
        /// Export.
        key: ExportKey,
        /// The consuming node, whose host NQN and host id are used.
        node: NodeName,
        /// Address.
        address: Listen,
    },
    /// Delete the controllers of an export that no array uses.
    Disconnect {
        /// Export.
        key: ExportKey,
    },
    /// Delete the controllers of an export that is a member of a running array: MD drops the member and waiting
    /// writes go on without it. Only after the loss is recorded.
    DropMember {
        /// Export.
        key: ExportKey,
        /// The volume whose array loses the member.
        volume: VolumeId,
        /// The survivor.
        evidence: OtherCopyInSync,
    },

    /// Delete the controllers of a deposed consumer's array, whatever the array then does: its file system has been
    /// shut down, so nothing it still holds can be acknowledged (docs/protocol.md, rule 7). Refused while a mount of
    /// the volume is alive; where nothing is mounted, whoever still has the device open is killed first.
    Abandon {
        /// Export.
        key: ExportKey,
        /// The higher epoch that was seen in the record.
        deposed_by: Epoch,
    },

    /// Create the array of a new volume over members proven blank.
    CreateArray {
        /// Volume.
        volume: VolumeId,
        /// Device paths in slot order, with their proofs.
        members: Vec<BlankData>,
        /// So many of them, the first ones, are this node's own; the others are write-mostly, so that reads stay local.
        /// With none, all are read alike.
        local: usize,
        /// Component size in bytes.
        component_bytes: u64,
    },
    /// Assemble read-only, with sync frozen, from exactly these devices.
    AssembleArray {
        /// Volume.
        volume: VolumeId,
        /// Device paths.
        members: Vec<String>,
    },
    /// Make an assembled array read-write (sync stays frozen).
    ActivateArray {
        /// Volume.
        volume: VolumeId,
    },
    /// Mark chunks dirty in the running array's bitmap (`bitmap_set_bits`), so that a resync covers them.
    MergeBitmap {
        /// Volume.
        volume: VolumeId,
        /// Chunks.
        chunks: BTreeSet<u64>,
    },
    /// Let sync run (`sync_action=idle`), set policies (`safe_mode_delay=0`).
    ReleaseSync {
        /// Volume.
        volume: VolumeId,
    },
    /// Add a returning replica with a bitmap-based recovery.
    ReAddMember {
        /// Volume.
        volume: VolumeId,
        /// Device path.
        device: String,
    },
    /// Add a replica with a full recovery; its old superblock is overwritten.
    AddMember {
        /// Volume.
        volume: VolumeId,
        /// Device path.
        device: String,
    },
    /// Make MD fail one of this node's own partitions, which has no controller to delete. Only after the record is without
    /// it. Refused while a superblock is being written: on the last member `faulty` breaks the array for good.
    FailMember {
        /// Volume.
        volume: VolumeId,
        /// Kernel name of the component that leaves.
        component: String,
        /// The survivor.
        evidence: OtherCopyInSync,
    },
    /// Detach a member that MD has already failed.
    RemoveFaulty {
        /// Volume.
        volume: VolumeId,
        /// Kernel name of the component.
        component: String,
    },
    /// Freeze (`blocked`) or release (`-blocked`) all writes through one in-sync member.
    FreezeWrites {
        /// Volume.
        volume: VolumeId,
        /// Kernel name of the component.
        component: String,
        /// Freeze or release.
        frozen: bool,
    },
    /// Set or clear write-mostly.
    SetWriteMostly {
        /// Volume.
        volume: VolumeId,
        /// Kernel name of the component.
        component: String,
        /// On or off.
        on: bool,
    },
    /// Give the array an internal bitmap (before a second member joins).
    AddBitmap {
        /// Volume.
        volume: VolumeId,
    },
    /// Take the bitmap away again (one copy alone needs none, and writes twice as fast).
    RemoveBitmap {
        /// Volume.
        volume: VolumeId,
    },
    /// Change the number of slots.
    SetRaidDisks {
        /// Volume.
        volume: VolumeId,
        /// Slots.
        count: u32,
    },
    /// Use more of every member, without a resync: what is new was zeroed before it became part of a partition. Refused
    /// while anything is synced or a member is not whole, and when a device is too small. It never shrinks.
    GrowArray {
        /// Volume.
        volume: VolumeId,
        /// Component size in bytes.
        component_bytes: u64,
    },
    /// Bound the speed of resyncs and recoveries.
    SetSyncSpeed {
        /// Volume.
        volume: VolumeId,
        /// Between these.
        speed: SyncSpeed,
    },
    /// Hold recoveries to come just before their end (`sync_max`), or let one end. MD forgets it when a sync has ended.
    HoldSync {
        /// Volume.
        volume: VolumeId,
        /// Hold.
        held: bool,
    },
    /// Stop the array. Refused while something has it open.
    StopArray {
        /// Volume.
        volume: VolumeId,
    },
    /// Stop a foreign or automatic assembly (udev's `md127`) that holds a component of ours and is not in use.
    StopForeignArray {
        /// Kernel name.
        name: String,
    },

    /// Make the file system. Only with proofs from every active member, or to redo a half-made one that was never handed out.
    MakeFilesystem {
        /// Volume.
        volume: VolumeId,
        /// Which.
        filesystem: Filesystem,
        /// Why it is allowed.
        permit: FormatPermit,
    },
    /// Mount the array's file system.
    Mount {
        /// Volume.
        volume: VolumeId,
        /// Mount point; created when absent.
        target: String,
        /// Which file system.
        fs: Filesystem,
        /// Options, comma separated.
        options: String,
    },
    /// Have a mounted file system fill its array.
    GrowFilesystem {
        /// Volume.
        volume: VolumeId,
        /// A mount point of it that is not read-only.
        target: String,
    },
    /// Bind-mount.
    BindMount {
        /// Existing mount point.
        source: String,
        /// New mount point; created when absent.
        target: String,
        /// Read-only.
        read_only: bool,
    },
    /// Unmount whatever is mounted at a path (all layers) and remove the empty directory.
    Unmount {
        /// Mount point.
        target: String,
        /// Detach at once (`MNT_DETACH`): only for deposed or dead file systems.
        lazy: bool,
    },
    /// Kill every process that has the volume open: SIGKILL to those with files below its mounts or the device open.
    KillOpeners {
        /// Volume.
        volume: VolumeId,
    },
    /// Have a deposed array refuse every write from now on, kill every opener, and let the writes that were frozen go: what
    /// [`Op::ShutdownFilesystem`] is for a file system, for a raw block volume. Only after all its controllers are gone.
    CutOff {
        /// Volume.
        volume: VolumeId,
        /// The higher epoch that was seen in the record.
        deposed_by: Epoch,
    },
    /// Shut the file system down without writing the log (`GOINGDOWN`): from then on its mounts no longer answer. Whoever
    /// could still be told that a held write is done is killed by [`Op::Abandon`], which lets go of it.
    ShutdownFilesystem {
        /// Volume.
        volume: VolumeId,
    },
}

/// Why a file system may be made (P4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FormatPermit {
    /// Every active member was read and is blank.
    Blank(Vec<BlankData>),
    /// The record says `started`, in an epoch of ours, and not `done`: nobody was ever given this file system.
    StartedNotDone {
        /// The uuid of the record that says so: the volume's CR.
        record_of: Uuid,
    },
}

impl Op {
    /// How long the operation may take before its result no longer counts and we look again.
    pub fn deadline(&self) -> Duration {
        match self {
            // Microseconds, unless MD's mutex is taken; then the record must not wait for it (simulator, seed 78).
            Op::FreezeWrites { frozen, .. } => Duration::from_millis(if *frozen { 100 } else { 2000 }),
            // Zeroing runs at the drive's pace: 64 GiB at 500 MB/s and some.
            Op::BlankPartition { .. } | Op::RemovePartition { .. } | Op::GrowPartition { .. } => {
                Duration::from_secs(300)
            }
            // ext4 writes the tables of every new group.
            Op::GrowFilesystem { .. } => Duration::from_secs(300),
            // The drain waits for the backing drive, whose own command timeout is 30 s, twice.
            Op::Fence { .. } => Duration::from_secs(70),
            // mkfs on an emulated guest takes seconds; on a loaded drive more.
            Op::MakeFilesystem { .. } | Op::CreateArray { .. } | Op::AssembleArray { .. } => Duration::from_secs(60),
            _ => Duration::from_secs(20),
        }
    }
}
