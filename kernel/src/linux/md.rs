//! MD arrays of ours: which one belongs to a volume, and what it says of itself.
//!
//! Called by the seam and by the operations beside it (`mdops.rs`), on the blocking pool; reads of MD's attributes do
//! not block even while MD is stuck (seen on 6.12). It never writes.
//!
//! *Ours* are the minors [`MINORS`]. An array that udev assembled from our members has our uuid too, but not our
//! number, our policies or our order of steps: it is foreign, whatever it holds.

use super::attr;
use super::mounts::{self, Mount};
use super::pace;
use super::root::Root;
use super::uring::Ring;
use crate::error::Result;
use crate::facts::{ArrayFact, MemberFact};
use crate::id::VolumeId;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use uuid::Uuid;

/// Minors of our arrays: above the ones people pick by hand (0…), below mdadm's own automatic ones, which count down
/// from 127 and up from 512 for names (md.c `md_alloc`).
pub const MINORS: RangeInclusive<u32> = 1000..=1999;

/// Hands out minors in turn, so that a number just freed is the last to come back: a late operation on a stopped array
/// must not find another one under its name.
#[derive(Debug, Default)]
pub struct Minors(Mutex<u32>);

impl Minors {
    /// The next minor that no device has; `None` when all are taken.
    pub fn next(&self, root: &Root) -> Option<u32> {
        let mut last = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let highest = || names(root).iter().filter_map(|name| minor(name)).max();
        if *last == 0 {
            // After a restart of ours go on behind what is there.
            *last = highest().unwrap_or(*MINORS.start() - 1);
        }
        for _ in MINORS {
            *last = if *last < *MINORS.end() { *last + 1 } else { *MINORS.start() };
            if !root.sys.join(format!("block/md{last}")).exists() {
                return Some(*last);
            }
        }
        None
    }
}

/// Names of the arrays in our range, running or not.
pub fn names(root: &Root) -> Vec<String> {
    attr::names(&root.sys.join("block")).into_iter().filter(|name| minor(name).is_some()).collect()
}

/// The minor of an array name in our range.
pub fn minor(name: &str) -> Option<u32> {
    name.strip_prefix("md")?.parse().ok().filter(|minor| MINORS.contains(minor))
}

/// The array's attribute folder.
pub fn dir(root: &Root, name: &str) -> PathBuf {
    root.sys.join("block").join(name).join("md")
}

/// The array of a volume. One that never ran has no uuid yet and is found by nobody.
pub fn find(root: &Root, volume: VolumeId) -> Option<String> {
    names(root).into_iter().find(|name| uuid(root, name) == Some(volume.md_uuid()))
}

/// `md/uuid`: the superblocks' set uuid, known from the first run on (md.c `super_1_validate`).
pub fn uuid(root: &Root, name: &str) -> Option<Uuid> {
    let text = attr::read_opt(&dir(root, name).join("uuid"))?;
    Uuid::parse_str(&text).ok().filter(|uuid| !uuid.is_nil())
}

/// The array's device number, `9:1003`.
pub fn device_number(root: &Root, name: &str) -> Option<(u32, u32)> {
    let text = attr::read_opt(&root.sys.join("block").join(name).join("dev"))?;
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Members by kernel name of the component.
pub fn members(dir: &Path) -> BTreeMap<String, MemberFact> {
    let components = attr::names(dir).into_iter().filter_map(|name| name.strip_prefix("dev-").map(String::from));
    components.filter_map(|name| member(dir, &name).map(|fact| (name, fact))).collect()
}

/// One member; `None` when the array has no such component.
pub fn member(dir: &Path, component: &str) -> Option<MemberFact> {
    let dir = dir.join(format!("dev-{component}"));
    let flags = attr::read_opt(&dir.join("state"))?;
    let flags = flags.split(',').filter(|flag| !flag.is_empty()).map(String::from).collect();
    // `none` when it has no slot.
    Some(MemberFact { flags, slot: attr::read_number(&dir.join("slot")) })
}

/// Whether the array has a write-intent bitmap.
pub fn has_bitmap(dir: &Path) -> bool {
    attr::read_opt(&dir.join("bitmap/location")).is_some_and(|location| location != "none")
}

/// Whether the kernel can do without a bitmap, but not give one to an array that has none. From 6.18 on `bitmap/location`
/// is there with a bitmap only (md.c `mddev_set_bitmap_ops`), and the ioctl that is left puts it where an I/O to a device
/// with blocks of 4096 bytes cannot begin. Later kernels have the file back, which shows in an array without one only.
pub fn keeps_bitmap(block: &Path) -> bool {
    let large = attr::read_number::<u64>(&block.join("queue/logical_block_size")).is_some_and(|bytes| bytes > 512);
    let dir = block.join("md");
    let located = dir.join("bitmap/location").exists();
    large && dir.join("bitmap_type").exists() && (has_bitmap(&dir) || !located)
}

/// Whether no resync is pending.
pub fn resync_done(dir: &Path) -> bool {
    attr::read_opt(&dir.join("resync_start")).as_deref() == Some("none")
}

/// The whole fact but for the progress of a sync.
fn look(root: &Root, name: String, mounts: &[Mount]) -> ArrayFact {
    let block = root.sys.join("block").join(&name);
    let dir = block.join("md");
    let text = |attribute: &str| attr::read_opt(&dir.join(attribute)).unwrap_or_default();
    let device = device_number(root, &name);
    let files = device.into_iter().flat_map(|device| mounts::of_device(mounts, device));
    let targets = files.chain(mounts::of_node(mounts, &name)).map(|mount| mount.target.clone()).collect();
    ArrayFact {
        path: attr::show(&root.dev.join(&name)),
        state: text("array_state"),
        // `4 (2)` while a reshape runs: the first number is the one it goes to.
        raid_disks: text("raid_disks").split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0),
        degraded: attr::read_number(&dir.join("degraded")).unwrap_or(0),
        size_bytes: attr::read_number::<u64>(&block.join("size")).unwrap_or(0) * 512,
        sync_action: text("sync_action"),
        sync_completed: None,
        resync_done: resync_done(&dir),
        has_bitmap: has_bitmap(&dir),
        keeps_bitmap: keeps_bitmap(&block),
        safe_mode_off: safe_mode_off(&dir),
        sync_speed: pace::speed(&dir),
        sync_held: pace::held(&dir),
        members: members(&dir),
        mounts: targets,
        holders: attr::names(&block.join("holders")).into_iter().collect::<BTreeSet<_>>(),
        name,
    }
}

/// `safe_mode_delay` is shown in seconds with three digits.
pub fn safe_mode_off(dir: &Path) -> bool {
    attr::read_number::<f64>(&dir.join("safe_mode_delay")) == Some(0.0)
}

/// The volume's array. Blocking; [`progress`] adds what the ring reads.
pub fn observe(root: &Root, volume: VolumeId) -> Result<Option<ArrayFact>> {
    let Some(name) = find(root, volume) else { return Ok(None) };
    Ok(Some(look(root, name, &mounts::read(root)?)))
}

/// Reads the progress of a running sync through the ring.
pub async fn progress(root: &Root, ring: &Ring, fact: &mut ArrayFact) {
    if matches!(fact.sync_action.as_str(), "" | "idle" | "frozen") {
        return;
    }
    let text = ring.read_text(dir(root, &fact.name).join("sync_completed")).await;
    fact.sync_completed = text.ok().as_deref().and_then(parse_completed);
}

/// `123 / 456` in sectors; `none` and `delayed` are no progress.
fn parse_completed(text: &str) -> Option<(u64, u64)> {
    let (done, all) = text.split_once(" / ")?;
    Some((done.trim().parse().ok()?, all.trim().parse().ok()?))
}

/// The kernel name of a device node: `nvme0n1p2` of `/dev/nvme0n1p2`, through links.
pub fn component(device: &str) -> String {
    let real = std::fs::canonicalize(device).unwrap_or_else(|_| PathBuf::from(device));
    real.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Kernel objects that hold a component: `md127`, `dm-3`.
pub fn holders(root: &Root, component: &str) -> Vec<String> {
    attr::names(&root.sys.join("class/block").join(component).join("holders"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::fs;

    pub fn put(root: &Root, path: &str, text: &str) {
        let path = root.sys.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn volume() -> VolumeId {
        "0f9a2c56-1c1b-4a1e-9f43-0d8a1c2b3e4f".parse().unwrap()
    }

    /// A running array `name` of `volume()` over `nvme0n1p1` and `nvme3n1`.
    pub fn array(root: &Root, name: &str) {
        let minor = name.trim_start_matches("md");
        for (path, text) in [
            ("dev", format!("9:{minor}\n")),
            ("size", "409600\n".into()),
            ("holders/.keep", String::new()),
            ("md/uuid", format!("{}\n", volume().md_uuid())),
            ("md/array_state", "clean\n".into()),
            ("md/raid_disks", "2\n".into()),
            ("md/degraded", "1\n".into()),
            ("md/sync_action", "recover\n".into()),
            ("md/sync_completed", "128 / 409600\n".into()),
            ("md/resync_start", "none\n".into()),
            ("md/safe_mode_delay", "0.000\n".into()),
            ("md/component_size", "204800\n".into()),
            ("md/bitmap/location", "+8\n".into()),
            ("md/bitmap/chunksize", "67108864\n".into()),
            ("md/bitmap_set_bits", String::new()),
            ("md/dev-nvme0n1p1/state", "in_sync\n".into()),
            ("md/dev-nvme0n1p1/slot", "0\n".into()),
            ("md/dev-nvme3n1/state", "write_mostly,spare\n".into()),
            ("md/dev-nvme3n1/slot", "1\n".into()),
        ] {
            put(root, &format!("block/{name}/{path}"), &text);
        }
        fs::create_dir_all(root.proc.join("self")).unwrap();
        let line = format!("90 28 9:{minor} / /mnt/a rw - xfs /dev/{name} rw\n");
        fs::write(root.proc.join("self/mountinfo"), line).unwrap();
    }

    #[test]
    fn an_array_is_found_by_its_uuid_in_our_range_only() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        array(&root, "md127");
        assert_eq!(find(&root, volume()), None, "udev's own assembly has the same uuid");
        array(&root, "md1004");
        assert_eq!(find(&root, volume()).as_deref(), Some("md1004"));
        put(&root, "block/md1004/md/uuid", "00000000-0000-0000-0000-000000000000\n");
        assert_eq!(find(&root, volume()), None);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_whole_fact() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        array(&root, "md1004");
        fs::remove_file(root.sys.join("block/md1004/holders/.keep")).unwrap();
        let mut fact = observe(&root, volume()).unwrap().unwrap();
        progress(&root, &Ring::start(), &mut fact).await;
        assert_eq!(fact.sync_completed, Some((128, 409600)));
        assert_eq!((fact.raid_disks, fact.degraded, fact.size_bytes), (2, 1, 200 << 20));
        assert!(fact.resync_done && fact.has_bitmap && fact.safe_mode_off);
        assert!(fact.members["nvme0n1p1"].in_sync() && !fact.members["nvme3n1"].in_sync());
        assert_eq!(fact.members["nvme3n1"].slot, Some(1));
        assert_eq!((fact.mounts.len(), fact.holders.len()), (1, 0));
    }

    #[test]
    fn minors_go_round_and_skip_what_exists() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        for name in ["md1000", "md1002", "md5"] {
            fs::create_dir_all(dir(&root, name)).unwrap();
        }
        let minors = Minors::default();
        assert_eq!((minors.next(&root), minors.next(&root)), (Some(1003), Some(1004)));
        *minors.0.lock().unwrap() = 1999;
        assert_eq!((minors.next(&root), minors.next(&root)), (Some(1001), Some(1003)));
    }
}
