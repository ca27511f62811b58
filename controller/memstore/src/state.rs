//! What the store remembers: objects, the one version counter, the history that watches read, and who waits for a
//! change. Owned by `store.rs` behind one lock; changed only through [`State::commit`], [`State::restore`] and the
//! fault tables. Never awaits and never judges a request.

use crate::error::ApiError;
use crate::faults::FaultTable;
use crate::route::{Call, Verb};
use crate::rules::set_meta;
use crate::seed::Seed;
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;

/// Where an object is stored. The order is the order of lists.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) schema: usize,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// One change of one object, as an observer sees it afterwards.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Change {
    /// The version this change created; strictly increasing.
    pub resource_version: u64,
    /// Name of the client whose request did it.
    pub client: String,
    /// Plural of the kind.
    pub plural: String,
    /// Namespace of the object; empty for cluster-scoped kinds.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// Content before; `None` for a creation.
    pub old: Option<Arc<Value>>,
    /// Content after; `None` for a removal.
    pub new: Option<Arc<Value>>,
    pub(crate) schema: usize,
}

/// Counts since the start, for tests that bound the load on the server. Refused requests count as requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests that reached the store, by client, verb and resource (`plural` or `plural/status`).
    pub requests: BTreeMap<(String, Verb, String), u64>,
    /// Changes of objects, by client and plural. A no-op write is a request but no change.
    pub changes: BTreeMap<(String, String), u64>,
    /// ADDED, MODIFIED and DELETED events handed to watches, by client and plural.
    pub events: BTreeMap<(String, String), u64>,
}

/// The whole content of a store at one moment; see [`crate::Store::restore`].
#[derive(Clone, Debug)]
pub struct Snapshot {
    objects: BTreeMap<Key, Arc<Value>>,
    version: u64,
}

impl Snapshot {
    /// The global resourceVersion at that moment.
    pub fn resource_version(&self) -> u64 {
        self.version
    }
}

/// How a watch is brought to its end from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchEnd {
    /// The stream ends, as after the server's timeout; the client resumes where it was.
    Clean,
    /// The connection breaks.
    Reset,
    /// An ERROR event with code 410, then the end; the client must list again.
    Expired,
}

/// A watch that is open, as the fault handle sees it.
#[derive(Debug)]
pub(crate) struct OpenWatch {
    pub(crate) client: String,
    pub(crate) end: Option<WatchEnd>,
}

/// The first version of a new store; 0 is reserved by Kubernetes for "any".
const FIRST_VERSION: u64 = 1;

pub(crate) struct State {
    objects: BTreeMap<Key, Arc<Value>>,
    version: u64,
    /// Ordered by version; nothing in it is older than `trimmed`.
    history: VecDeque<Change>,
    history_max: usize,
    /// A watch may start from this version on; older ones get 410.
    floor: u64,
    /// Changes up to this version are physically gone. Never above `floor`: open watches may read on below it.
    trimmed: u64,
    waiters: BTreeMap<u64, Waker>,
    next_id: u64,
    pub(crate) seed: Seed,
    pub(crate) faults: FaultTable,
    pub(crate) watches: BTreeMap<u64, OpenWatch>,
    pub(crate) counters: Counters,
}

impl State {
    pub(crate) fn new(seed: u64, history_max: usize) -> Self {
        Self {
            objects: BTreeMap::new(),
            version: FIRST_VERSION,
            history: VecDeque::new(),
            history_max,
            floor: FIRST_VERSION,
            trimmed: 0,
            waiters: BTreeMap::new(),
            next_id: 0,
            seed: Seed::new(seed),
            faults: FaultTable::default(),
            watches: BTreeMap::new(),
            counters: Counters::default(),
        }
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(key)
    }

    /// All objects of a kind, or those of one namespace of it, in order.
    pub(crate) fn list(&self, schema: usize, namespace: &str) -> impl Iterator<Item = (&Key, &Arc<Value>)> {
        let from = Key { schema, namespace: namespace.into(), name: String::new() };
        let namespace = namespace.to_owned();
        let within = move |key: &Key| key.schema == schema && (namespace.is_empty() || key.namespace == namespace);
        self.objects.range(from..).take_while(move |(key, _)| within(key))
    }

    /// Stores or removes one object under a new version, unless nothing changes. The object as stored comes back.
    pub(crate) fn commit(&mut self, client: &str, plural: &str, key: Key, new: Option<Value>) -> Option<Arc<Value>> {
        let old = self.objects.get(&key).cloned();
        if old.as_deref() == new.as_ref() {
            return old;
        }
        self.version += 1;
        let new = new.map(|mut object| {
            set_meta(&mut object, "resourceVersion", self.version.to_string().into());
            Arc::new(object)
        });
        match &new {
            Some(object) => self.objects.insert(key.clone(), Arc::clone(object)),
            None => self.objects.remove(&key),
        };
        *self.counters.changes.entry((client.into(), plural.into())).or_default() += 1;
        self.history.push_back(Change {
            resource_version: self.version,
            client: client.into(),
            plural: plural.into(),
            namespace: key.namespace,
            name: key.name,
            old,
            new: new.clone(),
            schema: key.schema,
        });
        self.trim();
        new
    }

    fn trim(&mut self) {
        while self.history.len() > self.history_max {
            if let Some(change) = self.history.pop_front() {
                self.trimmed = change.resource_version;
                self.floor = self.floor.max(self.trimmed);
            }
        }
    }

    /// New watches must start at the present version or later; open ones are not disturbed.
    pub(crate) fn compact(&mut self) {
        self.floor = self.version;
    }

    /// Whether a watch can start from this version.
    pub(crate) fn check_start(&self, version: u64) -> Result<(), ApiError> {
        if version >= self.floor { Ok(()) } else { Err(ApiError::Expired { requested: version, oldest: self.floor }) }
    }

    /// A version from the future is refused for reads (not for watches), as by a real server.
    pub(crate) fn check_not_future(&self, version: u64) -> Result<(), ApiError> {
        if version <= self.version {
            Ok(())
        } else {
            Err(ApiError::ResourceVersionTooLarge { requested: version, current: self.version })
        }
    }

    /// The first change after `version`; `None` when there is none yet, an error when it is gone.
    pub(crate) fn change_after(&self, version: u64) -> Result<Option<&Change>, ApiError> {
        if version < self.trimmed {
            return Err(ApiError::Expired { requested: version, oldest: self.floor });
        }
        let at = self.history.partition_point(|change| change.resource_version <= version);
        Ok(self.history.get(at))
    }

    pub(crate) fn changes_since(&self, version: u64) -> Option<Vec<Change>> {
        let at = self.history.partition_point(|change| change.resource_version <= version);
        (version >= self.trimmed).then(|| self.history.range(at..).cloned().collect())
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot { objects: self.objects.clone(), version: self.version }
    }

    /// Everything goes back, the version counter too. History is gone and every watch ends: the server restarted.
    /// The seed goes on, so that no uid is given out twice.
    pub(crate) fn restore(&mut self, snapshot: &Snapshot) {
        self.objects = snapshot.objects.clone();
        self.version = snapshot.version;
        self.history.clear();
        self.floor = snapshot.version;
        self.trimmed = snapshot.version;
        self.end_watches(None, WatchEnd::Clean);
    }

    pub(crate) fn end_watches(&mut self, client: Option<&str>, end: WatchEnd) {
        for watch in self.watches.values_mut().filter(|watch| client.is_none_or(|client| watch.client == client)) {
            // The first reason stands: a stream ends only once.
            watch.end.get_or_insert(end);
        }
    }

    pub(crate) fn count_request(&mut self, client: &str, call: &Call) {
        let key = (client.to_owned(), call.verb, call.resource.clone());
        *self.counters.requests.entry(key).or_default() += 1;
    }

    pub(crate) fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Remembers who waits. A replaced waker is handed back to be dropped outside the lock: dropping one may drop a
    /// task, and with it a watch of this very store.
    #[must_use]
    pub(crate) fn wait(&mut self, id: u64, waker: &Waker) -> Option<Waker> {
        self.waiters.insert(id, waker.clone())
    }

    /// The opposite of [`State::wait`], with the same rule for the waker.
    #[must_use]
    pub(crate) fn forget(&mut self, id: u64) -> Option<Waker> {
        self.watches.remove(&id);
        self.waiters.remove(&id)
    }

    /// Everybody who waits, in the order in which they came to the store: waking order decides polling order on a
    /// single-threaded runtime, and must be the same in every run.
    pub(crate) fn take_waiters(&mut self) -> BTreeMap<u64, Waker> {
        std::mem::take(&mut self.waiters)
    }
}
