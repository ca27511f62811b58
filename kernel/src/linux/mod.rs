//! The real bindings: this node's own kernel behind [`crate::Kernel`].
//!
//! ```text
//!  Linux ─ observe ─▶ blocking pool (attributes) and the ring (devices) ─▶ facts
//!        ─ apply ───▶ busy.rs (one operation for each object) ─▶ apply.rs ─▶ nvmet, fabrics, md, fs, partitions
//!        ─ hints ◀── udev, netlink, md-watch, the connections' clock
//! ```
//!
//! Made by the binary, on the actors' thread. It never decides: what is refused here is what would break a promise
//! whoever asks for it.

pub mod apply;
pub mod attr;
pub mod busy;
pub mod cache;
pub mod classify;
pub mod clock;
pub mod cmd;
pub mod cut_off;
pub mod drives;
pub mod fabrics;
pub mod fs;
pub mod gpt;
pub mod growfs;
pub mod ioctl;
pub mod join;
pub mod leave;
pub mod md;
pub mod mdadm;
pub mod mdops;
pub mod mounts;
pub mod netlink;
pub mod node;
pub mod nvmet;
pub mod openers;
pub mod pace;
pub mod partition;
pub mod probe;
pub mod root;
pub mod share;
pub mod superblock;
pub mod udev;
pub mod uring;
pub mod watch;

use crate::error::{KernelError, Result};
use crate::facts::{
    ArrayFact, ConnectionFact, DriveFact, EpochRecord, ExportFact, FsFact, MemberProbe, NodeFact, PartitionFact,
};
use crate::hint::Hint;
use crate::id::{DriveId, ExportKey, NodeName, ReplicaKey, VolumeId};
use crate::ops::{Changed, Op};
use crate::seam::{Kernel, MountFact};
use root::Root;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, broadcast};
use tokio::task::JoinHandle;

/// Hints that a slow subscriber may leave unread before it is told to look at everything.
const HINTS: usize = 1024;
/// Attributes answer from memory. Configfs folders alone can be locked while a fence drains a drive.
const LOOK_DEADLINE: Duration = Duration::from_secs(10);
/// Looks on the blocking pool at once: fewer than its threads, so that looks that hang leave room for operations.
const LOOKS: usize = 64;

/// What an agent tells its kernel about itself.
#[derive(Debug, Clone)]
pub struct LinuxConfig {
    /// This node.
    pub node: NodeName,
    /// Service numbers of exports; nvmet ports in it without an owner are removed at start.
    pub ports: RangeInclusive<u16>,
    /// The kernel's trees: [`Root::host`], but in tests.
    pub root: Root,
}

/// What observations and operations share.
pub(crate) struct Shared {
    config: LinuxConfig,
    root: Root,
    ring: uring::Ring,
    tools: cmd::Tools,
    minors: md::Minors,
    clocks: clock::Clocks,
    volumes: watch::Volumes,
    busy: busy::Busy,
    told: nvmet::size::Told,
    tables: partition::SharedTables,
    /// The kernel makes one connection at a time; ours queue here, where a deadline reaches them.
    dialling: Arc<Semaphore>,
    looks: Arc<Semaphore>,
    hints: broadcast::Sender<Hint>,
}

/// This node's own kernel.
pub struct Linux {
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Linux {
    /// Prepares the node (modules, configfs, udev rule) and starts the watchers. Needs a tokio runtime with I/O and
    /// time, of one thread or many. What the node lacks is no error here: [`Kernel::node`] tells.
    pub async fn start(config: LinuxConfig) -> Result<Linux> {
        let shared = Arc::new(Shared::new(config));
        let (root, hints) = (shared.root.clone(), shared.hints.clone());
        node::prepare(&root, &shared.tools).await;
        if let Err(error) = udev::install(&root, &shared.tools).await {
            tracing::error!(%error, "the udev rule is not installed");
        }
        let ports = shared.config.ports.clone();
        let swept = shared.blocking("sweep ports", move |shared| Ok(nvmet::sweep(&shared.root, &ports))).await?;
        if !swept.is_empty() {
            tracing::warn!(?swept, "removed half-made ports");
        }
        let stop = Arc::new(AtomicBool::new(false));
        udev::start(root.clone(), shared.volumes.clone(), hints.clone(), stop.clone());
        watch::start(root.clone(), shared.volumes.clone(), hints.clone(), stop.clone());
        let clock = clock::run(root, shared.ring.clone(), shared.clocks.clone(), hints.clone());
        let tasks = vec![tokio::spawn(clock), tokio::spawn(netlink::watch(hints))];
        Ok(Linux { shared, stop, tasks })
    }

    /// Has the host's systemd end volumes in use when the machine shuts down. See [`leave`].
    pub async fn leave_at_shutdown(&self) -> Result<leave::Installed> {
        leave::install(&self.shared.root, &self.shared.tools).await
    }
}

impl Drop for Linux {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Shared {
    fn new(config: LinuxConfig) -> Shared {
        let root = config.root.clone();
        Shared {
            ring: uring::Ring::start_with(root.clone(), uring::Engine::detect()),
            tools: cmd::Tools::default(),
            minors: md::Minors::default(),
            clocks: clock::Clocks::default(),
            volumes: watch::Volumes::default(),
            busy: busy::Busy::default(),
            told: nvmet::size::Told::default(),
            tables: partition::SharedTables::default(),
            dialling: Arc::new(Semaphore::new(1)),
            looks: Arc::new(Semaphore::new(LOOKS)),
            hints: broadcast::channel(HINTS).0,
            root,
            config,
        }
    }

    /// Runs a closure on the blocking pool to its end. Whoever stops waiting does not stop it.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Shared>,
        what: &str,
        work: impl FnOnce(&Shared) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&shared)).await;
        done.unwrap_or_else(|e| Err(KernelError::bug(what, "blocking pool", format!("the work did not end: {e}"))))
    }

    /// A look at attributes: [`Shared::blocking`] with a deadline, and few enough at once.
    async fn look<T: Send + 'static>(
        self: &Arc<Shared>,
        what: &str,
        work: impl FnOnce(&Shared) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let late = |_| KernelError::retry(what, "blocking pool", format!("no answer within {LOOK_DEADLINE:?}"));
        let work = async {
            let permit = self.looks.clone().acquire_owned().await;
            self.blocking(what, move |shared| {
                // Held until the look ends, not until the wait does.
                let _permit = permit;
                work(shared)
            })
            .await
        };
        tokio::time::timeout(LOOK_DEADLINE, work).await.map_err(late)?
    }

    /// The volume of an array of ours: remembered, or read from the record on one of its members.
    async fn volume_of(self: &Arc<Shared>, array: &str) -> Option<VolumeId> {
        let known = self.volumes.of_array(&self.root, array);
        if known.is_some() {
            return known;
        }
        for component in md::members(&md::dir(&self.root, array)).into_keys() {
            let device = attr::show(&self.root.dev.join(&component));
            let probe = probe::member(&self.ring, &device, false).await;
            let record = probe.ok().and_then(|probe| probe.record);
            if let Some(volume) = record.map(|record| record.volume) {
                self.volumes.note(volume);
                return self.volumes.of_array(&self.root, array);
            }
        }
        None
    }
}

#[async_trait::async_trait(?Send)]
impl Kernel for Linux {
    async fn node(&self) -> Result<NodeFact> {
        let shared = &self.shared;
        node::observe(&shared.root, &shared.ring, &shared.tools, &shared.config.node).await
    }

    async fn drives(&self) -> Result<Vec<DriveFact>> {
        drives::scan(&self.shared.ring, &self.shared.root).await
    }

    async fn drive(&self, drive: &DriveId) -> Result<Option<DriveFact>> {
        drives::one(&self.shared.ring, &self.shared.root, drive).await
    }

    async fn partition(&self, key: ReplicaKey) -> Result<Option<PartitionFact>> {
        self.shared.volumes.note(key.volume);
        partition::observe(&self.shared.ring, &self.shared.root, &self.shared.tables, key).await
    }

    async fn replicas(&self) -> Result<BTreeMap<DriveId, Vec<(uuid::Uuid, Option<EpochRecord>)>>> {
        partition::replicas(&self.shared.ring, &self.shared.root, &self.shared.tables).await
    }

    async fn volumes(&self) -> Result<BTreeSet<VolumeId>> {
        let replicas = self.replicas().await?.into_values().flatten();
        let mut volumes: BTreeSet<VolumeId> = replicas.filter_map(|(_, record)| Some(record?.volume)).collect();
        volumes.extend(self.shared.look("observe volumes", |shared| Ok(fabrics::volumes(&shared.root))).await?);
        volumes.iter().for_each(|volume| self.shared.volumes.note(*volume));
        Ok(volumes)
    }

    async fn exports(&self, key: ReplicaKey) -> Result<ExportFact> {
        let look = move |shared: &Shared| {
            let mut fact = nvmet::observe(&shared.root, key)?;
            fact.entries.iter_mut().for_each(|(export, entry)| entry.bytes = shared.told.of(*export));
            shared.told.keep(key, |export| fact.entries.contains_key(export));
            Ok(fact)
        };
        self.shared.look("observe exports", look).await
    }

    async fn connection(&self, key: ExportKey) -> Result<ConnectionFact> {
        let look = move |shared: &Shared| Ok(fabrics::connection(&shared.root, &shared.clocks, key));
        self.shared.look("observe connection", look).await
    }

    async fn connections(&self, volume: VolumeId) -> Result<BTreeMap<ExportKey, ConnectionFact>> {
        let look = move |shared: &Shared| Ok(fabrics::connections(&shared.root, &shared.clocks, volume));
        self.shared.look("observe connections", look).await
    }

    async fn array(&self, volume: VolumeId) -> Result<Option<ArrayFact>> {
        self.shared.volumes.note(volume);
        let mut fact = self.shared.look("observe array", move |shared| md::observe(&shared.root, volume)).await?;
        if let Some(fact) = &mut fact {
            md::progress(&self.shared.root, &self.shared.ring, fact).await;
        }
        Ok(fact)
    }

    async fn probe(&self, device: &str, data_too: bool) -> Result<MemberProbe> {
        probe::member(&self.shared.ring, device, data_too).await
    }

    async fn mounts(&self, volume: VolumeId) -> Result<FsFact> {
        self.shared.volumes.note(volume);
        let fact = self.shared.look("observe mounts", move |shared| fs::mounts_of(&shared.root, volume)).await?;
        Ok(FsFact { signature: None, ..fact })
    }

    async fn filesystem(&self, volume: VolumeId) -> Result<FsFact> {
        self.shared.volumes.note(volume);
        fs::observe(&self.shared, volume).await
    }

    async fn mount_at(&self, target: &str) -> Result<Option<MountFact>> {
        let path = target.to_string();
        let found = self.shared.look("observe mount", move |shared| fs::mount_at(&shared.root, &path)).await?;
        let Some((mut fact, array)) = found else { return Ok(None) };
        if let Some(array) = array {
            fact.volume = self.shared.volume_of(&array).await;
        }
        Ok(Some(fact))
    }

    async fn apply(&self, op: &Op) -> Result<Changed> {
        apply::apply(&self.shared, op).await
    }

    fn hints(&self) -> broadcast::Receiver<Hint> {
        self.shared.hints.subscribe()
    }
}

#[cfg(test)]
mod tests;
