//! An array that uses more of its members, without a resync.
//!
//! ```text
//!  quiet? ─▶ sync_action=frozen ─▶ quiet still? ─▶ bitmap/space ─▶ dev-*/size ─▶ component_size ─▶ resync_start=none ─▶ idle
//! ```
//!
//! Called as the rest of `mdops`. What MD does (6.1 to 6.18 alike, md.c and raid1.c): a member's usable size rises only when
//! it is told so (`rdev_size_store`, which writes that member's superblock); `component_size` then takes what every member
//! has, else ENOSPC, and puts `resync_start` at the old end (`raid1_resize`), because it cannot know what lies behind it.
//! We know: it was zeroed before it became part of a partition (docs/adr/0008-zeroed-partitions.md). `resync_start` may be
//! written only while sync is frozen, and MD must not have a resync of its own pending, for this would call it off: so
//! nothing is begun, nor gone on with, unless all members are whole and nothing is pending. A call that is cut short leaves
//! the array frozen, which `release_sync` ends, or with a resync of the new part pending, which copies zeroes: harmless.
//!
//! The bits of the new part stay NEEDED in the bitmap (`md_bitmap_resize`) until the array is assembled again.

use super::{array, state};
use crate::error::{KernelError, Result};
use crate::facts::{BITMAP_BYTES, COMPONENT_MAX, DATA_OFFSET};
use crate::id::VolumeId;
use crate::linux::root::Root;
use crate::linux::superblock::BITMAP_HEADER_BYTES;
use crate::linux::{attr, md, pace};
use crate::ops::Changed;
use std::path::Path;

const SECTOR: u64 = 512;

/// Grows the array's component size to `component_bytes`.
pub fn grow(root: &Root, volume: VolumeId, component_bytes: u64) -> Result<Changed> {
    let op = format!("grow-array {}", volume.short());
    let (name, dir) = array(root, &op, volume)?;
    let now = attr::read_number::<u64>(&dir.join("component_size"));
    let now = now.ok_or_else(|| KernelError::retry(&op, &name, "component_size cannot be read"))?;
    if component_bytes > COMPONENT_MAX || !component_bytes.is_multiple_of(1024) {
        let detail = format!("{component_bytes} bytes: allowed are whole KiB, {COMPONENT_MAX} bytes at most");
        return Err(KernelError::refuse(op, name, detail));
    }
    if now >= component_bytes >> 10 {
        return Ok(Changed::No);
    }
    quiet(&op, &name, &dir, "idle")?;
    roomy(root, &op, &dir, component_bytes)?;
    attr::write(&op, &dir.join("sync_action"), "frozen")?;
    let grown = quiet(&op, &name, &dir, "frozen").and_then(|()| frozen(&op, &name, &dir, component_bytes));
    // Whatever became of it: a frozen array recovers nobody.
    let released = attr::write(&op, &dir.join("sync_action"), "idle");
    grown.and(released).map(|()| Changed::Yes)
}

/// Nothing is synced, pending or held, and every member is whole.
fn quiet(op: &str, name: &str, dir: &Path, action: &str) -> Result<()> {
    let wait = |detail: String| Err(KernelError::wait(op, name, detail));
    let now = state(dir);
    if !matches!(now.as_str(), "clean" | "active" | "active-idle") {
        return wait(format!("the array is {now:?}"));
    }
    let doing = attr::read_opt(&dir.join("sync_action")).unwrap_or_default();
    if doing != action {
        return wait(format!("its sync_action is {doing:?}"));
    }
    if !md::resync_done(dir) {
        return wait("a resync is pending".into());
    }
    if pace::held(dir) {
        return wait("a recovery to come is held at the old end".into());
    }
    let members = md::members(dir);
    let partly = members.iter().find(|(_, member)| !member.in_sync() || member.flags.contains("blocked"));
    match partly {
        Some((component, _)) => wait(format!("its member {component} is not whole, or blocked")),
        None if members.is_empty() => wait("it has no members".into()),
        None => Ok(()),
    }
}

/// Every member's device is large enough. MD would take what is there and answer ENOSPC, without a name.
fn roomy(root: &Root, op: &str, dir: &Path, component_bytes: u64) -> Result<()> {
    for component in md::members(dir).into_keys() {
        let sectors = attr::read_number::<u64>(&root.sys.join("class/block").join(&component).join("size"));
        let has = sectors.unwrap_or(0).saturating_mul(SECTOR);
        let wanted = component_bytes.saturating_add(DATA_OFFSET);
        if has < wanted {
            return Err(KernelError::wait(op, component, format!("it has {has} bytes, wanted are {wanted}")));
        }
    }
    Ok(())
}

fn frozen(op: &str, name: &str, dir: &Path, component_bytes: u64) -> Result<()> {
    let kib = (component_bytes >> 10).to_string();
    if md::has_bitmap(dir) {
        bitmap_space(op, name, dir, component_bytes)?;
    }
    for component in md::members(dir).into_keys() {
        attr::write(op, &dir.join(format!("dev-{component}/size")), &kib)?;
    }
    attr::write(op, &dir.join("component_size"), &kib)?;
    attr::write(op, &dir.join("resync_start"), "none")
}

/// MD knows of the room behind its bitmap only what mdadm reserved for the size at creation (4, 64 or 128 KiB: super1.c
/// `choose_bm_space`), and doubles the chunk when that is too little. There is more: our data begin at 4 MiB.
fn bitmap_space(op: &str, name: &str, dir: &Path, component_bytes: u64) -> Result<()> {
    let read = |attribute: &str| attr::read_number::<u64>(&dir.join("bitmap").join(attribute));
    let chunk = read("chunksize").filter(|chunk| *chunk > 0);
    let chunk = chunk.ok_or_else(|| KernelError::retry(op, name, "bitmap/chunksize cannot be read"))?;
    let needed = BITMAP_HEADER_BYTES as u64 + component_bytes.div_ceil(chunk).div_ceil(8);
    if needed > BITMAP_BYTES {
        let detail = format!("its bitmap needs {needed} bytes, there are {BITMAP_BYTES}");
        return Err(KernelError::refuse(op, name, detail));
    }
    if read("space").is_none_or(|sectors| sectors.saturating_mul(SECTOR) < needed) {
        attr::write(op, &dir.join("bitmap/space"), &(BITMAP_BYTES / SECTOR).to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;
    use crate::linux::md::tests::{array as fake, put, volume};

    const GIB: u64 = 1 << 30;

    /// A whole array of 200 MiB over two devices of 2 GiB.
    fn whole(root: &Root) {
        fake(root, "md1004");
        let mib = ((2 * GIB) / SECTOR).to_string();
        for (path, text) in [
            ("block/md1004/md/degraded", "0\n"),
            ("block/md1004/md/sync_action", "idle\n"),
            ("block/md1004/md/sync_max", "max\n"),
            ("block/md1004/md/bitmap/space", "8\n"),
            ("block/md1004/md/dev-nvme3n1/state", "in_sync,write_mostly\n"),
            ("block/md1004/md/dev-nvme0n1p1/size", "204800\n"),
            ("block/md1004/md/dev-nvme3n1/size", "204800\n"),
            ("class/block/nvme0n1p1/size", mib.as_str()),
            ("class/block/nvme3n1/size", mib.as_str()),
        ] {
            put(root, path, text);
        }
    }

    fn get(root: &Root, path: &str) -> String {
        attr::read(&root.sys.join("block/md1004/md").join(path)).unwrap()
    }

    #[test]
    fn members_first_then_the_array_and_no_resync() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        whole(&root);
        assert_eq!(grow(&root, volume(), GIB), Ok(Changed::Yes));
        for path in ["dev-nvme0n1p1/size", "dev-nvme3n1/size", "component_size"] {
            assert_eq!(get(&root, path), "1048576", "{path}");
        }
        assert_eq!((get(&root, "resync_start").as_str(), get(&root, "sync_action").as_str()), ("none", "idle"));
        assert_eq!(get(&root, "bitmap/space"), "8", "4 KiB last for 1.8 TiB");
        assert_eq!(grow(&root, volume(), GIB), Ok(Changed::No));
        assert_eq!(grow(&root, volume(), 5 << 20), Ok(Changed::No), "it never shrinks");
    }

    #[test]
    fn the_bitmap_gets_the_room_that_it_has_or_nothing_happens() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        whole(&root);
        let dir = root.sys.join("block/md1004/md");
        assert_eq!(bitmap_space("test", "md1004", &dir, 1 << 40), Ok(()));
        assert_eq!(get(&root, "bitmap/space"), "8");
        assert_eq!(bitmap_space("test", "md1004", &dir, 4 << 40), Ok(()));
        assert_eq!(get(&root, "bitmap/space"), "256");
        assert_eq!(bitmap_space("test", "md1004", &dir, COMPONENT_MAX), Ok(()));
        let beyond = bitmap_space("test", "md1004", &dir, COMPONENT_MAX + 1).unwrap_err();
        assert_eq!(beyond.class, Class::Refuse, "{beyond}");
        assert_eq!(grow(&root, volume(), COMPONENT_MAX + 1024).unwrap_err().class, Class::Refuse);
        assert_eq!(grow(&root, volume(), GIB + 1).unwrap_err().class, Class::Refuse);
        assert_eq!(get(&root, "component_size"), "204800");
    }

    #[test]
    fn nothing_is_begun_while_anything_is_not_whole() {
        for (path, text) in [
            ("block/md1004/md/array_state", "readonly\n"),
            ("block/md1004/md/array_state", "write-pending\n"),
            ("block/md1004/md/sync_action", "recover\n"),
            ("block/md1004/md/sync_action", "frozen\n"),
            ("block/md1004/md/resync_start", "128\n"),
            ("block/md1004/md/sync_max", "409472\n"),
            ("block/md1004/md/dev-nvme3n1/state", "spare\n"),
            ("block/md1004/md/dev-nvme3n1/state", "faulty\n"),
            ("block/md1004/md/dev-nvme0n1p1/state", "in_sync,blocked\n"),
            ("class/block/nvme3n1/size", "409600\n"),
        ] {
            let temp = tempfile::tempdir().unwrap();
            let root = Root::at(temp.path());
            whole(&root);
            put(&root, path, text);
            let before = get(&root, "sync_action");
            let error = grow(&root, volume(), GIB).unwrap_err();
            assert_eq!(error.class, Class::Wait, "{path} {text}: {error}");
            assert_eq!((get(&root, "component_size").as_str(), get(&root, "sync_action")), ("204800", before));
        }
    }

    #[test]
    fn an_array_that_refuses_is_not_left_frozen() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        whole(&root);
        std::fs::remove_file(root.sys.join("block/md1004/md/dev-nvme3n1/size")).unwrap();
        assert!(grow(&root, volume(), GIB).is_err());
        assert_eq!((get(&root, "component_size").as_str(), get(&root, "sync_action").as_str()), ("204800", "idle"));
    }
}
