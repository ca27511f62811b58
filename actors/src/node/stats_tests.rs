//! What NodeGetVolumeStats says of a volume in trouble, on whole agents and simulated kernels.

use super::rig::{Rig, STAGING};
use crate::testing::{pass, paused};
use std::time::Duration;

const POD: &str = "/var/lib/kubelet/pods/1/volumes/mount";

#[test]
fn a_volume_that_lacks_a_copy_is_abnormal_until_it_has_it_again() {
    paused(async {
        let (rig, epoch) = Rig::staged(&["a", "b"]).await;
        rig.publish("a", epoch, POD).await.unwrap();
        pass(5.0).await;
        assert_eq!(rig.health("a", POD).await, (false, "Healthy".into()));
        rig.world.cut("a", "b");
        let write = rig.world.write("a", rig.volume, 5000, 2);
        assert!(tokio::time::timeout(Duration::from_secs(60), write).await.is_ok_and(|result| result.is_ok()));
        pass(5.0).await;
        let (abnormal, message) = rig.health("a", POD).await;
        assert!(abnormal, "{message}");
        assert_eq!(message, "Degraded: not in sync: r1; r0 is the last complete copy of 2");
    });
}

#[test]
fn a_volume_whose_last_copy_is_away_says_that_it_is_frozen() {
    paused(async {
        let rig = Rig::new(&["a", "b", "c"]).await;
        rig.create_volume(&["b", "c"]).await;
        let epoch = rig.attach(Some("a")).await;
        rig.stage("a", epoch, 60).await.unwrap();
        for node in ["b", "c"] {
            rig.world.cut("a", node);
            let write = rig.world.write("a", rig.volume, 5000, 2);
            let _answer = tokio::time::timeout(Duration::from_secs(30), write).await;
        }
        let (abnormal, message) = rig.health("a", STAGING).await;
        assert!(abnormal && message.starts_with("LastCopyFrozen: "), "{message}");
        assert!(message.ends_with("is the last complete copy of 2"), "{message}");
    });
}

#[test]
fn a_deposed_volume_and_a_dead_file_system_are_abnormal() {
    paused(async {
        let (rig, _) = Rig::staged(&["a", "b"]).await;
        let shutdown = meshstor_kernel::ops::Op::ShutdownFilesystem { volume: rig.volume };
        rig.world.kernel("a").apply(&shutdown).await.unwrap();
        assert_eq!(rig.health("a", STAGING).await, (true, "the file system does not answer".into()));

        let (rig, _) = Rig::staged(&["a", "b"]).await;
        rig.attach(None).await;
        rig.attach(Some("b")).await;
        let mut said = Vec::new();
        // It takes less than a tenth of a second.
        for _ in 0..4000 {
            pass(0.005).await;
            if rig.world.kernel("a").mount_at(STAGING).await.unwrap().is_none() {
                break;
            }
            said.push(rig.health("a", STAGING).await);
        }
        assert!(said.iter().any(|(abnormal, message)| *abnormal && message.contains("stopping here")), "{said:?}");
    });
}
