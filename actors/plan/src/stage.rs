//! Stage: make the file system at most once in the life of a volume (P4), and mount it.
//!
//! Called by the stage actor's shell on the consumer. It never formats what carries anything but zeros unless the
//! record says that a format was begun and never handed out, and never mounts an array that is not activated.

use crate::array::{ArrayPhase, ArrayReport, RecordLook};
use crate::record::{Change, FormatRecord, RecordOp, VolumeRecord};
use crate::{Machine, Plan, Reason};
use meshstor_kernel::content::Content;
use meshstor_kernel::facts::{BlankData, FsFact};
use meshstor_kernel::id::VolumeId;
use meshstor_kernel::ops::{FormatPermit, Op};

/// How every volume is mounted, unless it was asked for otherwise: reads must not write through the fabric.
const MOUNT_OPTIONS: &str = "noatime";
/// Who asks for one of these does not want that.
const TIMES: [&str; 4] = ["noatime", "atime", "relatime", "strictatime"];

/// The machine of one volume's file system on its consumer.
pub struct Stage;

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageWish {
    /// The volume.
    pub volume: VolumeId,
    /// Where to mount it; `None`: be mounted nowhere.
    pub target: Option<String>,
    /// Options of the mount that were asked for. Whoever finds a mount in the kernel knows none, and changes none of it.
    pub options: Vec<String>,
}

/// What was observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageLook {
    /// The record.
    pub record: RecordLook,
    /// The array, as its own plan reports it from facts just observed.
    pub array: ArrayReport,
    /// The file system and its mounts.
    pub fs: FsFact,
    /// Proofs of blankness, one for each active member that is blank. Read only while the record says `Never`.
    pub blank: Vec<BlankData>,
    /// Bytes of the array; zero while there is none, or nothing is mounted from it.
    pub array_bytes: u64,
    /// An array of so many bytes has been filled: this process has had it done.
    pub filled: Option<u64>,
    /// Why the file system could not grow a moment ago.
    pub not_grown: Option<String>,
}

/// What is reported.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StageReport {
    /// Mounted where it should be, and alive; or unmounted, when that is wanted.
    pub ready: bool,
    /// Bytes of the array that the file system fills; zero while it does not, or that is not known.
    pub filled: u64,
    /// What it waits for.
    pub reason: Option<Reason>,
}

impl Machine for Stage {
    const KIND: &'static str = "stage";
    type Desired = StageWish;
    type Fact = StageLook;
    type Status = StageReport;

    fn plan(desired: Option<&StageWish>, look: &StageLook) -> Plan<StageReport> {
        let Some(wish) = desired else { return waiting(Reason::VolumeMissing) };
        let Some(target) = &wish.target else { return unmount(look) };
        match look.fs.mounts.get(target) {
            // The file system does not know yet. What it answers meanwhile is worth nothing to whoever wants to write, and a pod
            // that comes now must get the next array, not this one (simulator, seed 2544).
            Some(true) if look.array.phase == ArrayPhase::Broken => {
                return step(Op::ShutdownFilesystem { volume: wish.volume });
            }
            Some(true) => return mounted(wish, target, look),
            Some(false) => return step(Op::Unmount { target: target.clone(), lazy: true }),
            None => {}
        }
        if look.array.phase != ArrayPhase::Active {
            return waiting(look.array.reason.clone().unwrap_or(Reason::Releasing));
        }
        let record = match &look.record {
            RecordLook::Fresh(record) => record,
            RecordLook::Missing => return waiting(Reason::VolumeMissing),
            RecordLook::Unreachable => return waiting(Reason::ApiUnreachable),
        };
        format_or_mount(record, wish, target, look)
    }
}

/// It is there: as large as its array is, as soon as it can be. It serves meanwhile, and also when it cannot grow.
fn mounted(wish: &StageWish, target: &str, look: &StageLook) -> Plan<StageReport> {
    let array = look.array_bytes;
    let fills = look.filled == Some(array) || look.fs.bytes.is_some_and(|bytes| bytes >= array);
    let reason = look.array.reason.clone();
    let failed = || look.not_grown.clone().map(|error| Reason::Failing { error });
    let at = |filled, reason| StageReport { ready: true, filled, reason };
    match (array, &look.not_grown) {
        (0, _) => Plan::rest(at(0, reason)),
        _ if fills => Plan::rest(at(array, reason)),
        (_, Some(_)) => Plan::rest(at(0, reason.or_else(failed))),
        (_, None) => Plan::step(Op::GrowFilesystem { volume: wish.volume, target: target.to_string() }, at(0, reason)),
    }
}

fn format_or_mount(record: &VolumeRecord, wish: &StageWish, target: &str, look: &StageLook) -> Plan<StageReport> {
    let volume = record.volume;
    let recorded = |change| Plan::step(RecordOp { expect: record.expect(), change }, StageReport::default());
    let found = look.fs.signature.as_deref();
    let Content::Files(filesystem) = record.content else {
        return waiting(Reason::DataMissing { what: "a raw block volume has no file system to mount".into() });
    };
    let whole = found == Some(filesystem.as_str());
    let all_blank = !look.array.members.is_empty() && look.blank.len() == look.array.members.len();
    match (record.format, found) {
        (FormatRecord::Never, None) if all_blank => recorded(Change::FormatStarted),
        (FormatRecord::Never, found) => {
            let what = format!("a volume never formatted carries {}", found.unwrap_or("data on a member"));
            waiting(Reason::DataMissing { what })
        }
        // Whole by its own word (the kernel layer reports a half-made one as unknown): only the record is left to write.
        (FormatRecord::Started, _) if whole => recorded(Change::FormatDone),
        (FormatRecord::Started, None) if all_blank => {
            step(Op::MakeFilesystem { volume, filesystem, permit: FormatPermit::Blank(look.blank.clone()) })
        }
        (FormatRecord::Started, _) => match uuid::Uuid::parse_str(&record.uid) {
            Ok(record_of) => {
                step(Op::MakeFilesystem { volume, filesystem, permit: FormatPermit::StartedNotDone { record_of } })
            }
            Err(_) => waiting(Reason::RecordLost { what: format!("metadata.uid {:?} is no uuid", record.uid) }),
        },
        (FormatRecord::Done, _) if whole => step(Op::Mount {
            volume,
            target: target.to_string(),
            fs: filesystem,
            options: mount_options(&wish.options),
        }),
        (FormatRecord::Done, found) => {
            let what = format!("expected {filesystem}, found {}", found.unwrap_or("zeros"));
            waiting(Reason::DataMissing { what })
        }
    }
}

fn mount_options(asked: &[String]) -> String {
    let ours = Some(MOUNT_OPTIONS).filter(|_| !asked.iter().any(|option| TIMES.contains(&option.as_str())));
    ours.into_iter().chain(asked.iter().map(String::as_str)).collect::<Vec<_>>().join(",")
}

/// Every mount of the volume goes, the pods' binds included: whoever asks for this has unpublished them.
fn unmount(look: &StageLook) -> Plan<StageReport> {
    let raw = look.fs.raw.iter().map(|target| (target, true));
    match look.fs.mounts.iter().map(|(target, alive)| (target, *alive)).chain(raw).next() {
        Some((target, alive)) => step(Op::Unmount { target: target.clone(), lazy: !alive }),
        None => Plan::rest(StageReport { ready: true, ..StageReport::default() }),
    }
}

fn step(op: Op) -> Plan<StageReport> {
    Plan::step(op, StageReport::default())
}

fn waiting(reason: Reason) -> Plan<StageReport> {
    Plan::rest(StageReport { reason: Some(reason), ..StageReport::default() })
}

#[cfg(test)]
#[path = "stage_tests.rs"]
mod tests;
