//! The short name of each operation, as metrics, audit lines and tests spell it. Called wherever one is counted or shown.

use super::Op;

impl Op {
    /// Short name: metric label and test trace.
    pub fn name(&self) -> &'static str {
        match self {
            Op::LabelDrive { .. } => "label-drive",
            Op::DisableCache { .. } => "disable-cache",
            Op::AddPartition { .. } => "add-partition",
            Op::GrowPartition { .. } => "grow-partition",
            Op::AnnouncePartition { .. } => "announce-partition",
            Op::BlankPartition { .. } => "blank-partition",
            Op::WriteRecord { .. } => "write-record",
            Op::RemovePartition { .. } => "remove-partition",
            Op::Export { .. } => "export",
            Op::Fence { .. } => "fence",
            Op::RevalidateExport { .. } => "revalidate-export",
            Op::RemoveExport { .. } => "remove-export",
            Op::Connect { .. } => "connect",
            Op::Disconnect { .. } => "disconnect",
            Op::DropMember { .. } => "drop-member",
            Op::Abandon { .. } => "abandon",
            Op::CreateArray { .. } => "create-array",
            Op::AssembleArray { .. } => "assemble-array",
            Op::ActivateArray { .. } => "activate-array",
            Op::MergeBitmap { .. } => "merge-bitmap",
            Op::ReleaseSync { .. } => "release-sync",
            Op::ReAddMember { .. } => "re-add-member",
            Op::AddMember { .. } => "add-member",
            Op::FailMember { .. } => "fail-member",
            Op::RemoveFaulty { .. } => "remove-faulty",
            Op::FreezeWrites { .. } => "freeze-writes",
            Op::SetWriteMostly { .. } => "set-write-mostly",
            Op::AddBitmap { .. } => "add-bitmap",
            Op::RemoveBitmap { .. } => "remove-bitmap",
            Op::SetRaidDisks { .. } => "set-raid-disks",
            Op::GrowArray { .. } => "grow-array",
            Op::SetSyncSpeed { .. } => "set-sync-speed",
            Op::HoldSync { .. } => "hold-sync",
            Op::StopArray { .. } => "stop-array",
            Op::StopForeignArray { .. } => "stop-foreign-array",
            Op::MakeFilesystem { .. } => "make-filesystem",
            Op::Mount { .. } => "mount",
            Op::GrowFilesystem { .. } => "grow-filesystem",
            Op::BindMount { .. } => "bind-mount",
            Op::Unmount { .. } => "unmount",
            Op::KillOpeners { .. } => "kill-openers",
            Op::CutOff { .. } => "cut-off",
            Op::ShutdownFilesystem { .. } => "shutdown-filesystem",
        }
    }
}
