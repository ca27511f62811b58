//! What is remembered between runs: one file for the lab, one for each node, JSON below the run directory.
//!
//! Used by `lab`, `guest` and `faults`. A node's file is changed only under that node's lock, so that a demo and an
//! `xtask` command may use the same lab at once. Never a place for anything that the machine itself can be asked.

use crate::paths::{Paths, make_dir, write_atomically};
use crate::process::Recorded;
use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{File, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

/// What all nodes of a lab have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LabState {
    pub(crate) kernel: String,
    pub(crate) image: String,
    pub(crate) nodes: Vec<String>,
    pub(crate) memory_mib: u32,
    pub(crate) drive_bytes: u64,
    /// The host directory that guests see at `/host`.
    pub(crate) share: PathBuf,
}

/// One node as the host knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeState {
    pub(crate) ssh_port: u16,
    /// The running machine; none after a power cut.
    pub(crate) qemu: Option<Recorded>,
    /// The ssh master connection that all commands share.
    pub(crate) ssh: Option<Recorded>,
    /// Drives that are pulled out of their slots.
    pub(crate) pulled: Vec<usize>,
    /// Networks whose cable is cut, by QEMU's name.
    pub(crate) cut: Vec<String>,
    pub(crate) forwards: Vec<Forward>,
}

/// A port or socket of the host that leads into a guest, in ssh's own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Forward {
    /// `/path/of/socket` or `127.0.0.1:port` on the host.
    pub(crate) local: String,
    /// The same in the guest.
    pub(crate) remote: String,
}

impl Forward {
    /// The argument of `ssh -L`.
    pub(crate) fn argument(&self) -> String {
        format!("{}:{}", self.local, self.remote)
    }
}

/// The file that remembers a node.
#[derive(Clone, Debug)]
pub(crate) struct NodeFile {
    dir: PathBuf,
}

impl NodeFile {
    pub(crate) fn in_dir(dir: &Path) -> NodeFile {
        NodeFile { dir: dir.to_path_buf() }
    }

    /// The node as last written.
    pub(crate) fn read(&self) -> Result<NodeState> {
        read(&self.dir.join("state.json"))
    }

    /// Runs `work` with the node locked and writes back what it changed, also when it failed: a machine that was
    /// started before the failure must be remembered. Must not be nested.
    pub(crate) fn locked<T>(&self, work: impl FnOnce(&mut NodeState) -> Result<T>) -> Result<T> {
        let _lock = lock(&self.dir.join("lock"))?;
        let file = self.dir.join("state.json");
        let mut state = if file.exists() { read(&file)? } else { NodeState::default() };
        let result = work(&mut state);
        write(&file, &state)?;
        result
    }
}

/// Holds a lock until it is dropped; another process or thread waits.
pub(crate) fn lock(path: &Path) -> Result<File> {
    if let Some(dir) = path.parent() {
        make_dir(dir)?;
    }
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    file.lock().with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}

/// The lab's guests and control plane, for one program at a time: a second one would end the first one's.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "held, not used")] File);

impl Turn {
    /// Takes the turn until this is dropped or the program ends. Fails at once when another program has it.
    pub fn take(paths: &Paths) -> Result<Turn> {
        Turn::at(&paths.root().join("turn"))
    }

    fn at(path: &Path) -> Result<Turn> {
        if let Some(dir) = path.parent() {
            make_dir(dir)?;
        }
        let open = File::options().create(true).read(true).write(true).truncate(false).open(path);
        let mut file = open.with_context(|| format!("open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut who = String::new();
                file.read_to_string(&mut who).with_context(|| format!("read {}", path.display()))?;
                bail!("process {} uses the lab already; wait for it, or end it", who.trim());
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("lock {}", path.display())),
        }
        file.set_len(0).and_then(|()| write!(file, "{}", std::process::id())).context("say who uses the lab")?;
        Ok(Turn(file))
    }
}

pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("understand {}", path.display()))
}

pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    write_atomically(path, &serde_json::to_vec_pretty(value).context("encode state")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lab_is_used_by_one_program_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("turn");
        let turn = Turn::at(&path).unwrap();
        let refused = Turn::at(&path).unwrap_err().to_string();
        assert!(refused.starts_with(&format!("process {} uses the lab", std::process::id())), "{refused}");
        drop(turn);
        Turn::at(&path).unwrap();
    }

    #[test]
    fn a_failed_change_is_still_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let file = NodeFile::in_dir(dir.path());
        let result: Result<()> = file.locked(|state| {
            state.ssh_port = 7;
            anyhow::bail!("later trouble")
        });
        assert!(result.is_err());
        assert_eq!(file.read().unwrap().ssh_port, 7);
    }

    #[test]
    fn changes_do_not_get_lost() {
        let dir = tempfile::tempdir().unwrap();
        let file = NodeFile::in_dir(dir.path());
        std::thread::scope(|scope| {
            for i in 0..8 {
                let file = &file;
                let push = move |state: &mut NodeState| {
                    state.pulled.push(i);
                    Ok(())
                };
                scope.spawn(move || file.locked(push).unwrap());
            }
        });
        assert_eq!(file.read().unwrap().pulled.len(), 8);
    }
}
