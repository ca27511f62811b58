//! Facts about MD: superblocks and bitmaps as they lie on members, arrays as they run, and the evidence that follows.
//!
//! Values only, as in [`super`].

use super::{BLANK_BYTES, EpochRecord};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

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
    /// Whether this device is write-mostly (`devflags`): MD takes it so at each assembly.
    pub write_mostly: bool,
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
    /// Whether this kernel could not give the array a bitmap again that was taken away.
    pub keeps_bitmap: bool,
    /// `safe_mode_delay` is zero.
    pub safe_mode_off: bool,
    /// Between which speeds a resync runs: at the first whatever else goes on, up to the second while nothing does.
    pub sync_speed: Option<SyncSpeed>,
    /// A recovery waits just before its end until it is let go on (`sync_max` is a number).
    pub sync_held: bool,
    /// Members by kernel name of the component (`nvme0n1p2`, `nvme3n1`).
    pub members: BTreeMap<String, MemberFact>,
    /// Where its device is mounted (mount points in the agent's mount namespace).
    pub mounts: BTreeSet<String>,
    /// Processes or kernel objects that have the device open beyond mounts: sysfs `holders/`.
    pub holders: BTreeSet<String>,
}

impl ArrayFact {
    /// Kernel objects on top of it. Simulated kernels list processes as well, which can be killed.
    pub fn kernel_holders(&self) -> impl Iterator<Item = &String> {
        self.holders.iter().filter(|holder| !holder.starts_with("process "))
    }
}

/// Speed limits of an array's resyncs and recoveries (`sync_speed_min`, `sync_speed_max`), for each member, in KiB/s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncSpeed {
    /// Never slower, whatever the array and its drives are used for.
    pub min_kib: u32,
    /// Never faster.
    pub max_kib: u32,
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
