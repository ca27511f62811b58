//! One look at one volume by the loop: whatever should happen without a call.
//!
//! Called by `loops` after a hint or a timer. Level-triggered: it looks at the volume as it is now and brings it one step
//! on; several controllers may do so at once, compare-and-swap sorts them out. In this order, because each of them makes
//! the next one pointless: deletion, a new epoch for a rebooted consumer, exports, sizes, whom it belongs to, conditions, the resync budget, repair.

use crate::Context;
use crate::budget;
use crate::decide;
use crate::delete::{self, Progress};
use crate::error::ControlError;
use crate::expand;
use crate::exports;
use crate::names;
use crate::orphan;
use crate::repair;
use crate::telemetry::{self, EpochCause};
use crate::writer::Endpoint;
use k8s_openapi::jiff::Timestamp;
use meshstor_api::node::MeshStorNode;
use meshstor_api::volume::{Attachment, MeshStorVolume};
use meshstor_api::{convert, patch};
use meshstor_kernel::mutant::{self, Mutant};
use meshstor_plan::record::VolumeRecord;
use std::time::Duration;

/// What the loop should do next about this volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Wait for a hint or the next resync.
    Rest,
    /// Look again after this long: what is awaited gives no hint.
    After(Duration),
}

/// Looks at a volume and brings it one step on.
pub(crate) async fn reconcile(context: &Context, name: &str) -> Result<Next, ControlError> {
    let Some((volume, replicas)) = context.writer.look(name).await? else { return Ok(Next::Rest) };
    // What was changed gives a hint of its own; what was refused must not be tried in a storm.
    let soon = Next::After(context.config.poll);
    if volume.spec.deletion_requested.is_some() {
        return match delete::progress(context, &volume).await? {
            Progress::Gone => Ok(Next::Rest),
            Progress::Again => Ok(soon),
            Progress::Waiting(_) => Ok(Next::After(context.config.retry)),
        };
    }
    let record = convert::volume_record(&volume, &replicas, context.writer.cluster().await?);
    let record = match record {
        Ok(record) => record,
        Err(garbage) => {
            tracing::warn!(volume = %name, %garbage, "left alone");
            return report(context, &volume, Err(garbage.to_string())).await;
        }
    };
    if follow_boot(context, &volume).await? || exports::push(context, &volume, &record, &replicas).await? {
        return Ok(soon);
    }
    if expand::follow(context, &volume, &replicas).await? {
        return Ok(soon);
    }
    let young = match orphan::step(context, &volume, &record, &replicas).await? {
        orphan::Found::Changed => return Ok(soon),
        orphan::Found::Young(left) => Some(Next::After(left)),
        orphan::Found::Known => None,
    };
    match report(context, &volume, Ok(&record)).await? {
        Next::Rest => {
            let budget = budget::step(context, &volume, &replicas).await?;
            let repair = repair::step(context, &volume, &record, &replicas).await?;
            Ok(sooner(young, Some(sooner(budget, repair))))
        }
        again => Ok(again),
    }
}

/// The earlier of two next looks.
fn sooner(a: Option<Next>, b: Option<Next>) -> Next {
    let after = |next: Option<Next>| match next {
        Some(Next::After(delay)) => Some(delay),
        Some(Next::Rest) | None => None,
    };
    after(a).into_iter().chain(after(b)).min().map_or(Next::Rest, Next::After)
}

/// A consumer that rebooted gets a new epoch: commands of its former life must not land later (K4). Returns whether
/// anything has changed.
async fn follow_boot(context: &Context, volume: &MeshStorVolume) -> Result<bool, ControlError> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let attachment = &volume.spec.attachment;
    if mutant::on(Mutant::SameEpochAfterReboot) {
        return Ok(false);
    }
    let Some(consumer) = attachment.consumer.as_ref().filter(|consumer| names::is_node_name(consumer)) else {
        return Ok(false);
    };
    let node = context.writer.get::<MeshStorNode>(consumer).await?;
    let boot = node.and_then(|node| node.status).map(|status| status.boot_id).filter(|boot| !boot.is_empty());
    // Only what a node itself says of its boot counts; silence says nothing.
    let Some(boot) = boot.filter(|boot| attachment.consumer_boot.as_ref() != Some(boot)) else { return Ok(false) };
    let epoch = attachment.epoch + 1;
    let since = attachment.since.clone();
    let new = Attachment { epoch, consumer: Some(consumer.clone()), consumer_boot: Some(boot.clone()), since };
    let patch = patch::attachment(volume, &new)?;
    match context.writer.patch::<MeshStorVolume>(name, Endpoint::Main, patch).await {
        Ok(()) => {
            telemetry::epoch(EpochCause::Reboot);
            tracing::info!(volume = %name, node = %consumer, %boot, epoch, "new epoch after a reboot");
            Ok(true)
        }
        Err(error) if error.is_stale() => Ok(true),
        Err(error) => Err(error),
    }
}

/// Writes the controller's conditions if they have changed.
async fn report(
    context: &Context,
    volume: &MeshStorVolume,
    record: Result<&VolumeRecord, String>,
) -> Result<Next, ControlError> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let attached_for = attached_for(context, volume);
    // The clock of a takeover that waits gives no hint.
    let waits = record.as_ref().is_ok_and(|record| decide::takeover_waits(record));
    let left = decide::TAKEOVER_PATIENCE.saturating_sub(attached_for);
    let rest = if waits && !left.is_zero() { Next::After(left.max(context.config.poll)) } else { Next::Rest };
    let changed = decide::conditions(volume, record, attached_for, &context.timestamp());
    let Some(patch) = patch::volume_conditions(volume, &changed)? else { return Ok(rest) };
    match context.writer.patch::<MeshStorVolume>(name, Endpoint::Status, patch).await {
        Ok(()) => {
            context.tell(volume, &changed).await;
            Ok(rest)
        }
        Err(error) if error.is_stale() => Ok(Next::After(context.config.poll)),
        Err(error) => Err(error),
    }
}

/// How long the consumer has been one; for ever when that is not told.
fn attached_for(context: &Context, volume: &MeshStorVolume) -> Duration {
    let since: Option<Timestamp> = volume.spec.attachment.since.as_ref().and_then(|since| since.parse().ok());
    since.map_or(Duration::MAX, |since| context.since(since))
}
