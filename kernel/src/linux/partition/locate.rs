//! Finds a replica's partition on the node's drives by its unique GUID, with plain reads.
//!
//! Called by the operations, on threads that may block, with local drives only. Each drive is read on a thread of its
//! own: one that hangs delays the answer by a deadline and no more.

use crate::error::{KernelError, Result};
use crate::facts::PartitionEntry;
use crate::id::{PARTITION_TYPE, ReplicaKey};
use crate::linux::classify::{TABLE_BYTES, Window, read_table};
use crate::linux::drives::{self, KernelPartition, Namespace, READ_DEADLINE};
use crate::linux::ioctl::{AlignedBuf, O_DIRECT};
use crate::linux::root::Root;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc;
use std::time::Instant;
use uuid::Uuid;

/// Where a replica's partition is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The drive.
    pub namespace: Namespace,
    /// Entry number.
    pub number: u32,
    /// The table's entry.
    pub entry: PartitionEntry,
    /// What the kernel has under the same number.
    pub kernel: Option<KernelPartition>,
}

impl Place {
    /// The kernel's partition, when it is exactly the table's entry.
    pub fn announced(&self) -> Option<&KernelPartition> {
        self.kernel.as_ref().filter(|partition| partition.extent == self.entry.extent)
    }

    /// Its device node.
    pub fn node(&self) -> Option<&Path> {
        self.announced().map(|partition| partition.path.as_path())
    }

    /// For messages.
    pub fn name(&self) -> String {
        format!("{} number {}", self.namespace.path, self.number)
    }
}

/// The entry of ours with this GUID in a table, with its number.
pub fn entry_of(entries: &BTreeMap<u32, PartitionEntry>, unique_guid: Uuid) -> Option<(u32, &PartitionEntry)> {
    let ours = |entry: &PartitionEntry| entry.type_guid == PARTITION_TYPE && entry.unique_guid == unique_guid;
    entries.iter().find(|(_, entry)| ours(entry)).map(|(number, entry)| (*number, entry))
}

/// The replica's partition; `None` when no drive has it. Refused when two have it: one of them is a copy of the other.
pub fn locate(root: &Root, key: ReplicaKey) -> Result<Option<Place>> {
    let namespaces = drives::namespaces(root)?;
    let mut unread: BTreeMap<String, KernelError> = BTreeMap::new();
    let mut found: Vec<(Namespace, u32, PartitionEntry)> = Vec::new();
    for (namespace, result) in tables(namespaces) {
        match result {
            Ok(entries) => {
                let entry = entry_of(&entries, key.partition_uuid());
                found.extend(entry.map(|(number, entry)| (namespace, number, entry.clone())));
            }
            Err(error) => drop(unread.insert(namespace.name, error)),
        }
    }
    one_of(key, found, unread)?.map(|(namespace, number, entry)| complete(root, namespace, number, entry)).transpose()
}

/// Exactly one place, or none, or a reason why that cannot be said.
pub fn one_of<T>(
    key: ReplicaKey,
    found: Vec<(Namespace, u32, T)>,
    unread: BTreeMap<String, KernelError>,
) -> Result<Option<(Namespace, u32, T)>> {
    let names: Vec<&str> = found.iter().map(|(namespace, _, _)| namespace.name.as_str()).collect();
    if names.len() > 1 {
        let detail = format!("{} both have its partition: one is a copy of the other", names.join(" and "));
        return Err(KernelError::refuse("find partition", key.to_string(), detail));
    }
    let Some((namespace, number, entry)) = found.into_iter().next() else {
        return match unread.into_iter().find(|(_, error)| drives::may_hold(error)) {
            Some((name, error)) => {
                let detail = format!("{name}, which may have its partition, does not answer: {}", error.detail);
                Err(KernelError::wait("find partition", key.to_string(), detail))
            }
            None => Ok(None),
        };
    };
    match &namespace.ambiguous {
        Some(why) => Err(KernelError::refuse("find partition", namespace.path.clone(), why.clone())),
        None => Ok(Some((namespace, number, entry))),
    }
}

fn complete(root: &Root, namespace: Namespace, number: u32, entry: PartitionEntry) -> Result<Place> {
    let kernel = drives::kernel_partitions(root, &namespace.name)?.remove(&number);
    Ok(Place { namespace, number, entry, kernel })
}

/// The trusted entries of every drive.
fn tables(namespaces: Vec<Namespace>) -> Vec<(Namespace, Result<BTreeMap<u32, PartitionEntry>>)> {
    let (sender, answers) = mpsc::channel();
    let mut waiting: BTreeMap<String, Namespace> = BTreeMap::new();
    for namespace in namespaces {
        let (sender, job) = (sender.clone(), namespace.clone());
        waiting.insert(namespace.name.clone(), namespace);
        let read = move || {
            let entries = read(&job).map_err(|e| KernelError::io("read drive", job.path.clone(), &e));
            // Nobody listens any more after the deadline.
            let _ = sender.send((job.name, entries));
        };
        // Detached: a thread whose drive hangs ends when the drive's driver gives up. A drive for which there is no
        // thread counts as one that does not answer.
        if let Err(error) = std::thread::Builder::new().name("table".into()).spawn(read) {
            tracing::warn!(%error, "no thread to read a drive");
        }
    }
    drop(sender);
    let give_up = Instant::now() + READ_DEADLINE;
    let mut results = Vec::new();
    while !waiting.is_empty() {
        let Ok((name, entries)) = answers.recv_timeout(give_up.saturating_duration_since(Instant::now())) else {
            break;
        };
        results.extend(waiting.remove(&name).map(|namespace| (namespace, entries)));
    }
    for (_, namespace) in waiting {
        let error = KernelError::retry("read drive", namespace.path.clone(), "no answer in time");
        results.push((namespace, Err(error)));
    }
    results
}

fn read(namespace: &Namespace) -> io::Result<BTreeMap<u32, PartitionEntry>> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(O_DIRECT);
    let file = drives::open_node(Path::new(&namespace.path), namespace.numbers.as_deref(), &options)?;
    let len = TABLE_BYTES.min(namespace.size_bytes);
    let end = |at: u64| -> io::Result<AlignedBuf> {
        let mut buffer = AlignedBuf::zeroed(len as usize)?;
        file.read_exact_at(&mut buffer, at)?;
        Ok(buffer)
    };
    let (first, last) = (end(0)?, end(namespace.size_bytes - len)?);
    let table = read_table(Window { geometry: namespace.geometry(), first: &first, last: &last });
    // A drive without a table we trust has no partition of ours that we would touch.
    Ok(table.ok().flatten().map(|table| table.entries).unwrap_or_default())
}
