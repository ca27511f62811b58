//! Volatile write caches of NVMe drives: whether one is on, and how it is turned off (docs/protocol.md, rule 11).
//!
//! Called by `drives.rs` for its facts and by the seam on the blocking pool. The kernel's `queue/write_cache` says whether a
//! drive *has* such a cache (`drivers/nvme/host/core.c`, from Identify), not whether it is on, and writing `write through`
//! there is the opposite of help: the cache stays as it is, and the kernel stops to flush it. What is on is feature 06h of
//! the drive itself. Not every drive keeps it over a reset of its controller, so a drive's actor asks again at each look,
//! and what it found is remembered here for one appearance of the drive in one boot.

use crate::error::{KernelError, Result};
use crate::id::DriveId;
use crate::linux::drives::{self, Namespace};
use crate::linux::ioctl;
use crate::linux::root::Root;
use crate::ops::Changed;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Drives, by their power, whose cache was found off.
static OFF: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Nothing panics while holding this lock, and what it guards is never half changed.
fn off() -> MutexGuard<'static, BTreeSet<String>> {
    OFF.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a drive that has a cache must be taken for one whose cache is on. Asks no drive.
pub fn volatile(power: &str) -> bool {
    power.is_empty() || !off().contains(power)
}

fn note(namespace: &Namespace, on: bool) {
    match on || namespace.power.is_empty() {
        true => off().remove(&namespace.power),
        false => off().insert(namespace.power.clone()),
    };
}

/// Asks the drive whether its cache is on, and remembers it. Blocks as long as an admin command may.
pub fn ask(namespace: &mut Namespace) {
    if !namespace.has_cache {
        return;
    }
    let answer = open(namespace).and_then(|drive| ioctl::write_cache(&drive));
    // A drive that does not know the feature cannot turn its cache off either.
    note(namespace, answer.unwrap_or(true));
    namespace.volatile_cache = volatile(&namespace.power);
}

/// Turns a drive's cache off, for good if it can, and flushes what it held.
pub fn disable(root: &Root, id: &DriveId) -> Result<Changed> {
    let namespace = drives::find(root, id)?;
    let refuse = |e: io::Error| match e.kind() {
        io::ErrorKind::Unsupported => KernelError::refuse("disable cache", namespace.path.clone(), e.to_string()),
        _ => KernelError::io("disable cache", namespace.path.clone(), &e),
    };
    if !namespace.has_cache {
        return Ok(Changed::No);
    }
    let drive = open(&namespace).map_err(refuse)?;
    if !ioctl::write_cache(&drive).map_err(refuse)? {
        note(&namespace, false);
        return Ok(Changed::No);
    }
    if ioctl::disable_write_cache(&drive, true).is_err() {
        ioctl::disable_write_cache(&drive, false).map_err(refuse)?;
    }
    // The kernel still takes it for a drive with a cache, so this becomes a flush command.
    drive.sync_all().map_err(refuse)?;
    if ioctl::write_cache(&drive).map_err(refuse)? {
        let detail = "the drive says yes and leaves its cache on";
        return Err(KernelError::refuse("disable cache", namespace.path, detail));
    }
    note(&namespace, false);
    Ok(Changed::Yes)
}

/// For reading: closing a node that was open for writing makes udev probe the drive anew.
fn open(namespace: &Namespace) -> io::Result<File> {
    let options = OpenOptions::new().read(true).clone();
    drives::open_node(Path::new(&namespace.path), namespace.numbers.as_deref(), &options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_holds_for_one_appearance_in_one_boot() {
        assert!(volatile("test-boot/7"));
        off().insert("test-boot/7".into());
        off().insert(String::new());
        assert!(!volatile("test-boot/7") && volatile("test-boot/8") && volatile("other-boot/7"));
        assert!(volatile(""), "a drive of which that cannot be told");
    }
}
