//! Array: the heart. Assembles the in-sync copies under the recorded epoch, keeps the record ahead of the kernel while
//! members come and go, and lets go when the volume is unstaged or has a new consumer.
//!
//! Called by the array actor's shell on the consumer. `start` gets an array running (docs/protocol.md, rule 4,
//! *activate*), `run` keeps it (rules 1 to 3 and 6), `leave` takes
//! copies out that are to go, `stop` ends it (rule 7 and the orderly end).
//!
//! ```text
//!  absent ─create/assemble (read-only, sync frozen)─▶ assembled ─record-activate─▶ recorded ─activate-array─▶ frozen
//!     ▲                                                                                                        │
//!     └────────────────stop-array◀──(unstaged or deposed)──────── active ◀──release-sync── merge-bitmap ◀──────┘
//! ```
//!
//! It never removes the last in-sync member (P8), never takes a member into the record before that member's own
//! superblock says so (P7), and never formats or mounts: that is `stage`.

mod flap;
mod grow;
mod leave;
mod pace;
mod run;
mod start;
mod stop;

use crate::record::{RecordOp, VolumeRecord};
use crate::wall::WallTime;
use crate::{Machine, Plan, Reason, Step};
use meshstor_kernel::facts::{ArrayFact, ConnectionFact, MemberFact, MemberProbe, Transport};
use meshstor_kernel::id::{BootId, Epoch, ExportKey, NodeName, ReplicaId, VolumeId};
use meshstor_kernel::mutant::{self, Mutant};
use meshstor_kernel::ops::Op;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use flap::CALM;
pub use pace::SyncSpeeds;
pub use run::to_freeze;
pub use start::first_time as never_used;

/// A remote member that has been unreachable this long is taken out of the set when another copy answers (rule 2).
pub const UNREACHABLE: Duration = Duration::from_secs(5);
/// A member that has I/O in flight and completes nothing this long counts as lost: the kernel's own command timeout.
pub const STALLED: Duration = Duration::from_secs(30);
/// How long a start waits for in-sync copies that are not there yet once one is: the same patience as for a running array.
pub const START_PATIENCE: Duration = UNREACHABLE;
/// The same for the first start of a volume: whoever is absent has to be copied to wholly then, so a slow node is waited for.
/// Half of the time for which a call of kubelet's is held (60 s).
pub const FIRST_PATIENCE: Duration = Duration::from_secs(30);
/// How soon to look again at something that changes without a hint.
const SOON: Duration = Duration::from_millis(500);

/// Whether an MD name is one this program gives: numbers of the range the kernel layer allocates from.
pub fn ours(name: &str) -> bool {
    let number = name.strip_prefix("md").and_then(|n| n.parse::<u32>().ok());
    number.is_some_and(|n| MD_MINORS.contains(&n))
}

/// MD minors that this program allocates; udev's own assemblies count down from 127.
pub const MD_MINORS: std::ops::Range<u32> = 1000..2000;

/// The machine of one volume's array on its consumer.
pub struct Array;

/// What is wanted of a volume's array on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArrayWish {
    /// The volume.
    pub volume: VolumeId,
    /// Running (staged) or stopped.
    pub staged: bool,
}

/// The record as read now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordLook {
    /// Read by quorum just now.
    Fresh(Box<VolumeRecord>),
    /// The API server says the object does not exist.
    Missing,
    /// The API server did not answer.
    Unreachable,
}

/// One device that may be or become a member: a local partition, or the head of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Kernel name, the key of [`ArrayFact::members`].
    pub component: String,
    /// Device node.
    pub path: String,
    /// Whether it is this node's own partition.
    pub local: bool,
    /// Bytes that the device has, as the kernel knows it.
    pub bytes: u64,
    /// What was read from it; only where [`probes`] asks for it.
    pub probe: Option<MemberProbe>,
}

impl Candidate {
    /// Whether somebody else has assembled an array from it since it was copied wholly (F11).
    fn tainted(&self) -> bool {
        let probe = self.probe.as_ref();
        let both = probe.and_then(|probe| Some((probe.record.as_ref()?, probe.superblock.as_ref()?)));
        both.is_some_and(|(record, superblock)| record.taints(superblock))
    }
}

/// What was observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArrayLook {
    /// This node.
    pub me: NodeName,
    /// This boot.
    pub boot: BootId,
    /// What this node's clock shows: for what is recorded of copies that come and go.
    pub now: WallTime,
    /// How fast this node may copy.
    pub speeds: SyncSpeeds,
    /// The record.
    pub record: RecordLook,
    /// The array.
    pub array: Option<ArrayFact>,
    /// Devices by the export life they come from. A local partition has the life written in its drive's record.
    pub candidates: BTreeMap<ExportKey, Candidate>,
    /// Controllers to exports of this volume.
    pub connections: BTreeMap<ExportKey, ConnectionFact>,
    /// Mounts of the volume that still answer.
    pub live_mounts: BTreeSet<String>,
    /// How long this actor has wanted the array without having it.
    pub waiting_for: Duration,
    /// Chunks that this process has merged into the array's bitmap while it was degraded without a break. What the
    /// bitmap on disk shows is no proof: bits found at assembly look the same and are not resynced (F1).
    pub merged: BTreeSet<u64>,
    /// Devices whose re-add failed since the array was last whole: MD knows more of its bitmap than the disks show (which
    /// events it has cleared, which numbers are taken), and refuses the same again for ever.
    pub re_add_failed: BTreeSet<String>,
    /// Writes could not be frozen, or not in time, since the record was last changed.
    pub freeze_failed: bool,
    /// The array was cut off, and nothing came in the way of its end since.
    pub cut_off: bool,
}

/// How far an array is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ArrayPhase {
    /// Not running.
    #[default]
    Absent,
    /// On its way up or down.
    Between,
    /// Running under the recorded epoch; may be used.
    Active,
    /// Running, and refusing every write for good: the kernel lost its last member.
    Broken,
    /// Stopped, all connections gone.
    Released,
}

/// What is reported of an array.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ArrayReport {
    /// How far it is.
    pub phase: ArrayPhase,
    /// Device node, while it runs.
    pub device: Option<String>,
    /// Epoch it runs under.
    pub epoch: Epoch,
    /// Usable bytes.
    pub bytes: u64,
    /// Members by replica: in sync or not, and what carries their I/O.
    pub members: BTreeMap<ReplicaId, MemberReport>,
    /// The copy that is copied to wholly, or waits for the controller's leave to be.
    pub copying: Option<ReplicaId>,
    /// Bytes that a running sync has still to look at.
    pub sync_bytes_left: u64,
    /// Percent of a running sync.
    pub sync_percent: Option<u32>,
    /// What it waits for, or what is wrong while it runs.
    pub reason: Option<Reason>,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberReport {
    /// Active by MD.
    pub in_sync: bool,
    /// Transports with a live path; empty for a local member.
    pub transports: BTreeSet<Transport>,
    /// This node's own partition.
    pub local: bool,
}

impl Machine for Array {
    const KIND: &'static str = "array";
    type Desired = ArrayWish;
    type Fact = ArrayLook;
    type Status = ArrayReport;

    fn unfinished(look: &ArrayLook, step: Option<&Step>) -> bool {
        look.array.iter().flat_map(|array| array.members.values()).any(run::is_blocked)
            || matches!(step, Some(Step::Kernel(Op::FreezeWrites { frozen: true, .. })))
    }

    fn plan(desired: Option<&ArrayWish>, look: &ArrayLook) -> Plan<ArrayReport> {
        let Some(wish) = desired else {
            return unclaimed(look);
        };
        if !wish.staged {
            return stop::release(wish.volume, look);
        }
        let record = match &look.record {
            RecordLook::Fresh(record) => record,
            // Nobody can publish what has no object, and nothing on a drive changes when an unused array stops.
            RecordLook::Missing if unused(look) => return stop::release(wish.volume, look),
            RecordLook::Missing => return run::unrecorded(wish.volume, look, Reason::VolumeMissing),
            RecordLook::Unreachable => return run::unrecorded(wish.volume, look, Reason::ApiUnreachable),
        };
        if let Some(reason) = not_ours(record, look) {
            return match (&look.array, &reason) {
                (None, _) => Plan::rest(report(look, Some(reason))),
                (Some(array), Reason::NotConsumer { .. }) => stop::depose(record, array, look),
                // A record in doubt stops nothing: I/O goes on, and nothing new is decided.
                (Some(_), _) => Plan::rest(report(look, Some(reason))),
            };
        }
        match &look.array {
            None => start::begin(record, look),
            // Deposition is decided by epoch, never by node name.
            Some(array) if outlived(array, record, look) => stop::depose(record, array, look),
            Some(array) if record.activated_epoch < record.epoch || reopened(array, record, look) => {
                start::activate(record, array, look)
            }
            Some(array) if array.state == "readonly" || array.sync_action == "frozen" || !array.safe_mode_off => {
                start::open(record, array, look)
            }
            Some(array) => run::keep(record, array, look),
        }
    }
}

/// Whether there is an array or what is left of one, and nothing in the way of letting go of it.
fn unused(look: &ArrayLook) -> bool {
    match &look.array {
        Some(array) => run::unused(array),
        None => !look.connections.is_empty(),
    }
}

/// Found in the kernel, its wish not known (the agent has been restarted, kubelet has not called yet): left alone, unless
/// a sound record has gone on without it. Kubelet's own clean-up would wait for ever in an orderly unmount.
fn unclaimed(look: &ArrayLook) -> Plan<ArrayReport> {
    if let (RecordLook::Fresh(record), Some(array)) = (&look.record, &look.array)
        && outlived(array, record, look)
        && matches!(not_ours(record, look), None | Some(Reason::NotConsumer { .. } | Reason::NewBoot))
    {
        return stop::depose(record, array, look);
    }
    Plan::rest(in_use(look, None))
}

/// Which candidates the world has to read before planning, and whether their data area as well.
pub fn probes(look: &ArrayLook) -> BTreeMap<ExportKey, bool> {
    let RecordLook::Fresh(record) = &look.record else { return BTreeMap::new() };
    // Never one that does not answer: the read would hang and the plan with it.
    let read = |data_too: bool| look.candidates.keys().filter(|k| answers(k, look)).map(|k| (*k, data_too)).collect();
    let all = || read(false);
    let Some(array) = &look.array else {
        // The data area is read once, when the first array can be created: it is a megabyte over the network.
        let here = |r: &ReplicaId| record.usable_export(*r).is_some_and(|(key, _)| answers(&key, look));
        let whole = record.in_sync.as_ref().is_some_and(|set| set.iter().all(here));
        return read((whole || look.waiting_for >= FIRST_PATIENCE) && start::first_time(record));
    };
    if record.activated_epoch < record.epoch || array.sync_action == "frozen" || array.state == "readonly" {
        return all();
    }
    let in_sync = record.in_sync.clone().unwrap_or_default();
    let doubtful = look.candidates.iter().any(|(k, c)| {
        !answers(k, look)
            || !in_sync.contains(&k.replica.replica)
            || array.members.get(&c.component).is_none_or(|m| !m.in_sync())
    });
    if doubtful { all() } else { BTreeMap::new() }
}

/// Why this node may not run the array under this record; `None`: it may.
fn not_ours(record: &VolumeRecord, look: &ArrayLook) -> Option<Reason> {
    // First of all: a record older than what runs here names a consumer of the past. It may depose nobody (F16).
    if let Some(drive) = newest_epoch(look).filter(|drive| *drive > record.epoch && !mutant::on(Mutant::FloorIgnored)) {
        return Some(Reason::EpochRegressed { drive, record: record.epoch });
    }
    if let Some(what) = &record.foreign {
        return Some(Reason::RecordLost { what: what.clone() });
    }
    if record.consumer.as_ref() != Some(&look.me) {
        return Some(Reason::NotConsumer { consumer: record.consumer.clone() });
    }
    if record.in_sync.as_ref().is_none_or(BTreeSet::is_empty) {
        return Some(Reason::RecordLost { what: "status.inSync is absent".into() });
    }
    let same_boot = record.consumer_boot.as_ref() == Some(&look.boot) || mutant::on(Mutant::SameEpochAfterReboot);
    (!same_boot).then_some(Reason::NewBoot)
}

/// Whether the array began under an older epoch: by its members or, when none of them is known any more, because it takes
/// writes before this epoch was activated (simulator, seed 1837).
fn outlived(array: &ArrayFact, record: &VolumeRecord, look: &ArrayLook) -> bool {
    let older = members(array, look).any(|(key, _)| key.epoch < record.epoch);
    let open = ours(&array.name) && array.state != "readonly" && !start::first_time(record);
    (older || open && record.activated_epoch < record.epoch) && !mutant::on(Mutant::DeposedByName)
}

/// The highest epoch that this node can see: that of its array's members, and those written on the drives it has read.
fn newest_epoch(look: &ArrayLook) -> Option<Epoch> {
    let running = look.array.iter().flat_map(|array| members(array, look)).map(|(key, _)| key.epoch);
    let written = look.candidates.values().filter_map(|c| c.probe.as_ref()?.record.as_ref()).map(|r| r.epoch);
    running.chain(written).max()
}

/// Whether the volume was staged again in an epoch that is activated, and not with exactly the recorded copies. It must
/// not be opened before the record says who is in it (F4; the model's `restage-not-activated`).
fn reopened(array: &ArrayFact, record: &VolumeRecord, look: &ArrayLook) -> bool {
    let recorded = record.in_sync.iter().flatten();
    array.state == "readonly" && !active(array, look).keys().eq(recorded)
}

/// Members of the array whose device is known, with the export life they come from.
fn members<'a>(array: &'a ArrayFact, look: &'a ArrayLook) -> impl Iterator<Item = (&'a ExportKey, &'a MemberFact)> {
    look.candidates.iter().filter_map(|(key, c)| Some((key, array.members.get(&c.component)?)))
}

/// Replicas with an active member, with the life of that member.
fn active<'a>(array: &'a ArrayFact, look: &'a ArrayLook) -> BTreeMap<ReplicaId, &'a ExportKey> {
    members(array, look).filter(|(_, m)| m.in_sync()).map(|(k, _)| (k.replica.replica, k)).collect()
}

/// Whether a candidate answers now: local, or with a live path on which nothing hangs.
fn answers(key: &ExportKey, look: &ArrayLook) -> bool {
    let local = look.candidates.get(key).is_some_and(|c| c.local);
    local || look.connections.get(key).is_some_and(|c| c.live() && c.down_for.is_zero() && c.stalled_for < UNREACHABLE)
}

/// What is true now.
fn report(look: &ArrayLook, reason: Option<Reason>) -> ArrayReport {
    let Some(array) = &look.array else { return ArrayReport { reason, ..ArrayReport::default() } };
    let member = |key: &ExportKey, fact: &MemberFact| MemberReport {
        in_sync: fact.in_sync(),
        local: look.candidates.get(key).is_some_and(|c| c.local),
        transports: look
            .connections
            .get(key)
            .map(|c| c.controllers.values().filter(|c| c.state == "live").map(|c| c.address.transport).collect())
            .unwrap_or_default(),
    };
    let copying = match &look.record {
        RecordLook::Fresh(record) => pace::copying(record, array, look),
        RecordLook::Missing | RecordLook::Unreachable => None,
    };
    ArrayReport {
        phase: ArrayPhase::Between,
        device: Some(array.path.clone()),
        epoch: members(array, look).map(|(k, _)| k.epoch).max().unwrap_or(0),
        members: members(array, look).map(|(k, m)| (k.replica.replica, member(k, m))).collect(),
        bytes: array.size_bytes,
        copying,
        sync_bytes_left: array.sync_completed.map_or(0, |(done, all)| all.saturating_sub(done) * 512),
        sync_percent: array.sync_completed.map(|(done, all)| (done * 100).checked_div(all).unwrap_or(100) as u32),
        reason,
    }
}

/// As [`report`], for an array that may be used.
fn in_use(look: &ArrayLook, reason: Option<Reason>) -> ArrayReport {
    ArrayReport { phase: ArrayPhase::Active, ..report(look, reason) }
}

fn change(record: &VolumeRecord, change: crate::record::Change) -> RecordOp {
    RecordOp { expect: record.expect(), change }
}

#[cfg(test)]
#[path = "array/grow_tests.rs"]
mod grow_tests;
#[cfg(test)]
#[path = "array/leave_tests.rs"]
mod leave_tests;
#[cfg(test)]
#[path = "array/run_tests.rs"]
mod run_tests;
#[cfg(test)]
#[path = "array/seat_tests.rs"]
mod seat_tests;
#[cfg(test)]
#[path = "array/stop_tests.rs"]
mod stop_tests;
#[cfg(test)]
#[path = "array_tests.rs"]
mod tests;
