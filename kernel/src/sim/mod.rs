//! Simulated kernels of any number of nodes behind the [`crate::Kernel`] trait: for `meshstor dev` and for tests.
//!
//! ```text
//!   World ── add_node, kernel(node) ──▶ SimKernel: Kernel      what the actors see
//!     │ ──── write, read, flush ──────▶ applications           what pods do
//!     │ ──── cut, power_cut, pull … ──▶ faults                 what goes wrong
//!     └ ──── copies, leaks, violations, trace ─▶ the oracle    what is true
//! ```
//!
//! One thread, one seed, and tokio's clock as the only time: on a paused clock a seed is a whole run. Nothing runs in
//! the background; whoever waits drives the world to its next event. [`World::run`] does so for worlds in which
//! everybody may be waiting for a hint. It decides nothing and knows nothing of custom resources.

mod bio;
mod config;
mod deposed;
mod disk;
mod disk_ops;
mod event;
mod faults;
mod fs;
mod growfs;
mod host;
mod job;
mod laws;
mod md;
mod observe;
mod oracle;
mod rng;
mod state;
mod target;
#[cfg(test)]
mod tests;
mod wait;
mod workload;

pub use config::{Config, FaultRates, SimDrive};
pub use faults::OpFault;
pub use laws::{Law, Violation};
pub use observe::SimKernel;
pub use oracle::{Copy, Leak};
pub use workload::{IoError, WriteRecord};

use crate::Kernel;
use crate::facts::{Extent, PartitionEntry, Transport};
use crate::id::{DriveId, ReplicaId, VolumeId};
use md::io::Ask;
use state::{State, Time};
use std::collections::BTreeMap;
use std::rc::Rc;
use uuid::Uuid;

/// Both transports: a cable carries them together.
const BOTH: [Transport; 2] = [Transport::Rdma, Transport::Tcp];

/// A simulated world. Clones are the same world. Must be made inside a tokio runtime with time.
///
/// Functions that name a node, drive or volume that does not exist do nothing and say so in the trace.
#[derive(Clone)]
pub struct World {
    inner: Rc<wait::Inner>,
}

impl World {
    /// An empty world. The same seed, settings and calls give the same history.
    pub fn new(seed: u64, config: Config) -> World {
        World { inner: wait::Inner::new(State::new(seed, config)) }
    }

    /// Adds a machine, powered on, with blank drives. Answers the drives' identities in order.
    pub fn add_node(&self, name: &str, drives: &[SimDrive]) -> Vec<DriveId> {
        self.inner.change(|s| {
            let node = s.add_node(name);
            for (number, spec) in drives.iter().enumerate() {
                s.drives.push(disk::Drive::new(spec.clone(), node));
                s.nodes[node].drive_numbers.insert(s.drives.len() - 1, number as u32);
            }
            s.say(node, format!("added with {} drives", drives.len()));
        });
        drives.iter().map(SimDrive::id).collect()
    }

    /// The kernel of a node. It stays valid over reboots of the node.
    pub fn kernel(&self, node: &str) -> Rc<dyn Kernel> {
        Rc::new(SimKernel::new(self.clone(), node))
    }

    /// Names of all nodes.
    pub fn nodes(&self) -> Vec<String> {
        self.inner.look(|s| s.nodes.iter().map(|n| n.name.0.clone()).collect())
    }

    /// Runs the world for ever: hints come when they are due even if nobody looks. To be spawned beside the actors.
    pub async fn run(&self) {
        loop {
            self.inner.pause(None).await;
        }
    }

    // ------------------------------------------------------------------------------------------ applications

    /// Writes one block of a mounted volume as an application does: waits while the kernel waits.
    pub async fn write(&self, node: &str, volume: VolumeId, block: u64, tag: u64) -> Result<(), IoError> {
        self.request(node, volume, Ask::Write { block, tag }).await.map(|_| ())
    }

    /// Reads one block; 0 was never written.
    pub async fn read(&self, node: &str, volume: VolumeId, block: u64) -> Result<u64, IoError> {
        self.request(node, volume, Ask::Read { block }).await
    }

    /// Flushes all caches below the volume, as fsync does.
    pub async fn flush(&self, node: &str, volume: VolumeId) -> Result<(), IoError> {
        self.request(node, volume, Ask::Flush).await.map(|_| ())
    }

    async fn request(&self, node: &str, volume: VolumeId, ask: Ask) -> Result<u64, IoError> {
        let begun = self.on(node, |s, n| s.begin(n, volume, ask));
        let Some(answer) = begun else { return Err(IoError::NodeDown) };
        self.inner.answer(answer, None).await.unwrap_or(Err(IoError::NodeDown))
    }

    /// A process opens something of the volume and keeps it; `None` when it is not mounted there.
    pub fn open(&self, node: &str, volume: VolumeId) -> Option<u64> {
        self.on(node, |s, n| s.open(n, volume)).flatten()
    }

    /// The process closes it, or was killed already.
    pub fn close(&self, node: &str, opener: u64) {
        self.on(node, |s, n| s.nodes[n].openers.remove(&opener));
    }

    /// A kernel object (`dm-3`, `loop0`) takes the volume's array, or lets it go.
    pub fn hold(&self, node: &str, volume: VolumeId, holder: &str, on: bool) {
        self.on(node, |s, n| {
            let Some(array) = s.array_of(n, volume).and_then(|id| s.arrays.get_mut(&id)) else { return };
            if on {
                array.holders.insert(holder.into())
            } else {
                array.holders.remove(holder)
            };
        });
    }

    // ------------------------------------------------------------------------------------------------ faults

    /// Cuts the cable between two nodes, both directions and transports.
    pub fn cut(&self, a: &str, b: &str) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Cuts one direction: packets from `from` to `to` are lost.
    pub fn cut_one_way(&self, from: &str, to: &str) {
        self.on_two(from, to, |s, f, t| s.cut(f, t, &BOTH));
    }

    /// Cuts one transport between two nodes, both directions.
    pub fn cut_transport(&self, a: &str, b: &str, transport: Transport) {
        self.on_two(a, b, |s, a, b| {
            s.cut(a, b, &[transport]);
            s.cut(b, a, &[transport]);
        });
    }

    /// Makes everything between two nodes whole again.
    pub fn heal(&self, a: &str, b: &str) {
        self.on_two(a, b, |s, a, b| {
            s.heal(a, b, &BOTH);
            s.heal(b, a, &BOTH);
        });
    }

    /// Makes all cables whole.
    pub fn heal_all(&self) {
        let names = self.nodes();
        for (at, a) in names.iter().enumerate() {
            names.iter().skip(at + 1).for_each(|b| self.heal(a, b));
        }
    }

    /// Cuts a node off from all others.
    pub fn isolate(&self, node: &str) {
        self.nodes().iter().filter(|n| *n != node).for_each(|other| self.cut(node, other));
    }

    /// The power goes: kernel state and unflushed volatile caches are lost, drives stay.
    pub fn power_cut(&self, node: &str) {
        self.on(node, |s, n| s.power_off(n, false));
    }

    /// The power comes back, with a new boot id.
    pub fn power_on(&self, node: &str) {
        self.on(node, |s, n| s.power_on(n));
    }

    /// Power cut and power on in one.
    pub fn reset(&self, node: &str) {
        self.power_cut(node);
        self.power_on(node);
    }

    /// An orderly shutdown: the drives go first, the power a second later.
    pub fn shut_down(&self, node: &str) {
        self.on(node, |s, n| s.shut_down(n));
    }

    /// Whether a node has power.
    pub fn is_up(&self, node: &str) -> bool {
        self.on(node, |s, n| s.nodes[n].up).unwrap_or(false)
    }

    /// Stops a node in its tracks.
    pub fn freeze(&self, node: &str) {
        self.on(node, |s, n| s.freeze(n));
    }

    /// Lets it go on.
    pub fn thaw(&self, node: &str) {
        self.on(node, |s, n| s.thaw(n));
    }

    /// Operations of the node's agent that have not begun never will.
    pub fn kill_agent(&self, node: &str) {
        self.on(node, |s, n| s.kill_agent(n));
    }

    /// Pulls a drive out of a node.
    pub fn drive_pull(&self, node: &str, drive: &DriveId) {
        self.on(node, |s, n| s.pull(n, drive));
    }

    /// Plugs a pulled drive in, at any node.
    pub fn drive_insert(&self, node: &str, drive: &DriveId) {
        self.on(node, |s, n| {
            if let Some(at) = s.drives.iter().position(|d| d.home.is_none() && d.spec.id() == *drive) {
                s.plug(at, n);
            }
        });
    }

    /// A drive hangs (`true`) or carries out what it kept.
    pub fn drive_hang(&self, node: &str, drive: &DriveId, on: bool) {
        self.on(node, |s, n| s.hang(n, drive, on));
    }

    /// The next `count` writes that a drive gets over the network are held back inside the target for `time`, each by itself:
    /// later ones pass them (a throttled cgroup, an error that the drive recovers from).
    pub fn drive_throttle(&self, node: &str, drive: &DriveId, count: u32, time: std::time::Duration) {
        self.on(node, |s, n| s.throttle(n, drive, count, time));
    }

    /// A drive answers every command with a media error, or is mended.
    pub fn drive_break(&self, node: &str, drive: &DriveId, on: bool) {
        self.on(node, |s, n| s.break_drive(n, drive, on));
    }

    /// The next operation of this name (`Op::name`) on the node meets a fault. Several are met in order.
    pub fn fail_next(&self, node: &str, op: &str, fault: OpFault) {
        self.on(node, |s, n| s.plan_fault(n, op, fault));
    }

    /// The next `count` hints of the node are lost.
    pub fn lose_hints(&self, node: &str, count: u32) {
        self.on(node, |s, n| s.nodes[n].hints_to_lose += count);
    }

    /// The next `count` hints of the node come twice.
    pub fn double_hints(&self, node: &str, count: u32) {
        self.on(node, |s, n| s.nodes[n].hints_to_double += count);
    }

    /// The next `count` observations on the node fail.
    pub fn fail_looks(&self, node: &str, count: u32) {
        self.on(node, |s, n| s.nodes[n].looks_to_fail += count);
    }

    /// Changes the odds of the seeded faults; all zero begins the phase in which everything must come right.
    pub fn set_rates(&self, rates: FaultRates) {
        self.inner.change(|s| s.config.rates = rates);
    }

    /// udev assembles these devices of a node as `md127`, read-write. Answers whether it could.
    pub fn assemble_foreign(&self, node: &str, devices: &[&str]) -> bool {
        self.on(node, |s, n| s.assemble_foreign(n, devices)).unwrap_or(false)
    }

    /// Makes a drive somebody else's as a whole; `what` is said in words (`ext4 file system on the whole drive`).
    pub fn make_foreign(&self, node: &str, drive: &DriveId, what: &str) {
        self.on(node, |s, n| {
            if let Some(at) = s.drive_at(n, drive) {
                s.drives[at].foreign = Some(what.into());
            }
        });
    }

    /// Puts a foreign entry into a drive's partition table, making the table when there is none.
    pub fn add_foreign_partition(&self, node: &str, drive: &DriveId, number: u32, extent: Extent, name: &str) {
        self.on(node, |s, n| {
            let Some(at) = s.drive_at(n, drive) else { return };
            let entry = PartitionEntry { type_guid: LINUX_DATA, unique_guid: s.rng.uuid(), name: name.into(), extent };
            s.drives[at].table.get_or_insert_default().insert(number, entry);
            s.nodes[n].known.insert((at, number), extent);
        });
    }

    // ------------------------------------------------------------------------------------------------ oracle

    /// Every copy of a volume on any drive, block by block.
    pub fn copies(&self, volume: VolumeId) -> BTreeMap<ReplicaId, Copy> {
        self.inner.look(|s| s.copies(volume))
    }

    /// Content of each block by its last acknowledged write.
    pub fn acknowledged(&self, volume: VolumeId) -> BTreeMap<u64, u64> {
        self.inner.look(|s| s.acknowledged(volume))
    }

    /// Writes that applications asked for, oldest first.
    pub fn history(&self) -> Vec<WriteRecord> {
        self.inner.look(|s| s.history.clone())
    }

    /// Everything of ours that exists on any node or drive.
    pub fn leaks(&self) -> Vec<Leak> {
        self.inner.look(|s| s.leaks())
    }

    /// Laws broken so far.
    pub fn violations(&self) -> Vec<Violation> {
        self.inner.look(|s| s.violations.clone())
    }

    /// One line for each operation, fault and change of state, with the simulated time in seconds.
    pub fn trace(&self) -> Vec<String> {
        self.inner.look(|s| s.trace.clone())
    }

    /// Time since the world began.
    pub fn now(&self) -> Time {
        self.inner.look(|s| s.now)
    }

    // ----------------------------------------------------------------------------------------------- helpers

    fn on<R>(&self, node: &str, f: impl FnOnce(&mut State, usize) -> R) -> Option<R> {
        self.inner.change(|s| match s.node_named(node) {
            Some(n) => Some(f(s, n)),
            None => {
                s.say_world(format!("there is no node {node}"));
                None
            }
        })
    }

    fn on_two(&self, a: &str, b: &str, f: impl FnOnce(&mut State, usize, usize)) {
        self.on(a, |s, a| match s.node_named(b) {
            Some(b) => f(s, a, b),
            None => s.say_world(format!("there is no node {b}")),
        });
    }
}

/// GPT type of ordinary Linux data.
const LINUX_DATA: Uuid = uuid::uuid!("0fc63daf-8483-4772-8e79-3d69d8477de4");
