//! The generic actor: everything that is actix about a drive, a partition, an export, a connection, an array, a stage.
//!
//! ```text
//!  Look ─▶ observe(desired) ─▶ M::plan ─▶ report ─▶ apply at most one step ─▶ look again at once
//!            │ failed: report stays, `failing` says why, back-off by class       (after a rest: in look_in, or the period)
//! ```
//!
//! Started and respawned by [`crate::tree`]; what it does to the outside is its [`World`]. One round runs at a time: a
//! [`Look`] during a round makes one more round follow. It never keeps a fact from one round to the next, never decides,
//! and holds the only `ctx.spawn` of the crate's children.

mod voice;

use crate::events;
use crate::failure::{Failure, RETRY_MIN};
use crate::messages::{Died, Kill, Look, Poke, Stop, Why};
use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, SpawnHandle, WrapFuture};
use meshstor_kernel::Class;
use meshstor_kernel::mutant::{self, Mutant};
use meshstor_kernel::ops::Changed;
use meshstor_plan::{Machine, Plan, Reason, Step};
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use voice::{DeathWatch, Speaker};

/// An observation that takes longer than this is given up: a hung read must not end an actor's attention.
const OBSERVE_MAX: Duration = Duration::from_secs(30);
/// A compare-and-swap has its own shorter timeout; this is the fuse behind it.
const RECORD_MAX: Duration = Duration::from_secs(15);
/// The same for an operation of the kernel, after its own deadline.
const KERNEL_FUSE: Duration = Duration::from_secs(1);
/// How long a stop waits at most for what is unfinished: kubelet gives the agent 30 s, and a round may be under way.
const FINISH_MAX: Duration = Duration::from_secs(15);
/// So many steps without a rest are a plan that runs in circles: it goes on, slowly and loudly.
const STEPS_WITHOUT_REST: u32 = 64;

/// What a kind's plan is connected to: how its fact is observed and its steps are done.
///
/// Futures are not `Send`: they live on the actor thread. A dropped future must leave nothing behind.
pub trait World<M: Machine>: 'static {
    /// Looks at everything the plan needs to know.
    fn observe(&self, desired: Option<&M::Desired>) -> impl Future<Output = Result<M::Fact, Failure>>;

    /// Does one step.
    fn apply(&self, step: &Step) -> impl Future<Output = Result<Changed, Failure>>;
}

/// What is wanted, and which wish it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted<D> {
    /// Rises with each change of the wish; a report names the one it answers.
    pub revision: u64,
    /// The wish; `None`: nobody wants it any more.
    pub desired: Option<D>,
}

impl<D> Default for Wanted<D> {
    fn default() -> Self {
        Wanted { revision: 0, desired: None }
    }
}

/// What an actor reports: its last good status, and whether it is failing since.
#[derive(Debug, Clone, PartialEq)]
pub struct Report<S> {
    /// Status of the last round whose observation succeeded.
    pub status: S,
    /// The wish that `status` answers; zero: none yet.
    pub revision: u64,
    /// What fails since, if anything.
    pub failing: Option<Failing>,
}

/// A failure as reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failing {
    /// In words for conditions and CSI.
    pub reason: Reason,
    /// Whether trying again can help.
    pub class: Class,
}

impl<S: Default> Default for Report<S> {
    fn default() -> Self {
        Report { status: S::default(), revision: 0, failing: None }
    }
}

impl<S> Report<S> {
    /// The status, if it answers wish `revision` or a later one and nothing has failed since.
    pub fn answer(&self, revision: u64) -> Option<&S> {
        (self.revision >= revision && self.failing.is_none()).then_some(&self.status)
    }
}

/// Who an actor is, to whom it reports and how often it looks.
#[derive(Clone)]
pub struct Identity {
    /// Its key as text, for log lines and the audit.
    pub key: String,
    /// Which life of it.
    pub generation: u64,
    /// Longest time between two looks.
    pub period: Duration,
    /// Told when it ends.
    pub died: Recipient<Died>,
    /// Told when its report changes.
    pub poke: Recipient<Poke>,
}

/// The generic actor.
pub struct Shell<M: Machine, W: World<M>> {
    world: Rc<W>,
    wanted: watch::Receiver<Wanted<M::Desired>>,
    speaker: Speaker<M::Status>,
    period: Duration,
    busy: bool,
    dirty: bool,
    /// Until when a stop that was asked for waits.
    stopping: Option<Instant>,
    unfinished: bool,
    timer: Option<SpawnHandle>,
    failures: u32,
    not_before: Option<Instant>,
    streak: u32,
    last_step: Option<Step>,
    _death_watch: DeathWatch,
}

impl<M: Machine, W: World<M>> Shell<M, W> {
    /// An actor that begins by looking.
    pub fn new(
        identity: Identity,
        world: W,
        wanted: watch::Receiver<Wanted<M::Desired>>,
        report: Rc<watch::Sender<Report<M::Status>>>,
    ) -> Self {
        let Identity { key, generation, period, died, poke } = identity;
        let period = spread(period, &key);
        let key: Rc<str> = key.into();
        Shell {
            world: Rc::new(world),
            wanted,
            speaker: Speaker { kind: M::KIND, key: Rc::clone(&key), report, poke },
            period,
            busy: false,
            dirty: false,
            stopping: None,
            unfinished: false,
            timer: None,
            failures: 0,
            not_before: None,
            streak: 0,
            last_step: None,
            _death_watch: DeathWatch { kind: M::KIND, key, generation, died },
        }
    }

    /// Begins a round, or notes that one more is needed.
    fn begin(&mut self, ctx: &mut Context<Self>) {
        if self.busy {
            self.dirty = true;
            return;
        }
        // A parent that is gone wants nothing; its own timers would keep this actor alive for ever.
        if self.stops() || self.wanted.has_changed().is_err() {
            return actix::ActorContext::stop(ctx);
        }
        self.cancel_timer(ctx);
        self.busy = true;
        self.dirty = false;
        self.not_before = None;
        let wanted = self.wanted.borrow_and_update().clone();
        let round = round(Rc::clone(&self.world), wanted, self.speaker.clone(), self.stopping.is_some());
        ctx.spawn(round.into_actor(self).map(|end, shell, ctx| shell.ended(end, ctx)));
    }

    fn stops(&self) -> bool {
        self.stopping.is_some_and(|until| !self.unfinished || until <= Instant::now())
    }

    fn ended(&mut self, (end, unfinished): (End, Option<bool>), ctx: &mut Context<Self>) {
        self.busy = false;
        self.unfinished = unfinished.unwrap_or(self.unfinished);
        if self.stops() {
            return actix::ActorContext::stop(ctx);
        }
        match end {
            End::Rest { look_in } => {
                self.failures = 0;
                self.streak = 0;
                self.last_step = None;
                let pause = look_in.map_or(self.period, |after| after.min(self.period));
                if mutant::on(Mutant::HintsOnly) && !self.dirty {
                    return;
                }
                // Nobody hints at what happens any more.
                let pause = if self.stopping.is_some() { pause.min(RETRY_MIN) } else { pause };
                self.again(if self.dirty { Duration::ZERO } else { pause }, ctx);
            }
            End::Step { step, changed } => self.stepped(step, changed, ctx),
            End::Failed(failure) => self.failed(&failure, ctx),
        }
    }

    fn stepped(&mut self, step: Step, changed: Changed, ctx: &mut Context<Self>) {
        self.streak += 1;
        if changed == Changed::No && self.last_step.as_ref() == Some(&step) {
            let failure = Failure::NoEffect { what: step.to_string() };
            self.speaker.fails(&failure);
            return self.failed(&failure, ctx);
        }
        self.last_step = Some(step);
        if self.streak.is_multiple_of(STEPS_WITHOUT_REST) {
            events::circles(M::KIND, &self.speaker.key, self.streak);
            return self.again(Duration::from_secs(1), ctx);
        }
        // A step that changed something proves that what failed before no longer does.
        if changed == Changed::Yes {
            self.failures = 0;
        }
        self.again(Duration::ZERO, ctx);
    }

    fn failed(&mut self, failure: &Failure, ctx: &mut Context<Self>) {
        if mutant::on(Mutant::NoLookAfterFailure) {
            return;
        }
        self.failures = self.failures.saturating_add(1);
        let pause = failure.pause(self.failures);
        // What hints during the failed round may have been about is looked at soon, but a step whose failure causes
        // hints must not spin.
        let pause = if self.dirty { pause.min(RETRY_MIN) } else { pause };
        self.not_before = Some(Instant::now() + RETRY_MIN.min(pause));
        self.again(pause, ctx);
    }

    fn again(&mut self, after: Duration, ctx: &mut Context<Self>) {
        self.cancel_timer(ctx);
        if after.is_zero() {
            return self.begin(ctx);
        }
        self.timer = Some(ctx.run_later(after, |shell, ctx| {
            shell.timer = None;
            shell.begin(ctx);
        }));
    }

    fn cancel_timer(&mut self, ctx: &mut Context<Self>) {
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
    }

    /// A hint during a back-off: the look comes forward, to the shortest back-off at the earliest.
    fn hinted(&mut self, why: Why, ctx: &mut Context<Self>) {
        let wait = self.not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
        if self.busy || wait.is_zero() || why == Why::Desire {
            self.failures = if self.busy { self.failures } else { 0 };
            return self.begin(ctx);
        }
        self.failures = 0;
        self.again(wait, ctx);
    }
}

impl<M: Machine, W: World<M>> Actor for Shell<M, W> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if running() {
            self.begin(ctx);
        }
    }
}

impl<M: Machine, W: World<M>> Handler<Look> for Shell<M, W> {
    type Result = ();

    fn handle(&mut self, look: Look, ctx: &mut Self::Context) {
        self.hinted(look.why, ctx);
    }
}

impl<M: Machine, W: World<M>> Handler<Stop> for Shell<M, W> {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        // Said again as long as it has not ended.
        self.stopping.get_or_insert_with(|| Instant::now() + FINISH_MAX);
        if !self.busy && self.stops() {
            actix::ActorContext::stop(ctx);
        }
    }
}

impl<M: Machine, W: World<M>> Handler<Kill> for Shell<M, W> {
    type Result = ();

    fn handle(&mut self, _: Kill, ctx: &mut Self::Context) {
        actix::ActorContext::terminate(ctx);
    }
}

/// Whether actors can run at all. actix starts an actor that never ran once more when its system is dropped; timers made
/// then would panic in the middle of that drop.
pub(crate) fn running() -> bool {
    tokio::runtime::Handle::try_current().is_ok()
}

/// How a round ended.
enum End {
    /// Nothing to do.
    Rest { look_in: Option<Duration> },
    /// One step was done.
    Step { step: Step, changed: Changed },
    /// The observation or the step failed.
    Failed(Failure),
}

/// Observe, plan, report, do at most one step; `last` says that it may only finish what was begun. Answers also whether
/// something waits for the next round; nothing when that could not be seen.
async fn round<M: Machine, W: World<M>>(
    world: Rc<W>,
    wanted: Wanted<M::Desired>,
    speaker: Speaker<M::Status>,
    last: bool,
) -> (End, Option<bool>) {
    let observed = within(OBSERVE_MAX, || format!("looking at {} {}", M::KIND, speaker.key), {
        world.observe(wanted.desired.as_ref())
    });
    let begun = Instant::now();
    let observed = observed.await;
    events::looked(M::KIND, &speaker.key, begun.elapsed());
    let fact = match observed {
        Ok(fact) => fact,
        Err(failure) => {
            speaker.fails(&failure);
            return (End::Failed(failure), None);
        }
    };
    let Plan { next, status, look_in } = M::plan(wanted.desired.as_ref(), &fact);
    tracing::trace!(kind = M::KIND, key = %speaker.key, ?fact, ?next, ?status, "round");
    let next = next.filter(|_| !last || M::unfinished(&fact, None));
    let unfinished = M::unfinished(&fact, next.as_ref());
    drop(fact);
    let Some(step) = next else {
        speaker.says(status, wanted.revision, true);
        return (End::Rest { look_in }, Some(unfinished));
    };
    // A failure stays in the report until a step works or nothing is left to do.
    speaker.says(status, wanted.revision, false);
    let limit = match &step {
        // The kernel's binding keeps the deadline and tells the world; this is the fuse behind it.
        Step::Kernel(op) => op.deadline() + KERNEL_FUSE,
        Step::Record(_) => RECORD_MAX,
    };
    let audit = events::Audit::begin(M::KIND, &speaker.key, &step);
    let result = within(limit, || step.to_string(), world.apply(&step)).await;
    audit.end(&result);
    let end = match result {
        Ok(changed) => {
            speaker.works();
            End::Step { step, changed }
        }
        Err(failure) => {
            speaker.fails(&failure);
            End::Failed(failure)
        }
    };
    (end, Some(unfinished))
}

/// The result, or `TimedOut` when it takes too long.
async fn within<T>(
    limit: Duration,
    what: impl FnOnce() -> String,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_elapsed) => Err(Failure::TimedOut { what: what(), after: limit }),
    }
}

/// The period, up to a tenth shorter by the key, so that hundreds of actors do not look in step.
fn spread(period: Duration, key: &str) -> Duration {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    let share = (hasher.finish() % 1000) as f64 / 10_000.0;
    period.mul_f64(1.0 - share)
}

#[cfg(test)]
#[path = "shell_tests.rs"]
mod tests;
