//! Carries a volume's attachment to its copies: `msrep.spec.export` follows `msvol.spec.attachment`.
//!
//! Called by ControllerPublish, after ControllerUnpublish, and by the loop. Replica nodes watch only their own
//! MeshStorReplicas (K5), so this is how they learn whom to fence and whom to serve.

use crate::Context;
use crate::decide;
use crate::error::ControlError;
use crate::writer::Endpoint;
use meshstor_api::patch;
use meshstor_api::replica::MeshStorReplica;
use meshstor_api::volume::MeshStorVolume;
use meshstor_plan::record::VolumeRecord;

/// Brings every copy up to date. Returns whether anything was changed, or has changed meanwhile: look again then.
///
/// All copies are tried even if one of them fails; the first error is reported.
pub(crate) async fn push(
    context: &Context,
    volume: &MeshStorVolume,
    record: &VolumeRecord,
    replicas: &[MeshStorReplica],
) -> Result<bool, ControlError> {
    let stale = replicas.iter().filter(|replica| decide::belongs(volume, replica)).filter_map(|replica| {
        let export = decide::wanted_export(volume, record, replica)?;
        Some((replica, export))
    });
    let sent = futures::future::join_all(stale.map(|(replica, export)| async move {
        let name = replica.metadata.name.as_deref().unwrap_or_default();
        let patch = patch::export(replica, &export)?;
        context.writer.patch::<MeshStorReplica>(name, Endpoint::Main, patch).await
    }));
    let mut changed = false;
    let mut failure = None;
    for result in sent.await {
        changed = true;
        match result {
            // Refused: another controller was faster, or the copy is gone; the next look shows it.
            Err(error) if !error.is_stale() => failure = failure.or(Some(error)),
            Ok(()) | Err(_) => {}
        }
    }
    failure.map_or(Ok(changed), Err)
}
