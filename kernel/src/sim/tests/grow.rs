//! Growing: partition, export, array and file system, one after another, under writes and cut short at each of them.

use super::lab::*;
use crate::facts::*;
use crate::ops::*;
use crate::sim::OpFault;

const LARGER: u64 = 2 * GIB;

impl Lab {
    fn grow_partition(&self, node: &str) -> Op {
        Op::GrowPartition { key: self.replica(node), drive: self.drive(node), bytes: LARGER + DATA_OFFSET }
    }

    fn grow_array(&self) -> Op {
        Op::GrowArray { volume: self.volume, component_bytes: LARGER }
    }

    fn grow_filesystem(&self) -> Op {
        Op::GrowFilesystem { volume: self.volume, target: "/stage".into() }
    }

    /// Both partitions are larger, and the consumer knows.
    async fn room(&self) {
        self.yes("a", self.grow_partition("a")).await;
        self.yes("b", self.grow_partition("b")).await;
        self.yes("b", Op::RevalidateExport { key: self.export_key("b", 1, 0) }).await;
        sleep(secs(1)).await;
    }

    async fn fills(&self, node: &str) -> Option<u64> {
        self.kernel(node).mounts(self.volume).await.unwrap().bytes
    }

    async fn head_bytes(&self) -> u64 {
        self.kernel("a").connection(self.export_key("b", 1, 0)).await.unwrap().head.unwrap().size_bytes
    }
}

#[tokio::test(start_paused = true)]
async fn each_step_waits_for_the_one_before_and_happens_once() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.write("a", 9000, 5).await;
    assert_eq!((lab.array("a").await.size_bytes, lab.fills("a").await), (SIZE, Some(SIZE)));
    assert!(lab.apply("a", lab.grow_array()).await.is_err(), "no device is that large");
    lab.yes("a", lab.grow_partition("a")).await;
    lab.yes("b", lab.grow_partition("b")).await;
    assert_eq!(lab.apply("b", lab.grow_partition("b")).await, Ok(Changed::No));
    assert_eq!(lab.head_bytes().await, SIZE + DATA_OFFSET, "nobody has told the host");
    assert!(lab.apply("a", lab.grow_array()).await.is_err(), "the far device is not known to be that large");
    let key = lab.export_key("b", 1, 0);
    lab.yes("b", Op::RevalidateExport { key }).await;
    assert_eq!(lab.apply("b", Op::RevalidateExport { key }).await, Ok(Changed::No));
    assert_eq!(lab.head_bytes().await, LARGER + DATA_OFFSET);
    lab.yes("a", lab.grow_array()).await;
    assert_eq!(lab.apply("a", lab.grow_array()).await, Ok(Changed::No));
    let array = lab.array("a").await;
    assert_eq!((array.size_bytes, array.resync_done, array.sync_action.as_str()), (LARGER, true, "idle"));
    assert_eq!(lab.fills("a").await, Some(SIZE));
    lab.yes("a", lab.grow_filesystem()).await;
    assert_eq!((lab.fills("a").await, lab.apply("a", lab.grow_filesystem()).await), (Some(LARGER), Ok(Changed::No)));
    // Behind the old end, on both.
    assert_eq!(lab.read("a", 20_000).await, 0);
    lab.write("a", 20_000, 6).await;
    assert_eq!((lab.on_disk("a", 20_000), lab.on_disk("b", 20_000), lab.read("a", 9000).await), (6, 6, 5));
    lab.assert_sound(&["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_behind_a_partition_is_zeroed_before_it_is_a_part_of_it() {
    let lab = Lab::new().await;
    lab.mounted().await;
    // The same place on one drive held another partition before.
    let other = crate::id::ReplicaKey { replica: crate::id::ReplicaId(9), ..lab.replica("b") };
    let behind = Extent { start: ALIGNMENT + SIZE + DATA_OFFSET, length: GIB };
    lab.yes("b", Op::AddPartition { key: other, drive: lab.drive("b"), extent: behind }).await;
    let refused = lab.apply("b", lab.grow_partition("b")).await.unwrap_err();
    assert!(refused.detail.contains("not free"), "{refused}");
    let fact = lab.kernel("b").partition(other).await.unwrap().unwrap();
    let evidence = Unclaimed::prove(other, &fact, &ExportFact::default()).unwrap();
    lab.yes("b", Op::RemovePartition { evidence }).await;
    lab.room().await;
    lab.yes("a", lab.grow_array()).await;
    for block in [16_384, 20_000, 32_000] {
        assert_eq!((lab.on_disk("a", block), lab.on_disk("b", block)), (0, 0));
    }
    lab.assert_sound(&["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn cut_short_at_any_step_it_is_taken_up_or_harmless() {
    for (node, step) in
        [("b", "grow-partition"), ("b", "revalidate-export"), ("a", "grow-array"), ("a", "grow-filesystem")]
    {
        for fault in [OpFault::Before, OpFault::Half, OpFault::After] {
            let lab = Lab::new().await;
            lab.mounted().await;
            lab.world.fail_next(node, step, fault);
            lab.yes("a", lab.grow_partition("a")).await;
            let key = lab.export_key("b", 1, 0);
            for (node, op) in [
                ("b", lab.grow_partition("b")),
                ("b", Op::AnnouncePartition { key: lab.replica("b") }),
                ("b", Op::RevalidateExport { key }),
                ("a", lab.grow_array()),
                // What the plan does with an array that was left frozen.
                ("a", Op::ReleaseSync { volume: lab.volume }),
                ("a", lab.grow_filesystem()),
            ] {
                if lab.apply(node, op.clone()).await.is_err() {
                    // Looked at again, then done again, if that is still needed.
                    if lab.array("a").await.sync_action == "frozen" {
                        lab.yes("a", Op::ReleaseSync { volume: lab.volume }).await;
                    }
                    lab.settled("a").await;
                    lab.ok(node, op).await;
                }
            }
            lab.settled("a").await;
            let what = format!("{step} {fault:?}");
            assert_eq!((lab.array("a").await.size_bytes, lab.fills("a").await), (LARGER, Some(LARGER)), "{what}");
            lab.write("a", 20_000, 6).await;
            lab.assert_sound(&["a", "b"]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_grows_while_a_member_is_not_whole() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.room().await;
    let volume = lab.volume;
    let component = lab.component("a", true).await;
    for (on, off) in [
        (Op::HoldSync { volume, held: true }, Op::HoldSync { volume, held: false }),
        (
            Op::FreezeWrites { volume, component: component.clone(), frozen: true },
            Op::FreezeWrites { volume, component: component.clone(), frozen: false },
        ),
    ] {
        lab.yes("a", on.clone()).await;
        let error = lab.apply("a", lab.grow_array()).await.unwrap_err();
        assert_eq!(error.class, crate::Class::Wait, "{on}: {error}");
        lab.yes("a", off).await;
    }
    let drop = lab.drop_op("a", lab.export_key("b", 1, 0)).await;
    lab.yes("a", drop).await;
    assert!(lab.apply("a", lab.grow_array()).await.is_err(), "a failed member is still there");
    lab.remove_faulty("a").await;
    sleep(secs(1)).await;
    lab.yes("a", lab.grow_array()).await;
    assert_eq!(lab.array("a").await.size_bytes, LARGER, "one that is gone is no obstacle");
}

#[tokio::test(start_paused = true)]
async fn a_member_that_was_away_meanwhile_is_not_taken_back_by_its_bitmap() {
    let lab = Lab::new().await;
    lab.mounted().await;
    let drop = lab.drop_op("a", lab.export_key("b", 1, 0)).await;
    lab.yes("a", drop).await;
    lab.remove_faulty("a").await;
    lab.yes("a", lab.grow_partition("a")).await;
    sleep(secs(1)).await;
    lab.yes("a", lab.grow_array()).await;
    lab.write("a", 20_000, 6).await;
    lab.yes("b", Op::Fence { key: lab.export_key("b", 1, 0) }).await;
    let device = lab.import("b", "a", lab.export_key("b", 1, 1)).await;
    let (volume, add) = (lab.volume, |device: &String| Op::AddMember { volume: lab.volume, device: device.clone() });
    let small = lab.apply("a", add(&device)).await.unwrap_err();
    assert_eq!(small.errno, Some(28), "ENOSPC: {small}");
    lab.yes("b", lab.grow_partition("b")).await;
    lab.yes("b", Op::RevalidateExport { key: lab.export_key("b", 1, 1) }).await;
    let stale = lab.apply("a", Op::ReAddMember { volume, device: device.clone() }).await.unwrap_err();
    assert_eq!(stale.errno, Some(28), "its superblock says how much it uses: {stale}");
    lab.yes("a", add(&device)).await;
    lab.settled("a").await;
    assert_eq!(lab.on_disk("b", 20_000), 6);
    lab.assert_sound(&["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_away_hears_of_the_size_when_it_is_back() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.world.cut("a", "b");
    lab.yes("b", lab.grow_partition("b")).await;
    lab.yes("b", Op::RevalidateExport { key: lab.export_key("b", 1, 0) }).await;
    sleep(secs(10)).await;
    assert_eq!(lab.head_bytes().await, SIZE + DATA_OFFSET);
    lab.world.heal("a", "b");
    sleep(secs(10)).await;
    assert_eq!(lab.head_bytes().await, LARGER + DATA_OFFSET);
}
