//! The NVMe host side: controllers of an export, its head device, connecting, disconnecting and dropping a member.
//!
//! Called by the seam on the blocking pool. It never marks a member faulty in MD: deleting the controllers (`delete.rs`)
//! makes MD notice by itself, without its mutex (reference: Linux 6.12 md.c `state_store`; with a stuck member the write
//! hangs).
//!
//! ```text
//!  /sys/class/nvme/nvme3            controller: state, address, subsysnqn
//!  /sys/class/nvme/nvme3/nvme3c3n1  its hidden path
//!  /sys/block/nvme3n1               the head, which MD uses; found by uuid alone, names are reused
//! ```

mod delete;

use super::attr;
use super::clock::{Clocks, hidden_path};
use super::root::Root;
use super::{fs, md, mounts, openers};
use crate::error::{KernelError, Result};
use crate::facts::{BlockDevice, ConnectionFact, ControllerFact, Listen, MemberFact, Transport};
use crate::id::{Epoch, ExportKey, NQN_BASE, NodeName, Nqn, VolumeId};
use crate::ops::Changed;
use delete::Deletion;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Each I/O queue is one socket and one work item for each replica on both ends; four saturate one drive's share.
const IO_QUEUES_MAX: usize = 4;
/// A dial over a storage LAN takes a millisecond; a dead address would hold the kernel's one connect mutex for 3 s.
const DIAL_DEADLINE: Duration = Duration::from_secs(1);
/// How long MD gets to fail a member whose controllers are gone; below the operation's deadline.
const NOTICED_DEADLINE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long MD gets to notice by failed I/O that a member is gone before a superblock write makes it look.
const NOTICE: Duration = Duration::from_millis(300);
/// After this long it is not for want of looking: an RDMA path still holds what waits.
const HELD: Duration = Duration::from_secs(4);

// ---------------------------------------------------------------------------------------------- facts

struct Controller {
    name: String,
    nqn: Nqn,
    fact: ControllerFact,
}

/// Controllers of all exports of ours, whatever their state.
fn controllers(root: &Root) -> Vec<Controller> {
    let class = root.sys.join("class/nvme");
    let look = |name: String| {
        let dir = class.join(&name);
        let nqn = Nqn(attr::read_opt(&dir.join("subsysnqn"))?);
        ExportKey::from_nqn(&nqn)?;
        let transport = match attr::read_opt(&dir.join("transport"))?.as_str() {
            "tcp" => Transport::Tcp,
            "rdma" => Transport::Rdma,
            _ => return None,
        };
        let (address, port) = parse_address(&attr::read_opt(&dir.join("address"))?)?;
        let state = attr::read_opt(&dir.join("state"))?;
        Some(Controller { name, nqn, fact: ControllerFact { state, address: Listen { transport, address, port } } })
    };
    attr::names(&class).into_iter().filter_map(look).collect()
}

fn controllers_of(root: &Root, nqn: &Nqn) -> Vec<Controller> {
    let mut all = controllers(root);
    all.retain(|controller| controller.nqn == *nqn);
    all
}

/// `traddr=10.0.0.2,trsvcid=5001,src_addr=…`
fn parse_address(text: &str) -> Option<(std::net::IpAddr, u16)> {
    let field = |name: &str| text.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    Some((field("traddr")?.parse().ok()?, field("trsvcid")?.parse().ok()?))
}

/// What the host holds for one export.
pub fn connection(root: &Root, clocks: &Clocks, key: ExportKey) -> ConnectionFact {
    let nqn = key.nqn();
    let found = controllers_of(root, &nqn);
    let controllers: BTreeMap<_, _> = found.into_iter().map(|c| (c.name, c.fact)).collect();
    let now = Instant::now();
    let mut fact = ConnectionFact { controllers, head: head(root, key.namespace_uuid()), ..Default::default() };
    if !fact.controllers.is_empty() {
        fact.down_for = clocks.down_for(&nqn, fact.live(), now);
        fact.stalled_for = clocks.stalled_for(&nqn, now);
    }
    fact
}

/// Every export of a volume that the host has a controller for.
pub fn connections(root: &Root, clocks: &Clocks, volume: VolumeId) -> BTreeMap<ExportKey, ConnectionFact> {
    let keys = controllers(root).into_iter().filter_map(|c| ExportKey::from_nqn(&c.nqn));
    let ours = keys.filter(|key| key.replica.volume == volume);
    ours.map(|key| (key, connection(root, clocks, key))).collect()
}

/// Every volume that the host has a connection for.
pub fn volumes(root: &Root) -> BTreeSet<VolumeId> {
    let keys = controllers(root).into_iter().filter_map(|c| ExportKey::from_nqn(&c.nqn));
    keys.map(|key| key.replica.volume).collect()
}

/// The head device with this namespace uuid.
pub fn head(root: &Root, uuid: Uuid) -> Option<BlockDevice> {
    let block = root.sys.join("block");
    let is_it = |name: &String| {
        let text = attr::read_opt(&block.join(name).join("uuid"));
        text.and_then(|text| Uuid::parse_str(&text).ok()) == Some(uuid)
    };
    let heads = attr::names(&block).into_iter().filter(|name| name.starts_with("nvme") && !hidden_path(name));
    let name = heads.into_iter().find(is_it)?;
    let dir = block.join(&name);
    Some(BlockDevice {
        path: attr::show(&root.dev.join(&name)),
        size_bytes: attr::read_number::<u64>(&dir.join("size"))? * 512,
        sector_bytes: attr::read_number(&dir.join("queue/logical_block_size"))?,
        uuid: Some(uuid),
        name,
    })
}

/// Whether a component answers now: a fabric head needs a live path, a local device needs to be there.
pub(super) fn answers(root: &Root, component: &str) -> bool {
    if !root.sys.join("class/block").join(component).exists() {
        return false;
    }
    match attr::read_opt(&root.sys.join("block").join(component).join("device/subsysnqn")) {
        Some(nqn) if nqn.starts_with(NQN_BASE) => {
            controllers_of(root, &Nqn(nqn)).iter().any(|controller| controller.fact.state == "live")
        }
        _ => true,
    }
}

// -------------------------------------------------------------------------------------------- connect

/// Whether anybody is there, asked from user space: the kernel's connect holds a global mutex (fabrics.c
/// `nvmf_dev_mutex`) for as long as a dead address takes to time out. That is 3 s over TCP, and more than a minute over
/// RDMA (`delete.rs`); an RDMA address answers over TCP as well, if only with a refusal.
pub async fn dial(op: &str, address: &Listen) -> Result<()> {
    let target = SocketAddr::new(address.address, address.port);
    match tokio::time::timeout(DIAL_DEADLINE, tokio::net::TcpStream::connect(target)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(e)) if address.transport == Transport::Rdma && e.kind() == std::io::ErrorKind::ConnectionRefused => {
            Ok(())
        }
        Ok(Err(e)) => Err(KernelError::io(format!("{op}: dial"), target.to_string(), &e)),
        Err(_) => Err(KernelError::wait(format!("{op}: dial"), target.to_string(), "no answer within 1 s")),
    }
}

/// Whether the host already has this very path. A controller that is being deleted is no path.
pub fn connected(root: &Root, key: ExportKey, address: &Listen) -> bool {
    let same = |c: &Controller| c.fact.address == *address && !c.fact.state.starts_with("deleting");
    controllers_of(root, &key.nqn()).iter().any(same)
}

/// Adds one path to an export. The caller holds the node's connect permit and has dialled.
pub fn connect(root: &Root, key: ExportKey, node: &NodeName, address: &Listen) -> Result<Changed> {
    let op = format!("connect {key}");
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let options = connect_options(key, node, address, cpus);
    let path = root.dev.join("nvme-fabrics");
    let fail = |e: std::io::Error| KernelError::io(format!("{op}: {options}"), attr::show(&path), &e);
    let mut device = OpenOptions::new().read(true).write(true).open(&path).map_err(fail)?;
    match device.write_all(options.as_bytes()) {
        Err(e) if e.raw_os_error() == Some(nix::errno::Errno::EALREADY as i32) => return Ok(Changed::No),
        other => other.map_err(fail)?,
    }
    let mut answer = [0; 128];
    let length = device.read(&mut answer).map_err(fail)?;
    tracing::info!(%key, answer = %String::from_utf8_lossy(&answer[..length]).trim(), "connected");
    delete::expendable(root, &key.nqn());
    Ok(Changed::Yes)
}

/// The connect string. `ctrl_loss_tmo=-1` and no `fast_io_fail_tmo`: a lost path blocks and never fails (P8).
/// `reconnect_delay=2` leaves the target time to notice that the old queues are dead; `keep_alive_tmo` is the kernel's 5.
fn connect_options(key: ExportKey, node: &NodeName, address: &Listen, cpus: usize) -> String {
    format!(
        "nqn={},transport={},traddr={},trsvcid={},hostnqn={},hostid={},ctrl_loss_tmo=-1,reconnect_delay=2,\
         keep_alive_tmo=5,nr_io_queues={}",
        key.nqn(),
        address.transport.as_str(),
        address.address,
        address.port,
        node.host_nqn(),
        node.host_id(),
        cpus.clamp(1, IO_QUEUES_MAX),
    )
}

// -------------------------------------------------------------------------------- disconnect and drop

/// Deletes all controllers of an export that no array uses.
pub fn disconnect(root: &Root, key: ExportKey) -> Result<Changed> {
    let op = format!("disconnect {key}");
    if let Some(head) = head(root, key.namespace_uuid()) {
        let holders = attr::names(&root.sys.join("block").join(&head.name).join("holders"));
        if !holders.is_empty() {
            return Err(KernelError::refuse(op, head.path, format!("{} holds it", holders.join(", "))));
        }
    }
    Deletion::begin(root, &op, &key.nqn())?.finish()
}

/// Deletes the controllers of a member, after looking in the same breath whether the array can do without it (the
/// evidence is some CAS old: the survivor may have died meanwhile, and then this would be the last copy).
pub fn drop_member(root: &Root, key: ExportKey, volume: VolumeId, survivor: &str) -> Result<Changed> {
    let op = format!("drop member {key}");
    let nqn = key.nqn();
    let array = md::find(root, volume).ok_or_else(|| KernelError::refuse(&op, nqn.0.clone(), "no array uses it"))?;
    let dir = md::dir(root, &array);
    let leaving = head(root, key.namespace_uuid()).map(|head| head.name);
    if leaving.as_deref() == Some(survivor) {
        return Err(KernelError::refuse(op, survivor, "it is itself the member that leaves"));
    }
    let state = attr::read_opt(&dir.join("array_state")).unwrap_or_default();
    if !matches!(state.as_str(), "clean" | "active" | "active-idle" | "write-pending" | "readonly" | "read-auto") {
        return Err(KernelError::refuse(op, array, format!("the array is {state}")));
    }
    if !md::member(&dir, survivor).is_some_and(|member| member.in_sync()) || !answers(root, survivor) {
        return Err(KernelError::refuse(op, survivor, "the survivor is not in sync, or does not answer"));
    }
    let mut deletion = Deletion::begin(root, &op, &nqn)?;
    if state == "readonly" || state == "read-auto" {
        // MD writes nothing then, so it cannot notice; nothing is acknowledged either.
        return deletion.finish();
    }
    deletion.gone()?;
    let noticed = noticed(root, &op, &dir, survivor, leaving.as_deref(), &mut deletion);
    // The array is without the member, or this is all that is left to try: nobody waits for these any more.
    deletion.rest()?;
    Ok(attr::either(noticed?, deletion.changed()))
}

/// Deletes the controllers of a deposed consumer's export, whatever its array then does. Refused while anybody could
/// still be told that a held write is done: a living mount, or a process with the raw device open.
pub fn abandon(root: &Root, key: ExportKey, deposed_by: Epoch) -> Result<Changed> {
    let op = format!("abandon {key}");
    let nqn = key.nqn();
    if deposed_by <= key.epoch {
        let detail = format!("epoch {deposed_by} does not depose epoch {}", key.epoch);
        return Err(KernelError::refuse(op, nqn.0, detail));
    }
    let volume = key.replica.volume;
    if let Some(device) = md::find(root, volume).and_then(|name| md::device_number(root, &name)) {
        let table = mounts::read(root)?;
        let mounted: Vec<_> = mounts::of_device(&table, device).collect();
        if let Some(mount) = mounted.iter().find(|mount| fs::alive(mount)) {
            return Err(KernelError::refuse(op, &mount.target, "the volume is mounted and alive"));
        }
        // XFS that was shut down asks itself once more before it calls a held write a success (`xfs_file_fsync`); ext4 does
        // not (`ext4_sync_file`), a raw device cannot, and below a mount that was detached a writer may wait for ever: they
        // are killed, also those that came after the shutdown (rule 7; a task with SIGKILL pending never returns to its
        // program).
        if mounted.is_empty() || mounted.iter().any(|mount| mount.fs != "xfs") {
            openers::kill_all(root, &op, device)?;
        }
    }
    Deletion::begin(root, &op, &nqn)?.finish()
}

/// Waits until MD has taken for failed every member whose device is gone, and `leaving`, whose device may still be there
/// without a path. MD notices by failed writes; an idle array writes nothing, so after a moment the survivor's own flag is
/// written as it is, which makes MD write all superblocks (md.c `state_store`, `need_update_sb`).
fn noticed(
    root: &Root,
    op: &str,
    dir: &Path,
    survivor: &str,
    leaving: Option<&str>,
    deletion: &mut Deletion<'_>,
) -> Result<Changed> {
    let (start, mut changed) = (Instant::now(), Changed::No);
    let mut asked = false;
    while start.elapsed() < NOTICED_DEADLINE {
        let dead = md::members(dir).into_iter().find(|(name, member)| {
            let gone = || leaving == Some(name) || !root.sys.join("class/block").join(name).exists();
            !member.flags.contains("faulty") && gone()
        });
        if dead.is_none() {
            return Ok(changed);
        }
        changed = Changed::Yes;
        if !asked && start.elapsed() > NOTICE {
            ask(op, dir, survivor);
            asked = true;
        }
        if start.elapsed() > HELD {
            deletion.rest()?;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Err(KernelError::retry(op, attr::show(dir), "the array has not yet failed the member whose device is gone"))
}

/// Has MD write all superblocks, by a thread: while a superblock waits on the member that leaves, MD's mutex is held, and
/// the write would wait for what its own thread has yet to delete.
fn ask(op: &str, dir: &Path, survivor: &str) {
    let mostly = md::member(dir, survivor).is_some_and(|m: MemberFact| m.flags.contains("write_mostly"));
    let flag = if mostly { "writemostly" } else { "-writemostly" };
    let (op, path) = (op.to_string(), dir.join(format!("dev-{survivor}/state")));
    std::thread::spawn(move || {
        if let Err(error) = attr::write(&op, &path, flag) {
            tracing::warn!(%error, "the array was not made to look at a member that is gone");
        }
    });
}

#[cfg(test)]
#[path = "fabrics_tests.rs"]
mod tests;
