//! The journey of one block command: from a node's queue over a wire to a drive, and its answer back.
//!
//! ```text
//!   queued ──▶ away (on a controller's wire) ──▶ landing on the drive ──▶ answer on the wire ──▶ ended
//!      ▲             │ path lost: back to the queue; what reached the target lands there all the same
//!      └─────────────┘
//! ```
//!
//! Called by arrays and the file system layer through `submit`. A landing belongs to the node of the drive, not to the
//! node that sent it: it happens even when the sender is dead, and it is what a fence drains.

use super::event::{Event, What};
use super::state::{State, Time};
use crate::facts::{Bitmap, DATA_OFFSET, Extent, Listen, Superblock, Transport};
use crate::id::ExportKey;

/// A block device as one node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Dev {
    /// A local partition.
    Part { drive: usize, number: u32 },
    /// A fabric head of the node, by its own id: names are taken again, ids are not.
    Head { head: u64 },
}

/// What a command carries.
#[derive(Debug, Clone)]
pub(super) enum Load {
    /// A data block, counted from the start of the data area.
    Write {
        block: u64,
        tag: u64,
    },
    Read {
        block: u64,
    },
    Flush,
    /// MD superblock, and (events, events_cleared) for the bitmap's header, which goes along.
    Super {
        superblock: Superblock,
        header: Option<(u64, u64)>,
    },
    /// The whole bitmap, header and bits; `None` takes it away.
    Bits {
        bitmap: Option<Bitmap>,
    },
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Done; the tag that was read, 0 for writes.
    Done(u64),
    /// EIO.
    Failed,
}

/// Who waits for a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Io(u64),
    Super(u64),
    Bits(u64),
}

/// One life of a controller's connection: host and target know it by its serials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Assoc {
    pub(super) ctrl: u64,
    pub(super) serial: u64,
    pub(super) key: ExportKey,
    pub(super) host: usize,
    pub(super) target: usize,
    pub(super) listen: Listen,
    /// Serial of the target's port link when the connection was made.
    pub(super) link: u64,
}

/// A command that its owner waits for.
#[derive(Debug, Clone)]
pub(super) struct Bio {
    pub(super) node: usize,
    pub(super) dev: Dev,
    pub(super) load: Load,
    pub(super) owner: Owner,
    /// Array that sends it, for the law of one writer.
    pub(super) writer: u64,
    /// Serial of the connection it went out on; `None` while queued or local.
    pub(super) away: Option<u64>,
    pub(super) since: Time,
}

/// A command on its way to a target. It carries all it needs: it may arrive when its sender is dead.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) bio: u64,
    pub(super) assoc: Assoc,
    pub(super) load: Load,
    pub(super) writer: u64,
}

/// A command in a drive.
#[derive(Debug, Clone)]
pub(super) struct Landing {
    /// Node of the drive.
    pub(super) node: usize,
    pub(super) drive: usize,
    pub(super) number: u32,
    pub(super) load: Load,
    pub(super) writer: u64,
    pub(super) bio: u64,
    /// The connection it came in by; `None` for local ones.
    pub(super) assoc: Option<Assoc>,
}

impl State {
    /// Sends a command. Its end is always an event, never part of this call.
    pub(super) fn submit(&mut self, node: usize, dev: Dev, load: Load, owner: Owner, writer: u64) -> u64 {
        let id = self.id();
        let bio = Bio { node, dev, load: load.clone(), owner, writer, away: None, since: self.now };
        self.bios.insert(id, bio);
        match dev {
            Dev::Part { drive, number } => {
                self.land(Landing { node, drive, number, load, writer, bio: id, assoc: None });
            }
            Dev::Head { head } => self.send_queued(node, head),
        }
        id
    }

    /// Puts every queued command of a head on the best live path; without a head they fail.
    pub(super) fn send_queued(&mut self, node: usize, head: u64) {
        let mine = |b: &Bio| b.node == node && b.dev == Dev::Head { head } && b.away.is_none();
        let queued: Vec<u64> = self.bios.iter().filter(|(_, b)| mine(b)).map(|(id, _)| *id).collect();
        if !self.nodes[node].heads.contains_key(&head) {
            for bio in queued {
                self.after(Time::ZERO, node, What::Ended { bio, answer: Answer::Failed });
            }
            return;
        }
        let Some(assoc) = self.best_path(node, head) else { return };
        for id in queued {
            let Some(bio) = self.bios.get_mut(&id) else { continue };
            bio.away = Some(assoc.serial);
            let packet = Packet { bio: id, assoc: assoc.clone(), load: bio.load.clone(), writer: bio.writer };
            self.after(self.config.link_latency, assoc.target, What::Arrive { packet: Box::new(packet) });
        }
    }

    /// Whether a wire is cut for a packet from `from` to `to`; if so the event waits on it.
    fn park(&mut self, from: usize, to: usize, transport: Transport, what: What) -> Option<What> {
        if self.passes(from, to, transport) {
            return Some(what);
        }
        let life = self.nodes[to].life;
        self.parked.push(((from, to, transport), Event { node: to, life, what }));
        None
    }

    /// A command reaches the target node.
    pub(super) fn arrive(&mut self, node: usize, packet: Box<Packet>) {
        let (from, transport) = (packet.assoc.host, packet.assoc.listen.transport);
        let Some(What::Arrive { packet }) = self.park(from, node, transport, What::Arrive { packet }) else { return };
        let Packet { bio, assoc, load, writer } = *packet;
        // The target's side of the connection went with the port link: the packet finds no socket.
        if !self.link_is(node, &assoc) {
            return;
        }
        let subsystem = self.nodes[node].subsystems.get(&assoc.key);
        let ready = subsystem.filter(|s| s.enabled && !s.dead).map(|s| (s.drive, s.number));
        match ready {
            Some((drive, number)) => {
                self.land(Landing { node, drive, number, load, writer, bio, assoc: Some(assoc) });
            }
            None => self.answer(node, bio, assoc, Answer::Failed),
        }
    }

    fn land(&mut self, landing: Landing) {
        let node = landing.node;
        let id = self.id();
        let throttled = &mut self.drives[landing.drive].throttled;
        let late = throttled.0 > 0 && landing.assoc.is_some() && matches!(landing.load, Load::Write { .. });
        throttled.0 -= u32::from(late);
        let time = if late { throttled.1 } else { self.config.drive_latency };
        self.landings.insert(id, landing);
        self.after(time, node, What::Landed { landing: id });
    }

    /// The drive is done: the effect happens now, whoever still waits for it.
    pub(super) fn landed(&mut self, id: u64) {
        let Some(landing) = self.landings.get(&id).cloned() else { return };
        let drive = &self.drives[landing.drive];
        if drive.hung && drive.home == Some(landing.node) {
            // `drive_hang(.., false)` lets it land; a pulled drive fails it.
            return;
        }
        self.landings.remove(&id);
        let answer = self.take_effect(&landing);
        match landing.assoc {
            None => self.end_bio(landing.bio, answer),
            Some(assoc) => self.answer(landing.node, landing.bio, assoc, answer),
        }
    }

    fn take_effect(&mut self, landing: &Landing) -> Answer {
        let drive = &self.drives[landing.drive];
        let gone = drive.home != Some(landing.node) || drive.broken || self.nodes[landing.node].stopping;
        let Some(extent) = drive.entry(landing.number).map(|e| e.extent).filter(|_| !gone) else {
            return Answer::Failed;
        };
        if !matches!(landing.load, Load::Read { .. } | Load::Flush) {
            self.law_one_writer(landing);
        }
        self.write_through(landing.drive, extent, &landing.load)
    }

    /// Carries a command out on a drive.
    pub(super) fn write_through(&mut self, drive: usize, extent: Extent, load: &Load) -> Answer {
        let first = (extent.start + DATA_OFFSET) / self.config.block_bytes;
        let end = extent.end() / self.config.block_bytes;
        let drive = &mut self.drives[drive];
        match load {
            Load::Write { block, .. } | Load::Read { block } if first + block >= end => return Answer::Failed,
            Load::Write { block, tag } => drive.write(first + block, *tag),
            Load::Read { block } => return Answer::Done(drive.read(first + block)),
            Load::Flush => drive.flush(),
            Load::Super { superblock, header } => drive.edit_meta(extent.start, |meta| {
                meta.superblock = Some(superblock.clone());
                if let (Some(bitmap), Some((events, cleared))) = (&mut meta.bitmap, header) {
                    bitmap.events = *events;
                    bitmap.events_cleared = *cleared;
                }
            }),
            Load::Bits { bitmap } => drive.edit_meta(extent.start, |meta| meta.bitmap = bitmap.clone()),
        }
        Answer::Done(0)
    }

    /// The target answers, if it still has the connection.
    fn answer(&mut self, node: usize, bio: u64, assoc: Assoc, answer: Answer) {
        if self.link_is(node, &assoc) {
            let host = assoc.host;
            self.after(self.config.link_latency, host, What::Reply { bio, assoc, answer });
        }
    }

    /// An answer reaches the host.
    pub(super) fn reply(&mut self, node: usize, bio: u64, assoc: Assoc, answer: Answer) {
        let transport = assoc.listen.transport;
        let (target, serial) = (assoc.target, assoc.serial);
        if self.park(target, node, transport, What::Reply { bio, assoc, answer }).is_none() {
            return;
        }
        // An answer on a connection that was given up is not heard: the command was queued again.
        if self.bios.get(&bio).is_some_and(|b| b.away == Some(serial)) {
            self.end_bio(bio, answer);
        }
    }

    /// A command is over; its owner hears of it.
    pub(super) fn end_bio(&mut self, id: u64, answer: Answer) {
        let Some(bio) = self.bios.remove(&id) else { return };
        if let Dev::Head { head } = bio.dev
            && let Some(head) = self.nodes[bio.node].heads.get_mut(&head)
        {
            head.last_completion = self.now;
        }
        match bio.owner {
            Owner::Io(io) => self.leg_ended(io, id, answer),
            Owner::Super(array) | Owner::Bits(array) => self.meta_ended(array, id, answer),
        }
    }

    /// Whether the target still holds its side of a connection.
    pub(super) fn link_is(&self, target: usize, assoc: &Assoc) -> bool {
        let port = self.nodes[target].ports.get(&assoc.listen);
        port.and_then(|links| links.get(&assoc.key)) == Some(&assoc.link)
    }
}
