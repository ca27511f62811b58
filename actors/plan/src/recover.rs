//! Recover: which copies of a volume are complete, judged from their own drives, when the record went back in time or is
//! gone (docs/protocol.md, rule 9).
//!
//! Called by `meshstor recover` only, on what nodes have just read. It never chooses between two histories that know
//! nothing of each other, and never takes copies while one that may be newer is silent, unless a person has named the
//! volume and accepted the loss. What it leaves out comes back by a whole copy.
//!
//! Why the newest superblock decides: MD writes it to *every* active member whenever the set of members changes. Whoever
//! came after the newest one that was read must have begun with one of the members it calls active; if all of these were
//! read, there is nothing newer. A copy that is called missing there, and that the drives' records no longer name either,
//! cannot be newer.

use crate::record::VolumeRecord;
use judge::{Judged, judge, unseen};
use meshstor_kernel::facts::{EpochRecord, Superblock};
use meshstor_kernel::id::{DriveId, Epoch, NodeName, ReplicaId, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use uuid::Uuid;

mod judge;
mod words;

pub use words::copies as list_of_copies;

/// One copy as its node has just read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyReport {
    /// Where it is.
    pub node: NodeName,
    /// On which drive.
    pub drive: DriveId,
    /// Bytes of the partition.
    pub bytes: u64,
    /// Our record in it.
    pub record: EpochRecord,
    /// The part of its MD superblock that tells who was a member with whom.
    pub member: Option<Member>,
    /// Kernel holders: an array that uses it now.
    pub holders: BTreeSet<String>,
}

/// What an MD superblock says of the array and of this member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Uuid of the array.
    pub set_uuid: Uuid,
    /// Event count.
    pub events: u64,
    /// This device's number.
    pub number: u32,
    /// Device numbers that it calls active.
    pub active: BTreeSet<u32>,
    /// It is still being copied to, by its own word.
    pub recovering: bool,
    /// Bytes of data.
    pub component_bytes: u64,
}

impl From<&Superblock> for Member {
    fn from(superblock: &Superblock) -> Member {
        let active = (0u32..).zip(&superblock.roles).filter(|(_, role)| **role < 0xfff0).map(|(number, _)| number);
        Member {
            set_uuid: superblock.set_uuid,
            events: superblock.events,
            number: superblock.dev_number,
            active: active.collect(),
            recovering: superblock.recovery_offset.is_some(),
            component_bytes: superblock.component_bytes,
        }
    }
}

/// What a person has accepted for one volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// Whatever the silent copies have and the newest one that answers has not.
    Newest,
    /// Whatever this copy does not have.
    Copy(ReplicaId),
}

/// One volume, with everything that is known of it.
#[derive(Debug, Clone)]
pub struct Case<'a> {
    /// Its identity.
    pub volume: VolumeId,
    /// The record; `None` when there is no object.
    pub record: Option<&'a VolumeRecord>,
    /// Copies that objects name and nobody has let go, with their nodes.
    pub known: BTreeMap<ReplicaId, NodeName>,
    /// Copies that were let go for ever.
    pub dismissed: BTreeSet<ReplicaId>,
    /// What the drives say.
    pub copies: Vec<CopyReport>,
    /// What was accepted.
    pub accepted: Option<Accepted>,
}

/// What was found of a volume, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The recorded epoch.
    pub recorded: Option<Epoch>,
    /// The highest epoch anybody has seen.
    pub seen: Epoch,
    /// One verdict for each copy that answered, in the order of the case.
    pub verdicts: Vec<Verdict>,
    /// Copies that are known of and did not answer.
    pub unseen: BTreeMap<Unseen, Newer>,
    /// What to do.
    pub outcome: Outcome,
}

/// Why a copy is in the proposed set, or is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It has everything.
    Complete,
    /// The newest superblock calls it missing, or it has fewer events.
    Behind,
    /// It was being copied to.
    Unfinished,
    /// It carries no superblock of this volume.
    Blank,
    /// It was let go for ever.
    Dismissed,
    /// It and the newest copy each went on without the other.
    Diverged,
    /// Another partition has the same number.
    Doubled,
}

/// A copy that did not answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unseen {
    /// This one.
    Copy(ReplicaId),
    /// A member of the array, by its device number: nobody knows where it is.
    Device(u32),
}

/// Whether a copy that did not answer can have writes that no other one has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Newer {
    /// It can.
    Possible,
    /// The newest copies and the drives' records say that it had left.
    Excluded,
}

/// What to do about a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The record is as new as the drives.
    Sound,
    /// Write this.
    Write(Proposal),
    /// Nothing can be proposed.
    Blocked(Blocked),
}

/// A record to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Above everything that was ever seen, so that everything is fenced anew.
    pub epoch: Epoch,
    /// The complete copies.
    pub in_sync: BTreeSet<ReplicaId>,
    /// The epoch to call the last activated one; zero: the volume was never used.
    pub activated: Epoch,
    /// Bytes of data, as the members have them.
    pub size_bytes: Option<u64>,
    /// Copies whose writes are given up, because a person said so.
    pub given_up: BTreeSet<Unseen>,
    /// Diverged copies whose writes are given up, because a person said so.
    pub overruled: BTreeSet<ReplicaId>,
}

/// Why nothing is proposed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blocked {
    /// No copy answered.
    NoCopy,
    /// None of those that answered is whole.
    NoWholeCopy,
    /// Copies that may be newer do not answer.
    Silent(BTreeSet<Unseen>),
    /// Several copies each went on without the others.
    Diverged(BTreeSet<ReplicaId>),
    /// Two partitions say that they are this copy.
    Doubled(ReplicaId),
    /// The copy that was named cannot be used.
    NotUsable(ReplicaId),
    /// The record is sound and a complete copy answers: there is nothing to accept.
    NotNeeded(BTreeSet<ReplicaId>),
}

/// The decision.
pub fn propose(case: &Case<'_>) -> Finding {
    let judged = judge(case);
    let unseen = unseen(case, &judged);
    let outcome = outcome(case, &judged, &unseen);
    Finding { recorded: case.record.map(|r| r.epoch), seen: seen(case), verdicts: judged.verdicts, unseen, outcome }
}

fn outcome(case: &Case<'_>, judged: &Judged, unseen: &BTreeMap<Unseen, Newer>) -> Outcome {
    let seen = seen(case);
    let answered: BTreeSet<ReplicaId> = case.copies.iter().map(|copy| copy.record.replica).collect();
    let sound = case.record.filter(|record| trusted(record) && record.epoch >= seen);
    let alive = |record: &VolumeRecord| record.in_sync.iter().flatten().any(|replica| answered.contains(replica));
    match (sound, case.accepted) {
        (Some(_), None) => return Outcome::Sound,
        (Some(record), Some(_)) if alive(record) => {
            return Outcome::Blocked(Blocked::NotNeeded(record.in_sync.clone().unwrap_or_default()));
        }
        _ => {}
    }
    if case.copies.is_empty() {
        return Outcome::Blocked(Blocked::NoCopy);
    }
    let possible: BTreeSet<Unseen> =
        unseen.iter().filter(|(_, newer)| **newer == Newer::Possible).map(|(who, _)| who.clone()).collect();
    if let Some(Accepted::Copy(replica)) = case.accepted
        && !judged.complete.contains(&replica)
    {
        return Outcome::Blocked(Blocked::NotUsable(replica));
    }
    let named = matches!(case.accepted, Some(Accepted::Copy(_)));
    let doubled = judged.verdicts.iter().zip(&case.copies).find(|(verdict, _)| **verdict == Verdict::Doubled);
    if let (Some((_, copy)), false) = (doubled, named) {
        return Outcome::Blocked(Blocked::Doubled(copy.record.replica));
    }
    if judged.complete.is_empty() {
        return never_used(case, judged, unseen, seen);
    }
    if !judged.diverged.is_empty() && !named {
        return Outcome::Blocked(Blocked::Diverged(judged.complete.union(&judged.diverged).copied().collect()));
    }
    if !possible.is_empty() && case.accepted.is_none() {
        return Outcome::Blocked(Blocked::Silent(possible));
    }
    Outcome::Write(Proposal {
        epoch: seen + 1,
        in_sync: judged.complete.clone(),
        activated: seen.max(1),
        size_bytes: judged.newest.as_ref().map(|member| member.component_bytes),
        given_up: possible,
        overruled: judged.diverged.clone(),
    })
}

/// No copy has a superblock. Of a volume whose record says that it was never used that is as it should be, when every
/// copy answers: whoever uses it first makes the array, on proof that each of them is blank.
fn never_used(case: &Case<'_>, judged: &Judged, unseen: &BTreeMap<Unseen, Newer>, seen: Epoch) -> Outcome {
    let blank = judged.verdicts.iter().all(|verdict| matches!(verdict, Verdict::Blank | Verdict::Dismissed));
    let bare = case.copies.iter().all(|copy| copy.member.is_none());
    let unused = case.record.is_some_and(crate::array::never_used);
    if !(blank && bare && unused && unseen.is_empty()) {
        return Outcome::Blocked(Blocked::NoWholeCopy);
    }
    let ours = case.copies.iter().map(|copy| copy.record.replica).filter(|replica| !case.dismissed.contains(replica));
    let in_sync: BTreeSet<ReplicaId> = ours.collect();
    if in_sync.is_empty() {
        return Outcome::Blocked(Blocked::NoWholeCopy);
    }
    Outcome::Write(Proposal {
        epoch: seen + 1,
        in_sync,
        activated: 0,
        size_bytes: None,
        given_up: BTreeSet::new(),
        overruled: BTreeSet::new(),
    })
}

/// Whether a record says of itself that it may be used.
fn trusted(record: &VolumeRecord) -> bool {
    record.foreign.is_none() && record.in_sync.as_ref().is_some_and(|set| !set.is_empty())
}

/// The highest epoch that any drive, node or object has seen.
fn seen(case: &Case<'_>) -> Epoch {
    let drives = case.copies.iter().map(|copy| copy.record.epoch);
    let told = case.record.iter().flat_map(|record| record.replicas.values());
    let told = told.map(|replica| replica.fenced_epoch.max(replica.wanted_export.0));
    drives.chain(told).chain(case.record.map(|record| record.epoch)).max().unwrap_or(0)
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unseen::Copy(replica) => write!(f, "{replica}"),
            Unseen::Device(number) => write!(f, "MD device {number}"),
        }
    }
}

#[cfg(test)]
#[path = "recover_tests.rs"]
mod tests;
