//! Options that several subcommands share, and their parsing: endpoints, addresses, logging.

use anyhow::{Context, Result};
use std::io::IsTerminal;
use std::path::PathBuf;

/// A CSI endpoint: `unix:///path` as the sidecars write it, or a plain absolute path.
pub fn endpoint(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix://").unwrap_or(text);
    if path.starts_with('/') {
        Ok(PathBuf::from(path))
    } else {
        Err(format!("{text:?} is not a CSI endpoint: allowed is unix:///absolute/path or /absolute/path"))
    }
}

/// Log lines on stderr: level by `RUST_LOG` (default `info`), JSON when asked.
pub fn start_logging(json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match json {
        true => builder.json().try_init(),
        false => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
    };
    // Only a second start in one process fails, and then the first one logs on.
    let _already = started;
}

/// A client for the API server named by `KUBECONFIG`, the default kubeconfig or the pod's service account.
pub async fn kube_client() -> Result<kube::Client> {
    // Two crypto providers may be in the tree; one is chosen once. A second choice is refused and the first stays.
    let _already = rustls::crypto::ring::default_provider().install_default();
    kube::Client::try_default().await.context("no API server: set KUBECONFIG or run in a pod with a service account")
}

/// The cluster's own identity: the uid of its kube-system namespace.
pub async fn cluster_id(client: &kube::Client) -> Result<meshstor_kernel::id::ClusterId> {
    use k8s_openapi::api::core::v1::Namespace;
    let namespaces: kube::Api<Namespace> = kube::Api::all(client.clone());
    let system =
        namespaces.get("kube-system").await.context("reading namespace kube-system, whose uid names the cluster")?;
    let uid = system.metadata.uid.context("namespace kube-system has no uid")?;
    uid.parse().with_context(|| format!("the uid of namespace kube-system is {uid:?}"))
}

/// Ends when the process is asked to stop (SIGTERM, SIGINT).
pub async fn stop_requested() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => tracing::info!("SIGTERM: stopping; volumes stay as they are"),
        _ = int.recv() => tracing::info!("SIGINT: stopping; volumes stay as they are"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_unix_sockets_by_absolute_path() {
        assert_eq!(endpoint("unix:///csi/csi.sock"), Ok(PathBuf::from("/csi/csi.sock")));
        assert_eq!(endpoint("/csi/csi.sock"), Ok(PathBuf::from("/csi/csi.sock")));
        for bad in ["tcp://127.0.0.1:1", "csi.sock", "unix://csi.sock", ""] {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
    }
}
