//! Pure decisions: what to do next, given what is wanted and what is.
//!
//! ```text
//!  hint ─▶ look again ─▶ fact ─┐
//!                              ├─▶ plan(desired, fact) ─▶ at most one Step, a Status, when to look again
//!  CRD / CSI ─▶ desired ───────┘
//! ```
//!
//! Called by the actors' shell after every observation and by the simulator's checks. A plan reads no clock, draws no
//! random number, logs nothing, never fails and never waits: being blocked is [`Reason`] in the status.

pub mod array;
pub mod connection;
pub mod drain;
pub mod drive;
pub mod export;
pub mod failover;
pub mod partition;
pub mod placement;
pub mod reason;
pub mod record;
pub mod recover;
pub mod stage;
#[cfg(test)]
mod testing;
pub mod wall;

pub use reason::Reason;

use meshstor_kernel::ops::Op;
use record::RecordOp;
use std::fmt;
use std::time::Duration;

/// One kind of supervised thing: what is wanted, what is, and the decision between them.
pub trait Machine: 'static {
    /// Name of the kind: metric label, log field, audit line.
    const KIND: &'static str;
    /// What is wanted. `None` means: nobody wants it any more.
    type Desired: Clone + PartialEq + fmt::Debug + 'static;
    /// What was observed.
    type Fact: fmt::Debug + 'static;
    /// What is reported.
    type Status: Clone + PartialEq + Default + fmt::Debug + 'static;

    /// The decision. Total: every input has an answer.
    fn plan(desired: Option<&Self::Desired>, fact: &Self::Fact) -> Plan<Self::Status>;

    /// Whether something waits for what comes next, somebody's writes say, and would wait for the next program if this one
    /// stopped now: by what was observed, or by what `step` has done since.
    fn unfinished(_fact: &Self::Fact, _step: Option<&Step>) -> bool {
        false
    }
}

/// What to do next and what to report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<S> {
    /// At most one step; everything is observed again before the next.
    pub next: Option<Step>,
    /// What to report meanwhile.
    pub status: S,
    /// Look again after this long even without a hint; `None`: the ordinary re-look period is enough.
    pub look_in: Option<Duration>,
}

impl<S> Plan<S> {
    /// Do this, report that.
    pub fn step(step: impl Into<Step>, status: S) -> Plan<S> {
        Plan { next: Some(step.into()), status, look_in: None }
    }

    /// Nothing to do now.
    pub fn rest(status: S) -> Plan<S> {
        Plan { next: None, status, look_in: None }
    }

    /// Nothing to do now, but look again soon because no hint will come.
    pub fn look_in(status: S, after: Duration) -> Plan<S> {
        Plan { next: None, status, look_in: Some(after) }
    }
}

/// One thing to do: to this node's kernel, or to the recorded truth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// An operation on the kernel or a drive.
    Kernel(Op),
    /// A compare-and-swap on the volume's custom resource.
    Record(RecordOp),
}

impl Step {
    /// Short name: metric label and trace.
    pub fn name(&self) -> &'static str {
        match self {
            Step::Kernel(op) => op.name(),
            Step::Record(op) => op.name(),
        }
    }
}

impl From<Op> for Step {
    fn from(op: Op) -> Step {
        Step::Kernel(op)
    }
}

impl From<RecordOp> for Step {
    fn from(op: RecordOp) -> Step {
        Step::Record(op)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Kernel(op) => op.fmt(f),
            Step::Record(op) => op.fmt(f),
        }
    }
}
