//! Why a request is turned down before any work begins: gRPC code, field and one sentence.
//!
//! Made by `request`, turned into a [`tonic::Status`] by handlers through `?`. It never describes a failure of the
//! work itself and never quotes a secret: fields that may hold one are named, not shown.

use std::borrow::Cow;

use tonic::{Code, Status};

/// Values are quoted up to this many characters, so that a hostile request cannot flood events and logs.
const QUOTED_CHARS_MAX: usize = 64;

/// A request that we do not even begin to work on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The gRPC code that the caller gets.
    pub code: Code,
    /// The field at fault as a path into the request, for instance `parameters.replicaCount`.
    pub field: Cow<'static, str>,
    /// A whole sentence: field, value, what is allowed.
    pub message: String,
}

impl Refusal {
    /// A refusal with its own sentence. `message` must name the field.
    pub fn new(code: Code, field: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { code, field: field.into(), message: message.into() }
    }

    /// A required field is absent or empty.
    pub fn missing(field: impl Into<Cow<'static, str>>) -> Self {
        let field = field.into();
        let message = format!("{field} is missing: this call needs it");
        Self::new(Code::InvalidArgument, field, message)
    }

    /// A field has a value outside what is allowed.
    pub fn value(field: impl Into<Cow<'static, str>>, given: &str, allowed: &str) -> Self {
        let field = field.into();
        let message = format!("{field} is {}: allowed is {allowed}", quoted(given));
        Self::new(Code::InvalidArgument, field, message)
    }

    /// A field asks for something that CSI knows and this version does not offer.
    pub fn not_available(field: impl Into<Cow<'static, str>>, what: &str, allowed: &str) -> Self {
        let field = field.into();
        let message = format!("{field}: {what} not available in this version: allowed is {allowed}");
        Self::new(Code::InvalidArgument, field, message)
    }

    /// A size that no volume can have.
    pub fn out_of_range(field: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(Code::OutOfRange, field, message)
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Status::new(refusal.code, refusal.message)
    }
}

/// The value in quotes, escaped and cut, fit for an event or a log line.
pub(crate) fn quoted(value: &str) -> String {
    match value.char_indices().nth(QUOTED_CHARS_MAX) {
        None => format!("{value:?}"),
        Some((cut, _)) => format!("{:?}...", value.get(..cut).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_carries_code_and_sentence() {
        let status = Status::from(Refusal::value("parameters.replicaCount", "17", "a whole number from 1 to 16"));
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "parameters.replicaCount is \"17\": allowed is a whole number from 1 to 16");
    }

    #[test]
    fn long_and_ugly_values_are_cut_and_escaped() {
        assert_eq!(quoted("a\nb"), "\"a\\nb\"");
        let long = "ä".repeat(1000);
        assert_eq!(quoted(&long).chars().count(), QUOTED_CHARS_MAX + 2 + 3);
    }
}
