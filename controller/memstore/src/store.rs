//! The store itself and its builder: what `meshstor dev` and the simulations hold. Objects are reached through
//! [`Store::client_for`] like any cluster; the direct reads here are for oracles, which must not be subject to faults.
//! Never spawns a task or a thread.

use crate::clock::{Clock, SystemClock};
use crate::faults::Faults;
use crate::schema::{Schema, builtin_schemas};
use crate::service::StoreService;
use crate::state::{Change, Counters, Key, Snapshot, State};
use crate::write::BOOTSTRAP_NAMESPACES;
use serde_json::Value;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Extra rules, checked on every create, update and patch (status included, deletion excluded) with the object as it
/// would be stored. An error becomes a 422 with this text. Runs under the store's lock: it must not use the store.
pub type Validator = dyn Fn(&Schema, Option<&Value>, &Value) -> Result<(), String> + Send + Sync;

/// History kept for watches. A real server's watch cache holds between 100 and some ten thousand events per kind.
const HISTORY_MAX: usize = 4096;

/// Everything behind a [`Store`].
pub(crate) struct Inner {
    pub(crate) schemas: Vec<Schema>,
    pub(crate) validator: Option<Arc<Validator>>,
    pub(crate) clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

impl Inner {
    /// A panicking validator must not take the store with it: changes are made last, so the state is whole.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `act` on the state, then wakes everybody who waits for a change, outside the lock.
    pub(crate) fn change<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        let (result, waiters) = {
            let mut state = self.lock();
            (act(&mut state), state.take_waiters())
        };
        for waker in waiters.into_values() {
            waker.wake();
        }
        result
    }

    /// Now, as metadata writes it: RFC 3339, whole seconds.
    pub(crate) fn timestamp(&self) -> String {
        let seconds = self.clock.now().as_second();
        crate::clock::Timestamp::from_second(seconds).unwrap_or_default().to_string()
    }
}

/// An in-memory Kubernetes API server. Clones share the same content.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

impl Store {
    /// Starts a store that serves the built-in kinds.
    pub fn builder() -> Builder {
        Builder {
            schemas: builtin_schemas(),
            validator: None,
            clock: Arc::new(SystemClock),
            seed: 0,
            history_max: HISTORY_MAX,
        }
    }

    /// An ordinary client whose requests carry this name for faults, counters and the change log.
    ///
    /// Must be called inside a tokio runtime, which from then on drives the client: `kube::Client::new` puts a
    /// buffer task there.
    pub fn client_for(&self, name: &str) -> kube::Client {
        kube::Client::new(self.service_for(name), "default")
    }

    /// The tower service under [`Store::client_for`], for callers that want layers in between.
    pub fn service_for(&self, name: &str) -> StoreService {
        StoreService::new(Arc::clone(&self.inner), name)
    }

    /// The handle that breaks requests, links and watches.
    pub fn faults(&self) -> Faults {
        Faults { inner: Arc::clone(&self.inner) }
    }

    /// The whole content, as an etcd snapshot would hold it.
    pub fn snapshot(&self) -> Snapshot {
        self.inner.lock().snapshot()
    }

    /// etcd rolled back: objects and the version counter return to the snapshot, history is gone, all watches end.
    ///
    /// As on a real server, a client that resumes a watch with a version from the lost future gets no error and no
    /// event until the counter has passed that version again.
    pub fn restore(&self, snapshot: &Snapshot) {
        self.inner.change(|state| state.restore(snapshot));
    }

    /// Writes what an object is, or (`None`) that it is not there, past all rules: an operator at etcd's own keys. Its
    /// uid, finalizers and status are what `object` says; watches see an ordinary event. Answers whether the kind is known.
    pub fn force(&self, plural: &str, namespace: &str, name: &str, object: Option<Value>) -> bool {
        let Some(schema) = self.schema_index(plural) else { return false };
        let key = Key { schema, namespace: namespace.into(), name: name.into() };
        self.inner.change(|state| state.commit("etcd", plural, key, object));
        true
    }

    /// Forgets history: a watch that starts from an older version gets 410. Open watches are not disturbed.
    pub fn compact(&self) {
        self.inner.change(State::compact);
    }

    /// The global version counter.
    pub fn resource_version(&self) -> u64 {
        self.inner.lock().version()
    }

    /// One object, past all faults. `plural` is the first registered kind of that name; `namespace` is empty for
    /// cluster-scoped kinds.
    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let schema = self.schema_index(plural)?;
        let key = Key { schema, namespace: namespace.into(), name: name.into() };
        self.inner.lock().get(&key).cloned()
    }

    /// All objects of a kind in order, past all faults.
    pub fn list(&self, plural: &str) -> Vec<Arc<Value>> {
        let Some(schema) = self.schema_index(plural) else { return Vec::new() };
        self.inner.lock().list(schema, "").map(|(_, object)| Arc::clone(object)).collect()
    }

    /// All changes after this version; `None` when some of them are no longer remembered.
    pub fn changes_since(&self, version: u64) -> Option<Vec<Change>> {
        self.inner.lock().changes_since(version)
    }

    /// Counts of requests, changes and events so far.
    pub fn counters(&self) -> Counters {
        self.inner.lock().counters.clone()
    }

    /// Sets all counts to zero.
    pub fn reset_counters(&self) {
        self.inner.lock().counters = Counters::default();
    }

    fn schema_index(&self, plural: &str) -> Option<usize> {
        self.inner.schemas.iter().position(|schema| schema.plural == plural)
    }
}

/// Puts a [`Store`] together.
pub struct Builder {
    schemas: Vec<Schema>,
    validator: Option<Arc<Validator>>,
    clock: Arc<dyn Clock>,
    seed: u64,
    history_max: usize,
}

impl Builder {
    /// Serves one more kind. A kind of the same group, version and plural is replaced.
    pub fn schema(mut self, schema: Schema) -> Self {
        let same = |other: &&mut Schema| other.is(&schema.group, &schema.version, &schema.plural);
        match self.schemas.iter_mut().find(same) {
            Some(slot) => *slot = schema,
            None => self.schemas.push(schema),
        }
        self
    }

    /// Serves several more kinds.
    pub fn schemas(self, schemas: impl IntoIterator<Item = Schema>) -> Self {
        schemas.into_iter().fold(self, Self::schema)
    }

    /// Checks every write with these rules; see [`Validator`].
    pub fn validator<F>(mut self, validator: F) -> Self
    where
        F: Fn(&Schema, Option<&Value>, &Value) -> Result<(), String> + Send + Sync + 'static,
    {
        self.validator = Some(Arc::new(validator));
        self
    }

    /// Takes timestamps from this clock; the default is the machine's.
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// The seed of uids and generated names; two stores with the same seed and requests give the same ones.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// How many changes are kept for watches to resume from.
    pub fn history(mut self, changes: usize) -> Self {
        self.history_max = changes;
        self
    }

    /// The store, holding only the namespaces every cluster has (the uid of kube-system names the cluster).
    pub fn build(self) -> Store {
        let state = Mutex::new(State::new(self.seed, self.history_max));
        let inner = Inner { schemas: self.schemas, validator: self.validator, clock: self.clock, state };
        crate::write::bootstrap(&inner, &BOOTSTRAP_NAMESPACES);
        Store { inner: Arc::new(inner) }
    }
}
