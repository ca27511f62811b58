//! Fixtures of the plan tests: one volume, one drive, one partition, all healthy. Tests change what they are about.

use crate::record::{FormatRecord, VolumeRecord};
use meshstor_kernel::facts::*;
use meshstor_kernel::id::*;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

pub fn volume() -> VolumeId {
    VolumeId(Uuid::from_u128(0xabc))
}

pub fn cluster() -> ClusterId {
    ClusterId(Uuid::from_u128(0xc1))
}

pub fn key(replica: u32) -> ReplicaKey {
    ReplicaKey { volume: volume(), replica: ReplicaId(replica) }
}

pub fn record(replica: u32, epoch: Epoch, generation: Generation) -> EpochRecord {
    EpochRecord {
        volume: volume(),
        cluster: cluster(),
        replica: ReplicaId(replica),
        epoch,
        generation,
        in_sync: BTreeSet::new(),
        volume_name: "pvc-1".into(),
        sequence: 1,
        tainted: None,
        unflushed: None,
        content: Default::default(),
    }
}

pub fn our_drive() -> DriveFact {
    DriveFact {
        id: DriveId("msa0-1".into()),
        path: "/dev/nvme0n1".into(),
        model: "QEMU".into(),
        serial: "msa0".into(),
        size_bytes: 8 << 30,
        sector_bytes: 4096,
        volatile_cache: false,
        class: DriveClass::Ours,
        entries: BTreeMap::new(),
        free: vec![Extent { start: ALIGNMENT, length: (8 << 30) - 2 * ALIGNMENT }],
    }
}

pub fn blank_drive() -> DriveFact {
    let zeros = vec![0u8; ALIGNMENT as usize];
    let mut drive = our_drive();
    drive.class = DriveClass::Blank(BlankDrive::from_bytes(&drive.id, &zeros, &zeros).unwrap());
    drive
}

pub fn partition(replica: u32) -> PartitionFact {
    PartitionFact {
        drive: our_drive().id,
        number: 1,
        extent: Extent { start: ALIGNMENT, length: 1 << 30 },
        path: Some("/dev/nvme0n1p1".into()),
        kernel_bytes: Some(1 << 30),
        volatile_cache: false,
        power: "boot/1".into(),
        holders: BTreeSet::new(),
        superblock: None,
        record: Some(record(replica, 0, 0)),
        zeroed: true,
    }
}

pub fn listen(transport: Transport) -> Listen {
    Listen { transport, address: "10.77.0.12".parse().unwrap(), port: 20_001 }
}

/// A detached volume with nothing recorded.
pub fn volume_record() -> VolumeRecord {
    VolumeRecord {
        name: "pvc-1".into(),
        uid: "11111111-1111-4111-8111-111111111111".into(),
        volume: volume(),
        cluster: cluster(),
        size_bytes: 1 << 30,
        content: Default::default(),
        replica_count: 2,
        epoch: 1,
        consumer: None,
        consumer_boot: None,
        in_sync: None,
        foreign: None,
        activated_epoch: 1,
        departures: BTreeMap::new(),
        flaps: BTreeMap::new(),
        format: FormatRecord::Done,
        released_epoch: 0,
        replicas: BTreeMap::new(),
    }
}
