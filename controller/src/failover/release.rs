//! What follows once a node's volumes may be fenced: the node is marked, its pods are deleted, its volumes detach, and when it
//! is back and clean the mark goes.
//!
//! Called by the fail-over loop. Every step is decided anew from objects: the mark on the node, the volumes still attached to it,
//! the fences of their copies. A pod is deleted only when everything that it has to lose is ours and fenced, and only this very
//! pod (`preconditions.uid`): two controllers cannot delete its replacement. The out-of-service taint is never set: it would
//! detach other drivers' volumes, for which nobody has fenced anything.

use super::Context;
use crate::error::ControlError;
use crate::writer::{FIELD_MANAGER, failed};
use json_patch::Patch as Operations;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, Pod, Taint};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use meshstor_api::convert;
use meshstor_api::replica::MeshStorReplica;
use meshstor_api::tell::Told;
use meshstor_api::volume::MeshStorVolume;
use meshstor_plan::failover::{Claim, may_release};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// Keeps pods off a node whose volumes are being taken over: it counts as ready for up to 50 s more (the controller manager's
/// `node-monitor-grace-period`), and a StatefulSet's pod would be placed on it again.
pub(crate) const TAINT: &str = "meshstor.io/unreachable";
/// Marks are looked for this often when none is known: another controller may have set one.
const LOOK_FOR_MARKS: Duration = Duration::from_secs(30);

/// The nodes that are marked, as far as is known.
#[derive(Debug, Default)]
pub(super) struct Marked {
    known: BTreeSet<String>,
    looked: Option<Instant>,
}

fn nodes(context: &Context) -> Api<Node> {
    Api::all(context.writer.client())
}

fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

fn is_marked(node: &Node) -> bool {
    taints(node).iter().any(|taint| taint.key == TAINT)
}

/// Sets the mark.
pub(super) async fn mark(context: &Context, name: &str) -> Result<(), ControlError> {
    let Some(node) = context.writer.ask(&format!("node {name}"), nodes(context).get_opt(name)).await? else {
        return Ok(());
    };
    if is_marked(&node) {
        return Ok(());
    }
    let mut wanted = taints(&node).to_vec();
    wanted.push(Taint { key: TAINT.into(), effect: "NoSchedule".into(), ..Taint::default() });
    set_taints(context, &node, &wanted).await
}

/// Compare-and-swap on the whole list: others set and take taints as well.
async fn set_taints(context: &Context, node: &Node, wanted: &[Taint]) -> Result<(), ControlError> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let operations = json!([
        {"op": "test", "path": "/metadata/resourceVersion", "value": node.metadata.resource_version},
        {"op": "add", "path": "/spec/taints", "value": wanted},
    ]);
    let patch = json_patch(name, operations)?;
    context.writer.ask(&format!("taints of node {name}"), nodes(context).patch(name, &params(), &patch)).await.map(drop)
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() }
}

fn json_patch(name: &str, operations: serde_json::Value) -> Result<Patch<()>, ControlError> {
    let operations: Operations =
        serde_json::from_value(operations).map_err(|error| failed(name, kube::Error::SerdeError(error)))?;
    Ok(Patch::Json(operations))
}

/// One step for every marked node.
pub(super) async fn step(context: &Context, patience: Duration, marked: &mut Marked) -> Result<(), ControlError> {
    let (_, quiet) = context.signs.all(patience);
    if quiet.is_empty() && marked.known.is_empty() && marked.looked.is_some_and(|at| at.elapsed() < LOOK_FOR_MARKS) {
        return Ok(());
    }
    let list = context.writer.ask("list of nodes", nodes(context).list(&ListParams::default())).await?;
    marked.looked = Some(Instant::now());
    let found: Vec<Node> = list.items.into_iter().filter(is_marked).collect();
    marked.known = found.iter().filter_map(|node| node.metadata.name.clone()).collect();
    for node in &found {
        let name = node.metadata.name.clone().unwrap_or_default();
        let left = release(context, &name, node).await?;
        if !left && !quiet.contains(&name) && clean(context, &name).await? {
            let others: Vec<Taint> = taints(node).iter().filter(|taint| taint.key != TAINT).cloned().collect();
            set_taints(context, node, &others).await?;
            tracing::info!(node = name, "it is back, and holds nothing that was taken over: pods may come again");
        }
    }
    Ok(())
}

/// A volume of ours that is attached to a marked node.
struct Attached {
    volume: MeshStorVolume,
    handle: String,
    state: Claim,
    /// What proves that it is fenced, for people.
    evidence: String,
}

/// Deletes the pods that may go, and lets the volumes that nobody uses any more detach. Returns whether anything of ours
/// is still attached that has been taken away from the node.
async fn release(context: &Context, name: &str, node: &Node) -> Result<bool, ControlError> {
    let attached = attached(context, name).await?;
    if attached.values().all(|one| one.state != Claim::Fenced) {
        return Ok(false);
    }
    let pods: Api<Pod> = Api::all(context.writer.client());
    let here = ListParams::default().fields(&format!("spec.nodeName={name}"));
    let pods = context.writer.ask(&format!("pods on node {name}"), pods.list(&here)).await?;
    let mut in_use = BTreeSet::new();
    for pod in &pods.items {
        let claims = claims(pod);
        let state = |claim: &Option<(String, String)>| {
            claim.as_ref().and_then(|claim| attached.get(claim)).map_or(Claim::Foreign, |one| one.state)
        };
        let states: Vec<Claim> = claims.iter().map(state).collect();
        if may_release(&states) == Some(true) {
            delete(context, pod).await?;
            for one in claims.iter().flatten().filter_map(|claim| attached.get(claim)) {
                tell(context, name, pod, one).await;
            }
        } else {
            in_use.extend(claims.into_iter().flatten());
        }
    }
    for (_, one) in attached.iter().filter(|(claim, one)| one.state == Claim::Fenced && !in_use.contains(*claim)) {
        not_in_use(context, name, node, &one.handle).await?;
    }
    Ok(true)
}

/// Our volumes that are attached to a node by Kubernetes' word, by the claim that they are bound to.
async fn attached(context: &Context, node: &str) -> Result<BTreeMap<(String, String), Attached>, ControlError> {
    let client = context.writer.client();
    let attachments: Api<VolumeAttachment> = Api::all(client.clone());
    let list = context.writer.ask("list of volume attachments", attachments.list(&ListParams::default())).await?;
    let ours = list.items.into_iter().filter(|a| a.spec.attacher == meshstor_api::DRIVER && a.spec.node_name == node);
    let volumes: Api<PersistentVolume> = Api::all(client);
    let mut found = BTreeMap::new();
    for name in ours.filter_map(|attachment| attachment.spec.source.persistent_volume_name) {
        let pv = context.writer.ask(&format!("persistent volume {name}"), volumes.get_opt(&name)).await?;
        let Some(spec) = pv.and_then(|pv| pv.spec) else { continue };
        let (Some(csi), Some(claim)) = (spec.csi, spec.claim_ref) else { continue };
        let (Some(namespace), Some(claim)) = (claim.namespace, claim.name) else { continue };
        let Some((volume, replicas)) = context.writer.look(&csi.volume_handle).await? else { continue };
        let (state, evidence) = fenced(context, node, &volume, &replicas).await?;
        found.insert((namespace, claim), Attached { volume, handle: csi.volume_handle, state, evidence });
    }
    Ok(found)
}

/// Whether a volume was taken away from a node, and a complete copy is fenced for that.
async fn fenced(
    context: &Context,
    node: &str,
    volume: &MeshStorVolume,
    replicas: &[MeshStorReplica],
) -> Result<(Claim, String), ControlError> {
    let record = convert::volume_record(volume, replicas, context.writer.cluster().await?)?;
    if record.consumer.as_ref().is_some_and(|consumer| consumer.0 == node) {
        return Ok((Claim::Unfenced, String::new()));
    }
    let set = record.in_sync.clone().unwrap_or_default();
    let fenced = set.iter().filter(|r| record.replicas.get(r).is_some_and(|copy| copy.fenced_epoch >= record.epoch));
    let fenced = fenced.count();
    let evidence = format!("fenced: {fenced}/{} in-sync copies at epoch {}", set.len(), record.epoch);
    Ok((if fenced > 0 { Claim::Fenced } else { Claim::Unfenced }, evidence))
}

/// The claims of a pod; `None` for a volume that is none, and may be written to from elsewhere.
fn claims(pod: &Pod) -> Vec<Option<(String, String)>> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let name = pod.metadata.name.clone().unwrap_or_default();
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.clone()).unwrap_or_default();
    let claim = |volume: &k8s_openapi::api::core::v1::Volume| {
        if let Some(claim) = &volume.persistent_volume_claim {
            return Some(Some((namespace.clone(), claim.claim_name.clone())));
        }
        if volume.ephemeral.is_some() {
            return Some(Some((namespace.clone(), format!("{name}-{}", volume.name))));
        }
        // These live and die with the pod or the node, or are read only.
        let harmless = volume.empty_dir.is_some()
            || volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.projected.is_some()
            || volume.downward_api.is_some()
            || volume.host_path.is_some()
            || volume.image.is_some();
        (!harmless).then_some(None)
    };
    volumes.iter().filter_map(claim).collect()
}

/// This very pod, at once.
async fn delete(context: &Context, pod: &Pod) -> Result<(), ControlError> {
    let (name, namespace) = (pod.metadata.name.clone().unwrap_or_default(), pod.metadata.namespace.clone());
    let api: Api<Pod> = Api::namespaced(context.writer.client(), namespace.as_deref().unwrap_or_default());
    let preconditions = Preconditions { uid: pod.metadata.uid.clone(), ..Preconditions::default() };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default().grace_period(0) };
    match context.writer.ask(&format!("deletion of pod {name}"), api.delete(&name, &params)).await {
        Ok(_) => Ok(()),
        // Gone, or another pod has its name.
        Err(error) if matches!(error.refused_with(), Some(404 | 409)) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn tell(context: &Context, node: &str, pod: &Pod, one: &Attached) {
    let (name, namespace) = (pod.metadata.name.as_deref(), pod.metadata.namespace.as_deref());
    let note = format!(
        "node {node} gives no sign of life and no copy is connected to it; {}; pod {}/{} deleted",
        one.evidence,
        namespace.unwrap_or_default(),
        name.unwrap_or_default(),
    );
    tracing::warn!(volume = one.handle, note, "failed over");
    let told = Told { warning: true, reason: "FailedOver".into(), note };
    context.teller.tell::<MeshStorVolume>(&one.handle, one.volume.metadata.uid.clone(), &[told]).await;
}

/// Takes our volume out of what the node is said to use: its kubelet is not there to do it, and the attach-detach controller
/// waits six minutes for it.
async fn not_in_use(context: &Context, name: &str, node: &Node, handle: &str) -> Result<(), ControlError> {
    let entry = format!("kubernetes.io/csi/{}^{handle}", meshstor_api::DRIVER);
    let used = node.status.as_ref().and_then(|status| status.volumes_in_use.clone()).unwrap_or_default();
    let Some(at) = used.iter().position(|one| *one == entry) else { return Ok(()) };
    let path = format!("/status/volumesInUse/{at}");
    let operations = json!([{"op": "test", "path": path, "value": entry}, {"op": "remove", "path": path}]);
    let patch = json_patch(name, operations)?;
    let sent = context.writer.ask(&format!("node {name}"), nodes(context).patch_status(name, &params(), &patch)).await;
    // Refused: the list has changed; the next look shows how.
    sent.map(drop).or_else(|error| if matches!(error.refused_with(), Some(409 | 422)) { Ok(()) } else { Err(error) })
}

/// Whether everything on a node that came back is of the present: its copies are fenced for the epochs that are recorded, which
/// they are only when no array of an older one holds them.
async fn clean(context: &Context, node: &str) -> Result<bool, ControlError> {
    let replicas = context.writer.list::<MeshStorReplica>().await?;
    let here = replicas.iter().filter(|copy| copy.spec.node == node && copy.spec.tombstone.is_none());
    let behind =
        |copy: &MeshStorReplica| copy.status.as_ref().is_none_or(|status| status.fenced_epoch < copy.spec.export.epoch);
    Ok(!here.clone().any(behind))
}
