//! A write's way through MD: bits on every member first, then the data, then the answer.
//!
//! Called by [`super::Protocol::step`]. The kernel does this by itself; no agent takes part.

use super::Protocol;
use super::target::stored;
use crate::state::{Life, Origin, Set, Stage, State, Write};

/// A superblock that is due is written before a new write begins (`md_write_start`), and the bit is durable on every
/// member before data go to any. So all of them must answer now.
pub fn issue(p: &Protocol, s: &State, c: usize) -> Option<State> {
    let array = s.consumers[c].array.filter(|a| a.stage == Stage::Open && a.write.is_none() && !a.shut && !a.frozen)?;
    let next = s.origins.iter().position(|o| o.epoch == 0).filter(|n| *n < usize::from(p.bounds.writes))?;
    let to = array.members();
    if to.is_empty() || !s.reaches_all(c, to) {
        return None;
    }
    let mut s = s.clone();
    s.origins[next] = Origin { epoch: array.epoch, node: c as u8, boot: s.nodes[c].boot };
    to.iter().for_each(|m| s.drives[m].dirty = true);
    array.active.iter().for_each(|m| s.drives[m].roles = array.active);
    let degraded = array.active != Set::first(p.bounds.replicas);
    let array = s.consumers[c].array.as_mut()?;
    array.needed |= degraded;
    array.write = Some(Write { id: next as u8 + 1, to, done: Set::default() });
    Some(s)
}

/// Or sent again after the path came back.
pub fn send(s: &State, c: usize, r: usize) -> Option<State> {
    let array = s.consumers[c].array?;
    let write = array.write.filter(|w| w.to.and(array.members()).minus(w.done).has(r))?;
    let slot = usize::from(write.id) - 1;
    if s.targets[r].queued[slot] != Life::NONE || !s.reaches(c, r) {
        return None;
    }
    let mut s = s.clone();
    s.targets[r].queued[slot] = s.consumers[c].connected[r];
    Some(s)
}

/// The consumer's own drive needs no path.
pub fn land_local(s: &State, c: usize) -> Option<State> {
    let array = s.consumers[c].array?;
    let write = array.write.filter(|w| w.to.and(array.members()).minus(w.done).has(c))?;
    let mut s = s.clone();
    let origin = s.origins[usize::from(write.id) - 1];
    stored(&mut s, c, write.id, origin);
    s.consumers[c].array.as_mut()?.write = Some(Write { done: write.done.with(c), ..write });
    Some(s)
}

/// Every member that MD still has has answered. A write that lost a member completes after the superblocks say so. Bits
/// are cleared when the array is whole: at once here, which is the earliest moment.
pub fn acknowledge(p: &Protocol, s: &State, c: usize) -> Option<State> {
    let mut array = s.consumers[c].array?;
    let write = array.write.filter(|w| !array.active.is_empty() && w.to.and(array.members()).within(w.done))?;
    let reached = s.reaches_all(c, array.active);
    if !reached && array.active.iter().any(|m| s.drives[m].roles != array.active) {
        return None;
    }
    let mut s = s.clone();
    array.write = None;
    array.settled = write.id;
    if !array.shut && write.id == s.promised.excused {
        s.promised.excused_acknowledged = true;
    } else if !array.shut {
        s.promised.must = s.promised.must.max(write.id);
    }
    // All of them hold it: whatever a resync would still do changes nothing.
    array.resync &= !array.active.iter().all(|m| s.drives[m].value == write.id);
    let active = array.active;
    active.iter().for_each(|m| s.drives[m].roles = active);
    if reached && active == Set::first(p.bounds.replicas) && !array.resync {
        array.needed = false;
        active.iter().for_each(|m| s.drives[m].dirty = false);
    }
    s.consumers[c].array = Some(array);
    Some(s)
}
