//! What a [`Reason`] says to people: in conditions, events, answers of CSI and log lines.
//!
//! Texts only; what to do about each stands in `docs/errors.md`.

use super::Reason;
use meshstor_kernel::id::ReplicaId;
use std::collections::BTreeSet;
use std::fmt;

/// `r0, r2`.
fn list(replicas: &BTreeSet<ReplicaId>) -> String {
    replicas.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Reason {
    /// The sentences about copies that are waited for.
    fn of_copies(&self) -> String {
        match self {
            Reason::AwaitingFence { replicas, epoch } => {
                format!("waiting for the nodes of {} to fence for epoch {epoch}", list(replicas))
            }
            Reason::AwaitingConnection { replicas } => format!("waiting for a live connection to {}", list(replicas)),
            Reason::AwaitingPartition { replica } => format!("waiting for the partition of {replica}"),
            Reason::LastCopyFrozen { replica } => {
                format!("{replica} is the last in-sync copy and cannot be reached: writes wait, nothing fails")
            }
            Reason::LastCopyFailed { replica } => format!(
                "{replica}, the last in-sync copy, failed: the array is made anew when nothing uses it any more"
            ),
            Reason::AwaitingSize { replicas, bytes } => {
                format!("the array is to grow and waits until {} has {bytes} bytes", list(replicas))
            }
            Reason::NeedsGrowBeforeRejoin { replica, has, wanted } => {
                format!("{replica} has {has} bytes, the volume has grown: it returns when it has {wanted}")
            }
            Reason::StaleCopy { replica } => {
                format!("{replica} is older than one that marks it missing; not assembled")
            }
            Reason::Replacing { replica, by } => format!("{replica} is lost, {by} is being made in its place"),
            Reason::Moving { replica } => format!("{replica} leaves as soon as enough others are in sync"),
            other => other.word().to_string(),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::ApiUnreachable => {
                f.write_str("the API server does not answer; the next step must be recorded first")
            }
            Reason::VolumeMissing => f.write_str("the volume's object does not exist; its data are kept and served on"),
            Reason::RecordLost { what } => {
                write!(f, "the record of complete copies is lost ({what}); rebuild it with: meshstor recover")
            }
            Reason::EpochRegressed { drive, record } => write!(
                f,
                "the drive has seen epoch {drive}, the record says {record}: it went back in time; see: meshstor recover"
            ),
            Reason::NotConsumer { consumer: Some(node) } => write!(f, "node {node} is the volume's consumer"),
            Reason::NotConsumer { consumer: None } => f.write_str("the volume is not published to this node"),
            Reason::NewBoot => f.write_str("this node rebooted; waiting for the controller to begin a new epoch"),
            Reason::AwaitingFence { .. }
            | Reason::AwaitingConnection { .. }
            | Reason::AwaitingPartition { .. }
            | Reason::LastCopyFrozen { .. }
            | Reason::LastCopyFailed { .. }
            | Reason::AwaitingSize { .. }
            | Reason::NeedsGrowBeforeRejoin { .. }
            | Reason::StaleCopy { .. }
            | Reason::Replacing { .. }
            | Reason::Moving { .. } => f.write_str(&self.of_copies()),
            Reason::DataMissing { what } => write!(f, "the volume's data are missing ({what}); never formatted again"),
            Reason::Resyncing { percent } => write!(f, "copying to a returning member, {percent} % done"),
            Reason::Degraded { missing } => write!(f, "not in sync: {}", list(missing)),
            Reason::Flapping { replica, times, until } => {
                write!(f, "{replica} has left {times} times, each within an hour of the last; it returns at {until}")
            }
            Reason::WaitsForResyncBudget { replica } => {
                write!(f, "{replica} has to be copied wholly and waits for the controller's leave: others go first")
            }
            Reason::CacheLost { replica } => write!(
                f,
                "the drive of {replica} was without power and has a volatile cache: it may lack what was not flushed, and \
                 waits for its consumer to drop it and take it back; if it is the last copy, the volume has to be detached \
                 and attached again"
            ),
            Reason::HeldByArray { array } => write!(f, "{array} of an older epoch still uses the partition"),
            Reason::Busy { holder } => write!(f, "in use by {holder}"),
            Reason::DriveRefused { why } => write!(f, "the drive is not ours to use: {why}"),
            Reason::DriveUnreadable { why } => write!(f, "the drive cannot be read: {why}"),
            Reason::DriveGone => f.write_str("the drive is not there"),
            Reason::NoSpace { wanted, largest } => write!(f, "no free extent of {wanted} bytes (largest is {largest})"),
            Reason::NoRoomBehind { lacks, free } => {
                write!(f, "growing needs {lacks} more bytes right behind the partition, {free} are free there")
            }
            Reason::NoPort => f.write_str("no free port in the configured range"),
            Reason::NoAddress => f.write_str("this node has no address to export on"),
            Reason::Failing { error } => write!(f, "retrying: {error}"),
            Reason::NodeSilent { node, why } => write!(f, "node {node} is silent: {why}"),
            Reason::NodeDeleted { node } => write!(f, "node {node} is silent and has no Node object any more"),
            Reason::NoRoom { what } => write!(f, "there is no room {what}"),
            Reason::StillInSync { replica } => {
                write!(f, "{replica} is to be wiped and is recorded as in sync: kept until the record is without it")
            }
            Reason::Releasing => f.write_str("being released"),
            Reason::DeletedByHand => f.write_str(
                "the object was deleted by hand without DeleteVolume: data are kept and served; \
                 delete the PersistentVolumeClaim instead, or re-create the object with: meshstor recover",
            ),
            Reason::Orphaned => f.write_str(
                "neither claim nor PersistentVolume exists: data are kept until one leads here or spec.deletionRequested is set",
            ),
            Reason::Deposed { epoch } => write!(f, "epoch {epoch} has a new consumer; stopping here, data kept"),
        }
    }
}
