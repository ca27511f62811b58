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
    assert_eq!(at.name(), "hold-sync", "let go");
    at.array().sync_held = false;
    assert_eq!(at.plan().look_in, Some(ENDING), "no hint is waited for (simulator, seed 3593)");
    at.array().sync_held = true;
    // Nobody can record it now: it stays where it is.
    at.0.record = RecordLook::Unreachable;
    assert_ne!(at.name(), "hold-sync");
}
