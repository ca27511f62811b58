//! The few documents of a server that are no objects: its version and which kinds it serves. Called by `service.rs`
//! before routing. Never changes anything.

use crate::schema::Schema;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The document at this path, if the path is one of discovery's.
pub(crate) fn document(schemas: &[Schema], path: &str) -> Option<Value> {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    match segments.as_slice() {
        // The lowest release MeshStor supports, so that no newer feature is taken for granted.
        ["version"] => Some(json!({
            "major": "1", "minor": "32", "gitVersion": "v1.32.0", "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "", "platform": "memory",
        })),
        ["api"] => Some(json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})),
        ["apis"] => Some(groups(schemas)),
        ["api", version] => resources(schemas, "", version),
        ["apis", group, version] => resources(schemas, group, version),
        _ => None,
    }
}

fn groups(schemas: &[Schema]) -> Value {
    let mut versions: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for schema in schemas.iter().filter(|schema| !schema.group.is_empty()) {
        let entry = json!({"groupVersion": schema.api_version(), "version": schema.version});
        let known = versions.entry(&schema.group).or_default();
        if !known.contains(&entry) {
            known.push(entry);
        }
    }
    let groups: Vec<Value> = versions
        .into_iter()
        .map(|(name, versions)| json!({"name": name, "preferredVersion": versions.first(), "versions": versions}))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn resources(schemas: &[Schema], group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    let mut api_version = None;
    for schema in schemas.iter().filter(|schema| schema.group == group && schema.version == version) {
        api_version = Some(schema.api_version());
        let entry = |name: String, verbs: &[&str]| {
            json!({"name": name, "singularName": schema.kind.to_lowercase(), "namespaced": schema.namespaced,
                   "kind": schema.kind, "verbs": verbs})
        };
        let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
        resources.push(entry(schema.plural.clone(), &verbs));
        if schema.status_subresource {
            resources.push(entry(format!("{}/status", schema.plural), &["get", "patch", "update"]));
        }
    }
    let api_version = api_version?;
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": resources}))
}
