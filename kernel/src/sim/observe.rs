//! `SimKernel`: the [`Kernel`] trait on one simulated node. Turns the world's state into facts and operations into jobs.
//!
//! Called by the actors' shell and by tests, exactly as the real one. While its node is frozen its futures wait;
//! while the node has no power they fail.

use super::World;
use super::state::{State, Time};
use crate::error::{KernelError, Result};
use crate::facts::{
    ALIGNMENT, ArrayFact, BlankData, BlankDrive, Check, ConnectionFact, DATA_OFFSET, DriveClass, DriveFact,
    EpochRecord, ExportFact, FsFact, MemberProbe, NodeFact, PartitionFact, Transport,
};
use crate::hint::Hint;
use crate::id::{DriveId, ExportKey, PARTITION_TYPE, ReplicaKey, VolumeId};
use crate::ops::{Changed, Op};
use crate::{Kernel, MountFact};
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::broadcast;
use uuid::Uuid;

/// Zeroes to make evidence from: as many as the evidence types ask for.
static ZEROES: [u8; ALIGNMENT as usize] = [0; ALIGNMENT as usize];
/// What the probe reads at the end of a data area (see [`MemberProbe::blank`]).
const TAIL: u64 = 1 << 20;

/// The kernel of one simulated node.
pub struct SimKernel {
    world: World,
    node: String,
}

impl SimKernel {
    pub(super) fn new(world: World, node: &str) -> SimKernel {
        SimKernel { world, node: node.into() }
    }

    /// Index of the node, once it runs.
    async fn enter(&self, what: &str) -> Result<usize> {
        let delay = self.world.inner.look(|s| s.config.look_latency);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        loop {
            let found =
                self.world.inner.look(|s| s.node_named(&self.node).map(|n| (n, s.nodes[n].up, s.nodes[n].frozen)));
            match found {
                None => return Err(KernelError::refuse(what, self.node.clone(), "there is no such node")),
                Some((_, false, _)) => return Err(KernelError::wait(what, self.node.clone(), "the node has no power")),
                Some((_, true, true)) => self.world.inner.pause(None).await,
                Some((node, true, false)) => return Ok(node),
            }
        }
    }

    /// One observation.
    async fn see<R>(&self, what: &str, f: impl FnOnce(&mut State, usize) -> R) -> Result<R> {
        let node = self.enter(what).await?;
        self.world.inner.look(|s| {
            let rate = s.config.rates.look_fails;
            let planned = s.nodes[node].looks_to_fail > 0;
            s.nodes[node].looks_to_fail = s.nodes[node].looks_to_fail.saturating_sub(1);
            if planned || s.rng.chance(rate) {
                return Err(KernelError::retry(what, self.node.clone(), "the observation failed"));
            }
            Ok(f(s, node))
        })
    }
}

#[async_trait::async_trait(?Send)]
impl Kernel for SimKernel {
    async fn node(&self) -> Result<NodeFact> {
        self.see("node", |s, n| s.node_fact(n)).await
    }

    async fn drives(&self) -> Result<Vec<DriveFact>> {
        self.see("drives", |s, n| s.drives_of(n).into_iter().map(|d| s.drive_fact(n, d)).collect()).await
    }

    async fn drive(&self, drive: &DriveId) -> Result<Option<DriveFact>> {
        self.see("drive", |s, n| s.drive_at(n, drive).map(|d| s.drive_fact(n, d))).await
    }

    async fn partition(&self, key: ReplicaKey) -> Result<Option<PartitionFact>> {
        self.see("partition", |s, n| {
            s.learn(key);
            match s.unreadable(n, key) {
                true => Err(KernelError::wait("partition", key.to_string(), "the drive does not answer")),
                false => Ok(s.partition_fact(n, key)),
            }
        })
        .await?
    }

    async fn replicas(&self) -> Result<BTreeMap<DriveId, Vec<(Uuid, Option<EpochRecord>)>>> {
        self.see("replicas", |s, n| s.replicas(n)).await
    }

    async fn volumes(&self) -> Result<BTreeSet<VolumeId>> {
        self.see("volumes", |s, n| s.volumes_of(n)).await
    }

    async fn exports(&self, key: ReplicaKey) -> Result<ExportFact> {
        self.see("exports", |s, n| s.export_fact(n, key)).await
    }

    async fn connection(&self, key: ExportKey) -> Result<ConnectionFact> {
        self.see("connection", |s, n| s.connection_fact(n, key)).await
    }

    async fn connections(&self, volume: VolumeId) -> Result<BTreeMap<ExportKey, ConnectionFact>> {
        self.see("connections", |s, n| {
            let keys: BTreeSet<ExportKey> = s.nodes[n].controllers.values().map(|c| c.key).collect();
            let mine = keys.into_iter().filter(|k| k.replica.volume == volume);
            mine.map(|k| (k, s.connection_fact(n, k))).collect()
        })
        .await
    }

    async fn array(&self, volume: VolumeId) -> Result<Option<ArrayFact>> {
        self.see("array", |s, n| s.array_of(n, volume).and_then(|id| s.array_fact(id))).await
    }

    async fn probe(&self, device: &str, data_too: bool) -> Result<MemberProbe> {
        let first = self.see("probe", |s, n| s.probe(n, device, data_too)).await?;
        if let Some(result) = first {
            return result;
        }
        // The read hangs: the ring gives up after a while, and nobody else is held up.
        let limit = self.world.inner.look(|s| s.now + s.config.probe_timeout);
        loop {
            self.world.inner.pause(Some(limit)).await;
            let node = self.enter("probe").await?;
            if let Some(result) = self.world.inner.look(|s| s.probe(node, device, data_too)) {
                return result;
            }
            if self.world.inner.look(|s| s.now >= limit) {
                return Err(KernelError::wait("probe", device, "the read did not finish"));
            }
        }
    }

    async fn mounts(&self, volume: VolumeId) -> Result<FsFact> {
        self.see("mounts", |s, n| s.mounts_fact(n, volume)).await
    }

    async fn filesystem(&self, volume: VolumeId) -> Result<FsFact> {
        let fact = self.see("filesystem", |s, n| s.filesystem_fact(n, volume)).await?;
        fact.ok_or_else(|| KernelError::wait("filesystem", volume.to_string(), "no member answers"))
    }

    async fn mount_at(&self, target: &str) -> Result<Option<MountFact>> {
        self.see("mount_at", |s, n| s.mount_fact(n, target)).await
    }

    async fn apply(&self, op: &Op) -> Result<Changed> {
        let node = self.enter(op.name()).await?;
        let (answer, limit) = self.world.inner.change(|s| (s.enqueue(node, op), s.now + op.deadline()));
        let started = self.world.inner.answer(answer, Some(limit)).await;
        let over: fn(Time, Time) -> &'static str = |now, limit| {
            if now >= limit { "the deadline passed; it may still happen" } else { "the node or its agent died" }
        };
        let why = self.world.inner.look(|s| over(s.now, limit));
        started.unwrap_or_else(|| Err(KernelError::retry(op.name(), self.node.clone(), why)))
    }

    fn hints(&self) -> broadcast::Receiver<Hint> {
        let found = self.world.inner.look(|s| s.node_named(&self.node).map(|n| s.nodes[n].hints.subscribe()));
        // A node that does not exist has nothing to say: the channel is closed at once.
        found.unwrap_or_else(|| broadcast::channel(1).1)
    }
}

impl State {
    fn node_fact(&self, node: usize) -> NodeFact {
        let n = &self.nodes[node];
        let device = "stor0".to_string();
        let mut addresses = BTreeSet::from([(Transport::Tcp, n.address, device.clone())]);
        if self.config.rdma {
            addresses.insert((Transport::Rdma, n.address, device));
        }
        let check = |required: bool| Check { ok: true, required, message: "simulated".into() };
        let rdma = Check { ok: self.config.rdma, required: false, message: "simulated".into() };
        let mut checks: BTreeMap<String, Check> =
            ["kernel", "configfs", "fabrics", "module-nvmet", "module-nvme-tcp", "module-raid1", "module-xfs"]
                .map(|name| (name.to_string(), check(true)))
                .into();
        checks.insert("rdma".into(), rdma);
        NodeFact {
            name: n.name.clone(),
            boot: n.boot.clone(),
            machine_id: n.name.host_id().simple().to_string(),
            kernel: "6.12.0-simulated".into(),
            addresses,
            checks,
        }
    }

    fn drive_fact(&self, node: usize, drive: usize) -> DriveFact {
        let d = &self.drives[drive];
        let id = d.spec.id();
        let class = if d.hung || d.broken {
            DriveClass::Unreadable("reads do not finish or fail".into())
        } else if let Some(what) = &d.foreign {
            DriveClass::Theirs(what.clone())
        } else if d.table.is_some() {
            if d.has_foreign_entries() { DriveClass::Shared } else { DriveClass::Ours }
        } else {
            match BlankDrive::from_bytes(&id, &ZEROES, &ZEROES).filter(|_| d.is_blank()) {
                Some(blank) => DriveClass::Blank(blank),
                None => DriveClass::Theirs("content without a partition table".into()),
            }
        };
        let trusted = matches!(class, DriveClass::Ours | DriveClass::Shared);
        DriveFact {
            path: format!("/dev/{}", self.drive_name(node, drive)),
            model: "Simulated NVMe".into(),
            serial: d.spec.serial.clone(),
            size_bytes: d.spec.size,
            sector_bytes: d.spec.sector,
            volatile_cache: d.volatile(),
            entries: d.table.clone().filter(|_| trusted).unwrap_or_default(),
            // Of a blank drive: what its label will leave.
            free: if trusted || matches!(class, DriveClass::Blank(_)) { d.free() } else { Vec::new() },
            class,
            id,
        }
    }

    fn replicas(&self, node: usize) -> BTreeMap<DriveId, Vec<(Uuid, Option<EpochRecord>)>> {
        let drives = self.drives_of(node).into_iter().map(|d| &self.drives[d]);
        let ours = drives.map(|d| {
            let entries = d.table.iter().flat_map(|t| t.values()).filter(|e| e.type_guid == PARTITION_TYPE);
            (d.spec.id(), entries.map(|e| (e.unique_guid, d.meta(e.extent.start).record)).collect::<Vec<_>>())
        });
        ours.filter(|(_, found)| !found.is_empty()).collect()
    }

    /// Volumes of which the node holds a partition, a connection or an array.
    fn volumes_of(&self, node: usize) -> BTreeSet<VolumeId> {
        let records = self.replicas(node).into_values().flatten().filter_map(|(_, record)| Some(record?.volume));
        let connected = self.nodes[node].controllers.values().map(|c| c.key.replica.volume);
        let arrays = self.arrays.values().filter(|a| a.node == node).filter_map(|a| a.volume);
        records.chain(connected).chain(arrays).collect()
    }

    /// A look at one device; `None` while the read would hang.
    fn probe(&self, node: usize, device: &str, data_too: bool) -> Option<Result<MemberProbe>> {
        use super::host::Reach;
        let error = |number: i32| KernelError::io("probe", device, &std::io::Error::from_raw_os_error(number));
        let Some((_, dev)) = self.device(node, device) else {
            return Some(Err(error(super::job::errno::ENOENT)));
        };
        let (drive, extent) = match self.reach(node, dev) {
            Reach::Stuck => return None,
            Reach::Gone => return Some(Err(error(super::job::errno::EIO))),
            Reach::There { drive, extent } => (drive, extent),
        };
        let data = self.drives[drive].data(extent, self.config.block_bytes, false);
        let blocks = |bytes: u64| bytes / self.config.block_bytes;
        let end = blocks(extent.length.saturating_sub(DATA_OFFSET));
        let head = data.range(..blocks(DATA_OFFSET)).next();
        let tail = data.range(end.saturating_sub(blocks(TAIL))..).next();
        let blank = data_too && head.is_none() && tail.is_none();
        Some(Ok(MemberProbe {
            superblock: self.superblock_at(node, dev),
            record: self.drives[drive].meta(extent.start).record,
            blank: if blank { BlankData::from_bytes(device, &ZEROES, &ZEROES) } else { None },
        }))
    }
}
