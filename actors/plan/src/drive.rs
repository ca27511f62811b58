//! Drive: is it ours to use, how much room does it have, and does it keep what it acknowledges. Decides nothing
//! destructive: all it ever does to a drive of ours is to turn its volatile cache off.
//!
//! Called by the drive actor's shell; its report becomes the status of a MeshStorNodeDevice.

use crate::{Machine, Plan, Reason};
use meshstor_kernel::facts::{DriveClass, DriveFact};
use meshstor_kernel::id::PARTITION_TYPE;
use meshstor_kernel::ops::Op;

/// The machine of one drive.
pub struct Drive;

/// What the operator wants of a drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DriveUsage {
    /// Use it when it is blank or wholly ours.
    #[default]
    Auto,
    /// Use its free space although foreign partitions are on it.
    Use,
    /// No new replicas.
    Ignore,
}

/// What was observed of a drive.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DriveLook {
    /// The drive; `None` when it is gone.
    pub drive: Option<DriveFact>,
    /// Its cache stays as it is: it has refused, or the operator wants it so.
    pub cache_stays: bool,
}

/// What is reported of a drive.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DriveReport {
    /// The drive as seen; `None` when it is gone.
    pub fact: Option<DriveFact>,
    /// Why it takes no new replicas; `None`: it does.
    pub refused: Option<Reason>,
    /// Bytes that new replicas may take.
    pub free_bytes: u64,
    /// Largest extent that a new replica may take.
    pub largest_free_bytes: u64,
    /// Entries that are not ours.
    pub foreign_partitions: u32,
}

impl Machine for Drive {
    const KIND: &'static str = "drive";
    type Desired = DriveUsage;
    type Fact = DriveLook;
    type Status = DriveReport;

    fn plan(desired: Option<&DriveUsage>, look: &DriveLook) -> Plan<DriveReport> {
        let Some(drive) = &look.drive else {
            return Plan::rest(DriveReport { refused: Some(Reason::DriveGone), ..DriveReport::default() });
        };
        let refused = refusal(desired.copied().unwrap_or_default(), &drive.class);
        let usable = refused.is_none();
        let free = drive.free.iter().map(|e| e.length);
        let report = DriveReport {
            free_bytes: if usable { free.clone().sum() } else { 0 },
            largest_free_bytes: if usable { free.max().unwrap_or(0) } else { 0 },
            foreign_partitions: drive.entries.values().filter(|e| e.type_guid != PARTITION_TYPE).count() as u32,
            refused,
            fact: look.drive.clone(),
        };
        // What is acknowledged is to be durable (rule 11). A drive that is not ours keeps what it was given.
        let ours = matches!(drive.class, DriveClass::Ours) || (usable && matches!(drive.class, DriveClass::Shared));
        match drive.volatile_cache && ours && !look.cache_stays {
            true => Plan::step(Op::DisableCache { drive: drive.id.clone() }, report),
            false => Plan::rest(report),
        }
    }
}

/// Why a drive of this class takes no new replica under this wish.
pub fn refusal(usage: DriveUsage, class: &DriveClass) -> Option<Reason> {
    let because = |why: &str| Some(Reason::DriveRefused { why: why.to_string() });
    match (usage, class) {
        (DriveUsage::Ignore, _) => because("spec.use is ignore"),
        (_, DriveClass::Theirs(why)) => because(why),
        // Not "refused": whoever reads that may think of wiping it, and it can be full of data.
        (_, DriveClass::Unreadable(why)) => Some(Reason::DriveUnreadable { why: why.clone() }),
        (DriveUsage::Auto, DriveClass::Shared) => {
            because("it holds foreign partitions; set spec.use to use if its free space may be taken")
        }
        (DriveUsage::Use, DriveClass::Shared) => None,
        (DriveUsage::Auto | DriveUsage::Use, DriveClass::Ours | DriveClass::Blank(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{blank_drive, our_drive};

    fn seen(drive: DriveFact) -> DriveLook {
        DriveLook { drive: Some(drive), cache_stays: false }
    }

    #[test]
    fn theirs_offers_nothing_whatever_the_operator_says() {
        for usage in [DriveUsage::Auto, DriveUsage::Use, DriveUsage::Ignore] {
            let mut drive = our_drive();
            drive.class = DriveClass::Theirs("ext4 file system on the whole drive".into());
            let report = Drive::plan(Some(&usage), &seen(drive)).status;
            assert_eq!((report.free_bytes, report.largest_free_bytes), (0, 0));
            assert!(report.refused.is_some());
        }
    }

    #[test]
    fn a_drive_that_does_not_answer_is_not_called_somebody_elses() {
        let mut drive = our_drive();
        drive.class = DriveClass::Unreadable("no answer within 5s".into());
        let report = Drive::plan(None, &seen(drive)).status;
        assert_eq!(report.free_bytes, 0);
        let said = report.refused.map(|reason| (reason.word(), reason.to_string()));
        assert_eq!(said, Some(("DriveUnreadable", "the drive cannot be read: no answer within 5s".into())));
    }

    #[test]
    fn free_space_beside_foreign_partitions_needs_the_operator() {
        let mut drive = our_drive();
        drive.class = DriveClass::Shared;
        assert!(Drive::plan(Some(&DriveUsage::Auto), &seen(drive.clone())).status.refused.is_some());
        let report = Drive::plan(Some(&DriveUsage::Use), &seen(drive)).status;
        assert!(report.refused.is_none() && report.free_bytes > 0);
    }

    #[test]
    fn a_blank_drive_is_offered_and_not_touched() {
        let plan = Drive::plan(None, &seen(blank_drive()));
        assert!(plan.next.is_none() && plan.status.refused.is_none() && plan.status.free_bytes > 0);
    }

    #[test]
    fn the_cache_of_a_drive_of_ours_is_turned_off_and_no_other_ones() {
        let step = |usage, drive: &DriveFact| Drive::plan(Some(&usage), &seen(drive.clone())).next;
        let mut drive = DriveFact { volatile_cache: true, ..our_drive() };
        let off = Some(crate::Step::Kernel(Op::DisableCache { drive: drive.id.clone() }));
        for usage in [DriveUsage::Auto, DriveUsage::Use, DriveUsage::Ignore] {
            assert_eq!(step(usage, &drive), off, "its copies are there whatever is wanted of new ones");
        }
        let stays = DriveLook { cache_stays: true, ..seen(drive.clone()) };
        assert_eq!(Drive::plan(None, &stays).next, None);
        drive.class = DriveClass::Shared;
        assert_eq!((step(DriveUsage::Auto, &drive), step(DriveUsage::Use, &drive)), (None, off));
        for class in [blank_drive().class, DriveClass::Theirs("ext4".into()), DriveClass::Unreadable("EIO".into())] {
            drive.class = class;
            assert_eq!(step(DriveUsage::Use, &drive), None);
        }
    }
}
