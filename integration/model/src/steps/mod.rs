//! The steps: each looks whether it is possible and gives the state after it.
//!
//! Called by [`crate::Protocol`]. A step of an agent sees the record as it is: an agent that is late, or cut off from the
//! API server, is one whose step comes late or never. Compare-and-swap makes that the same thing.

mod array;
mod fault;
mod member;
mod target;
mod write;

use crate::actions::Action;
use crate::rules::{Bounds, Variant};
use crate::state::{CONSUMERS, Life, Origin, Set, State};

/// The protocol within bounds, with at most one rule broken.
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    /// How far to explore.
    pub bounds: Bounds,
    /// What is broken.
    pub broken: Option<Variant>,
}

impl Protocol {
    /// Whether this rule is broken.
    pub(crate) fn breaks(&self, variant: Variant) -> bool {
        self.broken == Some(variant)
    }

    /// The state after an action; `None` when it is not possible.
    pub fn step(&self, s: &State, action: Action) -> Option<State> {
        let mut next = self.raw(s, action)?;
        self.forget(&mut next);
        Some(next)
    }

    /// Makes states alike that differ only in what nobody can see any more. Each line says why that changes nothing.
    fn forget(&self, s: &mut State) {
        for consumer in &mut s.consumers {
            // A cut path that no controller uses: to connect late is the same.
            let in_use = consumer.connected.map(|life| life != Life::NONE);
            consumer.cut = consumer.cut.iter().filter(|r| in_use[*r]).fold(Set::default(), Set::with);
            // What readers of an old epoch see is not asked about.
            if let Some(array) = consumer.array.as_mut().filter(|array| array.epoch < s.record.epoch) {
                array.settled = 0;
                array.proven = Set::default();
            }
        }
        for r in 0..self.bounds.replicas {
            // An old export that nobody is connected to: to unlink it late is the same.
            let old = s.targets[r].linked;
            let used = s.consumers.iter().any(|consumer| consumer.connected[r] == old);
            if old < s.wanted(r) && !used && !self.breaks(Variant::FenceSkipped) {
                s.targets[r].linked = Life::NONE;
            }
        }
        for (slot, origin) in s.origins.iter_mut().enumerate() {
            // Who issued a write matters while it can still land.
            let flying = s.targets.iter().any(|target| target.queued[slot] != Life::NONE)
                || usize::from(s.promised.excused) == slot + 1
                || s.consumers
                    .iter()
                    .filter_map(|consumer| consumer.array?.write)
                    .any(|w| usize::from(w.id) == slot + 1);
            if !flying {
                *origin = Origin { epoch: origin.epoch, ..Origin::default() };
            }
        }
    }

    fn raw(&self, s: &State, action: Action) -> Option<State> {
        use Action::*;
        match action {
            Crash { node } => fault::crash(s, node),
            Boot { node } => fault::boot(s, node),
            Cut { c, r } => fault::cut(s, c, r),
            Heal { c, r } => fault::heal(s, c, r),
            Fail { c, r } => fault::fail(self, s, c, r),
            LoseSet => fault::lose_set(s),
            Unpublish => self.unpublish(s),
            Publish { c } => self.publish(s, c),
            FollowBoot => self.follow_boot(s),
            Unlink { r } => target::unlink(self, s, r),
            Fence { r } => target::fence(self, s, r),
            Export { r } => target::export(self, s, r),
            Refuse { c, r } => target::refuse(self, s, c, r),
            Land { r, write } => target::land(s, r, write),
            Issue { c } => write::issue(self, s, c),
            Send { c, r } => write::send(s, c, r),
            LandLocal { c } => write::land_local(s, c),
            Acknowledge { c } => write::acknowledge(self, s, c),
            Resync { c } => array::resync(self, s, c),
            Copied { c, r } => member::copied(self, s, c, r),
            Connect { c, r } => member::connect(self, s, c, r),
            Assemble { c } => array::assemble(self, s, c),
            Activate { c } => array::activate(self, s, c),
            Open { c } => array::open(self, s, c),
            Shrink { c, r } => member::shrink(self, s, c, r),
            Delete { c, r } => member::delete(self, s, c, r),
            RecordLoss { c, r } => member::record_loss(self, s, c, r),
            ReAdd { c, r } => member::re_add(self, s, c, r),
            Prove { c, r } => member::prove(self, s, c, r),
            Grow { c, r } => member::grow(s, c, r),
            Thaw { c } => member::thaw(s, c),
            Shutdown { c } => array::shutdown(s, c),
            Abandon { c } => array::abandon(self, s, c),
            Stop { c } => array::stop(s, c),
            Unstage { c } => array::unstage(self, s, c),
        }
    }

    /// Unpublish raises the epoch and empties the consumer, whatever the consumer does.
    fn unpublish(&self, s: &State) -> Option<State> {
        s.record.consumer?;
        self.raised(s, None)
    }

    /// Publish never takes over.
    fn publish(&self, s: &State, c: usize) -> Option<State> {
        if s.record.consumer.is_some() || s.nodes[c].down {
            return None;
        }
        self.raised(s, Some((c, s.nodes[c].boot)))
    }

    /// A consumer that rebooted gets a new epoch.
    fn follow_boot(&self, s: &State) -> Option<State> {
        let (c, boot) = s.record.consumer?;
        if s.nodes[c].down || s.nodes[c].boot == boot || self.breaks(Variant::RebootKeepsEpoch) {
            return None;
        }
        self.raised(s, Some((c, s.nodes[c].boot)))
    }

    fn raised(&self, s: &State, consumer: Option<(usize, u8)>) -> Option<State> {
        // An epoch without a consumer is of use only if one more can follow.
        let last = if consumer.is_some() { self.bounds.epochs } else { self.bounds.epochs - 1 };
        if s.record.epoch >= last {
            return None;
        }
        let mut s = s.clone();
        s.record.epoch += 1;
        s.record.consumer = consumer;
        s.record.activated = false;
        // Departures speak of lives of their own epoch.
        s.record.departed = Default::default();
        Some(s)
    }
}

impl State {
    /// Whether an array of this node holds the partition of its own replica.
    pub(crate) fn holder(&self, r: usize) -> Option<&crate::state::Array> {
        let consumer = self.consumers.get(r).filter(|_| r < CONSUMERS)?;
        consumer.array.as_ref().filter(|array| array.held().has(r))
    }
}
