//! The CSI Node service: typed request, one operation for each volume or path, wishes to the root actor, waiting for what
//! the volume's view shows.
//!
//! Lives on the multi-thread runtime and holds an address and channels only; also called in-process by simulations. It
//! never touches the kernel and keeps nothing that must survive a restart. Long calls are held until done or until shortly
//! before their deadline; the work goes on (K7).

mod expand;
mod publish;
mod stage;
pub mod usage;

use crate::csi_codes;
use crate::failure::Failure;
use crate::node::NodeActor;
use crate::node::messages::{AskDevice, AskMounted, Mounted};
use actix::Addr;
use meshstor_csi::calls::note_volume;
use meshstor_csi::deadline::hold_for;
use meshstor_csi::inflight::{Fingerprint, Inflight};
use meshstor_csi::proto;
use meshstor_csi::proto::node_server::{Node, NodeServer};
use meshstor_csi::request::{
    Capability, NodeExpandVolume, NodeGetVolumeStats, NodePublishVolume, NodeStageVolume, NodeUnpublishVolume,
    NodeUnstageVolume, Place,
};
use meshstor_kernel::id::NodeName;
use meshstor_plan::array::MD_MINORS;
use meshstor_plan::export::PORT_RANGE;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tonic::{Request, Response, Status, async_trait};
use usage::{AskUsage, Usage};

/// Copies that a volume can have: the bound of `spec.replicaCount`.
const COPIES_MAX: u32 = 16;
/// Volumes that one node uses, by what is scarcest. When every node uses as many and each volume has all the copies it can
/// have, a node exports [`COPIES_MAX`] for each one that it uses, on a service number each: 4096 of them last for 256.
/// Arrays have 1000 numbers, handed out in turn: with no more than half of them in use, one that was freed rests while
/// hundreds of others are given first. The nvme host has room for a million controllers and sets no limit here.
const VOLUMES_MAX: u32 = {
    let by_ports = (PORT_RANGE.end - PORT_RANGE.start) as u32 / COPIES_MAX;
    let by_arrays = (MD_MINORS.end - MD_MINORS.start) / 2;
    if by_ports < by_arrays { by_ports } else { by_arrays }
};
/// A file system that does not say how full it is within this time is not waited for.
const USAGE_MAX: Duration = Duration::from_secs(5);

/// The CSI Node service of one node. Clones share everything.
#[derive(Clone)]
pub struct NodeService {
    inner: Arc<Inner>,
}

struct Inner {
    node: Addr<NodeActor>,
    client: kube::Client,
    name: NodeName,
    fabric: String,
    inflight: Inflight,
    usage: AskUsage,
    /// What each running operation waits for, by its key: every caller that joins it must be able to say so.
    awaited: Mutex<BTreeMap<String, String>>,
    /// Mounts that are being asked how full they are.
    asking: Mutex<BTreeSet<PathBuf>>,
}

impl NodeService {
    /// The service of the node behind `node`.
    pub fn new(
        node: Addr<NodeActor>,
        client: kube::Client,
        name: NodeName,
        fabric: String,
        usage: AskUsage,
    ) -> NodeService {
        let inflight = Inflight::default();
        let (awaited, asking) = (Mutex::default(), Mutex::default());
        NodeService { inner: Arc::new(Inner { node, client, name, fabric, inflight, usage, awaited, asking }) }
    }

    /// As a service for [`meshstor_csi::server::Bound::serve`].
    pub fn into_server(self) -> NodeServer<Self> {
        NodeServer::new(self)
    }

    /// Runs one operation under its key, or joins it.
    async fn run<T, F>(
        &self,
        key: String,
        operation: &'static str,
        arguments: &impl Hash,
        hold: Option<Duration>,
        work: impl FnOnce(Arc<Inner>, String) -> F,
    ) -> Result<T, Status>
    where
        T: Clone + Send + Sync + 'static,
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let work = work(Arc::clone(&self.inner), key.clone());
        let (inner, key_of_work) = (Arc::clone(&self.inner), key.clone());
        let work = async move {
            let result = work.await;
            inner.awaited().remove(&key_of_work);
            result
        };
        let fingerprint = Fingerprint::of(operation, arguments);
        self.inner.inflight.run(&key, fingerprint, hold, work, || self.inner.sentence(&key)).await
    }
}

impl Inner {
    fn awaited(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        // Nothing panics while it holds the lock, and a map of sentences is never half changed.
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what an operation waits for.
    fn say(&self, key: &str, sentence: String) {
        self.awaited().insert(key.to_string(), sentence);
    }

    fn sentence(&self, key: &str) -> String {
        let sentence = self.awaited().get(key).cloned();
        let sentence = sentence.unwrap_or_else(|| "the node agent is at work".to_string());
        format!("{sentence}; the work goes on, ask again")
    }

    /// Asks the root actor.
    async fn ask<M>(&self, message: M) -> Result<M::Result, Status>
    where
        M: actix::Message + Send + 'static,
        M::Result: Send,
        NodeActor: actix::Handler<M>,
    {
        self.node.send(message).await.map_err(|_| Status::unavailable("the node agent is stopping; ask again"))
    }

    /// How full what is mounted at a path is. A file system that hangs keeps one thread, however often kubelet asks.
    async fn usage_of(self: &Arc<Self>, path: &Path) -> Option<Usage> {
        if !self.asking().insert(path.to_path_buf()) {
            return None;
        }
        let (inner, path) = (Arc::clone(self), path.to_path_buf());
        let asked = tokio::task::spawn_blocking(move || {
            let answer = (inner.usage)(&path);
            inner.asking().remove(&path);
            answer
        });
        tokio::time::timeout(USAGE_MAX, asked).await.ok()?.ok()?.ok()
    }

    fn asking(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a volume at its staging path, or of its device when it is a raw block volume.
    async fn staged(&self, name: &str, path: &Path, used: &Capability) -> Result<Option<Mounted>, Status> {
        if !used.is_block() {
            return self.mounted(path).await;
        }
        let answer: Result<Option<Mounted>, Failure> = self.ask(AskDevice { name: name.to_string() }).await?;
        answer.map_err(|failure| csi_codes::status(&failure))
    }

    async fn mounted(&self, path: &Path) -> Result<Option<Mounted>, Status> {
        let answer: Result<Option<Mounted>, Failure> = self.ask(AskMounted { path: text(path)? }).await?;
        answer.map_err(|failure| csi_codes::status(&failure))
    }
}

/// A path as the kernel layer takes it.
fn text(path: &Path) -> Result<String, Status> {
    let text = path.to_str().ok_or_else(|| Status::invalid_argument("a path of this call is not UTF-8"))?;
    Ok(text.to_string())
}

#[async_trait]
impl Node for NodeService {
    async fn node_stage_volume(
        &self,
        message: Request<proto::NodeStageVolumeRequest>,
    ) -> Result<Response<proto::NodeStageVolumeResponse>, Status> {
        let request = NodeStageVolume::try_from(message.get_ref())?;
        note_volume(&request.volume_id);
        let (key, wanted) = (format!("stage {}", request.volume_id), request.clone());
        self.run(key, "NodeStageVolume", &request, hold_for(&message), |inner, key| async move {
            stage::stage(&inner, &key, &wanted).await
        })
        .await?;
        Ok(Response::new(proto::NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        message: Request<proto::NodeUnstageVolumeRequest>,
    ) -> Result<Response<proto::NodeUnstageVolumeResponse>, Status> {
        let request = NodeUnstageVolume::try_from(message.get_ref())?;
        note_volume(&request.volume_id);
        let (key, wanted) = (format!("unstage {}", request.volume_id), request.clone());
        self.run(key, "NodeUnstageVolume", &request, hold_for(&message), |inner, key| async move {
            stage::unstage(&inner, &key, &wanted.volume_id, &wanted.staging_target_path).await
        })
        .await?;
        Ok(Response::new(proto::NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        message: Request<proto::NodePublishVolumeRequest>,
    ) -> Result<Response<proto::NodePublishVolumeResponse>, Status> {
        let request = NodePublishVolume::try_from(message.get_ref())?;
        note_volume(&request.volume_id);
        // Two pods that want the same volume alone wait for each other.
        let key = match request.capability.mode.is_exclusive() {
            true => format!("publish {}", request.volume_id),
            false => format!("publish {}", request.target_path.display()),
        };
        let wanted = request.clone();
        self.run(key, "NodePublishVolume", &request, hold_for(&message), |inner, key| async move {
            publish::publish(&inner, &key, &wanted).await
        })
        .await?;
        Ok(Response::new(proto::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        message: Request<proto::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<proto::NodeUnpublishVolumeResponse>, Status> {
        let request = NodeUnpublishVolume::try_from(message.get_ref())?;
        note_volume(&request.volume_id);
        let key = format!("unpublish {}", request.target_path.display());
        let target = text(&request.target_path)?;
        self.run(key, "NodeUnpublishVolume", &request, hold_for(&message), |inner, _| async move {
            publish::unpublish(&inner, target).await
        })
        .await?;
        Ok(Response::new(proto::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        message: Request<proto::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<proto::NodeGetVolumeStatsResponse>, Status> {
        let request = NodeGetVolumeStats::try_from(message.get_ref())?;
        note_volume(&request.volume_id);
        let Some(mounted) = self.inner.mounted(&request.volume_path).await? else {
            let path = request.volume_path.display();
            return Err(Status::not_found(format!("{path}: no volume of ours is mounted there")));
        };
        // Nobody knows how full a raw block volume is, nor a file system that is dead.
        let usage = match mounted.alive && !mounted.raw {
            true => self.inner.usage_of(&request.volume_path).await,
            false => None,
        };
        let usage = usage.map_or_else(|| publish::size_alone(mounted.size_bytes), |usage| publish::usage(&usage));
        let condition = Some(publish::condition(&mounted));
        Ok(Response::new(proto::NodeGetVolumeStatsResponse { usage, volume_condition: condition }))
    }

    async fn node_expand_volume(
        &self,
        message: Request<proto::NodeExpandVolumeRequest>,
    ) -> Result<Response<proto::NodeExpandVolumeResponse>, Status> {
        let request = NodeExpandVolume::try_from(message.get_ref())?;
        note_volume(&request.volume_id);
        let (key, wanted) = (format!("expand {}", request.volume_id), request.clone());
        let work = |inner: Arc<Inner>, key: String| async move { expand::expand(&inner, &key, &wanted).await };
        let bytes = self.run(key, "NodeExpandVolume", &request, hold_for(&message), work).await?;
        let capacity_bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        Ok(Response::new(proto::NodeExpandVolumeResponse { capacity_bytes }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<proto::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<proto::NodeGetCapabilitiesResponse>, Status> {
        use proto::node_service_capability::rpc::Type;
        use proto::node_service_capability::{Rpc, Type as Kind};
        let offered = [
            Type::StageUnstageVolume,
            Type::GetVolumeStats,
            Type::VolumeCondition,
            Type::SingleNodeMultiWriter,
            Type::ExpandVolume,
        ];
        let capability =
            |rpc: Type| proto::NodeServiceCapability { r#type: Some(Kind::Rpc(Rpc { r#type: rpc.into() })) };
        let capabilities = offered.map(capability).to_vec();
        Ok(Response::new(proto::NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<proto::NodeGetInfoRequest>,
    ) -> Result<Response<proto::NodeGetInfoResponse>, Status> {
        let place = Place { node: Some(self.inner.name.0.clone()), fabric: Some(self.inner.fabric.clone()) };
        Ok(Response::new(proto::NodeGetInfoResponse {
            node_id: self.inner.name.0.clone(),
            max_volumes_per_node: VOLUMES_MAX.into(),
            accessible_topology: Some(place.to_proto()),
        }))
    }
}
