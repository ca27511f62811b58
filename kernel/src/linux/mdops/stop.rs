//! The end of an array: refused while anything is mounted from it or stacked on it.
//!
//! Called as the rest of `mdops`. It never forces anything.

use super::{BUSY_DEADLINE, LOOK_AGAIN, busy, state};
use crate::error::{KernelError, Result};
use crate::id::VolumeId;
use crate::linux::root::Root;
use crate::linux::{attr, md, mounts, openers};
use crate::ops::Changed;
use std::time::Instant;

/// Stops the volume's array. Refused while it is mounted or held.
pub fn stop(root: &Root, volume: VolumeId) -> Result<Changed> {
    let op = format!("stop-array {}", volume.short());
    let Some(name) = md::find(root, volume) else { return Ok(Changed::No) };
    unused(root, &op, &name)?;
    clear(root, &op, &name)?;
    Ok(Changed::Yes)
}

/// Stops an array that is not in our range. The caller has seen that a component is ours.
pub fn stop_foreign(root: &Root, name: &str) -> Result<Changed> {
    let op = format!("stop-foreign-array {name}");
    if md::minor(name).is_some() || !name.starts_with("md") {
        return Err(KernelError::refuse(op, name, "this is no foreign array"));
    }
    if !md::dir(root, name).is_dir() {
        return Ok(Changed::No);
    }
    unused(root, &op, name)?;
    clear(root, &op, name)?;
    Ok(Changed::Yes)
}

fn unused(root: &Root, op: &str, name: &str) -> Result<()> {
    let device = md::device_number(root, name).unwrap_or_default();
    let table = mounts::read(root)?;
    if let Some(mount) = mounts::of_device(&table, device).chain(mounts::of_node(&table, name)).next() {
        return Err(KernelError::refuse(op, name, format!("it is mounted at {}", mount.target)));
    }
    let loops = openers::loops(root, device).into_iter().map(|(name, _)| name);
    let holders: Vec<String> = md::holders(root, name).into_iter().chain(loops).collect();
    if !holders.is_empty() {
        return Err(KernelError::refuse(op, name, format!("{} holds it", holders.join(", "))));
    }
    Ok(())
}

/// Stops and dissolves an array (md.c `do_md_stop` mode 0) and waits until its name is free.
pub(super) fn clear(root: &Root, op: &str, name: &str) -> Result<()> {
    let dir = md::dir(root, name);
    let path = dir.join("array_state");
    busy(|| match attr::write(op, &path, "clear") {
        Err(e) if matches!(e.errno, Some(2 | 19)) => Ok(()),
        other => other,
    })?;
    let end = Instant::now() + BUSY_DEADLINE;
    while dir.is_dir() && state(&dir) != "clear" && Instant::now() < end {
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}
