//! A replica's partition made longer where it is, in use or not.
//!
//! ```text
//!  lock the drive ─▶ space behind it free? ─▶ zero that space, flush ─▶ table entry ─▶ kernel partition
//! ```
//!
//! Called by the real kernel's `apply`, on threads that may block. Whatever length a table shows was zeroed before it was
//! written there (docs/adr/0008-zeroed-partitions.md): a call that is cut short before that has changed nothing that
//! anybody uses, one that is cut short after it is completed by `announce`. It never shortens and never moves an entry.

use super::bytes::Bytes;
use super::{announce_at, announce_locked, refuse, require};
use crate::error::{KernelError, Result};
use crate::facts::Extent;
use crate::id::{DriveId, ReplicaKey};
use crate::linux::drives;
use crate::linux::gpt::Editor;
use crate::linux::root::Root;
use crate::ops::Changed;

/// Lengthens the replica's entry to `bytes`.
pub fn grow(root: &Root, key: ReplicaKey, drive: &DriveId, bytes: u64) -> Result<Changed> {
    let place = require("grow partition", root, key)?;
    if place.namespace.id != *drive {
        return Err(refuse("grow partition", &place, format!("the replica's partition is not on {drive}")));
    }
    let extent = place.entry.extent;
    if bytes <= extent.length {
        return announce_at(root, &place);
    }
    let editor = Editor::lock(&place.namespace)?;
    let table = editor.table()?;
    if table.entries.get(&place.number) != Some(&place.entry) {
        return Err(KernelError::retry("grow partition", place.name(), "the table has changed meanwhile"));
    }
    let known = drives::kernel_partitions(root, &place.namespace.name)?;
    let others = known.iter().filter(|(number, _)| **number != place.number);
    let others: Vec<Extent> = others.map(|(_, partition)| partition.extent).collect();
    let added = Extent { start: extent.end(), length: bytes - extent.length };
    // Nobody can take it while the drive is locked, and nobody of ours while this operation has the drive.
    editor.check_free(&table, added, &others)?;
    Bytes::in_drive(editor.file(), &place.namespace.path, added).zero_and_check()?;
    editor.lengthen(place.entry.unique_guid, bytes, &others)?;
    let whole = Extent { start: extent.start, length: bytes };
    announce_locked(root, &editor, &place.namespace, place.number, whole)?;
    Ok(Changed::Yes)
}
