//! A connection to a CSI socket, for tests, the demo and `meshstor dev`.
//!
//! The channel fits every generated client: `ControllerClient::new(connect(path, within).await?)`. It sets no timeouts
//! on calls; `tonic::Request::set_timeout` does, and the server sees it as a [`crate::deadline::Deadline`].
//! Production code never calls itself through it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

/// Pause between two attempts to connect.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are the ones that the sentences name")]
pub enum ConnectError {
    #[error("{path:?} is not UTF-8, so it cannot be the address of a socket")]
    Path { path: PathBuf },
    #[error("nobody answered on {path} within {within:?}")]
    NoAnswer { path: PathBuf, within: Duration, source: tonic::transport::Error },
}

/// Connects to the socket at `path`, trying again until it answers or `within` has passed. Tries at least once.
pub async fn connect(path: &Path, within: Duration) -> Result<Channel, ConnectError> {
    let endpoint = endpoint(path)?;
    let begin = Instant::now();
    loop {
        match endpoint.connect().await {
            Ok(channel) => return Ok(channel),
            Err(source) if begin.elapsed() >= within => {
                return Err(ConnectError::NoAnswer { path: path.to_owned(), within, source });
            }
            Err(_not_yet) => tokio::time::sleep(RETRY_PAUSE).await,
        }
    }
}

/// A channel that connects with its first call, and again after a restart of the server.
pub fn connect_lazy(path: &Path) -> Result<Channel, ConnectError> {
    Ok(endpoint(path)?.connect_lazy())
}

fn endpoint(path: &Path) -> Result<Endpoint, ConnectError> {
    let refused = || ConnectError::Path { path: path.to_owned() };
    let text = path.to_str().ok_or_else(refused)?;
    Endpoint::from_shared(format!("unix://{text}")).map_err(|_| refused())
}
