//! The audit line of an operation: its name and what tells it from another one.
//!
//! Printed by the shell before and after each operation, by the simulator's trace and in errors. It never leaves out what
//! is destroyed, nor why that is allowed.

use super::{FormatPermit, Op};
use std::fmt;

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match self {
            Op::LabelDrive { evidence } => write!(f, "{name} {}", evidence.drive()),
            Op::DisableCache { drive } => write!(f, "{name} {drive}"),
            Op::AddPartition { key, drive, extent } => {
                write!(f, "{name} {key} on {drive} at {}+{}", extent.start, extent.length)
            }
            Op::GrowPartition { key, drive, bytes } => write!(f, "{name} {key} on {drive} to {bytes} bytes"),
            Op::AnnouncePartition { key } => write!(f, "{name} {key}"),
            Op::BlankPartition { evidence, .. } | Op::RemovePartition { evidence } => {
                write!(f, "{name} {}", evidence.key())
            }
            Op::WriteRecord { key, record } => write!(f, "{name} {key} epoch {}.{}", record.epoch, record.generation),
            Op::Export { key, host, listen } => {
                write!(f, "{name} {key} to {host} on")?;
                listen.iter().try_for_each(|l| write!(f, " {}:{}:{}", l.transport.as_str(), l.address, l.port))
            }
            Op::Fence { key } | Op::RevalidateExport { key } | Op::RemoveExport { key } | Op::Disconnect { key } => {
                write!(f, "{name} {key}")
            }
            Op::Connect { key, address, .. } => {
                write!(f, "{name} {key} at {}:{}:{}", address.transport.as_str(), address.address, address.port)
            }
            Op::DropMember { key, evidence, .. } => write!(f, "{name} {key} survivor {}", evidence.survivor()),
            Op::CutOff { volume, deposed_by } => write!(f, "{name} {} deposed by epoch {deposed_by}", volume.short()),
            Op::Abandon { key, deposed_by } => write!(f, "{name} {key} deposed by epoch {deposed_by}"),
            Op::CreateArray { volume, members, component_bytes, .. } => {
                write!(f, "{name} {} of {component_bytes} bytes from", volume.short())?;
                members.iter().try_for_each(|m| write!(f, " {}", m.device()))
            }
            Op::AssembleArray { volume, members } => write!(f, "{name} {} from {}", volume.short(), members.join(" ")),
            Op::ActivateArray { volume }
            | Op::ReleaseSync { volume }
            | Op::AddBitmap { volume }
            | Op::RemoveBitmap { volume }
            | Op::StopArray { volume }
            | Op::KillOpeners { volume }
            | Op::ShutdownFilesystem { volume } => write!(f, "{name} {}", volume.short()),
            Op::MergeBitmap { volume, chunks } => write!(f, "{name} {} {} chunks", volume.short(), chunks.len()),
            Op::ReAddMember { volume, device } | Op::AddMember { volume, device } => {
                write!(f, "{name} {} {device}", volume.short())
            }
            Op::FailMember { volume, component, evidence } => {
                write!(f, "{name} {} {component} survivor {}", volume.short(), evidence.survivor())
            }
            Op::RemoveFaulty { volume, component } => write!(f, "{name} {} {component}", volume.short()),
            Op::FreezeWrites { volume, component, frozen: on } | Op::SetWriteMostly { volume, component, on } => {
                write!(f, "{name} {} {component} {}", volume.short(), onoff(on))
            }
            Op::SetRaidDisks { volume, count } => write!(f, "{name} {} {count}", volume.short()),
            Op::GrowArray { volume, component_bytes: to } => write!(f, "{name} {} to {to} bytes", volume.short()),
            Op::GrowFilesystem { volume, target } => write!(f, "{name} {} at {target}", volume.short()),
            Op::SetSyncSpeed { volume, speed } => {
                write!(f, "{name} {} {} to {} KiB/s", volume.short(), speed.min_kib, speed.max_kib)
            }
            Op::HoldSync { volume, held } => write!(f, "{name} {} {}", volume.short(), onoff(held)),
            Op::StopForeignArray { name: md } => write!(f, "{name} {md}"),
            Op::MakeFilesystem { volume, filesystem, permit } => {
                let why = match permit {
                    FormatPermit::Blank(members) => format!("{} blank members", members.len()),
                    FormatPermit::StartedNotDone { .. } => "started, not done".into(),
                };
                write!(f, "{name} {} {filesystem} ({why})", volume.short())
            }
            Op::Mount { volume, target, fs, .. } => write!(f, "{name} {} {fs} at {target}", volume.short()),
            Op::BindMount { source, target, .. } => write!(f, "{name} {source} at {target}"),
            Op::Unmount { target, lazy } => write!(f, "{name} {target}{}", if *lazy { " lazily" } else { "" }),
        }
    }
}

fn onoff(on: &bool) -> &'static str {
    if *on { "on" } else { "off" }
}
