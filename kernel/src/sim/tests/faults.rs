//! What each fault means: links, power, freezing, drives, operations, hints.

use super::lab::*;
use crate::content::Filesystem;
use crate::facts::*;
use crate::hint::Hint;
use crate::ops::*;
use crate::sim::{Config, FaultRates, IoError, OpFault, SimDrive};
use std::pin::pin;
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn a_short_cut_is_only_a_pause() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.world.cut("a", "b");
    let mut write = pin!(lab.world.write("a", lab.volume, 1, 10));
    assert!(waits(&mut write, secs(2)).await);
    lab.world.heal("a", "b");
    write.await.unwrap();
    lab.assert_sound(&["a", "b"]);
    assert!(lab.kernel("a").connection(lab.export_key("b", 1, 0)).await.unwrap().live());
}

#[tokio::test(start_paused = true)]
async fn a_long_cut_ends_by_reconnecting() {
    let lab = Lab::new().await;
    lab.mounted().await;
    let key = lab.export_key("b", 1, 0);
    lab.world.cut("a", "b");
    let mut write = pin!(lab.world.write("a", lab.volume, 1, 10));
    assert!(waits(&mut write, secs(30)).await);
    assert!(!lab.kernel("a").connection(key).await.unwrap().live());
    lab.world.heal("a", "b");
    write.await.unwrap();
    let connection = lab.kernel("a").connection(key).await.unwrap();
    assert_eq!((connection.live(), connection.down_for), (true, Duration::ZERO));
    lab.assert_sound(&["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_write_lands_although_its_answer_is_lost() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.write("a", 1, 10).await;
    lab.world.cut_one_way("b", "a");
    let mut write = pin!(lab.world.write("a", lab.volume, 1, 11));
    assert!(waits(&mut write, secs(20)).await);
    assert_eq!(lab.on_disk("b", 1), 11);
}

#[tokio::test(start_paused = true)]
async fn rdma_fails_over_to_tcp_without_a_stall() {
    let lab = Lab::with(Config { rdma: true, ..Config::default() }, |d| d).await;
    lab.partition("b").await;
    let key = lab.export_key("b", 1, 0);
    let tcp = lab.listen("b", key).await;
    let rdma = Listen { transport: Transport::Rdma, ..tcp.clone() };
    let host = crate::id::NodeName("a".into());
    let listen = [tcp.clone(), rdma.clone()].into();
    lab.yes("b", Op::Export { key, host: host.host_nqn(), listen }).await;
    for address in [tcp, rdma] {
        lab.yes("a", Op::Connect { key, node: host.clone(), address }).await;
    }
    let members = vec![lab.blank("a", &lab.head("a", key).await).await];
    lab.yes("a", Op::CreateArray { volume: lab.volume, members: members.clone(), local: 1, component_bytes: SIZE })
        .await;
    lab.yes(
        "a",
        Op::MakeFilesystem { volume: lab.volume, filesystem: Filesystem::Xfs, permit: FormatPermit::Blank(members) },
    )
    .await;
    lab.mount("a").await;
    lab.world.cut_transport("a", "b", Transport::Rdma);
    tokio::time::timeout(secs(6), lab.write("a", 1, 1)).await.unwrap();
    assert_eq!(lab.kernel("a").connection(key).await.unwrap().down_for, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_fence_makes_a_deposed_writer_wait() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.write("a", 1, 10).await;
    lab.yes("b", Op::Fence { key: lab.export_key("b", 1, 0) }).await;
    let mut write = pin!(lab.world.write("a", lab.volume, 1, 11));
    assert!(waits(&mut write, secs(600)).await, "a deposed consumer acknowledged");
    // The new consumer writes; the old one never reaches that copy again.
    let local = lab.local("b").await;
    lab.yes("b", Op::AssembleArray { volume: lab.volume, members: vec![local] }).await;
    lab.yes("b", Op::ActivateArray { volume: lab.volume }).await;
    lab.yes("b", Op::ReleaseSync { volume: lab.volume }).await;
    lab.mount("b").await;
    lab.write("b", 1, 12).await;
    assert!(waits(&mut write, secs(600)).await);
    assert_eq!(lab.on_disk("b", 1), 12);
    // It learns of it: openers killed, file system down, connection abandoned. Nobody hears of success.
    lab.yes("a", Op::KillOpeners { volume: lab.volume }).await;
    assert_eq!(write.await, Err(IoError::Killed));
    lab.yes("a", Op::ShutdownFilesystem { volume: lab.volume }).await;
    lab.yes("a", Op::Abandon { key: lab.export_key("b", 1, 0), deposed_by: 2 }).await;
    lab.yes("a", Op::Unmount { target: "/stage".into(), lazy: true }).await;
    lab.yes("a", Op::StopArray { volume: lab.volume }).await;
    lab.assert_sound(&["b"]);
}

#[tokio::test(start_paused = true)]
async fn a_fence_drains_what_is_in_the_drive() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.world.drive_hang("b", &lab.drive("b"), true);
    let mut write = pin!(lab.world.write("a", lab.volume, 1, 11));
    assert!(waits(&mut write, secs(1)).await);
    let connection = lab.kernel("a").connection(lab.export_key("b", 1, 0)).await.unwrap();
    assert!(connection.live() && connection.stalled_for >= Duration::from_millis(900), "{connection:?}");
    let fence = Op::Fence { key: lab.export_key("b", 1, 0) };
    let kernel = lab.kernel("b");
    let mut fencing = pin!(kernel.apply(&fence));
    assert!(waits(&mut fencing, secs(30)).await, "the fence did not wait for the drive");
    lab.world.drive_hang("b", &lab.drive("b"), false);
    assert_eq!(fencing.await, Ok(Changed::Yes));
    assert!(waits(&mut write, secs(60)).await);
}

#[tokio::test(start_paused = true)]
async fn a_reconnect_that_is_refused_fails_the_member() {
    let lab = Lab::new().await;
    lab.mounted().await;
    let key = lab.export_key("b", 1, 0);
    // The port answers for another export now, as a port taken again too early does (F13).
    let other = crate::id::ExportKey { epoch: 9, ..key };
    let listen = [lab.listen("b", key).await].into();
    lab.yes("b", Op::Fence { key }).await;
    lab.yes("b", Op::RemoveExport { key }).await;
    lab.yes("b", Op::Export { key: other, host: crate::id::NodeName("c".into()).host_nqn(), listen }).await;
    // The deposed writer goes on alone: this is the split brain that a port of its own prevents.
    lab.write("a", 1, 11).await;
    assert_eq!(lab.array("a").await.degraded, 1);
    assert_eq!(lab.on_disk("b", 1), 0);
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_forgets_kernel_state_and_keeps_drives() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.write("a", 1, 10).await;
    let before = lab.kernel("a").node().await.unwrap().boot;
    lab.world.power_cut("a");
    assert!(lab.kernel("a").node().await.is_err());
    assert_eq!(lab.world.write("a", lab.volume, 1, 1).await, Err(IoError::NodeDown));
    lab.world.power_on("a");
    assert_ne!(lab.kernel("a").node().await.unwrap().boot, before);
    assert_eq!(lab.kernel("a").array(lab.volume).await.unwrap(), None);
    assert_eq!(lab.kernel("a").mount_at("/stage").await.unwrap(), None);
    let partition = lab.kernel("a").partition(lab.replica("a")).await.unwrap().unwrap();
    assert!(partition.path.is_some() && partition.record.is_some() && partition.holders.is_empty());
    assert_eq!(partition.superblock.unwrap().active_slot(), Some(0));
    assert_eq!(lab.on_disk("a", 1), 10);
    // The other node kept its export; the array comes back from both members.
    let key = lab.export_key("b", 1, 0);
    lab.yes("a", lab.connect_op("a", "b", key).await).await;
    let members = vec![lab.local("a").await, lab.head("a", key).await];
    lab.yes("a", Op::AssembleArray { volume: lab.volume, members }).await;
    let array = lab.array("a").await;
    assert_eq!((array.degraded, array.resync_done), (0, false), "it was dirty");
    lab.yes("a", Op::ActivateArray { volume: lab.volume }).await;
    lab.yes("a", Op::ReleaseSync { volume: lab.volume }).await;
    lab.settled("a").await;
    lab.mount("a").await;
    assert_eq!(lab.read("a", 1).await, 10);
    lab.assert_sound(&["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_volatile_cache_forgets_what_was_not_flushed() {
    let lab = Lab::with(Config::default(), SimDrive::with_volatile_cache).await;
    lab.mounted().await;
    lab.write("a", 1, 10).await;
    lab.world.flush("a", lab.volume).await.unwrap();
    lab.write("a", 1, 11).await;
    lab.write("a", 2, 12).await;
    lab.world.power_cut("b");
    lab.world.power_on("b");
    assert_eq!((lab.on_disk("b", 1), lab.on_disk("b", 2)), (10, 0));
    assert_eq!((lab.on_disk("a", 1), lab.on_disk("a", 2)), (11, 12));
    // An orderly end flushes.
    lab.world.shut_down("a");
    sleep(secs(2)).await;
    assert!(!lab.world.is_up("a"));
    assert_eq!(lab.on_disk("a", 2), 12);
}

#[tokio::test(start_paused = true)]
async fn an_orderly_shutdown_of_the_target_fails_its_member() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.world.shut_down("b");
    lab.write("a", 1, 10).await;
    assert_eq!(lab.array("a").await.degraded, 1);
}

#[tokio::test(start_paused = true)]
async fn a_frozen_node_carries_out_late_what_had_arrived() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.write("a", 1, 10).await;
    lab.world.freeze("b");
    let mut write = pin!(lab.world.write("a", lab.volume, 1, 11));
    assert!(waits(&mut write, secs(30)).await);
    assert!(!lab.kernel("a").connection(lab.export_key("b", 1, 0)).await.unwrap().live());
    let kernel = lab.kernel("b");
    let mut look = kernel.node();
    assert!(waits(&mut look, secs(1)).await, "a frozen node answered");
    lab.world.thaw("b");
    sleep(Duration::from_millis(2)).await;
    assert_eq!(lab.on_disk("b", 1), 11, "what lay in the socket lands first");
    look.await.unwrap();
    write.await.unwrap();
    lab.assert_sound(&["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_ghost_write_lands_after_a_later_one() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.write("a", 1, 10).await;
    let old = lab.export_key("b", 1, 0);
    // The first write hangs in b's drive, the member is dropped, a second write goes on alone.
    lab.world.drive_hang("b", &lab.drive("b"), true);
    let mut first = pin!(lab.world.write("a", lab.volume, 1, 11));
    assert!(waits(&mut first, secs(30)).await);
    let drop = lab.drop_op("a", old).await;
    lab.yes("a", drop).await;
    first.await.unwrap();
    lab.write("a", 1, 12).await;
    assert_eq!((lab.on_disk("a", 1), lab.on_disk("b", 1)), (12, 10));
    lab.world.drive_hang("b", &lab.drive("b"), false);
    sleep(secs(1)).await;
    assert_eq!(lab.on_disk("b", 1), 11, "no fence has drained it");
}

#[tokio::test(start_paused = true)]
async fn a_pulled_drive_fails_its_member_and_travels_with_its_content() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.write("a", 1, 10).await;
    lab.world.drive_pull("b", &lab.drive("b"));
    assert_eq!(lab.kernel("b").drives().await.unwrap(), vec![]);
    lab.write("a", 1, 11).await;
    assert_eq!(lab.array("a").await.degraded, 1, "the target answers EIO, which MD takes for the member's end");
    lab.world.drive_insert("c", &lab.drive("b"));
    assert_eq!(lab.kernel("b").partition(lab.replica("b")).await.unwrap(), None);
    let there = lab.kernel("c").partition(lab.replica("b")).await.unwrap().unwrap();
    assert_eq!(there.superblock.unwrap().active_slot(), Some(1), "it does not know that it was left");
    assert_eq!(lab.on_disk("b", 1), 10);
}

#[tokio::test(start_paused = true)]
async fn the_last_member_breaks_the_array_and_the_file_system() {
    let lab = Lab::new().await;
    lab.mounted().await;
    lab.world.drive_break("b", &lab.drive("b"), true);
    lab.write("a", 1, 10).await;
    lab.world.drive_break("a", &lab.drive("a"), true);
    assert_eq!(lab.world.write("a", lab.volume, 1, 11).await, Err(IoError::Eio));
    assert_eq!(lab.array("a").await.state, "broken");
    assert!(!lab.kernel("a").mount_at("/stage").await.unwrap().unwrap().alive);
}

#[tokio::test(start_paused = true)]
async fn operations_fail_before_after_and_half_way() {
    let lab = Lab::new().await;
    let op = lab.add_partition("a");
    lab.world.fail_next("a", "add-partition", OpFault::Before);
    assert!(lab.apply("a", op.clone()).await.is_err());
    assert_eq!(lab.kernel("a").partition(lab.replica("a")).await.unwrap(), None);
    lab.world.fail_next("a", "add-partition", OpFault::Half);
    assert!(lab.apply("a", op.clone()).await.is_err());
    let half = lab.kernel("a").partition(lab.replica("a")).await.unwrap().unwrap();
    assert_eq!((half.path, half.kernel_bytes), (None, None), "the table has it, the kernel has not");
    lab.yes("a", Op::AnnouncePartition { key: lab.replica("a") }).await;
    let evidence = lab.unclaimed("a").await;
    lab.world.fail_next("a", "blank-partition", OpFault::After);
    assert!(lab.apply("a", Op::BlankPartition { evidence, record: lab.record("a", 1, 0) }).await.is_err());
    assert!(lab.kernel("a").partition(lab.replica("a")).await.unwrap().unwrap().zeroed);
}

#[tokio::test(start_paused = true)]
async fn a_slow_operation_happens_when_nobody_waits_any_more() {
    let lab = Lab::new().await;
    lab.world.fail_next("a", "add-partition", OpFault::Slow(secs(60)));
    let error = lab.apply("a", lab.add_partition("a")).await.unwrap_err();
    assert_eq!(error.class, crate::Class::Retry);
    assert_eq!(lab.kernel("a").partition(lab.replica("a")).await.unwrap(), None);
    sleep(secs(60)).await;
    assert!(lab.kernel("a").partition(lab.replica("a")).await.unwrap().is_some());
    // With the agent's process it would have been forgotten.
    lab.world.fail_next("b", "add-partition", OpFault::Slow(secs(60)));
    lab.apply("b", lab.add_partition("b")).await.unwrap_err();
    lab.world.kill_agent("b");
    sleep(secs(60)).await;
    assert_eq!(lab.kernel("b").partition(lab.replica("b")).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn hints_come_are_lost_and_come_twice() {
    let lab = Lab::new().await;
    let mut hints = lab.kernel("a").hints();
    lab.partition("a").await;
    let local = tokio::task::LocalSet::new();
    let world = lab.world.clone();
    local.spawn_local(async move { world.run().await });
    let heard = local.run_until(async { tokio::time::timeout(secs(1), hints.recv()).await }).await;
    assert_eq!(heard.unwrap().unwrap(), Hint::Drive(lab.drive("a")));

    while local.run_until(async { tokio::time::timeout(secs(5), hints.recv()).await }).await.is_ok() {}

    lab.world.lose_hints("a", 1);
    let record = |n| Op::WriteRecord { key: lab.replica("a"), record: lab.record("a", 1, n) };
    lab.yes("a", record(1)).await;
    assert!(local.run_until(async { tokio::time::timeout(secs(5), hints.recv()).await }).await.is_err());
    lab.world.double_hints("a", 1);
    lab.yes("a", record(2)).await;
    for _ in 0..2 {
        local.run_until(async { tokio::time::timeout(secs(5), hints.recv()).await }).await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_path_is_hinted_only_after_the_poll() {
    let lab = Lab::new().await;
    lab.mounted().await;
    sleep(secs(1)).await;
    let mut hints = lab.kernel("a").hints();
    lab.world.cut("a", "b");
    sleep(secs(4)).await;
    lab.world.now();
    assert!(hints.try_recv().is_err());
    sleep(secs(2)).await;
    lab.world.now();
    assert_eq!(hints.try_recv(), Ok(Hint::Connection(lab.volume)));
}

#[tokio::test(start_paused = true)]
async fn seeded_faults_can_be_switched_off() {
    let lab = Lab::new().await;
    lab.world.set_rates(FaultRates { op_fails_before: 1.0, look_fails: 1.0, ..FaultRates::default() });
    assert!(lab.apply("a", lab.add_partition("a")).await.is_err());
    assert!(lab.kernel("a").node().await.is_err());
    lab.world.set_rates(FaultRates::default());
    lab.yes("a", lab.add_partition("a")).await;
    lab.world.fail_looks("a", 1);
    assert!(lab.kernel("a").node().await.is_err());
    assert!(lab.kernel("a").node().await.is_ok());
}
