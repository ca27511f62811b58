//! Every message between actors of the shell and the tree.
//!
//! Messages are hints: each can be lost or doubled without harm, because the receiver looks at the thing itself. What
//! must not be lost (what is wanted, what is reported) travels in `tokio::sync::watch` channels, where the last value
//! stays. The root actor's own messages, which carry values, stand in `node/messages.rs`.

use actix::Message;

/// Look again.
#[derive(Message, Debug, Clone, Copy, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct Look {
    /// Why.
    pub why: Why,
}

/// Why somebody should look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The kernel or a watch says that something may have changed.
    Hint,
    /// Something else is wanted now: a running back-off no longer counts.
    Desire,
}

/// Finish the round, then end.
#[derive(Message, Debug, Clone, Copy, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct Stop;

/// End now, in the middle of whatever is being done: what a killed process does. For simulations.
#[derive(Message, Debug, Clone, Copy, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct Kill;

/// A child's report has changed.
#[derive(Message, Debug, Clone, Copy, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct Poke;

/// A child has ended, by a stop or by a panic.
#[derive(Message, Debug, Clone, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct Died {
    /// Its kind.
    pub kind: &'static str,
    /// Its key, for the log.
    pub key: String,
    /// Which life of it.
    pub generation: u64,
}
