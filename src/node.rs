//! `meshstor node`: the node agent over this machine's kernel and the real API server.

use crate::{options, telemetry};
use anyhow::{Context, Result};
use meshstor_actors::agent::{Agent, AgentConfig};
use meshstor_actors::clock::Clock;
use meshstor_actors::node::NodeConfig;
use meshstor_kernel::facts::NodeFact;
use meshstor_kernel::id::NodeName;
use meshstor_kernel::linux::leave::Installed;
use meshstor_kernel::linux::{Linux, LinuxConfig, root::Root};
use meshstor_kernel::{Kernel, SharedKernel};
use meshstor_plan::array::SyncSpeeds;
use meshstor_plan::export::PORT_RANGE;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;

/// Run the node agent.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  meshstor node --node-name worker-1 --csi-endpoint unix:///csi/csi.sock")]
pub struct Arguments {
    /// Name of the node, as Kubernetes knows it
    #[arg(long, env = "NODE_NAME")]
    node_name: String,
    /// Socket of the CSI node service
    #[arg(long, default_value = "unix:///csi/csi.sock", value_parser = options::endpoint)]
    csi_endpoint: PathBuf,
    /// Address of /metrics, /healthz and /readyz
    #[arg(long, default_value = "0.0.0.0:9808")]
    metrics_address: SocketAddr,
    /// The storage network this node is on; volumes are reachable only inside one
    #[arg(long, default_value = "default")]
    fabric: String,
    #[command(flatten)]
    resync: Resync,
    /// Leave volatile write caches of drives on: faster, and every reboot of this node costs its copies a resync
    #[arg(long)]
    keep_volatile_caches: bool,
    /// Have the host's systemd end volumes in use when the machine shuts down, before its network goes
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "true|false")]
    shutdown_unit: bool,
    /// Log as JSON
    #[arg(long)]
    log_json: bool,
}

/// How fast copies are made, for each member of an array.
#[derive(clap::Args)]
struct Resync {
    /// MiB/s that a resync gets whatever the volume is used for
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    resync_min: u32,
    /// The same for a volume that has one complete copy only
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    resync_endangered_min: u32,
    /// MiB/s that a resync never exceeds
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    resync_max: u32,
}

impl Resync {
    fn speeds(&self) -> Result<SyncSpeeds> {
        let Resync { resync_min: min, resync_endangered_min: endangered, resync_max: max } = *self;
        anyhow::ensure!(
            min <= endangered && endangered <= max,
            "--resync-min {min}, --resync-endangered-min {endangered}, --resync-max {max}: none may exceed the next one"
        );
        Ok(SyncSpeeds { min_kib: min << 10, endangered_min_kib: endangered << 10, max_kib: max << 10 })
    }
}

fn linux_config(node_name: &str) -> LinuxConfig {
    let ports = PORT_RANGE.start..=PORT_RANGE.end - 1;
    LinuxConfig { node: NodeName(node_name.into()), ports, root: Root::host() }
}

/// Volumes work without it, so a failure is told and no more: a reboot without drain may then hang.
async fn prepare_shutdown(linux: &Linux) {
    match linux.leave_at_shutdown().await {
        Ok(Installed::Yes) => tracing::info!("systemd will end volumes in use when this machine shuts down"),
        Ok(Installed::NoSystemd) => {
            tracing::info!(
                "no systemd: drain this node before it is rebooted, or unmount its volumes before its network goes"
            );
        }
        Err(error) => tracing::warn!(%error, "nothing ends volumes in use when this machine shuts down"),
    }
}

/// Runs until asked to stop. Stopping changes nothing in the kernel: I/O goes on.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    options::start_logging(arguments.log_json);
    let metrics = telemetry::recorder()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let client = options::kube_client().await?;
        let cluster = options::cluster_id(&client).await?;
        let linux = Linux::start(linux_config(&arguments.node_name)).await.context("this node's kernel")?;
        if arguments.shutdown_unit {
            prepare_shutdown(&linux).await;
        }
        let node = NodeConfig {
            node: NodeName(arguments.node_name.clone()),
            cluster,
            fabric: arguments.fabric.clone(),
            clock: Clock::default(),
            speeds: arguments.resync.speeds()?,
            keep_caches: arguments.keep_volatile_caches,
        };
        let mut config = AgentConfig::new(node, client, move || Rc::new(linux) as SharedKernel);
        config.socket = Some(arguments.csi_endpoint.clone());
        let agent = Agent::start(config).await?;
        let root = agent.node().clone();
        let ready = move || if root.connected() { Ok(()) } else { Err("the root actor has ended".to_string()) };
        let address = telemetry::serve(arguments.metrics_address, metrics, Arc::new(ready)).await?;
        tracing::info!(node = arguments.node_name, socket = %arguments.csi_endpoint.display(), metrics = %address, "agent started");
        options::stop_requested().await;
        agent.stop().await;
        Ok(ExitCode::SUCCESS)
    })
}

/// The node's own facts, looked at once.
pub fn look_once(node_name: &str) -> Result<NodeFact> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let linux = Linux::start(linux_config(node_name)).await.context("this node's kernel")?;
        Ok(linux.node().await?)
    })
}
