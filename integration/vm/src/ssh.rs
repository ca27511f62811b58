//! One lasting ssh connection to a guest, and commands, files and forwards through it.
//!
//! Used by `guest` and `snapshot`. Setting up a connection costs about a second under emulation, a command through an
//! existing one a few hundredths; so one master per guest outlives the program that started it. Never asks a person for
//! anything and never reads the user's own ssh configuration.

use crate::exec::{Output, capture, wait_for};
use crate::process::Recorded;
use crate::state::Forward;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Where and how to reach a guest.
pub(crate) struct Route {
    /// Holds the control socket and the log.
    pub(crate) dir: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) port: u16,
}

impl Route {
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("ssh.sock")
    }

    /// Whether commands can go through the connection.
    pub(crate) fn connected(&self, master: Option<&Recorded>) -> bool {
        master.is_some_and(Recorded::alive) && self.socket().exists()
    }

    /// Opens the lasting connection; tries again until `limit`, because a guest that boots refuses at first.
    pub(crate) fn connect(&self, limit: Duration) -> Result<Recorded> {
        let mut attempt: Option<Recorded> = None;
        wait_for(&format!("ssh to 127.0.0.1:{}", self.port), limit, || {
            match attempt {
                Some(master) if self.connected(Some(&master)) => return Ok(Some(master)),
                Some(master) if master.alive() => return Ok(None),
                _ => {}
            }
            // A socket left behind by a killed master would be taken for a connection.
            let _ = std::fs::remove_file(self.socket());
            let mut command = Command::new("ssh");
            self.options(&mut command)
                .args(["-M", "-N", "-T", "-o", "ConnectTimeout=10", "-o", "StreamLocalBindUnlink=yes"])
                .args(["-i"])
                .arg(&self.key)
                .args(["-p", &self.port.to_string(), "root@127.0.0.1"]);
            attempt = Some(Recorded::spawn(&mut command, &self.dir.join("ssh.log"))?);
            Ok(None)
        })
        .inspect_err(|_| {
            if let Some(master) = attempt {
                // The failure to connect is the error to report; the attempt's process is ours to end.
                let _ = master.kill();
            }
        })
    }

    /// A command that runs `line` in the guest's shell.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new("ssh");
        // Without the master this must fail, not connect by itself: ProxyCommand=false sees to that.
        self.options(&mut command).args([
            "-T",
            "-o",
            "ControlMaster=no",
            "-o",
            "ProxyCommand=false",
            "root@127.0.0.1",
            "--",
            line,
        ]);
        command
    }

    /// The same with a terminal, for a person.
    pub(crate) fn interactive(&self, line: Option<&str>) -> Command {
        let mut command = Command::new("ssh");
        self.options(&mut command).args(["-t", "-o", "ControlMaster=no", "-o", "ProxyCommand=false", "root@127.0.0.1"]);
        if let Some(line) = line {
            command.args(["--", line]);
        }
        command
    }

    /// Adds a forward to the running connection, or takes it away.
    pub(crate) fn forward(&self, forward: &Forward, add: bool) -> Result<Output> {
        let mut command = Command::new("ssh");
        let verb = if add { "forward" } else { "cancel" };
        self.options(&mut command).args(["-O", verb, "-L", &forward.argument(), "root@127.0.0.1"]);
        let out = capture(&mut command, Some(Duration::from_secs(20)))?;
        // ssh has been seen to say why on standard error and still end with 0.
        if add && (!out.ok() || out.stderr.contains("failed")) {
            bail!("forward {} into the guest: {}", forward.argument(), out.stderr.trim());
        }
        Ok(out)
    }

    fn options<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.args(["-F", "/dev/null", "-S"]).arg(self.socket()).args([
            "-o",
            "BatchMode=yes",
            "-o",
            "IdentitiesOnly=yes",
            // Each image has its own host key, and the connection never leaves loopback.
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
            // The cheapest that both sides have; post-quantum exchanges cost a second under emulation.
            "-o",
            "KexAlgorithms=curve25519-sha256",
            "-o",
            "Ciphers=aes128-gcm@openssh.com",
        ])
    }
}

/// A word for the guest's shell, quoted so that it stays one word.
pub(crate) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_string()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// The path as text; ssh takes nothing else.
pub(crate) fn text(path: &Path) -> Result<&str> {
    match path.to_str() {
        Some(text) => Ok(text),
        None => bail!("{} is not valid UTF-8", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_survives_a_real_shell() {
        for word in ["plain", "two words", "it's", "$HOME `id` \"x\"", "", "a\nb"] {
            let out = Command::new("sh").args(["-c", &format!("printf %s {}", quote(word))]).output().unwrap();
            assert_eq!(String::from_utf8(out.stdout).unwrap(), word);
        }
    }

    #[test]
    fn commands_never_connect_by_themselves() {
        let route = Route { dir: "/run/x".into(), key: "/k".into(), port: 1 };
        let line = crate::exec::describe(&route.command("id"));
        assert!(line.contains("ProxyCommand=false") && line.ends_with("-- id"), "{line}");
    }
}
