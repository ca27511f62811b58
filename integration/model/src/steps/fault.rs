//! What goes wrong: crashes, cut links, members that a kernel fails, a record that loses its set.
//!
//! Called by [`super::Protocol::step`]. Each fault takes one from its budget.

use super::Protocol;
use super::array::{note_roles, reread};
use crate::rules::Variant;
use crate::state::{CONSUMERS, Consumer, Life, Set, State, Target};

/// Memory is lost: the array, the controllers, exports and their queues. Drives keep what had landed. Commands queued at
/// other nodes stay there.
pub fn crash(s: &State, node: usize) -> Option<State> {
    let crashes = s.budget.crashes.checked_sub(1)?;
    if s.nodes[node].down {
        return None;
    }
    let mut s = s.clone();
    s.budget.crashes = crashes;
    s.nodes[node].down = true;
    s.targets[node] = Target::default();
    if node < CONSUMERS {
        s.nodes[node].boot += 1;
        s.consumers[node] = Consumer::default();
        forget_excuse(&mut s, node);
    }
    Some(s)
}

/// The array that lost a member is gone before that was recorded: the write it excused stays unpromised (P6).
pub fn forget_excuse(s: &mut State, node: usize) {
    let excused = s.promised.excused as usize;
    if excused > 0 && usize::from(s.origins[excused - 1].node) == node {
        s.promised.excused = 0;
        s.promised.excused_acknowledged = false;
    }
}

/// It comes back with its drive.
pub fn boot(s: &State, node: usize) -> Option<State> {
    if !s.nodes[node].down {
        return None;
    }
    let mut s = s.clone();
    s.nodes[node].down = false;
    Some(s)
}

/// The path is gone; commands already at the target stay there.
pub fn cut(s: &State, c: usize, r: usize) -> Option<State> {
    let cuts = s.budget.cuts.checked_sub(1)?;
    if s.consumers[c].cut.has(r) || s.consumers[c].connected[r] == Life::NONE {
        return None;
    }
    let mut s = s.clone();
    s.budget.cuts = cuts;
    s.consumers[c].cut = s.consumers[c].cut.with(r);
    Some(s)
}

/// The kernel reconnects by itself.
pub fn heal(s: &State, c: usize, r: usize) -> Option<State> {
    if !s.consumers[c].cut.has(r) {
        return None;
    }
    let mut s = s.clone();
    s.consumers[c].cut = s.consumers[c].cut.without(r);
    Some(s)
}

/// A media error: MD drops the member by itself, never the last one. The agent freezes all writes at once; the write in
/// flight at that instant is the excepted one.
pub fn fail(p: &Protocol, s: &State, c: usize, r: usize) -> Option<State> {
    let failures = s.budget.failures.checked_sub(1)?;
    s.consumers[c].array.filter(|a| !a.shut)?;
    let mut s = failed(p, s, c, r)?;
    s.budget.failures = failures;
    if !p.breaks(Variant::LimitFailureInFlight)
        && let Some(w) = s.consumers[c].array.and_then(|a| a.write).filter(|w| w.to.has(r) && !w.done.has(r))
    {
        s.promised.excused = w.id;
    }
    Some(s)
}

/// The member is out of the array, and writes are frozen.
pub fn failed(p: &Protocol, s: &State, c: usize, r: usize) -> Option<State> {
    let mut array = s.consumers[c].array?;
    if !array.active.has(r) || array.active.len() < 2 {
        return None;
    }
    let mut s = s.clone();
    array.active = array.active.without(r);
    array.faulty = array.faulty.with(r);
    array.deleting = array.deleting.without(r);
    array.needed |= array.write.is_some();
    let recorded = s.record.in_sync.unwrap_or_default();
    let survivor = !array.active.and(recorded).is_empty() || !p.breaks(Variant::LastRecordedUnfrozen);
    // Only a recorded member is missed.
    array.frozen |= recorded.has(r) && survivor && !p.breaks(Variant::NoFreeze);
    s.consumers[c].connected[r] = Life::NONE;
    note_roles(&mut s, c, array.active);
    s.consumers[c].array = Some(array);
    reread(p, &mut s, c);
    Some(s)
}

/// Status lost: an object re-applied from a backup, a restore.
pub fn lose_set(s: &State) -> Option<State> {
    let losses = s.budget.losses.checked_sub(1)?;
    s.record.in_sync.filter(|set| *set != Set::default())?;
    let mut s = s.clone();
    s.budget.losses = losses;
    s.record.in_sync = None;
    Some(s)
}
