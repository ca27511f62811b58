//! Whose drive is it? From its first and last bytes to a verdict. *Theirs* is the answer unless proven otherwise (P3).
//!
//! ```text
//!  all zero ───────────────────────────▶ Blank
//!  GPT, both copies sound and agreeing ▶ Ours (every entry ours) or Shared
//!  anything else ──────────────────────▶ Theirs, with the reason in words a person can act on
//! ```
//!
//! Pure. Called by the drive scan, and by the table editor before and after each write. `table` reads the partition
//! table, `signatures` knows file systems, RAIDs and volume managers.

use crate::facts::{ALIGNMENT, BlankDrive, DriveClass, Extent, PartitionEntry};
use crate::id::{DriveId, PARTITION_TYPE};
use std::collections::BTreeMap;
use uuid::Uuid;

pub mod signatures;
pub mod table;
#[cfg(test)]
pub(crate) mod tests;

use table::{Copy, Header, Table};

/// Bytes read from each end of a drive to tell whose it is.
pub const WINDOW_BYTES: u64 = 4 << 20;
/// Bytes read from each end of a drive to find partitions on it: the largest entry array we accept, and some.
pub const TABLE_BYTES: u64 = 256 << 10;
/// Smaller drives hold no volume worth the name, and their two windows would overlap.
const SMALLEST_DRIVE: u64 = 64 << 20;
const NO_BACKUP: &str = "a GPT without its backup in the last block; sgdisk -e moves it there";

/// Size and logical block size of a drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Logical block size in bytes.
    pub sector_bytes: u32,
}

/// The two ends of a drive as just read.
#[derive(Debug, Clone, Copy)]
pub struct Window<'a> {
    /// Size and block size.
    pub geometry: Geometry,
    /// The first bytes.
    pub first: &'a [u8],
    /// The last bytes.
    pub last: &'a [u8],
}

impl<'a> Window<'a> {
    /// `len` bytes at a position of the drive, when they were read.
    pub fn bytes(&self, at: u64, len: usize) -> Option<&'a [u8]> {
        let within = |window: &'a [u8], start: u64| {
            let from = usize::try_from(at.checked_sub(start)?).ok()?;
            window.get(from..from.checked_add(len)?)
        };
        let last_start = self.geometry.size_bytes.checked_sub(self.last.len() as u64)?;
        within(self.first, 0).or_else(|| within(self.last, last_start))
    }

    /// The same at a logical block address.
    pub fn block(&self, lba: u64, len: usize) -> Option<&'a [u8]> {
        self.bytes(lba.checked_mul(u64::from(self.geometry.sector_bytes))?, len)
    }
}

/// What the bytes say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whose drive it is.
    pub class: DriveClass,
    /// The partition table, when it may be edited.
    pub table: Option<Table>,
}

impl Verdict {
    /// Used entries by number; empty when there is no table we trust.
    pub fn entries(&self) -> BTreeMap<u32, PartitionEntry> {
        self.table.as_ref().map(|table| table.entries.clone()).unwrap_or_default()
    }

    fn theirs(reason: impl Into<String>) -> Verdict {
        Verdict { class: DriveClass::Theirs(reason.into()), table: None }
    }
}

/// Whose drive it is, from [`WINDOW_BYTES`] of each end.
pub fn classify(drive: &DriveId, window: Window<'_>) -> Verdict {
    let Geometry { size_bytes, sector_bytes } = window.geometry;
    if size_bytes < SMALLEST_DRIVE {
        return Verdict::theirs(format!("only {size_bytes} bytes large, {SMALLEST_DRIVE} are needed"));
    }
    if !matches!(sector_bytes, 512 | 4096) {
        return Verdict::theirs(format!("logical blocks of {sector_bytes} bytes, 512 or 4096 are needed"));
    }
    let wanted = WINDOW_BYTES.min(size_bytes / 2) as usize;
    if window.first.len() < wanted || window.last.len() < wanted {
        return Verdict { class: DriveClass::Unreadable("its first or last bytes came short".into()), table: None };
    }
    if let Some(blank) = BlankDrive::from_bytes(drive, window.first, window.last) {
        return Verdict { class: DriveClass::Blank(blank), table: None };
    }
    match read_table(window) {
        Ok(Some(table)) => of_table(window, table),
        Ok(None) => Verdict::theirs(foreign(window)),
        Err(reason) => match signatures::find(window).first() {
            Some(found) => Verdict::theirs(format!("{} on the whole drive, over {reason}", found.what)),
            None => Verdict::theirs(reason),
        },
    }
}

/// A drive with a table we trust: ours or shared, unless something else claims the whole drive as well.
fn of_table(window: Window<'_>, table: Table) -> Verdict {
    let within = |at: u64| table.entries.values().any(|e| e.extent.start <= at && at < e.extent.end());
    if let Some(found) = signatures::find(window).into_iter().find(|found| !within(found.at)) {
        return Verdict::theirs(format!(
            "{} at byte {} beside a partition table; clear what is stale with wipefs",
            found.what, found.at
        ));
    }
    let foreign = table.entries.values().any(|entry| entry.type_guid != PARTITION_TYPE);
    // A table without entries is ours when we wrote it; somebody else's may be about to be used by them.
    let ours = !foreign && (!table.entries.is_empty() || is_label(&table.disk_guid));
    Verdict { class: if ours { DriveClass::Ours } else { DriveClass::Shared }, table: Some(table) }
}

/// What a drive without a GPT of its own sector size holds.
fn foreign(window: Window<'_>) -> String {
    if let Some(found) = signatures::find(window).first() {
        return format!("{} on the whole drive", found.what);
    }
    let Geometry { size_bytes, sector_bytes } = window.geometry;
    let other = if sector_bytes == 512 { 4096 } else { 512 };
    if window.bytes(other, 8) == Some(table::SIGNATURE) {
        return format!("a GPT written for {other}-byte blocks, while the drive now has {sector_bytes}-byte blocks");
    }
    if table::mbr(window).is_some_and(|mbr| mbr.is_table()) {
        return "an MBR partition table".into();
    }
    if window.bytes(size_bytes - u64::from(sector_bytes), 8) == Some(table::SIGNATURE) {
        return "a backup GPT without a primary one; clear it with sgdisk --zap-all if nothing is needed".into();
    }
    let set = |bytes: &[u8]| bytes.iter().position(|b| *b != 0).map(|at| at as u64);
    let last_start = size_bytes - window.last.len() as u64;
    let at = set(window.first).or_else(|| set(window.last).map(|at| last_start + at)).unwrap_or(0);
    format!("unrecognised content at byte {at}; clear the first and last 4 MiB if nothing is needed")
}

// ------------------------------------------------------------------------------------------- both copies

/// The drive's partition table: `None` without a primary header, an error when there is one that must not be touched.
///
/// Beyond the plain case of two sound, agreeing copies it accepts what an edit of ours leaves when it is cut short
/// (`gpt.rs` writes the backup wholly before the primary), and only that; the next edit writes both again.
pub fn read_table(window: Window<'_>) -> Result<Option<Table>, String> {
    let last_lba = window.geometry.size_bytes / u64::from(window.geometry.sector_bytes) - 1;
    let primary = Copy::read(window, 1, last_lba);
    if primary == Copy::Absent {
        return Ok(None);
    }
    table::protective(window)?;
    let backup = Copy::read(window, last_lba, 1);
    match (primary, backup) {
        (Copy::Sound(primary), Copy::Sound(backup)) => agree(primary, backup).map(Some),
        // The label writes the primary first: on a blank drive there is nothing to lose.
        (Copy::Sound(primary), Copy::Absent) if is_label(&primary.disk_guid) && primary.entries.is_empty() => {
            zero_backup(window, last_lba, &primary)?;
            Ok(Some(primary.into_table(false)))
        }
        (Copy::Sound(_), Copy::Absent) => Err(NO_BACKUP.into()),
        (Copy::Sound(sound), Copy::Damaged(why)) => survivor(sound, "backup", &why).map(Some),
        (Copy::Damaged(why), Copy::Sound(backup)) => {
            // The backup cannot say where the primary's entries were; on a drive we labelled they follow its header.
            survivor(Header { array_lba: 2, ..backup }, "primary", &why).map(Some)
        }
        (Copy::Damaged(why), _) => Err(format!("a damaged GPT ({why}); sgdisk --verify tells more")),
        (Copy::Absent, _) => Ok(None),
    }
}

/// Two sound copies: the same table, or a table and an edit of ours that did not get to the primary.
fn agree(primary: Header, backup: Header) -> Result<Table, String> {
    let same_frame =
        primary.disk_guid == backup.disk_guid && primary.usable == backup.usable && primary.slots == backup.slots;
    if same_frame && primary.array == backup.array {
        return Ok(primary.into_table(true));
    }
    let foreign = |header: &Header| -> Vec<(u32, Vec<u8>)> {
        let others = header.entries.iter().filter(|(_, entry)| entry.type_guid != PARTITION_TYPE);
        others.map(|(number, _)| (*number, header.slot(*number).to_vec())).collect()
    };
    if same_frame && foreign(&primary) == foreign(&backup) {
        return Ok(primary.into_table(false));
    }
    Err("a GPT whose two copies differ; repair it with sgdisk or gdisk".into())
}

/// One sound copy beside a damaged one: trusted on a drive that we labelled and use alone.
fn survivor(sound: Header, damaged: &str, why: &str) -> Result<Table, String> {
    let ours = is_label(&sound.disk_guid) && sound.entries.values().all(|entry| entry.type_guid == PARTITION_TYPE);
    if ours {
        return Ok(sound.into_table(false));
    }
    Err(format!("a GPT whose {damaged} copy is damaged ({why}); repair it with sgdisk or gdisk"))
}

/// A half-written label has nothing at all where the backup goes.
fn zero_backup(window: Window<'_>, last_lba: u64, primary: &Header) -> Result<(), String> {
    let sector = u64::from(window.geometry.sector_bytes);
    let start = last_lba * sector - primary.array.len() as u64;
    let zero = window.bytes(start, primary.array.len() + sector as usize).is_some_and(|b| b.iter().all(|b| *b == 0));
    if zero { Ok(()) } else { Err(NO_BACKUP.into()) }
}

// ------------------------------------------------------------------------------------- labels and space

/// The disk GUID for a drive we label: a fixed half that says whose label it is, and one that is the drive's own.
pub fn label_of(drive: &DriveId) -> Uuid {
    let mut bytes = *Uuid::new_v5(&PARTITION_TYPE, drive.0.as_bytes()).as_bytes();
    bytes[..8].copy_from_slice(&PARTITION_TYPE.as_bytes()[..8]);
    Uuid::from_bytes(bytes)
}

/// Whether a disk GUID says that we labelled the drive.
pub fn is_label(disk_guid: &Uuid) -> bool {
    disk_guid.as_bytes()[..8] == PARTITION_TYPE.as_bytes()[..8]
}

/// Aligned extents of at least [`ALIGNMENT`] inside `usable` that none of `used` touches, in order.
pub fn free_extents(usable: Extent, used: impl IntoIterator<Item = Extent>) -> Vec<Extent> {
    let mut used: Vec<Extent> = used.into_iter().filter(|extent| extent.length > 0).collect();
    used.sort();
    // A sentinel closes the last gap.
    used.push(Extent { start: usable.end(), length: 0 });
    let mut free = Vec::new();
    let mut from = usable.start;
    for extent in used {
        let Some(start) = from.checked_next_multiple_of(ALIGNMENT) else { break };
        let end = extent.start.min(usable.end()) / ALIGNMENT * ALIGNMENT;
        if end > start {
            free.push(Extent { start, length: end - start });
        }
        from = from.max(extent.end());
    }
    free
}
