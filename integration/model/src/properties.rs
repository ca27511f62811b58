//! What must always hold, and what must be possible: a model in which nothing can happen keeps every promise.
//!
//! Called by the checker in every state.

use crate::state::{Array, Set, Stage, State};
use crate::steps::Protocol;
use stateright::Property;

/// P1, by the record.
pub const RECORDED: &str = "P1: every replica of the recorded set holds every acknowledged write";
/// P1, as a reader sees it.
pub const READ: &str = "P1: an open array reads what was acknowledged last, from whichever member";
/// P2.
pub const INTRUSION: &str = "P2: no write of an earlier epoch, node or boot lands in an open array";
/// P8.
pub const LAST: &str = "P8: the set is never empty, nor an array that is in use";

/// All of them.
pub fn all() -> Vec<Property<Protocol>> {
    vec![
        Property::always(RECORDED, |_, s| recorded(s)),
        Property::always(READ, |_, s| read(s)),
        Property::always(INTRUSION, |_, s: &State| !s.promised.intruded),
        Property::always(LAST, |_, s| last(s)),
        Property::sometimes("after a crash another epoch acknowledges a write", taken_over),
        Property::sometimes("a replica that left is in the set again and has the last write", |_, s| returned(s)),
        Property::sometimes("a write waited for a lost member and went on once that was recorded", |_, s| released(s)),
        Property::sometimes("a deposed consumer's replica serves the new consumer", |_, s| serves(s)),
    ]
}

/// The promises that are broken in this state.
pub fn broken(s: &State) -> Vec<&'static str> {
    let held = [(recorded(s), RECORDED), (read(s), READ), (!s.promised.intruded, INTRUSION), (last(s), LAST)];
    held.into_iter().filter(|(holds, _)| !holds).map(|(_, name)| name).collect()
}

/// Whether any promise is broken: the checker need not look beyond.
pub fn violated(s: &State) -> bool {
    !recorded(s) || !read(s) || s.promised.intruded || !last(s)
}

fn recorded(s: &State) -> bool {
    s.record.in_sync.unwrap_or_default().iter().all(|r| s.drives[r].value >= s.promised.must)
}

/// Arrays whose readers count: open, of the recorded epoch, not shut down.
fn in_use(s: &State) -> impl Iterator<Item = &Array> {
    let arrays = s.consumers.iter().filter_map(|consumer| consumer.array.as_ref());
    arrays.filter(|a| a.stage == Stage::Open && !a.shut && a.epoch == s.record.epoch)
}

/// While the first resync is pending MD reads from the lowest slot only (F17).
fn read(s: &State) -> bool {
    in_use(s).all(|a| {
        let readable = match a.resync {
            true => a.active.lowest().map_or(Set::default(), Set::only),
            false => a.active,
        };
        readable.iter().all(|m| {
            let value = s.drives[m].value;
            value == a.settled || a.write.is_some_and(|w| w.id == value)
        })
    })
}

fn last(s: &State) -> bool {
    s.record.in_sync != Some(Set::default()) && in_use(s).all(|a| !a.active.is_empty())
}

fn origin(s: &State) -> Option<crate::state::Origin> {
    s.promised.must.checked_sub(1).map(|last| s.origins[usize::from(last)])
}

fn taken_over(p: &Protocol, s: &State) -> bool {
    let crashed = s.budget.crashes < p.bounds.faults.crashes;
    let new = origin(s).is_some_and(|o| o.epoch > 1);
    crashed && new && in_use(s).any(|a| a.settled == s.promised.must && a.write.is_none())
}

fn returned(s: &State) -> bool {
    let set = s.record.in_sync.unwrap_or_default();
    s.promised.must > 0 && set.iter().any(|r| s.record.departed[r].epoch() > 0 && s.drives[r].value == s.promised.must)
}

fn released(s: &State) -> bool {
    let set = s.record.in_sync.unwrap_or_default();
    let waited = |r: usize| s.drives[r].dirty && s.drives[r].value < s.promised.must && !set.has(r);
    origin(s).is_some_and(|o| {
        Set::first(crate::state::REPLICAS).iter().any(|r| s.record.departed[r].epoch() == o.epoch && waited(r))
    })
}

fn serves(s: &State) -> bool {
    s.consumers[1].array.is_some_and(|a| a.stage == Stage::Open && a.active.has(0))
}
