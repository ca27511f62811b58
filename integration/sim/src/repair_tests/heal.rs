//! What keeps repair from doing harm, end to end: members that keep leaving, budgets, drives that forget.

use super::*;

impl Pod {
    fn condition(&self, word: &str) -> Option<String> {
        let status = self.stored().status?;
        status.conditions.into_iter().find(|c| c.reason == word).map(|c| c.message)
    }

    /// Cuts a node off until its copy has left; answers how long it then stays away.
    async fn flap(&self, node: &str, replica: u32) -> f64 {
        let at = self.at.borrow().clone();
        self.cluster.world.cut(&at, node);
        let id = ReplicaId(replica);
        self.until("it leaves", 30.0, |pod| !pod.in_sync().contains(&id)).await;
        let left = Instant::now();
        self.cluster.world.heal(&at, node);
        self.until("it returns", 1000.0, |pod| pod.in_sync().contains(&id)).await;
        left.elapsed().as_secs_f64()
    }
}

#[test]
fn a_member_that_keeps_leaving_returns_later_each_time_whoever_looks_after_it() {
    simulated(async {
        let pod = Pod::new(4, 3, "a", 512 * MIB).await;
        let mut away = Vec::new();
        for turn in 0..4 {
            away.push(pod.flap("b", 1).await);
            if turn == 2 {
                // Neither a new agent nor a new consumer begins anew.
                pod.cluster.kill_agent("a").await;
                pod.cluster.start_agent("a");
                pass(20.0).await;
                pod.moves("d", true).await;
                pass(20.0).await;
            }
        }
        let due = [(0.0, 25.0), (30.0, 55.0), (60.0, 85.0), (120.0, 145.0)];
        for (away, (least, most)) in away.iter().zip(due) {
            assert!((least..most).contains(away), "{away:?}: due {due:?}\n{}", pod.trace());
        }
        let at = pod.at.borrow().clone();
        pod.cluster.world.cut(&at, "b");
        pod.until("it says so", 60.0, |pod| pod.condition("Flapping").is_some()).await;
        let said = pod.condition("Flapping").unwrap();
        assert!(said.starts_with("r1 has left 5 times") && said.contains("returns at 2026-"), "{said}");
        pod.cluster.world.heal(&at, "b");
        pod.until("it returns", 400.0, |pod| pod.in_sync().len() == 3).await;
        pass(3700.0).await;
        assert!(pod.flap("b", 1).await < 25.0, "an hour of calm: {}", pod.trace());
        assert_eq!(pod.stored().status.unwrap().flaps.len(), 1);
        pod.whole(60.0).await;
    });
}

#[test]
fn the_only_other_copy_is_back_half_a_minute_after_it_left_however_often() {
    simulated(async {
        let pod = Pod::new(2, 2, "a", 512 * MIB).await;
        for _ in 0..7 {
            let away = pod.flap("b", 1).await;
            assert!(away < 55.0, "{away}: {}", pod.trace());
        }
        pod.whole(60.0).await;
    });
}

/// A volume of two copies on a and b, used on a.
async fn extra(pod: &Pod, name: &str) -> VolumeId {
    let place = Topology { segments: [("csi.meshstor.io/node".to_string(), "a".to_string())].into() };
    let parameters = [("replicaCount", "2".to_string()), ("memberMissingTimeout", TIMEOUT.to_string())];
    let request = CreateVolumeRequest {
        name: name.into(),
        capacity_range: Some(CapacityRange { required_bytes: 1 << 30, limit_bytes: 0 }),
        volume_capabilities: vec![capability()],
        parameters: parameters.map(|(key, value)| (key.to_string(), value)).into(),
        accessibility_requirements: Some(TopologyRequirement { requisite: vec![], preferred: vec![place] }),
        ..Default::default()
    };
    pod.cluster.controller(0).create_volume(held(request)).await.unwrap();
    let request = ControllerPublishVolumeRequest {
        volume_id: name.into(),
        node_id: "a".into(),
        volume_capability: Some(capability()),
        ..Default::default()
    };
    pod.cluster.controller(0).controller_publish_volume(held(request)).await.unwrap();
    let request = NodeStageVolumeRequest {
        volume_id: name.into(),
        staging_target_path: format!("/stage-{name}"),
        volume_capability: Some(capability()),
        publish_context: [("attachEpoch".to_string(), "1".to_string())].into(),
        ..Default::default()
    };
    pod.cluster.node("a").unwrap().node_stage_volume(held(request)).await.unwrap();
    let object = pod.cluster.store.get("meshstorvolumes", "", name).unwrap();
    object["spec"]["volumeID"].as_str().unwrap().parse().unwrap()
}

#[test]
fn of_the_copies_that_a_dead_node_leaves_two_are_made_at_a_time() {
    simulated(async {
        // 16 s for a whole copy.
        let pod = Pod::new(3, 2, "a", 64 * MIB).await;
        let mut volumes = vec![pod.id()];
        for number in 2..7 {
            volumes.push(extra(&pod, &format!("pvc-{number}")).await);
        }
        pod.power_cut("b").await;
        let kernel = pod.cluster.world.kernel("a");
        let (mut most, mut waited, begun) = (0, false, Instant::now());
        loop {
            let mut copying = 0;
            let mut whole = 0;
            for volume in &volumes {
                let array = kernel.array(*volume).await.unwrap().unwrap();
                copying += usize::from(array.sync_action == "recover");
                whole += usize::from(array.members.values().filter(|m| m.in_sync()).count() == 2);
            }
            waited |= pod.cluster.store.list("meshstorvolumes").iter().any(|object| {
                let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
                conditions.iter().any(|condition| condition["reason"] == "WaitsForResyncBudget")
            });
            most = most.max(copying);
            // While the members of b are not dropped yet they count as whole.
            if begun.elapsed().as_secs_f64() > TIMEOUT && whole == volumes.len() {
                break;
            }
            assert!(begun.elapsed().as_secs_f64() < 600.0, "{}", pod.trace());
            pass(0.5).await;
        }
        assert_eq!((most, waited), (2, true), "{}", pod.trace());
        let speed = kernel.array(pod.id()).await.unwrap().unwrap().sync_speed.unwrap();
        assert_eq!((speed.min_kib, speed.max_kib), (16 << 10, 400 << 10), "one complete copy was left");
    });
}

/// The device of a replica's partition on its node.
async fn device(pod: &Pod, node: &str, replica: u32) -> String {
    let key = meshstor_kernel::id::ReplicaKey { volume: pod.id(), replica: ReplicaId(replica) };
    pod.cluster.world.kernel(node).partition(key).await.unwrap().unwrap().path.unwrap()
}

#[test]
fn a_copy_that_somebody_else_assembled_is_copied_wholly() {
    simulated(async {
        for (foreign, step) in [(false, "re-add-member"), (true, " add-member")] {
            let pod = Pod::new(2, 2, "a", 64 * MIB).await;
            pod.power_cut("b").await;
            pod.until("it leaves", 30.0, |pod| pod.in_sync().len() == 1).await;
            pass(10.0).await;
            let before = pod.cluster.world.trace().len();
            pod.cluster.world.power_on("b");
            let device = device(&pod, "b", 1).await;
            // udev was faster than the agent.
            if foreign {
                assert!(pod.cluster.world.assemble_foreign("b", &[&device]));
            }
            pass(5.0).await;
            pod.cluster.start_agent("b");
            pod.whole(120.0).await;
            let since = pod.cluster.world.trace().split_off(before);
            let seen = since.iter().any(|line| line.contains(" a ") && line.contains(step));
            assert!(seen, "{step}: {since:#?}");
            let key = meshstor_kernel::id::ReplicaKey { volume: pod.id(), replica: ReplicaId(1) };
            let kernel = pod.cluster.world.kernel("b");
            let record = kernel.partition(key).await.unwrap().unwrap().record.unwrap();
            assert_eq!(record.tainted.is_some(), foreign);
        }
    });
}

impl Pod {
    /// Writes one block until that is answered.
    async fn write(&self, block: u64, tag: u64) {
        let at = self.at.borrow().clone();
        self.cluster.world.write(&at, self.id(), block, tag).await.unwrap();
    }

    /// The drive of a node loses its power for a moment, shorter than the consumer's patience.
    async fn blink(&self, node: &str) {
        self.power_cut(node).await;
        pass(0.3).await;
        self.power_on(node);
    }
}

/// A block that the pod's own writer leaves alone.
const SYNCED: u64 = 777;

#[test]
fn what_was_synced_survives_drives_that_forget() {
    simulated(async {
        let pod = Pod::on(SimDrive::with_volatile_cache, 3, 2, "a", 64 * MIB).await;
        for turn in 1..4 {
            // The first write marks the chunk, which flushes; the second one is in the cache only.
            pod.write(SYNCED, 1000 * turn).await;
            pod.write(SYNCED, 1000 * turn + 1).await;
            pod.blink("b").await;
            pass(3.0).await;
            let flush = pod.cluster.world.flush("a", pod.id());
            tokio::time::timeout(Duration::from_secs(60), flush).await.expect("fsync hangs").expect("fsync fails");
            pod.until("whole again", 120.0, |pod| pod.in_sync().len() == 2).await;
        }
        // The only node that was never without power goes.
        pod.power_cut("a").await;
        pod.moves("c", false).await;
        let found = pod.cluster.world.read("c", pod.id(), SYNCED).await.unwrap();
        assert_eq!(found, 3001, "{}", pod.trace());
        assert_eq!(pod.cluster.world.violations(), [], "{}", pod.trace());
    });
}

#[test]
fn a_cache_that_was_turned_off_costs_no_departure() {
    simulated(async {
        let pod = Pod::on(SimDrive::with_cache_switch, 2, 2, "a", 64 * MIB).await;
        pod.write(SYNCED, 1).await;
        pod.write(SYNCED, 2).await;
        pod.blink("b").await;
        let watched = pod.clone();
        let watch = actix::spawn(async move {
            loop {
                assert_eq!(watched.in_sync().len(), 2, "{}", watched.trace());
                pass(0.1).await;
            }
        });
        pass(30.0).await;
        assert!(!watch.is_finished(), "it left");
        watch.abort();
        let off = pod
            .cluster
            .world
            .trace()
            .iter()
            .filter(|line| line.contains(" b ") && line.contains("disable-cache"))
            .count();
        assert!(off >= 2, "on again after the power cut: {}", pod.trace());
        pod.whole(60.0).await;
    });
}

#[test]
fn the_last_copy_on_a_drive_that_forgets_says_so_and_waits_for_a_new_epoch() {
    simulated(async {
        let pod = Pod::on(SimDrive::with_volatile_cache, 3, 1, "b", 64 * MIB).await;
        assert_eq!(pod.places(), nodes(&["a"]));
        pod.write(SYNCED, 1).await;
        pod.cluster.world.flush("b", pod.id()).await.unwrap();
        pod.write(SYNCED, 2).await;
        pod.blink("a").await;
        pass(60.0).await;
        let flush = pod.cluster.world.flush("b", pod.id());
        assert!(tokio::time::timeout(Duration::from_secs(30), flush).await.is_err(), "an fsync over a hole");
        let said = pod.replicas()[&ReplicaId(0)].status.clone().unwrap().conditions;
        assert!(said.iter().any(|condition| condition.reason == "CacheLost"), "{said:?}");
        assert!(pod.condition("LastCopyFrozen").is_some(), "{}", pod.trace());
        pod.moves("c", false).await;
        let found = pod.cluster.world.read("c", pod.id(), SYNCED).await.unwrap();
        assert!(found >= 1, "what was synced: {found}");
        pod.write(SYNCED, 3).await;
        assert_eq!(pod.cluster.world.violations(), [], "{}", pod.trace());
    });
}
