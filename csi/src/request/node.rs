//! The requests of the Node service.
//!
//! Called by its handlers. Unstage and unpublish ask for nothing but an id and a path: they must work from kernel facts
//! alone, with the record gone and the API server down (K4). It never looks at the paths.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tonic::Code;

use super::capability::Capability;
use super::capacity::CapacityRange;
use super::context::PublishContext;
use super::field;
use crate::{Refusal, proto};

const CAPABILITY: &str = "volume_capability";
const STAGING: &str = "staging_target_path";

/// Assemble, format once and mount a volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeStageVolume {
    /// Which volume.
    pub volume_id: String,
    /// The directory to mount it on.
    pub staging_target_path: PathBuf,
    /// How it will be used.
    pub capability: Capability,
    /// What the attachment says.
    pub publish_context: PublishContext,
    /// What CreateVolume answered.
    pub volume_context: BTreeMap<String, String>,
}

impl TryFrom<&proto::NodeStageVolumeRequest> for NodeStageVolume {
    type Error = Refusal;

    fn try_from(message: &proto::NodeStageVolumeRequest) -> Result<Self, Refusal> {
        Ok(Self {
            volume_id: field::volume_id(&message.volume_id)?,
            staging_target_path: field::path(STAGING, &message.staging_target_path)?,
            capability: Capability::required(CAPABILITY, message.volume_capability.as_ref())?,
            publish_context: PublishContext::parse(&message.publish_context)?,
            volume_context: message.volume_context.clone().into_iter().collect(),
        })
    }
}

/// Undo a stage.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeUnstageVolume {
    /// Which volume.
    pub volume_id: String,
    /// The directory it was staged on.
    pub staging_target_path: PathBuf,
}

impl TryFrom<&proto::NodeUnstageVolumeRequest> for NodeUnstageVolume {
    type Error = Refusal;

    fn try_from(message: &proto::NodeUnstageVolumeRequest) -> Result<Self, Refusal> {
        Ok(Self {
            volume_id: field::volume_id(&message.volume_id)?,
            staging_target_path: field::path(STAGING, &message.staging_target_path)?,
        })
    }
}

/// Bind a staged volume into a pod; carries all that a stage needs, because a dead stage is repaired here (K4).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodePublishVolume {
    /// Which volume.
    pub volume_id: String,
    /// The directory it is staged on.
    pub staging_target_path: PathBuf,
    /// Where the pod wants it.
    pub target_path: PathBuf,
    /// How it will be used.
    pub capability: Capability,
    /// The pod only reads, because the mount, its options or its mode say so.
    pub readonly: bool,
    /// What the attachment says.
    pub publish_context: PublishContext,
    /// What CreateVolume answered.
    pub volume_context: BTreeMap<String, String>,
}

impl TryFrom<&proto::NodePublishVolumeRequest> for NodePublishVolume {
    type Error = Refusal;

    fn try_from(message: &proto::NodePublishVolumeRequest) -> Result<Self, Refusal> {
        let volume_id = field::volume_id(&message.volume_id)?;
        let target_path = field::path("target_path", &message.target_path)?;
        let capability = Capability::required(CAPABILITY, message.volume_capability.as_ref())?;
        Ok(Self {
            volume_id,
            staging_target_path: staged_at(&message.staging_target_path)?,
            target_path,
            readonly: message.readonly || capability.only_reads(),
            capability,
            publish_context: PublishContext::parse(&message.publish_context)?,
            volume_context: message.volume_context.clone().into_iter().collect(),
        })
    }
}

/// The CSI specification has its own code for a publish that was not preceded by a stage.
fn staged_at(path: &str) -> Result<PathBuf, Refusal> {
    if path.is_empty() {
        let message = "staging_target_path is missing: a volume is staged by NodeStageVolume before it is published";
        return Err(Refusal::new(Code::FailedPrecondition, STAGING, message));
    }
    field::path(STAGING, path)
}

/// Take a volume out of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeUnpublishVolume {
    /// Which volume.
    pub volume_id: String,
    /// Where the pod had it.
    pub target_path: PathBuf,
}

impl TryFrom<&proto::NodeUnpublishVolumeRequest> for NodeUnpublishVolume {
    type Error = Refusal;

    fn try_from(message: &proto::NodeUnpublishVolumeRequest) -> Result<Self, Refusal> {
        Ok(Self {
            volume_id: field::volume_id(&message.volume_id)?,
            target_path: field::path("target_path", &message.target_path)?,
        })
    }
}

/// Where a volume is said to be. At a path that no volume can have none is: that is NOT_FOUND, as csi-sanity demands of the
/// two calls that ask about a path.
fn somewhere(path: &str) -> Result<PathBuf, Refusal> {
    let found = field::path("volume_path", path);
    found.map_err(|refusal| if path.is_empty() { refusal } else { Refusal { code: Code::NotFound, ..refusal } })
}

/// Ask how full a volume is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeGetVolumeStats {
    /// Which volume.
    pub volume_id: String,
    /// Where it is mounted.
    pub volume_path: PathBuf,
    /// Where it is staged, if the caller says so.
    pub staging_target_path: Option<PathBuf>,
}

impl TryFrom<&proto::NodeGetVolumeStatsRequest> for NodeGetVolumeStats {
    type Error = Refusal;

    fn try_from(message: &proto::NodeGetVolumeStatsRequest) -> Result<Self, Refusal> {
        Ok(Self {
            volume_id: field::volume_id(&message.volume_id)?,
            volume_path: somewhere(&message.volume_path)?,
            staging_target_path: field::optional_path(STAGING, &message.staging_target_path)?,
        })
    }
}

/// Make a volume larger: the part that is done where it is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeExpandVolume {
    /// Which volume.
    pub volume_id: String,
    /// Where it is mounted.
    pub volume_path: PathBuf,
    /// Where it is staged, if the caller says so.
    pub staging_target_path: Option<PathBuf>,
    /// How large; `None` means as large as the volume already is.
    pub capacity: Option<CapacityRange>,
    /// How it is used, if the caller says so.
    pub capability: Option<Capability>,
}

impl TryFrom<&proto::NodeExpandVolumeRequest> for NodeExpandVolume {
    type Error = Refusal;

    fn try_from(message: &proto::NodeExpandVolumeRequest) -> Result<Self, Refusal> {
        Ok(Self {
            volume_id: field::volume_id(&message.volume_id)?,
            volume_path: somewhere(&message.volume_path)?,
            staging_target_path: field::optional_path(STAGING, &message.staging_target_path)?,
            capacity: message
                .capacity_range
                .as_ref()
                .map(|range| CapacityRange::for_expand(Some(range)))
                .transpose()?,
            capability: Capability::optional(CAPABILITY, message.volume_capability.as_ref())?,
        })
    }
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
