//! What a container orchestrator and its pods do: volumes are created, staged, written, moved in good order or by force,
//! deleted. Each volume is a task of its own.
//!
//! Called by `run`. It calls CSI as sidecars and kubelet do (again and again, until the answer is yes) and remembers
//! which session of a volume each write belongs to, for the oracle.

mod blocks;
mod calls;
mod grow;

use crate::cluster::{Cluster, pass};
use fastrand::Rng;
use meshstor_csi::proto::controller_server::Controller as _;
use meshstor_csi::proto::*;
use meshstor_kernel::id::VolumeId;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

const GIB: i64 = 1 << 30;
/// When the caller of ControllerUnpublishVolume tries another controller.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest a CSI call is held, as the sidecars' timeouts are pinned.
const HELD: Duration = Duration::from_secs(60);

/// Drawn apart, see the nemesis.
const APART: u64 = 0x7061_7261_6d65_7465;

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
    /// Parameters of its class.
    parameters: Vec<(&'static str, String)>,
    /// Its identity once it exists.
    pub id: Cell<Option<VolumeId>>,
    /// Where it is attached.
    pub at: RefCell<Option<String>>,
    /// What the last attachment said.
    context: RefCell<HashMap<String, String>>,
    /// Nodes that may still have it staged.
    staged: RefCell<Vec<String>>,
    pub(crate) session: Cell<u64>,
    /// Epoch and boot of the last stage.
    life: RefCell<(u64, String)>,
    next_tag: Cell<u64>,
    calming: Cell<bool>,
    /// The last answer that was not yes.
    last: RefCell<String>,
    /// What the volume did that it must never do.
    pub broken: RefCell<Vec<String>>,
    /// Blocks with a write of this session that was never answered: both answers are right until the next takeover.
    unanswered: RefCell<BTreeSet<u64>>,
    /// What was read in this epoch and not written since, and when: it must be read again, whichever copy answers (F17).
    seen: RefCell<BTreeMap<u64, (u64, Duration)>>,
    /// Every write by its content.
    pub asked: RefCell<BTreeMap<u64, Asked>>,
    /// Whether and how it grows.
    pub(crate) growing: grow::Growing,
}

impl Life {
    /// A volume that does not exist yet.
    pub fn new(cluster: Rc<Cluster>, mut rng: Rng, number: usize) -> Rc<Life> {
        let copies = [1, 2, 2, 2, 3][rng.usize(..5)].min(cluster.nodes.len() as u32);
        let mut parameters = vec![("replicaCount", copies.to_string())];
        let mut apart = Rng::with_seed(rng.get_seed() ^ APART);
        if apart.usize(..3) == 0 {
            // Repair in the middle of all harm.
            parameters.push(("memberMissingTimeout", "60".into()));
            parameters.push(("relocationDelay", ["0", "30", "never"][apart.usize(..3)].into()));
        }
        Life::of(cluster, rng, number, copies, parameters)
    }

    /// One that is as asked for.
    pub fn of(
        cluster: Rc<Cluster>,
        rng: Rng,
        number: usize,
        copies: u32,
        parameters: Vec<(&'static str, String)>,
    ) -> Rc<Life> {
        Rc::new(Life {
            cluster,
            rng: RefCell::new(rng),
            name: format!("pvc-{number}"),
            copies,
            parameters,
            id: Cell::new(None),
            at: RefCell::default(),
            context: RefCell::default(),
            staged: RefCell::default(),
            session: Cell::new(0),
            life: RefCell::default(),
            next_tag: Cell::new(1000 * number as u64 + 1),
            calming: Cell::new(false),
            last: RefCell::default(),
            broken: RefCell::default(),
            unanswered: RefCell::default(),
            seen: RefCell::default(),
            asked: RefCell::default(),
            growing: grow::Growing::default(),
        })
    }

    fn below(&self, n: usize) -> usize {
        self.rng.borrow_mut().usize(..n)
    }

    fn node(&self) -> String {
        let there: Vec<&String> = self.cluster.nodes.iter().filter(|node| !self.cluster.is_lost(node)).collect();
        there[self.below(there.len())].clone()
    }

    // -------------------------------------------------------------------------------------------- phases

    /// Lives until calmed.
    pub async fn live(self: Rc<Self>) {
        pass(self.below(50) as f64 / 10.0).await;
        self.clone().grow_now_and_then();
        while self.id.get().is_none() && !self.calming.get() {
            self.create().await;
        }
        let mut again = None;
        while !self.calming.get() {
            let node = again.take().or_else(|| self.at.borrow().clone()).unwrap_or_else(|| self.node());
            if !self.bring_up(&node, 120.0).await {
                self.leave(false).await;
                continue;
            }
            if self.below(8) == 0 {
                self.try_elsewhere(&node).await;
            }
            let until = Instant::now() + Duration::from_secs(5 + self.below(40) as u64);
            self.write_until(&node, until).await;
            match self.below(5) {
                0 => {}
                4 => {
                    self.tear(&node).await;
                    again = (self.below(2) == 0).then_some(node);
                }
                1 => self.leave(false).await,
                _ => self.leave(true).await,
            }
        }
    }

    /// Detached by force while writes have reached the near copy and not the far ones.
    async fn tear(&self, node: &str) {
        let (world, cluster, from) = (&self.cluster.world, self.cluster.clone(), node.to_string());
        world.isolate(node);
        actix::spawn(async move {
            pass(4.0).await;
            cluster.nodes.iter().filter(|other| **other != from).for_each(|other| cluster.world.heal(&from, other));
        });
        let time = Duration::from_millis(300 + 100 * self.below(20) as u64);
        self.write_until(node, Instant::now() + time).await;
        self.leave(false).await;
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
        if self.at.borrow().as_ref().is_some_and(|node| self.cluster.is_lost(node)) {
            self.leave(false).await;
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
        self.grown_at_last(&node, end).await?;
        let write = self.write_one(&node, id);
        match tokio::time::timeout(Duration::from_secs(60), write).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("{}: a write after all harm had ended: {error}", self.name)),
            Err(_) => Err(format!("{}: a write hangs after all harm has ended", self.name)),
        }
    }

    /// Whether its array, where it is attached, has nothing to sync.
    pub async fn idle(&self) -> bool {
        let (Some(node), Some(id)) = (self.at.borrow().clone(), self.id.get()) else { return true };
        let array = self.cluster.world.kernel(&node).array(id).await;
        !matches!(array, Ok(Some(array)) if !array.resync_done || array.sync_action != "idle")
    }

    /// Everything goes.
    pub async fn end(&self, seconds: f64) -> Result<(), String> {
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        self.leave(true).await;
        let mut last = String::new();
        while Instant::now() < end {
            if self.clean_up_everywhere().await {
                let request = DeleteVolumeRequest { volume_id: self.name.clone(), ..Default::default() };
                match self.cluster.controller(self.below(2)).delete_volume(calls::held(request)).await {
                    Ok(_) => return Ok(()),
                    Err(status) => last = status.to_string(),
                }
            }
            pass(1.0).await;
        }
        Err(format!("{} could not be deleted within {seconds} s: {last}", self.name))
    }
}
