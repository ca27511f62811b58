//! What of MD is left to mdadm: create an array, re-add a member, give an array a bitmap.
//!
//! Called by `apply.rs`. It looks at the members' own bytes before mdadm may overwrite any (P3), through the ring. It
//! never assembles (`mdops.rs`) and never adds a new member (`join.rs`): mdadm's manage mode takes no configuration file,
//! and so could not be told to leave the bad-block log out.

use super::cmd::args;
use super::root::Root;
use super::{Shared, attr, md, mdops, mounts, probe};
use crate::error::{KernelError, Result};
use crate::facts::{BITMAP_CHUNK, BlankData, DATA_OFFSET, MemberProbe};
use crate::id::VolumeId;
use crate::ops::Changed;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// No bad-block log: a member is in sync or it is not (a log lets MD keep a member that lacks blocks). Nothing is
/// assembled by name, nothing belongs to this host.
const CONFIG: &str = "AUTO -all\nHOMEHOST <none>\nCREATE bbl=no names=no\nMAILADDR root\n";
/// Less than the operations' own deadlines, so that mdadm's words reach the error.
const DEADLINE: Duration = Duration::from_secs(18);
const CREATE_DEADLINE: Duration = Duration::from_secs(50);

/// Creates the array of a new volume over members that are blank, now as well as when the proof was made.
pub(super) async fn create(
    shared: &Arc<Shared>,
    volume: VolumeId,
    members: &[BlankData],
    local: usize,
    component_bytes: u64,
) -> Result<Changed> {
    let op = format!("create-array {}", volume.short());
    let devices: Vec<String> = members.iter().map(|member| member.device().to_string()).collect();
    let (words, components) = (op.clone(), devices.clone());
    let path = shared.blocking(&op, move |s| new_path(s, &words, volume, &components)).await?;
    let Some((path, config)) = path else { return Ok(Changed::No) };
    for device in &devices {
        let seen = ours(shared, &op, volume, device, true).await?;
        if seen.blank.is_none() {
            return Err(KernelError::refuse(op, device, "the member's data area is no longer blank"));
        }
    }
    let keeps = keeps_bitmaps(&shared.root, &devices);
    let mut list = create_args(volume, &path, &devices, local, component_bytes, keeps);
    list.push(format!("--config={}", config.display()));
    shared.tools.run("mdadm", &list, CREATE_DEADLINE).await?;
    let finish = move |s: &Shared| {
        if md::find(&s.root, volume).is_none() {
            let uuid = volume.md_uuid().to_string();
            return Err(KernelError::bug("create-array", uuid, "the array made just now is not to be found"));
        }
        mdops::release_sync(&s.root, volume)
    };
    shared.blocking(&op, finish).await.map(|_| Changed::Yes)
}

/// A free device node and our configuration; `None` when the array exists.
fn new_path(shared: &Shared, op: &str, volume: VolumeId, devices: &[String]) -> Result<Option<(String, PathBuf)>> {
    let root = &shared.root;
    if md::find(root, volume).is_some() {
        return Ok(None);
    }
    mdops::clear_half_made(root, &devices.iter().map(|device| md::component(device)).collect::<BTreeSet<_>>());
    let minor = shared.minors.next(root).ok_or_else(|| KernelError::wait(op, "md", "all minors are taken"))?;
    Ok(Some((attr::show(&root.dev.join(format!("md{minor}"))), write_config(root)?)))
}

/// Adds a returning replica with a bitmap-based recovery.
pub(super) async fn re_add(shared: &Arc<Shared>, volume: VolumeId, device: &str) -> Result<Changed> {
    let op = format!("re-add-member {} {device}", volume.short());
    let (words, path) = (op.clone(), device.to_string());
    let Some(array) = shared.look(&op, move |s| joining(&s.root, &words, volume, &path)).await? else {
        return Ok(Changed::No);
    };
    if ours(shared, &op, volume, device, false).await?.superblock.is_none() {
        return Err(KernelError::refuse(op, device, "the replica has no superblock, it needs a full recovery"));
    }
    let path = attr::show(&shared.root.dev.join(array));
    shared.tools.run("mdadm", &args(&["--manage", &path, "--re-add", device]), DEADLINE).await?;
    Ok(Changed::Yes)
}

/// Whether an array over these devices has to have its bitmap from the beginning ([`md::keeps_bitmap`], which is seen in
/// an array only): the first kernel that is like this, as no file says so before there is an array.
fn keeps_bitmaps(root: &Root, devices: &[String]) -> bool {
    let release = attr::read_opt(&root.proc.join("sys/kernel/osrelease")).unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let since = (numbers.next(), numbers.next()) >= (Some(6), Some(18));
    let large = |device: &String| {
        // A partition has no queue of its own; its folder lies in that of its drive.
        let dir = root.sys.join("class/block").join(md::component(device));
        let size = |queue: &str| attr::read_number::<u64>(&dir.join(queue).join("logical_block_size"));
        size("queue").or_else(|| size("../queue")) > Some(512)
    };
    since && devices.iter().any(large)
}

/// Gives the array an internal bitmap.
pub(super) async fn add_bitmap(shared: &Arc<Shared>, volume: VolumeId) -> Result<Changed> {
    let op = format!("add-bitmap {}", volume.short());
    let Some(path) = without(shared, &op, volume, true).await? else { return Ok(Changed::No) };
    shared.tools.run("mdadm", &args(&["--grow", &path, "--bitmap=internal", &bitmap_chunk()]), DEADLINE).await?;
    Ok(Changed::Yes)
}

/// Takes the bitmap of an array of one device away. With a second member it is what makes a return short.
pub(super) async fn remove_bitmap(shared: &Arc<Shared>, volume: VolumeId) -> Result<Changed> {
    let op = format!("remove-bitmap {}", volume.short());
    let Some(path) = without(shared, &op, volume, false).await? else { return Ok(Changed::No) };
    shared.tools.run("mdadm", &args(&["--grow", &path, "--bitmap=none"]), DEADLINE).await?;
    Ok(Changed::Yes)
}

/// The device node of an array that has no bitmap yet (`wanted`), or has one and only one device; `None` when its bitmap
/// is as wanted.
async fn without(shared: &Arc<Shared>, op: &str, volume: VolumeId, wanted: bool) -> Result<Option<String>> {
    let words = op.to_string();
    let look = move |s: &Shared| {
        let (name, dir) = mdops::array(&s.root, &words, volume)?;
        let members = md::members(&dir).len();
        if md::has_bitmap(&dir) == wanted {
            return Ok(None);
        }
        let block = s.root.sys.join("block").join(&name);
        if wanted && md::keeps_bitmap(&block) {
            let why = "this kernel cannot give an array on drives with blocks of 4096 bytes a bitmap (Linux 6.18); a kernel \
                       below it can, or one that shows md/bitmap/location";
            return Err(KernelError::refuse(&words, name, why));
        }
        if !wanted && members > 1 {
            return Err(KernelError::refuse(&words, name, format!("the array has {members} devices")));
        }
        Ok(Some(attr::show(&s.root.dev.join(name))))
    };
    shared.look(op, look).await
}

/// The array that `device` may join; `None` when it is in already.
pub(super) fn joining(root: &Root, op: &str, volume: VolumeId, device: &str) -> Result<Option<String>> {
    let (name, dir) = mdops::array(root, op, volume)?;
    let component = md::component(device);
    match md::member(&dir, &component) {
        Some(member) if member.flags.contains("faulty") => {
            return Err(KernelError::refuse(op, component, "it is still in the array as a faulty member"));
        }
        Some(_) => return Ok(None),
        None => {}
    }
    if !md::resync_done(&dir) {
        // Below resync_offset reads go to the lowest slot, be it recovered or not (F17).
        return Err(KernelError::wait(op, name, "a resync is pending"));
    }
    let holders = md::holders(root, &component);
    if !holders.is_empty() {
        return Err(KernelError::wait(op, component, format!("{} holds it", holders.join(", "))));
    }
    let number = attr::read_opt(&root.sys.join("class/block").join(&component).join("dev")).unwrap_or_default();
    if let Some(mount) = mounts::read(root)?.iter().find(|m| format!("{}:{}", m.device.0, m.device.1) == number) {
        return Err(KernelError::refuse(op, component, format!("it is mounted at {}", mount.target)));
    }
    Ok(Some(name))
}

/// Looks at a device: it must carry our record for this very volume and no superblock of another array.
pub(super) async fn ours(
    shared: &Shared,
    op: &str,
    volume: VolumeId,
    device: &str,
    data_too: bool,
) -> Result<MemberProbe> {
    let seen = probe::member(&shared.ring, device, data_too).await?;
    if seen.record.as_ref().is_none_or(|record| record.volume != volume) {
        return Err(KernelError::refuse(op, device, "the device carries no record of this volume"));
    }
    if seen.superblock.as_ref().is_some_and(|superblock| superblock.set_uuid != volume.md_uuid()) {
        return Err(KernelError::refuse(op, device, "the device is a member of another array"));
    }
    Ok(seen)
}

/// Writes our mdadm configuration; the host's own is never read.
fn write_config(root: &Root) -> Result<PathBuf> {
    let dir = root.run.join("meshstor");
    let path = dir.join("mdadm.conf");
    if attr::read_opt(&path).as_deref() == Some(CONFIG.trim_end()) {
        return Ok(path);
    }
    let done = std::fs::create_dir_all(&dir).and_then(|()| std::fs::write(&path, CONFIG));
    done.map(|()| path.clone()).map_err(|e| KernelError::io("write mdadm's configuration", attr::show(&path), &e))
}

fn bitmap_chunk() -> String {
    format!("--bitmap-chunk={}K", BITMAP_CHUNK >> 10)
}

/// Every value that mdadm would choose by itself is given, so that its version does not matter.
fn create_args(
    volume: VolumeId,
    path: &str,
    devices: &[String],
    local: usize,
    component_bytes: u64,
    keeps: bool,
) -> Vec<String> {
    let mut list = args(&["--create", path, "--metadata=1.2", "--level=1", "--assume-clean", "--run"]);
    list.push(format!("--raid-devices={}", devices.len()));
    list.push(format!("--data-offset={}K", DATA_OFFSET >> 10));
    list.push(format!("--size={}K", component_bytes >> 10));
    list.push(format!("--uuid={}", volume.md_uuid()));
    list.push(format!("--name=ms-{}", volume.short()));
    list.push("--homehost=none".into());
    if devices.len() > 1 || keeps {
        list.extend(["--bitmap=internal".into(), bitmap_chunk()]);
    } else {
        // One member needs no bitmap, which would halve its write speed.
        list.push("--bitmap=none".into());
    }
    if devices.len() == 1 {
        // mdadm wants to be sure about one member.
        list.push("--force".into());
    }
    let (local, remote) = devices.split_at(local.min(devices.len()));
    list.extend(local.iter().cloned());
    if !local.is_empty() && !remote.is_empty() {
        // Holds for the devices that follow it.
        list.push("--write-mostly".into());
    }
    list.extend(remote.iter().cloned());
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::md::tests::{array, put, volume};

    #[test]
    fn a_new_array_gets_every_value_from_us() {
        let devices = ["/dev/nvme0n1p1".to_string(), "/dev/nvme3n1".to_string()];
        let list = create_args(volume(), "/dev/md1000", &devices, 1, 1 << 30, false).join(" ");
        for part in ["--data-offset=4096K", "--size=1048576K", "--bitmap-chunk=65536K", "--raid-devices=2"] {
            assert!(list.contains(part), "{part} is not in {list}");
        }
        assert!(list.ends_with("/dev/nvme0n1p1 --write-mostly /dev/nvme3n1") && !list.contains("--force"), "{list}");
        let away = create_args(volume(), "/dev/md1000", &devices, 0, 1 << 30, false).join(" ");
        assert!(away.ends_with("/dev/nvme0n1p1 /dev/nvme3n1"), "{away}");
        let one = create_args(volume(), "/dev/md1000", &devices[..1], 1, 1 << 30, false).join(" ");
        assert!(one.contains("--bitmap=none --force /dev/nvme0n1p1"), "{one}");
        let kept = create_args(volume(), "/dev/md1000", &devices[..1], 1, 1 << 30, true).join(" ");
        assert!(kept.contains("--bitmap=internal --bitmap-chunk=65536K --force /dev/nvme0n1p1"), "{kept}");
    }

    #[test]
    fn a_bitmap_is_kept_where_the_kernel_could_not_give_it_back() {
        let kept = |release: &str, partition: &str, drive: &str| {
            let temp = tempfile::tempdir().unwrap();
            let root = Root::at(temp.path());
            std::fs::create_dir_all(root.proc.join("sys/kernel")).unwrap();
            std::fs::write(root.proc.join("sys/kernel/osrelease"), release).unwrap();
            put(&root, "block/nvme0n1/nvme0n1p1/partition", "1\n");
            put(&root, &format!("block/nvme0n1/{drive}queue/logical_block_size"), "4096\n");
            std::fs::create_dir_all(root.sys.join("class/block")).unwrap();
            let target = format!("../../block/nvme0n1/{partition}");
            std::os::unix::fs::symlink(target, root.sys.join("class/block/member")).unwrap();
            keeps_bitmaps(&root, &["/dev/member".to_string()])
        };
        assert!(kept("6.18.15+deb13-amd64\n", "nvme0n1p1", ""), "a partition");
        assert!(kept("7.2.0\n", "", ""), "a whole device");
        assert!(!kept("6.12.117+deb13-amd64\n", "nvme0n1p1", "") && !kept("5.19.0\n", "", "") && !kept("", "", ""));
        assert!(!kept("6.18.15\n", "nvme0n1p1", "elsewhere-"), "blocks of 512 bytes");
    }

    #[test]
    fn a_bitmap_that_the_kernel_cannot_give_is_not_asked_for() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        array(&root, "md1004");
        put(&root, "block/md1004/queue/logical_block_size", "4096\n");
        let keeps = || md::keeps_bitmap(&root.sys.join("block/md1004"));
        assert!(!keeps(), "before 6.18");
        put(&root, "block/md1004/md/bitmap_type", "none [bitmap]\n");
        assert!(keeps(), "with a bitmap nothing tells a kernel that has the file back");
        put(&root, "block/md1004/md/bitmap/location", "none\n");
        assert!(!keeps(), "the file is back");
        std::fs::remove_dir_all(root.sys.join("block/md1004/md/bitmap")).unwrap();
        assert!(keeps());
        put(&root, "block/md1004/queue/logical_block_size", "512\n");
        assert!(!keeps());
    }

    #[test]
    fn who_may_join() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        array(&root, "md1004");
        let joining = |device: &str| super::joining(&root, "test", volume(), device);
        assert_eq!(joining("/nonexistent/nvme3n1"), Ok(None), "it is recovering already");
        assert_eq!(joining("/nonexistent/nvme4n1"), Ok(Some("md1004".into())));
        put(&root, "class/block/nvme4n1/holders/md127", "");
        assert_eq!(joining("/nonexistent/nvme4n1").unwrap_err().class, crate::Class::Wait);
        put(&root, "block/md1004/md/dev-nvme3n1/state", "faulty\n");
        assert_eq!(joining("/nonexistent/nvme3n1").unwrap_err().class, crate::Class::Refuse);
        put(&root, "block/md1004/md/resync_start", "128\n");
        assert_eq!(joining("/nonexistent/nvme5n1").unwrap_err().class, crate::Class::Wait);
    }

    #[test]
    fn the_configuration_is_written_once() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        let path = write_config(&root).unwrap();
        let first = std::fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(write_config(&root), Ok(path.clone()));
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), first);
    }
}
