//! A look at the kernel as a whole: which drives, which partitions of ours, which volumes.
//!
//! Made by a task of the root actor at the start, after hints that name no single thing, and from time to time. It is
//! what a restarted agent knows before the API server has said a word. It never changes anything.

use crate::env::Env;
use crate::failure::Failure;
use meshstor_kernel::facts::{EpochRecord, NodeFact};
use meshstor_kernel::id::{DriveId, VolumeId};
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
    /// Where it is mounted, and whether the mounts answer.
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

/// Looks at everything.
pub async fn survey(env: &Env) -> Result<Survey, Failure> {
    let node = env.look_at_node().await?;
    let drives = env.kernel.drives().await?.into_iter().map(|drive| drive.id).collect();
    let partitions: BTreeMap<Uuid, Option<EpochRecord>> =
        env.kernel.replicas().await?.into_values().flatten().collect();
    let named: BTreeMap<VolumeId, String> =
        partitions.values().flatten().map(|record| (record.volume, record.volume_name.clone())).collect();
    let mut volumes = BTreeMap::new();
    for volume in env.kernel.volumes().await? {
        volumes.insert(volume, look_at_volume(env, volume, named.get(&volume).cloned()).await?);
    }
    Ok(Survey { node, drives, partitions, volumes })
}

async fn look_at_volume(env: &Env, volume: VolumeId, name: Option<String>) -> Result<Found, Failure> {
    let connections = env.kernel.connections(volume).await?;
    let array = env.kernel.array(volume).await?.is_some();
    let mounts = env.kernel.mounts(volume).await?;
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
    let held = survey(env).await?.volumes;
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
