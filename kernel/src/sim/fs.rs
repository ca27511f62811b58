//! File systems, mount points and openers of a node, and the operations on them.
//!
//! A file system is a mark in the first block of an array's data; mounting it writes to the array, so it waits when a
//! member is stuck. Applications' blocks begin behind the file system's own. Called by the job dispatch and by the
//! workload; it never looks at members: everything goes through the array.

use super::growfs::{bytes_in, sized};
use super::job::{Step, errno};
use super::laws::Law;
use super::md::io::Ask;
use super::state::State;
use crate::MountFact;
use crate::content::Filesystem;
use crate::error::KernelError;
use crate::facts::FsFact;
use crate::id::VolumeId;
use crate::ops::{Changed, FormatPermit, Op};

/// Blocks at the start of an array that belong to the file system: 0 its mark, 1 its log, 2 half-made content.
pub(super) const FS_BLOCKS: u64 = 16;
pub(super) const MARK: u64 = 0;
const LOG: u64 = 1;
const HALF_MADE: u64 = 2;
/// Marks of the file systems: far from the tags that workloads use.
const fn mark_of(filesystem: Filesystem) -> u64 {
    match filesystem {
        Filesystem::Xfs => 0x5846_5342_0000_0001,
        Filesystem::Ext4 => 0xef53_0000_0000_0001,
    }
}

/// A mounted file system: one for all mount points of the array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Instance {
    pub(super) kind: String,
    /// Not shut down.
    pub(super) alive: bool,
    /// Its mark.
    pub(super) mark: u64,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) array: u64,
    pub(super) source: String,
    pub(super) read_only: bool,
    /// A bind of the block device itself.
    pub(super) raw: bool,
    /// Rises with each mount: applications come by the newest.
    pub(super) order: u64,
}

impl Mount {
    fn same_as(&self, other: &Mount) -> bool {
        Mount { order: other.order, ..self.clone() } == *other
    }
}

/// A process that has something of the volume open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Opener {
    pub(super) array: u64,
    /// The mount point it came by.
    pub(super) target: String,
}

/// How far the I/O of one stage of a job is.
pub(super) enum JobIo {
    Waits,
    /// Over just now; what was read.
    Ended(u64),
    Failed,
    /// Over when the job was tried before.
    Behind,
}

impl JobIo {
    fn waits(&self) -> bool {
        matches!(self, JobIo::Waits)
    }
}

fn kind_of(mark: u64) -> Option<String> {
    let known = Filesystem::ALL.into_iter().find(|f| mark_of(*f) == sized(mark, 0)).map(|f| f.to_string());
    if mark == 0 { None } else { known.or(Some("unknown".into())) }
}

impl State {
    /// How many things keep an array from being stopped.
    pub(super) fn open_count(&self, array: u64) -> usize {
        self.nodes.iter().map(|n| n.mounts.values().flatten().filter(|m| m.array == array).count()).sum::<usize>()
            + self.arrays.get(&array).map_or(0, |a| a.holders.len())
            + self.processes(array)
    }

    /// Processes that have something of an array open.
    pub(super) fn processes(&self, array: u64) -> usize {
        self.nodes.iter().flat_map(|n| n.openers.values()).filter(|o| o.array == array).count()
            + self.callers.values().filter(|c| c.array == array && c.is_open()).count()
    }

    /// Reads the first non-zero of the file system's blocks from the members themselves, without a command.
    fn peek(&self, array: u64, block: u64) -> Option<u64> {
        let a = self.arrays.get(&array)?;
        let mut good: Vec<_> = a.members.values().filter(|m| m.good()).collect();
        good.sort_by_key(|m| m.slot);
        good.into_iter().find_map(|m| match self.reach(a.node, m.dev) {
            super::host::Reach::There { drive, extent } => {
                let range = block..block + 1;
                let data = self.drives[drive].data_in(extent, self.config.block_bytes, range, false);
                Some(data.get(&block).copied().unwrap_or(0))
            }
            _ => None,
        })
    }

    /// What lies on an array; `None` while no member that could tell answers.
    pub(super) fn filesystem_fact(&self, node: usize, volume: VolumeId) -> Option<FsFact> {
        let Some(array) = self.array_of(node, volume) else { return Some(FsFact::default()) };
        let instance = self.arrays.get(&array).and_then(|a| a.fs.clone());
        let fact = self.mounts_fact(node, volume);
        let signature = match instance {
            // Mounted: the mount table names it, no read is needed.
            Some(instance) => Some(instance.kind),
            None => {
                let mark = self.peek(array, MARK)?;
                let other = self.peek(array, HALF_MADE)?;
                // As mkfs.xfs marks one that it has not finished (`sb_inprogress`).
                kind_of(mark).or_else(|| (other != 0).then(|| "unknown".into()))
            }
        };
        Some(FsFact { signature, ..fact })
    }

    /// Mounts of a volume's array; no device is read.
    pub(super) fn mounts_fact(&self, node: usize, volume: VolumeId) -> FsFact {
        let Some(array) = self.array_of(node, volume) else { return FsFact::default() };
        let alive = self.arrays.get(&array).and_then(|a| a.fs.as_ref()).is_none_or(|fs| fs.alive);
        let mounted = self.arrays.get(&array).and_then(|a| a.fs.as_ref());
        let bytes = mounted.filter(|fs| fs.alive).map(|fs| bytes_in(fs.mark));
        let mut fact = FsFact { bytes, ..FsFact::default() };
        for (target, layers) in &self.nodes[node].mounts {
            match layers.iter().rev().find(|m| m.array == array) {
                Some(mount) if mount.raw => drop(fact.raw.insert(target.clone())),
                Some(_) => drop(fact.mounts.insert(target.clone(), alive)),
                None => {}
            }
        }
        fact
    }

    pub(super) fn fs_alive(&self, array: u64) -> bool {
        self.arrays.get(&array).and_then(|a| a.fs.as_ref()).is_some_and(|fs| fs.alive)
    }

    pub(super) fn mount_fact(&self, node: usize, target: &str) -> Option<MountFact> {
        let mount = self.nodes[node].mounts.get(target)?.last()?;
        let array = self.arrays.get(&mount.array);
        Some(MountFact {
            volume: array.and_then(|a| a.volume),
            source: mount.source.clone(),
            alive: array.is_some_and(|a| mount.raw || a.fs.as_ref().is_some_and(|f| f.alive)),
            raw: mount.raw,
            read_only: mount.read_only,
        })
    }

    /// Array I/O as one stage of a job: started, waited for, and behind it when the job is tried again.
    pub(super) fn job_io(&mut self, job: u64, stage: u8, array: u64, ask: Ask) -> JobIo {
        let Some((at, io)) = self.jobs.get(&job).map(|j| (j.stage, j.io)) else { return JobIo::Waits };
        if at > stage {
            return JobIo::Behind;
        }
        let ended = match io {
            None => {
                let io = self.ask(array, ask);
                if let Some(job) = self.jobs.get_mut(&job) {
                    job.io = Some(io);
                }
                return JobIo::Waits;
            }
            Some(io) => self.io_result(io),
        };
        let Some(result) = ended else { return JobIo::Waits };
        if let Some(job) = self.jobs.get_mut(&job) {
            job.io = None;
            job.stage = stage + 1;
        }
        result.map_or(JobIo::Failed, JobIo::Ended)
    }

    pub(super) fn op_mkfs(
        &mut self,
        node: usize,
        op: &Op,
        (volume, filesystem): (VolumeId, Filesystem),
        permit: &FormatPermit,
        job: u64,
        half: bool,
    ) -> Step {
        let Some(array) = self.array_of(node, volume) else { return Step::no_array(op, volume) };
        let begun = self.jobs.get(&job).is_some_and(|j| j.io.is_some() || j.stage > 0);
        if !begun && let Some(step) = self.refuse_format(node, op, array, permit) {
            return step;
        }
        let first = if half { HALF_MADE } else { MARK };
        let bytes = self.arrays.get(&array).map_or(0, |a| a.component_bytes);
        match self.job_io(job, 0, array, Ask::Write { block: first, tag: sized(mark_of(filesystem), bytes) }) {
            JobIo::Waits => Step::Wait,
            JobIo::Failed => Step::fail(errno(op, volume.to_string(), errno::EIO)),
            _ if half => Step::fail(KernelError::retry(op.name(), volume.to_string(), "half made")),
            _ => Step::done(Changed::Yes),
        }
    }

    /// Why formatting has to wait or is forbidden. A file system that was never handed out may be made again, but not
    /// on the strength of a proof that the members are blank.
    fn refuse_format(&mut self, node: usize, op: &Op, array: u64, permit: &FormatPermit) -> Option<Step> {
        let a = self.arrays.get(&array)?;
        let (name, mounted) = (a.name.clone(), a.fs.is_some());
        if mounted {
            return Some(Step::fail(KernelError::refuse(op.name(), name, "it is mounted")));
        }
        let Some(log) = self.peek(array, LOG) else { return Some(Step::Wait) };
        let used = if log != 0 { Some(LOG) } else { self.first_data(array) };
        if let Some(block) = used {
            self.violate(node, Law::FormatOverData, format!("{op}: block {block} of {name} is in use"));
        }
        let made_before = matches!(permit, FormatPermit::Blank(_)) && self.first_content(array).is_some();
        (used.is_some() || made_before)
            .then(|| Step::fail(KernelError::refuse(op.name(), name, "content where the members were blank")))
    }

    /// First non-zero block behind the file system's own on any member of an array.
    fn first_data(&self, array: u64) -> Option<u64> {
        self.content(array).into_iter().find(|b| *b >= FS_BLOCKS)
    }

    fn first_content(&self, array: u64) -> Option<u64> {
        self.content(array).into_iter().next()
    }

    fn content(&self, array: u64) -> Vec<u64> {
        let Some(a) = self.arrays.get(&array) else { return Vec::new() };
        let places = a.members.values().filter(|m| m.good()).filter_map(|m| self.place_of(a.node, m.dev));
        let mut blocks: Vec<u64> = Vec::new();
        for (_, drive, number) in places {
            if let Some(entry) = self.drives[drive].entry(number) {
                blocks.extend(self.drives[drive].data(entry.extent, self.config.block_bytes, false).keys());
            }
        }
        blocks.sort_unstable();
        blocks
    }

    pub(super) fn op_mount(&mut self, node: usize, op: &Op, job: u64) -> Step {
        let Op::Mount { volume, target, fs, options } = op else { return Step::not_this(op) };
        let Some(array) = self.array_of(node, *volume) else { return Step::no_array(op, *volume) };
        let top = self.nodes[node].mounts.get(target).and_then(|layers| layers.last());
        match top {
            Some(mount) if mount.array == array && !mount.raw && self.fs_alive(array) => {
                return Step::done(Changed::No);
            }
            Some(_) => return Step::fail(KernelError::refuse(op.name(), target, "something else is mounted there")),
            None => {}
        }
        let read_only = options.split(',').any(|o| o == "ro");
        match self.job_io(job, 0, array, Ask::Read { block: MARK }) {
            JobIo::Waits => return Step::Wait,
            JobIo::Failed => return Step::fail(errno(op, target, errno::EIO)),
            JobIo::Ended(mark) if kind_of(mark).as_deref() != Some(fs.as_str()) => {
                return Step::fail(errno(op, target, errno::EINVAL));
            }
            JobIo::Ended(_) | JobIo::Behind => {}
        }
        // What was read just now, or by whoever mounted it first.
        let mark = self.peek(array, MARK).unwrap_or(mark_of(*fs));
        if !read_only {
            match self.job_io(job, 1, array, Ask::Write { block: LOG, tag: array << 8 | 1 }) {
                JobIo::Waits => return Step::Wait,
                JobIo::Failed => return Step::fail(errno(op, target, errno::EIO)),
                JobIo::Ended(_) | JobIo::Behind => {}
            }
        }
        let Some(a) = self.arrays.get_mut(&array) else { return Step::fail(errno(op, target, errno::ENODEV)) };
        a.fs.get_or_insert(Instance { kind: fs.to_string(), alive: true, mark });
        let source = format!("/dev/{}", a.name);
        self.materialize(target, false);
        let mount = Mount { array, source, read_only, raw: false, order: self.id() };
        self.nodes[node].mounts.entry(target.clone()).or_default().push(mount);
        Step::done(Changed::Yes)
    }

    pub(super) fn op_bind(&mut self, node: usize, op: &Op) -> Step {
        let Op::BindMount { source, target, read_only } = op else { return Step::not_this(op) };
        let n = &self.nodes[node];
        let from = match source.strip_prefix("/dev/") {
            // A raw block volume: the array's device node is what is bound.
            Some(name) => {
                let array = self.arrays.iter().find(|(_, a)| a.node == node && a.name == name).map(|(id, _)| *id);
                array.map(|array| Mount { array, source: source.clone(), read_only: *read_only, raw: true, order: 0 })
            }
            None => n.mounts.get(source).and_then(|layers| layers.last()).cloned(),
        };
        let Some(mut mount) = from else { return Step::fail(errno(op, source, errno::ENOENT)) };
        mount.read_only |= *read_only;
        match n.mounts.get(target).and_then(|layers| layers.last()) {
            Some(there) if there.same_as(&mount) => return Step::done(Changed::No),
            Some(there) if there.array == mount.array && there.raw == mount.raw => {
                // The same place with another flag: a remount.
                let layers = self.nodes[node].mounts.get_mut(target);
                layers.and_then(|l| l.last_mut()).into_iter().for_each(|m| m.read_only = *read_only);
                return Step::done(Changed::Yes);
            }
            Some(_) => return Step::fail(KernelError::refuse(op.name(), target, "something else is mounted there")),
            None => {}
        }
        mount.order = self.id();
        self.materialize(target, mount.raw);
        self.nodes[node].mounts.entry(target.clone()).or_default().push(mount);
        Step::done(Changed::Yes)
    }

    pub(super) fn op_unmount(&mut self, node: usize, op: &Op, target: &str, lazy: bool, job: u64) -> Step {
        let Some(layers) = self.nodes[node].mounts.get(target).cloned() else {
            self.dematerialize(target);
            return Step::done(Changed::No);
        };
        let open = self.nodes[node].openers.values().any(|o| o.target == target)
            || self.callers.values().any(|c| c.node == node && c.is_open() && c.target == target);
        if open && !lazy {
            return Step::fail(errno(op, target, errno::EBUSY));
        }
        for mount in &layers {
            let others = self.nodes[node].mounts.iter().filter(|(t, _)| t.as_str() != target);
            let last = !others.flat_map(|(_, l)| l).any(|m| m.array == mount.array && !m.raw);
            let alive = self.fs_alive(mount.array);
            if last && alive && !lazy && !mount.raw && !mount.read_only {
                // The last unmount writes the log and flushes: it waits for every member.
                let tag = mount.array << 8 | 2;
                let log = Ask::Write { block: LOG, tag };
                if self.job_io(job, 0, mount.array, log).waits() || self.job_io(job, 1, mount.array, Ask::Flush).waits()
                {
                    return Step::Wait;
                }
            }
        }
        self.nodes[node].mounts.remove(target);
        self.dematerialize(target);
        for mount in layers {
            let left = self.nodes[node].mounts.values().flatten().any(|m| m.array == mount.array && !m.raw);
            if let Some(a) = self.arrays.get_mut(&mount.array).filter(|_| !left) {
                a.fs = None;
            }
        }
        Step::done(Changed::Yes)
    }

    /// Makes a mount target on this machine, when the world is to be seen from outside. A failure is only traced:
    /// the simulated mount does not depend on it.
    fn materialize(&mut self, target: &str, file: bool) {
        if !self.config.materialize_mounts {
            return;
        }
        let path = std::path::Path::new(target);
        let made = match path.parent().filter(|_| file) {
            Some(parent) => std::fs::create_dir_all(parent)
                .and_then(|()| std::fs::OpenOptions::new().create(true).append(true).open(path).map(|_| ())),
            None => std::fs::create_dir_all(path),
        };
        if let Err(error) = made {
            self.say_world(format!("cannot make {target}: {error}"));
        }
    }

    /// Removes what `materialize` made; a directory that is not empty stays.
    fn dematerialize(&mut self, target: &str) {
        if !self.config.materialize_mounts {
            return;
        }
        let path = std::path::Path::new(target);
        let empty_file = std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == 0);
        let gone = if empty_file { std::fs::remove_file(path) } else { std::fs::remove_dir(path) };
        if let Err(error) = gone {
            self.say_world(format!("cannot remove {target}: {error}"));
        }
    }
}
