//! Exports: the nvmet target through configfs. Observe, build, fence, remove; blocking, one replica at a time.
//!
//! Called by the seam (`apply.rs`) on the blocking pool. It never decides which epoch is right, never touches a
//! subsystem that is not ours, and never removes an allowed host while a port is linked: a host that is *answered*
//! with a refusal deletes its controller even with `ctrl_loss_tmo=-1` (Linux 6.12, drivers/nvme/host/fabrics.c,
//! `nvmf_should_reconnect`), while one that finds a closed port waits (docs/protocol.md, rule 5).
//!
//! ```text
//!  export:  subsystem ─▶ namespace 1 (fixed ids) ─▶ enable ─▶ allowed host ─▶ ports ─▶ link   (link last)
//!  fence:   unlink every port ─▶ enable=0, which returns when nothing is in flight            (listener first)
//! ```
//!
//! Each export has nvmet ports of its own; a port knows whose it is by a referral named after the NQN, which is never
//! enabled and so never announced: configfs keeps it exactly as long as the port, whatever happens to our process.

mod configfs;
mod device;
mod peers;
pub(in crate::linux) mod size;

use super::attr::{self, either};
use super::root::Root;
use crate::error::{KernelError, Result};
use crate::facts::{ExportEntry, ExportFact, Listen, Transport};
use crate::id::{ExportKey, Nqn, ReplicaKey};
use crate::ops::Changed;
use configfs::{group, link, ungroup, unlink};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Added to a service number to make the id of its RDMA port object; the TCP one has the number itself as id.
/// Port ids are 16 bits wide (configfs.c `nvmet_ports_make`), so service numbers for RDMA end at 35535.
const RDMA_PORT_ID: u16 = 30_000;
const MODEL: &str = "MeshStor";

/// Everything an export is made of.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Identity.
    pub key: ExportKey,
    /// Device node of the replica's partition.
    pub device: String,
    /// The one allowed host.
    pub host: Nqn,
    /// Where to listen.
    pub listen: BTreeSet<Listen>,
}

/// The folders of one subsystem.
struct Paths {
    nqn: String,
    target: PathBuf,
    subsystem: PathBuf,
    namespace: PathBuf,
}

impl Paths {
    fn new(root: &Root, key: ExportKey) -> Paths {
        let target = root.configfs.join("nvmet");
        let nqn = key.nqn().0;
        let subsystem = target.join("subsystems").join(&nqn);
        let namespace = subsystem.join("namespaces/1");
        Paths { nqn, target, subsystem, namespace }
    }

    fn host(&self, host: &str) -> PathBuf {
        self.target.join("hosts").join(host)
    }

    fn allowed(&self, host: &str) -> PathBuf {
        self.subsystem.join("allowed_hosts").join(host)
    }

    fn port(&self, id: &str) -> PathBuf {
        self.target.join("ports").join(id)
    }

    fn link(&self, id: &str) -> PathBuf {
        self.port(id).join("subsystems").join(&self.nqn)
    }

    fn marker(&self, id: &str) -> PathBuf {
        self.port(id).join("referrals").join(&self.nqn)
    }

    fn enabled(&self) -> bool {
        attr::read_opt(&self.namespace.join("enable")).as_deref() == Some("1")
    }

    /// Ids of the ports this subsystem is linked to, ours or anybody's.
    fn linked(&self) -> Vec<String> {
        let ids = attr::names(&self.target.join("ports"));
        ids.into_iter().filter(|id| fs::symlink_metadata(self.link(id)).is_ok()).collect()
    }
}

// ---------------------------------------------------------------------------------------------- facts

/// What nvmet holds for a replica, of any epoch.
pub fn observe(root: &Root, key: ReplicaKey) -> Result<ExportFact> {
    let target = root.configfs.join("nvmet");
    let names = |folder: &str| {
        let path = target.join(folder);
        attr::list(&path).map_err(|e| KernelError::io("observe exports", attr::show(&path), &e))
    };
    let mut fact = ExportFact::default();
    for name in names("subsystems")? {
        let found = ExportKey::from_nqn(&Nqn(name)).filter(|found| found.replica == key);
        if let Some(found) = found {
            let paths = Paths::new(root, found);
            fact.entries.insert(found, ExportEntry { gone: device::gone(root, &paths), ..entry(&paths) });
        }
    }
    for id in names("ports")? {
        let port = target.join("ports").join(&id);
        let number: Option<u16> = attr::read_number(&port.join("addr_trsvcid"));
        fact.ports_in_use.extend(number);
        // A port object that never got its address still takes its id, and so its number.
        if number.is_none() {
            fact.ports_in_use.extend(id.parse::<u16>().ok().map(number_of_id));
        }
        for (found, entry) in &mut fact.entries {
            let paths = Paths::new(root, *found);
            let Some(listen) = listen_of(&port) else { continue };
            if fs::symlink_metadata(paths.link(&id)).is_ok() {
                entry.ports.insert(listen);
            } else if paths.marker(&id).is_dir() {
                entry.unlinked_ports.insert(listen);
            }
        }
    }
    if fact.entries.values().any(|entry| !entry.ports.is_empty()) {
        let peers = peers::look(root);
        fact.entries.values_mut().for_each(|entry| entry.connected = peers.to(&entry.ports));
    }
    Ok(fact)
}

fn entry(paths: &Paths) -> ExportEntry {
    let text = |name: &str| attr::read_opt(&paths.namespace.join(name)).filter(|text| !text.is_empty());
    ExportEntry {
        device_path: text("device_path").filter(|path| path != "(null)"),
        namespace_uuid: text("device_uuid").and_then(|text| Uuid::parse_str(&text).ok()),
        enabled: paths.enabled(),
        gone: false,
        hosts: attr::names(&paths.subsystem.join("allowed_hosts")).into_iter().map(Nqn).collect(),
        ports: BTreeSet::new(),
        unlinked_ports: BTreeSet::new(),
        bytes: None,
        connected: BTreeSet::new(),
    }
}

fn listen_of(port: &Path) -> Option<Listen> {
    let transport = match attr::read_opt(&port.join("addr_trtype"))?.as_str() {
        "tcp" => Transport::Tcp,
        "rdma" => Transport::Rdma,
        _ => return None,
    };
    let address = attr::read_opt(&port.join("addr_traddr"))?.parse().ok()?;
    Some(Listen { transport, address, port: attr::read_number(&port.join("addr_trsvcid"))? })
}

fn number_of_id(id: u16) -> u16 {
    if id > RDMA_PORT_ID { id - RDMA_PORT_ID } else { id }
}

// --------------------------------------------------------------------------------------------- export

/// Builds an export wholly, or completes a half-built one. Refused when it is linked and differs from what is wanted:
/// changing it under a consumer is not ours to do silently.
pub fn export(root: &Root, wanted: &Wanted) -> Result<Changed> {
    let paths = Paths::new(root, wanted.key);
    let op = format!("export {}", wanted.key);
    let ids = port_ids(&op, wanted)?;
    if !paths.target.join("subsystems").is_dir() {
        return Err(KernelError::wait(&op, attr::show(&paths.target), "nvmet is not loaded or configfs not mounted"));
    }
    let wanted = &Wanted { device: device::named(root, &op, &wanted.device)?, ..wanted.clone() };
    let mut changed = Changed::No;
    if paths.linked().is_empty() {
        changed = either(changed, subsystem(&op, &paths, wanted)?);
        changed = either(changed, namespace(&op, &paths, wanted)?);
        changed = either(changed, allow(&op, &paths, &wanted.host)?);
    } else if let Some(difference) = difference(&paths, wanted, &ids) {
        return Err(KernelError::refuse(&op, paths.nqn, format!("it is linked to a port with {difference}")));
    }
    let both = wanted.listen.iter().any(|l| l.transport == Transport::Rdma);
    // One dead transport must not keep the other from being offered: link all, then report the first failure.
    let mut failed = None;
    for (id, listen) in &ids {
        match port(&op, &paths, id, listen, both) {
            Ok(done) => changed = either(changed, done),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(changed), Err)
}

/// The port objects wanted, by id.
fn port_ids(op: &str, wanted: &Wanted) -> Result<BTreeMap<String, Listen>> {
    let mut ids = BTreeMap::new();
    for listen in &wanted.listen {
        let shift = if listen.transport == Transport::Rdma { RDMA_PORT_ID } else { 0 };
        let id = listen.port.checked_add(shift).filter(|id| *id > 0);
        let id = id.ok_or_else(|| {
            KernelError::refuse(op, &wanted.key.nqn().0, format!("service number {} has no port id", listen.port))
        })?;
        if let Some(other) = ids.insert(id.to_string(), listen.clone()) {
            let detail = format!("{} and {} share service number {}", other.address, listen.address, listen.port);
            return Err(KernelError::refuse(op, &wanted.key.nqn().0, detail));
        }
    }
    if ids.is_empty() {
        return Err(KernelError::refuse(op, wanted.key.nqn().0, "no address to listen on"));
    }
    Ok(ids)
}

fn subsystem(op: &str, paths: &Paths, wanted: &Wanted) -> Result<Changed> {
    let mut changed = group(op, &paths.subsystem)?;
    // Serial and model become fixed once a host has identified the subsystem: `set` leaves equal values alone.
    let serial = format!("{}{}", wanted.key.replica.volume.short(), wanted.key.replica.replica);
    for (name, value) in [("attr_allow_any_host", "0"), ("attr_serial", serial.as_str()), ("attr_model", MODEL)] {
        changed = either(changed, attr::set(op, &paths.subsystem.join(name), value)?);
    }
    Ok(changed)
}

fn namespace(op: &str, paths: &Paths, wanted: &Wanted) -> Result<Changed> {
    let created = group(op, &paths.namespace)?;
    let right = namespace_difference(paths, wanted).is_none();
    if right && paths.enabled() {
        return Ok(created);
    }
    device::exclusive(op, &wanted.device)?;
    // Attributes are immutable while enabled; nothing is linked here, so nobody notices.
    attr::set(op, &paths.namespace.join("enable"), "0")?;
    let uuid = wanted.key.namespace_uuid();
    if !right {
        attr::write(op, &paths.namespace.join("device_path"), &wanted.device)?;
        attr::write(op, &paths.namespace.join("device_uuid"), &uuid.to_string())?;
        attr::write(op, &paths.namespace.join("device_nguid"), &uuid.to_string())?;
    }
    attr::write(op, &paths.namespace.join("enable"), "1")?;
    Ok(Changed::Yes)
}

/// Allows exactly one host. Called only while no port is linked.
fn allow(op: &str, paths: &Paths, host: &Nqn) -> Result<Changed> {
    let mut changed = Changed::No;
    for other in attr::names(&paths.subsystem.join("allowed_hosts")) {
        if other != host.0 {
            unlink(op, &paths.allowed(&other))?;
            changed = Changed::Yes;
        }
    }
    if fs::symlink_metadata(paths.allowed(&host.0)).is_ok() {
        return Ok(changed);
    }
    group(op, &paths.host(&host.0))?;
    link(op, &paths.host(&host.0), &paths.allowed(&host.0))?;
    Ok(Changed::Yes)
}

/// Makes one port of ours and links the subsystem to it, last of all.
fn port(op: &str, paths: &Paths, id: &str, listen: &Listen, both: bool) -> Result<Changed> {
    if fs::symlink_metadata(paths.link(id)).is_ok() {
        return Ok(Changed::No);
    }
    let port = paths.port(id);
    let strangers = attr::names(&port.join("subsystems")).into_iter().chain(attr::names(&port.join("referrals")));
    if let Some(stranger) = strangers.into_iter().find(|name| *name != paths.nqn) {
        return Err(KernelError::refuse(op, attr::show(&port), format!("the port belongs to {stranger}")));
    }
    group(op, &port)?;
    group(op, &paths.marker(id))?;
    let family = if listen.address.is_ipv4() { "ipv4" } else { "ipv6" };
    let values = [
        ("addr_trtype", listen.transport.as_str().to_string()),
        ("addr_adrfam", family.to_string()),
        ("addr_traddr", listen.address.to_string()),
        ("addr_trsvcid", listen.port.to_string()),
        // RDMA carries the I/O where both are offered; TCP takes over when it fails (native multipath prefers
        // optimized paths).
        ("ana_groups/1/ana_state", ana_state(listen.transport, both).to_string()),
    ];
    for (name, value) in values {
        attr::set(op, &port.join(name), &value)?;
    }
    link(op, &paths.subsystem, &paths.link(id))?;
    Ok(Changed::Yes)
}

fn ana_state(transport: Transport, beside_rdma: bool) -> &'static str {
    if transport == Transport::Tcp && beside_rdma { "non-optimized" } else { "optimized" }
}

/// What is not as wanted in a linked export, in words; `None` when only links are missing.
fn difference(paths: &Paths, wanted: &Wanted, ids: &BTreeMap<String, Listen>) -> Option<String> {
    if !paths.enabled() {
        return Some("its namespace disabled".into());
    }
    if let Some(difference) = namespace_difference(paths, wanted) {
        return Some(difference);
    }
    if attr::read_opt(&paths.subsystem.join("attr_allow_any_host")).as_deref() != Some("0") {
        return Some("any host allowed".into());
    }
    let hosts = attr::names(&paths.subsystem.join("allowed_hosts"));
    if hosts != [wanted.host.0.clone()] {
        return Some(format!("allowed hosts {hosts:?} instead of {}", wanted.host));
    }
    let strange = |id: &String| ids.get(id) != listen_of(&paths.port(id)).as_ref();
    let strange = paths.linked().into_iter().find(strange)?;
    Some(format!("port {strange} at another address than wanted"))
}

fn namespace_difference(paths: &Paths, wanted: &Wanted) -> Option<String> {
    let now = entry(paths);
    let uuid = wanted.key.namespace_uuid();
    if now.device_path.as_deref() != Some(wanted.device.as_str()) {
        return Some(format!("device {:?} instead of {}", now.device_path, wanted.device));
    }
    let nguid = attr::read_opt(&paths.namespace.join("device_nguid")).and_then(|text| Uuid::parse_str(&text).ok());
    if now.namespace_uuid != Some(uuid) || nguid != Some(uuid) {
        return Some(format!("namespace ids {:?} and {nguid:?} instead of {uuid}", now.namespace_uuid));
    }
    None
}

// ------------------------------------------------------------------------------------ fence and remove

/// Fences an export: no listener, then nothing in flight. Returns when the last request has left the drive.
pub fn fence(root: &Root, key: ExportKey) -> Result<Changed> {
    let paths = Paths::new(root, key);
    let op = format!("fence {key}");
    let mut changed = Changed::No;
    for id in paths.linked() {
        unlink(&op, &paths.link(&id))?;
        changed = Changed::Yes;
    }
    if !paths.namespace.is_dir() {
        return Ok(changed);
    }
    // The barrier: `enable=0` waits for every request that holds the namespace (core.c `nvmet_ns_disable`). It comes
    // after the unlink, else it would wait for a partitioned host's half-sent writes under the global config lock.
    Ok(either(changed, attr::set(&op, &paths.namespace.join("enable"), "0")?))
}

/// Removes a fenced export's objects: its ports, hosts and the subsystem.
pub fn remove(root: &Root, key: ExportKey) -> Result<Changed> {
    let paths = Paths::new(root, key);
    let op = format!("remove export {key}");
    if !paths.linked().is_empty() || paths.enabled() {
        return Err(KernelError::refuse(op, paths.nqn, "the export is not fenced"));
    }
    let mut changed = Changed::No;
    for id in attr::names(&paths.target.join("ports")) {
        if paths.marker(&id).is_dir() {
            ungroup(&op, &paths.marker(&id))?;
            ungroup(&op, &paths.port(&id))?;
            changed = Changed::Yes;
        }
    }
    let hosts = attr::names(&paths.subsystem.join("allowed_hosts"));
    for host in &hosts {
        unlink(&op, &paths.allowed(host))?;
    }
    changed = either(changed, ungroup(&op, &paths.namespace)?);
    changed = either(changed, ungroup(&op, &paths.subsystem)?);
    for host in &hosts {
        // Refused by configfs while another subsystem of this node allows the host: then it stays.
        let _still_used = ungroup(&op, &paths.host(host));
    }
    Ok(changed)
}

/// Removes port objects of our range that a crash left between making and marking: no link, no marker, nobody's.
/// Called once at start, before any export can be under way.
pub fn sweep(root: &Root, range: &std::ops::RangeInclusive<u16>) -> Vec<String> {
    let ports = root.configfs.join("nvmet/ports");
    let mut removed = attr::names(&ports);
    removed.retain(|id| {
        let port = ports.join(id);
        let in_range = id.parse().is_ok_and(|id: u16| range.contains(&number_of_id(id)));
        let free = attr::names(&port.join("subsystems")).is_empty() && attr::names(&port.join("referrals")).is_empty();
        in_range && free && ungroup("sweep ports", &port) == Ok(Changed::Yes)
    });
    removed
}

#[cfg(test)]
#[path = "nvmet_tests.rs"]
mod tests;
