//! Who has a volume open: processes with files below its mounts, with the device open, mapped, or working inside it.
//!
//! Called by the seam on the blocking pool, for a deposed consumer (docs/protocol.md, rule 7): a task with SIGKILL
//! pending never returns to user space, so it can no longer report a write as done. It never signals itself, pid 1 or
//! a kernel thread, and it looks at other processes' mount tables, because a pod sees the volume in its own namespace.

use super::attr;
use super::mounts::{self, Mount};
use super::root::Root;
use crate::error::{KernelError, Result};
use crate::ops::Changed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `PF_KTHREAD` of include/linux/sched.h, in field 9 of `/proc/<pid>/stat`.
const KERNEL_THREAD: u64 = 0x0020_0000;
/// SIGKILL as a bit of `SigPnd`/`ShdPnd` in `/proc/<pid>/status`.
const SIGKILL_BIT: u64 = 1 << 8;
/// Looks at most: each one kills what the one before let slip by forking; a fork bomb must not hold us for ever.
const ROUNDS: u32 = 20;
/// File systems whose `stat` can wait for another machine or another process: their files are never looked at.
const REMOTE: [&str; 9] = ["nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs", "lustre", "autofs"];

/// The node's own machinery, which looks into a volume's folders now and then and reports nobody's writes. It counts as
/// such only in pid 1's mount namespace: a pod cannot hide behind the name.
const MACHINERY: [&str; 5] = ["kubelet", "containerd", "crio", "dockerd", "systemd"];

/// Kills every process that has the device or a file system on it open, and returns when none is left that could still
/// run a single instruction of its own.
pub fn kill_all(root: &Root, op: &str, device: (u32, u32)) -> Result<Changed> {
    let mut killed = Changed::No;
    for round in 0..ROUNDS {
        let alive = alive(root, device);
        if alive.is_empty() {
            return Ok(killed);
        }
        if round > 0 {
            std::thread::sleep(Duration::from_millis(50));
        }
        for pid in alive {
            tracing::warn!(pid, op, "killing an opener");
            match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                Ok(()) => killed = Changed::Yes,
                Err(nix::errno::Errno::ESRCH) => {}
                Err(errno) => return Err(KernelError::io(op, format!("process {pid}"), &errno.into())),
            }
        }
    }
    Err(KernelError::retry(op, format!("{}:{}", device.0, device.1), "new openers appear as fast as they are killed"))
}

/// Loop devices over a device, by name and number: kubelet keeps one on every raw block volume that is in use. Nobody
/// is asked what it opened: whoever writes through one has the loop device open, or a file system that lies on it.
pub fn loops(root: &Root, device: (u32, u32)) -> Vec<(String, (u32, u32))> {
    let blocks = root.sys.join("block");
    let names = attr::names(&blocks).into_iter().filter(|name| name.starts_with("loop"));
    let over = |name: &String| {
        let behind = attr::read_opt(&blocks.join(name).join("loop/backing_file"))?;
        let meta = std::fs::metadata(behind).ok()?;
        let number = (nix::sys::stat::major(meta.rdev()) as u32, nix::sys::stat::minor(meta.rdev()) as u32);
        (meta.file_type().is_block_device() && number == device).then_some(())?;
        let text = attr::read_opt(&blocks.join(name).join("dev"))?;
        let (major, minor) = text.split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    names.filter_map(|name| Some((name.clone(), over(&name)?))).collect()
}

/// Openers, of the device and of loop devices over it, that are not yet as good as dead.
pub fn alive(root: &Root, device: (u32, u32)) -> Vec<i32> {
    let mut found = find(root, device);
    for (_, over) in loops(root, device) {
        found.extend(find(root, over));
    }
    found.into_iter().filter(|pid| !doomed(root, *pid)).collect()
}

/// Processes, by id, that have the device open in any of the ways this file knows. Kernel threads and this process
/// are never among them.
pub fn find(root: &Root, device: (u32, u32)) -> BTreeSet<i32> {
    let own = std::process::id() as i32;
    let pids = attr::names(&root.proc).into_iter().filter_map(|name| name.parse::<i32>().ok());
    pids.filter(|pid| *pid > 1 && *pid != own)
        .filter(|pid| {
            let dir = root.proc.join(pid.to_string());
            !kernel_thread(&dir) && !machinery(root, &dir) && opens(&dir, device)
        })
        .collect()
}

fn opens(dir: &Path, device: (u32, u32)) -> bool {
    let table = attr::read_opt(&dir.join("mountinfo")).map(|text| mounts::parse(&text)).unwrap_or_default();
    open_files(dir, &table, device) || inside(dir, &table, device) || mapped(dir, device)
}

/// Open files. The mount id in `fdinfo` answers without touching the file, which may lie on a stuck or dead volume.
fn open_files(dir: &Path, table: &[Mount], device: (u32, u32)) -> bool {
    attr::names(&dir.join("fd")).into_iter().any(|fd| {
        let mount = attr::read_opt(&dir.join("fdinfo").join(&fd)).as_deref().and_then(mount_id);
        let mount = mount.and_then(|id| table.iter().find(|mount| mount.id == id));
        match mount {
            Some(mount) if mount.device == device => true,
            Some(mount) if remote(&mount.fs) => false,
            // A device node, or a file of a lazily detached mount, which no table lists any more.
            _ => stat_says(&dir.join("fd").join(&fd), device),
        }
    })
}

fn stat_says(path: &PathBuf, device: (u32, u32)) -> bool {
    let Ok(meta) = std::fs::metadata(path) else { return false };
    let split = |number: u64| (nix::sys::stat::major(number) as u32, nix::sys::stat::minor(number) as u32);
    split(meta.dev()) == device || (meta.file_type().is_block_device() && split(meta.rdev()) == device)
}

/// Working folder or root inside the volume: these keep it mounted and can open more.
fn inside(dir: &Path, table: &[Mount], device: (u32, u32)) -> bool {
    ["cwd", "root"].iter().any(|link| {
        let path = std::fs::read_link(dir.join(link));
        let path = path.as_deref().map(Path::to_string_lossy).unwrap_or_default();
        mounts::covering(table, &path).is_some_and(|mount| mount.device == device)
    })
}

/// Memory maps carry the device number of their file in hexadecimal (proc_pid_maps(5)).
fn mapped(dir: &Path, device: (u32, u32)) -> bool {
    let maps = attr::read_opt(&dir.join("maps")).unwrap_or_default();
    maps.lines().any(|line| {
        let number = line.split_whitespace().nth(3).and_then(|field| field.split_once(':'));
        let number =
            number.and_then(|(a, b)| Some((u32::from_str_radix(a, 16).ok()?, u32::from_str_radix(b, 16).ok()?)));
        number == Some(device)
    })
}

fn mount_id(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

fn remote(fs: &str) -> bool {
    REMOTE.contains(&fs) || fs.starts_with("fuse")
}

/// Whether SIGKILL is already on its way: the process may sit in an uninterruptible call, but never comes back.
fn doomed(root: &Root, pid: i32) -> bool {
    let dir = root.proc.join(pid.to_string());
    let threads = attr::names(&dir.join("task"));
    // Killing a process puts the signal into every thread (kernel/signal.c `complete_signal`).
    threads.iter().all(|thread| {
        let status = attr::read_opt(&dir.join("task").join(thread).join("status")).unwrap_or_default();
        status.is_empty() || pending(&status) || status.lines().any(|line| line.starts_with("State:\tZ"))
    })
}

fn pending(status: &str) -> bool {
    let masks = status.lines().filter_map(|line| line.strip_prefix("SigPnd:").or(line.strip_prefix("ShdPnd:")));
    masks.filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok()).any(|mask| mask & SIGKILL_BIT != 0)
}

fn machinery(root: &Root, dir: &Path) -> bool {
    let name = attr::read_opt(&dir.join("comm")).unwrap_or_default();
    let namespace = |dir: &Path| std::fs::read_link(dir.join("ns/mnt")).ok();
    let host = || namespace(&root.proc.join("1")).is_some_and(|host| namespace(dir) == Some(host));
    MACHINERY.contains(&name.as_str()) && host()
}

fn kernel_thread(dir: &Path) -> bool {
    let stat = attr::read_opt(&dir.join("stat")).unwrap_or_default();
    // The name in parentheses may hold anything; the fields after it are plain.
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6)?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & KERNEL_THREAD != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn process(root: &Root, pid: i32) -> PathBuf {
        let dir = root.proc.join(pid.to_string());
        for folder in ["fd", "fdinfo"] {
            fs::create_dir_all(dir.join(folder)).unwrap();
        }
        fs::write(dir.join("mountinfo"), "7 1 9:1000 / /data rw - xfs /dev/md1000 rw\n8 1 0:5 / / rw - ext4 x rw\n")
            .unwrap();
        fs::write(dir.join("stat"), format!("{pid} (a b) c) S 1 1 1 0 -1 4194560 1 0")).unwrap();
        dir
    }

    #[test]
    fn each_way_of_having_a_volume_open_is_found() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        let file = process(&root, 10);
        symlink("/nowhere", file.join("fd/3")).unwrap();
        fs::write(file.join("fdinfo/3"), "pos:\t0\nmnt_id:\t7\n").unwrap();
        symlink("/data/sub", process(&root, 11).join("cwd")).unwrap();
        symlink("/data", process(&root, 12).join("root")).unwrap();
        fs::write(process(&root, 13).join("maps"), "7f00-7f01 r--p 00000000 09:3e8 12 /data/lib\n").unwrap();
        let elsewhere = process(&root, 14);
        symlink("/nowhere", elsewhere.join("fd/3")).unwrap();
        fs::write(elsewhere.join("fdinfo/3"), "mnt_id:\t8\n").unwrap();
        symlink("/database", elsewhere.join("cwd")).unwrap();
        assert_eq!(find(&root, (9, 1000)), BTreeSet::from([10, 11, 12, 13]));
        assert_eq!(find(&root, (9, 1001)), BTreeSet::new());
    }

    #[test]
    fn kernel_threads_and_ourselves_are_never_openers() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        for pid in [1, 20, std::process::id() as i32] {
            symlink("/data", process(&root, pid).join("cwd")).unwrap();
        }
        fs::write(root.proc.join("20/stat"), "20 (kworker/0:1) I 2 0 0 0 -1 69238880 0 0").unwrap();
        assert_eq!(find(&root, (9, 1000)), BTreeSet::new());
    }

    #[test]
    fn the_kubelet_of_the_node_is_spared_and_a_pod_that_takes_its_name_is_not() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        for (pid, namespace) in [(1, "mnt:[1]"), (30, "mnt:[1]"), (31, "mnt:[2]")] {
            let dir = process(&root, pid);
            symlink("/data", dir.join("cwd")).unwrap();
            fs::create_dir_all(dir.join("ns")).unwrap();
            symlink(namespace, dir.join("ns/mnt")).unwrap();
            fs::write(dir.join("comm"), "kubelet\n").unwrap();
        }
        assert_eq!(find(&root, (9, 1000)), BTreeSet::from([31]));
    }

    #[test]
    fn whoever_has_a_loop_device_over_the_volume_open_is_found_with_it() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        // Any block device of this machine stands for the array; without one there is nothing to show.
        let block = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_block_device());
        let Some(node) = fs::read_dir("/dev").unwrap().flatten().find(block) else { return };
        let rdev = node.metadata().unwrap().rdev();
        let device = (nix::sys::stat::major(rdev) as u32, nix::sys::stat::minor(rdev) as u32);
        for (name, behind) in [("loop3", node.path()), ("loop4", PathBuf::from("/etc/hostname"))] {
            let dir = root.sys.join("block").join(name);
            fs::create_dir_all(dir.join("loop")).unwrap();
            fs::write(dir.join("loop/backing_file"), format!("{}\n", behind.display())).unwrap();
            fs::write(dir.join("dev"), format!("7:{}\n", &name[4..])).unwrap();
        }
        assert_eq!(loops(&root, device), [("loop3".to_string(), (7, 3))]);
        let process = process(&root, 40);
        fs::write(process.join("mountinfo"), "7 1 7:3 / /data rw - ext4 /dev/loop3 rw\n").unwrap();
        symlink("/data", process.join("cwd")).unwrap();
        fs::create_dir_all(process.join("task/40")).unwrap();
        fs::write(process.join("task/40/status"), "State:\tS (sleeping)\nSigPnd:\t0000000000000000\n").unwrap();
        assert_eq!(alive(&root, device), [40]);
    }

    #[test]
    fn a_pending_kill_is_seen_in_either_mask() {
        assert!(pending("SigPnd:\t0000000000000100\nShdPnd:\t0000000000000000"));
        assert!(pending("SigPnd:\t0000000000000000\nShdPnd:\t0000000000000100"));
        assert!(!pending("SigPnd:\t0000000000000200\nShdPnd:\t0000000000000000"));
    }

    #[test]
    fn a_process_that_holds_a_file_of_the_device_is_killed_for_real() {
        // The device of this very test's temporary folder, seen by the real /proc; only our child may be killed, so
        // the look is restricted to it.
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        let pid = child.id() as i32;
        fs::create_dir_all(&root.proc).unwrap();
        symlink("/data", process(&root, pid).join("cwd")).unwrap();
        let task = root.proc.join(format!("{pid}/task/{pid}"));
        fs::create_dir_all(&task).unwrap();
        fs::write(task.join("status"), "State:\tS\nSigPnd:\t0\nShdPnd:\t0\n").unwrap();
        // The fake process never goes away, so the loop gives up after having killed.
        assert!(kill_all(&root, "kill-openers", (9, 1000)).is_err());
        assert!(!child.wait().unwrap().success());
    }
}
