//! An import whose target stops answering: reads through the ring time out, all others go on, and the twin refuses.

use crate::Suite;
use crate::helpers::{Checked, must, refused, same};
use meshstor_kernel::linux::uring::{Engine, ReadRequest, Ring};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const NQN: &str = "nqn.2025-12.io.meshstor:suite-hung";
/// Far more than a device may have in flight, and than the ring has worker threads.
const READS: usize = 200;

struct Export {
    subsystem: PathBuf,
    port: PathBuf,
}

impl Export {
    fn make(device: &str) -> io::Result<Export> {
        let nvmet = Path::new("/sys/kernel/config/nvmet");
        let export = Export { subsystem: nvmet.join("subsystems").join(NQN), port: nvmet.join("ports/77") };
        std::fs::create_dir(&export.subsystem)?;
        std::fs::write(export.subsystem.join("attr_allow_any_host"), "1")?;
        let namespace = export.subsystem.join("namespaces/1");
        std::fs::create_dir(&namespace)?;
        std::fs::write(namespace.join("device_path"), device)?;
        std::fs::write(namespace.join("enable"), "1")?;
        std::fs::create_dir(&export.port)?;
        for (attr, value) in
            [("addr_trtype", "tcp"), ("addr_adrfam", "ipv4"), ("addr_traddr", "127.0.0.1"), ("addr_trsvcid", "4477")]
        {
            std::fs::write(export.port.join(attr), value)?;
        }
        export.open()?;
        Ok(export)
    }

    fn link(&self) -> PathBuf {
        self.port.join("subsystems").join(NQN)
    }

    fn open(&self) -> io::Result<()> {
        symlink(&self.subsystem, self.link())
    }

    fn close(&self) -> io::Result<()> {
        std::fs::remove_file(self.link())
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        // In the order nvmet wants; a step that fails shows in the next run.
        let _ = self.close();
        let _ = std::fs::remove_dir(&self.port);
        let _ = std::fs::write(self.subsystem.join("namespaces/1/enable"), "0");
        let _ = std::fs::remove_dir(self.subsystem.join("namespaces/1"));
        let _ = std::fs::remove_dir(&self.subsystem);
    }
}

/// The controller's directory and the namespace head's device.
fn import() -> Result<(PathBuf, String), String> {
    let connect = || -> io::Result<()> {
        let mut fabrics = OpenOptions::new().read(true).write(true).open("/dev/nvme-fabrics")?;
        let options = "transport=tcp,traddr=127.0.0.1,trsvcid=4477,ctrl_loss_tmo=-1,reconnect_delay=1,nr_io_queues=1";
        fabrics.write_all(format!("nqn={NQN},{options}").as_bytes())
    };
    connect().map_err(|e| format!("connect: {e}"))?;
    let give_up = Instant::now() + Duration::from_secs(10);
    while Instant::now() < give_up {
        for controller in std::fs::read_dir("/sys/class/nvme").map_err(|e| e.to_string())?.flatten() {
            let at = controller.path();
            let ours = std::fs::read_to_string(at.join("subsysnqn")).is_ok_and(|nqn| nqn.trim() == NQN);
            if let Some(head) = ours.then(|| head_of(&at)).flatten() {
                return Ok((at, head));
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err("no namespace came up".into())
}

/// The namespace's head hangs on the subsystem, which has its controllers as links.
fn head_of(controller: &Path) -> Option<String> {
    let name = controller.file_name()?;
    let mut subsystems = std::fs::read_dir("/sys/class/nvme-subsystem").ok()?.flatten().map(|entry| entry.path());
    let ours = subsystems.find(|at| at.join(name).exists())?;
    let nodes = std::fs::read_dir(ours).ok()?.flatten().map(|entry| Path::new("/dev").join(entry.file_name()));
    let mut heads = nodes.filter(|node| std::fs::metadata(node).is_ok_and(|meta| meta.file_type().is_block_device()));
    heads.next().map(|node| node.display().to_string())
}

fn wait_for_state(controller: &Path, wanted: &str) -> Checked {
    let give_up = Instant::now() + Duration::from_secs(30);
    loop {
        let state = std::fs::read_to_string(controller.join("state")).unwrap_or_default();
        match state.trim() {
            state if state == wanted => return Ok(()),
            state if Instant::now() > give_up => return Err(format!("{state} instead of {wanted}")),
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

impl Suite {
    pub fn hung(&mut self) -> Checked {
        must("modprobe -a nvmet-tcp nvme-tcp")?;
        let device = self.partition(1)?.path.ok_or("no node")?;
        let export = Export::make(&device).map_err(|e| e.to_string())?;
        let (controller, head) = import()?;
        let result = self.import_hangs(&export, &controller, &head);
        // The link may be back already.
        let _ = export.open();
        std::fs::write(controller.join("delete_controller"), "1").map_err(|e| e.to_string())?;
        result
    }

    fn import_hangs(&self, export: &Export, controller: &Path, head: &str) -> Checked {
        same(self.probe(head)?.record.is_some(), true)?;
        same(self.scan().iter().any(|drive| drive.path == head), false)?;
        let twin = Ring::start_with(self.root.clone(), Engine::Pool);
        export.close().map_err(|e| e.to_string())?;
        wait_for_state(controller, "connecting")?;
        let begin = Instant::now();
        let read = ReadRequest { path: head.to_string(), offset: 0, len: 4 << 20, direct: true };
        let reads = self.ring.read_many(vec![read.clone(); READS], Duration::from_secs(2));
        let attributes = async {
            let mut slowest = Duration::ZERO;
            for _ in 0..100 {
                let begin = Instant::now();
                let state = self.ring.read_text(controller.join("state")).await.map_err(|e| e.to_string())?;
                same(state.as_str(), "connecting")?;
                slowest = slowest.max(begin.elapsed());
            }
            Ok::<Duration, String>(slowest)
        };
        let (results, slowest) = self.runtime.block_on(async { futures::join!(reads, attributes) });
        same(results.iter().all(|result| result.is_err()), true)?;
        println!("       {READS} reads gave up after {:?}, slowest attribute {:?}", begin.elapsed(), slowest?);
        same(begin.elapsed() < Duration::from_secs(4), true)?;
        let begin = Instant::now();
        same(self.scan().len() >= 2, true)?;
        println!("       all drives scanned in {:?}", begin.elapsed());
        let plain = twin.read(head, 0, 4096, true, Duration::from_secs(2));
        refused(self.runtime.block_on(plain), "no path to")?;
        export.open().map_err(|e| e.to_string())?;
        wait_for_state(controller, "live")?;
        same(self.probe(head)?.record.is_some(), true)
    }
}
