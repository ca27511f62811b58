//! What the first and last bytes of a drive look like when a file system, a RAID or a volume manager owns all of it.
//!
//! Pure. Called by the classifier for the reason it gives, and to notice a second owner beside a partition table. It
//! need not be complete: what is not known here is still not blank. Positions are those of libblkid
//! (util-linux, libblkid/src/superblocks/) unless a line says otherwise.

use super::{Geometry, Window};
use crate::linux::superblock::MD_MAGIC;

/// A signature that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Byte of the drive where it is.
    pub at: u64,
    /// What it means, with its article: `an XFS file system`.
    pub what: String,
}

/// Fixed bytes at a fixed place from the start of the drive. The first that matches gives the reason, so the ones with
/// few bytes come last.
const AT_START: &[(u64, &[u8], &str)] = &[
    (0, b"LUKS\xba\xbe", "a LUKS encrypted volume"),
    (0, b"bluestore block device", "a Ceph OSD (BlueStore)"),
    (0, b"XFSB", "an XFS file system"),
    (0x10040, b"_BHRfS_M", "a btrfs file system"),
    (0x200 + 0x18, b"LVM2 001", "an LVM physical volume"),
    (0x18, b"LVM2 001", "an LVM physical volume"),
    (0x400 + 0x18, b"LVM2 001", "an LVM physical volume"),
    (0x600 + 0x18, b"LVM2 001", "an LVM physical volume"),
    (4096 - 10, b"SWAPSPACE2", "swap space"),
    (4096 - 10, b"SWAP-SPACE", "swap space"),
    (65536 - 10, b"SWAPSPACE2", "swap space"),
    (4096 - 10, b"S1SUSPEND", "a suspended system's memory"),
    (0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "a bcache device"),
    (0x1018, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef", "a bcachefs file system"),
    (0x204, b"!Stra0tis\x86\xff\x02^\x41rh", "a Stratis pool member"),
    (0, b"dmvdo001", "a VDO volume"),
    // SPDK, lib/blob/blobstore.h: SPDK_BS_SUPER_BLOCK_SIG
    (0, b"SPDKBLOB", "an SPDK blobstore"),
    (3, b"NTFS    ", "an NTFS file system"),
    (3, b"EXFAT   ", "an exFAT file system"),
    (3, b"-FVE-FS-", "a BitLocker volume"),
    (82, b"FAT32   ", "a FAT file system"),
    (54, b"FAT16   ", "a FAT file system"),
    (54, b"FAT12   ", "a FAT file system"),
    (0x8001, b"CD001", "an ISO 9660 image"),
    (0x8001, b"BEA01", "a UDF file system"),
    (0x8000, b"JFS1", "a JFS file system"),
    (0x10034, b"ReIsEr", "a ReiserFS file system"),
    (0x10000, b"\x01\x16\x19\x70", "a GFS2 file system"),
    (0x400, b"OCFSV2", "an OCFS2 file system"),
    (0x800, b"OCFSV2", "an OCFS2 file system"),
    (0x1000, b"OCFSV2", "an OCFS2 file system"),
    (0x400, b"\x10\x20\xf5\xf2", "an F2FS file system"),
    (0x400, b"\xe2\xe1\xf5\xe0", "an EROFS file system"),
    (0x10_0000, b"\x0d\xd0\x01\xc0", "a VMFS volume"),
    (0, b"hsqs", "a squashfs image"),
];

/// Every signature in the windows that were read, the most telling first.
pub fn find(window: Window<'_>) -> Vec<Found> {
    let mut found: Vec<Found> = AT_START
        .iter()
        .filter(|(at, magic, _)| window.bytes(*at, magic.len()) == Some(magic))
        .map(|(at, _, what)| Found { at: *at, what: (*what).to_string() })
        .collect();
    found.extend(md(window));
    found.extend(zfs(window));
    found.extend(drbd(window));
    found.extend(firmware_raid(window));
    found.extend(ext(window));
    found
}

/// Linux MD. Versions 1.1 and 1.2 lie at the start, 1.0 and 0.90 at the end (drivers/md/md.c: super_1_load,
/// calc_dev_sboffset).
fn md(window: Window<'_>) -> Vec<Found> {
    let sectors = window.geometry.size_bytes / 512;
    let places = [
        ("1.1", 0),
        ("1.2", 8),
        ("1.0", sectors.saturating_sub(16) & !7),
        ("0.90", (sectors & !127).saturating_sub(128)),
    ];
    let matches = |sector: &u64| {
        let bytes: Option<[u8; 4]> = window.bytes(sector * 512, 4).and_then(|b| b.try_into().ok());
        // Version 0.90 is in the byte order of the machine that wrote it.
        bytes.is_some_and(|b| u32::from_le_bytes(b) == MD_MAGIC || u32::from_be_bytes(b) == MD_MAGIC)
    };
    let found = places.into_iter().filter(|(_, sector)| matches(sector));
    found.map(|(version, at)| Found { at: at * 512, what: format!("an MD RAID member (metadata {version})") }).collect()
}

/// A ZFS label is 256 KiB, two at each end; its second half is an array of uberblocks of at least 1 KiB each, its
/// XDR-encoded list of names and values starts at 16 KiB (OpenZFS, include/sys/vdev_impl.h).
fn zfs(window: Window<'_>) -> Option<Found> {
    const LABEL: u64 = 256 << 10;
    let end = window.geometry.size_bytes / LABEL * LABEL;
    let labels = [0, LABEL, end.saturating_sub(2 * LABEL), end.saturating_sub(LABEL)];
    let uberblock = |at: &u64| {
        let bytes: Option<[u8; 8]> = window.bytes(*at, 8).and_then(|b| b.try_into().ok());
        bytes.is_some_and(|b| u64::from_le_bytes(b) == 0x00ba_b10c || u64::from_be_bytes(b) == 0x00ba_b10c)
    };
    let names = |label: u64| {
        // Encoding XDR, then somewhere near the front the pair every label has.
        let list = window.bytes(label + (16 << 10), 512)?;
        let pool = list.first() == Some(&1) && list.windows(8).any(|w| w == b"pool_gui" || w == b"\0version");
        pool.then_some(label)
    };
    let at = labels.into_iter().find_map(|label| {
        let uberblocks = (0..128).map(|i| label + (128 << 10) + i * 1024);
        uberblocks.into_iter().find(uberblock).or_else(|| names(label))
    })?;
    Some(Found { at, what: "a ZFS pool member".into() })
}

/// DRBD's internal metadata ends the device: one 4 KiB block with the magic at byte 60 (drbd-utils,
/// user/shared/drbdmeta.c: md_on_disk_07 to 09).
fn drbd(window: Window<'_>) -> Option<Found> {
    let at = (window.geometry.size_bytes & !4095).checked_sub(4096)?;
    let magic: [u8; 4] = window.bytes(at + 60, 4)?.try_into().ok()?;
    let ours = (0x8374_026a..=0x8374_026d).contains(&u32::from_be_bytes(magic));
    ours.then(|| Found { at, what: "a DRBD device".into() })
}

/// RAIDs of firmware: Intel's in the last block but one, the SNIA DDF format in the last.
fn firmware_raid(window: Window<'_>) -> Option<Found> {
    let Geometry { size_bytes, sector_bytes } = window.geometry;
    let sector = u64::from(sector_bytes);
    let (intel, ddf) = (size_bytes.checked_sub(2 * sector)?, size_bytes.checked_sub(sector)?);
    if window.bytes(intel, 24) == Some(b"Intel Raid ISM Cfg Sig. ") {
        return Some(Found { at: intel, what: "an Intel firmware RAID member".into() });
    }
    (window.bytes(ddf, 4) == Some(&[0xde, 0x11, 0xde, 0x11]))
        .then(|| Found { at: ddf, what: "a firmware RAID member (DDF)".into() })
}

/// The ext family has two bytes of magic only, so a second field must make sense as well.
fn ext(window: Window<'_>) -> Option<Found> {
    let sb = window.bytes(1024, 1024)?;
    let word = |at: usize| Some(u32::from_le_bytes(sb.get(at..at + 4)?.try_into().ok()?));
    // s_magic, s_log_block_size (at most 64 KiB), s_rev_level
    if sb.get(56..58)? != [0x53, 0xef] || word(24)? > 6 || word(76)? > 1 {
        return None;
    }
    // has_journal; and any incompatible feature that only ext4 has (extents, 64bit, flex_bg, …)
    let what = match (word(92)? & 4 != 0, word(96)? & !0x1f != 0) {
        (_, true) => "an ext4 file system",
        (true, false) => "an ext3 file system",
        (false, false) => "an ext2 file system",
    };
    Some(Found { at: 1024, what: what.into() })
}
