//! Harm to a guest: power, cables, drives, time.
//!
//! Called by tests. Each fault is what the hardware would do, done from outside: the guest is never asked to cooperate.
//! What these faults do not show: a drive's volatile write cache survives a power cut here (the host's page cache stands
//! in for it), and a pulled drive leaves through the slot's hot-plug controller, so the guest's driver gets to know.

use crate::guest::Guest;
use crate::monitor::Monitor;
use crate::qemu::{API, SECTOR_SIZES, STORAGE, blockdev, nvme_device};
use crate::state::NodeState;
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::time::Duration;

impl Guest {
    /// Cuts the power: the machine is gone between two instructions. Drives keep what they were given.
    pub fn power_cut(&self) -> Result<()> {
        self.file.locked(|state| {
            if let Some(qemu) = state.qemu.take() {
                qemu.kill().with_context(|| format!("power cut of {}", self.name()))?;
            }
            if let Some(ssh) = state.ssh.take() {
                ssh.kill()?;
            }
            Ok(())
        })
    }

    /// Turns the power on: a real boot, with a new boot id. Returns when commands can run. Forwards come back; pulled
    /// drives and cut cables stay as they were.
    pub fn power_on(&self) -> Result<()> {
        self.boot()
    }

    /// From its next boot on the machine is run by systemd, as most are, instead of the lab's own small init.
    pub fn use_systemd(&self) -> Result<()> {
        self.ssh_checked("mkdir -p /etc/lab && touch /etc/lab/systemd && sync").map(drop)
    }

    /// Plugs in (`true`) or pulls out the cable of the storage network.
    pub fn cable(&self, plugged: bool) -> Result<()> {
        self.set_link(STORAGE, plugged)
    }

    /// Plugs in or pulls out the cable to the API server; commands of the lab still reach the guest.
    pub fn api_cable(&self, plugged: bool) -> Result<()> {
        self.set_link(API, plugged)
    }

    /// Pulls the drive out of slot `drive`; returns when the guest has let go of it.
    pub fn drive_pull(&self, drive: usize) -> Result<()> {
        check_slot(drive)?;
        self.with_monitor(|state, monitor| {
            if state.pulled.contains(&drive) {
                bail!("slot {drive} is empty already");
            }
            let device = format!("nvme{drive}");
            monitor.execute("device_del", json!({"id": device}))?;
            monitor.wait_event("DEVICE_DELETED", &device, Duration::from_secs(60))?;
            monitor.execute("blockdev-del", json!({"node-name": format!("disk{drive}")}))?;
            state.pulled.push(drive);
            Ok(())
        })
    }

    /// Puts the drive back into its slot, with its data.
    pub fn drive_insert(&self, drive: usize) -> Result<()> {
        check_slot(drive)?;
        self.with_monitor(|state, monitor| {
            if !state.pulled.contains(&drive) {
                bail!("slot {drive} is not empty");
            }
            monitor.execute("blockdev-add", blockdev(&self.dir, drive))?;
            monitor.execute("device_add", nvme_device(&self.node, drive))?;
            state.pulled.retain(|pulled| *pulled != drive);
            Ok(())
        })
    }

    /// Lets the drive in slot `drive` write so many bytes a second, `None`: as fast as it can. What it has been given waits
    /// inside of it, in order; reads are not held up.
    pub fn drive_throttle(&self, drive: usize, write_bytes: Option<u64>) -> Result<()> {
        check_slot(drive)?;
        self.with_monitor(|_, monitor| {
            let limits = json!({
                "id": format!("nvme{drive}"), "bps": 0, "bps_rd": 0, "bps_wr": write_bytes.unwrap_or(0),
                "iops": 0, "iops_rd": 0, "iops_wr": 0,
            });
            monitor.execute("block_set_io_throttle", limits).map(drop)
        })
    }

    /// Stops the processor: a hung machine. Its network neither answers nor refuses.
    pub fn freeze(&self) -> Result<()> {
        self.with_monitor(|_, monitor| monitor.execute("stop", json!({})).map(drop))
    }

    /// Lets the processor go on. The guest's clock is behind by the time it was frozen; see [`Guest::set_clock`].
    pub fn thaw(&self) -> Result<()> {
        self.with_monitor(|_, monitor| monitor.execute("cont", json!({})).map(drop))
    }

    fn set_link(&self, network: &str, up: bool) -> Result<()> {
        self.with_monitor(|state, monitor| {
            monitor.execute("set_link", json!({"name": network, "up": up}))?;
            state.cut.retain(|cut| cut != network);
            if !up {
                state.cut.push(network.to_string());
            }
            Ok(())
        })
    }

    fn with_monitor<T>(&self, work: impl FnOnce(&mut NodeState, &mut Monitor) -> Result<T>) -> Result<T> {
        self.file.locked(|state| {
            let Some(qemu) = state.qemu.filter(|qemu| qemu.alive()) else { bail!("{} is off", self.name()) };
            let mut monitor = self.monitor(qemu)?;
            work(state, &mut monitor).with_context(|| self.name())
        })
    }
}

fn check_slot(drive: usize) -> Result<()> {
    if drive >= SECTOR_SIZES.len() {
        bail!("no slot {drive}: a guest has {}", SECTOR_SIZES.len());
    }
    Ok(())
}
