//! The store as production code meets it: through `kube::Api` and `kube::runtime::watcher`, on typed kinds.
//! One test binary, one module per theme; `world.rs` builds what they all need.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

mod deletion;
mod faults;
mod objects;
mod patches;
mod runtimes;
mod time_travel;
mod watches;
mod world;
