//! CSI calls as a sidecar makes them, each timed.
//!
//! Used by the script for the controller's socket and for each node's. Blocking: one call after the other.

use anyhow::{Context, Result};
use meshstor_csi::client::connect_lazy;
use meshstor_csi::proto::controller_client::ControllerClient;
use meshstor_csi::proto::node_client::NodeClient;
use meshstor_csi::proto::*;
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// The kubelet's directory.
pub const KUBELET: &str = "/var/lib/kubelet";
/// As the sidecars' timeouts are pinned in the chart.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A client of one socket.
pub struct Csi {
    runtime: Runtime,
    channel: Channel,
    /// Below it volumes are staged and published.
    base: String,
}

/// As what a volume is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// A file system.
    #[default]
    Xfs,
    /// A file system.
    Ext4,
    /// The device itself.
    Block,
}

/// What CreateVolume is asked for.
pub struct Wanted<'a> {
    /// As what it is used.
    pub access: Access,
    /// Name.
    pub name: &'a str,
    /// Bytes.
    pub bytes: i64,
    /// StorageClass parameters.
    pub parameters: &'a [(&'a str, &'a str)],
    /// Nodes in order of preference.
    pub nodes: &'a [&'a str],
}

fn capability(access: Access) -> VolumeCapability {
    use volume_capability::{AccessType, BlockVolume, MountVolume};
    let mount = |fs_type: &str| AccessType::Mount(MountVolume { fs_type: fs_type.into(), ..Default::default() });
    let access_type = match access {
        Access::Xfs => mount("xfs"),
        Access::Ext4 => mount("ext4"),
        Access::Block => AccessType::Block(BlockVolume {}),
    };
    let mode = volume_capability::access_mode::Mode::SingleNodeWriter.into();
    VolumeCapability { access_mode: Some(volume_capability::AccessMode { mode }), access_type: Some(access_type) }
}

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PATIENCE);
    request
}

impl Csi {
    /// A client of the socket at `path`; it connects with the first call.
    pub fn at(path: &Path) -> Result<Csi> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let channel = runtime.block_on(async { connect_lazy(path) }).context("connect to a CSI socket")?;
        Ok(Csi { runtime, channel, base: KUBELET.into() })
    }

    /// The same, with mounts in another place.
    pub fn mounting_below(self, dir: &Path) -> Csi {
        Csi { base: dir.display().to_string(), ..self }
    }

    /// Runs one call and says how long it took.
    fn call<T>(&self, future: impl Future<Output = Result<T, Status>>) -> (Result<T, Status>, Duration) {
        let begin = Instant::now();
        let result = self.runtime.block_on(future);
        (result, begin.elapsed())
    }

    /// CreateVolume once; the raw answer.
    pub fn try_create(&self, wanted: &Wanted<'_>) -> (Result<Volume, Status>, Duration) {
        let place =
            |node: &&str| Topology { segments: [("csi.meshstor.io/node".to_string(), node.to_string())].into() };
        let preferred: Vec<Topology> = wanted.nodes.iter().map(place).collect();
        let request = CreateVolumeRequest {
            name: wanted.name.into(),
            capacity_range: Some(CapacityRange { required_bytes: wanted.bytes, limit_bytes: 0 }),
            volume_capabilities: vec![capability(wanted.access)],
            parameters: wanted.parameters.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            accessibility_requirements: (!preferred.is_empty())
                .then(|| TopologyRequirement { requisite: vec![], preferred }),
            ..Default::default()
        };
        let mut client = ControllerClient::new(self.channel.clone());
        self.call(async move {
            let answer = client.create_volume(timed(request)).await?.into_inner();
            answer.volume.ok_or_else(|| Status::internal("an answer without a volume"))
        })
    }

    /// CreateVolume, insisting as a sidecar does while the answer says that the work goes on.
    pub fn create(&self, wanted: &Wanted<'_>) -> Result<(Volume, Duration)> {
        let begin = Instant::now();
        loop {
            match self.try_create(wanted).0 {
                Ok(volume) => return Ok((volume, begin.elapsed())),
                Err(status) if retriable(&status) && begin.elapsed() < 2 * PATIENCE => {}
                Err(status) => anyhow::bail!("CreateVolume {}: {status}", wanted.name),
            }
        }
    }

    /// ControllerPublishVolume.
    pub fn publish(&self, id: &str, node: &str) -> (Result<HashMap<String, String>, Status>, Duration) {
        self.publish_as(id, node, Access::Xfs, PATIENCE)
    }

    /// ControllerPublishVolume by a caller of another patience.
    pub fn publish_within(
        &self,
        id: &str,
        node: &str,
        patience: Duration,
    ) -> (Result<HashMap<String, String>, Status>, Duration) {
        self.publish_as(id, node, Access::Xfs, patience)
    }

    /// ControllerPublishVolume of a volume of any kind.
    pub fn publish_as(
        &self,
        id: &str,
        node: &str,
        access: Access,
        patience: Duration,
    ) -> (Result<HashMap<String, String>, Status>, Duration) {
        let request = ControllerPublishVolumeRequest {
            volume_id: id.into(),
            node_id: node.into(),
            volume_capability: Some(capability(access)),
            ..Default::default()
        };
        let mut client = ControllerClient::new(self.channel.clone());
        let mut request = timed(request);
        request.set_timeout(patience);
        self.call(async move { Ok(client.controller_publish_volume(request).await?.into_inner().publish_context) })
    }

    /// ControllerUnpublishVolume.
    pub fn unpublish(&self, id: &str, node: &str) -> (Result<(), Status>, Duration) {
        let request =
            ControllerUnpublishVolumeRequest { volume_id: id.into(), node_id: node.into(), ..Default::default() };
        let mut client = ControllerClient::new(self.channel.clone());
        self.call(async move { client.controller_unpublish_volume(timed(request)).await.map(drop) })
    }

    /// DeleteVolume.
    pub fn delete(&self, id: &str) -> (Result<(), Status>, Duration) {
        let request = DeleteVolumeRequest { volume_id: id.into(), ..Default::default() };
        let mut client = ControllerClient::new(self.channel.clone());
        self.call(async move { client.delete_volume(timed(request)).await.map(drop) })
    }

    /// ControllerExpandVolume.
    pub fn expand(
        &self,
        id: &str,
        access: Access,
        bytes: i64,
    ) -> (Result<ControllerExpandVolumeResponse, Status>, Duration) {
        let request = ControllerExpandVolumeRequest {
            volume_id: id.into(),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            volume_capability: Some(capability(access)),
            ..Default::default()
        };
        let mut client = ControllerClient::new(self.channel.clone());
        self.call(async move { Ok(client.controller_expand_volume(timed(request)).await?.into_inner()) })
    }

    /// NodeExpandVolume where the volume is published. Answers the bytes that it has.
    pub fn node_expand(&self, id: &str, access: Access, bytes: i64) -> (Result<i64, Status>, Duration) {
        let request = NodeExpandVolumeRequest {
            volume_id: id.into(),
            volume_path: target(&self.base, id),
            staging_target_path: staging(&self.base, id),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            volume_capability: Some(capability(access)),
            ..Default::default()
        };
        let mut client = NodeClient::new(self.channel.clone());
        self.call(async move { Ok(client.node_expand_volume(timed(request)).await?.into_inner().capacity_bytes) })
    }

    /// NodeStageVolume.
    pub fn stage(&self, id: &str, context: &HashMap<String, String>) -> (Result<(), Status>, Duration) {
        self.stage_as(id, Access::Xfs, context)
    }

    /// NodeStageVolume of a volume of any kind.
    pub fn stage_as(
        &self,
        id: &str,
        access: Access,
        context: &HashMap<String, String>,
    ) -> (Result<(), Status>, Duration) {
        let request = NodeStageVolumeRequest {
            volume_id: id.into(),
            staging_target_path: staging(&self.base, id),
            publish_context: context.clone(),
            volume_capability: Some(capability(access)),
            ..Default::default()
        };
        let mut client = NodeClient::new(self.channel.clone());
        self.call(async move { client.node_stage_volume(timed(request)).await.map(drop) })
    }

    /// NodePublishVolume.
    pub fn node_publish(&self, id: &str, context: &HashMap<String, String>) -> (Result<(), Status>, Duration) {
        self.node_publish_as(id, Access::Xfs, context)
    }

    /// NodePublishVolume of a volume of any kind.
    pub fn node_publish_as(
        &self,
        id: &str,
        access: Access,
        context: &HashMap<String, String>,
    ) -> (Result<(), Status>, Duration) {
        let request = NodePublishVolumeRequest {
            volume_id: id.into(),
            staging_target_path: staging(&self.base, id),
            target_path: target(&self.base, id),
            publish_context: context.clone(),
            volume_capability: Some(capability(access)),
            ..Default::default()
        };
        let mut client = NodeClient::new(self.channel.clone());
        self.call(async move { client.node_publish_volume(timed(request)).await.map(drop) })
    }

    /// NodeUnpublishVolume.
    pub fn node_unpublish(&self, id: &str) -> (Result<(), Status>, Duration) {
        let request = NodeUnpublishVolumeRequest { volume_id: id.into(), target_path: target(&self.base, id) };
        let mut client = NodeClient::new(self.channel.clone());
        self.call(async move { client.node_unpublish_volume(timed(request)).await.map(drop) })
    }

    /// NodeUnstageVolume.
    pub fn unstage(&self, id: &str) -> (Result<(), Status>, Duration) {
        let request = NodeUnstageVolumeRequest { volume_id: id.into(), staging_target_path: staging(&self.base, id) };
        let mut client = NodeClient::new(self.channel.clone());
        self.call(async move { client.node_unstage_volume(timed(request)).await.map(drop) })
    }
}

/// Codes that a sidecar answers by calling again: the work goes on.
pub fn retriable(status: &Status) -> bool {
    use tonic::Code;
    matches!(status.code(), Code::DeadlineExceeded | Code::Aborted | Code::Unavailable)
}

fn staging(base: &str, id: &str) -> String {
    format!("{base}/plugins/demo/{id}")
}

/// Where a volume is published.
pub fn target(base: &str, id: &str) -> String {
    format!("{base}/pods/demo/{id}/mount")
}
