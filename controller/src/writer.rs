//! Access to the API server: quorum reads for decisions, creations, and compare-and-swap writes.
//!
//! Called by everything in this crate that reads or changes an object. Every read asks the API server for the newest
//! state (no resourceVersion), never a cache. Objects are read untyped first, so that one object somebody wrote by hand
//! cannot make a whole list unreadable. It never retries: whoever decided must look and decide again (K9).

use crate::error::ControlError;
use crate::telemetry;
use json_patch::Patch;
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, PartialObjectMeta, PatchParams, PostParams,
    Preconditions, Resource,
};
use meshstor_api::patch::CasError;
use meshstor_api::{MeshStorReplica, MeshStorVolume};
use meshstor_kernel::id::ClusterId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;
use tokio::sync::OnceCell;

/// The well-known label that names a node's zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Our name in managedFields.
pub(crate) const FIELD_MANAGER: &str = "meshstor-controller";

/// A custom resource of ours.
pub(crate) trait Kind: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone {}
impl<K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone> Kind for K {}

/// Which endpoint of an object a patch goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Main,
    Status,
}

/// What became of a creation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Creation {
    /// With this uid.
    Made(Option<String>),
    Exists,
}

/// The one way to the API server.
pub(crate) struct Writer {
    client: kube::Client,
    timeout: Duration,
    cluster: OnceCell<ClusterId>,
}

impl Writer {
    pub(crate) fn new(client: kube::Client, timeout: Duration) -> Writer {
        Writer { client, timeout, cluster: OnceCell::new() }
    }

    /// The client, for kinds that are not ours.
    pub(crate) fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// An untyped handle on one of our kinds; all of them are cluster-scoped.
    pub(crate) fn api<K: Kind>(&self) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &ApiResource::erase::<K>(&()))
    }

    /// The identity of this cluster: the uid of kube-system. Asked once; it never changes.
    pub(crate) async fn cluster(&self) -> Result<ClusterId, ControlError> {
        let ask = || async {
            let api: Api<Namespace> = Api::all(self.client.clone());
            let answer = self.in_time(api.get_metadata("kube-system")).await;
            let namespace = answer.map_err(|source| failed("namespace kube-system", source))?;
            let uid = namespace.metadata.uid.unwrap_or_default();
            uid.parse().map_err(|_| ControlError::ClusterUnknown { uid })
        };
        self.cluster.get_or_try_init(ask).await.copied()
    }

    /// Whether Kubernetes has a node of this name.
    pub(crate) async fn node_exists(&self, name: &str) -> Result<bool, ControlError> {
        Ok(self.node(name).await?.is_some())
    }

    /// Name, identity and labels of one of Kubernetes' nodes.
    pub(crate) async fn node(&self, name: &str) -> Result<Option<PartialObjectMeta<Node>>, ControlError> {
        let api: Api<Node> = Api::all(self.client.clone());
        self.in_time(api.get_metadata_opt(name)).await.map_err(|source| failed(&format!("node {name}"), source))
    }

    /// The zone of each node of Kubernetes' that has one.
    pub(crate) async fn zones(&self) -> Result<BTreeMap<String, String>, ControlError> {
        let api: Api<Node> = Api::all(self.client.clone());
        let params = ListParams::default().labels(ZONE_LABEL);
        let list = self.in_time(api.list_metadata(&params)).await.map_err(|source| failed("list of nodes", source))?;
        let zone = |node: PartialObjectMeta<Node>| {
            let zone = node.metadata.labels?.remove(ZONE_LABEL).filter(|zone| !zone.is_empty())?;
            Some((node.metadata.name?, zone))
        };
        Ok(list.items.into_iter().filter_map(zone).collect())
    }

    /// One object as it stands now; `None` when there is none.
    pub(crate) async fn get<K: Kind>(&self, name: &str) -> Result<Option<K>, ControlError> {
        let api = self.api::<K>();
        let answer = self.in_time(api.get_opt(name)).await.map_err(|source| failed(name, source))?;
        answer.map(typed).transpose()
    }

    /// The volume's copies, and what is left of copies of earlier volumes of that name.
    pub(crate) async fn replicas_of(&self, volume: &str) -> Result<Vec<MeshStorReplica>, ControlError> {
        let params = ListParams::default().fields(&format!("spec.volume={volume}"));
        self.listed::<MeshStorReplica>(&params).await?.into_iter().map(typed).collect()
    }

    /// A volume together with its copies. The copies are read first: what they have seen can then never be ahead of the
    /// volume, unless its record went back in time.
    pub(crate) async fn look(
        &self,
        name: &str,
    ) -> Result<Option<(MeshStorVolume, Vec<MeshStorReplica>)>, ControlError> {
        let replicas = self.replicas_of(name).await?;
        Ok(self.get::<MeshStorVolume>(name).await?.map(|volume| (volume, replicas)))
    }

    /// All objects of a kind that can be read; the others are counted and logged.
    pub(crate) async fn list<K: Kind>(&self) -> Result<Vec<K>, ControlError> {
        let objects = self.listed::<K>(&ListParams::default()).await?;
        let readable = objects.into_iter().filter_map(|object| {
            let read = typed::<K>(object);
            if let Err(error) = &read {
                telemetry::unreadable(K::kind(&()).to_string());
                tracing::warn!(%error, "left out of a list");
            }
            read.ok()
        });
        Ok(readable.collect())
    }

    async fn listed<K: Kind>(&self, params: &ListParams) -> Result<Vec<DynamicObject>, ControlError> {
        let api = self.api::<K>();
        let answer = self.in_time(api.list(params)).await;
        Ok(answer.map_err(|source| failed(&format!("list of {}", K::plural(&())), source))?.items)
    }

    /// Creates an object unless its name is taken.
    pub(crate) async fn create<K: Kind>(&self, object: &K) -> Result<Creation, ControlError> {
        let name = object.meta().name.clone().unwrap_or_default();
        let encode = |error| failed(&name, kube::Error::SerdeError(error));
        let value = serde_json::to_value(object).map_err(encode)?;
        let object: DynamicObject = serde_json::from_value(value).map_err(encode)?;
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_string()), ..PostParams::default() };
        let api = self.api::<K>();
        match self.in_time(api.create(&params, &object)).await {
            Ok(made) => Ok(Creation::Made(made.metadata.uid)),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Creation::Exists),
            Err(source) => Err(failed(&name, source)),
        }
    }

    /// Sends a compare-and-swap, once.
    pub(crate) async fn patch<K: Kind>(&self, name: &str, at: Endpoint, patch: Patch) -> Result<(), ControlError> {
        let patch = kube::api::Patch::Json::<()>(patch);
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_string()), ..PatchParams::default() };
        let api = self.api::<K>();
        let answer = match at {
            Endpoint::Main => self.in_time(api.patch(name, &params, &patch)).await,
            Endpoint::Status => self.in_time(api.patch_status(name, &params, &patch)).await,
        };
        answer.map(|_| ()).map_err(|error| {
            let error = CasError::from_kube(name, error);
            if error.is_refused() {
                telemetry::cas_refused(if K::kind(&()) == "MeshStorVolume" { "volume" } else { "replica" });
                tracing::debug!(%error, "compare-and-swap refused");
            }
            ControlError::Cas(error)
        })
    }

    /// Asks for the deletion of this very object; finalizers hold it. One that is gone already is fine.
    pub(crate) async fn delete<K: Kind>(&self, object: &K) -> Result<(), ControlError> {
        let name = object.meta().name.clone().unwrap_or_default();
        let preconditions = Preconditions { uid: object.meta().uid.clone(), ..Preconditions::default() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let api = self.api::<K>();
        match self.in_time(api.delete(&name, &params)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(ControlError::Cas(CasError::from_kube(&name, error))),
        }
    }

    /// A request about a kind that is not ours.
    pub(crate) async fn ask<T>(
        &self,
        what: &str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ControlError> {
        self.in_time(request).await.map_err(|source| failed(what, source))
    }

    /// A request without an answer must not hold a call for ever.
    async fn in_time<T>(&self, request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
        match tokio::time::timeout(self.timeout, request).await {
            Ok(answer) => answer,
            Err(elapsed) => Err(kube::Error::Service(Box::new(elapsed))),
        }
    }
}

pub(crate) fn failed(what: &str, source: kube::Error) -> ControlError {
    ControlError::Api { what: what.to_string(), source: Box::new(source) }
}

/// The typed form of an object as the API server sent it.
fn typed<K: Kind>(object: DynamicObject) -> Result<K, ControlError> {
    let name = object.metadata.name.clone().unwrap_or_default();
    object.try_parse().map_err(|error| ControlError::Unreadable {
        kind: K::kind(&()).to_string(),
        name,
        why: error.to_string(),
    })
}
