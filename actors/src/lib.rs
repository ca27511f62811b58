//! The actor tree: the only place that knows actix.

pub mod events;
pub mod failure;
pub mod messages;
pub mod shell;
pub mod tree;

#[cfg(test)]
mod testing;
