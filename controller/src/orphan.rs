//! Volumes that nobody knows of any more: neither their claim nor a PersistentVolume exists.
//!
//! Called by `reconcile` for volumes without a consumer. csi-provisioner forgets what it was making when it is started anew,
//! and when the claim is deleted meanwhile nobody ever asks for that volume again, nor for its deletion (K7). One that was
//! never recorded is taken back: no CreateVolume was answered, no epoch has begun, and every copy says that it was never
//! fenced for one, so nothing was written to it. Any other may hold data, also one whose object came back from a backup: it
//! is kept, and says how to be rid of it. What cannot be asked for counts as there.

use crate::Context;
use crate::decide::{self, Recorded};
use crate::delete;
use crate::error::ControlError;
use crate::herald;
use crate::names;
use crate::writer::Endpoint;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{Api, ListParams};
use meshstor_api::volume::{Claim, MeshStorVolume};
use meshstor_api::{MeshStorReplica, condition, patch};
use meshstor_plan::Reason;
use meshstor_plan::record::VolumeRecord;
use std::time::Duration;

/// So old is a volume before its claim is looked for. The provisioner asks again after 30 s at most and is started anew
/// within minutes; a PersistentVolume is made seconds after its volume.
const PATIENCE: Duration = Duration::from_secs(600);
const CLAIMED: &str = "Claimed";

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Somebody knows of it, or nothing is known of who should.
    Known,
    /// It is too young; look again after this long.
    Young(Duration),
    /// Something was changed: look again.
    Changed,
}

/// Looks for whom a volume belongs to.
pub(crate) async fn step(
    context: &Context,
    volume: &MeshStorVolume,
    record: &VolumeRecord,
    replicas: &[MeshStorReplica],
) -> Result<Found, ControlError> {
    let Some(claim) = &volume.spec.claim else { return Ok(Found::Known) };
    if volume.spec.attachment.consumer.is_some() || volume.metadata.deletion_timestamp.is_some() {
        return Ok(Found::Known);
    }
    let age = volume.metadata.creation_timestamp.as_ref().map_or(Duration::ZERO, |created| context.since(created.0));
    if age < PATIENCE {
        return Ok(Found::Young(PATIENCE - age));
    }
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let known = persistent_volume(context, name, claim).await? || claim_exists(context, claim).await?;
    if known || !empty(record, replicas) {
        return say(context, volume, known).await;
    }
    match delete::withdraw(context, volume, "controller: its claim is gone").await {
        Ok(()) => {
            tracing::info!(volume = %name, claim = %format!("{}/{}", claim.namespace, claim.name), "begun for a claim that is gone");
            Ok(Found::Changed)
        }
        Err(error) if error.is_stale() => Ok(Found::Changed),
        Err(error) => Err(error),
    }
}

/// Whether nothing can have been written to it. A copy whose node has not spoken yet may have been fenced long ago.
fn empty(record: &VolumeRecord, replicas: &[MeshStorReplica]) -> bool {
    decide::recorded(record) == Recorded::NotYet && replicas.iter().all(|replica| replica.status.is_some())
}

/// Whether a PersistentVolume leads to it: the one it was made for, or one that an operator has made.
async fn persistent_volume(context: &Context, handle: &str, claim: &Claim) -> Result<bool, ControlError> {
    let api: Api<PersistentVolume> = Api::all(context.writer.client());
    if let Some(name) = claim.persistent_volume.as_ref().filter(|name| names::is_node_name(name)) {
        let found = context.writer.ask("the volume's PersistentVolume", api.get_opt(name)).await?;
        if found.is_some_and(|found| herald::leads_to(&found, handle)) {
            return Ok(true);
        }
    }
    let all = context.writer.ask("list of PersistentVolumes", api.list(&ListParams::default())).await?;
    Ok(all.items.iter().any(|one| herald::leads_to(one, handle)))
}

/// Whether the claim that it was made for is there.
async fn claim_exists(context: &Context, claim: &Claim) -> Result<bool, ControlError> {
    let Claim { namespace, name, .. } = claim;
    if !names::is_node_name(namespace) || !names::is_node_name(name) {
        return Ok(true);
    }
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.writer.client(), namespace);
    let found = context.writer.ask("the volume's claim", api.get_opt(name)).await?;
    Ok(found.is_some_and(|found| herald::made_for(&found, claim)))
}

/// The condition, once there is something to say.
async fn say(context: &Context, volume: &MeshStorVolume, known: bool) -> Result<Found, ControlError> {
    let mut list = volume.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
    if known && !list.iter().any(|condition| condition.type_ == CLAIMED) {
        return Ok(Found::Known);
    }
    let reason = Reason::Orphaned;
    let (word, message) = if known { ("Healthy", String::new()) } else { (reason.word(), reason.to_string()) };
    condition::set(&mut list, CLAIMED, known, word, &message, &context.timestamp());
    list.retain(|condition| condition.type_ == CLAIMED);
    let Some(patch) = patch::volume_conditions(volume, &list)? else { return Ok(Found::Known) };
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    match context.writer.patch::<MeshStorVolume>(name, Endpoint::Status, patch).await {
        Ok(()) => {
            context.tell(volume, &list).await;
            Ok(Found::Changed)
        }
        Err(error) if error.is_stale() => Ok(Found::Changed),
        Err(error) => Err(error),
    }
}
