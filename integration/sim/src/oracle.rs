//! The oracle: reads the simulated disks block by block and the record in the store. It never asks an actor.
//!
//! Called by `run` when nothing moves any more. A block of a copy in the recorded set must carry its last acknowledged
//! write, or a write of the same or a later session that was asked for after it and never answered.

use crate::cluster::Cluster;
use crate::workload::Life;
use meshstor_api::MeshStorVolume;
use meshstor_kernel::id::ReplicaId;
use std::collections::BTreeSet;

/// The recorded in-sync set of a volume.
pub fn in_sync(cluster: &Cluster, name: &str) -> BTreeSet<ReplicaId> {
    let stored = cluster.store.get("meshstorvolumes", "", name);
    let volume: Option<MeshStorVolume> = stored.and_then(|object| serde_json::from_value((*object).clone()).ok());
    let set = volume.and_then(|volume| volume.status?.in_sync).unwrap_or_default();
    set.iter().filter_map(|text| text.parse().ok()).collect()
}

/// What the objects of a volume say of themselves, for a failure's line: conditions that are not as they should be.
pub fn said(cluster: &Cluster, name: &str) -> String {
    let replicas = cluster.store.list("meshstorreplicas");
    let of_volume = replicas.into_iter().filter(|object| object["spec"]["volume"].as_str() == Some(name));
    let objects = cluster.store.get("meshstorvolumes", "", name).into_iter().chain(of_volume);
    let mut said = Vec::new();
    for object in objects {
        let of = object["metadata"]["name"].as_str().unwrap_or("").to_string();
        for condition in object["status"]["conditions"].as_array().into_iter().flatten() {
            let word = |field: &str| condition[field].as_str().unwrap_or("");
            let line = [word("type"), word("status"), word("reason"), word("message")].join(" ");
            said.push(format!("{of} {}", line.trim()));
        }
    }
    said.join("; ")
}

/// Every copy in the recorded set holds every acknowledged write. Returns what is wrong.
pub fn data(cluster: &Cluster, life: &Life) -> Vec<String> {
    let Some(id) = life.id.get() else { return vec![] };
    let (copies, set) = (cluster.world.copies(id), in_sync(cluster, &life.name));
    let asked = life.asked.borrow();
    let mut wrong = Vec::new();
    for (block, last) in cluster.world.acknowledged(id) {
        for replica in &set {
            let Some(copy) = copies.get(replica) else {
                wrong.push(format!("{}: {replica} is recorded and on no drive", life.name));
                continue;
            };
            let found = copy.blocks.get(&block).copied().unwrap_or(0);
            let (Some(of_found), Some(of_last)) = (asked.get(&found), asked.get(&last)) else {
                wrong.push(format!(
                    "{}: block {block} of {replica} carries {found}, acknowledged was {last}",
                    life.name
                ));
                continue;
            };
            let later = found > last && of_found.session >= of_last.session && of_found.block == block;
            if found != last && !later && !life.excused(id, block, last) {
                wrong.push(format!(
                    "LOST {}: block {block} of {replica} carries {found} (session {}), acknowledged was {last} (session {}); {}",
                    life.name, of_found.session, of_last.session, life.told(id, block, found.min(last))
                ));
            }
        }
    }
    let contents: BTreeSet<_> = set.iter().filter_map(|r| copies.get(r)).map(|copy| copy.blocks.clone()).collect();
    if contents.len() > 1 {
        wrong.push(format!("{}: the copies in sync differ", life.name));
    }
    wrong
}

/// Laws that a simulated kernel saw broken.
pub fn laws(cluster: &Cluster) -> Vec<String> {
    cluster.world.violations().iter().map(ToString::to_string).collect()
}

/// What is left when everything was deleted.
pub fn leaks(cluster: &Cluster) -> Vec<String> {
    let mut left: Vec<String> = cluster.world.leaks().iter().map(ToString::to_string).collect();
    for plural in ["meshstorvolumes", "meshstorreplicas"] {
        let objects = cluster.store.list(plural);
        left.extend(objects.iter().map(|object| format!("{plural} {}", object["metadata"]["name"])));
    }
    left
}
