//! Supervision: a family of actors of one kind, each respawned fresh when it ends unexpectedly.
//!
//! Owned by the root actor. What is wanted of a child and what it last reported live here, outside the child, so that a
//! respawn loses neither. A child that ended is noticed by its closed address; the `Died` message of its death watch only
//! makes the owner look sooner. After three deaths in ten minutes a child is left alone for ten minutes: one bad device
//! must not keep a whole node busy. It never restarts the same value: a poisoned state would live on.

use crate::events;
use crate::messages::{Died, Kill, Look, Poke, Stop, Why};
use crate::shell::{Failing, Identity, Report, Shell, Wanted, World};
use actix::{Actor, Addr, Recipient};
use meshstor_kernel::Class;
use meshstor_plan::{Machine, Reason};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Deaths within [`DEATHS_WITHIN`] that end the patience.
const DEATHS_MAX: usize = 3;
const DEATHS_WITHIN: Duration = Duration::from_secs(600);
/// How long a child that keeps dying is left alone.
const QUARANTINE: Duration = Duration::from_secs(600);
/// Pause before the first respawn; doubled for each further death.
const RESPAWN_MIN: Duration = Duration::from_millis(500);
/// Longest time between two looks of an actor.
pub const PERIOD: Duration = Duration::from_secs(10);

/// The actors of one kind.
pub struct Family<K, M: Machine, W: World<M>> {
    make: Box<dyn Fn(&K) -> W>,
    died: Recipient<Died>,
    poke: Recipient<Poke>,
    period: Duration,
    children: BTreeMap<K, Child<M, W>>,
}

struct Child<M: Machine, W: World<M>> {
    wanted: watch::Sender<Wanted<M::Desired>>,
    report: Rc<watch::Sender<Report<M::Status>>>,
    seen: watch::Receiver<Report<M::Status>>,
    generation: u64,
    deaths: VecDeque<Instant>,
    life: Life<M, W>,
}

enum Life<M: Machine, W: World<M>> {
    Up(Addr<Shell<M, W>>),
    /// Told to end; `again`: wanted anew since.
    Ending {
        addr: Addr<Shell<M, W>>,
        again: bool,
    },
    Down {
        until: Instant,
    },
}

impl<K: Ord + Clone + Display, M: Machine, W: World<M>> Family<K, M, W> {
    /// An empty family. `make` gives each life of a child a fresh world.
    pub fn new(died: Recipient<Died>, poke: Recipient<Poke>, make: impl Fn(&K) -> W + 'static) -> Self {
        Family { make: Box::new(make), died, poke, period: PERIOD, children: BTreeMap::new() }
    }

    /// The longest time between two looks, where it is not [`PERIOD`].
    pub fn with_period(mut self, period: Duration) -> Self {
        self.period = period;
        self
    }

    /// Wants this of a child, which is started when there is none. Returns the wish's revision.
    pub fn want(&mut self, key: &K, desired: Option<M::Desired>) -> u64 {
        if !self.children.contains_key(key) {
            self.add(key, desired);
            return 1;
        }
        self.wish(key, desired, false)
    }

    /// As [`Family::want`], but what was reported before no longer counts, even if the same was wanted then: for callers
    /// who must not be told what was true once.
    pub fn want_afresh(&mut self, key: &K, desired: Option<M::Desired>) -> u64 {
        if !self.children.contains_key(key) {
            return self.want(key, desired);
        }
        self.wish(key, desired, true)
    }

    fn wish(&mut self, key: &K, desired: Option<M::Desired>, afresh: bool) -> u64 {
        let Some(child) = self.children.get_mut(key) else { return 0 };
        let changed = child.wanted.send_if_modified(|wanted| {
            let differs = wanted.desired != desired;
            if differs {
                wanted.desired = desired;
            }
            if differs || afresh {
                wanted.revision += 1;
            }
            differs || afresh
        });
        let revision = child.wanted.borrow().revision;
        match &mut child.life {
            Life::Up(addr) if changed => {
                // A full mailbox holds a look already.
                let _ = addr.try_send(Look { why: Why::Desire });
            }
            Life::Ending { again, .. } => *again = true,
            Life::Up(_) | Life::Down { .. } => {}
        }
        revision
    }

    fn add(&mut self, key: &K, desired: Option<M::Desired>) {
        let (report, seen) = watch::channel(Report::default());
        let child = Child {
            wanted: watch::Sender::new(Wanted { revision: 1, desired }),
            report: Rc::new(report),
            seen,
            generation: 0,
            deaths: VecDeque::new(),
            life: Life::Down { until: Instant::now() },
        };
        self.children.insert(key.clone(), child);
        self.spawn(key);
        events::population(M::KIND, self.children.len());
    }

    fn spawn(&mut self, key: &K) {
        let Some(child) = self.children.get_mut(key) else { return };
        child.generation += 1;
        let identity = Identity {
            key: key.to_string(),
            generation: child.generation,
            period: self.period,
            died: self.died.clone(),
            poke: self.poke.clone(),
        };
        let world = (self.make)(key);
        let shell = Shell::new(identity, world, child.wanted.subscribe(), Rc::clone(&child.report));
        child.life = Life::Up(shell.start());
    }

    /// Makes one child look; nothing happens when there is none.
    pub fn look(&self, key: &K) {
        if let Some(Child { life: Life::Up(addr), .. }) = self.children.get(key) {
            let _ = addr.try_send(Look { why: Why::Hint });
        }
    }

    /// Makes every child look for which `which` holds.
    pub fn look_where(&self, which: impl Fn(&K) -> bool) {
        self.children.keys().filter(|key| which(key)).for_each(|key| self.look(key));
    }

    /// Lets go of a child: it finishes its round and ends. What it holds in the kernel stays.
    pub fn retire(&mut self, key: &K) {
        let Some(child) = self.children.get_mut(key) else { return };
        match &mut child.life {
            Life::Up(addr) => {
                // A full mailbox: sent again when the child is tended.
                let _ = addr.try_send(Stop);
                child.life = Life::Ending { addr: addr.clone(), again: false };
            }
            Life::Ending { again, .. } => *again = false,
            Life::Down { .. } => {
                self.children.remove(key);
            }
        }
    }

    /// Lets go of all children.
    pub fn retire_all(&mut self) {
        let keys: Vec<K> = self.children.keys().cloned().collect();
        keys.iter().for_each(|key| self.retire(key));
    }

    /// Ends all children in the middle of whatever they do. For simulations of a killed process.
    pub fn kill_all(&mut self) {
        for child in std::mem::take(&mut self.children).into_values() {
            if let Life::Up(addr) | Life::Ending { addr, .. } = child.life {
                // One whose mailbox is full ends with its next round: nobody holds its wish any more.
                let _ = addr.try_send(Kill);
            }
        }
    }

    /// Notices who ended and starts whoever is due. Returns when to come again, if somebody is waiting.
    pub fn tend(&mut self, now: Instant) -> Option<Instant> {
        let mut gone = Vec::new();
        let mut due = Vec::new();
        for (key, child) in &mut self.children {
            match &child.life {
                Life::Up(addr) if !addr.connected() => child.bury(&key.to_string(), now),
                Life::Ending { addr, again: false } if !addr.connected() => gone.push(key.clone()),
                Life::Ending { addr, .. } if addr.connected() => {
                    let _ = addr.try_send(Stop);
                }
                Life::Ending { addr, again: true } if !addr.connected() => child.life = Life::Down { until: now },
                _ => {}
            }
            if matches!(child.life, Life::Down { until } if until <= now) {
                due.push(key.clone());
            }
        }
        for key in &gone {
            self.children.remove(key);
        }
        due.iter().for_each(|key| self.spawn(key));
        events::population(M::KIND, self.children.len());
        self.children.values().filter_map(Child::until).min()
    }

    /// Children whose report has changed since the last call, with the report.
    pub fn news(&mut self) -> Vec<(K, Report<M::Status>)> {
        let changed = self.children.iter_mut().filter(|(_, child)| child.seen.has_changed().unwrap_or(false));
        changed.map(|(key, child)| (key.clone(), child.seen.borrow_and_update().clone())).collect()
    }

    /// The present report of a child.
    pub fn report(&self, key: &K) -> Option<Report<M::Status>> {
        self.children.get(key).map(|child| child.report.borrow().clone())
    }

    /// The present report of a child, if it answers what is wanted now.
    pub fn current(&self, key: &K) -> Option<Report<M::Status>> {
        let child = self.children.get(key)?;
        let report = child.report.borrow();
        (report.revision == child.wanted.borrow().revision).then(|| report.clone())
    }

    /// A child's reports, to wait on; they outlive its lives.
    pub fn subscribe(&self, key: &K) -> Option<watch::Receiver<Report<M::Status>>> {
        self.children.get(key).map(|child| child.report.subscribe())
    }

    /// What is wanted of a child at present.
    pub fn wanted(&self, key: &K) -> Option<M::Desired> {
        self.children.get(key).and_then(|child| child.wanted.borrow().desired.clone())
    }

    /// Whether there is such a child that is not ending.
    pub fn contains(&self, key: &K) -> bool {
        self.children.get(key).is_some_and(|child| !matches!(child.life, Life::Ending { again: false, .. }))
    }

    /// All keys, ending children included.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.children.keys()
    }

    /// Whether no child is left, ending ones included.
    pub fn is_empty(&self) -> bool {
        self.children.is_empty()
    }
}

impl<M: Machine, W: World<M>> Child<M, W> {
    /// Notes a death: the report says so, and a pause begins.
    fn bury(&mut self, key: &str, now: Instant) {
        while self.deaths.front().is_some_and(|death| now.duration_since(*death) > DEATHS_WITHIN) {
            self.deaths.pop_front();
        }
        self.deaths.push_back(now);
        let patience_ended = self.deaths.len() >= DEATHS_MAX;
        let (pause, error) = if patience_ended {
            events::quarantined(M::KIND, key, self.generation, QUARANTINE);
            self.deaths.clear();
            let minutes = QUARANTINE.as_secs() / 60;
            (QUARANTINE, format!("the {} actor ended {DEATHS_MAX} times; left alone for {minutes} minutes", M::KIND))
        } else {
            let pause = RESPAWN_MIN * 2u32.pow(self.deaths.len().saturating_sub(1) as u32);
            events::died(M::KIND, key, self.generation, pause);
            (pause, format!("the {} actor ended unexpectedly; the log says why", M::KIND))
        };
        let failing = Some(Failing { reason: Reason::Failing { error }, class: Class::Bug });
        self.report.send_modify(|report| report.failing = failing);
        self.life = Life::Down { until: now + pause };
    }

    fn until(&self) -> Option<Instant> {
        match self.life {
            Life::Down { until } => Some(until),
            Life::Up(_) | Life::Ending { .. } => None,
        }
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
