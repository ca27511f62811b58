//! MD's own rules: bitmap before data, what the daemon forgets, recovery, reads, gates.

use super::lab::*;
use crate::content::Filesystem;
use crate::facts::OtherCopyInSync;
use crate::ops::*;
use crate::sim::IoError;
use std::collections::BTreeSet;
use std::pin::pin;

impl Lab {
    /// Chunks set in the bitmap on a node's disk.
    fn dirty(&self, node: &str) -> BTreeSet<u64> {
        self.world.copies(self.volume)[&self.replica(node).replica].bitmap.clone().unwrap().dirty
    }

    fn events(&self, node: &str) -> u64 {
        self.world.copies(self.volume)[&self.replica(node).replica].superblock.clone().unwrap().events
    }

    pub(super) async fn component(&self, node: &str, local: bool) -> String {
        let mine = self.local(node).await.trim_start_matches("/dev/").to_string();
        self.array(node).await.members.into_keys().find(|m| (*m == mine) == local).unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_bit_is_on_every_disk_before_data_is_on_any() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.write("a", 1, 1).await;
    lab.world.cut("a", "b");
    let mut write = pin!(lab.world.write("a", lab.volume, 9000, 5));
    assert!(waits(&mut write, secs(60)).await);
    // The bit cannot reach b: the data are not even on a.
    assert_eq!(lab.on_disk("a", 9000), 0);
    lab.world.heal("a", "b");
    write.await.unwrap();
    assert_eq!(lab.dirty("a"), lab.dirty("b"));
    assert!(lab.dirty("a").contains(&(9016 / 1024)));
}

#[tokio::test(start_paused = true)]
async fn bits_are_cleared_after_a_while_unless_a_member_is_missing() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.write("a", 9000, 5).await;
    let chunk = 9016 / 1024;
    sleep(secs(6)).await;
    lab.world.now();
    assert!(lab.dirty("a").contains(&chunk), "too early");
    sleep(secs(20)).await;
    assert_eq!((lab.dirty("a"), lab.dirty("b")), (BTreeSet::new(), BTreeSet::new()));
    let drop = lab.drop_op("a", lab.export_key("b", 1, 0)).await;
    lab.yes("a", drop).await;
    lab.write("a", 9000, 6).await;
    sleep(secs(60)).await;
    assert_eq!(lab.dirty("a"), BTreeSet::from([chunk]));
}

#[tokio::test(start_paused = true)]
async fn a_drop_leaves_the_survivor_with_more_events_and_the_loss_in_its_roles() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.write("a", 1, 1).await;
    assert_eq!(lab.events("a"), lab.events("b"));
    let drop = lab.drop_op("a", lab.export_key("b", 1, 0)).await;
    lab.yes("a", drop).await;
    lab.write("a", 1, 2).await;
    assert!(lab.events("a") > lab.events("b"));
    let copies = lab.world.copies(lab.volume);
    let superblock = copies[&lab.replica("a").replica].superblock.clone().unwrap();
    assert_eq!(superblock.roles, vec![0, 0xfffe]);
    // Assembled together, the stale one is refused.
    lab.yes("a", Op::Unmount { target: "/stage".into(), lazy: false }).await;
    lab.yes("a", Op::StopArray { volume: lab.volume }).await;
    lab.yes("b", Op::Fence { key: lab.export_key("b", 1, 0) }).await;
    let remote = lab.import("b", "a", lab.export_key("b", 1, 1)).await;
    let members = vec![lab.local("a").await, remote];
    let error = lab.apply("a", Op::AssembleArray { volume: lab.volume, members }).await.unwrap_err();
    assert_eq!(error.class, crate::Class::Refuse, "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_full_recovery_copies_everything_and_shows_its_progress() {
    let lab = Lab::new().await;
    lab.mounted().await;
    for at in 0..12 {
        lab.write("a", at * 1000, at + 1).await;
    }
    sleep(secs(30)).await;
    lab.yes("a", Op::SetRaidDisks { volume: lab.volume, count: 3 }).await;
    lab.partition("c").await;
    let device = lab.import("c", "a", lab.export_key("c", 1, 3)).await;
    lab.yes("a", Op::AddMember { volume: lab.volume, device }).await;
    sleep(std::time::Duration::from_millis(500)).await;
    let array = lab.array("a").await;
    assert_eq!((array.sync_action.as_str(), array.degraded), ("recover", 1));
    let (done, all) = array.sync_completed.unwrap();
    assert!(done > 0 && done < all && all == SIZE / 512, "{done} of {all}");
    let copies = lab.world.copies(lab.volume);
    assert_eq!(copies[&lab.replica("c").replica].superblock.clone().unwrap().active_slot(), None, "not yet proven");
    lab.write("a", 11000, 99).await;
    lab.settled("a").await;
    lab.assert_sound(&["a", "b", "c"]);
    let copies = lab.world.copies(lab.volume);
    assert_eq!(copies[&lab.replica("c").replica].superblock.clone().unwrap().active_slot(), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_being_rebuilt_does_not_make_a_write_good() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.write("a", 1000, 1).await;
    lab.yes("a", Op::SetRaidDisks { volume: lab.volume, count: 3 }).await;
    lab.partition("c").await;
    let device = lab.import("c", "a", lab.export_key("c", 1, 3)).await;
    lab.yes("a", Op::AddMember { volume: lab.volume, device }).await;
    lab.world.drive_break("a", &lab.drive("a"), true);
    lab.world.drive_break("b", &lab.drive("b"), true);
    assert_eq!(lab.world.write("a", lab.volume, 1000, 2).await, Err(IoError::Eio));
}

#[tokio::test(start_paused = true)]
async fn a_re_add_copies_only_what_is_dirty() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.write("a", 9000, 5).await;
    sleep(secs(30)).await;
    let drop = lab.drop_op("a", lab.export_key("b", 1, 0)).await;
    lab.yes("a", drop).await;
    lab.write("a", 9000, 6).await;
    lab.remove_faulty("a").await;
    lab.yes("b", Op::Fence { key: lab.export_key("b", 1, 0) }).await;
    let device = lab.import("b", "a", lab.export_key("b", 1, 1)).await;
    lab.yes("a", Op::ReAddMember { volume: lab.volume, device }).await;
    let started = lab.world.now();
    lab.settled("a").await;
    assert!(lab.world.now() - started < std::time::Duration::from_millis(500), "it copied more than one chunk");
    lab.assert_sound(&["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_recovery_begins_behind_the_writes_that_began_before_it() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.write("a", 9000, 5).await;
    sleep(secs(30)).await;
    let (volume, device, array) = (lab.volume, lab.local("a").await, lab.array("a").await);
    let component = device.trim_start_matches("/dev/").to_string();
    let survivor = array.members.keys().find(|m| **m != component).unwrap();
    let evidence = OtherCopyInSync::prove(&array, &component, survivor, true).unwrap();
    lab.yes("a", Op::FailMember { volume, component, evidence }).await;
    lab.remove_faulty("a").await;
    // It misses a copy, and has not marked its chunk yet: the one that is left holds it back.
    lab.world.drive_throttle("b", &lab.drive("b"), 1, secs(5));
    let mut late = pin!(lab.world.write("a", volume, 9000, 6));
    assert!(waits(&mut late, secs(1)).await);
    lab.yes("a", Op::ReAddMember { volume, device }).await;
    late.await.unwrap();
    lab.settled("a").await;
    lab.assert_sound(&["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_re_add_below_events_cleared_is_refused() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.write("a", 1, 1).await;
    let volume = lab.volume;
    let drop = lab.drop_op("a", lab.export_key("b", 1, 0)).await;
    lab.yes("a", drop).await;
    lab.remove_faulty("a").await;
    // c takes the place of b; whole writes move events_cleared on.
    lab.partition("c").await;
    let third = lab.import("c", "a", lab.export_key("c", 1, 3)).await;
    lab.yes("a", Op::AddMember { volume, device: third }).await;
    lab.settled("a").await;
    lab.write("a", 1, 2).await;
    lab.yes("b", Op::Fence { key: lab.export_key("b", 1, 0) }).await;
    let device = lab.import("b", "a", lab.export_key("b", 1, 1)).await;
    lab.yes("a", Op::SetRaidDisks { volume, count: 3 }).await;
    lab.apply("a", Op::ReAddMember { volume, device: device.clone() }).await.unwrap_err();
    lab.yes("a", Op::AddMember { volume, device }).await;
    lab.settled("a").await;
    lab.assert_sound(&["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn blocked_freezes_writes_and_not_reads() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.write("a", 1, 1).await;
    let volume = lab.volume;
    let component = lab.component("a", true).await;
    lab.yes("a", Op::FreezeWrites { volume, component: component.clone(), frozen: true }).await;
    let mut write = pin!(lab.world.write("a", volume, 1, 2));
    assert!(waits(&mut write, secs(60)).await);
    assert_eq!(lab.read("a", 1).await, 1);
    assert!(lab.array("a").await.members[&component].flags.contains("blocked"));
    lab.yes("a", Op::FreezeWrites { volume, component, frozen: false }).await;
    write.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn reads_stay_local_only_with_write_mostly() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.write("a", 1, 1).await;
    lab.world.cut("a", "b");
    for _ in 0..20 {
        assert_eq!(lab.read("a", 1).await, 1);
    }
    let component = lab.component("a", false).await;
    lab.yes("a", Op::SetWriteMostly { volume: lab.volume, component, on: false }).await;
    let mut stuck = 0;
    for _ in 0..20 {
        let mut read = pin!(lab.world.read("a", lab.volume, 1));
        stuck += u32::from(waits(&mut read, secs(1)).await);
    }
    assert!(stuck > 0, "no read went to the stuck member");
}

/// F17: while a resync is pending the lowest slot is read, write-mostly or not.
#[tokio::test(start_paused = true)]
async fn a_pending_resync_is_read_from_the_lowest_slot() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.write("a", 9000, 1).await;
    lab.world.cut("a", "b");
    {
        let mut write = pin!(lab.world.write("a", lab.volume, 9000, 2));
        assert!(waits(&mut write, secs(1)).await);
    }
    lab.world.reset("a");
    lab.world.heal("a", "b");
    let key = lab.export_key("b", 1, 0);
    lab.yes("a", lab.connect_op("a", "b", key).await).await;
    let members = vec![lab.local("a").await, lab.head("a", key).await];
    lab.yes("a", Op::AssembleArray { volume: lab.volume, members }).await;
    lab.yes("a", Op::ActivateArray { volume: lab.volume }).await;
    lab.mount("a").await;
    for _ in 0..20 {
        assert_eq!(lab.read("a", 9000).await, 2, "slot 0 has the write that was never acknowledged");
    }
    lab.yes("a", Op::ReleaseSync { volume: lab.volume }).await;
    lab.settled("a").await;
    assert_eq!((lab.on_disk("a", 9000), lab.on_disk("b", 9000)), (2, 2));
}

/// F8: a failing member's first write is held until the loss is in the superblocks.
#[tokio::test(start_paused = true)]
async fn a_member_that_fails_by_itself_is_in_the_superblock_before_the_write_is_answered() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.write("a", 1, 1).await;
    lab.world.drive_break("b", &lab.drive("b"), true);
    lab.write("a", 1, 2).await;
    let copies = lab.world.copies(lab.volume);
    assert_eq!(copies[&lab.replica("a").replica].superblock.clone().unwrap().roles[1], 0xfffe);
}

#[tokio::test(start_paused = true)]
async fn safe_mode_goes_clean_and_back_without_raising_events() {
    let lab = Lab::new().await;
    lab.partition("a").await;
    let volume = lab.volume;
    let local = lab.local("a").await;
    let members = vec![lab.blank("a", &local).await];
    lab.yes("a", Op::CreateArray { volume, members: members.clone(), local: 1, component_bytes: SIZE }).await;
    lab.yes("a", Op::MakeFilesystem { volume, filesystem: Filesystem::Xfs, permit: FormatPermit::Blank(members) })
        .await;
    lab.yes("a", Op::StopArray { volume }).await;
    // MD's own policy, as an assembly leaves it.
    lab.yes("a", Op::AssembleArray { volume, members: vec![local] }).await;
    lab.yes("a", Op::ActivateArray { volume }).await;
    lab.mount("a").await;
    sleep(secs(1)).await;
    assert_eq!(lab.array("a").await.state, "clean");
    let events = lab.events("a");
    lab.write("a", 1, 1).await;
    assert_eq!((lab.array("a").await.state.as_str(), lab.events("a")), ("active", events + 1));
    sleep(secs(1)).await;
    lab.world.now();
    assert_eq!(lab.events("a"), events, "MD goes back to the former clean state (F10)");
    // With the policy of ReleaseSync it stays dirty.
    lab.yes("a", Op::ReleaseSync { volume }).await;
    lab.write("a", 1, 2).await;
    sleep(secs(5)).await;
    assert_eq!(lab.array("a").await.state, "active");
}

/// F11: an assembly by udev, without any write, clears the bits that would have been the proof.
#[tokio::test(start_paused = true)]
async fn a_foreign_assembly_erases_the_dirty_bits() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.write("a", 9000, 1).await;
    sleep(secs(6)).await;
    lab.write("a", 9000, 2).await;
    lab.world.power_cut("a");
    lab.yes("b", Op::Fence { key: lab.export_key("b", 1, 0) }).await;
    let before = (lab.dirty("b"), lab.events("b"));
    assert!(!before.0.is_empty());
    let local = lab.local("b").await;
    assert!(lab.world.assemble_foreign("b", &[&local]));
    let partition = lab.kernel("b").partition(lab.replica("b")).await.unwrap().unwrap();
    assert_eq!(partition.holders, BTreeSet::from(["md127".to_string()]));
    sleep(secs(30)).await;
    lab.yes("b", Op::StopForeignArray { name: "md127".into() }).await;
    assert_eq!((lab.dirty("b"), lab.events("b")), (BTreeSet::new(), before.1));
}

#[tokio::test(start_paused = true)]
async fn operations_wait_for_a_stuck_superblock_and_a_delete_does_not() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.write("a", 1, 1).await;
    let volume = lab.volume;
    lab.world.cut("a", "b");
    // A superblock round that b cannot answer holds MD's mutex.
    let slots = Op::SetRaidDisks { volume, count: 3 };
    lab.yes("a", slots).await;
    assert_eq!(lab.array("a").await.state, "write-pending");
    let component = lab.component("a", true).await;
    let freeze = Op::FreezeWrites { volume, component, frozen: true };
    let error = lab.apply("a", freeze.clone()).await.unwrap_err();
    assert_eq!(error.class, crate::Class::Retry, "{error}");
    let drop = lab.drop_op("a", lab.export_key("b", 1, 0)).await;
    lab.yes("a", drop).await;
    // The freeze that nobody waits for any more happened when the mutex came free.
    sleep(secs(1)).await;
    assert_eq!(lab.apply("a", freeze).await, Ok(Changed::No));
}
