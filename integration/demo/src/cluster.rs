//! A MeshStor cluster in the lab: guests, control plane, CRDs, one controller on the host, one agent in each guest.
//!
//! Used by the script. It starts the product as a user would (the binary, a kubeconfig, sockets) and reads only what
//! users can read: objects, logs, kernels.

use crate::csi::Csi;
use anyhow::{Context, Result, bail};
use meshstor_lab::{Config, ControlPlane, Guest, Lab};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const NODE_SOCKET: &str = "/run/meshstor/csi.sock";
/// The guest without an RDMA link: whatever has a copy there runs over TCP.
pub const TCP_ONLY: &str = "node-c";
/// Where an agent writes its log, in its guest.
pub const AGENT_LOG: &str = "/var/log/meshstor-node.log";

/// Everything that runs.
pub struct Cluster {
    /// Guests.
    pub lab: Lab,
    /// etcd and API server.
    pub control: ControlPlane,
    /// The controller's CSI socket.
    pub csi: Csi,
    controller: Child,
    binaries: PathBuf,
    nodes: BTreeMap<String, Csi>,
}

impl Cluster {
    /// Fresh drives, fresh etcd, everything started and ready.
    pub fn up(binaries: &Path, kernel: &str, nodes: usize) -> Result<Cluster> {
        let config = Config {
            nodes,
            kernel: kernel.into(),
            fresh: true,
            share: Some(binaries.to_path_buf()),
            ..Config::default()
        };
        let lab = Lab::up(&config)?;
        let control = ControlPlane::up(true)?;
        apply_crds(binaries, &control)?;
        for guest in lab.guests() {
            apply_node(&control, &guest)?;
        }
        std::fs::write(lab.paths().run().join("controller.log"), "")?;
        let (controller, socket) = start_controller(binaries, &control, &lab)?;
        let cluster = Cluster {
            csi: Csi::at(&socket)?,
            controller,
            binaries: binaries.to_path_buf(),
            nodes: BTreeMap::new(),
            lab,
            control,
        };
        cluster.start_agents()
    }

    fn start_agents(mut self) -> Result<Cluster> {
        for guest in self.lab.guests() {
            self.start_agent(&guest)?;
        }
        for guest in self.lab.guests() {
            self.await_agent(&guest.name())?;
        }
        Ok(self)
    }

    /// Starts the node agent in a guest, as a DaemonSet would: it needs a kubeconfig, its node's name and a socket.
    pub fn start_agent(&mut self, guest: &Guest) -> Result<()> {
        let name = guest.name();
        if name == TCP_ONLY {
            guest.ssh_checked("rdma link del rxe0 2>/dev/null; true")?;
        }
        let kubeconfig = self.control.guest_kubeconfig()?;
        guest.put(&kubeconfig, "/etc/meshstor.kubeconfig")?;
        guest.ssh_checked(&agent_command(&name))?;
        let local = self.lab.paths().run().join(format!("{name}.csi.sock"));
        let _none_yet = guest.unforward_unix(&local);
        let _none_yet = std::fs::remove_file(&local);
        guest.forward_unix(&local, NODE_SOCKET)?;
        self.nodes.insert(name, Csi::at(&local)?);
        Ok(())
    }

    /// Ends the controller at once, as a killed pod.
    pub fn kill_controller(&mut self) -> Result<()> {
        self.controller.kill()?;
        self.controller.wait().map(drop).context("wait for the controller's end")
    }

    /// Starts the controller again, with the same socket; its log goes on.
    pub fn restart_controller(&mut self) -> Result<()> {
        let (controller, _) = start_controller(&self.binaries, &self.control, &self.lab)?;
        self.controller = controller;
        Ok(())
    }

    /// Where the controller writes its log.
    pub fn controller_log(&self) -> PathBuf {
        self.lab.paths().run().join("controller.log")
    }

    /// Waits until a node's object says it is ready, by this boot's agent.
    pub fn await_agent(&self, node: &str) -> Result<()> {
        let boot = self.lab.guest(node)?.boot_id()?;
        wait(&format!("agent of {node} ready"), Duration::from_secs(90), || {
            let Ok(object) = self.get(&["msnode", node]) else { return Ok(false) };
            let ready = object["status"]["conditions"]
                .as_array()
                .is_some_and(|list| list.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"));
            let devices = self.get(&["msnd"])?;
            let drives =
                devices["items"].as_array().map_or(0, |l| l.iter().filter(|d| d["spec"]["node"] == node).count());
            Ok(ready && object["status"]["bootID"] == boot.trim() && drives >= 2)
        })
        .with_context(|| self.agent_log(node, 30))
    }

    /// The node's CSI socket.
    pub fn node(&self, name: &str) -> Result<&Csi> {
        self.nodes.get(name).with_context(|| format!("no agent was started on {name}"))
    }

    /// A guest.
    pub fn guest(&self, name: &str) -> Result<Guest> {
        self.lab.guest(name)
    }

    /// `kubectl get … -o json`.
    pub fn get(&self, what: &[&str]) -> Result<Value> {
        let mut arguments = vec!["get"];
        arguments.extend(what);
        arguments.extend(["-o", "json"]);
        Ok(serde_json::from_str(&self.control.kubectl(&arguments)?)?)
    }

    /// Puts a node into maintenance (no new copies) or takes it out.
    pub fn maintenance(&self, node: &str, on: bool) -> Result<()> {
        let patch = format!(r#"{{"spec":{{"maintenance":{on}}}}}"#);
        self.control.kubectl(&["patch", "msnode", node, "--type=merge", "-p", &patch]).map(drop)
    }

    /// Whether `kubectl describe` would show an event with this reason.
    pub fn has_event(&self, name: &str, reason: &str) -> Result<bool> {
        let field = format!("--field-selector=involvedObject.name={name},reason={reason}");
        let text = self.control.kubectl(&["get", "events", "--namespace=default", &field, "-o", "name"])?;
        Ok(!text.trim().is_empty())
    }

    /// The recorded in-sync set of a volume, sorted.
    pub fn in_sync(&self, volume: &str) -> Result<Vec<String>> {
        let object = self.get(&["msvol", volume])?;
        let list = object["status"]["inSync"].as_array().cloned().unwrap_or_default();
        let mut ids: Vec<String> = list.iter().filter_map(|v| v.as_str().map(Into::into)).collect();
        ids.sort();
        Ok(ids)
    }

    /// The recorded epoch of a volume.
    pub fn epoch(&self, volume: &str) -> Result<u64> {
        self.get(&["msvol", volume])?["spec"]["attachment"]["epoch"].as_u64().context("spec.attachment.epoch")
    }

    /// Replica ids of a volume by node.
    pub fn replicas(&self, volume: &str) -> Result<BTreeMap<String, String>> {
        let list = self.get(&["msrep"])?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let of = items.iter().filter(|i| i["spec"]["volume"] == volume);
        Ok(of
            .filter_map(|i| Some((i["spec"]["node"].as_str()?.to_string(), i["spec"]["replica"].as_str()?.to_string())))
            .collect())
    }

    /// Whether every copy of a volume is in its set and none is on its way out.
    pub fn whole(&self, volume: &str) -> Result<bool> {
        let list = self.get(&["msrep"])?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let of: Vec<_> = items.iter().filter(|i| i["spec"]["volume"] == volume).collect();
        let set = self.in_sync(volume)?;
        let leaving = of.iter().any(|i| i["spec"]["role"] == "Retiring" || !i["spec"]["tombstone"].is_null());
        Ok(!leaving && of.len() == set.len())
    }

    /// Last lines of an agent's log.
    pub fn agent_log(&self, node: &str, lines: usize) -> String {
        let command = format!("tail -n {lines} {AGENT_LOG}");
        self.lab
            .guest(node)
            .and_then(|g| g.ssh_checked(&command))
            .unwrap_or_else(|e| format!("no log of {node}: {e:#}"))
    }

    /// The audit lines of an agent: every operation it applied, oldest first. A power cut leaves zeros in the log, which
    /// must not make it a binary file to grep.
    pub fn audit(&self, node: &str) -> Result<Vec<String>> {
        let text = self.lab.guest(node)?.ssh_checked(&format!("grep -a ' audit: ' {AGENT_LOG} || true"))?;
        Ok(text.lines().map(Into::into).collect())
    }

    /// The product's binary as an operator calls it: on the host, with an administrator's kubeconfig.
    pub fn product(&self) -> Result<Command> {
        let mut command = Command::new(self.binaries.join("meshstor"));
        command.env("KUBECONFIG", self.control.host_kubeconfig()?);
        Ok(command)
    }

    /// The command line of `ssh` that runs our helper in a guest.
    pub fn helper(&self, node: &str, arguments: &str) -> Result<Command> {
        self.lab.guest(node)?.ssh_command(&format!("/host/meshstor-demo {arguments}"))
    }

    /// Ends what this program started.
    pub fn down(mut self) -> Result<()> {
        self.controller.kill()?;
        self.controller.wait()?;
        self.control.down()?;
        self.lab.down()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ended = self.controller.kill();
        let _reaped = self.controller.wait();
    }
}

/// The command line that starts an agent in its guest.
pub fn agent_command(name: &str) -> String {
    format!(
        "mkdir -p /run/meshstor; KUBECONFIG=/etc/meshstor.kubeconfig RUST_LOG=info setsid nohup \
         /host/meshstor node --node-name {name} --csi-endpoint unix://{NODE_SOCKET} \
         --metrics-address 127.0.0.1:9808 >>{AGENT_LOG} 2>&1 </dev/null & echo $! >/run/meshstor/agent.pid"
    )
}

/// The Kubernetes Node object, with the addresses that its exports use: each guest has others that lead elsewhere.
fn apply_node(control: &ControlPlane, guest: &Guest) -> Result<()> {
    let (name, address) = (guest.name(), guest.address());
    let mut annotations = serde_json::json!({ "meshstor.io/nvme-over-tcp-address": address });
    if name != TCP_ONLY {
        annotations["meshstor.io/nvme-over-rdma-address"] = address.into();
    }
    let node = serde_json::json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "annotations": annotations }
    });
    let file = std::env::temp_dir().join(format!("meshstor-node-{name}-{}.json", std::process::id()));
    std::fs::write(&file, node.to_string())?;
    let applied = control.kubectl(&["apply", "--server-side", "-f", &file.display().to_string()]);
    std::fs::remove_file(&file)?;
    applied.map(drop)
}

fn apply_crds(binaries: &Path, control: &ControlPlane) -> Result<()> {
    let out = Command::new(binaries.join("meshstor")).arg("crds").output().context("meshstor crds")?;
    if !out.status.success() {
        bail!("meshstor crds: {}", String::from_utf8_lossy(&out.stderr));
    }
    let file = std::env::temp_dir().join(format!("meshstor-crds-{}.yaml", std::process::id()));
    std::fs::write(&file, out.stdout)?;
    let applied = control.kubectl(&["apply", "--server-side", "-f", &file.display().to_string()]);
    std::fs::remove_file(&file)?;
    applied?;
    control.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"]).map(drop)
}

fn start_controller(binaries: &Path, control: &ControlPlane, lab: &Lab) -> Result<(Child, PathBuf)> {
    let socket = lab.paths().run().join("controller.csi.sock");
    let log = lab.paths().run().join("controller.log");
    let child = Command::new(binaries.join("meshstor"))
        .args(["controller", "--csi-endpoint", &format!("unix://{}", socket.display())])
        .args(["--metrics-address", "127.0.0.1:0"])
        // The lab has no kubelets: whether a node is gone is said by the scenarios.
        .arg("--no-fail-over")
        .env("KUBECONFIG", control.host_kubeconfig()?)
        .env("RUST_LOG", "info")
        .stdout(File::options().create(true).append(true).open(&log)?)
        .stderr(File::options().append(true).open(&log)?)
        .spawn()
        .context("start meshstor controller")?;
    Ok((child, socket))
}

/// Polls until it is so; the error says what was awaited.
pub fn wait(what: &str, within: Duration, mut so: impl FnMut() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !so()? {
        if begin.elapsed() > within {
            bail!("waited {within:?} in vain: {what}");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}
