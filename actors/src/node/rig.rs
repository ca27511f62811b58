//! A cluster for tests: simulated kernels, an in-memory API store, one root actor for each node in one actix system on a
//! paused clock, and the few things that the controller would do.

use super::{NodeActor, NodeConfig};
use crate::clock::Clock;
use crate::csi_node::NodeService;
use crate::csi_node::usage::Usage;
use crate::messages::Kill;
use actix::Addr;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use meshstor_api::convert::unless_default;
use meshstor_api::replica::{ExportSpec, ReplicaRole, ReplicaSpec, Tombstone};
use meshstor_api::volume::{Attachment, LocalCopy, VolumeSpec};
use meshstor_api::{FINALIZER, MeshStorNode, MeshStorReplica, MeshStorVolume, crds, patch};
use meshstor_csi::proto::node_server::Node;
use meshstor_csi::proto::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
use meshstor_csi::proto::{self, VolumeCapability};
use meshstor_kernel::id::{ClusterId, DriveId, NodeName, ReplicaId, ReplicaKey, VolumeId};
use meshstor_kernel::sim::{Config, SimDrive, World};
use meshstor_memstore::{Schema, Store};
use meshstor_plan::array::SyncSpeeds;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Request, Status};

pub const GIB: u64 = 1 << 30;
pub const VOLUME: &str = "pvc-1";
pub const STAGING: &str = "/var/lib/kubelet/plugins/kubernetes.io/csi/d/1/globalmount";

/// A whole cluster.
pub struct Rig {
    pub world: World,
    pub store: Store,
    pub client: kube::Client,
    pub cluster: ClusterId,
    pub volume: VolumeId,
    pub drives: BTreeMap<String, DriveId>,
    pub agents: BTreeMap<String, Agent>,
    /// `spec.filesystem` of the volume.
    pub filesystem: &'static str,
    /// What kubelet says of its use.
    pub capability: VolumeCapability,
}

/// One node's agent.
pub struct Agent {
    pub node: Addr<NodeActor>,
    pub service: NodeService,
}

impl Rig {
    /// Nodes with one drive each, and their agents.
    pub async fn new(nodes: &[&str]) -> Rig {
        let world = World::new(7, Config::default());
        let store = Store::builder().schemas(crds().iter().filter_map(Schema::from_crd)).build();
        let uid = store.get("namespaces", "", "kube-system").unwrap()["metadata"]["uid"].as_str().unwrap().to_string();
        let mut rig = Rig {
            client: store.client_for("controller"),
            cluster: uid.parse().unwrap(),
            volume: VolumeId(uuid::Uuid::from_u128(0x51)),
            drives: BTreeMap::new(),
            agents: BTreeMap::new(),
            filesystem: "xfs",
            capability: capability(),
            world,
            store,
        };
        for node in nodes {
            let drives = rig.world.add_node(node, &[SimDrive::new(&format!("serial-{node}"), 64 * GIB)]);
            rig.drives.insert(node.to_string(), drives[0].clone());
            rig.start_agent(node);
        }
        let world = rig.world.clone();
        actix::spawn(async move { world.run().await });
        rig
    }

    pub fn start_agent(&mut self, node: &str) {
        let config = NodeConfig {
            node: NodeName(node.into()),
            cluster: self.cluster,
            fabric: "default".into(),
            clock: Clock::default(),
            speeds: SyncSpeeds::default(),
            keep_caches: false,
        };
        let client = self.store.client_for(node);
        let runtime = tokio::runtime::Handle::current();
        let addr = NodeActor::launch(config, self.world.kernel(node), client.clone(), runtime);
        let usage = Arc::new(|_: &std::path::Path| Ok(Usage { bytes: (100, 40, 60), inodes: (10, 4, 6) }));
        let service = NodeService::new(addr.clone(), client, NodeName(node.into()), "default".into(), usage);
        self.agents.insert(node.to_string(), Agent { node: addr, service });
    }

    pub async fn kill_agent(&mut self, node: &str) {
        let agent = self.agents.remove(node).unwrap();
        self.world.kill_agent(node);
        agent.node.send(Kill).await.unwrap();
        assert!(!agent.node.connected());
    }

    pub fn key(&self, replica: u32) -> ReplicaKey {
        ReplicaKey { volume: self.volume, replica: ReplicaId(replica) }
    }

    pub fn volumes(&self) -> Api<MeshStorVolume> {
        Api::all(self.client.clone())
    }

    pub fn replicas(&self) -> Api<MeshStorReplica> {
        Api::all(self.client.clone())
    }

    pub async fn replica(&self, replica: u32) -> MeshStorReplica {
        self.replicas().get(&format!("{VOLUME}-r{replica}")).await.unwrap()
    }

    pub async fn stored(&self) -> MeshStorVolume {
        self.volumes().get(VOLUME).await.unwrap()
    }

    /// What CreateVolume does: objects, then the record once every partition is ready.
    pub async fn create_volume(&self, nodes: &[&str]) {
        let spec = VolumeSpec {
            volume_id: self.volume.to_string(),
            cluster_id: self.cluster.to_string(),
            size_bytes: GIB,
            replica_count: nodes.len() as u32,
            stripe_width: 1,
            sector_size: 4096,
            filesystem: self.filesystem.into(),
            member_missing_timeout_seconds: 900,
            local_copy: LocalCopy::Preferred,
            relocation_delay_seconds: None,
            topology_spread: Default::default(),
            claim: None,
            dismissed: vec![],
            next_replica: 2,
            attachment: Attachment::default(),
            deletion_requested: None,
        };
        let mut volume = MeshStorVolume::new(VOLUME, spec);
        volume.metadata.finalizers = Some(vec![FINALIZER.into()]);
        let volume = self.volumes().create(&PostParams::default(), &volume).await.unwrap();
        for (number, node) in nodes.iter().enumerate() {
            self.create_replica(number as u32, node).await;
        }
        for number in 0..nodes.len() as u32 {
            self.until("partition ready", 30.0, async || {
                let status = self.replica(number).await.status.unwrap_or_default();
                status.partition.is_some_and(|partition| partition.state == "Ready")
            })
            .await;
        }
        let set = (0..nodes.len() as u32).map(ReplicaId).collect();
        let patch = patch::first_record(&volume, &set).unwrap();
        self.volumes().patch_status(VOLUME, &PatchParams::default(), &Patch::<()>::Json(patch)).await.unwrap();
    }

    pub async fn create_replica(&self, number: u32, node: &str) {
        let spec = ReplicaSpec {
            volume: VOLUME.into(),
            volume_id: self.volume.to_string(),
            cluster_id: self.cluster.to_string(),
            replica: format!("r{number}"),
            node: node.into(),
            drive: self.drives[node].0.clone(),
            partition_bytes: GIB + (8 << 20),
            filesystem: unless_default(self.filesystem),
            role: ReplicaRole::Member,
            move_to: None,
            retired_by: None,
            recovery: None,
            export: ExportSpec::default(),
            tombstone: None,
        };
        let mut replica = MeshStorReplica::new(&format!("{VOLUME}-r{number}"), spec);
        replica.metadata.finalizers = Some(vec![FINALIZER.into()]);
        self.replicas().create(&PostParams::default(), &replica).await.unwrap();
    }

    /// What ControllerPublish and ControllerUnpublish do: a new epoch, copied to the replicas.
    pub async fn attach(&self, consumer: Option<&str>) -> u64 {
        let stored = self.stored().await;
        let epoch = stored.spec.attachment.epoch + 1;
        let consumer_boot = match consumer {
            Some(node) => {
                let nodes: Api<MeshStorNode> = Api::all(self.client.clone());
                Some(nodes.get(node).await.unwrap().status.unwrap().boot_id)
            }
            None => None,
        };
        let consumer = consumer.map(str::to_string);
        let attachment = Attachment { epoch, consumer: consumer.clone(), consumer_boot, since: None };
        let patch = patch::attachment(&stored, &attachment).unwrap();
        self.volumes().patch(VOLUME, &PatchParams::default(), &Patch::<()>::Json(patch)).await.unwrap();
        for replica in self.replicas().list(&Default::default()).await.unwrap() {
            let export = ExportSpec { epoch, generation: 0, consumer: consumer.clone() };
            let patch = patch::export(&replica, &export).unwrap();
            let name = replica.metadata.name.clone().unwrap();
            self.replicas().patch(&name, &PatchParams::default(), &Patch::<()>::Json(patch)).await.unwrap();
        }
        epoch
    }

    /// What DeleteVolume does to one replica.
    pub async fn bury(&self, number: u32) {
        let replica = self.replica(number).await;
        let tombstone = Tombstone {
            partition_uuid: self.key(number).partition_uuid().to_string(),
            cluster_id: self.cluster.to_string(),
            volume_id: self.volume.to_string(),
            reason: "VolumeDeleted".into(),
        };
        let name = replica.metadata.name.clone().unwrap();
        let patch = patch::tombstone(&replica, &tombstone).unwrap();
        self.replicas().patch(&name, &PatchParams::default(), &Patch::<()>::Json(patch)).await.unwrap();
        self.replicas().delete(&name, &DeleteParams::default()).await.unwrap();
    }

    /// An object removed by hand, its finalizer stripped.
    pub async fn tear_out(&self, number: u32) {
        let name = format!("{VOLUME}-r{number}");
        let strip = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        self.replicas().patch(&name, &PatchParams::default(), &strip).await.unwrap();
        self.replicas().delete(&name, &DeleteParams::default()).await.unwrap();
    }

    pub async fn stage(&self, node: &str, epoch: u64, seconds: u64) -> Result<(), Status> {
        let request = proto::NodeStageVolumeRequest {
            volume_id: VOLUME.into(),
            staging_target_path: STAGING.into(),
            volume_capability: Some(self.capability.clone()),
            publish_context: [("attachEpoch".to_string(), epoch.to_string())].into(),
            ..Default::default()
        };
        self.agents[node].service.node_stage_volume(held(request, seconds)).await.map(|_| ())
    }

    pub async fn unstage(&self, node: &str, seconds: u64) -> Result<(), Status> {
        let request = proto::NodeUnstageVolumeRequest { volume_id: VOLUME.into(), staging_target_path: STAGING.into() };
        self.agents[node].service.node_unstage_volume(held(request, seconds)).await.map(|_| ())
    }

    fn publication(&self, epoch: u64, target: &str) -> proto::NodePublishVolumeRequest {
        proto::NodePublishVolumeRequest {
            volume_id: VOLUME.into(),
            staging_target_path: STAGING.into(),
            target_path: target.into(),
            volume_capability: Some(self.capability.clone()),
            publish_context: [("attachEpoch".to_string(), epoch.to_string())].into(),
            ..Default::default()
        }
    }

    pub async fn publish(&self, node: &str, epoch: u64, target: &str) -> Result<(), Status> {
        let request = self.publication(epoch, target);
        self.agents[node].service.node_publish_volume(held(request, 60)).await.map(|_| ())
    }

    /// A publish that says that its pod only reads.
    pub async fn publish_to_reader(&self, node: &str, epoch: u64, target: &str) -> Result<(), Status> {
        let request = proto::NodePublishVolumeRequest { readonly: true, ..self.publication(epoch, target) };
        self.agents[node].service.node_publish_volume(held(request, 60)).await.map(|_| ())
    }

    pub async fn stats(&self, node: &str, path: &str) -> proto::NodeGetVolumeStatsResponse {
        let (volume_id, volume_path) = (VOLUME.to_string(), path.to_string());
        let request = proto::NodeGetVolumeStatsRequest { volume_id, volume_path, ..Default::default() };
        self.agents[node].service.node_get_volume_stats(held(request, 60)).await.unwrap().into_inner()
    }

    pub async fn unpublish(&self, node: &str, target: &str) -> Result<(), Status> {
        let request = proto::NodeUnpublishVolumeRequest { volume_id: VOLUME.into(), target_path: target.into() };
        self.agents[node].service.node_unpublish_volume(held(request, 60)).await.map(|_| ())
    }

    /// What kubelet hears of a volume's health: abnormal or not, and the sentence.
    pub async fn health(&self, node: &str, path: &str) -> (bool, String) {
        let request = proto::NodeGetVolumeStatsRequest {
            volume_id: VOLUME.into(),
            volume_path: path.into(),
            ..Default::default()
        };
        let answer = self.agents[node].service.node_get_volume_stats(Request::new(request)).await.unwrap().into_inner();
        let condition = answer.volume_condition.unwrap();
        (condition.abnormal, condition.message)
    }

    /// A volume of two copies, staged on `a`. Answers its epoch.
    pub async fn staged(nodes: &[&str]) -> (Rig, u64) {
        Rig::staged_as(nodes, "xfs", capability()).await
    }

    /// The same with another content, for another use.
    pub async fn staged_as(nodes: &[&str], filesystem: &'static str, capability: VolumeCapability) -> (Rig, u64) {
        let mut rig = Rig::new(nodes).await;
        (rig.filesystem, rig.capability) = (filesystem, capability);
        rig.create_volume(nodes).await;
        let epoch = rig.attach(Some("a")).await;
        let staged = rig.stage("a", epoch, 60).await;
        if staged.is_err() {
            rig.print();
        }
        staged.unwrap();
        (rig, epoch)
    }

    /// Waits for something to become true.
    pub async fn until(&self, what: &str, seconds: f64, mut check: impl AsyncFnMut() -> bool) {
        let begun = Instant::now();
        while !check().await {
            if begun.elapsed() > Duration::from_secs_f64(seconds) {
                self.print();
                panic!("{what}: not within {seconds} s");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Everything that a person would look at.
    pub fn print(&self) {
        for line in self.world.trace() {
            println!("{line}");
        }
        for plural in ["meshstorvolumes", "meshstorreplicas", "meshstornodes", "meshstornodedevices"] {
            for object in self.store.list(plural) {
                println!("{plural} {}", serde_json::to_string(&object["metadata"]["name"]).unwrap());
                println!("  spec {}\n  status {}", object["spec"], object["status"]);
            }
        }
    }

    /// Operations of a node so far, as its kernel saw them end.
    pub fn ops(&self, node: &str) -> Vec<String> {
        let of_node = |line: &String| line.split_whitespace().nth(1) == Some(node) && line.contains(" -> ");
        self.world.trace().into_iter().filter(of_node).collect()
    }
}

pub fn capability() -> VolumeCapability {
    mounted("")
}

/// A mount of a volume of which kubelet says that it has this file system.
pub fn mounted(fs_type: &str) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeMultiWriter.into() }),
        access_type: Some(AccessType::Mount(MountVolume { fs_type: fs_type.into(), ..Default::default() })),
    }
}

/// A request that the caller gives up after so many seconds.
pub fn held<T>(message: T, seconds: u64) -> Request<T> {
    let mut request = Request::new(message);
    let deadline = Instant::now() + Duration::from_secs(seconds);
    request.extensions_mut().insert(meshstor_csi::deadline::Deadline(deadline));
    request
}
