//! Probes of members in plain files.

use super::*;
use crate::facts::EpochRecord;
use crate::id::{ClusterId, ReplicaId, VolumeId};
use crate::linux::root::{Root, scratch};
use crate::linux::superblock::tests::{bitmap, seal, superblock};
use crate::linux::uring::Engine;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use uuid::Uuid;

const SIZE: u64 = 64 << 20;

fn record(sequence: u64) -> EpochRecord {
    EpochRecord {
        volume: VolumeId(Uuid::from_u128(7)),
        cluster: ClusterId(Uuid::from_u128(8)),
        replica: ReplicaId(1),
        epoch: 4,
        generation: 2,
        in_sync: BTreeSet::from([ReplicaId(1)]),
        volume_name: "pvc-1".into(),
        sequence,
        tainted: None,
        unflushed: None,
        content: Default::default(),
    }
}

struct Member {
    _dir: tempfile::TempDir,
    path: String,
    file: File,
}

impl Member {
    fn new(size: u64) -> Member {
        let dir = scratch();
        let path = dir.path().join("member");
        let file = File::create(&path).unwrap();
        file.set_len(size).unwrap();
        Member { path: path.display().to_string(), file, _dir: dir }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).unwrap();
        self.file.sync_all().unwrap();
    }

    async fn probe(&self, data_too: bool) -> Result<MemberProbe> {
        member(&Ring::start_with(Root::host(), Engine::detect()), &self.path, data_too).await
    }
}

#[tokio::test]
async fn an_empty_member_is_blank_and_nothing_else() {
    let member = Member::new(SIZE);
    let probe = member.probe(true).await.unwrap();
    assert_eq!((probe.superblock, probe.record), (None, None));
    assert_eq!(probe.blank.unwrap().device(), member.path);
    assert_eq!(member.probe(false).await.unwrap().blank, None);
}

#[tokio::test]
async fn superblock_bitmap_and_newest_record_are_found() {
    let member = Member::new(SIZE);
    let uuid = Uuid::from_u128(3);
    member.put(SUPERBLOCK_OFFSET, &superblock(uuid));
    member.put(8192, &bitmap(uuid, 9000, 64 << 20, &[5, 8999]));
    for sequence in [6, 7] {
        member.put(record::slot_of(sequence), &record::encode(&record(sequence)).unwrap());
    }
    let probe = member.probe(true).await.unwrap();
    let superblock = probe.superblock.unwrap();
    assert_eq!((superblock.set_uuid, superblock.events), (uuid, 42));
    assert_eq!(superblock.bitmap.unwrap().dirty, BTreeSet::from([5, 8999]));
    assert_eq!(probe.record.unwrap().sequence, 7);
    assert!(probe.blank.is_some(), "metadata are no data");
}

#[tokio::test]
async fn a_bitmap_that_lies_or_reaches_elsewhere_is_read_again() {
    let uuid = Uuid::from_u128(3);
    // Beyond what is read at once; at an odd sector; with more bits than fit in front of the data.
    for (sectors, chunks) in [(4096i32, 100u64), (4097, 100), (8, 2_000_000)] {
        let member = Member::new(SIZE);
        let mut sb = superblock(uuid);
        sb[96..100].copy_from_slice(&sectors.to_le_bytes());
        seal(&mut sb);
        member.put(SUPERBLOCK_OFFSET, &sb);
        member.put(4096 + sectors as u64 * 512, &bitmap(uuid, chunks, 1 << 20, &[chunks - 1]));
        let probe = member.probe(false).await.unwrap();
        assert_eq!(probe.superblock.unwrap().bitmap.unwrap().dirty, BTreeSet::from([chunks - 1]), "{sectors}");
    }
}

#[tokio::test]
async fn a_bitmap_that_is_not_there_is_none() {
    let member = Member::new(SIZE);
    member.put(SUPERBLOCK_OFFSET, &superblock(Uuid::from_u128(3)));
    assert_eq!(member.probe(false).await.unwrap().superblock.unwrap().bitmap, None);
}

#[tokio::test]
async fn one_byte_of_data_at_either_end_is_not_blank() {
    for at in [DATA_OFFSET, DATA_OFFSET + BLANK_BYTES - 1, SIZE - BLANK_BYTES, SIZE - 1] {
        let member = Member::new(SIZE);
        member.put(at, &[1]);
        assert_eq!(member.probe(true).await.unwrap().blank, None, "{at}");
    }
}

#[tokio::test]
async fn odd_last_blocks_count_and_short_members_prove_nothing() {
    let member = Member::new(SIZE + 3 * 512);
    assert!(member.probe(true).await.unwrap().blank.is_some());
    member.put(SIZE + 3 * 512 - 1, &[1]);
    assert_eq!(member.probe(true).await.unwrap().blank, None);
    for size in [0, 8192, 3 << 20, DATA_OFFSET + 512] {
        let probe = Member::new(size).probe(true).await.unwrap();
        assert_eq!(probe, MemberProbe::default(), "{size}");
    }
}

#[tokio::test]
async fn an_absent_device_is_an_error() {
    let ring = Ring::start_with(Root::host(), Engine::detect());
    assert_eq!(member(&ring, "/dev/meshstor-none", true).await.unwrap_err().errno, Some(2));
}
