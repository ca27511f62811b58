//! `meshstor recover`: writes records anew from what the drives say, after etcd was restored from an old snapshot or the
//! objects were lost (docs/protocol.md, rule 9; docs/operations/recover.md).
//!
//! Called by the binary, on an operator's word, and by tests. Which copies count is decided by [`meshstor_plan::recover`]
//! on what nodes read after they were asked; this reads objects, asks, and writes by compare-and-swap. It never runs by
//! itself, never wipes, and changes only volumes that it was told to.

mod ask;
mod write;

use crate::error::ControlError;
use crate::{Context, Controller, decide};
use meshstor_api::convert::{self, Garbage};
use meshstor_api::node::MeshStorNodeDevice;
use meshstor_api::replica::MeshStorReplica;
use meshstor_api::volume::MeshStorVolume;
use meshstor_kernel::id::{ClusterId, ReplicaId, VolumeId};
use meshstor_plan::recover::{Accepted, Case, CopyReport, Finding, Outcome, Proposal, propose};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// The command's way to the cluster.
pub struct Recovery {
    context: Arc<Context>,
}

/// Everything that was found.
#[derive(Debug)]
pub struct Picture {
    /// Volumes by name: those that have an object, and those that only drives know.
    pub volumes: Vec<VolumePicture>,
    /// Drives that did not answer: `node-b: drive serial-1`.
    pub silent: Vec<String>,
    /// What could not be understood and was left out.
    pub unreadable: Vec<String>,
}

/// One volume.
#[derive(Debug)]
pub struct VolumePicture {
    /// Name of its object.
    pub name: String,
    /// Its identity.
    pub volume: VolumeId,
    /// What its copies said.
    pub copies: Vec<CopyReport>,
    /// What follows from it.
    pub finding: Finding,
    /// Why nothing is written whatever the drives say.
    pub obstacle: Option<String>,
    stored: Option<MeshStorVolume>,
    replicas: Vec<MeshStorReplica>,
    sector_bytes: u32,
}

impl VolumePicture {
    /// What would be written.
    pub fn proposal(&self) -> Option<&Proposal> {
        match &self.finding.outcome {
            Outcome::Write(proposal) if self.obstacle.is_none() => Some(proposal),
            _ => None,
        }
    }

    /// Node of a copy, as its drive or its object says.
    pub fn node_of(&self, replica: ReplicaId) -> Option<&str> {
        let reported = self.copies.iter().find(|copy| copy.record.replica == replica);
        let object = || self.replicas.iter().find(|object| object.spec.replica == replica.to_string());
        reported.map(|copy| copy.node.0.as_str()).or_else(|| object().map(|object| object.spec.node.as_str()))
    }
}

/// What became of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// The new record stands.
    Done,
    /// Something has changed since the look: nothing, or only the set, was written.
    Changed,
}

impl Controller {
    /// The recovery of records, over the same API server.
    pub fn recovery(&self) -> Recovery {
        Recovery { context: Arc::clone(&self.context) }
    }
}

impl Recovery {
    /// Asks every drive, waits at most `patience` for the answers, and judges every volume.
    pub async fn look(
        &self,
        accepted: &BTreeMap<String, Accepted>,
        patience: Duration,
    ) -> Result<Picture, ControlError> {
        let asked = ask::ask(&self.context, patience).await?;
        let writer = &self.context.writer;
        let (volumes, replicas) =
            futures::try_join!(writer.list::<MeshStorVolume>(), writer.list::<MeshStorReplica>())?;
        let cluster = writer.cluster().await?;
        let mut picture = Picture { volumes: Vec::new(), silent: asked.silent, unreadable: Vec::new() };
        let mut copies: BTreeMap<VolumeId, Vec<CopyReport>> = BTreeMap::new();
        for device in &asked.answered {
            match convert::copy_reports(device) {
                Ok(reports) => {
                    for copy in reports.into_iter().filter(|copy| copy.record.cluster == cluster) {
                        copies.entry(copy.record.volume).or_default().push(copy);
                    }
                }
                Err(garbage) => picture.unreadable.push(garbage.to_string()),
            }
        }
        let names: BTreeSet<String> = volumes.iter().filter_map(|volume| volume.metadata.name.clone()).collect();
        let world = World { cluster, replicas: &replicas, devices: &asked.answered, names: &names, accepted };
        for stored in volumes {
            match stored.spec.volume_id.parse() {
                Ok(volume) => {
                    let found = copies.remove(&volume).unwrap_or_default();
                    picture.volumes.push(world.judge(volume, Some(stored), found));
                }
                Err(_) => picture.unreadable.push(format!(
                    "MeshStorVolume {}: spec.volumeID is {:?}: allowed is a uuid",
                    stored.metadata.name.unwrap_or_default(),
                    stored.spec.volume_id
                )),
            }
        }
        picture.volumes.extend(copies.into_iter().map(|(volume, found)| world.judge(volume, None, found)));
        picture.volumes.sort_by(|a, b| (&a.name, a.volume).cmp(&(&b.name, b.volume)));
        Ok(picture)
    }

    /// Writes what was proposed for one volume.
    pub async fn write(&self, picture: &VolumePicture) -> Result<Written, ControlError> {
        match write::write(&self.context, picture).await {
            Err(error) if error.is_stale() => Ok(Written::Changed),
            other => other,
        }
    }

    /// Waits until the complete copies are fenced for the new epoch. Answers those that are not yet.
    pub async fn fenced(
        &self,
        picture: &VolumePicture,
        patience: Duration,
    ) -> Result<BTreeSet<ReplicaId>, ControlError> {
        write::fenced(&self.context, picture, patience).await
    }

    /// Looks at the written volumes once more, now that nobody of an older epoch can write to them, and takes out of the
    /// set what was dropped by a running array between the look and the fence. Answers which, by volume.
    pub async fn confirm(
        &self,
        written: &[&VolumePicture],
        patience: Duration,
    ) -> Result<BTreeMap<String, BTreeSet<ReplicaId>>, ControlError> {
        let accepted = written.iter().map(|picture| (picture.name.clone(), Accepted::Newest)).collect();
        let now = self.look(&accepted, patience).await?;
        let mut out = BTreeMap::new();
        for (before, proposal) in written.iter().filter_map(|picture| Some((picture, picture.proposal()?))) {
            let Some(after) = now.volumes.iter().find(|picture| picture.volume == before.volume) else { continue };
            let fell_behind = write::fell_behind(proposal, after);
            if !fell_behind.is_empty() {
                write::shrink(&self.context, &before.name, &fell_behind).await?;
                out.insert(before.name.clone(), fell_behind);
            }
        }
        Ok(out)
    }
}

/// What all volumes are judged with.
struct World<'a> {
    cluster: ClusterId,
    replicas: &'a [MeshStorReplica],
    devices: &'a [MeshStorNodeDevice],
    names: &'a BTreeSet<String>,
    accepted: &'a BTreeMap<String, Accepted>,
}

impl World<'_> {
    fn judge(&self, volume: VolumeId, stored: Option<MeshStorVolume>, copies: Vec<CopyReport>) -> VolumePicture {
        let latest = copies.iter().max_by_key(|copy| copy.record.epoch);
        let name = match &stored {
            Some(stored) => stored.metadata.name.clone().unwrap_or_default(),
            None => latest.map(|copy| copy.record.volume_name.clone()).unwrap_or_default(),
        };
        let of =
            |replica: &&MeshStorReplica| replica.spec.volume == name && replica.spec.volume_id == volume.to_string();
        let replicas: Vec<MeshStorReplica> = self.replicas.iter().filter(of).cloned().collect();
        let record = stored.as_ref().map(|stored| convert::volume_record(stored, &replicas, self.cluster)).transpose();
        let (record, garbage) = match record {
            Ok(record) => (record, None),
            Err(garbage) => (None, Some(garbage)),
        };
        let mut dismissed = dismissed(stored.as_ref(), &replicas);
        // A number that is recorded as complete was not let go, whatever its object says.
        dismissed.retain(|id| !record.iter().any(|r| r.in_sync.iter().flatten().any(|member| member == id)));
        let known = replicas.iter().filter_map(|replica| {
            let id: ReplicaId = replica.spec.replica.parse().ok()?;
            Some((id, meshstor_kernel::id::NodeName(replica.spec.node.clone())))
        });
        let known = known.filter(|(id, _)| !dismissed.contains(id)).collect();
        let accepted = self.accepted.get(&name).copied();
        let case = Case { volume, record: record.as_ref(), known, dismissed, copies, accepted };
        let finding = propose(&case);
        let copies = case.copies;
        let obstacle = self.obstacle(&name, stored.as_ref(), garbage.as_ref(), &replicas, &copies);
        let sector_bytes = self.sector_bytes(&copies);
        VolumePicture { name, volume, copies, finding, obstacle, stored, replicas, sector_bytes }
    }

    /// Why nothing is written whatever the drives say.
    fn obstacle(
        &self,
        name: &str,
        stored: Option<&MeshStorVolume>,
        garbage: Option<&Garbage>,
        replicas: &[MeshStorReplica],
        copies: &[CopyReport],
    ) -> Option<String> {
        if let Some(garbage) = garbage {
            return Some(garbage.to_string());
        }
        if stored.is_some_and(|stored| stored.spec.deletion_requested.is_some()) {
            return Some("it is being deleted".to_string());
        }
        if stored.is_none() && self.names.contains(name) {
            return Some("another volume has this name now; its data are left as they are".to_string());
        }
        if !crate::names::is_object_name(name) {
            return Some("the drives say no name that an object can have".to_string());
        }
        let elsewhere = copies.iter().find_map(|copy| {
            let object = replicas.iter().find(|object| object.spec.replica == copy.record.replica.to_string())?;
            (object.spec.node != copy.node.0).then_some((copy, object))
        });
        let (copy, object) = elsewhere?;
        let (replica, there) = (copy.record.replica, &copy.node.0);
        let (object, here) = (object.metadata.name.as_deref().unwrap_or_default(), &object.spec.node);
        Some(format!("{replica} lies on {there}, its object {object} says {here}: delete that object first"))
    }

    /// Logical block size of the drives that hold copies.
    fn sector_bytes(&self, copies: &[CopyReport]) -> u32 {
        let on = |device: &&MeshStorNodeDevice| {
            copies.iter().any(|copy| copy.node.0 == device.spec.node && copy.drive.0 == device.spec.drive)
        };
        let sizes = self.devices.iter().filter(on).filter_map(|device| Some(device.status.as_ref()?.sector_size));
        sizes.filter(|size| *size > 0).max().unwrap_or(4096)
    }
}

/// Copies that were let go for ever.
fn dismissed(stored: Option<&MeshStorVolume>, replicas: &[MeshStorReplica]) -> BTreeSet<ReplicaId> {
    let listed = stored.iter().flat_map(|stored| &stored.spec.dismissed).filter_map(|text| text.parse().ok());
    let buried = replicas.iter().filter(|replica| {
        replica.spec.tombstone.is_some() && stored.is_none_or(|stored| decide::belongs(stored, replica))
    });
    listed.chain(buried.filter_map(|replica| replica.spec.replica.parse().ok())).collect()
}
