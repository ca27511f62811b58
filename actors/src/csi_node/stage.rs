//! Staging and unstaging: a wish to the root actor, then waiting, level-triggered, for what the volume's view shows.
//!
//! Called by the handlers, and by publish when a staging mount is dead. A stage ends when an unstage supersedes it.

use super::{Inner, text};
use crate::csi_codes::{self, Verdict};
use crate::failure::Failure;
use crate::node::messages::{Mounted, StageVolume, UnstageVolume};
use crate::node::{VolumeState, VolumeView};
use kube::Api;
use meshstor_api::MeshStorVolume;
use meshstor_csi::request::{NodeStageVolume, PublishContext};
use meshstor_kernel::id::VolumeId;
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Code, Status};

/// How long the API server is given to answer.
const API_MAX: Duration = Duration::from_secs(3);
/// Pause before it is asked again.
const API_AGAIN: Duration = Duration::from_secs(1);
/// How long a reason that only people can change has to stand before the call is given up.
const FINAL_PATIENCE: Duration = Duration::from_secs(5);

/// Has a volume mounted at the staging path.
pub(super) async fn stage(inner: &Inner, key: &str, request: &NodeStageVolume) -> Result<(), Status> {
    let target = text(&request.staging_target_path)?;
    let Some(volume) = identify(inner, key, request).await? else { return Ok(()) };
    let (options, raw) = (request.capability.mount_flags().to_vec(), request.capability.is_block());
    let wish = StageVolume { name: request.volume_id.clone(), volume, target: target.clone(), options, raw };
    let staging = inner.ask(wish).await?;
    let mut view = staging.view;
    let wish = view.borrow().wish;
    let mut hopeless_since: Option<(Code, Instant)> = None;
    loop {
        let now = view.borrow_and_update().clone();
        if now.wish != wish || matches!(now.state, VolumeState::Releasing | VolumeState::Gone) {
            return Err(Status::aborted(format!("{}: something else is wanted of it by now", request.volume_id)));
        }
        if now.state == VolumeState::Staged(target.clone()) {
            return Ok(());
        }
        hopeless_since = hopeless(&now, hopeless_since);
        inner.say(key, sentence(&request.volume_id, &now));
        if let (Some((code, since)), true, Some((reason, _))) = (hopeless_since, staging.fresh, &now.waits)
            && since.elapsed() >= FINAL_PATIENCE
        {
            // A final answer, so nothing may stay behind: kubelet will not ask for an unstage.
            let sentence = format!("{}: {reason}", request.volume_id);
            unstage(inner, key, &request.volume_id, &request.staging_target_path).await?;
            return Err(Status::new(code, sentence));
        }
        // The time limit is for the patience above alone: every change of the view wakes.
        match tokio::time::timeout(FINAL_PATIENCE, view.changed()).await {
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(_closed)) => return Err(Status::unavailable("the node agent is stopping; ask again")),
        }
    }
}

/// Since when a volume waits for what only people can change, with the code for it.
fn hopeless(view: &VolumeView, since: Option<(Code, Instant)>) -> Option<(Code, Instant)> {
    let (reason, _) = view.waits.as_ref()?;
    let Verdict::Final(code) = csi_codes::verdict(reason) else { return None };
    since.filter(|(known, _)| *known == code).or_else(|| Some((code, Instant::now())))
}

fn sentence(volume: &str, view: &VolumeView) -> String {
    match &view.waits {
        Some((reason, _)) => format!("{volume}: {reason}"),
        None => format!("{volume}: its array and file system are on their way"),
    }
}

/// The volume's own identity, when it may be staged here. `None`: it is mounted and alive already in this epoch, and the API
/// server cannot be asked. Waits for an API server that does not answer.
async fn identify(inner: &Inner, key: &str, request: &NodeStageVolume) -> Result<Option<VolumeId>, Status> {
    let name = &request.volume_id;
    let api: Api<MeshStorVolume> = Api::all(inner.client.clone());
    loop {
        let error = match tokio::time::timeout(API_MAX, api.get_opt(name)).await {
            Ok(Ok(Some(object))) => match admit(&object, request) {
                Ok(volume) => return volume.map(Some),
                Err(wait) => wait,
            },
            Ok(Ok(None)) => return Err(Status::not_found(format!("{name}: there is no such volume"))),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                return Err(Status::not_found(format!("{name}: there is no such volume")));
            }
            Ok(Err(error)) => format!("the API server does not answer as it should: {error}"),
            Err(_elapsed) => "the API server does not answer".to_string(),
        };
        let mounted = inner.staged(&request.volume_id, &request.staging_target_path, &request.capability).await?;
        if mounted.is_some_and(|mounted| current(&mounted, request.publish_context)) {
            return Ok(None);
        }
        inner.say(key, format!("{name}: {error}"));
        tokio::time::sleep(API_AGAIN).await;
    }
}

/// Whether a mount is alive and of the attachment that is asked for, or of a later one: that of an earlier one may be
/// what is left of a consumer that was fenced and has not heard of it (simulator, seed 1026).
pub(super) fn current(mounted: &Mounted, context: PublishContext) -> bool {
    let epoch = mounted.view.as_ref().and_then(|view| view.epoch);
    mounted.alive && context.attach_epoch.is_some_and(|floor| epoch >= Some(floor))
}

/// The volume's identity or the refusal, or what to wait for.
fn admit(object: &MeshStorVolume, request: &NodeStageVolume) -> Result<Result<VolumeId, Status>, String> {
    let spec = &object.spec;
    if let Some(why) = request.capability.unfit(&spec.filesystem) {
        return Ok(Err(Status::invalid_argument(why)));
    }
    let (floor, epoch) = (request.publish_context.attach_epoch.unwrap_or(0), spec.attachment.epoch);
    if epoch < floor {
        return Err(format!(
            "the volume was attached here in epoch {floor}, its record says {epoch}: it went back in time; \
             see: meshstor recover"
        ));
    }
    Ok(spec.volume_id.parse().map_err(|error| Status::failed_precondition(format!("spec.volumeID: {error}"))))
}

/// Has a volume gone from this node. Works from kernel facts alone (K4).
pub(super) async fn unstage(inner: &Inner, key: &str, name: &str, target: &Path) -> Result<(), Status> {
    let wish = || Ok::<_, Status>(UnstageVolume { name: name.to_string(), target: text(target)? });
    let answer: Result<Option<watch::Receiver<VolumeView>>, Failure> = inner.ask(wish()?).await?;
    let view = answer.map_err(|failure| csi_codes::status(&failure))?;
    let Some(mut view) = view else { return Ok(()) };
    let wish = view.borrow().wish;
    loop {
        let now = view.borrow_and_update().clone();
        if now.state == VolumeState::Gone {
            return Ok(());
        }
        if now.wish != wish {
            return Err(Status::aborted(format!("{name}: something else is wanted of it by now")));
        }
        inner.say(key, sentence(name, &now));
        if view.changed().await.is_err() {
            return Err(Status::unavailable("the node agent is stopping; ask again"));
        }
    }
}
