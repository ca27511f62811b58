//! GET and LIST, and the metadata-only form of answers. Called by `service.rs` under the store's lock. Never writes.

use crate::error::ApiError;
use crate::route::Call;
use crate::schema::Schema;
use crate::selector::Selectors;
use crate::service::text;
use crate::state::{Key, State};
use serde_json::{Value, json};

pub(crate) fn get(state: &State, schema: &Schema, call: &Call) -> Result<Vec<u8>, ApiError> {
    state.check_not_future(call.resource_version()?)?;
    let key = Key { schema: call.schema, namespace: call.namespace.clone(), name: call.name.clone() };
    let object = state.get(&key).ok_or_else(|| ApiError::not_found(schema, &call.name))?;
    Ok(shown(object, call.metadata_only))
}

/// The whole list at once: `limit` is a wish a server may ignore, and without pages no `continue` is ever handed out.
pub(crate) fn list(state: &State, schema: &Schema, call: &Call) -> Result<Vec<u8>, ApiError> {
    let requested = call.resource_version()?;
    state.check_not_future(requested)?;
    if call.param("resourceVersionMatch") == Some("Exact") && requested != state.version() {
        // Old states are not kept: for an exact version in the past this is a server that has just compacted.
        return Err(ApiError::Expired { requested, oldest: state.version() });
    }
    let selectors = Selectors::parse(schema, call.param("labelSelector"), call.param("fieldSelector"))?;
    let objects = state.list(call.schema, &call.namespace).filter(|(_, object)| selectors.matches(object));
    let items: Vec<Vec<u8>> = objects.map(|(_, object)| shown(object, call.metadata_only)).collect();
    // The list around no items, with the items' text put between its brackets.
    let mut around = text(&list_of(schema, state.version(), vec![], call.metadata_only));
    if let Some(at) = around.windows(EMPTY.len()).position(|window| window == EMPTY) {
        around.splice(at + EMPTY.len() - 1..at + EMPTY.len() - 1, items.join(&b','));
    }
    Ok(around)
}

/// How a list without items spells that.
const EMPTY: &[u8] = br#""items":[]"#;

/// [`projected`], as JSON.
fn shown(object: &Value, metadata_only: bool) -> Vec<u8> {
    if metadata_only { text(&projected(object, true)) } else { text(object) }
}

/// The list object around items.
pub(crate) fn list_of(schema: &Schema, version: u64, items: Vec<Value>, metadata_only: bool) -> Value {
    let (api_version, kind) = if metadata_only {
        ("meta.k8s.io/v1".to_owned(), "PartialObjectMetadataList".to_owned())
    } else {
        (schema.api_version(), format!("{}List", schema.kind))
    };
    json!({
        "apiVersion": api_version, "kind": kind,
        "metadata": {"resourceVersion": version.to_string()}, "items": items,
    })
}

/// The object, or only its metadata if that is all the client asked for.
pub(crate) fn projected(object: &Value, metadata_only: bool) -> Value {
    if metadata_only {
        json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": object.get("metadata")})
    } else {
        object.clone()
    }
}
