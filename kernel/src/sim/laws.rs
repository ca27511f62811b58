//! Laws of the simulated kernels: what no operation may ever do, whatever the actors believe.
//!
//! Each law is checked where the effect happens and recorded when broken; where a real kernel or our own binding
//! would refuse, the operation is refused as well. A refusal alone is no violation: evidence may have gone stale on
//! the way. Called by the operations and by every landing write; it never looks at custom resources.

use super::bio::{Dev, Landing};
use super::md::Member;
use super::state::{State, Time};
use crate::facts::Extent;
use crate::id::{ExportKey, NodeName, PARTITION_TYPE};
use crate::mutant::{self, Mutant};
use crate::ops::Op;
use std::fmt;

/// The laws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Law {
    /// P3: bytes that are not ours, or another volume's, were to be written.
    ForeignBytes,
    /// P3: a partition was to be made where another one lies.
    OverlappingPartition,
    /// P1: an array was to be created over data.
    CreateOverData,
    /// P4: a file system was to be made over data.
    FormatOverData,
    /// P8: the last member in sync was to be dropped.
    LastCopyDropped,
    /// P2: an array wrote to a partition that a later array holds.
    TwoWriters,
    /// P2: a partition was exported while an array of its own node holds it, or the other way round.
    LocalAndExported,
    /// P1: a replica came back by bitmap with chunks of its own bitmap not merged (docs/kernel-hazards.md, F1).
    ReAddWithoutMerge,
}

/// One broken law.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub law: Law,
    /// When, since the world began.
    pub at: Time,
    /// On which node.
    pub node: NodeName,
    /// What happened.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:.6} on {}: {}", self.law, self.at.as_secs_f64(), self.node, self.detail)
    }
}

impl State {
    pub(super) fn violate(&mut self, node: usize, law: Law, detail: String) {
        self.say(node, format!("LAW BROKEN {law:?}: {detail}"));
        let name = self.nodes[node].name.clone();
        self.violations.push(Violation { law, at: self.now, node: name, detail });
    }

    /// The partition behind a device, and the node of its drive.
    pub(super) fn place_of(&self, node: usize, dev: Dev) -> Option<(usize, usize, u32)> {
        match dev {
            Dev::Part { drive, number } => Some((node, drive, number)),
            Dev::Head { head } => {
                let key = self.nodes[node].heads.get(&head)?.key;
                let (drive, number) = self.partition_anywhere(key)?;
                Some((self.drives[drive].home?, drive, number))
            }
        }
    }

    fn partition_anywhere(&self, key: ExportKey) -> Option<(usize, u32)> {
        let wanted = key.replica.partition_uuid();
        self.drives.iter().enumerate().find_map(|(d, drive)| {
            let mut entries = drive.table.as_ref()?.iter();
            entries.find(|(_, e)| e.unique_guid == wanted).map(|(number, _)| (d, *number))
        })
    }

    pub(super) fn replica_extent(&self, key: crate::id::ReplicaKey) -> Option<(usize, Extent)> {
        let (drive, number) = self.partition_anywhere(ExportKey { replica: key, epoch: 0, generation: 0 })?;
        Some((drive, self.drives[drive].entry(number)?.extent))
    }

    /// A write lands: no later array may hold the partition. Ids of arrays rise with time.
    pub(super) fn law_one_writer(&mut self, landing: &Landing) {
        let later = self.arrays.iter().filter(|(id, _)| **id > landing.writer).find(|(_, a)| {
            let mut members = a.members.values().filter(|m| !m.faulty);
            members.any(|m| {
                self.place_of(a.node, m.dev).is_some_and(|(_, d, p)| (d, p) == (landing.drive, landing.number))
            })
        });
        if let Some((id, holder)) = later {
            let serial = &self.drives[landing.drive].spec.serial;
            let at = format!("partition {} of {serial}", landing.number);
            let detail = format!("{at} belongs to {} on {} (array {id})", holder.name, self.nodes[holder.node].name);
            let detail = format!("array {} wrote to it: {detail}", landing.writer);
            self.violate(landing.node, Law::TwoWriters, detail);
        }
    }

    /// An export of a partition that an array of its own node holds. The binding refuses it; it is a broken law when
    /// the array has been there for longer than an observation lasts.
    pub(super) fn law_export_held(&mut self, node: usize, key: ExportKey, drive: usize, number: u32) {
        let dev = Dev::Part { drive, number };
        let old = self.arrays.values().find(|a| {
            let holds = a.node == node && a.members.values().any(|m| m.dev == dev);
            holds && a.started + self.config.evidence_grace < self.now
        });
        if let Some(holder) = old.map(|a| a.name.clone()) {
            self.violate(node, Law::LocalAndExported, format!("export {key} of a partition that {holder} holds"));
        }
    }

    /// The epoch that the record on a drive names.
    pub(super) fn export_floor(&self, drive: usize, number: u32) -> u64 {
        let start = self.drives[drive].entry(number).map(|e| e.extent.start).unwrap_or_default();
        self.drives[drive].meta(start).record.map(|r| r.epoch).unwrap_or_default()
    }

    /// A device that becomes a member of an array may not be exported from here; both bindings refuse that.
    pub(super) fn exported_here(&mut self, node: usize, dev: Dev) -> Option<ExportKey> {
        let Dev::Part { drive, number } = dev else { return None };
        let key = self.export_of(node, drive, number)?;
        if !mutant::on(Mutant::TakesExported) {
            return Some(key);
        }
        self.violate(node, Law::LocalAndExported, format!("a local array takes the partition exported as {key}"));
        None
    }

    /// An extent that is not free: an accident of the moment when its owner is fresh, else a broken law.
    pub(super) fn law_overlap(&mut self, node: usize, op: &Op, drive: usize, extent: Extent) {
        let grace = self.config.evidence_grace;
        let d = &self.drives[drive];
        let overlaps = |e: &Extent| e.start < extent.end() && extent.start < e.end();
        let mut hit = d.table.iter().flatten().filter(|(_, e)| overlaps(&e.extent));
        let old = hit.find(|(number, entry)| {
            let made = d.made_at.get(number).copied().unwrap_or(Time::ZERO);
            entry.type_guid != PARTITION_TYPE || made + grace < self.now
        });
        let Some(name) = old.map(|(_, entry)| entry.name.clone()) else { return };
        self.violate(node, Law::OverlappingPartition, format!("{op}: {name:?} lies there"));
    }

    /// DropMember was asked for without a survivor. Losing it a moment before is bad luck, not a broken law.
    pub(super) fn law_last_copy(&mut self, node: usize, op: &Op, array: u64, survivor: &str) {
        let Some(a) = self.arrays.get(&array) else { return };
        let failed = a.members.get(survivor).map(|m: &Member| m.failed_at);
        let lately = |at: Time| at + self.config.evidence_grace >= self.now;
        let bad_luck = match failed {
            Some(Some(at)) => lately(at),
            // Not failed and yet not in sync: it never was a survivor. Gone altogether: removed after it failed.
            Some(None) | None => false,
        };
        if !bad_luck {
            self.violate(node, Law::LastCopyDropped, op.to_string());
        }
    }

    /// A replica comes back by bitmap: what its own bitmap marks must be NEEDED in the running array.
    pub(super) fn law_re_add(&mut self, node: usize, array: u64, dev: Dev) {
        let own = self.superblock_at(node, dev).and_then(|sb| sb.bitmap);
        let Some(a) = self.arrays.get(&array) else { return };
        let Some(bits) = &a.bitmap else { return };
        let needed = |c: &u64| bits.chunks.get(c).is_some_and(|b| b.needed);
        let missing = own.iter().flat_map(|b| b.dirty.iter()).filter(|c| !needed(c)).count();
        if missing > 0 {
            let line = format!("{missing} chunks of the returning replica are not merged into {}", a.name);
            self.violate(node, Law::ReAddWithoutMerge, line);
        }
    }
}
