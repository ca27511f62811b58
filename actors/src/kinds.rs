//! The six kinds: each is a plan bound to its world, supervised as a family. Adding a kind adds a plan, a world and two
//! lines here.

use crate::shell::Shell;
use crate::tree::Family;
use crate::worlds::array::ArrayWorld;
use crate::worlds::connection::ConnectionWorld;
use crate::worlds::drive::DriveWorld;
use crate::worlds::export::ExportWorld;
use crate::worlds::partition::PartitionWorld;
use crate::worlds::stage::StageWorld;
use meshstor_kernel::id::{DriveId, ReplicaKey, VolumeId};
use meshstor_plan::array::Array;
use meshstor_plan::connection::Connection;
use meshstor_plan::drive::Drive;
use meshstor_plan::export::Export;
use meshstor_plan::partition::Partition;
use meshstor_plan::stage::Stage;

/// Looks after one drive.
pub type DriveActor = Shell<Drive, DriveWorld>;
/// Looks after one replica's partition.
pub type PartitionActor = Shell<Partition, PartitionWorld>;
/// Looks after one replica's export.
pub type ExportActor = Shell<Export, ExportWorld>;
/// Looks after the connection to one replica.
pub type ConnectionActor = Shell<Connection, ConnectionWorld>;
/// Looks after one volume's array.
pub type ArrayActor = Shell<Array, ArrayWorld>;
/// Looks after one volume's file system.
pub type StageActor = Shell<Stage, StageWorld>;

/// All drives of a node.
pub type Drives = Family<DriveId, Drive, DriveWorld>;
/// All partitions of a node.
pub type Partitions = Family<ReplicaKey, Partition, PartitionWorld>;
/// All exports of a node.
pub type Exports = Family<ReplicaKey, Export, ExportWorld>;
/// All connections of a node.
pub type Connections = Family<ReplicaKey, Connection, ConnectionWorld>;
/// All arrays of a node.
pub type Arrays = Family<VolumeId, Array, ArrayWorld>;
/// All file systems of a node.
pub type Stages = Family<VolumeId, Stage, StageWorld>;
