//! The controller role: the CSI controller service and the loop that keeps promises when nobody calls.
//!
//! Called by `meshstor controller`, `meshstor dev` and tests: [`Controller::new`], then [`Controller::service`] for the
//! CSI socket and [`Controller::run`] for the loop. Both may run in any number of processes at once: every decision is
//! made on quorum reads and takes effect by compare-and-swap, so nothing here depends on being the only one (K8).
//!
//! ```text
//! csi ──▶ create │ publish │ unpublish │ delete │ list ──┐            ┌─▶ placement (pure, crate plan)
//!                                                        ├─▶ decide ──┤
//! loops (watch hints, timer) ──▶ reconcile ──────────────┘            └─▶ writer ─▶ API server (JSON patch with tests)
//! ```
//!
//! It never touches a kernel or a drive, never talks to a node agent except through custom resources, and keeps nothing
//! in memory that must survive a restart.

mod budget;
mod census;
mod create;
mod csi;
mod decide;
mod delete;
mod error;
mod expand;
mod exports;
mod failover;
mod guard;
mod health;
mod herald;
mod hints;
mod list;
mod loops;
mod names;
mod offers;
mod orphan;
mod publish;
mod reconcile;
pub mod recover;
mod repair;
mod reserve;
mod telemetry;
mod unpublish;
mod writer;

pub use budget::ResyncLimits;
pub use error::ControlError;
pub use k8s_openapi::jiff::Timestamp;
pub use telemetry::describe_metrics;

use hints::{Awaited, Hints};
use meshstor_api::tell::{self, Teller};
use meshstor_api::{Condition, MeshStorVolume};
use meshstor_csi::inflight::Inflight;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;
use writer::Writer;

/// How long things may take, and where time and randomness come from.
#[derive(Clone)]
pub struct ControllerConfig {
    /// A reservation that its node has not accepted after this long is placed elsewhere, if there is another place.
    pub reservation_timeout: Duration,
    /// An accepted reservation whose partition is not ready after this long is given up, and one that was not accepted.
    pub preparation_timeout: Duration,
    /// A node whose last report is older gets no copies and is not waited for when a volume is deleted.
    pub heartbeat_max: Duration,
    /// An API request that takes longer counts as failed.
    pub api_timeout: Duration,
    /// Waiting calls look again after this long even without a hint.
    pub poll: Duration,
    /// The loop looks at every volume after this long even without a hint.
    pub resync: Duration,
    /// The loop looks again at a volume whose step failed, or that waits for something without hints, after this long.
    pub retry: Duration,
    /// The loop looks again at a volume that is being repaired, or misses a copy, after this long.
    pub repair_poll: Duration,
    /// How many copies may be made wholly at the same time.
    pub resyncs: ResyncLimits,
    /// After this long without a sign of life of a node its volumes are brought to others; `None`: never without being asked.
    pub fail_over: Option<Duration>,
    /// Pods that hold up drains; `None`: a drain does not ask.
    pub guard: Option<GuardConfig>,
    /// The wall clock: for heartbeats and for times written into objects, never for timers.
    pub now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// Where the identities of new volumes come from.
    pub new_id: Arc<dyn Fn() -> Uuid + Send + Sync>,
}

impl Default for ControllerConfig {
    fn default() -> Self {
        ControllerConfig {
            reservation_timeout: Duration::from_secs(5),
            preparation_timeout: Duration::from_secs(120),
            heartbeat_max: Duration::from_secs(60),
            api_timeout: Duration::from_secs(10),
            poll: Duration::from_millis(500),
            resync: Duration::from_secs(60),
            retry: Duration::from_secs(2),
            repair_poll: Duration::from_secs(5),
            resyncs: ResyncLimits::default(),
            fail_over: None,
            guard: None,
            now: Arc::new(Timestamp::now),
            new_id: Arc::new(Uuid::new_v4),
        }
    }
}

impl fmt::Debug for ControllerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControllerConfig")
            .field("reservation_timeout", &self.reservation_timeout)
            .field("preparation_timeout", &self.preparation_timeout)
            .field("heartbeat_max", &self.heartbeat_max)
            .field("api_timeout", &self.api_timeout)
            .field("poll", &self.poll)
            .field("resync", &self.resync)
            .field("retry", &self.retry)
            .field("repair_poll", &self.repair_poll)
            .field("resyncs", &self.resyncs)
            .field("fail_over", &self.fail_over)
            .field("guard", &self.guard)
            .finish_non_exhaustive()
    }
}

/// What all parts share.
pub(crate) struct Context {
    pub(crate) writer: Writer,
    pub(crate) config: ControllerConfig,
    pub(crate) hints: Hints,
    pub(crate) awaited: Awaited,
    pub(crate) inflight: Inflight,
    pub(crate) refusals: repair::Refusals,
    pub(crate) budget: budget::Budget,
    pub(crate) teller: Teller,
    pub(crate) signs: failover::Signs,
}

impl Context {
    /// People hear of conditions of a volume that were written.
    pub(crate) async fn tell(&self, volume: &MeshStorVolume, written: &[Condition]) {
        let before = volume.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let told = tell::changes(before, written);
        self.teller.tell::<MeshStorVolume>(name, volume.metadata.uid.clone(), &told).await;
    }

    /// How long ago something was, by the wall clock; a clock that went back makes it younger.
    pub(crate) fn since(&self, then: Timestamp) -> Duration {
        let seconds = (self.config.now)().as_second().saturating_sub(then.as_second());
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    /// Now, as objects carry it.
    pub(crate) fn timestamp(&self) -> String {
        let now = (self.config.now)();
        Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
    }
}

/// The controller role. Clones share everything.
#[derive(Clone)]
pub struct Controller {
    context: Arc<Context>,
}

impl Controller {
    /// A controller over this API server.
    pub fn new(client: kube::Client, config: ControllerConfig) -> Controller {
        let teller = Teller::new(client.clone(), "controller", None);
        let writer = Writer::new(client, config.api_timeout);
        let (hints, awaited, inflight) = (Hints::default(), Awaited::default(), Inflight::default());
        let refusals = repair::Refusals::default();
        let budget = budget::Budget::default();
        let signs = failover::Signs::default();
        Controller {
            context: Arc::new(Context { writer, config, hints, awaited, inflight, refusals, budget, teller, signs }),
        }
    }

    /// The CSI controller service, to be put behind `proto::controller_server::ControllerServer`.
    pub fn service(&self) -> ControllerService {
        ControllerService::new(Arc::clone(&self.context))
    }

    /// Runs the loop until `shutdown` ends. Without it calls still work, but slower (they poll), and nothing that needs
    /// no call happens: new epochs after reboots, returns of departed copies, repair, deletions left half done.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            () = loops::run(Arc::clone(&self.context)) => {}
            () = failover::run(Arc::clone(&self.context)) => {}
            () = guard::run(Arc::clone(&self.context)) => {}
            () = shutdown => {}
        }
    }
}

pub use csi::ControllerService;
pub use guard::GuardConfig;
