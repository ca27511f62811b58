//! A small cluster without kernels: an in-memory API server, controllers, and one stand-in agent for each node that
//! takes reservations, fences, exports and wipes on paper, in the order a real one keeps.

use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use meshstor_api::condition::Condition;
use meshstor_api::node::{DriveUse, MeshStorNodeDevice, NodeAddress, NodeDeviceSpec, NodeDeviceStatus, NodeSpec};
use meshstor_api::replica::{CONNECTED_ANNOTATION, ConnectionStatus, ExportStatus, ListenStatus, MeshStorReplica};
use meshstor_api::volume::MeshStorVolume;
use meshstor_api::{FINALIZER, MeshStorNode};
use meshstor_controller::{Controller, ControllerConfig, ControllerService};
use meshstor_csi::deadline::Deadline;
use meshstor_csi::proto::controller_server::Controller as _;
use meshstor_csi::proto::volume_capability::{AccessMode, AccessType, MountVolume, access_mode};
use meshstor_csi::proto::*;
use meshstor_memstore::{Schema, Store, TokioClock};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Request, Status};
use uuid::Uuid;

pub const GIB: u64 = 1 << 30;

/// What a node's stand-in agent does not do, for the time being.
#[derive(Debug, Clone, Default)]
pub struct Vices {
    /// Never looks at anything, sends no heartbeat.
    pub dead: bool,
    /// Does not accept reservations.
    pub ignores_reservations: bool,
    /// Accepts but never finishes.
    pub never_ready: bool,
    /// Says that its drive has no room.
    pub refuses: bool,
    /// Does not fence.
    pub never_fences: bool,
    /// Does not wipe.
    pub never_wipes: bool,
    /// Says that a host is connected to its copies.
    pub sees_host: bool,
    /// Has no room behind its partitions.
    pub cramped: bool,
    /// Keeps books of its drive, as a real agent does: takes what fits, and reports what is left.
    pub finite: bool,
}

pub struct World {
    pub store: Store,
    pub client: kube::Client,
    vices: Arc<Mutex<BTreeMap<String, Vices>>>,
    /// What the oracle saw; a refusal would only hide it.
    sins: Arc<Mutex<Vec<String>>>,
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(*self.sins.lock().unwrap(), Vec::<String>::new());
        }
    }
}

impl World {
    /// Nodes with one drive each, of so many GiB.
    pub async fn new(nodes: &[(&str, u64)]) -> World {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let sins: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = sins.clone();
        let schemas = meshstor_api::crds().iter().filter_map(Schema::from_crd).collect::<Vec<_>>();
        let store = Store::builder()
            .schemas(schemas)
            .clock(TokioClock::starting_at(start))
            .validator(move |schema, old, new| {
                seen.lock().unwrap().extend(oracle(schema, old, new));
                validate(schema, old, new)
            })
            .seed(7)
            .build();
        let client = store.client_for("test");
        let world = World { store, client, vices: Arc::default(), sins };
        for (name, gib) in nodes {
            world.add_node(name, *gib).await;
        }
        world
    }

    pub async fn add_node(&self, name: &str, gib: u64) {
        let node = MeshStorNode::new(name, NodeSpec::default());
        self.api::<MeshStorNode>().create(&PostParams::default(), &node).await.unwrap();
        let drive = NodeDeviceSpec { node: name.into(), drive: format!("d-{name}"), r#use: DriveUse::Auto };
        let device = MeshStorNodeDevice::new(&format!("{name}-d"), drive);
        self.api::<MeshStorNodeDevice>().create(&PostParams::default(), &device).await.unwrap();
        let status = json!({"status": {
            "bootID": format!("boot-{name}-1"), "fabric": "default", "kernel": "6.12",
            "addresses": [NodeAddress { transport: "tcp".into(), address: "10.0.0.1".into() }],
            "conditions": [ready()],
        }});
        self.merge_status::<MeshStorNode>(name, &status).await;
        let status = NodeDeviceStatus {
            size_bytes: gib * GIB,
            sector_size: 4096,
            free_bytes: gib * GIB,
            largest_free_bytes: gib * GIB,
            class: "blank".into(),
            ..NodeDeviceStatus::default()
        };
        self.merge_status::<MeshStorNodeDevice>(&format!("{name}-d"), &json!({"status": status})).await;
        let (client, vices) = (self.store.client_for(name), self.vices.clone());
        let agent = Agent { name: name.into(), bytes: gib * GIB, client, vices, taken: BTreeMap::new() };
        agent.beat().await;
        tokio::spawn(agent.run());
    }

    /// The machines as Kubernetes knows them, each in a zone; in none where the name is empty.
    pub async fn zones(&self, nodes: &[(&str, &str)]) {
        for (name, zone) in nodes {
            let mut node = k8s_openapi::api::core::v1::Node::default();
            node.metadata.name = Some(name.to_string());
            let label = ("topology.kubernetes.io/zone".to_string(), zone.to_string());
            node.metadata.labels = (!zone.is_empty()).then(|| [label].into());
            self.api::<k8s_openapi::api::core::v1::Node>().create(&PostParams::default(), &node).await.unwrap();
        }
    }

    pub fn api<K: kube::Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    pub async fn merge_status<K>(&self, name: &str, body: &Value)
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug,
    {
        self.api::<K>().patch_status(name, &PatchParams::default(), &Patch::Merge(body)).await.unwrap();
    }

    /// A controller with its loop.
    pub fn controller(&self, name: &str) -> ControllerService {
        let controller = self.idle_controller(name);
        let service = controller.service();
        tokio::spawn(async move { controller.run(std::future::pending()).await });
        service
    }

    /// A controller with its loop that fails over after so many seconds.
    pub fn failing_over(&self, name: &str, seconds: u64) -> ControllerService {
        let fail_over = Some(Duration::from_secs(seconds));
        self.running(name, ControllerConfig { fail_over, ..ControllerConfig::default() })
    }

    /// A controller with its loops, configured like this.
    pub fn running(&self, name: &str, config: ControllerConfig) -> ControllerService {
        let controller = self.configured(name, config);
        let service = controller.service();
        tokio::spawn(async move { controller.run(std::future::pending()).await });
        service
    }

    /// A controller whose loop does not run.
    pub fn idle_controller(&self, name: &str) -> Controller {
        self.configured(name, ControllerConfig::default())
    }

    fn configured(&self, name: &str, config: ControllerConfig) -> Controller {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let origin = Instant::now() - since_start();
        let ids = AtomicU64::new(1);
        let config = ControllerConfig {
            now: Arc::new(move || start.saturating_add(origin.elapsed()).unwrap()),
            new_id: Arc::new(move || {
                Uuid::new_v5(&Uuid::NAMESPACE_OID, &ids.fetch_add(1, Ordering::Relaxed).to_be_bytes())
            }),
            ..config
        };
        Controller::new(self.store.client_for(name), config)
    }

    pub fn vices(&self, node: &str, change: impl FnOnce(&mut Vices)) {
        change(self.vices.lock().unwrap().entry(node.into()).or_default());
    }

    /// The object as stored, past all faults.
    pub fn volume(&self, name: &str) -> Option<Value> {
        self.store.get("meshstorvolumes", "", name).map(|object| (*object).clone())
    }

    pub fn replica(&self, name: &str) -> Option<Value> {
        self.store.get("meshstorreplicas", "", name).map(|object| (*object).clone())
    }

    /// Nodes of the copies that are not buried, by copy.
    pub fn copies(&self, volume: &str) -> BTreeMap<String, String> {
        let text = |object: &Value, path: &str| object.pointer(path).unwrap().as_str().unwrap().to_string();
        self.store
            .list("meshstorreplicas")
            .iter()
            .filter(|object| text(object, "/spec/volume") == volume && object.pointer("/spec/tombstone").is_none())
            .map(|object| (text(object, "/spec/replica"), text(object, "/spec/node")))
            .collect()
    }

    /// Bytes of the partitions that a node has taken for copies.
    pub fn taken(&self, node: &str) -> u64 {
        let replicas = self.store.list("meshstorreplicas");
        let here = replicas.iter().filter(|object| object["spec"]["node"] == node);
        let taken = here.filter(|object| {
            let state = object.pointer("/status/partition/state").and_then(Value::as_str);
            matches!(state, Some("Accepted" | "Ready"))
        });
        taken.map(|object| object["spec"]["partitionBytes"].as_u64().unwrap()).sum()
    }

    /// `(epoch, consumer)`.
    pub fn attachment(&self, volume: &str) -> (u64, Option<String>) {
        let volume = self.volume(volume).unwrap();
        let attachment = &volume["spec"]["attachment"];
        (attachment["epoch"].as_u64().unwrap(), attachment["consumer"].as_str().map(str::to_string))
    }

    pub fn condition(&self, volume: &str, type_: &str) -> Option<Condition> {
        let volume: MeshStorVolume = serde_json::from_value(self.volume(volume)?).unwrap();
        volume.status?.conditions.into_iter().find(|condition| condition.type_ == type_)
    }

    /// Changes made so far by a client.
    pub fn changes_by(&self, client: &str) -> u64 {
        let counters = self.store.counters();
        counters.changes.iter().filter(|((who, _), _)| who == client).map(|(_, count)| count).sum()
    }
}

/// Tests start their clock at zero; a controller made later must still agree with the store about the time.
fn since_start() -> Duration {
    thread_local!(static ORIGIN: Instant = Instant::now());
    ORIGIN.with(|origin| origin.elapsed())
}

fn ready() -> Condition {
    Condition {
        type_: "Ready".into(),
        status: "True".into(),
        reason: "Healthy".into(),
        message: String::new(),
        last_transition_time: "2026-01-01T00:00:00Z".into(),
    }
}

/// The rules of the custom resource definitions that matter here.
fn validate(schema: &Schema, old: Option<&Value>, new: &Value) -> Result<(), String> {
    let number = |object: &Value, path: &str| object.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    if let Some(old) = old.filter(|_| schema.kind == "MeshStorReplica") {
        let (before, after) = (number(old, "/spec/partitionBytes"), number(new, "/spec/partitionBytes"));
        let taken = old.pointer("/status/partition/sizeBytes").and_then(Value::as_u64);
        return match after >= before || taken.is_some_and(|taken| after >= taken) {
            true => Ok(()),
            false => Err("spec.partitionBytes never falls below what the partition has".into()),
        };
    }
    let Some(old) = old.filter(|_| schema.kind == "MeshStorVolume") else { return Ok(()) };
    if number(new, "/spec/sizeBytes") < number(old, "/spec/sizeBytes") {
        return Err("spec.sizeBytes never falls".into());
    }
    let (before, after) = (&old["spec"]["attachment"], &new["spec"]["attachment"]);
    if after["epoch"].as_u64() < before["epoch"].as_u64() {
        return Err("spec.attachment.epoch never falls".into());
    }
    if after["epoch"] == before["epoch"] && before.get("consumer") != after.get("consumer") {
        return Err("spec.attachment.consumer changes only together with a higher epoch".into());
    }
    if old.pointer("/status/inSync").is_some() && new.pointer("/status/inSync/0").is_none() {
        return Err("status.inSync: once recorded it is never removed or emptied".into());
    }
    Ok(())
}

/// What must never be stored, though no server refuses it.
fn oracle(schema: &Schema, old: Option<&Value>, new: &Value) -> Option<String> {
    let name = &new["metadata"]["name"];
    if schema.kind == "MeshStorVolume" {
        let attached = new.pointer("/spec/attachment/consumer").is_some();
        let doomed = new.pointer("/spec/deletionRequested").is_some();
        return (attached && doomed).then(|| format!("{name} is attached and doomed at the same time"));
    }
    if schema.kind == "MeshStorReplica" {
        let pair = |object: &Value| {
            let export = &object["spec"]["export"];
            (export["epoch"].as_u64(), export["generation"].as_u64())
        };
        return old.filter(|old| pair(new) < pair(old)).map(|_| format!("spec.export of {name} went back"));
    }
    None
}

/// A stand-in for a node's agent.
struct Agent {
    name: String,
    bytes: u64,
    client: kube::Client,
    vices: Arc<Mutex<BTreeMap<String, Vices>>>,
    /// Partitions on its drive, by the uid of their objects.
    taken: BTreeMap<String, u64>,
}

impl Agent {
    async fn run(mut self) {
        let mut beat = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let vices = self.vices.lock().unwrap().get(&self.name).cloned().unwrap_or_default();
            if vices.dead {
                continue;
            }
            if beat.elapsed() > Duration::from_secs(20) {
                self.beat().await;
                beat = Instant::now();
            }
            let api: Api<MeshStorReplica> = Api::all(self.client.clone());
            let Ok(list) = api.list(&Default::default()).await else { continue };
            let name = self.name.clone();
            for replica in list.items.into_iter().filter(|replica| replica.spec.node == name) {
                let full = vices.finite && !self.book(&replica).await;
                self.serve(&api, replica, &Vices { refuses: vices.refuses || full, ..vices.clone() }).await;
            }
        }
    }

    /// Takes or gives back the space of a copy. Returns whether the copy has it.
    async fn book(&mut self, replica: &MeshStorReplica) -> bool {
        let uid = replica.metadata.uid.clone().unwrap();
        let before = self.taken.clone();
        let used: u64 = self.taken.values().sum();
        if replica.spec.tombstone.is_some() {
            self.taken.remove(&uid);
        } else if !self.taken.contains_key(&uid) && used + replica.spec.partition_bytes <= self.bytes {
            self.taken.insert(uid.clone(), replica.spec.partition_bytes);
        }
        if self.taken != before {
            let free = self.bytes - self.taken.values().sum::<u64>();
            let body = json!({"status": {"freeBytes": free, "largestFreeBytes": free}});
            let api: Api<MeshStorNodeDevice> = Api::all(self.client.clone());
            let _ = api.patch_status(&format!("{}-d", self.name), &PatchParams::default(), &Patch::Merge(&body)).await;
        }
        self.taken.contains_key(&uid) || replica.spec.tombstone.is_some()
    }

    async fn beat(&self) {
        let api: Api<MeshStorNode> = Api::all(self.client.clone());
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let now = start.saturating_add(since_start()).unwrap().to_string();
        let body = json!({"status": {"heartbeat": now}});
        let _ = api.patch_status(&self.name, &PatchParams::default(), &Patch::Merge(&body)).await;
    }

    async fn serve(&self, api: &Api<MeshStorReplica>, replica: MeshStorReplica, vices: &Vices) {
        let name = replica.metadata.name.clone().unwrap();
        let mut status = replica.status.clone().unwrap_or_default();
        let old = status.clone();
        let wanted = replica.spec.partition_bytes;
        let has = status.partition.as_ref().filter(|p| p.state == "Ready").map_or(wanted, |p| p.size_bytes);
        let grown = if vices.cramped { has } else { wanted.max(has) };
        let state =
            |state: &str| Some(meshstor_api::replica::PartitionStatus { state: state.into(), size_bytes: grown });
        if replica.spec.tombstone.is_some() {
            if vices.never_wipes {
                return;
            }
            status.partition = state("Removed");
            status.export = None;
        } else if vices.refuses && status.partition.is_none() {
            status.partition = state("Waiting");
            let refusal = Condition {
                type_: "Partition".into(),
                status: "False".into(),
                reason: "NoSpace".into(),
                message: "no free extent".into(),
                last_transition_time: "t".into(),
            };
            status.conditions = vec![refusal];
        } else if !vices.ignores_reservations && !vices.refuses {
            let done = status.partition.as_ref().is_some_and(|partition| partition.state == "Ready");
            status.partition = state(if vices.never_ready && !done { "Accepted" } else { "Ready" });
            let lacks = wanted.saturating_sub(grown);
            let cramped = Condition { reason: "NoRoomBehind".into(), message: format!("lacks {lacks}"), ..ready() };
            status.conditions.retain(|said| said.reason != "NoRoomBehind");
            status.conditions.extend((lacks > 0).then_some(cramped));
            let wanted = &replica.spec.export;
            if wanted.epoch > status.fenced_epoch && !vices.never_fences {
                status.fenced_epoch = wanted.epoch;
            }
            let fenced = status.fenced_epoch == wanted.epoch;
            status.export = wanted.consumer.as_ref().filter(|_| fenced).map(|_| ExportStatus {
                epoch: wanted.epoch,
                generation: wanted.generation,
                listen: vec![ListenStatus { transport: "tcp".into(), address: "10.0.0.1".into(), port: 4500 }],
                ready: true,
                boot: "t".into(),
            });
        }
        let asked = replica.metadata.annotations.as_ref().and_then(|all| all.get(CONNECTED_ANNOTATION)).cloned();
        let transports = if vices.sees_host { vec!["tcp".to_string()] } else { vec![] };
        status.connection = asked.map(|asked| ConnectionStatus { asked, transports });
        if status != old {
            let mut body = json!({"status": status});
            if status.export.is_none() {
                body["status"]["export"] = Value::Null;
            }
            if status.conditions.is_empty() && !old.conditions.is_empty() {
                body["status"]["conditions"] = json!([]);
            }
            let _ = api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&body)).await;
        }
        let removed = status.partition.is_some_and(|partition| partition.state == "Removed");
        if removed && replica.metadata.deletion_timestamp.is_some() {
            let body = json!({"metadata": {"finalizers": null}});
            let _ = api.patch(&name, &PatchParams::default(), &Patch::Merge(&body)).await;
        }
    }
}

// -------------------------------------------------------------------------------------------------- calls

pub fn capability() -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: access_mode::Mode::SingleNodeWriter as i32 }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

pub fn create_request(name: &str, gib: u64) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.into(),
        capacity_range: Some(CapacityRange { required_bytes: (gib * GIB) as i64, limit_bytes: 0 }),
        volume_capabilities: vec![capability()],
        ..CreateVolumeRequest::default()
    }
}

pub fn parameters(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

/// A place as the provisioner names it.
pub fn place(node: &str) -> Topology {
    Topology { segments: parameters(&[("csi.meshstor.io/node", node), ("csi.meshstor.io/fabric", "default")]) }
}

pub fn near(node: &str) -> Option<TopologyRequirement> {
    Some(TopologyRequirement { requisite: vec![], preferred: vec![place(node)] })
}

/// What the provisioner says for a pod that is to run on a node, with `--strict-topology`.
pub fn near_only(node: &str) -> Option<TopologyRequirement> {
    Some(TopologyRequirement { requisite: vec![place(node)], preferred: vec![place(node)] })
}

/// A call that its caller gives up after `seconds`.
pub fn within<T>(seconds: u64, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Deadline(Instant::now() + Duration::from_secs(seconds)));
    request
}

pub async fn create(service: &ControllerService, name: &str, gib: u64) -> Result<Volume, Status> {
    create_with(service, create_request(name, gib)).await
}

pub async fn create_with(service: &ControllerService, request: CreateVolumeRequest) -> Result<Volume, Status> {
    let answer = service.create_volume(within(60, request)).await?;
    Ok(answer.into_inner().volume.unwrap())
}

pub fn publish_request(volume: &str, node: &str) -> ControllerPublishVolumeRequest {
    ControllerPublishVolumeRequest {
        volume_id: volume.into(),
        node_id: node.into(),
        volume_capability: Some(capability()),
        ..ControllerPublishVolumeRequest::default()
    }
}

/// The epoch that the publish context carries.
pub async fn publish(service: &ControllerService, volume: &str, node: &str) -> Result<u64, Status> {
    let answer = service.controller_publish_volume(within(15, publish_request(volume, node))).await?;
    let context = answer.into_inner().publish_context;
    assert_eq!(context.len(), 1, "nothing but a floor: {context:?}");
    Ok(context["attachEpoch"].parse().unwrap())
}

pub async fn unpublish(service: &ControllerService, volume: &str, node: &str) -> Result<(), Status> {
    let message = ControllerUnpublishVolumeRequest {
        volume_id: volume.into(),
        node_id: node.into(),
        ..ControllerUnpublishVolumeRequest::default()
    };
    service.controller_unpublish_volume(within(15, message)).await.map(|_| ())
}

pub async fn delete(service: &ControllerService, volume: &str) -> Result<(), Status> {
    let message = DeleteVolumeRequest { volume_id: volume.into(), ..DeleteVolumeRequest::default() };
    service.delete_volume(within(30, message)).await.map(|_| ())
}

pub async fn list(service: &ControllerService) -> Vec<(String, Vec<String>)> {
    let answer = service.list_volumes(Request::new(ListVolumesRequest::default())).await.unwrap().into_inner();
    let entry = |entry: list_volumes_response::Entry| {
        (entry.volume.unwrap().volume_id, entry.status.unwrap().published_node_ids)
    };
    answer.entries.into_iter().map(entry).collect()
}

/// Nodes named by the volume's topology; empty when the whole fabric will do.
pub fn nodes_of(volume: &Volume) -> BTreeSet<String> {
    let topology = volume.accessible_topology.iter();
    assert!(topology.clone().count() > 0, "accessible everywhere would let pods start without our driver");
    topology.filter_map(|place| place.segments.get("csi.meshstor.io/node").cloned()).collect()
}

/// Lets time pass until `done` says so; fails after two minutes.
pub async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..1200 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("never happened: {what}");
}

/// An object that no writer of ours would write.
pub async fn write_by_hand(world: &World, object: Value) {
    let resource = kube::api::ApiResource::erase::<MeshStorVolume>(&());
    let api: Api<DynamicObject> = Api::all_with(world.client.clone(), &resource);
    let object: DynamicObject = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap();
}

/// The finalizer that holds data, as objects carry it.
pub fn held(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|list| list.iter().any(|f| f == FINALIZER))
}
