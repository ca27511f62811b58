//! Whether nvmet serves a partition. Called before bytes are destroyed, and before an array takes the partition; the
//! evidence, or the plan, said no, this is the second look.
//!
//! nvmet opens its device without claiming it, so neither an exclusive open nor `holders/` shows an export.

use crate::error::Result;
use crate::linux::root::{Root, list_if_any, read_attr};
use std::path::Path;

/// The NQN of a subsystem with an enabled namespace on this device node.
pub fn exporter(root: &Root, node: &Path) -> Result<Option<String>> {
    let subsystems = root.configfs.join("nvmet/subsystems");
    for nqn in list_if_any(&subsystems)? {
        let namespaces = subsystems.join(&nqn).join("namespaces");
        for nsid in list_if_any(&namespaces)? {
            let at = namespaces.join(nsid);
            // One that goes while we look serves nothing.
            let Ok(device) = read_attr(at.join("device_path")) else { continue };
            if same(Path::new(&device), node) && read_attr(at.join("enable")).is_ok_and(|on| on == "1") {
                return Ok(Some(nqn));
            }
        }
    }
    Ok(None)
}

/// The same node, also by way of a link below /dev/disk.
fn same(one: &Path, other: &Path) -> bool {
    let resolve = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    one == other || resolve(one) == resolve(other)
}
