//! The tower service under `kube::Client`: takes a request through the (possibly broken) link, lets the store judge
//! it, and takes the answer back. Made by [`crate::Store::service_for`]. It decides nothing about objects itself.

use crate::discovery;
use crate::error::{ApiError, LinkError};
use crate::faults::{Link, Outcome};
use crate::read;
use crate::route::{self, Call, Verb};
use crate::store::Inner;
use crate::watch::WatchStream;
use crate::write::Writer;
use bytes::Bytes;
use futures::future::{BoxFuture, pending, poll_fn};
use http::{Request, Response, header};
use http_body::{Body as HttpBody, Frame};
use kube::client::Body;
use serde_json::Value;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tower::Service;

/// The connection of one named client to the store.
#[derive(Clone)]
pub struct StoreService {
    inner: Arc<Inner>,
    client: Arc<str>,
}

impl StoreService {
    pub(crate) fn new(inner: Arc<Inner>, client: &str) -> Self {
        Self { inner, client: client.into() }
    }

    async fn serve(self, request: Request<Body>) -> Result<Response<ReplyBody>, LinkError> {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await.map_err(LinkError::Body)?;
        let latency = self.inner.lock().faults.latency(&self.client);
        pause(latency.request).await;
        if !self.link_passes().await {
            return Err(LinkError::Refused { client: self.client.to_string() });
        }
        if let Some(document) = discovery::document(&self.inner.schemas, parts.uri.path()) {
            return respond(Ok(Answered::Json(200, document)));
        }
        let call = match route::parse(&self.inner.schemas, &parts) {
            Ok(call) => call,
            Err(error) => return respond(Err(error)),
        };
        let fault = {
            let mut state = self.inner.lock();
            state.count_request(&self.client, &call);
            state.faults.take(&self.client, &call)
        };
        if let Some((false, outcome)) = fault {
            return self.fail(outcome).await;
        }
        let result = self.judge(&call, &body);
        if let Some((true, outcome)) = fault {
            return self.fail(outcome).await;
        }
        pause(latency.reply).await;
        if !self.link_passes().await {
            return Err(LinkError::Reset { client: self.client.to_string() });
        }
        respond(result)
    }

    /// Waits while the link hangs; false when it refuses.
    async fn link_passes(&self) -> bool {
        let ticket = Ticket { id: self.inner.lock().next_id(), inner: &self.inner };
        poll_fn(|cx| {
            let mut state = self.inner.lock();
            match state.faults.link(&self.client) {
                Link::Up => Poll::Ready(true),
                Link::Refuse => Poll::Ready(false),
                Link::Hang => {
                    let stale = state.wait(ticket.id, cx.waker());
                    drop(state);
                    drop(stale);
                    Poll::Pending
                }
            }
        })
        .await
    }

    async fn fail(&self, outcome: Outcome) -> Result<Response<ReplyBody>, LinkError> {
        match outcome {
            Outcome::Status(code) => respond(Err(ApiError::Injected(code))),
            Outcome::Reset => Err(LinkError::Reset { client: self.client.to_string() }),
            Outcome::Hang => pending().await,
        }
    }

    /// The request as one atomic step under the store's lock.
    fn judge(&self, call: &Call, body: &[u8]) -> Result<Answered, ApiError> {
        let inner = &self.inner;
        let schema = &inner.schemas[call.schema];
        match call.verb {
            Verb::Get => read::get(&inner.lock(), schema, call).map(Answered::Text),
            Verb::List => read::list(&inner.lock(), schema, call).map(Answered::Text),
            Verb::Watch => {
                let watch = WatchStream::open(inner, &mut inner.lock(), &self.client, call)?;
                Ok(Answered::Watch(Box::new(watch)))
            }
            Verb::Create | Verb::Update | Verb::Patch | Verb::Delete | Verb::DeleteCollection => {
                let run = |state: &mut _| Writer { inner, state, client: &self.client, call }.run(body);
                inner.change(run).map(|(code, answer)| Answered::Json(code, answer))
            }
        }
    }
}

impl Service<Request<Body>> for StoreService {
    type Response = Response<ReplyBody>;
    type Error = LinkError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().serve(request))
    }
}

/// A place among those who wait for the link; given up when the request is cancelled.
struct Ticket<'a> {
    inner: &'a Inner,
    id: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let stale = self.inner.lock().forget(self.id);
        drop(stale);
    }
}

enum Answered {
    Json(u16, Value),
    /// JSON already, of an answer with code 200.
    Text(Vec<u8>),
    Watch(Box<WatchStream>),
}

/// Body of a response: one JSON document, or the lines of a watch.
pub struct ReplyBody(ReplyKind);

enum ReplyKind {
    Whole(Option<Bytes>),
    Watch(Box<WatchStream>),
}

impl HttpBody for ReplyBody {
    type Data = Bytes;
    type Error = LinkError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, LinkError>>> {
        match &mut self.get_mut().0 {
            ReplyKind::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            ReplyKind::Watch(watch) => watch.poll_line(cx).map(|line| line.map(|line| line.map(Frame::data))),
        }
    }
}

fn respond(result: Result<Answered, ApiError>) -> Result<Response<ReplyBody>, LinkError> {
    let (code, kind) = match result {
        Ok(Answered::Json(code, value)) => (code, ReplyKind::Whole(Some(Bytes::from(text(&value))))),
        Ok(Answered::Text(text)) => (200, ReplyKind::Whole(Some(Bytes::from(text)))),
        Ok(Answered::Watch(watch)) => (200, ReplyKind::Watch(watch)),
        Err(error) => (error.code(), ReplyKind::Whole(Some(Bytes::from(error.status().to_string())))),
    };
    let response = Response::builder().status(code).header(header::CONTENT_TYPE, "application/json");
    response.body(ReplyBody(kind)).map_err(LinkError::Response)
}

/// A value as JSON. Straight into bytes: most of a simulation's time goes into this, and `to_string` is the slower way.
pub(crate) fn text(value: &Value) -> Vec<u8> {
    // A `Value` has only string keys, and memory takes every byte: there is nothing that could fail.
    serde_json::to_vec(value).unwrap_or_default()
}

/// A delay of zero must not touch the timer: it would cost a turn of the scheduler in every request.
async fn pause(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}
