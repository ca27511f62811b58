//! udev: hints from the kernel's uevents, and the rule that keeps the host's own rules away from our members.
//!
//! Started and asked by the seam. Events come from the kernel, not from udevd, so they arrive in a container without
//! `/run/udev` too. It never waits for udev and never takes a property of its database for a fact.

use super::attr;
use super::cmd::{Tools, args};
use super::root::Root;
use crate::error::{KernelError, Result};
use crate::facts::Check;
use crate::hint::Hint;
use crate::id::{NQN_BASE, PARTITION_TYPE};
use crate::ops::Changed;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use std::path::PathBuf;
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
pub fn start(hints: broadcast::Sender<Hint>, stop: Arc<AtomicBool>) {
    let spawned = std::thread::Builder::new().name("udev".into()).spawn(move || {
        if let Err(error) = listen(&hints, &stop) {
            tracing::error!(%error, "no more uevents; changes are seen at the periodic looks only");
        }
    });
    if let Err(error) = spawned {
        tracing::error!(%error, "the udev thread could not be started");
    }
}

fn listen(hints: &broadcast::Sender<Hint>, stop: &AtomicBool) -> std::io::Result<()> {
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
            if let Some(hint) = hint_for(&subsystem, &name) {
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

/// What an event of a device may be about.
fn hint_for(subsystem: &str, name: &str) -> Option<Hint> {
    match subsystem {
        "nvme" => Some(Hint::Connections),
        "infiniband" => Some(Hint::Network),
        "block" if name.starts_with("md") => Some(Hint::Arrays),
        // A head, a local drive or a partition: names do not tell, and a hint costs only a look.
        "block" if name.starts_with("nvme") => Some(Hint::Drives),
        _ => None,
    }
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

fn rule_path(root: &Root) -> PathBuf {
    root.run.join("udev/rules.d").join(RULE)
}

/// Installs the rule for this boot. udevd notices a changed folder by itself; the reload makes it certain.
pub async fn install(root: &Root, tools: &Tools) -> Result<Changed> {
    let path = rule_path(root);
    if std::fs::read_to_string(&path).is_ok_and(|now| now == rule()) {
        return Ok(Changed::No);
    }
    let fail = |e: std::io::Error| KernelError::io("install the udev rule", attr::show(&path), &e);
    std::fs::create_dir_all(root.run.join("udev/rules.d")).map_err(fail)?;
    std::fs::write(&path, rule()).map_err(fail)?;
    if let Err(error) = tools.run("udevadm", &args(&["control", "--reload"]), RELOAD_DEADLINE).await {
        tracing::warn!(%error, "udevd was not told about the new rule");
    }
    Ok(Changed::Yes)
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
    }

    #[test]
    fn events_become_hints() {
        assert_eq!(hint_for("block", "md1000"), Some(Hint::Arrays));
        assert_eq!(hint_for("block", "nvme0n1p1"), Some(Hint::Drives));
        assert_eq!(hint_for("nvme", "nvme3"), Some(Hint::Connections));
        assert_eq!(hint_for("block", "sda"), None);
    }
}
