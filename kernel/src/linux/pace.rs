//! How fast and how far MD may copy: `sync_speed_min`, `sync_speed_max` and `sync_max` of one array.
//!
//! Called by `md.rs` for the fact and by the seam on the blocking pool. MD keeps to the first whatever else the drives do
//! and goes up to the second only while they are otherwise idle (md.c `md_do_sync`, `is_mddev_idle`). Arrays that share a
//! drive it resyncs one after another by itself, whatever is written here.

use super::attr;
use super::mdops;
use super::root::Root;
use crate::error::{KernelError, Result};
use crate::facts::{HELD_BACK, SyncSpeed};
use crate::id::VolumeId;
use crate::ops::Changed;
use std::path::Path;

const MIN: &str = "sync_speed_min";
const MAX: &str = "sync_speed_max";
const LIMIT: &str = "sync_max";

/// `1000 (system)` or `2048 (local)`: KiB/s, and whether it is the whole machine's.
fn number(dir: &Path, attribute: &str) -> Option<u32> {
    attr::read_opt(&dir.join(attribute))?.split(' ').next()?.parse().ok()
}

/// The array's limits; `None` where MD shows none.
pub fn speed(dir: &Path) -> Option<SyncSpeed> {
    Some(SyncSpeed { min_kib: number(dir, MIN)?, max_kib: number(dir, MAX)? })
}

/// Sets the array's limits.
pub fn set_speed(root: &Root, volume: VolumeId, wanted: SyncSpeed) -> Result<Changed> {
    let op = format!("set-sync-speed {}", volume.short());
    let (name, dir) = mdops::array(root, &op, volume)?;
    if wanted.min_kib == 0 || wanted.min_kib > wanted.max_kib {
        // Zero is no speed to MD but an order to forget the limit (md.c `sync_min_store`).
        return Err(KernelError::bug(op, name, format!("{} to {} KiB/s", wanted.min_kib, wanted.max_kib)));
    }
    let mut changed = Changed::No;
    for (attribute, kib, now) in [(MAX, wanted.max_kib, number(&dir, MAX)), (MIN, wanted.min_kib, number(&dir, MIN))] {
        if now != Some(kib) {
            attr::write(&op, &dir.join(attribute), &kib.to_string())?;
            changed = Changed::Yes;
        }
    }
    Ok(changed)
}

/// Whether recoveries are held before their end.
pub fn held(dir: &Path) -> bool {
    attr::read_opt(&dir.join(LIMIT)).is_some_and(|text| text.trim().parse::<u64>().is_ok())
}

/// Has recoveries wait before their end, or lets them end. MD refuses to lower the limit below a sync that runs (md.c
/// `max_sync_store`), and forgets it when a sync is over.
pub fn hold(root: &Root, volume: VolumeId, wanted: bool) -> Result<Changed> {
    let op = format!("hold-sync {}", volume.short());
    let (name, dir) = mdops::array(root, &op, volume)?;
    if held(&dir) == wanted {
        return Ok(Changed::No);
    }
    let text =
        match (wanted, attr::read_opt(&dir.join("component_size")).and_then(|kib| kib.trim().parse::<u64>().ok())) {
            (false, _) => "max".to_string(),
            (true, Some(kib)) => (kib * 2).saturating_sub(HELD_BACK).to_string(),
            (true, None) => return Err(KernelError::retry(op, name, "component_size cannot be read")),
        };
    attr::write(&op, &dir.join(LIMIT), &text)?;
    Ok(Changed::Yes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::md::tests::{array, put, volume};

    #[test]
    fn a_recovery_is_held_one_unit_before_its_end() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        array(&root, "md1004");
        let dir = root.sys.join("block/md1004/md");
        assert!(hold(&root, volume(), true).is_err(), "its size is not known");
        put(&root, "block/md1004/md/component_size", "1048576\n");
        put(&root, "block/md1004/md/sync_max", "max\n");
        assert!(!held(&dir));
        assert_eq!(hold(&root, volume(), true), Ok(Changed::Yes));
        assert_eq!(std::fs::read_to_string(dir.join(LIMIT)).unwrap().trim(), "2097024");
        assert_eq!((held(&dir), hold(&root, volume(), true)), (true, Ok(Changed::No)));
        assert_eq!((hold(&root, volume(), false), held(&dir)), (Ok(Changed::Yes), false));
    }

    #[test]
    fn limits_are_read_as_md_shows_them_and_written_when_they_differ() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        array(&root, "md1004");
        let dir = root.sys.join("block/md1004/md");
        assert_eq!(speed(&dir), None);
        put(&root, "block/md1004/md/sync_speed_min", "1000 (system)\n");
        put(&root, "block/md1004/md/sync_speed_max", "200000 (system)\n");
        assert_eq!(speed(&dir), Some(SyncSpeed { min_kib: 1000, max_kib: 200_000 }));
        let wanted = SyncSpeed { min_kib: 1024, max_kib: 409_600 };
        assert_eq!(set_speed(&root, volume(), wanted), Ok(Changed::Yes));
        assert_eq!(speed(&dir), Some(wanted));
        assert_eq!(set_speed(&root, volume(), wanted), Ok(Changed::No));
        for (min_kib, max_kib) in [(0, 5), (6, 5)] {
            let error = set_speed(&root, volume(), SyncSpeed { min_kib, max_kib }).unwrap_err();
            assert_eq!(error.class, crate::Class::Bug);
        }
        assert_eq!(speed(&dir), Some(wanted));
    }
}
