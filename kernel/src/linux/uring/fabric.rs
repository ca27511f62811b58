//! Whether a path may be read with a plain, blocking read: a fabric device only while a controller of it is live.
//!
//! Called by the pool twin alone. A plain read of a device whose last path is gone never returns and cannot be killed.

use crate::linux::root::{Root, list, read_attr};
use std::io;
use std::path::{Path, PathBuf};

/// An error of kind `NotConnected` when `path` is a fabric device without a live controller.
pub(super) fn refuse_unless_live(root: &Root, path: &str) -> io::Result<()> {
    // Links below /dev/disk lead to the node; a path that does not resolve fails at the open with the better error.
    let resolved = std::fs::canonicalize(path).unwrap_or_else(|_| PathBuf::from(path));
    let Some(name) = resolved.file_name().and_then(|name| name.to_str()) else { return Ok(()) };
    if !name.starts_with("nvme") || !resolved.starts_with(&root.dev) {
        return Ok(());
    }
    let states: Vec<String> = controllers(root, name)
        .iter()
        .filter(|controller| read_attr(controller.join("transport")).is_ok_and(|transport| transport != "pcie"))
        .map(|controller| read_attr(controller.join("state")).unwrap_or_else(|_| "gone".into()))
        .collect();
    if states.is_empty() || states.iter().any(|state| state == "live") {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::NotConnected,
        format!("no path to {name} is live ({}) and io_uring is not available", states.join(", ")),
    ))
}

/// Controllers behind a namespace or a partition of one. The namespace hangs on its controller, or, with native
/// multipath, on the subsystem that has all its controllers as links (drivers/nvme/host/multipath.c, sysfs.c).
fn controllers(root: &Root, name: &str) -> Vec<PathBuf> {
    let Ok(mut device) = std::fs::canonicalize(root.sys.join("class/block").join(name)) else { return Vec::new() };
    if device.join("partition").exists() {
        device.pop();
    }
    let Some(parent) = device.parent() else { return Vec::new() };
    if parent.join("transport").exists() {
        return vec![parent.to_path_buf()];
    }
    let is_controller = |path: &Path| path.join("transport").exists() && path.join("state").exists();
    list(parent).unwrap_or_default().iter().map(|name| parent.join(name)).filter(|path| is_controller(path)).collect()
}
