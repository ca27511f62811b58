//! The nvme host of a node: controllers, their reconnects, heads, and the operations Connect and Disconnect.
//!
//! As on 6.12 with `ctrl_loss_tmo=-1`: a lost path makes commands wait; a reconnect that is refused at the TCP level
//! is tried again for ever; one that is *answered* with a refusal deletes the controller and fails what waited.
//! Called by the job dispatch, by events of the queue and by faults. It never touches arrays: they learn of a dead
//! head from their failing commands.

use super::bio::{Assoc, Dev};
use super::event::What;
use super::job::{Step, errno};
use super::state::{State, Time};
use crate::error::KernelError;
use crate::facts::{BlockDevice, ConnectionFact, ControllerFact, Listen};
use crate::hint::Hint;
use crate::id::{ExportKey, NodeName};
use crate::ops::{Changed, Op};

/// State of a controller, in the kernel's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    Live,
    Connecting,
}

/// One controller.
#[derive(Debug, Clone)]
pub(super) struct Controller {
    pub(super) name: String,
    pub(super) key: ExportKey,
    pub(super) listen: Listen,
    /// Host NQN it presents.
    pub(super) host: NodeName,
    pub(super) path: Path,
    /// The connection it has or had last.
    pub(super) assoc: Assoc,
}

impl Controller {
    pub(super) fn is_live(&self) -> bool {
        self.path == Path::Live
    }
}

/// A namespace's head: the block device that arrays hold.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) name: String,
    pub(super) key: ExportKey,
    /// The size that the target has told.
    pub(super) bytes: u64,
    pub(super) last_completion: Time,
}

/// How a dial ends.
enum Dial {
    /// Nobody answers.
    Timeout,
    /// Nothing listens: a reset. The host tries again.
    Refused,
    /// The target answers no, "do not retry".
    Denied,
    Made {
        target: usize,
        link: u64,
    },
}

impl State {
    fn dial(&self, host: usize, key: ExportKey, listen: &Listen, name: &NodeName) -> Dial {
        let Some(target) = self.nodes.iter().position(|n| n.address == listen.address) else { return Dial::Timeout };
        let node = &self.nodes[target];
        let whole = self.passes(host, target, listen.transport) && self.passes(target, host, listen.transport);
        if !whole || !node.running() {
            return Dial::Timeout;
        }
        let links = match node.ports.get(listen) {
            Some(links) if !links.is_empty() => links,
            _ => return Dial::Refused,
        };
        // A connect looks the subsystem up under the lock that a drain holds.
        if node.nvmet_lock.is_some() {
            return Dial::Timeout;
        }
        let allowed = node.subsystems.get(&key).is_some_and(|s| s.hosts.contains(&name.host_nqn()));
        match links.get(&key) {
            Some(link) if allowed => Dial::Made { target, link: *link },
            _ => Dial::Denied,
        }
    }

    /// The live controller that I/O of a head takes: RDMA before TCP.
    pub(super) fn best_path(&self, node: usize, head: u64) -> Option<Assoc> {
        let n = &self.nodes[node];
        let key = n.heads.get(&head)?.key;
        let live = n.controllers.values().filter(|c| c.key == key && c.path == Path::Live);
        live.min_by_key(|c| (c.listen.transport, c.assoc.ctrl)).map(|c| c.assoc.clone())
    }

    pub(super) fn head_of(&self, node: usize, key: ExportKey) -> Option<u64> {
        self.nodes[node].heads.iter().find(|(_, h)| h.key == key).map(|(id, _)| *id)
    }

    /// Makes a controller live on a fresh connection, and its head when the namespace is there.
    fn go_live(&mut self, node: usize, ctrl: u64, target: usize, link: u64) {
        let serial = self.id();
        let Some(controller) = self.nodes[node].controllers.get_mut(&ctrl) else { return };
        controller.path = Path::Live;
        controller.assoc.serial = serial;
        controller.assoc.target = target;
        controller.assoc.link = link;
        let (key, name) = (controller.key, controller.name.clone());
        self.say(node, format!("{name} live for {key}"));
        let namespace = self.nodes[target].subsystems.get(&key).filter(|s| s.enabled);
        let (enabled, bytes) = (namespace.is_some(), namespace.map_or(0, |s| s.bytes));
        // Whoever connects identifies the namespace.
        let known = self.head_of(node, key).and_then(|head| self.nodes[node].heads.get_mut(&head));
        known.into_iter().filter(|_| enabled).for_each(|head| head.bytes = bytes);
        match (self.head_of(node, key), enabled) {
            (None, true) => {
                let id = self.id();
                let head = Head { name: format!("{name}n1"), key, bytes, last_completion: self.now };
                self.nodes[node].heads.insert(id, head);
            }
            // The namespace is not there any more: its head goes and what waited fails.
            (Some(head), false) => self.drop_head(node, head),
            (Some(head), true) => self.send_queued(node, head),
            (None, false) => {}
        }
        self.hint(node, Hint::Connection(key.replica.volume));
    }

    /// A namespace of a target has another size: hosts with a live path hear of it.
    pub(super) fn tell_size(&mut self, target: usize, key: ExportKey, bytes: u64) {
        for node in 0..self.nodes.len() {
            let mut paths = self.nodes[node].controllers.values().filter(|c| c.key == key && c.is_live());
            if !paths.any(|c| c.assoc.target == target && self.path_whole(node, &c.assoc)) {
                continue;
            }
            let head = self.head_of(node, key).and_then(|head| self.nodes[node].heads.get_mut(&head));
            head.into_iter().for_each(|head| head.bytes = bytes);
            self.hint(node, Hint::Connection(key.replica.volume));
        }
    }

    /// Bytes that a device has for the kernel of its node.
    pub(super) fn device_bytes(&self, node: usize, dev: Dev) -> u64 {
        let n = &self.nodes[node];
        match dev {
            Dev::Part { drive, number } => n.known.get(&(drive, number)).map_or(0, |extent| extent.length),
            Dev::Head { head } => n.heads.get(&head).map_or(0, |head| head.bytes),
        }
    }

    /// A controller lost its connection: its commands go back to the queue, and it dials again.
    pub(super) fn lose_path(&mut self, node: usize, ctrl: u64, why: &str) {
        let Some(controller) = self.nodes[node].controllers.get_mut(&ctrl) else { return };
        if controller.path != Path::Live {
            return;
        }
        controller.path = Path::Connecting;
        let (key, name, serial) = (controller.key, controller.name.clone(), controller.assoc.serial);
        self.say(node, format!("{name} connecting for {key}: {why}"));
        for bio in self.bios.values_mut().filter(|b| b.node == node && b.away == Some(serial)) {
            bio.away = None;
        }
        let others = self.nodes[node].controllers.values().any(|c| c.key == key && c.path == Path::Live);
        if !others {
            let now = self.now;
            self.nodes[node].down_since.entry(key).or_insert(now);
        }
        if let Some(head) = self.head_of(node, key) {
            self.send_queued(node, head);
        }
        self.after(self.config.reconnect_delay, node, What::Redial { ctrl });
        // No uevent tells of a lost path; the agent's own poll finds it.
        self.hint_after(self.config.path_poll, node, Hint::Connection(key.replica.volume));
    }

    /// A keep-alive ran out: was the path whole all the while?
    pub(super) fn keep_alive_expired(&mut self, node: usize, ctrl: u64, serial: u64) {
        let Some(controller) = self.nodes[node].controllers.get(&ctrl) else { return };
        let assoc = controller.assoc.clone();
        if controller.path == Path::Live && assoc.serial == serial && !self.path_whole(node, &assoc) {
            self.lose_path(node, ctrl, "keep-alive ran out");
        }
    }

    fn path_whole(&self, host: usize, assoc: &Assoc) -> bool {
        let transport = assoc.listen.transport;
        let both = self.passes(host, assoc.target, transport) && self.passes(assoc.target, host, transport);
        both && self.nodes[assoc.target].running() && self.link_is(assoc.target, assoc)
    }

    /// After any fault: starts the keep-alive of each live controller whose path is not whole. Where the target's
    /// kernel is there and the wire too, a reset tells the host at once instead.
    pub(super) fn check_paths(&mut self) {
        for node in 0..self.nodes.len() {
            let live = self.nodes[node].controllers.values().filter(|c| c.path == Path::Live);
            for assoc in live.map(|c| c.assoc.clone()).collect::<Vec<_>>() {
                if self.path_whole(node, &assoc) {
                    continue;
                }
                let back = self.passes(assoc.target, node, assoc.listen.transport);
                let out = self.passes(node, assoc.target, assoc.listen.transport);
                if back && out && self.nodes[assoc.target].running() && self.nodes[node].running() {
                    self.lose_path(node, assoc.ctrl, "reset by the target");
                } else {
                    let what = What::KeepAlive { ctrl: assoc.ctrl, serial: assoc.serial };
                    self.after(self.config.keep_alive, node, what);
                }
            }
        }
    }

    /// A controller without a path tries again.
    pub(super) fn redial(&mut self, node: usize, ctrl: u64) {
        let Some(controller) = self.nodes[node].controllers.get(&ctrl) else { return };
        if controller.path != Path::Connecting {
            return;
        }
        let (key, listen, host) = (controller.key, controller.listen.clone(), controller.host.clone());
        match self.dial(node, key, &listen, &host) {
            Dial::Timeout => {
                self.after(self.config.dial_timeout + self.config.reconnect_delay, node, What::Redial { ctrl });
            }
            Dial::Refused => self.after(self.config.reconnect_delay, node, What::Redial { ctrl }),
            Dial::Denied => {
                self.say(node, format!("reconnect of {key} denied: controller deleted"));
                self.delete_controller(node, ctrl);
            }
            Dial::Made { target, link } => {
                self.nodes[node].down_since.remove(&key);
                self.go_live(node, ctrl, target, link);
            }
        }
    }

    /// Removes a controller; with the last one of its export the head goes.
    fn delete_controller(&mut self, node: usize, ctrl: u64) {
        self.lose_path(node, ctrl, "deleted");
        let Some(controller) = self.nodes[node].controllers.remove(&ctrl) else { return };
        let key = controller.key;
        if !self.nodes[node].controllers.values().any(|c| c.key == key) {
            self.nodes[node].down_since.remove(&key);
            if let Some(head) = self.head_of(node, key) {
                self.drop_head(node, head);
            }
        }
        self.hint(node, Hint::Connection(key.replica.volume));
    }

    fn drop_head(&mut self, node: usize, head: u64) {
        self.nodes[node].heads.remove(&head);
        for bio in self.bios.values_mut().filter(|b| b.node == node && b.dev == Dev::Head { head }) {
            bio.away = None;
        }
        self.send_queued(node, head);
    }

    /// Deletes every controller of an export. Answers whether there was one.
    pub(super) fn delete_controllers(&mut self, node: usize, key: ExportKey) -> bool {
        let mine = self.nodes[node].controllers.iter().filter(|(_, c)| c.key == key);
        let ids: Vec<u64> = mine.map(|(id, _)| *id).collect();
        for ctrl in &ids {
            self.delete_controller(node, *ctrl);
        }
        !ids.is_empty()
    }

    /// How long `delete_controller` takes: it waits for a connect attempt that is under way.
    pub(super) fn delete_delay(&self, node: usize, key: ExportKey) -> Time {
        let dialling = self.nodes[node].controllers.values().any(|c| c.key == key && c.path == Path::Connecting);
        let factor = if dialling { 10 } else { 1 };
        self.config.delete_latency * factor
    }

    pub(super) fn op_connect(&mut self, node: usize, op: &Op) -> Step {
        let Op::Connect { key, node: host, address } = op else { return Step::not_this(op) };
        self.learn(key.replica);
        if self.nodes[node].controllers.values().any(|c| c.key == *key && c.listen == *address) {
            return Step::done(Changed::No);
        }
        let path = format!("{}:{}", address.address, address.port);
        match self.dial(node, *key, address, host) {
            Dial::Timeout => Step::fail(errno(op, path, errno::ETIMEDOUT)),
            Dial::Refused => Step::fail(errno(op, path, errno::ECONNREFUSED)),
            // The reason of a refused connect is only in the kernel's log; the caller sees EIO.
            Dial::Denied => Step::fail(errno(op, path, errno::EIO)),
            Dial::Made { target, link } => {
                let ctrl = self.id();
                let name = format!("nvme{}", self.free_device_number(node));
                let assoc = Assoc { ctrl, serial: 0, key: *key, host: node, target, listen: address.clone(), link };
                let (key, listen, host) = (*key, address.clone(), host.clone());
                let controller = Controller { name, key, listen, host, path: Path::Connecting, assoc };
                self.nodes[node].controllers.insert(ctrl, controller);
                self.nodes[node].down_since.remove(&key);
                self.go_live(node, ctrl, target, link);
                Step::done(Changed::Yes)
            }
        }
    }

    pub(super) fn op_disconnect(&mut self, node: usize, op: &Op, key: ExportKey) -> Step {
        if let Some(array) = self.array_with_export(node, key) {
            let detail = format!("{array} has it as a member");
            return Step::fail(KernelError::refuse(op.name(), key.to_string(), detail));
        }
        Step::changed(self.delete_controllers(node, key))
    }

    /// What the host shows of an export.
    pub(super) fn connection_fact(&self, node: usize, key: ExportKey) -> ConnectionFact {
        let n = &self.nodes[node];
        let mine = n.controllers.values().filter(|c| c.key == key);
        let shown = mine.map(|c| {
            let state = if c.path == Path::Live { "live" } else { "connecting" };
            (c.name.clone(), ControllerFact { state: state.into(), address: c.listen.clone() })
        });
        let head = self.head_of(node, key);
        let down_since = n.down_since.get(&key).copied();
        ConnectionFact {
            controllers: shown.collect(),
            head: head.and_then(|h| self.head_device(node, h)),
            down_for: down_since.map_or(Time::ZERO, |at| self.now.saturating_sub(at)),
            stalled_for: head.map_or(Time::ZERO, |h| self.stalled_for(node, h)),
        }
    }

    fn stalled_for(&self, node: usize, head: u64) -> Time {
        let mine = self.bios.values().filter(|b| b.node == node && b.dev == Dev::Head { head });
        let Some(oldest) = mine.map(|b| b.since).min() else { return Time::ZERO };
        let completed = self.nodes[node].heads.get(&head).map_or(Time::ZERO, |h| h.last_completion);
        self.now.saturating_sub(oldest.max(completed))
    }

    fn head_device(&self, node: usize, head: u64) -> Option<BlockDevice> {
        let head = self.nodes[node].heads.get(&head)?;
        let (drive, _) = self.replica_extent(head.key.replica)?;
        Some(BlockDevice {
            name: head.name.clone(),
            path: format!("/dev/{}", head.name),
            size_bytes: head.bytes,
            sector_bytes: self.drives[drive].spec.sector,
            uuid: Some(head.key.namespace_uuid()),
        })
    }

    /// Whether a command to this device would be answered now: used by reads that do not travel as commands.
    pub(super) fn reach(&self, node: usize, dev: Dev) -> Reach {
        let (drive, number, home) = match dev {
            Dev::Part { drive, number } => (drive, number, node),
            Dev::Head { head } => {
                let Some(h) = self.nodes[node].heads.get(&head) else { return Reach::Gone };
                let Some(assoc) = self.best_path(node, head) else { return Reach::Stuck };
                if !self.path_whole(node, &assoc) {
                    return Reach::Stuck;
                }
                match self.nodes[assoc.target].subsystems.get(&h.key).filter(|s| s.enabled && !s.dead) {
                    Some(s) => (s.drive, s.number, assoc.target),
                    None => return Reach::Gone,
                }
            }
        };
        let d = &self.drives[drive];
        match d.entry(number) {
            _ if d.home != Some(home) || d.broken || self.nodes[home].stopping => Reach::Gone,
            _ if d.hung => Reach::Stuck,
            Some(entry) => Reach::There { drive, extent: entry.extent },
            None => Reach::Gone,
        }
    }
}

/// Whether a device answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    There {
        drive: usize,
        extent: crate::facts::Extent,
    },
    /// A command would wait.
    Stuck,
    /// A command would fail.
    Gone,
}
