//! What of MD needs a superblock written in user space: create, add, re-add, add a bitmap. mdadm does it.
//!
//! Called by the seam. It looks at the members' own bytes before mdadm may overwrite any (P3), through the ring. It
//! never assembles (`mdops.rs` does, through sysfs) and never lets mdadm's configuration of the host decide anything.

use super::attr;
use super::cmd::{Tools, args};
use super::md::{self, Minors};
use super::mdops;
use super::probe;
use super::root::Root;
use super::uring::Ring;
use crate::error::{KernelError, Result};
use crate::facts::{BITMAP_CHUNK, BlankData, DATA_OFFSET, MemberProbe};
use crate::id::VolumeId;
use crate::ops::Changed;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// No bad-block log: a member is in sync or it is not (a log lets MD keep a member that lacks blocks). Nothing is
/// assembled by name, nothing belongs to this host.
const CONFIG: &str = "AUTO -all\nHOMEHOST <none>\nCREATE bbl=no names=no\nMAILADDR root\n";
/// Less than the operations' own deadlines, so that mdadm's words reach the error.
const DEADLINE: Duration = Duration::from_secs(18);
const CREATE_DEADLINE: Duration = Duration::from_secs(50);

/// What these operations work with.
#[derive(Clone, Copy)]
pub struct Mdadm<'a> {
    /// Trees.
    pub root: &'a Root,
    /// Reads of members.
    pub ring: &'a Ring,
    /// Programs.
    pub tools: &'a Tools,
    /// Minors of new arrays.
    pub minors: &'a Minors,
}

impl Mdadm<'_> {
    /// Creates the array of a new volume over members that are blank, now as well as when the proof was made.
    pub async fn create(&self, volume: VolumeId, members: &[BlankData], component_bytes: u64) -> Result<Changed> {
        let op = format!("create-array {}", volume.short());
        if md::find(self.root, volume).is_some() {
            return Ok(Changed::No);
        }
        let devices: Vec<String> = members.iter().map(|member| member.device().to_string()).collect();
        for device in &devices {
            self.ours(&op, volume, device).await?;
            if probe::member(self.ring, device, true).await?.blank.is_none() {
                return Err(KernelError::refuse(op, device, "the member's data area is no longer blank"));
            }
        }
        mdops::clear_half_made(self.root, &devices.iter().map(|device| md::component(device)).collect::<BTreeSet<_>>());
        let minor = self.minors.next(self.root);
        let minor = minor.ok_or_else(|| KernelError::wait(&op, "md", "all minors are taken"))?;
        let path = attr::show(&self.root.dev.join(format!("md{minor}")));
        self.run(&create_args(volume, &path, &devices, component_bytes), CREATE_DEADLINE).await?;
        self.verify(&op, volume)?;
        mdops::release_sync(self.root, volume)?;
        Ok(Changed::Yes)
    }

    /// The new array exists and has the identity that every node will look for.
    fn verify(&self, op: &str, volume: VolumeId) -> Result<()> {
        match md::find(self.root, volume) {
            Some(_) => Ok(()),
            None => Err(KernelError::bug(op, volume.md_uuid().to_string(), "the array made just now is not to be found")),
        }
    }

    /// Adds a returning replica with a bitmap-based recovery.
    pub async fn re_add(&self, volume: VolumeId, device: &str) -> Result<Changed> {
        let op = format!("re-add-member {} {device}", volume.short());
        let Some(array) = self.joining(&op, volume, device)? else { return Ok(Changed::No) };
        let seen = self.ours(&op, volume, device).await?;
        if seen.superblock.is_none() {
            return Err(KernelError::refuse(op, device, "the replica has no superblock, it needs a full recovery"));
        }
        self.run(&args(&["--manage", &array, "--re-add", device]), DEADLINE).await?;
        Ok(Changed::Yes)
    }

    /// Adds a replica with a full recovery. Its old superblock goes first: mdadm turns an `--add` of a device that looks
    /// like a former member into a re-add (Manage.c `Manage_add`), which trusts bits that nobody vouches for.
    pub async fn add(&self, volume: VolumeId, device: &str) -> Result<Changed> {
        let op = format!("add-member {} {device}", volume.short());
        let Some(array) = self.joining(&op, volume, device)? else { return Ok(Changed::No) };
        let dir = md::dir(self.root, &md::component(&array));
        if attr::read_number::<u32>(&dir.join("degraded")).unwrap_or(0) == 0 {
            return Err(KernelError::refuse(op, array, "the array has no free slot"));
        }
        let seen = self.ours(&op, volume, device).await?;
        if seen.superblock.is_some() {
            self.run(&args(&["--zero-superblock", device]), DEADLINE).await?;
        }
        self.run(&args(&["--manage", &array, "--add", device]), DEADLINE).await?;
        Ok(Changed::Yes)
    }

    /// Gives the array an internal bitmap.
    pub async fn add_bitmap(&self, volume: VolumeId) -> Result<Changed> {
        let op = format!("add-bitmap {}", volume.short());
        let (name, dir) = mdops::array(self.root, &op, volume)?;
        if md::has_bitmap(&dir) {
            return Ok(Changed::No);
        }
        let path = attr::show(&self.root.dev.join(name));
        self.run(&args(&["--grow", &path, "--bitmap=internal", &bitmap_chunk()]), DEADLINE).await?;
        Ok(Changed::Yes)
    }

    /// The array's node, when `device` may join; `None` when it is in already.
    fn joining(&self, op: &str, volume: VolumeId, device: &str) -> Result<Option<String>> {
        let (name, dir) = mdops::array(self.root, op, volume)?;
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
        let holders = md::holders(self.root, &component);
        if !holders.is_empty() {
            return Err(KernelError::wait(op, component, format!("{} holds it", holders.join(", "))));
        }
        Ok(Some(attr::show(&self.root.dev.join(name))))
    }

    /// Looks at a device: it must carry our record for this very volume and no superblock of another array.
    async fn ours(&self, op: &str, volume: VolumeId, device: &str) -> Result<MemberProbe> {
        let seen = probe::member(self.ring, device, false).await?;
        if seen.record.as_ref().is_none_or(|record| record.volume != volume) {
            return Err(KernelError::refuse(op, device, "the device carries no record of this volume"));
        }
        if seen.superblock.as_ref().is_some_and(|superblock| superblock.set_uuid != volume.md_uuid()) {
            return Err(KernelError::refuse(op, device, "the device is a member of another array"));
        }
        Ok(seen)
    }

    async fn run(&self, list: &[String], deadline: Duration) -> Result<String> {
        let config = write_config(self.root)?;
        let mut list = list.to_vec();
        list.push(format!("--config={}", config.display()));
        self.tools.run("mdadm", &list, deadline).await
    }
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
fn create_args(volume: VolumeId, path: &str, devices: &[String], component_bytes: u64) -> Vec<String> {
    let mut list = args(&["--create", path, "--metadata=1.2", "--level=1", "--assume-clean", "--run"]);
    list.push(format!("--raid-devices={}", devices.len()));
    list.push(format!("--data-offset={}K", DATA_OFFSET >> 10));
    list.push(format!("--size={}K", component_bytes >> 10));
    list.push(format!("--uuid={}", volume.md_uuid()));
    list.push(format!("--name=ms-{}", volume.short()));
    list.push("--homehost=none".into());
    if devices.len() > 1 {
        list.extend(["--bitmap=internal".into(), bitmap_chunk()]);
    } else {
        // One member needs no bitmap, which would halve its write speed; mdadm wants to be sure about one member.
        list.extend(["--bitmap=none".into(), "--force".into()]);
    }
    list.extend(devices.iter().cloned());
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::md::tests::{array, put, volume};

    #[test]
    fn a_new_array_gets_every_value_from_us() {
        let devices = ["/dev/nvme0n1p1".to_string(), "/dev/nvme3n1".to_string()];
        let list = create_args(volume(), "/dev/md1000", &devices, 1 << 30).join(" ");
        for part in ["--data-offset=4096K", "--size=1048576K", "--bitmap-chunk=65536K", "--raid-devices=2"] {
            assert!(list.contains(part), "{part} is not in {list}");
        }
        assert!(list.ends_with("/dev/nvme0n1p1 /dev/nvme3n1") && !list.contains("--force"), "{list}");
        let one = create_args(volume(), "/dev/md1000", &devices[..1], 1 << 30).join(" ");
        assert!(one.contains("--bitmap=none --force /dev/nvme0n1p1"), "{one}");
    }

    fn joining(root: &Root, device: &str) -> Result<Option<String>> {
        let ring = Ring::start();
        let (tools, minors) = (Tools::default(), Minors::default());
        Mdadm { root, ring: &ring, tools: &tools, minors: &minors }.joining("test", volume(), device)
    }

    #[test]
    fn who_may_join() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        array(&root, "md1004");
        let path = attr::show(&root.dev.join("md1004"));
        assert_eq!(joining(&root, "/nonexistent/nvme3n1"), Ok(None), "it is recovering already");
        assert_eq!(joining(&root, "/nonexistent/nvme4n1"), Ok(Some(path)));
        put(&root, "class/block/nvme4n1/holders/md127", "");
        assert_eq!(joining(&root, "/nonexistent/nvme4n1").unwrap_err().class, crate::Class::Wait);
        put(&root, "block/md1004/md/dev-nvme3n1/state", "faulty\n");
        assert_eq!(joining(&root, "/nonexistent/nvme3n1").unwrap_err().class, crate::Class::Refuse);
        put(&root, "block/md1004/md/resync_start", "128\n");
        assert_eq!(joining(&root, "/nonexistent/nvme5n1").unwrap_err().class, crate::Class::Wait);
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
