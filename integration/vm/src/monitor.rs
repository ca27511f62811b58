//! QEMU's control socket: JSON commands in, answers and events out.
//!
//! Used by `snapshot`, `guest` and `faults`. One connection for one purpose: QEMU serves one client at a time, so a
//! connection is never kept.

use crate::exec::wait_for;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Saving and loading a machine's memory is the longest command.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Monitor {
    stream: BufReader<UnixStream>,
    events: Vec<Value>,
}

impl Monitor {
    /// Connects, waiting for a QEMU that has only just been started; `alive` says whether waiting makes sense.
    pub(crate) fn open(socket: &Path, alive: impl Fn() -> bool) -> Result<Monitor> {
        let stream = wait_for(&format!("QEMU's monitor {}", socket.display()), Duration::from_secs(30), || {
            if !alive() {
                bail!("QEMU is not running (its own words are in qemu.log beside {})", socket.display());
            }
            Ok(UnixStream::connect(socket).ok())
        })?;
        stream.set_read_timeout(Some(PATIENCE)).context("set the monitor's read timeout")?;
        let mut monitor = Monitor { stream: BufReader::new(stream), events: Vec::new() };
        monitor.read().context("read the monitor's greeting")?;
        monitor.execute("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Runs one command and returns its answer.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({"execute": command, "arguments": arguments}).to_string();
        let stream = self.stream.get_mut();
        stream.write_all(line.as_bytes()).with_context(|| format!("send {command} to QEMU"))?;
        loop {
            let mut message = self.read().with_context(|| format!("QEMU's answer to {command}"))?;
            if let Some(error) = message.get("error") {
                bail!("QEMU refused {line}: {}", error["desc"].as_str().unwrap_or("no reason given"));
            }
            if message.get("return").is_some() {
                return Ok(message["return"].take());
            }
            self.events.push(message);
        }
    }

    /// Runs a command of the human monitor, the only place where some exist. It answers only when something is wrong.
    pub(crate) fn human(&mut self, line: &str) -> Result<()> {
        let answer = self.execute("human-monitor-command", json!({"command-line": line}))?;
        match answer.as_str().map(str::trim) {
            None | Some("") => Ok(()),
            Some(complaint) => bail!("QEMU's monitor, {line:?}: {complaint}"),
        }
    }

    /// Waits for an event, such as a device that is finally gone.
    pub(crate) fn wait_event(&mut self, name: &str, device: &str, limit: Duration) -> Result<()> {
        let wanted = |event: &Value| event["event"] == name && event["data"]["device"] == device;
        let end = Instant::now() + limit;
        loop {
            if self.events.drain(..).any(|event| wanted(&event)) {
                return Ok(());
            }
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.stream.get_ref().set_read_timeout(Some(left)).context("set the monitor's read timeout")?;
            let message = self.read().with_context(|| format!("no {name} of {device} within {limit:?}"))?;
            self.events.push(message);
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).context("read from QEMU's monitor")? == 0 {
            bail!("QEMU closed its monitor");
        }
        serde_json::from_str(&line).with_context(|| format!("understand {line:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn answers_are_told_from_events() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("m");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            stream.write_all(b"{\"QMP\":{}}\n").unwrap();
            let mut line = vec![0u8; 4096];
            let mut answer = |text: &str| {
                let _ = std::io::Read::read(&mut lines, &mut line).unwrap();
                stream.write_all(text.as_bytes()).unwrap();
            };
            answer("{\"return\":{}}\n");
            answer("{\"event\":\"DEVICE_DELETED\",\"data\":{\"device\":\"nvme0\"}}\n{\"return\":5}\n");
            answer("{\"error\":{\"desc\":\"no such thing\"}}\n");
            answer("{\"return\":\"Error: snapshots unsupported\\r\\n\"}\n");
        });
        let mut monitor = Monitor::open(&socket, || true).unwrap();
        assert_eq!(monitor.execute("device_del", json!({})).unwrap(), 5);
        monitor.wait_event("DEVICE_DELETED", "nvme0", Duration::from_secs(1)).unwrap();
        assert!(monitor.execute("x", json!({})).unwrap_err().to_string().contains("no such thing"));
        assert!(monitor.human("savevm x").unwrap_err().to_string().contains("unsupported"));
        server.join().unwrap();
    }
}
