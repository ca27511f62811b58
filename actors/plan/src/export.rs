//! Export: fence everything older than the recorded epoch, then offer the replica to the recorded consumer.
//!
//! Called by the export actor's shell with a spec read by quorum, never from a cached list (F12). The order is that of
//! docs/protocol.md, rule 4: unlink from all ports, disable and drain, record the epoch on the drive, report; and the
//! mirrored order to export. It never lets a partition be exported while an array of this node uses it.

use crate::{Machine, Plan, Reason};
use meshstor_kernel::facts::{EpochRecord, ExportEntry, ExportFact, Listen, PartitionFact, Transport};
use meshstor_kernel::id::{ClusterId, Epoch, ExportKey, Generation, NodeName, ReplicaId, ReplicaKey};
use meshstor_kernel::mutant::{self, Mutant};
use meshstor_kernel::ops::Op;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Exports listen on service numbers of this range by default: below the range Linux gives to outgoing connections
/// (32768 to 60999), 4096 of them at about 170 KB of kernel memory each.
pub const PORT_RANGE: std::ops::Range<u16> = 20_000..24_096;

/// The machine of one replica's export.
pub struct Export;

/// What is recorded for a replica, read by quorum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportWish {
    /// The cluster the object is in.
    pub cluster: ClusterId,
    /// Name of the volume's object.
    pub volume_name: String,
    /// Epoch to fence and export for.
    pub epoch: Epoch,
    /// Generation inside the epoch.
    pub generation: Generation,
    /// Who may use it; `None` while detached.
    pub consumer: Option<NodeName>,
    /// The export reported last, so that a rebooted target listens where its consumers dial.
    pub reported: Option<ExportKeyListen>,
    /// The in-sync set, copied into the drive's record for recovery.
    pub in_sync: BTreeSet<ReplicaId>,
    /// A tombstone is set: nothing is exported any more.
    pub tombstoned: bool,
    /// A question who is connected, by whatever name the asker gave it (automatic fail-over).
    pub asked: Option<String>,
}

/// An export's life and addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportKeyListen {
    /// Epoch.
    pub epoch: Epoch,
    /// Generation.
    pub generation: Generation,
    /// Addresses.
    pub listen: BTreeSet<Listen>,
}

/// What was observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportLook {
    /// This node.
    pub me: NodeName,
    /// What is recorded now; `None` when it could not be read or is not there: everything stays as it is.
    pub wish: Option<ExportWish>,
    /// The partition.
    pub partition: Option<PartitionFact>,
    /// nvmet's objects.
    pub exports: ExportFact,
    /// Addresses to listen on.
    pub addresses: BTreeSet<(Transport, IpAddr)>,
    /// Service numbers in quarantine, as recorded in the node's object.
    pub quarantined: BTreeSet<u16>,
}

/// What is reported of an export.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExportReport {
    /// Highest epoch below which nothing is exported, as written on the drive.
    pub fenced_epoch: Epoch,
    /// The usable export; its addresses are empty when the consumer is this node.
    pub export: Option<ExportKeyListenReport>,
    /// Service numbers of dead exports that must be recorded as quarantined before their objects are removed.
    pub retire: BTreeSet<(u16, Epoch, NodeName)>,
    /// Exports of the replica that still have objects in the kernel, dead ones included.
    pub objects: usize,
    /// The question that was asked, and over which transports hosts are connected.
    pub connected: Option<(String, BTreeSet<Transport>)>,
    /// What it waits for.
    pub reason: Option<Reason>,
}

/// A reported export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportKeyListenReport {
    /// Epoch.
    pub epoch: Epoch,
    /// Generation.
    pub generation: Generation,
    /// Addresses.
    pub listen: BTreeSet<Listen>,
}

/// The key is part of what is wanted: it never changes in the life of the actor.
impl Machine for Export {
    const KIND: &'static str = "export";
    type Desired = ReplicaKey;
    type Fact = ExportLook;
    type Status = ExportReport;

    fn plan(desired: Option<&ReplicaKey>, look: &ExportLook) -> Plan<ExportReport> {
        if let Some(plan) = desired.and_then(|key| taint(*key, look)) {
            return plan;
        }
        let (Some(key), Some(wish)) = (desired, &look.wish) else { return rest(look, Reason::ApiUnreachable) };
        let current = (wish.epoch, wish.generation);
        if let Some(plan) = close_gone(look) {
            return plan;
        }
        let Some(partition) = &look.partition else {
            // The copy is gone on request; what is left of its exports has to go as well.
            let leftovers = wish.tombstoned.then(|| fence_older(wish, look)).flatten();
            return leftovers.unwrap_or_else(|| rest(look, Reason::AwaitingPartition { replica: key.replica }));
        };
        let Some(record) = &partition.record else {
            return rest(look, Reason::AwaitingPartition { replica: key.replica });
        };
        if wish.epoch < record.epoch && !mutant::on(Mutant::FloorIgnored) {
            return rest(look, Reason::EpochRegressed { drive: record.epoch, record: wish.epoch });
        }
        if let Some(plan) = fence_older(wish, look) {
            return plan;
        }
        // Somebody else's assembly (udev's md127) over our partition: taken down unless it is in use.
        if let Some(array) = foreign(partition).filter(|name| name.starts_with("md")) {
            let status = ExportReport { reason: Some(Reason::HeldByArray { array: array.clone() }), ..report(look) };
            return Plan::step(Op::StopForeignArray { name: array.clone() }, status);
        }
        // An array of this node that began in an older epoch is still a writer (F6): no report until it is gone.
        if record.epoch < wish.epoch && !partition.holders.is_empty() && !mutant::on(Mutant::LocalFenceEarly) {
            return rest(look, Reason::HeldByArray { array: holders(partition) });
        }
        if (record.epoch, record.generation) < current {
            let op = Op::WriteRecord { key: *key, record: raised(record, wish, partition) };
            return Plan::step(op, report(look));
        }
        match &wish.consumer {
            None => Plan::rest(report(look)),
            Some(_) if wish.tombstoned => Plan::rest(report(look)),
            Some(node) if *node == look.me => local(wish, look),
            Some(node) => remote(*key, wish, node, partition, look),
        }
    }
}

/// Who holds the partition and is no array of ours.
fn foreign(partition: &PartitionFact) -> Option<&String> {
    partition.holders.iter().find(|holder| !crate::array::ours(holder))
}

/// Somebody else holds the partition: written down on the drive before anything is done about it, whatever is recorded
/// elsewhere. Once that array is gone nothing shows any more that it was there, and it may have cleared the bitmap (F11).
fn taint(key: ReplicaKey, look: &ExportLook) -> Option<Plan<ExportReport>> {
    let partition = look.partition.as_ref()?;
    let array = foreign(partition)?.clone();
    let (record, superblock) = (partition.record.as_ref()?, partition.superblock.as_ref()?);
    if record.taints(superblock) {
        return None;
    }
    let record = EpochRecord { tainted: Some(superblock.device_uuid), ..record.clone() };
    let status = ExportReport { reason: Some(Reason::HeldByArray { array }), ..report(look) };
    Some(Plan::step(Op::WriteRecord { key, record }, status))
}

fn holders(partition: &PartitionFact) -> String {
    partition.holders.iter().cloned().collect::<Vec<_>>().join(", ")
}

/// What is true now whatever is wanted.
fn report(look: &ExportLook) -> ExportReport {
    let record = look.partition.as_ref().and_then(|p| p.record.as_ref());
    ExportReport {
        fenced_epoch: record.map_or(0, |r| r.epoch),
        retire: look.wish.as_ref().map(|wish| to_retire(wish, look)).unwrap_or_default(),
        objects: look.exports.entries.len(),
        connected: connected(look),
        ..ExportReport::default()
    }
}

/// The answer to a question who is connected: to any export of this copy, of whatever life.
fn connected(look: &ExportLook) -> Option<(String, BTreeSet<Transport>)> {
    let asked = look.wish.as_ref()?.asked.clone()?;
    let transports = look.exports.entries.values().flat_map(|entry| entry.connected.iter().copied());
    Some((asked, transports.collect()))
}

fn rest(look: &ExportLook, reason: Reason) -> Plan<ExportReport> {
    Plan::rest(ExportReport { reason: Some(reason), ..report(look) })
}

/// The drive of an export was taken away. What nvmet still holds of it answers with errors for ever, also when the drive
/// is back: it is closed, and made anew, at the same port, where the partition is.
fn close_gone(look: &ExportLook) -> Option<Plan<ExportReport>> {
    let (key, _) = look.exports.entries.iter().find(|(_, entry)| entry.gone)?;
    Some(Plan::step(Op::Fence { key: *key }, ExportReport { reason: Some(Reason::Releasing), ..report(look) }))
}

/// The one export that stays: none when the consumer is this node, or is nobody, or the copy is to be wiped.
fn kept(wish: &ExportWish, look: &ExportLook) -> Option<(Epoch, Generation)> {
    let served = wish.consumer.as_ref().filter(|consumer| **consumer != look.me && !wish.tombstoned);
    served.map(|_| (wish.epoch, wish.generation))
}

/// Fences, then removes, every export that is not the wanted one. A port's number is in quarantine before its objects go.
fn fence_older(wish: &ExportWish, look: &ExportLook) -> Option<Plan<ExportReport>> {
    if mutant::on(Mutant::FenceSkipped) {
        return None;
    }
    let keep = kept(wish, look);
    let stale = || look.exports.entries.iter().filter(|(k, _)| Some((k.epoch, k.generation)) != keep);
    // All unlinks first: a hung drain of one must not keep another one answering.
    if let Some((key, _)) = stale().find(|(_, e)| e.enabled || !e.ports.is_empty()) {
        let status = ExportReport { reason: Some(Reason::Releasing), ..report(look) };
        return Some(Plan::step(Op::Fence { key: *key }, status));
    }
    let (key, entry) = stale().next()?;
    let retire = dialled(key, entry);
    if retire.iter().all(|(port, ..)| look.quarantined.contains(port)) || mutant::on(Mutant::PortReusedAtOnce) {
        let status = ExportReport { reason: Some(Reason::Releasing), ..report(look) };
        return Some(Plan::step(Op::RemoveExport { key: *key }, status));
    }
    // Fenced already: what follows does not wait for the quarantine to be written, unless it needs the name again.
    None
}

/// The numbers of a dead export that its hosts may still be dialling.
fn dialled(key: &ExportKey, entry: &ExportEntry) -> BTreeSet<(u16, Epoch, NodeName)> {
    let prefix = NodeName(String::new()).host_nqn().0;
    let hosts = entry.hosts.iter().filter_map(|h| h.0.strip_prefix(&prefix));
    hosts
        .flat_map(|host| entry.unlinked_ports.iter().map(move |l| (l.port, key.epoch, NodeName(host.to_string()))))
        .collect()
}

/// Every number that still waits to be recorded as quarantined.
fn to_retire(wish: &ExportWish, look: &ExportLook) -> BTreeSet<(u16, Epoch, NodeName)> {
    let keep = kept(wish, look);
    let stale = look.exports.entries.iter().filter(|(k, _)| Some((k.epoch, k.generation)) != keep);
    let dead = stale.filter(|(_, e)| e.ports.is_empty());
    dead.flat_map(|(k, e)| dialled(k, e)).filter(|(port, ..)| !look.quarantined.contains(port)).collect()
}

fn raised(record: &EpochRecord, wish: &ExportWish, partition: &PartitionFact) -> EpochRecord {
    EpochRecord {
        // A new life: what is on the drive now is what it begins with.
        unflushed: partition.volatile_cache.then(|| partition.power.clone()),
        epoch: wish.epoch,
        generation: wish.generation,
        in_sync: wish.in_sync.clone(),
        volume_name: wish.volume_name.clone(),
        ..record.clone()
    }
}

/// The consumer is this node: the partition itself is the member.
fn local(wish: &ExportWish, look: &ExportLook) -> Plan<ExportReport> {
    let export = ExportKeyListenReport { epoch: wish.epoch, generation: wish.generation, listen: BTreeSet::new() };
    Plan::rest(ExportReport { export: Some(export), ..report(look) })
}

/// Rule 11: what an export life has acknowledged without flushing is gone with the drive's power, and neither MD nor NVMe
/// notices when its path returns. So such a life ends with the power: its port never answers again, the consumer drops the
/// member, and it returns under the next life, by way of its bitmap, in which everything that was lost is still marked (MD
/// clears a bit on a drive only behind a flush of that drive). A reboot in good order counts as well: nothing that the next
/// boot can read proves that the drive was told.
fn forgetful(export: ExportKey, partition: &PartitionFact, look: &ExportLook) -> Option<Plan<ExportReport>> {
    let record = partition.record.as_ref()?;
    let now = &partition.power;
    match &record.unflushed {
        Some(then) if then != now || now.is_empty() => {
            let reason = Reason::CacheLost { replica: export.replica.replica };
            let answering = look.exports.entries.get(&export).is_some_and(|e| e.enabled || !e.ports.is_empty());
            Some(match answering && !now.is_empty() {
                // The drive was away while its node stayed.
                true => Plan::step(Op::Fence { key: export }, ExportReport { reason: Some(reason), ..report(look) }),
                false => rest(look, reason),
            })
        }
        // Before it is offered. What was written since the cache was turned off needs no such note.
        known => {
            let wanted = partition.volatile_cache.then(|| now.clone());
            let record = EpochRecord { unflushed: wanted.clone(), ..record.clone() };
            (*known != wanted).then(|| Plan::step(Op::WriteRecord { key: export.replica, record }, report(look)))
        }
    }
}

/// The consumer is another node: one subsystem, one port of its own for each transport.
fn remote(
    key: ReplicaKey,
    wish: &ExportWish,
    consumer: &NodeName,
    partition: &PartitionFact,
    look: &ExportLook,
) -> Plan<ExportReport> {
    if !partition.holders.is_empty() && !mutant::on(Mutant::LocalFenceEarly) {
        return rest(look, Reason::HeldByArray { array: holders(partition) });
    }
    let export = ExportKey { replica: key, epoch: wish.epoch, generation: wish.generation };
    if let Some(plan) = forgetful(export, partition, look) {
        return plan;
    }
    let entry = look.exports.entries.get(&export);
    let host = consumer.host_nqn();
    if let Some(entry) = entry.filter(|e| e.enabled && !e.ports.is_empty() && e.hosts.contains(&host)) {
        let listen = entry.ports.clone();
        let live = ExportKeyListenReport { epoch: wish.epoch, generation: wish.generation, listen };
        let status = ExportReport { export: Some(live), ..report(look) };
        // Grown under the export: its host has to hear of it.
        return match partition.kernel_bytes.is_some() && entry.bytes != partition.kernel_bytes {
            true => Plan::step(Op::RevalidateExport { key: export }, status),
            false => Plan::rest(status),
        };
    }
    if look.addresses.is_empty() {
        return rest(look, Reason::NoAddress);
    }
    let Some(port) = choose_port(export, wish, look) else { return rest(look, Reason::NoPort) };
    let listen =
        look.addresses.iter().map(|(transport, address)| Listen { transport: *transport, address: *address, port });
    let op = Op::Export { key: export, host, listen: listen.collect() };
    Plan::step(op, report(look))
}

/// The number that this very export has in the kernel or was reported with before, or a free one. The search starts at a
/// place that depends on the export, so that exports made at the same time on one node seldom want the same number.
fn choose_port(export: ExportKey, wish: &ExportWish, look: &ExportLook) -> Option<u16> {
    let here = look.exports.entries.get(&export).and_then(|e| e.ports.first().or(e.unlinked_ports.first()));
    if let Some(listen) = here {
        return Some(listen.port);
    }
    let same = wish.reported.as_ref().filter(|r| (r.epoch, r.generation) == (export.epoch, export.generation));
    if let Some(port) = same.and_then(|r| r.listen.first()).map(|l| l.port) {
        return Some(port);
    }
    let length = PORT_RANGE.len() as u128;
    let start = match mutant::on(Mutant::PortReusedAtOnce) {
        true => 0,
        false => (export.namespace_uuid().as_u128() % length) as u16,
    };
    (0..PORT_RANGE.len() as u16).map(|step| PORT_RANGE.start + (start + step) % PORT_RANGE.len() as u16).find(|port| {
        let rests = look.quarantined.contains(port) && !mutant::on(Mutant::PortReusedAtOnce);
        !look.exports.ports_in_use.contains(port) && !rests
    })
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
