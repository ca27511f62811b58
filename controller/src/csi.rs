//! The CSI controller service: requests read, work run once for each volume, answers held until done (K7).
//!
//! Served by every controller process on the socket beside its sidecars; it is stateless, so any of them may answer any
//! call (K8). It decides nothing: each call hands over to the file of its name.

use crate::Context;
use crate::{create, delete, expand, list, names, publish, unpublish};
use meshstor_csi::calls::note_volume;
use meshstor_csi::deadline::hold_for;
use meshstor_csi::inflight::Fingerprint;
use meshstor_csi::proto::controller_server;
use meshstor_csi::proto::controller_service_capability::{Rpc, Type, rpc};
use meshstor_csi::proto::*;
use meshstor_csi::request;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// What this controller offers.
const CAPABILITIES: [rpc::Type; 9] = [
    rpc::Type::CreateDeleteVolume,
    rpc::Type::PublishUnpublishVolume,
    rpc::Type::ListVolumes,
    rpc::Type::ListVolumesPublishedNodes,
    rpc::Type::GetCapacity,
    rpc::Type::GetVolume,
    rpc::Type::VolumeCondition,
    rpc::Type::SingleNodeMultiWriter,
    rpc::Type::ExpandVolume,
];

/// The CSI controller service. Clones share everything.
#[derive(Clone)]
pub struct ControllerService {
    context: Arc<Context>,
}

impl ControllerService {
    pub(crate) fn new(context: Arc<Context>) -> ControllerService {
        ControllerService { context }
    }

    /// Runs an operation once for all who ask for the same, and holds the answer. The operation and what it works on are
    /// the key, so that a call that waits (Publish) never keeps out the one that ends its waiting (Unpublish).
    async fn run<T, F>(
        &self,
        key: String,
        fingerprint: Fingerprint,
        hold: Option<Duration>,
        work: F,
    ) -> Result<Response<T>, Status>
    where
        T: Clone + Send + Sync + 'static,
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let end = Arc::clone(&self.context);
        let ended = key.clone();
        let work = async move {
            let result = work.await;
            end.awaited.forget(&ended);
            result
        };
        let awaited = || self.context.awaited.sentence(&key);
        self.context.inflight.run(&key, fingerprint, hold, work, awaited).await.map(Response::new)
    }

    fn context(&self) -> Arc<Context> {
        Arc::clone(&self.context)
    }
}

#[tonic::async_trait]
impl controller_server::Controller for ControllerService {
    async fn create_volume(
        &self,
        message: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let hold = hold_for(&message);
        let request = request::CreateVolume::try_from(message.get_ref())?;
        let name = names::volume(&request.name);
        note_volume(&name);
        let key = format!("CreateVolume {name}");
        let fingerprint = request.fingerprint();
        let work = create::create(self.context(), request, name, key.clone());
        let answer = async { work.await.map(|volume| CreateVolumeResponse { volume: Some(volume) }) };
        self.run(key, fingerprint, hold, answer).await
    }

    async fn delete_volume(
        &self,
        message: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let hold = hold_for(&message);
        let request = request::DeleteVolume::try_from(message.get_ref())?;
        note_volume(&request.volume_id);
        let key = format!("DeleteVolume {}", request.volume_id);
        let fingerprint = Fingerprint::of("DeleteVolume", &request);
        let work = delete::delete(self.context(), request.volume_id, key.clone());
        self.run(key, fingerprint, hold, async { work.await.map(|()| DeleteVolumeResponse {}) }).await
    }

    async fn controller_publish_volume(
        &self,
        message: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        let hold = hold_for(&message);
        let request = request::ControllerPublishVolume::try_from(message.get_ref())?;
        note_volume(&request.volume_id);
        if request.readonly {
            return Err(Status::invalid_argument(
                "readonly is true: allowed is false; use the access mode SINGLE_NODE_READER_ONLY or a read-only mount",
            ));
        }
        // The node belongs to the key: a call for another node must hear at once who has the volume.
        let key = format!("ControllerPublishVolume {} to {}", request.volume_id, request.node_id);
        let fingerprint = Fingerprint::of("ControllerPublishVolume", &(&request.volume_id, &request.node_id));
        let work = publish::publish(self.context(), request, key.clone());
        let answer = async {
            let epoch = work.await?;
            Ok(ControllerPublishVolumeResponse { publish_context: request::PublishContext::at(epoch).to_map() })
        };
        self.run(key, fingerprint, hold, answer).await
    }

    async fn controller_unpublish_volume(
        &self,
        message: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        let hold = hold_for(&message);
        let request = request::ControllerUnpublishVolume::try_from(message.get_ref())?;
        note_volume(&request.volume_id);
        let from = request.node_id.as_deref().unwrap_or("any node");
        let key = format!("ControllerUnpublishVolume {} from {from}", request.volume_id);
        let fingerprint = Fingerprint::of("ControllerUnpublishVolume", &request);
        let work = unpublish::unpublish(self.context(), request.volume_id, request.node_id);
        self.run(key, fingerprint, hold, async { work.await.map(|()| ControllerUnpublishVolumeResponse {}) }).await
    }

    async fn validate_volume_capabilities(
        &self,
        message: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let request = request::ValidateVolumeCapabilities::try_from(message.get_ref())?;
        note_volume(&request.volume_id);
        list::validate(&self.context, &request, message.into_inner()).await.map(Response::new)
    }

    async fn list_volumes(
        &self,
        message: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        let request = request::ListVolumes::try_from(message.get_ref())?;
        list::volumes(&self.context, &request).await.map(Response::new)
    }

    async fn get_capacity(
        &self,
        message: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        let request = request::GetCapacity::try_from(message.get_ref())?;
        list::capacity(&self.context, &request).await.map(Response::new)
    }

    async fn controller_get_capabilities(
        &self,
        _message: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let one =
            |kind: &rpc::Type| ControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: *kind as i32 })) };
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities: CAPABILITIES.iter().map(one).collect() }))
    }

    async fn controller_get_volume(
        &self,
        message: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        let request = request::ControllerGetVolume::try_from(message.get_ref())?;
        note_volume(&request.volume_id);
        list::volume(&self.context, &request.volume_id).await.map(Response::new)
    }

    async fn create_snapshot(
        &self,
        _message: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        Err(list::unimplemented("CreateSnapshot"))
    }

    async fn delete_snapshot(
        &self,
        _message: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        Err(list::unimplemented("DeleteSnapshot"))
    }

    async fn list_snapshots(
        &self,
        _message: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        Err(list::unimplemented("ListSnapshots"))
    }

    async fn get_snapshot(
        &self,
        _message: Request<GetSnapshotRequest>,
    ) -> Result<Response<GetSnapshotResponse>, Status> {
        Err(list::unimplemented("GetSnapshot"))
    }

    async fn controller_expand_volume(
        &self,
        message: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        let hold = hold_for(&message);
        let request = request::ControllerExpandVolume::try_from(message.get_ref())?;
        note_volume(&request.volume_id);
        let key = format!("ControllerExpandVolume {}", request.volume_id);
        let fingerprint = Fingerprint::of("ControllerExpandVolume", &request);
        let work = expand::expand(self.context(), request, key.clone());
        let answer = async {
            let capacity_bytes = i64::try_from(work.await?).unwrap_or(i64::MAX);
            // The array and what lies on it are the node's, also of a raw block volume.
            Ok(ControllerExpandVolumeResponse { capacity_bytes, node_expansion_required: true })
        };
        self.run(key, fingerprint, hold, answer).await
    }

    async fn controller_modify_volume(
        &self,
        _message: Request<ControllerModifyVolumeRequest>,
    ) -> Result<Response<ControllerModifyVolumeResponse>, Status> {
        Err(list::unimplemented("ControllerModifyVolume"))
    }
}
