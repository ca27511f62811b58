//! Machines saved when they are ready: booted once for each node, then loaded in seconds.
//!
//! Called by `Lab::up`. Each node has a snapshot of its own, so that host names, machine ids and random numbers differ.
//! Saved without NVMe drives (QEMU cannot save them) and without mounts of host directories (QEMU refuses).

use crate::exec::step;
use crate::guest::{file_length, wait_until_ready};
use crate::image::{Image, digest};
use crate::monitor::Monitor;
use crate::paths::{Paths, make_dir};
use crate::ports::free_port;
use crate::process::Recorded;
use crate::qemu::{Machine, Node, Start};
use crate::ssh::Route;
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The snapshot's name inside the disk.
pub(crate) const NAME: &str = "ready";

/// Several at once on a busy machine; a single one takes a quarter of it.
const BOOT_PATIENCE: Duration = Duration::from_secs(300);

/// Run once before saving, so that programs the first commands need are in memory.
const WARM_UP: &str = "for i in 1 2; do nvme version; mdadm --version; rdma link; ip -br link; udevadm settle; \
                       perl -e 1; mount; lsblk; done >/dev/null 2>&1; sync";

/// Makes the snapshots that are missing, all at once, and returns the directory that holds them.
pub(crate) fn ensure(paths: &Paths, image: &Image, nodes: &[Node], memory_mib: u32) -> Result<PathBuf> {
    let dir = paths.snapshots().join(key(paths, image, memory_mib)?);
    let missing: Vec<&Node> = nodes.iter().filter(|node| !file(&dir, node).is_file()).collect();
    if missing.is_empty() {
        return Ok(dir);
    }
    let names = missing.iter().map(|node| node.name()).collect::<Vec<_>>().join(", ");
    step(&format!("boot and save {names} (once)"), || {
        std::thread::scope(|scope| {
            let work: Vec<_> =
                missing.iter().map(|node| scope.spawn(|| make(paths, image, node, memory_mib, &dir))).collect();
            work.into_iter().try_for_each(|thread| match thread.join() {
                Ok(result) => result,
                Err(_) => bail!("a snapshot thread panicked"),
            })
        })
    })?;
    Ok(dir)
}

/// The disk that holds a node's saved state.
pub(crate) fn file(dir: &Path, node: &Node) -> PathBuf {
    dir.join(format!("{}.qcow2", node.name()))
}

fn key(paths: &Paths, image: &Image, memory_mib: u32) -> Result<String> {
    let nowhere = Path::new("");
    let machine = Machine {
        node: &Node { index: 0 },
        image,
        memory_mib,
        root_disk: nowhere,
        dir: nowhere,
        ssh_port: 0,
        share: nowhere,
        tools: nowhere,
    };
    let qemu = crate::tools::qemu_version()?;
    // The disk names its backing file by path, so a moved cache needs new snapshots.
    let root = paths.root().display().to_string();
    Ok(digest(&[&image.key, &qemu, &root, &machine.shape().join(" "), WARM_UP]))
}

fn make(paths: &Paths, image: &Image, node: &Node, memory_mib: u32, dir: &Path) -> Result<()> {
    let work = dir.join(format!("{}.part", node.name()));
    if work.exists() {
        std::fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))?;
    }
    make_dir(&work)?;
    make_dir(&paths.bin())?;
    let disk = work.join("root.qcow2");
    crate::exec::run(
        Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
            .arg(image.disk())
            .arg(&disk),
    )?;
    let ssh_port = free_port()?;
    let (share, tools) = (paths.bin(), paths.bin());
    let machine =
        Machine { node, image, memory_mib, root_disk: &disk, dir: &work, ssh_port, share: &share, tools: &tools };
    let mut command = Command::new("qemu-system-x86_64");
    command.args(machine.arguments(&Start::Boot(Vec::new())));
    let qemu = Recorded::spawn(&mut command, &work.join("qemu.log"))?;
    let route = Route { dir: work.clone(), key: image.ssh_key(), port: ssh_port };
    let saved = save(&route, qemu).with_context(|| format!("save {} (its logs: {})", node.name(), work.display()));
    qemu.kill()?;
    saved?;
    std::fs::rename(&disk, file(dir, node)).context("move the snapshot into place")?;
    std::fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))
}

fn save(route: &Route, qemu: Recorded) -> Result<()> {
    let console = route.dir.join("console.log");
    debug_assert_eq!(file_length(&console), 0, "a new directory has no console yet");
    wait_until_ready(&console, 0, qemu, BOOT_PATIENCE)?;
    let master = route.connect(BOOT_PATIENCE)?;
    let warm = crate::exec::capture(&mut route.command(WARM_UP), Some(BOOT_PATIENCE));
    master.terminate()?;
    warm?;
    // Time for the guest to notice the closed connection: a saved one would never end.
    std::thread::sleep(Duration::from_secs(1));
    let mut monitor = Monitor::open(&route.dir.join("monitor.sock"), || qemu.alive())?;
    monitor.execute("stop", json!({}))?;
    monitor.human(&format!("savevm {NAME}"))?;
    monitor.execute("quit", json!({})).context("end QEMU after saving").map(drop)
}
