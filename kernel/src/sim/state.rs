//! The whole state of a simulated world in one value, and the small questions everything asks of it: which node, is
//! the link whole, say a hint, write a line of trace.
//!
//! Owned by `World`, changed by the other files of this folder in their own `impl State` blocks. It never waits:
//! whatever takes time is an event in the queue.

use super::bio::{Bio, Landing};
use super::config::Config;
use super::disk::Drive;
use super::event::{Event, Queue, What};
use super::faults::Planned;
use super::fs::{Mount, Opener};
use super::host::{Controller, Head};
use super::job::Job;
use super::laws::Violation;
use super::md::Array;
use super::md::io::Io;
use super::rng::Rng;
use super::target::Subsystem;
use super::workload::{Caller, WriteRecord};
use crate::facts::{Extent, Listen, Transport};
use crate::hint::Hint;
use crate::id::{BootId, DriveId, ExportKey, NodeName, ReplicaKey, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use tokio::sync::broadcast;
use uuid::Uuid;

/// Time since the world began.
pub(super) type Time = Duration;

/// Hints that a slow listener may be behind before it is told that it missed some.
const HINTS_KEPT: usize = 1024;

/// One machine: what its kernel holds is lost with its power.
pub(super) struct Node {
    pub(super) name: NodeName,
    pub(super) address: IpAddr,
    pub(super) up: bool,
    pub(super) frozen: bool,
    /// Shutting down in good order: drives are gone already, the network still answers.
    pub(super) stopping: bool,
    /// Counts the lives of this machine; each has its own boot id.
    pub(super) life: u64,
    pub(super) boot: BootId,
    /// Number in the name of each drive (`nvme<n>n1`), drawn anew at each boot.
    pub(super) drive_numbers: BTreeMap<usize, u32>,
    /// Partitions the kernel knows, by drive and number.
    pub(super) known: BTreeMap<(usize, u32), Extent>,
    pub(super) subsystems: BTreeMap<ExportKey, Subsystem>,
    /// nvmet ports with the subsystems linked to each; every link has a serial of its own.
    pub(super) ports: BTreeMap<Listen, BTreeMap<ExportKey, u64>>,
    /// Operation that drains under nvmet's one configuration lock.
    pub(super) nvmet_lock: Option<u64>,
    pub(super) controllers: BTreeMap<u64, Controller>,
    pub(super) heads: BTreeMap<u64, Head>,
    /// Since when no controller of an export is live.
    pub(super) down_since: BTreeMap<ExportKey, Time>,
    /// Mount points, innermost layer last.
    pub(super) mounts: BTreeMap<String, Vec<Mount>>,
    pub(super) openers: BTreeMap<u64, Opener>,
    pub(super) hints: broadcast::Sender<Hint>,
    /// Hints still to be lost, hints still to be told twice, observations still to fail, by request.
    pub(super) hints_to_lose: u32,
    pub(super) hints_to_double: u32,
    pub(super) looks_to_fail: u32,
    /// Events that came due while it was frozen.
    pub(super) deferred: Vec<Event>,
}

impl Node {
    /// Powered and not frozen.
    pub(super) fn running(&self) -> bool {
        self.up && !self.frozen
    }
}

/// Everything.
pub(super) struct State {
    pub(super) now: Time,
    pub(super) config: Config,
    pub(super) rng: Rng,
    pub(super) queue: Queue,
    pub(super) nodes: Vec<Node>,
    pub(super) drives: Vec<Drive>,
    /// Directions in which nothing passes.
    pub(super) cuts: BTreeSet<(usize, usize, Transport)>,
    /// What was on a wire when it was cut: TCP and RDMA deliver it when the wire is whole again in time.
    pub(super) parked: Vec<((usize, usize, Transport), Event)>,
    pub(super) bios: BTreeMap<u64, Bio>,
    pub(super) landings: BTreeMap<u64, Landing>,
    pub(super) arrays: BTreeMap<u64, Array>,
    pub(super) ios: BTreeMap<u64, Io>,
    /// Applications that wait for a request, by its id.
    pub(super) callers: BTreeMap<u64, Caller>,
    pub(super) jobs: BTreeMap<u64, Job>,
    /// Faults asked for by name, consumed by the operations they wait for.
    pub(super) planned: Vec<(usize, Planned)>,
    pub(super) violations: Vec<Violation>,
    pub(super) trace: Vec<String>,
    pub(super) history: Vec<WriteRecord>,
    /// Replicas whose keys were ever named: the way back from a partition's GUID.
    pub(super) keys: BTreeMap<Uuid, ReplicaKey>,
    pub(super) volumes: BTreeMap<Uuid, VolumeId>,
    serial: u64,
}

impl State {
    pub(super) fn new(seed: u64, config: Config) -> State {
        State {
            now: Time::ZERO,
            config,
            rng: Rng::new(seed),
            queue: Queue::default(),
            nodes: Vec::new(),
            drives: Vec::new(),
            cuts: BTreeSet::new(),
            parked: Vec::new(),
            bios: BTreeMap::new(),
            landings: BTreeMap::new(),
            arrays: BTreeMap::new(),
            ios: BTreeMap::new(),
            callers: BTreeMap::new(),
            jobs: BTreeMap::new(),
            planned: Vec::new(),
            violations: Vec::new(),
            trace: Vec::new(),
            history: Vec::new(),
            keys: BTreeMap::new(),
            volumes: BTreeMap::new(),
            serial: 0,
        }
    }

    /// A number never given before.
    pub(super) fn id(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    pub(super) fn add_node(&mut self, name: &str) -> usize {
        let index = self.nodes.len();
        // 10.77.0.11 and on, 200 to a network.
        let address = IpAddr::V4(Ipv4Addr::new(10, 77, (index / 200) as u8, 11 + (index % 200) as u8));
        let boot = BootId(self.rng.uuid().to_string());
        self.nodes.push(Node {
            name: NodeName(name.into()),
            address,
            up: true,
            frozen: false,
            stopping: false,
            life: 1,
            boot,
            drive_numbers: BTreeMap::new(),
            known: BTreeMap::new(),
            subsystems: BTreeMap::new(),
            ports: BTreeMap::new(),
            nvmet_lock: None,
            controllers: BTreeMap::new(),
            heads: BTreeMap::new(),
            down_since: BTreeMap::new(),
            mounts: BTreeMap::new(),
            openers: BTreeMap::new(),
            hints: broadcast::channel(HINTS_KEPT).0,
            hints_to_lose: 0,
            hints_to_double: 0,
            looks_to_fail: 0,
            deferred: Vec::new(),
        });
        index
    }

    pub(super) fn node_named(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|n| n.name.0 == name)
    }

    /// A drive that is plugged in at `node`.
    pub(super) fn drive_at(&self, node: usize, id: &DriveId) -> Option<usize> {
        self.drives.iter().position(|d| d.home == Some(node) && d.spec.id() == *id)
    }

    pub(super) fn drives_of(&self, node: usize) -> Vec<usize> {
        (0..self.drives.len()).filter(|d| self.drives[*d].home == Some(node)).collect()
    }

    /// Remembers the names that can be made of a replica's key, so that bytes can be traced back to it.
    pub(super) fn learn(&mut self, key: ReplicaKey) {
        self.keys.insert(key.partition_uuid(), key);
        self.volumes.insert(key.volume.md_uuid(), key.volume);
    }

    /// Where a replica's partition is among a node's drives.
    pub(super) fn find_partition(&self, node: usize, key: ReplicaKey) -> Option<(usize, u32)> {
        let wanted = key.partition_uuid();
        self.drives_of(node).into_iter().find_map(|d| {
            let table = self.drives[d].table.as_ref()?;
            table.iter().find(|(_, e)| e.unique_guid == wanted).map(|(number, _)| (d, *number))
        })
    }

    /// Whether a packet passes from one node to another now. A node always reaches itself.
    pub(super) fn passes(&self, from: usize, to: usize, transport: Transport) -> bool {
        from == to || !self.cuts.contains(&(from, to, transport))
    }

    /// Smallest number that no device name of the node uses: names are taken again, as the kernel does.
    pub(super) fn free_device_number(&self, node: usize) -> u32 {
        let n = &self.nodes[node];
        let held = self.arrays.values().filter(|a| a.node == node).flat_map(|a| a.members.keys().cloned());
        let names: BTreeSet<String> = held
            .chain(n.controllers.values().map(|c| format!("{}n1", c.name)))
            .chain(n.heads.values().map(|h| h.name.clone()))
            .chain(n.drive_numbers.values().map(|d| format!("nvme{d}n1")))
            .collect();
        (0..).find(|k| !names.contains(&format!("nvme{k}n1"))).unwrap_or_default()
    }

    /// Lets a hint go out, unless the seed loses it.
    pub(super) fn hint(&mut self, node: usize, hint: Hint) {
        self.hint_after(self.config.hint_delay, node, hint);
    }

    pub(super) fn hint_after(&mut self, delay: Time, node: usize, hint: Hint) {
        let rates = self.config.rates;
        let n = &mut self.nodes[node];
        if n.hints_to_lose > 0 {
            n.hints_to_lose -= 1;
            return self.say_lost(node, &hint);
        }
        let double = n.hints_to_double > 0;
        n.hints_to_double = n.hints_to_double.saturating_sub(1);
        if self.rng.chance(rates.hint_lost) {
            return self.say_lost(node, &hint);
        }
        if double || self.rng.chance(rates.hint_doubled) {
            let late = delay + self.rng.between(Time::ZERO, Time::from_secs(1));
            self.after(late, node, What::Tell { hint: hint.clone() });
        }
        self.after(delay, node, What::Tell { hint });
    }

    /// Of an array it matters to whoever judges: a failed member is seen late.
    fn say_lost(&mut self, node: usize, hint: &Hint) {
        if let Hint::Array(volume) = hint {
            self.say(node, format!("unheard: {}", volume.short()));
        }
    }

    /// One line of trace.
    pub(super) fn say(&mut self, node: usize, text: impl AsRef<str>) {
        let name = &self.nodes[node].name;
        let line = format!("{:>12.6} {name} {}", self.now.as_secs_f64(), text.as_ref());
        self.say_line(line);
    }

    pub(super) fn say_world(&mut self, text: impl AsRef<str>) {
        let line = format!("{:>12.6} world {}", self.now.as_secs_f64(), text.as_ref());
        self.say_line(line);
    }

    fn say_line(&mut self, line: String) {
        tracing::trace!(target: "meshstor_kernel::sim", "{line}");
        if self.trace.len() >= self.config.trace_limit.max(2) {
            // Half goes at once, so that the cost of forgetting is spread.
            let half = self.trace.len() / 2;
            self.trace.drain(..half);
        }
        self.trace.push(line);
    }
}
