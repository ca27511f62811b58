//! A mounted file system that fills its array: how large it is, and making it larger.
//!
//! Called by the seam (`fs.rs`, `apply.rs`), on threads that may block. By the kernel's own calls, as xfs_growfs and
//! resize2fs use them on a mounted file system: no program, no look at anybody's table of mounts. It never shrinks, and
//! never touches a file system that is not mounted from an array of ours.

use super::ioctl;
use super::mounts::{self, Mount};
use super::root::Root;
use super::{attr, md};
use crate::error::{KernelError, Result};
use crate::id::VolumeId;
use crate::ops::Changed;
use std::fs::File;

const SECTOR: u64 = 512;

/// Bytes that a mounted file system spans; `None` where it cannot be asked without reading its device (ext4).
pub fn bytes(mount: &Mount) -> Option<u64> {
    if mount.fs != "xfs" {
        return None;
    }
    let geometry = ioctl::xfs_geometry(&File::open(&mount.target).ok()?).ok()?;
    geometry.blocks.checked_mul(u64::from(geometry.block_bytes))
}

/// Has the file system that is mounted at `target` fill the volume's array.
pub fn grow(root: &Root, volume: VolumeId, target: &str) -> Result<Changed> {
    let op = format!("grow-filesystem {} at {target}", volume.short());
    let name = md::find(root, volume);
    let name = name.ok_or_else(|| KernelError::refuse(&op, volume.short(), "the volume has no array"))?;
    let table = mounts::read(root)?;
    let device = md::device_number(root, &name);
    let mount = mounts::at(&table, target).filter(|mount| Some(mount.device) == device);
    let mount = mount.ok_or_else(|| KernelError::refuse(&op, target, "the volume is not mounted there"))?;
    if mount.read_only() {
        return Err(KernelError::refuse(
            op,
            target,
            "it is mounted read-only: it grows when it is mounted for writing",
        ));
    }
    let sectors = attr::read_number::<u64>(&root.sys.join("block").join(&name).join("size"));
    let array = sectors.unwrap_or(0).saturating_mul(SECTOR);
    let failed = |e| KernelError::io(&op, target, &e);
    let file = File::open(target).map_err(failed)?;
    match mount.fs.as_str() {
        "xfs" => {
            let geometry = ioctl::xfs_geometry(&file).map_err(failed)?;
            let blocks = array / u64::from(geometry.block_bytes.max(1));
            if blocks <= geometry.blocks {
                return Ok(Changed::No);
            }
            ioctl::xfs_grow(&file, blocks, geometry.max_inode_percent).map_err(failed)?;
        }
        // The same number of blocks once more is no error and no work (fs/ext4/resize.c `ext4_resize_fs`).
        "ext4" => {
            let stat = nix::sys::statfs::fstatfs(&file).map_err(|e| failed(e.into()))?;
            let block = u64::try_from(stat.block_size()).unwrap_or(0).max(1);
            ioctl::ext4_resize(&file, array / block).map_err(failed)?;
        }
        other => return Err(KernelError::refuse(op, target, format!("nobody here can grow {other}"))),
    }
    Ok(Changed::Yes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;
    use crate::linux::md::tests::{array, volume};

    #[test]
    fn only_what_is_mounted_for_writing_from_the_volumes_array_grows() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        let grow = |line: &str| {
            std::fs::write(root.proc.join("self/mountinfo"), line).unwrap();
            super::grow(&root, volume(), "/mnt/a").unwrap_err()
        };
        std::fs::create_dir_all(root.proc.join("self")).unwrap();
        assert!(grow("").detail.contains("no array"));
        array(&root, "md1004");
        for (line, says) in [
            ("", "not mounted"),
            ("90 28 9:1005 / /mnt/a rw - xfs /dev/md1005 rw\n", "not mounted"),
            ("90 28 9:1004 / /mnt/a ro - xfs /dev/md1004 rw\n", "read-only"),
            ("90 28 9:1004 / /mnt/a rw - ext4 /dev/md1004 ro\n", "read-only"),
        ] {
            let error = grow(line);
            assert!(error.class == Class::Refuse && error.detail.contains(says), "{line}: {error}");
        }
    }

    #[test]
    fn a_file_system_of_another_kind_does_not_tell_its_size() {
        let mount = mounts::parse("90 28 9:1004 / / rw - ext4 /dev/md1004 rw\n").remove(0);
        assert_eq!(bytes(&mount), None);
        let lies = Mount { fs: "xfs".into(), target: "/proc".into(), ..mount };
        assert_eq!(bytes(&lies), None, "whoever does not answer says nothing");
    }
}
