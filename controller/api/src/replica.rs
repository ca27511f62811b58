//! MeshStorReplica (`msrep`): one full copy of a volume on one node.
//!
//! Spec is written by the controller, status by the replica's node.

use crate::condition::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The question of a controller who is connected to the exports of a copy; its value is a name of the question.
pub const CONNECTED_ANNOTATION: &str = "csi.meshstor.io/connected";

/// What a node should hold for a volume.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[kube(
    group = "csi.meshstor.io",
    version = "v1alpha1",
    kind = "MeshStorReplica",
    plural = "meshstorreplicas",
    shortname = "msrep",
    status = "ReplicaStatus",
    derive = "PartialEq",
    validation = Rule::new("self.spec.partitionBytes >= oldSelf.spec.partitionBytes || has(oldSelf.status) && has(oldSelf.status.partition) && has(oldSelf.status.partition.sizeBytes) && self.spec.partitionBytes >= oldSelf.status.partition.sizeBytes").message("spec.partitionBytes never falls below what the partition has"),
    selectable = ".spec.node",
    selectable = ".spec.volume",
    printcolumn = r#"{"name":"Volume","type":"string","jsonPath":".spec.volume"}"#,
    printcolumn = r#"{"name":"Node","type":"string","jsonPath":".spec.node"}"#,
    printcolumn = r#"{"name":"Drive","type":"string","jsonPath":".spec.drive"}"#,
    printcolumn = r#"{"name":"Role","type":"string","jsonPath":".spec.role"}"#,
    printcolumn = r#"{"name":"MoveTo","type":"string","jsonPath":".spec.moveTo","priority":1}"#,
    printcolumn = r#"{"name":"Missing","type":"string","jsonPath":".status.conditions[?(@.type==\"Missing\")].reason"}"#,
    printcolumn = r#"{"name":"Partition","type":"string","jsonPath":".status.partition.state"}"#,
    printcolumn = r#"{"name":"Fenced","type":"integer","jsonPath":".status.fencedEpoch"}"#,
    printcolumn = r#"{"name":"Exported","type":"boolean","jsonPath":".status.export.ready"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaSpec {
    /// Name of the volume's object.
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self == oldSelf", "message": "spec.volume is immutable"}]))]
    pub volume: String,
    /// The volume's own identity.
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self == oldSelf", "message": "spec.volumeID is immutable"}]), length(equal = 36))]
    #[serde(rename = "volumeID")]
    pub volume_id: String,
    /// The cluster the volume belongs to.
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self == oldSelf", "message": "spec.clusterID is immutable"}]), length(equal = 36))]
    #[serde(rename = "clusterID")]
    pub cluster_id: String,
    /// Number of the copy inside its volume: r0, r1, …
    #[schemars(regex(pattern = r"^r[0-9]{1,9}$"), extend("x-kubernetes-validations" = [{"rule": "self == oldSelf", "message": "spec.replica is immutable"}]))]
    pub replica: String,
    /// Node that holds it.
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self == oldSelf", "message": "spec.node is immutable"}]), length(min = 1, max = 253))]
    pub node: String,
    /// Drive on that node.
    #[schemars(length(min = 1, max = 128))]
    pub drive: String,
    /// Bytes of the partition. Raised when the volume is to grow; taken back as far as its node has not taken the space.
    #[schemars(range(min = 5242880))]
    pub partition_bytes: u64,
    /// What the volume holds: a copy of its `spec.filesystem`, for the record on the drive. Absent: `xfs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["xfs", "ext4", "none"], "x-kubernetes-validations" = [{"rule": "self == oldSelf", "message": "spec.filesystem is immutable"}]))]
    pub filesystem: Option<String>,
    /// Whether it should be a member of the array.
    pub role: ReplicaRole,
    /// Of a retiring copy: the node that is to hold one in its place; absent: any that has room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub move_to: Option<String>,
    /// Of a retiring copy: why the controller asked, `Relocation`, `Surplus`, `Lost`, `Refused`, `Cramped`; absent: an operator asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired_by: Option<String>,
    /// For whom it is to be exported; its epoch is also what the node has to fence for.
    pub export: ExportSpec,
    /// The export life in which it may be copied to wholly: the resync budget's leave, which the controller gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<RecoverySpec>,
    /// The recorded wish to wipe this copy, naming exactly what may be wiped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tombstone: Option<Tombstone>,
}

/// Whether a replica should be a member of the array.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum ReplicaRole {
    /// It should.
    Member,
    /// Another copy is made in its place; then the consumer takes it out, and it is wiped. An operator may set this.
    Retiring,
}

/// For whom a replica is exported.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExportSpec {
    /// The volume's epoch. The node fences everything below it.
    pub epoch: u64,
    /// Rises inside an epoch each time the replica must be exported anew (after a departure).
    pub generation: u64,
    /// Consuming node; absent while detached: fence, export nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer: Option<String>,
}

/// The leave to copy a replica wholly, for one export life of it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecoverySpec {
    /// Epoch of that life.
    pub epoch: u64,
    /// Generation of that life.
    pub generation: u64,
}

/// A wish to wipe, naming what may be wiped.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tombstone {
    /// Unique GUID of the partition.
    #[serde(rename = "partitionUUID")]
    pub partition_uuid: String,
    /// The cluster the partition's record must name.
    #[serde(rename = "clusterID")]
    pub cluster_id: String,
    /// The volume the partition's record must name.
    #[serde(rename = "volumeID")]
    pub volume_id: String,
    /// Why: `VolumeDeleted`, `ReservationRefused`, `Dismissed`.
    pub reason: String,
}

/// What the replica's node reports.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaStatus {
    /// The partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<PartitionStatus>,
    /// Highest epoch for which nothing older is exported, written on the drive before it is reported here.
    #[serde(default)]
    pub fenced_epoch: u64,
    /// The export of the current epoch and generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub export: Option<ExportStatus>,
    /// Who is connected to its exports, as it was when that was last asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<ConnectionStatus>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// The partition of a replica.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PartitionStatus {
    /// `Waiting`, `Accepted` (space is taken), `Ready` (exists, zeroed, recorded), `Removed`.
    pub state: String,
    /// Bytes it has.
    #[serde(default)]
    pub size_bytes: u64,
}

/// A live export.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExportStatus {
    /// Epoch it was made for.
    pub epoch: u64,
    /// Generation inside the epoch.
    pub generation: u64,
    /// Where it listens; empty for a replica on the consumer itself.
    #[serde(default)]
    pub listen: Vec<ListenStatus>,
    /// Whether the port is linked, or, on the consumer itself, whether the partition is free for the array.
    pub ready: bool,
    /// Boot id of the target's kernel.
    pub boot: String,
}

/// Who is connected to the exports of a copy. Looked at only when asked: it changes with every cable.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionStatus {
    /// The annotation `csi.meshstor.io/connected` that is answered.
    pub asked: String,
    /// Transports over which a host was connected then: `tcp`, `rdma`.
    #[serde(default)]
    pub transports: Vec<String>,
}

/// An address an export listens on.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListenStatus {
    /// `tcp` or `rdma`.
    pub transport: String,
    /// IP address.
    pub address: String,
    /// Port (service number).
    pub port: u16,
}
