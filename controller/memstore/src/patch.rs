//! The four patch formats, each as a pure function from the stored object and the request body to the object the
//! client wishes for. Called by `write.rs`; the object rules decide afterwards how much of the wish is granted.
//!
//! JSON patch copies two habits of the library real servers use, which RFC 6902 does not have: `replace` of a key
//! its parent object lacks adds it, and `test` for `null` passes on such a key (so absence can be tested).
//!
//! Server-side apply is approximated by a deep merge without field ownership: `null` is ignored, nothing is ever
//! removed, no manager ever conflicts, and lists are replaced whole except those named `conditions`, which merge by
//! `type`. Strategic merge is the same with `null` as removal; `$patch` directives are not understood.

use crate::error::ApiError;
use json_patch::{AddOperation, Patch, PatchOperation};
use serde_json::{Map, Value};

/// How a PATCH body is to be read, from its content type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PatchKind {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl PatchKind {
    pub(crate) fn from_content_type(content_type: &str) -> Option<Self> {
        match content_type.split(';').next().map(str::trim) {
            Some("application/json-patch+json") => Some(Self::Json),
            Some("application/merge-patch+json") => Some(Self::Merge),
            Some("application/strategic-merge-patch+json") => Some(Self::Strategic),
            Some("application/apply-patch+yaml") => Some(Self::Apply),
            _ => None,
        }
    }
}

/// What the client wishes the object to be.
pub(crate) fn patched(kind: PatchKind, object: &Value, body: &[u8]) -> Result<Value, ApiError> {
    match kind {
        PatchKind::Json => json(object, body),
        PatchKind::Merge => {
            let mut wish = object.clone();
            json_patch::merge(&mut wish, &parse(body)?);
            Ok(wish)
        }
        PatchKind::Strategic => Ok(merged(object, &parse(body)?, Nulls::Remove)),
        PatchKind::Apply => Ok(merged(object, &parse(body)?, Nulls::Ignore)),
    }
}

/// Any body that must be a JSON object.
pub(crate) fn parse(body: &[u8]) -> Result<Value, ApiError> {
    let value: Value = serde_json::from_slice(body).map_err(|error| ApiError::BadRequest(error.to_string()))?;
    if value.is_object() { Ok(value) } else { Err(ApiError::BadRequest("the body is not a JSON object".into())) }
}

fn json(object: &Value, body: &[u8]) -> Result<Value, ApiError> {
    let Patch(operations) = serde_json::from_slice(body).map_err(|error| ApiError::BadRequest(error.to_string()))?;
    let mut wish = object.clone();
    for operation in operations {
        let operation = match operation {
            PatchOperation::Test(test) if test.value.is_null() && names_absent_key(&wish, test.path.as_str()) => {
                continue;
            }
            PatchOperation::Replace(replace) if names_absent_key(&wish, replace.path.as_str()) => {
                PatchOperation::Add(AddOperation { path: replace.path, value: replace.value })
            }
            other => other,
        };
        // `patch_unsafe` leaves a half-patched document behind on failure: this one is a copy and is dropped.
        json_patch::patch_unsafe(&mut wish, &[operation]).map_err(|_| ApiError::PatchRejected)?;
    }
    Ok(wish)
}

/// Whether the parent of `path` is an object that has no such key.
fn names_absent_key(document: &Value, path: &str) -> bool {
    let Some((parent, key)) = path.rsplit_once('/') else { return false };
    let key = key.replace("~1", "/").replace("~0", "~");
    document.pointer(parent).and_then(Value::as_object).is_some_and(|parent| !parent.contains_key(&key))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Nulls {
    Remove,
    Ignore,
}

fn merged(old: &Value, patch: &Value, nulls: Nulls) -> Value {
    let (Value::Object(old), Value::Object(patch)) = (old, patch) else { return without_nulls(patch, nulls) };
    let mut result = old.clone();
    for (key, wish) in patch {
        let have = old.get(key);
        match (wish, have) {
            (Value::Null, _) if nulls == Nulls::Remove => {
                result.remove(key);
            }
            (Value::Null, _) => {}
            (Value::Array(wish), Some(Value::Array(have))) if key == "conditions" => {
                result.insert(key.clone(), Value::Array(merged_by_type(have, wish, nulls)));
            }
            (wish, Some(have)) => {
                result.insert(key.clone(), merged(have, wish, nulls));
            }
            (wish, None) => {
                result.insert(key.clone(), without_nulls(wish, nulls));
            }
        }
    }
    Value::Object(result)
}

/// A value that enters whole still loses its nulls: they mean "not mine" or "remove", never "store null".
fn without_nulls(value: &Value, nulls: Nulls) -> Value {
    if value.is_object() { merged(&Value::Object(Map::new()), value, nulls) } else { value.clone() }
}

fn merged_by_type(have: &[Value], wish: &[Value], nulls: Nulls) -> Vec<Value> {
    let mut result = have.to_vec();
    for item in wish {
        let same = |other: &&mut Value| item.get("type").is_some() && other.get("type") == item.get("type");
        match result.iter_mut().find(same) {
            Some(slot) => *slot = merged(slot, item, nulls),
            None => result.push(without_nulls(item, nulls)),
        }
    }
    result
}

#[cfg(test)]
#[path = "patch_tests.rs"]
mod tests;
