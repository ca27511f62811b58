//! The oracle's eyes: simulated disks block by block, everything of ours that exists anywhere, the writes that
//! applications were told are safe.
//!
//! Called by tests and by the oracle. It reads the simulated kernels only and never asks an actor.

use super::fs::FS_BLOCKS;
use super::state::State;
use crate::facts::{Bitmap, EpochRecord, Superblock};
use crate::id::{DriveId, NodeName, PARTITION_TYPE, ReplicaId, VolumeId};
use std::collections::BTreeMap;
use std::fmt;

/// One replica's copy as it lies on its drive.
#[derive(Debug, Clone, PartialEq)]
pub struct Copy {
    /// Node the drive is plugged in at; `None` when it is pulled.
    pub node: Option<NodeName>,
    /// Its drive.
    pub drive: DriveId,
    /// Non-zero blocks as applications count them, as a read would return them now.
    pub blocks: BTreeMap<u64, u64>,
    /// The same as a power cut would leave them.
    pub durable: BTreeMap<u64, u64>,
    /// Non-zero blocks of the file system's own.
    pub fs: BTreeMap<u64, u64>,
    /// MD superblock.
    pub superblock: Option<Superblock>,
    /// Write-intent bitmap.
    pub bitmap: Option<Bitmap>,
    /// Our record.
    pub record: Option<EpochRecord>,
}

/// Something of ours that exists.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leak {
    /// Where; empty for a drive that is plugged in nowhere.
    pub node: String,
    /// `partition`, `subsystem`, `port`, `controller`, `array` or `mount`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} on {:?}", self.kind, self.name, self.node)
    }
}

impl State {
    pub(super) fn copies(&self, volume: VolumeId) -> BTreeMap<ReplicaId, Copy> {
        let mut copies = BTreeMap::new();
        for drive in &self.drives {
            for entry in drive.table.iter().flat_map(|t| t.values()) {
                let Some(key) = self.keys.get(&entry.unique_guid).filter(|k| k.volume == volume) else { continue };
                let all = drive.data(entry.extent, self.config.block_bytes, false);
                let durable = drive.data(entry.extent, self.config.block_bytes, true);
                let meta = drive.meta(entry.extent.start);
                let copy = Copy {
                    node: drive.home.map(|n| self.nodes[n].name.clone()),
                    drive: drive.spec.id(),
                    fs: all.range(..FS_BLOCKS).map(|(b, t)| (*b, *t)).collect(),
                    blocks: shift(&all),
                    durable: shift(&durable),
                    superblock: meta.superblock,
                    bitmap: meta.bitmap,
                    record: meta.record,
                };
                copies.insert(key.replica, copy);
            }
        }
        copies
    }

    /// The last acknowledged content of each block, by the order of acknowledgement.
    pub(super) fn acknowledged(&self, volume: VolumeId) -> BTreeMap<u64, u64> {
        let mut done: Vec<_> = self.history.iter().filter(|w| w.volume == volume && w.acknowledged.is_some()).collect();
        done.sort_by_key(|w| (w.acknowledged, w.io));
        done.into_iter().map(|w| (w.block, w.tag)).collect()
    }

    pub(super) fn leaks(&self) -> Vec<Leak> {
        let mut all = Vec::new();
        for drive in &self.drives {
            let node = drive.home.map(|n| self.nodes[n].name.0.clone()).unwrap_or_default();
            let ours = drive.table.iter().flat_map(|t| t.values()).filter(|e| e.type_guid == PARTITION_TYPE);
            all.extend(ours.map(|e| Leak { node: node.clone(), kind: "partition", name: e.name.clone() }));
        }
        for n in &self.nodes {
            let leak = |kind: &'static str, name: String| Leak { node: n.name.0.clone(), kind, name };
            all.extend(n.subsystems.keys().map(|k| leak("subsystem", k.to_string())));
            let port = |l: &crate::facts::Listen| format!("{}:{}:{}", l.transport.as_str(), l.address, l.port);
            all.extend(n.ports.keys().map(|l| leak("port", port(l))));
            all.extend(n.controllers.values().map(|c| leak("controller", format!("{} of {}", c.name, c.key))));
            all.extend(n.mounts.keys().map(|target| leak("mount", target.clone())));
        }
        for a in self.arrays.values() {
            all.push(Leak { node: self.nodes[a.node].name.0.clone(), kind: "array", name: a.name.clone() });
        }
        all.sort();
        all
    }
}

/// Application blocks of a data area.
fn shift(blocks: &BTreeMap<u64, u64>) -> BTreeMap<u64, u64> {
    blocks.range(FS_BLOCKS..).map(|(block, tag)| (block - FS_BLOCKS, *tag)).collect()
}
