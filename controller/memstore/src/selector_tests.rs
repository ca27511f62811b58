//! Selector grammar against plain values; that lists and watches use it is tested through the client.
#![allow(clippy::unwrap_used)] // tests

use super::Selectors;
use crate::schema::Schema;
use serde_json::{Value, json};

fn object() -> Value {
    json!({
        "metadata": {"name": "a", "labels": {"app": "db", "tier": "1"}},
        "spec": {"node": "n,1", "size": 5, "on": true},
    })
}

fn schema() -> Schema {
    Schema::new("g", "v1", "things", "Thing").selectable(&[".spec.node", "spec.size", "spec.on", "spec.none"])
}

fn labels(text: &str) -> bool {
    Selectors::parse(&schema(), Some(text), None).unwrap().matches(&object())
}

fn fields(text: &str) -> bool {
    Selectors::parse(&schema(), None, Some(text)).unwrap().matches(&object())
}

#[test]
fn labels_follow_the_set_grammar() {
    for yes in [
        "",
        "app=db",
        "app==db",
        "app!=web",
        "other!=x",
        "app in (web, db),tier",
        "tier notin (2)",
        "!other",
        "app,tier=1",
    ] {
        assert!(labels(yes), "{yes}");
    }
    for no in ["app=web", "app!=db", "app in (web)", "app notin (db,x)", "!app", "other", "app=db,tier=2"] {
        assert!(!labels(no), "{no}");
    }
}

#[test]
fn fields_compare_as_text_and_missing_is_empty() {
    for yes in ["spec.node=n\\,1", "spec.size=5", "spec.on==true", "spec.none=", "metadata.name!=b,metadata.name=a"] {
        assert!(fields(yes), "{yes}");
    }
    for no in ["spec.size=6", "spec.none=x", "metadata.name=b"] {
        assert!(!fields(no), "{no}");
    }
}

#[test]
fn nonsense_is_a_bad_request() {
    for bad in ["a b", "=x", "a in (x", "a near (x)"] {
        assert_eq!(Selectors::parse(&schema(), Some(bad), None).unwrap_err().code(), 400, "{bad}");
    }
    for bad in ["spec.other=1", "spec.node"] {
        assert_eq!(Selectors::parse(&schema(), None, Some(bad)).unwrap_err().code(), 400, "{bad}");
    }
}
