//! An in-memory Kubernetes API store under the ordinary kube client.
//!
//! `meshstor dev` and the simulations hold a [`Store`]; everything else gets `store.client_for("node-a")` and cannot
//! tell the difference from a cluster: the store is a tower service beneath `kube::Client`. It never opens a socket,
//! spawns a task, starts a thread, or draws a random number.
//!
//! ```text
//! kube::Client -> StoreService -> link and fault rules -> route -> read | write -> rules -> State (one lock)
//!                                                              \-> WatchStream <- history <-'
//! ```
//!
//! Determinism: ordered maps only, uids and generated names from a seed, timestamps from an injectable [`Clock`],
//! waiters woken in the order in which they came. Timers (watch timeouts, bookmarks, latency) run on tokio's clock, so
//! the runtime needs `enable_time`, and a paused one works.
//!
//! # Where this is not a real server
//!
//! * No schemas: unknown fields are kept, nothing is defaulted, and only the caller's [`Validator`] refuses values.
//!   No admission, no RBAC, no quota, no garbage collection of ownerReferences, no namespace life cycle.
//! * Server-side apply has no field ownership and stores no managedFields: a deep merge in which nothing is ever
//!   removed and no manager conflicts; lists are replaced whole except `conditions`, merged by `type`. Strategic merge
//!   (built-in kinds only) is the same with `null` as removal.
//! * `/status` writes change `status` only. For built-in kinds a real server also lets some metadata through.
//! * DELETE ignores grace periods and propagation policies: a pod goes at once. PUT never creates.
//! * `limit` is ignored; a LIST at an exact version other than the present one answers 410.
//! * All kinds share one history, so [`Builder::history`] counts changes of all of them together, and every kind
//!   counts generations. core/v1 and events.k8s.io/v1 events are separate collections.
//! * A cut client's watches catch up from the history when the link is up again, as after TCP retransmission; what a
//!   real kernel would have given up on, [`Faults::close_watches`] ends.

mod clock;
mod discovery;
mod error;
mod faults;
mod patch;
mod read;
mod route;
mod rules;
mod schema;
mod seed;
mod selector;
mod service;
mod state;
mod store;
mod watch;
mod write;

pub use clock::{Clock, SystemClock, Timestamp, TokioClock};
pub use error::LinkError;
pub use faults::{Fault, Faults, Link, Outcome};
pub use route::Verb;
pub use schema::{Schema, builtin_schemas};
pub use service::{ReplyBody, StoreService};
pub use state::{Change, Counters, Snapshot, WatchEnd};
pub use store::{Builder, Store, Validator};
