//! One guest: starting it, commands in it, files to it, sockets into it.
//!
//! Called by tests through `Lab::guest`. A `Guest` is a cheap handle; what is true of the machine is in its state file,
//! so handles may be cloned into threads and used by several programs at once. Harm is done in `faults`.

use crate::exec::{Output, capture, capture_with_input, tail, wait_for};
use crate::image::Image;
use crate::monitor::Monitor;
use crate::paths::{Paths, make_dir};
use crate::ports::free_port;
use crate::process::Recorded;
use crate::qemu::{Machine, Node, SECTOR_SIZES, Start, blockdev, nvme_device};
use crate::ssh::{Route, quote, text};
use crate::state::{Forward, LabState, NodeFile, NodeState};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A boot takes about 15 s on an idle machine; tests share theirs with compilers.
const BOOT_PATIENCE: Duration = Duration::from_secs(240);
/// For commands without a deadline of their own: a guest that hangs must not hang its test for ever.
const COMMAND_PATIENCE: Duration = Duration::from_secs(600);

/// A machine of the lab.
#[derive(Clone, Debug)]
pub struct Guest {
    pub(crate) node: Node,
    pub(crate) dir: PathBuf,
    pub(crate) file: NodeFile,
    paths: Paths,
    image: Image,
    spec: LabState,
}

impl Guest {
    pub(crate) fn new(paths: &Paths, spec: &LabState, index: u8) -> Guest {
        let node = Node { index };
        let dir = paths.node(&node.name());
        Guest {
            file: NodeFile::in_dir(&dir),
            image: Image::cached(paths, &spec.image),
            paths: paths.clone(),
            spec: spec.clone(),
            node,
            dir,
        }
    }

    /// Its host name, such as `node-a`.
    pub fn name(&self) -> String {
        self.node.name()
    }

    /// Its address on the storage network, such as `10.77.0.11`.
    pub fn address(&self) -> String {
        self.node.address()
    }

    /// The serial numbers of its drives, by slot: 4096-byte sectors in slot 0, 512-byte sectors in slot 1.
    pub fn drive_serials(&self) -> Vec<String> {
        (0..SECTOR_SIZES.len()).map(|drive| self.node.serial(drive)).collect()
    }

    /// The device path of the drive in a slot. Never count on `nvme0n1`: which drive gets it differs from boot to boot.
    pub fn drive_path(&self, slot: usize) -> String {
        format!("/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_{}", self.node.serial(slot))
    }

    /// Whether its machine runs (it may still be booting, or frozen).
    pub fn is_on(&self) -> Result<bool> {
        Ok(self.file.read()?.qemu.is_some_and(|qemu| qemu.alive()))
    }

    /// Runs a shell command in the guest, whatever its exit status. Ends with an error after ten minutes.
    pub fn ssh(&self, command: &str) -> Result<Output> {
        self.ssh_within(command, COMMAND_PATIENCE)
    }

    /// Like [`Guest::ssh`] with a deadline; for guests that may hang.
    pub fn ssh_within(&self, command: &str, limit: Duration) -> Result<Output> {
        let route = self.connected()?;
        let out = capture(&mut route.command(command), Some(limit)).with_context(|| self.name())?;
        self.check_connection(&route, out, command)
    }

    /// Runs a shell command that must succeed, returns its standard output without the last newline.
    pub fn ssh_checked(&self, command: &str) -> Result<String> {
        let out = self.ssh(command)?;
        if !out.ok() {
            let said = tail(if out.stderr.trim().is_empty() { &out.stdout } else { &out.stderr }, 20);
            bail!("{}: `{command}` ended with {}: {said}", self.name(), out.status);
        }
        Ok(out.stdout.trim_end().to_string())
    }

    /// Runs a shell command with `input` on its standard input.
    pub fn ssh_with_input(&self, command: &str, input: &[u8]) -> Result<Output> {
        let route = self.connected()?;
        let limit = Some(COMMAND_PATIENCE);
        let out = capture_with_input(&mut route.command(command), Some(input.to_vec()), limit)?;
        self.check_connection(&route, out, command)
    }

    /// A prepared command, for callers that want it running beside them (spawn it, read its pipes).
    pub fn ssh_command(&self, command: &str) -> Result<Command> {
        Ok(self.connected()?.command(command))
    }

    /// A prepared command with a terminal; without `command` a shell.
    pub fn ssh_interactive(&self, command: Option<&str>) -> Result<Command> {
        Ok(self.connected()?.interactive(command))
    }

    /// Copies a file into the guest, with its permission bits; a reader there sees the old file or the new one.
    pub fn put(&self, local: &Path, remote: &str) -> Result<()> {
        let content = std::fs::read(local).with_context(|| format!("read {}", local.display()))?;
        let mode = std::fs::metadata(local).with_context(|| format!("stat {}", local.display()))?.permissions().mode();
        self.put_bytes(&content, remote, mode & 0o777)
    }

    /// Writes a file in the guest.
    pub fn put_bytes(&self, content: &[u8], remote: &str, mode: u32) -> Result<()> {
        let (file, part) = (quote(remote), quote(&format!("{remote}.part")));
        let line =
            format!("mkdir -p \"$(dirname {file})\" && cat > {part} && chmod {mode:o} {part} && mv -f {part} {file}");
        let out = self.ssh_with_input(&line, content)?;
        if !out.ok() {
            bail!("{}: write {remote}: {}", self.name(), out.stderr.trim());
        }
        Ok(())
    }

    /// Makes a unix socket of the guest reachable on the host, also after the guest was off and on again.
    pub fn forward_unix(&self, local: &Path, remote: &str) -> Result<()> {
        if let Some(dir) = local.parent() {
            make_dir(dir)?;
        }
        self.add_forward(Forward { local: text(local)?.to_string(), remote: remote.to_string() })
    }

    /// Makes a TCP port of the guest's loopback reachable on the host's, returns the host's port.
    pub fn forward_tcp(&self, guest_port: u16) -> Result<u16> {
        let port = free_port()?;
        let forward = Forward { local: format!("127.0.0.1:{port}"), remote: format!("127.0.0.1:{guest_port}") };
        self.add_forward(forward).map(|()| port)
    }

    /// Takes back a forward of [`Guest::forward_unix`].
    pub fn unforward_unix(&self, local: &Path) -> Result<()> {
        let local = text(local)?;
        self.file.locked(|state| {
            let Some(at) = state.forwards.iter().position(|known| known.local == local) else { return Ok(()) };
            let forward = state.forwards.remove(at);
            let route = self.route(state);
            if route.connected(state.ssh.as_ref()) {
                route.forward(&forward, false)?;
            }
            // ssh leaves the socket's name behind; who finds it would wait for an answer.
            let _ = std::fs::remove_file(local);
            Ok(())
        })
    }

    /// The kernel's identity of this boot.
    pub fn boot_id(&self) -> Result<String> {
        self.ssh_checked("cat /proc/sys/kernel/random/boot_id")
    }

    /// The last lines that the kernel wrote to its console.
    pub fn console_tail(&self, lines: usize) -> Result<String> {
        let file = self.dir.join("console.log");
        let bytes = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        Ok(tail(&String::from_utf8_lossy(&bytes), lines))
    }

    /// Sets the guest's clock to the host's.
    pub fn set_clock(&self) -> Result<()> {
        self.ssh_checked(&format!("date -u -s @{:.3} >/dev/null", host_seconds()?)).map(drop)
    }

    fn add_forward(&self, forward: Forward) -> Result<()> {
        self.connected()?;
        self.file.locked(|state| {
            if !state.forwards.contains(&forward) {
                self.route(state).forward(&forward, true)?;
                state.forwards.push(forward);
            }
            Ok(())
        })
    }

    /// The way in, with a live connection behind it.
    fn connected(&self) -> Result<Route> {
        let state = self.file.read()?;
        let route = self.route(&state);
        if route.connected(state.ssh.as_ref()) {
            return Ok(route);
        }
        self.file.locked(|state| self.reconnect(state, Duration::from_secs(60)))?;
        Ok(route)
    }

    /// Opens the lasting connection if there is none, and puts the forwards back.
    fn reconnect(&self, state: &mut NodeState, limit: Duration) -> Result<()> {
        let route = self.route(state);
        if route.connected(state.ssh.as_ref()) {
            return Ok(());
        }
        if !state.qemu.is_some_and(|qemu| qemu.alive()) {
            bail!("{} is off", self.name());
        }
        state.ssh = Some(route.connect(limit).with_context(|| self.name())?);
        for forward in &state.forwards {
            route.forward(forward, true)?;
        }
        Ok(())
    }

    fn check_connection(&self, route: &Route, out: Output, command: &str) -> Result<Output> {
        // ssh itself ends with 255, but so may the command: only a dead connection makes it an error.
        if out.status == 255 && !route.connected(self.file.read()?.ssh.as_ref()) {
            bail!("{}: connection lost while running `{command}`", self.name());
        }
        Ok(out)
    }

    fn route(&self, state: &NodeState) -> Route {
        Route { dir: self.dir.clone(), key: self.image.ssh_key(), port: state.ssh_port }
    }

    pub(crate) fn monitor(&self, qemu: Recorded) -> Result<Monitor> {
        Monitor::open(&self.dir.join("monitor.sock"), || qemu.alive())
            .with_context(|| format!("monitor of {}", self.name()))
    }

    /// Starts the machine from its saved state and gives it the identity of a boot of its own.
    pub(crate) fn load(&self) -> Result<()> {
        self.file.locked(|state| {
            state.ssh_port = free_port()?;
            let qemu = self.start(state, &Start::Load)?;
            let mut monitor = self.monitor(qemu)?;
            for drive in self.present_drives(state) {
                monitor.execute("blockdev-add", blockdev(&self.dir, drive))?;
                monitor.execute("device_add", nvme_device(&self.node, drive))?;
            }
            drop(monitor);
            self.reconnect(state, Duration::from_secs(120))
        })?;
        self.settle(true)
    }

    /// Starts the machine by a real boot and waits until it answers.
    pub(crate) fn boot(&self) -> Result<()> {
        self.file.locked(|state| {
            if state.qemu.is_some_and(|qemu| qemu.alive()) {
                return Ok(());
            }
            if state.ssh_port == 0 {
                state.ssh_port = free_port()?;
            }
            let console = self.dir.join("console.log");
            let before = file_length(&console);
            let qemu = self.start(state, &Start::Boot(self.present_drives(state)))?;
            if !state.cut.is_empty() {
                let mut monitor = self.monitor(qemu)?;
                for network in &state.cut {
                    monitor.execute("set_link", json!({"name": network, "up": false}))?;
                }
            }
            wait_until_ready(&console, before, qemu, BOOT_PATIENCE)
                .with_context(|| format!("boot of {}; console:\n{}", self.name(), self.console_end()))?;
            self.reconnect(state, Duration::from_secs(60))
        })?;
        self.settle(false)
    }

    fn present_drives(&self, state: &NodeState) -> Vec<usize> {
        (0..SECTOR_SIZES.len()).filter(|drive| !state.pulled.contains(drive)).collect()
    }

    fn start(&self, state: &mut NodeState, start: &Start) -> Result<Recorded> {
        let machine = Machine {
            node: &self.node,
            image: &self.image,
            memory_mib: self.spec.memory_mib,
            root_disk: &self.dir.join("root.qcow2"),
            dir: &self.dir,
            ssh_port: state.ssh_port,
            share: &self.spec.share,
            tools: &self.paths.bin(),
        };
        crate::qemu::make_room_for_frames();
        let mut command = Command::new("qemu-system-x86_64");
        command.args(machine.arguments(start));
        let qemu = Recorded::spawn(&mut command, &self.dir.join("qemu.log"))?;
        state.qemu = Some(qemu);
        Ok(qemu)
    }

    /// What can only be done from outside once the guest runs: the host's directories, the clock, and after a load an
    /// identity of its own (the saved state would repeat its boot id and its random numbers at every start).
    fn settle(&self, loaded: bool) -> Result<()> {
        let mount = "trans=virtio,version=9p2000.L,ro,msize=512000,cache=mmap";
        let mut script = format!("set -e; date -u -s @{:.3} >/dev/null;", host_seconds()?);
        for tag in ["host", "tools"] {
            script.push_str(&format!(" mountpoint -q /{tag} || mount -t 9p -o {mount} {tag} /{tag};"));
        }
        if loaded {
            let boot_id = read_trimmed("/proc/sys/kernel/random/uuid")?;
            // 0x5207 is RNDRESEEDCRNG: use what was just written now, not in a minute.
            script.push_str(&format!(
                " cat >/dev/urandom; perl -e 'open(F,\">/dev/urandom\") and ioctl(F,0x5207,0) or die';\
                 echo {boot_id} >/run/boot_id; mount --bind /run/boot_id /proc/sys/kernel/random/boot_id;"
            ));
        }
        let mut seed = [0u8; 64];
        let mut source = std::fs::File::open("/dev/urandom").context("open /dev/urandom")?;
        std::io::Read::read_exact(&mut source, &mut seed).context("read random bytes")?;
        let out = self.ssh_with_input(&script, &seed)?;
        if !out.ok() {
            bail!("{}: settle in: {}", self.name(), out.stderr.trim());
        }
        Ok(())
    }

    fn console_end(&self) -> String {
        self.console_tail(15).unwrap_or_default()
    }
}

/// Waits for the guest's own word, at the end of its init script, in the part of its console after `before`.
pub(crate) fn wait_until_ready(console: &Path, before: u64, qemu: Recorded, limit: Duration) -> Result<()> {
    wait_for("ready line on the console", limit, || {
        if !qemu.alive() {
            bail!("QEMU ended");
        }
        let bytes = std::fs::read(console).unwrap_or_default();
        let new = bytes.get(usize::try_from(before).unwrap_or(usize::MAX)..).unwrap_or_default();
        Ok(String::from_utf8_lossy(new).contains("meshstor-lab: node-").then_some(()))
    })
}

pub(crate) fn file_length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |meta| meta.len())
}

fn host_seconds() -> Result<f64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Ok(now.context("the host's clock is before 1970")?.as_secs_f64())
}

fn read_trimmed(path: &str) -> Result<String> {
    Ok(std::fs::read_to_string(path).with_context(|| format!("read {path}"))?.trim().to_string())
}
