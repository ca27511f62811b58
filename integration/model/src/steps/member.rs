//! Members that leave and return, and the record that changes with them.
//!
//! Called by [`super::Protocol::step`]. As `actors/plan/src/array/run.rs`: shrink before degrade, grow after proof.

use super::Protocol;
use super::array::{note_roles, read_is_promised, reread, usable};
use crate::rules::Variant;
use crate::state::{Life, Set, Stage, State};

/// A controller for the life that is wanted now. One that belongs to a member is left alone.
pub fn connect(p: &Protocol, s: &State, c: usize, r: usize) -> Option<State> {
    let wanted = s.wanted(r);
    let consumer =
        s.is_consumer(c) || p.breaks(Variant::RebootKeepsEpoch) && s.record.consumer.is_some_and(|x| x.0 == c);
    let held = s.consumers[c].array.is_some_and(|a| a.held().has(r));
    let answers = s.targets[r].linked == wanted && !s.nodes[r].down && !s.consumers[c].cut.has(r);
    if !consumer || s.nodes[c].down || held || !answers || s.consumers[c].connected[r] == wanted {
        return None;
    }
    let mut s = s.clone();
    s.consumers[c].connected[r] = wanted;
    Some(s)
}

/// Rule 2: a member that cannot be reached leaves the record, if another recorded one answers; then its controller is to
/// be deleted.
pub fn shrink(p: &Protocol, s: &State, c: usize, r: usize) -> Option<State> {
    let array = s.current(c).filter(|a| a.stage == Stage::Open && a.proven.is_empty())?;
    let set = s.record.in_sync?;
    let due = array.members().has(r) && !array.deleting.has(r) && !s.reaches(c, r);
    let other = array.active.and(set).without(r).iter().any(|m| s.reaches(c, m));
    if !due || !(other || p.breaks(Variant::LastMemberDropped)) || p.breaks(Variant::DegradeBeforeRecord) {
        return None;
    }
    let mut s = s.clone();
    leave(p, &mut s, r);
    let array = s.consumers[c].array.as_mut()?;
    array.deleting = array.deleting.with(r);
    Some(s)
}

/// Out of the set; it returns under a higher generation only.
fn leave(p: &Protocol, s: &mut State, r: usize) {
    s.record.in_sync = s.record.in_sync.map(|set| set.without(r));
    if !p.breaks(Variant::ReturnUndrained) {
        s.record.departed[r] = s.wanted(r);
    }
}

/// The deletion takes effect, sooner or later: MD drops the member and what waited for it goes on. Only while another
/// member answers.
pub fn delete(p: &Protocol, s: &State, c: usize, r: usize) -> Option<State> {
    let mut array = s.consumers[c].array.filter(|a| a.stage == Stage::Open)?;
    let early = p.breaks(Variant::DegradeBeforeRecord) && array.members().has(r) && r != c && !s.reaches(c, r);
    let other = array.active.without(r).iter().any(|m| s.reaches(c, m)) || p.breaks(Variant::LastMemberDropped);
    if !(array.deleting.has(r) || early) || !other {
        return None;
    }
    let mut s = s.clone();
    array.active = array.active.without(r);
    array.copying = array.copying.without(r);
    array.deleting = array.deleting.without(r);
    array.needed |= array.write.is_some();
    s.consumers[c].connected[r] = Life::NONE;
    note_roles(&mut s, c, array.active);
    s.consumers[c].array = Some(array);
    reread(p, &mut s, c);
    read_is_promised(&mut s, c);
    Some(s)
}

/// A recorded member that MD does not have any more: record it, then let writes go on. What the kernel failed is removed.
pub fn record_loss(p: &Protocol, s: &State, c: usize, r: usize) -> Option<State> {
    let array = s.current(c).filter(|a| a.stage == Stage::Open && a.proven.is_empty())?;
    let set = s.record.in_sync?;
    let lost = set.has(r) && !array.active.has(r);
    let unrecorded = array.faulty.has(r) && !set.has(r);
    let survivor = !array.active.and(set).is_empty();
    if !(lost && survivor || unrecorded && !array.frozen) {
        return None;
    }
    let mut s = s.clone();
    leave(p, &mut s, r);
    let array = s.consumers[c].array.as_mut()?;
    array.faulty = array.faulty.without(r);
    array.frozen = !array.unrecorded(set.without(r)).is_empty();
    if s.promised.excused_acknowledged {
        s.promised.must = s.promised.must.max(s.promised.excused);
    }
    s.promised.excused = 0;
    s.promised.excused_acknowledged = false;
    read_is_promised(&mut s, c);
    Some(s)
}

/// Rule 6: a replica outside the set, under a new life. Its own bitmap is merged into the array's first; one whose last
/// recovery did not finish is copied wholly.
pub fn re_add(p: &Protocol, s: &State, c: usize, r: usize) -> Option<State> {
    let mut array = *s.current(c).filter(|a| a.stage == Stage::Open && a.write.is_none() && !a.resync && !a.frozen)?;
    let outside = s.record.in_sync.is_some_and(|set| !set.has(r)) && !array.held().has(r);
    let quiet = array.copying.is_empty() && array.deleting.is_empty() && s.reaches_all(c, array.active);
    if !outside || !quiet || !usable(s, c, r) {
        return None;
    }
    let mut s = s.clone();
    let merged = s.drives[r].dirty && !p.breaks(Variant::NoMerge);
    if merged || s.drives[r].recovering {
        array.needed = true;
        array.active.iter().for_each(|m| s.drives[m].dirty = true);
    }
    array.copying = Set::only(r);
    s.drives[r].recovering = true;
    s.consumers[c].array = Some(array);
    Some(s)
}

/// The copy is done and the member's superblock says so.
pub fn copied(p: &Protocol, s: &State, c: usize, r: usize) -> Option<State> {
    let mut array = s.consumers[c].array.filter(|a| a.copying.has(r) && a.write.is_none() && !a.deleting.has(r))?;
    if !s.reaches_all(c, array.members()) {
        return None;
    }
    let source = array.active.lowest()?;
    let mut s = s.clone();
    if array.needed {
        s.drives[r].value = s.drives[source].value;
    }
    s.drives[r].dirty = s.drives[source].dirty;
    s.drives[r].recovering = false;
    array.active = array.members();
    array.copying = Set::default();
    // Frozen while the recovery was held before its end.
    array.frozen |= !p.breaks(Variant::GrowUnfrozen);
    array.active.iter().for_each(|m| s.drives[m].roles = array.active);
    if array.active == Set::first(p.bounds.replicas) {
        array.needed = false;
        array.active.iter().for_each(|m| s.drives[m].dirty = false);
    }
    s.consumers[c].array = Some(array);
    Some(s)
}

/// What the compare-and-swap of [`grow`] is decided on. What was lost is recorded before what was gained.
fn provable(p: &Protocol, s: &State, c: usize, r: usize) -> Option<()> {
    let set = s.record.in_sync?;
    let array = s.current(c).filter(|a| a.stage == Stage::Open && set.minus(a.active).is_empty())?;
    let early = p.breaks(Variant::GrowBeforeProof) && array.copying.has(r);
    let proven = array.active.has(r) && !s.drives[r].recovering;
    // A life that was taken out never counts again.
    let departed = array.deleting.has(r) && !p.breaks(Variant::DropRevocable);
    (s.reaches(c, r) && !departed && (proven || early) && !set.has(r)).then_some(())
}

/// Rule 3: the proof, read from the member itself. The patch lands some time later.
pub fn prove(p: &Protocol, s: &State, c: usize, r: usize) -> Option<State> {
    provable(p, s, c, r)?;
    let mut s = s.clone();
    let array = s.consumers[c].array.as_mut().filter(|a| a.proven.is_empty())?;
    array.proven = Set::only(r);
    Some(s)
}

/// Rule 3: into the record after proof.
pub fn grow(s: &State, c: usize, r: usize) -> Option<State> {
    s.current(c).filter(|a| a.proven.has(r))?;
    let mut s = s.clone();
    s.record.in_sync = s.record.in_sync.map(|set| set.with(r));
    s.consumers[c].array.as_mut()?.proven = Set::default();
    Some(s)
}

/// What the kernel lost or gained is recorded: writes go on.
pub fn thaw(s: &State, c: usize) -> Option<State> {
    let set = s.record.in_sync?;
    let array = s.current(c).filter(|a| a.stage == Stage::Open && a.frozen && a.proven.is_empty())?;
    if !set.minus(array.active).is_empty() || !array.unrecorded(set).is_empty() {
        return None;
    }
    let mut s = s.clone();
    s.consumers[c].array.as_mut()?.frozen = false;
    Some(s)
}
