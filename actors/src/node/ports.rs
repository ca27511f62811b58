//! Service numbers of dead exports: kept out of use until whoever may still dial them is known to have let go.
//!
//! A host that was cut off keeps dialling the port of its export for ever. Were something else exported there, the answer
//! would be a refusal, which ends the wait and lets the host acknowledge alone (docs/protocol.md, rule 5). The list stands
//! in this node's object; only a released epoch or another boot id of the consumer ends an entry, never time.

use super::NodeActor;
use super::messages::PortsChecked;
use crate::env::Env;
use crate::failure::Failure;
use crate::sources::Change;
use meshstor_api::node::QuarantinedPort;
use meshstor_api::{MeshStorNode, MeshStorVolume};
use meshstor_kernel::id::{Epoch, NodeName, ReplicaKey, VolumeId};
use meshstor_plan::export::ExportReport;
use std::collections::BTreeSet;

/// The boot id written where the consumer's own is not known: no boot ever has it, so only a release ends the entry.
const UNKNOWN_BOOT: &str = "";

impl NodeActor {
    /// An export has numbers that must be recorded before its objects may go.
    pub(super) fn retire_ports(&mut self, key: ReplicaKey, report: &ExportReport) {
        let Some(known) = &self.quarantine else { return };
        let let_go = self.env.let_go_ports.borrow();
        let fresh: Vec<_> = report
            .retire
            .iter()
            .filter(|(port, ..)| {
                !known.contains_key(port) && !let_go.contains(port) && self.checking_ports.insert(*port)
            })
            .cloned()
            .collect();
        drop(let_go);
        if fresh.is_empty() {
            return;
        }
        let (env, me) = (self.env.clone(), self.me.clone());
        actix::spawn(async move {
            let mut checked = PortsChecked::default();
            for (port, epoch, consumer) in fresh {
                match check(&env, key.volume, port, epoch, &consumer).await {
                    Verdict::LetGo => {
                        checked.let_go.insert(port);
                    }
                    Verdict::MayDial(entry) => checked.quarantine.push(entry),
                }
            }
            let _ = me.send(checked).await;
        });
    }

    pub(super) fn ports_checked(&mut self, checked: PortsChecked) {
        for port in checked.let_go.iter().chain(checked.quarantine.iter().map(|entry| &entry.port)) {
            self.checking_ports.remove(port);
        }
        let Some(known) = &mut self.quarantine else { return };
        checked.let_go.iter().for_each(|port| {
            known.remove(port);
        });
        known.extend(checked.quarantine.into_iter().map(|entry| (entry.port, entry)));
        if !checked.let_go.is_empty() {
            self.env.let_go_ports.borrow_mut().extend(checked.let_go);
            self.exports.look_where(|_| true);
        }
        self.report_node();
    }

    /// This node's object: what it says about quarantined numbers is what counts.
    pub(super) fn own_changed(&mut self, change: Change<MeshStorNode>) {
        let object = match change {
            Change::Listed(objects) => objects.into_iter().next(),
            Change::Applied(object) => Some(*object),
            Change::Gone(_) => None,
        };
        let status = object.as_ref().and_then(|object| object.status.clone()).unwrap_or_default();
        let recorded: BTreeSet<u16> = status.quarantined_ports.iter().map(|entry| entry.port).collect();
        if self.quarantine.is_none() {
            self.quarantine = Some(status.quarantined_ports.into_iter().map(|entry| (entry.port, entry)).collect());
        }
        if self.env.note_quarantine(recorded) {
            self.exports.look_where(|_| true);
        }
        if object.is_none() {
            self.node_overwritten();
        }
        self.report_node();
    }

    /// Asks whether the consumers of quarantined numbers have let go since.
    pub(super) fn review_ports(&mut self) {
        // Numbers that were let go are free again once their objects are gone; from then on nothing asks for them.
        let asked: BTreeSet<u16> =
            self.export_reports().flat_map(|r| r.retire.into_iter().map(|(port, ..)| port)).collect();
        self.env.let_go_ports.borrow_mut().retain(|port| asked.contains(port));
        let Some(known) = &self.quarantine else { return };
        let entries: Vec<QuarantinedPort> = known.values().cloned().collect();
        if entries.is_empty() {
            return;
        }
        let (env, me) = (self.env.clone(), self.me.clone());
        actix::spawn(async move {
            let mut checked = PortsChecked::default();
            for entry in entries {
                if let_go(&env, &entry).await.unwrap_or(false) {
                    checked.let_go.insert(entry.port);
                }
            }
            if !checked.let_go.is_empty() {
                let _ = me.send(checked).await;
            }
        });
    }

    fn export_reports(&self) -> impl Iterator<Item = ExportReport> {
        self.exports.keys().filter_map(|key| Some(self.exports.report(key)?.status))
    }
}

enum Verdict {
    LetGo,
    MayDial(QuarantinedPort),
}

/// Who may still dial a number. What cannot be asked counts as dialling.
async fn check(env: &Env, volume: VolumeId, port: u16, epoch: Epoch, consumer: &NodeName) -> Verdict {
    let name = env.book.borrow().volumes.get(&volume).cloned().unwrap_or_default();
    let node: Option<MeshStorNode> = env.server.get(&consumer.0).await.ok().flatten();
    // A consumer that has rebooted meanwhile is covered: its present boot is later than the one that dialled.
    let boot = node.and_then(|node| node.status).map_or(UNKNOWN_BOOT.to_string(), |status| status.boot_id);
    let entry = QuarantinedPort { port, volume: name, epoch, consumer: consumer.0.clone(), consumer_boot: boot };
    if let_go(env, &entry).await.unwrap_or(false) { Verdict::LetGo } else { Verdict::MayDial(entry) }
}

/// Whether the consumer of an entry has confirmed its stop, or is another kernel by now.
async fn let_go(env: &Env, entry: &QuarantinedPort) -> Result<bool, Failure> {
    let volume: Option<MeshStorVolume> = env.server.get(&entry.volume).await?;
    // This very epoch: that a later consumer has stopped says nothing of one that was cut off before (F13).
    if volume.and_then(|volume| volume.status).is_some_and(|status| status.released_epoch == entry.epoch) {
        return Ok(true);
    }
    if entry.consumer_boot == UNKNOWN_BOOT {
        return Ok(false);
    }
    let node: Option<MeshStorNode> = env.server.get(&entry.consumer).await?;
    let boot = node.and_then(|node| node.status).map(|status| status.boot_id);
    Ok(boot.is_some_and(|boot| !boot.is_empty() && boot != entry.consumer_boot))
}
