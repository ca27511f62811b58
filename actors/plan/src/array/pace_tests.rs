//! Budget and speed of copies: r1 of two is outside and is offered anew.

use super::super::tests::{At, EPOCH, ids, life, returning};
use super::*;
use crate::Step;
use meshstor_kernel::id::Generation;

/// As `returning`, with a superblock whose lineage does not hold: it has to be copied wholly.
fn stale() -> At {
    let mut at = returning();
    let remote = at.0.candidates.get_mut(&life(1, 1)).unwrap();
    remote.probe.as_mut().unwrap().superblock = None;
    at.record().replicas.get_mut(&ReplicaId(1)).unwrap().granted = None;
    at
}

fn grant(at: &mut At, life: (Epoch, Generation)) {
    at.record().replicas.get_mut(&ReplicaId(1)).unwrap().granted = Some(life);
}

#[test]
fn a_whole_copy_waits_for_leave_and_asks_for_it() {
    let mut at = stale();
    assert_eq!((at.name(), at.reason()), ("rest", "WaitsForResyncBudget"));
    assert_eq!(at.plan().status.copying, Some(ReplicaId(1)), "the controller sees it");
    grant(&mut at, (EPOCH, 0));
    assert_eq!(at.name(), "rest", "leave for a former life is none");
    grant(&mut at, (EPOCH - 1, 1));
    assert_eq!(at.name(), "rest");
    grant(&mut at, (EPOCH, 1));
    assert_eq!(at.name(), "add-member");
}

#[test]
fn a_return_by_bitmap_asks_nobody() {
    let mut at = returning();
    at.record().replicas.get_mut(&ReplicaId(1)).unwrap().granted = None;
    assert_eq!((at.name(), at.plan().status.copying), ("re-add-member", None));
    at.array().members.insert("nvme3n1".into(), super::super::tests::member(1, &["spare"]));
    at.array().sync_action = "recover".into();
    assert_eq!(at.plan().status.copying, None);
}

#[test]
fn one_that_waits_keeps_no_other_one_waiting() {
    let mut at = stale();
    at.record().replica_count = 3;
    // r2 may return by its bitmap; its number is behind that of the one that waits.
    let mut third = returning().0.candidates[&life(1, 1)].clone();
    third.component = "nvme4n1".into();
    third.path = "/dev/nvme4n1".into();
    at.0.candidates.insert(life(2, 0), third);
    at.0.connections.insert(life(2, 0), super::super::tests::connection());
    at.record().replicas.insert(ReplicaId(2), super::super::tests::replica("c", false, 0));
    let left = at.record().departures[&ReplicaId(1)];
    at.record().departures.insert(ReplicaId(2), crate::record::DepartureRecord { epoch: EPOCH - 1, ..left });
    assert_eq!(at.plan().next.map(|s| s.to_string()), Some("re-add-member 00000000 /dev/nvme4n1".into()));
}

#[test]
fn what_is_copied_to_is_counted_until_it_is_in_the_set() {
    let mut at = stale();
    grant(&mut at, (EPOCH, 1));
    at.array().members.insert("nvme3n1".into(), super::super::tests::member(1, &["spare"]));
    at.array().sync_action = "recover".into();
    at.array().sync_completed = Some((10, 40));
    let status = at.plan().status;
    assert_eq!((status.copying, status.sync_bytes_left), (Some(ReplicaId(1)), 30 * 512));
    at.record().in_sync = Some(ids(&[0, 1]));
    assert_eq!(at.plan().status.copying, None);
}

#[test]
fn a_resync_runs_at_its_speed_and_faster_when_one_copy_alone_is_left() {
    let mut at = At::healthy();
    at.array().sync_speed = Some(SyncSpeed { min_kib: 1000, max_kib: 200_000 });
    assert_eq!(at.name(), "rest", "nothing is copied: nothing to pace");
    at.array().sync_action = "resync".into();
    at.array().resync_done = false;
    at.array().sync_held = false;
    at.member("nvme3n1").flags.remove("write_mostly");
    let speed = |at: &At| match at.plan().next {
        Some(Step::Kernel(Op::SetSyncSpeed { speed, .. })) => (speed.min_kib, speed.max_kib),
        other => panic!("{other:?}"),
    };
    assert_eq!(speed(&at), (1024, 409_600));
    at.array().sync_speed = Some(SyncSpeed { min_kib: 1024, max_kib: 409_600 });
    assert_eq!(at.name(), "rest");
    at.record().in_sync = Some(ids(&[0]));
    at.member("nvme3n1").flags.clear();
    assert_eq!(speed(&at), (16_384, 409_600));
}

#[test]
fn a_recovery_is_held_before_its_end_until_the_record_is_at_hand() {
    for (mut at, step) in [(returning(), "re-add-member"), (stale(), "add-member")] {
        grant(&mut at, (EPOCH, 1));
        at.array().sync_held = false;
        assert_eq!(at.name(), "hold-sync");
        at.array().sync_held = true;
        assert_eq!(at.name(), step);
    }
    let mut at = returning();
    at.array().members.insert("nvme3n1".into(), super::super::tests::member(1, &["spare"]));
    at.array().sync_action = "recover".into();
    at.array().sync_completed = Some((1000, 2_097_152));
    assert_ne!(at.name(), "hold-sync");
    at.array().sync_completed = Some((2_097_152 - HELD_BACK, 2_097_152));
    assert_eq!(at.name(), "freeze-writes");
    at.0.freeze_failed = true;
    assert_eq!(at.name(), "hold-sync", "let go");
    at.array().sync_held = false;
    assert_eq!(at.plan().look_in, Some(ENDING), "no hint is waited for (simulator, seed 3593)");
    at.array().sync_held = true;
    // Nobody can record it now: it stays where it is.
    at.0.record = RecordLook::Unreachable;
    assert_ne!(at.name(), "hold-sync");
}

/// r1 has come to the end of its recovery.
fn arriving() -> At {
    let mut at = returning();
    at.array().members.insert("nvme3n1".into(), super::super::tests::member(1, &["spare"]));
    at.array().sync_action = "recover".into();
    at.array().sync_completed = Some((2_097_152 - HELD_BACK, 2_097_152));
    at.array().sync_held = true;
    at
}

/// r1's own superblock.
fn own(at: &mut At) -> &mut meshstor_kernel::facts::Superblock {
    at.0.candidates.get_mut(&life(1, 1)).unwrap().probe.as_mut().unwrap().superblock.as_mut().unwrap()
}

fn step(at: &At) -> String {
    at.plan().next.map(|step| step.to_string()).unwrap_or_default()
}

/// What is acknowledged while the kernel counts a copy that the record does not name may be on that copy alone, or, when
/// that one fails before its record, on the other alone (simulator, seed 6455; the model's limits).
#[test]
fn writes_are_frozen_from_before_the_end_of_a_recovery_to_its_record() {
    let mut at = arriving();
    for component in ["nvme0n1p1", "nvme3n1"] {
        assert_eq!(step(&at), format!("freeze-writes 00000000 {component} on"));
        at.member(component).flags.insert("blocked".into());
    }
    assert_eq!(step(&at), "hold-sync 00000000 off");
    at.array().sync_held = false;
    assert_eq!((step(&at).as_str(), at.plan().look_in), ("", Some(ENDING)), "not thawed");
    at.array().sync_action = "idle".into();
    at.array().sync_completed = None;
    at.member("nvme3n1").flags = ["in_sync".to_string(), "blocked".to_string()].into();
    own(&mut at).events = 0;
    assert_eq!((step(&at).as_str(), at.plan().look_in), ("", Some(ENDING)), "not proven, not thawed");
    own(&mut at).events = u64::MAX;
    assert!(step(&at).starts_with("record-grow"), "{}", step(&at));
    at.record().in_sync = Some(ids(&[0, 1]));
    for component in ["nvme0n1p1", "nvme3n1"] {
        assert_eq!(step(&at), format!("freeze-writes 00000000 {component} off"));
        at.member(component).flags.remove("blocked");
    }
    assert!(!step(&at).starts_with("freeze-writes"), "{}", step(&at));
}

#[test]
fn a_recovery_that_does_not_end_well_keeps_no_write_frozen() {
    let frozen = || {
        let mut at = arriving();
        at.array().sync_held = false;
        at.member("nvme0n1p1").flags.insert("blocked".into());
        at.member("nvme3n1").flags.insert("blocked".into());
        at
    };
    // It began anew, somewhere before its end.
    let mut at = frozen();
    at.array().sync_completed = Some((1000, 2_097_152));
    assert_eq!(step(&at), "freeze-writes 00000000 nvme0n1p1 off");
    // The new copy failed; the kernel took its flag.
    let mut at = frozen();
    at.member("nvme3n1").flags = ["faulty".to_string()].into();
    assert_eq!(step(&at), "freeze-writes 00000000 nvme0n1p1 off");
    // Its path is lost before it has proven anything: it is out after its time, and then writes go on.
    let mut at = frozen();
    at.member("nvme3n1").flags = ["in_sync".to_string(), "blocked".to_string()].into();
    at.0.candidates.get_mut(&life(1, 1)).unwrap().probe = None;
    at.0.connections.get_mut(&life(1, 1)).unwrap().down_for = Duration::from_secs(60);
    assert!(step(&at).starts_with("record-shrink"), "{}", step(&at));
}
