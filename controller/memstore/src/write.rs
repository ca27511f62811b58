//! Create, update, patch and delete: each looks at the stored object, asks the pure rules for the object to store and
//! commits once, last. Called by `service.rs` under the store's lock, so a request is atomic. A refused or
//! dry-run request changes nothing.

use crate::error::ApiError;
use crate::patch::{self, PatchKind};
use crate::read;
use crate::route::{Call, Verb};
use crate::rules::{self, Birth, meta};
use crate::schema::Schema;
use crate::selector::Selectors;
use crate::state::{Counters, Key, State};
use crate::store::Inner;
use serde_json::{Value, json};

/// Namespaces that exist in every cluster.
pub(crate) const BOOTSTRAP_NAMESPACES: [&str; 2] = ["default", "kube-system"];

/// How often a taken generateName is tried anew, as in a real server since 1.30.
const NAME_ATTEMPTS: u32 = 8;

/// HTTP status and body of a successful write.
pub(crate) type Answer = (u16, Value);

/// One write request at work.
pub(crate) struct Writer<'a> {
    pub(crate) inner: &'a Inner,
    pub(crate) state: &'a mut State,
    pub(crate) client: &'a str,
    pub(crate) call: &'a Call,
}

/// Options of a DELETE, from its body.
struct DeleteOptions {
    uid: Option<String>,
    version: Option<String>,
    dry_run: bool,
}

impl Writer<'_> {
    pub(crate) fn run(&mut self, body: &[u8]) -> Result<Answer, ApiError> {
        let (code, answer) = match self.call.verb {
            Verb::Create => (201, self.create(patch::parse(body)?)?),
            Verb::Update => (200, self.update(patch::parse(body)?)?),
            Verb::Patch => self.patch(body)?,
            Verb::Delete => {
                return Ok((200, self.delete(&self.key(&self.call.name), &delete_options(self.call, body)?)?));
            }
            Verb::DeleteCollection => return Ok((200, self.delete_collection(&delete_options(self.call, body)?)?)),
            Verb::Get | Verb::List | Verb::Watch => return Err(ApiError::MethodNotAllowed),
        };
        Ok((code, read::projected(&answer, self.call.metadata_only)))
    }

    fn schema(&self) -> &Schema {
        &self.inner.schemas[self.call.schema]
    }

    fn key(&self, name: &str) -> Key {
        Key { schema: self.call.schema, namespace: self.call.namespace.clone(), name: name.into() }
    }

    fn existing(&self, key: &Key) -> Result<Value, ApiError> {
        let object = self.state.get(key).ok_or_else(|| ApiError::not_found(self.schema(), &key.name))?;
        Ok(Value::clone(object))
    }

    fn validate(&self, old: Option<&Value>, new: &Value) -> Result<(), ApiError> {
        let Some(validator) = &self.inner.validator else { return Ok(()) };
        validator(self.schema(), old, new).map_err(|why| ApiError::invalid(self.schema(), meta(new, "name"), "", &why))
    }

    /// Commits, unless the request is a dry run; what is stored (or would be) comes back.
    fn store(&mut self, key: Key, object: Value) -> Value {
        if self.call.dry_run() {
            return object;
        }
        let plural = self.inner.schemas[self.call.schema].plural.as_str();
        match self.state.commit(self.client, plural, key, Some(object)) {
            Some(stored) => Value::clone(&stored),
            None => Value::Null,
        }
    }

    fn remove(&mut self, key: Key, dry_run: bool) {
        if !dry_run {
            let plural = self.inner.schemas[self.call.schema].plural.as_str();
            self.state.commit(self.client, plural, key, None);
        }
    }

    fn create(&mut self, body: Value) -> Result<Value, ApiError> {
        rules::check_type(self.schema(), &body)?;
        rules::check_namespace(&self.call.namespace, &body)?;
        if !meta(&body, "resourceVersion").is_empty() {
            return Err(ApiError::VersionOnCreate);
        }
        let name = self.choose_name(&body);
        rules::check_name(self.schema(), &name)?;
        let key = self.key(&name);
        let birth = Birth {
            namespace: self.call.namespace.clone(),
            name: name.clone(),
            uid: self.state.seed.uid(),
            created: self.inner.timestamp(),
        };
        let object = rules::created(self.schema(), body, birth);
        self.validate(None, &object)?;
        if self.state.get(&key).is_some() {
            return Err(ApiError::already_exists(self.schema(), &name));
        }
        Ok(self.store(key, object))
    }

    fn choose_name(&mut self, body: &Value) -> String {
        let (name, prefix) = (meta(body, "name"), meta(body, "generateName"));
        if !name.is_empty() || prefix.is_empty() {
            return name.into();
        }
        let mut generated = String::new();
        for _ in 0..NAME_ATTEMPTS {
            generated = format!("{prefix}{}", self.state.seed.suffix());
            if self.state.get(&self.key(&generated)).is_none() {
                break;
            }
        }
        generated
    }

    fn update(&mut self, wish: Value) -> Result<Value, ApiError> {
        let key = self.key(&self.call.name);
        let old = self.existing(&key)?;
        let (name, uid) = (meta(&wish, "name"), meta(&wish, "uid"));
        if name != self.call.name {
            let url = &self.call.name;
            let why = format!("the name of the object ({name}) does not match the name on the URL ({url})");
            return Err(ApiError::BadRequest(why));
        }
        if !uid.is_empty() && uid != meta(&old, "uid") {
            return Err(ApiError::conflict(self.schema(), name, &precondition("UID", uid, meta(&old, "uid"))));
        }
        self.write_over(key, &old, wish)
    }

    fn patch(&mut self, body: &[u8]) -> Result<Answer, ApiError> {
        let kind = PatchKind::from_content_type(&self.call.content_type).ok_or(ApiError::UnsupportedMediaType)?;
        if kind == PatchKind::Strategic && !self.schema().allows_strategic_merge() {
            return Err(ApiError::UnsupportedMediaType);
        }
        let key = self.key(&self.call.name);
        let apply = kind == PatchKind::Apply;
        if apply {
            self.check_apply(&patch::parse(body)?)?;
        }
        if apply && !self.call.status && self.state.get(&key).is_none() {
            let fresh = json!({"metadata": {"name": self.call.name}});
            return Ok((201, self.create(patch::patched(kind, &fresh, body)?)?));
        }
        let old = self.existing(&key)?;
        let wish = patch::patched(kind, &old, body)?;
        if !wish.get("metadata").is_some_and(Value::is_object) {
            return Err(ApiError::PatchRejected);
        }
        Ok((200, self.write_over(key, &old, wish)?))
    }

    fn check_apply(&self, body: &Value) -> Result<(), ApiError> {
        if self.call.param("fieldManager").is_none() {
            let why = "Required value: is required for apply patch";
            return Err(ApiError::bad_option("PatchOptions", "fieldManager", "FieldValueRequired", why));
        }
        rules::check_type(self.schema(), body)?;
        let name = meta(body, "name");
        if !name.is_empty() && name != self.call.name {
            let why =
                format!("the name of the object ({name}) does not match the name on the URL ({})", self.call.name);
            return Err(ApiError::BadRequest(why));
        }
        Ok(())
    }

    /// The common end of PUT and PATCH, for both endpoints.
    fn write_over(&mut self, key: Key, old: &Value, wish: Value) -> Result<Value, ApiError> {
        rules::check_version(self.schema(), old, &wish)?;
        let new = if self.call.status {
            rules::check_type(self.schema(), &wish)?;
            rules::with_status_of(old, &wish)
        } else {
            rules::updated(self.schema(), old, wish)?
        };
        self.validate(Some(old), &new)?;
        if rules::is_deleting(&new) && rules::finalizers(&new).is_empty() {
            // As on a real server this last update is never stored: watches see the object with its finalizer go.
            self.remove(key, self.call.dry_run());
            return Ok(new);
        }
        Ok(self.store(key, new))
    }

    /// Answers with the object while finalizers hold it, and with a `Status` once it is gone.
    fn delete(&mut self, key: &Key, options: &DeleteOptions) -> Result<Value, ApiError> {
        let old = self.existing(key)?;
        self.check_preconditions(&old, options)?;
        if rules::finalizers(&old).is_empty() {
            self.remove(key.clone(), options.dry_run);
            let schema = self.schema();
            return Ok(json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                "details": {"name": key.name, "group": schema.group, "kind": schema.plural, "uid": meta(&old, "uid")},
            }));
        }
        if rules::is_deleting(&old) {
            return Ok(old);
        }
        let marked = rules::marked_for_deletion(&old, &self.inner.timestamp());
        if options.dry_run {
            return Ok(marked);
        }
        Ok(self.store(key.clone(), marked))
    }

    fn check_preconditions(&self, old: &Value, options: &DeleteOptions) -> Result<(), ApiError> {
        let checks = [("UID", "uid", &options.uid), ("ResourceVersion", "resourceVersion", &options.version)];
        for (title, field, wanted) in checks {
            let have = meta(old, field);
            if let Some(wanted) = wanted.as_deref().filter(|wanted| *wanted != have) {
                let why = precondition(title, wanted, have);
                return Err(ApiError::conflict(self.schema(), meta(old, "name"), &why));
            }
        }
        Ok(())
    }

    fn delete_collection(&mut self, options: &DeleteOptions) -> Result<Value, ApiError> {
        let (labels, fields) = (self.call.param("labelSelector"), self.call.param("fieldSelector"));
        let selectors = Selectors::parse(self.schema(), labels, fields)?;
        let listed = self.state.list(self.call.schema, &self.call.namespace);
        let chosen: Vec<(Key, Value)> = listed
            .filter(|(_, object)| selectors.matches(object))
            .map(|(key, object)| (key.clone(), Value::clone(object)))
            .collect();
        let mut items = Vec::with_capacity(chosen.len());
        for (key, object) in chosen {
            self.delete(&key, options)?;
            items.push(object);
        }
        Ok(read::list_of(self.schema(), self.state.version(), items, false))
    }
}

fn precondition(title: &str, wanted: &str, have: &str) -> String {
    format!("Precondition failed: {title} in precondition: {wanted}, {title} in object meta: {have}")
}

fn delete_options(call: &Call, body: &[u8]) -> Result<DeleteOptions, ApiError> {
    let body = if body.is_empty() { json!({}) } else { patch::parse(body)? };
    let text = |path: &str| body.pointer(path).and_then(Value::as_str).map(str::to_owned);
    Ok(DeleteOptions {
        uid: text("/preconditions/uid"),
        version: text("/preconditions/resourceVersion"),
        dry_run: call.dry_run() || text("/dryRun/0").as_deref() == Some("All"),
    })
}

/// Gives a new store the namespaces every cluster has. They are nobody's requests and are not counted.
pub(crate) fn bootstrap(inner: &Inner, namespaces: &[&str]) {
    let Some(index) = inner.schemas.iter().position(|schema| schema.is("", "v1", "namespaces")) else { return };
    let mut state = inner.lock();
    for name in namespaces {
        let birth =
            Birth { namespace: String::new(), name: (*name).into(), uid: state.seed.uid(), created: inner.timestamp() };
        let body = json!({"apiVersion": "v1", "kind": "Namespace"});
        let mut object = rules::created(&inner.schemas[index], body, birth);
        object["status"] = json!({"phase": "Active"});
        let key = Key { schema: index, namespace: String::new(), name: (*name).into() };
        state.commit("bootstrap", "namespaces", key, Some(object));
    }
    state.counters = Counters::default();
}
