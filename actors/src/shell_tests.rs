//! The shell's promises, on a machine that counts and a clock that stands still.

use super::*;
use crate::testing::{Abacus, Counter, Ear, Fate, pass, paused};
use actix::Addr;

struct Rig {
    abacus: Abacus,
    wanted: watch::Sender<Wanted<u32>>,
    report: watch::Receiver<Report<u32>>,
    addr: Addr<Shell<Counter, Abacus>>,
    deaths: Rc<std::cell::RefCell<Vec<String>>>,
}

impl Rig {
    fn start(desired: u32, prepare: impl FnOnce(&mut crate::testing::Beads)) -> Rig {
        let abacus = Abacus::default();
        abacus.with(prepare);
        let (died, poke, deaths) = Ear::listen();
        let period = Duration::from_secs(10);
        let identity = Identity { key: "k".into(), generation: 1, period, died, poke };
        let wanted = watch::Sender::new(Wanted { revision: 1, desired: Some(desired) });
        let (sender, report) = watch::channel(Report::default());
        let shell = Shell::new(identity, abacus.clone(), wanted.subscribe(), Rc::new(sender));
        Rig { abacus, wanted, report, addr: shell.start(), deaths }
    }

    fn steps(&self) -> usize {
        self.abacus.with(|beads| beads.steps.len())
    }

    fn looks(&self) -> usize {
        self.abacus.with(|beads| beads.looks.len())
    }

    fn hint(&self) {
        self.addr.try_send(Look { why: Why::Hint }).unwrap();
    }

    fn want(&self, desired: u32) {
        self.wanted.send_modify(|wanted| *wanted = Wanted { revision: wanted.revision + 1, desired: Some(desired) });
        self.addr.try_send(Look { why: Why::Desire }).unwrap();
    }
}

#[test]
fn steps_follow_each_other_without_a_pause() {
    paused(async {
        let begin = Instant::now();
        let mut rig = Rig::start(5, |_| {});
        let done = rig.report.wait_for(|r| r.answer(1) == Some(&5)).await.is_ok();
        assert!(done && rig.steps() == 5 && rig.looks() == 6);
        assert_eq!(begin.elapsed(), Duration::ZERO);
    });
}

#[test]
fn it_looks_again_within_the_period_without_any_hint() {
    paused(async {
        let rig = Rig::start(0, |_| {});
        pass(0.1).await;
        rig.abacus.with(|beads| beads.value = 7);
        pass(10.0).await;
        assert_eq!(rig.report.borrow().status, 7);
        assert_eq!(rig.looks(), 2);
    });
}

#[test]
fn hints_during_a_round_make_one_more_round() {
    paused(async {
        let rig = Rig::start(1, |beads| beads.step_takes = Duration::from_secs(3));
        pass(1.0).await;
        (0..10).for_each(|_| rig.hint());
        pass(3.0).await;
        assert_eq!((rig.looks(), rig.steps()), (2, 1));
    });
}

#[test]
fn a_wish_during_a_round_is_answered_by_the_next() {
    paused(async {
        let mut rig = Rig::start(1, |beads| beads.step_takes = Duration::from_secs(3));
        pass(1.0).await;
        rig.want(2);
        assert_eq!(rig.report.borrow().answer(2), None);
        rig.report.wait_for(|r| r.answer(2) == Some(&2)).await.unwrap();
        assert_eq!(rig.steps(), 2);
    });
}

#[test]
fn failures_back_off_by_class_and_the_status_stays() {
    paused(async {
        let rig = Rig::start(1, |beads| beads.always = Some(Fate::FailsBefore(Class::Retry)));
        pass(60.0).await;
        let at: Vec<u64> = rig.abacus.with(|b| b.steps.iter().map(|t| (*t - b.steps[0]).as_millis() as u64).collect());
        assert_eq!(at, [0, 500, 1500, 3500, 7500, 15_500, 25_500, 35_500, 45_500, 55_500]);
        let report = rig.report.borrow().clone();
        assert_eq!((report.status, report.answer(1)), (0, None));
        assert!(report.failing.unwrap().reason.to_string().contains("stuck bead"));

        let slow = Rig::start(1, |beads| beads.always = Some(Fate::FailsBefore(Class::Refuse)));
        pass(61.0).await;
        assert_eq!(slow.steps(), 3);
    });
}

#[test]
fn a_hint_ends_a_back_off_but_cannot_make_it_spin() {
    paused(async {
        let rig = Rig::start(1, |beads| beads.always = Some(Fate::FailsBefore(Class::Refuse)));
        pass(10.0).await;
        assert_eq!(rig.steps(), 1);
        rig.hint();
        pass(0.1).await;
        assert_eq!(rig.steps(), 2);
        // A step whose failure causes hints: at most two a second.
        for _ in 0..100 {
            rig.hint();
            pass(0.01).await;
        }
        assert!((3..=5).contains(&rig.steps()), "{}", rig.steps());
    });
}

#[test]
fn a_new_wish_does_not_wait_for_a_back_off() {
    paused(async {
        let rig = Rig::start(1, |beads| beads.fates.push_back(Fate::FailsBefore(Class::Bug)));
        pass(0.1).await;
        rig.want(1);
        pass(0.1).await;
        assert_eq!(rig.report.borrow().answer(2), Some(&1));
    });
}

#[test]
fn what_failed_may_have_happened() {
    paused(async {
        let rig = Rig::start(1, |beads| beads.fates.push_back(Fate::FailsAfter(Class::Retry)));
        pass(1.0).await;
        assert_eq!((rig.steps(), rig.report.borrow().answer(1)), (1, Some(&1)));
    });
}

#[test]
fn a_step_without_effect_does_not_spin() {
    paused(async {
        let rig = Rig::start(1, |beads| beads.always = Some(Fate::ChangesNothing));
        pass(5.0).await;
        assert!(rig.steps() <= 8, "{}", rig.steps());
        assert!(rig.report.borrow().failing.is_some());
    });
}

#[test]
fn steps_in_circles_are_slowed_down() {
    paused(async {
        let rig = Rig::start(1000, |_| {});
        pass(1.5).await;
        assert_eq!(rig.steps(), 128);
    });
}

#[test]
fn a_hanging_step_is_given_up_and_looked_at_again() {
    paused(async {
        let rig = Rig::start(1, |beads| beads.fates.push_back(Fate::Hangs));
        pass(19.0).await;
        assert_eq!(rig.looks(), 1);
        pass(3.0).await;
        assert_eq!(rig.report.borrow().answer(1), Some(&1));
    });
}

#[test]
fn a_failed_look_keeps_the_last_status() {
    paused(async {
        let rig = Rig::start(3, |_| {});
        pass(1.0).await;
        rig.abacus.with(|beads| beads.look_fails = Some(Class::Wait));
        rig.hint();
        pass(0.1).await;
        let report = rig.report.borrow().clone();
        assert!(report.status == 3 && report.failing.is_some());
        rig.abacus.with(|beads| beads.look_fails = None);
        pass(1.0).await;
        assert_eq!(rig.report.borrow().answer(1), Some(&3));
    });
}

#[test]
fn a_stop_waits_for_the_round() {
    paused(async {
        let rig = Rig::start(2, |beads| beads.step_takes = Duration::from_secs(2));
        pass(1.0).await;
        rig.addr.try_send(Stop).unwrap();
        pass(0.5).await;
        assert!(rig.addr.connected());
        pass(1.0).await;
        assert!(!rig.addr.connected());
        assert_eq!((rig.steps(), rig.abacus.with(|b| b.value)), (1, 1));
        assert_eq!(*rig.deaths.borrow(), ["counter k 1"]);
    });
}

#[test]
fn a_stop_waits_for_what_is_unfinished_but_not_for_ever() {
    paused(async {
        let rig = Rig::start(99, |beads| (beads.value, beads.step_takes) = (96, Duration::from_secs(2)));
        pass(1.0).await;
        rig.addr.try_send(Stop).unwrap();
        pass(2.0).await;
        assert!(!rig.addr.connected());
        assert_eq!(rig.abacus.with(|b| b.value), 97, "nothing waits for the rest");

        let rig = Rig::start(1000, |beads| (beads.value, beads.step_takes) = (197, Duration::from_secs(2)));
        pass(1.0).await;
        rig.addr.try_send(Stop).unwrap();
        pass(4.0).await;
        assert!(rig.addr.connected());
        pass(1.5).await;
        assert!(!rig.addr.connected());
        assert_eq!(rig.abacus.with(|b| b.value), 200);

        let rig = Rig::start(1000, |beads| (beads.value, beads.step_takes) = (101, Duration::from_secs(2)));
        pass(1.0).await;
        rig.addr.try_send(Stop).unwrap();
        pass(14.0).await;
        assert!(rig.addr.connected());
        pass(3.0).await;
        assert!(!rig.addr.connected());
    });
}

#[test]
fn a_stop_waits_for_what_is_unfinished_through_failures() {
    paused(async {
        let rig = Rig::start(1000, |beads| {
            beads.value = 199;
            beads.fates.push_back(Fate::FailsBefore(Class::Retry));
        });
        rig.addr.try_send(Stop).unwrap();
        pass(10.0).await;
        assert!(!rig.addr.connected());
        assert_eq!(rig.abacus.with(|b| b.value), 200);
    });
}

#[test]
fn a_panic_is_heard_by_the_parent() {
    paused(async {
        let rig = Rig::start(1, |beads| beads.fates.push_back(Fate::Panics));
        pass(0.1).await;
        assert_eq!(*rig.deaths.borrow(), ["counter k 1"]);
        assert!(!rig.addr.connected());
    });
}
