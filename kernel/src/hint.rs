//! Hints: "look again at this". Made by udev, netlink, sysfs polls and timers; consumed by the node actor.
//!
//! A hint carries no fact. Lost, doubled or reordered hints must be harmless; an overflow becomes [`Hint::Everything`].

use crate::id::{DriveId, VolumeId};

/// What may have changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hint {
    /// A drive came, went or changed its partitions.
    Drive(DriveId),
    /// Some drive came, went or changed; which one is not known.
    Drives,
    /// A fabric controller or namespace of this volume changed its state.
    Connection(VolumeId),
    /// Some fabric controller changed.
    Connections,
    /// An MD array changed: member state, sync action, size.
    Array(VolumeId),
    /// Some MD array changed.
    Arrays,
    /// Links or addresses changed (transports of this node).
    Network,
    /// Events were lost: look at everything.
    Everything,
}
