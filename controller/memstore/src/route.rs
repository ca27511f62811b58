//! From an HTTP request to a [`Call`]: which verb, which kind, which object, which options. Called once per request by
//! `service.rs`; pure, so it cannot tell whether an object exists.

use crate::error::ApiError;
use crate::schema::Schema;
use http::{Method, header, request::Parts};
use std::collections::BTreeMap;

/// What a request wants, in the words of Kubernetes RBAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the RBAC verbs, under their own names")]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

/// A request to the store, understood but not yet judged.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) verb: Verb,
    /// Index into the store's schema list.
    pub(crate) schema: usize,
    /// `plural`, or `plural/status`: the resource as RBAC and fault rules name it.
    pub(crate) resource: String,
    /// Empty for cluster-scoped kinds and for lists across namespaces.
    pub(crate) namespace: String,
    /// Empty when the whole collection is meant.
    pub(crate) name: String,
    pub(crate) status: bool,
    pub(crate) params: BTreeMap<String, String>,
    pub(crate) content_type: String,
    /// The client asked for PartialObjectMetadata.
    pub(crate) metadata_only: bool,
}

impl Call {
    pub(crate) fn param(&self, name: &str) -> Option<&str> {
        self.params.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(self.param(name), Some("true" | "1"))
    }

    pub(crate) fn dry_run(&self) -> bool {
        self.param("dryRun") == Some("All")
    }

    /// The resourceVersion parameter; "" and "0" both mean "any".
    pub(crate) fn resource_version(&self) -> Result<u64, ApiError> {
        let text = self.param("resourceVersion").unwrap_or("0");
        text.parse().map_err(|_| ApiError::BadRequest(format!("Invalid value: \"{text}\": invalid resource version")))
    }
}

/// Reads a request for objects. Paths that are no objects (`/version`, discovery) are not known here.
pub(crate) fn parse(schemas: &[Schema], parts: &Parts) -> Result<Call, ApiError> {
    let segments: Vec<&str> = parts.uri.path().split('/').filter(|segment| !segment.is_empty()).collect();
    let (group, version, rest) = match segments.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Err(ApiError::NoSuchPath),
    };
    let find = |plural: &str| schemas.iter().position(|schema| schema.is(group, version, plural));
    let (namespace, rest) = match rest {
        // `namespaces/x/status` is the status of namespace x: only a known plural makes it a namespaced path.
        ["namespaces", namespace, plural, ..] if find(plural).is_some() => (*namespace, &rest[2..]),
        _ => ("", rest),
    };
    let (plural, name, subresource) = match rest {
        [plural] => (*plural, "", ""),
        [plural, name] => (*plural, *name, ""),
        [plural, name, subresource] => (*plural, *name, *subresource),
        _ => return Err(ApiError::NoSuchPath),
    };
    let schema = find(plural).ok_or(ApiError::NoSuchPath)?;
    let status = check_scope(&schemas[schema], namespace, name, subresource)?;
    let params: BTreeMap<String, String> =
        form_urlencoded::parse(parts.uri.query().unwrap_or("").as_bytes()).into_owned().collect();
    let watch = matches!(params.get("watch").map(String::as_str), Some("true" | "1"));
    let verb = verb(&parts.method, name, status, watch)?;
    if verb == Verb::Create && schemas[schema].namespaced && namespace.is_empty() {
        return Err(ApiError::MethodNotAllowed);
    }
    Ok(Call {
        verb,
        schema,
        resource: if status { format!("{plural}/status") } else { plural.to_owned() },
        namespace: namespace.into(),
        name: name.into(),
        status,
        params,
        content_type: header_text(parts, &header::CONTENT_TYPE),
        metadata_only: header_text(parts, &header::ACCEPT).contains("as=PartialObjectMetadata"),
    })
}

/// Whether the path fits the kind; the answer is whether it names the status subresource.
fn check_scope(schema: &Schema, namespace: &str, name: &str, subresource: &str) -> Result<bool, ApiError> {
    let scope_ok = if schema.namespaced { name.is_empty() || !namespace.is_empty() } else { namespace.is_empty() };
    match subresource {
        "" if scope_ok => Ok(false),
        "status" if scope_ok && schema.status_subresource => Ok(true),
        _ => Err(ApiError::NoSuchPath),
    }
}

fn verb(method: &Method, name: &str, status: bool, watch: bool) -> Result<Verb, ApiError> {
    let single = !name.is_empty();
    match (method.as_str(), single) {
        ("GET", true) => Ok(Verb::Get),
        ("GET", false) if watch => Ok(Verb::Watch),
        ("GET", false) => Ok(Verb::List),
        ("POST", false) => Ok(Verb::Create),
        ("PUT", true) => Ok(Verb::Update),
        ("PATCH", true) => Ok(Verb::Patch),
        ("DELETE", true) if !status => Ok(Verb::Delete),
        ("DELETE", false) => Ok(Verb::DeleteCollection),
        _ => Err(ApiError::MethodNotAllowed),
    }
}

fn header_text(parts: &Parts, name: &header::HeaderName) -> String {
    parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned()
}
