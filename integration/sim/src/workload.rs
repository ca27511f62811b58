//! What a container orchestrator and its pods do: volumes are created, staged, written, moved in good order or by force,
//! deleted. Each volume is a task of its own.
//!
//! Called by `run`. It calls CSI as sidecars and kubelet do (again and again, until the answer is yes) and remembers
//! which session of a volume each write belongs to, for the oracle.

mod blocks;

use crate::cluster::{Cluster, pass};
use fastrand::Rng;
use meshstor_api::MeshStorVolume;
use meshstor_csi::deadline::Deadline;
use meshstor_csi::proto::controller_server::Controller as _;
use meshstor_csi::proto::node_server::Node as _;
use meshstor_csi::proto::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
use meshstor_csi::proto::*;
use meshstor_kernel::id::VolumeId;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Request, Status};

const GIB: i64 = 1 << 30;
/// When the caller of ControllerUnpublishVolume tries another controller.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest a CSI call is held, as the sidecars' timeouts are pinned.
const HELD: Duration = Duration::from_secs(60);

/// One write as its process made it.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// Block.
    pub block: u64,
    /// The volume's session on whose node it was asked for.
    pub session: u64,
}

/// One volume's life.
pub struct Life {
    cluster: Rc<Cluster>,
    rng: RefCell<Rng>,
    /// Name of the volume.
    pub name: String,
    /// Copies.
    pub copies: u32,
    /// Its identity once it exists.
    pub id: Cell<Option<VolumeId>>,
    /// Where it is attached.
    pub at: RefCell<Option<String>>,
    /// Nodes that may still have it staged.
    staged: RefCell<Vec<String>>,
    session: Cell<u64>,
    epoch: Cell<u64>,
    next_tag: Cell<u64>,
    calming: Cell<bool>,
    /// The last answer that was not yes.
    last: RefCell<String>,
    /// What the volume did that it must never do.
    pub broken: RefCell<Vec<String>>,
    /// Blocks with a write of this session that was never answered: both answers are right until the next takeover.
    unanswered: RefCell<BTreeSet<u64>>,
    /// Every write by its content.
    pub asked: RefCell<BTreeMap<u64, Asked>>,
}

impl Life {
    /// A volume that does not exist yet.
    pub fn new(cluster: Rc<Cluster>, mut rng: Rng, number: usize) -> Rc<Life> {
        let copies = [1, 2, 2, 2, 3][rng.usize(..5)].min(cluster.nodes.len() as u32);
        Rc::new(Life {
            cluster,
            rng: RefCell::new(rng),
            name: format!("pvc-{number}"),
            copies,
            id: Cell::new(None),
            at: RefCell::default(),
            staged: RefCell::default(),
            session: Cell::new(0),
            epoch: Cell::new(0),
            next_tag: Cell::new(1000 * number as u64 + 1),
            calming: Cell::new(false),
            last: RefCell::default(),
            broken: RefCell::default(),
            unanswered: RefCell::default(),
            asked: RefCell::default(),
        })
    }

    fn below(&self, n: usize) -> usize {
        self.rng.borrow_mut().usize(..n)
    }

    fn node(&self) -> String {
        self.cluster.nodes[self.below(self.cluster.nodes.len())].clone()
    }

    // -------------------------------------------------------------------------------------------- phases

    /// Lives until calmed.
    pub async fn live(self: Rc<Self>) {
        pass(self.below(50) as f64 / 10.0).await;
        while self.id.get().is_none() && !self.calming.get() {
            self.create().await;
        }
        while !self.calming.get() {
            let node = self.at.borrow().clone().unwrap_or_else(|| self.node());
            if !self.bring_up(&node, 120.0).await {
                self.leave(false).await;
                continue;
            }
            if self.below(8) == 0 {
                self.try_elsewhere(&node).await;
            }
            let until = Instant::now() + Duration::from_secs(5 + self.below(40) as u64);
            self.write_until(&node, until).await;
            match self.below(4) {
                0 => {}
                1 => self.leave(false).await,
                _ => self.leave(true).await,
            }
        }
    }

    /// No more moves; writers end.
    pub fn calm(&self) {
        self.calming.set(true);
    }

    /// After all harm has ended: attached somewhere, alive, written once more.
    pub async fn come_right(&self, seconds: f64) -> Result<(), String> {
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        while self.id.get().is_none() && Instant::now() < end {
            self.create().await;
        }
        let node = self.at.borrow().clone().unwrap_or_else(|| self.node());
        let left = end.saturating_duration_since(Instant::now()).as_secs_f64();
        if !self.bring_up(&node, left).await {
            let last = self.last.borrow();
            return Err(format!(
                "{} could not be staged on {node} within {seconds} s after all harm had ended: {last}",
                self.name
            ));
        }
        let Some(id) = self.id.get() else { return Err(format!("{} has no identity", self.name)) };
        let write = self.write_one(&node, id);
        match tokio::time::timeout(Duration::from_secs(60), write).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("{}: a write after all harm had ended: {error}", self.name)),
            Err(_) => Err(format!("{}: a write hangs after all harm has ended", self.name)),
        }
    }

    /// Everything goes.
    pub async fn end(&self, seconds: f64) -> Result<(), String> {
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        self.leave(true).await;
        let mut last = String::new();
        while Instant::now() < end {
            if self.clean_up_everywhere().await {
                let request = DeleteVolumeRequest { volume_id: self.name.clone(), ..Default::default() };
                match self.cluster.controller(self.below(2)).delete_volume(held(request)).await {
                    Ok(_) => return Ok(()),
                    Err(status) => last = status.to_string(),
                }
            }
            pass(1.0).await;
        }
        Err(format!("{} could not be deleted within {seconds} s: {last}", self.name))
    }

    // --------------------------------------------------------------------------------------------- calls

    async fn create(&self) {
        let request = CreateVolumeRequest {
            name: self.name.clone(),
            capacity_range: Some(CapacityRange { required_bytes: GIB, limit_bytes: 0 }),
            volume_capabilities: vec![capability()],
            parameters: [("replicaCount".to_string(), self.copies.to_string())].into(),
            ..Default::default()
        };
        let answer = self.cluster.controller(self.below(2)).create_volume(held(request)).await;
        if let Err(status) = &answer {
            self.last.replace(format!("create: {status}"));
            pass(1.0).await;
        } else {
            let stored = self.cluster.store.get("meshstorvolumes", "", &self.name);
            let volume = stored.and_then(|o| serde_json_volume(&o));
            self.id.set(volume.and_then(|volume| volume.spec.volume_id.parse().ok()));
        }
    }

    /// Publish and stage, again and again until both answer yes.
    async fn bring_up(&self, node: &str, seconds: f64) -> bool {
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        while Instant::now() < end && !(self.calming.get() && seconds <= 120.0) {
            let up = match self.publish(node).await {
                Ok(()) => self.stage(node).await,
                refused => refused,
            };
            match up {
                Ok(()) => {
                    self.settled();
                    return true;
                }
                // Attached to a node that nobody knows of any more: the attach controller detaches it.
                Err(status) if status.code() == tonic::Code::FailedPrecondition => {
                    self.last.replace(format!("bring up on {node}: {status}"));
                    if let Some(other) = self.recorded().and_then(|v| v.spec.attachment.consumer).filter(|n| n != node)
                    {
                        self.unpublish_once(&other).await;
                    }
                }
                Err(status) => drop(self.last.replace(format!("bring up on {node}: {status}"))),
            }
            pass(1.0).await;
        }
        false
    }

    /// A call for another node while this one has the volume: must be refused, whatever goes on.
    async fn try_elsewhere(&self, node: &str) {
        let other = self.node();
        if other == node || self.at.borrow().as_deref() != Some(node) {
            return;
        }
        let request = self.publication(&other);
        if self.cluster.controller(self.below(2)).controller_publish_volume(held(request)).await.is_ok() {
            let line = format!("{} was published to {other} while {node} had it", self.name);
            self.broken.borrow_mut().push(line);
        }
    }

    fn publication(&self, node: &str) -> ControllerPublishVolumeRequest {
        ControllerPublishVolumeRequest {
            volume_id: self.name.clone(),
            node_id: node.into(),
            volume_capability: Some(capability()),
            ..Default::default()
        }
    }

    /// The volume as recorded now.
    fn recorded(&self) -> Option<MeshStorVolume> {
        self.cluster.store.get("meshstorvolumes", "", &self.name).and_then(|object| serde_json_volume(&object))
    }

    /// Staged: in a new epoch nothing of the old one is in flight any more.
    fn settled(&self) {
        let epoch = self.recorded().map_or(0, |volume| volume.spec.attachment.epoch);
        if self.epoch.replace(epoch) != epoch {
            self.unanswered.borrow_mut().clear();
        }
    }

    async fn publish(&self, node: &str) -> Result<(), Status> {
        let new = self.at.borrow().as_deref() != Some(node);
        if new {
            // Attached from here on, whatever the answer: the call may have happened.
            self.at.replace(Some(node.into()));
            self.session.set(self.session.get() + 1);
        }
        let request = self.publication(node);
        self.cluster.controller(self.below(2)).controller_publish_volume(held(request)).await.map(|_| ())
    }

    async fn stage(&self, node: &str) -> Result<(), Status> {
        if !self.staged.borrow().iter().any(|staged| staged == node) {
            self.staged.borrow_mut().push(node.into());
        }
        let Some(service) = self.cluster.node(node) else { return Err(Status::unavailable("no agent")) };
        let request = NodeStageVolumeRequest {
            volume_id: self.name.clone(),
            staging_target_path: self.staging(),
            volume_capability: Some(capability()),
            publish_context: [("attachEpoch".to_string(), "1".to_string())].into(),
            ..Default::default()
        };
        service.node_stage_volume(held(request)).await.map(|_| ())
    }

    async fn unstage(&self, node: &str) -> bool {
        let Some(service) = self.cluster.node(node) else { return false };
        let request = NodeUnstageVolumeRequest { volume_id: self.name.clone(), staging_target_path: self.staging() };
        let done = service.node_unstage_volume(held(request)).await.is_ok();
        if done {
            self.staged.borrow_mut().retain(|staged| staged != node);
        }
        done
    }

    /// Detaches: in good order where that works, else by force; kubelet of the old node cleans up when it can.
    async fn leave(&self, orderly: bool) {
        let Some(node) = self.at.borrow().clone() else { return };
        if orderly {
            self.unstage(&node).await;
        }
        for _ in 0..600 {
            if self.unpublish_once(&node).await {
                self.at.replace(None);
                return;
            }
            pass(1.0).await;
        }
    }

    /// One ControllerUnpublishVolume. It goes on when its caller has lost patience, as one behind a slow API server does (F19).
    async fn unpublish_once(&self, node: &str) -> bool {
        let (volume_id, node_id) = (self.name.clone(), node.to_string());
        let request = ControllerUnpublishVolumeRequest { volume_id, node_id, ..Default::default() };
        let service = self.cluster.controller(self.below(2)).clone();
        let call = actix::spawn(async move { service.controller_unpublish_volume(held(request)).await.is_ok() });
        matches!(tokio::time::timeout(PATIENCE, call).await, Ok(Ok(true)))
    }

    /// What kubelet does on nodes that the volume has left.
    async fn clean_up_everywhere(&self) -> bool {
        let staged: Vec<String> = self.staged.borrow().clone();
        for node in staged.into_iter().filter(|node| self.at.borrow().as_ref() != Some(node)) {
            self.unstage(&node).await;
        }
        self.staged.borrow().is_empty()
    }

    /// Kubelet's clean-up in the background, for as long as the volume lives.
    pub async fn kubelets(self: Rc<Self>) {
        loop {
            pass(5.0).await;
            if !self.calming.get() {
                self.clean_up_everywhere().await;
            }
        }
    }

    fn staging(&self) -> String {
        format!("/var/lib/kubelet/plugins/kubernetes.io/csi/d/{}/globalmount", self.name)
    }
}

fn serde_json_volume(object: &std::sync::Arc<serde_json::Value>) -> Option<MeshStorVolume> {
    serde_json::from_value((**object).clone()).ok()
}

fn capability() -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

/// A request that its caller gives up after [`HELD`].
fn held<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Deadline(Instant::now() + HELD));
    request
}
