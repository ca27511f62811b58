//! Processes that outlive the program that started them, remembered by pid and start time.
//!
//! Used for QEMU, ssh masters, etcd and the API server. Never signals a pid that now belongs to another process: the
//! kernel's start time of the process is recorded with the pid and compared before each signal.

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A process that this library started, in this run or in an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recorded {
    pid: i32,
    /// Field 22 of `/proc/PID/stat`, in clock ticks since boot: pids come back, the pair does not.
    started: u64,
}

impl Recorded {
    /// Starts a process of its own process group, its output appended to `log`.
    pub(crate) fn spawn(command: &mut Command, log: &Path) -> Result<Recorded> {
        let name = crate::exec::describe(command);
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open log {}", log.display()))?;
        let both = file.try_clone().context("duplicate the log file's descriptor")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(both)
            // Its own group: an interrupt at the terminal ends the caller, not the lab.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start `{name}`"))?;
        let pid = i32::try_from(child.id()).context("pid out of range")?;
        let Some(stat) = Stat::read(pid) else { bail!("`{name}` ended at once, see {}", log.display()) };
        Ok(Recorded { pid, started: stat.started })
    }

    /// The process id.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether the very process still runs. Reaps it if it has ended and is our child.
    pub(crate) fn alive(&self) -> bool {
        match Stat::read(self.pid) {
            Some(stat) if stat.started != self.started => false,
            Some(stat) if stat.state == 'Z' => {
                // Fails when another process started it: that one, or init, reaps it.
                let _ = waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG));
                false
            }
            found => found.is_some(),
        }
    }

    /// Ends the process at once, as a power cut does, and waits until it is gone.
    pub(crate) fn kill(&self) -> Result<()> {
        self.signal_and_wait(Signal::SIGKILL, Duration::from_secs(20))
    }

    /// Asks the process to end, insists after ten seconds.
    pub(crate) fn terminate(&self) -> Result<()> {
        self.signal_and_wait(Signal::SIGTERM, Duration::from_secs(10)).or_else(|_| self.kill())
    }

    fn signal_and_wait(&self, signal: Signal, limit: Duration) -> Result<()> {
        if !self.alive() {
            return Ok(());
        }
        kill(Pid::from_raw(self.pid), signal).with_context(|| format!("signal {signal} to pid {}", self.pid))?;
        crate::exec::wait_for(&format!("end of pid {}", self.pid), limit, || Ok((!self.alive()).then_some(())))
    }
}

struct Stat {
    state: char,
    started: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Stat> {
        Stat::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Stat> {
        // The second field is a name in parentheses that may itself hold spaces and parentheses.
        let mut rest = text.get(text.rfind(')')? + 1..)?.split_whitespace();
        let state = rest.next()?.chars().next()?;
        let started = rest.nth(18)?.parse().ok()?;
        Some(Stat { state, started })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_a_nasty_name() {
        let stat = Stat::parse("12 (a) b (c)) S 1 12 12 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2 3").unwrap();
        assert_eq!((stat.state, stat.started), ('S', 98765));
    }

    #[test]
    fn ends_its_own_process_and_only_that() {
        let dir = tempfile::tempdir().unwrap();
        let sleeper = Recorded::spawn(Command::new("sleep").arg("60"), &dir.path().join("log")).unwrap();
        assert!(sleeper.alive());
        let stranger = Recorded { started: sleeper.started + 1, ..sleeper };
        assert!(!stranger.alive());
        stranger.kill().unwrap();
        assert!(sleeper.alive(), "a pid with another start time must not be signalled");
        sleeper.kill().unwrap();
        assert!(!sleeper.alive());
    }
}
