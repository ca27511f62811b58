//! The classifier against tables made by `gptman` and by hand, signatures of everybody, and chance.

use super::*;
use crate::linux::gpt::tests::{Drive, entry, foreign, ours};
use proptest::prelude::*;

fn drive_id() -> DriveId {
    DriveId("s1-1".into())
}

fn blank(sector_bytes: u32) -> Drive {
    Drive::blank(sector_bytes, 256 << 20)
}

fn reason(drive: &Drive) -> String {
    match drive.classify().class {
        DriveClass::Theirs(reason) => reason,
        other => panic!("not theirs: {other:?}"),
    }
}

const SECTORS: [u32; 2] = [512, 4096];

// ------------------------------------------------------------------------------------------- blank and ours

#[test]
fn zeroes_are_blank() {
    for sector in SECTORS {
        let verdict = blank(sector).classify();
        assert!(matches!(&verdict.class, DriveClass::Blank(proof) if *proof.drive() == drive_id()));
        assert_eq!(verdict.table, None);
    }
}

#[test]
fn a_fresh_label_is_ours_and_an_empty_foreign_table_is_not() {
    for sector in SECTORS {
        let mut drive = blank(sector);
        drive.table(label_of(&drive_id()), &[]);
        assert_eq!(drive.classify().class, DriveClass::Ours);
        let mut drive = blank(sector);
        drive.table(Uuid::from_u128(99), &[]);
        assert_eq!(drive.classify().class, DriveClass::Shared);
    }
}

#[test]
fn whose_entries_decide() {
    for sector in SECTORS {
        let mut drive = blank(sector);
        drive.table(Uuid::from_u128(99), &[(1, ours(1, 1, 10)), (7, ours(2, 11, 5))]);
        let verdict = drive.classify();
        assert_eq!(verdict.class, DriveClass::Ours);
        assert_eq!(verdict.entries(), BTreeMap::from([(1, ours(1, 1, 10)), (7, ours(2, 11, 5))]));
        drive.table(Uuid::from_u128(99), &[(1, ours(1, 1, 10)), (2, foreign(3, 11, 5))]);
        let verdict = drive.classify();
        assert_eq!(verdict.class, DriveClass::Shared);
        assert_eq!(verdict.entries().len(), 2);
    }
}

#[test]
fn drives_too_small_or_with_odd_blocks_are_not_for_us() {
    assert!(reason(&Drive::blank(512, 32 << 20)).contains("bytes large"));
    assert!(reason(&Drive::blank(1024, 256 << 20)).contains("blocks of 1024 bytes"));
}

#[test]
fn short_reads_are_unreadable_not_blank() {
    let geometry = Geometry { size_bytes: 256 << 20, sector_bytes: 512 };
    let zeroes = vec![0; WINDOW_BYTES as usize];
    for (first, last) in [(&zeroes[..512], &zeroes[..]), (&zeroes[..], &zeroes[..1 << 20])] {
        let verdict = classify(&drive_id(), Window { geometry, first, last });
        assert!(matches!(verdict.class, DriveClass::Unreadable(_)));
    }
}

// ------------------------------------------------------------------------------------- broken and odd tables

fn labelled(sector: u32) -> Drive {
    let mut drive = blank(sector);
    drive.table(label_of(&drive_id()), &[(1, ours(1, 1, 10)), (2, ours(2, 20, 5))]);
    drive
}

fn shared(sector: u32) -> Drive {
    let mut drive = blank(sector);
    drive.table(Uuid::from_u128(99), &[(1, ours(1, 1, 10)), (2, foreign(2, 20, 5))]);
    drive
}

#[test]
fn a_shared_drive_with_one_bad_copy_is_refused() {
    for sector in SECTORS {
        let size = u64::from(sector);
        for at in [size + 40, 2 * size + 60, 256 * (1 << 20) - size + 50, 256 * (1 << 20) - size - 16000] {
            let mut drive = shared(sector);
            drive.flip(at);
            assert!(reason(&drive).contains("damaged"), "byte {at}");
        }
    }
}

#[test]
fn a_drive_of_our_own_with_one_bad_copy_keeps_its_partitions() {
    for sector in SECTORS {
        let size = u64::from(sector);
        for at in [size + 40, 2 * size + 60, 256 * (1 << 20) - size + 50, 256 * (1 << 20) - size - 16000] {
            let mut drive = labelled(sector);
            drive.flip(at);
            let verdict = drive.classify();
            assert_eq!(verdict.class, DriveClass::Ours, "byte {at}");
            assert_eq!(verdict.entries(), labelled(sector).classify().entries());
            assert!(!verdict.table.unwrap().whole);
        }
    }
}

#[test]
fn a_drive_that_was_cleared_at_one_end_is_not_ours_any_more() {
    for sector in SECTORS {
        let mut drive = labelled(sector);
        drive.put(0, &vec![0; 1 << 20]);
        assert!(reason(&drive).contains("backup GPT without a primary"));
        let mut drive = labelled(sector);
        drive.put((256 << 20) - (1 << 20), &vec![0; 1 << 20]);
        assert!(reason(&drive).contains("without its backup"));
    }
}

#[test]
fn an_edit_of_ours_cut_short_shows_what_the_primary_says() {
    for sector in SECTORS {
        let mut drive = shared(sector);
        let wanted = drive.classify().entries();
        drive.backup_only(Uuid::from_u128(99), &[(1, ours(1, 1, 10)), (2, foreign(2, 20, 5)), (3, ours(3, 30, 1))]);
        let verdict = drive.classify();
        assert_eq!((verdict.class.clone(), verdict.entries()), (DriveClass::Shared, wanted));
        assert!(!verdict.table.unwrap().whole);
        // Somebody else's edit is not ours to finish.
        drive.backup_only(Uuid::from_u128(99), &[(1, ours(1, 1, 10)), (2, foreign(2, 20, 6))]);
        assert!(reason(&drive).contains("two copies differ"));
        drive.backup_only(Uuid::from_u128(98), &[(1, ours(1, 1, 10)), (2, foreign(2, 20, 5))]);
        assert!(reason(&drive).contains("two copies differ"));
    }
}

#[test]
fn a_label_cut_short_is_ours_and_a_foreign_one_is_not() {
    for sector in SECTORS {
        let mut drive = blank(sector);
        drive.primary_only(label_of(&drive_id()), &[]);
        assert_eq!(drive.classify().class, DriveClass::Ours);
        drive.put((256 << 20) - 10000, &[1]);
        assert!(reason(&drive).contains("without its backup"));
        let mut drive = blank(sector);
        drive.primary_only(Uuid::from_u128(99), &[]);
        assert!(reason(&drive).contains("without its backup"));
    }
}

#[test]
fn a_table_for_the_other_block_size_is_named() {
    for (written, now) in [(512, 4096), (4096, 512)] {
        let mut drive = labelled(written);
        drive.geometry.sector_bytes = now;
        assert!(reason(&drive).contains(&format!("for {written}-byte blocks")), "{}", reason(&drive));
    }
}

#[test]
fn the_mbr_must_protect_and_do_nothing_else() {
    let entry = |kind: u8, start: u32| {
        let mut entry = [0u8; 16];
        entry[4] = kind;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..16].copy_from_slice(&100u32.to_le_bytes());
        entry
    };
    let cases: [(u64, Vec<u8>, &str); 5] = [
        (510, vec![0, 0], "without its protective MBR"),
        (446, entry(0, 0).to_vec(), "does not protect"),
        (446, entry(0x83, 1).to_vec(), "does not protect"),
        (462, entry(0x83, 2048).to_vec(), "hybrid"),
        (446, entry(0xee, 2).to_vec(), "hybrid"),
    ];
    for (at, bytes, expected) in cases {
        let mut drive = labelled(512);
        drive.put(at, &bytes);
        assert!(reason(&drive).contains(expected), "{}", reason(&drive));
    }
}

#[test]
fn entries_that_overlap_or_leave_the_usable_blocks_are_refused() {
    let mut outside = ours(2, 20, 5);
    outside.extent = Extent { start: 255 << 20, length: 1 << 20 };
    for second in [ours(2, 5, 20), ours(1, 20, 5), outside] {
        let mut drive = blank(512);
        drive.table(Uuid::from_u128(99), &[(1, ours(1, 1, 10)), (2, second)]);
        assert!(reason(&drive).contains("damaged GPT"), "{}", reason(&drive));
    }
}

#[test]
fn a_table_on_a_drive_that_grew_says_so() {
    let mut drive = labelled(512);
    let last = std::mem::replace(&mut drive.last, vec![0; WINDOW_BYTES as usize]);
    drop(last);
    drive.geometry.size_bytes *= 2;
    assert!(reason(&drive).contains("the other copy at"), "{}", reason(&drive));
}

// ---------------------------------------------------------------------------------------------- others'

#[test]
fn everybody_elses_drives_are_named() {
    let le = |n: u64| n.to_le_bytes().to_vec();
    let magic = superblock_magic();
    let size = 256u64 << 20;
    let mut ext4 = vec![0; 1024];
    ext4[24] = 2;
    ext4[56..58].copy_from_slice(&[0x53, 0xef]);
    ext4[92] = 4;
    ext4[96..98].copy_from_slice(&[0xc2, 0x02]);
    let cases: Vec<(u64, Vec<u8>, &str)> = vec![
        (1024, ext4, "an ext4 file system on the whole drive"),
        (0, b"XFSB".to_vec(), "an XFS file system"),
        (0x10040, b"_BHRfS_M".to_vec(), "a btrfs file system"),
        (4086, b"SWAPSPACE2".to_vec(), "swap space"),
        (0, b"LUKS\xba\xbe\0\x02".to_vec(), "a LUKS encrypted volume"),
        (512 + 24, b"LVM2 001".to_vec(), "an LVM physical volume"),
        (1536 + 24, b"LVM2 001".to_vec(), "an LVM physical volume"),
        ((128 << 10) + 5 * 1024, le(0x00ba_b10c), "a ZFS pool member"),
        ((256 << 10) + (128 << 10), 0x00ba_b10cu64.to_be_bytes().to_vec(), "a ZFS pool member"),
        (size - (512 << 10) + (130 << 10), le(0x00ba_b10c), "a ZFS pool member"),
        (size - (256 << 10) + (255 << 10), le(0x00ba_b10c), "a ZFS pool member"),
        (0, magic.clone(), "an MD RAID member (metadata 1.1)"),
        (4096, magic.clone(), "an MD RAID member (metadata 1.2)"),
        (size - 8192, magic.clone(), "an MD RAID member (metadata 1.0)"),
        (size - (64 << 10), magic.clone(), "an MD RAID member (metadata 0.90)"),
        (
            4096 + 24,
            vec![0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81],
            "bcache",
        ),
        (0, b"bluestore block device\n".to_vec(), "a Ceph OSD"),
        (size - 4096 + 60, 0x8374_026du32.to_be_bytes().to_vec(), "a DRBD device"),
        (size - 1024, b"Intel Raid ISM Cfg Sig. 1.3.00".to_vec(), "an Intel firmware RAID member"),
        (size - 512, vec![0xde, 0x11, 0xde, 0x11], "DDF"),
        (3, b"NTFS    ".to_vec(), "an NTFS file system"),
        (3, b"EXFAT   ".to_vec(), "an exFAT file system"),
        (82, b"FAT32   ".to_vec(), "a FAT file system"),
        (0x8001, b"CD001".to_vec(), "an ISO 9660 image"),
        (0x10000, vec![1, 0x16, 0x19, 0x70], "a GFS2 file system"),
        (0x800, b"OCFSV2".to_vec(), "an OCFS2 file system"),
        (0, b"SPDKBLOB".to_vec(), "an SPDK blobstore"),
        (446 + 4, vec![0x83], "unrecognised content at byte 450"),
        (777, vec![1], "unrecognised content at byte 777"),
        (size - 777, vec![1], &*format!("unrecognised content at byte {}", size - 777).leak()),
    ];
    for (at, bytes, expected) in cases {
        let mut drive = blank(512);
        drive.put(at, &bytes);
        assert!(reason(&drive).contains(expected), "{expected}: {}", reason(&drive));
    }
}

fn superblock_magic() -> Vec<u8> {
    crate::linux::superblock::MD_MAGIC.to_le_bytes().to_vec()
}

#[test]
fn an_mbr_table_is_one_and_a_boot_block_is_not() {
    let mut drive = blank(512);
    drive.put(510, &[0x55, 0xaa]);
    drive.put(446 + 4, &[0x83]);
    assert_eq!(reason(&drive), "an MBR partition table");
    drive.put(446, &[0x17]);
    assert!(reason(&drive).contains("unrecognised content at byte 446"));
}

#[test]
fn a_second_owner_beside_a_sound_table_keeps_us_away_unless_it_is_inside_a_partition() {
    // MD 0.90 over the whole drive leaves a table at both ends intact.
    let at = (256u64 << 20) - (64 << 10);
    let mut drive = labelled(512);
    drive.put(at, &superblock_magic());
    assert!(reason(&drive).contains("metadata 0.90"), "{}", reason(&drive));
    let mut drive = blank(512);
    let to_the_end = entry(PARTITION_TYPE, 1, Extent { start: 200 << 20, length: (56 << 20) - (32 << 10) });
    drive.table(Uuid::from_u128(99), &[(1, to_the_end)]);
    drive.put(at, &superblock_magic());
    assert_eq!(drive.classify().class, DriveClass::Ours);
}

#[test]
fn a_file_system_made_over_a_table_of_ours_is_named() {
    for (at, bytes) in [(0x10040, &b"_BHRfS_M"[..]), (0x8001, b"CD001"), (4096, &superblock_magic())] {
        let mut drive = labelled(512);
        drive.put(at, bytes);
        assert!(reason(&drive).starts_with("a"), "{}", reason(&drive));
    }
}

/// What the machine's own tools make. Skipped, tool by tool, where they are not installed.
#[test]
fn what_real_tools_make_is_named() {
    let tools: [(&[&str], &str); 8] = [
        (&["mkfs.ext4", "-q", "-F"], "an ext4 file system"),
        (&["mkfs.ext3", "-q", "-F"], "an ext3 file system"),
        (&["mkfs.ext2", "-q", "-F"], "an ext2 file system"),
        (&["mkfs.xfs", "-q", "-f"], "an XFS file system"),
        (&["mkfs.btrfs", "-q", "-f"], "a btrfs file system"),
        (&["mkswap", "-q"], "swap space"),
        (&["mkfs.vfat", "-I"], "a FAT file system"),
        (&["mkfs.f2fs", "-q", "-f"], "an F2FS file system"),
    ];
    for (command, expected) in tools {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(512 << 20).unwrap();
        let mut run = std::process::Command::new(command[0]);
        run.args(&command[1..]).arg(file.path()).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
        let Ok(output) = run.output() else { continue };
        assert!(output.status.success(), "{output:?}");
        let drive = Drive::read(512, file.as_file());
        assert!(reason(&drive).contains(expected), "{expected}: {}", reason(&drive));
    }
}

// --------------------------------------------------------------------------------------------- free space

#[test]
fn free_space_is_what_is_left_aligned() {
    const M: u64 = 1 << 20;
    let extent = |start: u64, end: u64| Extent { start, length: end - start };
    let usable = extent(17408, 100 * M - 17408);
    assert_eq!(free_extents(usable, []), [extent(M, 99 * M)]);
    let used = [extent(10 * M + 5, 20 * M - 5), extent(1, 2 * M), extent(15 * M, 16 * M), extent(97 * M, 200 * M)];
    assert_eq!(free_extents(usable, used), [extent(2 * M, 10 * M), extent(20 * M, 97 * M)]);
    assert_eq!(free_extents(usable, [extent(0, u64::MAX)]), []);
    assert_eq!(free_extents(extent(0, 0), []), []);
}

// ------------------------------------------------------------------------------------------------ chance

proptest! {
    #[test]
    fn any_byte_at_either_end_is_not_blank(at in 0u64..8 << 20, byte in 1u8.., large in any::<bool>()) {
        let mut drive = blank(if large { 4096 } else { 512 });
        let at = if at < 4 << 20 { at } else { (256 << 20) - (8 << 20) + at };
        drive.put(at, &[byte]);
        let class = drive.classify().class;
        prop_assert!(matches!(class, DriveClass::Theirs(_)), "{class:?}");
    }

    #[test]
    fn corruption_never_shows_other_partitions_than_there_are(
        flips in proptest::collection::vec((any::<bool>(), 0u64..40_000, 1u8..), 1..6),
        large in any::<bool>(),
        own in any::<bool>(),
    ) {
        let sector = if large { 4096 } else { 512 };
        let mut drive = if own { labelled(sector) } else { shared(sector) };
        let wanted = drive.classify().entries();
        for (end, at, mask) in flips {
            drive.xor(if end { (256 << 20) - 1 - at } else { at }, mask);
        }
        let verdict = drive.classify();
        match verdict.class {
            DriveClass::Ours | DriveClass::Shared => prop_assert_eq!(verdict.entries(), wanted),
            DriveClass::Theirs(_) => prop_assert_eq!(verdict.table, None),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn free_space_never_touches_what_is_used(
        used in proptest::collection::vec((0u64..1 << 30, 0u64..1 << 28), 0..12),
    ) {
        let usable = Extent { start: 17408, length: (1 << 30) - 50_000 };
        let used: Vec<Extent> = used.into_iter().map(|(start, length)| Extent { start, length }).collect();
        let free = free_extents(usable, used.iter().copied());
        for gap in &free {
            prop_assert!(gap.start % ALIGNMENT == 0 && gap.length % ALIGNMENT == 0 && gap.length > 0);
            prop_assert!(gap.start >= usable.start && gap.end() <= usable.end());
            prop_assert!(used.iter().all(|u| u.length == 0 || u.end() <= gap.start || gap.end() <= u.start));
        }
    }
}
