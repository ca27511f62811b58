//! The four things that are done to configfs: make a group, remove one, link, unlink. Each twice is once.
//!
//! Used by the exports beside it alone. It knows nothing of what the objects mean.

use crate::error::{KernelError, Result};
use crate::linux::attr;
use crate::ops::Changed;
use std::fs;
use std::io;
use std::path::Path;

pub(super) fn group(op: &str, path: &Path) -> Result<Changed> {
    match groups::make(path) {
        Ok(()) => Ok(Changed::Yes),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(Changed::No),
        Err(e) => Err(KernelError::io(format!("{op}: mkdir"), attr::show(path), &e)),
    }
}

pub(super) fn ungroup(op: &str, path: &Path) -> Result<Changed> {
    match groups::remove(path) {
        Ok(()) => Ok(Changed::Yes),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Changed::No),
        Err(e) => Err(KernelError::io(format!("{op}: rmdir"), attr::show(path), &e)),
    }
}

pub(super) fn link(op: &str, original: &Path, link: &Path) -> Result<()> {
    match std::os::unix::fs::symlink(original, link) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(KernelError::io(format!("{op}: link"), attr::show(link), &e))
        }
        _ => Ok(()),
    }
}

pub(super) fn unlink(op: &str, path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(KernelError::io(format!("{op}: unlink"), attr::show(path), &e))
        }
        _ => Ok(()),
    }
}

/// Making and removing a configfs group: one system call each, as the kernel fills and empties it.
#[cfg(not(test))]
mod groups {
    pub use std::fs::{create_dir as make, remove_dir as remove};
}
#[cfg(test)]
use super::tests::groups;
