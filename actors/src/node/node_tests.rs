//! One or more whole node agents on simulated kernels and an in-memory API store.

use super::rig::{Rig, STAGING, VOLUME};
use crate::testing::{pass, paused};
use meshstor_kernel::id::ReplicaId;

const POD: &str = "/var/lib/kubelet/pods/1/volumes/mount";

#[test]
fn a_replica_becomes_a_partition_and_an_export() {
    paused(async {
        let rig = Rig::new(&["a", "b"]).await;
        rig.create_volume(&["a", "b"]).await;
        let epoch = rig.attach(Some("a")).await;
        rig.until("fenced and exported", 20.0, async || {
            let (a, b) = (rig.replica(0).await.status.unwrap(), rig.replica(1).await.status.unwrap());
            let local = a.export.as_ref().is_some_and(|e| e.ready && e.listen.is_empty());
            let remote = b.export.as_ref().is_some_and(|e| e.ready && !e.listen.is_empty() && e.epoch == epoch);
            local && remote && a.fenced_epoch == epoch && b.fenced_epoch == epoch
        })
        .await;
        let node = rig.store.get("meshstornodes", "", "a").unwrap();
        assert_eq!(node["status"]["conditions"][0]["status"], "True");
        assert!(node["status"]["heartbeat"].is_string());
        let devices = rig.store.list("meshstornodedevices");
        assert_eq!(devices.len(), 2);
        assert!(devices.iter().all(|d| d["status"]["class"] == "ours"), "{devices:?}");
    });
}

#[test]
fn a_volume_is_staged_published_written_and_let_go() {
    paused(async {
        let (rig, epoch) = Rig::staged(&["a", "b"]).await;
        rig.publish("a", epoch, POD).await.unwrap();
        rig.publish("a", epoch, POD).await.unwrap();
        rig.world.write("a", rig.volume, 5000, 42).await.unwrap();
        assert_eq!(rig.world.read("a", rig.volume, 5000).await.unwrap(), 42);
        let copies = rig.world.copies(rig.volume);
        assert!([0, 1].iter().all(|r| copies.contains_key(&ReplicaId(*r))));
        let status = rig.stored().await.status.unwrap();
        assert_eq!((status.activated_epoch, status.in_sync.unwrap().len()), (epoch, 2));
        rig.until("reported", 15.0, async || {
            let status = rig.stored().await.status.unwrap();
            status.array.is_some_and(|array| array.state == "active" && array.members.len() == 2)
                && status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
        })
        .await;
        rig.unpublish("a", POD).await.unwrap();
        rig.unstage("a", 60).await.unwrap();
        let kernel = rig.world.kernel("a");
        assert!(kernel.array(rig.volume).await.unwrap().is_none());
        assert!(kernel.connections(rig.volume).await.unwrap().is_empty());
        assert_eq!(rig.stored().await.status.unwrap().released_epoch, epoch);
        assert_eq!(rig.world.violations(), []);
    });
}

#[test]
fn a_local_drive_that_breaks_is_taken_out_of_the_record() {
    paused(async {
        let (rig, epoch) = Rig::staged(&["a", "b"]).await;
        rig.publish("a", epoch, POD).await.unwrap();
        rig.world.write("a", rig.volume, 5000, 1).await.unwrap();
        rig.world.drive_break("a", &rig.drives["a"], true);
        rig.world.write("a", rig.volume, 5000, 2).await.unwrap();
        rig.until("taken out", 20.0, async || {
            rig.stored().await.status.unwrap().in_sync == Some(vec![ReplicaId(1).to_string()])
        })
        .await;
        rig.world.write("a", rig.volume, 5000, 3).await.unwrap();
        let frozen = rig.ops("a").iter().any(|op| op.contains("freeze-writes"));
        assert!(frozen, "writes went on before the loss was recorded: {:#?}", rig.world.trace());
    });
}

#[test]
fn a_failed_member_has_its_writes_frozen_while_the_api_server_hangs() {
    paused(async {
        let (rig, epoch) = Rig::staged(&["a", "b"]).await;
        rig.publish("a", epoch, POD).await.unwrap();
        rig.world.write("a", rig.volume, 5000, 1).await.unwrap();
        rig.store.faults().set_link("a", meshstor_memstore::Link::Hang);
        rig.world.drive_break("a", &rig.drives["a"], true);
        rig.world.write("a", rig.volume, 5000, 2).await.unwrap();
        // Far less than any answer is waited for.
        pass(0.1).await;
        let frozen = rig.ops("a").iter().any(|op| op.contains("freeze-writes"));
        assert!(frozen, "not frozen yet: {:#?}", rig.world.trace());
    });
}

#[test]
fn an_agent_that_begins_beside_a_failed_member_asks_for_the_record_before_it_freezes_writes() {
    paused(async {
        let (mut rig, epoch) = Rig::staged(&["a", "b"]).await;
        rig.publish("a", epoch, POD).await.unwrap();
        rig.kill_agent("a").await;
        rig.world.drive_break("a", &rig.drives["a"], true);
        rig.world.write("a", rig.volume, 5000, 1).await.unwrap();
        rig.store.faults().set_link("a", meshstor_memstore::Link::Hang);
        rig.start_agent("a");
        let frozen = |rig: &Rig| rig.ops("a").iter().any(|op| op.contains("freeze-writes"));
        pass(0.4).await;
        assert!(!frozen(&rig), "an answer takes that long when there is a connection to make");
        pass(1.6).await;
        assert!(frozen(&rig), "nobody answers: {:#?}", rig.world.trace());
    });
}

#[test]
fn an_agent_that_is_told_to_stop_while_writes_are_frozen_thaws_them_first() {
    paused(async {
        let (rig, epoch) = Rig::staged(&["a", "b"]).await;
        rig.publish("a", epoch, POD).await.unwrap();
        rig.store.faults().set_link("a", meshstor_memstore::Link::Hang);
        rig.world.drive_break("a", &rig.drives["a"], true);
        rig.world.write("a", rig.volume, 5000, 2).await.unwrap();
        pass(1.0).await;
        let node = &rig.agents["a"].node;
        let _ended = node.send(super::messages::Shutdown);
        pass(5.0).await;
        assert!(node.connected(), "nobody is left to thaw them");
        rig.store.faults().set_link("a", meshstor_memstore::Link::Up);
        pass(5.0).await;
        assert!(!node.connected(), "{:#?}", rig.world.trace());
        let last = rig.ops("a").into_iter().rfind(|op| op.contains("freeze-writes")).unwrap_or_default();
        assert!(last.contains(" off"), "{last}: {:#?}", rig.world.trace());
        rig.world.write("a", rig.volume, 5001, 3).await.unwrap();
    });
}

#[test]
fn a_restarted_agent_changes_nothing() {
    paused(async {
        let (mut rig, epoch) = Rig::staged(&["a", "b"]).await;
        rig.publish("a", epoch, POD).await.unwrap();
        rig.world.write("a", rig.volume, 5000, 1).await.unwrap();
        pass(30.0).await;
        let before = rig.ops("a").len() + rig.ops("b").len();
        for node in ["a", "b"] {
            rig.kill_agent(node).await;
            pass(5.0).await;
            rig.start_agent(node);
        }
        pass(60.0).await;
        assert_eq!(rig.ops("a").len() + rig.ops("b").len(), before, "{:#?}", rig.world.trace());
        rig.stage("a", epoch, 30).await.unwrap();
        rig.world.write("a", rig.volume, 5001, 2).await.unwrap();
        assert_eq!(rig.ops("a").len() + rig.ops("b").len(), before);
    });
}

#[test]
fn a_volume_is_let_go_without_the_api_server() {
    paused(async {
        let (mut rig, _) = Rig::staged(&["a", "b"]).await;
        rig.store.faults().set_link("a", meshstor_memstore::Link::Hang);
        rig.kill_agent("a").await;
        rig.start_agent("a");
        pass(5.0).await;
        rig.unstage("a", 60).await.unwrap();
        assert!(rig.world.kernel("a").array(rig.volume).await.unwrap().is_none());
        rig.store.faults().set_link("a", meshstor_memstore::Link::Up);
        rig.until("released in the record", 60.0, async || rig.stored().await.status.unwrap().released_epoch == 1)
            .await;
    });
}

#[test]
fn without_the_api_server_a_mount_answers_for_its_own_attachment_only() {
    paused(async {
        let (rig, epoch) = Rig::staged(&["a", "b"]).await;
        rig.store.faults().set_link("a", meshstor_memstore::Link::Hang);
        rig.stage("a", epoch, 10).await.unwrap();
        rig.publish("a", epoch, "/pods/1").await.unwrap();
        // Attached elsewhere and here again meanwhile: what is mounted is what was before (simulator, seed 1026).
        assert_eq!(rig.stage("a", epoch + 2, 10).await.unwrap_err().code(), tonic::Code::DeadlineExceeded);
        assert_eq!(rig.publish("a", epoch + 2, "/pods/2").await.unwrap_err().code(), tonic::Code::DeadlineExceeded);
    });
}

#[test]
fn an_object_that_is_gone_changes_nothing_on_the_drive() {
    paused(async {
        let (rig, _) = Rig::staged(&["a", "b"]).await;
        rig.tear_out(1).await;
        pass(60.0).await;
        rig.world.write("a", rig.volume, 5000, 9).await.unwrap();
        let kernel = rig.world.kernel("b");
        assert!(kernel.partition(rig.key(1)).await.unwrap().is_some());
        let exports = kernel.exports(rig.key(1)).await.unwrap();
        assert!(exports.entries.values().any(|entry| entry.enabled && !entry.ports.is_empty()));
        assert_eq!(rig.world.violations(), []);
    });
}

#[test]
fn a_tombstone_removes_the_partition_and_frees_the_object() {
    paused(async {
        let rig = Rig::new(&["a", "b"]).await;
        rig.create_volume(&["a", "b"]).await;
        rig.bury(1).await;
        rig.until("object gone", 30.0, async || {
            rig.replicas().get_opt(&format!("{VOLUME}-r1")).await.unwrap().is_none()
        })
        .await;
        assert!(rig.world.kernel("b").partition(rig.key(1)).await.unwrap().is_none());
        assert!(rig.world.kernel("a").partition(rig.key(0)).await.unwrap().is_some());
    });
}

#[test]
fn a_dead_staging_mount_is_repaired_by_publish() {
    paused(async {
        let (rig, epoch) = Rig::staged(&["a", "b"]).await;
        let kernel = rig.world.kernel("a");
        let shutdown = meshstor_kernel::ops::Op::ShutdownFilesystem { volume: rig.volume };
        kernel.apply(&shutdown).await.unwrap();
        assert!(!kernel.mount_at(STAGING).await.unwrap().unwrap().alive);
        rig.publish("a", epoch, POD).await.unwrap();
        assert!(kernel.mount_at(POD).await.unwrap().unwrap().alive);
        rig.world.write("a", rig.volume, 5000, 3).await.unwrap();
    });
}

#[test]
fn lost_hints_only_cost_time() {
    paused(async {
        let rig = Rig::new(&["a", "b"]).await;
        for node in ["a", "b"] {
            rig.world.lose_hints(node, u32::MAX);
        }
        rig.create_volume(&["a", "b"]).await;
        let epoch = rig.attach(Some("a")).await;
        rig.stage("a", epoch, 110).await.unwrap();
    });
}

#[test]
fn a_stage_that_cannot_be_is_held_and_says_why() {
    paused(async {
        let rig = Rig::new(&["a", "b"]).await;
        rig.create_volume(&["a", "b"]).await;
        let epoch = rig.attach(Some("b")).await;
        let begun = tokio::time::Instant::now();
        let status = rig.stage("a", epoch, 20).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
        assert!(status.message().contains("node b is the volume's consumer"), "{status:?}");
        assert_eq!(begun.elapsed().as_secs(), 19);
        rig.unstage("a", 20).await.unwrap();
        let missing = rig.agents["a"].service.clone();
        let request = meshstor_csi::proto::NodeStageVolumeRequest {
            volume_id: "pvc-none".into(),
            staging_target_path: STAGING.into(),
            volume_capability: Some(super::rig::capability()),
            ..Default::default()
        };
        use meshstor_csi::proto::node_server::Node;
        let status = missing.node_stage_volume(tonic::Request::new(request)).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::NotFound);
    });
}

#[test]
fn a_moved_volume_is_fenced_and_carries_its_data() {
    paused(async {
        let (rig, _) = Rig::staged(&["a", "b"]).await;
        rig.world.write("a", rig.volume, 5000, 11).await.unwrap();
        rig.unstage("a", 60).await.unwrap();
        rig.attach(None).await;
        let epoch = rig.attach(Some("b")).await;
        rig.stage("b", epoch, 60).await.unwrap();
        assert_eq!(rig.world.read("b", rig.volume, 5000).await.unwrap(), 11);
        assert_eq!(rig.world.violations(), []);
    });
}

#[test]
fn a_deposed_consumer_lets_go() {
    paused(async {
        let (rig, _) = Rig::staged(&["a", "b"]).await;
        rig.world.write("a", rig.volume, 5000, 11).await.unwrap();
        rig.attach(None).await;
        let epoch = rig.attach(Some("b")).await;
        rig.stage("b", epoch, 110).await.unwrap();
        rig.until("stopped on a", 60.0, async || rig.world.kernel("a").array(rig.volume).await.unwrap().is_none())
            .await;
        assert_eq!(rig.world.read("b", rig.volume, 5000).await.unwrap(), 11);
        rig.unstage("a", 30).await.unwrap();
        assert_eq!(rig.world.violations(), []);
    });
}

#[test]
fn staging_twice_does_nothing_twice() {
    paused(async {
        let (rig, epoch) = Rig::staged(&["a", "b"]).await;
        let before = rig.ops("a");
        assert!(before.iter().any(|op| op.contains("make-filesystem")), "{before:?}");
        for _ in 0..20 {
            rig.stage("a", epoch, 30).await.unwrap();
        }
        let (first, second) = futures::join!(rig.stage("a", epoch, 30), rig.stage("a", epoch, 30));
        assert!(first.is_ok() && second.is_ok());
        assert_eq!(rig.ops("a"), before);
    });
}

#[test]
fn ports_rest_until_their_consumer_has_let_go() {
    paused(async {
        let rig = Rig::new(&["a", "b", "c"]).await;
        rig.create_volume(&["b", "c"]).await;
        let epoch = rig.attach(Some("a")).await;
        rig.stage("a", epoch, 60).await.unwrap();
        // The orderly move: a has confirmed its stop, so its ports need no rest.
        rig.unstage("a", 60).await.unwrap();
        rig.attach(None).await;
        let epoch = rig.attach(Some("b")).await;
        rig.stage("b", epoch, 60).await.unwrap();
        let exports = async || rig.world.kernel("c").exports(rig.key(1)).await.unwrap().entries;
        rig.until("only the present export is left", 30.0, async || exports().await.len() == 1).await;
        assert!(rig.store.get("meshstornodes", "", "c").unwrap()["status"]["quarantinedPorts"].is_null());

        // The other move: b is frozen, and may dial its port on c again some day.
        rig.world.freeze("b");
        rig.attach(None).await;
        let epoch = rig.attach(Some("a")).await;
        assert!(rig.stage("a", epoch, 30).await.is_ok());
        rig.until("in quarantine", 30.0, async || {
            let ports = rig.store.get("meshstornodes", "", "c").unwrap()["status"]["quarantinedPorts"].clone();
            ports.as_array().is_some_and(|ports| ports.len() == 1 && ports[0]["consumer"] == "b")
        })
        .await;
        rig.until("the dead export is removed", 30.0, async || exports().await.len() == 1).await;
        // That a later consumer has stopped says nothing of b, which still dials (F13).
        rig.unstage("a", 60).await.unwrap();
        pass(150.0).await;
        let ports = rig.store.get("meshstornodes", "", "c").unwrap()["status"]["quarantinedPorts"].clone();
        assert!(ports.as_array().is_some_and(|ports| ports.iter().any(|port| port["consumer"] == "b")), "{ports}");
    });
}

#[test]
fn failed_looks_only_cost_time() {
    paused(async {
        let (rig, epoch) = Rig::staged(&["a", "b"]).await;
        rig.world.fail_looks("a", 40);
        rig.world.fail_looks("b", 40);
        pass(30.0).await;
        rig.stage("a", epoch, 60).await.unwrap();
        rig.world.write("a", rig.volume, 5000, 5).await.unwrap();
    });
}

#[test]
fn a_cut_member_is_taken_out_and_comes_back() {
    paused(async {
        let (rig, _) = Rig::staged(&["a", "b"]).await;
        rig.world.write("a", rig.volume, 5000, 1).await.unwrap();
        rig.world.cut("a", "b");
        let written =
            tokio::time::timeout(std::time::Duration::from_secs(60), rig.world.write("a", rig.volume, 5001, 2));
        assert!(written.await.is_ok_and(|result| result.is_ok()));
        let status = rig.stored().await.status.unwrap();
        assert_eq!(status.in_sync.unwrap(), ["r0"]);
        rig.until("degraded", 15.0, async || {
            rig.stored().await.status.unwrap().array.is_some_and(|array| array.state == "degraded")
        })
        .await;
        // The controller asks for a new life of the export, the network is whole again.
        rig.world.heal("a", "b");
        let replica = rig.replica(1).await;
        let export = meshstor_api::replica::ExportSpec { generation: 1, ..replica.spec.export.clone() };
        let patch = meshstor_api::patch::export(&replica, &export).unwrap();
        let name = replica.metadata.name.clone().unwrap();
        rig.replicas().patch(&name, &Default::default(), &kube::api::Patch::<()>::Json(patch)).await.unwrap();
        rig.until("whole again", 120.0, async || rig.stored().await.status.unwrap().in_sync.unwrap().len() == 2).await;
        assert_eq!(rig.world.violations(), []);
    });
}

#[test]
fn lost_watch_events_only_cost_time() {
    paused(async {
        let rig = Rig::new(&["a", "b"]).await;
        rig.create_volume(&["a", "b"]).await;
        for node in ["a", "b"] {
            rig.store.faults().drop_events(node, None, 1000);
        }
        let epoch = rig.attach(Some("a")).await;
        rig.stage("a", epoch, 110).await.unwrap();
        rig.unstage("a", 60).await.unwrap();
        rig.attach(None).await;
        rig.bury(1).await;
        rig.until("object gone", 180.0, async || {
            rig.replicas().get_opt(&format!("{VOLUME}-r1")).await.unwrap().is_none()
        })
        .await;
    });
}

#[test]
fn an_agent_asked_to_end_ends_and_leaves_all_as_it_is() {
    paused(async {
        let (rig, _) = Rig::staged(&["a", "b"]).await;
        let before = rig.ops("a");
        let agent = &rig.agents["a"];
        agent.node.send(super::messages::Shutdown).await.unwrap();
        pass(1.0).await;
        assert!(!agent.node.connected());
        pass(60.0).await;
        assert_eq!(rig.ops("a"), before);
        rig.world.write("a", rig.volume, 5000, 5).await.unwrap();
        let status = rig.stage("a", 1, 5).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable);
    });
}
