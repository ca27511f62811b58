//! Volumes of every content a volume can have, through a whole node agent.

use super::rig::{GIB, Rig, STAGING, mounted};
use crate::testing::{pass, paused};
use meshstor_csi::proto::VolumeCapability;
use meshstor_csi::proto::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
use meshstor_csi::proto::volume_usage::Unit;
use tonic::Code;

const POD: &str = "/var/lib/kubelet/pods/1/volumes/mount";
const OTHER: &str = "/var/lib/kubelet/pods/2/volumes/mount";

#[test]
fn an_ext4_volume_is_made_once_and_mounted_wherever_it_goes() {
    paused(async {
        let (rig, epoch) = Rig::staged_as(&["a", "b"], "ext4", mounted("ext4")).await;
        rig.publish("a", epoch, POD).await.unwrap();
        rig.world.write("a", rig.volume, 5000, 42).await.unwrap();
        rig.unpublish("a", POD).await.unwrap();
        rig.unstage("a", 60).await.unwrap();
        rig.attach(None).await;
        let epoch = rig.attach(Some("b")).await;
        rig.stage("b", epoch, 60).await.unwrap();
        assert_eq!(rig.world.read("b", rig.volume, 5000).await.unwrap(), 42);
        let done = |node: &str, op: &str| rig.ops(node).iter().filter(|line| line.contains(op)).count();
        let made = done("a", "make-filesystem") + done("b", "make-filesystem");
        assert_eq!((made, done("b", " ext4 at ")), (1, 1), "{:#?}", rig.world.trace());
        let kept = rig.world.kernel("b").partition(rig.key(0)).await.unwrap();
        assert!(kept.is_none(), "r0 is on a");
        let kept = rig.world.kernel("a").partition(rig.key(0)).await.unwrap().unwrap().record.unwrap();
        assert_eq!(kept.content.as_str(), "ext4", "the drive says it too");
        assert_eq!(rig.world.violations(), []);
    });
}

#[test]
fn a_deposed_ext4_volume_is_shut_down_before_it_is_let_go() {
    paused(async {
        let (rig, epoch) = Rig::staged_as(&["a", "b"], "ext4", mounted("ext4")).await;
        rig.publish("a", epoch, POD).await.unwrap();
        rig.attach(None).await;
        rig.until("let go", 60.0, async || rig.world.kernel("a").array(rig.volume).await.unwrap().is_none()).await;
        let ops = rig.ops("a");
        let at = |op: &str| ops.iter().position(|line| line.contains(op));
        assert!(at("shutdown-filesystem").is_some() && at("shutdown-filesystem") < at("abandon"), "{ops:#?}");
        assert_eq!(rig.world.violations(), []);
    });
}

#[test]
fn a_stage_that_names_another_file_system_is_refused_and_formats_nothing() {
    paused(async {
        for (made, asked) in [("xfs", "ext4"), ("ext4", "xfs")] {
            let (mut rig, epoch) = Rig::staged_as(&["a", "b"], made, mounted(made)).await;
            rig.unstage("a", 60).await.unwrap();
            let before = rig.ops("a").len();
            rig.capability = mounted(asked);
            let refused = rig.stage("a", epoch, 60).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument);
            let sentence = format!("volume_capability.mount.fs_type is {asked}: the volume was made for {made}");
            assert_eq!(refused.message(), sentence);
            assert_eq!(rig.ops("a").len(), before);
            rig.capability = mounted("");
            rig.stage("a", epoch, 60).await.unwrap();
        }
    });
}

// ---------------------------------------------------------------------------------------- options and modes

/// A mount with these options, in this mode.
fn used(mode: Mode, flags: &[&str]) -> VolumeCapability {
    let mount_flags = flags.iter().map(|flag| (*flag).to_string()).collect();
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume { mount_flags, ..Default::default() })),
    }
}

async fn read_only(rig: &Rig, target: &str) -> Option<bool> {
    rig.world.kernel("a").mount_at(target).await.unwrap().map(|mount| mount.read_only)
}

#[test]
fn options_of_the_class_reach_the_mount_and_a_repeated_publish_changes_nothing() {
    paused(async {
        let capability = used(Mode::SingleNodeMultiWriter, &["nosuid,ro"]);
        let (rig, epoch) = Rig::staged_as(&["a", "b"], "xfs", capability).await;
        rig.publish("a", epoch, POD).await.unwrap();
        assert_eq!((read_only(&rig, STAGING).await, read_only(&rig, POD).await), (Some(true), Some(true)));
        let before = rig.ops("a").len();
        rig.publish("a", epoch, POD).await.unwrap();
        assert_eq!(rig.ops("a").len(), before);
    });
}

#[test]
fn a_pod_that_only_reads_gets_a_mount_that_only_reads_beside_one_that_writes() {
    paused(async {
        let (rig, epoch) = Rig::staged(&["a", "b"]).await;
        rig.publish("a", epoch, POD).await.unwrap();
        rig.publish_to_reader("a", epoch, OTHER).await.unwrap();
        let seen = (read_only(&rig, STAGING).await, read_only(&rig, POD).await, read_only(&rig, OTHER).await);
        assert_eq!(seen, (Some(false), Some(false), Some(true)));
    });
    paused(async {
        let capability = used(Mode::SingleNodeReaderOnly, &[]);
        let (rig, epoch) = Rig::staged_as(&["a", "b"], "xfs", capability).await;
        rig.publish("a", epoch, POD).await.unwrap();
        assert_eq!(read_only(&rig, POD).await, Some(true));
    });
}

#[test]
fn a_volume_for_one_pod_is_at_one_place_at_a_time() {
    paused(async {
        let capability = used(Mode::SingleNodeSingleWriter, &[]);
        let (rig, epoch) = Rig::staged_as(&["a", "b"], "xfs", capability).await;
        let (first, second) = futures::join!(rig.publish("a", epoch, POD), rig.publish("a", epoch, OTHER));
        first.unwrap();
        assert_eq!(second.unwrap_err().code(), Code::Aborted, "at the same moment: ask again");
        rig.publish("a", epoch, POD).await.unwrap();
        let refused = rig.publish("a", epoch, OTHER).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(
            refused.message().starts_with(&format!("pvc-1 is published at {POD}: its access mode is SINGLE_NODE_"))
        );
        rig.unpublish("a", POD).await.unwrap();
        rig.publish("a", epoch, OTHER).await.unwrap();
    });
}

#[test]
fn several_pods_of_a_node_may_share_a_volume() {
    paused(async {
        for mode in [Mode::SingleNodeMultiWriter, Mode::SingleNodeWriter] {
            let (rig, epoch) = Rig::staged_as(&["a", "b"], "xfs", used(mode, &[])).await;
            rig.publish("a", epoch, POD).await.unwrap();
            rig.publish("a", epoch, OTHER).await.unwrap();
        }
    });
}

// ---------------------------------------------------------------------------------------- raw block volumes

fn block(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Block(Default::default())),
    }
}

async fn raw() -> (Rig, u64) {
    Rig::staged_as(&["a", "b"], "none", block(Mode::SingleNodeMultiWriter)).await
}

#[test]
fn a_raw_block_volume_is_bound_as_it_is_and_let_go_without_a_trace() {
    paused(async {
        let (rig, epoch) = raw().await;
        assert_eq!(read_only(&rig, STAGING).await, None, "nothing is at the staging path");
        rig.publish("a", epoch, POD).await.unwrap();
        rig.publish("a", epoch, POD).await.unwrap();
        let kernel = rig.world.kernel("a");
        let mount = kernel.mount_at(POD).await.unwrap().unwrap();
        assert_eq!((mount.raw, mount.alive, mount.read_only, mount.volume), (true, true, false, Some(rig.volume)));
        rig.world.write("a", rig.volume, 5000, 42).await.unwrap();
        assert_eq!(rig.world.read("a", rig.volume, 5000).await.unwrap(), 42);
        rig.until("reported", 15.0, async || {
            let conditions = rig.stored().await.status.unwrap().conditions;
            conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
        })
        .await;
        let usage = rig.stats("a", POD).await.usage;
        assert_eq!((usage.len(), usage[0].total, usage[0].used, usage[0].unit), (1, GIB as i64, 0, Unit::Bytes.into()));
        rig.unpublish("a", POD).await.unwrap();
        rig.unstage("a", 60).await.unwrap();
        assert!(kernel.array(rig.volume).await.unwrap().is_none());
        let ops = rig.ops("a");
        assert!(!ops.iter().any(|op| op.contains("make-filesystem") || op.contains(" mount ")), "{ops:#?}");
        let epoch = {
            rig.attach(None).await;
            rig.attach(Some("b")).await
        };
        rig.stage("b", epoch, 60).await.unwrap();
        rig.publish("b", epoch, POD).await.unwrap();
        assert_eq!(rig.world.read("b", rig.volume, 5000).await.unwrap(), 42);
        assert_eq!(rig.world.violations(), []);
    });
}

#[test]
fn a_raw_block_volume_that_is_staged_again_keeps_what_is_bound_then() {
    paused(async {
        let (rig, epoch) = raw().await;
        rig.publish("a", epoch, POD).await.unwrap();
        // Given up before it is through: kubelet lost patience, and the pod is wanted here again.
        let gone = rig.unstage("a", 1);
        let _ = tokio::time::timeout(std::time::Duration::from_millis(1), gone).await;
        rig.stage("a", epoch, 60).await.unwrap();
        rig.publish("a", epoch, OTHER).await.unwrap();
        pass(60.0).await;
        assert_eq!(read_only(&rig, OTHER).await, Some(false));
        rig.world.write("a", rig.volume, 5000, 1).await.unwrap();
    });
}

#[test]
fn a_restarted_agent_publishes_and_unstages_a_raw_block_volume_that_it_finds() {
    paused(async {
        let (mut rig, epoch) = raw().await;
        rig.publish("a", epoch, POD).await.unwrap();
        let before = rig.ops("a").len();
        rig.kill_agent("a").await;
        rig.start_agent("a");
        pass(30.0).await;
        assert_eq!(rig.ops("a").len(), before, "{:#?}", rig.ops("a"));
        rig.publish("a", epoch, OTHER).await.unwrap();
        assert_eq!(read_only(&rig, OTHER).await, Some(false));
        rig.unstage("a", 60).await.unwrap();
        assert_eq!((read_only(&rig, POD).await, read_only(&rig, OTHER).await), (None, None));
        assert!(rig.world.kernel("a").array(rig.volume).await.unwrap().is_none());
    });
}

#[test]
fn a_deposed_raw_block_volume_answers_no_write_with_success_from_then_on() {
    paused(async {
        let (rig, epoch) = raw().await;
        rig.publish("a", epoch, POD).await.unwrap();
        rig.world.write("a", rig.volume, 5000, 1).await.unwrap();
        // Writers that come again and again, as a container that is started anew does.
        let told = std::rc::Rc::new(std::cell::Cell::new(0u64));
        let (world, volume, seen) = (rig.world.clone(), rig.volume, told.clone());
        let writer = actix::spawn(async move {
            for tag in 2.. {
                if world.write("a", volume, 5000, tag).await.is_ok() {
                    seen.set(tag);
                }
                pass(0.01).await;
            }
        });
        pass(0.5).await;
        rig.world.cut("a", "b");
        pass(0.2).await;
        rig.attach(None).await;
        rig.until("let go", 60.0, async || rig.world.kernel("a").array(rig.volume).await.unwrap().is_none()).await;
        writer.abort();
        let ops = rig.ops("a");
        let at = |op: &str| ops.iter().position(|line| line.contains(op));
        assert!(at("freeze-writes").is_some() && at("freeze-writes") < at("abandon"), "{ops:#?}");
        assert!(at("abandon") < at("cut-off") && at("cut-off") < at("stop-array"), "{ops:#?}");
        rig.world.heal("a", "b");
        let epoch = rig.attach(Some("b")).await;
        rig.stage("b", epoch, 60).await.unwrap();
        rig.publish("b", epoch, POD).await.unwrap();
        let there = rig.world.read("b", rig.volume, 5000).await.unwrap();
        assert!(there >= told.get(), "told {} and found {there}", told.get());
        assert_eq!(rig.world.violations(), []);
    });
}

#[test]
fn a_volume_is_used_as_what_it_was_made_for() {
    paused(async {
        for (made, used, other) in
            [("none", block(Mode::SingleNodeWriter), mounted("")), ("xfs", mounted(""), block(Mode::SingleNodeWriter))]
        {
            let (mut rig, epoch) = Rig::staged_as(&["a", "b"], made, used).await;
            rig.unstage("a", 60).await.unwrap();
            rig.capability = other;
            let refused = rig.stage("a", epoch, 60).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument);
            assert!(refused.message().starts_with("volume_capability."), "{refused}");
            let refused = rig.publish("a", epoch, POD).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument);
        }
    });
}
