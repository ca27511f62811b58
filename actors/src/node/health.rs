//! How a volume is that is mounted here, in one sentence: the answer of NodeGetVolumeStats. Pure.
//!
//! Called by the root actor when CSI asks. It goes by the reports of the volume's own actors and by the record as this
//! node last read it; it asks nobody, so it answers while the API server is away. It changes nothing.

use crate::shell::Report;
use meshstor_kernel::id::ReplicaId;
use meshstor_plan::Reason;
use meshstor_plan::array::ArrayReport;
use meshstor_plan::stage::StageReport;
use std::collections::BTreeSet;

/// How a volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether somebody should look.
    pub abnormal: bool,
    /// A sentence for people.
    pub message: String,
}

/// The copies that the record names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Copies {
    pub(super) wanted: usize,
    pub(super) in_sync: BTreeSet<ReplicaId>,
}

/// The worst that is known: what fails or waits, then what is missing.
pub(super) fn health(
    array: Option<&Report<ArrayReport>>,
    stage: Option<&Report<StageReport>>,
    copies: Option<&Copies>,
) -> Health {
    let of_array = array.and_then(|a| a.failing.as_ref().map(|f| &f.reason).or(a.status.reason.as_ref()));
    let of_stage = stage.and_then(|s| s.failing.as_ref().map(|f| &f.reason).or(s.status.reason.as_ref()));
    let reasons = || of_array.into_iter().chain(of_stage);
    let lacking = copies.and_then(lacking);
    match reasons().find(|reason| !harmless(reason, array)) {
        Some(reason) => {
            let last = lacking.filter(|lacking| lacking.last).map(|lacking| format!("; {}", lacking.sentence));
            let message = format!("{}: {reason}{}", reason.word(), last.unwrap_or_default());
            Health { abnormal: true, message }
        }
        None => match (lacking, reasons().next()) {
            (Some(lacking), _) => Health { abnormal: true, message: format!("Degraded: {}", lacking.sentence) },
            (None, Some(reason)) => Health { abnormal: false, message: format!("{}: {reason}", reason.word()) },
            (None, None) => Health { abnormal: false, message: super::report::HEALTHY.to_string() },
        },
    }
}

/// What costs neither availability nor a copy: a server that is away stops no healthy volume (P6), and MD looks through
/// complete members after a crash without anyone being behind.
fn harmless(reason: &Reason, array: Option<&Report<ArrayReport>>) -> bool {
    match reason {
        Reason::ApiUnreachable => true,
        // As good as it was before it was to grow.
        Reason::AwaitingSize { .. } => true,
        Reason::Resyncing { .. } => array.is_some_and(|a| a.status.members.values().all(|member| member.in_sync)),
        _ => false,
    }
}

struct Lacking {
    sentence: String,
    /// One complete copy is left of several.
    last: bool,
}

/// How many complete copies are recorded, when that is fewer than wanted.
fn lacking(copies: &Copies) -> Option<Lacking> {
    let Copies { wanted, in_sync } = copies;
    if in_sync.len() >= *wanted {
        return None;
    }
    let sentence = match (in_sync.first(), in_sync.len()) {
        (Some(only), 1) => format!("{only} is the last complete copy of {wanted}"),
        (_, count) => format!("{count} of {wanted} copies are complete"),
    };
    Some(Lacking { sentence, last: in_sync.len() == 1 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::Failing;
    use meshstor_kernel::Class;
    use meshstor_plan::array::{ArrayPhase, MemberReport};

    fn array(reason: Option<Reason>, in_sync: [bool; 2]) -> Report<ArrayReport> {
        let member = |in_sync| MemberReport { in_sync, transports: BTreeSet::new(), local: false };
        let members = [(ReplicaId(0), member(in_sync[0])), (ReplicaId(1), member(in_sync[1]))].into();
        let status = ArrayReport { phase: ArrayPhase::Active, members, reason, ..ArrayReport::default() };
        Report { status, revision: 1, failing: None }
    }

    fn record(wanted: usize, in_sync: &[u32]) -> Copies {
        Copies { wanted, in_sync: in_sync.iter().map(|id| ReplicaId(*id)).collect() }
    }

    fn check(array: &Report<ArrayReport>, record: &Copies) -> (bool, String) {
        let health = health(Some(array), None, Some(record));
        (health.abnormal, health.message)
    }

    #[test]
    fn whole_and_served_is_normal() {
        assert_eq!(check(&array(None, [true, true]), &record(2, &[0, 1])), (false, "Healthy".into()));
        assert_eq!(check(&array(None, [true, true]), &record(1, &[0])), (false, "Healthy".into()), "one was asked for");
        let away = check(&array(Some(Reason::ApiUnreachable), [true, true]), &record(2, &[0, 1]));
        assert!(!away.0 && away.1.starts_with("ApiUnreachable: "), "{away:?}");
        let scan = check(&array(Some(Reason::Resyncing { percent: 5 }), [true, true]), &record(2, &[0, 1]));
        assert!(!scan.0, "nobody is behind: {scan:?}");
    }

    #[test]
    fn frozen_deposed_degraded_and_the_last_copy_are_abnormal() {
        let r = ReplicaId;
        let frozen = array(Some(Reason::LastCopyFrozen { replica: r(0) }), [true, false]);
        let said = check(&frozen, &record(2, &[0]));
        assert!(said.0 && said.1.starts_with("LastCopyFrozen: r0 is the last in-sync copy"), "{said:?}");
        assert!(said.1.ends_with("; r0 is the last complete copy of 2"), "{said:?}");
        let deposed = check(&array(Some(Reason::Deposed { epoch: 9 }), [true, true]), &record(2, &[0, 1]));
        assert_eq!(deposed, (true, "Deposed: epoch 9 has a new consumer; stopping here, data kept".into()));
        let degraded = array(Some(Reason::Degraded { missing: [r(2)].into() }), [true, true]);
        assert_eq!(check(&degraded, &record(3, &[0, 1])), (true, "Degraded: not in sync: r2".into()));
        let copying = check(&array(Some(Reason::Resyncing { percent: 40 }), [true, false]), &record(2, &[0]));
        assert!(copying.0 && copying.1.contains("40 % done; r0 is the last complete copy of 2"), "{copying:?}");
        // Whatever the array says, the record is what a takeover goes by.
        assert_eq!(check(&array(None, [true, true]), &record(3, &[0, 1])).1, "Degraded: 2 of 3 copies are complete");
        let away = check(&array(Some(Reason::ApiUnreachable), [true, true]), &record(2, &[1]));
        assert_eq!(away, (true, "Degraded: r1 is the last complete copy of 2".into()));
        let mut failing = array(None, [true, true]);
        failing.failing = Some(Failing { reason: Reason::Failing { error: "EIO".into() }, class: Class::Retry });
        assert_eq!(check(&failing, &record(2, &[0, 1])), (true, "Failing: retrying: EIO".into()));
    }
}
