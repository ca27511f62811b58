//! Table tests of the partition plan.

use super::*;
use crate::Step;
use crate::record::VolumeRecord;
use crate::testing::*;
use meshstor_kernel::facts::ExportEntry;
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
