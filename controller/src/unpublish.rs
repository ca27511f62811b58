//! ControllerUnpublishVolume: ends a node's time as the consumer by raising the epoch (docs/protocol.md, rule 4, K3).
//!
//! Called by the CSI service. It answers as soon as the new epoch is durable: fences run afterwards, and a node that is
//! dead never answers. It never waits for a copy, and works for volumes whose record is lost.

use crate::Context;
use crate::error::ControlError;
use crate::exports;
use crate::names;
use crate::telemetry::{self, EpochCause};
use crate::writer::Endpoint;
use meshstor_api::volume::{Attachment, MeshStorVolume};
use meshstor_api::{convert, patch};
use std::sync::Arc;
use tonic::Status;

/// Refusals in a row after which the caller is asked to come back.
const LOOKS_MAX: usize = 16;

/// Detaches `volume` from `node`, or from whichever node has it.
pub(crate) async fn unpublish(context: Arc<Context>, volume: String, node: Option<String>) -> Result<(), Status> {
    if !names::is_object_name(&volume) {
        return Ok(());
    }
    let mut first = None;
    for _ in 0..LOOKS_MAX {
        let Some(found) = context.writer.get::<MeshStorVolume>(&volume).await? else { return Ok(()) };
        let attachment = &found.spec.attachment;
        let Some(consumer) = &attachment.consumer else { return Ok(()) };
        if node.as_ref().is_some_and(|node| node != consumer) {
            return Ok(());
        }
        // A delayed call must not end an attachment that began after it (F19).
        let epoch = *first.get_or_insert(attachment.epoch);
        if epoch != attachment.epoch {
            let now = attachment.epoch;
            return Err(Status::aborted(format!(
                "volume {volume} went from epoch {epoch} to {now} while this call ran; ask again"
            )));
        }
        let new = Attachment { epoch: epoch + 1, consumer: None, consumer_boot: None, since: None };
        let patch = patch::attachment(&found, &new).map_err(ControlError::from)?;
        match context.writer.patch::<MeshStorVolume>(&volume, Endpoint::Main, patch).await {
            Ok(()) => {
                telemetry::epoch(EpochCause::Unpublish);
                tracing::info!(%volume, node = %consumer, epoch = epoch + 1, "unpublished");
                tokio::spawn(spread(context, volume));
                return Ok(());
            }
            Err(error) if error.is_stale() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Status::aborted(format!("volume {volume} changes too often to be unpublished; ask again")))
}

/// Tells the copies at once. If this fails the loop does it.
async fn spread(context: Arc<Context>, volume: String) {
    let attempt = async {
        let Some((found, replicas)) = context.writer.look(&volume).await? else { return Ok(()) };
        let record = convert::volume_record(&found, &replicas, context.writer.cluster().await?)?;
        exports::push(&context, &found, &record, &replicas).await.map(|_| ())
    };
    let result: Result<(), ControlError> = attempt.await;
    if let Err(error) = result {
        tracing::debug!(%volume, %error, "left to the loop");
    }
}
