//! The body of a WATCH response: one JSON line per event, for as long as the client reads. Made by `service.rs`,
//! polled by the client. It keeps no queue of its own but a position in the store's history, so a slow reader costs
//! nothing; one that falls out of the history is disconnected, as by a real server. Never changes objects.

use crate::error::{ApiError, LinkError};
use crate::faults::Link;
use crate::read::projected;
use crate::route::Call;
use crate::rules::set_meta;
use crate::schema::Schema;
use crate::selector::Selectors;
use crate::state::{Change, OpenWatch, State, WatchEnd};
use crate::store::Inner;
use bytes::Bytes;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep};

/// Real servers send a bookmark about once a minute to watches that allow it.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// One open watch.
pub(crate) struct WatchStream {
    inner: Arc<Inner>,
    /// Names this watch among the open ones and among those who wait.
    id: u64,
    client: String,
    schema: usize,
    namespace: String,
    selectors: Selectors,
    metadata_only: bool,
    /// Every change up to this version has been looked at.
    seen: u64,
    /// The initial state, or the one error; sent before any change.
    initial: VecDeque<Bytes>,
    /// Nothing follows the initial lines.
    failed: bool,
    ended: bool,
    deadline: Option<Pin<Box<Sleep>>>,
    bookmark: Option<Pin<Box<Sleep>>>,
}

impl WatchStream {
    pub(crate) fn open(inner: &Arc<Inner>, state: &mut State, client: &str, call: &Call) -> Result<Self, ApiError> {
        let schema = &inner.schemas[call.schema];
        let selectors = Selectors::parse(schema, call.param("labelSelector"), call.param("fieldSelector"))?;
        let requested = call.resource_version()?;
        let bookmarks = call.flag("allowWatchBookmarks");
        let asked = call.param("sendInitialEvents").map(|_| call.flag("sendInitialEvents"));
        check_options(call, asked)?;
        let timeout = call.param("timeoutSeconds").and_then(|text| text.parse().ok()).filter(|seconds| *seconds > 0);
        let id = state.next_id();
        let mut watch = Self {
            inner: Arc::clone(inner),
            id,
            client: client.into(),
            schema: call.schema,
            namespace: call.namespace.clone(),
            selectors,
            metadata_only: call.metadata_only,
            seen: requested,
            initial: VecDeque::new(),
            failed: false,
            ended: false,
            deadline: timeout.map(|seconds| Box::pin(sleep(Duration::from_secs(seconds)))),
            bookmark: bookmarks.then(|| Box::pin(sleep(BOOKMARK_EVERY))),
        };
        match (asked, requested) {
            (Some(true), _) => {
                state.check_not_future(requested)?;
                watch.queue_objects(state);
                if bookmarks {
                    watch.initial.push_back(bookmark_line(schema, state.version(), true));
                }
            }
            (None, 0) => watch.queue_objects(state),
            (Some(false), 0) => watch.seen = state.version(),
            (_, from) => {
                // A version from the future is accepted: such a watch stays silent until the counter has passed it.
                if let Err(error) = state.check_start(from) {
                    watch.initial.push_back(line("ERROR", &error.status()));
                    watch.failed = true;
                }
            }
        }
        state.watches.insert(id, OpenWatch { client: client.into(), end: None });
        Ok(watch)
    }

    fn queue_objects(&mut self, state: &State) {
        for (_, object) in state.list(self.schema, &self.namespace) {
            if self.selectors.matches(object) {
                self.initial.push_back(line("ADDED", &projected(object, self.metadata_only)));
            }
        }
        self.seen = state.version();
    }

    /// The next event this client is to see; an error when it fell out of the history.
    fn next_event(&mut self, state: &mut State) -> Result<Option<Bytes>, ApiError> {
        while let Some(change) = state.change_after(self.seen)? {
            self.seen = change.resource_version;
            let Some(event) = self.rendered(change) else { continue };
            let plural = change.plural.clone();
            if state.faults.take_drop(&self.client, &plural) {
                continue;
            }
            *state.counters.events.entry((self.client.clone(), plural)).or_default() += 1;
            return Ok(Some(event));
        }
        self.seen = self.seen.max(state.version());
        Ok(None)
    }

    /// What a change means to this watch. An object that stops matching the selectors is a DELETED that carries the
    /// old content under the new version, exactly as on a real server.
    fn rendered(&self, change: &Change) -> Option<Bytes> {
        if change.schema != self.schema || !(self.namespace.is_empty() || self.namespace == change.namespace) {
            return None;
        }
        let matching = |object: &Option<Arc<Value>>| object.clone().filter(|object| self.selectors.matches(object));
        match (matching(&change.old), matching(&change.new)) {
            (None, Some(new)) => Some(line("ADDED", &projected(&new, self.metadata_only))),
            (Some(_), Some(new)) => Some(line("MODIFIED", &projected(&new, self.metadata_only))),
            (Some(old), None) => {
                let mut old = projected(&old, self.metadata_only);
                set_meta(&mut old, "resourceVersion", change.resource_version.to_string().into());
                Some(line("DELETED", &old))
            }
            (None, None) => None,
        }
    }

    fn end(&mut self, with: Option<LinkError>) -> Poll<Option<Result<Bytes, LinkError>>> {
        self.ended = true;
        Poll::Ready(with.map(Err))
    }

    fn reset(&self) -> LinkError {
        LinkError::Reset { client: self.client.clone() }
    }

    pub(crate) fn poll_line(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, LinkError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let inner = Arc::clone(&self.inner);
        let mut state = inner.lock();
        let link = state.faults.link(&self.client);
        if link == Link::Refuse {
            return self.end(Some(self.reset()));
        }
        let silent = link == Link::Hang || state.faults.holds_events(&self.client);
        if !silent && let Some(ready) = self.poll_state(&mut state) {
            return ready;
        }
        let current = state.version();
        // Registered before the lock is released: a change in between must not be missed.
        let stale = state.wait(self.id, cx.waker());
        drop(state);
        drop(stale);
        // Behind a dead link the client notices neither bookmarks nor the server's timeout.
        if silent { Poll::Pending } else { self.poll_timers(current, cx) }
    }

    fn poll_state(&mut self, state: &mut State) -> Option<Poll<Option<Result<Bytes, LinkError>>>> {
        match state.watches.get(&self.id).and_then(|watch| watch.end) {
            Some(WatchEnd::Clean) => return Some(self.end(None)),
            Some(WatchEnd::Reset) => return Some(self.end(Some(self.reset()))),
            Some(WatchEnd::Expired) => {
                self.ended = true;
                let error = ApiError::Expired { requested: self.seen, oldest: state.version() };
                return Some(Poll::Ready(Some(Ok(line("ERROR", &error.status())))));
            }
            None => {}
        }
        if let Some(line) = self.initial.pop_front() {
            return Some(Poll::Ready(Some(Ok(line))));
        }
        if self.failed {
            return Some(self.end(None));
        }
        match self.next_event(state) {
            Ok(event) => event.map(|event| Poll::Ready(Some(Ok(event)))),
            // Too slow for the history: a plain end. The client resumes and is then told 410.
            Err(_) => Some(self.end(None)),
        }
    }

    fn poll_timers(&mut self, current: u64, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, LinkError>>> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return self.end(None);
        }
        while let Some(bookmark) = &mut self.bookmark
            && bookmark.as_mut().poll(cx).is_ready()
        {
            bookmark.as_mut().reset(Instant::now() + BOOKMARK_EVERY);
            // A watch from the future must not be set back by a bookmark.
            if self.seen == current {
                let schema = &self.inner.schemas[self.schema];
                return Poll::Ready(Some(Ok(bookmark_line(schema, current, false))));
            }
        }
        Poll::Pending
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        let stale = self.inner.lock().forget(self.id);
        drop(stale);
    }
}

fn check_options(call: &Call, asked: Option<bool>) -> Result<(), ApiError> {
    let not_older = call.param("resourceVersionMatch") == Some("NotOlderThan");
    if asked.is_some() == not_older {
        return Ok(());
    }
    let why = "Forbidden: sendInitialEvents and resourceVersionMatch=NotOlderThan are given together or not at all";
    Err(ApiError::bad_option("ListOptions", "resourceVersionMatch", "FieldValueForbidden", why))
}

fn bookmark_line(schema: &Schema, version: u64, initial_end: bool) -> Bytes {
    let mut metadata = json!({"resourceVersion": version.to_string(), "creationTimestamp": null});
    if initial_end {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    line("BOOKMARK", &json!({"kind": schema.kind, "apiVersion": schema.api_version(), "metadata": metadata}))
}

fn line(event: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{}\n", json!({"type": event, "object": object})))
}
