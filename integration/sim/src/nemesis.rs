//! The nemesis: does harm for a while, undoes it, and says in the trace what it did.
//!
//! Each run draws which kinds of harm it knows (swarm testing: runs that lack one kind reach states that runs with all
//! kinds never do). Called by `run`; it never touches data, and at the end makes everything whole.

use crate::cluster::{Cluster, pass};
use crate::records::Records;
use fastrand::Rng;
use meshstor_kernel::facts::Transport;
use meshstor_kernel::sim::{FaultRates, OpFault};
use meshstor_memstore::{Fault, Link, Outcome, WatchEnd};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// One kind of harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    Cut,
    CutOneWay,
    Isolate,
    CutOff,
    ApiHangs,
    ApiRefuses,
    ControllerHangs,
    ApiErrors,
    ApiSlow,
    EventsLost,
    WatchesClosed,
    PowerCut,
    Freeze,
    KillAgent,
    HintsLost,
    LooksFail,
    Rough,
    DriveHangs,
    DrivePulled,
    DriveBreaks,
    ShutDown,
    RdmaCut,
    BothControllersHang,
    EventsHeld,
    SlowOps,
    FailingOps,
    ObjectGone,
    SetAbsent,
    RolledBack,
    /// The consumer's record goes silent, another node gets out of its reach, then its power is cut.
    Forsaken,
}

/// Told apart from what the seed draws otherwise: a kind that is drawn by itself leaves all earlier seeds what they were.
const APART: u64 = 0x666f_7273_616b_656e;

const ALL: [Harm; 29] = [
    Harm::Cut,
    Harm::CutOneWay,
    Harm::Isolate,
    Harm::CutOff,
    Harm::ApiHangs,
    Harm::ApiRefuses,
    Harm::ControllerHangs,
    Harm::ApiErrors,
    Harm::ApiSlow,
    Harm::EventsLost,
    Harm::WatchesClosed,
    Harm::PowerCut,
    Harm::Freeze,
    Harm::KillAgent,
    Harm::HintsLost,
    Harm::LooksFail,
    Harm::Rough,
    Harm::DriveHangs,
    Harm::DrivePulled,
    Harm::DriveBreaks,
    Harm::ShutDown,
    Harm::RdmaCut,
    Harm::BothControllersHang,
    Harm::EventsHeld,
    Harm::SlowOps,
    Harm::FailingOps,
    Harm::ObjectGone,
    Harm::SetAbsent,
    Harm::RolledBack,
];

/// Operations that hurt when they are late or fail half way: those of drops, fences, returns and ends.
const TENDER: [&str; 12] = [
    "drop-member",
    "disconnect",
    "abandon",
    "fence",
    "remove-export",
    "export",
    "write-record",
    "merge-bitmap",
    "re-add-member",
    "add-member",
    "stop-array",
    "freeze-writes",
];

/// What does harm.
pub struct Nemesis {
    cluster: Rc<Cluster>,
    rng: RefCell<Rng>,
    kinds: Vec<Harm>,
    few: bool,
    /// Nodes that are off, frozen or without an agent: one such harm at a time for each.
    down: RefCell<Vec<String>>,
    over: Cell<bool>,
    /// What was done to objects and has to be put right.
    records: Records,
    /// What was done, for the trace.
    pub log: RefCell<Vec<String>>,
}

impl Nemesis {
    /// One that knows a part of all harm, by the seed.
    pub fn new(cluster: Rc<Cluster>, mut rng: Rng) -> Rc<Nemesis> {
        // Half of the runs know a few kinds only and do them often: that is how two of them meet.
        let few = rng.bool();
        let mut kinds: Vec<Harm> =
            ALL.into_iter().filter(|_| if few { rng.usize(..7) == 0 } else { rng.bool() }).collect();
        if Rng::with_seed(rng.get_seed() ^ APART).usize(..6) == 0 {
            kinds.push(Harm::Forsaken);
        }
        if kinds.is_empty() {
            kinds.push(Harm::PowerCut);
        }
        let (rng, down, over, log) = (RefCell::new(rng), RefCell::default(), Cell::new(false), RefCell::default());
        let records = Records::new(cluster.store.clone());
        Rc::new(Nemesis { cluster, rng, kinds, few, down, over, records, log })
    }

    /// Does harm until told to end.
    pub async fn rage(self: Rc<Self>) {
        while !self.over.get() {
            let pause = if self.few { self.between(1.0, 9.0) } else { self.between(2.0, 25.0) };
            pass(pause).await;
            self.records.remember();
            if self.over.get() {
                return;
            }
            let kind = self.kinds[self.rng.borrow_mut().usize(..self.kinds.len())];
            let nemesis = self.clone();
            actix::spawn(async move { nemesis.harm(kind).await });
        }
    }

    /// Ends it all: what is still broken is made whole now.
    pub async fn end(&self) {
        self.over.set(true);
        // A node that is shutting down is up for another second.
        pass(2.0).await;
        let world = &self.cluster.world;
        world.set_rates(FaultRates::default());
        world.heal_all();
        self.cluster.store.faults().clear();
        self.records.put_all_back();
        for client in self.cluster.nodes.iter().map(String::as_str).chain(["c1", "c2"]) {
            self.cluster.api_link(client, Link::Up);
            self.cluster.store.faults().set_latency(client, Duration::ZERO, Duration::ZERO);
        }
        for node in &self.cluster.nodes {
            world.thaw(node);
            world.drive_insert(node, &drive(node));
            world.drive_hang(node, &drive(node), false);
            world.drive_break(node, &drive(node), false);
            if !world.is_up(node) {
                world.power_on(node);
            }
            self.cluster.start_agent(node);
        }
        self.say("all harm ends".into());
    }

    fn between(&self, low: f64, high: f64) -> f64 {
        low + self.rng.borrow_mut().f64() * (high - low)
    }

    /// A node: every other time one that has a volume attached, where most can go wrong.
    fn pick(&self) -> String {
        let nodes = &self.cluster.nodes;
        let consumers = self.records.consumers();
        if !consumers.is_empty() && self.rng.borrow_mut().bool() {
            return consumers[self.rng.borrow_mut().usize(..consumers.len())].clone();
        }
        nodes[self.rng.borrow_mut().usize(..nodes.len())].clone()
    }

    fn say(&self, line: String) {
        self.log.borrow_mut().push(format!("{:>9.3} nemesis {line}", self.cluster.world.now().as_secs_f64()));
    }

    /// Short ones are hiccups, long ones outlast every timeout.
    fn duration(&self) -> f64 {
        let short = self.rng.borrow_mut().bool();
        if short { self.between(0.2, 4.0) } else { self.between(4.0, 50.0) }
    }

    async fn harm(&self, kind: Harm) {
        let (node, other, time) = (self.pick(), self.pick(), self.duration());
        let (world, faults) = (&self.cluster.world, self.cluster.store.faults());
        self.say(format!("{kind:?} {node} {other} {time:.1} s"));
        match kind {
            Harm::Cut if node != other => world.cut(&node, &other),
            Harm::CutOneWay if node != other => world.cut_one_way(&node, &other),
            Harm::Isolate => world.isolate(&node),
            Harm::CutOff => {
                world.isolate(&node);
                self.cluster.api_link(&node, Link::Hang);
            }
            Harm::ApiHangs => self.cluster.api_link(&node, Link::Hang),
            Harm::ApiRefuses => self.cluster.api_link(&node, Link::Refuse),
            Harm::ControllerHangs => self.cluster.api_link("c1", Link::Hang),
            Harm::ApiErrors => {
                for outcome in [Outcome::Status(500), Outcome::Reset, Outcome::Status(409)] {
                    faults.inject(Fault::before_effect(outcome).client(&node).times(2));
                    faults.inject(Fault::after_effect(outcome).client(&node).times(2));
                }
                return;
            }
            Harm::ApiSlow => {
                faults.set_latency(&node, Duration::from_millis(400), Duration::from_millis(700));
                pass(time).await;
                return faults.set_latency(&node, Duration::ZERO, Duration::ZERO);
            }
            Harm::EventsLost => return faults.drop_events(&node, None, 5),
            Harm::WatchesClosed => return faults.close_watches(Some(&node), WatchEnd::Expired),
            Harm::HintsLost => return world.lose_hints(&node, 20),
            Harm::LooksFail => return world.fail_looks(&node, 10),
            Harm::Rough => {
                world.set_rates(FaultRates::rough());
                pass(time).await;
                return world.set_rates(FaultRates::default());
            }
            Harm::DriveHangs => world.drive_hang(&node, &drive(&node), true),
            Harm::DrivePulled => world.drive_pull(&node, &drive(&node)),
            Harm::DriveBreaks => world.drive_break(&node, &drive(&node), true),
            Harm::RdmaCut if node != other => world.cut_transport(&node, &other, Transport::Rdma),
            Harm::BothControllersHang => ["c1", "c2"].iter().for_each(|c| self.cluster.api_link(c, Link::Hang)),
            Harm::EventsHeld => faults.hold_events(&node, true),
            Harm::SlowOps | Harm::FailingOps => return self.hurt_operations(kind, &node),
            Harm::ObjectGone | Harm::SetAbsent | Harm::RolledBack => return self.hurt_record(kind, time).await,
            Harm::PowerCut | Harm::ShutDown | Harm::Freeze | Harm::KillAgent => {
                return self.down(kind, &node, time).await;
            }
            Harm::Forsaken => return self.forsake(&node, &other, time).await,
            Harm::Cut | Harm::CutOneWay | Harm::RdmaCut => return,
        }
        pass(time).await;
        if !self.over.get() {
            self.undo(kind, &node, &other);
        }
    }

    /// Ends harm that has a duration.
    fn undo(&self, kind: Harm, node: &str, other: &str) {
        let (world, faults) = (&self.cluster.world, self.cluster.store.faults());
        match kind {
            Harm::Cut | Harm::CutOneWay | Harm::RdmaCut => world.heal(node, other),
            Harm::CutOff => {
                self.cluster.nodes.iter().filter(|n| *n != node).for_each(|n| world.heal(node, n));
                self.cluster.api_link(node, Link::Up);
            }
            Harm::Isolate => self.cluster.nodes.iter().filter(|n| *n != node).for_each(|n| world.heal(node, n)),
            Harm::ApiHangs | Harm::ApiRefuses => self.cluster.api_link(node, Link::Up),
            Harm::ControllerHangs => self.cluster.api_link("c1", Link::Up),
            Harm::BothControllersHang => ["c1", "c2"].iter().for_each(|c| self.cluster.api_link(c, Link::Up)),
            Harm::EventsHeld => faults.hold_events(node, false),
            Harm::DriveHangs => world.drive_hang(node, &drive(node), false),
            Harm::DrivePulled => world.drive_insert(node, &drive(node)),
            Harm::DriveBreaks => world.drive_break(node, &drive(node), false),
            _ => {}
        }
        self.say(format!("{kind:?} {node} {other} is over"));
    }

    /// Operations to come are late, or fail: done, half done or not at all.
    fn hurt_operations(&self, kind: Harm, node: &str) {
        for _ in 0..3 {
            let op = TENDER[self.rng.borrow_mut().usize(..TENDER.len())];
            let choice = self.rng.borrow_mut().usize(..3);
            let fault = match (kind, choice) {
                (Harm::SlowOps, _) => OpFault::Slow(Duration::from_secs_f64(self.between(1.0, 25.0))),
                (_, 0) => OpFault::Before,
                (_, 1) => OpFault::After,
                _ => OpFault::Half,
            };
            self.cluster.world.fail_next(node, op, fault);
        }
    }

    /// Objects vanish, lose their in-sync set, or go back in time, until somebody puts them right.
    async fn hurt_record(&self, kind: Harm, time: f64) {
        let time = time.min(20.0);
        let choice = self.rng.borrow_mut().usize(..1 << 16);
        let done = match kind {
            Harm::ObjectGone => self.records.remove(choice),
            Harm::SetAbsent => self.records.strip(choice),
            // With a node away nobody might know of the lost future: that cannot be detected (F16).
            _ if !self.down.borrow().is_empty() => None,
            _ => {
                // Whoever restores etcd starts the API server's clients at their own pace: nodes before controllers.
                self.down.borrow_mut().extend(self.cluster.nodes.iter().cloned());
                let done = self.records.roll_back(choice);
                ["c1", "c2"].iter().for_each(|c| self.cluster.api_link(c, Link::Hang));
                pass(5.0).await;
                ["c1", "c2"].iter().for_each(|c| self.cluster.api_link(c, Link::Up));
                done
            }
        };
        let Some(what) = done else {
            if kind == Harm::RolledBack {
                self.down.borrow_mut().retain(|node| !self.cluster.nodes.contains(node));
            }
            return;
        };
        self.say(format!("{kind:?}: {what}"));
        pass(time).await;
        if !self.over.get() {
            self.records.put_back(&what);
            self.say(format!("{kind:?}: {what} is put right"));
        }
        if kind == Harm::RolledBack {
            self.down.borrow_mut().clear();
        }
    }

    /// See [`Harm::Forsaken`]. The cut lasts longer than a lost member is waited for.
    async fn forsake(&self, node: &str, other: &str, time: f64) {
        if node == other {
            return;
        }
        self.cluster.api_link(node, Link::Hang);
        self.cluster.world.cut(node, other);
        pass(self.between(7.0, 16.0)).await;
        if !self.over.get() {
            self.down(Harm::PowerCut, node, time + 20.0).await;
        }
        if !self.over.get() {
            self.cluster.api_link(node, Link::Up);
            self.cluster.world.heal(node, other);
            self.say(format!("Forsaken {node} {other} is over"));
        }
    }

    /// Harm to a whole machine or its agent.
    async fn down(&self, kind: Harm, node: &str, time: f64) {
        if self.down.borrow().iter().any(|down| down == node) {
            return;
        }
        self.down.borrow_mut().push(node.into());
        let world = &self.cluster.world;
        match kind {
            Harm::PowerCut => {
                self.cluster.kill_agent(node).await;
                if self.over.get() {
                    return self.cluster.start_agent(node);
                }
                world.power_cut(node);
            }
            Harm::ShutDown => {
                self.cluster.kill_agent(node).await;
                if self.over.get() {
                    return self.cluster.start_agent(node);
                }
                world.shut_down(node);
            }
            Harm::Freeze => {
                world.freeze(node);
                self.cluster.api_link(node, Link::Hang);
            }
            _ => self.cluster.kill_agent(node).await,
        }
        pass(time).await;
        if !self.over.get() {
            match kind {
                Harm::PowerCut | Harm::ShutDown => {
                    // A shutdown of less than its own time is a power cut in its last second.
                    world.power_cut(node);
                    world.power_on(node);
                }
                Harm::Freeze => {
                    world.thaw(node);
                    self.cluster.api_link(node, Link::Up);
                }
                _ => {}
            }
            self.cluster.start_agent(node);
            self.say(format!("{kind:?} {node} is over"));
        }
        self.down.borrow_mut().retain(|down| down != node);
    }
}

fn drive(node: &str) -> meshstor_kernel::id::DriveId {
    meshstor_kernel::sim::SimDrive::new(&format!("serial-{node}"), 0).id()
}
