//! The controller as sidecars and node agents meet it: CSI calls against an in-memory API server with stand-in agents.
//! One test binary, one module for each theme; `world.rs` builds what they all need.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod attachment;
mod creation;
mod deletion;
mod drain;
mod events;
mod expansion;
mod failover;
mod faults;
mod orphans;
mod reading;
mod repair;
mod replacement;
mod world;
