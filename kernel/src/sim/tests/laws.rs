//! Each law catches what it forbids.

use super::lab::*;
use crate::content::Filesystem;
use crate::facts::*;
use crate::id::*;
use crate::ops::*;
use crate::sim::{IoError, Law, SimDrive};
use std::collections::BTreeSet;

fn laws(lab: &Lab) -> Vec<Law> {
    lab.world.violations().iter().map(|v| v.law).collect()
}

async fn refused(lab: &Lab, node: &str, op: Op) {
    ends(lab, node, op, crate::Class::Refuse).await;
}

async fn waits_for(lab: &Lab, node: &str, op: Op) {
    ends(lab, node, op, crate::Class::Wait).await;
}

async fn ends(lab: &Lab, node: &str, op: Op, class: crate::Class) {
    let error = lab.apply(node, op.clone()).await.expect_err(&op.to_string());
    assert_eq!(error.class, class, "{op}: {error}");
}

#[tokio::test(start_paused = true)]
async fn labelling_a_drive_that_is_somebody_elses() {
    let lab = Lab::new().await;
    lab.world.add_node("d", &[SimDrive::new("ser-d", 4 * GIB)]);
    let DriveClass::Blank(evidence) = lab.kernel("d").drive(&lab.drive("d")).await.unwrap().unwrap().class else {
        panic!("not blank")
    };
    // Somebody formats it between the look and the deed.
    lab.world.make_foreign("d", &lab.drive("d"), "an ext4 file system");
    refused(&lab, "d", Op::LabelDrive { evidence }).await;
    assert_eq!(laws(&lab), vec![Law::ForeignBytes]);
    let fact = lab.kernel("d").drive(&lab.drive("d")).await.unwrap().unwrap();
    assert_eq!(fact.class, DriveClass::Theirs("an ext4 file system".into()));
    assert!(fact.free.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_partition_over_another() {
    let lab = Lab::new().await;
    let extent = Extent { start: ALIGNMENT, length: GIB };
    lab.world.add_foreign_partition("a", &lab.drive("a"), 1, extent, "home");
    let fact = lab.kernel("a").drive(&lab.drive("a")).await.unwrap().unwrap();
    assert_eq!(fact.class, DriveClass::Shared);
    refused(&lab, "a", lab.add_partition("a")).await;
    assert_eq!(laws(&lab), vec![Law::OverlappingPartition]);
    // A collision with a partition made a moment ago is an accident: refused, no law broken.
    lab.yes("b", lab.add_partition("b")).await;
    let Op::AddPartition { drive, extent, .. } = lab.add_partition("b") else { panic!() };
    refused(&lab, "b", Op::AddPartition { key: lab.replica("c"), drive, extent }).await;
    assert_eq!(laws(&lab).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn creating_and_formatting_over_data() {
    let lab = Lab::new().await;
    lab.partition("a").await;
    let local = lab.local("a").await;
    let members = vec![lab.blank("a", &local).await];
    let create = Op::CreateArray { volume: lab.volume, members: members.clone(), local: 1, component_bytes: SIZE };
    let format =
        Op::MakeFilesystem { volume: lab.volume, filesystem: Filesystem::Xfs, permit: FormatPermit::Blank(members) };
    lab.yes("a", create.clone()).await;
    lab.yes("a", format.clone()).await;
    lab.mount("a").await;
    lab.write("a", 1, 1).await;
    lab.yes("a", Op::Unmount { target: "/stage".into(), lazy: false }).await;
    // The proofs are old; both would destroy.
    refused(&lab, "a", format).await;
    let redo = FormatPermit::StartedNotDone { record_of: uuid::Uuid::nil() };
    refused(&lab, "a", Op::MakeFilesystem { volume: lab.volume, filesystem: Filesystem::Xfs, permit: redo }).await;
    lab.yes("a", Op::StopArray { volume: lab.volume }).await;
    refused(&lab, "a", create).await;
    assert_eq!(laws(&lab), vec![Law::FormatOverData, Law::FormatOverData, Law::CreateOverData]);
    assert_eq!(lab.on_disk("a", 1), 1);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_copy() {
    let lab = Lab::new().await;
    lab.mounted().await;
    let drop = lab.drop_op("a", lab.export_key("b", 1, 0)).await;
    // The survivor of the evidence fails; for a moment that is bad luck, later it is a broken law.
    lab.world.drive_break("a", &lab.drive("a"), true);
    lab.write("a", 1, 1).await;
    refused(&lab, "a", drop.clone()).await;
    assert_eq!(laws(&lab), vec![]);
    sleep(secs(5)).await;
    refused(&lab, "a", drop).await;
    assert_eq!(laws(&lab), vec![Law::LastCopyDropped]);
    lab.write("a", 1, 2).await;
}

#[tokio::test(start_paused = true)]
async fn two_arrays_on_one_partition() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.world.isolate("a");
    let key = lab.export_key("b", 1, 0);
    // Takeover without the fence. On the target itself it is refused: the partition is exported.
    let local = lab.local("b").await;
    let taken = lab.apply("b", Op::AssembleArray { volume: lab.volume, members: vec![local] }).await;
    assert_eq!(taken.expect_err("exported").class, crate::Class::Wait);
    // Elsewhere nothing stops it: the old consumer comes back to a copy that the new one uses.
    lab.world.heal("b", "c");
    let remote = lab.import("b", "c", lab.export_key("b", 2, 0)).await;
    lab.yes("c", Op::AssembleArray { volume: lab.volume, members: vec![remote] }).await;
    lab.yes("c", Op::ActivateArray { volume: lab.volume }).await;
    assert_eq!(laws(&lab), vec![]);
    lab.world.heal_all();
    sleep(secs(30)).await;
    assert!(lab.kernel("a").connection(key).await.unwrap().live());
    lab.write("a", 1, 1).await;
    assert!(laws(&lab).contains(&Law::TwoWriters), "{:?}", lab.world.violations());
}

#[tokio::test(start_paused = true)]
async fn exporting_what_a_local_array_holds_or_below_the_floor() {
    let lab = Lab::new().await;
    lab.mounted().await;
    sleep(secs(30)).await;
    let held = lab.apply("a", lab.export_op("a", "c", lab.export_key("a", 2, 0)).await).await;
    assert_eq!(held.expect_err("a local array holds it").class, crate::Class::Wait);
    assert_eq!(laws(&lab), vec![Law::LocalAndExported]);
    lab.yes("b", Op::WriteRecord { key: lab.replica("b"), record: lab.record("b", 5, 0) }).await;
    refused(&lab, "b", Op::WriteRecord { key: lab.replica("b"), record: lab.record("b", 4, 9) }).await;
    refused(&lab, "b", lab.export_op("b", "c", lab.export_key("b", 4, 0)).await).await;
    assert_eq!(laws(&lab), vec![Law::LocalAndExported]);
}

#[tokio::test(start_paused = true)]
async fn abandoning_under_a_living_process() {
    let lab = Lab::new().await;
    lab.mounted().await;
    let key = lab.export_key("b", 1, 0);
    // A raw block volume: there is no file system that could be shut down.
    let bind = |source: &str| Op::BindMount { source: source.into(), target: "/pod".into(), read_only: false };
    lab.yes("a", Op::Unmount { target: "/stage".into(), lazy: false }).await;
    let path = lab.array("a").await.path;
    lab.yes("a", bind(&path)).await;
    lab.yes("b", Op::Fence { key }).await;
    let mut write = std::pin::pin!(lab.world.write("a", lab.volume, 1, 1));
    assert!(waits(&mut write, secs(9)).await);
    lab.yes("a", Op::Abandon { key, deposed_by: 2 }).await;
    assert_eq!(write.await, Err(IoError::Killed), "the write must not be acknowledged by the local copy alone");
}

#[tokio::test(start_paused = true)]
async fn a_raw_volume_that_was_cut_off_takes_no_write_from_whoever_comes_later() {
    let lab = Lab::new().await;
    lab.mounted().await;
    let key = lab.export_key("b", 1, 0);
    lab.yes("a", Op::Unmount { target: "/stage".into(), lazy: false }).await;
    let path = lab.array("a").await.path;
    lab.yes("a", Op::BindMount { source: path, target: "/pod".into(), read_only: false }).await;
    lab.yes("b", Op::Fence { key }).await;
    let component = lab.local("a").await.trim_start_matches("/dev/").to_string();
    lab.yes("a", Op::FreezeWrites { volume: lab.volume, component, frozen: true }).await;
    let cut_off = Op::CutOff { volume: lab.volume, deposed_by: 2 };
    lab.yes("a", Op::Abandon { key, deposed_by: 2 }).await;
    let mut frozen = std::pin::pin!(lab.world.write("a", lab.volume, 1, 1));
    assert!(waits(&mut frozen, secs(9)).await, "nobody is told of a write by the local copy alone");
    lab.yes("a", cut_off.clone()).await;
    assert_eq!(frozen.await, Err(IoError::Killed));
    assert_eq!(lab.world.write("a", lab.volume, 1, 2).await, Err(IoError::Eio));
    lab.yes("a", cut_off).await;
    lab.yes("a", Op::Unmount { target: "/pod".into(), lazy: true }).await;
    lab.yes("a", Op::StopArray { volume: lab.volume }).await;
    assert_eq!(laws(&lab), vec![]);
}

#[tokio::test(start_paused = true)]
async fn disturbing_a_pending_resync() {
    let lab = Lab::new().await;
    lab.mounted().await;
    let volume = lab.volume;
    lab.yes("a", Op::MergeBitmap { volume, chunks: BTreeSet::from([3]) }).await;
    let component = lab.array("a").await.members.keys().next().unwrap().clone();
    waits_for(&lab, "a", Op::SetWriteMostly { volume, component, on: true }).await;
    lab.yes("a", Op::ReleaseSync { volume }).await;
    lab.settled("a").await;
    // A third copy is being filled: no merge now.
    lab.yes("a", Op::SetRaidDisks { volume, count: 3 }).await;
    lab.partition("c").await;
    let device = lab.import("c", "a", ExportKey { epoch: 1, generation: 5, replica: lab.replica("c") }).await;
    lab.yes("a", Op::AddMember { volume, device }).await;
    sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(lab.array("a").await.sync_action, "recover");
    waits_for(&lab, "a", Op::MergeBitmap { volume, chunks: BTreeSet::from([4]) }).await;
    assert_eq!(laws(&lab), vec![]);
}
