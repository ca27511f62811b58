//! Table tests of the partition plan.

use super::*;
use crate::Step;
use crate::record::VolumeRecord;
use crate::testing::*;
use meshstor_kernel::facts::{ALIGNMENT, ExportEntry};
use meshstor_kernel::id::{ExportKey, ReplicaId};

fn wish() -> PartitionWish {
    PartitionWish {
        key: key(0),
        drive: our_drive().id,
        bytes: 1 << 30,
        usage: DriveUsage::Auto,
        cluster: cluster(),
        volume_name: "pvc-1".into(),
        content: Default::default(),
        was_ready: false,
        tombstone: None,
    }
}

fn look(partition: Option<PartitionFact>) -> PartitionLook {
    PartitionLook { drive: Some(our_drive()), partition, exports: ExportFact::default(), record: None }
}

fn op(plan: &Plan<PartitionReport>) -> &'static str {
    plan.next.as_ref().map_or("rest", Step::name)
}

fn tombstoned() -> PartitionWish {
    let tombstone =
        TombstoneWish { partition_uuid: key(0).partition_uuid(), cluster: cluster(), volume: volume(), living: false };
    PartitionWish { tombstone: Some(tombstone), was_ready: true, ..wish() }
}

#[test]
fn from_blank_drive_to_ready_step_by_step() {
    let mut at = look(None);
    at.drive = Some(blank_drive());
    assert_eq!(op(&Partition::plan(Some(&wish()), &at)), "label-drive");
    at = look(None);
    assert_eq!(op(&Partition::plan(Some(&wish()), &at)), "add-partition");
    at = look(Some(PartitionFact { path: None, kernel_bytes: None, record: None, ..partition(0) }));
    assert_eq!(op(&Partition::plan(Some(&wish()), &at)), "announce-partition");
    at = look(Some(PartitionFact { record: None, ..partition(0) }));
    assert_eq!(op(&Partition::plan(Some(&wish()), &at)), "blank-partition");
    at = look(Some(partition(0)));
    let done = Partition::plan(Some(&wish()), &at);
    assert_eq!((op(&done), done.status.state), ("rest", PartitionState::Ready));
}

#[test]
fn data_that_were_there_are_never_made_anew() {
    let wish = PartitionWish { was_ready: true, ..wish() };
    let gone = Partition::plan(Some(&wish), &look(None));
    assert!(gone.next.is_none() && matches!(gone.status.reason, Some(Reason::DataMissing { .. })));
    let unrecorded = Partition::plan(Some(&wish), &look(Some(PartitionFact { record: None, ..partition(0) })));
    assert!(unrecorded.next.is_none() && matches!(unrecorded.status.reason, Some(Reason::DataMissing { .. })));
}

#[test]
fn the_smallest_fitting_extent_is_taken() {
    let mut at = look(None);
    if let Some(drive) = &mut at.drive {
        drive.free = vec![
            Extent { start: 1 << 20, length: 1 << 40 },
            Extent { start: 1 << 41, length: 2 << 30 },
            Extent { start: 1 << 42, length: 1 << 20 },
        ];
    }
    let Some(Step::Kernel(Op::AddPartition { extent, .. })) = Partition::plan(Some(&wish()), &at).next else {
        panic!()
    };
    assert_eq!(extent, Extent { start: 1 << 41, length: 1 << 30 });
}

#[test]
fn a_held_or_exported_partition_is_neither_zeroed_nor_removed() {
    let held = PartitionFact { holders: ["md127".to_string()].into(), record: None, ..partition(0) };
    assert!(Partition::plan(Some(&wish()), &look(Some(held.clone()))).next.is_none());
    let held = PartitionFact { record: partition(0).record, ..held };
    assert!(Partition::plan(Some(&tombstoned()), &look(Some(held))).next.is_none());
    let mut exported = look(Some(partition(0)));
    let export = ExportKey { replica: key(0), epoch: 1, generation: 0 };
    exported.exports.entries.insert(export, ExportEntry { enabled: true, ..ExportEntry::default() });
    assert!(Partition::plan(Some(&tombstoned()), &exported).next.is_none());
}

#[test]
fn only_the_named_partition_is_removed() {
    let removed = Partition::plan(Some(&tombstoned()), &look(Some(partition(0))));
    assert_eq!(op(&removed), "remove-partition");
    let mut other = tombstoned();
    if let Some(t) = &mut other.tombstone {
        t.cluster = ClusterId(Uuid::from_u128(99));
    }
    let kept = Partition::plan(Some(&other), &look(Some(partition(0))));
    assert!(kept.next.is_none() && matches!(kept.status.reason, Some(Reason::DriveRefused { .. })));
}

#[test]
fn nobody_asking_is_no_reason_to_remove() {
    assert!(Partition::plan(None, &look(Some(partition(0)))).next.is_none());
}

#[test]
fn a_removed_partition_is_reported_only_while_its_drive_is_there() {
    let at = look(None);
    assert_eq!(Partition::plan(Some(&tombstoned()), &at).status.state, PartitionState::Removed);
    let gone = PartitionLook { drive: None, ..at };
    assert_eq!(Partition::plan(Some(&tombstoned()), &gone).status.reason, Some(Reason::DriveGone));
}

#[test]
fn a_copy_of_a_living_volume_is_wiped_only_when_the_record_is_without_it_now() {
    let mut dismissed = tombstoned();
    if let Some(tombstone) = &mut dismissed.tombstone {
        tombstone.living = true;
    }
    let with = |record: Option<RecordLook>| {
        let plan = Partition::plan(Some(&dismissed), &PartitionLook { record, ..look(Some(partition(0))) });
        (plan.next.is_some(), plan.status.reason.map_or("none", |reason| reason.word()))
    };
    let recorded = |set: Option<&[u32]>| {
        let in_sync = set.map(|set| set.iter().map(|id| ReplicaId(*id)).collect());
        Some(RecordLook::Fresh(Box::new(VolumeRecord { in_sync, ..crate::testing::volume_record() })))
    };
    assert_eq!(with(None), (false, "ApiUnreachable"));
    assert_eq!(with(Some(RecordLook::Unreachable)), (false, "ApiUnreachable"));
    assert_eq!(with(recorded(None)), (false, "RecordLost"));
    assert_eq!(with(recorded(Some(&[0, 1]))), (false, "StillInSync"));
    assert_eq!(with(recorded(Some(&[1, 2]))), (true, "Releasing"));
    assert_eq!(with(Some(RecordLook::Missing)), (true, "Releasing"), "deleted by its own intent");
}

/// One GiB on its drive, two wanted; so many bytes are free right behind it.
fn to_grow(free: u64) -> (PartitionWish, PartitionLook) {
    let partition = partition(0);
    let mut drive = our_drive();
    let end = partition.extent.end();
    // A larger gap elsewhere is of no use.
    drive.free = vec![Extent { start: end + (4 << 30), length: 64 << 30 }];
    if free > 0 {
        drive.free.push(Extent { start: end, length: free });
    }
    let wish = PartitionWish { bytes: 2 << 30, was_ready: true, ..wish() };
    (wish, PartitionLook { drive: Some(drive), ..look(Some(partition)) })
}

#[test]
fn it_grows_in_place_when_the_space_behind_it_is_free_and_serves_meanwhile() {
    let (wish, mut at) = to_grow(1 << 30);
    let plan = Partition::plan(Some(&wish), &at);
    let step = Op::GrowPartition { key: key(0), drive: our_drive().id, bytes: 2 << 30 };
    assert_eq!(plan.next, Some(Step::Kernel(step)));
    assert_eq!((plan.status.state, plan.status.bytes), (PartitionState::Ready, 1 << 30));
    // In the table, not yet in the kernel: what counts is what can be used.
    let grown = at.partition.as_mut().unwrap();
    grown.extent.length = 2 << 30;
    let plan = Partition::plan(Some(&wish), &at);
    assert_eq!(
        (op(&plan), plan.status.state, plan.status.bytes),
        ("announce-partition", PartitionState::Ready, 1 << 30)
    );
    at.partition.as_mut().unwrap().kernel_bytes = Some(2 << 30);
    let done = Partition::plan(Some(&wish), &at);
    assert_eq!((op(&done), done.status.bytes, done.status.reason), ("rest", 2 << 30, None));
    // A wish that was taken back shortens nothing.
    let less = PartitionWish { bytes: 1 << 30, ..wish };
    assert_eq!(op(&Partition::plan(Some(&less), &at)), "rest");
}

#[test]
fn without_room_behind_it_nothing_is_taken_and_the_reason_says_how_much_is_lacking() {
    for free in [0, (1 << 30) - ALIGNMENT] {
        let (wish, at) = to_grow(free);
        let plan = Partition::plan(Some(&wish), &at);
        assert!(plan.next.is_none() && plan.status.state == PartitionState::Ready);
        assert_eq!(plan.status.reason, Some(Reason::NoRoomBehind { lacks: 1 << 30, free }));
    }
    let (wish, mut at) = to_grow(1 << 30);
    let ignored = PartitionWish { usage: DriveUsage::Ignore, ..wish.clone() };
    assert_eq!(op(&Partition::plan(Some(&ignored), &at)), "rest");
    at.drive = None;
    assert_eq!(Partition::plan(Some(&wish), &at).status.reason, Some(Reason::DriveGone));
}

#[test]
fn much_is_added_in_steps() {
    let (wish, mut at) = to_grow(1 << 40);
    let wish = PartitionWish { bytes: (1 << 30) + GROWTH_STEP + ALIGNMENT, ..wish };
    let next = |at: &PartitionLook| match Partition::plan(Some(&wish), at).next {
        Some(Step::Kernel(Op::GrowPartition { bytes, .. })) => bytes,
        other => panic!("{other:?}"),
    };
    let first = next(&at);
    assert_eq!(first, (1 << 30) + GROWTH_STEP);
    let grown = at.partition.as_mut().unwrap();
    (grown.extent.length, grown.kernel_bytes) = (first, Some(first));
    at.drive.as_mut().unwrap().free = vec![Extent { start: grown.extent.end(), length: ALIGNMENT }];
    assert_eq!(next(&at), wish.bytes);
}
