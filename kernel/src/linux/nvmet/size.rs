//! The size of an export: told to its host again after its partition has grown.
//!
//! Called by `apply.rs` and by the seam. nvmet reads a device's size when the namespace is enabled, when somebody writes
//! `revalidate_size` (target/configfs.c), and when a host identifies the namespace; it shows it nowhere. So this process
//! remembers what it saw told. After a restart it has seen nothing, and one more revalidation does no harm: a host hears
//! only of a size that has changed.

use super::Paths;
use crate::error::{KernelError, Result};
use crate::id::{ExportKey, ReplicaKey};
use crate::linux::attr;
use crate::linux::root::Root;
use crate::ops::Changed;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Sizes in sysfs are in units of this, whatever the device.
const SECTOR: u64 = 512;

/// Sizes that were told, as far as this process has seen.
#[derive(Debug, Default)]
pub struct Told(Mutex<BTreeMap<ExportKey, u64>>);

impl Told {
    /// It was told of this many bytes, or more.
    pub fn note(&self, key: ExportKey, bytes: u64) {
        self.lock().insert(key, bytes);
    }

    /// What was told of an export.
    pub fn of(&self, key: ExportKey) -> Option<u64> {
        self.lock().get(&key).copied()
    }

    /// Forgets those exports of a replica that are no more.
    pub fn keep(&self, replica: ReplicaKey, there: impl Fn(&ExportKey) -> bool) {
        self.lock().retain(|key, _| key.replica != replica || there(key));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<ExportKey, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of the device behind an export, as the kernel has it now.
pub fn device_bytes(root: &Root, key: ExportKey) -> Option<u64> {
    let device = attr::read_opt(&Paths::new(root, key).namespace.join("device_path"))?;
    let name = device.rsplit('/').next()?;
    attr::read_number::<u64>(&root.sys.join("class/block").join(name).join("size"))?.checked_mul(SECTOR)
}

/// Has nvmet look again; refused for a namespace that is not enabled, which has no size.
pub fn revalidate(root: &Root, key: ExportKey) -> Result<Changed> {
    let paths = Paths::new(root, key);
    let op = format!("revalidate export {key}");
    if !paths.enabled() {
        return Err(KernelError::refuse(op, paths.nqn, "its namespace is not enabled"));
    }
    attr::write(&op, &paths.namespace.join("revalidate_size"), "1")?;
    Ok(Changed::Yes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;
    use crate::id::ReplicaId;
    use crate::linux::md::tests::volume;

    fn key(epoch: u64) -> ExportKey {
        ExportKey { replica: ReplicaKey { volume: volume(), replica: ReplicaId(1) }, epoch, generation: 0 }
    }

    #[test]
    fn an_enabled_export_is_looked_at_again_and_its_device_is_the_partition() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        let namespace = Paths::new(&root, key(3)).namespace;
        std::fs::create_dir_all(&namespace).unwrap();
        for (name, text) in [("enable", "0\n"), ("device_path", "/dev/nvme0n1p2\n"), ("revalidate_size", "")] {
            std::fs::write(namespace.join(name), text).unwrap();
        }
        assert_eq!(revalidate(&root, key(3)).unwrap_err().class, Class::Refuse);
        std::fs::write(namespace.join("enable"), "1\n").unwrap();
        assert_eq!(revalidate(&root, key(3)), Ok(Changed::Yes));
        assert_eq!(attr::read(&namespace.join("revalidate_size")).unwrap(), "1");
        assert_eq!(device_bytes(&root, key(3)), None);
        std::fs::create_dir_all(root.sys.join("class/block/nvme0n1p2")).unwrap();
        std::fs::write(root.sys.join("class/block/nvme0n1p2/size"), "4096\n").unwrap();
        assert_eq!(device_bytes(&root, key(3)), Some(2 << 20));
    }

    #[test]
    fn what_was_told_is_remembered_for_as_long_as_the_export_is_there() {
        let told = Told::default();
        told.note(key(3), 5);
        told.note(key(4), 7);
        told.keep(key(4).replica, |export| export.epoch == 4);
        assert_eq!((told.of(key(3)), told.of(key(4))), (None, Some(7)));
        let other = ReplicaKey { replica: ReplicaId(2), ..key(4).replica };
        told.keep(other, |_| false);
        assert_eq!(told.of(key(4)), Some(7), "another replica's");
    }
}
