//! The machine's shutdown: a unit of the host's systemd that ends volumes in use before the network goes (K12).
//!
//! Installed by the node agent when it starts. Agents are ended early in a shutdown, like every pod, so the work is a script
//! that the host's own shell runs: kubelet and pods have ended by then, and the network is still there. The unit and the
//! script are for one boot (`/run`). Stopping or removing an agent never runs it, and it does nothing unless the whole
//! machine is shutting down. A host without systemd, or whose processes the agent does not see, is left alone.

use super::cmd::{Tools, args};
use super::root::Root;
use super::udev;
use crate::error::{KernelError, Result};
use std::path::Path;
use std::time::Duration;

const UNIT: &str = "meshstor-leave.service";
const UNIT_TEXT: &str = include_str!("leave/leave.service");
const SCRIPT_TEXT: &str = include_str!("leave/leave.sh");
/// systemd reads all units anew: seconds on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    /// It is there and active.
    Yes,
    /// The host is not run by systemd, or its process 1 is out of sight (no `hostPID`).
    NoSystemd,
}

/// Puts script and unit into the host's `/run` and has systemd start the unit, which does nothing until it is stopped.
/// Idempotent. Fails when a file cannot be written or systemd does not answer.
pub async fn install(root: &Root, tools: &Tools) -> Result<Installed> {
    // The host's own tree, also from inside of a container.
    let host = root.proc.join("1/root");
    let units = host.join("run/systemd/system");
    if !units.is_dir() {
        return Ok(Installed::NoSystemd);
    }
    write(&host.join("run/meshstor/leave"), SCRIPT_TEXT)?;
    write(&units.join(UNIT), UNIT_TEXT)?;
    for what in [&["daemon-reload"][..], &["start", UNIT]] {
        let inside = ["--target", "1", "--mount", "--", "systemctl"];
        tools.run("nsenter", &args(&[&inside, what].concat()), PATIENCE).await?;
    }
    Ok(Installed::Yes)
}

fn write(path: &Path, text: &str) -> Result<()> {
    udev::durably(path, text.as_bytes()).map_err(|e| KernelError::io("write", path.display().to_string(), &e))
}

#[cfg(test)]
#[path = "leave_tests.rs"]
mod tests;
