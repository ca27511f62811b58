//! docs/kernel-hazards.md, F1: a plain bitmap re-add after a takeover by one survivor brings an unacknowledged write back
//! over an acknowledged one; with the merge it does not.

use super::lab::*;
use crate::ops::*;
use crate::sim::Law;
use std::pin::pin;

/// In a chunk that the mount itself does not write to: a write of the degraded survivor would mark it for good.
const BLOCK: u64 = 5000;
const ACKNOWLEDGED: u64 = 700;
const GHOST: u64 = 701;

/// Node a dies with a write that only its own copy has; b takes over and serves; a is back and exports its replica
/// to b. Answers the device on b.
async fn survivor_serves_and_the_old_copy_is_back(lab: &Lab) -> String {
    lab.mounted().await;
    lab.write("a", BLOCK, 1).await;
    sleep(secs(6)).await;
    lab.write("a", BLOCK, ACKNOWLEDGED).await;
    // The path goes; the chunk's bit is on both disks already, so the next write reaches a's own copy at once.
    lab.world.cut("a", "b");
    {
        let mut ghost = pin!(lab.world.write("a", lab.volume, BLOCK, GHOST));
        assert!(waits(&mut ghost, secs(1)).await);
    }
    lab.world.power_cut("a");
    assert_eq!((lab.on_disk("a", BLOCK), lab.on_disk("b", BLOCK)), (GHOST, ACKNOWLEDGED));

    lab.yes("b", Op::Fence { key: lab.export_key("b", 1, 0) }).await;
    let local = lab.local("b").await;
    lab.yes("b", Op::AssembleArray { volume: lab.volume, members: vec![local] }).await;
    lab.yes("b", Op::ActivateArray { volume: lab.volume }).await;
    lab.yes("b", Op::ReleaseSync { volume: lab.volume }).await;
    lab.mount("b").await;
    assert_eq!(lab.read("b", BLOCK).await, ACKNOWLEDGED);
    // The daemon forgets the bits it found on disk.
    sleep(secs(30)).await;

    lab.world.power_on("a");
    lab.world.heal("a", "b");
    lab.import("a", "b", lab.export_key("a", 2, 0)).await
}

#[tokio::test(start_paused = true)]
async fn a_plain_re_add_loses_an_acknowledged_write() {
    let lab = Lab::new().await;
    let device = survivor_serves_and_the_old_copy_is_back(&lab).await;
    lab.yes("b", Op::ReAddMember { volume: lab.volume, device }).await;
    lab.settled("b").await;
    assert_eq!(lab.on_disk("a", BLOCK), GHOST, "the recovery copied a chunk it should not know of");
    assert_eq!(lab.on_disk("b", BLOCK), ACKNOWLEDGED);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..50 {
        seen.insert(lab.read("b", BLOCK).await);
    }
    assert!(seen.contains(&GHOST), "{seen:?}");
    let laws: Vec<Law> = lab.world.violations().iter().map(|v| v.law).collect();
    assert_eq!(laws, vec![Law::ReAddWithoutMerge]);
}

#[tokio::test(start_paused = true)]
async fn with_the_merge_the_acknowledged_write_stays() {
    let lab = Lab::new().await;
    let device = survivor_serves_and_the_old_copy_is_back(&lab).await;
    let superblock = lab.kernel("b").probe(&device, false).await.unwrap().superblock.unwrap();
    let chunks = superblock.bitmap.unwrap().dirty;
    lab.yes("b", Op::MergeBitmap { volume: lab.volume, chunks }).await;
    lab.yes("b", Op::ReleaseSync { volume: lab.volume }).await;
    while !lab.array("b").await.resync_done {
        sleep(secs(1)).await;
    }
    lab.yes("b", Op::ReAddMember { volume: lab.volume, device }).await;
    lab.settled("b").await;
    lab.assert_sound(&["a", "b"]);
    assert_eq!(lab.read("b", BLOCK).await, ACKNOWLEDGED);
}
