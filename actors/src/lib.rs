//! The actor tree: the only place that knows actix.
//!
//! ```text
//!  Agent (a thread, an actix system)
//!   └─ NodeActor ── root: routes hints, watches and CSI to its children, passes their reports on
//!       ├─ DriveActor       one for each NVMe drive                       ─▶ MeshStorNodeDevice
//!       ├─ PartitionActor   one for each replica on this node          ┐
//!       ├─ ExportActor      one for each replica on this node          ┴─▶ MeshStorReplica
//!       ├─ ConnectionActor  one for each remote replica of a staged volume
//!       ├─ ArrayActor       one for each staged volume                 ┐
//!       ├─ StageActor       one for each staged volume                 ┴─▶ MeshStorVolume, CSI
//!       └─ StatusWriter     the one writer of status
//! ```
//!
//! Every child is the same actor, [`shell::Shell`], around a pure plan and its [`shell::World`]; [`tree::Family`]
//! supervises those of one kind. A child that ends is replaced by a fresh one that begins by looking; a restart of the
//! whole agent loses nothing, because facts are read again and volumes are found in the kernel. If all of this dies, I/O
//! does not notice (P5).
//!
//! Called by the binary ([`agent::Agent`]), by simulations ([`node::NodeActor::launch`], [`csi_node::NodeService`]).
//! Decisions are made in `meshstor-plan`, never here.

pub mod agent;
pub mod api;
pub mod clock;
pub mod csi_codes;
pub mod csi_node;
pub mod env;
pub mod events;
pub mod failure;
pub mod kinds;
pub mod messages;
pub mod node;
pub mod shell;
pub mod sources;
pub mod status;
pub mod tree;
pub mod worlds;

#[cfg(test)]
mod testing;
