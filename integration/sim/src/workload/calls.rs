//! The calls of a volume's life, as sidecars and kubelet make them.
//!
//! Called by the life itself. Each answers what the program said; whoever wants a yes asks again.

use super::{GIB, HELD, Life, PATIENCE};
use crate::cluster::pass;
use meshstor_api::MeshStorVolume;
use meshstor_csi::deadline::Deadline;
use meshstor_csi::proto::controller_server::Controller as _;
use meshstor_csi::proto::node_server::Node as _;
use meshstor_csi::proto::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
use meshstor_csi::proto::*;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Request, Status};

impl Life {
    pub(crate) async fn create(&self) {
        let request = CreateVolumeRequest {
            name: self.name.clone(),
            capacity_range: Some(CapacityRange { required_bytes: GIB, limit_bytes: 0 }),
            volume_capabilities: vec![capability()],
            parameters: self.parameters.iter().map(|(key, value)| (key.to_string(), value.clone())).collect(),
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
    pub(crate) async fn bring_up(&self, node: &str, seconds: f64) -> bool {
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        while Instant::now() < end && !(self.calming.get() && seconds <= 120.0) {
            let up = match self.publish(node).await {
                Ok(()) => self.stage(node).await,
                refused => refused,
            };
            match up {
                Ok(()) => {
                    self.settled(node).await;
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
    pub(super) async fn try_elsewhere(&self, node: &str) {
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

    /// Staged: in a new epoch, and on a node that was booted anew, the application does not wait for former writes.
    async fn settled(&self, node: &str) {
        // An object that is hidden, or a look that fails, is no new life (seed 5205).
        let before = self.life.borrow().clone();
        let epoch = self.recorded().map_or(before.0, |volume| volume.spec.attachment.epoch);
        let boot = self.cluster.world.kernel(node).node().await.map_or(before.1, |fact| fact.boot.0);
        if self.life.replace((epoch, boot.clone())) != (epoch, boot) {
            self.unanswered.borrow_mut().clear();
            self.seen.borrow_mut().clear();
        }
    }

    pub(super) async fn publish(&self, node: &str) -> Result<(), Status> {
        let new = self.at.borrow().as_deref() != Some(node);
        if new {
            // Attached from here on, whatever the answer: the call may have happened.
            self.at.replace(Some(node.into()));
            self.session.set(self.session.get() + 1);
        }
        let request = self.publication(node);
        let answer = self.cluster.controller(self.below(2)).controller_publish_volume(held(request)).await?;
        self.context.replace(answer.into_inner().publish_context);
        Ok(())
    }

    pub(super) async fn stage(&self, node: &str) -> Result<(), Status> {
        if !self.staged.borrow().iter().any(|staged| staged == node) {
            self.staged.borrow_mut().push(node.into());
        }
        let Some(service) = self.cluster.node(node) else { return Err(Status::unavailable("no agent")) };
        let request = NodeStageVolumeRequest {
            volume_id: self.name.clone(),
            staging_target_path: self.staging(),
            volume_capability: Some(capability()),
            publish_context: self.context.borrow().clone(),
            ..Default::default()
        };
        service.node_stage_volume(held(request)).await.map(|_| ())
    }

    pub(super) async fn unstage(&self, node: &str) -> bool {
        let Some(service) = self.cluster.node(node) else { return false };
        let request = NodeUnstageVolumeRequest { volume_id: self.name.clone(), staging_target_path: self.staging() };
        let done = service.node_unstage_volume(held(request)).await.is_ok();
        if done {
            self.staged.borrow_mut().retain(|staged| staged != node);
        }
        done
    }

    /// Detaches: in good order where that works, else by force; kubelet of the old node cleans up when it can.
    pub(crate) async fn leave(&self, orderly: bool) {
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
    pub(super) async fn unpublish_once(&self, node: &str) -> bool {
        let (volume_id, node_id) = (self.name.clone(), node.to_string());
        let request = ControllerUnpublishVolumeRequest { volume_id, node_id, ..Default::default() };
        let service = self.cluster.controller(self.below(2)).clone();
        let call = actix::spawn(async move { service.controller_unpublish_volume(held(request)).await.is_ok() });
        matches!(tokio::time::timeout(PATIENCE, call).await, Ok(Ok(true)))
    }

    /// What kubelet does on nodes that the volume has left.
    pub(super) async fn clean_up_everywhere(&self) -> bool {
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

    pub(super) fn staging(&self) -> String {
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
pub(super) fn held<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Deadline(Instant::now() + HELD));
    request
}
