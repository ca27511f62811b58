//! The queue of things that will happen, and their dispatch in order of time.
//!
//! Called by `World` whenever somebody looks: all events that are due run first, each at its own time. There is no
//! task in the background, so a paused clock and a running one give the same history. An event of a node's former
//! life is dropped, one of a frozen node waits for the thaw.

use super::bio::{Answer, Assoc, Packet};
use super::state::{State, Time};
use crate::hint::Hint;
use std::collections::BTreeMap;

/// What happens on a node.
#[derive(Debug, Clone)]
pub(super) enum What {
    /// An operation begins.
    JobStart { job: u64 },
    /// A command reaches the target.
    Arrive { packet: Box<Packet> },
    /// A drive is done with a command.
    Landed { landing: u64 },
    /// An answer reaches the host.
    Reply { bio: u64, assoc: Assoc, answer: Answer },
    /// A command ends without having left the node.
    Ended { bio: u64, answer: Answer },
    /// The keep-alive of a controller ran out.
    KeepAlive { ctrl: u64, serial: u64 },
    /// A controller without a path dials again.
    Redial { ctrl: u64 },
    /// MD's bitmap daemon makes a pass.
    Daemon { array: u64 },
    /// An idle array goes clean.
    SafeMode { array: u64, after: Time },
    /// Resync or recovery is due to finish a chunk.
    SyncStep { array: u64, run: u64 },
    /// A hint is told.
    Tell { hint: Hint },
    /// The machine that was shutting down is off.
    Off,
}

/// An event, of one life of one node.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) node: usize,
    /// The life it belongs to; events of wires and drives carry the life of the node where they happen.
    pub(super) life: u64,
    pub(super) what: What,
}

/// Events by time, then by order of entry.
#[derive(Debug, Default)]
pub(super) struct Queue {
    events: BTreeMap<(Time, u64), Event>,
    entered: u64,
}

impl Queue {
    pub(super) fn add(&mut self, at: Time, event: Event) {
        self.entered += 1;
        self.events.insert((at, self.entered), event);
    }

    pub(super) fn next_at(&self) -> Option<Time> {
        self.events.first_key_value().map(|((at, _), _)| *at)
    }

    fn take_due(&mut self, until: Time) -> Option<(Time, Event)> {
        let entry = self.events.first_entry()?;
        (entry.key().0 <= until).then(|| entry.remove_entry()).map(|((at, _), event)| (at, event))
    }
}

impl State {
    /// Lets `what` happen on `node` after `delay`, unless the node's present life ends first.
    pub(super) fn after(&mut self, delay: Time, node: usize, what: What) {
        let life = self.nodes[node].life;
        self.queue.add(self.now + delay, Event { node, life, what });
    }

    /// Runs everything that is due until `until`.
    pub(super) fn advance(&mut self, until: Time) {
        while let Some((at, event)) = self.queue.take_due(until) {
            self.now = self.now.max(at);
            self.happen(event);
            self.pump();
        }
        self.now = self.now.max(until);
    }

    fn happen(&mut self, event: Event) {
        let node = &mut self.nodes[event.node];
        if node.life != event.life || !node.up {
            return;
        }
        if node.frozen {
            node.deferred.push(event);
            return;
        }
        let node = event.node;
        match event.what {
            What::JobStart { job } => self.start_job(job),
            What::Arrive { packet } => self.arrive(node, packet),
            What::Landed { landing } => self.landed(landing),
            What::Reply { bio, assoc, answer } => self.reply(node, bio, assoc, answer),
            What::Ended { bio, answer } => self.end_bio(bio, answer),
            What::KeepAlive { ctrl, serial } => self.keep_alive_expired(node, ctrl, serial),
            What::Redial { ctrl } => self.redial(node, ctrl),
            What::Daemon { array } => self.bitmap_daemon(array),
            What::SafeMode { array, after } => self.safe_mode(array, after),
            What::SyncStep { array, run } => self.sync_step(array, run),
            What::Tell { hint } => {
                // Nobody may be listening; a hint is never owed.
                let _ = self.nodes[node].hints.send(hint);
            }
            What::Off => self.power_off(node, true),
        }
    }

    /// Lets everything that can go on go on: arrays, their I/O, operations that wait.
    pub(super) fn pump(&mut self) {
        loop {
            let mut moved = false;
            for array in self.arrays.keys().copied().collect::<Vec<_>>() {
                moved |= self.running_on_array(array) && self.pump_array(array);
            }
            for io in self.ios.keys().copied().collect::<Vec<_>>() {
                moved |= self.pump_io(io);
            }
            for job in self.waiting_jobs() {
                moved |= self.pump_job(job);
            }
            if !moved {
                return;
            }
        }
    }

    fn running_on_array(&self, array: u64) -> bool {
        self.arrays.get(&array).is_some_and(|a| self.nodes[a.node].running())
    }
}
