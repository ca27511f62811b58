//! nvmet of a node: subsystems, ports, and the operations Export, Fence and RemoveExport.
//!
//! A port that has no link is closed: a dial gets a reset. Unlinking ends the connections but not the commands that
//! are in the drive; disabling the namespace returns when none is. All of it happens under one lock, as in the
//! kernel, so that a drain of a hung drive holds up the other exports of its node. Called by the job dispatch.

use super::job::{Step, errno};
use super::state::State;
use crate::error::KernelError;
use crate::facts::{ExportEntry, ExportFact, Listen, Transport};
use crate::hint::Hint;
use crate::id::{ExportKey, Nqn, ReplicaKey};
use crate::mutant::{self, Mutant};
use crate::ops::{Changed, Op};
use std::collections::BTreeSet;

/// One subsystem with its one namespace.
#[derive(Debug, Clone)]
pub(super) struct Subsystem {
    pub(super) drive: usize,
    pub(super) number: u32,
    pub(super) enabled: bool,
    /// Its drive was pulled: nvmet holds a block device that is no more, also when the drive is back.
    pub(super) dead: bool,
    /// The size that hosts are told.
    pub(super) bytes: u64,
    pub(super) hosts: BTreeSet<Nqn>,
    /// Ports that were made for it.
    pub(super) listens: BTreeSet<Listen>,
}

impl State {
    /// Whether somebody else drains under the configuration lock.
    fn nvmet_is_locked(&self, node: usize, job: u64) -> bool {
        self.nodes[node].nvmet_lock.is_some_and(|holder| holder != job)
    }

    pub(super) fn op_export(&mut self, node: usize, op: &Op, job: u64, half: bool) -> Step {
        let Op::Export { key, host, listen } = op else { return Step::not_this(op) };
        self.learn(key.replica);
        if self.nvmet_is_locked(node, job) {
            return Step::Wait;
        }
        let Some((drive, number)) = self.find_partition(node, key.replica) else {
            return Step::fail(errno(op, key.to_string(), errno::ENOENT));
        };
        let Some(bytes) = self.nodes[node].known.get(&(drive, number)).map(|extent| extent.length) else {
            return Step::fail(errno(op, key.to_string(), errno::ENODEV));
        };
        if let Some(wrong) = listen.iter().find(|l| l.address != self.nodes[node].address) {
            return Step::fail(errno(op, wrong.address.to_string(), errno::EINVAL));
        }
        let hosts = BTreeSet::from([host.clone()]);
        let linked = self.linked(node, *key);
        if let Some(there) = self.nodes[node].subsystems.get(key) {
            if there.enabled && there.hosts == hosts && linked == *listen {
                return Step::done(Changed::No);
            }
            // The allowed host is never touched while a port is linked (docs/kernel-hazards.md, F2).
            if !linked.is_empty() && (there.hosts != hosts || !there.enabled) {
                return Step::fail(KernelError::refuse(
                    op.name(),
                    key.to_string(),
                    "linked with another host or namespace",
                ));
            }
        }
        if let Some(holder) = self.holders_of(node, drive, number).into_iter().next() {
            self.law_export_held(node, *key, drive, number);
            return Step::fail(KernelError::wait(op.name(), key.to_string(), format!("{holder} holds the partition")));
        }
        // An export has ports of its own: one that was made for another is never shared.
        let others = self.nodes[node].subsystems.iter().filter(|(k, _)| *k != key);
        if let Some((other, _)) = others.clone().find(|(_, s)| !s.listens.is_disjoint(listen)) {
            let detail = format!("a port belongs to {other}");
            return Step::fail(KernelError::refuse(op.name(), key.to_string(), detail));
        }
        let floor = self.export_floor(drive, number);
        if floor > key.epoch {
            let detail = format!("the drive has epoch {floor}");
            return Step::fail(KernelError::refuse(op.name(), key.to_string(), detail));
        }
        let subsystem = Subsystem { drive, number, enabled: true, dead: false, bytes, hosts, listens: listen.clone() };
        self.nodes[node].subsystems.insert(*key, subsystem);
        if half {
            return Step::fail(errno(op, key.to_string(), errno::EINTR));
        }
        for address in listen {
            let serial = self.id();
            let links = self.nodes[node].ports.entry(address.clone()).or_default();
            links.entry(*key).or_insert(serial);
        }
        Step::done(Changed::Yes)
    }

    /// `revalidate_size`: hosts that are connected hear of a new size, the others when they are again.
    pub(super) fn op_revalidate(&mut self, node: usize, op: &Op, key: ExportKey, job: u64) -> Step {
        if self.nvmet_is_locked(node, job) {
            return Step::Wait;
        }
        let found = self.nodes[node].subsystems.get(&key).filter(|s| s.enabled && !s.dead);
        let Some((drive, number, told)) = found.map(|s| (s.drive, s.number, s.bytes)) else {
            return Step::fail(KernelError::refuse(op.name(), key.to_string(), "its namespace is not enabled"));
        };
        let bytes = self.nodes[node].known.get(&(drive, number)).map_or(told, |extent| extent.length);
        if let Some(subsystem) = self.nodes[node].subsystems.get_mut(&key) {
            subsystem.bytes = bytes;
        }
        if bytes != told {
            self.tell_size(node, key, bytes);
        }
        Step::changed(bytes != told)
    }

    /// Ports an export is linked to.
    fn linked(&self, node: usize, key: ExportKey) -> BTreeSet<Listen> {
        let ports = self.nodes[node].ports.iter().filter(|(_, links)| links.contains_key(&key));
        ports.map(|(listen, _)| listen.clone()).collect()
    }

    pub(super) fn op_fence(&mut self, node: usize, key: ExportKey, job: u64, half: bool) -> Step {
        if self.nvmet_is_locked(node, job) {
            return Step::Wait;
        }
        let unlinked = !self.linked(node, key).is_empty();
        if unlinked {
            for links in self.nodes[node].ports.values_mut() {
                links.remove(&key);
            }
            self.check_paths();
        }
        let enabled = self.nodes[node].subsystems.get(&key).is_some_and(|s| s.enabled);
        if half && unlinked {
            return Step::fail(KernelError::retry(
                "fence",
                key.to_string(),
                "interrupted before the namespace was disabled",
            ));
        }
        if !enabled {
            return Step::changed(unlinked);
        }
        let busy = |l: &&super::bio::Landing| l.node == node && l.assoc.as_ref().is_some_and(|a| a.key == key);
        if self.landings.values().any(|l| busy(&l)) && !mutant::on(Mutant::FenceReportedEarly) {
            self.nodes[node].nvmet_lock = Some(job);
            return Step::Wait;
        }
        self.nodes[node].nvmet_lock = None;
        if let Some(subsystem) = self.nodes[node].subsystems.get_mut(&key) {
            subsystem.enabled = false;
        }
        Step::done(Changed::Yes)
    }

    pub(super) fn op_remove_export(&mut self, node: usize, op: &Op, key: ExportKey, job: u64) -> Step {
        if self.nvmet_is_locked(node, job) {
            return Step::Wait;
        }
        let Some(subsystem) = self.nodes[node].subsystems.get(&key) else { return Step::done(Changed::No) };
        if subsystem.enabled || !self.linked(node, key).is_empty() {
            return Step::fail(KernelError::refuse(op.name(), key.to_string(), "not fenced"));
        }
        let listens = subsystem.listens.clone();
        let n = &mut self.nodes[node];
        n.subsystems.remove(&key);
        n.ports.retain(|listen, links| !links.is_empty() || !listens.contains(listen));
        Step::done(Changed::Yes)
    }

    /// What nvmet shows of a replica.
    pub(super) fn export_fact(&self, node: usize, key: ReplicaKey) -> ExportFact {
        let n = &self.nodes[node];
        let mine = n.subsystems.iter().filter(|(k, _)| k.replica == key);
        let entries = mine.map(|(k, s)| {
            let ports = self.linked(node, *k);
            let made = s.listens.iter().filter(|l| n.ports.contains_key(l) && !ports.contains(l));
            let entry = ExportEntry {
                device_path: Some(self.partition_path(node, s.drive, s.number)),
                namespace_uuid: Some(k.namespace_uuid()),
                enabled: s.enabled,
                gone: s.enabled && s.dead,
                bytes: Some(s.bytes),
                hosts: s.hosts.clone(),
                unlinked_ports: made.cloned().collect(),
                connected: self.connected(node, *k),
                ports,
            };
            (*k, entry)
        });
        ExportFact { entries: entries.collect(), ports_in_use: n.ports.keys().map(|l| l.port).collect() }
    }

    /// Transports over which hosts hold a live connection to an export.
    fn connected(&self, node: usize, key: ExportKey) -> BTreeSet<Transport> {
        let address = self.nodes[node].address;
        let hosts = self.nodes.iter().filter(|n| n.up).flat_map(|n| n.controllers.values());
        let here = hosts.filter(|c| c.key == key && c.listen.address == address && c.is_live());
        here.map(|c| c.listen.transport).collect()
    }

    /// An export of a partition that is enabled or linked on its node.
    pub(super) fn export_of(&self, node: usize, drive: usize, number: u32) -> Option<ExportKey> {
        let open = |k: &ExportKey| !self.linked(node, *k).is_empty();
        let mut all = self.nodes[node].subsystems.iter();
        all.find(|(k, s)| s.drive == drive && s.number == number && (s.enabled || open(k))).map(|(k, _)| *k)
    }

    /// Tells that exports of a drive's node may have changed.
    pub(super) fn hint_drive(&mut self, node: usize, drive: usize) {
        let id = self.drives[drive].spec.id();
        self.hint(node, Hint::Drive(id));
    }
}
