//! An array's life: assembled, activated, opened, and let go when its epoch is over.
//!
//! Called by [`super::Protocol::step`]. As `actors/plan/src/array/start.rs` and `stop.rs`.

use super::Protocol;
use super::fault::forget_excuse;
use crate::rules::Variant;
use crate::state::{Array, Consumer, Life, Set, Stage, State};

/// The in-sync replicas that are fenced for the epoch and answer; one that a fresher superblock marks missing stays out.
pub fn assemble(p: &Protocol, s: &State, c: usize) -> Option<State> {
    let same_boot = s.is_consumer(c) || p.breaks(Variant::RebootKeepsEpoch) && consumer_by_name(s, c);
    if !same_boot || s.consumers[c].array.is_some() {
        return None;
    }
    let all = Set::first(p.bounds.replicas);
    let set = match s.record.in_sync {
        Some(_) if p.breaks(Variant::OutsideTheSet) => all,
        Some(set) => set,
        None if p.breaks(Variant::AbsentIsAll) => all,
        None => return None,
    };
    let here: Vec<usize> = set.iter().filter(|r| usable(s, c, *r) && !s.drives[*r].recovering).collect();
    let marked = |r: usize, by: usize| !s.drives[by].roles.has(r) && s.drives[r].roles.has(by);
    let trusted = here.iter().filter(|r| !here.iter().any(|by| marked(**r, *by)));
    let members = trusted.fold(Set::default(), |members, r| members.with(*r));
    if members.is_empty() {
        return None;
    }
    let mut s = s.clone();
    let again = s.record.activated && p.breaks(Variant::RestageNotActivated);
    let stage = if again { Stage::Recorded } else { Stage::ReadOnly };
    s.consumers[c].array = Some(Array::new(s.record.epoch, stage, members));
    Some(s)
}

fn consumer_by_name(s: &State, c: usize) -> bool {
    !s.nodes[c].down && s.record.consumer.is_some_and(|(node, _)| node == c)
}

/// Fenced and exported for this epoch, newer than its departure, and it answers.
pub fn usable(s: &State, c: usize, r: usize) -> bool {
    let wanted = s.wanted(r);
    if r == c { s.drives[r].life == wanted } else { s.consumers[c].connected[r] == wanted && s.reaches(c, r) }
}

/// The set becomes exactly the active members, and the epoch is confirmed.
pub fn activate(p: &Protocol, s: &State, c: usize) -> Option<State> {
    let array = s.consumers[c].array.filter(|a| a.stage == Stage::ReadOnly && a.epoch == s.record.epoch)?;
    if !(s.is_consumer(c) || p.breaks(Variant::RebootKeepsEpoch) && consumer_by_name(s, c)) {
        return None;
    }
    let gained = s.record.in_sync.is_some_and(|set| !array.active.within(set));
    if s.record.in_sync.is_none() && !p.breaks(Variant::AbsentIsAll) || gained && !p.breaks(Variant::OutsideTheSet) {
        return None;
    }
    let mut s = s.clone();
    let old = s.record.in_sync.unwrap_or(Set::first(p.bounds.replicas));
    if !p.breaks(Variant::ActivateKeepsSet) {
        old.minus(array.active).iter().for_each(|r| s.record.departed[r] = s.wanted(r));
        s.record.in_sync = Some(array.active);
    }
    s.record.activated = true;
    s.consumers[c].array.as_mut()?.stage = Stage::Recorded;
    Some(s)
}

/// Read-write. The union of the members' bitmaps decides what is resynced. With one member of an array that was whole,
/// MD forgets the bits it finds (F1).
pub fn open(p: &Protocol, s: &State, c: usize) -> Option<State> {
    let mut array = s.consumers[c].array.filter(|a| a.stage == Stage::Recorded)?;
    if !s.reaches_all(c, array.active) {
        return None;
    }
    let mut s = s.clone();
    let active = array.active;
    let source = active.lowest()?;
    let whole = Set::first(p.bounds.replicas);
    let dirty = active.iter().any(|m| s.drives[m].dirty);
    let forgets = active.len() == 1 && s.drives[source].roles == whole && active != whole;
    active.iter().for_each(|m| s.drives[m].dirty = dirty && !forgets);
    array.stage = Stage::Open;
    array.needed = dirty && !forgets;
    array.resync = array.needed && active.iter().any(|m| s.drives[m].value != s.drives[source].value);
    array.settled = s.drives[source].value;
    active.iter().for_each(|m| s.drives[m].roles = active);
    if !array.resync {
        finish_resync(&mut array, &mut s, whole);
    }
    if p.breaks(Variant::LimitReadBeforeResync) {
        s.promised.must = s.promised.must.max(array.settled);
    }
    s.consumers[c].array = Some(array);
    read_is_promised(&mut s, c);
    Some(s)
}

/// The superblocks of the members that answer now say who is left.
pub fn note_roles(s: &mut State, c: usize, active: Set) {
    active.iter().filter(|m| s.reaches(c, *m)).collect::<Vec<_>>().iter().for_each(|m| s.drives[*m].roles = active);
}

/// Members agree, and the record has them and no others: from here on what a reader sees is promised.
pub fn read_is_promised(s: &mut State, c: usize) {
    let array = s.consumers[c].array.filter(|a| !a.resync && !a.shut && a.epoch == s.record.epoch);
    if let Some(array) = array.filter(|a| s.record.in_sync.is_some_and(|set| set.within(a.active))) {
        s.promised.must = s.promised.must.max(array.settled);
    }
}

fn finish_resync(array: &mut Array, s: &mut State, whole: Set) {
    array.resync = false;
    if array.active == whole {
        array.needed = false;
        whole.iter().for_each(|m| s.drives[m].dirty = false);
    }
}

/// The first resync after assembly: from the lowest slot to the others.
pub fn resync(p: &Protocol, s: &State, c: usize) -> Option<State> {
    let mut array = s.consumers[c].array.filter(|a| a.stage == Stage::Open && a.resync && a.write.is_none())?;
    if !s.reaches_all(c, array.active) {
        return None;
    }
    let mut s = s.clone();
    let value = s.drives[array.active.lowest()?].value;
    array.active.iter().for_each(|m| s.drives[m].value = value);
    finish_resync(&mut array, &mut s, Set::first(p.bounds.replicas));
    s.consumers[c].array = Some(array);
    read_is_promised(&mut s, c);
    Some(s)
}

/// A member is gone while a resync was pending: the lowest of the others is read from now on.
pub fn reread(p: &Protocol, s: &mut State, c: usize) {
    let Some(mut array) = s.consumers[c].array.filter(|a| a.resync) else { return };
    let Some(source) = array.active.lowest() else { return };
    let value = s.drives[source].value;
    if !p.breaks(Variant::LimitReadBeforeResync) {
        array.settled = value;
    }
    if array.write.is_none() && array.active.iter().all(|m| s.drives[m].value == value) {
        array.resync = false;
    }
    s.consumers[c].array = Some(array);
}

/// A higher epoch is seen: nobody is told of a success any more.
pub fn shutdown(s: &State, c: usize) -> Option<State> {
    s.deposed(c).filter(|a| !a.shut)?;
    let mut s = s.clone();
    s.consumers[c].array.as_mut()?.shut = true;
    Some(s)
}

/// The controllers of the old epoch are deleted: MD drops their members, and what waited for them completes.
pub fn abandon(p: &Protocol, s: &State, c: usize) -> Option<State> {
    let mut array = *s.deposed(c).filter(|a| a.shut || p.breaks(Variant::ReleaseBeforeShutdown))?;
    let remote = array.held().without(c);
    if remote.is_empty() {
        return None;
    }
    let mut s = s.clone();
    remote.iter().for_each(|r| s.consumers[c].connected[r] = Life::NONE);
    let lost = array.active.minus(array.active.and(Set::only(c)));
    array.active = array.active.minus(lost);
    array.copying = array.copying.and(Set::only(c));
    array.faulty = array.faulty.and(Set::only(c));
    array.deleting = Set::default();
    array.proven = Set::default();
    array.needed |= array.write.is_some();
    array.active.iter().for_each(|m| s.drives[m].roles = array.active);
    s.consumers[c].array = Some(array);
    reread(p, &mut s, c);
    Some(s)
}

/// The array of an old epoch ends; a write of its own drive has to finish first.
pub fn stop(s: &State, c: usize) -> Option<State> {
    let array = s.deposed(c)?;
    let open = array.stage == Stage::Open;
    let remote = !array.held().without(c).is_empty();
    let writing = array.write.is_some_and(|w| array.members().has(c) && w.to.minus(w.done).has(c));
    if open && (!array.shut || remote || writing) {
        return None;
    }
    let mut s = s.clone();
    stopped(&mut s.consumers[c]);
    forget_excuse(&mut s, c);
    Some(s)
}

fn stopped(consumer: &mut Consumer) {
    consumer.array = None;
    consumer.connected = Default::default();
}

/// Unstaged in good order: nothing is on its way, the epoch stays.
pub fn unstage(p: &Protocol, s: &State, c: usize) -> Option<State> {
    let array = s.current(c).filter(|a| p.bounds.restage && a.write.is_none() && !a.frozen)?;
    if !array.deleting.is_empty() || !array.copying.is_empty() || !s.reaches_all(c, array.active) {
        return None;
    }
    let mut s = s.clone();
    stopped(&mut s.consumers[c]);
    Some(s)
}
