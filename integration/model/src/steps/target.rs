//! A replica's node: fence, export, and commands that land.
//!
//! Called by [`super::Protocol::step`]. The order is that of `actors/plan/src/export.rs`: unlink, drain, write the life on
//! the drive, report; then export.

use super::{Protocol, fault};
use crate::rules::Variant;
use crate::state::{Life, Origin, Stage, State};

/// The listener of a life that is not wanted any more goes; what is in flight stays.
pub fn unlink(p: &Protocol, s: &State, r: usize) -> Option<State> {
    let old = s.targets[r].linked;
    if old == Life::NONE || old >= s.wanted(r) || p.breaks(Variant::FenceSkipped) {
        return None;
    }
    let mut s = s.clone();
    s.targets[r].linked = Life::NONE;
    Some(s)
}

/// Nothing is in flight, no array of an older epoch holds the partition: the life is written on the drive and reported.
pub fn fence(p: &Protocol, s: &State, r: usize) -> Option<State> {
    let (target, wanted) = (&s.targets[r], s.wanted(r));
    let skipped = p.breaks(Variant::FenceSkipped);
    let drained = target.queued.iter().all(|life| *life == Life::NONE) || p.breaks(Variant::DrainSkipped);
    let fenced = drained && target.linked == Life::NONE;
    if s.nodes[r].down || s.drives[r].life >= wanted || !(fenced || skipped) {
        return None;
    }
    let held = s.holder(r).is_some_and(|array| array.epoch < s.record.epoch);
    if held && !p.breaks(Variant::LocalFenceEarly) {
        return None;
    }
    let mut s = s.clone();
    s.drives[r].life = wanted;
    Some(s)
}

/// The replica is offered to the recorded consumer under its new life.
pub fn export(p: &Protocol, s: &State, r: usize) -> Option<State> {
    let life = s.drives[r].life;
    let (c, _) = s.record.consumer?;
    let free = s.targets[r].linked == Life::NONE || p.breaks(Variant::FenceSkipped);
    let held = s.holder(r).is_some() && !p.breaks(Variant::LocalFenceEarly);
    let unwanted = life != s.wanted(r) || life.generation() >= p.bounds.generations || s.targets[r].linked == life;
    if s.nodes[r].down || c == r || !free || held || unwanted {
        return None;
    }
    let mut s = s.clone();
    s.targets[r].stale = s.targets[r].linked;
    s.targets[r].linked = life;
    Some(s)
}

/// F2: host not allowed, port still linked. The old consumer's reconnect is answered, its kernel fails the member.
pub fn refuse(p: &Protocol, s: &State, c: usize, r: usize) -> Option<State> {
    let life = s.consumers[c].connected[r];
    if life == Life::NONE || life >= s.wanted(r) || !s.reaches(c, r) {
        return None;
    }
    // The agent freezes here as after any failure; what was in flight is released all the same, and it is not a media
    // error that a promise could except.
    fault::failed(p, s, c, r)
}

/// A queued command reaches the drive. The consumer hears of it if the path it came by is still there.
pub fn land(s: &State, r: usize, write: usize) -> Option<State> {
    let life = s.targets[r].queued[write];
    if life == Life::NONE || s.nodes[r].down {
        return None;
    }
    let mut s = s.clone();
    s.targets[r].queued[write] = Life::NONE;
    let origin = s.origins[write];
    stored(&mut s, r, write as u8 + 1, origin);
    let c = usize::from(origin.node);
    let path = s.nodes[c].boot == origin.boot && s.consumers[c].connected[r] == life && s.reaches(c, r);
    if path && let Some(array) = &mut s.consumers[c].array {
        let ours = array.write.filter(|w| usize::from(w.id) == write + 1 && w.to.has(r));
        array.write = ours.map(|w| crate::state::Write { done: w.done.with(r), ..w }).or(array.write);
    }
    Some(s)
}

/// The drive has it now; whether it should is for the property.
pub fn stored(s: &mut State, r: usize, id: u8, origin: Origin) {
    s.drives[r].value = id;
    let intruded = s.consumers.iter().enumerate().any(|(c, consumer)| {
        let owner = |epoch| Origin { epoch, node: c as u8, boot: s.nodes[c].boot };
        consumer.array.as_ref().is_some_and(|a| {
            let live = a.stage == Stage::Open && a.epoch == s.record.epoch && a.active.has(r);
            live && owner(a.epoch) != origin
        })
    });
    s.promised.intruded |= intruded;
}
