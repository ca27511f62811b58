//! What the model remembers: the record, nodes, drives, exports, consumers with their arrays, and what was promised.
//!
//! Used by every other module. It holds values and questions about them; what may happen to them is in [`crate::steps`].

use crate::rules::Bounds;

/// Replicas; replica `n` is on node `n`.
pub const REPLICAS: usize = 3;
/// Nodes that may be consumers: A and B. C only stores.
pub const CONSUMERS: usize = 2;
/// Most writes that bounds may ask for.
pub const WRITES: usize = 3;
/// Generations of an export that fit one epoch in a [`Life`].
const GENERATIONS: u8 = 4;

/// A set of replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Set(pub u8);

impl Set {
    /// The first `n` replicas.
    pub fn first(n: usize) -> Set {
        Set((1 << n) - 1)
    }
    /// One replica.
    pub fn only(r: usize) -> Set {
        Set(1 << r)
    }
    /// Membership.
    pub fn has(self, r: usize) -> bool {
        self.0 & (1 << r) != 0
    }
    /// With one more.
    pub fn with(self, r: usize) -> Set {
        Set(self.0 | 1 << r)
    }
    /// Without one.
    pub fn without(self, r: usize) -> Set {
        Set(self.0 & !(1 << r))
    }
    /// In either.
    pub fn or(self, other: Set) -> Set {
        Set(self.0 | other.0)
    }
    /// In both.
    pub fn and(self, other: Set) -> Set {
        Set(self.0 & other.0)
    }
    /// In this one only.
    pub fn minus(self, other: Set) -> Set {
        Set(self.0 & !other.0)
    }
    /// Whether all of it is in the other.
    pub fn within(self, other: Set) -> bool {
        self.minus(other).is_empty()
    }
    /// Nothing in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// How many.
    pub fn len(self) -> u32 {
        self.0.count_ones()
    }
    /// In order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..REPLICAS).filter(move |r| self.has(*r))
    }
    /// The lowest slot: MD reads from it while a resync is pending.
    pub fn lowest(self) -> Option<usize> {
        self.iter().next()
    }
}

/// An export life: epoch and generation in one ordered number; 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Life(pub u8);

impl Life {
    /// None.
    pub const NONE: Life = Life(0);
    /// Of this epoch and generation.
    pub fn new(epoch: u8, generation: u8) -> Life {
        Life(epoch * GENERATIONS + generation)
    }
    /// Its epoch.
    pub fn epoch(self) -> u8 {
        self.0 / GENERATIONS
    }
    /// Its generation inside the epoch.
    pub fn generation(self) -> u8 {
        self.0 % GENERATIONS
    }
    /// The next generation of the same epoch.
    pub fn next(self) -> Life {
        Life(self.0 + 1)
    }
}

/// The record: the volume's object in the API server. Every change is one compare-and-swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// Epoch.
    pub epoch: u8,
    /// Who may write, and the boot of it for which that holds.
    pub consumer: Option<(usize, u8)>,
    /// The in-sync set; absent is unknown.
    pub in_sync: Option<Set>,
    /// Whether the consumer of this very epoch has confirmed the set.
    pub activated: bool,
    /// Life with which a replica left in this epoch.
    pub departed: [Life; REPLICAS],
}

/// What survives a crash of a replica's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Drive {
    /// The block: number of the write that landed last.
    pub value: u8,
    /// Its bit in the on-disk bitmap.
    pub dirty: bool,
    /// The superblock says: recovery of this member is not finished.
    pub recovering: bool,
    /// Members that the superblock says are active.
    pub roles: Set,
    /// Highest life fenced for, written durably and reported.
    pub life: Life,
}

/// nvmet on a replica's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Target {
    /// The export whose port is linked: it answers.
    pub linked: Life,
    /// An older one that still answers: only where a rule is broken.
    pub stale: Life,
    /// Commands in flight by write, with the life they came through. They land at any time, linked or not; a drain waits
    /// for them.
    pub queued: [Life; WRITES],
}

/// A node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Node {
    /// Down after a crash.
    pub down: bool,
    /// Number of its boot.
    pub boot: u8,
}

/// How far an array is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Assembled read-only.
    ReadOnly,
    /// The record has its members.
    Recorded,
    /// Read-write.
    Open,
}

/// A write on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    /// Number.
    pub id: u8,
    /// Members it was issued to.
    pub to: Set,
    /// Members that have answered.
    pub done: Set,
}

/// The MD array of a consumer, in its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Array {
    /// Epoch under which it was assembled.
    pub epoch: u8,
    /// How far it is.
    pub stage: Stage,
    /// Active members.
    pub active: Set,
    /// The member that is being copied to.
    pub copying: Set,
    /// Members that the kernel failed by itself.
    pub faulty: Set,
    /// Members taken out of the record whose controller's deletion is on its way.
    pub deleting: Set,
    /// A member whose proof was taken, its compare-and-swap on its way.
    pub proven: Set,
    /// The bit has to be copied when a member returns (NEEDED in md-bitmap.c).
    pub needed: bool,
    /// Members may differ: the first resync after assembly has not finished.
    pub resync: bool,
    /// Writes are frozen (`blocked`).
    pub frozen: bool,
    /// The file system was shut down and every opener killed: nothing is acknowledged to anybody.
    pub shut: bool,
    /// What a reader gets when no write is on its way.
    pub settled: u8,
    /// The write on its way.
    pub write: Option<Write>,
}

impl Array {
    /// Everything that is written to.
    pub fn members(&self) -> Set {
        self.active.or(self.copying)
    }
    /// Every device that MD holds.
    pub fn held(&self) -> Set {
        self.members().or(self.faulty)
    }
    /// What MD counts and a record does not, and is not on its way out.
    pub fn unrecorded(&self, set: Set) -> Set {
        self.active.minus(set).minus(self.deleting)
    }
}

/// A node as consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Consumer {
    /// The array.
    pub array: Option<Array>,
    /// Controllers by replica: the life they were made for.
    pub connected: [Life; REPLICAS],
    /// Replicas to which the link is cut.
    pub cut: Set,
}

/// Who issued a write: epoch of the array, node, boot. Epoch 0: not issued yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Origin {
    /// Epoch of the array.
    pub epoch: u8,
    /// Node.
    pub node: u8,
    /// Its boot.
    pub boot: u8,
}

/// What nobody in the system knows, and properties are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Promised {
    /// The last write that may not be lost: acknowledged, or read after a takeover.
    pub must: u8,
    /// The write that was in flight when the kernel failed a member by itself (P6 excepts it until that is recorded).
    pub excused: u8,
    /// It was acknowledged.
    pub excused_acknowledged: bool,
    /// A write of an earlier life landed in an open array.
    pub intruded: bool,
}

/// Faults that may still happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Crashes of nodes.
    pub crashes: u8,
    /// Cut links.
    pub cuts: u8,
    /// Members failed by the kernel.
    pub failures: u8,
    /// Losses of the recorded set.
    pub losses: u8,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The record.
    pub record: Record,
    /// Nodes A, B, C.
    pub nodes: [Node; REPLICAS],
    /// Their drives.
    pub drives: [Drive; REPLICAS],
    /// Their targets.
    pub targets: [Target; REPLICAS],
    /// A and B as consumers.
    pub consumers: [Consumer; CONSUMERS],
    /// Who issued which write.
    pub origins: [Origin; WRITES],
    /// What was promised.
    pub promised: Promised,
    /// Faults left.
    pub budget: Budget,
}

impl State {
    /// A healthy volume in epoch 1: A writes to all replicas, nothing was written yet.
    pub fn healthy(bounds: &Bounds) -> State {
        let all = Set::first(bounds.replicas);
        let life = Life::new(1, 0);
        let mut state = State {
            record: Record {
                epoch: 1,
                consumer: Some((0, 0)),
                in_sync: Some(all),
                activated: true,
                departed: [Life::NONE; REPLICAS],
            },
            nodes: [Node::default(); REPLICAS],
            drives: [Drive::default(); REPLICAS],
            targets: [Target::default(); REPLICAS],
            consumers: [Consumer::default(); CONSUMERS],
            origins: [Origin::default(); WRITES],
            promised: Promised::default(),
            budget: bounds.faults,
        };
        for r in all.iter() {
            state.drives[r] = Drive { roles: all, life, ..Drive::default() };
            if r != 0 {
                state.targets[r].linked = life;
                state.consumers[0].connected[r] = life;
            }
        }
        state.consumers[0].array = Some(Array::new(1, Stage::Open, all));
        state
    }

    /// The life a replica is wanted to be exported under: a new generation after it left the set in this epoch.
    pub fn wanted(&self, r: usize) -> Life {
        let left = self.record.departed[r];
        if left == Life::NONE { Life::new(self.record.epoch, 0) } else { left.next() }
    }

    /// Whether the record names this node, in this boot, as the consumer.
    pub fn is_consumer(&self, c: usize) -> bool {
        !self.nodes[c].down && self.record.consumer == Some((c, self.nodes[c].boot))
    }

    /// Whether commands of a consumer reach a member now.
    pub fn reaches(&self, c: usize, r: usize) -> bool {
        let life = self.consumers[c].connected[r];
        r == c
            || life != Life::NONE
                && !self.consumers[c].cut.has(r)
                && !self.nodes[r].down
                && (self.targets[r].linked == life || self.targets[r].stale == life)
    }

    /// Whether all of these answer.
    pub fn reaches_all(&self, c: usize, set: Set) -> bool {
        set.iter().all(|r| self.reaches(c, r))
    }

    /// The array of a consumer that is not of an older epoch than the record: its patches can succeed.
    pub fn current(&self, c: usize) -> Option<&Array> {
        self.consumers[c].array.as_ref().filter(|a| self.record.epoch == a.epoch && self.is_consumer(c))
    }

    /// The array of a consumer whose agent sees a higher epoch.
    pub fn deposed(&self, c: usize) -> Option<&Array> {
        self.consumers[c].array.as_ref().filter(|a| self.record.epoch > a.epoch)
    }
}

impl Array {
    /// Over these members.
    pub fn new(epoch: u8, stage: Stage, active: Set) -> Array {
        Array {
            epoch,
            stage,
            active,
            copying: Set::default(),
            faulty: Set::default(),
            deleting: Set::default(),
            proven: Set::default(),
            needed: false,
            resync: false,
            frozen: false,
            shut: false,
            settled: 0,
            write: None,
        }
    }
}
