//! The server on real sockets: start, calls with deadlines, stale sockets, shutdown.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on should stop")]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use meshstor_csi::deadline::{Deadline, hold_for};
use meshstor_csi::identity::{Identity, Readiness};
use meshstor_csi::inflight::{Fingerprint, Inflight};
use meshstor_csi::proto::identity_client::IdentityClient;
use meshstor_csi::proto::identity_server::{Identity as IdentityService, IdentityServer};
use meshstor_csi::proto::plugin_capability::{Service, Type, VolumeExpansion, service, volume_expansion};
use meshstor_csi::proto::*;
use meshstor_csi::server::{ServeError, bind};
use meshstor_csi::{DRIVER_NAME, client};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

const SOON: Duration = Duration::from_secs(5);

struct Served {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ServeError>>,
    client: IdentityClient<Channel>,
}

async fn serve(path: &Path, routes: Routes) -> Served {
    let bound = bind(path).await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(bound.serve(routes, async move {
        let _ = stopped.await;
    }));
    let client = IdentityClient::new(client::connect(path, SOON).await.unwrap());
    Served { stop, task, client }
}

fn ready() -> Routes {
    Routes::new(Identity::new(|| Readiness::Ready).into_server())
}

/// An identity whose Probe takes for ever and tells the time it has.
struct Slow {
    inflight: Inflight,
}

#[tonic::async_trait]
impl IdentityService for Slow {
    async fn get_plugin_info(
        &self,
        request: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        let name = Deadline::of(&request).map_or("none".to_owned(), |deadline| deadline.hold().as_secs().to_string());
        Ok(Response::new(GetPluginInfoResponse { name, ..Default::default() }))
    }

    async fn get_plugin_capabilities(
        &self,
        _request: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn probe(&self, request: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        let hold = hold_for(&request);
        let work = std::future::pending::<Result<ProbeResponse, Status>>();
        let fingerprint = Fingerprint::of("Probe", &());
        let awaited = || "waiting for the replica on node b to be fenced".to_owned();
        self.inflight.run("v", fingerprint, hold, work, awaited).await.map(Response::new)
    }
}

fn slow() -> Routes {
    Routes::new(IdentityServer::new(Slow { inflight: Inflight::default() }))
}

fn socket() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deep/er/csi.sock");
    (directory, path)
}

#[tokio::test]
async fn identity_says_who_we_are_and_whether_we_are_ready() {
    let (_directory, path) = socket();
    let up = Arc::new(AtomicBool::new(true));
    let seen = Arc::clone(&up);
    let probe = move || match seen.load(Ordering::SeqCst) {
        true => Readiness::Ready,
        false => Readiness::Unhealthy("load the module nvmet".to_owned()),
    };
    let mut served = serve(&path, Routes::new(Identity::new(probe).into_server())).await;
    let info = served.client.get_plugin_info(GetPluginInfoRequest {}).await.unwrap();
    assert!(info.metadata().get("x-request-id").is_some());
    let info = info.into_inner();
    assert_eq!((info.name.as_str(), info.vendor_version.as_str()), (DRIVER_NAME, env!("CARGO_PKG_VERSION")));
    assert_eq!(DRIVER_NAME, "io.meshstor.csi.mesh");

    let answer = served.client.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await.unwrap().into_inner();
    let kinds: Vec<Type> = answer.capabilities.into_iter().filter_map(|capability| capability.r#type).collect();
    let service = |kind: service::Type| Type::Service(Service { r#type: kind.into() });
    let expected = [
        service(service::Type::ControllerService),
        service(service::Type::VolumeAccessibilityConstraints),
        Type::VolumeExpansion(VolumeExpansion { r#type: volume_expansion::Type::Online.into() }),
    ];
    assert_eq!(kinds, expected);

    assert_eq!(served.client.probe(ProbeRequest {}).await.unwrap().into_inner().ready, Some(true));
    up.store(false, Ordering::SeqCst);
    let status = served.client.probe(ProbeRequest {}).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "load the module nvmet"));
}

#[tokio::test]
async fn the_handler_sees_the_callers_deadline() {
    let (_directory, path) = socket();
    let mut served = serve(&path, slow()).await;
    let mut request = Request::new(GetPluginInfoRequest {});
    request.set_timeout(Duration::from_secs(61));
    let held = served.client.get_plugin_info(request).await.unwrap().into_inner().name;
    assert!(held == "59" || held == "60", "{held}");
    assert_eq!(served.client.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner().name, "none");
}

#[tokio::test]
async fn a_held_call_is_answered_with_the_reason_before_its_deadline() {
    let (_directory, path) = socket();
    let mut served = serve(&path, slow()).await;
    let mut request = Request::new(ProbeRequest {});
    request.set_timeout(Duration::from_millis(1200));
    let status = served.client.probe(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(status.message(), "waiting for the replica on node b to be fenced");
}

#[tokio::test]
async fn only_the_owner_may_connect() {
    let (_directory, path) = socket();
    let _served = serve(&path, ready()).await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o007, 0);
}

#[tokio::test]
async fn a_stale_socket_makes_way() {
    let (_directory, path) = socket();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a closed listener leaves its file");
    let mut served = serve(&path, ready()).await;
    assert!(served.client.probe(ProbeRequest {}).await.is_ok());
}

#[tokio::test]
async fn a_socket_that_answers_is_left_alone() {
    let (_directory, path) = socket();
    let mut served = serve(&path, ready()).await;
    assert!(matches!(bind(&path).await, Err(ServeError::InUse { .. })));
    assert!(served.client.probe(ProbeRequest {}).await.is_ok());
}

#[tokio::test]
async fn what_is_not_a_socket_is_left_alone() {
    let (directory, _path) = socket();
    let file = directory.path().join("csi.sock");
    std::fs::write(&file, "precious").unwrap();
    let error = bind(&file).await.unwrap_err();
    assert!(matches!(error, ServeError::NotASocket { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    // A link to a stale socket is not ours to remove either.
    let (stale, link) = (directory.path().join("stale"), directory.path().join("link"));
    drop(UnixListener::bind(&stale).unwrap());
    std::os::unix::fs::symlink(&stale, &link).unwrap();
    assert!(matches!(bind(&link).await, Err(ServeError::NotASocket { .. })));
}

#[tokio::test]
async fn shutdown_removes_the_socket_and_returns() {
    let (_directory, path) = socket();
    let mut served = serve(&path, ready()).await;
    assert!(served.client.probe(ProbeRequest {}).await.is_ok());
    served.stop.send(()).unwrap();
    tokio::time::timeout(SOON, served.task).await.unwrap().unwrap().unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn shutdown_leaves_the_socket_of_a_successor() {
    let (_directory, path) = socket();
    let served = serve(&path, ready()).await;
    std::fs::remove_file(&path).unwrap();
    let mut successor = serve(&path, ready()).await;
    served.stop.send(()).unwrap();
    tokio::time::timeout(SOON, served.task).await.unwrap().unwrap().unwrap();
    assert!(successor.client.probe(ProbeRequest {}).await.is_ok());
    assert!(path.exists());
}

#[tokio::test]
async fn shutdown_does_not_wait_for_ever_for_a_held_call() {
    let (_directory, path) = socket();
    let mut served = serve(&path, slow()).await;
    let held = tokio::spawn(async move { served.client.probe(ProbeRequest {}).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    served.stop.send(()).unwrap();
    tokio::time::timeout(SOON, served.task).await.expect("the grace time is shorter").unwrap().unwrap();
    held.abort();
}

#[tokio::test]
async fn nobody_there_is_said_so() {
    let (directory, path) = socket();
    let error = client::connect(&path, Duration::from_millis(50)).await.unwrap_err();
    assert!(error.to_string().starts_with("nobody answered on"), "{error}");
    // A lazy channel is made before its server and finds it later.
    let path = directory.path().join("csi.sock");
    let mut early = IdentityClient::new(client::connect_lazy(&path).unwrap());
    assert_eq!(early.probe(ProbeRequest {}).await.unwrap_err().code(), Code::Unavailable);
    let _served = serve(&path, ready()).await;
    assert!(early.probe(ProbeRequest {}).await.is_ok());
}
