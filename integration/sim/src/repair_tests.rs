//! Repair end to end: production controllers and agents on simulated kernels, with a pod that writes all the time.
//!
//! Each test ends with the same questions: are there as many complete copies as wanted, does each hold every acknowledged
//! write, is nothing of the others left, was no law broken.

use crate::cluster::{Cluster, pass};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use meshstor_api::{MeshStorReplica, MeshStorVolume};
use meshstor_csi::deadline::Deadline;
use meshstor_csi::proto::controller_server::Controller as _;
use meshstor_csi::proto::node_server::Node as _;
use meshstor_csi::proto::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
use meshstor_csi::proto::*;
use meshstor_kernel::id::{ReplicaId, VolumeId};
use meshstor_kernel::sim::{Config, SimDrive};
use meshstor_memstore::{Fault, Link, Outcome, Verb};
use serde_json::json;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Request, Status};

pub(crate) const NAME: &str = "pvc-1";
pub(crate) const MIB: u64 = 1 << 20;
/// A missing copy is replaced after this long.
const TIMEOUT: f64 = 120.0;

pub(crate) fn simulated(body: impl Future<Output = ()>) {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    actix::System::with_tokio_rt(runtime).block_on(body);
}

/// A volume and the pod that uses it.
pub(crate) struct Pod {
    pub(crate) cluster: Rc<Cluster>,
    id: Cell<Option<VolumeId>>,
    copies: usize,
    pub(crate) at: RefCell<String>,
    tag: Cell<u64>,
}

impl Pod {
    /// A volume on nodes `a`, …, in use on `at`; a copy of it takes 1 GiB / `rate` seconds.
    pub(crate) async fn new(nodes: usize, copies: usize, at: &str, rate: u64) -> Rc<Pod> {
        Pod::on(|drive| drive, nodes, copies, at, rate).await
    }

    /// The same on other drives.
    async fn on(drive: fn(SimDrive) -> SimDrive, nodes: usize, copies: usize, at: &str, rate: u64) -> Rc<Pod> {
        Pod::created(drive, nodes, copies, at, rate).await.used().await
    }

    /// A volume that nobody has used yet.
    async fn created(drive: fn(SimDrive) -> SimDrive, nodes: usize, copies: usize, at: &str, rate: u64) -> Rc<Pod> {
        let config = Config { sync_rate: rate, ..Config::default() };
        let cluster = Cluster::of_drives(11, nodes, config, drive).await.unwrap();
        pass(5.0).await;
        let at = RefCell::new(at.to_string());
        let pod = Rc::new(Pod { cluster, id: Cell::new(None), copies, at, tag: Cell::new(1) });
        let place = Topology { segments: [("csi.meshstor.io/node".to_string(), "a".to_string())].into() };
        let request = CreateVolumeRequest {
            name: NAME.into(),
            capacity_range: Some(CapacityRange { required_bytes: 1 << 30, limit_bytes: 0 }),
            volume_capabilities: vec![capability()],
            parameters: [("replicaCount", copies.to_string()), ("memberMissingTimeout", TIMEOUT.to_string())]
                .map(|(key, value)| (key.to_string(), value))
                .into(),
            accessibility_requirements: Some(TopologyRequirement { requisite: vec![], preferred: vec![place] }),
            ..Default::default()
        };
        pod.cluster.controller(0).create_volume(held(request)).await.unwrap();
        pod.id.set(pod.stored().spec.volume_id.parse().ok());
        pod
    }

    async fn used(self: Rc<Self>) -> Rc<Pod> {
        self.start(300.0).await;
        actix::spawn(self.clone().live());
        pass(20.0).await;
        self
    }

    pub(crate) fn id(&self) -> VolumeId {
        self.id.get().unwrap()
    }

    pub(crate) fn stored(&self) -> MeshStorVolume {
        let object = self.cluster.store.get("meshstorvolumes", "", NAME).unwrap();
        serde_json::from_value((*object).clone()).unwrap()
    }

    pub(crate) fn replicas(&self) -> BTreeMap<ReplicaId, MeshStorReplica> {
        let objects = self.cluster.store.list("meshstorreplicas");
        let read = objects.iter().map(|o| serde_json::from_value::<MeshStorReplica>((**o).clone()).unwrap());
        read.map(|replica| (replica.spec.replica.parse().unwrap(), replica)).collect()
    }

    pub(crate) fn in_sync(&self) -> BTreeSet<ReplicaId> {
        crate::oracle::in_sync(&self.cluster, NAME)
    }

    /// Nodes of the complete copies.
    fn places(&self) -> BTreeSet<String> {
        let replicas = self.replicas();
        self.in_sync().iter().filter_map(|id| Some(replicas.get(id)?.spec.node.clone())).collect()
    }

    /// Publish and stage until both answer yes.
    pub(crate) async fn start(&self, seconds: f64) {
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        loop {
            match self.bring_up().await {
                Ok(()) => return,
                Err(status) => assert!(Instant::now() < end, "{}\n{status}", self.trace()),
            }
            pass(1.0).await;
        }
    }

    pub(crate) async fn bring_up(&self) -> Result<(), Status> {
        let at = self.at.borrow().clone();
        let request = ControllerPublishVolumeRequest {
            volume_id: NAME.into(),
            node_id: at.clone(),
            volume_capability: Some(capability()),
            ..Default::default()
        };
        self.cluster.controller(1).controller_publish_volume(held(request)).await?;
        let request = NodeStageVolumeRequest {
            volume_id: NAME.into(),
            staging_target_path: "/stage".into(),
            volume_capability: Some(capability()),
            publish_context: [("attachEpoch".to_string(), "1".to_string())].into(),
            ..Default::default()
        };
        let node = self.cluster.node(&at).ok_or_else(|| Status::unavailable("no agent"))?;
        node.node_stage_volume(held(request)).await.map(|_| ())
    }

    /// Writes for ever, wherever the pod is.
    async fn live(self: Rc<Self>) {
        loop {
            let (at, tag) = (self.at.borrow().clone(), self.tag.get());
            self.tag.set(tag + 1);
            let write = self.cluster.world.write(&at, self.id(), tag % 12 * 1300, tag);
            let _answer = tokio::time::timeout(Duration::from_secs(30), write).await;
            pass(0.7).await;
        }
    }

    /// To another node, the old one's file system unmounted or not.
    pub(crate) async fn moves(&self, to: &str, orderly: bool) {
        let from = self.at.replace(to.to_string());
        if let (true, Some(node)) = (orderly, self.cluster.node(&from)) {
            let request = NodeUnstageVolumeRequest { volume_id: NAME.into(), staging_target_path: "/stage".into() };
            node.node_unstage_volume(held(request)).await.unwrap();
        }
        let request = ControllerUnpublishVolumeRequest { volume_id: NAME.into(), node_id: from, ..Default::default() };
        self.cluster.controller(0).controller_unpublish_volume(held(request)).await.unwrap();
        self.start(300.0).await;
    }

    pub(crate) async fn power_cut(&self, node: &str) {
        self.cluster.kill_agent(node).await;
        self.cluster.world.power_cut(node);
    }

    pub(crate) fn power_on(&self, node: &str) {
        self.cluster.world.power_on(node);
        self.cluster.start_agent(node);
    }

    pub(crate) async fn until(&self, what: &str, seconds: f64, check: impl Fn(&Pod) -> bool) {
        let begun = Instant::now();
        while !check(self) {
            assert!(begun.elapsed().as_secs_f64() < seconds, "{}\n{what}: not within {seconds} s", self.trace());
            pass(0.2).await;
        }
    }

    pub(crate) fn trace(&self) -> String {
        let mut lines = self.cluster.world.trace();
        let from = lines.len().saturating_sub(120);
        for plural in ["meshstorvolumes", "meshstorreplicas"] {
            let objects = self.cluster.store.list(plural);
            lines.extend(objects.iter().map(|o| format!("{} {} {}", o["metadata"]["name"], o["spec"], o["status"])));
        }
        lines.split_off(from).join("\n")
    }

    /// The end of every test.
    pub(crate) async fn whole(&self, seconds: f64) {
        self.until("whole", seconds, |pod| pod.in_sync().len() == pod.copies && pod.replicas().len() == pod.copies)
            .await;
        pass(30.0).await;
        assert_eq!((self.in_sync().len(), self.replicas().len()), (self.copies, self.copies), "{}", self.trace());
        let at = self.at.borrow().clone();
        let write = self.cluster.world.write(&at, self.id(), 0, 1 << 40);
        tokio::time::timeout(Duration::from_secs(20), write).await.expect("a write hangs").expect("a write fails");
        let (copies, set) = (self.cluster.world.copies(self.id()), self.in_sync());
        assert_eq!(copies.keys().copied().collect::<BTreeSet<_>>(), set, "partitions of others are left");
        let acknowledged = self.cluster.world.acknowledged(self.id());
        assert!(acknowledged.len() >= 12);
        for (block, tag) in acknowledged {
            for replica in &set {
                let found = copies[replica].blocks.get(&block).copied().unwrap_or(0);
                assert!(found >= tag, "block {block} of {replica}: {found}, acknowledged {tag}\n{}", self.trace());
            }
        }
        assert_eq!(self.cluster.world.violations(), [], "{}", self.trace());
        let array = self.cluster.world.kernel(&at).array(self.id()).await.unwrap().unwrap();
        let shape = (array.raid_disks as usize, array.degraded, array.members.len(), array.has_bitmap);
        assert_eq!(shape, (self.copies, 0, self.copies, self.copies > 1), "{}", self.trace());
    }
}

pub(crate) fn capability() -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

pub(crate) fn held<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Deadline(Instant::now() + Duration::from_secs(60)));
    request
}

fn nodes(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| name.to_string()).collect()
}

async fn retire(pod: &Pod, replica: &str) {
    let api: Api<MeshStorReplica> = Api::all(pod.cluster.store.client_for("admin"));
    let patch = Patch::Merge(json!({"spec": {"role": "Retiring"}}));
    api.patch(replica, &PatchParams::default(), &patch).await.unwrap();
}

#[test]
fn a_node_lost_for_good_is_replaced_and_what_returns_of_it_is_wiped() {
    simulated(async {
        let pod = Pod::new(3, 2, "a", 64 * MIB).await;
        assert_eq!(pod.places(), nodes(&["a", "b"]));
        pod.power_cut("b").await;
        pass(TIMEOUT).await;
        assert_eq!(pod.replicas().len(), 2, "its time is not up");
        pod.until("copies on a and c", 300.0, |pod| pod.places() == nodes(&["a", "c"])).await;
        pass(60.0).await;
        assert!(pod.replicas()[&ReplicaId(1)].spec.tombstone.is_some(), "{}", pod.trace());
        let before = pod.cluster.world.trace().len();
        pod.power_on("b");
        pod.whole(120.0).await;
        assert_eq!(pod.places(), nodes(&["a", "c"]));
        let since = pod.cluster.world.trace().split_off(before);
        let exports = since.iter().filter(|line| line.contains(" b ") && line.contains(" export ")).count();
        assert_eq!(exports, 0, "{since:#?}");
        assert!(since.iter().any(|line| line.contains(" b ") && line.contains("remove-partition")));
    });
}

#[test]
fn a_node_lost_before_the_volume_was_used_holds_up_the_pod_for_less_than_a_call() {
    simulated(async {
        for back in [true, false] {
            let pod = Pod::created(|drive| drive, 3, 2, "a", 64 * MIB).await;
            pod.power_cut("b").await;
            pod.start(59.0).await;
            let pod = pod.used().await;
            assert_eq!(pod.places(), nodes(&["a"]));
            let places = nodes(&["a", if back { "b" } else { "c" }]);
            if !back {
                pod.until("another one is made", 400.0, |pod| pod.places() == places).await;
            }
            pod.power_on("b");
            pod.whole(400.0).await;
            assert_eq!(pod.places(), places);
        }
    });
}

#[test]
fn a_node_taken_out_of_the_cluster_is_replaced_at_once() {
    simulated(async {
        let pod = Pod::new(3, 2, "a", 64 * MIB).await;
        pod.power_cut("b").await;
        let api: Api<Node> = Api::all(pod.cluster.store.client_for("admin"));
        api.delete("b", &DeleteParams::default()).await.unwrap();
        pod.until("copies on a and c", 90.0, |pod| pod.places() == nodes(&["a", "c"])).await;
    });
}

#[test]
fn the_old_copy_returns_while_the_new_one_is_made() {
    simulated(async {
        for after in [1.0, 40.0, 100.0] {
            // 256 s for a whole copy.
            let pod = Pod::new(4, 2, "a", 4 * MIB).await;
            pod.power_cut("b").await;
            pod.until("a third", 400.0, |pod| pod.replicas().len() == 3).await;
            pass(after).await;
            pod.power_on("b");
            pod.whole(900.0).await;
        }
    });
}

#[test]
fn a_copy_whose_object_is_lost_leaves_its_number_to_nobody() {
    simulated(async {
        let pod = Pod::new(4, 2, "a", 4 * MIB).await;
        pod.power_cut("b").await;
        pod.until("a third", 400.0, |pod| pod.replicas().len() == 3).await;
        pass(5.0).await;
        let third = pod.replicas()[&ReplicaId(2)].clone();
        // Its partition and its place in the array stay: somebody else under its number would be taken for it.
        pod.cluster.store.force("meshstorreplicas", "", "pvc-1-r2", None);
        pod.until("another", 300.0, |pod| pod.replicas().len() == 3).await;
        let other = pod.replicas();
        assert!(!other.contains_key(&ReplicaId(2)), "{}", pod.trace());
        assert_ne!(other[&ReplicaId(3)].spec.node, third.spec.node, "{}", pod.trace());
    });
}

#[test]
fn controllers_that_die_after_every_change_and_kernels_that_stumble() {
    simulated(async {
        let pod = Pod::new(4, 2, "a", 16 * MIB).await;
        let faults = pod.cluster.store.faults();
        let harm = pod.clone();
        actix::spawn(async move {
            for turn in 0.. {
                // One controller hangs, the other one hears of nothing that it did.
                let (up, down) = if turn % 2 == 0 { ("c1", "c2") } else { ("c2", "c1") };
                harm.cluster.api_link(down, Link::Hang);
                harm.cluster.api_link(up, Link::Up);
                for verb in [Verb::Patch, Verb::Create, Verb::Delete] {
                    faults.inject(Fault::after_effect(Outcome::Reset).client(up).verb(verb).times(2));
                }
                pass(7.0).await;
            }
        });
        pod.power_cut("b").await;
        pod.until("replaced", 600.0, |pod| {
            pod.in_sync().len() == 2 && pod.replicas()[&ReplicaId(1)].spec.tombstone.is_some()
        })
        .await;
        pod.power_on("b");
        pod.whole(300.0).await;
        retire(&pod, "pvc-1-r0").await;
        pod.until("a third", 60.0, |pod| pod.replicas().len() == 3).await;
        pod.whole(600.0).await;
        assert!(!pod.replicas().contains_key(&ReplicaId(0)), "{}", pod.trace());
    });
}

#[test]
fn a_hot_replace_never_has_less_than_two_and_a_local_copy_leaves_as_well() {
    simulated(async {
        for (replica, number) in [("pvc-1-r1", 1), ("pvc-1-r0", 0)] {
            let pod = Pod::new(3, 2, "a", 32 * MIB).await;
            retire(&pod, replica).await;
            pod.until("a third", 60.0, |pod| pod.replicas().len() == 3).await;
            let watched = pod.clone();
            let watch = actix::spawn(async move {
                loop {
                    assert!(watched.in_sync().len() >= 2, "{}", watched.trace());
                    pass(0.05).await;
                }
            });
            pod.whole(300.0).await;
            assert!(!watch.is_finished());
            watch.abort();
            assert!(!pod.replicas().contains_key(&ReplicaId(number)));
        }
    });
}

#[test]
fn the_consumer_is_killed_in_the_middle_of_a_hot_replace() {
    simulated(async {
        for after in [0.5, 10.0, 30.0, 65.0, 67.0] {
            // 64 s for a whole copy.
            let pod = Pod::new(4, 2, "a", 16 * MIB).await;
            retire(&pod, "pvc-1-r1").await;
            pod.until("a third", 60.0, |pod| pod.replicas().len() == 3).await;
            pass(after).await;
            pod.power_cut("a").await;
            pod.moves("d", false).await;
            pass(200.0).await;
            pod.power_on("a");
            pod.whole(900.0).await;
            assert!(!pod.replicas().contains_key(&ReplicaId(1)), "{}", pod.trace());
        }
    });
}

#[test]
fn one_copy_follows_its_pod_with_writes_going_on() {
    simulated(async {
        let pod = Pod::new(3, 1, "b", 64 * MIB).await;
        assert_eq!(pod.places(), nodes(&["a"]));
        pass(250.0).await;
        assert_eq!(pod.replicas().len(), 1, "not yet");
        pod.until("moved", 200.0, |pod| pod.places() == nodes(&["b"]) && pod.replicas().len() == 1).await;
        pod.whole(60.0).await;
        // And on, by a move in good order.
        pod.moves("c", true).await;
        pod.until("moved", 500.0, |pod| pod.places() == nodes(&["c"]) && pod.replicas().len() == 1).await;
        pod.whole(60.0).await;
    });
}

#[test]
fn a_pod_that_moves_on_in_the_middle_of_a_relocation() {
    simulated(async {
        for (after, orderly) in [(1.0, true), (30.0, true), (64.0, true), (30.0, false), (55.0, false)] {
            let pod = Pod::new(3, 1, "b", 16 * MIB).await;
            pod.until("a second", 400.0, |pod| pod.replicas().len() == 2).await;
            pass(after).await;
            if orderly {
                pod.moves("c", true).await;
            } else {
                pod.power_cut("b").await;
                pod.moves("c", false).await;
                pass(100.0).await;
                pod.power_on("b");
            }
            pod.until("moved", 900.0, |pod| pod.places() == nodes(&["c"]) && pod.replicas().len() == 1).await;
            pod.whole(60.0).await;
        }
    });
}

#[test]
fn of_two_copies_one_comes_to_the_pod() {
    simulated(async {
        let pod = Pod::new(3, 2, "c", 64 * MIB).await;
        assert_eq!(pod.places(), nodes(&["a", "b"]));
        pod.until("moved", 600.0, |pod| pod.places().contains("c") && pod.replicas().len() == 2).await;
        pod.whole(60.0).await;
    });
}

mod heal;
