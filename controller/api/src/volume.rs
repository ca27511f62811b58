//! MeshStorVolume (`msvol`): one volume, and the recorded truth about it (epoch, consumer, in-sync set).
//!
//! Spec is written by the CSI controller, status by the consumer of the current epoch (by the controller while
//! detached). The record is written only by JSON patches with tests ([`crate::patch`]), never by PUT or apply.

use crate::condition::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What a volume should be, and who may write to it.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[kube(
    group = "csi.meshstor.io",
    version = "v1alpha1",
    kind = "MeshStorVolume",
    plural = "meshstorvolumes",
    shortname = "msvol",
    status = "VolumeStatus",
    derive = "PartialEq",
    selectable = ".spec.attachment.consumer",
    selectable = ".spec.volumeID",
    validation = Rule::new("!has(oldSelf.status) || !has(oldSelf.status.inSync) || has(self.status) && has(self.status.inSync) && size(self.status.inSync) > 0").message("status.inSync: once recorded it is never removed or emptied; use meshstor recover"),
    printcolumn = r#"{"name":"Size","type":"integer","jsonPath":".spec.sizeBytes"}"#,
    printcolumn = r#"{"name":"Copies","type":"integer","jsonPath":".spec.replicaCount"}"#,
    printcolumn = r#"{"name":"Consumer","type":"string","jsonPath":".spec.attachment.consumer"}"#,
    printcolumn = r#"{"name":"Epoch","type":"integer","jsonPath":".spec.attachment.epoch"}"#,
    printcolumn = r#"{"name":"InSync","type":"string","jsonPath":".status.inSync"}"#,
    printcolumn = r#"{"name":"Array","type":"string","jsonPath":".status.array.state"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSpec {
    /// The data's own identity (uuid); every on-disk and fabric identity derives from it.
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self == oldSelf", "message": "spec.volumeID is immutable"}]), length(equal = 36))]
    #[serde(rename = "volumeID")]
    pub volume_id: String,
    /// Uid of the kube-system namespace of the cluster the volume belongs to.
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self == oldSelf", "message": "spec.clusterID is immutable"}]), length(equal = 36))]
    #[serde(rename = "clusterID")]
    pub cluster_id: String,
    /// Usable bytes promised to the user.
    #[schemars(range(min = 1048576), extend("x-kubernetes-validations" = [{"rule": "self >= oldSelf", "message": "spec.sizeBytes never falls"}]))]
    pub size_bytes: u64,
    /// Full copies, each on a node of its own.
    #[schemars(range(min = 1, max = 16))]
    pub replica_count: u32,
    /// Drives each copy is striped over.
    #[schemars(range(min = 1, max = 1))]
    pub stripe_width: u32,
    /// Logical block size of the drives used.
    #[schemars(extend("enum" = [512, 4096]))]
    pub sector_size: u32,
    /// File system made on first use, and never another one; `none`: a raw block volume, for its whole life.
    #[schemars(extend("enum" = ["xfs", "ext4", "none"], "x-kubernetes-validations" = [{"rule": "self == oldSelf", "message": "spec.filesystem is immutable"}]))]
    pub filesystem: String,
    /// Seconds a member may be missing before it is replaced.
    #[schemars(range(min = 60))]
    pub member_missing_timeout_seconds: u32,
    /// Seconds that a consumer without a copy of its own stays the same before one of the copies moves to it. Absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relocation_delay_seconds: Option<u32>,
    /// Whether the pod's node must, should or need not hold a copy.
    pub local_copy: LocalCopy,
    /// Whether each copy is in a zone of its own.
    #[serde(default, skip_serializing_if = "TopologySpread::is_none")]
    pub topology_spread: TopologySpread,
    /// For whom the volume was made: who is told of its troubles. Absent where the provisioner did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
    /// Who may write.
    pub attachment: Attachment,
    /// Copies that were let go for ever: outside of the in-sync set when that was recorded, never taken into it again.
    /// Recorded before any of them is wiped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub dismissed: Vec<String>,
    /// The lowest number that no copy ever had. Raised before a copy is made, so that a number is never used twice, even
    /// if the object of a copy was lost while its partition was not.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self >= oldSelf", "message": "spec.nextReplica never falls"}]))]
    pub next_replica: u32,
    /// The recorded wish to destroy the volume's data. Only the DeleteVolume call of CSI writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_requested: Option<DeletionRequest>,
}

/// Whether the pod's node holds a copy.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LocalCopy {
    /// A copy on the pod's node if it has room.
    Preferred,
    /// No volume without a copy on the pod's node.
    Required,
    /// Placement ignores where the pod is.
    None,
}

/// The PersistentVolumeClaim that a volume was made for.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The PersistentVolume that is made for it; that one knows the claim of the day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume: Option<String>,
}

/// Whether copies are spread over zones (label `topology.kubernetes.io/zone` of their nodes).
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum TopologySpread {
    /// Zones play no part.
    #[default]
    None,
    /// Each copy in a zone of its own, or no copy.
    Zone,
    /// As evenly as can be.
    ZonePreferred,
}

impl TopologySpread {
    /// The word in a StorageClass and here.
    pub fn as_str(self) -> &'static str {
        match self {
            TopologySpread::None => "none",
            TopologySpread::Zone => "zone",
            TopologySpread::ZonePreferred => "zonePreferred",
        }
    }

    fn is_none(&self) -> bool {
        *self == TopologySpread::None
    }
}

/// Who may write to the volume, and since which change of hands.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self.epoch >= oldSelf.epoch", "message": "spec.attachment.epoch never falls"},
    {"rule": "self.epoch > oldSelf.epoch || (has(self.consumer) ? self.consumer : '') == (has(oldSelf.consumer) ? oldSelf.consumer : '')", "message": "spec.attachment.consumer changes only together with a higher spec.attachment.epoch"},
]))]
pub struct Attachment {
    /// Rises each time the consumer changes.
    pub epoch: u64,
    /// Node that may write; absent while detached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer: Option<String>,
    /// Boot id of the consumer's kernel when this epoch began: a rebooted consumer needs a new epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer_boot: Option<String>,
    /// Since when this node is the consumer, RFC 3339; a reboot of it changes nothing here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

/// The recorded wish to destroy a volume's data.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeletionRequest {
    /// Who asked: `csi.DeleteVolume`.
    pub by: String,
    /// When, RFC 3339.
    pub at: String,
}

/// What is recorded and observed of a volume.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStatus {
    /// metadata.uid of the object this record was made for; another value means the object was restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record_of: Option<String>,
    /// Replicas that hold every acknowledged write. Absent means unknown, never none or all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "set"))]
    pub in_sync: Option<Vec<String>>,
    /// Epoch in which the in-sync set was last confirmed by the consumer before it went read-write.
    #[serde(default)]
    pub activated_epoch: u64,
    /// Replicas that left the in-sync set, with the proof needed for their return.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub departures: Vec<Departure>,
    /// Replicas that left lately, and how often: the more often, the later one comes back. Forgotten after an hour of calm.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flaps: Vec<Flap>,
    /// State of the file system's making.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// The epoch whose consumer confirmed its stop last. It speaks of that very epoch, not of those before.
    #[serde(default)]
    pub released_epoch: u64,
    /// The array as the consumer sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub array: Option<ArrayStatus>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// How a replica left the in-sync set.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Departure {
    /// The replica.
    pub replica: String,
    /// Epoch in which it left.
    pub epoch: u64,
    /// Export generation it had; it returns only under a higher one.
    pub generation: u64,
    /// MD event count of the survivors when it left.
    pub events: u64,
}

/// How often a replica left the in-sync set, each time within an hour of the time before.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Flap {
    /// The replica.
    pub replica: String,
    /// Departures.
    pub count: u32,
    /// The last one, RFC 3339.
    pub last: String,
}

/// State of the file system's making (P4).
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Format {
    /// `started` before mkfs, `done` before the first stage answers.
    pub state: FormatState,
    /// Epoch in which this state was recorded.
    pub epoch: u64,
}

/// The two steps of making a file system.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FormatState {
    /// mkfs may have run, wholly or in part; nobody was given the file system.
    Started,
    /// The file system exists; it is never made again.
    Done,
}

/// The array as the consumer sees it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArrayStatus {
    /// `active`, `degraded`, `recovering`, `resyncing`, `frozen`, `broken`, `stopped`.
    pub state: String,
    /// The replica that is copied to wholly, or waits for the resync budget to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copying: Option<String>,
    /// Percent of the running sync, in whole steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync_percent: Option<u32>,
    /// Members by replica, with the transport that carries their I/O: `r0=local r1=rdma`.
    #[serde(default)]
    pub members: BTreeSet<String>,
}
