//! What every call gets before its handler sees it: a request id, a span, a deadline, and two metrics when it ends.
//!
//! `server` puts this layer around all services. It never reads a message body, so it cannot leak a secret, and it
//! never ends a call early: holding an answer until shortly before the deadline is the handler's affair.
//!
//! Only unary calls are counted by their true code: it is read from the response headers, where an error of a unary
//! call always stands. We serve no streaming call.

use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use http::{HeaderValue, Request, Response};
use tokio::time::Instant;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument, Span};

use crate::deadline::Deadline;
use crate::proto;

const CALLS_TOTAL: &str = "meshstor_csi_calls_total";
const CALL_DURATION: &str = "meshstor_csi_call_duration_seconds";
const REQUEST_ID_HEADER: &str = "x-request-id";

/// The id of a call, in its span, in its request extensions and in the `x-request-id` header of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestId(u64);

impl RequestId {
    fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

impl fmt::Display for RequestId {
    /// A word that differs from process to process, then a number that differs from call to call.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        static PROCESS: LazyLock<u32> = LazyLock::new(|| RandomState::new().hash_one(()) as u32);
        write!(formatter, "{:08x}-{}", *PROCESS, self.0)
    }
}

/// Puts [`Calls`] around a service.
#[derive(Debug, Clone, Copy, Default)]
pub struct CallLayer;

/// The service around all services.
#[derive(Debug, Clone)]
pub struct Calls<S> {
    inner: S,
}

/// Tells the metrics recorder what our metrics mean; call it once after a recorder is installed.
pub fn describe_metrics() {
    metrics::describe_counter!(CALLS_TOTAL, "CSI calls that ended, by method and gRPC code");
    metrics::describe_histogram!(CALL_DURATION, metrics::Unit::Seconds, "How long CSI calls took, by method");
}

/// Writes the volume of a call into its span, so that every line about the call names it.
pub fn note_volume(volume_id: &str) {
    Span::current().record("volume", volume_id);
}

impl<S> Layer<S> for CallLayer {
    type Service = Calls<S>;

    fn layer(&self, inner: S) -> Calls<S> {
        Calls { inner }
    }
}

impl<S, B, R> Service<Request<B>> for Calls<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let id = RequestId::next();
        let mut call = Call::begin(request.uri().path());
        if let Some(deadline) = Deadline::from_headers(request.headers()) {
            request.extensions_mut().insert(deadline);
        }
        request.extensions_mut().insert(id);
        let span = tracing::info_span!("csi", method = call.method, request = %id, volume = tracing::field::Empty);
        let response = span.in_scope(|| self.inner.call(request));
        let answer = async move {
            let mut result = response.await;
            match &mut result {
                Ok(response) => {
                    call.answered(Status::from_header_map(response.headers()));
                    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
                        response.headers_mut().insert(REQUEST_ID_HEADER, value);
                    }
                }
                Err(_transport) => call.end(Code::Unknown),
            }
            result
        };
        Box::pin(answer.instrument(span))
    }
}

/// One call on its way; counted exactly once, also when nobody waits for its end.
struct Call {
    method: &'static str,
    begin: Instant,
    ended: bool,
}

impl Call {
    fn begin(path: &str) -> Self {
        Self { method: label(path), begin: Instant::now(), ended: false }
    }

    /// The handler has answered; no status in the headers means success.
    fn answered(&mut self, status: Option<Status>) {
        let milliseconds = self.begin.elapsed().as_millis() as u64;
        match status.filter(|status| status.code() != Code::Ok) {
            None => {
                tracing::debug!(milliseconds, "answered");
                self.end(Code::Ok);
            }
            Some(status) => {
                let code = code_name(status.code());
                tracing::warn!(milliseconds, code, message = status.message(), "refused or failed");
                self.end(status.code());
            }
        }
    }

    fn end(&mut self, code: Code) {
        self.ended = true;
        metrics::counter!(CALLS_TOTAL, "method" => self.method, "code" => code_name(code)).increment(1);
        metrics::histogram!(CALL_DURATION, "method" => self.method).record(self.begin.elapsed());
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.ended {
            // Dropped before its end: the handler panicked, or the caller went away or ran out of time.
            self.end(if std::thread::panicking() { Code::Internal } else { Code::Cancelled });
        }
    }
}

/// The method as a label: `Controller/CreateVolume`. A path that is none of CSI's becomes `unknown`, so that a stranger
/// on the socket cannot fill the metrics with labels.
fn label(path: &str) -> &'static str {
    let known = proto::METHODS.iter().find(|method| **method == path);
    known.and_then(|method| method.strip_prefix("/csi.v1.")).unwrap_or("unknown")
}

/// The spelling that Go programs use, and with them the metrics of every CSI sidecar.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
#[path = "calls_tests.rs"]
mod tests;
