//! A unix socket that serves CSI.
//!
//! The node agent, the controller and `meshstor dev` call [`bind`] and then [`Bound::serve`] with the services they
//! offer. Access to the socket is access to every volume, so only its owner may connect. It never takes a socket away
//! from a process that still answers on it, and never removes a file that is not a socket.

use std::future::{Future, pending};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::fs;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;

use crate::calls::CallLayer;

/// Sidecars reach the socket as root; nobody else has business there.
const SOCKET_MODE: u32 = 0o600;
/// Only where the directory does not exist yet: kubelet and hostPath volumes make their own.
const DIRECTORY_MODE: u32 = 0o750;
/// A local process that lives accepts at once; one that does not within this time hangs, which is not "gone".
const ANSWER_TIME_MAX: Duration = Duration::from_secs(1);
/// How long held calls may go on after the shutdown began. Work behind them survives a restart by design (P5), so the
/// process need not wait for it; this only lets short answers out.
pub const GRACE: Duration = Duration::from_secs(3);

/// Why a socket could not be served.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are the ones that the sentences name")]
pub enum ServeError {
    #[error("cannot create the directory {path}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("{path} exists and is not a socket: remove it or choose another path")]
    NotASocket { path: PathBuf },
    #[error("another process answers on {path}: stop it or choose another path")]
    InUse { path: PathBuf },
    #[error("cannot tell whether a process still answers on {path}")]
    Probe { path: PathBuf, source: io::Error },
    #[error("cannot remove the stale socket {path}")]
    Remove { path: PathBuf, source: io::Error },
    #[error("cannot listen on {path}")]
    Listen { path: PathBuf, source: io::Error },
    #[error("serving {path} failed")]
    Transport { path: PathBuf, source: tonic::transport::Error },
}

/// A socket that listens; callers can connect already and wait until it is served.
#[derive(Debug)]
pub struct Bound {
    listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

/// Listens on `path`: makes its directory, clears a stale socket away, and lets only the owner connect.
pub async fn bind(path: &Path) -> Result<Bound, ServeError> {
    if let Some(directory) = path.parent() {
        let made = fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory).await;
        made.map_err(|source| ServeError::Directory { path: directory.to_owned(), source })?;
    }
    clear_stale(path).await?;
    let failed = |source| ServeError::Listen { path: path.to_owned(), source };
    let listener = UnixListener::bind(path).map_err(failed)?;
    // Until this line the umask decides; connecting takes write permission, which the usual 022 gives the owner alone.
    fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE)).await.map_err(failed)?;
    let inode = inode(path).await.map_err(failed)?;
    Ok(Bound { listener, path: path.to_owned(), inode })
}

impl Bound {
    /// Where this socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves until `shutdown` ends, then lets calls finish for [`GRACE`] and returns; calls held longer are cut off.
    pub async fn serve(self, routes: Routes, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self { listener, path, inode } = self;
        let (begun, has_begun) = oneshot::channel();
        let signal = async {
            shutdown.await;
            remove_own(&path, inode).await;
            let _ = begun.send(());
        };
        let serving = tonic::transport::Server::builder()
            .layer(CallLayer)
            .add_routes(routes)
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), signal);
        let overdue = async {
            match has_begun.await {
                Ok(()) => tokio::time::sleep(GRACE).await,
                Err(_never_sent) => pending().await,
            }
        };
        tokio::select! {
            biased;
            result = serving => result.map_err(|source| ServeError::Transport { path: path.clone(), source }),
            () = overdue => {
                tracing::warn!(path = %path.display(), "calls are still held after the grace time; closing");
                Ok(())
            }
        }
    }
}

/// Makes way for a new socket, unless somebody uses the old one or it is something else.
async fn clear_stale(path: &Path) -> Result<(), ServeError> {
    let path_owned = || path.to_owned();
    match fs::symlink_metadata(path).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(ServeError::Probe { path: path_owned(), source }),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(ServeError::NotASocket { path: path_owned() }),
        Ok(_) => {}
    }
    match tokio::time::timeout(ANSWER_TIME_MAX, UnixStream::connect(path)).await {
        Err(_hangs) => return Err(ServeError::InUse { path: path_owned() }),
        Ok(Ok(_answers)) => return Err(ServeError::InUse { path: path_owned() }),
        Ok(Err(error)) => match error.kind() {
            io::ErrorKind::ConnectionRefused => {}
            // Its owner removed it meanwhile.
            io::ErrorKind::NotFound => return Ok(()),
            // The queue of a listener is full: it lives, however badly.
            io::ErrorKind::WouldBlock => return Err(ServeError::InUse { path: path_owned() }),
            _ => return Err(ServeError::Probe { path: path_owned(), source: error }),
        },
    }
    fs::remove_file(path).await.map_err(|source| ServeError::Remove { path: path_owned(), source })
}

/// Takes our own socket file away. The listener still holds its inode here, so no other file can have the same number.
async fn remove_own(path: &Path, own: (u64, u64)) {
    if inode(path).await.is_ok_and(|found| found == own) {
        // A file that stays is cleared by the next start.
        let _ = fs::remove_file(path).await;
    }
}

async fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path).await?;
    Ok((metadata.dev(), metadata.ino()))
}
