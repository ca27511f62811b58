//! What applications do: write, read and flush blocks of a mounted volume, hold files open.
//!
//! Every call is a process: it waits as long as the kernel lets it wait, gets EIO by the rules, and never hears of
//! success once it was killed. Called by tests through `World`; it never repeats a request.

use super::fs::{FS_BLOCKS, Opener};
use super::md::io::Ask;
use super::state::{State, Time};
use crate::id::{NodeName, VolumeId};
use tokio::sync::oneshot;

/// Why an application's request did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// The kernel answered EIO.
    #[error("input/output error")]
    Eio,
    /// The volume is not mounted there, or read-only for a write.
    #[error("not mounted for this")]
    NotMounted,
    /// The process was killed while it waited.
    #[error("killed")]
    Killed,
    /// The machine lost its power.
    #[error("the machine is gone")]
    NodeDown,
}

/// One write as applications saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteRecord {
    /// Node it was made on.
    pub node: NodeName,
    /// Volume.
    pub volume: VolumeId,
    /// Block, as the application counts.
    pub block: u64,
    /// Content.
    pub tag: u64,
    /// When it was asked for.
    pub asked: Time,
    /// When success was answered; `None` while it waits or when it failed: its content may be there or not.
    pub acknowledged: Option<Time>,
    pub(super) io: u64,
}

/// A process that waits for a request.
pub(super) struct Caller {
    pub(super) node: usize,
    pub(super) array: u64,
    pub(super) target: String,
    /// Came through a file system, whose shutdown fails it.
    through_fs: bool,
    reply: Option<oneshot::Sender<Result<u64, IoError>>>,
}

impl Caller {
    /// Whether the process lives, and so keeps the file open.
    pub(super) fn is_open(&self) -> bool {
        self.reply.as_ref().is_some_and(|reply| !reply.is_closed())
    }
}

impl State {
    /// Starts an application's request.
    pub(super) fn begin(&mut self, node: usize, volume: VolumeId, ask: Ask) -> oneshot::Receiver<Result<u64, IoError>> {
        let (reply, answer) = oneshot::channel();
        match self.way_in(node, volume, ask) {
            Ok((array, target, through_fs)) => {
                let shifted = match ask {
                    Ask::Write { block, tag } => Ask::Write { block: block + FS_BLOCKS, tag },
                    Ask::Read { block } => Ask::Read { block: block + FS_BLOCKS },
                    Ask::Flush => Ask::Flush,
                };
                let io = self.ask(array, shifted);
                self.record(node, volume, ask, io);
                let caller = Caller { node, array, target, through_fs, reply: Some(reply) };
                self.callers.insert(io, caller);
            }
            Err(error) => {
                // The receiver is at hand: it cannot be closed.
                let _ = reply.send(Err(error));
            }
        }
        answer
    }

    fn record(&mut self, node: usize, volume: VolumeId, ask: Ask, io: u64) {
        let Ask::Write { block, tag } = ask else { return };
        if self.history.len() >= self.config.trace_limit.max(2) {
            let half = self.history.len() / 2;
            self.history.drain(..half);
        }
        let name = self.nodes[node].name.clone();
        let (asked, acknowledged) = (self.now, None);
        self.history.push(WriteRecord { node: name, volume, block, tag, asked, acknowledged, io });
    }

    /// The array and the mount point by which an application gets at a volume.
    fn way_in(&self, node: usize, volume: VolumeId, ask: Ask) -> Result<(u64, String, bool), IoError> {
        if !self.nodes[node].up || self.nodes[node].stopping {
            return Err(IoError::NodeDown);
        }
        let array = self.array_of(node, volume).ok_or(IoError::NotMounted)?;
        let writes = matches!(ask, Ask::Write { .. });
        let mounts = self.nodes[node].mounts.iter();
        let tops = mounts.filter_map(|(target, layers)| Some((target, layers.last()?)));
        let fits = |m: &super::fs::Mount| m.array == array && !(writes && m.read_only);
        let newest = tops.filter(|(_, m)| fits(m)).max_by_key(|(_, m)| m.order);
        let (target, mount) = newest.ok_or(IoError::NotMounted)?;
        let alive = self.arrays.get(&array).is_some_and(|a| a.fs.as_ref().is_some_and(|f| f.alive));
        if !mount.raw && !alive {
            return Err(IoError::Eio);
        }
        Ok((array, target.clone(), !mount.raw))
    }

    /// Hands the result of a finished request to the application; answers whether there was one to hand over.
    pub(super) fn deliver(&mut self, io: u64) -> bool {
        if !self.callers.contains_key(&io) {
            return false;
        }
        let (Some(result), Some(caller)) = (self.io_result(io), self.callers.remove(&io)) else { return false };
        let fs_alive = self.arrays.get(&caller.array).and_then(|a| a.fs.as_ref()).is_some_and(|f| f.alive);
        let result = match result {
            Ok(_) if caller.through_fs && !fs_alive => Err(IoError::Eio),
            Ok(tag) => Ok(tag),
            Err(()) => {
                // A file system that cannot write its log shuts itself down.
                if let Some(fs) = self.arrays.get_mut(&caller.array).and_then(|a| a.fs.as_mut()) {
                    fs.alive = false;
                }
                Err(IoError::Eio)
            }
        };
        let heard = caller.reply.is_some_and(|reply| reply.send(result).is_ok());
        if heard && result.is_ok() {
            let now = self.now;
            if let Some(write) = self.history.iter_mut().rev().find(|w| w.io == io) {
                write.acknowledged = Some(now);
            }
        }
        true
    }

    /// SIGKILL for all who wait on an array: none of them hears of success any more.
    pub(super) fn kill_callers(&mut self, array: u64) -> bool {
        let mut any = false;
        for caller in self.callers.values_mut().filter(|c| c.array == array) {
            any |= caller.is_open();
            if let Some(reply) = caller.reply.take() {
                // The process may be gone already.
                let _ = reply.send(Err(IoError::Killed));
            }
        }
        any
    }

    /// The machine of these callers is gone.
    pub(super) fn callers_lost(&mut self, node: usize) {
        let mut lost = Vec::new();
        for (io, caller) in &mut self.callers {
            if caller.node == node {
                lost.push(*io);
                if let Some(reply) = caller.reply.take() {
                    let _ = reply.send(Err(IoError::NodeDown));
                }
            }
        }
        for io in lost {
            self.callers.remove(&io);
        }
    }

    pub(super) fn open(&mut self, node: usize, volume: VolumeId) -> Option<u64> {
        let (array, target, _) = self.way_in(node, volume, Ask::Read { block: 0 }).ok()?;
        let id = self.id();
        self.nodes[node].openers.insert(id, Opener { array, target });
        Some(id)
    }
}
