//! Recovery end to end: etcd goes back in time, objects are lost, the only complete copy is gone for good. Production
//! agents and controllers on simulated kernels, a pod that writes all the time, and the recovery that the binary calls.

use crate::cluster::pass;
use crate::repair_tests::{MIB, NAME, Pod, simulated};
use meshstor_controller::recover::{Recovery, VolumePicture, Written};
use meshstor_controller::{Controller, ControllerConfig};
use meshstor_kernel::id::ReplicaId;
use meshstor_plan::recover::{Accepted, Blocked, Outcome, Unseen};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

/// Longer than it takes an agent whose watch is ahead of the server to list its drives again.
const PATIENCE: Duration = Duration::from_secs(75);

fn recovery(pod: &Pod) -> Recovery {
    Controller::new(pod.cluster.store.client_for("admin"), ControllerConfig::default()).recovery()
}

fn ids(numbers: &[u32]) -> BTreeSet<ReplicaId> {
    numbers.iter().copied().map(ReplicaId).collect()
}

async fn look(pod: &Pod, accepted: Option<Accepted>) -> VolumePicture {
    let accepted: BTreeMap<String, Accepted> = accepted.into_iter().map(|a| (NAME.to_string(), a)).collect();
    let picture = recovery(pod).look(&accepted, PATIENCE).await.unwrap();
    assert_eq!(picture.unreadable, Vec::<String>::new());
    picture.volumes.into_iter().find(|volume| volume.name == NAME).unwrap()
}

/// What nodes did since `from` that gives anybody data: exports and assemblies.
fn offered(pod: &Pod, from: usize) -> Vec<String> {
    let gives = |line: &String| [" export ", "assemble-array", "create-array"].iter().any(|word| line.contains(word));
    pod.cluster.world.trace().split_off(from).into_iter().filter(gives).collect()
}

/// Writes, waits for the fences, looks again. Answers what a running array had dropped by then.
async fn recover(pod: &Pod, picture: &VolumePicture) -> BTreeSet<ReplicaId> {
    let recovery = recovery(pod);
    assert_eq!(recovery.write(picture).await.unwrap(), Written::Done);
    assert_eq!(recovery.fenced(picture, PATIENCE).await.unwrap(), BTreeSet::new(), "{}", pod.trace());
    let dropped = recovery.confirm(&[picture], PATIENCE).await.unwrap();
    dropped.into_values().next().unwrap_or_default()
}

fn condition(pod: &Pod) -> (String, String) {
    let status = pod.stored().status.unwrap();
    let found = status.conditions.into_iter().find(|c| c.type_ == "Recovered").unwrap();
    (found.reason, found.message)
}

#[test]
fn etcd_goes_back_two_moves_and_nothing_is_lost() {
    simulated(async {
        let pod = Pod::new(3, 2, "a", 64 * MIB).await;
        let snapshot = pod.cluster.store.snapshot();
        let old = pod.stored().spec.attachment.epoch;
        pod.moves("b", true).await;
        pass(20.0).await;
        pod.moves("c", true).await;
        pass(20.0).await;
        let seen = pod.stored().spec.attachment.epoch;
        assert_eq!(seen, old + 4);
        let before = pod.cluster.world.trace().len();
        pod.cluster.store.restore(&snapshot);
        // The record names `a` as the consumer; an orchestrator that believes it tries for a while.
        let runs_on = pod.at.replace("a".to_string());
        let end = tokio::time::Instant::now() + Duration::from_secs(60);
        let mut refusal = String::new();
        while tokio::time::Instant::now() < end {
            refusal = pod.bring_up().await.expect_err("staged from a record of the past").to_string();
            pass(3.0).await;
        }
        assert!(refusal.contains("EpochRegressed") || refusal.contains("epoch"), "{refusal}");
        assert_eq!(offered(&pod, before), Vec::<String>::new(), "{}", pod.trace());
        let told = pod.replicas().into_values().any(|replica| {
            replica.status.is_some_and(|status| status.conditions.iter().any(|c| c.reason == "EpochRegressed"))
        });
        assert!(told, "{}", pod.trace());
        // What runs goes on.
        let write = pod.cluster.world.write(&runs_on, pod.id(), 7, 1 << 30);
        tokio::time::timeout(Duration::from_secs(20), write).await.expect("it hangs").expect("it fails");

        let picture = look(&pod, None).await;
        let proposal = picture.proposal().unwrap_or_else(|| panic!("{:?}", picture.finding));
        assert_eq!((proposal.epoch, proposal.in_sync.clone()), (seen + 1, ids(&[0, 1])));
        assert_eq!((picture.finding.recorded, picture.finding.seen), (Some(old), seen));
        assert_eq!(recover(&pod, &picture).await, ids(&[]));
        assert_eq!(condition(&pod).0, "Recovered");
        assert_eq!(look(&pod, None).await.finding.outcome, Outcome::Sound);
        pod.at.replace("b".to_string());
        pod.start(300.0).await;
        pod.whole(300.0).await;
        assert!(pod.stored().spec.attachment.epoch > seen);
    });
}

#[test]
fn objects_that_were_lost_are_made_again() {
    simulated(async {
        let pod = Pod::new(3, 2, "a", 64 * MIB).await;
        let before = pod.stored();
        for plural in ["meshstorvolumes", "meshstorreplicas", "meshstornodes", "meshstornodedevices"] {
            for object in pod.cluster.store.list(plural) {
                let name = object["metadata"]["name"].as_str().unwrap();
                pod.cluster.store.force(plural, "", name, None);
            }
        }
        pass(60.0).await;
        assert_eq!(pod.cluster.store.list("meshstorvolumes").len(), 0, "nobody but a person makes it again");
        let picture = look(&pod, None).await;
        let proposal = picture.proposal().unwrap_or_else(|| panic!("{:?}", picture.finding));
        assert_eq!((picture.finding.recorded, proposal.in_sync.clone()), (None, ids(&[0, 1])));
        // The deposed array on `a` lets go of its remote member last of all, and writes that into its own superblock.
        assert!(recover(&pod, &picture).await.is_subset(&ids(&[1])));
        let after = pod.stored();
        assert_ne!(after.metadata.uid, before.metadata.uid);
        let spec = |volume: &meshstor_api::MeshStorVolume| {
            let spec = &volume.spec;
            (spec.volume_id.clone(), spec.size_bytes, spec.replica_count, spec.sector_size, spec.filesystem.clone())
        };
        assert_eq!(spec(&after), spec(&before));
        pod.at.replace("b".to_string());
        pod.start(300.0).await;
        pod.whole(300.0).await;
    });
}

#[test]
fn the_only_complete_copy_is_gone_and_a_person_takes_the_stale_one() {
    simulated(async {
        let pod: Rc<Pod> = Pod::new(3, 2, "a", 64 * MIB).await;
        pod.power_cut("b").await;
        pod.until("r1 is out", 60.0, |pod| pod.in_sync() == ids(&[0])).await;
        pass(10.0).await;
        pod.power_cut("a").await;
        pod.power_on("b");
        pass(30.0).await;
        let accepted = look(&pod, Some(Accepted::Copy(ReplicaId(1)))).await;
        assert_eq!(look(&pod, None).await.finding.outcome, Outcome::Sound, "nothing is wrong with the record");
        let proposal = accepted.proposal().unwrap_or_else(|| panic!("{:?}", accepted.finding));
        assert_eq!(proposal.given_up, [Unseen::Copy(ReplicaId(0))].into());
        assert_eq!(recover(&pod, &accepted).await, ids(&[]));
        let (reason, message) = condition(&pod);
        assert!(reason == "DataLossAccepted" && message.contains("only r0 had"), "{reason}: {message}");
        pod.at.replace("b".to_string());
        pod.start(300.0).await;
        assert_eq!(pod.in_sync(), ids(&[1]));
        // The other one is copied wholly when it returns, whatever it had.
        pod.power_on("a");
        pod.until("both", 300.0, |pod| pod.in_sync() == ids(&[0, 1])).await;
        pass(30.0).await;
        let copies = pod.cluster.world.copies(pod.id());
        assert_eq!(copies[&ReplicaId(0)].blocks, copies[&ReplicaId(1)].blocks);
    });
}

#[test]
fn while_a_copy_that_may_be_newer_is_silent_nothing_is_proposed() {
    simulated(async {
        let pod = Pod::new(3, 2, "a", 64 * MIB).await;
        let snapshot = pod.cluster.store.snapshot();
        pod.moves("b", true).await;
        pod.moves("a", true).await;
        pass(10.0).await;
        pod.power_cut("b").await;
        pod.cluster.store.restore(&snapshot);
        pass(5.0).await;
        let picture = look(&pod, None).await;
        let silent = Outcome::Blocked(Blocked::Silent([Unseen::Copy(ReplicaId(1))].into()));
        assert_eq!(picture.finding.outcome, silent, "{}", pod.trace());
        assert_eq!(recovery(&pod).write(&picture).await.unwrap(), Written::Changed, "written all the same");
        pod.power_on("b");
        pass(30.0).await;
        let picture = look(&pod, None).await;
        assert!(picture.proposal().is_some(), "{:?}", picture.finding);
        let dropped = recover(&pod, &picture).await;
        assert_eq!(
            dropped,
            ids(&[1]),
            "the array on `a` was still waiting for r1, and let go of it when it was deposed"
        );
        assert_eq!(pod.in_sync(), ids(&[0]));
        pod.at.replace("a".to_string());
        pod.start(300.0).await;
        pod.whole(300.0).await;
    });
}
