//! Tables of a running array: the record before the kernel, returns, the last copy. Fixtures of `array_tests`.

use super::tests::*;
use super::*;
use crate::Step;
use crate::record::*;
use meshstor_kernel::facts::*;

#[test]
fn shrink_is_recorded_before_the_member_is_dropped() {
    let mut at = At::healthy();
    at.wire().down_for = Duration::from_millis(4900);
    assert_eq!(at.name(), "rest");
    at.wire().down_for = UNREACHABLE;
    let Some(Step::Record(RecordOp { change: Change::Shrink { replica, departure, .. }, .. })) = at.plan().next else {
        panic!()
    };
    assert_eq!((replica, departure.events, departure.generation), (ReplicaId(1), 9, 0));
    at.record().in_sync = Some(ids(&[0]));
    at.record().departures = [(ReplicaId(1), departure)].into();
    assert_eq!(at.name(), "drop-member");
}

#[test]
fn a_drop_is_irrevocable_for_that_life_even_if_the_path_comes_back() {
    let mut at = At::healthy();
    at.record().in_sync = Some(ids(&[0]));
    at.record().departures = [(ReplicaId(1), DepartureRecord { epoch: EPOCH, generation: 0, events: 9 })].into();
    assert_eq!(at.name(), "drop-member");
}

#[test]
fn the_last_copy_is_frozen_never_dropped() {
    let mut at = At::healthy();
    at.record().in_sync = Some(ids(&[1]));
    at.array().members.remove("nvme0n1p1");
    at.wire().down_for = Duration::from_secs(3600);
    assert_eq!((at.name(), at.reason()), ("rest", "LastCopyFrozen"));
}

#[test]
fn nobody_is_dropped_unless_another_copy_answers_now() {
    let mut at = At::healthy();
    at.wire().down_for = Duration::from_secs(60);
    let mut local = at.0.candidates.remove(&life(0, 0)).unwrap();
    local.local = false;
    at.0.candidates.insert(life(0, 0), local);
    let stuck = ConnectionFact { stalled_for: Duration::from_secs(8), ..connection() };
    at.0.connections.insert(life(0, 0), stuck);
    assert_eq!((at.name(), at.reason()), ("rest", "LastCopyFrozen"));
}

#[test]
fn without_the_api_server_nothing_is_dropped_and_a_failed_member_freezes_writes() {
    let mut at = At::healthy();
    at.0.record = RecordLook::Unreachable;
    at.0.connections.get_mut(&life(1, 0)).unwrap().down_for = Duration::from_secs(60);
    assert_eq!((at.name(), at.reason()), ("rest", "ApiUnreachable"));
    at.member("nvme3n1").flags = ["faulty".to_string()].into();
    assert_eq!(at.name(), "freeze-writes");
    at.member("nvme0n1p1").flags.insert("blocked".into());
    assert_eq!(at.name(), "rest");
}

#[test]
fn what_the_record_does_not_name_takes_no_writes_when_the_last_recorded_copy_fails() {
    let mut at = At::healthy();
    at.record().in_sync = Some(ids(&[0]));
    at.record().departures.insert(ReplicaId(1), DepartureRecord { epoch: EPOCH, generation: 1, events: 10 });
    at.member("nvme0n1p1").flags = ["faulty".to_string()].into();
    assert_eq!((at.name(), at.reason()), ("freeze-writes", "LastCopyFrozen"));
    at.member("nvme3n1").flags.insert("blocked".into());
    at.array().mounts.insert("/pod".into());
    assert_eq!((at.name(), at.reason()), ("rest", "LastCopyFrozen"));
}

#[test]
fn staged_again_in_its_epoch_it_is_recorded_before_it_is_opened() {
    let mut at = At::healthy();
    at.array().state = "readonly".into();
    assert_eq!(at.name(), "activate-array", "whole: nothing to record");
    at.member("nvme3n1").flags.clear();
    let step = at.plan().next.map(|step| step.to_string()).unwrap_or_default();
    assert_eq!(step, format!("record-activate pvc-1 epoch {EPOCH} r0"));
}

#[test]
fn a_member_the_kernel_failed_is_recorded_with_writes_frozen() {
    let mut at = At::healthy();
    at.member("nvme3n1").flags = ["faulty".to_string()].into();
    at.array().degraded = 1;
    assert_eq!(at.name(), "freeze-writes");
    at.0.freeze_failed = true;
    assert_eq!(at.name(), "record-shrink", "the record does not wait for a freeze that hangs");
    at.0.freeze_failed = false;
    at.member("nvme0n1p1").flags.insert("blocked".into());
    assert_eq!(at.name(), "record-shrink");
    at.record().in_sync = Some(ids(&[0]));
    at.record().departures = [(ReplicaId(1), DepartureRecord { epoch: EPOCH, generation: 0, events: 9 })].into();
    assert_eq!(at.name(), "freeze-writes");
    at.member("nvme0n1p1").flags.remove("blocked");
    assert_eq!(at.name(), "remove-faulty");
}

#[test]
fn a_return_merges_the_bitmap_before_the_re_add() {
    let mut at = returning();
    assert_eq!(at.name(), "re-add-member");
    let key = life(1, 1);
    let own = at.0.candidates.get_mut(&key).unwrap().probe.as_mut().unwrap();
    own.superblock.as_mut().unwrap().bitmap.as_mut().unwrap().dirty = [7].into();
    assert_eq!(at.name(), "merge-bitmap");
    at.probe(0).superblock.as_mut().unwrap().bitmap.as_mut().unwrap().dirty = [7, 8].into();
    assert_eq!(at.name(), "merge-bitmap", "a bit on the survivor's disk is no proof that it is resynced");
    at.0.merged = [7, LAST].into();
    assert_eq!(at.name(), "re-add-member");
    // A hold does not stop a recovery that has nothing to copy where it is held (F24).
    at.0.merged = [7].into();
    let last = meshstor_kernel::ops::Op::MergeBitmap { volume: at.record().volume, chunks: [LAST].into() };
    assert_eq!(at.plan().next, Some(Step::Kernel(last)));
    at.0.merged = [7, LAST].into();
    at.array().resync_done = false;
    assert_eq!(at.name(), "release-sync", "a merge leaves a resync pending that nobody starts by itself");
    at.array().sync_action = "resync".into();
    assert_eq!(at.name(), "hold-sync", "what is held for a recovery must not hold this");
    at.array().sync_held = false;
    assert_eq!(at.name(), "rest", "never while a resync is pending");
}

#[test]
fn a_doubtful_return_is_recovered_wholly() {
    let key = life(1, 1);
    let doubts: [fn(&mut Superblock); 5] = [
        |s| s.events = 10,
        |s| s.set_uuid = uuid::Uuid::nil(),
        |s| s.recovery_offset = Some(0),
        |s| s.bitmap = None,
        |s| s.bitmap.as_mut().unwrap().chunk_bytes = 4096,
    ];
    for doubt in doubts {
        let mut at = returning();
        let own = at.0.candidates.get_mut(&key).unwrap().probe.as_mut().unwrap();
        doubt(own.superblock.as_mut().unwrap());
        assert_eq!(at.name(), "add-member");
    }
    let mut at = returning();
    at.0.re_add_failed.insert("/dev/nvme3n1".into());
    assert_eq!(at.name(), "add-member");
    // Found by sim seed 25: the re-add was refused again and again, and the copy never returned.
    let mut at = returning();
    let own = at.0.candidates[&key].probe.as_ref().unwrap().superblock.as_ref().unwrap().events;
    at.probe(0).superblock.as_mut().unwrap().bitmap.as_mut().unwrap().events_cleared = own + 1;
    assert_eq!(at.name(), "add-member");
    let mut at = returning();
    at.record().departures.clear();
    at.record().departures.insert(ReplicaId(1), DepartureRecord { epoch: 1, generation: 0, events: 3 });
    assert_eq!(at.name(), "add-member");
}

#[test]
fn the_set_grows_only_after_the_members_own_superblock_says_so() {
    let mut at = returning();
    at.array().members.insert("nvme3n1".into(), member(1, &["in_sync"]));
    at.array().degraded = 0;
    let key = life(1, 1);
    assert_eq!(at.name(), "record-grow");
    let behind: [fn(&mut Superblock); 3] =
        [|s| s.events = 8, |s| s.recovery_offset = Some(4096), |s| s.roles = vec![0, 0xffff]];
    for change in behind {
        let mut at = At(at.0.clone());
        let own = at.0.candidates.get_mut(&key).unwrap().probe.as_mut().unwrap();
        change(own.superblock.as_mut().unwrap());
        assert_eq!(at.name(), "rest");
    }
}

#[test]
fn a_recovering_member_that_vanishes_is_recorded_and_dropped() {
    let mut at = returning();
    at.array().members.insert("nvme3n1".into(), member(1, &["spare"]));
    at.0.connections.get_mut(&life(1, 1)).unwrap().down_for = UNREACHABLE;
    let Some(Step::Record(RecordOp { change: Change::Shrink { departure, .. }, .. })) = at.plan().next else {
        panic!()
    };
    assert_eq!(departure.generation, 1);
    at.record().departures.insert(ReplicaId(1), departure);
    assert_eq!(at.name(), "drop-member");
}

#[test]
fn write_mostly_waits_for_the_resync() {
    let mut at = At::healthy();
    at.array().resync_done = false;
    assert_eq!(at.plan().next.map(|s| s.to_string()), Some("set-write-mostly 00000000 nvme3n1 off".into()));
    at.member("nvme3n1").flags.remove("write_mostly");
    assert_eq!(at.name(), "rest");
    at.array().resync_done = true;
    assert_eq!(at.plan().next.map(|s| s.to_string()), Some("set-write-mostly 00000000 nvme3n1 on".into()));
}
