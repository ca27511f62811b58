//! One volume's file system on its consumer: mounts, the array as its own plan sees it now, and proofs of blankness
//! while nothing was ever made.
//!
//! What is mounted where it should be, or is to be mounted nowhere, needs neither record nor array: a healthy volume
//! costs the API server nothing here, and an unstage works from kernel facts alone (K4).

use crate::env::Env;
use crate::failure::Failure;
use crate::shell::World;
use crate::worlds::array::ArrayWorld;
use meshstor_kernel::facts::{BlankData, FsFact};
use meshstor_kernel::id::VolumeId;
use meshstor_kernel::mutant::{self, Mutant};
use meshstor_kernel::ops::{Changed, Op};
use meshstor_plan::array::{Array, ArrayLook, ArrayPhase, ArrayReport, ArrayWish, RecordLook};
use meshstor_plan::record::FormatRecord;
use meshstor_plan::stage::{Stage, StageLook, StageWish};
use meshstor_plan::{Machine, Step};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// A file system that could not grow is asked again after this long: nobody's data wait for it.
const GROW_AGAIN: Duration = Duration::from_secs(30);

/// The world of one volume's file system.
pub struct StageWorld {
    env: Rc<Env>,
    volume: VolumeId,
    array: ArrayWorld,
    /// This agent has made or found the file system: what [`Mutant::FormatRemembered`] goes by.
    made: Cell<bool>,
    /// Bytes of the array as last looked at while something was mounted from it.
    array_bytes: Cell<u64>,
    /// The array that was filled last, by its bytes.
    filled: Cell<Option<u64>>,
    /// Why that could not be done, and when.
    not_grown: RefCell<Option<(String, Instant)>>,
}

impl StageWorld {
    /// Of this volume.
    pub fn new(env: Rc<Env>, volume: VolumeId) -> Self {
        StageWorld {
            array: ArrayWorld::new(Rc::clone(&env), volume),
            env,
            volume,
            made: Cell::new(false),
            array_bytes: Cell::new(0),
            filled: Cell::default(),
            not_grown: RefCell::default(),
        }
    }

    /// Whether something is mounted from an array that takes no writes any more.
    async fn broken(&self, fs: &FsFact) -> Result<bool, Failure> {
        let alive = fs.mounts.values().any(|alive| *alive);
        let array = if alive { self.env.kernel.array(self.volume).await? } else { None };
        let bytes = array.as_ref().map_or(0, |array| array.size_bytes);
        if self.array_bytes.replace(bytes) != bytes {
            // Another array, or the same one grown.
            self.filled.set(None);
            self.not_grown.replace(None);
        }
        Ok(array.is_some_and(|array| array.state == "broken"))
    }

    /// Why the file system could not grow a moment ago.
    fn not_grown(&self) -> Option<String> {
        let recent = |(_, at): &&(String, Instant)| at.elapsed() < GROW_AGAIN;
        self.not_grown.borrow().as_ref().filter(recent).map(|(error, _)| error.clone())
    }

    /// The look, with what this process remembers of growing.
    fn look(&self, record: RecordLook, array: ArrayReport, fs: FsFact, blank: Vec<BlankData>) -> StageLook {
        let (array_bytes, filled, not_grown) = (self.array_bytes.get(), self.filled.get(), self.not_grown());
        StageLook { record, array, fs, blank, array_bytes, filled, not_grown }
    }

    /// Proofs of blankness of active members, each read from the member itself.
    async fn blank(&self, look: &ArrayLook) -> Vec<BlankData> {
        let RecordLook::Fresh(record) = &look.record else { return Vec::new() };
        if record.format == FormatRecord::Done {
            return Vec::new();
        }
        let active = |component: &str| {
            look.array.as_ref().and_then(|a| a.members.get(component)).is_some_and(|member| member.in_sync())
        };
        let members = look.candidates.values().filter(|candidate| active(&candidate.component));
        let reads = members.map(|candidate| self.env.kernel.probe(&candidate.path, true));
        let probes = futures::future::join_all(reads.collect::<Vec<_>>()).await;
        probes.into_iter().filter_map(|probe| probe.ok()?.blank).collect()
    }
}

/// Nothing about the array and the record is needed for the decision.
fn settled(wish: Option<&StageWish>, fs: &FsFact) -> bool {
    match wish {
        Some(StageWish { target: Some(target), .. }) => fs.mounts.get(target) == Some(&true),
        Some(StageWish { target: None, .. }) | None => true,
    }
}

impl World<Stage> for StageWorld {
    async fn observe(&self, wish: Option<&StageWish>) -> Result<StageLook, Failure> {
        let fs = self.env.kernel.mounts(self.volume).await?;
        if settled(wish, &fs) && !self.broken(&fs).await? {
            let record = RecordLook::Unreachable;
            return Ok(self.look(record, ArrayReport::default(), fs, Vec::new()));
        }
        let staged = ArrayWish { volume: self.volume, staged: true };
        let look = self.array.observe(Some(&staged)).await?;
        let array = Array::plan(Some(&staged), &look).status;
        // A megabyte of each member: not before the decision can be made.
        let usable = array.phase == ArrayPhase::Active;
        let blank = if usable { self.blank(&look).await } else { Vec::new() };
        // Read after the array was seen active: a file system on an array that was not is none, and may not be readable.
        let mut fs = if usable { self.env.kernel.filesystem(self.volume).await? } else { fs };
        let mut record = look.record;
        if mutant::on(Mutant::FormatRemembered)
            && !self.made.get()
            && let RecordLook::Fresh(record) = &mut record
        {
            record.format = FormatRecord::Started;
            fs.signature = None;
        }
        Ok(self.look(record, array, fs, blank))
    }

    async fn apply(&self, step: &Step) -> Result<Changed, Failure> {
        match step {
            Step::Kernel(op @ Op::GrowFilesystem { .. }) => {
                let bytes = self.array_bytes.get();
                let done = self.env.kernel.apply(op).await;
                match &done {
                    Ok(_) => self.filled.set(Some(bytes)),
                    Err(error) => drop(self.not_grown.replace(Some((error.to_string(), Instant::now())))),
                }
                Ok(done?)
            }
            Step::Kernel(op) => {
                let changed = self.env.kernel.apply(op).await?;
                self.made.set(self.made.get() || matches!(op, Op::MakeFilesystem { .. }));
                Ok(changed)
            }
            Step::Record(op) => self.array.apply_to_record(op).await,
        }
    }
}
