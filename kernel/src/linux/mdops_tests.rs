//! Operations on a fake sysfs of one array.

use super::*;
use crate::error::Class;
use crate::linux::md::tests::{array, put, volume};
use std::fs;

fn fake() -> (tempfile::TempDir, Root) {
    let temp = tempfile::tempdir().unwrap();
    let root = Root::at(temp.path());
    array(&root, "md1004");
    put(&root, "block/md1004/md/dev-nvme3n1/state", "in_sync,write_mostly\n");
    fs::remove_file(root.sys.join("block/md1004/holders/.keep")).unwrap();
    (temp, root)
}

fn get(root: &Root, attribute: &str) -> String {
    attr::read(&root.sys.join("block/md1004/md").join(attribute)).unwrap()
}

fn set(root: &Root, attribute: &str, value: &str) {
    put(root, &format!("block/md1004/md/{attribute}"), value);
}

#[test]
fn an_array_of_the_same_members_is_assembled_already_and_of_others_is_refused() {
    let (_temp, root) = fake();
    let assemble = |devices: &[&str]| {
        let devices: Vec<String> = devices.iter().map(|d| format!("/nonexistent/{d}")).collect();
        super::assemble(&root, &Minors::default(), volume(), &devices)
    };
    assert_eq!(assemble(&["nvme0n1p1", "nvme3n1"]), Ok(Changed::No));
    assert_eq!(assemble(&["nvme0n1p1"]).unwrap_err().class, Class::Refuse);
    // Read-only and not frozen: a crash came between the two steps.
    set(&root, "array_state", "readonly\n");
    set(&root, "bitmap/time_base", "5\n");
    assert_eq!(assemble(&["nvme0n1p1", "nvme3n1"]), Ok(Changed::Yes));
    assert_eq!((get(&root, "sync_action").as_str(), get(&root, "bitmap/time_base").as_str()), ("frozen", "3600"));
}

#[test]
fn a_held_component_is_waited_for() {
    let (_temp, root) = fake();
    set(&root, "uuid", "00000000-0000-0000-0000-000000000000");
    put(&root, "class/block/nvme0n1p1/holders/md127", "");
    let devices = ["/nonexistent/nvme0n1p1".to_string()];
    let error = super::assemble(&root, &Minors::default(), volume(), &devices).unwrap_err();
    assert!(error.class == Class::Wait && error.detail.contains("md127"), "{error}");
}

#[test]
fn activation_freezes_before_it_writes_active() {
    let (_temp, root) = fake();
    set(&root, "array_state", "readonly\n");
    set(&root, "bitmap/time_base", "5\n");
    assert_eq!(activate(&root, volume()), Ok(Changed::Yes));
    assert_eq!((get(&root, "array_state").as_str(), get(&root, "sync_action").as_str()), ("active", "frozen"));
    assert_eq!(activate(&root, volume()), Ok(Changed::No));
    set(&root, "array_state", "broken\n");
    assert_eq!(activate(&root, volume()).unwrap_err().class, Class::Refuse);
}

#[test]
fn sync_is_released_once_and_again_when_bits_came_later() {
    let (_temp, root) = fake();
    set(&root, "sync_action", "frozen\n");
    set(&root, "safe_mode_delay", "0.204\n");
    set(&root, "bitmap/time_base", "3600\n");
    assert_eq!(release_sync(&root, volume()), Ok(Changed::Yes));
    assert_eq!((get(&root, "sync_action").as_str(), get(&root, "bitmap/time_base").as_str()), ("idle", "5"));
    assert_eq!(release_sync(&root, volume()), Ok(Changed::No));
    set(&root, "resync_start", "0\n");
    assert_eq!(release_sync(&root, volume()), Ok(Changed::Yes));
    set(&root, "sync_action", "resync\n");
    assert_eq!(release_sync(&root, volume()), Ok(Changed::No));
}

#[test]
fn bits_are_merged_in_the_kernels_notation_and_within_bounds() {
    let (_temp, root) = fake();
    assert_eq!(merge_bitmap(&root, volume(), &BTreeSet::new()), Ok(Changed::No));
    assert_eq!(merge_bitmap(&root, volume(), &BTreeSet::from([0, 2, 3])), Ok(Changed::Yes));
    assert_eq!(get(&root, "bitmap_set_bits"), "0 2-3");
    // 200 MiB in chunks of 64 MiB: 0 to 3.
    assert_eq!(merge_bitmap(&root, volume(), &BTreeSet::from([4])).unwrap_err().class, Class::Refuse);
}

#[test]
fn bits_are_never_merged_while_a_member_recovers() {
    let (_temp, root) = fake();
    set(&root, "dev-nvme3n1/state", "write_mostly,spare\n");
    let error = merge_bitmap(&root, volume(), &BTreeSet::from([1])).unwrap_err();
    assert_eq!((error.class, get(&root, "bitmap_set_bits").as_str()), (Class::Wait, ""));
}

#[test]
fn long_lists_of_chunks_are_cut_into_writes_that_sysfs_takes() {
    let chunks: BTreeSet<u64> = (0..20_000).map(|n| n * 2).collect();
    let writes = ranges(&chunks);
    assert!(writes.len() > 1 && writes.iter().all(|write| write.len() <= WRITE_MAX));
    let back: BTreeSet<u64> = writes.iter().flat_map(|w| w.split(' ')).map(|n| n.parse().unwrap()).collect();
    assert_eq!(back, chunks);
}

#[test]
fn member_flags_change_once_and_only_for_members_that_may_have_them() {
    let (_temp, root) = fake();
    assert_eq!(set_write_mostly(&root, volume(), "nvme3n1", true), Ok(Changed::No));
    assert_eq!(freeze_writes(&root, volume(), "nvme0n1p1", false), Ok(Changed::No));
    assert_eq!(freeze_writes(&root, volume(), "nvme0n1p1", true), Ok(Changed::Yes));
    assert_eq!(get(&root, "dev-nvme0n1p1/state"), "blocked");
    set(&root, "dev-nvme0n1p1/state", "spare\n");
    assert_eq!(set_write_mostly(&root, volume(), "nvme0n1p1", true).unwrap_err().class, Class::Refuse);
    assert_eq!(freeze_writes(&root, volume(), "nvme0n1p1", true), Ok(Changed::Yes), "it is still copied to");
    set(&root, "dev-nvme0n1p1/state", "faulty\n");
    assert_eq!(freeze_writes(&root, volume(), "nvme0n1p1", true).unwrap_err().class, Class::Refuse);
    set(&root, "resync_start", "0\n");
    assert_eq!(set_write_mostly(&root, volume(), "nvme0n1p1", true).unwrap_err().class, Class::Wait);
}

#[test]
fn only_a_faulty_member_is_removed() {
    let (_temp, root) = fake();
    assert_eq!(remove_faulty(&root, volume(), "nvme9n1"), Ok(Changed::No));
    assert_eq!(remove_faulty(&root, volume(), "nvme3n1").unwrap_err().class, Class::Refuse);
    set(&root, "dev-nvme3n1/state", "faulty,write_mostly\n");
    assert_eq!(remove_faulty(&root, volume(), "nvme3n1"), Ok(Changed::Yes));
    assert_eq!(get(&root, "dev-nvme3n1/state"), "remove");
}

#[test]
fn an_array_in_use_is_not_stopped() {
    let (_temp, root) = fake();
    let error = stop(&root, volume()).unwrap_err();
    assert!(error.class == Class::Refuse && error.detail.contains("/mnt/a"), "{error}");
    fs::write(root.proc.join("self/mountinfo"), "").unwrap();
    put(&root, "class/block/md1004/holders/dm-0", "");
    assert_eq!(stop(&root, volume()).unwrap_err().class, Class::Refuse);
    fs::remove_file(root.sys.join("class/block/md1004/holders/dm-0")).unwrap();
    assert_eq!(stop(&root, volume()), Ok(Changed::Yes));
    assert_eq!(get(&root, "array_state"), "clear");
}

#[test]
fn no_array_of_ours_is_stopped_as_foreign() {
    let (_temp, root) = fake();
    assert_eq!(stop_foreign(&root, "md1004").unwrap_err().class, Class::Refuse);
    assert_eq!(stop_foreign(&root, "nvme0n1").unwrap_err().class, Class::Refuse);
    assert_eq!(stop_foreign(&root, "md127"), Ok(Changed::No));
}

#[test]
fn half_made_arrays_of_our_components_are_cleared_and_no_others() {
    let (_temp, root) = fake();
    set(&root, "array_state", "inactive\n");
    clear_half_made(&root, &BTreeSet::from(["nvme8n1".to_string()]));
    assert_eq!(get(&root, "array_state"), "inactive");
    clear_half_made(&root, &BTreeSet::from(["nvme3n1".to_string()]));
    assert_eq!(get(&root, "array_state"), "clear");
}

#[test]
fn a_local_member_is_failed_only_beside_one_that_answers_and_never_under_a_pending_superblock() {
    let (_temp, root) = fake();
    put(&root, "class/block/nvme3n1/size", "1\n");
    set(&root, "array_state", "active\n");
    let fail = |survivor: &str| fail_member(&root, volume(), "nvme0n1p1", survivor);
    set(&root, "array_state", "write-pending\n");
    assert_eq!(fail("nvme3n1").unwrap_err().class, Class::Wait);
    set(&root, "array_state", "active\n");
    assert_eq!(fail("nvme0n1p1").unwrap_err().class, Class::Refuse);
    assert_eq!(fail("nvme9n1").unwrap_err().class, Class::Refuse);
    set(&root, "dev-nvme3n1/state", "spare\n");
    assert_eq!(fail("nvme3n1").unwrap_err().class, Class::Refuse);
    assert_ne!(get(&root, "dev-nvme0n1p1/state"), "faulty");
    set(&root, "dev-nvme3n1/state", "in_sync,write_mostly\n");
    assert_eq!(fail("nvme3n1"), Ok(Changed::Yes));
    assert_eq!(get(&root, "dev-nvme0n1p1/state"), "faulty");
    assert_eq!(fail("nvme3n1"), Ok(Changed::No));
}
