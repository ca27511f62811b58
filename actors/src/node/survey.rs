//! A look at the kernel as a whole: which drives, which partitions of ours, which volumes.
//!
//! Made by a task of the root actor at the start, after hints that name no single thing, and from time to time. It is
//! what a restarted agent knows before the API server has said a word. It never changes anything.

use crate::env::Env;
use crate::failure::Failure;
use meshstor_api::convert::drive_copy;
use meshstor_api::node::DriveCopy;
use meshstor_kernel::facts::{DriveClass, DriveFact, EpochRecord, NodeFact};
use meshstor_kernel::id::{DriveId, ReplicaKey, VolumeId};
use meshstor_plan::recover::Member;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// What the kernel holds.
#[derive(Debug)]
pub struct Survey {
    /// The node.
    pub node: NodeFact,
    /// Its drives.
    pub drives: BTreeSet<DriveId>,
    /// Partitions of ours by GUID, with the record in each.
    pub partitions: BTreeMap<Uuid, Option<EpochRecord>>,
    /// Volumes of which it holds something.
    pub volumes: BTreeMap<VolumeId, Found>,
    /// Every copy on each drive, where somebody asked for that.
    pub copies: Option<Copies>,
}

/// Every copy on each drive that was read, for a question that was there before the reading began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copies {
    /// The question: the annotation's value.
    pub asked: String,
    /// The answer.
    pub drives: BTreeMap<DriveId, Vec<DriveCopy>>,
}

/// What the kernel holds of a volume.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Name of its object, when some member says it.
    pub name: Option<String>,
    /// Whether its array runs.
    pub array: bool,
    /// Whether the host has controllers to its exports.
    pub connected: bool,
    /// Where its file system is mounted, and whether the mounts answer.
    pub mounts: BTreeMap<String, bool>,
}

impl Found {
    /// The mount that stands for the staging: kubelet's own path if it is there, else any. The others are pods' binds of
    /// the same file system, so whichever is chosen, nothing has to be done.
    pub fn staging_target(&self) -> Option<String> {
        let kubelet = self.mounts.keys().find(|target| target.ends_with("/globalmount"));
        kubelet.or_else(|| self.mounts.keys().next()).cloned()
    }
}

/// Looks at everything; at the superblock of each copy too when there is a question.
pub async fn survey(env: &Env, asked: Option<String>) -> Result<Survey, Failure> {
    let node = env.look_at_node().await?;
    let seen = env.kernel.drives().await?;
    let drives = seen.iter().map(|drive| drive.id.clone()).collect();
    let found = env.kernel.replicas().await?;
    let copies = match asked {
        Some(asked) => Some(Copies { asked, drives: look_at_copies(env, &seen, &found).await? }),
        None => None,
    };
    let partitions: BTreeMap<Uuid, Option<EpochRecord>> = found.into_values().flatten().collect();
    let named: BTreeMap<VolumeId, String> =
        partitions.values().flatten().map(|record| (record.volume, record.volume_name.clone())).collect();
    let mut volumes = BTreeMap::new();
    for volume in env.kernel.volumes().await? {
        volumes.insert(volume, look_at_volume(env, volume, named.get(&volume).cloned()).await?);
    }
    Ok(Survey { node, drives, partitions, volumes, copies })
}

/// Reads every copy of every drive that can be read. One that cannot be is left out of the answer, which is then silent
/// about it: whoever asks takes it for a copy that did not answer.
async fn look_at_copies(
    env: &Env,
    seen: &[DriveFact],
    found: &BTreeMap<DriveId, Vec<(Uuid, Option<EpochRecord>)>>,
) -> Result<BTreeMap<DriveId, Vec<DriveCopy>>, Failure> {
    let readable = seen.iter().filter(|drive| !matches!(drive.class, DriveClass::Unreadable(_)));
    let mut answer: BTreeMap<DriveId, Vec<DriveCopy>> = readable.map(|drive| (drive.id.clone(), Vec::new())).collect();
    for (drive, partitions) in found {
        for record in partitions.iter().filter_map(|(_, record)| record.as_ref()) {
            let key = ReplicaKey { volume: record.volume, replica: record.replica };
            let partition = match env.kernel.partition(key).await {
                Ok(partition) => partition,
                Err(error) => {
                    tracing::warn!(%key, %drive, %error, "a copy could not be read: left out of the answer");
                    continue;
                }
            };
            // What was just read counts; the record of the list is older.
            let Some(partition) = partition.filter(|partition| partition.drive == *drive) else { continue };
            let Some(record) = &partition.record else { continue };
            let member = partition.superblock.as_ref().map(Member::from);
            let copy = drive_copy(partition.extent.length, record, &partition.holders, member.as_ref());
            answer.entry(drive.clone()).or_default().push(copy);
        }
    }
    Ok(answer)
}

async fn look_at_volume(env: &Env, volume: VolumeId, name: Option<String>) -> Result<Found, Failure> {
    let connections = env.kernel.connections(volume).await?;
    let array = env.kernel.array(volume).await?.is_some();
    let mounts = env.kernel.mounts(volume).await?.mounts;
    let known = name.or_else(|| env.book.borrow().volumes.get(&volume).cloned());
    let name = match known {
        Some(name) => Some(name),
        None => {
            // A member's own record names its volume. One that cannot be read now is no reason to wait.
            let heads = connections.values().filter_map(|connection| connection.head.as_ref());
            let probes = heads.map(|head| env.kernel.probe(&head.path, false));
            let probes = futures::future::join_all(probes.collect::<Vec<_>>()).await;
            probes.into_iter().find_map(|probe| Some(probe.ok()?.record?.volume_name))
        }
    };
    Ok(Found { name, array, connected: !connections.is_empty(), mounts })
}

/// The volume of this name, from whatever this node can know; `None`: it holds nothing of it.
pub async fn resolve(env: &Env, name: &str, target: &str) -> Result<Option<VolumeId>, Failure> {
    if let Some(volume) = env.book.borrow().volume(name) {
        return Ok(Some(volume));
    }
    if let Some(volume) = env.kernel.mount_at(target).await?.and_then(|mount| mount.volume) {
        return Ok(Some(volume));
    }
    let held = survey(env, None).await?.volumes;
    if let Some((volume, _)) = held.iter().find(|(_, found)| found.name.as_deref() == Some(name)) {
        return Ok(Some(*volume));
    }
    if held.values().all(|found| found.name.is_some()) {
        return Ok(None);
    }
    // Something here does not say its name: the API server has to.
    let object: Option<meshstor_api::MeshStorVolume> = env.server.get(name).await?;
    Ok(object.and_then(|object| object.spec.volume_id.parse().ok()))
}
