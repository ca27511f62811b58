//! Each operation asked for twice: the second time nothing changes.

use super::lab::*;
use crate::content::Filesystem;
use crate::facts::*;
use crate::ops::*;
use std::collections::BTreeSet;

/// Yes, then No.
async fn twice(lab: &Lab, node: &str, op: Op) {
    lab.yes(node, op.clone()).await;
    assert_eq!(lab.apply(node, op.clone()).await, Ok(Changed::No), "second time: {op}");
}

#[tokio::test(start_paused = true)]
async fn drive_and_export_operations() {
    let lab = Lab::new().await;
    let spare = crate::sim::SimDrive::new("ser-d", 4 * GIB);
    lab.world.add_node("d", &[spare]);
    let Some(DriveFact { class: DriveClass::Blank(evidence), .. }) =
        lab.kernel("d").drive(&lab.drive("d")).await.unwrap()
    else {
        panic!("not blank")
    };
    twice(&lab, "d", Op::LabelDrive { evidence }).await;

    twice(&lab, "b", lab.add_partition("b")).await;
    assert_eq!(lab.apply("b", Op::AnnouncePartition { key: lab.replica("b") }).await, Ok(Changed::No));
    let evidence = lab.unclaimed("b").await;
    twice(&lab, "b", Op::BlankPartition { evidence: evidence.clone(), record: lab.record("b", 1, 0) }).await;
    twice(&lab, "b", Op::WriteRecord { key: lab.replica("b"), record: lab.record("b", 1, 1) }).await;

    let key = lab.export_key("b", 1, 1);
    twice(&lab, "b", lab.export_op("b", "a", key).await).await;
    twice(&lab, "a", lab.connect_op("a", "b", key).await).await;
    twice(&lab, "a", Op::Disconnect { key }).await;
    twice(&lab, "b", Op::Fence { key }).await;
    twice(&lab, "b", Op::RemoveExport { key }).await;
    twice(&lab, "b", Op::RemovePartition { evidence }).await;
}

#[tokio::test(start_paused = true)]
async fn array_operations() {
    let lab = Lab::new().await;
    let volume = lab.volume;
    lab.partition("a").await;
    lab.partition("b").await;
    let local = lab.local("a").await;
    let key = lab.export_key("b", 1, 0);
    let remote = lab.import("b", "a", key).await;
    let members = vec![lab.blank("a", &local).await, lab.blank("a", &remote).await];
    twice(&lab, "a", Op::CreateArray { volume, members: members.clone(), local: 1, component_bytes: SIZE }).await;
    let component = remote.trim_start_matches("/dev/").to_string();
    twice(&lab, "a", Op::SetWriteMostly { volume, component: component.clone(), on: false }).await;
    twice(&lab, "a", Op::SetWriteMostly { volume, component: component.clone(), on: true }).await;
    twice(&lab, "a", Op::FreezeWrites { volume, component: component.clone(), frozen: true }).await;
    twice(&lab, "a", Op::FreezeWrites { volume, component, frozen: false }).await;
    // Done each time: a bit that is set may be one that MD does not mean to resync (F1).
    lab.yes("a", Op::MergeBitmap { volume, chunks: BTreeSet::from([1, 5]) }).await;
    lab.yes("a", Op::MergeBitmap { volume, chunks: BTreeSet::from([1, 5]) }).await;
    twice(&lab, "a", Op::ReleaseSync { volume }).await;
    lab.settled("a").await;

    let drop = lab.drop_op("a", key).await;
    twice(&lab, "a", drop).await;
    let faulty = lab.array("a").await.members.into_iter().find(|(_, m)| m.flags.contains("faulty")).unwrap().0;
    twice(&lab, "a", Op::RemoveFaulty { volume, component: faulty }).await;
    lab.yes("b", Op::Fence { key }).await;
    let device = lab.import("b", "a", lab.export_key("b", 1, 1)).await;
    let own = lab.kernel("a").probe(&device, false).await.unwrap().superblock.unwrap().bitmap.unwrap();
    lab.ok("a", Op::MergeBitmap { volume, chunks: own.dirty }).await;
    lab.ok("a", Op::ReleaseSync { volume }).await;
    sleep(secs(1)).await;
    twice(&lab, "a", Op::ReAddMember { volume, device }).await;
    lab.settled("a").await;

    twice(&lab, "a", Op::StopArray { volume }).await;
    let members = vec![local, lab.head("a", lab.export_key("b", 1, 1)).await];
    twice(&lab, "a", Op::AssembleArray { volume, members }).await;
    twice(&lab, "a", Op::ActivateArray { volume }).await;
    twice(&lab, "a", Op::ReleaseSync { volume }).await;
    twice(&lab, "a", Op::Abandon { key: lab.export_key("b", 1, 1), deposed_by: 2 }).await;
    assert!(lab.world.violations().is_empty(), "{:?}", lab.world.violations());
}

#[tokio::test(start_paused = true)]
async fn one_copy_becomes_two() {
    let lab = Lab::new().await;
    let volume = lab.volume;
    lab.partition("a").await;
    let local = lab.local("a").await;
    let members = vec![lab.blank("a", &local).await];
    lab.yes("a", Op::CreateArray { volume, members, local: 1, component_bytes: SIZE }).await;
    let fact = lab.array("a").await;
    assert_eq!((fact.has_bitmap, fact.degraded, fact.raid_disks), (false, 0, 1));
    twice(&lab, "a", Op::AddBitmap { volume }).await;
    twice(&lab, "a", Op::SetRaidDisks { volume, count: 2 }).await;
    let speed = SyncSpeed { min_kib: 1024, max_kib: 65_536 };
    twice(&lab, "a", Op::SetSyncSpeed { volume, speed }).await;
    assert_eq!(lab.array("a").await.sync_speed, Some(speed));
    lab.partition("b").await;
    let device = lab.import("b", "a", lab.export_key("b", 1, 0)).await;
    twice(&lab, "a", Op::AddMember { volume, device }).await;
    lab.settled("a").await;
    assert_eq!(lab.array("a").await.degraded, 0);
    // And one again, on the other node: the local copy leaves.
    let array = lab.array("a").await;
    let (own, survivor) = (lab.component("a", false).await, lab.component("a", true).await);
    let evidence = OtherCopyInSync::prove(&array, &own, &survivor, true).unwrap();
    let fail = Op::FailMember { volume, component: own.clone(), evidence };
    twice(&lab, "a", fail).await;
    twice(&lab, "a", Op::RemoveFaulty { volume, component: own }).await;
    twice(&lab, "a", Op::SetRaidDisks { volume, count: 1 }).await;
    lab.settled("a").await;
    twice(&lab, "a", Op::RemoveBitmap { volume }).await;
    let fact = lab.array("a").await;
    assert_eq!((fact.has_bitmap, fact.degraded, fact.raid_disks, fact.members.len()), (false, 0, 1, 1));
    assert!(lab.world.violations().is_empty(), "{:?}", lab.world.violations());
}

#[tokio::test(start_paused = true)]
async fn file_system_operations() {
    let lab = Lab::new().await;
    let volume = lab.volume;
    lab.partition("a").await;
    let local = lab.local("a").await;
    let members = vec![lab.blank("a", &local).await];
    lab.yes("a", Op::CreateArray { volume, members: members.clone(), local: 1, component_bytes: SIZE }).await;
    let format = Op::MakeFilesystem { volume, filesystem: Filesystem::Xfs, permit: FormatPermit::Blank(members) };
    lab.yes("a", format.clone()).await;
    // Never twice, not even by repetition (P4).
    assert_eq!(lab.apply("a", format).await.expect_err("content").class, crate::Class::Refuse);
    twice(&lab, "a", lab.mount_op()).await;
    let bind = Op::BindMount { source: "/stage".into(), target: "/pod".into(), read_only: true };
    twice(&lab, "a", bind).await;
    assert!(lab.kernel("a").mount_at("/pod").await.unwrap().unwrap().read_only);
    lab.world.open("a", volume).unwrap();
    twice(&lab, "a", Op::KillOpeners { volume }).await;
    twice(&lab, "a", Op::ShutdownFilesystem { volume }).await;
    assert!(!lab.kernel("a").mount_at("/stage").await.unwrap().unwrap().alive);
    twice(&lab, "a", Op::Unmount { target: "/pod".into(), lazy: false }).await;
    twice(&lab, "a", Op::Unmount { target: "/stage".into(), lazy: true }).await;

    lab.yes("a", Op::StopArray { volume }).await;
    assert!(lab.world.assemble_foreign("a", &[&local]));
    assert_eq!(lab.kernel("a").array(volume).await.unwrap(), None);
    twice(&lab, "a", Op::StopForeignArray { name: "md127".into() }).await;
}
