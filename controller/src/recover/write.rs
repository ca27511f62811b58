//! Writes a proposed record: the set first, while nothing can start from it, then the epoch, then whatever objects are
//! missing; and what has to be said about it.

use super::{VolumePicture, Written};
use crate::error::ControlError;
use crate::writer::{Creation, Endpoint};
use crate::{Context, exports, names};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use meshstor_api::replica::{ExportSpec, MeshStorReplica, ReplicaRole, ReplicaSpec};
use meshstor_api::volume::{Attachment, LocalCopy, MeshStorVolume, TopologySpread, VolumeSpec};
use meshstor_api::{FINALIZER, condition, convert, patch};
use meshstor_kernel::content::Content;
use meshstor_kernel::id::ReplicaId;
use meshstor_plan::recover::{Proposal, Verdict, list_of_copies};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

/// Condition of a volume whose record was written anew.
const CONDITION: &str = "Recovered";
/// Where events of cluster-scoped objects go.
const EVENT_NAMESPACE: &str = "default";
/// How often fences are looked for.
const POLL: Duration = Duration::from_millis(500);

pub(super) async fn write(context: &Context, picture: &VolumePicture) -> Result<Written, ControlError> {
    let Some(proposal) = picture.proposal() else { return Ok(Written::Changed) };
    let name = picture.name.as_str();
    let stored = match &picture.stored {
        Some(stored) => stored.clone(),
        None => match create(context, picture, proposal).await? {
            Some(made) => made,
            None => return Ok(Written::Changed),
        },
    };
    let message = sentence(picture, proposal);
    let reason = reason(proposal);
    tracing::warn!(volume = name, epoch = proposal.epoch, reason, "{message}");
    let mut conditions = stored.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
    condition::set(&mut conditions, CONDITION, true, reason, &message, &context.timestamp());
    let record = patch::recovered_record(&stored, proposal, &conditions)?;
    context.writer.patch::<MeshStorVolume>(name, Endpoint::Status, record).await?;
    if stored.spec.attachment.epoch < proposal.epoch {
        let Some(now) = context.writer.get::<MeshStorVolume>(name).await? else { return Ok(Written::Changed) };
        let as_written = now.metadata.uid == stored.metadata.uid && now.spec == stored.spec;
        if !as_written || !has_set(&now, &proposal.in_sync) {
            return Ok(Written::Changed);
        }
        let epoch = patch::recovered_epoch(&now, proposal, next_replica(picture))?;
        context.writer.patch::<MeshStorVolume>(name, Endpoint::Main, epoch).await?;
    }
    missing_replicas(context, picture, proposal).await?;
    if let Some((found, replicas)) = context.writer.look(name).await? {
        let record = convert::volume_record(&found, &replicas, context.writer.cluster().await?)?;
        exports::push(context, &found, &record, &replicas).await?;
    }
    announce(context, picture, stored.metadata.uid, reason, &message).await;
    Ok(Written::Done)
}

/// What the copies say that the volume holds: chosen once for all of them.
fn content(picture: &VolumePicture) -> Content {
    picture.copies.first().map(|copy| copy.record.content).unwrap_or_default()
}

/// A number above those of all copies that were found.
fn next_replica(picture: &VolumePicture) -> u32 {
    picture.copies.iter().map(|copy| copy.record.replica.0.saturating_add(1)).max().unwrap_or(0)
}

fn has_set(volume: &MeshStorVolume, set: &BTreeSet<ReplicaId>) -> bool {
    let stored = volume.status.as_ref().and_then(|status| status.in_sync.as_ref());
    stored.is_some_and(|stored| stored.iter().eq(set.iter().map(ToString::to_string).collect::<Vec<_>>().iter()))
}

fn reason(proposal: &Proposal) -> &'static str {
    match proposal.given_up.is_empty() && proposal.overruled.is_empty() {
        true => "Recovered",
        false => "DataLossAccepted",
    }
}

/// What was done, for the log, the condition and the event.
fn sentence(picture: &VolumePicture, proposal: &Proposal) -> String {
    let before = picture.finding.recorded.map_or("no object".to_string(), |epoch| format!("epoch {epoch}"));
    let mut text = format!(
        "the record was written anew from the drives (before: {before}, seen: epoch {}): epoch {}, in sync {}",
        picture.finding.seen,
        proposal.epoch,
        list_of_copies(&proposal.in_sync)
    );
    let given_up: Vec<String> = proposal.given_up.iter().map(ToString::to_string).collect();
    if !given_up.is_empty() {
        text += &format!("; accepted: whatever only {} had is lost", given_up.join(", "));
    }
    if !proposal.overruled.is_empty() {
        text += &format!("; accepted: what {} wrote on its own is lost", list_of_copies(&proposal.overruled));
    }
    text
}

/// The object of a volume that has none. Without a set nothing starts from it.
async fn create(
    context: &Context,
    picture: &VolumePicture,
    proposal: &Proposal,
) -> Result<Option<MeshStorVolume>, ControlError> {
    let Some(size_bytes) = proposal.size_bytes else { return Ok(None) };
    let recorded = picture.copies.iter().map(|copy| copy.record.in_sync.len()).max().unwrap_or(0);
    let count = proposal.in_sync.len().max(recorded).clamp(1, 16);
    let spec = VolumeSpec {
        volume_id: picture.volume.to_string(),
        cluster_id: context.writer.cluster().await?.to_string(),
        size_bytes,
        replica_count: u32::try_from(count).unwrap_or(1),
        stripe_width: 1,
        sector_size: picture.sector_bytes,
        filesystem: content(picture).to_string(),
        member_missing_timeout_seconds: 900,
        local_copy: LocalCopy::Preferred,
        relocation_delay_seconds: Some(300),
        topology_spread: TopologySpread::None,
        claim: None,
        dismissed: Vec::new(),
        next_replica: next_replica(picture),
        attachment: Attachment { epoch: proposal.epoch, ..Attachment::default() },
        deletion_requested: None,
    };
    let volume = MeshStorVolume { metadata: metadata(picture.name.clone()), spec, status: None };
    match context.writer.create(&volume).await? {
        Creation::Made(_) => context.writer.get(&picture.name).await,
        Creation::Exists => Ok(None),
    }
}

fn metadata(name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        finalizers: Some(vec![FINALIZER.to_string()]),
        labels: Some(names::labels()),
        ..ObjectMeta::default()
    }
}

/// Objects of copies that have none.
async fn missing_replicas(context: &Context, picture: &VolumePicture, proposal: &Proposal) -> Result<(), ControlError> {
    let named: BTreeSet<&str> = picture.replicas.iter().map(|object| object.spec.replica.as_str()).collect();
    for (copy, verdict) in picture.copies.iter().zip(&picture.finding.verdicts) {
        let replica = copy.record.replica.to_string();
        if named.contains(replica.as_str()) || matches!(verdict, Verdict::Doubled | Verdict::Dismissed) {
            continue;
        }
        let spec = ReplicaSpec {
            recovery: None,
            volume: picture.name.clone(),
            volume_id: picture.volume.to_string(),
            cluster_id: copy.record.cluster.to_string(),
            node: copy.node.0.clone(),
            drive: copy.drive.0.clone(),
            partition_bytes: copy.bytes,
            filesystem: convert::unless_default(copy.record.content.as_str()),
            role: ReplicaRole::Member,
            move_to: None,
            retired_by: None,
            export: ExportSpec { epoch: proposal.epoch, ..ExportSpec::default() },
            tombstone: None,
            replica,
        };
        let metadata = metadata(names::replica(&picture.name, copy.record.replica));
        context.writer.create(&MeshStorReplica { metadata, spec, status: None }).await?;
    }
    Ok(())
}

/// An event, so that `kubectl describe` shows it. The condition and the log say the same; a server that takes no events
/// stops nothing.
async fn announce(context: &Context, picture: &VolumePicture, uid: Option<String>, reason: &str, message: &str) {
    let regarding = ObjectReference {
        api_version: Some("csi.meshstor.io/v1alpha1".into()),
        kind: Some("MeshStorVolume".into()),
        name: Some(picture.name.clone()),
        uid,
        ..ObjectReference::default()
    };
    let event = Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", picture.name)),
            namespace: Some(EVENT_NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        action: Some("Recover".into()),
        event_time: Some(MicroTime((context.config.now)())),
        note: Some(message.chars().take(1000).collect()),
        reason: Some(reason.into()),
        regarding: Some(regarding),
        reporting_controller: Some("csi.meshstor.io/recover".into()),
        reporting_instance: Some("meshstor-recover".into()),
        type_: Some("Warning".into()),
        ..Event::default()
    };
    let api: Api<Event> = Api::namespaced(context.writer.client(), EVENT_NAMESPACE);
    if let Err(error) = api.create(&PostParams::default(), &event).await {
        tracing::warn!(volume = %picture.name, %error, "no event could be written");
    }
}

/// Waits for the fences of the complete copies; answers those that are not there yet.
pub(super) async fn fenced(
    context: &Context,
    picture: &VolumePicture,
    patience: Duration,
) -> Result<BTreeSet<ReplicaId>, ControlError> {
    let Some(proposal) = picture.proposal() else { return Ok(BTreeSet::new()) };
    let end = Instant::now() + patience;
    loop {
        let replicas = context.writer.replicas_of(&picture.name).await?;
        let fenced = |id: &ReplicaId| {
            let object = replicas.iter().find(|object| object.spec.replica == id.to_string());
            let epoch = object.and_then(|object| object.status.as_ref()).map_or(0, |status| status.fenced_epoch);
            epoch >= proposal.epoch
        };
        let open: BTreeSet<ReplicaId> = proposal.in_sync.iter().filter(|id| !fenced(id)).copied().collect();
        if open.is_empty() || Instant::now() >= end {
            return Ok(open);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Members of the written set that another one of it has left behind since it was proposed.
pub(super) fn fell_behind(proposal: &Proposal, after: &VolumePicture) -> BTreeSet<ReplicaId> {
    let judged = after.copies.iter().zip(&after.finding.verdicts);
    let judged = judged.map(|(copy, verdict)| (copy.record.replica, *verdict));
    let of_set: Vec<(ReplicaId, Verdict)> = judged.filter(|(id, _)| proposal.in_sync.contains(id)).collect();
    if !of_set.iter().any(|(_, verdict)| *verdict == Verdict::Complete) {
        return BTreeSet::new();
    }
    of_set.into_iter().filter(|(_, verdict)| *verdict == Verdict::Behind).map(|(id, _)| id).collect()
}

/// Takes copies out of the set of a volume that nobody uses yet. Somebody who does has recorded who is active.
pub(super) async fn shrink(context: &Context, name: &str, copies: &BTreeSet<ReplicaId>) -> Result<(), ControlError> {
    for replica in copies {
        let Some(stored) = context.writer.get::<MeshStorVolume>(name).await? else { return Ok(()) };
        if stored.spec.attachment.consumer.is_some() {
            return Ok(());
        }
        tracing::warn!(volume = name, %replica, "an array went on without it until it was fenced: taken out of the set");
        let patch = patch::detached_shrink(&stored, *replica)?;
        context.writer.patch::<MeshStorVolume>(name, Endpoint::Status, patch).await?;
    }
    Ok(())
}
