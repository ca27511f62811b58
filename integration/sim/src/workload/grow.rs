//! A volume that is made larger while it lives, as csi-resizer and kubelet do it, whatever else goes on.
//!
//! Started by a volume's life, beside it. What it draws it draws from numbers of its own, so that volumes which do not grow
//! are what they were. Room right behind a partition is not always there: then the volume stays as it was.

use super::calls::held;
use super::{GIB, Life};
use crate::cluster::pass;
use fastrand::Rng;
use meshstor_csi::proto::controller_server::Controller as _;
use meshstor_csi::proto::node_server::Node as _;
use meshstor_csi::proto::*;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use tokio::time::Instant;
use tonic::{Code, Status};

/// Told apart from what the seed draws otherwise.
const APART: u64 = 0x6c61_7267_6572_2121;
/// The size that it gets.
const LARGER: i64 = 2 * GIB;

/// Whether and how a volume grows.
#[derive(Default)]
pub(crate) struct Growing {
    rng: RefCell<Option<Rng>>,
    /// It was asked for: the call may have happened, whatever was answered.
    asked: Cell<bool>,
    /// Controller and node have answered yes: pods write behind the old end.
    pub(crate) grown: Cell<bool>,
}

impl Growing {
    /// Every other volume grows.
    pub(crate) fn draw(&self, seed: u64, number: usize) {
        let mut rng = Rng::with_seed(seed ^ APART ^ ((number as u64) << 8));
        if rng.bool() {
            self.rng.replace(Some(rng));
        }
    }

    fn below(&self, n: usize) -> usize {
        self.rng.borrow_mut().as_mut().map_or(0, |rng| rng.usize(..n))
    }
}

impl Life {
    /// Asks for more at some moment, again and again until the answer is yes or that there is no room.
    pub(super) fn grow_now_and_then(self: Rc<Self>) {
        if self.growing.rng.borrow().is_none() {
            return;
        }
        actix::spawn(async move {
            pass(10.0 + self.growing.below(90) as f64).await;
            while !self.calming.get() && !self.growing.grown.get() {
                pass(1.0 + self.growing.below(5) as f64).await;
                let Some(node) = self.at.borrow().clone() else { continue };
                if matches!(self.grow_once(&node).await, Err(status) if status.code() == Code::ResourceExhausted) {
                    return;
                }
            }
        });
    }

    /// What csi-resizer and then kubelet call.
    async fn grow_once(&self, node: &str) -> Result<(), Status> {
        if self.id.get().is_none() {
            return Err(Status::unavailable("there is no such volume yet"));
        }
        self.growing.asked.set(true);
        let range = || Some(CapacityRange { required_bytes: LARGER, limit_bytes: 0 });
        let request = ControllerExpandVolumeRequest {
            volume_id: self.name.clone(),
            capacity_range: range(),
            ..Default::default()
        };
        let controller = self.cluster.controller(self.growing.below(2)).clone();
        controller.controller_expand_volume(held(request)).await?;
        let Some(service) = self.cluster.node(node) else { return Err(Status::unavailable("no agent")) };
        let request = NodeExpandVolumeRequest {
            volume_id: self.name.clone(),
            volume_path: self.staging(),
            capacity_range: range(),
            ..Default::default()
        };
        service.node_expand_volume(held(request)).await?;
        self.growing.grown.set(true);
        Ok(())
    }

    /// After all harm: what was asked for is there, array and file system, or there never was room for it.
    pub(super) async fn grown_at_last(&self, node: &str, end: Instant) -> Result<(), String> {
        if !self.growing.asked.get() {
            return Ok(());
        }
        let mut last = String::new();
        while Instant::now() < end {
            match self.grow_once(node).await {
                Ok(()) => return self.has_grown(node).await,
                Err(status) if status.code() == Code::ResourceExhausted => return Ok(()),
                Err(status) => last = status.to_string(),
            }
            pass(1.0).await;
        }
        if self.cramped() {
            return Ok(());
        }
        Err(format!("{} could not be made larger after all harm had ended: {last}", self.name))
    }

    /// A copy that was away when the volume grew has no room where it lies: it is replaced after a quarter of an hour, if some
    /// node can hold another one (docs/operations/expansion.md). Until then, or for ever, the volume has one copy less.
    pub(crate) fn cramped(&self) -> bool {
        self.growing.asked.get() && crate::oracle::said(&self.cluster, &self.name).contains("NoRoomBehind")
    }

    async fn has_grown(&self, node: &str) -> Result<(), String> {
        let Some(id) = self.id.get() else { return Ok(()) };
        let kernel = self.cluster.world.kernel(node);
        let (array, fs) = (kernel.array(id).await, kernel.mounts(id).await);
        let bytes = array.ok().flatten().map_or(0, |array| array.size_bytes);
        let filled = fs.ok().and_then(|fs| fs.bytes).unwrap_or(0);
        match bytes >= LARGER as u64 && filled >= bytes {
            true => Ok(()),
            false => Err(format!("{}: NodeExpandVolume said yes to {bytes} bytes, {filled} of them filled", self.name)),
        }
    }
}
