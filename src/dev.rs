//! `meshstor dev`: controller, node agents and CSI on simulated kernels and an in-memory API server, in one process.
//!
//! The same actors, controller and CSI code as in a cluster; only the kernel and the server behind the client differ.
//! No root, no cluster, up in a second. Data are numbers in memory: volumes can be mounted, not used.

use crate::{options, telemetry};
use actix::Addr;
use anyhow::{Context, Result};
use meshstor_actors::clock::Clock;
use meshstor_actors::csi_node::NodeService;
use meshstor_actors::csi_node::usage::{AskUsage, Usage};
use meshstor_actors::node::{NodeActor, NodeConfig};
use meshstor_controller::{Controller, ControllerConfig};
use meshstor_csi::identity::{Identity, Readiness};
use meshstor_csi::proto::controller_server::ControllerServer;
use meshstor_csi::server;
use meshstor_kernel::id::{ClusterId, NodeName};
use meshstor_kernel::sim::{Config, SimDrive, World};
use meshstor_memstore::{Schema, Store};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tonic::service::Routes;

/// Run a whole simulated cluster in this process.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  meshstor dev\n  meshstor dev --nodes 5 --directory /tmp/mesh")]
pub struct Arguments {
    /// Simulated nodes: node-1, node-2, …
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64))]
    nodes: u32,
    /// Size of each node's drives (one with 4096-byte sectors, one with 512) in GiB
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=65536))]
    drive_gib: u64,
    /// Where the sockets are made [default: meshstor-dev in the temporary directory]
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Address of /metrics, /healthz and /readyz
    #[arg(long, default_value = "127.0.0.1:0")]
    metrics_address: SocketAddr,
    /// Seed of everything random in the simulation
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs until asked to stop.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    options::start_logging(false);
    let metrics = telemetry::recorder()?;
    let directory = arguments.directory.clone().unwrap_or_else(|| std::env::temp_dir().join("meshstor-dev"));
    std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let schemas = meshstor_api::crds().iter().filter_map(Schema::from_crd).collect::<Vec<_>>();
        let store = Store::builder().schemas(schemas).seed(arguments.seed).build();
        let cluster = options::cluster_id(&store.client_for("dev")).await?;
        let names: Vec<String> = (1..=arguments.nodes).map(|n| format!("node-{n}")).collect();
        for name in &names {
            make_node(&store, name).await?;
        }
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let mut servers = tokio::task::JoinSet::new();
        let agents = start_nodes(arguments, &store, cluster, &names).await?;
        for (name, agent) in names.iter().zip(agents) {
            let service = NodeService::new(
                agent,
                store.client_for(name),
                NodeName(name.clone()),
                "default".into(),
                simulated_usage(),
            );
            let routes =
                Routes::new(Identity::new(|| Readiness::Ready).into_server()).add_service(service.into_server());
            serve(&mut servers, &directory.join(format!("{name}.sock")), routes, stopped.clone())?;
        }
        let controller = Controller::new(store.client_for("controller"), ControllerConfig::default());
        let routes = Routes::new(Identity::new(|| Readiness::Ready).into_server())
            .add_service(ControllerServer::new(controller.service()));
        serve(&mut servers, &directory.join("controller.sock"), routes, stopped.clone())?;
        let address = telemetry::serve(arguments.metrics_address, metrics, Arc::new(|| Ok(()))).await?;
        settled(&store, names.len()).await?;
        println!("metrics     http://{address}/metrics");
        println!("dev: {} simulated nodes up; Ctrl-C ends them", names.len());
        let mut ends = stopped;
        let looping = tokio::spawn(async move {
            controller
                .run(async move {
                    let _sender_gone = ends.wait_for(|s| *s).await;
                })
                .await;
        });
        options::stop_requested().await;
        stop.send_replace(true);
        while servers.join_next().await.is_some() {}
        looping.await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Waits until every node has said that it is ready and what drives it has: volumes can be made from then on.
async fn settled(store: &Store, nodes: usize) -> Result<()> {
    let reported = |plural: &str, field: &str| {
        store.list(plural).iter().filter(|object| object.pointer(field).is_some_and(|value| !value.is_null())).count()
    };
    let wait = async {
        while reported("meshstornodes", "/status/bootID") < nodes
            || reported("meshstornodedevices", "/status/sizeBytes") < nodes * DRIVES
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.context("the simulated nodes did not report within 30 s")
}

/// Serves CSI on one socket and prints its address.
fn serve(
    servers: &mut tokio::task::JoinSet<()>,
    socket: &Path,
    routes: Routes,
    mut stopped: tokio::sync::watch::Receiver<bool>,
) -> Result<()> {
    let path = socket.to_path_buf();
    let name = socket.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    println!("{name:<11} unix://{}", path.display());
    servers.spawn(async move {
        let served = async {
            let bound = server::bind(&path).await?;
            let end = async move {
                let _sender_gone = stopped.wait_for(|s| *s).await;
            };
            bound.serve(routes, end).await
        };
        if let Err(error) = served.await {
            tracing::error!(%error, socket = %path.display(), "the socket is not served");
        }
    });
    Ok(())
}

/// The simulation and all node agents live on one thread: the world they share cannot be sent to another.
async fn start_nodes(
    arguments: &Arguments,
    store: &Store,
    cluster: ClusterId,
    names: &[String],
) -> Result<Vec<Addr<NodeActor>>> {
    let (tell, told) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    let clients: Vec<(String, kube::Client)> = names.iter().map(|n| (n.clone(), store.client_for(n))).collect();
    let (seed, bytes) = (arguments.seed, arguments.drive_gib << 30);
    std::thread::Builder::new().name("simulation".into()).spawn(move || {
        actix::System::new().block_on(async move {
            // Blocks as large as a partition's alignment: sizes stay small in memory.
            let world = World::new(seed, Config { materialize_mounts: true, ..Config::default() });
            let agents: Vec<Addr<NodeActor>> = clients
                .into_iter()
                .map(|(name, client)| {
                    world.add_node(&name, &drives(&name, bytes));
                    let node = NodeName(name.clone());
                    let config = NodeConfig {
                        node,
                        cluster,
                        fabric: "default".into(),
                        clock: Clock::default(),
                        speeds: Default::default(),
                        keep_caches: false,
                    };
                    NodeActor::launch(config, world.kernel(&name), client, runtime.clone())
                })
                .collect();
            let _caller_gone = tell.send(agents);
            world.run().await;
        });
    })?;
    let agents = tokio::time::timeout(Duration::from_secs(30), told).await;
    agents.context("the simulation did not start within 30 s")?.context("the simulation ended")
}

/// Drives of each node.
const DRIVES: usize = 2;

fn drives(node: &str, bytes: u64) -> [SimDrive; DRIVES] {
    let large = SimDrive::new(&format!("{node}-a"), bytes);
    let small = SimDrive { sector: 512, ..SimDrive::new(&format!("{node}-b"), bytes) };
    [large, small]
}

async fn make_node(store: &Store, name: &str) -> Result<()> {
    let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(store.client_for("dev"));
    let mut node = k8s_openapi::api::core::v1::Node::default();
    node.metadata.name = Some(name.to_string());
    nodes.create(&Default::default(), &node).await.with_context(|| format!("make node {name}"))?;
    Ok(())
}

/// Simulated mounts are directories of this machine without any content.
fn simulated_usage() -> AskUsage {
    const SIZE: u64 = 1 << 30;
    Arc::new(|_| Ok(Usage { bytes: (SIZE, 0, SIZE), inodes: (1 << 20, 1, (1 << 20) - 1) }))
}
