//! The nemesis: does harm for a while, undoes it, and says in the trace what it did.
//!
//! Each run draws which kinds of harm it knows (swarm testing: runs that lack one kind reach states that runs with all
//! kinds never do). Called by `run`; it never touches data, and at the end makes everything whole.

mod deeds;
mod gone;

use crate::cluster::{Cluster, pass};
use crate::records::Records;
use fastrand::Rng;
use meshstor_kernel::sim::FaultRates;
use meshstor_memstore::Link;
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
    /// A power cut while writes have reached the near copy and not the far ones; back before anybody has lost patience.
    Torn,
    /// A target holds writes back, and their consumer reboots meanwhile and goes on (F20).
    Ghost,
    /// A consumer is alone for long; its cables are back some time before its API server is.
    Estranged,
    /// An operator wants a copy somewhere else.
    Retired,
    /// A machine without power is taken out of the cluster; it returns later.
    NodeRemoved,
    /// A machine breaks: its power does not return before all its copies were made again elsewhere.
    NodeLost,
}

/// Told apart from what the seed draws otherwise: kinds that are drawn by themselves leave the runs without them what they
/// were.
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
        let mut apart = Rng::with_seed(rng.get_seed() ^ APART);
        let rare = [
            (Harm::Forsaken, 6),
            (Harm::Retired, 5),
            (Harm::NodeRemoved, 6),
            (Harm::NodeLost, 8),
            (Harm::Torn, 6),
            (Harm::Ghost, 6),
            (Harm::Estranged, 5),
        ];
        for (kind, one_in) in rare {
            if apart.usize(..one_in) == 0 {
                kinds.push(kind);
            }
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
        self.records.save(&self.cluster);
        for node in &self.cluster.nodes {
            world.thaw(node);
            world.drive_insert(node, &drive(node));
            world.drive_hang(node, &drive(node), false);
            world.drive_break(node, &drive(node), false);
            world.drive_throttle(node, &drive(node), 0, Duration::ZERO);
            self.cluster.register(node).await;
            if self.cluster.is_lost(node) {
                continue;
            }
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
}

fn drive(node: &str) -> meshstor_kernel::id::DriveId {
    meshstor_kernel::sim::SimDrive::new(&format!("serial-{node}"), 0).id()
}
