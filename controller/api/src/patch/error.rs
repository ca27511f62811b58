//! Why a compare-and-swap is never sent, was refused, or has an unknown end.
//!
//! Made by the functions of [`super`] and by whoever sends their patches. Nothing here talks to a server.

use meshstor_kernel::id::{Epoch, ReplicaId};

/// A change that would break a promise, whatever the server holds. It is never sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The object was not read from a server.
    #[error("{object}: metadata.{field} is absent: a change needs an object as the API server answered it")]
    NotRead {
        /// Name of the object.
        object: String,
        /// What is missing.
        field: &'static str,
    },
    /// The in-sync set would become empty.
    #[error("{object}: status.inSync would become empty: at least one replica must stay in it")]
    Empty {
        /// Name of the volume.
        object: String,
    },
    /// Nobody knows which copies are complete, so nobody can change the set.
    #[error("{object}: status.inSync is absent, which means unknown: only meshstor recover may set it")]
    Unknown {
        /// Name of the volume.
        object: String,
    },
    /// A set would gain a member without the proof that growing demands.
    #[error("{object}: {replica} is not in status.inSync: an activation may only keep or drop members")]
    Gained {
        /// Name of the volume.
        object: String,
        /// The replica that would sneak in.
        replica: ReplicaId,
    },
    /// A copy that holds every acknowledged write would be let go.
    #[error("{object}: {replica} is in status.inSync: only a copy outside of it may be let go")]
    StillInSync {
        /// Name of the volume.
        object: String,
        /// The copy.
        replica: ReplicaId,
    },
    /// A number that a copy had would be given to another one.
    #[error("{object}: {replica} was a copy's number already: the next one is at least r{next}")]
    NumberUsed {
        /// Name of the volume.
        object: String,
        /// The number.
        replica: ReplicaId,
        /// The lowest free one.
        next: u32,
    },
    /// Something would become smaller.
    #[error("{object}: {field} would go from {from} to {to}: nothing of a volume ever shrinks")]
    Shrinks {
        /// Name of the object.
        object: String,
        /// Which field.
        field: &'static str,
        /// Bytes that it has.
        from: u64,
        /// Bytes wished for.
        to: u64,
    },
    /// The set belongs to the consumer.
    #[error("{object}: spec.attachment.consumer is set: the in-sync set is the consumer's to change")]
    Attached {
        /// Name of the volume.
        object: String,
    },
    /// The file system exists already.
    #[error("{object}: status.format.state is done: a file system is made at most once")]
    Formatted {
        /// Name of the volume.
        object: String,
    },
    /// The epoch would not rise.
    #[error("{object}: spec.attachment.epoch would go from {from} to {to}: it only ever rises")]
    EpochNotRaised {
        /// Name of the volume.
        object: String,
        /// Epoch in the record.
        from: Epoch,
        /// Epoch wished for.
        to: Epoch,
    },
    /// The volume was recorded before.
    #[error("{object}: the record exists already (epoch {epoch}): it is made once, at creation")]
    Recorded {
        /// Name of the volume.
        object: String,
        /// Its epoch.
        epoch: Epoch,
    },
}

/// Why a compare-and-swap did not happen, or may not have happened.
#[derive(Debug, thiserror::Error)]
pub enum CasError {
    /// What was tested has changed since it was read, or a rule of the server forbids the change.
    #[error(transparent)]
    Refused(#[from] CasRefused),
    /// The object does not exist.
    #[error("{object} does not exist")]
    Missing {
        /// Name of the object.
        object: String,
    },
    /// The change must never be sent.
    #[error(transparent)]
    Forbidden(#[from] PatchError),
    /// The API server could not be asked, or failed: the change may have happened.
    #[error("{object}: the API server does not answer as it should: {source}")]
    Api {
        /// Name of the object.
        object: String,
        /// What happened.
        #[source]
        source: Box<kube::Error>,
    },
}

/// The server refused a compare-and-swap: look again and decide again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object} has changed since it was read ({message})")]
pub struct CasRefused {
    /// Name of the object.
    pub object: String,
    /// The server's words.
    pub message: String,
}

impl CasError {
    /// What the answer to a patch of `object` means.
    pub fn from_kube(object: &str, error: kube::Error) -> CasError {
        let object = object.to_string();
        match error {
            // 422 is a failed test or a broken rule, 409 a lost race for the object itself.
            kube::Error::Api(status) if status.code == 422 || status.code == 409 => {
                CasError::Refused(CasRefused { object, message: status.message.clone() })
            }
            kube::Error::Api(status) if status.code == 404 => CasError::Missing { object },
            other => CasError::Api { object, source: Box::new(other) },
        }
    }

    /// Whether looking and deciding again is all there is to do.
    pub fn is_refused(&self) -> bool {
        matches!(self, CasError::Refused(_))
    }
}
