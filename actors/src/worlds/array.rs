//! One volume's array on its consumer: the record by quorum, MD's facts, every device that is or may become a member,
//! and what those devices say of themselves where the plan has to know.

use crate::env::{Env, Reading};
use crate::failure::Failure;
use crate::shell::World;
use meshstor_api::MeshStorVolume;
use meshstor_kernel::facts::{ArrayFact, ConnectionFact, PartitionFact};
use meshstor_kernel::id::{ExportKey, ReplicaKey, VolumeId};
use meshstor_kernel::ops::{Changed, Op};
use meshstor_plan::Step;
use meshstor_plan::array::{Array, ArrayLook, ArrayWish, Candidate, RecordLook, probes, to_freeze};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// The world of one volume's array.
pub struct ArrayWorld {
    env: Rc<Env>,
    volume: VolumeId,
    /// The object that the last look was made on: compare-and-swaps are drafted against it.
    stored: RefCell<Option<MeshStorVolume>>,
    /// Since when the array is wanted and not there.
    waiting_since: Cell<Option<Instant>>,
    /// Chunks merged into the running array's bitmap since it was last whole or absent, or got a member.
    merged: RefCell<BTreeSet<u64>>,
    /// Own partitions as they were last read.
    own: RefCell<BTreeMap<ReplicaKey, (ExportKey, Candidate)>>,
    /// Devices whose re-add failed since then.
    re_add_failed: RefCell<BTreeSet<String>>,
    /// Failed members that a look with the record has seen.
    seen_failed: RefCell<BTreeSet<String>>,
    /// How long an answer about the record is awaited before the array is looked at.
    patience: Cell<Duration>,
    freeze_failed: Cell<bool>,
    cut_off: Cell<bool>,
}

/// How often the array is looked at while an answer of the API server is awaited: a failed member has its writes frozen by
/// then, whether the server answers or not (P6). An answer is seldom as late.
const MEANWHILE: Duration = Duration::from_millis(50);
/// The same for the first answer of an agent's life, which has a connection to make first. A member that it finds failed may
/// have been out of the record for days, and writes are not to stop for each restart (P5); if not, it has gone on without an
/// agent for longer than this.
const FIRST: Duration = Duration::from_millis(500);

impl ArrayWorld {
    /// Of this volume.
    pub fn new(env: Rc<Env>, volume: VolumeId) -> Self {
        ArrayWorld {
            env,
            volume,
            stored: RefCell::default(),
            waiting_since: Cell::default(),
            merged: RefCell::default(),
            own: RefCell::default(),
            re_add_failed: RefCell::default(),
            seen_failed: RefCell::default(),
            patience: Cell::new(FIRST),
            freeze_failed: Cell::new(false),
            cut_off: Cell::new(false),
        }
    }

    /// The record by quorum. A server that hangs is not waited for while a member has failed and nothing is frozen: what is
    /// acknowledged meanwhile is on copies that the record does not tell from the failed one (simulator, seed 365).
    async fn record(&self) -> Reading {
        let mut reading = std::pin::pin!(self.env.read_record(self.volume));
        loop {
            tokio::select! {
                biased;
                reading = &mut reading => {
                    self.patience.set(MEANWHILE);
                    return reading;
                }
                () = tokio::time::sleep(self.patience.replace(MEANWHILE)) => {}
            }
            let array = self.env.kernel.array(self.volume).await.ok().flatten();
            if array.is_some_and(|array| self.lost_unfrozen(&array)) {
                return Reading { look: RecordLook::Unreachable, stored: None };
            }
        }
    }

    /// Whether a member has failed that no look with the record has seen yet, and writes go on.
    fn lost_unfrozen(&self, array: &ArrayFact) -> bool {
        let lost = failed(array).any(|component| !self.seen_failed.borrow().contains(component));
        // A freeze that failed is not tried again instead of the record: that would be never read.
        lost && to_freeze(array).is_some() && !self.freeze_failed.get()
    }

    async fn candidates(&self, connections: &BTreeMap<ExportKey, ConnectionFact>) -> BTreeMap<ExportKey, Candidate> {
        let mut candidates: BTreeMap<ExportKey, Candidate> =
            connections.iter().filter_map(|(key, connection)| Some((*key, remote(connection)?))).collect();
        let local = self.env.book.borrow().local(self.volume);
        for key in local {
            // A broken drive must not make the whole array invisible: its loss is what has to be seen. What it said of
            // itself last still holds, because nobody can have written to it since.
            let found = match self.env.kernel.partition(key).await {
                Ok(partition) => partition.as_ref().and_then(|partition| own(key, partition)),
                Err(error) => {
                    tracing::debug!(%key, %error, "an own partition cannot be read");
                    self.own.borrow().get(&key).cloned()
                }
            };
            match &found {
                Some(found) => self.own.borrow_mut().insert(key, found.clone()),
                None => self.own.borrow_mut().remove(&key),
            };
            candidates.extend(found);
        }
        candidates
    }

    /// How long the array has been wanted without being there.
    fn waiting_for(&self, wanted: bool, running: bool) -> Duration {
        if !wanted || running {
            self.waiting_since.set(None);
            return Duration::ZERO;
        }
        let since = self.waiting_since.get().unwrap_or_else(Instant::now);
        self.waiting_since.set(Some(since));
        since.elapsed()
    }

    /// Reads what the devices say of themselves. One that cannot be read is one that says nothing.
    async fn probe(&self, look: &mut ArrayLook) {
        let wanted = probes(look);
        let reads = wanted.iter().filter_map(|(key, data_too)| {
            let path = look.candidates.get(key)?.path.clone();
            Some(async move { (*key, self.env.kernel.probe(&path, *data_too).await, path) })
        });
        let reads: Vec<_> = reads.collect();
        for (key, result, path) in futures::future::join_all(reads).await {
            match (result, look.candidates.get_mut(&key)) {
                (Ok(probe), Some(candidate)) => candidate.probe = Some(probe),
                (Ok(_), None) => {}
                (Err(error), _) => tracing::debug!(%key, path, %error, "a member could not be read"),
            }
        }
    }

    /// Does a compare-and-swap drafted against the object of the last look.
    pub async fn apply_to_record(&self, op: &meshstor_plan::record::RecordOp) -> Result<Changed, Failure> {
        let stored = self.stored.borrow().clone();
        match stored {
            Some(stored) => self.env.server.compare_and_swap(op, &stored).await,
            None => Err(Failure::Raced { what: op.to_string() }),
        }
    }
}

/// Components of failed members.
fn failed(array: &ArrayFact) -> impl Iterator<Item = &String> {
    array.members.iter().filter(|(_, member)| member.flags.contains("faulty")).map(|(component, _)| component)
}

/// The head of a connection as a member to be.
fn remote(connection: &ConnectionFact) -> Option<Candidate> {
    let head = connection.head.as_ref()?;
    Some(Candidate {
        component: head.name.clone(),
        path: head.path.clone(),
        local: false,
        bytes: head.size_bytes,
        probe: None,
    })
}

/// This node's own partition as a member to be, under the life that its drive's record names.
fn own(key: ReplicaKey, partition: &PartitionFact) -> Option<(ExportKey, Candidate)> {
    let record = partition.record.as_ref()?;
    let path = partition.path.clone()?;
    let component = path.rsplit('/').next()?.to_string();
    let life = ExportKey { replica: key, epoch: record.epoch, generation: record.generation };
    let bytes = partition.kernel_bytes.unwrap_or(0);
    Some((life, Candidate { component, path, local: true, bytes, probe: None }))
}

impl World<Array> for ArrayWorld {
    async fn observe(&self, wish: Option<&ArrayWish>) -> Result<ArrayLook, Failure> {
        let kernel = &self.env.kernel;
        // The record first: what the kernel shows is then not older than what it is compared with.
        let Reading { look: record, stored } = self.record().await;
        self.stored.replace(stored);
        let node = self.env.node().await?;
        let connections = kernel.connections(self.volume).await?;
        let candidates = self.candidates(&connections).await;
        let array = kernel.array(self.volume).await?;
        if matches!(record, RecordLook::Fresh(_)) {
            self.seen_failed.replace(array.iter().flat_map(failed).cloned().collect());
        }
        let staged = wish.is_some_and(|wish| wish.staged);
        let live_mounts = match array {
            Some(_) => kernel.mounts(self.volume).await?.mounts,
            None => BTreeMap::new(),
        };
        self.cut_off.set(self.cut_off.get() && array.is_some());
        if array.as_ref().is_none_or(|array| array.degraded == 0) {
            self.merged.borrow_mut().clear();
            self.re_add_failed.borrow_mut().clear();
        }
        let waiting_for = self.waiting_for(staged, array.is_some());
        let mut look = ArrayLook {
            me: self.env.me.clone(),
            boot: node.boot,
            now: self.env.clock.wall(),
            speeds: self.env.speeds,
            record,
            array,
            candidates,
            connections,
            live_mounts: live_mounts.into_iter().filter(|(_, alive)| *alive).map(|(target, _)| target).collect(),
            waiting_for,
            merged: self.merged.borrow().clone(),
            re_add_failed: self.re_add_failed.borrow().clone(),
            freeze_failed: self.freeze_failed.get(),
            cut_off: self.cut_off.get(),
        };
        if staged {
            self.probe(&mut look).await;
        }
        Ok(look)
    }

    async fn apply(&self, step: &Step) -> Result<Changed, Failure> {
        match step {
            Step::Kernel(op) => {
                let result = self.env.kernel.apply(op).await;
                if let (Op::ReAddMember { device, .. }, Err(_)) = (op, &result) {
                    self.re_add_failed.borrow_mut().insert(device.clone());
                }
                if let Op::FreezeWrites { frozen: true, .. } = op {
                    self.freeze_failed.set(result.is_err());
                }
                match op {
                    Op::CutOff { .. } => self.cut_off.set(result.is_ok()),
                    // Somebody came and has it open: kill again.
                    Op::StopArray { .. } if result.is_err() => self.cut_off.set(false),
                    _ => {}
                }
                // What was merged stays marked while a member is missing, no longer: with one more, writes clear bits again, and
                // whoever returns next needs its own merge (simulator, seed 4273). An answer that is an error may be late.
                if matches!(op, Op::ReAddMember { .. } | Op::AddMember { .. }) {
                    self.merged.borrow_mut().clear();
                }
                let changed = result?;
                if let Op::MergeBitmap { chunks, .. } = op {
                    self.merged.borrow_mut().extend(chunks);
                }
                Ok(changed)
            }
            Step::Record(op) => {
                let result = self.apply_to_record(op).await;
                if result.is_ok() {
                    self.freeze_failed.set(false);
                }
                result
            }
        }
    }
}
