//! Worlds: how each kind's fact is observed and its steps are done. One small file for each kind.
//!
//! Called by the shell alone. They read the kernel and, for what must be right, the API server by quorum; they never
//! decide and never keep a fact from one look to the next (ages and refusals, which no kernel remembers, excepted).

pub mod array;
pub mod connection;
pub mod drive;
pub mod export;
pub mod partition;
pub mod stage;
