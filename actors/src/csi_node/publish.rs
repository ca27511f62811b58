//! Publishing into pods: a bind of a living staging mount, or of the device of a raw block volume. A dead one is staged again first, because kubelet may skip
//! NodeStageVolume when it believes the device is still mounted (K4.3); so is one of an earlier attachment.

use super::usage::Usage;
use super::{Inner, stage, text};
use crate::csi_codes;
use crate::failure::Failure;
use crate::node::messages::{BindVolume, Bound, Mounted, Unbind};
use meshstor_csi::proto::volume_usage::Unit;
use meshstor_csi::proto::{VolumeCondition, VolumeUsage};
use meshstor_csi::request::{NodePublishVolume, NodeStageVolume};
use tonic::Status;

/// Binds the volume to the pod's path.
pub(super) async fn publish(inner: &Inner, key: &str, request: &NodePublishVolume) -> Result<(), Status> {
    let source = text(&request.staging_target_path)?;
    let source = Some(source).filter(|_| !request.capability.is_block());
    let target = text(&request.target_path)?;
    let (read_only, alone) = (request.readonly, request.capability.mode.is_exclusive());
    let wish = |volume| BindVolume { volume, source: source.clone(), target: target.clone(), read_only, alone };
    let staged = || inner.staged(&request.volume_id, &request.staging_target_path, &request.capability);
    // Twice: the staging mount may die between the look and the bind.
    for _ in 0..2 {
        let mounted = staged().await?;
        let Some(mounted) = mounted.filter(|mounted| stage::current(mounted, request.publish_context)) else {
            stage::stage(inner, key, &stage_again(request)).await?;
            continue;
        };
        let answer: Result<Bound, Failure> = inner.ask(wish(mounted.volume)).await?;
        match answer.map_err(|failure| csi_codes::status(&failure))? {
            Bound::Done => return Ok(()),
            Bound::NotStaged => stage::stage(inner, key, &stage_again(request)).await?,
            Bound::Occupied(by) => {
                let path = request.target_path.display();
                return Err(Status::failed_precondition(format!("{path} is taken: {by} is mounted there")));
            }
            Bound::Elsewhere(at) => return Err(not_alone(request, &at)),
        }
    }
    // After a stage that succeeded: once more, for the answer.
    let Some(mounted) = staged().await?.filter(|mounted| mounted.alive) else {
        return Err(Status::unavailable(format!("{}: its staging mount keeps failing; ask again", request.volume_id)));
    };
    let answer: Result<Bound, Failure> = inner.ask(wish(mounted.volume)).await?;
    match answer.map_err(|failure| csi_codes::status(&failure))? {
        Bound::Done => Ok(()),
        Bound::Elsewhere(at) => Err(not_alone(request, &at)),
        Bound::NotStaged | Bound::Occupied(_) => {
            Err(Status::unavailable(format!("{}: its mounts keep changing; ask again", request.volume_id)))
        }
    }
}

/// The code that the CSI specification has for a second place of a volume with one writer.
fn not_alone(request: &NodePublishVolume, at: &str) -> Status {
    let volume = &request.volume_id;
    Status::failed_precondition(format!(
        "{volume} is published at {at}: its access mode is SINGLE_NODE_SINGLE_WRITER, allowed is one place at a time"
    ))
}

fn stage_again(request: &NodePublishVolume) -> NodeStageVolume {
    NodeStageVolume {
        volume_id: request.volume_id.clone(),
        staging_target_path: request.staging_target_path.clone(),
        capability: request.capability.clone(),
        publish_context: request.publish_context,
        volume_context: request.volume_context.clone(),
    }
}

/// Has nothing of ours mounted at the pod's path.
pub(super) async fn unpublish(inner: &Inner, target: String) -> Result<(), Status> {
    let answer: Result<(), Failure> = inner.ask(Unbind { target }).await?;
    answer.map_err(|failure| csi_codes::status(&failure))
}

/// Whether somebody should look at a volume, as CSI reports it.
pub(super) fn condition(mounted: &Mounted) -> VolumeCondition {
    let said = |abnormal: bool, message: &str| VolumeCondition { abnormal, message: message.to_string() };
    let dead = if mounted.raw { "the device is gone" } else { "the file system does not answer" };
    match &mounted.health {
        Some(health) if !mounted.alive && health.abnormal => said(true, &format!("{dead}; {}", health.message)),
        _ if !mounted.alive => said(true, dead),
        Some(health) => said(health.abnormal, &health.message),
        // The agent has just started and looks at everything; the mount itself answers.
        None => said(false, "this node has not looked at it yet"),
    }
}

/// As CSI reports it.
pub(super) fn usage(usage: &Usage) -> Vec<VolumeUsage> {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let entry = |(total, used, available): (u64, u64, u64), unit: Unit| VolumeUsage {
        total: number(total),
        used: number(used),
        available: number(available),
        unit: unit.into(),
    };
    vec![entry(usage.bytes, Unit::Bytes), entry(usage.inodes, Unit::Inodes)]
}

/// Where nothing but the array's size is known.
pub(super) fn size_alone(bytes: u64) -> Vec<VolumeUsage> {
    let total = i64::try_from(bytes).unwrap_or(i64::MAX);
    vec![VolumeUsage { total, unit: Unit::Bytes.into(), ..VolumeUsage::default() }]
}
