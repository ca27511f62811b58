//! The controller's metrics, `meshstor_controller_*`: names, meaning and the one place where each is counted.
//!
//! Called all over the crate. Labels come from closed lists only, never from object names.

use std::collections::BTreeMap;

const VOLUMES: &str = "meshstor_controller_volumes";
const REPLICAS: &str = "meshstor_controller_replicas";
const COPIES_SHORT: &str = "meshstor_controller_copies_short";
const CAS_REFUSED: &str = "meshstor_controller_cas_refused_total";
const RESERVATIONS_REFUSED: &str = "meshstor_controller_reservations_refused_total";
const EPOCHS: &str = "meshstor_controller_epochs_total";
const RECONCILED: &str = "meshstor_controller_reconciled_total";
const RETIRED: &str = "meshstor_controller_copies_retired_total";
const RESERVED: &str = "meshstor_controller_copies_added_total";
const RESYNCS_RUNNING: &str = "meshstor_controller_resyncs_running";
const RESYNCS_WAITING: &str = "meshstor_controller_resyncs_waiting";
const RESYNCS_LIMIT: &str = "meshstor_controller_resyncs_limit";
const EVENTS: &str = "meshstor_controller_events_total";
const UNREADABLE: &str = "meshstor_controller_unreadable_objects_total";

/// Tells the metrics recorder what our metrics mean; call it once after a recorder is installed.
pub fn describe_metrics() {
    metrics::describe_gauge!(VOLUMES, "Volumes the controller knows of");
    metrics::describe_gauge!(REPLICAS, "Replicas by state: in_sync, behind, preparing, retiring, buried");
    metrics::describe_gauge!(COPIES_SHORT, "Complete copies that volumes lack of what they are to have, in all");
    metrics::describe_counter!(CAS_REFUSED, "Compare-and-swaps refused because something had changed, by kind");
    metrics::describe_counter!(RESERVATIONS_REFUSED, "Reservations placed elsewhere because no node accepted them");
    metrics::describe_counter!(EPOCHS, "New epochs, by cause");
    metrics::describe_counter!(RECONCILED, "Looks at a volume by the background loop, by outcome");
    metrics::describe_counter!(RETIRED, "Copies that the controller told to leave, by cause");
    metrics::describe_counter!(RESERVED, "Copies added to volumes that live: replacements and moves");
    metrics::describe_gauge!(RESYNCS_RUNNING, "Whole copies being made, when one was last asked for");
    metrics::describe_gauge!(RESYNCS_WAITING, "Whole copies that waited for the budget then");
    metrics::describe_gauge!(RESYNCS_LIMIT, "Whole copies that may be made at the same time in the cluster");
    metrics::describe_counter!(EVENTS, "Events for claims, PersistentVolumes and pods, by outcome");
    metrics::describe_counter!(UNREADABLE, "Custom resources left out of a list because they cannot be read, by kind");
}

/// Why an epoch began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EpochCause {
    Publish,
    Unpublish,
    Reboot,
}

/// How a copy is, as far as its objects say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CopyState {
    /// Complete.
    InSync,
    /// There, and outside of the set: away, or being copied to.
    Behind,
    /// Its partition is not ready.
    Preparing,
    /// To leave.
    Retiring,
    /// To be wiped.
    Buried,
}

impl CopyState {
    pub(crate) const ALL: [CopyState; 5] =
        [CopyState::InSync, CopyState::Behind, CopyState::Preparing, CopyState::Retiring, CopyState::Buried];

    fn word(self) -> &'static str {
        match self {
            CopyState::InSync => "in_sync",
            CopyState::Behind => "behind",
            CopyState::Preparing => "preparing",
            CopyState::Retiring => "retiring",
            CopyState::Buried => "buried",
        }
    }
}

pub(crate) fn census(volumes: usize, copies: &BTreeMap<CopyState, usize>, short: usize) {
    metrics::gauge!(VOLUMES).set(volumes as f64);
    for (state, count) in copies {
        metrics::gauge!(REPLICAS, "state" => state.word()).set(*count as f64);
    }
    metrics::gauge!(COPIES_SHORT).set(short as f64);
}

pub(crate) fn cas_refused(kind: &'static str) {
    metrics::counter!(CAS_REFUSED, "kind" => kind).increment(1);
}

pub(crate) fn reservation_refused() {
    metrics::counter!(RESERVATIONS_REFUSED).increment(1);
}

pub(crate) fn epoch(cause: EpochCause) {
    let cause = match cause {
        EpochCause::Publish => "publish",
        EpochCause::Unpublish => "unpublish",
        EpochCause::Reboot => "reboot",
    };
    metrics::counter!(EPOCHS, "cause" => cause).increment(1);
}

pub(crate) fn reconciled(ok: bool) {
    metrics::counter!(RECONCILED, "outcome" => if ok { "ok" } else { "failed" }).increment(1);
}

pub(crate) fn retired(cause: &'static str) {
    metrics::counter!(RETIRED, "cause" => cause).increment(1);
}

pub(crate) fn reserved() {
    metrics::counter!(RESERVED).increment(1);
}

pub(crate) fn resyncs(running: usize, waiting: usize, limit: usize) {
    metrics::gauge!(RESYNCS_RUNNING).set(running as f64);
    metrics::gauge!(RESYNCS_WAITING).set(waiting as f64);
    metrics::gauge!(RESYNCS_LIMIT).set(limit as f64);
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Telling {
    Sent,
    /// Another controller had sent it.
    Known,
    Failed,
    /// Too many at a time.
    Dropped,
}

pub(crate) fn told(outcome: Telling) {
    let outcome = match outcome {
        Telling::Sent => "sent",
        Telling::Known => "known",
        Telling::Failed => "failed",
        Telling::Dropped => "dropped",
    };
    metrics::counter!(EVENTS, "outcome" => outcome).increment(1);
}

pub(crate) fn unreadable(kind: String) {
    metrics::counter!(UNREADABLE, "kind" => kind).increment(1);
}
