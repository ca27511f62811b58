//! DeleteVolume and everything else that ends in data being wiped: recorded intents and tombstones, nothing else (K2).
//!
//! Called by the CSI service, by CreateVolume to take back what it could not finish, and by the loop to go on with what
//! was begun. The nodes do the wiping, each on the tombstone of its own copy. A deletionTimestamp alone, an absent object
//! or a dead node never destroys anything.

use crate::Context;
use crate::decide;
use crate::error::ControlError;
use crate::names;
use crate::offers;
use crate::writer::Endpoint;
use meshstor_api::node::MeshStorNode;
use meshstor_api::replica::{MeshStorReplica, Tombstone};
use meshstor_api::volume::{DeletionRequest, MeshStorVolume};
use meshstor_api::{FINALIZER, patch};
use meshstor_kernel::id::{ReplicaId, ReplicaKey, VolumeId};
use std::sync::Arc;
use tonic::Status;

/// How far a deletion is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The volume's object is gone, or is let go now.
    Gone,
    /// Something has changed meanwhile: look again.
    Again,
    /// These copies are awaited.
    Waiting(String),
}

/// Deletes the volume and its data.
pub(crate) async fn delete(context: Arc<Context>, name: String, key: String) -> Result<(), Status> {
    if !names::is_object_name(&name) {
        return Ok(());
    }
    let mut hints = context.hints.listen(&name, context.config.poll);
    loop {
        let Some(volume) = context.writer.get::<MeshStorVolume>(&name).await? else { return Ok(()) };
        if volume.spec.deletion_requested.is_none() {
            deletable(&context, &volume).await?;
            match request(&context, &volume, "csi.DeleteVolume").await {
                Ok(()) => tracing::info!(volume = %name, "deletion recorded"),
                Err(error) if error.is_stale() => hints.again().await,
                Err(error) => return Err(error.into()),
            }
            continue;
        }
        match progress(&context, &volume).await? {
            Progress::Gone => return Ok(()),
            Progress::Again => hints.again().await,
            Progress::Waiting(sentence) => {
                context.awaited.say(&key, sentence);
                hints.wait().await;
            }
        }
    }
}

/// Whether the data of a volume may be destroyed on request.
async fn deletable(context: &Context, volume: &MeshStorVolume) -> Result<(), Status> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let refused = |why: String| Status::failed_precondition(format!("volume {name} cannot be deleted: {why}"));
    if let Some(consumer) = &volume.spec.attachment.consumer {
        return Err(refused(format!("it is published to node {consumer}; it must be unpublished first")));
    }
    let own = context.writer.cluster().await?.to_string();
    let cluster = &volume.spec.cluster_id;
    if *cluster != own {
        return Err(refused(format!(
            "spec.clusterID is {cluster}, this cluster is {own}; delete the object by hand, its data belong elsewhere"
        )));
    }
    Ok(())
}

/// Takes back a volume whose creation cannot be finished. Refused when somebody has finished it meanwhile.
pub(crate) async fn withdraw(context: &Context, volume: &MeshStorVolume, by: &str) -> Result<(), ControlError> {
    request(context, volume, by).await?;
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let Some(volume) = context.writer.get::<MeshStorVolume>(name).await? else { return Ok(()) };
    // The loop goes on until the nodes have withdrawn too; the caller need not wait for that.
    match progress(context, &volume).await {
        Ok(_) => Ok(()),
        Err(error) => {
            tracing::warn!(volume = %name, %error, "left to the loop");
            Ok(())
        }
    }
}

/// Records the intent.
async fn request(context: &Context, volume: &MeshStorVolume, by: &str) -> Result<(), ControlError> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let intent = DeletionRequest { by: by.to_string(), at: context.timestamp() };
    let patch = patch::deletion_request(volume, &intent)?;
    context.writer.patch::<MeshStorVolume>(name, Endpoint::Main, patch).await
}

/// One step of a deletion whose intent is recorded: bury the copies, wait for the nodes that live, let the object go.
pub(crate) async fn progress(context: &Context, volume: &MeshStorVolume) -> Result<Progress, ControlError> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    if volume.spec.deletion_requested.is_none() {
        return Ok(Progress::Waiting("nobody has asked for the deletion of this volume".to_string()));
    }
    if let Some(consumer) = &volume.spec.attachment.consumer {
        // Cannot come about through us: the intent is recorded only while nobody is attached.
        return Ok(Progress::Waiting(format!("it is published to node {consumer}; that must end first")));
    }
    let replicas = context.writer.replicas_of(name).await?;
    for replica in replicas.iter().filter(|replica| decide::belongs(volume, replica)) {
        match bury(context, replica, "VolumeDeleted").await {
            Ok(()) => {}
            Err(error) if error.is_stale() => return Ok(Progress::Again),
            Err(error) => return Err(error),
        }
    }
    if volume.metadata.deletion_timestamp.is_none() {
        return match context.writer.delete(volume).await {
            Ok(()) => Ok(Progress::Again),
            Err(error) if error.is_stale() => Ok(Progress::Again),
            Err(error) => Err(error),
        };
    }
    let awaited = awaited(context, volume).await?;
    if !awaited.is_empty() {
        return Ok(Progress::Waiting(format!("the removal of partitions is awaited: {}", awaited.join(", "))));
    }
    let Some(patch) = patch::without_finalizer(&volume.metadata, FINALIZER)? else { return Ok(Progress::Gone) };
    match context.writer.patch::<MeshStorVolume>(name, Endpoint::Main, patch).await {
        Ok(()) => {
            tracing::info!(volume = %name, "deleted");
            Ok(Progress::Gone)
        }
        Err(error) if error.is_stale() => Ok(Progress::Again),
        Err(error) => Err(error),
    }
}

/// Copies that are still there on nodes that can be reached. Those on dead nodes stay behind as tombstones (K15).
async fn awaited(context: &Context, volume: &MeshStorVolume) -> Result<Vec<String>, ControlError> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let mut awaited = Vec::new();
    for replica in context.writer.replicas_of(name).await?.iter().filter(|replica| decide::belongs(volume, replica)) {
        let partition = replica.status.as_ref().and_then(|status| status.partition.as_ref());
        let removed = partition.is_some_and(|partition| partition.state == "Removed");
        let (id, node) = (&replica.spec.replica, &replica.spec.node);
        if removed {
            continue;
        }
        match unreachable(context, node).await? {
            Some(why) => tracing::debug!(volume = %name, replica = %id, %node, %why, "left behind as a tombstone"),
            None => awaited.push(format!("{id} on {node}")),
        }
    }
    Ok(awaited)
}

/// Why a node cannot be waited for; `None` when it can.
async fn unreachable(context: &Context, node: &str) -> Result<Option<String>, ControlError> {
    let Some(found) = context.writer.get::<MeshStorNode>(node).await? else {
        return Ok(Some("there is no MeshStorNode of that name".to_string()));
    };
    let heartbeat = found.status.as_ref().and_then(|status| status.heartbeat.as_deref());
    Ok(offers::silence(heartbeat, (context.config.now)(), context.config.heartbeat_max))
}

/// Marks a copy for wiping, naming exactly what may be wiped, and asks for the deletion of its object. Refused when the
/// copy has reported anything since it was read.
pub(crate) async fn bury(context: &Context, replica: &MeshStorReplica, reason: &str) -> Result<(), ControlError> {
    let name = replica.metadata.name.as_deref().unwrap_or_default();
    if replica.spec.tombstone.is_none() {
        let patch = patch::tombstone(replica, &tombstone(replica, reason)?)?;
        context.writer.patch::<MeshStorReplica>(name, Endpoint::Main, patch).await?;
    }
    if replica.metadata.deletion_timestamp.is_none() {
        context.writer.delete(replica).await?;
    }
    Ok(())
}

fn tombstone(replica: &MeshStorReplica, reason: &str) -> Result<Tombstone, ControlError> {
    let spec = &replica.spec;
    let garbage = |field: &str, value: &str, allowed: &'static str| {
        let name = replica.metadata.name.clone().unwrap_or_default();
        let (field, value) = (field.to_string(), value.to_string());
        ControlError::Garbage(meshstor_api::convert::Garbage { kind: "MeshStorReplica", name, field, value, allowed })
    };
    let volume: VolumeId = spec
        .volume_id
        .parse()
        .map_err(|_| garbage("spec.volumeID", &spec.volume_id, "a hyphenated lower-case uuid"))?;
    let id: ReplicaId =
        spec.replica.parse().map_err(|_| garbage("spec.replica", &spec.replica, "r and a number, as in r0"))?;
    Ok(Tombstone {
        partition_uuid: ReplicaKey { volume, replica: id }.partition_uuid().to_string(),
        cluster_id: spec.cluster_id.clone(),
        volume_id: spec.volume_id.clone(),
        reason: reason.to_string(),
    })
}
