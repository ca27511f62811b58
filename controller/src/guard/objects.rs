//! The objects of guards: pods, budgets, and the ConfigMap that says who may go.
//!
//! Called by `guard`. All of them belong to the controller's Deployment and are collected with it: without a controller
//! nobody would ever let a node go.

use super::GuardConfig;
use crate::Context;
use crate::error::ControlError;
use crate::writer::{FIELD_MANAGER, failed};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

/// On pods and budgets: the node that they are about.
const LABEL: &str = "csi.meshstor.io/guards";
/// Who may go: a key for each node, and since when.
const LEDGER: &str = "meshstor-leave";

/// Who may go, as it was read.
pub(super) struct Ledger {
    /// Since when, by node.
    pub(super) leave: BTreeMap<String, String>,
    version: Option<String>,
}

/// Access to them.
pub(super) struct Objects<'a> {
    context: &'a Context,
    config: &'a GuardConfig,
}

fn name(node: &str) -> String {
    format!("meshstor-guard-{node}")
}

impl<'a> Objects<'a> {
    pub(super) fn new(context: &'a Context, config: &'a GuardConfig) -> Objects<'a> {
        Objects { context, config }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.context.writer.client(), &self.config.namespace)
    }

    /// The ConfigMap; an empty one where there is none.
    pub(super) async fn ledger(&self) -> Result<Ledger, ControlError> {
        let found = self.context.writer.ask(LEDGER, self.api::<ConfigMap>().get_opt(LEDGER)).await?;
        let version = found.as_ref().and_then(|map| map.metadata.resource_version.clone());
        let leave = found.and_then(|map| map.data).unwrap_or_default();
        Ok(Ledger { leave, version })
    }

    /// Writes it, unless somebody else has since it was read.
    pub(super) async fn write(&self, ledger: &mut Ledger) -> Result<(), ControlError> {
        let mut map: ConfigMap = self.object(json!({
            "metadata": {"name": LEDGER, "ownerReferences": self.owner().await?}, "data": ledger.leave,
        }))?;
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let api = self.api::<ConfigMap>();
        let written = match &ledger.version {
            None => self.context.writer.ask(LEDGER, api.create(&params, &map)).await?,
            Some(_) => {
                map.metadata.resource_version.clone_from(&ledger.version);
                self.context.writer.ask(LEDGER, api.replace(LEDGER, &params, &map)).await?
            }
        };
        ledger.version = written.metadata.resource_version;
        Ok(())
    }

    /// A budget that needs this many guards of a node to stay: 1 holds a drain up, 0 lets it go on.
    pub(super) async fn budget(&self, node: &str, stay: i32) -> Result<(), ControlError> {
        let (api, name) = (self.api::<PodDisruptionBudget>(), name(node));
        let found = self.context.writer.ask(&name, api.get_opt(&name)).await?;
        let wanted = json!({
            "metadata": {"name": name, "labels": {LABEL: node}, "ownerReferences": self.owner().await?},
            "spec": {
                "minAvailable": stay, "selector": {"matchLabels": {LABEL: node}},
                // A guard that does not run protects all the same.
                "unhealthyPodEvictionPolicy": "IfHealthyBudget",
            },
        });
        match found {
            None => self.make::<PodDisruptionBudget>(wanted).await,
            Some(budget) => {
                let has = serde_json::to_value(budget.spec.as_ref().and_then(|spec| spec.min_available.as_ref()));
                if has.is_ok_and(|has| has == stay) {
                    return Ok(());
                }
                let patch = Patch::Merge(json!({
                    "metadata": {"resourceVersion": budget.metadata.resource_version}, "spec": {"minAvailable": stay},
                }));
                let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
                self.context.writer.ask(&name, api.patch(&name, &params, &patch)).await.map(drop)
            }
        }
    }

    /// Nodes that a guard or a budget is about which is not on its way out.
    pub(super) async fn about<K>(&self) -> Result<BTreeSet<String>, ControlError>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let params = ListParams::default().labels(LABEL);
        let list = self.context.writer.ask("list of guards", self.api::<K>().list_metadata(&params)).await?;
        let stays = list.items.into_iter().filter(|one| one.metadata.deletion_timestamp.is_none());
        Ok(stays.filter_map(|one| one.metadata.labels?.remove(LABEL)).collect())
    }

    /// Puts a guard on a node.
    pub(super) async fn guard(&self, node: &str) -> Result<(), ControlError> {
        let config = self.config;
        let secrets: Vec<Value> = config.pull_secrets.iter().map(|name| json!({"name": name})).collect();
        self.make::<Pod>(json!({
            "metadata": {
                "name": name(node), "labels": {LABEL: node, "app.kubernetes.io/name": "meshstor-guard"},
                "ownerReferences": self.owner().await?,
            },
            "spec": {
                // Placed by name: the scheduler would not put it on a node that is full, and no two may be on one.
                "nodeName": node,
                "automountServiceAccountToken": false,
                "imagePullSecrets": secrets,
                "tolerations": [{"operator": "Exists"}],
                "terminationGracePeriodSeconds": 1,
                "securityContext": {
                    "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [{
                    "name": "guard", "image": config.image, "imagePullPolicy": config.pull_policy, "args": ["guard"],
                    "resources": {"requests": {"cpu": "1m", "memory": "8Mi"}, "limits": {"memory": "32Mi"}},
                    "securityContext": {
                        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
                    },
                }],
            },
        }))
        .await
    }

    /// Takes guard and budget of a node away that is not one of ours any more.
    pub(super) async fn remove(&self, node: &str) -> Result<(), ControlError> {
        let (name, params) = (name(node), DeleteParams::default());
        let pod = self.context.writer.ask(&name, self.api::<Pod>().delete(&name, &params)).await.map(drop);
        let budget = self.context.writer.ask(&name, self.api::<PodDisruptionBudget>().delete(&name, &params)).await;
        for result in [pod, budget.map(drop)] {
            result.or_else(|error| if error.refused_with() == Some(404) { Ok(()) } else { Err(error) })?;
        }
        Ok(())
    }

    /// The Deployment, as the owner of all of them. `controller`: a drain asks who will make the pod anew, and refuses pods of
    /// nobody.
    async fn owner(&self) -> Result<Value, ControlError> {
        let owner = &self.config.owner;
        let found = self.context.writer.ask(owner, self.api::<Deployment>().get_metadata(owner)).await?;
        Ok(json!([{
            "apiVersion": "apps/v1", "kind": "Deployment", "name": owner, "uid": found.metadata.uid, "controller": true,
        }]))
    }

    /// Creates an object; one that exists is as good.
    async fn make<K>(&self, object: Value) -> Result<(), ControlError>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + serde::Serialize,
    {
        let object: K = self.object(object)?;
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let name = object.meta().name.clone().unwrap_or_default();
        match self.context.writer.ask(&name, self.api::<K>().create(&params, &object)).await {
            Err(error) if error.refused_with() != Some(409) => Err(error),
            _ => Ok(()),
        }
    }

    fn object<K: DeserializeOwned>(&self, object: Value) -> Result<K, ControlError> {
        serde_json::from_value(object).map_err(|error| failed("a guard's object", kube::Error::SerdeError(error)))
    }
}
