//! The name under which nvmet gets a partition: one that says which appearance of the drive it was.
//!
//! nvmet keeps the block device open that it found when the namespace was enabled. If the drive is taken away and comes
//! back, the kernel often gives it the same name, and nothing in configfs shows that the namespace serves a device that is
//! no more. The kernel numbers the appearances of disks (`diskseq`, since Linux 5.15, unique for a boot), and configfs keeps
//! the path as it was written: so the path is a link of ours that has the number in it.
//!
//! Called by `nvmet`. It never removes a link: they lie in a file system that a boot empties.

use super::Paths;
use crate::error::{KernelError, Result};
use crate::linux::attr;
use crate::linux::root::{Root, failed};
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Folder of the links, below `/run`.
const LINKS: &str = "meshstor/exports";

/// The path to give to nvmet for a partition's device node; the node itself where the kernel does not number disks.
pub(super) fn named(root: &Root, op: &str, device: &str) -> Result<String> {
    let name = Path::new(device).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(number) = appearance(root, name) else { return Ok(device.to_string()) };
    let folder = root.run.join(LINKS).join(number.to_string());
    fs::create_dir_all(&folder).map_err(|e| failed(op, &folder, &e))?;
    let link = folder.join(name);
    match std::os::unix::fs::symlink(device, &link) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(failed(op, &link, &e)),
        _ => Ok(attr::show(&link)),
    }
}

/// nvmet opens the backing device without a claim (io-cmd-bdev.c `nvmet_bdev_ns_enable`), so it would export a
/// partition that an array on this node writes to. Looking once before enabling closes all but a race with ourselves.
pub(super) fn exclusive(op: &str, device: &str) -> Result<()> {
    let flags = nix::fcntl::OFlag::O_EXCL | nix::fcntl::OFlag::O_CLOEXEC;
    match OpenOptions::new().read(true).custom_flags(flags.bits()).open(device) {
        Ok(_) => Ok(()),
        Err(e) if e.raw_os_error() == Some(nix::errno::Errno::EBUSY as i32) => {
            Err(KernelError::wait(op, device, "something on this node holds the partition (an array, a mount)"))
        }
        Err(e) => Err(KernelError::io(op, device, &e)),
    }
}

/// Whether the namespace is enabled on a device that is no more.
pub(super) fn gone(root: &Root, paths: &Paths) -> bool {
    let path = attr::read_opt(&paths.namespace.join("device_path")).map(PathBuf::from);
    let Some((number, name)) = path.as_deref().and_then(|path| parsed(root, path)) else { return false };
    paths.enabled() && appearance(root, &name) != Some(number)
}

/// The appearance and the partition that a link of ours names.
fn parsed(root: &Root, path: &Path) -> Option<(u64, String)> {
    let mut parts = path.strip_prefix(root.run.join(LINKS)).ok()?.iter();
    let number = parts.next()?.to_str()?.parse().ok()?;
    Some((number, parts.next()?.to_str()?.to_string()))
}

/// The number of the disk that has this partition now.
fn appearance(root: &Root, partition: &str) -> Option<u64> {
    // The folder of a partition lies in that of its disk.
    let folder = fs::canonicalize(root.sys.join("class/block").join(partition)).ok()?;
    attr::read_number(&folder.parent()?.join("diskseq"))
}
