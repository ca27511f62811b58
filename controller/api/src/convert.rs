//! Custom resources turned into the record that plans decide on.
//!
//! Called by the controller and the node agents after every read of a volume. Objects can be written by hand, so nothing
//! is taken for granted: what cannot be read becomes a [`Garbage`] with field, value and what is allowed. It never
//! guesses: an absent in-sync set stays unknown (K1), a restored object is marked foreign.

use crate::node::{CopySuperblock, DriveCopy, MeshStorNodeDevice, NodeAddress};
use crate::replica::{ExportStatus, ListenStatus, MeshStorReplica, ReplicaRole};
use crate::volume::{Flap, FormatState, MeshStorVolume, VolumeStatus};
use k8s_openapi::jiff::Timestamp;
use meshstor_kernel::content::Content;
use meshstor_kernel::facts::{EpochRecord, Listen, Transport};
use meshstor_kernel::id::{BootId, ClusterId, DriveId, NodeName, ReplicaId, VolumeId};
use meshstor_kernel::mutant::{self, Mutant};
use meshstor_plan::record::{DepartureRecord, ExportRecord, FlapRecord, FormatRecord, ReplicaRecord, VolumeRecord};
use meshstor_plan::recover::{CopyReport, Member};
use meshstor_plan::wall::WallTime;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use uuid::Uuid;

/// Values are quoted up to this many characters: a hostile object must not flood conditions and logs.
const QUOTED_CHARS_MAX: usize = 64;

/// A field of an object that says something no writer of ours says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {name}: {field} is {value:?}: allowed is {allowed}")]
pub struct Garbage {
    /// Kind of the object.
    pub kind: &'static str,
    /// Name of the object.
    pub name: String,
    /// Path of the field.
    pub field: String,
    /// What stands there, cut to a readable length.
    pub value: String,
    /// What would have been accepted.
    pub allowed: &'static str,
}

/// The object whose fields are being read, so that every complaint names it.
#[derive(Clone, Copy)]
struct Object<'a> {
    kind: &'static str,
    name: &'a str,
}

impl Object<'_> {
    fn garbage(&self, field: impl Into<String>, value: &str, allowed: &'static str) -> Garbage {
        let value = value.chars().take(QUOTED_CHARS_MAX).collect();
        Garbage { kind: self.kind, name: self.name.to_string(), field: field.into(), value, allowed }
    }

    fn replica(&self, field: &str, text: &str) -> Result<ReplicaId, Garbage> {
        text.parse().map_err(|_| self.garbage(field, text, "r and a number, as in r0"))
    }

    fn required(&self, field: &str, value: &Option<String>) -> Result<String, Garbage> {
        match value {
            Some(text) if !text.is_empty() => Ok(text.clone()),
            _ => Err(self.garbage(field, "", "a value set by the API server")),
        }
    }

    fn node(&self, field: &str, value: &Option<String>) -> Result<Option<NodeName>, Garbage> {
        match value {
            Some(text) if text.is_empty() => Err(self.garbage(field, "", "the name of a node, or no such field")),
            other => Ok(other.clone().map(NodeName)),
        }
    }
}

/// The record of a volume. Of `replicas` only those count that belong to this very volume, by name and by volumeID;
/// those that are to go (retiring, dismissed, or with a tombstone) are there but not wanted.
pub fn volume_record<'a>(
    volume: &MeshStorVolume,
    replicas: impl IntoIterator<Item = &'a MeshStorReplica>,
    own_cluster: ClusterId,
) -> Result<VolumeRecord, Garbage> {
    let name = volume.metadata.name.clone().unwrap_or_default();
    let object = Object { kind: "MeshStorVolume", name: &name };
    object.required("metadata.name", &volume.metadata.name)?;
    let uid = object.required("metadata.uid", &volume.metadata.uid)?;
    let spec = &volume.spec;
    let id = spec.volume_id.parse();
    let id = id.map_err(|_| object.garbage("spec.volumeID", &spec.volume_id, "a hyphenated lower-case uuid"))?;
    let cluster: ClusterId = cluster(object, &spec.cluster_id)?;
    let replicas = replica_records(volume, &name, replicas)?;
    let unrecorded = VolumeStatus::default();
    let status = volume.status.as_ref().unwrap_or(&unrecorded);
    Ok(VolumeRecord {
        uid,
        volume: id,
        cluster,
        size_bytes: spec.size_bytes,
        content: content(object, "spec.filesystem", &spec.filesystem)?,
        replica_count: spec.replica_count,
        epoch: spec.attachment.epoch,
        consumer: object.node("spec.attachment.consumer", &spec.attachment.consumer)?,
        consumer_boot: spec.attachment.consumer_boot.clone().filter(|boot| !boot.is_empty()).map(BootId),
        in_sync: match in_sync(object, status)? {
            None if mutant::on(Mutant::AbsentIsAll) && spec.attachment.epoch > 0 => {
                Some(replicas.keys().copied().collect())
            }
            set => set,
        },
        foreign: foreign(volume, cluster, own_cluster),
        activated_epoch: status.activated_epoch,
        departures: departures(object, status)?,
        flaps: flaps(status),
        format: match status.format.as_ref().map(|format| format.state) {
            None => FormatRecord::Never,
            Some(FormatState::Started) => FormatRecord::Started,
            Some(FormatState::Done) => FormatRecord::Done,
        },
        released_epoch: status.released_epoch,
        replicas,
        name,
    })
}

/// One copy's record, with the number it has in its volume.
pub fn replica_record(replica: &MeshStorReplica) -> Result<(ReplicaId, ReplicaRecord), Garbage> {
    let name = replica.metadata.name.as_deref().unwrap_or_default();
    let object = Object { kind: "MeshStorReplica", name };
    let spec = &replica.spec;
    if spec.node.is_empty() {
        return Err(object.garbage("spec.node", "", "the name of a node"));
    }
    let export = replica.status.as_ref().and_then(|status| status.export.as_ref());
    let record = ReplicaRecord {
        node: NodeName(spec.node.clone()),
        wanted: spec.role == ReplicaRole::Member && spec.tombstone.is_none(),
        partition_bytes: spec.partition_bytes,
        wanted_export: (spec.export.epoch, spec.export.generation),
        fenced_epoch: replica.status.as_ref().map_or(0, |status| status.fenced_epoch),
        export: export.map(|export| export_record(object, export)).transpose()?,
        granted: spec.recovery.as_ref().map(|recovery| (recovery.epoch, recovery.generation)),
    };
    Ok((object.replica("spec.replica", &spec.replica)?, record))
}

/// What a volume holds, by the word in an object.
fn content(object: Object<'_>, field: &str, word: &str) -> Result<Content, Garbage> {
    word.parse().map_err(|_| object.garbage(field, word, "xfs, ext4 or none"))
}

/// The word for what a volume holds, where none stands for XFS.
pub fn unless_default(word: &str) -> Option<String> {
    (word != Content::default().as_str()).then(|| word.to_string())
}

/// The identity of the cluster that an object names.
fn cluster(object: Object<'_>, text: &str) -> Result<ClusterId, Garbage> {
    text.parse().map_err(|_| object.garbage("spec.clusterID", text, "the uid of a kube-system namespace"))
}

/// Why the record is not this object's own; `None` when it is, or when nothing was recorded yet.
fn foreign(volume: &MeshStorVolume, cluster: ClusterId, own_cluster: ClusterId) -> Option<String> {
    if cluster != own_cluster {
        return Some(format!("spec.clusterID is {cluster}, this cluster is {own_cluster}"));
    }
    let status = volume.status.as_ref()?;
    let uid = volume.metadata.uid.as_deref().unwrap_or_default();
    match status.record_of.as_deref() {
        Some(of) if of == uid => None,
        Some(of) => Some(format!("status.recordOf is {of}, this object is {uid}")),
        // Conditions may stand there before the first record.
        None if status.in_sync.is_none() => None,
        None => Some(format!("status.recordOf is absent, this object is {uid}")),
    }
}

/// Absent stays unknown. Every writer of ours stores the set in ascending order, and compare-and-swap compares it as stored.
fn in_sync(object: Object<'_>, status: &VolumeStatus) -> Result<Option<BTreeSet<ReplicaId>>, Garbage> {
    let Some(list) = &status.in_sync else { return Ok(None) };
    let field = "status.inSync";
    let mut set = BTreeSet::new();
    for text in list {
        let replica = object.replica(field, text)?;
        if set.last().is_some_and(|last| *last >= replica) {
            return Err(object.garbage(field, &list.join(" "), "different replicas in ascending order"));
        }
        set.insert(replica);
    }
    if set.is_empty() {
        return Err(object.garbage(field, "[]", "at least one replica, or no such field for unknown"));
    }
    Ok(Some(set))
}

fn departures(object: Object<'_>, status: &VolumeStatus) -> Result<BTreeMap<ReplicaId, DepartureRecord>, Garbage> {
    let mut departures = BTreeMap::new();
    for (index, departure) in status.departures.iter().enumerate() {
        let field = format!("status.departures[{index}].replica");
        let replica = object.replica(&field, &departure.replica)?;
        let record =
            DepartureRecord { epoch: departure.epoch, generation: departure.generation, events: departure.events };
        if departures.insert(replica, record).is_some() {
            return Err(object.garbage(field, &departure.replica, "each replica at most once"));
        }
    }
    Ok(departures)
}

/// Only patience depends on it: what cannot be read is left out, and no volume stands still for it.
fn flaps(status: &VolumeStatus) -> BTreeMap<ReplicaId, FlapRecord> {
    let read =
        |flap: &Flap| Some((flap.replica.parse().ok()?, FlapRecord { count: flap.count, last: wall(&flap.last)? }));
    status.flaps.iter().filter_map(read).collect()
}

/// A time as our objects carry it.
pub fn wall(text: &str) -> Option<WallTime> {
    text.parse::<Timestamp>().ok().map(|time| WallTime(time.as_second()))
}

fn replica_records<'a>(
    volume: &MeshStorVolume,
    name: &str,
    replicas: impl IntoIterator<Item = &'a MeshStorReplica>,
) -> Result<BTreeMap<ReplicaId, ReplicaRecord>, Garbage> {
    let mut records = BTreeMap::new();
    for replica in replicas {
        // A leftover of an earlier volume of the same name is not a copy of this one.
        if replica.spec.volume != name || replica.spec.volume_id != volume.spec.volume_id {
            continue;
        }
        let (id, mut record) = replica_record(replica)?;
        record.wanted &= !volume.spec.dismissed.contains(&replica.spec.replica);
        if records.insert(id, record).is_some() {
            let other = replica.metadata.name.as_deref().unwrap_or_default();
            let object = Object { kind: "MeshStorReplica", name: other };
            return Err(object.garbage("spec.replica", &replica.spec.replica, "a number no other copy has"));
        }
    }
    Ok(records)
}

fn export_record(object: Object<'_>, export: &ExportStatus) -> Result<ExportRecord, Garbage> {
    let listen = export.listen.iter().enumerate();
    Ok(ExportRecord {
        epoch: export.epoch,
        generation: export.generation,
        listen: listen.map(|(index, listen)| read_listen(object, index, listen)).collect::<Result<_, _>>()?,
        ready: export.ready,
    })
}

fn read_listen(object: Object<'_>, index: usize, listen: &ListenStatus) -> Result<Listen, Garbage> {
    let field = |name: &str| format!("status.export.listen[{index}].{name}");
    let transport = transport(&listen.transport)
        .ok_or_else(|| object.garbage(field("transport"), &listen.transport, "tcp or rdma"))?;
    let address: Result<IpAddr, _> = listen.address.parse();
    let address = address.map_err(|_| object.garbage(field("address"), &listen.address, "an IP address"))?;
    if listen.port == 0 {
        return Err(object.garbage(field("port"), "0", "a number from 1 to 65535"));
    }
    Ok(Listen { transport, address, port: listen.port })
}

/// A transport as our objects spell it.
pub fn transport(text: &str) -> Option<Transport> {
    [Transport::Rdma, Transport::Tcp].into_iter().find(|transport| transport.as_str() == text)
}

/// A listening address as our objects spell it.
pub fn listen_status(listen: &Listen) -> ListenStatus {
    ListenStatus {
        transport: listen.transport.as_str().to_string(),
        address: listen.address.to_string(),
        port: listen.port,
    }
}

/// A node's address as our objects spell it.
pub fn node_address(transport: Transport, address: IpAddr) -> NodeAddress {
    NodeAddress { transport: transport.as_str().to_string(), address: address.to_string() }
}

/// A copy as its node read it, for its drive's object.
pub fn drive_copy(bytes: u64, record: &EpochRecord, holders: &BTreeSet<String>, member: Option<&Member>) -> DriveCopy {
    let superblock = member.map(|member| CopySuperblock {
        set_uuid: member.set_uuid.to_string(),
        events: member.events,
        device_number: member.number,
        active: member.active.iter().copied().collect(),
        recovering: member.recovering,
        component_bytes: member.component_bytes,
    });
    DriveCopy {
        volume: record.volume_name.clone(),
        volume_id: record.volume.to_string(),
        cluster_id: record.cluster.to_string(),
        replica: record.replica.to_string(),
        partition_bytes: bytes,
        epoch: record.epoch,
        generation: record.generation,
        in_sync: record.in_sync.iter().map(ToString::to_string).collect(),
        filesystem: unless_default(record.content.as_str()),
        holders: holders.iter().cloned().collect(),
        superblock,
    }
}

/// The copies that a drive's object tells of.
pub fn copy_reports(device: &MeshStorNodeDevice) -> Result<Vec<CopyReport>, Garbage> {
    let name = device.metadata.name.as_deref().unwrap_or_default();
    let object = Object { kind: "MeshStorNodeDevice", name };
    let copies = device.status.iter().flat_map(|status| &status.copies).enumerate();
    copies.map(|(index, copy)| copy_report(object, &format!("status.copies[{index}]"), device, copy)).collect()
}

fn copy_report(
    object: Object<'_>,
    at: &str,
    device: &MeshStorNodeDevice,
    copy: &DriveCopy,
) -> Result<CopyReport, Garbage> {
    let uuid = |field: &str, text: &str| {
        text.parse::<Uuid>().map_err(|_| object.garbage(format!("{at}.{field}"), text, "a uuid"))
    };
    let replicas = copy.in_sync.iter().map(|text| object.replica(&format!("{at}.inSync"), text));
    let member = |superblock: &CopySuperblock| {
        Ok(Member {
            set_uuid: uuid("superblock.setUUID", &superblock.set_uuid)?,
            events: superblock.events,
            number: superblock.device_number,
            active: superblock.active.iter().copied().collect(),
            recovering: superblock.recovering,
            component_bytes: superblock.component_bytes,
        })
    };
    Ok(CopyReport {
        node: NodeName(device.spec.node.clone()),
        drive: DriveId(device.spec.drive.clone()),
        bytes: copy.partition_bytes,
        record: EpochRecord {
            volume: VolumeId(uuid("volumeID", &copy.volume_id)?),
            cluster: ClusterId(uuid("clusterID", &copy.cluster_id)?),
            replica: object.replica(&format!("{at}.replica"), &copy.replica)?,
            epoch: copy.epoch,
            generation: copy.generation,
            in_sync: replicas.collect::<Result<_, _>>()?,
            volume_name: copy.volume.clone(),
            // Which of two slots was newer plays no part any more.
            sequence: 0,
            // The consumer's agent reads these marks from the drive itself.
            tainted: None,
            unflushed: None,
            content: match &copy.filesystem {
                None => Content::default(),
                Some(word) => content(object, &format!("{at}.filesystem"), word)?,
            },
        },
        member: copy.superblock.as_ref().map(member).transpose()?,
        holders: copy.holders.iter().cloned().collect(),
    })
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
