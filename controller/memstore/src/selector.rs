//! Label and field selectors: parsed once per request, matched against objects by LIST, WATCH and DeleteCollection.
//! Fields are limited to those a real server would know; anything else is a 400. Never touches the store.

use crate::error::ApiError;
use crate::schema::Schema;
use serde_json::Value;

/// Both selectors of one request. Empty selects everything.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selectors {
    labels: Vec<LabelTerm>,
    fields: Vec<FieldTerm>,
}

#[derive(Clone, Debug)]
enum LabelTerm {
    Exists(String),
    Absent(String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
}

#[derive(Clone, Debug)]
struct FieldTerm {
    path: Vec<String>,
    value: String,
    equal: bool,
}

impl Selectors {
    pub(crate) fn parse(schema: &Schema, labels: Option<&str>, fields: Option<&str>) -> Result<Self, ApiError> {
        Ok(Self { labels: parse_labels(labels.unwrap_or(""))?, fields: parse_fields(schema, fields.unwrap_or(""))? })
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object.pointer("/metadata/labels").and_then(|labels| labels.get(key)?.as_str());
        self.labels.iter().all(|term| match term {
            LabelTerm::Exists(key) => label(key).is_some(),
            LabelTerm::Absent(key) => label(key).is_none(),
            LabelTerm::In(key, values) => label(key).is_some_and(|have| values.iter().any(|value| value == have)),
            LabelTerm::NotIn(key, values) => !label(key).is_some_and(|have| values.iter().any(|value| value == have)),
        }) && self.fields.iter().all(|term| (field_text(object, &term.path) == term.value) == term.equal)
    }
}

/// A missing field selects like an empty string, as on a real server.
fn field_text(object: &Value, path: &[String]) -> String {
    let mut at = object;
    for step in path {
        match at.get(step) {
            Some(next) => at = next,
            None => return String::new(),
        }
    }
    match at {
        Value::String(text) => text.clone(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::Null | Value::Array(_) | Value::Object(_) => String::new(),
    }
}

fn parse_labels(text: &str) -> Result<Vec<LabelTerm>, ApiError> {
    split_outside_parentheses(text).into_iter().map(parse_label).collect()
}

/// Commas separate terms, except inside `in (a,b)`.
fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut depth, mut start) = (0_i32, 0);
    for (at, letter) in text.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                terms.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(text[start..].trim());
    terms.retain(|term| !term.is_empty());
    terms
}

fn parse_label(term: &str) -> Result<LabelTerm, ApiError> {
    let bad = || ApiError::BadRequest(format!("unable to parse requirement: found '{term}'"));
    if let Some((head, list)) = term.split_once('(') {
        let values = list.strip_suffix(')').ok_or_else(bad)?.split(',').map(|value| value.trim().to_owned()).collect();
        let mut words = head.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(key), Some("in"), None) => Ok(LabelTerm::In(key.into(), values)),
            (Some(key), Some("notin"), None) => Ok(LabelTerm::NotIn(key.into(), values)),
            _ => Err(bad()),
        };
    }
    let term = if let Some((key, value)) = term.split_once("!=") {
        LabelTerm::NotIn(key.trim().into(), vec![value.trim().into()])
    } else if let Some((key, value)) = term.split_once('=') {
        let value = value.strip_prefix('=').unwrap_or(value);
        LabelTerm::In(key.trim().into(), vec![value.trim().into()])
    } else if let Some(key) = term.strip_prefix('!') {
        LabelTerm::Absent(key.trim().into())
    } else {
        LabelTerm::Exists(term.into())
    };
    let (LabelTerm::Exists(key) | LabelTerm::Absent(key) | LabelTerm::In(key, _) | LabelTerm::NotIn(key, _)) = &term;
    if key.is_empty() || key.contains(char::is_whitespace) { Err(bad()) } else { Ok(term) }
}

fn parse_fields(schema: &Schema, text: &str) -> Result<Vec<FieldTerm>, ApiError> {
    let mut terms = Vec::new();
    for term in split_unescaped(text) {
        let bad = || ApiError::BadRequest(format!("invalid selector: '{term}'; can't understand '{term}'"));
        let (key, value, equal) = if let Some((key, value)) = term.split_once("!=") {
            (key, value, false)
        } else if let Some((key, value)) = term.split_once('=') {
            (key, value.strip_prefix('=').unwrap_or(value), true)
        } else {
            return Err(bad());
        };
        if !is_selectable(schema, key) {
            return Err(ApiError::BadRequest(format!("field label not supported: {key}")));
        }
        terms.push(FieldTerm { path: key.split('.').map(str::to_owned).collect(), value: unescape(value), equal });
    }
    Ok(terms)
}

fn is_selectable(schema: &Schema, key: &str) -> bool {
    key == "metadata.name"
        || key == "metadata.namespace"
        || schema.selectable_fields.iter().any(|field| field.strip_prefix('.').unwrap_or(field) == key)
}

fn split_unescaped(text: &str) -> Vec<String> {
    let mut terms = vec![String::new()];
    let mut escaped = false;
    for letter in text.chars() {
        if letter == ',' && !escaped {
            terms.push(String::new());
            continue;
        }
        escaped = letter == '\\' && !escaped;
        if let Some(last) = terms.last_mut() {
            last.push(letter);
        }
    }
    terms.retain(|term| !term.is_empty());
    terms
}

fn unescape(value: &str) -> String {
    let mut letters = value.chars();
    let mut plain = String::with_capacity(value.len());
    while let Some(letter) = letters.next() {
        if letter == '\\' {
            plain.extend(letters.next());
        } else {
            plain.push(letter);
        }
    }
    plain
}

#[cfg(test)]
#[path = "selector_tests.rs"]
mod tests;
