//! Respawn, quarantine and orderly stop, on a machine that counts and a clock that stands still.

use super::*;
use crate::testing::{Abacus, Counter, Ear, Fate, pass, paused};

type Counters = Family<String, Counter, Abacus>;

fn family(abacus: &Abacus) -> (Counters, Rc<std::cell::RefCell<Vec<String>>>) {
    let (died, poke, heard) = Ear::listen();
    let abacus = abacus.clone();
    (Family::new(died, poke, move |_| abacus.clone()), heard)
}

/// Lets time pass while the owner does its duty each second.
async fn tended(family: &mut Counters, seconds: u32) {
    for _ in 0..seconds * 10 {
        pass(0.1).await;
        family.tend(Instant::now());
    }
}

fn key() -> String {
    "k".to_string()
}

#[test]
fn a_panicking_child_is_replaced_and_finishes_the_work() {
    paused(async {
        let abacus = Abacus::default();
        abacus.with(|beads| beads.fates = [Fate::Works, Fate::Panics].into());
        let (mut family, heard) = family(&abacus);
        let revision = family.want(&key(), Some(3));
        let mut report = family.subscribe(&key()).unwrap();
        pass(0.1).await;
        assert_eq!(*heard.borrow(), ["counter k 1"]);
        assert!(family.tend(Instant::now()).is_some());
        assert!(report.borrow().failing.is_some());
        tended(&mut family, 2).await;
        assert_eq!(report.borrow_and_update().answer(revision), Some(&3));
        assert_eq!(family.wanted(&key()), Some(3));
    });
}

#[test]
fn three_deaths_are_a_quarantine_of_ten_minutes() {
    paused(async {
        let abacus = Abacus::default();
        abacus.with(|beads| beads.panic_on_look = true);
        let (mut family, heard) = family(&abacus);
        family.want(&key(), Some(1));
        tended(&mut family, 30).await;
        assert_eq!(heard.borrow().len(), 3);
        let failing = family.report(&key()).unwrap().failing.unwrap();
        assert!(failing.reason.to_string().contains("left alone for 10 minutes"), "{failing:?}");
        abacus.with(|beads| beads.panic_on_look = false);
        tended(&mut family, 560).await;
        assert_eq!(abacus.with(|beads| beads.value), 0);
        tended(&mut family, 60).await;
        assert_eq!(family.report(&key()).unwrap().answer(1), Some(&1));
    });
}

#[test]
fn rare_deaths_are_forgiven() {
    paused(async {
        let abacus = Abacus::default();
        let (mut family, heard) = family(&abacus);
        for death in 1..=6 {
            abacus.with(|beads| beads.fates.push_back(Fate::Panics));
            family.want(&key(), Some(death));
            tended(&mut family, 400).await;
            assert_eq!(family.report(&key()).unwrap().failing, None, "death {death}");
        }
        assert_eq!(heard.borrow().len(), 6);
    });
}

#[test]
fn the_same_wish_twice_is_one_wish() {
    paused(async {
        let abacus = Abacus::default();
        let (mut family, _) = family(&abacus);
        assert_eq!(family.want(&key(), Some(1)), 1);
        assert_eq!(family.want(&key(), Some(1)), 1);
        assert_eq!(family.want(&key(), Some(2)), 2);
        assert_eq!(family.want(&key(), None), 3);
        pass(0.1).await;
        assert_eq!(family.news().len(), 1);
        assert_eq!(family.news().len(), 0);
    });
}

#[test]
fn retired_children_finish_their_round_and_are_not_respawned() {
    paused(async {
        let abacus = Abacus::default();
        abacus.with(|beads| beads.step_takes = Duration::from_secs(2));
        let (mut family, heard) = family(&abacus);
        family.want(&key(), Some(9));
        pass(1.0).await;
        family.retire(&key());
        assert!(!family.contains(&key()) && !family.is_empty());
        tended(&mut family, 30).await;
        assert!(family.is_empty());
        assert_eq!((heard.borrow().len(), abacus.with(|beads| beads.value)), (1, 1));
    });
}

#[test]
fn a_child_wanted_again_while_it_ends_comes_back() {
    paused(async {
        let abacus = Abacus::default();
        abacus.with(|beads| beads.step_takes = Duration::from_secs(2));
        let (mut family, _) = family(&abacus);
        family.want(&key(), Some(9));
        pass(1.0).await;
        family.retire(&key());
        let revision = family.want(&key(), Some(3));
        assert!(family.contains(&key()));
        tended(&mut family, 10).await;
        assert_eq!(family.report(&key()).unwrap().answer(revision), Some(&3));
    });
}
