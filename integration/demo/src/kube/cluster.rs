//! A whole Kubernetes in the lab: control plane on the host, kubelets in the guests, our product installed by Helm.
//!
//! Used by the scenarios of this directory. It calls what an operator calls (helm, kubectl) and looks into guests only for
//! what kernels show.

use crate::checks;
use crate::cluster::wait;
use anyhow::{Context, Result, bail, ensure};
use meshstor_lab::{Config, ControlPlane, Guest, ImageFile, Lab, Paths, container, tools};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Where the product is installed.
pub const NAMESPACE: &str = "meshstor-system";
const RELEASE: &str = "meshstor";
/// The tag of a second version to upgrade to: the same program under another name.
const NEXT: &str = "next";
/// The chart, in the directory that a user has checked out.
const CHART: &str = "deploy/helm/meshstor";
/// The setting that brings it.
pub const TO_NEXT: &str = "image.tag=next";
/// Emulated processors take minutes for what takes seconds on others, and the machine may be busy besides.
pub const PATIENCE: Duration = Duration::from_secs(900);
const HELM_PATIENCE: &str = "20m";

/// Which network carries volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// NVMe over TCP alone; guests have no RDMA link.
    Tcp,
    /// NVMe over soft-RoCE, TCP as the second path.
    Rdma,
}

impl Transport {
    /// As the chart's examples and sysfs call it.
    pub fn word(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Rdma => "rdma",
        }
    }
}

/// What a run is asked for.
#[derive(clap::Args)]
pub struct Options {
    /// The directory that holds the freshly built `meshstor` and this program
    #[arg(long)]
    pub binaries: PathBuf,
    /// The directory that holds README.md and `deploy`; copied when the run begins, so that it may be edited meanwhile
    #[arg(long)]
    pub source: PathBuf,
    /// Which network carries volumes
    #[arg(long)]
    pub transport: Transport,
    /// Minor version of Kubernetes; older ones are emulated
    #[arg(long)]
    pub kubernetes: String,
    /// Debian kernel series of the guests
    #[arg(long)]
    pub kernel: String,
    /// How many guests
    #[arg(long)]
    pub nodes: usize,
    /// How often the scenario `reboots` reboots its node
    #[arg(long, default_value_t = 20)]
    pub reboots: usize,
    /// Go on with the cluster that an earlier run kept, as it is
    #[arg(long)]
    pub again: bool,
}

/// Everything that runs.
pub struct Kube {
    /// Guests.
    pub lab: Lab,
    /// etcd, API server, controller manager, scheduler.
    pub control: ControlPlane,
    /// Which network carries volumes.
    pub transport: Transport,
    /// How often a node is rebooted.
    pub reboots: usize,
    /// What a user has checked out: README.md and `deploy`.
    pub source: PathBuf,
    helm: PathBuf,
    kubernetes: String,
}

impl Kube {
    /// Fresh drives, fresh etcd, nodes ready and nothing installed.
    pub fn up(options: &Options) -> Result<Kube> {
        let paths = Paths::from_env()?;
        let helm = tools::helm(&paths)?;
        let source = checkout(&options.source)?;
        if options.again {
            return Ok(Kube::of(options, source, helm, Lab::attach()?, ControlPlane::attach()?));
        }
        let names = images_of(&helm, &source, options)?;
        let images = container::share(&paths, &images(&paths, &names, &options.binaries)?)?;
        let config = Config {
            nodes: options.nodes,
            kernel: options.kernel.clone(),
            fresh: true,
            share: Some(options.binaries.clone()),
            ..Config::default()
        };
        let control = ControlPlane::up_cluster(&paths, &options.kubernetes)?;
        let lab = Lab::up(&config)?;
        let kube = Kube::of(options, source, helm, lab, control);
        for guest in kube.lab.guests() {
            kube.announce(&guest)?;
        }
        kube.lab.each(|guest| {
            if options.transport == Transport::Tcp {
                guest.ssh_checked("rdma link del rxe0 2>/dev/null; true")?;
            }
            guest.join(&kube.control, &images)
        })?;
        for guest in kube.lab.guests() {
            kube.await_node(&guest, true)?;
        }
        Ok(kube)
    }

    fn of(options: &Options, source: PathBuf, helm: PathBuf, lab: Lab, control: ControlPlane) -> Kube {
        let Options { transport, reboots, kubernetes, .. } = options;
        Kube { lab, control, transport: *transport, reboots: *reboots, source, helm, kubernetes: kubernetes.clone() }
    }

    /// Whether the chart is installed.
    pub fn installed(&self) -> bool {
        self.helm(&["status", RELEASE]).is_ok()
    }

    /// The Node object with the addresses of the storage network, before its kubelet comes.
    fn announce(&self, guest: &Guest) -> Result<()> {
        let mut annotations = json!({"meshstor.io/nvme-over-tcp-address": guest.address()});
        if self.transport == Transport::Rdma {
            annotations["meshstor.io/nvme-over-rdma-address"] = guest.address().into();
        }
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": guest.name(), "annotations": annotations},
        }))
    }

    /// Waits until Kubernetes says that a node is ready, or that it is not.
    pub fn await_node(&self, guest: &Guest, ready: bool) -> Result<()> {
        let name = guest.name();
        wait(&format!("{name} ready: {ready}"), PATIENCE, || Ok(is_ready(&self.get(&["node", &name])?) == ready))
            .with_context(|| if ready { guest.kubelet_log(15) } else { String::new() })
    }

    /// Runs helm as an operator does.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.helm);
        command.args(arguments).args(["--namespace", NAMESPACE]).arg("--kubeconfig");
        let output = command.arg(self.control.host_kubeconfig()?).output().context("run helm")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "helm {}: {said}", arguments.first().unwrap_or(&""));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `install` or `upgrade` with the example of this transport and these settings; returns when all pods are ready.
    pub fn deploy(&self, verb: &str, settings: &[&str]) -> Result<()> {
        let at = |path: PathBuf| path.display().to_string();
        let (chart, values) = (at(self.source.join(CHART)), at(example(&self.source, self.transport)));
        let mut arguments = vec![verb, RELEASE, &chart, "--values", &values, "--wait", "--timeout", HELM_PATIENCE];
        if verb == "install" {
            arguments.push("--create-namespace");
        }
        arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        self.helm(&arguments).map(drop).with_context(|| self.diagnosis())?;
        // Helm is content while one pod of the set is still on its way: that many may be away in a rollout.
        for what in ["daemonset/meshstor-node", "deployment/meshstor-controller"] {
            let timeout = format!("--timeout={}s", PATIENCE.as_secs());
            self.control.kubectl(&["rollout", "status", what, "-n", NAMESPACE, &timeout])?;
        }
        self.await_agents()
    }

    /// Turns automatic fail-over on or off.
    pub fn fail_over(&self, on: bool) -> Result<()> {
        self.deploy("upgrade", &[&format!("controller.failOver.enabled={on}")])
    }

    /// Uninstalls and returns when no pod of ours is left.
    pub fn uninstall(&self) -> Result<()> {
        self.helm(&["uninstall", RELEASE, "--wait", "--timeout", HELM_PATIENCE])?;
        wait("all pods of ours gone", PATIENCE, || Ok(self.items(&["pods", "-n", NAMESPACE])?.is_empty()))
    }

    /// Every node's own object says that it is ready, with its drives; and kubelet knows the driver there.
    pub fn await_agents(&self) -> Result<()> {
        for guest in self.lab.guests() {
            let name = guest.name();
            wait(&format!("agent of {name} ready"), PATIENCE, || {
                let Ok(object) = self.get(&["msnode", &name]) else { return Ok(false) };
                let drives = self.items(&["msnd"])?.iter().filter(|d| d["spec"]["node"] == name.as_str()).count();
                let csi = self.get(&["csinode", &name])?;
                let registered = csi["spec"]["drivers"].as_array().is_some_and(|list| !list.is_empty());
                let boot = object["status"]["bootID"] == self.boot_id(&guest)?.as_str();
                Ok(is_ready(&object) && drives >= 2 && registered && boot)
            })
            .with_context(|| self.diagnosis())?;
        }
        Ok(())
    }

    /// The boot id as a container sees it: its own /proc does not have the lab's, which is mounted over the guest's.
    fn boot_id(&self, guest: &Guest) -> Result<String> {
        let script = "unshare --mount sh -c 'umount /proc/sys/kernel/random/boot_id 2>/dev/null; \
                      cat /proc/sys/kernel/random/boot_id'";
        guest.ssh_checked(script)
    }

    /// `kubectl get … -o json`.
    pub fn get(&self, what: &[&str]) -> Result<Value> {
        let text = self.control.kubectl(&[&["get"], what, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).context("understand kubectl")
    }

    /// The objects of a list.
    pub fn items(&self, what: &[&str]) -> Result<Vec<Value>> {
        Ok(self.get(what)?["items"].as_array().cloned().unwrap_or_default())
    }

    /// Creates or changes an object.
    pub fn apply(&self, object: &Value) -> Result<()> {
        // A file for each object: scenarios apply several at once.
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let file = std::env::temp_dir().join(format!("meshstor-kube-{}-{name}.json", std::process::id()));
        std::fs::write(&file, object.to_string()).with_context(|| format!("write {}", file.display()))?;
        let applied = self.control.kubectl(&["apply", "--server-side", "-f", &file.display().to_string()]);
        std::fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
        applied.map(drop)
    }

    /// What a person would look at first when something does not come up.
    pub fn diagnosis(&self) -> String {
        let pods = self.control.kubectl(&["get", "pods", "-A", "-o", "wide"]).unwrap_or_default();
        let events = self
            .control
            .kubectl(&[
                "get",
                "events",
                "-A",
                "--sort-by=.lastTimestamp",
                "--field-selector=type!=Normal,reason!=MissingClusterDNS",
            ])
            .unwrap_or_default();
        let last: Vec<&str> = events.lines().rev().take(12).collect();
        let mut text = format!("{pods}\n{}\n", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
        for guest in self.lab.guests() {
            let script = format!("tail -n 4 /var/log/pods/{NAMESPACE}_*/*/*.log 2>&1 | cut -c1-400");
            let logs = guest.ssh_within(&script, Duration::from_secs(30)).map(|out| out.stdout);
            text.push_str(&format!("--- {}\n{}\n", guest.name(), logs.unwrap_or_else(|error| format!("{error:#}"))));
        }
        text
    }

    /// The recorded in-sync set is complete for every volume, and no copy is on its way out.
    pub fn await_whole(&self) -> Result<()> {
        wait("every copy of every volume in sync", PATIENCE, || {
            let copies = self.items(&["msrep"])?;
            Ok(self.items(&["msvol"])?.iter().all(|volume| {
                let of = copies.iter().filter(|c| c["spec"]["volume"] == volume["metadata"]["name"]);
                let leaving = |c: &&Value| c["spec"]["role"] == "Retiring" || !c["spec"]["tombstone"].is_null();
                let (count, leaves) = of.fold((0, false), |(n, l), c| (n + 1, l || leaving(&c)));
                let wanted = volume["spec"]["replicaCount"].as_u64().unwrap_or(u64::MAX);
                let set = volume["status"]["inSync"].as_array().map_or(0, Vec::len);
                !leaves && count == set && set as u64 == wanted
            }))
        })
        .with_context(|| self.diagnosis())
    }

    /// Waits until no volume is left, in the API server or in any kernel.
    pub fn nothing_left(&self) -> Result<String> {
        let begin = Instant::now();
        wait("volumes gone", PATIENCE, || {
            Ok(self.items(&["pv"])?.is_empty() && self.items(&["msvol,msrep"])?.is_empty())
        })
        .with_context(|| self.diagnosis())?;
        let mut found = Vec::new();
        wait("nothing left in any kernel", PATIENCE, || {
            found.clear();
            for guest in self.lab.guests() {
                found.extend(checks::leftovers(&guest)?);
            }
            Ok(found.is_empty())
        })
        .with_context(|| found.join("\n"))?;
        Ok(format!("deleted, nothing left on any node, {:.1} s", begin.elapsed().as_secs_f64()))
    }

    /// Runs a command line as a user does: in the directory of the checkout, with helm and kubectl for this cluster.
    pub fn as_user(&self, line: &str) -> Result<String> {
        let helm = self.helm.parent().context("helm has no directory")?.display().to_string();
        let kubectl = self.control.kubectl_path()?;
        let kubectl = kubectl.parent().context("kubectl has no directory")?.display().to_string();
        let path = format!("{helm}:{kubectl}:{}", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("sh");
        command.args(["-c", line]).current_dir(&self.source).env("PATH", path);
        let output = command.env("KUBECONFIG", self.control.host_kubeconfig()?).output().context("run sh")?;
        ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Ends everything that this started.
    pub fn down(&self) -> Result<()> {
        self.control.down()?;
        self.lab.down()
    }

    /// Which version of Kubernetes the servers say they are.
    pub fn version(&self) -> Result<String> {
        let version: Value = serde_json::from_str(&self.control.kubectl(&["get", "--raw", "/version"])?)?;
        let told = version["gitVersion"].as_str().unwrap_or_default().to_string();
        if !told.starts_with(&format!("v{}", self.kubernetes)) {
            bail!("the API server says it is {told}, not {}", self.kubernetes);
        }
        Ok(told)
    }
}

/// Whether an object has the condition Ready.
pub fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|list| list.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}

/// The example of values for a transport.
fn example(source: &Path, transport: Transport) -> PathBuf {
    source.join("deploy/helm/examples").join(format!("{}.yaml", transport.word()))
}

/// A copy of what this run installs.
fn checkout(source: &Path) -> Result<PathBuf> {
    let copy = std::env::temp_dir().join(format!("meshstor-kube-{}", std::process::id()));
    std::fs::create_dir_all(&copy).with_context(|| format!("make {}", copy.display()))?;
    let mut command = Command::new("cp");
    command.arg("--recursive").arg(source.join("README.md")).arg(source.join("deploy")).arg(&copy);
    let output = command.output().context("run cp")?;
    ensure!(output.status.success(), "cp: {}", String::from_utf8_lossy(&output.stderr));
    Ok(copy)
}

/// Every image that the rendered chart names.
fn images_of(helm: &Path, source: &Path, options: &Options) -> Result<BTreeSet<String>> {
    let mut command = Command::new(helm);
    command.args(["template", RELEASE]).arg(source.join(CHART)).arg("--values").arg(example(source, options.transport));
    let output = command.args(["--kube-version", &options.kubernetes]).output().context("run helm template")?;
    ensure!(output.status.success(), "helm template: {}", String::from_utf8_lossy(&output.stderr));
    Ok(named_images(&String::from_utf8_lossy(&output.stdout)))
}

fn named_images(rendered: &str) -> BTreeSet<String> {
    let lines = rendered.lines().map(|line| line.trim().trim_start_matches("- "));
    lines.filter_map(|line| line.strip_prefix("image: ")).map(|name| name.trim_matches('"').to_string()).collect()
}

/// Makes them all: ours twice, so that there is something to upgrade to.
fn images(paths: &Paths, names: &BTreeSet<String>, binaries: &Path) -> Result<Vec<ImageFile>> {
    let workload = container::workload(paths, &binaries.join("meshstor-demo"))?;
    let mut images = vec![container::pause(paths)?, container::busybox(paths)?, workload];
    for name in names {
        let Some((repository, _)) = name.rsplit_once(':') else {
            bail!("the chart names an image without a tag: {name}")
        };
        if repository.ends_with("/meshstor") {
            for reference in [name.clone(), format!("{repository}:{NEXT}")] {
                images.push(container::product(paths, &binaries.join("meshstor"), &reference)?);
            }
        } else {
            images.push(container::sidecar(paths, name)?);
        }
    }
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_read_from_lists_and_maps_once_each() {
        let text = "  - image: \"a/b:1\"\n    image: a/b:1\n  imagePullPolicy: x\n  - name: image\n    image: c/d:2\n";
        assert_eq!(named_images(text), ["a/b:1", "c/d:2"].map(String::from).into());
    }
}
