//! A real control plane on the host's loopback: etcd and kube-apiserver, with RBAC and client certificates.
//!
//! Called by `cargo xtask vm control-plane` and by tests. Guests reach it at 10.0.2.2, the host as they see it. By itself
//! there is no controller manager, no scheduler and no kubelet: tests create Node objects themselves. Of a whole cluster
//! (`managers`) all of that runs.

mod managers;
mod pki;
mod rewind;

pub use managers::kubernetes;

use crate::exec::{run, step, tail, wait_for};
use crate::paths::{Paths, make_dir};
use crate::ports::free_port;
use crate::process::Recorded;
use crate::state;
use crate::tools::{self, KubeTool};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Three to four seconds on an idle machine.
const START_PATIENCE: Duration = Duration::from_secs(180);

/// From where a kubeconfig is used: the same server has another address for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// On the host, at 127.0.0.1.
    Host,
    /// In a guest, at 10.0.2.2.
    Guest,
}

impl Reach {
    fn address(self) -> &'static str {
        match self {
            Reach::Host => "127.0.0.1",
            Reach::Guest => "10.0.2.2",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Reach::Host => "host",
            Reach::Guest => "guest",
        }
    }
}

/// Who a client certificate stands for. RBAC rules name users and groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The user name, such as `system:serviceaccount:meshstor-system:meshstor-node`.
    pub user: String,
    /// The groups, such as `system:masters`.
    pub groups: Vec<String>,
}

impl Client {
    /// Who may do everything.
    pub fn admin() -> Client {
        Client { user: "lab-admin".into(), groups: vec!["system:masters".into()] }
    }

    /// A kubelet, as the node authorizer knows it.
    pub fn kubelet(node: &str) -> Client {
        Client { user: format!("system:node:{node}"), groups: vec!["system:nodes".into()] }
    }

    /// A storage node: user `meshstor:node:NAME`, group `meshstor:nodes`. It may do what RBAC objects grant it.
    pub fn node(name: &str) -> Client {
        Client { user: format!("meshstor:node:{name}"), groups: vec!["meshstor:nodes".into()] }
    }

    /// A service account as RBAC sees it, so that a deployment's own RoleBindings apply.
    pub fn service_account(namespace: &str, name: &str) -> Client {
        Client {
            user: format!("system:serviceaccount:{namespace}:{name}"),
            groups: vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")],
        }
    }
}

/// The running pair of servers.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    paths: Paths,
    dir: PathBuf,
}

/// What is remembered between runs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct ControlState {
    api_port: u16,
    etcd_port: u16,
    etcd_peer_port: u16,
    etcd: Option<Recorded>,
    api: Option<Recorded>,
    /// Present for a whole cluster.
    #[serde(default)]
    cluster: Option<managers::Cluster>,
}

impl ControlPlane {
    /// Starts what does not run yet and waits until the API server is ready. `fresh` forgets all objects first.
    pub fn up(fresh: bool) -> Result<ControlPlane> {
        ControlPlane::up_at(&Paths::from_env()?, fresh)
    }

    /// The same below another cache directory.
    pub fn up_at(paths: &Paths, fresh: bool) -> Result<ControlPlane> {
        tools::ensure_control_plane(paths)?;
        ControlPlane::started(paths, fresh, None)
    }

    fn started(paths: &Paths, fresh: bool, cluster: Option<managers::Cluster>) -> Result<ControlPlane> {
        let plane = ControlPlane { paths: paths.clone(), dir: paths.control() };
        if fresh {
            plane.down()?;
            match std::fs::remove_dir_all(&plane.dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("forget all objects"),
                _ => Ok(()),
            }?;
        }
        make_dir(&plane.dir)?;
        plane.locked(|state| {
            if state.api_port == 0 {
                (state.api_port, state.etcd_port, state.etcd_peer_port) = (free_port()?, free_port()?, free_port()?);
            }
            pki::ensure_server(&plane.dir)?;
            state.cluster = state.cluster.take().or(cluster);
            step("start etcd and kube-apiserver", || {
                plane.start_etcd(state)?;
                plane.start_server(state)
            })
        })?;
        plane.kubeconfig(&Client::admin(), Reach::Guest)?;
        Ok(plane)
    }

    /// The control plane that an earlier program brought up.
    pub fn attach() -> Result<ControlPlane> {
        ControlPlane::attach_at(&Paths::from_env()?)
    }

    /// The same below another cache directory.
    pub fn attach_at(paths: &Paths) -> Result<ControlPlane> {
        let dir = paths.control();
        if !dir.join("state.json").exists() {
            bail!("no control plane is up (start one with `cargo xtask vm control-plane up`)");
        }
        Ok(ControlPlane { paths: paths.clone(), dir })
    }

    /// Ends both servers. Objects are kept for the next `up`.
    pub fn down(&self) -> Result<()> {
        if !self.dir.join("state.json").exists() {
            return Ok(());
        }
        self.locked(|state| {
            state.cluster.as_mut().map_or(Ok(()), managers::Cluster::end)?;
            if let Some(api) = state.api.take() {
                api.kill()?;
            }
            state.etcd.take().map_or(Ok(()), |etcd| etcd.terminate())
        })
    }

    /// Ends the API server at once: an outage. etcd keeps running.
    pub fn stop_api(&self) -> Result<()> {
        self.locked(|state| state.api.take().map_or(Ok(()), |api| api.kill()))
    }

    /// Ends the outage: same address, same objects. Returns when the server is ready.
    pub fn start_api(&self) -> Result<()> {
        self.locked(|state| self.start_server(state))
    }

    /// Whether etcd and the API server run.
    pub fn is_up(&self) -> Result<bool> {
        let state = self.state()?;
        Ok([state.etcd, state.api].into_iter().all(|process| process.is_some_and(|process| process.alive())))
    }

    /// The port at which the API server listens.
    pub fn port(&self) -> Result<u16> {
        Ok(self.state()?.api_port)
    }

    /// The API server's address as the host sees it.
    pub fn url(&self) -> Result<String> {
        Ok(format!("https://127.0.0.1:{}", self.state()?.api_port))
    }

    /// An administrator's kubeconfig for programs on the host.
    pub fn host_kubeconfig(&self) -> Result<PathBuf> {
        self.kubeconfig(&Client::admin(), Reach::Host)
    }

    /// An administrator's kubeconfig for programs in guests.
    pub fn guest_kubeconfig(&self) -> Result<PathBuf> {
        self.kubeconfig(&Client::admin(), Reach::Guest)
    }

    /// The kubeconfig of one storage node, for use in its guest; see [`Client::node`].
    pub fn node_kubeconfig(&self, name: &str) -> Result<PathBuf> {
        self.kubeconfig(&Client::node(name), Reach::Guest)
    }

    /// A kubeconfig, self-contained, for any identity; made once, then the same file again.
    pub fn kubeconfig(&self, client: &Client, reach: Reach) -> Result<PathBuf> {
        let server = format!("https://{}:{}", reach.address(), self.state()?.api_port);
        pki::kubeconfig(&self.dir, client, &server, reach.word())
    }

    /// Runs kubectl on the host as administrator, returns its standard output.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let config = self.host_kubeconfig()?;
        let program = tools::kube_tool(&self.paths, KubeTool::Kubectl)?;
        run(Command::new(program).arg("--kubeconfig").arg(config).args(arguments))
    }

    /// kubectl itself, for other identities than the administrator's.
    pub fn kubectl_path(&self) -> Result<PathBuf> {
        tools::kube_tool(&self.paths, KubeTool::Kubectl)
    }

    /// The last lines of the API server's log.
    pub fn api_log_tail(&self, lines: usize) -> String {
        tail(&std::fs::read_to_string(self.dir.join("api.log")).unwrap_or_default(), lines)
    }

    fn state(&self) -> Result<ControlState> {
        state::read(&self.dir.join("state.json"))
    }

    fn locked<T>(&self, work: impl FnOnce(&mut ControlState) -> Result<T>) -> Result<T> {
        let _lock = state::lock(&self.dir.join("lock"))?;
        let file = self.dir.join("state.json");
        let mut state = if file.exists() { state::read(&file)? } else { ControlState::default() };
        let result = work(&mut state);
        state::write(&file, &state)?;
        result
    }

    fn start_etcd(&self, state: &mut ControlState) -> Result<()> {
        if state.etcd.is_some_and(|etcd| etcd.alive()) {
            return Ok(());
        }
        let mut command = Command::new("etcd");
        command.args(etcd_arguments(&self.dir, state));
        state.etcd = Some(Recorded::spawn(&mut command, &self.dir.join("etcd.log"))?);
        Ok(())
    }

    fn start_server(&self, state: &mut ControlState) -> Result<()> {
        if !state.api.is_some_and(|api| api.alive()) {
            let mut command = Command::new(tools::kube_tool(&self.paths, KubeTool::Apiserver)?);
            command.args(api_arguments(&self.dir, state));
            state.api = Some(Recorded::spawn(&mut command, &self.dir.join("api.log"))?);
        }
        let api = state.api.context("the API server was just started")?;
        let server = format!("https://127.0.0.1:{}", state.api_port);
        let config = pki::kubeconfig(&self.dir, &Client::admin(), &server, Reach::Host.word())?;
        let program = tools::kube_tool(&self.paths, KubeTool::Kubectl)?;
        wait_for("API server ready", START_PATIENCE, || {
            if !api.alive() {
                bail!("kube-apiserver ended:\n{}", self.api_log_tail(15));
            }
            let mut probe = Command::new(&program);
            probe.arg("--kubeconfig").arg(&config).args(["--request-timeout=5s", "get", "--raw", "/readyz"]);
            Ok(run(&mut probe).ok().map(drop))
        })
    }
}

fn etcd_arguments(dir: &Path, state: &ControlState) -> Vec<String> {
    let client = format!("http://127.0.0.1:{}", state.etcd_port);
    let peer = format!("http://127.0.0.1:{}", state.etcd_peer_port);
    vec![
        "--name=lab".into(),
        format!("--data-dir={}", dir.join("etcd").display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=lab={peer}"),
        "--logger=zap".into(),
        "--log-level=warn".into(),
        // Objects need not survive a crash of the host.
        "--unsafe-no-fsync".into(),
    ]
}

fn api_arguments(dir: &Path, state: &ControlState) -> Vec<String> {
    let file = |name: &str| dir.join("pki").join(name).display().to_string();
    let mut arguments = vec![
        format!("--etcd-servers=http://127.0.0.1:{}", state.etcd_port),
        format!("--secure-port={}", state.api_port),
        "--bind-address=127.0.0.1".into(),
        "--advertise-address=127.0.0.1".into(),
        // Without this it refuses to publish a loopback address as the kubernetes service's endpoint.
        "--endpoint-reconciler-type=none".into(),
        "--service-cluster-ip-range=10.96.0.0/16".into(),
        "--anonymous-auth=false".into(),
        "--allow-privileged=true".into(),
        format!("--client-ca-file={}", file("ca.crt")),
        format!("--tls-cert-file={}", file("server.crt")),
        format!("--tls-private-key-file={}", file("server.key")),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", file("accounts.pub")),
        format!("--service-account-signing-key-file={}", file("accounts.key")),
        "--profiling=false".into(),
    ];
    match &state.cluster {
        Some(cluster) => arguments.extend(cluster.api_arguments()),
        None => {
            arguments.push("--authorization-mode=RBAC".into());
            // No controller manager makes the default service accounts that this would wait for.
            arguments.push("--disable-admission-plugins=ServiceAccount".into());
        }
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_listen_on_loopback_only() {
        let state = ControlState { api_port: 1, etcd_port: 2, etcd_peer_port: 3, ..Default::default() };
        let etcd = etcd_arguments(Path::new("/d"), &state);
        assert!(etcd.iter().filter(|a| a.contains("listen")).all(|a| a.contains("//127.0.0.1:")), "{etcd:?}");
        assert!(api_arguments(Path::new("/d"), &state).contains(&"--bind-address=127.0.0.1".to_string()));
    }

    #[test]
    fn attach_without_servers_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = ControlPlane::attach_at(&Paths::at(dir.path()).unwrap()).unwrap_err();
        assert!(error.to_string().contains("control-plane up"), "{error}");
    }
}
