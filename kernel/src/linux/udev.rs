//! udev: hints from the kernel's uevents, and the rule that keeps the host's own rules away from our members.
//!
//! Started and asked by the seam. Events come from the kernel, not from udevd, so they arrive in a container without
//! `/run/udev` too. It never waits for udev and never takes a property of its database for a fact.

use super::attr;
use super::cmd::{Tools, args};
use super::drives;
use super::root::Root;
use super::watch::Volumes;
use crate::error::{KernelError, Result};
use crate::facts::Check;
use crate::hint::Hint;
use crate::id::{ExportKey, NQN_BASE, Nqn, PARTITION_TYPE};
use crate::ops::Changed;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::Write as _;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::broadcast;

/// After 60-persistent-storage (which learns the partition type) and before 63-/64-md-raid-*.
const RULE: &str = "62-meshstor.rules";
/// How often a sleeping monitor looks whether it should end.
const WAKE_MS: u16 = 1000;
const RELOAD_DEADLINE: Duration = Duration::from_secs(10);

// -------------------------------------------------------------------------------------------- monitor

/// Turns uevents into hints until `stop` is set. Without a monitor the periodic looks of the actors remain.
pub fn start(root: Root, volumes: Volumes, hints: broadcast::Sender<Hint>, stop: Arc<AtomicBool>) {
    let spawned = std::thread::Builder::new().name("udev".into()).spawn(move || {
        if let Err(error) = listen(&root, &volumes, &hints, &stop) {
            tracing::error!(%error, "no more uevents; changes are seen at the periodic looks only");
        }
    });
    if let Err(error) = spawned {
        tracing::error!(%error, "the udev thread could not be started");
    }
}

fn listen(root: &Root, volumes: &Volumes, hints: &broadcast::Sender<Hint>, stop: &AtomicBool) -> std::io::Result<()> {
    let builder = udev::MonitorBuilder::new_kernel()?;
    let builder = builder.match_subsystem("block")?.match_subsystem("nvme")?.match_subsystem("infiniband")?;
    let socket = builder.listen()?;
    while !stop.load(Ordering::Relaxed) {
        let ready = poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], PollTimeout::from(WAKE_MS));
        match ready {
            Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        for event in socket.iter() {
            let subsystem = event.subsystem().unwrap_or_default().to_string_lossy();
            let name = event.sysname().to_string_lossy();
            let event = Event {
                subsystem: &subsystem,
                name: &name,
                partition: event.devtype().is_some_and(|kind| kind == "partition"),
                change: event.event_type() == udev::EventType::Change,
            };
            if let Some(hint) = hint_for(root, volumes, &event) {
                let _ = hints.send(hint);
            }
        }
        // What ended the loop: EAGAIN, or the socket overflowed and events are lost (libudev.c
        // `udev_monitor_receive_device` leaves the reason in errno).
        if nix::errno::Errno::last() == nix::errno::Errno::ENOBUFS {
            let _ = hints.send(Hint::Everything);
        }
    }
    Ok(())
}

/// What of an event tells whom it concerns.
struct Event<'a> {
    subsystem: &'a str,
    name: &'a str,
    partition: bool,
    change: bool,
}

/// Whom an event may concern, as narrowly as the device still tells: one change of the kernel comes with many events, and
/// a hint to all makes every volume of the node look.
fn hint_for(root: &Root, volumes: &Volumes, event: &Event<'_>) -> Option<Hint> {
    let name = event.name;
    match event.subsystem {
        "nvme" => match subsystem_nqn(&root.sys.join("class/nvme").join(name)) {
            // A controller that is gone says nothing any more.
            None => Some(Hint::Connections),
            Some(nqn) => ExportKey::from_nqn(&nqn).map(|key| Hint::Connection(key.replica.volume)),
        },
        "infiniband" => Some(Hint::Network),
        "block" if name.starts_with("md") => Some(volumes.of_array(root, name).map_or(Hint::Arrays, Hint::Array)),
        // Somebody has closed a partition that was open for writing: where it lies has not changed.
        "block" if event.partition && event.change => None,
        "block" if name.starts_with("nvme") => Some(of_disk(root, name.split('p').next().unwrap_or(name))),
        _ => None,
    }
}

/// A head of ours, a local drive, or one that is gone.
fn of_disk(root: &Root, disk: &str) -> Hint {
    let nqn = subsystem_nqn(&root.sys.join("block").join(disk).join("device"));
    if let Some(key) = nqn.as_ref().and_then(ExportKey::from_nqn) {
        return Hint::Connection(key.replica.volume);
    }
    let drives = nqn.and_then(|_| drives::namespaces(root).ok()).unwrap_or_default();
    let drive = drives.into_iter().find(|drive| drive.name == disk && drive.ambiguous.is_none());
    drive.map_or(Hint::Drives, |drive| Hint::Drive(drive.id))
}

fn subsystem_nqn(dir: &Path) -> Option<Nqn> {
    attr::read_opt(&dir.join("subsysnqn")).filter(|nqn| !nqn.is_empty()).map(Nqn)
}

// ----------------------------------------------------------------------------------------------- rule

/// The rule's text. The stock rules run `mdadm --incremental` on whatever blkid calls a RAID member, unless
/// `SYSTEMD_READY` is 0 (mdadm: udev-md-raid-assembly.rules); the array they would build claims our members and may
/// write to an exported replica. `nowatch`: no probing after each of our writes, which hangs on a stuck path.
pub fn rule() -> String {
    format!(
        "# Written by meshstor: replicas and their fabric namespaces are assembled by meshstor alone.\n\
         SUBSYSTEM!=\"block\", GOTO=\"meshstor_end\"\n\
         ENV{{ID_PART_ENTRY_TYPE}}==\"{PARTITION_TYPE}\", ENV{{DEVTYPE}}==\"partition\", GOTO=\"meshstor_member\"\n\
         KERNEL==\"nvme*\", ATTRS{{subsysnqn}}==\"{NQN_BASE}:*\", GOTO=\"meshstor_member\"\n\
         GOTO=\"meshstor_end\"\n\
         LABEL=\"meshstor_member\"\n\
         ENV{{SYSTEMD_READY}}=\"0\", ENV{{ID_FS_TYPE}}=\"\", ENV{{ID_FS_USAGE}}=\"\", ENV{{UDISKS_IGNORE}}=\"1\"\n\
         OPTIONS+=\"nowatch\"\n\
         LABEL=\"meshstor_end\"\n"
    )
}

/// This boot's rule, and the one that is there before anything of ours runs at the next boot: without it the stock rules
/// assemble our members first, and an array assembled from one member forgets its dirty bits (F11).
fn rule_paths(root: &Root) -> [PathBuf; 2] {
    [&root.run, &root.etc].map(|dir| dir.join("udev/rules.d").join(RULE))
}

fn rule_path(root: &Root) -> PathBuf {
    let [path, _] = rule_paths(root);
    path
}

/// Installs the rule, for this boot and for the next ones, and has udevd apply it to members that it knows already.
pub async fn install(root: &Root, tools: &Tools) -> Result<Changed> {
    let mut changed = Changed::No;
    for path in rule_paths(root) {
        match write_rule(&path) {
            Ok(Changed::No) => {}
            Ok(Changed::Yes) => changed = Changed::Yes,
            Err(error) if path.starts_with(&root.etc) => {
                tracing::warn!(%error, "the next boot begins without the udev rule: replicas may have to be copied wholly");
            }
            Err(error) => return Err(error),
        }
    }
    if changed == Changed::Yes {
        udevadm(tools, &["control", "--reload"]).await;
    }
    let exposed = exposed();
    if !exposed.is_empty() {
        // Seen before the rule was there: a change event makes udevd judge them again.
        let paths: Vec<String> = exposed.iter().map(|name| format!("/sys/class/block/{name}")).collect();
        let mut words = vec!["trigger", "--settle", "--action=change"];
        words.extend(paths.iter().map(String::as_str));
        udevadm(tools, &words).await;
    }
    Ok(changed)
}

async fn udevadm(tools: &Tools, words: &[&str]) {
    if let Err(error) = tools.run("udevadm", &args(words), RELOAD_DEADLINE).await {
        tracing::warn!(%error, "udevd was not told about the rule");
    }
}

fn write_rule(path: &Path) -> Result<Changed> {
    if std::fs::read_to_string(path).is_ok_and(|now| now == rule()) {
        return Ok(Changed::No);
    }
    durably(path, rule().as_bytes())
        .map(|()| Changed::Yes)
        .map_err(|e| KernelError::io("install the udev rule", attr::show(path), &e))
}

/// On the disk before it returns, whole or not at all: a power cut in the first half minute of a node's life left, it seems, an empty
/// rule behind, and the stock rules took our members at the next boot (seen on 6.18).
pub(super) fn durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().ok_or_else(|| std::io::Error::other("a file without a folder"))?;
    std::fs::create_dir_all(dir)?;
    // udevd reads names that end in .rules alone, systemd those that end in a kind of unit.
    let part = path.with_extension("part");
    let mut file = std::fs::File::create(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&part, path)?;
    std::fs::File::open(dir)?.sync_all()
}

/// Whether the rule is there and udevd has applied it to the members it knows. Blocking.
pub fn check(root: &Root) -> Check {
    let path = rule_path(root);
    if std::fs::read_to_string(&path).ok() != Some(rule()) {
        return Check { ok: false, required: true, message: format!("{} is not installed", path.display()) };
    }
    let exposed = exposed();
    let ok = exposed.is_empty();
    let message = if ok {
        format!("{} keeps the host's MD rules away from our members", path.display())
    } else {
        format!("udev has not applied {RULE} to {}", exposed.join(", "))
    };
    Check { ok, required: true, message }
}

/// Members of ours that udev's database still shows as ready for anybody. Devices udev has not seen are none.
fn exposed() -> Vec<String> {
    let scan = || -> std::io::Result<Vec<String>> {
        let mut devices = udev::Enumerator::new()?;
        devices.match_subsystem("block")?;
        let mut found = Vec::new();
        for device in devices.scan_devices()? {
            let property = |name: &str| device.property_value(name).map(|value| value.to_string_lossy().into_owned());
            let ours = property("ID_PART_ENTRY_TYPE").is_some_and(|guid| guid == PARTITION_TYPE.to_string());
            if ours && device.is_initialized() && property("SYSTEMD_READY").as_deref() != Some("0") {
                found.push(device.sysname().to_string_lossy().into_owned());
            }
        }
        Ok(found)
    };
    scan().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_names_our_type_and_our_nqns_and_nobody_elses() {
        let rule = rule();
        assert!(rule.contains("ENV{ID_PART_ENTRY_TYPE}==\"6d657368-7374-4f72-8001-5265706c6963\""), "{rule}");
        assert!(rule.contains("ATTRS{subsysnqn}==\"nqn.2025-12.io.meshstor:*\""), "{rule}");
        assert!(rule.contains("ENV{SYSTEMD_READY}=\"0\""), "{rule}");
        let labels = rule.matches("LABEL=").count();
        assert_eq!((labels, rule.lines().count()), (2, 9));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_rule_is_installed_once_and_its_absence_is_a_failed_check() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        assert!(!check(&root).ok);
        assert_eq!(install(&root, &Tools::default()).await, Ok(Changed::Yes));
        assert_eq!(install(&root, &Tools::default()).await, Ok(Changed::No));
        assert!(check(&root).ok);
        // The one of this boot is gone after a reboot; the other one is not.
        let lasting = root.etc.join("udev/rules.d");
        assert!(lasting.join(RULE).is_file());
        assert_eq!(std::fs::read_dir(&lasting).unwrap().count(), 1, "nothing half-made beside it");
    }

    #[test]
    fn half_a_rule_is_written_again_and_never_seen() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("rules.d").join(RULE);
        durably(&path, b"").unwrap();
        let old = std::fs::File::open(&path).unwrap();
        assert_eq!(write_rule(&path), Ok(Changed::Yes));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), rule());
        assert_eq!(old.metadata().unwrap().len(), 0, "replaced, not rewritten in place");
    }

    #[test]
    fn an_event_concerns_as_few_as_the_device_tells() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        let volumes = Volumes::default();
        let hint = |subsystem, name, partition, change| {
            hint_for(&root, &volumes, &Event { subsystem, name, partition, change })
        };
        // Gone, or not known: everybody it may concern.
        assert_eq!(hint("block", "md1004", false, false), Some(Hint::Arrays));
        assert_eq!(hint("block", "nvme0n1p1", true, false), Some(Hint::Drives));
        assert_eq!(hint("nvme", "nvme3", false, false), Some(Hint::Connections));
        assert_eq!(hint("infiniband", "rxe0", false, false), Some(Hint::Network));
        assert_eq!(hint("block", "sda", false, false), None);
        assert_eq!(hint("block", "nvme0n1p1", true, true), None);

        let volume = crate::linux::md::tests::volume();
        crate::linux::md::tests::array(&root, "md1004");
        volumes.note(volume);
        assert_eq!(hint("block", "md1004", false, true), Some(Hint::Array(volume)));
        let ours = format!("{NQN_BASE}:{volume}:r1:e1g0");
        for dir in ["class/nvme/nvme3", "block/nvme3n1/device"] {
            crate::linux::md::tests::put(&root, &format!("{dir}/subsysnqn"), &ours);
        }
        assert_eq!(hint("nvme", "nvme3", false, true), Some(Hint::Connection(volume)));
        assert_eq!(hint("block", "nvme3n1", false, true), Some(Hint::Connection(volume)));
        crate::linux::md::tests::put(&root, "class/nvme/nvme0/subsysnqn", "nqn.2019-08.org.qemu:x");
        assert_eq!(hint("nvme", "nvme0", false, true), None, "a drive's own namespaces have events of their own");
    }
}
