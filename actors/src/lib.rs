//! The actor tree: the only place that knows actix.

pub mod api;
pub mod clock;
pub mod env;
pub mod events;
pub mod failure;
pub mod kinds;
pub mod messages;
pub mod node;
pub mod shell;
pub mod sources;
pub mod status;
pub mod tree;
pub mod worlds;

#[cfg(test)]
mod testing;
