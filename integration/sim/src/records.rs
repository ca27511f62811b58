//! Harm to objects themselves, past all rules of the API server: removed, stripped of the in-sync set, taken back to an
//! earlier state, and put right again, as an operator with a backup would.
//!
//! Called by the nemesis. One thing at a time for each volume. It remembers how objects looked; it never invents one.

use meshstor_memstore::Store;
use serde_json::Value;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub(crate) const VOLUMES: &str = "meshstorvolumes";
pub(crate) const REPLICAS: &str = "meshstorreplicas";
/// How many epochs a record goes back at least. A volume that comes back one or two moves short is caught up by two calls
/// of the orchestrator, and then nobody could tell; the rule is about snapshots (docs/protocol.md, rule 9).
const EPOCHS_BACK: u64 = 4;
/// Pictures kept of all volumes: one for each harm.
const PICTURES: usize = 64;

type Named = (&'static str, String);

/// A volume with its copies at one moment.
#[derive(Clone)]
struct Picture {
    epoch: u64,
    objects: BTreeMap<Named, Arc<Value>>,
}

/// What was done and has to be undone.
pub struct Records {
    pub(crate) store: Store,
    past: RefCell<VecDeque<BTreeMap<String, Picture>>>,
    /// By volume: the objects as they have to be put back.
    owed: RefCell<BTreeMap<String, BTreeMap<Named, Arc<Value>>>>,
    /// By volume: the in-sync set that was taken out. Everything else of the object may change meanwhile.
    stripped: RefCell<BTreeMap<String, Value>>,
}

impl Records {
    /// Of this store.
    pub fn new(store: Store) -> Records {
        Records { store, past: RefCell::default(), owed: RefCell::default(), stripped: RefCell::default() }
    }

    /// Takes a picture of everything that is as it should be.
    pub fn remember(&self) {
        let owed = self.owed.borrow();
        let picture = |name: String| (!owed.contains_key(&name)).then(|| (name.clone(), self.picture(&name)));
        let all: BTreeMap<String, Picture> = self.names(VOLUMES).into_iter().filter_map(picture).collect();
        let mut past = self.past.borrow_mut();
        past.push_back(all);
        if past.len() > PICTURES {
            past.pop_front();
        }
    }

    /// A volume's object or one of its copies' is gone. Answers the volume.
    pub fn remove(&self, choice: usize) -> Option<String> {
        let name = self.pick(choice)?;
        let picture = self.picture(&name);
        let at = (choice >> 8) % picture.objects.len().max(1);
        let ((plural, object), value) = picture.objects.into_iter().nth(at)?;
        self.store.force(plural, "", &object, None);
        self.owe(&name, [((plural, object), value)].into());
        Some(name)
    }

    /// A volume's in-sync set is gone.
    pub fn strip(&self, choice: usize) -> Option<String> {
        let name = self.pick(choice)?;
        let object = self.store.get(VOLUMES, "", &name)?;
        let mut without = (*object).clone();
        without.get_mut("status")?.as_object_mut()?.remove("inSync")?;
        self.store.force(VOLUMES, "", &name, Some(without));
        self.stripped.borrow_mut().insert(name.clone(), object["status"]["inSync"].clone());
        self.owe(&name, BTreeMap::new());
        Some(name)
    }

    /// A volume with its copies is what it was some epochs ago.
    pub fn roll_back(&self, choice: usize) -> Option<String> {
        let name = self.pick(choice)?;
        let now = self.picture(&name);
        let past = self.past.borrow();
        let mut of_volume = past.iter().filter_map(|picture| picture.get(&name));
        let old = of_volume.rfind(|old| {
            old.epoch > 0 && old.epoch + EPOCHS_BACK <= now.epoch && old.objects.keys().eq(now.objects.keys())
        })?;
        for ((plural, object), value) in &old.objects {
            self.store.force(plural, "", object, Some((**value).clone()));
        }
        self.owe(&name, now.objects);
        Some(name)
    }

    /// Puts a volume right.
    pub fn put_back(&self, name: &str) {
        let owed = self.owed.borrow_mut().remove(name);
        if let Some(set) = self.stripped.borrow_mut().remove(name)
            && let Some(mut object) = self.store.get(VOLUMES, "", name).map(|object| (*object).clone())
            && let Some(status) = object.get_mut("status").and_then(Value::as_object_mut)
        {
            status.insert("inSync".into(), set);
            self.store.force(VOLUMES, "", name, Some(object));
        }
        for ((plural, object), value) in owed.into_iter().flatten() {
            self.store.force(plural, "", &object, Some((*value).clone()));
        }
    }

    /// Puts everything right.
    pub fn put_all_back(&self) {
        let names: Vec<String> = self.owed.borrow().keys().cloned().collect();
        names.iter().for_each(|name| self.put_back(name));
    }

    /// Nodes that have a volume attached, one mention for each volume.
    pub fn consumers(&self) -> Vec<String> {
        let objects = self.store.list(VOLUMES);
        objects.iter().filter_map(|o| o["spec"]["attachment"]["consumer"].as_str().map(str::to_string)).collect()
    }

    fn owe(&self, name: &str, objects: BTreeMap<Named, Arc<Value>>) {
        self.owed.borrow_mut().insert(name.into(), objects);
    }

    /// Names of the objects of a kind.
    pub(crate) fn names(&self, plural: &str) -> Vec<String> {
        let objects = self.store.list(plural);
        objects.iter().filter_map(|object| object["metadata"]["name"].as_str().map(str::to_string)).collect()
    }

    /// A volume with a record, to which nothing was done.
    fn pick(&self, choice: usize) -> Option<String> {
        let owed = self.owed.borrow();
        let recorded = |name: &String| {
            let object = self.store.get(VOLUMES, "", name);
            !owed.contains_key(name) && object.is_some_and(|object| object["status"]["inSync"].is_array())
        };
        let names: Vec<String> = self.names(VOLUMES).into_iter().filter(recorded).collect();
        names.get(choice % names.len().max(1)).cloned()
    }

    fn picture(&self, name: &str) -> Picture {
        let volume = self.store.get(VOLUMES, "", name);
        let epoch = volume.as_ref().and_then(|v| v["spec"]["attachment"]["epoch"].as_u64()).unwrap_or(0);
        let mut objects: BTreeMap<Named, Arc<Value>> = BTreeMap::new();
        objects.extend(volume.map(|volume| ((VOLUMES, name.to_string()), volume)));
        for object in self.store.list(REPLICAS) {
            if object["spec"]["volume"].as_str() == Some(name)
                && let Some(of) = object["metadata"]["name"].as_str()
            {
                objects.insert((REPLICAS, of.to_string()), Arc::clone(&object));
            }
        }
        Picture { epoch, objects }
    }
}
