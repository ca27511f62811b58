//! What can happen, one line of words for each, and the list that the checker tries in every state.
//!
//! Called by [`crate::Protocol`]. Whether an action is possible is decided by its step, not here.

use crate::rules::{Bounds, Variant};
use crate::state::{CONSUMERS, WRITES};
use std::fmt;

/// One step of somebody. Nodes and replicas are numbers: replica `r` is on node `r`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Each is told in words by `Display`.
pub enum Action {
    // Faults.
    Crash { node: usize },
    Boot { node: usize },
    Cut { c: usize, r: usize },
    Heal { c: usize, r: usize },
    Fail { c: usize, r: usize },
    LoseSet,
    // Controller.
    Unpublish,
    Publish { c: usize },
    FollowBoot,
    // A replica's node.
    Unlink { r: usize },
    Fence { r: usize },
    Export { r: usize },
    Refuse { c: usize, r: usize },
    Land { r: usize, write: usize },
    // The consumer's kernel.
    Issue { c: usize },
    Send { c: usize, r: usize },
    LandLocal { c: usize },
    Acknowledge { c: usize },
    Resync { c: usize },
    Copied { c: usize, r: usize },
    // The consumer's agent.
    Connect { c: usize, r: usize },
    Assemble { c: usize },
    Activate { c: usize },
    Open { c: usize },
    Shrink { c: usize, r: usize },
    Delete { c: usize, r: usize },
    RecordLoss { c: usize, r: usize },
    ReAdd { c: usize, r: usize },
    Prove { c: usize, r: usize },
    Grow { c: usize, r: usize },
    Thaw { c: usize },
    Shutdown { c: usize },
    Abandon { c: usize },
    Stop { c: usize },
    Unstage { c: usize },
}

fn node(n: usize) -> char {
    ['A', 'B', 'C'].get(n).copied().unwrap_or('?')
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Action::*;
        let by = |c: &usize| node(*c);
        match self {
            Crash { node: n } => {
                write!(f, "FAULT  node {} crashes: its memory and what was queued at it are lost", by(n))
            }
            Boot { node: n } => write!(f, "       node {} boots", by(n)),
            Cut { c, r } => write!(f, "FAULT  the link between {} and r{r} is cut", by(c)),
            Heal { c, r } => write!(f, "       the link between {} and r{r} is back", by(c)),
            Fail { c, r } => write!(f, "FAULT  {}'s kernel fails member r{r} by itself", by(c)),
            LoseSet => write!(f, "FAULT  the recorded in-sync set is lost: absent from now on"),
            Unpublish => write!(f, "record epoch raised, consumer none (unpublish)"),
            Publish { c } => write!(f, "record epoch raised, consumer {} (publish)", by(c)),
            FollowBoot => write!(f, "record epoch raised, same node, its new boot"),
            Unlink { r } => write!(f, "r{r}     unlinks its old export: nothing answers any more"),
            Fence { r } => write!(f, "r{r}     has drained; the new life is on its drive and reported"),
            Export { r } => write!(f, "r{r}     exports the new life"),
            Refuse { c, r } => write!(f, "r{r}     refuses {}, whose kernel fails the member", by(c)),
            Land { r, write } => write!(f, "r{r}     write {} lands on the drive", write + 1),
            Issue { c } => write!(f, "{}      a program writes; the bit is set on every member", by(c)),
            Send { c, r } => write!(f, "{}      the write is sent to r{r}", by(c)),
            LandLocal { c } => write!(f, "{}      the write lands on its own r{c}", by(c)),
            Acknowledge { c } => write!(f, "{}      MD completes the write", by(c)),
            Resync { c } => write!(f, "{}      the first resync finishes", by(c)),
            Copied { c, r } => write!(f, "{}      r{r} has been copied to and is active", by(c)),
            Connect { c, r } => write!(f, "{}      connects to r{r}", by(c)),
            Assemble { c } => write!(f, "{}      assembles read-only", by(c)),
            Activate { c } => write!(f, "record {} activates: the set is its active members", by(c)),
            Open { c } => write!(f, "{}      opens the array for writes", by(c)),
            Shrink { c, r } => write!(f, "record {} takes r{r} out: it cannot be reached", by(c)),
            Delete { c, r } => write!(f, "{}      the controller of r{r} is deleted, MD drops it", by(c)),
            RecordLoss { c, r } => write!(f, "record {} takes r{r} out: its array has lost it; writes go on", by(c)),
            ReAdd { c, r } => write!(f, "{}      re-adds r{r}", by(c)),
            Prove { c, r } => write!(f, "{}      reads r{r}'s superblock: active", by(c)),
            Grow { c, r } => write!(f, "record {} takes r{r} in", by(c)),
            Thaw { c } => write!(f, "{}      lets writes go on: what its array lost or gained is recorded", by(c)),
            Shutdown { c } => {
                write!(f, "{}      sees the higher epoch: kills openers, shuts the file system down", by(c))
            }
            Abandon { c } => write!(f, "{}      deletes the controllers of its old epoch", by(c)),
            Stop { c } => write!(f, "{}      stops the array of its old epoch", by(c)),
            Unstage { c } => write!(f, "{}      stops the array in good order (unstaged, still published)", by(c)),
        }
    }
}

/// Everything that is tried, in a fixed order.
pub fn all(bounds: &Bounds, broken: Option<Variant>, list: &mut Vec<Action>) {
    use Action::*;
    list.extend([Unpublish, FollowBoot, LoseSet]);
    for r in 0..bounds.replicas {
        list.extend([Crash { node: r }, Boot { node: r }, Unlink { r }, Fence { r }, Export { r }]);
        list.extend((0..WRITES).map(|write| Land { r, write }));
    }
    for c in 0..CONSUMERS {
        list.extend([Publish { c }, Issue { c }, LandLocal { c }, Acknowledge { c }, Resync { c }]);
        list.extend([Assemble { c }, Activate { c }, Open { c }, Shutdown { c }, Abandon { c }, Stop { c }]);
        list.extend([Unstage { c }, Thaw { c }]);
        for r in 0..bounds.replicas {
            list.extend([Fail { c, r }, RecordLoss { c, r }, ReAdd { c, r }, Copied { c, r }, Prove { c, r }]);
            list.extend([Grow { c, r }, Delete { c, r }]);
            if r != c {
                list.extend([Cut { c, r }, Heal { c, r }, Send { c, r }, Connect { c, r }, Shrink { c, r }]);
            }
            if r != c && broken == Some(Variant::RefusedByFence) {
                list.push(Refuse { c, r });
            }
        }
    }
}
