//! Kubernetes programs, built from source through the Go module proxy.
//!
//! Called by `tools`. There is no registry to pull images from where the lab runs, and the API server is the one part
//! of Kubernetes that no fake replaces. The versions and their checksums are pinned by `tools/kube/go.{mod,sum}`.

use super::go::Module;
use crate::exec::run;
use crate::paths::{Paths, make_dir};
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The version that `go.mod` pins.
pub const VERSION: &str = "v1.36.3";

const GO_MOD: &str = include_str!("../../tools/kube/go.mod");
const GO_SUM: &str = include_str!("../../tools/kube/go.sum");

/// A program of the Kubernetes source tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KubeTool {
    /// The API server.
    Apiserver,
    /// What makes pods of sets and attachments of claims.
    ControllerManager,
    /// What gives pods their nodes.
    Scheduler,
    /// What runs pods, in a guest.
    Kubelet,
    /// The command-line client.
    Kubectl,
}

impl KubeTool {
    /// The program's file name.
    pub fn name(self) -> &'static str {
        match self {
            KubeTool::Apiserver => "kube-apiserver",
            KubeTool::ControllerManager => "kube-controller-manager",
            KubeTool::Scheduler => "kube-scheduler",
            KubeTool::Kubelet => "kubelet",
            KubeTool::Kubectl => "kubectl",
        }
    }

    fn package(self) -> String {
        format!("k8s.io/kubernetes/cmd/{}", self.name())
    }
}

/// Where a program lies once it is built.
pub(super) fn path(paths: &Paths, tool: KubeTool) -> PathBuf {
    module().program(paths, tool.name())
}

/// Builds those programs that the cache lacks.
pub(super) fn ensure(paths: &Paths, tools: &[KubeTool]) -> Result<()> {
    let packages: Vec<String> = tools.iter().map(|tool| tool.package()).collect();
    module().ensure(paths, &packages)?;
    [KubeTool::Kubectl, KubeTool::Kubelet].into_iter().try_for_each(|tool| share(paths, tool))
}

fn module() -> Module {
    Module { name: "kube", version: VERSION, go_mod: GO_MOD, go_sum: GO_SUM, sources: &[], link_flags: link_flags() }
}

/// Without these the server reports an empty version, which clients refuse.
fn link_flags() -> String {
    let mut numbers = VERSION.trim_start_matches('v').split('.');
    let major = numbers.next().unwrap_or_default();
    let minor = numbers.next().unwrap_or_default();
    let mut flags = String::from("-s -w");
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        for (name, value) in [("gitVersion", VERSION), ("gitMajor", major), ("gitMinor", minor)] {
            flags.push_str(&format!(" -X {package}.{name}={value}"));
        }
    }
    flags
}

/// Guests see the shared directory, so the program must be a real file in it; a hard link costs no space.
fn share(paths: &Paths, tool: KubeTool) -> Result<()> {
    let (built, shared) = (path(paths, tool), paths.bin().join(tool.name()));
    if !built.is_file() || same_file(&built, &shared) {
        return Ok(());
    }
    make_dir(&paths.bin())?;
    run(Command::new("ln").arg("-f").arg(&built).arg(&shared)).map(drop)
}

fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    id(a).is_some() && id(a) == id(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_the_pinned_one() {
        assert!(GO_MOD.contains(&format!("k8s.io/kubernetes {VERSION}")), "go.mod pins another version");
        assert!(link_flags().contains("gitMinor=36"));
    }
}
