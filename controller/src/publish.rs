//! ControllerPublishVolume: makes a node the volume's consumer, never by taking it from another (docs/protocol.md, rule 4, K3).
//!
//! Called by the CSI service. It answers when one in-sync copy is fenced and exported for the epoch, so that the node
//! can stage at once. It never deposes a consumer: that is Unpublish's affair.

use crate::Context;
use crate::decide;
use crate::error::ControlError;
use crate::exports;
use crate::names;
use crate::telemetry::{self, EpochCause};
use crate::writer::Endpoint;
use meshstor_api::node::MeshStorNode;
use meshstor_api::replica::MeshStorReplica;
use meshstor_api::volume::{Attachment, MeshStorVolume};
use meshstor_api::{convert, patch};
use meshstor_csi::request::{Capability, ControllerPublishVolume};
use meshstor_kernel::id::Epoch;
use meshstor_kernel::mutant::{self, Mutant};
use meshstor_plan::record::VolumeRecord;
use std::sync::Arc;
use tonic::Status;

/// One call at work.
struct Publish {
    context: Arc<Context>,
    volume: String,
    node: String,
    capability: Capability,
    key: String,
    /// Epoch when the call began: if it has moved on, somebody else has decided meanwhile (F19).
    first_epoch: Option<Epoch>,
    /// The node was seen as the consumer while this call ran.
    attached: bool,
}

/// What one look led to.
enum Step {
    Done(Epoch),
    Again,
    Wait(String),
}

/// Makes `node` the consumer of `volume` and waits for the first copy. Answers the epoch.
pub(crate) async fn publish(
    context: Arc<Context>,
    request: ControllerPublishVolume,
    key: String,
) -> Result<Epoch, Status> {
    let ControllerPublishVolume { volume_id: volume, node_id: node, capability, .. } = request;
    let mut hints = context.hints.listen(&volume, context.config.poll);
    let mut call = Publish { context, volume, node, capability, key, first_epoch: None, attached: false };
    loop {
        match call.step().await? {
            Step::Done(epoch) => return Ok(epoch),
            Step::Again => hints.again().await,
            Step::Wait(sentence) => {
                call.context.awaited.say(&call.key, sentence);
                hints.wait().await;
            }
        }
    }
}

impl Publish {
    async fn step(&mut self) -> Result<Step, Status> {
        let (name, node) = (self.volume.clone(), self.node.clone());
        let missing = || Status::not_found(format!("volume_id is {name:?}: there is no such volume"));
        if !names::is_object_name(&name) {
            return Err(missing());
        }
        let (volume, replicas) = self.context.writer.look(&name).await?.ok_or_else(missing)?;
        if let Some(why) = self.capability.unfit(&volume.spec.filesystem) {
            return Err(Status::invalid_argument(why));
        }
        let record = convert::volume_record(&volume, &replicas, self.context.writer.cluster().await?);
        let record = record.map_err(ControlError::from)?;
        let refused = |why: String| Status::failed_precondition(format!("volume {name} cannot be published: {why}"));
        match record.consumer.as_ref().map(|consumer| consumer.0.as_str()) {
            Some(consumer) if consumer == node => self.attached = true,
            Some(_) if mutant::on(Mutant::PublishTakesOver) => {
                return self.attach(&volume, self.boot_of_node().await?).await;
            }
            Some(other) => {
                return Err(refused(format!(
                    "it is published to node {other}, wanted is {node}; it must be unpublished from {other} first"
                )));
            }
            None => {}
        }
        let boot = self.boot_of_node().await?;
        if let Some(why) = decide::unattachable(&volume, &record) {
            return Err(refused(why));
        }
        if let Some(reason) = decide::regressed(&volume, &replicas) {
            return Err(refused(reason.to_string()));
        }
        match record.consumer {
            Some(_) => Ok(self.wait_for_copies(&volume, &record, &replicas).await?),
            None => self.attach(&volume, boot).await,
        }
    }

    /// The boot id that the node reports, if it does; NOT_FOUND without the node.
    async fn boot_of_node(&self) -> Result<Option<String>, Status> {
        let node = &self.node;
        let unknown = || Status::not_found(format!("node_id is {node:?}: there is no MeshStorNode of that name"));
        if !names::is_node_name(node) {
            return Err(unknown());
        }
        let found = self.context.writer.get::<MeshStorNode>(node).await?.ok_or_else(unknown)?;
        Ok(found.status.map(|status| status.boot_id).filter(|boot| !boot.is_empty()))
    }

    async fn attach(&mut self, volume: &MeshStorVolume, boot: Option<String>) -> Result<Step, Status> {
        let epoch = volume.spec.attachment.epoch;
        let (name, node) = (&self.volume, &self.node);
        if self.attached {
            return Err(Status::aborted(format!(
                "volume {name} was unpublished from {node} while this call waited for its copies; ask again"
            )));
        }
        let first = *self.first_epoch.get_or_insert(epoch);
        if first != epoch {
            return Err(Status::aborted(format!(
                "volume {name} went from epoch {first} to {epoch} while this call ran; ask again"
            )));
        }
        let Some(boot) = boot else {
            return Ok(Step::Wait(format!("the boot id of node {node} is awaited (its status.bootID is empty)")));
        };
        let since = Some(self.context.timestamp());
        let new = Attachment { epoch: epoch + 1, consumer: Some(node.clone()), consumer_boot: Some(boot), since };
        let patch = patch::attachment(volume, &new).map_err(ControlError::from)?;
        match self.context.writer.patch::<MeshStorVolume>(name, Endpoint::Main, patch).await {
            Ok(()) => {
                telemetry::epoch(EpochCause::Publish);
                tracing::info!(volume = %name, %node, epoch = epoch + 1, "published");
                Ok(Step::Again)
            }
            Err(error) if error.is_stale() => Ok(Step::Again),
            Err(error) => Err(error.into()),
        }
    }

    async fn wait_for_copies(
        &self,
        volume: &MeshStorVolume,
        record: &VolumeRecord,
        replicas: &[MeshStorReplica],
    ) -> Result<Step, ControlError> {
        if !decide::usable(record).is_empty() {
            return Ok(Step::Done(record.epoch));
        }
        if exports::push(&self.context, volume, record, replicas).await? {
            return Ok(Step::Again);
        }
        Ok(Step::Wait(decide::awaited_exports(record)))
    }
}
