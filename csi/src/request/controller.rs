//! The requests of the Controller service.
//!
//! Called by its handlers. Idempotent calls are told apart by these types: equal values are the same call. It never
//! decides what an existing volume means for a call; that needs the record.

use std::collections::BTreeMap;

use tonic::Code;

use super::capability::{Capability, Content, Filesystem};
use super::capacity::CapacityRange;
use super::claim::Claim;
use super::field;
use super::parameters::{KUBERNETES_FSTYPE, VolumeParameters};
use super::topology::{Place, TopologyRequirement};
use crate::inflight::Fingerprint;
use crate::{Refusal, proto};

const CAPABILITIES: &str = "volume_capabilities";
const CAPABILITY: &str = "volume_capability";

/// Make a volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CreateVolume {
    /// The caller's name for it: the same name is the same volume.
    pub name: String,
    /// How large.
    pub capacity: CapacityRange,
    /// What the StorageClass says.
    pub parameters: VolumeParameters,
    /// What it is made for, from capabilities and parameters together.
    pub content: Content,
    /// How it will be used; at least one entry.
    pub capabilities: Vec<Capability>,
    /// Where it must and should be reachable.
    pub topology: TopologyRequirement,
    /// For whom, if the caller says so.
    pub claim: Option<Claim>,
}

impl CreateVolume {
    /// What makes two concurrent calls the same: all but the topology, because a name asked for again from elsewhere
    /// still means the volume that is being made (K7), and but the claim, which changes nothing about the volume.
    pub fn fingerprint(&self) -> Fingerprint {
        let Self { name, capacity, parameters, content, capabilities, topology: _, claim: _ } = self;
        Fingerprint::of("CreateVolume", &(name, capacity, parameters, content, capabilities))
    }
}

impl TryFrom<&proto::CreateVolumeRequest> for CreateVolume {
    type Error = Refusal;

    fn try_from(message: &proto::CreateVolumeRequest) -> Result<Self, Refusal> {
        let name = field::name("name", &message.name)?;
        let capabilities = required_capabilities(&message.volume_capabilities)?;
        if capabilities.iter().all(|capability| capability.mode.is_read_only()) {
            let message =
                "volume_capabilities only read, and a new volume is empty: allowed is a list with a mode that writes";
            return Err(Refusal::new(Code::InvalidArgument, CAPABILITIES, message));
        }
        if message.volume_content_source.is_some() {
            return Err(Refusal::not_available("volume_content_source", "snapshots and clones are", "an empty volume"));
        }
        refuse_mutable(&message.mutable_parameters)?;
        let parameters = VolumeParameters::parse(&message.parameters)?;
        Ok(Self {
            name,
            capacity: CapacityRange::for_create(message.capacity_range.as_ref())?,
            content: content(&parameters, &capabilities)?,
            claim: Claim::read(&message.parameters),
            parameters,
            capabilities,
            topology: TopologyRequirement::parse(
                "accessibility_requirements",
                message.accessibility_requirements.as_ref(),
            )?,
        })
    }
}

/// What a volume is made for: one access type for its whole life. A StorageClass may name a file system that a raw block
/// volume has no use for, because it serves claims of both modes.
fn content(parameters: &VolumeParameters, capabilities: &[Capability]) -> Result<Content, Refusal> {
    let block = capabilities.iter().position(Capability::is_block);
    let mount = capabilities.iter().position(|capability| !capability.is_block());
    match (block, mount) {
        (Some(block), Some(mount)) => {
            let message = format!(
                "{CAPABILITIES}[{block}] is block and {CAPABILITIES}[{mount}] is mount: \
                 allowed is one access type for the life of a volume"
            );
            Err(Refusal::new(Code::InvalidArgument, CAPABILITIES, message))
        }
        (Some(_), None) => Ok(Content::Block),
        (None, _) => filesystem(parameters, capabilities).map(Content::Files),
    }
}

/// The file system that was named, or the default. Capabilities and parameters may all name one, and it has to be one.
fn filesystem(parameters: &VolumeParameters, capabilities: &[Capability]) -> Result<Filesystem, Refusal> {
    let of_capabilities = capabilities.iter().enumerate().filter_map(|(index, capability)| {
        Some((format!("{CAPABILITIES}[{index}].mount.fs_type"), capability.filesystem()?))
    });
    let of_parameters = parameters.filesystem.map(|filesystem| (format!("parameters.{KUBERNETES_FSTYPE}"), filesystem));
    let mut named = of_capabilities.chain(of_parameters);
    let Some((first, chosen)) = named.next() else { return Ok(Filesystem::default()) };
    match named.find(|(_, filesystem)| *filesystem != chosen) {
        None => Ok(chosen),
        Some((field, other)) => {
            let (chosen, other) = (chosen.as_str(), other.as_str());
            let message =
                format!("{field} is {other} and {first} is {chosen}: allowed is the same file system in both");
            Err(Refusal::new(Code::InvalidArgument, field, message))
        }
    }
}

fn required_capabilities(list: &[proto::VolumeCapability]) -> Result<Vec<Capability>, Refusal> {
    if list.is_empty() {
        return Err(Refusal::missing(CAPABILITIES));
    }
    Capability::list(CAPABILITIES, list)
}

fn refuse_mutable(map: &std::collections::HashMap<String, String>) -> Result<(), Refusal> {
    if map.is_empty() {
        return Ok(());
    }
    Err(Refusal::not_available("mutable_parameters", "a VolumeAttributesClass is", "none"))
}

/// Delete a volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DeleteVolume {
    /// Which volume.
    pub volume_id: String,
}

impl TryFrom<&proto::DeleteVolumeRequest> for DeleteVolume {
    type Error = Refusal;

    fn try_from(message: &proto::DeleteVolumeRequest) -> Result<Self, Refusal> {
        Ok(Self { volume_id: field::volume_id(&message.volume_id)? })
    }
}

/// Attach a volume to a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ControllerPublishVolume {
    /// Which volume.
    pub volume_id: String,
    /// The node that becomes the consumer.
    pub node_id: String,
    /// How it will be used.
    pub capability: Capability,
    /// The caller asks for an attachment that only reads.
    pub readonly: bool,
    /// What CreateVolume answered.
    pub volume_context: BTreeMap<String, String>,
}

impl TryFrom<&proto::ControllerPublishVolumeRequest> for ControllerPublishVolume {
    type Error = Refusal;

    fn try_from(message: &proto::ControllerPublishVolumeRequest) -> Result<Self, Refusal> {
        Ok(Self {
            volume_id: field::volume_id(&message.volume_id)?,
            node_id: field::node_id(&message.node_id)?,
            capability: Capability::required(CAPABILITY, message.volume_capability.as_ref())?,
            readonly: message.readonly,
            volume_context: message.volume_context.clone().into_iter().collect(),
        })
    }
}

/// Detach a volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ControllerUnpublishVolume {
    /// Which volume.
    pub volume_id: String,
    /// From which node; `None` means from whichever node has it.
    pub node_id: Option<String>,
}

impl TryFrom<&proto::ControllerUnpublishVolumeRequest> for ControllerUnpublishVolume {
    type Error = Refusal;

    fn try_from(message: &proto::ControllerUnpublishVolumeRequest) -> Result<Self, Refusal> {
        let node_id = Some(message.node_id.as_str()).filter(|id| !id.is_empty());
        Ok(Self { volume_id: field::volume_id(&message.volume_id)?, node_id: node_id.map(field::node_id).transpose()? })
    }
}

/// Ask whether a volume can be used in certain ways.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ValidateVolumeCapabilities {
    /// Which volume.
    pub volume_id: String,
    /// The ways, or why one of them is none of ours. That is an answer (`message`, nothing confirmed), not an error.
    pub verdict: Result<Vec<Capability>, String>,
}

impl TryFrom<&proto::ValidateVolumeCapabilitiesRequest> for ValidateVolumeCapabilities {
    type Error = Refusal;

    fn try_from(message: &proto::ValidateVolumeCapabilitiesRequest) -> Result<Self, Refusal> {
        let volume_id = field::volume_id(&message.volume_id)?;
        if message.volume_capabilities.is_empty() {
            return Err(Refusal::missing(CAPABILITIES));
        }
        let verdict = Capability::list(CAPABILITIES, &message.volume_capabilities)
            .and_then(|capabilities| VolumeParameters::parse(&message.parameters).map(|_| capabilities))
            .and_then(|capabilities| refuse_mutable(&message.mutable_parameters).map(|()| capabilities))
            .map_err(|refusal| refusal.message);
        Ok(Self { volume_id, verdict })
    }
}

/// Ask how large a new volume could be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GetCapacity {
    /// What the StorageClass says.
    pub parameters: VolumeParameters,
    /// For pods where; `None` for anywhere.
    pub place: Option<Place>,
}

impl TryFrom<&proto::GetCapacityRequest> for GetCapacity {
    type Error = Refusal;

    fn try_from(message: &proto::GetCapacityRequest) -> Result<Self, Refusal> {
        Capability::list(CAPABILITIES, &message.volume_capabilities)?;
        Ok(Self {
            parameters: VolumeParameters::parse(&message.parameters)?,
            place: Place::optional("accessible_topology", message.accessible_topology.as_ref())?,
        })
    }
}

/// Make a volume larger: the part that is done once for the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ControllerExpandVolume {
    /// Which volume.
    pub volume_id: String,
    /// How large.
    pub capacity: CapacityRange,
    /// How it is used, if the caller says so.
    pub capability: Option<Capability>,
}

impl TryFrom<&proto::ControllerExpandVolumeRequest> for ControllerExpandVolume {
    type Error = Refusal;

    fn try_from(message: &proto::ControllerExpandVolumeRequest) -> Result<Self, Refusal> {
        Ok(Self {
            volume_id: field::volume_id(&message.volume_id)?,
            capacity: CapacityRange::for_expand(message.capacity_range.as_ref())?,
            capability: Capability::optional(CAPABILITY, message.volume_capability.as_ref())?,
        })
    }
}

/// Ask for the state of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ControllerGetVolume {
    /// Which volume.
    pub volume_id: String,
}

impl TryFrom<&proto::ControllerGetVolumeRequest> for ControllerGetVolume {
    type Error = Refusal;

    fn try_from(message: &proto::ControllerGetVolumeRequest) -> Result<Self, Refusal> {
        Ok(Self { volume_id: field::volume_id(&message.volume_id)? })
    }
}

#[cfg(test)]
#[path = "controller_tests.rs"]
mod tests;
