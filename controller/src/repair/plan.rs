//! Which copy is to go, to come or to stay: decided from one reading of a volume, with no request made here.
//!
//! Called by [`super::step`]. Stateless: it goes by the set, by the roles and by who is lost, so that any controller at
//! any time comes to the same end, and one that died between two steps is missed by nobody.
//!
//! ```text
//! N complete ──lost or retiring──▶ one more is reserved ──in sync──▶ N complete that stay: all others are
//!     ▲                                                            retired ─▶ dismissed ─▶ buried (wiped)
//!     └────── the lost one was back in sync first: then it stays, and the new one is the other ────┘
//! ```
//!
//! It never lets a copy go that is in the set: the consumer takes it out first, when enough others are complete.

use meshstor_kernel::id::ReplicaId;
use meshstor_kernel::mutant::{self, Mutant};
use std::collections::BTreeMap;

/// Why the controller retires a copy: the word in `spec.retiredBy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// A copy is to be where the volume is used.
    Relocation,
    /// There are enough complete ones.
    Surplus,
    /// More copies are lost than are missing.
    Lost,
    /// Its node does not take the reservation.
    Refused,
    /// The volume has grown, and it cannot where it lies.
    Cramped,
}

impl Cause {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Cause::Relocation => "Relocation",
            Cause::Surplus => "Surplus",
            Cause::Lost => "Lost",
            Cause::Refused => "Refused",
            Cause::Cramped => "Cramped",
        }
    }
}

/// One copy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct CopyView {
    pub(crate) node: String,
    /// In the recorded set.
    pub(crate) in_sync: bool,
    /// To leave, by whomever.
    pub(crate) retiring: bool,
    /// By the controller itself, for locality.
    pub(crate) relocating: bool,
    /// Where one is to be in its place.
    pub(crate) move_to: Option<String>,
    /// The consumer reports it as a member of its array.
    pub(crate) used: bool,
    /// Let go for ever.
    pub(crate) dismissed: bool,
    /// With a tombstone.
    pub(crate) buried: bool,
    /// Its object is on its way out.
    pub(crate) deleting: bool,
    /// Outside of the set and missing for longer than allowed.
    pub(crate) lost: bool,
    /// A reservation that its node does not take.
    pub(crate) refused: bool,
    /// Smaller than the volume needs, and without room to grow.
    pub(crate) cramped: bool,
    /// In the zone of the consumer, where zones matter.
    pub(crate) neighbour: bool,
}

impl CopyView {
    /// One of those the volume is to have.
    fn member(&self) -> bool {
        !self.retiring && !self.dismissed && !self.buried
    }
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct View {
    /// Copies it is to have.
    pub(crate) count: usize,
    /// The node that uses it.
    pub(crate) consumer: Option<String>,
    /// The consumer uses it in this epoch, and has for long enough to get a copy of its own.
    pub(crate) resident: bool,
    /// Its copies.
    pub(crate) copies: BTreeMap<ReplicaId, CopyView>,
}

/// Where a new copy goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// On this node or nowhere.
    Only(String),
    /// Wherever there is room.
    Free,
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Write its tombstone and delete its object.
    Bury(ReplicaId),
    /// Record that it is let go for ever.
    Dismiss(ReplicaId),
    /// Take it out of a detached volume's set.
    Shrink(ReplicaId),
    /// It stays after all.
    Stay(ReplicaId),
    /// It is to leave.
    Retire(ReplicaId, Cause),
    /// It is to leave for the consumer's node.
    Relocate(ReplicaId, String),
    /// One more is to be made.
    Reserve(Place),
}

/// The first rule that has something to do decides.
pub(crate) fn decide(view: &View) -> Option<Action> {
    let rules = [bury, dismiss, shrink, stay, refused, cramped, surplus, lost, reserve, relocate];
    rules.iter().find_map(|rule| rule(view))
}

fn find(view: &View, which: impl Fn(&CopyView) -> bool) -> Option<ReplicaId> {
    view.copies.iter().find(|(_, copy)| which(copy)).map(|(id, _)| *id)
}

/// The youngest: it has the least behind it.
fn last(view: &View, which: impl Fn(&CopyView) -> bool) -> Option<ReplicaId> {
    view.copies.iter().rev().find(|(_, copy)| which(copy)).map(|(id, _)| *id)
}

fn count(view: &View, which: impl Fn(&CopyView) -> bool) -> usize {
    view.copies.values().filter(|copy| which(copy)).count()
}

/// Complete copies that are to stay.
fn staying(view: &View) -> usize {
    count(view, |copy| copy.in_sync && copy.member())
}

/// Not while the consumer still has it as a member, which costs its writes a moment when the node lets go first.
fn bury(view: &View) -> Option<Action> {
    let used = |copy: &CopyView| copy.used && view.consumer.is_some();
    if mutant::on(Mutant::RetiredIsWiped)
        && let Some(id) = find(view, |copy| copy.retiring && !copy.deleting)
    {
        return Some(Action::Bury(id));
    }
    find(view, |copy| {
        !used(copy) && (copy.dismissed || copy.buried) && !copy.in_sync && !(copy.buried && copy.deleting)
    })
    .map(Action::Bury)
}

/// Outside of the set there is nothing in it that the others lack.
fn dismiss(view: &View) -> Option<Action> {
    find(view, |copy| copy.retiring && !copy.in_sync && !copy.dismissed && !copy.buried).map(Action::Dismiss)
}

/// Attached, the consumer does this.
fn shrink(view: &View) -> Option<Action> {
    let enough = view.consumer.is_none() && staying(view) >= view.count;
    enough.then(|| find(view, |copy| copy.retiring && copy.in_sync)).flatten().map(Action::Shrink)
}

/// A copy was to follow the consumer, who has moved on before it was there.
fn stay(view: &View) -> Option<Action> {
    let consumer = view.consumer.as_ref()?;
    let arrived = |to: &String| view.copies.values().any(|copy| copy.node == *to && copy.in_sync && copy.member());
    let vain = |copy: &CopyView| copy.move_to.as_ref().is_none_or(|to| to != consumer && !arrived(to));
    find(view, |copy| copy.relocating && copy.retiring && copy.in_sync && vain(copy)).map(Action::Stay)
}

fn refused(view: &View) -> Option<Action> {
    let id = find(view, |copy| copy.member() && copy.refused && !copy.in_sync)?;
    Some(Action::Retire(id, Cause::Refused))
}

/// It came into the set while the volume grew: no array grows beyond its smallest member. One at a time.
fn cramped(view: &View) -> Option<Action> {
    if count(view, |copy| copy.retiring && copy.in_sync) > 0 {
        return None;
    }
    last(view, |copy| copy.member() && copy.in_sync && copy.cramped).map(|id| Action::Retire(id, Cause::Cramped))
}

fn surplus(view: &View) -> Option<Action> {
    let complete = staying(view);
    if complete < view.count {
        return None;
    }
    if let Some(id) = last(view, |copy| copy.member() && !copy.in_sync) {
        return Some(Action::Retire(id, Cause::Surplus));
    }
    // One at a time.
    if complete == view.count || count(view, |copy| copy.retiring && copy.in_sync) > 0 {
        return None;
    }
    let away = |copy: &CopyView| Some(&copy.node) != view.consumer.as_ref();
    let id = last(view, |copy| copy.member() && away(copy)).or_else(|| last(view, CopyView::member))?;
    Some(Action::Retire(id, Cause::Surplus))
}

/// As many lost ones as are missing may still come back; more would pile up.
fn lost(view: &View) -> Option<Action> {
    let gone = |copy: &CopyView| copy.member() && copy.lost && !copy.in_sync;
    let missing = view.count.saturating_sub(staying(view));
    (count(view, gone) > missing).then(|| last(view, gone)).flatten().map(|id| Action::Retire(id, Cause::Lost))
}

fn reserve(view: &View) -> Option<Action> {
    if count(view, |copy| copy.member() && !copy.lost) >= view.count {
        return None;
    }
    let asked = view.copies.values().filter(|copy| copy.retiring && copy.in_sync).find_map(|copy| copy.move_to.clone());
    let vacant = asked.filter(|to| view.copies.values().all(|copy| copy.node != *to));
    Some(Action::Reserve(vacant.map_or(Place::Free, Place::Only)))
}

/// Everything is whole, and none of it where it is used.
fn relocate(view: &View) -> Option<Action> {
    let consumer = view.consumer.as_ref().filter(|_| view.resident)?;
    let whole = view.copies.values().all(|copy| copy.member() && copy.in_sync) && view.copies.len() == view.count;
    let away = view.copies.values().all(|copy| copy.node != *consumer);
    if !(whole && away) {
        return None;
    }
    let near = last(view, |copy| copy.member() && copy.neighbour);
    let id = near.or_else(|| last(view, CopyView::member))?;
    Some(Action::Relocate(id, consumer.clone()))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
