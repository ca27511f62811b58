//! What a server does to an object before it stores it: metadata it fills in or protects, the split between spec and
//! status, generation. Pure functions from the stored object and the client's wish to the object to store, called by
//! `write.rs`. Never reads the store and never decides about resourceVersion numbers.

use crate::error::{ApiError, MODIFIED};
use crate::schema::Schema;
use serde_json::{Map, Value, json};

/// Metadata only the server writes; whatever a create or an apply brings along is ignored.
const SERVER_OWNED: [&str; 7] = [
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "selfLink",
    "managedFields",
];

/// Metadata that is copied from the stored object on every write.
const PROTECTED: [&str; 4] = ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"];

/// Facts about a new object that come from outside the request body.
pub(crate) struct Birth {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) created: String,
}

/// One string field of metadata; empty when missing.
pub(crate) fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|metadata| metadata.get(field)?.as_str()).unwrap_or("")
}

/// Sets one metadata field; objects in the store always have metadata.
pub(crate) fn set_meta(object: &mut Value, field: &str, value: Value) {
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        metadata.insert(field.into(), value);
    }
}

pub(crate) fn finalizers(object: &Value) -> Vec<&str> {
    let list = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

pub(crate) fn is_deleting(object: &Value) -> bool {
    !meta(object, "deletionTimestamp").is_empty()
}

/// apiVersion and kind must be there and must be those of the URL.
pub(crate) fn check_type(schema: &Schema, body: &Value) -> Result<(), ApiError> {
    let field = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or("");
    let expected = schema.api_version();
    if field("kind").is_empty() {
        return Err(ApiError::BadRequest("Object 'Kind' is missing".into()));
    }
    if field("apiVersion") != expected || field("kind") != schema.kind {
        let (version, kind) = (field("apiVersion"), field("kind"));
        let why = format!("{version} {kind} in the data does not match the expected {expected} {}", schema.kind);
        return Err(ApiError::BadRequest(why));
    }
    Ok(())
}

/// The namespace in the body may be left out, but must not contradict the URL.
pub(crate) fn check_namespace(namespace: &str, body: &Value) -> Result<(), ApiError> {
    let given = meta(body, "namespace");
    if given.is_empty() || given == namespace {
        return Ok(());
    }
    let why = "the namespace of the provided object does not match the namespace sent on the request";
    Err(ApiError::BadRequest(why.into()))
}

/// A DNS subdomain, which is what all kinds served here demand of a name.
pub(crate) fn check_name(schema: &Schema, name: &str) -> Result<(), ApiError> {
    if name.is_empty() {
        let why = "Required value: name or generateName is required";
        return Err(ApiError::invalid(schema, name, "metadata.name", why));
    }
    let plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    let label_ok = |label: &str| {
        label.starts_with(plain) && label.ends_with(plain) && label.chars().all(|letter| plain(letter) || letter == '-')
    };
    if name.len() <= 253 && name.split('.').all(label_ok) {
        return Ok(());
    }
    let why = format!(
        "Invalid value: \"{name}\": a lowercase RFC 1123 subdomain must consist of lower case \
                       alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character"
    );
    Err(ApiError::invalid(schema, name, "metadata.name", &why))
}

/// A new object as it will be stored, still without resourceVersion.
pub(crate) fn created(schema: &Schema, mut body: Value, birth: Birth) -> Value {
    let mut metadata = take_metadata(&mut body);
    for field in SERVER_OWNED {
        metadata.remove(field);
    }
    metadata.remove("namespace");
    metadata.insert("name".into(), birth.name.into());
    if schema.namespaced {
        metadata.insert("namespace".into(), birth.namespace.into());
    }
    metadata.insert("uid".into(), birth.uid.into());
    metadata.insert("creationTimestamp".into(), birth.created.into());
    metadata.insert("generation".into(), json!(1));
    body["metadata"] = Value::Object(metadata);
    if schema.drops_status_on_create() {
        remove_key(&mut body, "status");
    }
    body
}

/// The optimistic lock. A body without resourceVersion overwrites only where the kind allows it.
pub(crate) fn check_version(schema: &Schema, old: &Value, wish: &Value) -> Result<(), ApiError> {
    let (have, given) = (meta(old, "resourceVersion"), meta(wish, "resourceVersion"));
    let name = meta(old, "name");
    if given.is_empty() || given == "0" {
        let allowed = schema.allows_unconditional_update();
        return if allowed { Ok(()) } else { Err(ApiError::version_required(schema, name)) };
    }
    if given == have { Ok(()) } else { Err(ApiError::conflict(schema, name, MODIFIED)) }
}

/// A write through the main endpoint: everything but the status (when that has an endpoint of its own), and but the
/// metadata only the server writes.
pub(crate) fn updated(schema: &Schema, old: &Value, mut wish: Value) -> Result<Value, ApiError> {
    check_type(schema, &wish)?;
    check_namespace(meta(old, "namespace"), &wish)?;
    let name = meta(old, "name");
    let mut metadata = take_metadata(&mut wish);
    for field in PROTECTED {
        copy_key(&mut metadata, &old["metadata"], field);
    }
    for field in ["uid", "name"] {
        let given = metadata.get(field).and_then(Value::as_str).unwrap_or("");
        if !given.is_empty() && given != meta(old, field) {
            let why = format!("Invalid value: \"{given}\": field is immutable");
            return Err(ApiError::invalid(schema, name, &format!("metadata.{field}"), &why));
        }
    }
    for field in ["uid", "name", "namespace", "resourceVersion"] {
        copy_key(&mut metadata, &old["metadata"], field);
    }
    metadata.remove("managedFields");
    wish["metadata"] = Value::Object(metadata);
    if schema.status_subresource
        && let Value::Object(fields) = &mut wish
    {
        copy_key(fields, old, "status");
    }
    check_no_new_finalizers(schema, old, &wish)?;
    if !same_but_metadata(old, &wish) {
        bump_generation(&mut wish);
    }
    Ok(wish)
}

/// A write through `/status`: the stored object with the status of the wish, nothing else of it.
pub(crate) fn with_status_of(old: &Value, wish: &Value) -> Value {
    let mut result = old.clone();
    if let Value::Object(fields) = &mut result {
        copy_key(fields, wish, "status");
    }
    result
}

/// A DELETE that has to wait for finalizers. The server counts it as a change of generation.
pub(crate) fn marked_for_deletion(old: &Value, now: &str) -> Value {
    let mut result = old.clone();
    set_meta(&mut result, "deletionTimestamp", now.into());
    set_meta(&mut result, "deletionGracePeriodSeconds", json!(0));
    bump_generation(&mut result);
    result
}

fn bump_generation(object: &mut Value) {
    let generation = object.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
    set_meta(object, "generation", json!(generation.saturating_add(1)));
}

fn check_no_new_finalizers(schema: &Schema, old: &Value, wish: &Value) -> Result<(), ApiError> {
    let known = finalizers(old);
    let new = finalizers(wish).into_iter().find(|finalizer| !known.contains(finalizer));
    match new {
        Some(finalizer) if is_deleting(old) => {
            let why = format!(
                "Forbidden: no new finalizers can be added if the object is being deleted, \
                               found new finalizers []string{{\"{finalizer}\"}}"
            );
            Err(ApiError::forbidden_field(schema, meta(old, "name"), "metadata.finalizers", &why))
        }
        _ => Ok(()),
    }
}

/// Takes metadata out of the body in the form a typed server would store: what is empty is not there. Without this
/// an emptied finalizer list would differ from a missing one, and a no-op write would bump the version.
fn take_metadata(body: &mut Value) -> Map<String, Value> {
    let taken = body.get_mut("metadata").map(Value::take);
    let Some(Value::Object(mut metadata)) = taken else { return Map::new() };
    metadata.retain(|_, value| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    });
    metadata
}

fn same_but_metadata(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return false };
    let strip = |fields: &Map<String, Value>| fields.keys().filter(|key| *key != "metadata").count();
    strip(a) == strip(b) && a.iter().all(|(key, value)| key == "metadata" || b.get(key) == Some(value))
}

fn copy_key(into: &mut Map<String, Value>, from: &Value, key: &str) {
    match from.get(key) {
        Some(value) => {
            into.insert(key.into(), value.clone());
        }
        None => {
            into.remove(key);
        }
    }
}

fn remove_key(object: &mut Value, key: &str) {
    if let Value::Object(fields) = object {
        fields.remove(key);
    }
}
