//! The life of a volume, by hand-driven operations.

use super::lab::*;
use crate::facts::Superblock;
use crate::ops::*;
use std::pin::pin;

/// The active members' superblocks agree and say so on disk.
fn active(superblock: &Option<Superblock>) -> Option<u16> {
    superblock.as_ref().and_then(Superblock::active_slot)
}

#[tokio::test(start_paused = true)]
async fn a_volume_lives_through_the_loss_and_return_of_a_replica() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.write("a", 0, 100).await;
    lab.write("a", 5000, 101).await;
    lab.assert_sound(&["a", "b"]);

    // The path goes: a write waits, for as long as it takes.
    lab.world.cut("a", "b");
    let mut stuck = pin!(lab.world.write("a", lab.volume, 0, 102));
    assert!(waits(&mut stuck, secs(60)).await, "a write was acknowledged without its remote member");
    assert_eq!(lab.array("a").await.degraded, 0, "MD gave up by itself");
    let old = lab.export_key("b", 1, 0);
    let connection = lab.kernel("a").connection(old).await.unwrap();
    assert!(connection.down_for >= secs(50) && connection.stalled_for >= secs(50), "{connection:?}");

    // The loss is recorded, then the member is dropped: the write goes on.
    let drop = lab.drop_op("a", old).await;
    lab.yes("a", drop).await;
    stuck.await.unwrap();
    lab.write("a", 7000, 103).await;
    assert_eq!(lab.array("a").await.degraded, 1);
    assert_eq!((lab.on_disk("a", 0), lab.on_disk("b", 0)), (102, 100));

    // It returns through a drained export of a new generation.
    lab.world.heal("a", "b");
    lab.remove_faulty("a").await;
    lab.yes("b", Op::Fence { key: old }).await;
    lab.yes("b", Op::RemoveExport { key: old }).await;
    let head = lab.import("b", "a", lab.export_key("b", 1, 1)).await;
    let superblock = lab.kernel("a").probe(&head, false).await.unwrap().superblock.unwrap();
    let chunks = superblock.bitmap.unwrap().dirty;
    lab.ok("a", Op::MergeBitmap { volume: lab.volume, chunks }).await;
    lab.ok("a", Op::ReleaseSync { volume: lab.volume }).await;
    while !lab.array("a").await.resync_done {
        sleep(secs(1)).await;
    }
    lab.yes("a", Op::ReAddMember { volume: lab.volume, device: head }).await;
    lab.settled("a").await;
    lab.assert_sound(&["a", "b"]);
    let copies = lab.world.copies(lab.volume);
    let (a, b) = (&copies[&lab.replica("a").replica], &copies[&lab.replica("b").replica]);
    assert_eq!((&a.blocks, &a.fs), (&b.blocks, &b.fs));
    assert_eq!((active(&a.superblock), active(&b.superblock)), (Some(0), Some(1)));
    assert_eq!(lab.world.trace().iter().filter(|l| l.contains("LAW BROKEN")).count(), 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_when_a_volume_is_taken_down() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.write("a", 3, 1).await;
    let key = lab.export_key("b", 1, 0);
    lab.yes("a", Op::Unmount { target: "/stage".into(), lazy: false }).await;
    lab.yes("a", Op::StopArray { volume: lab.volume }).await;
    lab.yes("a", Op::Disconnect { key }).await;
    lab.yes("b", Op::Fence { key }).await;
    lab.yes("b", Op::RemoveExport { key }).await;
    for node in ["a", "b"] {
        let evidence = lab.unclaimed(node).await;
        lab.yes(node, Op::RemovePartition { evidence }).await;
    }
    assert_eq!(lab.world.leaks(), vec![]);
    assert!(lab.world.copies(lab.volume).is_empty());
    assert!(lab.world.violations().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_volume_moves_to_another_node_with_its_data() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.write("a", 3, 33).await;
    lab.yes("a", Op::Unmount { target: "/stage".into(), lazy: false }).await;
    lab.yes("a", Op::StopArray { volume: lab.volume }).await;
    let old = lab.export_key("b", 1, 0);
    lab.yes("a", Op::Disconnect { key: old }).await;
    lab.yes("b", Op::Fence { key: old }).await;
    // Node c has no copy of its own.
    let first = lab.import("a", "c", lab.export_key("a", 2, 0)).await;
    let second = lab.import("b", "c", lab.export_key("b", 2, 0)).await;
    lab.yes("c", Op::AssembleArray { volume: lab.volume, members: vec![first, second] }).await;
    assert_eq!(lab.array("c").await.state, "readonly");
    lab.yes("c", Op::ActivateArray { volume: lab.volume }).await;
    lab.yes("c", Op::ReleaseSync { volume: lab.volume }).await;
    lab.mount("c").await;
    assert_eq!(lab.read("c", 3).await, 33);
    lab.write("c", 3, 34).await;
    lab.assert_sound(&["a", "b"]);
}

/// Two runs of one seed are one history.
#[tokio::test(start_paused = true)]
async fn a_seed_is_a_whole_run() {
    async fn run() -> Vec<String> {
        let mut config = crate::sim::Config::default();
        config.rates.hint_lost = 0.5;
        let lab = Lab::with(config, |d| d).await;
        lab.mounted().await;
        lab.write("a", 3, 33).await;
        lab.world.trace()
    }
    assert_eq!(run().await, run().await);
}
