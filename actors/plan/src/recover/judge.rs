//! The judgement on each copy: with the newest superblock, before it, or apart from it; and on those that are silent.
//!
//! Called by [`super::propose`]. Pure.

use super::{Accepted, Case, CopyReport, Member, Newer, Unseen, Verdict, trusted};
use meshstor_kernel::id::ReplicaId;
use std::collections::{BTreeMap, BTreeSet};

/// Verdicts, and the members among which the choice is.
pub(super) struct Judged {
    pub(super) verdicts: Vec<Verdict>,
    /// Copies that went on without the newest ones, and these without them.
    pub(super) diverged: BTreeSet<ReplicaId>,
    /// Complete copies.
    pub(super) complete: BTreeSet<ReplicaId>,
    /// The newest superblock among the complete ones.
    pub(super) newest: Option<Member>,
}

pub(super) fn judge(case: &Case<'_>) -> Judged {
    let copies = case.copies.iter();
    let whole: Vec<Result<(ReplicaId, &Member), Verdict>> =
        copies.map(|copy| whole(case, copy).map(|member| (copy.record.replica, member))).collect();
    let named = match case.accepted {
        Some(Accepted::Copy(replica)) => Some(replica),
        _ => None,
    };
    // The named copy leads, else the one with the most events; the lower number where these are equal.
    let rank =
        |(replica, member): &(ReplicaId, &Member)| (Some(*replica) == named, member.events, u32::MAX - replica.0);
    let lead = whole.iter().flatten().max_by_key(|candidate| rank(candidate)).copied();
    let mut judged =
        Judged { verdicts: Vec::new(), diverged: BTreeSet::new(), complete: BTreeSet::new(), newest: None };
    let Some((_, newest)) = lead else {
        judged.verdicts = whole.into_iter().map(|w| w.err().unwrap_or(Verdict::Behind)).collect();
        return judged;
    };
    let together = |member: &Member| {
        let agrees = newest.active.contains(&member.number) && member.active.contains(&newest.number);
        let same = std::ptr::eq(member, newest);
        same || (agrees && member.events == newest.events && member.number != newest.number)
    };
    let complete: Vec<&Member> =
        whole.iter().flatten().filter(|(_, member)| together(member)).map(|(_, member)| *member).collect();
    for candidate in &whole {
        let verdict = match candidate {
            Err(verdict) => *verdict,
            Ok((_, member)) if together(member) => Verdict::Complete,
            // It knew one of the newest copies as a member: what came later is with them.
            Ok((_, member))
                if complete.iter().any(|c| member.active.contains(&c.number) && member.events < c.events) =>
            {
                Verdict::Behind
            }
            Ok(_) => Verdict::Diverged,
        };
        judged.verdicts.push(verdict);
        match (verdict, candidate) {
            (Verdict::Complete, Ok((replica, _))) => drop(judged.complete.insert(*replica)),
            (Verdict::Diverged, Ok((replica, _))) => drop(judged.diverged.insert(*replica)),
            _ => {}
        }
    }
    judged.newest = Some(newest.clone());
    judged
}

/// The superblock of a copy that was a whole member, or why it was none.
fn whole<'a>(case: &Case<'_>, copy: &'a CopyReport) -> Result<&'a Member, Verdict> {
    let replica = copy.record.replica;
    if case.dismissed.contains(&replica) {
        return Err(Verdict::Dismissed);
    }
    if case.copies.iter().filter(|other| other.record.replica == replica).count() > 1 {
        return Err(Verdict::Doubled);
    }
    match &copy.member {
        Some(member) if member.set_uuid != case.volume.md_uuid() => Err(Verdict::Blank),
        Some(member) if member.recovering || !member.active.contains(&member.number) => Err(Verdict::Unfinished),
        Some(member) => Ok(member),
        None => Err(Verdict::Blank),
    }
}

/// Everybody who is known of and did not answer.
pub(super) fn unseen(case: &Case<'_>, judged: &Judged) -> BTreeMap<Unseen, Newer> {
    let answered: BTreeSet<ReplicaId> = case.copies.iter().map(|copy| copy.record.replica).collect();
    let last = case.copies.iter().map(|copy| copy.record.epoch).max().unwrap_or(0);
    // What the truth was when the drives were fenced last.
    let fenced = case.copies.iter().filter(|copy| copy.record.epoch == last);
    let recorded: BTreeSet<ReplicaId> = fenced.flat_map(|copy| copy.record.in_sync.iter().copied()).collect();
    let missing = judged.newest.as_ref().map(|newest| missing(case, newest)).unwrap_or_default();
    let sound = case.record.filter(|record| trusted(record) && record.epoch >= last);
    let named_now =
        |replica: &ReplicaId| sound.and_then(|r| r.in_sync.as_ref()).is_some_and(|set| set.contains(replica));
    let known = case.known.keys().chain(&recorded).filter(|r| !answered.contains(r) && !case.dismissed.contains(r));
    let newer = |replica: &ReplicaId| {
        let possible =
            judged.newest.is_none() || !missing.is_empty() || recorded.contains(replica) || named_now(replica);
        if possible { Newer::Possible } else { Newer::Excluded }
    };
    let mut unseen: BTreeMap<Unseen, Newer> = known.map(|r| (Unseen::Copy(*r), newer(r))).collect();
    let possible = unseen.values().filter(|newer| **newer == Newer::Possible).count();
    // More active members than copies to stand for them: one is somewhere that no object and no record names.
    let nameless = missing.iter().skip(possible).map(|number| (Unseen::Device(*number), Newer::Possible));
    unseen.extend(nameless.collect::<Vec<_>>());
    unseen
}

/// Active members of the newest superblock that no copy stands for. A number can be given twice in the life of an array,
/// so a copy counts only when it is of the same moment: the last step of a crash reaches one member before the other.
fn missing(case: &Case<'_>, newest: &Member) -> BTreeSet<u32> {
    let members = case.copies.iter().filter_map(|copy| whole(case, copy).ok());
    let same = members.filter(|m| m.active.contains(&newest.number) && m.events.abs_diff(newest.events) <= 1);
    let numbers: BTreeSet<u32> = same.map(|member| member.number).collect();
    newest.active.difference(&numbers).copied().collect()
}
