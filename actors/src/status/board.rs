//! What should stand in which object: written on by the root actor, read by the writer.
//!
//! Values only. It talks to nobody; a value that is put twice is put once.

use kube::api::ApiResource;
use meshstor_api::{MeshStorNode, MeshStorNodeDevice, MeshStorReplica, MeshStorVolume};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// An object whose status this node writes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// A volume this node consumes.
    Volume(String),
    /// A replica on this node.
    Replica(String),
    /// A drive of this node.
    Device(String),
    /// This node.
    Node(String),
}

impl Object {
    pub(super) fn name(&self) -> &str {
        match self {
            Object::Volume(name) | Object::Replica(name) | Object::Device(name) | Object::Node(name) => name,
        }
    }

    pub(super) fn kind(&self) -> &'static str {
        match self {
            Object::Volume(_) => "volume",
            Object::Replica(_) => "replica",
            Object::Device(_) => "device",
            Object::Node(_) => "node",
        }
    }

    pub(super) fn resource(&self) -> ApiResource {
        match self {
            Object::Volume(_) => ApiResource::erase::<MeshStorVolume>(&()),
            Object::Replica(_) => ApiResource::erase::<MeshStorReplica>(&()),
            Object::Device(_) => ApiResource::erase::<MeshStorNodeDevice>(&()),
            Object::Node(_) => ApiResource::erase::<MeshStorNode>(&()),
        }
    }
}

/// What should stand in an object's status.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Put {
    /// Fields of the status; `null` removes one.
    pub fields: Value,
    /// Fields that alone are no reason for a write at once.
    pub telemetry: Value,
    /// Conditions that this node owns. In objects of its own, all others are removed.
    pub conditions: Vec<Said>,
    /// Spec to create the object with when it does not exist.
    pub create: Option<Value>,
    /// uid of the object it speaks of. Another one of that name (a volume was deleted and made again) is not written to.
    pub uid: Option<String>,
}

/// A condition without its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Which condition.
    pub type_: &'static str,
    /// Whether it holds.
    pub status: bool,
    /// A word from `docs/errors.md`.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

/// What should stand where; shared by the root actor, which writes on it, and the writer, which reads from it.
#[derive(Clone, Default)]
pub struct Board {
    pub(super) wanted: Rc<RefCell<BTreeMap<Object, Put>>>,
    /// Replicas whose data are gone as their tombstone demanded: the finalizer of the object with this uid may go.
    pub(super) finished: Rc<RefCell<BTreeMap<String, String>>>,
}

impl Board {
    /// Wants this to stand in an object. Returns whether that is new.
    pub fn put(&self, object: Object, put: Put) -> bool {
        let mut wanted = self.wanted.borrow_mut();
        let changed = wanted.get(&object) != Some(&put);
        wanted.insert(object, put);
        changed
    }

    /// Whether a status as a watch shows it says something else than it should.
    pub fn disagrees(&self, object: &Object, status: &Value) -> bool {
        let wanted = self.wanted.borrow();
        let Some(put) = wanted.get(object) else { return false };
        let stands = |said: &Said| {
            let list = status.get("conditions").and_then(Value::as_array);
            let found = list.and_then(|list| list.iter().find(|c| c["type"] == said.type_));
            let word = if said.status { "True" } else { "False" };
            found.is_some_and(|c| c["status"] == word && c["reason"] == said.reason.as_str())
        };
        let fields = put.fields.as_object();
        let field_stands = |(name, value): (&String, &Value)| status.get(name).unwrap_or(&Value::Null) == value;
        !fields.is_none_or(|fields| fields.iter().all(field_stands)) || !put.conditions.iter().all(stands)
    }

    /// Has nothing more to say about an object.
    pub fn forget(&self, object: &Object) {
        self.wanted.borrow_mut().remove(object);
    }

    /// Lets go of the replica's object that has this uid: its data are gone as its tombstone demanded.
    pub fn finish(&self, replica: String, uid: String) {
        self.finished.borrow_mut().insert(replica, uid);
    }
}
