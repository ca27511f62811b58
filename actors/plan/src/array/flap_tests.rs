//! A member that keeps leaving: two of two copies, or two of three, r1 outside.

use super::super::tests::{At, ids, life, replica, returning};
use super::*;
use crate::record::{Change, RecordOp};

fn flapped(at: &mut At, count: u32, seconds_ago: i64) {
    let last = WallTime(at.0.now.0 - seconds_ago);
    at.record().flaps.insert(ReplicaId(1), FlapRecord { count, last });
}

/// As `returning`, with a third copy that is complete.
fn returning_of_three() -> At {
    let mut at = returning();
    at.record().replica_count = 3;
    at.record().in_sync = Some(ids(&[0, 2]));
    at.record().replicas.insert(ReplicaId(2), replica("c", false, 0));
    let third =
        Candidate { component: "nvme4n1".into(), path: "/dev/nvme4n1".into(), ..at.0.candidates[&life(1, 1)].clone() };
    at.0.candidates.insert(life(2, 0), third);
    at.0.connections.insert(life(2, 0), at.0.connections[&life(1, 1)].clone());
    let second = super::super::tests::member(2, &["in_sync", "write_mostly"]);
    at.array().members.insert("nvme4n1".into(), second);
    at.array().raid_disks = 3;
    at
}

#[test]
fn patience_grows_with_every_departure_up_to_a_quarter_of_an_hour() {
    let seconds: Vec<u64> = (0..10).map(|count| delay(count).as_secs()).collect();
    assert_eq!(seconds, [0, 0, 30, 60, 120, 240, 480, 900, 900, 900]);
    assert_eq!(delay(u32::MAX), LONGEST);
}

#[test]
fn departures_within_an_hour_add_up_and_calm_forgets_them() {
    let mut at = At::healthy();
    let now = at.0.now;
    let counts = |at: &mut At| leaves(at.record(), ReplicaId(1), now).count;
    assert_eq!(counts(&mut at), 1);
    flapped(&mut at, 1, 3599);
    assert_eq!(counts(&mut at), 2);
    flapped(&mut at, 6, 3600);
    assert_eq!(counts(&mut at), 1);
    // Recorded by a clock that is a little ahead of ours, or wrong.
    flapped(&mut at, 2, -60);
    assert_eq!(counts(&mut at), 3);
    flapped(&mut at, 2, -100_000);
    assert_eq!(counts(&mut at), 1);
}

#[test]
fn a_copy_that_keeps_leaving_waits_and_says_until_when() {
    let mut at = returning_of_three();
    assert_eq!(at.name(), "re-add-member", "the first return is at once");
    flapped(&mut at, 5, 200);
    let plan = at.plan();
    assert_eq!((at.name(), plan.look_in), ("rest", Some(Duration::from_secs(40))));
    let said = plan.status.reason.unwrap().to_string();
    assert_eq!(said, "r1 has left 5 times, each within an hour of the last; it returns at 2023-11-14T22:14:00Z");
    flapped(&mut at, 5, 240);
    assert_eq!(at.name(), "re-add-member");
}

#[test]
fn the_only_other_copy_is_not_waited_for_longer_than_the_first_step() {
    let mut at = returning();
    flapped(&mut at, 9, 29);
    assert_eq!((at.name(), at.reason()), ("rest", "Flapping"));
    flapped(&mut at, 9, 30);
    assert_eq!(at.name(), "re-add-member");
    // Nor does a wrong clock keep it out.
    flapped(&mut at, 9, -100_000);
    assert_eq!(at.name(), "re-add-member");
}

#[test]
fn another_copy_comes_back_meanwhile() {
    let mut at = returning_of_three();
    flapped(&mut at, 9, 0);
    at.record().in_sync = Some(ids(&[0]));
    at.record().replicas.insert(ReplicaId(2), replica("c", false, 0));
    at.array().members.remove("nvme4n1");
    at.array().degraded = 2;
    assert_eq!(at.plan().next.map(|s| s.to_string()), Some("add-member 00000000 /dev/nvme4n1".into()));
}

#[test]
fn every_departure_is_counted() {
    let mut at = At::healthy();
    flapped(&mut at, 3, 10);
    at.wire().controllers.clear();
    at.wire().down_for = UNREACHABLE;
    let next = at.plan().next;
    let Some(crate::Step::Record(RecordOp { change: Change::Shrink { flap, .. }, .. })) = next else {
        panic!("{next:?}")
    };
    assert_eq!(flap, FlapRecord { count: 4, last: at.0.now });
    let mut at = At::healthy();
    flapped(&mut at, 3, 10);
    at.record().activated_epoch -= 1;
    at.array().state = "readonly".into();
    at.array().members.remove("nvme3n1");
    let next = at.plan().next;
    let Some(crate::Step::Record(RecordOp { change: Change::Activate { flaps, .. }, .. })) = next else { panic!() };
    assert_eq!(flaps, [(ReplicaId(1), FlapRecord { count: 4, last: at.0.now })].into());
}
