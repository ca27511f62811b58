//! `meshstor dev` as a newcomer uses it: started without root, its sockets called by a CSI client, its metrics read.
//!
//! Called by `meshstor-demo dev`. It starts one process and ends it by its pid.

use crate::csi::{Access, Csi, Wanted};
use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The user `nobody` and its group (Debian's base-passwd).
const NOBODY: u32 = 65534;
/// Debug builds on a busy machine; it takes a fraction of a second on an idle one.
const START_PATIENCE: Duration = Duration::from_secs(30);
const GIB: i64 = 1 << 30;

/// A running `meshstor dev` with three nodes; ended and removed when dropped.
pub struct Dev {
    child: Child,
    dir: PathBuf,
    metrics: String,
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
        let _removed = std::fs::remove_dir_all(&self.dir);
    }
}

/// Runs the whole check; `page` gets the metrics page.
pub fn run(binary: &Path, page: Option<&Path>) -> Result<()> {
    let begin = Instant::now();
    let dev = Dev::start(binary)?;
    println!("dev: three simulated nodes up after {:.2} s, without root", begin.elapsed().as_secs_f64());
    let socket = |name: &str| Csi::at(&dev.dir.join(format!("{name}.sock"))).map(|csi| csi.mounting_below(&dev.dir));
    life_of_a_volume(&socket("controller")?, &socket("node-1")?)?;
    let text = get(&dev.metrics)?;
    for name in ["meshstor_csi_calls_total", "meshstor_ops_total", "meshstor_look_duration_seconds_bucket"] {
        ensure!(text.contains(name), "/metrics does not show {name}");
    }
    if let Some(page) = page {
        std::fs::write(page, &text).with_context(|| format!("write {}", page.display()))?;
    }
    println!("dev: passed in {:.1} s", begin.elapsed().as_secs_f64());
    Ok(())
}

impl Dev {
    /// Starts it as nobody when this program is root, with a copy of the binary that nobody can read.
    pub fn start(binary: &Path) -> Result<Dev> {
        let dir = std::env::temp_dir().join(format!("meshstor-dev-check-{}", std::process::id()));
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let program = dir.join("meshstor");
        std::fs::copy(binary, &program).with_context(|| format!("copy {}", binary.display()))?;
        if nix::unistd::geteuid().is_root() {
            chown(&dir, Some(NOBODY), Some(NOBODY)).context("give the directory to nobody")?;
        }
        let mut command = as_nobody(&program);
        command.args(["dev", "--nodes", "3", "--directory"]).arg(&dir);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("start meshstor dev")?;
        let stdout = child.stdout.take().context("a piped child has a stdout")?;
        let mut dev = Dev { child, dir, metrics: String::new() };
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        loop {
            let line = told.recv_timeout(START_PATIENCE).context("meshstor dev did not say that it is up")?;
            if let Some(address) = line.strip_prefix("metrics") {
                dev.metrics = address.trim().to_string();
            }
            if line.starts_with("dev: ") {
                return Ok(dev);
            }
        }
    }

    /// Its directory, with the sockets.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A program run by the same user.
    pub fn command(&self, program: &Path) -> Command {
        as_nobody(program)
    }
}

/// A program run as nobody when this one is root.
fn as_nobody(program: &Path) -> Command {
    let mut command = Command::new(program);
    if nix::unistd::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn life_of_a_volume(controller: &Csi, node: &Csi) -> Result<()> {
    let wanted = Wanted {
        access: Access::Xfs,
        name: "dev-check",
        bytes: GIB,
        parameters: &[("replicaCount", "2")],
        nodes: &["node-1"],
    };
    let (volume, created) = controller.create(&wanted)?;
    let id = &volume.volume_id;
    let context = controller.publish(id, "node-1").0.context("ControllerPublishVolume")?;
    let (staged, took) = node.stage(id, &context);
    staged.context("NodeStageVolume, first call")?;
    node.node_publish(id, &context).0.context("NodePublishVolume")?;
    let Err(refused) = controller.publish(id, "node-2").0 else { bail!("published to two nodes") };
    ensure!(refused.code() == tonic::Code::FailedPrecondition, "{refused}");
    node.node_unpublish(id).0.context("NodeUnpublishVolume")?;
    node.unstage(id).0.context("NodeUnstageVolume")?;
    controller.unpublish(id, "node-1").0.context("ControllerUnpublishVolume")?;
    controller.delete(id).0.context("DeleteVolume")?;
    let seconds = |d: Duration| d.as_secs_f64();
    println!("dev: a volume created in {:.2} s, staged in {:.2} s, deleted", seconds(created), seconds(took));
    Ok(())
}

/// GET by hand: one page over loopback needs no HTTP client.
fn get(url: &str) -> Result<String> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url:?} is no http address"))?;
    let (address, path) = rest.split_once('/').with_context(|| format!("{url:?} has no path"))?;
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer with a head")?;
    ensure!(head.contains(" 200 "), "GET {url}: {}", head.lines().next().unwrap_or_default());
    Ok(body.to_string())
}
