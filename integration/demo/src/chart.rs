//! The Helm chart on a real API server: rendered, checked, applied; and what a node's account may do with a real token.
//!
//! Called by `meshstor-demo chart` for `cargo xtask chart`. No guest and no kubelet: pods are objects here, whose tokens name
//! their node all the same.

use anyhow::{Context, Result, bail, ensure};
use meshstor_lab::ControlPlane;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const NAMESPACE: &str = "meshstor-system";
const VOLUME_ID: &str = "0f9a2c56-1c1b-4a1e-9f43-0d8a1c2b3e4f";
/// The API server of the lab.
const KUBE_VERSION: &str = "1.36.0";

/// What the checks need.
struct Bench {
    control: ControlPlane,
    chart: PathBuf,
    helm: PathBuf,
    meshstor: PathBuf,
    passed: usize,
}

/// Runs them all; the last line is `chart: N passed, N failed`.
pub fn run(chart: &Path, helm: &Path, meshstor: &Path) -> Result<()> {
    let control = ControlPlane::up(true)?;
    let bench = Bench { control, chart: chart.into(), helm: helm.into(), meshstor: meshstor.into(), passed: 0 };
    let mut bench = bench;
    let done = bench.all();
    let down = bench.control.down();
    match &done {
        Ok(()) => println!("chart: {} passed, 0 failed", bench.passed),
        Err(error) => {
            println!("chart: FAILED {error:#}");
            println!("chart: {} passed, 1 failed", bench.passed);
        }
    }
    done.and(down)
}

impl Bench {
    fn all(&mut self) -> Result<()> {
        self.definitions()?;
        for example in ["tcp", "rdma"] {
            self.example(example)?;
        }
        self.wrong_values()?;
        self.rights()
    }

    fn ok(&mut self, what: &str) {
        self.passed += 1;
        println!("chart: {what}");
    }

    /// The hook's command: applies, applies again, refuses to go back.
    fn definitions(&mut self) -> Result<()> {
        let kubeconfig = self.control.host_kubeconfig()?;
        let apply = || {
            let mut command = Command::new(&self.meshstor);
            command.args(["crds", "--apply"]).env("KUBECONFIG", &kubeconfig).output().context("run meshstor crds")
        };
        ensure!(apply()?.status.success() && apply()?.status.success(), "crds --apply fails");
        let name = "crd/meshstorvolumes.csi.meshstor.io";
        self.control.kubectl(&["annotate", name, "csi.meshstor.io/schema=1000", "--overwrite"])?;
        let refused = apply()?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(!refused.status.success() && said.contains("schema 1000"), "a newer schema is replaced: {said}");
        self.control.kubectl(&["annotate", name, "csi.meshstor.io/schema=1", "--overwrite"])?;
        self.control.kubectl(&["create", "namespace", NAMESPACE])?;
        self.ok("resource definitions are applied, twice, and never over newer ones");
        Ok(())
    }

    fn values(&self, example: &str) -> PathBuf {
        self.chart.with_file_name("examples").join(format!("{example}.yaml"))
    }

    fn helm(&self, arguments: &[&str]) -> Result<Output> {
        Command::new(&self.helm).args(arguments).output().context("run helm")
    }

    fn render(&self, more: &[&str]) -> Result<Output> {
        let chart = self.chart.display().to_string();
        let mut arguments = vec!["template", "meshstor", &chart, "-n", NAMESPACE, "--kube-version", KUBE_VERSION];
        arguments.extend(more);
        self.helm(&arguments)
    }

    /// The rendered text in a file.
    fn rendered(&self, more: &[&str]) -> Result<PathBuf> {
        let output = self.render(more)?;
        ensure!(output.status.success(), "helm template: {}", String::from_utf8_lossy(&output.stderr));
        let file = std::env::temp_dir().join(format!("meshstor-chart-{}.yaml", std::process::id()));
        std::fs::write(&file, &output.stdout).with_context(|| format!("write {}", file.display()))?;
        Ok(file)
    }

    /// Lint, and every object as the API server sees it.
    fn example(&mut self, example: &str) -> Result<()> {
        let values = self.values(example).display().to_string();
        let lint = self.helm(&["lint", &self.chart.display().to_string(), "--strict", "-f", &values])?;
        ensure!(lint.status.success(), "helm lint: {}", String::from_utf8_lossy(&lint.stdout));
        let file = self.rendered(&["-f", &values])?.display().to_string();
        let told = self.control.kubectl(&["apply", "--dry-run=server", "-f", &file])?;
        let objects = told.lines().count();
        ensure!(objects >= 20, "only {objects} objects: {told}");
        self.ok(&format!("{example}: linted, {objects} objects accepted by the API server"));
        Ok(())
    }

    /// A wrong value is refused before anything is applied, by its name.
    fn wrong_values(&mut self) -> Result<()> {
        let cases = [
            ("controller.replicas=0", "replicas"),
            ("node.metricsPort=70000", "metricsPort"),
            ("image.digest=sha256:12", "digest"),
            ("kubeletDir=var/lib/kubelet", "kubeletDir"),
            ("node.fabric=-a", "fabric"),
            ("node.nosuch=1", "nosuch"),
            ("storageClasses[0].name=Upper", "name"),
            ("storageClasses[0].parameters.replicaCount=2", "replicaCount"),
        ];
        for (value, word) in cases {
            let output = self.render(&["--set", value])?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(!output.status.success(), "--set {value} is accepted");
            ensure!(said.contains(word), "--set {value}: the error does not name {word:?}: {said}");
        }
        self.ok(&format!("{} wrong values are refused, each by its name", cases.len()));
        Ok(())
    }

    /// What agents on `node-a` and `node-b` may do, with tokens bound to their pods.
    fn rights(&mut self) -> Result<()> {
        let file = self.rendered(&["-s", "templates/accounts.yaml", "-s", "templates/policy.yaml"])?;
        // Each object names its namespace; not all are the chart's.
        self.control.kubectl(&["apply", "-f", &file.display().to_string()])?;
        self.objects()?;
        let (a, b, nobody) = (self.agent("node-a")?, self.agent("node-b")?, self.unbound()?);
        self.enforced(&b)?;
        let status = |kind: &str, name: &str| {
            let words = ["patch", kind, name, "--subresource=status", "--type=merge", "-p"];
            [&words[..], &["{\"status\":{\"conditions\":[]}}"]].concat().into_iter().map(String::from).collect()
        };
        let own = |words: &[&str]| -> Vec<String> { words.iter().map(ToString::to_string).collect() };
        let finalizer = own(&["patch", "msrep", "v-r0", "--type=merge", "-p", r#"{"metadata":{"finalizers":[]}}"#]);
        let role = own(&["patch", "msrep", "v-r0", "--type=merge", "-p", r#"{"spec":{"role":"Retiring"}}"#]);
        let attempts: Vec<(&str, &Agent, Vec<String>, bool)> = vec![
            ("its node's status", &a, status("msnode", "node-a"), true),
            ("another node's status", &a, status("msnode", "node-b"), false),
            ("the record, as its consumer", &a, status("msvol", "v"), true),
            ("the record, as somebody else", &b, status("msvol", "v"), false),
            ("its copy's status", &a, status("msrep", "v-r0"), true),
            ("another node's copy", &b, status("msrep", "v-r0"), false),
            ("its copy's spec", &a, role, false),
            ("another node's drive", &a, status("msnd", "drive-b"), false),
            ("its drive", &b, status("msnd", "drive-b"), true),
            ("anything without a node in the token", &nobody, status("msnode", "node-a"), false),
            ("the deletion of a volume", &a, own(&["delete", "msvol", "v", "--wait=false"]), false),
            ("pods", &a, own(&["get", "pods", "-A"]), false),
            ("its finalizer on its copy", &a, finalizer, true),
            ("events", &a, own(&["auth", "can-i", "create", "events.events.k8s.io", "-n", "default"]), true),
            ("repeated events", &a, own(&["auth", "can-i", "patch", "events.events.k8s.io", "-n", "default"]), true),
            ("what events there are", &a, own(&["get", "events.events.k8s.io", "-A"]), false),
        ];
        for (what, who, arguments, allowed) in &attempts {
            who.may(what, arguments, *allowed)?;
        }
        let moved = r#"{"spec":{"attachment":{"epoch":3,"consumer":"node-b"}}}"#;
        self.control.kubectl(&["patch", "msvol", "v", "--type=merge", "-p", moved])?;
        a.may("the record of a volume that moved on", &status("msvol", "v"), false)?;
        b.may("the record of a volume that came", &status("msvol", "v"), true)?;
        self.ok(&format!("{} attempts with agents' tokens end as they should", attempts.len() + 2));
        Ok(())
    }

    fn create(&self, object: &Value) -> Result<()> {
        let file = std::env::temp_dir().join(format!("meshstor-chart-object-{}.json", std::process::id()));
        std::fs::write(&file, object.to_string()).with_context(|| format!("write {}", file.display()))?;
        self.control.kubectl(&["create", "-f", &file.display().to_string()]).map(drop)
    }

    /// Two nodes with a drive each, and a volume with one copy on `node-a`, attached there.
    fn objects(&self) -> Result<()> {
        let cluster = "11111111-1111-4111-8111-111111111111";
        let ours = |kind: &str, name: &str, spec: Value| json!({"apiVersion": "csi.meshstor.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
        for node in ["node-a", "node-b"] {
            self.create(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}}))?;
            self.create(&ours("MeshStorNode", node, json!({})))?;
            let drive = node.replace("node", "drive");
            self.create(&ours("MeshStorNodeDevice", &drive, json!({"node": node, "drive": drive})))?;
        }
        let volume = json!({"volumeID": VOLUME_ID, "clusterID": cluster, "sizeBytes": 1 << 30, "filesystem": "xfs",
            "replicaCount": 1, "stripeWidth": 1, "sectorSize": 512, "localCopy": "preferred",
            "memberMissingTimeoutSeconds": 900, "attachment": {"epoch": 1, "consumer": "node-a"}});
        self.create(&ours("MeshStorVolume", "v", volume))?;
        let copy = json!({"volume": "v", "volumeID": VOLUME_ID, "clusterID": cluster, "replica": "r0", "node": "node-a",
            "drive": "drive-a", "partitionBytes": 1 << 30, "role": "Member", "export": {"epoch": 1, "generation": 0}});
        self.create(&ours("MeshStorReplica", "v-r0", copy))
    }

    /// An agent's pod on a node, and a token that is bound to it.
    fn agent(&self, node: &str) -> Result<Agent> {
        let name = format!("agent-{node}");
        let container = json!({"name": "agent", "image": "none"});
        self.create(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"nodeName": node, "serviceAccountName": "meshstor-node", "containers": [container]}}))?;
        let bound = ["--bound-object-kind=Pod", &format!("--bound-object-name={name}")];
        self.token(node, &bound)
    }

    fn unbound(&self) -> Result<Agent> {
        self.token("nobody", &[])
    }

    fn token(&self, name: &str, bound: &[&str]) -> Result<Agent> {
        let arguments = [&["create", "token", "meshstor-node", "-n", NAMESPACE], bound].concat();
        let token = self.control.kubectl(&arguments)?;
        let view = self.control.kubectl(&["config", "view", "--raw", "-o", "json"])?;
        let mut config: Value = serde_json::from_str(&view).context("read the kubeconfig")?;
        for user in config["users"].as_array_mut().into_iter().flatten() {
            user["user"] = json!({"token": token.trim()});
        }
        let file = std::env::temp_dir().join(format!("meshstor-chart-{name}-{}.kubeconfig", std::process::id()));
        std::fs::write(&file, config.to_string()).with_context(|| format!("write {}", file.display()))?;
        Ok(Agent { name: name.into(), config: file, kubectl: self.control.kubectl_path()? })
    }

    /// The API server begins to enforce a policy some seconds after it was made.
    fn enforced(&self, other: &Agent) -> Result<()> {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        let patch = r#"{"status":{"conditions":[]}}"#;
        let arguments =
            ["patch", "msnode", "node-a", "--subresource=status", "--type=merge", "-p", patch].map(String::from);
        while other.tries(&arguments)?.status.success() {
            ensure!(std::time::Instant::now() < end, "the policy is not enforced after 30 s");
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
        Ok(())
    }
}

/// Who holds a token.
struct Agent {
    name: String,
    config: PathBuf,
    kubectl: PathBuf,
}

impl Agent {
    fn tries(&self, arguments: &[String]) -> Result<Output> {
        Command::new(&self.kubectl)
            .arg("--kubeconfig")
            .arg(&self.config)
            .args(arguments)
            .output()
            .context("run kubectl")
    }

    fn may(&self, what: &str, arguments: &[String], allowed: bool) -> Result<()> {
        let output = self.tries(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
        match (output.status.success(), allowed) {
            (true, true) => Ok(()),
            (false, false) if said.contains("Forbidden") || said.contains("forbidden") => Ok(()),
            (true, false) => bail!("{} may write {what}", self.name),
            (false, _) => bail!("{} and {what}: {said}", self.name),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _removed = std::fs::remove_file(&self.config);
    }
}
