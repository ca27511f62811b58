//! Room that two ask for at once: production controllers and agents, real partition tables on simulated drives.
//!
//! What the controllers promise is only a wish; a node's agent takes the space. These tests ask the drives afterwards.

use crate::cluster::{Cluster, pass};
use crate::repair_tests::{capability, held, simulated};
use meshstor_csi::proto::controller_server::Controller as _;
use meshstor_csi::proto::*;
use meshstor_kernel::id::VolumeId;
use meshstor_kernel::sim::Config;
use std::rc::Rc;
use tonic::{Code, Status};

/// Of drives with 64 GiB: one fits, two do not.
const BYTES: i64 = 40 << 30;

async fn create(cluster: &Cluster, controller: usize, name: &str) -> Result<Volume, Status> {
    let request = CreateVolumeRequest {
        name: name.into(),
        capacity_range: Some(CapacityRange { required_bytes: BYTES, limit_bytes: 0 }),
        volume_capabilities: vec![capability()],
        ..Default::default()
    };
    let answer = cluster.controller(controller).create_volume(held(request)).await?;
    Ok(answer.into_inner().volume.unwrap())
}

fn id(cluster: &Cluster, name: &str) -> VolumeId {
    let object = cluster.store.get("meshstorvolumes", "", name).unwrap();
    object["spec"]["volumeID"].as_str().unwrap().parse().unwrap()
}

#[test]
fn the_last_extent_of_real_tables_goes_to_one_volume_and_the_other_leaves_nothing() {
    simulated(async {
        let mut won = 0;
        for (seed, late) in [(1, 0.0), (2, 0.0), (3, 0.01), (4, 0.1), (5, 0.3)] {
            let cluster: Rc<Cluster> = Cluster::new(seed, 2, Config::default()).await.unwrap();
            pass(5.0).await;
            let second = async {
                pass(late).await;
                create(&cluster, 1, "pvc-y").await
            };
            let (x, y) = tokio::join!(create(&cluster, 0, "pvc-x"), second);
            assert!(x.is_err() || y.is_err(), "{x:?} {y:?}");
            pass(30.0).await;
            let objects = cluster.store.list("meshstorreplicas").len();
            match [("pvc-x", &x), ("pvc-y", &y)].into_iter().find(|(_, end)| end.is_ok()) {
                Some((name, _)) => {
                    won += 1;
                    assert_eq!((cluster.world.copies(id(&cluster, name)).len(), objects), (2, 2));
                }
                None => assert_eq!(objects, 0, "nobody has it, nothing is left"),
            }
            for error in [&x, &y].into_iter().filter_map(|end| end.as_ref().err()) {
                let message = error.message();
                assert_eq!(error.code(), Code::ResourceExhausted, "{message}");
                assert!(message.contains("no room for volume pvc-"), "{message}");
                assert!(message.contains("no free extent of 42954915840 bytes"), "{message}");
            }
            assert_eq!(cluster.world.violations(), []);
        }
        assert!(won > 0, "as a rule one of them has it");
    });
}
