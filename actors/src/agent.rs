//! One node agent: a thread with an actix system for the actors, and the CSI socket on the runtime of the caller.
//!
//! Started by `meshstor node` once, by `meshstor dev` once for each simulated node. Simulations use [`NodeActor::launch`]
//! and [`NodeService`] directly inside their own system. Stopping an agent changes nothing in the kernel: I/O goes on (P5).

use crate::csi_node::NodeService;
use crate::csi_node::usage::{AskUsage, statvfs};
use crate::node::messages::Shutdown;
use crate::node::{NodeActor, NodeConfig};
use actix::Addr;
use meshstor_csi::identity::{Identity, Readiness};
use meshstor_csi::server::{self, Bound, ServeError};
use meshstor_kernel::SharedKernel;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tonic::service::Routes;

/// How long running rounds may take to end before an agent stops without them: what they do is idempotent.
const STOP_MAX: Duration = Duration::from_secs(20);

/// Everything an agent needs.
pub struct AgentConfig {
    /// Who it is.
    pub node: NodeConfig,
    /// Makes the kernel; called on the actor thread, where the kernel lives.
    pub kernel: Box<dyn FnOnce() -> SharedKernel + Send>,
    /// The API server.
    pub client: kube::Client,
    /// Where to serve CSI; `None`: nowhere.
    pub socket: Option<PathBuf>,
    /// How full mounts are; the default asks this machine's kernel.
    pub usage: AskUsage,
}

impl AgentConfig {
    /// A configuration that serves no socket and asks this machine's kernel how full mounts are.
    pub fn new(
        node: NodeConfig,
        client: kube::Client,
        kernel: impl FnOnce() -> SharedKernel + Send + 'static,
    ) -> AgentConfig {
        AgentConfig { node, kernel: Box::new(kernel), client, socket: None, usage: statvfs() }
    }
}

/// Why an agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The thread could not be made.
    #[error("the actor thread could not be started")]
    Thread(#[from] std::io::Error),
    /// It ended before it began.
    #[error("the actor thread ended at once; the log says why")]
    Ended,
    /// The CSI socket could not be opened.
    #[error(transparent)]
    Socket(#[from] ServeError),
}

/// A running agent. Dropping it stops nothing; [`Agent::stop`] does.
pub struct Agent {
    node: Addr<NodeActor>,
    service: NodeService,
    thread: JoinHandle<()>,
    end: watch::Sender<bool>,
    served: Option<tokio::task::JoinHandle<()>>,
}

impl Agent {
    /// Starts an agent. Watches, requests and the CSI socket run on the caller's runtime, which must outlive the agent.
    pub async fn start(config: AgentConfig) -> Result<Agent, StartError> {
        let AgentConfig { node: identity, kernel, client, socket, usage } = config;
        let bound = match &socket {
            Some(path) => Some(server::bind(path).await?),
            None => None,
        };
        let runtime = tokio::runtime::Handle::current();
        let (tell, told) = oneshot::channel();
        let (name, fabric) = (identity.node.clone(), identity.fabric.clone());
        let client_of_actors = client.clone();
        let (end, ends) = watch::channel(false);
        let thread = std::thread::Builder::new().name(format!("actors-{name}")).spawn(move || {
            let system = actix::System::new();
            system.block_on(async move {
                let node = NodeActor::launch(identity, kernel(), client_of_actors, runtime);
                let _ = tell.send(node);
                let mut ends = ends;
                // A closed channel is an agent that was dropped: it goes on for as long as the process.
                if ends.wait_for(|end| *end).await.is_err() {
                    std::future::pending::<()>().await;
                }
            });
        })?;
        let node = told.await.map_err(|_| StartError::Ended)?;
        let service = NodeService::new(node.clone(), client, name, fabric, usage);
        let served = bound.map(|bound| tokio::spawn(serve(bound, service.clone(), end.subscribe())));
        Ok(Agent { node, service, thread, end, served })
    }

    /// The root actor.
    pub fn node(&self) -> &Addr<NodeActor> {
        &self.node
    }

    /// The CSI Node service, to be called in-process.
    pub fn service(&self) -> NodeService {
        self.service.clone()
    }

    /// Ends the agent: no new calls, running rounds finish, then the thread ends. The kernel keeps all it has.
    pub async fn stop(self) {
        let stopped = self.node.send(Shutdown);
        if tokio::time::timeout(STOP_MAX, stopped).await.is_err() {
            tracing::warn!("rounds still run after {} s; the agent stops without them", STOP_MAX.as_secs());
        }
        self.end.send_replace(true);
        if let Some(served) = self.served {
            let _ = served.await;
        }
        let joined = tokio::task::spawn_blocking(move || self.thread.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("the actor thread ended with a panic");
        }
    }
}

/// Serves CSI until the agent ends.
async fn serve(bound: Bound, service: NodeService, mut ends: watch::Receiver<bool>) {
    let identity = Identity::new(|| Readiness::Ready).into_server();
    let routes = Routes::new(identity).add_service(service.into_server());
    let end = async move {
        let _ = ends.wait_for(|end| *end).await;
    };
    if let Err(error) = bound.serve(routes, end).await {
        tracing::error!(%error, "the CSI socket is no longer served");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use meshstor_api::crds;
    use meshstor_csi::client;
    use meshstor_csi::proto::node_client::NodeClient;
    use meshstor_csi::proto::{NodeGetCapabilitiesRequest, NodeGetInfoRequest};
    use meshstor_kernel::id::{ClusterId, NodeName};
    use meshstor_kernel::sim::{Config, World};
    use meshstor_memstore::{Schema, Store};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_agent_serves_its_socket_and_ends_in_good_order() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("csi.sock");
        let store = Store::builder().schemas(crds().iter().filter_map(Schema::from_crd)).build();
        let node = NodeConfig {
            node: NodeName("a".into()),
            cluster: ClusterId(uuid::Uuid::nil()),
            fabric: "blue".into(),
            clock: Clock::default(),
            speeds: Default::default(),
            keep_caches: false,
        };
        let mut config = AgentConfig::new(node, store.client_for("a"), || {
            let world = World::new(1, Config::default());
            world.add_node("a", &[]);
            world.kernel("a")
        });
        config.socket = Some(socket.clone());
        let agent = Agent::start(config).await.unwrap();

        let channel = client::connect(&socket, Duration::from_secs(5)).await.unwrap();
        let mut csi = NodeClient::new(channel);
        let info = csi.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
        assert_eq!((info.node_id.as_str(), info.max_volumes_per_node), ("a", 256));
        assert_eq!(info.accessible_topology.unwrap().segments["csi.meshstor.io/fabric"], "blue");
        let offered = csi.node_get_capabilities(NodeGetCapabilitiesRequest {}).await.unwrap().into_inner();
        assert_eq!(offered.capabilities.len(), 5);
        let begun = std::time::Instant::now();
        while store.get("meshstornodes", "", "a").is_none_or(|node| node["status"]["bootID"].is_null()) {
            assert!(begun.elapsed() < Duration::from_secs(10));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let root = agent.node().clone();
        agent.stop().await;
        assert!(!root.connected() && !socket.exists());
    }
}
