//! The root actor of a node: owns the six families, routes hints and wishes to them, and what they report to whom it
//! concerns.
//!
//! ```text
//!  kernel hints ─┐                     ┌─▶ drives ─▶ MeshStorNodeDevice
//!  watches ──────┼─▶ NodeActor ──want──┼─▶ partitions, exports ─▶ MeshStorReplica
//!  CSI ──────────┘      ▲              └─▶ arrays, connections, stages ─▶ MeshStorVolume, CSI
//!                       └──── Poke: some report has changed ────┘
//! ```
//!
//! Started by [`crate::agent`] or by a simulation inside its own actix system. Every message ends in one sweep over what
//! has changed, so a lost message costs at most a tick. It never observes, plans or applies anything itself; binds and
//! surveys run as tasks of their own. A restart loses nothing: children look again, volumes are found in the kernel.

mod bind;
mod config;
mod devices;
mod handlers;
mod health;
mod hints;
pub mod messages;
mod ports;
mod replicas;
mod report;
mod stop;
pub mod survey;
mod volumes;

pub use config::NodeConfig;
pub use health::Health;
pub use volumes::{VolumeState, VolumeView};

use crate::env::Env;
use crate::kinds::{Arrays, Connections, Drives, Exports, Partitions, Stages};
use crate::messages::Poke;
use crate::shell::World;
use crate::sources::{Change, Sources, Watching};
use crate::status::{Board, Object, Overwritten, StatusWriter};
use crate::tree::Family;
use crate::worlds::{array, connection, drive, export, partition, stage};
use actix::{Actor, Addr, AsyncContext, Context};
use meshstor_api::node::QuarantinedPort;
use meshstor_api::{MeshStorNodeDevice, MeshStorVolume};
use meshstor_kernel::SharedKernel;
use meshstor_kernel::facts::{NodeFact, Transport};
use meshstor_kernel::id::{BootId, ReplicaKey, VolumeId};
use meshstor_plan::Machine;
use meshstor_plan::partition::PartitionState;
use messages::Surveyed;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;
use survey::Survey;
use tokio::sync::watch;
use tokio::time::Instant;

/// How often the root looks after everything without being told.
const TICK: Duration = Duration::from_secs(1);
/// Heartbeats: this many ticks.
const HEARTBEAT_TICKS: u64 = 20;
/// Surveys and reviews without a hint: this many ticks.
const SURVEY_TICKS: u64 = 60;
/// Rest between two surveys: a survey reads every drive, and one change of the kernel comes with many hints.
const SURVEY_REST: Duration = Duration::from_secs(2);
/// Objects out of sight are asked for again: this many ticks.
const DOUBT_TICKS: u64 = 10;
/// Hints, watch events and reports of hundreds of children at once.
const MAILBOX: usize = 1024;
/// Node annotations that name the addresses of exports.
const ANNOTATIONS: [(Transport, &str); 2] =
    [(Transport::Tcp, "meshstor.io/nvme-over-tcp-address"), (Transport::Rdma, "meshstor.io/nvme-over-rdma-address")];

/// The root actor.
pub struct NodeActor {
    me: Addr<NodeActor>,
    env: Rc<Env>,
    fabric: String,
    drives: Drives,
    partitions: Partitions,
    exports: Exports,
    connections: Connections,
    arrays: Arrays,
    stages: Stages,
    board: Board,
    writer: Addr<StatusWriter>,
    sources: Sources,
    watches: Vec<Watching>,
    replicas: BTreeMap<String, replicas::Held>,
    replicas_listed: bool,
    doubtful: BTreeSet<String>,
    devices: BTreeMap<String, MeshStorNodeDevice>,
    devices_listed: bool,
    volumes: BTreeMap<VolumeId, volumes::Staged>,
    quarantine: Option<BTreeMap<u16, QuarantinedPort>>,
    checking_ports: BTreeSet<u16>,
    boot: Option<BootId>,
    fact: Option<NodeFact>,
    heartbeat: String,
    /// A question for all copies that no survey has answered yet, and the last answer.
    asked: Option<String>,
    questions: BTreeSet<String>,
    copies: Option<survey::Copies>,
    surveying: bool,
    survey_again: bool,
    surveyed: bool,
    survey_ended: Option<Instant>,
    ticks: u64,
    wake: Option<(Instant, actix::SpawnHandle)>,
    stopping: Option<watch::Sender<bool>>,
}

impl NodeActor {
    /// Starts a node on the current thread's actix system. Watches and requests run on `runtime`, which may be the one
    /// this thread runs.
    pub fn launch(
        config: NodeConfig,
        kernel: SharedKernel,
        client: kube::Client,
        runtime: tokio::runtime::Handle,
    ) -> Addr<NodeActor> {
        NodeActor::create(|ctx| {
            ctx.set_mailbox_capacity(MAILBOX);
            NodeActor::new(ctx.address(), config, kernel, client, runtime)
        })
    }

    fn new(
        me: Addr<NodeActor>,
        config: NodeConfig,
        kernel: SharedKernel,
        client: kube::Client,
        runtime: tokio::runtime::Handle,
    ) -> NodeActor {
        let fabric = config.fabric.clone();
        let sources = Sources::new(runtime, client.clone(), me.clone().recipient());
        let env = Env::new(kernel, client, config, me.clone().recipient());
        let board = Board::default();
        let writer = StatusWriter::new(env.clone(), board.clone()).start();
        NodeActor {
            drives: family(&me, &env, drive::DriveWorld::new),
            partitions: family(&me, &env, partition::PartitionWorld::new),
            exports: family(&me, &env, export::ExportWorld::new),
            connections: family(&me, &env, connection::ConnectionWorld::new),
            arrays: family(&me, &env, array::ArrayWorld::new),
            stages: family(&me, &env, stage::StageWorld::new),
            heartbeat: env.clock.now(),
            me,
            env,
            fabric,
            board,
            writer,
            sources,
            watches: Vec::new(),
            replicas: BTreeMap::new(),
            replicas_listed: false,
            doubtful: BTreeSet::new(),
            devices: BTreeMap::new(),
            devices_listed: false,
            volumes: BTreeMap::new(),
            quarantine: None,
            checking_ports: BTreeSet::new(),
            boot: None,
            fact: None,
            asked: None,
            questions: BTreeSet::new(),
            copies: None,
            surveying: false,
            survey_again: false,
            surveyed: false,
            survey_ended: None,
            ticks: 0,
            wake: None,
            stopping: None,
        }
    }

    /// What every message ends in: whoever died is replaced, whatever was reported is passed on.
    fn sweep(&mut self, ctx: &mut Context<Self>) {
        self.tend(ctx);
        let mut volumes: BTreeSet<VolumeId> = self.rewired().into_iter().collect();
        for (drive, report) in self.drives.news() {
            self.report_drive(&drive, &report);
            // Those that have their partition need nothing of their drive's report.
            let open = |key: &ReplicaKey| {
                self.partitions.report(key).is_none_or(|partition| partition.status.state != PartitionState::Ready)
            };
            self.partitions.look_where(|key| report.status.refused.is_none() && open(key));
        }
        for (key, _) in self.partitions.news() {
            self.exports.look(&key);
            self.arrays.look(&key.volume);
            self.report_replica(key);
        }
        for (key, report) in self.exports.news() {
            self.retire_ports(key, &report.status);
            self.partitions.look(&key);
            self.report_replica(key);
        }
        for (key, _) in self.connections.news() {
            self.arrays.look(&key.volume);
            volumes.insert(key.volume);
        }
        for (volume, _) in self.arrays.news() {
            self.count_resyncs();
            self.stages.look(&volume);
            self.exports.look_where(|key| key.volume == volume);
            volumes.insert(volume);
        }
        for (volume, _) in self.stages.news() {
            self.arrays.look(&volume);
            volumes.insert(volume);
        }
        for volume in volumes {
            self.advance(volume);
        }
        let _ = self.writer.try_send(Poke);
    }

    fn tend(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        let due = [
            self.drives.tend(now),
            self.partitions.tend(now),
            self.exports.tend(now),
            self.connections.tend(now),
            self.arrays.tend(now),
            self.stages.tend(now),
        ];
        if !self.writer.connected() {
            self.writer = StatusWriter::new(self.env.clone(), self.board.clone()).start();
        }
        match due.into_iter().flatten().min() {
            Some(at) if self.wake.as_ref().is_none_or(|(planned, _)| at < *planned) => {
                if let Some((_, handle)) = self.wake.take() {
                    ctx.cancel_future(handle);
                }
                let wait = at.saturating_duration_since(now);
                let handle = ctx.run_later(wait, |node, ctx| {
                    node.wake = None;
                    node.sweep(ctx);
                });
                self.wake = Some((at, handle));
            }
            _ => {}
        }
        self.finish_stop(ctx);
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        self.ticks += 1;
        if self.ticks.is_multiple_of(HEARTBEAT_TICKS) {
            self.heartbeat = self.env.clock.now();
            self.report_node();
        }
        if self.ticks.is_multiple_of(SURVEY_TICKS) {
            self.survey_soon();
            self.review_ports();
            self.list_replicas();
            self.list_devices();
        }
        if self.ticks.is_multiple_of(DOUBT_TICKS) {
            std::mem::take(&mut self.doubtful).into_iter().for_each(|name| self.verify_replica(name));
        }
        if self.survey_again {
            self.survey_soon();
        }
        let volumes: Vec<VolumeId> = self.volumes.keys().copied().collect();
        volumes.into_iter().for_each(|volume| {
            self.advance(volume);
        });
        self.sweep(ctx);
    }

    /// Looks at the kernel as a whole; a little later when that was done just now, once more when it is being done.
    fn survey_soon(&mut self) {
        if self.surveying || self.survey_ended.is_some_and(|at| at.elapsed() < SURVEY_REST) {
            self.survey_again = true;
            return;
        }
        self.surveying = true;
        self.survey_again = false;
        let (env, me, asked) = (self.env.clone(), self.me.clone(), self.asked.clone());
        actix::spawn(async move {
            let result = survey::survey(&env, asked).await;
            let _ = me.send(Surveyed(result)).await;
        });
    }

    /// What a survey found becomes actors; the first one's volumes are adopted.
    fn take_in(&mut self, survey: Survey) {
        for drive in &survey.drives {
            if !self.drives.contains(drive) {
                self.want_drive(drive);
            }
        }
        let records = survey.partitions.values().flatten();
        let found = records.map(|record| ReplicaKey { volume: record.volume, replica: record.replica }).collect();
        self.env.book.borrow_mut().found = found;
        if !std::mem::replace(&mut self.surveyed, true) {
            self.adopt(&survey);
        }
        self.count_orphans(survey.partitions.keys().copied());
        if let Some(copies) = survey.copies {
            self.copies_read(copies);
        }
        self.boot = Some(survey.node.boot.clone());
        self.fact = Some(survey.node);
        self.report_node();
    }

    /// Writes this node's own object.
    fn report_node(&mut self) {
        let Some(fact) = &self.fact else { return };
        let given = self.env.given_addresses.borrow();
        let found = || fact.addresses.iter().map(|(transport, address, _)| (*transport, *address)).collect();
        let addresses = if given.is_empty() { found() } else { given.clone() };
        let put = report::node(fact, &self.fabric, &addresses, self.quarantine.as_ref(), &self.heartbeat);
        self.board.put(Object::Node(self.env.me.0.clone()), put);
    }

    fn node_overwritten(&self) {
        let _ = self.writer.try_send(Overwritten(Object::Node(self.env.me.0.clone())));
    }

    fn machine_changed(&mut self, annotations: &BTreeMap<String, String>) {
        let read = |(transport, name): &(Transport, &str)| {
            let text = annotations.get(*name)?;
            let address: Result<IpAddr, _> = text.trim().parse();
            let bad = |_: &_| tracing::error!(annotation = name, value = text, "not an IP address: ignored");
            Some((*transport, address.inspect_err(bad).ok()?))
        };
        let given: BTreeSet<(Transport, IpAddr)> = ANNOTATIONS.iter().filter_map(read).collect();
        if *self.env.given_addresses.borrow() != given {
            self.env.given_addresses.replace(given);
            self.exports.look_where(|_| true);
            self.report_node();
        }
    }

    fn volume_changed(&mut self, change: Change<MeshStorVolume>) {
        let objects = match change {
            // A volume of ours that is not in the list is a hint: each array asks for its own record.
            Change::Listed(objects) => {
                self.arrays.look_where(|_| true);
                objects
            }
            Change::Applied(object) => vec![*object],
            // Who deposed us, or whether somebody did, only a read by name can tell.
            Change::Gone(name) => {
                if let Some(volume) = self.env.book.borrow().volume(&name) {
                    self.arrays.look(&volume);
                }
                return;
            }
        };
        for object in objects {
            let (Some(name), Ok(volume)) = (object.metadata.name, object.spec.volume_id.parse()) else { continue };
            self.env.book.borrow_mut().volumes.insert(volume, name.clone());
            if let Some(staged) = self.volumes.get_mut(&volume) {
                staged.rename(&name, &self.sources);
            }
            self.arrays.look(&volume);
            self.stages.look(&volume);
        }
    }
}

/// An empty family whose children's worlds are made by `make`.
fn family<K, M, W>(me: &Addr<NodeActor>, env: &Rc<Env>, make: fn(Rc<Env>, K) -> W) -> Family<K, M, W>
where
    K: Ord + Clone + Display + 'static,
    M: Machine,
    W: World<M>,
{
    let env = Rc::clone(env);
    Family::new(me.clone().recipient(), me.clone().recipient(), move |key: &K| make(Rc::clone(&env), key.clone()))
}

#[cfg(test)]
mod content_tests;
#[cfg(test)]
mod growth_tests;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod stats_tests;
#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
