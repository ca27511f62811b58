//! Which operations must not run at the same time.
//!
//! Called by both bindings before an operation begins. Values only: it remembers nothing and waits for nothing.

use super::Op;

impl Op {
    /// What an operation works on: one at a time. What must get through while an array hangs on a stuck member (dropping
    /// it, freezing, killing, shutting down) is an object of its own.
    pub fn object(&self) -> String {
        match self {
            Op::LabelDrive { evidence } => format!("drive {}", evidence.drive()),
            Op::DisableCache { drive } => format!("cache of {drive}"),
            Op::AddPartition { drive, .. } | Op::GrowPartition { drive, .. } => format!("drive {drive}"),
            Op::AnnouncePartition { key } | Op::WriteRecord { key, .. } => format!("partition {key}"),
            Op::BlankPartition { evidence, .. } | Op::RemovePartition { evidence } => {
                format!("partition {}", evidence.key())
            }
            Op::Export { key, .. } | Op::Fence { key } | Op::RevalidateExport { key } | Op::RemoveExport { key } => {
                format!("export {}", key.replica)
            }
            Op::Connect { key, .. } | Op::Disconnect { key } | Op::DropMember { key, .. } | Op::Abandon { key, .. } => {
                format!("connection {key}")
            }
            Op::CreateArray { volume, .. }
            | Op::AssembleArray { volume, .. }
            | Op::ActivateArray { volume }
            | Op::MergeBitmap { volume, .. }
            | Op::ReleaseSync { volume }
            | Op::ReAddMember { volume, .. }
            | Op::AddMember { volume, .. }
            | Op::FailMember { volume, .. }
            | Op::RemoveFaulty { volume, .. }
            | Op::SetWriteMostly { volume, .. }
            | Op::AddBitmap { volume }
            | Op::RemoveBitmap { volume }
            | Op::SetRaidDisks { volume, .. }
            | Op::GrowArray { volume, .. }
            | Op::SetSyncSpeed { volume, .. }
            | Op::HoldSync { volume, .. }
            | Op::MakeFilesystem { volume, .. }
            | Op::StopArray { volume } => format!("array {volume}"),
            Op::FreezeWrites { volume, .. } => format!("freezer of {volume}"),
            Op::KillOpeners { volume } | Op::CutOff { volume, .. } => format!("openers of {volume}"),
            Op::ShutdownFilesystem { volume } => format!("file system of {volume}"),
            Op::GrowFilesystem { volume, .. } => format!("growth of {volume}"),
            Op::StopForeignArray { name } => format!("foreign array {name}"),
            Op::Mount { target, .. } | Op::BindMount { target, .. } | Op::Unmount { target, .. } => {
                format!("mount point {}", target)
            }
        }
    }

    /// Whether another operation, on another object, must not run while this one does. An array that takes a partition of
    /// its node and an export of the same partition look for each other before they begin; one that is late has looked
    /// too early (simulator, seed 505: a late `add-member` took a partition that was exported meanwhile).
    pub fn meets(&self, other: &Op) -> bool {
        let takes = |op: &Op| match op {
            Op::CreateArray { volume, .. }
            | Op::AssembleArray { volume, .. }
            | Op::AddMember { volume, .. }
            | Op::ReAddMember { volume, .. } => Some(*volume),
            _ => None,
        };
        match (self, other) {
            (Op::Export { key, .. }, op) | (op, Op::Export { key, .. }) => takes(op) == Some(key.replica.volume),
            _ => false,
        }
    }
}
