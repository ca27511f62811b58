//! A partition table as the runs of blocks to write. Serialised by `gptman`, ordered by us.
//!
//! Pure. Called by the editor alone. `gptman` writes the primary before the backup and each in pieces; here it writes
//! into memory, so that the editor decides what goes to the drive first.

use super::array_bytes;
use crate::facts::{Extent, PartitionEntry};
use crate::linux::classify::Geometry;
use crate::linux::classify::table::{ENTRY_BYTES, Table};
use gptman::{GPTHeader, GPTPartitionEntry};
use std::io::{Cursor, Read};
use uuid::Uuid;

/// Entries of a table we make. What every tool makes; 128 replicas on one drive are plenty.
const SLOTS: u32 = 128;

/// Runs of whole blocks, each with the byte it starts at.
type Runs = Vec<(u64, Vec<u8>)>;

/// Both copies of a table, ready to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Entry array and header at the end of the drive, in one run.
    pub backup: Runs,
    /// Header and entry array at its start; on a fresh drive the protective MBR as well.
    pub primary: Runs,
    /// The entry array, the same in both.
    pub array: Vec<u8>,
}

/// The entries of a table in the form `gptman` edits, attributes and unused slots included.
pub fn slots_of(table: &Table) -> Result<Vec<GPTPartitionEntry>, String> {
    let slots = table.array.chunks_exact(ENTRY_BYTES as usize);
    // `gptman` 3.1 reads as many bytes as its own struct has in memory and decodes the first 128 of them.
    let read = |slot: &[u8]| GPTPartitionEntry::read_from(&mut slot.chain(std::io::repeat(0)));
    slots.map(|slot| read(slot).map_err(|e| e.to_string())).collect()
}

/// Sets or clears one entry.
pub fn set(
    slots: &mut [GPTPartitionEntry],
    number: u32,
    entry: Option<&PartitionEntry>,
    geometry: Geometry,
) -> Result<(), String> {
    let sector = u64::from(geometry.sector_bytes);
    let index = number.checked_sub(1).ok_or("entries are counted from one")? as usize;
    let slot = slots.get_mut(index).ok_or_else(|| format!("no entry {number}"))?;
    *slot = match entry {
        None => GPTPartitionEntry::empty(),
        Some(entry) => GPTPartitionEntry {
            partition_type_guid: entry.type_guid.to_bytes_le(),
            unique_partition_guid: entry.unique_guid.to_bytes_le(),
            starting_lba: entry.extent.start / sector,
            ending_lba: entry.extent.end() / sector - 1,
            attribute_bits: 0,
            partition_name: entry.name.as_str().into(),
        },
    };
    Ok(())
}

impl Image {
    /// Both copies of an existing table with these entries. Its frame (disk GUID, usable blocks, place of the primary's
    /// entries) stays as it is.
    pub fn of(table: &Table, slots: &[GPTPartitionEntry], geometry: Geometry) -> Result<Image, String> {
        if slots.len() != table.slots as usize {
            return Err(format!("{} entries for a table of {}", slots.len(), table.slots));
        }
        let sector = u64::from(geometry.sector_bytes);
        let last_lba = geometry.size_bytes / sector - 1;
        let blocks = (array_bytes(table.slots) as u64).div_ceil(sector);
        let header = |lba: u64, other: u64, array_lba: u64| GPTHeader {
            signature: *b"EFI PART",
            revision: [0, 0, 1, 0],
            header_size: 92,
            crc32_checksum: 0,
            reserved: [0; 4],
            primary_lba: lba,
            backup_lba: other,
            first_usable_lba: table.usable.start / sector,
            last_usable_lba: table.usable.end() / sector - 1,
            disk_guid: table.disk_guid.to_bytes_le(),
            partition_entry_lba: array_lba,
            number_of_partition_entries: table.slots,
            size_of_partition_entry: ENTRY_BYTES,
            partition_entry_array_crc32: 0,
        };
        let (primary, array) = runs(header(1, last_lba, table.array_lba), slots, sector)?;
        // Directly before its header, wherever it was: the space up to the last usable block belongs to it.
        let (backup, _) = runs(header(last_lba, 1, last_lba - blocks), slots, sector)?;
        Ok(Image { backup, primary, array })
    }

    /// An empty table on an empty drive, behind a protective MBR.
    pub fn fresh(disk_guid: Uuid, geometry: Geometry) -> Result<Image, String> {
        let sector = u64::from(geometry.sector_bytes);
        let (usable, array) = (usable(geometry), vec![0; array_bytes(SLOTS)]);
        let entries = Default::default();
        let table = Table { disk_guid, slots: SLOTS, usable, entries, array, array_lba: 2, whole: true };
        let mut image = Image::of(&table, &vec![GPTPartitionEntry::empty(); SLOTS as usize], geometry)?;
        let mbr = (0, protective_mbr(geometry.size_bytes / sector - 1, sector));
        image.primary = join(std::iter::once(mbr).chain(image.primary).collect());
        Ok(image)
    }
}

/// What lies between the two copies of a fresh table.
pub fn usable(geometry: Geometry) -> Extent {
    let sector = u64::from(geometry.sector_bytes.max(1));
    // MBR, header and array at the start; array and header at the end.
    let copy = (array_bytes(SLOTS) as u64).next_multiple_of(sector) + sector;
    let blocks = geometry.size_bytes / sector * sector;
    Extent { start: copy + sector, length: blocks.saturating_sub(2 * copy + sector) }
}

/// One copy: header block and array blocks, joined where they touch, and the array's bytes.
fn runs(mut header: GPTHeader, slots: &[GPTPartitionEntry], sector: u64) -> Result<(Runs, Vec<u8>), String> {
    let (lba, array_lba) = (header.primary_lba, header.partition_entry_lba);
    let mut array = Vec::with_capacity(array_bytes(header.number_of_partition_entries));
    // `gptman` fills in both checksums, writes the header in one piece and each entry in one.
    let mut sparse = Sparse { at: 0, writes: Vec::new() };
    header.write_into(&mut sparse, sector, slots).map_err(|e| e.to_string())?;
    let mut block = vec![0; sector as usize];
    for (at, bytes) in sparse.writes {
        if at == lba * sector {
            block[..bytes.len()].copy_from_slice(&bytes);
        } else {
            array.extend_from_slice(&bytes);
        }
    }
    let mut padded = array.clone();
    padded.resize(array.len().next_multiple_of(sector as usize), 0);
    let mut parts = vec![(lba * sector, block), (array_lba * sector, padded)];
    parts.sort();
    Ok((join(parts), array))
}

/// Joins runs that follow each other without a gap, so that each copy is one write where it can be.
fn join(parts: Runs) -> Runs {
    let mut joined: Runs = Vec::new();
    for (at, bytes) in parts {
        match joined.last_mut() {
            Some((start, run)) if *start + run.len() as u64 == at => run.extend_from_slice(&bytes),
            _ => joined.push((at, bytes)),
        }
    }
    joined
}

/// One entry of type EE over the whole drive, as far as its 32 bits reach (UEFI 2.10, 5.2.3).
fn protective_mbr(last_lba: u64, sector: u64) -> Vec<u8> {
    let mut block = vec![0; sector as usize];
    // Start and end in cylinders, heads and sectors: the conventional "first after the MBR" and "beyond counting".
    block[446..454].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
    block[454..458].copy_from_slice(&1u32.to_le_bytes());
    block[458..462].copy_from_slice(&u32::try_from(last_lba).unwrap_or(u32::MAX).to_le_bytes());
    block[510..512].copy_from_slice(&[0x55, 0xaa]);
    block
}

/// A drive of any size that remembers what was written where.
struct Sparse {
    at: u64,
    writes: Runs,
}

impl std::io::Write for Sparse {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.writes.push((self.at, bytes.to_vec()));
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl std::io::Seek for Sparse {
    fn seek(&mut self, to: std::io::SeekFrom) -> std::io::Result<u64> {
        // A cursor over nothing knows the rules of seeking.
        let mut cursor = Cursor::new([0u8; 0]);
        cursor.set_position(self.at);
        self.at = cursor.seek(to)?;
        Ok(self.at)
    }
}
