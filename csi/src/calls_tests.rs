//! The layer around a bare tower service: labels, codes, ids, deadlines.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on should stop")]

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use tower::{ServiceExt, service_fn};

use super::*;

const PROBE: &str = "/csi.v1.Identity/Probe";

fn request(path: &str, timeout: Option<&str>) -> Request<()> {
    let mut request = Request::new(());
    *request.uri_mut() = path.parse().unwrap();
    if let Some(timeout) = timeout {
        request.headers_mut().insert("grpc-timeout", timeout.parse().unwrap());
    }
    request
}

/// Runs one call through the layer and gives back what the metrics then say.
async fn metrics_after<F>(path: &str, patience: Duration, answer: impl Fn(Request<()>) -> F) -> String
where
    F: Future<Output = Result<Response<()>, std::io::Error>> + Send + 'static,
{
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let service = CallLayer.layer(service_fn(answer));
    let _ = tokio::time::timeout(patience, service.oneshot(request(path, None))).await;
    handle.render()
}

#[tokio::test]
async fn a_success_is_counted_and_timed() {
    let text = metrics_after(PROBE, Duration::MAX, |_| async { Ok(Response::new(())) }).await;
    assert!(text.contains("meshstor_csi_calls_total{method=\"Identity/Probe\",code=\"OK\"} 1"), "{text}");
    assert!(text.contains("meshstor_csi_call_duration_seconds_count{method=\"Identity/Probe\"} 1"), "{text}");
}

#[tokio::test]
async fn an_error_is_counted_by_its_code() {
    let answer = |_| async { Ok(Status::out_of_range("too small").into_http::<()>()) };
    let text = metrics_after("/csi.v1.Controller/CreateVolume", Duration::MAX, answer).await;
    assert!(text.contains("{method=\"Controller/CreateVolume\",code=\"OutOfRange\"} 1"), "{text}");
}

#[tokio::test]
async fn a_stranger_cannot_add_labels() {
    let text = metrics_after("/evil/1234", Duration::MAX, |_| async { Ok(Response::new(())) }).await;
    assert!(text.contains("{method=\"unknown\",code=\"OK\"} 1") && !text.contains("evil"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_is_counted_as_canceled() {
    let text = metrics_after(PROBE, Duration::from_secs(3), |_| std::future::pending()).await;
    assert!(text.contains("code=\"Canceled\"} 1"), "{text}");
}

#[tokio::test]
async fn a_handler_that_panics_is_counted_as_internal() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let service = CallLayer.layer(service_fn(|_| async {
        if true { panic!("planted") } else { Ok::<Response<()>, std::io::Error>(Response::new(())) }
    }));
    assert!(tokio::spawn(service.oneshot(request(PROBE, None))).await.is_err());
    assert!(handle.render().contains("code=\"Internal\"} 1"), "{}", handle.render());
}

#[tokio::test(start_paused = true)]
async fn the_handler_sees_id_and_deadline_and_the_caller_sees_the_id() {
    let begin = Instant::now();
    let service = CallLayer.layer(service_fn(move |request: Request<()>| async move {
        let deadline = request.extensions().get::<Deadline>().copied();
        assert_eq!(deadline, Some(Deadline(begin + Duration::from_secs(15))));
        let id = request.extensions().get::<RequestId>().copied();
        let mut response = Response::new(());
        response.extensions_mut().insert(id.unwrap());
        Ok::<_, std::io::Error>(response)
    }));
    let response = service.oneshot(request(PROBE, Some("15000m"))).await.unwrap();
    let id = response.extensions().get::<RequestId>().unwrap().to_string();
    assert_eq!(response.headers().get(REQUEST_ID_HEADER).unwrap().to_str().unwrap(), id);
}

#[test]
fn code_names_are_those_of_go() {
    for number in 0..=16 {
        let code = Code::from_i32(number);
        let expected = match code {
            Code::Ok => "OK".to_owned(),
            Code::Cancelled => "Canceled".to_owned(),
            other => format!("{other:?}"),
        };
        assert_eq!(code_name(code), expected);
    }
}
