//! Tables of an array that is to grow: every member first, nothing else under way, and who may return meanwhile.

use super::tests::*;
use super::*;
use crate::Step;
use meshstor_kernel::facts::{COMPONENT_MAX, DATA_OFFSET};
use meshstor_kernel::ops::Op;

const GIB: u64 = 1 << 30;

/// Healthy, 1 GiB, and recorded with twice that; both devices have it.
fn larger() -> At {
    let mut at = At::healthy();
    at.record().size_bytes = 2 * GIB;
    at.array().sync_held = false;
    at.0.candidates.values_mut().for_each(|c| c.bytes = 2 * GIB + DATA_OFFSET);
    at
}

#[test]
fn it_grows_when_every_member_is_large_enough_and_not_before() {
    let mut at = larger();
    let op = Op::GrowArray { volume: at.record().volume, component_bytes: 2 * GIB };
    assert_eq!(at.plan().next, Some(Step::Kernel(op)));
    at.0.candidates.get_mut(&life(1, 0)).unwrap().bytes -= 512;
    assert_eq!((at.name(), at.reason()), ("rest", "AwaitingSize"));
    let Some(Reason::AwaitingSize { replicas, bytes }) = at.plan().status.reason else { panic!() };
    assert_eq!((replicas, bytes), (ids(&[1]), 2 * GIB + DATA_OFFSET));
    // Larger than it has to be is fine, and so is what has grown already.
    at.0.candidates.values_mut().for_each(|c| c.bytes = 9 * GIB);
    at.array().size_bytes = 2 * GIB;
    assert_eq!((at.name(), at.plan().status.bytes), ("rest", 2 * GIB));
    at.array().size_bytes = 3 * GIB;
    assert_eq!(at.name(), "rest", "it never shrinks");
}

#[test]
fn nothing_grows_beside_a_sync_a_hold_or_a_member_that_is_not_whole() {
    let mut held = larger();
    held.array().sync_held = true;
    let let_go = Op::HoldSync { volume: held.record().volume, held: false };
    assert_eq!(held.plan().next, Some(Step::Kernel(let_go)), "the next recovery would stop at the old end");
    let never = |change: fn(&mut ArrayFact), why: &str| {
        let mut at = larger();
        change(at.array());
        assert_ne!(at.name(), "grow-array", "{why}");
    };
    never(|a| a.sync_action = "recover".into(), "a recovery");
    never(|a| a.sync_action = "resync".into(), "a resync");
    never(|a| a.sync_action = "frozen".into(), "frozen");
    never(|a| a.resync_done = false, "assuming clean would call a pending resync off");
    let mut merged = larger();
    merged.array().resync_done = false;
    // Not before nothing is write-mostly any more (F17).
    assert_eq!(merged.name(), "set-write-mostly");
    merged.array().members.values_mut().for_each(|member| member.flags.retain(|flag| flag != "write_mostly"));
    assert_eq!(merged.name(), "release-sync", "nobody else begins it");
    never(|a| a.state = "write-pending".into(), "a superblock is being written");
    never(|a| a.state = "readonly".into(), "not open yet");
    never(|a| assert!(a.members.get_mut("nvme3n1").unwrap().flags.insert("faulty".into())), "a member failed");
    never(|a| a.members.get_mut("nvme3n1").unwrap().flags = ["spare".to_string()].into(), "a member recovers");
}

#[test]
fn a_loss_goes_before_growing() {
    let mut at = larger();
    at.wire().down_for = UNREACHABLE;
    assert_eq!(at.name(), "record-shrink");
    let mut at = larger();
    at.array().members.remove("nvme3n1");
    assert_ne!(at.name(), "grow-array", "a recorded copy is not in the array: that is recorded first");
}

/// r1 is out of the set and of the array, and here again under a new life; the volume is to be larger.
fn away() -> At {
    let mut at = returning();
    at.record().size_bytes = 2 * GIB;
    at.array().sync_held = false;
    at.0.candidates.values_mut().for_each(|c| c.bytes = 2 * GIB + DATA_OFFSET);
    at
}

#[test]
fn without_a_copy_that_is_away_the_others_grow_and_it_returns_when_it_has_grown() {
    let mut at = away();
    at.0.candidates.get_mut(&life(1, 1)).unwrap().bytes = GIB + DATA_OFFSET;
    assert_eq!(at.name(), "grow-array", "it is no member");
    at.array().size_bytes = 2 * GIB;
    assert_eq!((at.name(), at.reason()), ("rest", "NeedsGrowBeforeRejoin"));
    at.0.candidates.get_mut(&life(1, 1)).unwrap().bytes = 2 * GIB + DATA_OFFSET;
    assert_ne!(at.name(), "rest");
}

#[test]
fn a_copy_that_was_away_while_the_array_grew_is_recovered_wholly() {
    for (component, step) in [(2 * GIB, "re-add-member"), (GIB, "add-member")] {
        let mut at = away();
        at.array().size_bytes = 2 * GIB;
        at.array().sync_held = true;
        let probe = at.0.candidates.get_mut(&life(1, 1)).unwrap().probe.as_mut().unwrap();
        probe.superblock.as_mut().unwrap().component_bytes = component;
        at.0.merged = probe.superblock.as_ref().unwrap().bitmap.as_ref().map(|b| b.dirty.clone()).unwrap_or_default();
        at.0.merged.insert(2 * LAST + 1);
        assert_eq!(at.name(), step, "its superblock says {component}");
    }
}

#[test]
fn beyond_the_room_of_the_bitmap_nothing_grows() {
    let mut at = larger();
    at.0.candidates.values_mut().for_each(|c| c.bytes = u64::MAX);
    at.record().size_bytes = COMPONENT_MAX;
    assert_eq!(at.name(), "grow-array");
    at.record().size_bytes = COMPONENT_MAX + 1;
    assert_eq!((at.name(), at.reason()), ("rest", "NoRoom"));
}
