//! The lab as a whole: up, found again, down.
//!
//! Called by `cargo xtask vm` and by tests. One lab per cache directory. Never ends a process that its own state files
//! do not name.

use crate::exec::step;
use crate::guest::Guest;
use crate::image;
use crate::paths::{Paths, make_dir};
use crate::qemu::{Node, SECTOR_SIZES, drive_file};
use crate::snapshot;
use crate::state::{self, LabState};
use crate::tools;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// Host names end in one letter.
const MOST_NODES: usize = 9;

/// What a lab should look like.
#[derive(Clone, Debug)]
pub struct Config {
    /// How many guests: `node-a`, `node-b`, … (at most nine).
    pub nodes: usize,
    /// A kernel series of Debian, such as `6.12` or `6.18`.
    pub kernel: String,
    /// Size of each NVMe drive; the files are sparse.
    pub drive_bytes: u64,
    /// Memory of each guest.
    pub memory_mib: u32,
    /// Blank drives and a new start, whatever runs now. Otherwise drives keep what earlier labs wrote.
    pub fresh: bool,
    /// The host directory that guests see read-only at `/host`; without one the workspace's target directory, so that
    /// freshly built binaries are there.
    pub share: Option<PathBuf>,
    /// Where the lab keeps its files; without one `$MESHSTOR_CACHE` or `~/.cache/meshstor`.
    pub paths: Option<Paths>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            nodes: 3,
            kernel: "6.12".to_string(),
            drive_bytes: 8 << 30,
            memory_mib: 1536,
            fresh: false,
            share: None,
            paths: None,
        }
    }
}

/// A running lab.
#[derive(Clone, Debug)]
pub struct Lab {
    paths: Paths,
    spec: LabState,
}

/// One line of [`Lab::status`].
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// The guest's host name.
    pub name: String,
    /// Its address on the storage network.
    pub address: String,
    /// QEMU's process, if the guest is on.
    pub pid: Option<i32>,
    /// The host's loopback port that leads to the guest's ssh.
    pub ssh_port: u16,
    /// Slots whose drive is pulled.
    pub pulled: Vec<usize>,
    /// Networks whose cable is cut.
    pub cut: Vec<String>,
}

impl Lab {
    /// Brings up what `config` asks for and returns when every guest answers. A lab that already is so is left alone
    /// (guests that are off are booted); any other is taken down first.
    pub fn up(config: &Config) -> Result<Lab> {
        if config.nodes == 0 || config.nodes > MOST_NODES {
            bail!("{} nodes: the lab has one to {MOST_NODES}", config.nodes);
        }
        let paths = paths_of(config)?;
        let _lock = state::lock(&paths.root().join("lab.lock"))?;
        tools::ensure_vm(&paths)?;
        let image = image::ensure(&paths, &config.kernel)?;
        let spec = wanted(&paths, config, &image.key)?;
        if let Ok(lab) = Lab::attach_at(&paths) {
            if lab.spec == spec && !config.fresh {
                lab.each(|guest| if guest.is_on()? { Ok(()) } else { guest.boot() })?;
                return Ok(lab);
            }
            lab.down()?;
        }
        let lab = Lab { paths, spec };
        let nodes: Vec<Node> = lab.guests().into_iter().map(|guest| guest.node).collect();
        let snapshots = snapshot::ensure(&lab.paths, &image, &nodes, lab.spec.memory_mib)?;
        step(&format!("start {}", lab.spec.nodes.join(", ")), || {
            // Written first: whatever starts can be found and ended even if this program is interrupted.
            make_dir(&lab.paths.run())?;
            state::write(&lab_file(&lab.paths), &lab.spec)?;
            lab.each(|guest| {
                prepare(guest, &snapshots, config)?;
                guest.load()
            })
        })?;
        Ok(lab)
    }

    /// The lab that an earlier program brought up.
    pub fn attach() -> Result<Lab> {
        Lab::attach_at(&Paths::from_env()?)
    }

    /// The same below another cache directory.
    pub fn attach_at(paths: &Paths) -> Result<Lab> {
        let spec = state::read(&lab_file(paths)).context("no lab is up (start one with `cargo xtask vm up`)")?;
        Ok(Lab { paths: paths.clone(), spec })
    }

    /// One guest by its host name.
    pub fn guest(&self, name: &str) -> Result<Guest> {
        let found = self.guests().into_iter().find(|guest| guest.name() == name);
        found.with_context(|| format!("no guest {name:?}; there are {}", self.spec.nodes.join(", ")))
    }

    /// All guests, `node-a` first.
    pub fn guests(&self) -> Vec<Guest> {
        (0..self.spec.nodes.len()).map(|i| Guest::new(&self.paths, &self.spec, i as u8)).collect()
    }

    /// Where this lab keeps its files.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// The kernel series of the guests.
    pub fn kernel(&self) -> &str {
        &self.spec.kernel
    }

    /// The host directory that guests see at `/host`.
    pub fn share(&self) -> &Path {
        &self.spec.share
    }

    /// What is true of each node, as far as the host can tell.
    pub fn status(&self) -> Result<Vec<NodeStatus>> {
        let line = |guest: Guest| -> Result<NodeStatus> {
            let state = guest.file.read()?;
            Ok(NodeStatus {
                name: guest.name(),
                address: guest.address(),
                pid: state.qemu.filter(|qemu| qemu.alive()).map(|qemu| qemu.pid()),
                ssh_port: state.ssh_port,
                pulled: state.pulled,
                cut: state.cut,
            })
        };
        self.guests().into_iter().map(line).collect()
    }

    /// Ends all guests. Drives keep their data for the next `up`.
    pub fn down(&self) -> Result<()> {
        for guest in self.guests() {
            if guest.dir.join("state.json").exists() {
                guest.power_cut()?;
            }
        }
        match std::fs::remove_file(lab_file(&self.paths)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("forget the lab"),
            _ => Ok(()),
        }
    }

    /// Runs `work` for all guests at once; the first failure is the result, after all have ended.
    pub fn each(&self, work: impl Fn(&Guest) -> Result<()> + Sync) -> Result<()> {
        let guests = self.guests();
        let results: Vec<Result<()>> = std::thread::scope(|scope| {
            let threads: Vec<_> = guests.iter().map(|guest| scope.spawn(|| work(guest))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<()>>| {
                thread.join().unwrap_or_else(|_| bail!("a guest's thread panicked"))
            };
            threads.into_iter().map(join).collect()
        });
        results.into_iter().zip(&guests).try_for_each(|(result, guest)| result.with_context(|| guest.name()))
    }
}

fn paths_of(config: &Config) -> Result<Paths> {
    config.paths.clone().map_or_else(Paths::from_env, Ok)
}

/// Where cargo puts what it builds.
fn target_directory() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("CARGO_TARGET_DIR") {
        return std::path::absolute(dir).context("make CARGO_TARGET_DIR absolute");
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    Ok(workspace.context("the workspace is two directories up")?.join("target"))
}

fn lab_file(paths: &Paths) -> PathBuf {
    paths.run().join("lab.json")
}

fn wanted(paths: &Paths, config: &Config, image: &str) -> Result<LabState> {
    let share = match &config.share {
        Some(share) => std::path::absolute(share).context("make the share's path absolute")?,
        None => target_directory()?,
    };
    make_dir(&share)?;
    make_dir(&paths.bin())?;
    Ok(LabState {
        kernel: config.kernel.clone(),
        image: image.to_string(),
        nodes: (0..config.nodes).map(|i| Node { index: i as u8 }.name()).collect(),
        memory_mib: config.memory_mib,
        drive_bytes: config.drive_bytes,
        share,
    })
}

/// A node's directory as a new machine finds it: its saved state, its drives, no memory of earlier faults.
fn prepare(guest: &Guest, snapshots: &Path, config: &Config) -> Result<()> {
    make_dir(&guest.dir)?;
    guest.file.locked(|state| {
        // A crash of the host can leave a state file that names a process long gone; kill() knows the difference.
        for process in [state.qemu, state.ssh].into_iter().flatten() {
            process.kill()?;
        }
        *state = Default::default();
        Ok(())
    })?;
    for log in ["console.log", "qemu.log", "ssh.log"] {
        std::fs::write(guest.dir.join(log), "").with_context(|| format!("empty {log}"))?;
    }
    let root = guest.dir.join("root.qcow2");
    std::fs::copy(snapshot::file(snapshots, &guest.node), &root).context("copy the saved machine")?;
    for drive in 0..SECTOR_SIZES.len() {
        prepare_drive(&drive_file(&guest.dir, drive), config.drive_bytes, config.fresh)?;
    }
    Ok(())
}

fn prepare_drive(file: &Path, bytes: u64, fresh: bool) -> Result<()> {
    match std::fs::metadata(file) {
        Ok(meta) if !fresh && meta.len() == bytes => return Ok(()),
        Ok(meta) if !fresh => {
            bail!("{} has {} bytes, not {bytes}: use --fresh for blank drives", file.display(), meta.len())
        }
        _ => {}
    }
    let blank = std::fs::File::create(file).with_context(|| format!("create {}", file.display()))?;
    blank.set_len(bytes).with_context(|| format!("size {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drives_keep_their_data_unless_fresh() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("d");
        prepare_drive(&file, 8, false).unwrap();
        std::fs::write(&file, "12345678").unwrap();
        prepare_drive(&file, 8, false).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"12345678");
        assert!(prepare_drive(&file, 9, false).is_err());
        prepare_drive(&file, 9, true).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), [0; 9]);
    }

    #[test]
    fn attach_without_a_lab_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = Lab::attach_at(&Paths::at(dir.path()).unwrap()).unwrap_err();
        assert!(error.to_string().contains("vm up"), "{error}");
    }

    #[test]
    fn node_count_is_checked_before_anything_is_done() {
        assert!(Lab::up(&Config { nodes: 0, ..Config::default() }).is_err());
        assert!(Lab::up(&Config { nodes: 10, ..Config::default() }).is_err());
    }
}
