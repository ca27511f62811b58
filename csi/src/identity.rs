//! The Identity service: who this driver is, what it can do, whether it is ready.
//!
//! Served next to the Controller and next to the Node service. Ready means that calls have a chance: the caller of
//! [`Identity::new`] decides, and for the controller it is "the API server answers" (K8). It never reports the health
//! of volumes here: a liveness probe would then restart us for what a restart cannot mend.

use tonic::{Request, Response, Status, async_trait};

use crate::DRIVER_NAME;
use crate::proto::identity_server::{Identity as IdentityService, IdentityServer};
use crate::proto::plugin_capability::{Service, Type, VolumeExpansion, service, volume_expansion};
use crate::proto::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse,
};

/// What Probe asks. Any closure `Fn() -> Readiness` is one.
pub trait Probe: Send + Sync + 'static {
    /// Answers at once, from what is known already.
    fn readiness(&self) -> Readiness;
}

/// Whether calls have a chance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// They have.
    Ready,
    /// Not at the moment: asking again later is right.
    NotReady,
    /// Not before somebody does something; the sentence says what (FAILED_PRECONDITION).
    Unhealthy(String),
}

impl<F> Probe for F
where
    F: Fn() -> Readiness + Send + Sync + 'static,
{
    fn readiness(&self) -> Readiness {
        self()
    }
}

/// The Identity service.
#[derive(Debug)]
pub struct Identity<P> {
    probe: P,
}

impl<P: Probe> Identity<P> {
    /// An identity that answers Probe from `probe`.
    pub fn new(probe: P) -> Self {
        Self { probe }
    }

    /// As a service for [`crate::server::Bound::serve`].
    pub fn into_server(self) -> IdentityServer<Self> {
        IdentityServer::new(self)
    }
}

#[async_trait]
impl<P: Probe> IdentityService for Identity<P> {
    async fn get_plugin_info(
        &self,
        _request: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: DRIVER_NAME.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _request: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let service = |kind: service::Type| Type::Service(Service { r#type: kind.into() });
        let online = VolumeExpansion { r#type: volume_expansion::Type::Online.into() };
        let capabilities = [
            service(service::Type::ControllerService),
            service(service::Type::VolumeAccessibilityConstraints),
            Type::VolumeExpansion(online),
        ];
        let capabilities = capabilities.map(|capability| PluginCapability { r#type: Some(capability) }).to_vec();
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, _request: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        match self.probe.readiness() {
            Readiness::Ready => Ok(Response::new(ProbeResponse { ready: Some(true) })),
            Readiness::NotReady => Ok(Response::new(ProbeResponse { ready: Some(false) })),
            Readiness::Unhealthy(sentence) => Err(Status::failed_precondition(sentence)),
        }
    }
}
