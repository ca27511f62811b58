//! A cluster in one thread: simulated kernels, the API store, one root actor for each node, two controllers.
//!
//! Used by the workload and the nemesis. It starts and kills agents; it never looks into one.

use actix::Addr;
use k8s_openapi::jiff::Timestamp;
use meshstor_actors::clock::Clock;
use meshstor_actors::csi_node::NodeService;
use meshstor_actors::csi_node::usage::{AskUsage, Usage};
use meshstor_actors::messages::Kill;
use meshstor_actors::node::{NodeActor, NodeConfig};
use meshstor_controller::{Controller, ControllerConfig, ControllerService};
use meshstor_kernel::id::{ClusterId, NodeName};
use meshstor_kernel::sim::{Config, SimDrive, World};
use meshstor_memstore::{Link, Schema, Store, TokioClock};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

const GIB: u64 = 1 << 30;
const NODES: &str = "nodes";
/// From the start of an agent until it has looked at its arrays.
const STARTING: Duration = Duration::from_secs(1);
/// What every clock of a run says at its beginning.
const BEGIN: i64 = 1_767_225_600;

struct Agent {
    node: Addr<NodeActor>,
    service: NodeService,
}

/// Everything that runs.
pub struct Cluster {
    /// The kernels.
    pub world: World,
    /// The API server.
    pub store: Store,
    /// Names of the nodes.
    pub nodes: Vec<String>,
    controllers: Vec<ControllerService>,
    agents: RefCell<BTreeMap<String, Agent>>,
    id: ClusterId,
    origin: Instant,
    /// The machine that broke for good, if one did.
    lost: RefCell<Option<String>>,
    /// When a node's agent was killed, and when one was started again.
    without: RefCell<Vec<Without>>,
}

/// A time without an agent.
struct Without {
    node: String,
    from: Duration,
    to: Option<Duration>,
}

impl Cluster {
    /// Nodes `a`, `b`, … with one drive each, agents and controllers running.
    pub async fn new(seed: u64, nodes: usize, config: Config) -> anyhow::Result<Rc<Cluster>> {
        Cluster::of_drives(seed, nodes, config, |drive| drive).await
    }

    /// The same with other drives than plain ones.
    pub async fn of_drives(
        seed: u64,
        nodes: usize,
        config: Config,
        drive: fn(SimDrive) -> SimDrive,
    ) -> anyhow::Result<Rc<Cluster>> {
        let schemas = meshstor_api::crds().iter().filter_map(Schema::from_crd).collect::<Vec<_>>();
        let clock = TokioClock::starting_at(Timestamp::from_second(BEGIN)?);
        let store = Store::builder().schemas(schemas).clock(clock).seed(seed).build();
        let system = store.get("namespaces", "", "kube-system");
        let id = system.and_then(|n| n["metadata"]["uid"].as_str()?.parse().ok());
        let id = id.ok_or_else(|| anyhow::anyhow!("the store has no kube-system namespace"))?;
        let origin = Instant::now();
        let world = World::new(seed, config);
        let names: Vec<String> = (0..nodes).map(|n| char::from(b'a' + n as u8).to_string()).collect();
        for name in &names {
            world.add_node(name, &[drive(SimDrive::new(&format!("serial-{name}"), 64 * GIB))]);
            register(&store, name).await?;
        }
        let ids = Arc::new(AtomicU64::new(1));
        let controllers = ["c1", "c2"].map(|name| controller(&store, name, origin, seed, ids.clone()));
        let cluster = Rc::new(Cluster {
            world: world.clone(),
            store,
            nodes: names.clone(),
            controllers: controllers.into(),
            agents: RefCell::default(),
            id,
            origin,
            lost: RefCell::default(),
            without: RefCell::default(),
        });
        actix::spawn(async move { world.run().await });
        names.iter().for_each(|name| cluster.start_agent(name));
        Ok(cluster)
    }

    /// One of the two controllers.
    pub fn controller(&self, which: usize) -> &ControllerService {
        &self.controllers[which % self.controllers.len()]
    }

    /// The CSI service of a node whose agent runs.
    pub fn node(&self, name: &str) -> Option<NodeService> {
        self.agents.borrow().get(name).map(|agent| agent.service.clone())
    }

    /// Starts an agent where none runs and the machine has power.
    pub fn start_agent(&self, name: &str) {
        if self.agents.borrow().contains_key(name) || !self.world.is_up(name) {
            return;
        }
        let config = NodeConfig {
            node: NodeName(name.into()),
            cluster: self.id,
            fabric: "default".into(),
            clock: Clock::new(wall(self.origin)),
            speeds: Default::default(),
            keep_caches: false,
        };
        let client = self.store.client_for(name);
        let runtime = tokio::runtime::Handle::current();
        let node = NodeActor::launch(config, self.world.kernel(name), client.clone(), runtime);
        let usage: AskUsage = Arc::new(|_| Ok(Usage { bytes: (1, 0, 1), inodes: (1, 0, 1) }));
        let service = NodeService::new(node.clone(), client, NodeName(name.into()), "default".into(), usage);
        self.agents.borrow_mut().insert(name.into(), Agent { node, service });
        let mut without = self.without.borrow_mut();
        without.iter_mut().filter(|w| w.node == name && w.to.is_none()).for_each(|w| w.to = Some(self.world.now()));
    }

    /// SIGKILL.
    pub async fn kill_agent(&self, name: &str) {
        let agent = self.agents.borrow_mut().remove(name);
        if let Some(agent) = agent {
            self.world.kill_agent(name);
            self.without.borrow_mut().push(Without { node: name.into(), from: self.world.now(), to: None });
            let _ended = agent.node.send(Kill).await;
        }
    }

    /// Since when a node had no agent at this moment, if it had none.
    pub fn without_agent(&self, name: &str, at: Duration) -> Option<Duration> {
        let without = self.without.borrow();
        let had_none = |w: &&Without| w.from <= at && w.to.is_none_or(|to| at <= to + STARTING);
        without.iter().filter(|w| w.node == name).find(had_none).map(|w| w.from)
    }

    /// Its Node object is there.
    pub async fn register(&self, name: &str) {
        let _there = register(&self.store, name).await;
    }

    /// Its Node object is deleted: an administrator gave the machine up.
    pub fn unregister(&self, name: &str) {
        self.store.force(NODES, "", name, None);
    }

    /// This machine broke.
    pub fn lose(&self, name: &str) {
        self.lost.replace(Some(name.to_string()));
    }

    /// Whether this is the machine that broke.
    pub fn is_lost(&self, name: &str) -> bool {
        self.lost.borrow().as_deref() == Some(name)
    }

    /// The machine that broke returns, with its drives as they were.
    pub fn repair(&self) {
        if let Some(name) = self.lost.take() {
            self.world.power_on(&name);
            self.start_agent(&name);
        }
    }

    /// What an agent's connection to the API server does.
    pub fn api_link(&self, client: &str, link: Link) {
        self.store.faults().set_link(client, link);
    }
}

/// Wall time that moves with the simulation.
fn wall(origin: Instant) -> impl Fn() -> Timestamp + Send + Sync {
    move || {
        let begin = Timestamp::from_second(BEGIN).unwrap_or_default();
        begin.saturating_add(origin.elapsed()).unwrap_or(Timestamp::MAX)
    }
}

fn controller(store: &Store, name: &str, origin: Instant, seed: u64, ids: Arc<AtomicU64>) -> ControllerService {
    let new_id = move || {
        let number = ids.fetch_add(1, Ordering::Relaxed);
        Uuid::new_v5(&Uuid::NAMESPACE_OID, &[seed.to_be_bytes(), number.to_be_bytes()].concat())
    };
    let config =
        ControllerConfig { now: Arc::new(wall(origin)), new_id: Arc::new(new_id), ..ControllerConfig::default() };
    let controller = Controller::new(store.client_for(name), config);
    let service = controller.service();
    actix::spawn(async move { controller.run(std::future::pending()).await });
    service
}

/// What kubelet does when its machine starts; where the object is there already, nothing.
async fn register(store: &Store, name: &str) -> anyhow::Result<()> {
    if store.get(NODES, "", name).is_none() {
        let api: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(store.client_for("admin"));
        let mut node = k8s_openapi::api::core::v1::Node::default();
        node.metadata.name = Some(name.into());
        api.create(&Default::default(), &node).await?;
    }
    Ok(())
}

/// Lets simulated time pass.
pub async fn pass(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}
