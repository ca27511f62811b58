//! Protobuf messages turned into typed requests, or into a [`Refusal`]: pure, and the only home of such sentences.
//!
//! Called by the Controller and Node handlers: `let request = CreateVolume::try_from(message.get_ref())?;`. It never
//! looks at the state of anything: whether a volume exists, fits or is attached is for the handler to say.
//! Secrets in a message are left behind here; no typed request has them.
//!
//! [`Refusal`]: crate::Refusal

mod capability;
mod capacity;
mod claim;
mod context;
mod controller;
mod field;
mod list;
mod node;
mod options;
mod parameters;
mod topology;

pub use capability::{Access, AccessMode, Capability, Content, Filesystem};
pub use capacity::{BYTES_DEFAULT, BYTES_MIN, CapacityRange, MIB};
pub use claim::Claim;
pub use context::PublishContext;
pub use controller::{
    ControllerExpandVolume, ControllerGetVolume, ControllerPublishVolume, ControllerUnpublishVolume, CreateVolume,
    DeleteVolume, GetCapacity, ValidateVolumeCapabilities,
};
pub use list::{ListVolumes, PageToken};
pub use node::{
    NodeExpandVolume, NodeGetVolumeStats, NodePublishVolume, NodeStageVolume, NodeUnpublishVolume, NodeUnstageVolume,
};
pub use parameters::{LocalCopy, SectorSize, TopologySpread, VolumeParameters};
pub use topology::{FABRIC_KEY, NODE_KEY, Place, TopologyRequirement};
