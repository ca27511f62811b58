//! Copies that leave: the fixtures of `array_tests`, with a third copy r2 on node c.

use super::tests::*;
use super::*;
use crate::Step;
use crate::record::*;
use crate::testing::{key, volume};
use meshstor_kernel::ops::Op;

/// Three complete copies of a volume of two; r1 is to leave.
fn moving() -> At {
    let mut at = At::healthy();
    at.record().replicas.get_mut(&ReplicaId(1)).unwrap().wanted = false;
    at.record().replicas.insert(ReplicaId(2), replica("c", false, 0));
    at.record().in_sync = Some(ids(&[0, 1, 2]));
    at.array().raid_disks = 3;
    at.array().members.insert("nvme4n1".into(), member(2, &["in_sync", "write_mostly"]));
    let third = Candidate {
        component: "nvme4n1".into(),
        path: "/dev/nvme4n1".into(),
        local: false,
        bytes: 1 << 40,
        probe: Some(probe(2, 9)),
    };
    at.0.candidates.insert(life(2, 0), third);
    at.0.connections.insert(life(2, 0), connection());
    at
}

fn left(at: &mut At, replica: u32, set: &[u32]) {
    at.record().in_sync = Some(ids(set));
    at.record().departures = [(ReplicaId(replica), DepartureRecord { epoch: EPOCH, generation: 0, events: 9 })].into();
}

#[test]
fn a_copy_leaves_the_record_first_then_the_array_then_its_slot() {
    let mut at = moving();
    let Some(Step::Record(RecordOp { change: Change::Shrink { replica, .. }, .. })) = at.plan().next else { panic!() };
    assert_eq!(replica, ReplicaId(1));
    left(&mut at, 1, &[0, 2]);
    let Some(Step::Kernel(Op::DropMember { key, evidence, .. })) = at.plan().next else { panic!() };
    assert_eq!((key, evidence.survivor() != "nvme3n1"), (life(1, 0), true));
    assert_eq!(at.reason(), "none", "nothing is missing");
    at.array().members.remove("nvme3n1");
    at.array().degraded = 1;
    at.0.candidates.remove(&life(1, 0));
    at.0.connections.remove(&life(1, 0));
    assert_eq!(at.plan().next, Some(Op::SetRaidDisks { volume: volume(), count: 2 }.into()));
    at.array().raid_disks = 2;
    assert_eq!((at.name(), at.reason()), ("rest", "none"));
}

#[test]
fn it_stays_until_enough_others_are_in_sync_and_answer_now() {
    let mut few = moving();
    few.record().in_sync = Some(ids(&[0, 1]));
    few.array().members.get_mut("nvme4n1").unwrap().flags = ["spare".to_string()].into();
    few.array().sync_action = "recover".into();
    assert_eq!(few.name(), "rest");
    let mut silent = moving();
    silent.0.connections.get_mut(&life(2, 0)).unwrap().down_for = Duration::from_millis(1);
    assert_eq!(silent.name(), "rest");
    let mut busy = moving();
    busy.array().sync_action = "check".into();
    assert_eq!(busy.name(), "rest");
    let mut also = moving();
    also.record().replicas.get_mut(&ReplicaId(2)).unwrap().wanted = false;
    assert_eq!(also.name(), "rest", "two are to leave, and only one would stay");
    let mut torn = moving();
    torn.record().replicas.remove(&ReplicaId(1));
    assert_ne!(torn.name(), "record-shrink", "an object that is gone is no wish");
}

#[test]
fn a_local_copy_is_failed_and_removed() {
    let mut at = moving();
    at.record().replicas.get_mut(&ReplicaId(1)).unwrap().wanted = true;
    at.record().replicas.get_mut(&ReplicaId(0)).unwrap().wanted = false;
    assert_eq!(at.name(), "record-shrink");
    left(&mut at, 0, &[1, 2]);
    let Some(Step::Kernel(Op::FailMember { component, .. })) = at.plan().next else { panic!() };
    assert_eq!(component, "nvme0n1p1");
    at.member("nvme0n1p1").flags = ["faulty".to_string()].into();
    assert_eq!(at.name(), "remove-faulty");
}

#[test]
fn a_complete_copy_is_assembled_even_if_it_is_to_leave() {
    let mut at = At::stopped();
    at.record().replica_count = 1;
    at.record().in_sync = Some(ids(&[1]));
    at.record().replicas.get_mut(&ReplicaId(1)).unwrap().wanted = false;
    assert_eq!(at.name(), "assemble-array");
}

#[test]
fn a_copy_that_nobody_wants_any_more_leaves_before_it_was_complete() {
    let mut at = moving();
    at.record().in_sync = Some(ids(&[0, 2]));
    at.member("nvme3n1").flags = ["spare".to_string()].into();
    assert_eq!(at.name(), "drop-member");
}

#[test]
fn one_too_many_does_not_come_back() {
    let mut at = returning();
    assert_ne!(at.name(), "rest");
    at.record().replica_count = 1;
    assert_eq!(at.name(), "rest");
}

#[test]
fn one_copy_moves_and_the_array_becomes_what_it_was() {
    // r1 is remote and to leave, r0 on this node is new.
    let mut at = At::healthy();
    at.record().replica_count = 1;
    at.record().replicas.get_mut(&ReplicaId(1)).unwrap().wanted = false;
    at.record().in_sync = Some(ids(&[1]));
    at.array().members = [("nvme3n1".to_string(), member(0, &["in_sync"]))].into();
    at.array().raid_disks = 1;
    at.array().has_bitmap = false;
    at.0.candidates.get_mut(&life(0, 0)).unwrap().probe.as_mut().unwrap().superblock = None;
    assert_eq!(at.name(), "add-bitmap");
    at.array().has_bitmap = true;
    assert_eq!(at.plan().next, Some(Op::SetRaidDisks { volume: volume(), count: 2 }.into()));
    at.array().raid_disks = 2;
    at.array().degraded = 1;
    assert_eq!(at.name(), "add-member");
    at.array().members =
        [("nvme3n1".into(), member(0, &["in_sync"])), ("nvme0n1p1".into(), member(1, &["in_sync"]))].into();
    at.array().degraded = 0;
    *at.probe(0) = probe(1, 9);
    assert_eq!(at.name(), "record-grow");
    at.record().in_sync = Some(ids(&[0, 1]));
    assert_eq!(at.name(), "record-shrink");
    left(&mut at, 1, &[0]);
    assert_eq!(at.name(), "drop-member");
    at.array().members.remove("nvme3n1");
    at.array().degraded = 1;
    at.0.candidates.remove(&life(1, 0));
    at.0.connections.remove(&life(1, 0));
    assert_eq!(at.plan().next, Some(Op::SetRaidDisks { volume: volume(), count: 1 }.into()));
    at.array().raid_disks = 1;
    at.array().degraded = 0;
    assert_eq!(at.name(), "remove-bitmap");
    at.array().keeps_bitmap = true;
    assert_eq!((at.name(), at.reason()), ("rest", "none"), "this kernel could not give it back");
    at.array().has_bitmap = false;
    assert_eq!((at.name(), at.reason()), ("rest", "none"));
    assert_eq!(key(0), life(0, 0).replica);
}
