//! `meshstor controller`: the CSI controller service on a socket and the background loop, over the real API server.

use crate::{options, telemetry};
use anyhow::Result;
use meshstor_controller::{Controller, ControllerConfig, GuardConfig, ResyncLimits};
use meshstor_csi::identity::{Identity, Readiness};
use meshstor_csi::proto::controller_server::ControllerServer;
use meshstor_csi::server;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tonic::service::Routes;

/// Run the controller.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  meshstor controller --csi-endpoint unix:///csi/csi.sock --metrics-address 0.0.0.0:9809"
)]
pub struct Arguments {
    /// Socket of the CSI controller service
    #[arg(long, default_value = "unix:///csi/csi.sock", value_parser = options::endpoint)]
    csi_endpoint: PathBuf,
    /// Address of /metrics, /healthz and /readyz
    #[arg(long, default_value = "0.0.0.0:9809")]
    metrics_address: SocketAddr,
    /// Whole copies that one node may take part in at the same time, as source or as target
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1000))]
    resyncs_per_node: u16,
    /// Whole copies that may be made at the same time in the cluster
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    resyncs_per_cluster: u16,
    /// Seconds without a sign of life after which a node's volumes are fenced and its pods may start elsewhere
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(25..=3600))]
    fail_over_after: u16,
    /// Never do that without being asked: wait for Kubernetes' own detach, the out-of-service taint or a person
    #[arg(long)]
    no_fail_over: bool,
    /// Image of this program: puts a guard on every storage node, which `kubectl drain` has to evict and may only while every
    /// used volume has a complete copy elsewhere. Without it a drain does not ask
    #[arg(long, requires = "guard_namespace")]
    guard_image: Option<String>,
    /// `imagePullPolicy` of guards
    #[arg(long, default_value = "IfNotPresent", value_parser = ["Always", "IfNotPresent", "Never"])]
    guard_pull_policy: String,
    /// Name of an `imagePullSecret` of guards; may be given several times
    #[arg(long)]
    guard_pull_secret: Vec<String>,
    /// Namespace of guards and of the Deployment that owns them
    #[arg(long)]
    guard_namespace: Option<String>,
    /// The Deployment that owns them; they go with it
    #[arg(long, default_value = "meshstor-controller")]
    guard_owner: String,
    /// Log as JSON
    #[arg(long)]
    log_json: bool,
}

impl Arguments {
    fn guard(&self) -> Option<GuardConfig> {
        let (image, namespace) = (self.guard_image.clone()?, self.guard_namespace.clone()?);
        let (pull_policy, pull_secrets) = (self.guard_pull_policy.clone(), self.guard_pull_secret.clone());
        Some(GuardConfig { namespace, image, pull_policy, pull_secrets, owner: self.guard_owner.clone() })
    }
}

/// Runs until asked to stop.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    options::start_logging(arguments.log_json);
    let metrics = telemetry::recorder()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let client = options::kube_client().await?;
        let resyncs =
            ResyncLimits { node: arguments.resyncs_per_node.into(), cluster: arguments.resyncs_per_cluster.into() };
        let fail_over = (!arguments.no_fail_over).then(|| Duration::from_secs(arguments.fail_over_after.into()));
        let config = ControllerConfig { resyncs, fail_over, guard: arguments.guard(), ..ControllerConfig::default() };
        let controller = Controller::new(client, config);
        let address = telemetry::serve(arguments.metrics_address, metrics, Arc::new(|| Ok(()))).await?;
        let bound = server::bind(&arguments.csi_endpoint).await?;
        tracing::info!(socket = %bound.path().display(), metrics = %address, "controller started");
        let identity = Identity::new(|| Readiness::Ready).into_server();
        let routes = Routes::new(identity).add_service(ControllerServer::new(controller.service()));
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let wait = |mut stopped: tokio::sync::watch::Receiver<bool>| async move {
            let _sender_gone = stopped.wait_for(|s| *s).await;
        };
        let looping = controller.run(wait(stopped.clone()));
        let serving = bound.serve(routes, wait(stopped));
        let stopping = async {
            options::stop_requested().await;
            stop.send_replace(true);
        };
        let ((), served, ()) = tokio::join!(looping, serving, stopping);
        served?;
        Ok(ExitCode::SUCCESS)
    })
}
