//! What goes wrong: [`ApiError`] is an answer of the server (it becomes the `Status` JSON behind
//! `kube::Error::Api`), [`LinkError`] is a broken connection (it becomes `kube::Error::Service` or `ReadEvents`).
//! Texts and reasons follow a real server, so production code can be tested against them. Nothing here retries.

use crate::schema::Schema;
use serde_json::{Value, json};

/// The connection between a client and the store failed; whether the request took effect is unknown to the client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The link is set to [`crate::Link::Refuse`]; a request that got this one had no effect.
    #[error("connection refused (client {client})")]
    Refused {
        /// Name given to [`crate::Store::client_for`].
        client: String,
    },
    /// The connection broke while a request or a watch was under way.
    #[error("connection reset (client {client})")]
    Reset {
        /// Name given to [`crate::Store::client_for`].
        client: String,
    },
    /// The request body could not be read.
    #[error("request body: {0}")]
    Body(#[source] kube::Error),
    /// The answer could not be put together; a bug of the store.
    #[error("response: {0}")]
    Response(#[source] http::Error),
}

/// A refusal by the server. `Display` is not needed: [`ApiError::status`] is the only reader.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ApiError {
    NoSuchPath,
    NotFound {
        resource: String,
        group: String,
        plural: String,
        name: String,
    },
    AlreadyExists {
        resource: String,
        group: String,
        plural: String,
        name: String,
    },
    Conflict {
        resource: String,
        group: String,
        plural: String,
        name: String,
        why: String,
    },
    Invalid(Box<Invalid>),
    /// A JSON patch that does not apply, for instance a failed `test`. A real server names neither object nor cause.
    PatchRejected,
    BadRequest(String),
    MethodNotAllowed,
    UnsupportedMediaType,
    Expired {
        requested: u64,
        oldest: u64,
    },
    ResourceVersionTooLarge {
        requested: u64,
        current: u64,
    },
    /// resourceVersion in the body of a create. The real server has no reason for this one either.
    VersionOnCreate,
    Injected(u16),
}

/// Validation of one field. Which name a real server puts where differs between its layers, hence so many.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Invalid {
    qualified: String,
    group: String,
    kind: String,
    name: String,
    field: String,
    reason: &'static str,
    why: String,
}

/// The text of a failed optimistic lock.
pub(crate) const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

impl ApiError {
    pub(crate) fn not_found(schema: &Schema, name: &str) -> Self {
        let (resource, group, plural) = names(schema);
        Self::NotFound { resource, group, plural, name: name.into() }
    }

    pub(crate) fn already_exists(schema: &Schema, name: &str) -> Self {
        let (resource, group, plural) = names(schema);
        Self::AlreadyExists { resource, group, plural, name: name.into() }
    }

    pub(crate) fn conflict(schema: &Schema, name: &str, why: &str) -> Self {
        let (resource, group, plural) = names(schema);
        Self::Conflict { resource, group, plural, name: name.into(), why: why.into() }
    }

    pub(crate) fn invalid(schema: &Schema, name: &str, field: &str, why: &str) -> Self {
        Self::invalid_because("FieldValueInvalid", schema, name, field, why)
    }

    pub(crate) fn forbidden_field(schema: &Schema, name: &str, field: &str, why: &str) -> Self {
        Self::invalid_because("FieldValueForbidden", schema, name, field, why)
    }

    fn invalid_because(reason: &'static str, schema: &Schema, name: &str, field: &str, why: &str) -> Self {
        Self::Invalid(Box::new(Invalid {
            qualified: schema.qualified_kind(),
            group: schema.group.clone(),
            kind: schema.kind.clone(),
            name: name.into(),
            field: field.into(),
            reason,
            why: why.into(),
        }))
    }

    /// The one refusal in which a real server puts the plural where the kind belongs.
    pub(crate) fn version_required(schema: &Schema, name: &str) -> Self {
        Self::Invalid(Box::new(Invalid {
            qualified: schema.resource(),
            group: schema.group.clone(),
            kind: schema.plural.clone(),
            name: name.into(),
            field: "metadata.resourceVersion".into(),
            reason: "FieldValueInvalid",
            why: "Invalid value: 0: must be specified for an update".into(),
        }))
    }

    /// A bad combination of query options; `kind` is `ListOptions` or `PatchOptions`.
    pub(crate) fn bad_option(kind: &str, field: &str, reason: &'static str, why: &str) -> Self {
        Self::Invalid(Box::new(Invalid {
            qualified: format!("{kind}.meta.k8s.io"),
            group: "meta.k8s.io".into(),
            kind: kind.into(),
            name: String::new(),
            field: field.into(),
            reason,
            why: why.into(),
        }))
    }

    pub(crate) fn code(&self) -> u16 {
        match self {
            Self::BadRequest(_) => 400,
            Self::NoSuchPath | Self::NotFound { .. } => 404,
            Self::MethodNotAllowed => 405,
            Self::AlreadyExists { .. } | Self::Conflict { .. } => 409,
            Self::Expired { .. } => 410,
            Self::UnsupportedMediaType => 415,
            Self::Invalid(_) | Self::PatchRejected => 422,
            Self::VersionOnCreate => 500,
            Self::ResourceVersionTooLarge { .. } => 504,
            Self::Injected(code) => *code,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "BadRequest",
            Self::NoSuchPath | Self::NotFound { .. } => "NotFound",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::AlreadyExists { .. } => "AlreadyExists",
            Self::Conflict { .. } => "Conflict",
            Self::Expired { .. } => "Expired",
            Self::UnsupportedMediaType => "UnsupportedMediaType",
            Self::Invalid(_) | Self::PatchRejected => "Invalid",
            Self::VersionOnCreate => "",
            Self::ResourceVersionTooLarge { .. } => "Timeout",
            Self::Injected(code) => injected_reason(*code),
        }
    }

    fn message(&self) -> String {
        match self {
            Self::NoSuchPath => "the server could not find the requested resource".into(),
            Self::NotFound { resource, name, .. } => format!("{resource} \"{name}\" not found"),
            Self::AlreadyExists { resource, name, .. } => format!("{resource} \"{name}\" already exists"),
            Self::Conflict { resource, name, why, .. } => {
                format!("Operation cannot be fulfilled on {resource} \"{name}\": {why}")
            }
            Self::Invalid(invalid) => {
                let Invalid { qualified, name, field, why, .. } = invalid.as_ref();
                let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
                format!("{qualified} \"{name}\" is invalid: {field}{why}")
            }
            Self::PatchRejected => "the server rejected our request due to an error in our request".into(),
            Self::BadRequest(why) => why.clone(),
            Self::MethodNotAllowed => "the server does not allow this method on the requested resource".into(),
            Self::UnsupportedMediaType => {
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
                    .into()
            }
            Self::Expired { requested, oldest } => format!("too old resource version: {requested} ({oldest})"),
            Self::ResourceVersionTooLarge { requested, current } => {
                format!("Timeout: Too large resource version: {requested}, current: {current}")
            }
            Self::VersionOnCreate => "resourceVersion should not be set on objects to be created".into(),
            Self::Injected(code) => format!("injected fault {code}"),
        }
    }

    fn details(&self) -> Option<Value> {
        match self {
            Self::NotFound { group, plural, name, .. }
            | Self::AlreadyExists { group, plural, name, .. }
            | Self::Conflict { group, plural, name, .. } => Some(json!({"name": name, "group": group, "kind": plural})),
            Self::Invalid(invalid) => Some(json!({
                "name": invalid.name, "group": invalid.group, "kind": invalid.kind,
                "causes": [{"reason": invalid.reason, "message": invalid.why, "field": invalid.field}],
            })),
            Self::ResourceVersionTooLarge { .. } => Some(json!({
                "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
                "retryAfterSeconds": 1,
            })),
            Self::PatchRejected => Some(json!({})),
            Self::Injected(429 | 503) => Some(json!({"retryAfterSeconds": 1})),
            Self::NoSuchPath
            | Self::BadRequest(_)
            | Self::MethodNotAllowed
            | Self::UnsupportedMediaType
            | Self::Expired { .. }
            | Self::VersionOnCreate
            | Self::Injected(_) => None,
        }
    }

    /// The `Status` object a client gets, as response body or inside an ERROR watch event.
    pub(crate) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message(), "reason": self.reason(), "code": self.code(),
        });
        if let Some(details) = self.details() {
            status["details"] = details;
        }
        status
    }
}

fn names(schema: &Schema) -> (String, String, String) {
    (schema.resource(), schema.group.clone(), schema.plural.clone())
}

fn injected_reason(code: u16) -> &'static str {
    match code {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        422 => "Invalid",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "InternalError",
    }
}
