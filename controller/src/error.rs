//! What goes wrong in the controller, and which gRPC code a caller gets for it.
//!
//! Made by `writer` and the decisions on top of it. Codes follow K7: what will pass when asked again is Unavailable or
//! Aborted, what needs a person is FailedPrecondition.

use meshstor_api::convert::Garbage;
use meshstor_api::patch::{CasError, PatchError};
use tonic::Status;

/// Why a step could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The API server could not be asked, or failed.
    #[error("the API server does not answer as it should ({what}): {source}")]
    Api {
        /// What was asked.
        what: String,
        /// What happened.
        #[source]
        source: Box<kube::Error>,
    },
    /// A compare-and-swap did not happen, or may not have happened.
    #[error(transparent)]
    Cas(#[from] CasError),
    /// An object says something no writer of ours says.
    #[error(transparent)]
    Garbage(#[from] Garbage),
    /// An object lacks fields, or has fields of another shape.
    #[error("{kind} {name} cannot be read: {why}; allowed is what its custom resource definition describes")]
    Unreadable {
        /// Kind of the object.
        kind: String,
        /// Name of the object.
        name: String,
        /// What the parser says.
        why: String,
    },
    /// The cluster has no identity.
    #[error("namespace kube-system has uid {uid:?}: allowed is a uuid; volumes cannot be told from another cluster's")]
    ClusterUnknown {
        /// What was found.
        uid: String,
    },
}

impl ControlError {
    /// The HTTP status by which the API server refused a request about a kind that is not ours; none when there was no answer.
    pub(crate) fn refused_with(&self) -> Option<u16> {
        match self {
            ControlError::Api { source, .. } => match &**source {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether the decision was made on something that has changed or gone since: looking and deciding again is all
    /// there is to do.
    pub(crate) fn is_stale(&self) -> bool {
        matches!(self, ControlError::Cas(CasError::Refused(_) | CasError::Missing { .. }))
    }
}

impl From<PatchError> for ControlError {
    fn from(error: PatchError) -> Self {
        ControlError::Cas(CasError::Forbidden(error))
    }
}

impl From<ControlError> for Status {
    fn from(error: ControlError) -> Status {
        let message = error.to_string();
        match error {
            ControlError::Api { .. } | ControlError::Cas(CasError::Api { .. }) => Status::unavailable(message),
            ControlError::Cas(CasError::Refused(_) | CasError::Missing { .. }) => {
                Status::aborted(format!("{message}; ask again"))
            }
            ControlError::Cas(CasError::Forbidden(_))
            | ControlError::Garbage(_)
            | ControlError::Unreadable { .. }
            | ControlError::ClusterUnknown { .. } => Status::failed_precondition(message),
        }
    }
}
