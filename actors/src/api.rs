//! The record as the API server holds it now: quorum reads and compare-and-swaps with short timeouts.
//!
//! Called by the worlds and the status writer, on the actor thread. It never reads from a cache, never retries, and
//! never decides: an answer that does not come is a [`Failure`], and the plans know what may be done without it.

use crate::events;
use crate::failure::Failure;
use kube::api::{Api, ListParams, Patch, PatchParams};
use meshstor_api::patch::{self, CasError};
use meshstor_api::{MeshStorNodeDevice, MeshStorReplica, MeshStorVolume};
use meshstor_kernel::id::{NodeName, VolumeId};
use meshstor_kernel::mutant::{self, Mutant};
use meshstor_kernel::ops::Changed;
use meshstor_plan::record::RecordOp;
use serde::de::DeserializeOwned;
use std::cell::Cell;
use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;
use tokio::time::Instant;

/// Field manager of every write of a node agent.
pub const MANAGER: &str = "meshstor-node";
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long while the server has just failed to answer: rounds that can do without it must not be slow.
const PATIENCE_DOWN: Duration = Duration::from_millis(500);
/// How long a failure makes us impatient.
const DOWN_FOR: Duration = Duration::from_secs(10);

/// The API server, as one node agent sees it.
pub struct Server {
    client: kube::Client,
    failed_at: Cell<Option<Instant>>,
}

impl Server {
    /// The server behind this client.
    pub fn new(client: kube::Client) -> Server {
        Server { client, failed_at: Cell::new(None) }
    }

    /// The client, for kinds that have no method here.
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// Whether the last request was answered, or none was made yet.
    pub fn reachable(&self) -> bool {
        self.failed_at.get().is_none()
    }

    /// One object of a cluster-wide kind; `None` when the server says that it does not exist.
    pub async fn get<K>(&self, name: &str) -> Result<Option<K>, Failure>
    where
        K: kube::Resource<Scope = kube::core::ClusterResourceScope, DynamicType = ()>,
        K: Clone + Debug + DeserializeOwned,
    {
        let api: Api<K> = Api::all(self.client.clone());
        self.ask(|| format!("reading {} {name}", K::kind(&())), api.get_opt(name)).await
    }

    /// The name of the object of a volume that is known by its identity alone; `None` when the server has no such volume.
    pub async fn name_of(&self, volume: VolumeId) -> Result<Option<String>, Failure> {
        let api: Api<MeshStorVolume> = Api::all(self.client.clone());
        let params = ListParams::default().fields(&format!("spec.volumeID={volume}"));
        let list = self.ask(|| format!("looking for volume {volume}"), api.list(&params)).await?;
        Ok(list.items.into_iter().find_map(|object| object.metadata.name))
    }

    /// All replicas of a volume.
    pub async fn replicas_of(&self, volume: &str) -> Result<Vec<MeshStorReplica>, Failure> {
        self.replicas_where(format!("spec.volume={volume}")).await
    }

    /// All replicas on a node.
    pub async fn replicas_on(&self, node: &str) -> Result<Vec<MeshStorReplica>, Failure> {
        self.replicas_where(format!("spec.node={node}")).await
    }

    /// All drives of a node.
    pub async fn devices_on(&self, node: &str) -> Result<Vec<MeshStorNodeDevice>, Failure> {
        let api: Api<MeshStorNodeDevice> = Api::all(self.client.clone());
        let params = ListParams::default().fields(&format!("spec.node={node}"));
        let list = self.ask(|| format!("listing drives of {node}"), api.list(&params)).await?;
        Ok(list.items)
    }

    async fn replicas_where(&self, fields: String) -> Result<Vec<MeshStorReplica>, Failure> {
        let api: Api<MeshStorReplica> = Api::all(self.client.clone());
        let params = ListParams::default().fields(&fields);
        let list = self.ask(|| format!("listing replicas with {fields}"), api.list(&params)).await?;
        Ok(list.items)
    }

    /// Does a compare-and-swap on the record. `stored` is the object on which the decision was made.
    pub async fn compare_and_swap(&self, op: &RecordOp, stored: &MeshStorVolume) -> Result<Changed, Failure> {
        let name = &op.expect.name;
        let refused = |error: String| Failure::Refused { what: op.to_string(), error };
        let patch = patch::record(op, stored).map_err(|error| refused(error.to_string()))?;
        let api: Api<MeshStorVolume> = Api::all(self.client.clone());
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        let patch: Patch<()> = Patch::Json(patch);
        let sent = api.patch_status(name, &params, &patch);
        let answer = match tokio::time::timeout(PATIENCE, sent).await {
            Ok(Ok(_)) => Ok(Changed::Yes),
            Ok(Err(error)) => Err(match CasError::from_kube(name, error) {
                CasError::Refused(_) | CasError::Missing { .. } => Failure::Raced { what: op.to_string() },
                CasError::Forbidden(error) => refused(error.to_string()),
                CasError::Api { source, .. } => Failure::Api { what: op.to_string(), error: source.to_string() },
            }),
            Err(_elapsed) => Err(silent(&op.to_string(), PATIENCE)),
        };
        self.heard(!matches!(answer, Err(Failure::Api { .. })));
        if mutant::on(Mutant::BlindRetry) && matches!(answer, Err(Failure::Raced { .. })) {
            return self.again_blindly(op).await;
        }
        answer
    }

    /// Drafts the same change against the object as it is now: what [`Mutant::BlindRetry`] does.
    async fn again_blindly(&self, op: &RecordOp) -> Result<Changed, Failure> {
        let raced = || Failure::Raced { what: op.to_string() };
        let newer: MeshStorVolume = self.get(&op.expect.name).await?.ok_or_else(raced)?;
        let mut op = op.clone();
        op.expect.epoch = newer.spec.attachment.epoch;
        op.expect.consumer = newer.spec.attachment.consumer.clone().map(NodeName);
        let set = newer.status.as_ref().and_then(|status| status.in_sync.clone());
        op.expect.in_sync = set.map(|set| set.iter().filter_map(|text| text.parse().ok()).collect());
        let patch = patch::record(&op, &newer).map_err(|_| raced())?;
        let api: Api<MeshStorVolume> = Api::all(self.client.clone());
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        let patch: Patch<()> = Patch::Json(patch);
        let sent = tokio::time::timeout(PATIENCE, api.patch_status(&op.expect.name, &params, &patch)).await;
        sent.map_err(|_| raced())?.map(|_| Changed::Yes).map_err(|_| raced())
    }

    /// Awaits an answer for as long as is reasonable now.
    pub async fn ask<T>(
        &self,
        what: impl Fn() -> String,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Failure> {
        let failed_lately = self.failed_at.get().is_some_and(|at| at.elapsed() < DOWN_FOR);
        let patience = if failed_lately { PATIENCE_DOWN } else { PATIENCE };
        let answer = match tokio::time::timeout(patience, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(failure(what(), error)),
            Err(_elapsed) => Err(silent(&what(), patience)),
        };
        self.heard(!matches!(answer, Err(Failure::Api { .. })));
        answer
    }

    fn heard(&self, answered: bool) {
        let was = self.reachable();
        if answered {
            self.failed_at.set(None);
        } else if was {
            self.failed_at.set(Some(Instant::now()));
        } else if self.failed_at.get().is_some_and(|at| at.elapsed() >= DOWN_FOR) {
            // One patient request in a while, so that a slow server is not taken for a dead one for ever.
            self.failed_at.set(Some(Instant::now()));
        }
        if was != answered {
            events::api_reachable(answered);
        }
    }
}

fn silent(what: &str, patience: Duration) -> Failure {
    Failure::Api { what: what.to_string(), error: format!("no answer within {} ms", patience.as_millis()) }
}

/// What a client's error means for the one who asked.
pub fn failure(what: String, error: kube::Error) -> Failure {
    match error {
        // The server answered, and will answer the same again.
        kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 429 && status.code != 408 => {
            match status.code {
                409 => Failure::Raced { what },
                _ => Failure::Refused { what, error: status.message.clone() },
            }
        }
        other => Failure::Api { what, error: other.to_string() },
    }
}
