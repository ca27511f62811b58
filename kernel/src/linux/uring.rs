//! Reads of drives, fabric devices and sysfs attributes that can hang without hurting anybody.
//!
//! ```text
//!  any runtime ── Ring::read ──▶ mailbox ──▶ Reader (actor, thread "uring") ──▶ detached open + read + close
//!       ▲                                                                          │
//!       └──────────────── oneshot; the deadline drops this alone ──────────────────┘
//! ```
//!
//! Called by the drive, partition, probe and connection code. It never writes and never decides.
//!
//! * A read of a stuck fabric device through io_uring leaves the thread in epoll and the process killable; a plain
//!   `pread` leaves an unkillable thread.
//! * **No operation is ever cancelled.** A cancelled open of tokio-uring 0.5 leaks its descriptor. Each operation runs
//!   detached to its end; a deadline drops the reply, not the operation. At most [`IN_FLIGHT_PER_PATH`] operations are
//!   with the kernel for one path, so a device that hangs for a day costs no more than that.
//! * Two threads, `uring` for devices and `uring-attrs` for sysfs: attributes are always read by the ring's own worker
//!   threads, whose number is small (io-wq: four for each CPU) and which stuck device reads may occupy.
//! * Where the kernel forbids io_uring (`kernel.io_uring_disabled`, seccomp), the same actor reads on a pool of plain
//!   threads instead, and asks a fabric device's controllers first: one that is not `live` is not read at all.

use crate::error::{KernelError, Result};
use crate::linux::root::Root;
use actix::{Actor, Addr, Context, Handler, Message, Supervised, Supervisor};
use futures::future::{Either, select};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

mod fabric;
mod operation;
#[cfg(test)]
mod tests;

/// Operations of one path that may be with the kernel at once; more wait their turn, and leave when nobody waits for
/// them any more. Eight 4 MiB reads keep a drive busy and cost 32 MiB when the device hangs.
pub const IN_FLIGHT_PER_PATH: usize = 8;
/// Longest sysfs attribute or procfs file that [`Ring::read_text`] returns.
const TEXT_BYTES: usize = 64 << 10;
/// sysfs answers from memory: one that takes longer holds a lock that hangs.
const TEXT_DEADLINE: Duration = Duration::from_secs(2);
/// Wait before a reader that panicked is built anew.
const RESPAWN_AFTER: Duration = Duration::from_millis(100);
/// Readers asked, one after the other, before a read fails because they died.
const ASK_READERS: usize = 3;
/// Requests in a reader's mailbox; the largest batch is a few reads for each drive and controller of a node.
const MAILBOX: usize = 4096;

/// One read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadRequest {
    /// File or device.
    pub path: String,
    /// First byte. A multiple of the sector size when `direct`.
    pub offset: u64,
    /// Bytes. A multiple of the sector size when `direct`.
    pub len: usize,
    /// Past the page cache (`O_DIRECT`).
    pub direct: bool,
}

/// How the reads are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// io_uring.
    Uring,
    /// Plain reads on a pool of threads.
    Pool,
}

impl Engine {
    /// io_uring where the kernel allows it. tokio-uring panics where it does not, so this is asked first.
    pub fn detect() -> Engine {
        // As many entries as tokio-uring itself asks for: memory limits count them (kernels before 5.12).
        match tokio_uring::uring_builder().build(256) {
            Ok(_) => Engine::Uring,
            Err(error) => {
                tracing::warn!(%error, "io_uring is not available here, reads go to a thread pool");
                Engine::Pool
            }
        }
    }
}

/// Handle to the reading threads. Cheap to clone; usable from any thread and any tokio runtime.
#[derive(Clone)]
pub struct Ring {
    devices: Lane,
    attributes: Lane,
    engine: Engine,
    root: Root,
}

impl Ring {
    /// Starts the threads. They end, after their last operation, when the last handle is dropped.
    pub fn start() -> Ring {
        Ring::start_with(Root::host(), Engine::detect())
    }

    /// Starts the threads with a given engine and the trees that tell what kind of device a path is.
    pub fn start_with(root: Root, engine: Engine) -> Ring {
        Ring {
            devices: Lane::start("uring", &root, engine),
            attributes: Lane::start("uring-attrs", &root, engine),
            engine,
            root,
        }
    }

    /// How reads are carried out.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// Reads `len` bytes at `offset`; fewer only at the end of the file. After `timeout` the caller gets an error and
    /// the read goes on unseen.
    pub async fn read(&self, path: &str, offset: u64, len: usize, direct: bool, timeout: Duration) -> Result<Vec<u8>> {
        let request = ReadRequest { path: path.to_string(), offset, len, direct };
        let lane = if direct { &self.devices } else { &self.attributes };
        match tokio::time::timeout(timeout, lane.read(request)).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(error)) => Err(self.explain(path, error)),
            Err(_) => Err(KernelError::retry("read", path, format!("no answer within {timeout:?}"))),
        }
    }

    /// Many reads at once, each with the same deadline; results in the order of the requests.
    pub async fn read_many(&self, requests: Vec<ReadRequest>, timeout: Duration) -> Vec<Result<Vec<u8>>> {
        let reads = requests.into_iter().map(|request| async move {
            self.read(&request.path, request.offset, request.len, request.direct, timeout).await
        });
        futures::future::join_all(reads).await
    }

    /// A sysfs attribute or another small file as text, without the white space around it.
    pub async fn read_text(&self, path: impl AsRef<std::path::Path>) -> Result<String> {
        let path = path.as_ref().display().to_string();
        let bytes = self.read(&path, 0, TEXT_BYTES, false, TEXT_DEADLINE).await?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_string())
    }

    /// Size of a block device (or of a plain file) in bytes, without opening it.
    pub async fn device_bytes(&self, path: &str) -> Result<u64> {
        use std::os::unix::fs::{FileTypeExt, MetadataExt};
        // The device node's inode lies in memory (devtmpfs): this never reaches the device.
        let meta = std::fs::metadata(path).map_err(|e| KernelError::io("look at", path, &e))?;
        if !meta.file_type().is_block_device() {
            return Ok(meta.len());
        }
        let (major, minor) = (nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()));
        let size = self.root.sys.join(format!("dev/block/{major}:{minor}/size"));
        let sectors = self.read_text(&size).await?;
        // sysfs counts in 512-byte sectors whatever the device's block size (block/genhd.c: part_size_show).
        sectors.parse::<u64>().map(|n| n * 512).map_err(|e| {
            KernelError::bug("read", size.display().to_string(), format!("{sectors:?} is not a number of sectors: {e}"))
        })
    }

    fn explain(&self, path: &str, error: io::Error) -> KernelError {
        if error.kind() == io::ErrorKind::NotConnected && error.raw_os_error().is_none() {
            return KernelError::wait("read", path, error.to_string());
        }
        KernelError::io("read", path, &error)
    }
}

// ------------------------------------------------------------------------------------------- one thread

/// One reading thread's address, which changes when its actor is built anew.
#[derive(Clone)]
struct Lane {
    reader: watch::Receiver<Option<Addr<Reader>>>,
    /// Dropped with the last handle: the thread's sign to end.
    _alive: Arc<mpsc::Sender<()>>,
}

impl Lane {
    fn start(name: &str, root: &Root, engine: Engine) -> Lane {
        let (alive, gone) = mpsc::channel(1);
        let (address, reader) = watch::channel(None);
        let root = root.clone();
        // Without a thread the address stays empty and each read says that the reader is not running.
        let spawned =
            std::thread::Builder::new().name(name.to_string()).spawn(move || run(engine, root, address, gone));
        if let Err(error) = spawned {
            tracing::error!(%error, name, "the reading thread could not be started");
        }
        Lane { reader, _alive: Arc::new(alive) }
    }

    async fn read(&self, request: ReadRequest) -> io::Result<Vec<u8>> {
        let died = || io::Error::other("the reader died under this read");
        let mut reader = self.reader.clone();
        // A reader that just died may still look connected. Reading twice harms nobody, so its successor is asked.
        for _ in 0..ASK_READERS {
            let address = reader.wait_for(|address| address.as_ref().is_some_and(Addr::connected)).await;
            let address = address.map_err(|_| io::Error::other("the reading thread is not running"))?.clone();
            let (reply, answer) = oneshot::channel();
            match address.ok_or_else(died)?.send(Read { request: request.clone(), reply }).await {
                Ok(()) => return answer.await.map_err(|_| died())?,
                Err(_) => tokio::time::sleep(RESPAWN_AFTER).await,
            }
        }
        Err(died())
    }
}

/// The thread's life. Falls back to the pool when the ring cannot be built after all.
fn run(engine: Engine, root: Root, address: watch::Sender<Option<Addr<Reader>>>, gone: mpsc::Receiver<()>) {
    if engine == Engine::Uring {
        tokio_uring::start(supervise(engine, root, address, gone));
        return;
    }
    // 64 plain threads: one for each read that may hang on a node with a few dozen drives.
    match tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(64).build() {
        Ok(runtime) => {
            tokio::task::LocalSet::new().block_on(&runtime, supervise(engine, root, address, gone));
            // A plain read that hangs must not keep the thread.
            runtime.shutdown_background();
        }
        Err(error) => tracing::error!(%error, "the reading threads could not be started"),
    }
}

/// Keeps one reader alive until all handles are gone, then waits for what is in flight.
async fn supervise(
    engine: Engine,
    root: Root,
    address: watch::Sender<Option<Addr<Reader>>>,
    mut gone: mpsc::Receiver<()>,
) {
    let paths = Paths::default();
    loop {
        let (watch, died) = oneshot::channel::<()>();
        let reader = Reader { engine, root: root.clone(), paths: paths.clone(), _watch: watch };
        address.send_replace(Some(Supervisor::start(|_| reader)));
        // Neither side is an operation of the ring, so dropping the other one cancels nothing.
        match select(pin!(gone.recv()), died).await {
            Either::Left(_) => break,
            // actix restarts an actor that stops, not one that panics: its mailbox is closed for good. The dropped
            // sender says so, while unwinding too, and a fresh reader takes over.
            Either::Right(_) => tracing::error!("the reader died, a new one is started"),
        }
        tokio::time::sleep(RESPAWN_AFTER).await;
    }
    address.send_replace(None);
    while !paths.idle() {
        tokio::time::sleep(RESPAWN_AFTER).await;
    }
}

// ------------------------------------------------------------------------------------------- the actor

/// Starts operations; it holds none of them.
struct Reader {
    engine: Engine,
    root: Root,
    paths: Paths,
    _watch: oneshot::Sender<()>,
}

/// One read and where its answer goes.
#[derive(Message)]
#[rtype(result = "()")]
struct Read {
    request: ReadRequest,
    reply: oneshot::Sender<io::Result<Vec<u8>>>,
}

impl Actor for Reader {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl Supervised for Reader {}

impl Handler<Read> for Reader {
    type Result = ();

    fn handle(&mut self, read: Read, _: &mut Self::Context) {
        let (engine, root, paths) = (self.engine, self.root.clone(), self.paths.clone());
        tokio::task::spawn_local(async move {
            let Read { request, mut reply } = read;
            let Some(_turn) = paths.turn(&request.path, reply.closed()).await else { return };
            let answer = match engine {
                Engine::Uring => operation::uring(&request).await,
                Engine::Pool => operation::pool(root, request).await,
            };
            // Nobody waits any more when the deadline has passed.
            let _ = reply.send(answer);
        });
    }
}

// --------------------------------------------------------------------------------- operations in flight

/// Which paths have operations with the kernel or waiting; shared by all lives of a reader.
#[derive(Clone, Default)]
struct Paths(Rc<RefCell<BTreeMap<String, Arc<Semaphore>>>>);

/// The right to have one operation in flight on a path, given back when dropped.
struct Turn {
    paths: Paths,
    path: String,
    permit: Option<OwnedSemaphorePermit>,
}

impl Paths {
    /// Waits for a turn; `None` when `given_up` comes first. Nothing was started then, so nothing is cancelled.
    async fn turn(&self, path: &str, given_up: impl Future<Output = ()>) -> Option<Turn> {
        let semaphore = {
            let mut paths = self.0.borrow_mut();
            let fresh = || Arc::new(Semaphore::new(IN_FLIGHT_PER_PATH));
            paths.entry(path.to_string()).or_insert_with(fresh).clone()
        };
        let mut turn = Turn { paths: self.clone(), path: path.to_string(), permit: None };
        match select(pin!(semaphore.acquire_owned()), pin!(given_up)).await {
            Either::Left((permit, _)) => turn.permit = permit.ok(),
            Either::Right(_) => {}
        }
        turn.permit.is_some().then_some(turn)
    }

    /// Whether nothing is in flight and nothing waits.
    fn idle(&self) -> bool {
        self.0.borrow().is_empty()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.permit = None;
        let mut paths = self.paths.0.borrow_mut();
        // The map's own reference alone: no permit is out and nobody waits, since both hold one.
        if paths.get(&self.path).is_some_and(|semaphore| Arc::strong_count(semaphore) == 1) {
            paths.remove(&self.path);
        }
    }
}
