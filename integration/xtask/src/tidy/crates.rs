//! Which crate may depend on which: kernel ← plan ← actors ← controller ← binary, and pure crates stay pure.
//!
//! Called by `tidy`. Asks cargo (`metadata`, `tree`), which reads manifests and compiles nothing. Dependencies of tests
//! are free: a test may use whatever shows the fault.

use super::Finding;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Each crate, and the crates of this workspace it may use. A new crate is entered here together with its place.
const DIRECTION: &[(&str, &[&str])] = &[
    ("meshstor-kernel", &[]),
    ("meshstor-plan", &["meshstor-kernel"]),
    ("meshstor-api", &["meshstor-kernel", "meshstor-plan"]),
    ("meshstor-csi", &[]),
    ("meshstor-memstore", &[]),
    ("meshstor-actors", &["meshstor-kernel", "meshstor-plan", "meshstor-api", "meshstor-csi"]),
    ("meshstor-controller", &["meshstor-kernel", "meshstor-plan", "meshstor-api", "meshstor-csi"]),
    (
        "meshstor",
        &[
            "meshstor-kernel",
            "meshstor-plan",
            "meshstor-api",
            "meshstor-csi",
            "meshstor-actors",
            "meshstor-controller",
            "meshstor-memstore",
        ],
    ),
    ("meshstor-lab", &[]),
    ("meshstor-demo", &["meshstor-lab", "meshstor-api", "meshstor-csi"]),
    (
        "meshstor-sim",
        &[
            "meshstor-kernel",
            "meshstor-plan",
            "meshstor-api",
            "meshstor-csi",
            "meshstor-memstore",
            "meshstor-actors",
            "meshstor-controller",
        ],
    ),
    ("meshstor-model", &[]),
    ("xtask", &["meshstor-lab", "meshstor-demo"]),
];

/// Crates that decide and do nothing else, and what must not be in their trees: threads, sockets, clocks, randomness.
const PURE: &[&str] = &["meshstor-plan"];
const IMPURE: &[&str] = &[
    "tokio",
    "actix",
    "actix-rt",
    "kube",
    "neli",
    "nix",
    "rand",
    "tracing-subscriber",
    "tonic",
    "hyper",
    "udev",
    "libc",
];

/// The workspace's crates as cargo sees them.
pub struct Graph {
    members: BTreeMap<String, Member>,
    /// Crates from outside that the workspace or some member names, and where.
    pub external: BTreeMap<String, Place>,
    /// Names in `[workspace.dependencies]`.
    declared: BTreeMap<String, Place>,
    /// Names that some member uses.
    used: BTreeSet<String>,
}

/// A line of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The manifest, below the workspace.
    pub manifest: String,
    /// Line; one where cargo does not say.
    pub line: usize,
}

struct Member {
    manifest: String,
    /// Crates of this workspace that it is built with.
    uses: BTreeSet<String>,
}

impl Graph {
    /// Asks cargo.
    pub fn ask(root: &Path) -> Result<Graph> {
        let text = cargo(root, &["metadata", "--no-deps", "--format-version", "1"])?;
        let manifest = std::fs::read_to_string(root.join("Cargo.toml")).context("read Cargo.toml")?;
        Graph::parse(&text, &manifest)
    }

    /// From cargo's answer and the text of the workspace's manifest.
    pub fn parse(metadata: &str, manifest: &str) -> Result<Graph> {
        let metadata: Value = serde_json::from_str(metadata).context("parse cargo metadata")?;
        let root = metadata["workspace_root"].as_str().context("cargo metadata names no workspace_root")?;
        let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
        let declared = declared(manifest);
        let mut graph = Graph { members: BTreeMap::new(), external: declared.clone(), declared, used: BTreeSet::new() };
        for package in packages {
            graph.add(package, root)?;
        }
        Ok(graph)
    }

    fn add(&mut self, package: &Value, root: &str) -> Result<()> {
        let name = package["name"].as_str().context("a package without a name")?;
        let manifest = package["manifest_path"].as_str().unwrap_or_default();
        let manifest = manifest.strip_prefix(root).unwrap_or(manifest).trim_start_matches('/').to_string();
        let mut uses = BTreeSet::new();
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let other = dependency["name"].as_str().unwrap_or_default().to_string();
            let for_tests = dependency["kind"].as_str() == Some("dev");
            let ours = dependency["path"].is_string();
            if ours && !for_tests {
                uses.insert(other);
            } else if !ours {
                self.used.insert(other.clone());
                self.external.entry(other).or_insert_with(|| Place { manifest: manifest.clone(), line: 1 });
            }
        }
        self.members.insert(name.to_string(), Member { manifest, uses });
        Ok(())
    }
}

/// Names in `[workspace.dependencies]` that come from outside. A renamed one counts under its package's name.
fn declared(manifest: &str) -> BTreeMap<String, Place> {
    let lines = manifest.lines().enumerate().skip_while(|(_, line)| line.trim() != "[workspace.dependencies]").skip(1);
    let lines = lines.take_while(|(_, line)| !line.starts_with('[')).filter(|(_, line)| !line.contains("path ="));
    let name = |line: &str| {
        let renamed = line.split_once("package = \"").and_then(|(_, rest)| rest.split('"').next());
        let plain = line.split_once('=').map(|(name, _)| name.trim());
        renamed.or(plain).filter(|name| !name.is_empty() && !name.starts_with('#')).map(str::to_string)
    };
    let place = |index: usize| Place { manifest: "Cargo.toml".to_string(), line: index + 1 };
    lines.filter_map(|(index, line)| Some((name(line)?, place(index)))).collect()
}

/// Crates that use what they may not.
pub fn check(graph: &Graph) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, member) in &graph.members {
        let Some((_, allowed)) = DIRECTION.iter().find(|(known, _)| known == name) else {
            let what = format!("{name} has no place in the order of crates: enter it in tidy/crates.rs");
            findings.push(Finding::new(&member.manifest, 1, what));
            continue;
        };
        for other in member.uses.iter().filter(|other| !allowed.contains(&other.as_str())) {
            let what = format!("{name} must not depend on {other}: crates depend one way only");
            findings.push(Finding::new(&member.manifest, 1, what));
        }
    }
    findings
}

/// Pure crates with something impure in their trees.
pub fn check_pure(root: &Path) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for name in PURE {
        let tree = cargo(root, &["tree", "--package", name, "--edges", "normal", "--prefix", "none"])?;
        findings.extend(impure(name, &tree));
    }
    Ok(findings)
}

/// Forbidden crates in the text that `cargo tree` prints.
pub fn impure(name: &str, tree: &str) -> Vec<Finding> {
    let crates: BTreeSet<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let found = IMPURE.iter().filter(|impure| crates.contains(*impure));
    found.map(|impure| Finding::new(name, 1, format!("{impure} is in its tree: this crate only decides"))).collect()
}

/// Declared versions that nobody uses.
pub fn unused(graph: &Graph) -> Vec<Finding> {
    let unused = graph.declared.iter().filter(|(name, _)| !graph.used.contains(*name));
    let finding = |(name, place): (&String, &Place)| {
        Finding::new(&place.manifest, place.line, format!("{name} is declared and no crate uses it"))
    };
    unused.map(finding).collect()
}

fn cargo(root: &Path, arguments: &[&str]) -> Result<String> {
    let output = crate::workspace::cargo()
        .args(arguments)
        .current_dir(root)
        .output()
        .with_context(|| format!("start cargo {}", arguments.join(" ")))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("cargo {} ended with {}: {}", arguments.join(" "), output.status, words.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("cargo {} printed no text", arguments.join(" ")))
}
