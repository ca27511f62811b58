//! Partitions on fake trees: each step, each refusal, each place where a process may have been killed before. What
//! only a kernel can show (BLKPG, exclusive opens) runs in `examples/drive-suite.rs` on guests.

use super::*;
use crate::facts::{BlankDrive, ExportFact, PartitionFact};
use crate::id::{ClusterId, ReplicaId, VolumeId};
use crate::linux::classify;
use crate::linux::drives::tests::{Node, put_table, write};
use crate::linux::gpt::{self, tests::foreign};
use crate::linux::superblock::tests::superblock;
use crate::record::{encode, slot_of};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const EXTENT: Extent = Extent { start: 16 * MIB, length: 32 * MIB };

fn key() -> ReplicaKey {
    ReplicaKey { volume: VolumeId(Uuid::from_u128(7)), replica: ReplicaId(1) }
}

fn drive() -> DriveId {
    DriveId("s1-1".into())
}

fn record(epoch: u64, generation: u64) -> EpochRecord {
    EpochRecord {
        volume: key().volume,
        cluster: ClusterId(Uuid::from_u128(8)),
        replica: key().replica,
        epoch,
        generation,
        in_sync: BTreeSet::from([key().replica]),
        volume_name: "pvc-1".into(),
        sequence: 0,
        tainted: None,
        unflushed: None,
        content: Default::default(),
    }
}

fn entry(number: u32, extent: Extent) -> (u32, PartitionEntry) {
    let (unique_guid, name) = (key().partition_uuid(), key().partition_name());
    (number, PartitionEntry { type_guid: PARTITION_TYPE, unique_guid, name, extent })
}

/// A labelled drive whose table has the replica's entry, and a kernel that has the partition.
struct Made {
    node: Node,
    disk: std::path::PathBuf,
    partition: std::path::PathBuf,
}

fn made() -> Made {
    let node = Node::new();
    let disk = node.drive(0, "S1", 512);
    put_table(&disk, 512, classify::label_of(&drive()), &[entry(1, EXTENT)]);
    let partition = node.partition("nvme0n1", 1, EXTENT);
    Made { node, disk, partition }
}

fn fact(holders: &[&str]) -> PartitionFact {
    PartitionFact {
        drive: drive(),
        number: 1,
        extent: EXTENT,
        path: None,
        kernel_bytes: None,
        volatile_cache: false,
        power: "boot/1".into(),
        holders: holders.iter().map(|h| (*h).to_string()).collect(),
        superblock: None,
        record: None,
        zeroed: false,
    }
}

fn unclaimed() -> Unclaimed {
    Unclaimed::prove(key(), &fact(&[]), &ExportFact::default()).unwrap()
}

fn read(path: &Path, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    File::open(path).unwrap().read_exact_at(&mut bytes, at).unwrap();
    bytes
}

fn on_drive(made: &Made) -> Option<EpochRecord> {
    let partition = drives::kernel_partitions(&made.node.root, "nvme0n1").unwrap().remove(&1).unwrap();
    Bytes::open_shared(&partition, EXTENT.length).unwrap().record().unwrap()
}

// ---------------------------------------------------------------------------------------------------- add

#[test]
fn adding_writes_the_entry_before_the_kernel_is_told_and_is_completed_later() {
    let node = Node::new();
    let disk = node.drive(0, "S1", 512);
    let proof = BlankDrive::from_bytes(&drive(), &vec![0; 1 << 20], &vec![0; 1 << 20]).unwrap();
    assert_eq!(gpt::label(&node.root, &proof), Ok(Changed::Yes));
    assert_eq!(gpt::label(&node.root, &proof), Ok(Changed::No));
    // What an earlier user left in the free space.
    write(&disk, EXTENT.start + 4096, &superblock(Uuid::from_u128(5)));
    write(&disk, EXTENT.end() - 4096, &[9; 4096]);
    // A plain file takes no BLKPG: exactly what a crash between table and kernel leaves.
    assert_eq!(add(&node.root, key(), &drive(), EXTENT).unwrap_err().errno, Some(nix::libc::ENOTTY));
    assert_eq!(read(&disk, EXTENT.start, 4 << 20), vec![0; 4 << 20]);
    assert_eq!(read(&disk, EXTENT.end() - MIB, 1 << 20), vec![0; 1 << 20]);
    let place = locate(&node.root, key()).unwrap().unwrap();
    assert_eq!((place.number, place.entry.extent, place.kernel), (1, EXTENT, None));
    assert_eq!(announce(&node.root, key()).unwrap_err().errno, Some(nix::libc::ENOTTY));
    node.partition("nvme0n1", 1, EXTENT);
    assert_eq!(announce(&node.root, key()), Ok(Changed::No));
    assert_eq!(add(&node.root, key(), &drive(), EXTENT), Ok(Changed::No));
}

#[test]
fn adding_is_refused_where_it_would_hurt() {
    let made = made();
    let other = ReplicaKey { replica: ReplicaId(2), ..key() };
    let overlap = Extent { start: 47 * MIB, length: 10 * MIB };
    let unknown = DriveId("nobody-1".into());
    assert!(add(&made.node.root, other, &drive(), overlap).unwrap_err().detail.contains("not free"));
    assert!(add(&made.node.root, other, &unknown, overlap).unwrap_err().detail.contains("no drive of this name"));
    let moved = Extent { start: 100 * MIB, ..EXTENT };
    assert!(add(&made.node.root, key(), &drive(), moved).unwrap_err().detail.contains("elsewhere"));
    made.node.drive(1, "S2", 512);
    let error = add(&made.node.root, key(), &DriveId("s2-1".into()), EXTENT).unwrap_err();
    assert!(error.detail.contains("elsewhere"), "{error}");
    let error = add(&made.node.root, other, &DriveId("s2-1".into()), EXTENT).unwrap_err();
    assert!(error.detail.contains("no partition table yet"), "{error}");
    // Free in the table, taken in the kernel.
    made.node.partition("nvme0n1", 9, Extent { start: 100 * MIB, length: MIB });
    assert!(add(&made.node.root, other, &drive(), moved).unwrap_err().detail.contains("not free"));
}

// --------------------------------------------------------------------------------------------------- grow

#[test]
fn growing_zeroes_what_is_behind_before_the_entry_is_longer_and_is_completed_later() {
    let made = made();
    let longer = Extent { length: 64 * MIB, ..EXTENT };
    write(&made.disk, EXTENT.end() - 4096, &[7; 4096]);
    for at in [EXTENT.end(), longer.end() - 4096] {
        write(&made.disk, at, &[9; 4096]);
    }
    write(&made.disk, longer.end(), &[8; 4096]);
    let grow = |bytes| grow::grow(&made.node.root, key(), &drive(), bytes);
    // A plain file takes no BLKPG: exactly what a crash between table and kernel leaves.
    assert_eq!(grow(longer.length).unwrap_err().errno, Some(nix::libc::ENOTTY));
    assert_eq!(locate(&made.node.root, key()).unwrap().unwrap().entry.extent, longer);
    for at in [EXTENT.end(), longer.end() - MIB] {
        assert_eq!(read(&made.disk, at, 1 << 20), vec![0; 1 << 20]);
    }
    assert_eq!(read(&made.disk, EXTENT.end() - 4096, 4096), [7; 4096], "what was there stays");
    assert_eq!(read(&made.disk, longer.end(), 4096), [8; 4096], "what is not its own stays");
    // Done in the table: only the kernel is left to be told.
    assert_eq!(grow(longer.length).unwrap_err().errno, Some(nix::libc::ENOTTY));
    made.node.partition("nvme0n1", 1, longer);
    assert_eq!((grow(longer.length), grow(EXTENT.length)), (Ok(Changed::No), Ok(Changed::No)), "it never shrinks");
}

#[test]
fn growing_is_refused_where_it_would_hurt() {
    let made = made();
    let before = read(&made.disk, 0, 64 * MIB as usize);
    let other = ReplicaKey { replica: ReplicaId(2), ..key() };
    let grow = |key, drive: &DriveId, bytes| grow::grow(&made.node.root, key, drive, bytes).unwrap_err().detail;
    assert!(grow(other, &drive(), 64 * MIB).contains("no drive here has its partition"));
    assert!(grow(key(), &DriveId("s2-1".into()), 64 * MIB).contains("is not on s2-1"));
    assert!(grow(key(), &drive(), 33 * MIB + 512).contains("not aligned"));
    assert!(grow(key(), &drive(), 1 << 60).contains("not free"), "beyond the drive");
    // Free in the table, taken in the kernel.
    made.node.partition("nvme0n1", 9, Extent { start: EXTENT.end() + MIB, length: MIB });
    assert!(grow(key(), &drive(), 64 * MIB).contains("not free"));
    assert_eq!(read(&made.disk, 0, 64 * MIB as usize), before);
}

#[test]
fn a_foreign_drive_is_not_added_to_and_not_changed() {
    let node = Node::new();
    let disk = node.drive(0, "S1", 512);
    write(&disk, 0, b"XFSB");
    let before = std::fs::read(&disk).unwrap();
    let error = add(&node.root, key(), &drive(), EXTENT).unwrap_err();
    assert!(error.detail.contains("an XFS file system"), "{error}");
    assert!(std::fs::read(&disk).unwrap() == before);
}

#[test]
fn a_copy_of_a_drive_makes_both_untouchable() {
    let made = made();
    let copy = made.node.drive(1, "S2", 512);
    std::fs::copy(&made.disk, copy).unwrap();
    for result in [remove(&made.node.root, &unclaimed()), write_record(&made.node.root, key(), &record(1, 1))] {
        assert!(result.unwrap_err().detail.contains("copy of the other"));
    }
}

// -------------------------------------------------------------------------------------------------- blank

#[test]
fn blanking_zeroes_all_and_writes_the_first_record_once() {
    let made = made();
    write(&made.partition, 0, &vec![7; EXTENT.length as usize]);
    assert_eq!(blank(&made.node.root, &unclaimed(), &record(3, 1)), Ok(Changed::Yes));
    let bytes = std::fs::read(&made.partition).unwrap();
    let at = slot_of(1) as usize;
    assert!(bytes[..at].iter().chain(&bytes[at + 4096..]).all(|b| *b == 0));
    assert_eq!(on_drive(&made), Some(EpochRecord { sequence: 1, ..record(3, 1) }));
    assert_eq!(blank(&made.node.root, &unclaimed(), &record(3, 1)), Ok(Changed::No));
}

#[test]
fn what_carries_a_record_or_a_superblock_is_not_blanked() {
    let made = made();
    write(&made.partition, slot_of(1), &encode(&EpochRecord { sequence: 1, ..record(3, 1) }).unwrap());
    write(&made.partition, DATA_OFFSET + 5, &[1]);
    for wanted in [record(3, 1), record(4, 1)] {
        let error = blank(&made.node.root, &unclaimed(), &wanted).unwrap_err();
        assert!(error.detail.contains("carries a record of epoch 3"), "{error}");
    }
    let made = self::made();
    for (uuid, expected) in [(key().volume.md_uuid(), "this volume's"), (Uuid::from_u128(1), "a foreign")] {
        write(&made.partition, 4096, &superblock(uuid));
        assert!(blank(&made.node.root, &unclaimed(), &record(3, 1)).unwrap_err().detail.contains(expected));
    }
    assert_eq!(read(&made.partition, 4096, 4096), superblock(Uuid::from_u128(1)));
}

#[test]
fn what_is_held_or_exported_is_neither_blanked_nor_removed() {
    let made = made();
    write(&made.partition, DATA_OFFSET, &[1; 512]);
    let holder = made.node.root.sys.join("block/nvme0n1/nvme0n1p1/holders/md127");
    std::fs::create_dir(&holder).unwrap();
    for result in [blank(&made.node.root, &unclaimed(), &record(1, 1)), remove(&made.node.root, &unclaimed())] {
        assert!(result.unwrap_err().detail.contains("held by md127"));
    }
    std::fs::remove_dir(&holder).unwrap();
    let namespace = made.node.root.configfs.join("nvmet/subsystems/nqn.x/namespaces/1");
    let path = made.partition.display().to_string();
    made.node.attrs(&namespace, &[("device_path", &path), ("enable", "1")]);
    for result in [blank(&made.node.root, &unclaimed(), &record(1, 1)), remove(&made.node.root, &unclaimed())] {
        let error = result.unwrap_err();
        assert!(error.detail.contains("exported by nqn.x"), "{error}");
        assert_eq!(error.class, crate::Class::Wait);
    }
    assert_eq!(read(&made.partition, DATA_OFFSET, 512), [1; 512]);
    made.node.attrs(&namespace, &[("enable", "0")]);
    assert_eq!(blank(&made.node.root, &unclaimed(), &record(1, 1)), Ok(Changed::Yes));
}

#[test]
fn a_partition_the_kernel_has_otherwise_is_not_touched() {
    let made = made();
    let shorter = Extent { length: EXTENT.length - MIB, ..EXTENT };
    made.node.partition("nvme0n1", 1, shorter);
    for result in
        [blank(&made.node.root, &unclaimed(), &record(1, 1)), write_record(&made.node.root, key(), &record(1, 1))]
    {
        assert!(result.unwrap_err().detail.contains("as the table says"));
    }
}

// ------------------------------------------------------------------------------------------------- record

#[test]
fn records_go_to_the_two_slots_in_turn() {
    let made = made();
    blank(&made.node.root, &unclaimed(), &record(1, 1)).unwrap();
    for (sequence, generation) in (2..6).zip(2..) {
        assert_eq!(write_record(&made.node.root, key(), &record(1, generation)), Ok(Changed::Yes));
        assert_eq!(write_record(&made.node.root, key(), &record(1, generation)), Ok(Changed::No));
        assert_eq!(on_drive(&made), Some(EpochRecord { sequence, ..record(1, generation) }));
    }
    // A torn write costs the record it was writing, never the one before.
    write(&made.partition, slot_of(5) + 40, &[0xff]);
    assert_eq!(on_drive(&made).unwrap().sequence, 4);
    assert_eq!(write_record(&made.node.root, key(), &record(1, 5)), Ok(Changed::Yes));
    assert_eq!(on_drive(&made).unwrap().sequence, 5);
}

#[test]
fn records_never_go_back_and_never_change_hands() {
    let made = made();
    let error = write_record(&made.node.root, key(), &record(5, 2)).unwrap_err();
    assert!(error.detail.contains("never blanked"), "{error}");
    blank(&made.node.root, &unclaimed(), &record(5, 2)).unwrap();
    for older in [record(4, 9), record(5, 1)] {
        assert!(write_record(&made.node.root, key(), &older).unwrap_err().detail.contains("has epoch 5.2 already"));
    }
    let cluster = EpochRecord { cluster: ClusterId(Uuid::from_u128(1)), ..record(9, 1) };
    assert!(write_record(&made.node.root, key(), &cluster).unwrap_err().detail.contains("belongs to"));
    let volume = EpochRecord { volume: VolumeId(Uuid::from_u128(1)), ..record(9, 1) };
    assert_eq!(write_record(&made.node.root, key(), &volume).unwrap_err().class, crate::Class::Bug);
    // The membership may change inside a generation.
    let grown = EpochRecord { in_sync: BTreeSet::from([ReplicaId(0), ReplicaId(1)]), ..record(5, 2) };
    assert_eq!(write_record(&made.node.root, key(), &grown), Ok(Changed::Yes));
    assert_eq!(on_drive(&made), Some(EpochRecord { sequence: 2, ..grown }));
}

// ------------------------------------------------------------------------------------------------- remove

#[test]
fn removing_wipes_the_bytes_and_frees_the_entry() {
    let made = made();
    let end = made.node.root.sys.join("block/nvme0n1/nvme0n1p1");
    // As after BLKPG: the kernel has no such partition any more.
    std::fs::remove_dir_all(end).unwrap();
    write(&made.disk, EXTENT.start - 512, &[1; 512]);
    write(&made.disk, EXTENT.start, &vec![7; EXTENT.length as usize]);
    write(&made.disk, EXTENT.end(), &[2; 512]);
    assert_eq!(remove(&made.node.root, &unclaimed()), Ok(Changed::Yes));
    assert!(read(&made.disk, EXTENT.start, EXTENT.length as usize).iter().all(|b| *b == 0));
    assert_eq!(read(&made.disk, EXTENT.start - 512, 512), [1; 512]);
    assert_eq!(read(&made.disk, EXTENT.end(), 512), [2; 512]);
    assert_eq!(locate(&made.node.root, key()), Ok(None));
    assert_eq!(remove(&made.node.root, &unclaimed()), Ok(Changed::No));
}

/// As a lost edit leaves it: the kernel has another partition under the entry's number.
#[test]
fn what_the_kernel_has_under_the_same_number_is_in_the_way_only_where_it_overlaps() {
    let made = made();
    write(&made.disk, EXTENT.start, &[7; 512]);
    for (start, length) in [(EXTENT.start + MIB, MIB), (EXTENT.end() - MIB, 2 * MIB), (EXTENT.start - MIB, 2 * MIB)] {
        made.node.partition("nvme0n1", 1, Extent { start, length });
        let error = remove(&made.node.root, &unclaimed()).unwrap_err();
        assert!(error.class == crate::Class::Wait && error.detail.contains("has nvme0n1p1 there"), "{error}");
        assert_eq!(read(&made.disk, EXTENT.start, 512), [7; 512]);
    }
    made.node.partition("nvme0n1", 1, Extent { start: EXTENT.end(), length: MIB });
    write(&made.disk, EXTENT.end(), &[2; 512]);
    assert_eq!(remove(&made.node.root, &unclaimed()), Ok(Changed::Yes));
    assert_eq!(
        (read(&made.disk, EXTENT.start, 512), read(&made.disk, EXTENT.end(), 512)),
        (vec![0; 512], vec![2; 512])
    );
}

#[test]
fn removing_a_replica_whose_record_names_another_is_refused() {
    let made = made();
    std::fs::remove_dir_all(made.node.root.sys.join("block/nvme0n1/nvme0n1p1")).unwrap();
    let stranger = EpochRecord { replica: ReplicaId(9), ..record(1, 1) };
    write(&made.disk, EXTENT.start + slot_of(0), &encode(&stranger).unwrap());
    assert!(remove(&made.node.root, &unclaimed()).unwrap_err().detail.contains("its record names"));
    assert_eq!(read(&made.disk, EXTENT.start + slot_of(0), 8), b"MSRECORD");
}

#[test]
fn a_foreign_entry_with_our_guid_is_not_found() {
    let node = Node::new();
    let disk = node.drive(0, "S1", 512);
    let mut stranger = foreign(1, 16, 32);
    stranger.unique_guid = key().partition_uuid();
    put_table(&disk, 512, Uuid::from_u128(9), &[(1, stranger)]);
    assert_eq!(remove(&node.root, &unclaimed()), Ok(Changed::No));
    assert!(blank(&node.root, &unclaimed(), &record(1, 1)).unwrap_err().detail.contains("no drive here"));
}

// ------------------------------------------------------------------------------------------------ observe

#[tokio::test]
async fn a_partition_is_observed_with_what_lies_in_it() {
    let made = made();
    let ring = made.node.ring();
    let root = made.node.root.clone();
    let fresh = observe(&ring, &root, &SharedTables::default(), key()).await.unwrap().unwrap();
    assert_eq!((fresh.number, fresh.extent, fresh.zeroed), (1, EXTENT, false));
    assert_eq!(fresh.path, Some(made.partition.display().to_string()));
    assert_eq!(fresh.kernel_bytes, Some(EXTENT.length));
    let written = EpochRecord { sequence: 1, ..record(3, 1) };
    write(&made.disk, EXTENT.start + slot_of(1), &encode(&written).unwrap());
    write(&made.disk, EXTENT.start + 4096, &superblock(key().volume.md_uuid()));
    std::fs::create_dir(root.sys.join("block/nvme0n1/nvme0n1p1/holders/md127")).unwrap();
    let used = observe(&ring, &root, &SharedTables::default(), key()).await.unwrap().unwrap();
    assert_eq!((used.record, used.zeroed), (Some(written.clone()), true));
    assert_eq!(used.superblock.unwrap().set_uuid, key().volume.md_uuid());
    assert_eq!(used.holders, BTreeSet::from(["md127".to_string()]));
    write(&made.disk, EXTENT.start + DATA_OFFSET + 1080, &[0x53, 0xef]);
    assert!(!observe(&ring, &root, &SharedTables::default(), key()).await.unwrap().unwrap().zeroed);
    let replicas = replicas(&ring, &root, &SharedTables::default()).await.unwrap();
    assert_eq!(replicas[&drive()], [(key().partition_uuid(), Some(written))]);
}

#[tokio::test]
async fn an_entry_the_kernel_does_not_have_is_observed_without_a_path() {
    let made = made();
    let ring = made.node.ring();
    let moved = Extent { start: 100 * MIB, ..EXTENT };
    made.node.partition("nvme0n1", 1, moved);
    let fact = observe(&ring, &made.node.root, &SharedTables::default(), key()).await.unwrap().unwrap();
    assert_eq!((fact.extent, fact.path, fact.kernel_bytes), (EXTENT, None, None));
    let other = ReplicaKey { replica: ReplicaId(2), ..key() };
    assert_eq!(observe(&ring, &made.node.root, &SharedTables::default(), other).await.unwrap(), None);
}

#[tokio::test]
async fn a_drive_that_answers_with_errors_hides_nothing() {
    let made = made();
    std::fs::remove_file(made.node.drive(1, "S2", 512)).unwrap();
    let other = ReplicaKey { replica: ReplicaId(2), ..key() };
    assert_eq!(observe(&made.node.ring(), &made.node.root, &SharedTables::default(), other).await.unwrap(), None);
    assert!(observe(&made.node.ring(), &made.node.root, &SharedTables::default(), key()).await.unwrap().is_some());
    assert_eq!(locate(&made.node.root, other), Ok(None));
}

#[test]
fn a_drive_that_is_silent_may_hold_what_no_other_drive_has() {
    let made = made();
    let namespace = drives::find(&made.node.root, &drive()).unwrap();
    let silent = || BTreeMap::from([("nvme1n1".to_string(), KernelError::retry("read", "nvme1n1", "no answer"))]);
    let none: Vec<(Namespace, u32, ())> = Vec::new();
    let error = locate::one_of(key(), none.clone(), silent()).unwrap_err();
    assert!(error.detail.contains("nvme1n1, which may have its partition"), "{error}");
    assert_eq!(locate::one_of(key(), none, BTreeMap::new()), Ok(None));
    let found = vec![(namespace, 1, ())];
    assert!(locate::one_of(key(), found, silent()).unwrap().is_some());
}
