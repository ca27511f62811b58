//! One copy of a GUID partition table, and the MBR in front of it, from bytes to values, checked to the last rule.
//!
//! Pure. Called by the classifier, which compares the two copies. It accepts less than the UEFI specification (2.10,
//! section 5.3) allows: what our editor could not write back byte for byte is refused with a reason.

use super::Window;
use crate::facts::{Extent, PartitionEntry};
use std::collections::BTreeMap;
use uuid::Uuid;

/// What a GPT header starts with.
pub const SIGNATURE: &[u8] = b"EFI PART";
/// The only header and entry sizes in use, and the only ones the editor writes.
const HEADER_BYTES: u32 = 92;
/// Bytes of one entry.
pub const ENTRY_BYTES: u32 = 128;
/// More entries than any tool makes; keeps the array inside what is read of the drive's ends.
const MOST_ENTRIES: u32 = 1024;

/// A partition table we trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The disk's own GUID.
    pub disk_guid: Uuid,
    /// Entries the table has room for.
    pub slots: u32,
    /// Bytes that partitions may occupy.
    pub usable: Extent,
    /// Used entries by number.
    pub entries: BTreeMap<u32, PartitionEntry>,
    /// The entry array as it lies on the drive.
    pub array: Vec<u8>,
    /// Block address of the primary's entry array. Not always 2: some boards boot from the blocks behind the header.
    pub array_lba: u64,
    /// Whether both copies are sound and the same. When not, the next edit makes them so.
    pub whole: bool,
}

/// One copy of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Copy {
    /// No header there.
    Absent,
    /// A header that must not be believed, with the reason.
    Damaged(String),
    /// A header and an array that pass every check.
    Sound(Header),
}

/// A sound copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The disk's own GUID.
    pub disk_guid: Uuid,
    /// Entries the array has room for.
    pub slots: u32,
    /// Bytes that partitions may occupy.
    pub usable: Extent,
    /// Used entries by number.
    pub entries: BTreeMap<u32, PartitionEntry>,
    /// The array as it lies on the drive.
    pub array: Vec<u8>,
    /// Block address of the array.
    pub array_lba: u64,
}

impl Header {
    /// The bytes of an entry, by its number counted from one.
    pub fn slot(&self, number: u32) -> &[u8] {
        let start = number.saturating_sub(1) as usize * ENTRY_BYTES as usize;
        self.array.get(start..start + ENTRY_BYTES as usize).unwrap_or_default()
    }

    pub(super) fn into_table(self, whole: bool) -> Table {
        let Header { disk_guid, slots, usable, entries, array, array_lba } = self;
        Table { disk_guid, slots, usable, entries, array, array_lba, whole }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn guid_at(bytes: &[u8], at: usize) -> Option<Uuid> {
    // UEFI 2.10 appendix A: the first three fields of a GUID are little endian.
    Some(Uuid::from_bytes_le(bytes.get(at..at + 16)?.try_into().ok()?))
}

impl Copy {
    /// Reads the copy whose header is at `lba`; `other` is where it must say the other one is.
    pub fn read(window: Window<'_>, lba: u64, other: u64) -> Copy {
        match window.block(lba, HEADER_BYTES as usize) {
            Some(header) if header.starts_with(SIGNATURE) => match Copy::check(window, header, lba, other) {
                Ok(header) => Copy::Sound(header),
                Err(reason) => Copy::Damaged(reason),
            },
            _ => Copy::Absent,
        }
    }

    fn check(window: Window<'_>, header: &[u8], lba: u64, other: u64) -> Result<Header, String> {
        let word = |at| u32_at(header, at).ok_or("header cut short");
        let long = |at| u64_at(header, at).ok_or("header cut short");
        if word(8)? != 0x0001_0000 || word(12)? != HEADER_BYTES {
            return Err(format!("header revision {:#x} of {} bytes", word(8)?, word(12)?));
        }
        let mut zeroed = header.to_vec();
        zeroed[16..20].fill(0);
        if crc32fast::hash(&zeroed) != word(16)? {
            return Err("header checksum".into());
        }
        if long(24)? != lba || long(32)? != other {
            return Err(format!("header says it is at block {} and the other copy at {}", long(24)?, long(32)?));
        }
        let (slots, entry_bytes) = (word(80)?, word(84)?);
        if entry_bytes != ENTRY_BYTES || !(1..=MOST_ENTRIES).contains(&slots) {
            return Err(format!("{slots} entries of {entry_bytes} bytes"));
        }
        let (first, last, array_lba) = (long(40)?, long(48)?, long(72)?);
        let sector = u64::from(window.geometry.sector_bytes);
        let array_blocks = u64::from(slots * ENTRY_BYTES).div_ceil(sector);
        check_frame(lba, first, last, (array_lba, array_blocks), lba.max(other))?;
        let array = window.block(array_lba, (slots * ENTRY_BYTES) as usize).ok_or("entries lie too far inside")?;
        if crc32fast::hash(array) != word(88)? {
            return Err("checksum of the entries".into());
        }
        let usable = Extent { start: first * sector, length: (last - first + 1) * sector };
        let entries = read_entries(array, sector, usable)?;
        let disk_guid = guid_at(header, 56).ok_or("header cut short")?;
        Ok(Header { disk_guid, slots, usable, entries, array: array.to_vec(), array_lba })
    }
}

/// Headers, arrays and usable blocks lie apart and in order: header, array, usable, array, header.
fn check_frame(lba: u64, first: u64, last: u64, array: (u64, u64), last_lba: u64) -> Result<(), String> {
    let (array_lba, blocks) = array;
    let array_end = array_lba.checked_add(blocks).ok_or("entries beyond the end")?;
    let in_place = if lba == 1 { array_lba >= 2 && array_end <= first } else { array_lba > last && array_end <= lba };
    if first > last || last >= last_lba || first < 2 || !in_place {
        return Err(format!("usable blocks {first} to {last}, entries at block {array_lba}"));
    }
    Ok(())
}

/// Used entries, each inside the usable range, none overlapping another, none with another's GUID.
fn read_entries(array: &[u8], sector: u64, usable: Extent) -> Result<BTreeMap<u32, PartitionEntry>, String> {
    let mut entries: BTreeMap<u32, PartitionEntry> = BTreeMap::new();
    for (number, slot) in (1..).zip(array.chunks_exact(ENTRY_BYTES as usize)) {
        let Some(entry) = read_entry(number, slot, sector, usable)? else { continue };
        let clash = entries.iter().find(|(_, other)| {
            let apart = entry.extent.end() <= other.extent.start || other.extent.end() <= entry.extent.start;
            !apart || entry.unique_guid == other.unique_guid
        });
        if let Some((other, _)) = clash {
            return Err(format!("entries {other} and {number} overlap or have the same GUID"));
        }
        entries.insert(number, entry);
    }
    Ok(entries)
}

fn read_entry(number: u32, slot: &[u8], sector: u64, usable: Extent) -> Result<Option<PartitionEntry>, String> {
    let short = || format!("entry {number} cut short");
    let type_guid = guid_at(slot, 0).ok_or_else(short)?;
    if type_guid.is_nil() {
        return Ok(None);
    }
    let unique_guid = guid_at(slot, 16).ok_or_else(short)?;
    let (first, last) = (u64_at(slot, 32).ok_or_else(short)?, u64_at(slot, 40).ok_or_else(short)?);
    let outside = || format!("entry {number} from block {first} to {last} is outside the usable blocks");
    let end = last.checked_add(1).and_then(|end| end.checked_mul(sector)).ok_or_else(outside)?;
    let start = first.checked_mul(sector).ok_or_else(outside)?;
    if first > last || start < usable.start || end > usable.end() {
        return Err(outside());
    }
    let units: Vec<u16> = slot[56..].chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
    let name = units.split(|unit| *unit == 0).next().unwrap_or_default();
    Ok(Some(PartitionEntry {
        type_guid,
        unique_guid,
        name: String::from_utf16_lossy(name),
        extent: Extent { start, length: end - start },
    }))
}

// ------------------------------------------------------------------------------------------------ the MBR

/// The four entries of a master boot record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mbr<'a> {
    entries: &'a [u8],
}

/// The master boot record in the first block, when its mark is there.
pub fn mbr<'a>(window: Window<'a>) -> Option<Mbr<'a>> {
    let block = window.bytes(0, 512)?;
    (block.get(510..512)? == [0x55, 0xaa]).then_some(Mbr { entries: block.get(446..510)? })
}

impl Mbr<'_> {
    /// Whether it is a partition table rather than the boot block of a file system: some entry is used and every boot
    /// flag is a real one.
    pub fn is_table(&self) -> bool {
        let mut entries = self.entries.chunks_exact(16);
        entries.clone().any(|entry| entry[4] != 0) && entries.all(|entry| matches!(entry[0], 0 | 0x80))
    }
}

/// A GPT stands behind a protective MBR: one entry of type EE from block one, and no other (UEFI 2.10, 5.2.3).
pub fn protective(window: Window<'_>) -> Result<(), String> {
    let mbr = mbr(window).ok_or("a GPT without its protective MBR; the kernel does not see its partitions")?;
    let (guards, others): (Vec<_>, Vec<_>) =
        mbr.entries.chunks_exact(16).filter(|entry| entry.iter().any(|b| *b != 0)).partition(|entry| entry[4] == 0xee);
    match guards.as_slice() {
        [guard] if u32_at(guard, 8) == Some(1) && others.is_empty() => Ok(()),
        [] => Err("a GPT behind an MBR that does not protect it".into()),
        _ => Err("a hybrid MBR in front of the GPT; two tables that can disagree are not touched".into()),
    }
}
