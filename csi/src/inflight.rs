//! One running operation for each key: the same call joins it, a different one is turned away.
//!
//! Handlers run their work through it, with the volume as the key. Sidecars repeat a call while the first one still
//! runs; an early error would double their back-off, up to minutes (K7), so a repetition waits for the same result.
//! The work is a task of its own: it goes on when its callers leave or their time is over. It keeps no results: a call
//! after the end runs the operation again, which must therefore be idempotent.

use std::any::Any;
use std::collections::HashMap;
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;
use tracing::Instrument;

/// What an operation does, so that two calls can be told to be the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    operation: &'static str,
    arguments: u64,
}

impl Fingerprint {
    /// The fingerprint of an operation with these arguments; use the typed request, which has no secrets in it.
    pub fn of(operation: &'static str, arguments: &impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        arguments.hash(&mut hasher);
        Self { operation, arguments: hasher.finish() }
    }
}

/// A running operation, for people and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// What it works on.
    pub key: String,
    /// What it does.
    pub operation: &'static str,
    /// For how long already.
    pub elapsed: Duration,
}

/// The operations that run at the moment. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Inflight {
    entries: Arc<Mutex<HashMap<String, Entry>>>,
}

#[derive(Debug)]
struct Entry {
    fingerprint: Fingerprint,
    since: Instant,
    /// A `Receiver<T>`: operations with different answers share one table, because they share the volume.
    result: Box<dyn Any + Send>,
}

/// Nothing yet, then the result.
type Receiver<T> = watch::Receiver<Option<Result<T, Status>>>;
type Sender<T> = watch::Sender<Option<Result<T, Status>>>;

impl Inflight {
    /// Runs `work` under `key`, or joins the same operation if it runs already (`work` is then dropped unused).
    ///
    /// Waits for at most `hold` (`None`: until the end) and then answers DeadlineExceeded with the sentence of
    /// `awaited`, which says what is awaited; the work goes on. Another operation under the same key gets Aborted.
    pub async fn run<T, F>(
        &self,
        key: &str,
        fingerprint: Fingerprint,
        hold: Option<Duration>,
        work: F,
        awaited: impl FnOnce() -> String,
    ) -> Result<T, Status>
    where
        T: Clone + Send + Sync + 'static,
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let mut result = self.join_or_start(key, fingerprint, work)?;
        let ended = async {
            let seen = result.wait_for(Option::is_some).await;
            seen.ok().and_then(|seen| seen.clone()).unwrap_or_else(|| Err(ended_without_result(key, fingerprint)))
        };
        match hold {
            None => ended.await,
            Some(hold) => match tokio::time::timeout(hold, ended).await {
                Ok(result) => result,
                Err(_elapsed) => Err(Status::deadline_exceeded(awaited())),
            },
        }
    }

    /// What runs at the moment, sorted by key.
    pub fn running(&self) -> Vec<Running> {
        let mut running: Vec<Running> = self
            .lock()
            .iter()
            .map(|(key, entry)| Running {
                key: key.clone(),
                operation: entry.fingerprint.operation,
                elapsed: entry.since.elapsed(),
            })
            .collect();
        running.sort_by(|a, b| a.key.cmp(&b.key));
        running
    }

    fn join_or_start<T, F>(&self, key: &str, fingerprint: Fingerprint, work: F) -> Result<Receiver<T>, Status>
    where
        T: Clone + Send + Sync + 'static,
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let (sender, receiver) = watch::channel(None);
        {
            let mut entries = self.lock();
            if let Some(entry) = entries.get(key) {
                let same = entry.result.downcast_ref::<Receiver<T>>().filter(|_| entry.fingerprint == fingerprint);
                return same.cloned().ok_or_else(|| turned_away(key, fingerprint, entry));
            }
            let entry = Entry { fingerprint, since: Instant::now(), result: Box::new(receiver.clone()) };
            entries.insert(key.to_owned(), entry);
        }
        // Spawned without the lock: a runtime that shuts down drops the task, and with it the slot, right here.
        let slot = Slot { inflight: self.clone(), key: key.to_owned() };
        tokio::spawn(finish(slot, fingerprint, sender, work).in_current_span());
        Ok(receiver)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        // Nothing panics while it holds the lock, and a table without an entry is never wrong.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does the work and tells whoever waits.
async fn finish<T, F>(slot: Slot, fingerprint: Fingerprint, sender: Sender<T>, work: F)
where
    F: Future<Output = Result<T, Status>>,
{
    let result = work.await;
    let key = slot.key.clone();
    // The slot first: a caller that gets the result and calls again must start anew, not join what has ended.
    drop(slot);
    let failure = result.as_ref().err().map(|status| (status.code(), status.message().to_owned()));
    let nobody_waits = sender.send(Some(result)).is_err();
    if let (true, Some((code, message))) = (nobody_waits, failure) {
        tracing::warn!(%key, operation = fingerprint.operation, ?code, message, "failed after its callers had left");
    }
}

/// A place in the table, given up when dropped: also when the work panics or the runtime ends.
struct Slot {
    inflight: Inflight,
    key: String,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.inflight.lock().remove(&self.key);
    }
}

fn turned_away(key: &str, fingerprint: Fingerprint, entry: &Entry) -> Status {
    let seconds = entry.since.elapsed().as_secs();
    let running = entry.fingerprint.operation;
    let asked = fingerprint.operation;
    let how = if asked == running { " with other arguments" } else { "" };
    Status::aborted(format!("{key}: {asked} must wait: {running}{how} has been running for {seconds} s"))
}

fn ended_without_result(key: &str, fingerprint: Fingerprint) -> Status {
    let operation = fingerprint.operation;
    Status::internal(format!("{key}: {operation} broke off without a result; the log of this process says why"))
}

#[cfg(test)]
#[path = "inflight_tests.rs"]
mod tests;
