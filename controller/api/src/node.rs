//! MeshStorNode (`msnode`) and MeshStorNodeDevice (`msnd`): what a node can do and what its drives are.
//!
//! Spec is the operator's, status the node's own.

use crate::condition::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The operator's wishes for a node.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
#[kube(
    group = "csi.meshstor.io",
    version = "v1alpha1",
    kind = "MeshStorNode",
    plural = "meshstornodes",
    shortname = "msnode",
    status = "NodeStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Transports","type":"string","jsonPath":".status.addresses[*].transport"}"#,
    printcolumn = r#"{"name":"Kernel","type":"string","jsonPath":".status.kernel"}"#,
    printcolumn = r#"{"name":"Heartbeat","type":"date","jsonPath":".status.heartbeat"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct NodeSpec {
    /// No new replicas while set.
    #[serde(default)]
    pub maintenance: bool,
}

/// What a node reports of itself.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Boot id of its kernel.
    #[serde(default, rename = "bootID")]
    pub boot_id: String,
    /// Machine id: a new machine under an old name is another machine.
    #[serde(default, rename = "machineID")]
    pub machine_id: String,
    /// Host NQN of its connections.
    #[serde(default, rename = "hostNQN")]
    pub host_nqn: String,
    /// Kernel release.
    #[serde(default)]
    pub kernel: String,
    /// Fabric it is on; replicas are reachable only inside one fabric.
    #[serde(default)]
    pub fabric: String,
    /// Addresses its exports can listen on.
    #[serde(default)]
    pub addresses: Vec<NodeAddress>,
    /// When the agent last reported, RFC 3339; written every 20 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<String>,
    /// Service numbers that may not be used again until their last consumer has confirmed its stop.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quarantined_ports: Vec<QuarantinedPort>,
    /// Conditions: `Ready` and one for each failed preflight check.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// An address of a node.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeAddress {
    /// `tcp` or `rdma`.
    pub transport: String,
    /// IP address.
    pub address: String,
}

/// A port that a stale consumer may still be dialling.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuarantinedPort {
    /// The service number.
    pub port: u16,
    /// The volume it served.
    pub volume: String,
    /// Epoch it served.
    pub epoch: u64,
    /// The consumer that may still dial it.
    pub consumer: String,
    /// That consumer's boot id at the time; another boot id ends the quarantine.
    pub consumer_boot: String,
}

/// The operator's wishes for a drive.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[kube(
    group = "csi.meshstor.io",
    version = "v1alpha1",
    kind = "MeshStorNodeDevice",
    plural = "meshstornodedevices",
    shortname = "msnd",
    status = "NodeDeviceStatus",
    derive = "PartialEq",
    selectable = ".spec.node",
    printcolumn = r#"{"name":"Node","type":"string","jsonPath":".spec.node"}"#,
    printcolumn = r#"{"name":"Model","type":"string","jsonPath":".status.model"}"#,
    printcolumn = r#"{"name":"Serial","type":"string","jsonPath":".status.serial"}"#,
    printcolumn = r#"{"name":"Sector","type":"integer","jsonPath":".status.sectorSize"}"#,
    printcolumn = r#"{"name":"Size","type":"integer","jsonPath":".status.sizeBytes"}"#,
    printcolumn = r#"{"name":"Free","type":"integer","jsonPath":".status.freeBytes"}"#,
    printcolumn = r#"{"name":"Usable","type":"string","jsonPath":".status.conditions[?(@.type==\"Usable\")].reason"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct NodeDeviceSpec {
    /// Node the drive is in.
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self == oldSelf", "message": "spec.node is immutable"}]), length(min = 1, max = 253))]
    pub node: String,
    /// The drive's identity on its node.
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self == oldSelf", "message": "spec.drive is immutable"}]), length(min = 1, max = 128))]
    pub drive: String,
    /// Whether it may be used.
    #[serde(default)]
    pub r#use: DriveUse,
}

/// Whether a drive may be used.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DriveUse {
    /// Used when it is blank or wholly ours.
    #[default]
    Auto,
    /// Its free space may be used although it holds foreign partitions.
    Use,
    /// Never used for new replicas.
    Ignore,
}

/// What a node reports of a drive.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeDeviceStatus {
    /// Device node now.
    #[serde(default)]
    pub path: String,
    /// Model.
    #[serde(default)]
    pub model: String,
    /// Serial number.
    #[serde(default)]
    pub serial: String,
    /// Bytes.
    #[serde(default)]
    pub size_bytes: u64,
    /// Logical block size.
    #[serde(default)]
    pub sector_size: u32,
    /// Unallocated bytes we may use; zero when the drive may not be used.
    #[serde(default)]
    pub free_bytes: u64,
    /// Largest contiguous free extent we may use.
    #[serde(default)]
    pub largest_free_bytes: u64,
    /// Whether its write cache is volatile.
    #[serde(default)]
    pub volatile_cache: bool,
    /// `ours`, `shared`, `blank`, `theirs`, `unreadable`, `gone`.
    #[serde(default)]
    pub class: String,
    /// Entries that are not ours.
    #[serde(default)]
    pub foreign_partitions: u32,
    /// The annotation `csi.meshstor.io/look` whose look `copies` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub look_answered: Option<String>,
    /// Every copy on the drive as it was read when that annotation was seen, whoever has an object and whoever has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<DriveCopy>,
    /// Conditions: `Usable` with the reason why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Annotation of a drive's object: any new value asks its node to read every copy on the drive and to report it.
pub const LOOK_ANNOTATION: &str = "csi.meshstor.io/look";

/// One copy as its own bytes tell it; for `meshstor recover`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DriveCopy {
    /// Name of the volume's object.
    pub volume: String,
    /// The volume's own identity.
    #[serde(rename = "volumeID")]
    pub volume_id: String,
    /// The cluster the volume belongs to.
    #[serde(rename = "clusterID")]
    pub cluster_id: String,
    /// Number of the copy inside its volume.
    pub replica: String,
    /// Bytes of the partition.
    pub partition_bytes: u64,
    /// Highest epoch it was fenced for.
    pub epoch: u64,
    /// Export generation inside that epoch.
    pub generation: u64,
    /// The in-sync set as it was recorded when it was fenced.
    #[serde(default)]
    pub in_sync: Vec<String>,
    /// What the volume holds. Absent: `xfs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<String>,
    /// Kernel names of what has it open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<String>,
    /// Its MD superblock; absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superblock: Option<CopySuperblock>,
}

/// What an MD superblock says of the array.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CopySuperblock {
    /// Uuid of the array.
    #[serde(rename = "setUUID")]
    pub set_uuid: String,
    /// Event count.
    pub events: u64,
    /// Number of this device.
    pub device_number: u32,
    /// Device numbers that it calls active.
    #[serde(default)]
    pub active: Vec<u32>,
    /// It is still being copied to.
    #[serde(default)]
    pub recovering: bool,
    /// Bytes of data.
    pub component_bytes: u64,
}
