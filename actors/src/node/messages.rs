//! The root actor's own messages: what CSI asks of this node, and what its helpers bring back.

use super::survey::Survey;
use crate::failure::Failure;
use crate::node::health::Health;
use crate::node::volumes::VolumeView;
use actix::Message;
use meshstor_api::MeshStorReplica;
use meshstor_api::node::QuarantinedPort;
use meshstor_kernel::hint::Hint;
use meshstor_kernel::id::VolumeId;
use meshstor_plan::Reason;
use std::collections::BTreeSet;
use tokio::sync::watch;

/// The kernel says: look again at these.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Hinted(pub BTreeSet<Hint>);

/// Have a volume mounted at a path. Answers with what to wait on.
#[derive(Message, Debug)]
#[rtype(result = "Staging")]
pub struct StageVolume {
    /// Name of its object.
    pub name: String,
    /// The volume.
    pub volume: VolumeId,
    /// Where.
    pub target: String,
    /// With which options.
    pub options: Vec<String>,
    /// It is a raw block volume: its array has to run, and nothing is mounted.
    pub raw: bool,
}

/// A volume on its way to be mounted.
#[derive(Debug)]
pub struct Staging {
    /// How it is.
    pub view: watch::Receiver<VolumeView>,
    /// This node held nothing of it before: undoing the stage undoes all there is.
    pub fresh: bool,
}

/// Have a volume mounted nowhere, its array stopped, its connections gone. `None`: this node holds nothing of it.
#[derive(Message, Debug)]
#[rtype(result = "Result<Option<watch::Receiver<VolumeView>>, Failure>")]
pub struct UnstageVolume {
    /// Name of its object.
    pub name: String,
    /// Where it was staged, as the caller says.
    pub target: String,
}

/// As [`UnstageVolume`], of a volume whose identity is known.
#[derive(Message, Debug)]
#[rtype(result = "watch::Receiver<VolumeView>")]
pub struct ReleaseVolume {
    /// Name of its object.
    pub name: String,
    /// The volume.
    pub volume: VolumeId,
}

/// Bind a staged volume to a path.
#[derive(Message, Debug)]
#[rtype(result = "Result<Bound, Failure>")]
pub struct BindVolume {
    /// The volume.
    pub volume: VolumeId,
    /// Where it is staged; `None`: it is a raw block volume, whose device is bound.
    pub source: Option<String>,
    /// Where it is wanted.
    pub target: String,
    /// Only for reading.
    pub read_only: bool,
    /// Only if no other pod has it.
    pub alone: bool,
}

/// Whether a volume is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// It is.
    Done,
    /// What is at the staging path is not the volume, or is dead: it has to be staged again first.
    NotStaged,
    /// Something else is mounted where the volume is wanted.
    Occupied(String),
    /// It was wanted alone, and is at this place already.
    Elsewhere(String),
}

/// Have nothing mounted at a path, as far as it is ours.
#[derive(Message, Debug)]
#[rtype(result = "Result<(), Failure>")]
pub struct Unbind {
    /// Where.
    pub target: String,
}

/// What is known of a volume at a path.
#[derive(Message, Debug)]
#[rtype(result = "Result<Option<Mounted>, Failure>")]
pub struct AskMounted {
    /// Where.
    pub path: String,
}

/// What is known of a raw block volume, by the name of its object.
#[derive(Message, Debug)]
#[rtype(result = "Result<Option<Mounted>, Failure>")]
pub struct AskDevice {
    /// Name.
    pub name: String,
}

/// How far a volume that is to be had at a path has grown; looked at anew, and those who can make it grow look as well.
/// `None`: no volume of ours is there.
#[derive(Message, Debug)]
#[rtype(result = "Result<Option<Growth>, Failure>")]
pub struct AskGrowth {
    /// Where.
    pub path: String,
    /// Of a raw block volume, the name of its object: callers do not agree on the path of a device.
    pub device_of: Option<String>,
}

/// As [`AskGrowth`], of a volume that was found, with what was seen of its array.
#[derive(Message, Debug)]
#[rtype(result = "Growth")]
pub struct AskVolumeGrowth {
    /// The volume.
    pub volume: VolumeId,
    /// It is a raw block volume.
    pub raw: bool,
    /// Bytes of its array.
    pub array_bytes: u64,
}

/// How far a volume has grown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Growth {
    /// A raw block volume, which has no file system to fill its array.
    pub raw: bool,
    /// Bytes of its array.
    pub array_bytes: u64,
    /// Bytes of the array that its file system fills.
    pub filled: u64,
    /// Bytes that the record, as last read, says it is to have.
    pub recorded: Option<u64>,
    /// What the array waits for, or what keeps the file system from growing.
    pub reason: Option<Reason>,
}

/// A volume of ours at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// The volume.
    pub volume: VolumeId,
    /// Whether the file system answers, or the device takes writes.
    pub alive: bool,
    /// A raw block volume.
    pub raw: bool,
    /// Bytes of the array below it.
    pub size_bytes: u64,
    /// How far the volume is, when this node has it staged.
    pub view: Option<VolumeView>,
    /// How it is then.
    pub health: Option<Health>,
}

/// Finish what runs, then end. Nothing in the kernel changes.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "()")]
pub struct Shutdown;

/// The kernel as a whole was looked at.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Surveyed(pub Result<Survey, Failure>);

/// A replica's object was asked for by name, because a watch no longer shows it.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Verified {
    /// Its name.
    pub name: String,
    /// The answer.
    pub answer: Result<Option<Box<MeshStorReplica>>, Failure>,
}

/// What became of service numbers that consumers may still be dialling.
#[derive(Message, Debug, Default)]
#[rtype(result = "()")]
pub struct PortsChecked {
    /// To be recorded as quarantined.
    pub quarantine: Vec<QuarantinedPort>,
    /// Their consumers have let go.
    pub let_go: BTreeSet<u16>,
}
