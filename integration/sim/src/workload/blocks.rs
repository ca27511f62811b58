//! What a pod does with its volume: writes and reads blocks, and judges what it reads.
//!
//! Called by a volume's life. It never has two writes to one block in flight, as no application does.

use super::{Asked, Life};
use crate::cluster::pass;
use meshstor_kernel::id::VolumeId;
use std::time::Duration;
use tokio::time::Instant;

/// Blocks that writers use: few, so that writes meet. They are 44 MiB apart: seldom two in a chunk of the bitmap.
const BLOCKS: u64 = 12;

/// More of them, behind the end of a volume that has not grown.
const BEHIND: [u64; 4] = [24, 30, 36, 42];

/// Longest time from a member's failure to the freeze of the writes, while nobody can record the loss: the window that
/// docs/promises.md names (P6). An event has to be heard and one file to be written.
const WINDOW: f64 = 0.1;

/// Longest rest of an actor that nobody tells anything (`actors/src/tree.rs`).
const REST: f64 = 10.0;

/// Whether a write was acknowledged in the window of P6 (docs/protocol.md, limit-failure-in-flight): its array had just lost
/// a member, and its writes were frozen a moment later, as the record could not be changed.
pub fn in_flight_at_a_failure(trace: &[String], volume: VolumeId, node: &str, acknowledged: Duration) -> bool {
    let (at, mut failed) = (acknowledged.as_secs_f64(), false);
    for (time, words) in lines_of(trace, volume, node).filter(|(time, _)| (time - at).abs() <= WINDOW) {
        failed |= fails(&words) && time <= at;
        if failed && words.first() == Some(&"freeze-writes") && words.get(3) == Some(&"on") && time >= at {
            return true;
        }
    }
    false
}

fn time_of(line: &str) -> Option<f64> {
    line.split_whitespace().next()?.parse().ok()
}

/// What the trace tells of a volume's array on a node: time and words behind the node's name. A loss in another volume's
/// array excuses nothing in this one.
fn lines_of<'a>(trace: &'a [String], volume: VolumeId, node: &str) -> impl Iterator<Item = (f64, Vec<&'a str>)> {
    let (id, node) = (volume.short().to_string(), format!(" {node} "));
    let of_both = trace.iter().filter(move |line| line.contains(&id) && line.contains(&node));
    of_both.filter_map(|line| Some((time_of(line)?, line.split_whitespace().skip(2).collect())))
}

/// `md1001 fails nvme1n1 of f2dbb171: command failed`.
fn fails(words: &[&str]) -> bool {
    words.get(1) == Some(&"fails")
}

/// Whether the volume's array on this node lost a member in this time, of itself and not on our word, and got none: a copy
/// that the kernel alone knows of is no excuse.
fn only_lost(trace: &[String], volume: VolumeId, node: &str, from: f64, to: f64) -> bool {
    let lines = || lines_of(trace, volume, node).filter(|(time, _)| (from..=to).contains(time));
    let completes = |words: &[&str]| words.get(1..3) == Some(&["ends", "recover"]);
    let told = |words: &[&str]| words.first() == Some(&"drop-member");
    lines().any(|(_, words)| fails(&words)) && !lines().any(|(_, words)| completes(&words) || told(&words))
}

/// Whether a write was acknowledged between such a loss and the next look, the word of it having been lost: the same limit
/// as without an agent, for as long as an actor rests. A real kernel's word is a file that stays readable until it is read.
fn failed_unheard(trace: &[String], volume: VolumeId, node: &str, acknowledged: Duration) -> bool {
    let at = acknowledged.as_secs_f64();
    let word = format!(" {node} unheard: {}", volume.short());
    let mut unheard = trace.iter().filter(|line| line.contains(&word)).filter_map(|line| time_of(line));
    unheard.any(|time| (at - REST..=at).contains(&time) && only_lost(trace, volume, node, time - WINDOW, at))
}

impl Life {
    pub(crate) async fn write_until(&self, node: &str, until: Instant) {
        let Some(id) = self.id.get() else { return };
        if self.seen.borrow().is_empty() {
            for round in 0..=self.below(3) {
                pass(3.0 * round as f64).await;
                if !self.replay(node, id, until).await {
                    return;
                }
            }
        }
        while Instant::now() < until && !self.calming.get() {
            let write = tokio::time::timeout_at(until, self.write_one(node, id)).await;
            if !matches!(write, Ok(Ok(()))) {
                // An error: kubelet would restart the pod, which stages again.
                return;
            }
            if self.below(4) == 0
                && !matches!(
                    tokio::time::timeout_at(until, self.read_twice(node, id, self.below(BLOCKS as usize) as u64)).await,
                    Ok(true)
                )
            {
                return;
            }
            pass(0.05 + self.below(100) as f64 / 200.0).await;
        }
    }

    pub(crate) async fn write_one(&self, node: &str, id: VolumeId) -> Result<(), meshstor_kernel::sim::IoError> {
        let tag = self.next_tag.get();
        self.next_tag.set(tag + 10_000);
        let Some(block) = self.block() else { return Ok(()) };
        self.asked.borrow_mut().insert(tag, Asked { block, session: self.session.get() });
        self.unanswered.borrow_mut().insert(block);
        self.seen.borrow_mut().remove(&block);
        let written = self.cluster.world.write(node, id, block, tag).await;
        if written.is_ok() {
            self.unanswered.borrow_mut().remove(&block);
        }
        written
    }

    /// What an application does first: it reads its log, some more than once. Answers whether that worked.
    pub(crate) async fn replay(&self, node: &str, id: VolumeId, until: Instant) -> bool {
        for block in 0..BLOCKS {
            let read = self.read_twice(node, id, block);
            if !matches!(tokio::time::timeout_at(until, read).await, Ok(true)) {
                return false;
            }
        }
        true
    }

    /// Whether a write that was acknowledged may be lost after all.
    pub fn excused(&self, id: VolumeId, block: u64, tag: u64) -> bool {
        let world = &self.cluster.world;
        let history = world.history();
        let write = history.iter().find(|w| w.volume == id && w.block == block && w.tag == tag);
        let answered = write.and_then(|w| Some((w.node.0.as_str(), w.acknowledged?)));
        answered.is_some_and(|(node, at)| {
            let trace = world.trace();
            in_flight_at_a_failure(&trace, id, node, at)
                || self.failed_without_agent(&trace, id, node, at)
                || failed_unheard(&trace, id, node, at)
        })
    }

    /// Whether the write was acknowledged by an array that had lost a member while its node had no agent that could freeze it
    /// and record the loss (docs/protocol.md, limit-failure-without-agent).
    fn failed_without_agent(&self, trace: &[String], id: VolumeId, node: &str, at: Duration) -> bool {
        let without = self.cluster.without_agent(node, at);
        without.is_some_and(|from| only_lost(trace, id, node, from.as_secs_f64() - WINDOW, at.as_secs_f64()))
    }

    /// The history of a block since a content, for a failure's line.
    pub fn told(&self, id: VolumeId, block: u64, since: u64) -> String {
        let history = self.cluster.world.history();
        let writes = history.iter().filter(|w| w.volume == id && w.block == block && w.tag >= since);
        let word = |w: &meshstor_kernel::sim::WriteRecord| {
            let answered =
                w.acknowledged.map_or("never answered".into(), |at| format!("answered {:.3}", at.as_secs_f64()));
            format!("{} on {} at {:.3} {answered}", w.tag, w.node, w.asked.as_secs_f64())
        };
        writes.map(word).collect::<Vec<_>>().join(", ")
    }

    /// A block with no write in flight: two at once to the same place may land in either order, and no application does that.
    fn block(&self) -> Option<u64> {
        let free = |block: &u64| !self.unanswered.borrow().contains(block);
        let behind = BEHIND.into_iter().filter(|_| self.growing.grown.get());
        let blocks: Vec<u64> = (0..BLOCKS).chain(behind).map(|n| n * 700).filter(free).collect();
        (!blocks.is_empty()).then(|| blocks[self.below(blocks.len())])
    }

    /// Reads a block twice. Nobody else writes: the answers must be equal, and not older than what was acknowledged.
    /// Answers whether the volume could be read.
    async fn read_twice(&self, node: &str, id: VolumeId, number: u64) -> bool {
        let block = number * 700;
        let world = &self.cluster.world;
        let Ok(one) = world.read(node, id, block).await else { return false };
        pass(0.01).await;
        let Ok(other) = world.read(node, id, block).await else { return false };
        if self.unanswered.borrow().contains(&block) {
            return true;
        }
        let mut broken = self.broken.borrow_mut();
        if one != other {
            let (at, told) = (world.now().as_secs_f64(), self.told(id, block, one.min(other)));
            broken.push(format!("{} on {node} at {at:.3}: block {block} read {one}, then {other}; {told}", self.name));
        }
        let now = (other, world.now());
        let before = self.seen.borrow_mut().insert(block, now).filter(|(before, _)| *before != other);
        // The copy that answered may be lost before a resync has made the others equal to it (docs/protocol.md, limit-read-before-resync).
        let lost_one = |since: Duration| {
            let trace = world.trace();
            lines_of(&trace, id, node).any(|(time, words)| time >= since.as_secs_f64() && fails(&words))
        };
        if let Some((before, since)) = before
            && !lost_one(since)
        {
            let told = self.told(id, block, before.min(other));
            broken
                .push(format!("{} on {node}: block {block} was read as {before}, then as {other}; {told}", self.name));
        }
        // Contents rise with time: an older one is a lost write.
        let last = world.acknowledged(id).get(&block).copied().unwrap_or(0);
        if other < last && !self.excused(id, block, last) {
            let at = world.now().as_secs_f64();
            let told = self.told(id, block, last.min(other));
            broken.push(format!(
                "{} on {node} at {at:.3}: block {block} read {other}, acknowledged was {last}; {told}",
                self.name
            ));
        }
        true
    }
}
