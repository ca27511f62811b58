//! Volumes that grow on whole simulated nodes: partitions, exports, array and file system follow their objects, whoever
//! dies in between.

use super::rig::*;
use crate::testing::paused;
use kube::api::{Patch, PatchParams};
use meshstor_csi::proto::node_server::Node as _;
use meshstor_csi::proto::volume_capability::access_mode::Mode;
use meshstor_csi::proto::volume_capability::{AccessMode, AccessType, BlockVolume};
use meshstor_csi::proto::{self, VolumeCapability};
use meshstor_kernel::sim::OpFault;
use serde_json::json;
use tonic::{Code, Status};

const POD: &str = "/var/lib/kubelet/pods/1/volumes/v/mount";
const LARGER: u64 = 2 * GIB;
const SLACK: u64 = 8 << 20;

impl Rig {
    /// What ControllerExpandVolume does first: room is asked for.
    async fn ask_for_room(&self, copies: &[u32]) {
        for number in copies {
            let body = Patch::Merge(json!({"spec": {"partitionBytes": LARGER + SLACK}}));
            let name = format!("{VOLUME}-r{number}");
            self.replicas().patch(&name, &PatchParams::default(), &body).await.unwrap();
        }
    }

    async fn has(&self, number: u32) -> u64 {
        let status = self.replica(number).await.status.unwrap_or_default();
        status.partition.filter(|partition| partition.state == "Ready").map_or(0, |partition| partition.size_bytes)
    }

    async fn room(&self, copies: &[u32]) {
        self.ask_for_room(copies).await;
        for number in copies {
            self.until("a larger partition", 60.0, async || self.has(*number).await == LARGER + SLACK).await;
        }
    }

    /// And last.
    async fn record_size(&self) {
        let body = Patch::Merge(json!({"spec": {"sizeBytes": LARGER}}));
        self.volumes().patch(VOLUME, &PatchParams::default(), &body).await.unwrap();
    }

    async fn node_expand(&self, node: &str, path: &str, seconds: u64) -> Result<i64, Status> {
        let request = proto::NodeExpandVolumeRequest {
            volume_id: VOLUME.into(),
            volume_path: path.into(),
            capacity_range: Some(proto::CapacityRange { required_bytes: LARGER as i64, limit_bytes: 0 }),
            volume_capability: Some(self.capability.clone()),
            ..Default::default()
        };
        let answer = self.agents[node].service.node_expand_volume(held(request, seconds)).await;
        answer.map(|answer| answer.into_inner().capacity_bytes)
    }

    /// Bytes of the array and of the file system on it.
    async fn sizes(&self, node: &str) -> (u64, Option<u64>) {
        let kernel = self.world.kernel(node);
        let array = kernel.array(self.volume).await.unwrap().map_or(0, |array| array.size_bytes);
        (array, kernel.mounts(self.volume).await.unwrap().bytes)
    }

    fn done(&self, node: &str, op: &str) -> usize {
        self.ops(node).iter().filter(|line| line.contains(&format!(" {op} ")) && line.ends_with("-> yes")).count()
    }
}

#[test]
fn a_volume_in_use_grows_step_by_step_and_once() {
    paused(async {
        let (rig, epoch) = Rig::staged(&["a", "b"]).await;
        rig.publish("a", epoch, POD).await.unwrap();
        rig.world.write("a", rig.volume, 5, 7).await.unwrap();
        let early = rig.node_expand("a", POD, 3).await.unwrap_err();
        assert_eq!(early.code(), Code::DeadlineExceeded);
        assert!(early.message().contains("ControllerExpandVolume comes first"), "{}", early.message());
        rig.room(&[0, 1]).await;
        assert_eq!(rig.sizes("a").await, (GIB, Some(GIB)), "the record does not say so yet");
        rig.record_size().await;
        assert_eq!(rig.node_expand("a", POD, 60).await.unwrap(), LARGER as i64);
        assert_eq!(rig.sizes("a").await, (LARGER, Some(LARGER)));
        assert_eq!(rig.node_expand("a", POD, 60).await.unwrap(), LARGER as i64);
        assert_eq!(rig.node_expand("a", STAGING, 60).await.unwrap(), LARGER as i64);
        for (node, op, times) in [
            ("a", "grow-partition", 1),
            ("b", "grow-partition", 1),
            ("b", "revalidate-export", 1),
            ("a", "revalidate-export", 0),
            ("a", "grow-array", 1),
            ("a", "grow-filesystem", 1),
            ("a", "release-sync", 0),
        ] {
            assert_eq!(rig.done(node, op), times, "{op} on {node}");
        }
        // Behind the old end.
        rig.world.write("a", rig.volume, 20_000, 8).await.unwrap();
        assert_eq!(rig.world.read("a", rig.volume, 5).await, Ok(7));
        assert!(rig.world.violations().is_empty());
        let nowhere = rig.node_expand("a", "/nowhere", 3).await.unwrap_err();
        assert_eq!(nowhere.code(), Code::NotFound, "{nowhere:?}");
    });
}

#[test]
fn a_raw_block_volume_grows_without_a_file_system() {
    paused(async {
        let block = VolumeCapability {
            access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
            access_type: Some(AccessType::Block(BlockVolume {})),
        };
        let (rig, epoch) = Rig::staged_as(&["a", "b"], "none", block).await;
        rig.publish("a", epoch, POD).await.unwrap();
        rig.room(&[0, 1]).await;
        rig.record_size().await;
        for path in [POD, "/dev/whatever/kubelet/names"] {
            assert_eq!(rig.node_expand("a", path, 60).await.unwrap(), LARGER as i64);
        }
        assert_eq!((rig.sizes("a").await.0, rig.done("a", "grow-filesystem")), (LARGER, 0));
    });
}

#[test]
fn detached_it_grows_as_far_as_it_can_and_the_rest_when_it_is_staged() {
    paused(async {
        let (rig, _) = Rig::staged(&["a", "b"]).await;
        rig.unstage("a", 60).await.unwrap();
        rig.attach(None).await;
        rig.room(&[0, 1]).await;
        rig.record_size().await;
        let epoch = rig.attach(Some("b")).await;
        rig.stage("b", epoch, 60).await.unwrap();
        rig.publish("b", epoch, POD).await.unwrap();
        rig.until("larger", 30.0, async || rig.sizes("b").await == (LARGER, Some(LARGER))).await;
        assert_eq!(rig.done("b", "grow-array"), 1);
    });
}

#[test]
fn whoever_comes_after_a_consumer_that_died_halfway_goes_on() {
    for (op, fault) in [
        ("grow-array", OpFault::Before),
        ("grow-array", OpFault::Half),
        ("grow-array", OpFault::After),
        ("grow-filesystem", OpFault::Before),
        ("grow-filesystem", OpFault::Half),
    ] {
        paused(async {
            let (mut rig, _) = Rig::staged(&["a", "b"]).await;
            rig.world.write("a", rig.volume, 5, 7).await.unwrap();
            rig.room(&[0, 1]).await;
            rig.world.fail_next("a", op, fault);
            rig.record_size().await;
            let ended = format!(" {op} ");
            rig.until("the step ends", 30.0, async || rig.ops("a").iter().any(|line| line.contains(&ended))).await;
            rig.kill_agent("a").await;
            rig.world.power_cut("a");
            let epoch = rig.attach(Some("b")).await;
            rig.stage("b", epoch, 120).await.unwrap();
            rig.until("larger", 60.0, async || rig.sizes("b").await == (LARGER, Some(LARGER))).await;
            assert_eq!(rig.world.read("b", rig.volume, 5).await, Ok(7), "{op} {fault:?}");
            assert!(rig.world.violations().is_empty());
        });
    }
}

#[test]
fn a_restarted_agent_and_steps_that_fail_change_nothing_about_the_end() {
    for (node, op, fault) in [
        ("b", "grow-partition", OpFault::Before),
        ("b", "grow-partition", OpFault::Half),
        ("b", "grow-partition", OpFault::After),
        ("b", "revalidate-export", OpFault::Before),
        ("b", "revalidate-export", OpFault::After),
        ("a", "grow-array", OpFault::Half),
        ("a", "grow-filesystem", OpFault::Before),
        ("a", "grow-filesystem", OpFault::After),
    ] {
        paused(async {
            let (mut rig, epoch) = Rig::staged(&["a", "b"]).await;
            rig.publish("a", epoch, POD).await.unwrap();
            rig.world.fail_next(node, op, fault);
            rig.ask_for_room(&[0, 1]).await;
            rig.kill_agent(node).await;
            rig.start_agent(node);
            rig.room(&[0, 1]).await;
            rig.record_size().await;
            rig.until("larger", 120.0, async || rig.sizes("a").await == (LARGER, Some(LARGER))).await;
            assert_eq!(rig.node_expand("a", POD, 60).await.unwrap(), LARGER as i64, "{op} {fault:?}");
            assert!(rig.world.violations().is_empty());
        });
    }
}

#[test]
fn a_copy_without_room_behind_it_says_so_and_serves_on() {
    paused(async {
        let (rig, epoch) = Rig::staged(&["a", "b"]).await;
        rig.publish("a", epoch, POD).await.unwrap();
        let body = Patch::Merge(json!({"spec": {"partitionBytes": 1u64 << 40}}));
        let name = format!("{VOLUME}-r1");
        rig.replicas().patch(&name, &PatchParams::default(), &body).await.unwrap();
        rig.until("it says so", 30.0, async || {
            let said = rig.replica(1).await.status.unwrap_or_default().conditions;
            said.iter().any(|said| said.reason == "NoRoomBehind" && said.status == "True")
        })
        .await;
        assert_eq!((rig.has(1).await, rig.done("b", "grow-partition")), (GIB + SLACK, 0));
        rig.world.write("a", rig.volume, 5, 7).await.unwrap();
        // One of the two has grown, and the record says so all the same: the array waits.
        rig.room(&[0]).await;
        rig.record_size().await;
        let waits = rig.node_expand("a", POD, 20).await.unwrap_err();
        assert_eq!(waits.code(), Code::DeadlineExceeded);
        assert!(waits.message().contains("waits until r1 has "), "{}", waits.message());
        assert_eq!(rig.sizes("a").await, (GIB, Some(GIB)));
    });
}
