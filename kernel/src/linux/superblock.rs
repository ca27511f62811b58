//! MD v1.2 superblocks and internal write-intent bitmaps, from bytes to facts.
//!
//! Pure. Called by the probe and the partition code with bytes read past the page cache. It never repairs and never
//! guesses: what the kernel would refuse is `None`, and a bitmap that cannot be trusted bit by bit counts as all dirty.
//!
//! Sources: `struct mdp_superblock_1` in include/uapi/linux/raid/md_p.h, `super_1_load` and `calc_sb_1_csum` in
//! drivers/md/md.c, `struct bitmap_super_s` and `md_bitmap_read_sb` in drivers/md/md-bitmap.c.

use crate::facts::{Bitmap, Superblock};
use std::collections::BTreeSet;
use uuid::Uuid;

/// Where a v1.2 superblock starts in its device.
pub const SUPERBLOCK_OFFSET: u64 = 4096;
/// Bytes to read for one: `MAX_SB_SIZE` in md.c, enough for 1920 device numbers.
pub const SUPERBLOCK_BYTES: usize = 4096;
/// Bytes of the bitmap's own header; the bits follow.
pub const BITMAP_HEADER_BYTES: usize = 256;

/// `MD_SB_MAGIC`, also what the other metadata versions carry.
pub const MD_MAGIC: u32 = 0xa92b_4efc;
/// "bitm".
const BITMAP_MAGIC: u32 = 0x6d74_6962;
/// `BITMAP_MAJOR_HOSTENDIAN`: bits in the order of the machine that wrote them, whichever that was.
const HOST_ENDIAN_VERSION: u32 = 3;
const SECTOR: u64 = 512;
/// Offset of `dev_roles`.
const ROLES: usize = 256;

/// `WriteMostly1` in `devflags`.
const WRITE_MOSTLY: u8 = 1;

/// Bits of `feature_map`.
mod feature {
    /// There is an internal bitmap at `bitmap_offset`.
    pub const BITMAP_OFFSET: u32 = 1;
    /// `recovery_offset` is valid: the device is only recovered up to there.
    pub const RECOVERY_OFFSET: u32 = 2;
}

/// Bits of the bitmap header's `state` (`enum bitmap_state`).
mod bitmap_state {
    /// The bits are not current.
    pub const STALE: u32 = 1 << 1;
    /// Writing the bits failed.
    pub const WRITE_ERROR: u32 = 1 << 2;
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn uuid_at(bytes: &[u8], at: usize) -> Option<Uuid> {
    // MD keeps sixteen raw bytes without any notion of byte order.
    Some(Uuid::from_bytes(bytes.get(at..at + 16)?.try_into().ok()?))
}

/// `calc_sb_1_csum`: the sum of the 32-bit words of the header and the roles, the checksum counted as zero, folded once.
pub(super) fn checksum(sb: &[u8], max_dev: usize) -> Option<u32> {
    let covered = sb.get(..ROLES + max_dev * 2)?;
    let mut sum: u64 = 0;
    let mut words = covered.chunks_exact(4);
    for (i, word) in words.by_ref().enumerate() {
        if i * 4 != 216 {
            sum += u64::from(u32::from_le_bytes(word.try_into().ok()?));
        }
    }
    if let [a, b] = words.remainder() {
        sum += u64::from(u16::from_le_bytes([*a, *b]));
    }
    Some((sum as u32).wrapping_add((sum >> 32) as u32))
}

/// The superblock in the bytes read at [`SUPERBLOCK_OFFSET`], without its bitmap; `None` when there is none that the
/// kernel would accept there.
pub fn parse(sb: &[u8]) -> Option<Superblock> {
    let max_dev = u32_at(sb, 220)? as usize;
    let plausible = u32_at(sb, 0)? == MD_MAGIC
        && u32_at(sb, 4)? == 1
        && u64_at(sb, 144)? == SUPERBLOCK_OFFSET / SECTOR
        && max_dev <= (SUPERBLOCK_BYTES - ROLES) / 2;
    if !plausible || checksum(sb, max_dev)? != u32_at(sb, 216)? {
        return None;
    }
    let features = u32_at(sb, 8)?;
    let name = sb.get(32..64)?;
    let name = name.split(|b| *b == 0).next().unwrap_or_default();
    Some(Superblock {
        set_uuid: uuid_at(sb, 16)?,
        name: String::from_utf8_lossy(name).into_owned(),
        level: u32_at(sb, 72)? as i32,
        raid_disks: u32_at(sb, 92)?,
        events: u64_at(sb, 200)?,
        dev_number: u32_at(sb, 160)?,
        roles: (0..max_dev).map(|i| u16_at(sb, ROLES + 2 * i)).collect::<Option<_>>()?,
        device_uuid: uuid_at(sb, 168)?,
        data_offset: u64_at(sb, 128)?.checked_mul(SECTOR)?,
        component_bytes: u64_at(sb, 80)?.checked_mul(SECTOR)?,
        recovery_offset: match features & feature::RECOVERY_OFFSET {
            0 => None,
            _ => Some(u64_at(sb, 152)?.saturating_mul(SECTOR)),
        },
        write_mostly: sb.get(184)? & WRITE_MOSTLY != 0,
        // MaxSector says that no resync is pending; anything else is where the next one starts.
        resync_pending: u64_at(sb, 208)? != u64::MAX,
        bitmap: None,
    })
}

/// Where the internal bitmap starts, in bytes from the start of the device; `None` when the superblock has none.
pub fn bitmap_location(sb: &[u8]) -> Option<u64> {
    if u32_at(sb, 8)? & feature::BITMAP_OFFSET == 0 {
        return None;
    }
    let offset = i64::from(u32_at(sb, 96)? as i32);
    let super_offset = i64::try_from(u64_at(sb, 144)?).ok()?;
    let sector = u64::try_from(super_offset.checked_add(offset)?).ok()?;
    sector.checked_mul(SECTOR)
}

/// How many bytes, from the bitmap's start, hold its header and all its bits; `None` when `header` is not a bitmap's.
pub fn bitmap_bytes(header: &[u8]) -> Option<u64> {
    let (sync_bytes, chunk_bytes) = bitmap_geometry(header)?;
    Some(BITMAP_HEADER_BYTES as u64 + sync_bytes.div_ceil(chunk_bytes).div_ceil(8))
}

/// Bytes covered by the bits, and bytes for each bit.
fn bitmap_geometry(header: &[u8]) -> Option<(u64, u64)> {
    let chunk_bytes = u64::from(u32_at(header, 52)?);
    // md_bitmap_read_sb: chunks are powers of two of at least a sector. Clustered bitmaps (version 5) hold one set of
    // bits for each node, lockless ones (6) a byte for each chunk: neither is made by us, neither is read.
    let version = u32_at(header, 4)?;
    let plausible = u32_at(header, 0)? == BITMAP_MAGIC
        && (HOST_ENDIAN_VERSION..=4).contains(&version)
        && chunk_bytes >= SECTOR
        && chunk_bytes.is_power_of_two();
    plausible.then_some((u64_at(header, 40)?.checked_mul(SECTOR)?, chunk_bytes))
}

/// The bitmap in the bytes read at its location; `None` when it is none or when bytes are missing, so that a bit that
/// was not read is never taken for a clean one.
pub fn parse_bitmap(bytes: &[u8]) -> Option<Bitmap> {
    let (sync_bytes, chunk_bytes) = bitmap_geometry(bytes)?;
    let bits = bytes.get(BITMAP_HEADER_BYTES..usize::try_from(bitmap_bytes(bytes)?).ok()?)?;
    let chunks = sync_bytes.div_ceil(chunk_bytes);
    let failed = u32_at(bytes, 48)? & (bitmap_state::STALE | bitmap_state::WRITE_ERROR) != 0;
    let dirty: BTreeSet<u64> = if failed || u32_at(bytes, 4)? == HOST_ENDIAN_VERSION {
        (0..chunks).collect()
    } else {
        // set_bit_le: chunk n is bit n % 8, counted from the least, of byte n / 8.
        let set = |chunk: &u64| bits.get((chunk / 8) as usize).is_some_and(|byte| byte >> (chunk % 8) & 1 == 1);
        (0..chunks).filter(set).collect()
    };
    Some(Bitmap {
        uuid: uuid_at(bytes, 8)?,
        events: u64_at(bytes, 24)?,
        events_cleared: u64_at(bytes, 32)?,
        chunk_bytes,
        dirty,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::id::VolumeId;
    use proptest::prelude::*;

    fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
        bytes[at..at + value.len()].copy_from_slice(value);
    }

    /// Sets the checksum as md does.
    pub(crate) fn seal(sb: &mut [u8]) {
        let max_dev = u32_at(sb, 220).unwrap() as usize;
        let sum = checksum(sb, max_dev).unwrap();
        put(sb, 216, &sum.to_le_bytes());
    }

    /// A superblock of slot 0 of a mirror of two, as mdadm writes it.
    pub(crate) fn superblock(set_uuid: Uuid) -> Vec<u8> {
        let mut sb = vec![0; SUPERBLOCK_BYTES];
        put(&mut sb, 0, &MD_MAGIC.to_le_bytes());
        put(&mut sb, 4, &1u32.to_le_bytes());
        put(&mut sb, 8, &feature::BITMAP_OFFSET.to_le_bytes());
        put(&mut sb, 16, set_uuid.as_bytes());
        put(&mut sb, 32, b"any:0f9a2c56");
        put(&mut sb, 72, &1u32.to_le_bytes());
        put(&mut sb, 80, &204_800u64.to_le_bytes());
        put(&mut sb, 92, &2u32.to_le_bytes());
        put(&mut sb, 96, &8i32.to_le_bytes());
        put(&mut sb, 128, &8192u64.to_le_bytes());
        put(&mut sb, 136, &204_800u64.to_le_bytes());
        put(&mut sb, 144, &8u64.to_le_bytes());
        put(&mut sb, 160, &1u32.to_le_bytes());
        put(&mut sb, 168, &[0xd1; 16]);
        put(&mut sb, 200, &42u64.to_le_bytes());
        put(&mut sb, 208, &u64::MAX.to_le_bytes());
        put(&mut sb, 220, &128u32.to_le_bytes());
        sb[ROLES..ROLES + 256].fill(0xff);
        put(&mut sb, ROLES, &1u16.to_le_bytes());
        put(&mut sb, ROLES + 2, &0u16.to_le_bytes());
        seal(&mut sb);
        sb
    }

    /// A bitmap with the given chunks dirty.
    pub(crate) fn bitmap(set_uuid: Uuid, chunks: u64, chunk_bytes: u32, dirty: &[u64]) -> Vec<u8> {
        let mut bytes = vec![0; BITMAP_HEADER_BYTES + chunks.div_ceil(8) as usize];
        put(&mut bytes, 0, b"bitm");
        put(&mut bytes, 4, &4u32.to_le_bytes());
        put(&mut bytes, 8, set_uuid.as_bytes());
        put(&mut bytes, 24, &41u64.to_le_bytes());
        put(&mut bytes, 32, &40u64.to_le_bytes());
        put(&mut bytes, 40, &(chunks * u64::from(chunk_bytes) / SECTOR).to_le_bytes());
        put(&mut bytes, 52, &chunk_bytes.to_le_bytes());
        for chunk in dirty {
            bytes[BITMAP_HEADER_BYTES + (chunk / 8) as usize] |= 1 << (chunk % 8);
        }
        bytes
    }

    #[test]
    fn a_superblock_reads_back() {
        let volume = VolumeId(Uuid::from_u128(7));
        let sb = parse(&superblock(volume.md_uuid())).unwrap();
        assert_eq!(sb.set_uuid, volume.md_uuid());
        assert_eq!((sb.name.as_str(), sb.level, sb.raid_disks, sb.events), ("any:0f9a2c56", 1, 2, 42));
        assert_eq!((sb.data_offset, sb.component_bytes), (4 << 20, 100 << 20));
        assert_eq!((sb.roles.len(), sb.active_slot(), sb.live_slots()), (128, Some(0), 2));
        assert_eq!((sb.recovery_offset, sb.resync_pending, sb.write_mostly), (None, false, false));
    }

    #[test]
    fn recovery_and_resync_are_seen() {
        let mut bytes = superblock(Uuid::nil());
        put(&mut bytes, 8, &(feature::BITMAP_OFFSET | feature::RECOVERY_OFFSET).to_le_bytes());
        put(&mut bytes, 152, &2048u64.to_le_bytes());
        put(&mut bytes, 208, &0u64.to_le_bytes());
        put(&mut bytes, 184, &[1]);
        seal(&mut bytes);
        let sb = parse(&bytes).unwrap();
        assert!(sb.write_mostly);
        assert_eq!((sb.recovery_offset, sb.resync_pending, sb.active_slot()), (Some(1 << 20), true, None));
    }

    #[test]
    fn what_the_kernel_would_refuse_is_none() {
        let good = superblock(Uuid::nil());
        for (at, value) in [(0, 0u32), (4, 0), (144, 0), (144, 16), (220, 1921), (220, u32::MAX)] {
            let mut bad = good.clone();
            put(&mut bad, at, &value.to_le_bytes());
            if at != 220 {
                seal(&mut bad);
            }
            assert_eq!(parse(&bad), None, "field at {at}");
        }
        assert_eq!(parse(&good[..300]), None);
        assert_eq!(parse(&[]), None);
    }

    #[test]
    fn an_odd_number_of_devices_is_summed_to_the_last_role() {
        let mut bytes = superblock(Uuid::nil());
        put(&mut bytes, 220, &3u32.to_le_bytes());
        seal(&mut bytes);
        assert!(parse(&bytes).is_some());
        bytes[ROLES + 4] ^= 1;
        assert_eq!(parse(&bytes), None);
    }

    #[test]
    fn the_bitmap_is_found_where_the_superblock_says() {
        let mut bytes = superblock(Uuid::nil());
        assert_eq!(bitmap_location(&bytes), Some(8192));
        put(&mut bytes, 96, &(-8i32).to_le_bytes());
        assert_eq!(bitmap_location(&bytes), Some(0));
        put(&mut bytes, 96, &(-9i32).to_le_bytes());
        assert_eq!(bitmap_location(&bytes), None);
        put(&mut bytes, 8, &0u32.to_le_bytes());
        assert_eq!(bitmap_location(&bytes), None);
    }

    #[test]
    fn a_bitmap_it_cannot_trust_is_all_dirty_and_a_short_one_is_none() {
        let mut bytes = bitmap(Uuid::nil(), 20, 64 << 20, &[3]);
        assert_eq!(parse_bitmap(&bytes).unwrap().dirty, BTreeSet::from([3]));
        assert_eq!(parse_bitmap(&bytes[..bytes.len() - 1]), None);
        for (at, value) in [(48, 2u32), (48, 4), (4, 3)] {
            let mut doubtful = bytes.clone();
            put(&mut doubtful, at, &value.to_le_bytes());
            assert_eq!(parse_bitmap(&doubtful).unwrap().dirty.len(), 20);
        }
        put(&mut bytes, 4, &6u32.to_le_bytes());
        assert_eq!(parse_bitmap(&bytes), None);
        put(&mut bytes, 4, &4u32.to_le_bytes());
        put(&mut bytes, 52, &0u32.to_le_bytes());
        assert_eq!(parse_bitmap(&bytes), None);
    }

    proptest! {
        #[test]
        fn any_changed_word_of_a_superblock_is_noticed(at in 0usize..126, flip in 1u32..u32::MAX) {
            let mut bytes = superblock(Uuid::from_u128(1));
            let word = u32_at(&bytes, at * 4).unwrap();
            put(&mut bytes, at * 4, &(word ^ flip).to_le_bytes());
            prop_assert_eq!(parse(&bytes), None);
        }

        #[test]
        fn dirty_chunks_read_back(dirty in proptest::collection::btree_set(0u64..5000, 0..40)) {
            let list: Vec<u64> = dirty.iter().copied().collect();
            let read = parse_bitmap(&bitmap(Uuid::from_u128(2), 5000, 64 << 20, &list)).unwrap();
            prop_assert_eq!(read.dirty, dirty);
            prop_assert_eq!((read.events, read.events_cleared, read.chunk_bytes), (41, 40, 64 << 20));
        }

        #[test]
        fn no_bytes_make_it_stumble(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = (parse(&bytes), parse_bitmap(&bytes), bitmap_location(&bytes), bitmap_bytes(&bytes));
        }
    }
}
