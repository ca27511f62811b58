//! Two copies that come back at the same time: one after the other, and each gets a slot. Fixtures of `array_tests`.

use super::tests::*;
use super::*;
use crate::record::*;
use crate::testing::volume;
use meshstor_kernel::ops::Op;

/// r1 is offered anew, and so is a third copy, r2; the array has one vacant slot.
fn two_return() -> At {
    let mut at = returning();
    at.record().replica_count = 3;
    at.record().replicas.insert(ReplicaId(2), replica("c", false, 1));
    at.record().departures.insert(ReplicaId(2), DepartureRecord { epoch: EPOCH, generation: 0, events: 9 });
    let probe = Some(probe(2, 9));
    let third =
        Candidate { component: "nvme4n1".into(), path: "/dev/nvme4n1".into(), local: false, bytes: 1 << 40, probe };
    at.0.candidates.insert(life(2, 1), third);
    at.0.connections.insert(life(2, 1), connection());
    at
}

fn seat(at: &mut At, component: &str, slot: Option<u32>, flags: &[&str]) {
    let fact = MemberFact { flags: flags.iter().map(ToString::to_string).collect(), slot };
    at.array().members.insert(component.into(), fact);
}

#[test]
fn the_second_waits_until_the_first_is_in_also_before_md_has_begun() {
    let mut at = two_return();
    assert!(["add-member", "re-add-member"].contains(&at.name()), "{}", at.name());
    // Added; MD's thread has not begun yet, and says "idle".
    seat(&mut at, "nvme3n1", None, &["spare"]);
    assert!(!["add-member", "re-add-member"].contains(&at.name()), "{}", at.name());
    at.array().sync_action = "recover".into();
    assert!(!["add-member", "re-add-member"].contains(&at.name()), "{}", at.name());
}

#[test]
fn one_that_found_no_slot_gets_one_of_its_own_when_nothing_else_is_copied() {
    let mut at = two_return();
    at.record().in_sync = Some(ids(&[0, 1]));
    at.record().departures.remove(&ReplicaId(1));
    seat(&mut at, "nvme3n1", Some(1), &["in_sync", "write_mostly"]);
    seat(&mut at, "nvme4n1", None, &["spare"]);
    at.array().degraded = 0;
    let disks = at.array().raid_disks;
    assert_eq!(at.plan().next, Some(Op::SetRaidDisks { volume: volume(), count: disks + 1 }.into()));
    at.array().sync_held = false;
    assert_eq!(at.name(), "hold-sync", "its end has to be held before it begins");
    at.array().sync_held = true;
    at.array().sync_action = "recover".into();
    assert_ne!(at.name(), "set-raid-disks");
    // Enough copies without it.
    at.array().sync_action = "idle".into();
    at.record().replica_count = 2;
    assert_ne!(at.name(), "set-raid-disks");
}
