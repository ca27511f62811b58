//! Hands for the tests: a small cluster and the operations an agent would choose, one call each.

use crate::content::Filesystem;
use crate::facts::*;
use crate::id::*;
use crate::ops::*;
use crate::sim::{Config, SimDrive, World};
use crate::{Kernel, KernelError};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

pub const GIB: u64 = 1 << 30;
/// Data area of the tests' volume: 16 chunks.
pub const SIZE: u64 = GIB;

pub struct Lab {
    pub world: World,
    pub volume: VolumeId,
}

impl Lab {
    /// Nodes `a`, `b`, `c`, each with one drive, each drive labelled.
    pub async fn new() -> Lab {
        Lab::with(Config::default(), |spec| spec).await
    }

    pub async fn with(config: Config, drive: impl Fn(SimDrive) -> SimDrive) -> Lab {
        Lab::seeded(7, config, drive).await
    }

    pub async fn seeded(seed: u64, config: Config, drive: impl Fn(SimDrive) -> SimDrive) -> Lab {
        let world = World::new(seed, config);
        let lab = Lab { world, volume: VolumeId(Uuid::from_u128(0x77)) };
        for node in ["a", "b", "c"] {
            let drives = lab.world.add_node(node, &[drive(SimDrive::new(&format!("ser-{node}"), 16 * GIB))]);
            let DriveClass::Blank(evidence) = lab.kernel(node).drive(&drives[0]).await.unwrap().unwrap().class else {
                panic!("a new drive is not blank")
            };
            lab.yes(node, Op::LabelDrive { evidence }).await;
        }
        lab
    }

    pub fn kernel(&self, node: &str) -> Rc<dyn Kernel> {
        self.world.kernel(node)
    }

    pub async fn apply(&self, node: &str, op: Op) -> Result<Changed, KernelError> {
        self.kernel(node).apply(&op).await
    }

    /// Does it; it must have changed something.
    pub async fn yes(&self, node: &str, op: Op) {
        assert_eq!(self.apply(node, op.clone()).await, Ok(Changed::Yes), "{op}");
    }

    /// Does it; it may have been so.
    pub async fn ok(&self, node: &str, op: Op) {
        self.apply(node, op.clone()).await.unwrap_or_else(|e| panic!("{op}: {e}"));
    }

    /// Replicas are numbered as the nodes.
    pub fn replica(&self, node: &str) -> ReplicaKey {
        ReplicaKey { volume: self.volume, replica: ReplicaId(u32::from(node.as_bytes()[0] - b'a')) }
    }

    pub fn drive(&self, node: &str) -> DriveId {
        SimDrive::new(&format!("ser-{node}"), 0).id()
    }

    pub fn record(&self, node: &str, epoch: Epoch, generation: Generation) -> EpochRecord {
        EpochRecord {
            volume: self.volume,
            cluster: ClusterId(Uuid::from_u128(1)),
            replica: self.replica(node).replica,
            epoch,
            generation,
            in_sync: BTreeSet::new(),
            volume_name: "pvc-1".into(),
            sequence: 0,
            tainted: None,
            unflushed: None,
            content: Default::default(),
        }
    }

    pub fn export_key(&self, node: &str, epoch: Epoch, generation: Generation) -> ExportKey {
        ExportKey { replica: self.replica(node), epoch, generation }
    }

    pub async fn listen(&self, node: &str, key: ExportKey) -> Listen {
        let fact = self.kernel(node).node().await.unwrap();
        let address = fact.addresses.iter().find(|a| a.0 == Transport::Tcp).unwrap().1;
        Listen { transport: Transport::Tcp, address, port: 5000 + (key.epoch * 10 + key.generation) as u16 }
    }

    pub fn add_partition(&self, node: &str) -> Op {
        let extent = Extent { start: ALIGNMENT, length: SIZE + DATA_OFFSET };
        Op::AddPartition { key: self.replica(node), drive: self.drive(node), extent }
    }

    pub async fn unclaimed(&self, node: &str) -> Unclaimed {
        let key = self.replica(node);
        let partition = self.kernel(node).partition(key).await.unwrap().unwrap();
        let exports = self.kernel(node).exports(key).await.unwrap();
        Unclaimed::prove(key, &partition, &exports).unwrap()
    }

    /// A blank partition for the volume.
    pub async fn partition(&self, node: &str) {
        self.yes(node, self.add_partition(node)).await;
        let evidence = self.unclaimed(node).await;
        self.yes(node, Op::BlankPartition { evidence, record: self.record(node, 1, 0) }).await;
    }

    pub async fn export_op(&self, node: &str, to: &str, key: ExportKey) -> Op {
        let listen = BTreeSet::from([self.listen(node, key).await]);
        Op::Export { key, host: NodeName(to.into()).host_nqn(), listen }
    }

    pub async fn connect_op(&self, node: &str, from: &str, key: ExportKey) -> Op {
        Op::Connect { key, node: NodeName(node.into()), address: self.listen(from, key).await }
    }

    /// Exports a replica to a node and connects. Answers the head's device path.
    pub async fn import(&self, from: &str, to: &str, key: ExportKey) -> String {
        self.yes(from, self.export_op(from, to, key).await).await;
        self.yes(to, self.connect_op(to, from, key).await).await;
        self.head(to, key).await
    }

    pub async fn head(&self, node: &str, key: ExportKey) -> String {
        self.kernel(node).connection(key).await.unwrap().head.unwrap().path
    }

    pub async fn local(&self, node: &str) -> String {
        self.kernel(node).partition(self.replica(node)).await.unwrap().unwrap().path.unwrap()
    }

    pub async fn blank(&self, node: &str, device: &str) -> BlankData {
        self.kernel(node).probe(device, true).await.unwrap().blank.unwrap()
    }

    pub async fn array(&self, node: &str) -> ArrayFact {
        self.kernel(node).array(self.volume).await.unwrap().unwrap()
    }

    /// Array, file system and mount on `a` over its own partition and the one of `b`, epoch 1, generation 0.
    pub async fn mounted(&self) {
        self.partition("a").await;
        self.partition("b").await;
        let local = self.local("a").await;
        let remote = self.import("b", "a", self.export_key("b", 1, 0)).await;
        let members = vec![self.blank("a", &local).await, self.blank("a", &remote).await];
        self.yes(
            "a",
            Op::CreateArray { volume: self.volume, members: members.clone(), local: 1, component_bytes: SIZE },
        )
        .await;
        // A new array runs at once: there is nothing to compare and nothing to merge.
        assert_eq!(self.apply("a", Op::ActivateArray { volume: self.volume }).await, Ok(Changed::No));
        assert_eq!(self.apply("a", Op::ReleaseSync { volume: self.volume }).await, Ok(Changed::No));
        self.yes(
            "a",
            Op::MakeFilesystem {
                volume: self.volume,
                filesystem: Filesystem::Xfs,
                permit: FormatPermit::Blank(members),
            },
        )
        .await;
        self.mount("a").await;
    }

    pub fn mount_op(&self) -> Op {
        Op::Mount { volume: self.volume, target: "/stage".into(), fs: Filesystem::Xfs, options: String::new() }
    }

    pub async fn mount(&self, node: &str) {
        self.yes(node, self.mount_op()).await;
    }

    /// The drop that a consumer would ask for: evidence taken now.
    pub async fn drop_op(&self, node: &str, key: ExportKey) -> Op {
        let array = self.array(node).await;
        let leaving = self.head(node, key).await.trim_start_matches("/dev/").to_string();
        let survivor = array.members.keys().find(|m| **m != leaving).unwrap();
        let evidence = OtherCopyInSync::prove(&array, &leaving, survivor, true).unwrap();
        Op::DropMember { key, volume: self.volume, evidence }
    }

    /// Removes every faulty member.
    pub async fn remove_faulty(&self, node: &str) {
        for (component, member) in self.array(node).await.members {
            if member.flags.contains("faulty") {
                self.yes(node, Op::RemoveFaulty { volume: self.volume, component }).await;
            }
        }
    }

    /// Waits until the array of a node is whole and idle.
    pub async fn settled(&self, node: &str) {
        for _ in 0..600 {
            let array = self.array(node).await;
            if array.degraded == 0 && array.sync_action == "idle" && array.resync_done && array.state != "write-pending"
            {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
        panic!("never settled: {:?}\n{}", self.array(node).await, self.world.trace().join("\n"));
    }

    pub async fn write(&self, node: &str, block: u64, tag: u64) {
        self.world.write(node, self.volume, block, tag).await.unwrap();
    }

    pub async fn read(&self, node: &str, block: u64) -> u64 {
        self.world.read(node, self.volume, block).await.unwrap()
    }

    /// Content of one block in one copy.
    pub fn on_disk(&self, node: &str, block: u64) -> u64 {
        let copies = self.world.copies(self.volume);
        copies[&self.replica(node).replica].blocks.get(&block).copied().unwrap_or(0)
    }

    /// No law broken; every acknowledged write is in every one of these copies.
    pub fn assert_sound(&self, nodes: &[&str]) {
        let broken: Vec<String> = self.world.violations().iter().map(ToString::to_string).collect();
        assert!(broken.is_empty(), "{broken:?}\n{}", self.world.trace().join("\n"));
        let copies = self.world.copies(self.volume);
        for node in nodes {
            let copy = &copies[&self.replica(node).replica];
            for (block, tag) in self.world.acknowledged(self.volume) {
                assert_eq!(copy.blocks.get(&block), Some(&tag), "block {block} in the copy of {node}");
            }
        }
    }
}

pub async fn sleep(time: Duration) {
    tokio::time::sleep(time).await;
}

pub fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Whether a future is still waiting after `time`.
pub async fn waits<F: Future + Unpin>(future: &mut F, time: Duration) -> bool {
    tokio::time::timeout(time, future).await.is_err()
}
