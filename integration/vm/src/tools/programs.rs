//! Programs that test from outside: csi-sanity, the conformance suite of the Kubernetes CSI project, Helm, and the CSI
//! project's sidecars. Called by `tools`.

use super::go::Module;
use crate::paths::Paths;
use anyhow::{Result, bail};
use std::path::PathBuf;

/// A program by the package that it is built from.
pub(super) struct Program {
    module: Module,
    package: &'static str,
}

pub(super) fn csi_sanity() -> Program {
    let module = Module {
        name: "sanity",
        version: "v5.4.0",
        go_mod: include_str!("../../tools/sanity/go.mod"),
        go_sum: include_str!("../../tools/sanity/go.sum"),
        sources: &[],
        link_flags: "-s -w".into(),
    };
    Program { module, package: "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity" }
}

pub(super) fn helm() -> Program {
    let module = Module {
        name: "helm",
        version: "v3.21.4",
        go_mod: include_str!("../../tools/helm/go.mod"),
        go_sum: include_str!("../../tools/helm/go.sum"),
        sources: &[],
        link_flags: "-s -w".into(),
    };
    Program { module, package: "helm.sh/helm/v3/cmd/helm" }
}

/// The sidecars share one module: their releases that the chart names have one Kubernetes version in common.
const SIDECARS: &[&str] = &[
    "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner",
    "github.com/kubernetes-csi/external-attacher/v4/cmd/csi-attacher",
    "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer",
    "tools.invalid/sidecars/csi-node-driver-registrar",
];

/// A sidecar by its program's name.
pub(super) fn sidecar(name: &str) -> Result<Program> {
    let Some(package) = SIDECARS.iter().find(|package| package.ends_with(&format!("/{name}"))) else {
        bail!("the lab has no sidecar {name:?}");
    };
    let module = Module {
        name: "sidecars",
        // That of the provisioner, the largest of them.
        version: "v6.3.0",
        go_mod: include_str!("../../tools/sidecars/go.mod"),
        go_sum: include_str!("../../tools/sidecars/go.sum"),
        sources: &[(
            "csi-node-driver-registrar/main.go",
            include_str!("../../tools/sidecars/csi-node-driver-registrar/main.go"),
        )],
        link_flags: "-s -w".into(),
    };
    Ok(Program { module, package })
}

impl Program {
    /// Its path, built when the cache lacks it.
    pub(super) fn ensure(&self, paths: &Paths) -> Result<PathBuf> {
        self.module.ensure(paths, &[self.package.to_string()])?;
        Ok(self.module.program(paths, self.package.rsplit('/').next().unwrap_or(self.package)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chart's values name images by version; what stands under those names in the lab is built from these pins.
    #[test]
    fn sidecars_are_those_that_the_chart_names() {
        let values = include_str!("../../../../deploy/helm/meshstor/values.yaml");
        let module = sidecar("csi-provisioner").unwrap().module;
        let images = values.lines().filter_map(|line| line.split_once("sig-storage/")?.1.split('"').next());
        let mut found = 0;
        for image in images {
            let (name, version) = image.split_once(':').unwrap();
            let package = sidecar(name).unwrap().package;
            found += 1;
            // Our own stand-in has no version.
            if let Some((path, _)) = package.split_once("/cmd/") {
                assert!(module.go_mod.contains(&format!("{path} {version}")), "go.mod pins another {name}");
            }
        }
        assert!(found >= 3, "{found} sidecars");
    }

    #[test]
    fn versions_are_the_pinned_ones() {
        for (Program { module, .. }, path) in
            [(csi_sanity(), "github.com/kubernetes-csi/csi-test/v5"), (helm(), "helm.sh/helm/v3")]
        {
            assert!(
                module.go_mod.contains(&format!("{path} {}", module.version)),
                "{path}: go.mod pins another version"
            );
        }
    }
}
