//! Patch formats against plain values.
#![allow(clippy::unwrap_used)] // tests

use super::{PatchKind, patched};
use serde_json::{Value, json};

fn run(kind: PatchKind, old: &Value, body: &Value) -> Result<Value, u16> {
    patched(kind, old, body.to_string().as_bytes()).map_err(|error| error.code())
}

#[test]
fn json_patch_has_the_habits_of_a_real_server() {
    let old = json!({"a": {"b": 1, "list": [1]}});
    let absent = json!([{"op": "test", "path": "/a/x", "value": null}, {"op": "add", "path": "/a/x", "value": 2}]);
    assert_eq!(run(PatchKind::Json, &old, &absent), Ok(json!({"a": {"b": 1, "list": [1], "x": 2}})));
    assert_eq!(run(PatchKind::Json, &json!({"a": {"x": 1}}), &absent), Err(422), "present is not absent");
    let replace = json!([{"op": "replace", "path": "/a/y~1z", "value": 3}]);
    assert_eq!(run(PatchKind::Json, &json!({"a": {}}), &replace), Ok(json!({"a": {"y/z": 3}})));
    for refused in [
        json!([{"op": "test", "path": "/a/b", "value": 2}]),
        json!([{"op": "test", "path": "/no/b", "value": null}]),
        json!([{"op": "replace", "path": "/no/b", "value": 1}]),
        json!([{"op": "replace", "path": "/a/list/1", "value": 1}]),
        json!([{"op": "remove", "path": "/a/x"}]),
        json!([{"op": "add", "path": "/no/x", "value": 1}]),
    ] {
        assert_eq!(run(PatchKind::Json, &old, &refused), Err(422), "{refused}");
    }
    assert_eq!(run(PatchKind::Json, &old, &json!([{"op": "dance", "path": "/a"}])), Err(400));
}

#[test]
fn merge_patch_removes_with_null_and_replaces_lists() {
    let old = json!({"a": 1, "b": {"c": 1, "d": 2}, "l": [1, 2]});
    let patch = json!({"a": null, "b": {"c": 3}, "l": [9]});
    assert_eq!(run(PatchKind::Merge, &old, &patch), Ok(json!({"b": {"c": 3, "d": 2}, "l": [9]})));
    assert_eq!(run(PatchKind::Merge, &old, &json!([1])), Err(400));
}

#[test]
fn apply_merges_conditions_by_type_and_ignores_null() {
    let old = json!({"s": {"keep": 1, "conditions": [{"type": "A", "status": "False", "x": 1}, {"type": "B"}]}});
    let patch = json!({"s": {"keep": null, "conditions": [{"type": "C", "n": null}, {"type": "A", "status": "True"}]}});
    let expected = json!({"s": {"keep": 1,
        "conditions": [{"type": "A", "status": "True", "x": 1}, {"type": "B"}, {"type": "C"}]}});
    assert_eq!(run(PatchKind::Apply, &old, &patch), Ok(expected));
    let gone = run(PatchKind::Strategic, &old, &json!({"s": {"keep": null}})).unwrap();
    assert_eq!(gone.pointer("/s/keep"), None);
}
