//! `/metrics`, `/healthz`, `/readyz`: one small HTTP server for each role.
//!
//! Started by every role. `/healthz` says that the process runs its event loop; `/readyz` what the role says of itself.

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// Says whether a role is ready, and if not, why.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Upper bounds of histogram buckets in seconds: from a sysfs write (1 ms) to a held CSI call (60 s).
const BUCKETS: &[f64] = &[0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
/// Old samples are dropped this often; the exporter grows without it.
const UPKEEP: Duration = Duration::from_secs(5);

/// Makes the process's recorder. Once for each process.
pub fn recorder() -> Result<PrometheusHandle> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), BUCKETS)
        .context("histogram buckets")?
        .install_recorder()
        .context("the metrics recorder")?;
    meshstor_actors::events::describe_metrics();
    meshstor_controller::describe_metrics();
    meshstor_csi::calls::describe_metrics();
    Ok(handle)
}

#[derive(Clone)]
struct Role {
    metrics: PrometheusHandle,
    ready: Ready,
}

/// Serves until the process ends. Returns the address that was bound (port 0 picks a free one).
pub async fn serve(address: SocketAddr, metrics: PrometheusHandle, ready: Ready) -> Result<SocketAddr> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address} for metrics"))?;
    let bound = listener.local_addr()?;
    let upkeep = metrics.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP).await;
            upkeep.run_upkeep();
        }
    });
    let router = Router::new()
        .route("/metrics", get(|State(role): State<Role>| async move { role.metrics.render() }))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(Role { metrics, ready });
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the metrics server ended");
        }
    });
    Ok(bound)
}

async fn readyz(State(role): State<Role>) -> (StatusCode, String) {
    match (role.ready)() {
        Ok(()) => (StatusCode::OK, "ok\n".into()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}
