//! Programs that test from outside: csi-sanity, the conformance suite of the Kubernetes CSI project, and Helm. Called by
//! `tools`.

use super::go::Module;
use crate::paths::Paths;
use anyhow::Result;
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
        link_flags: "-s -w".into(),
    };
    Program { module, package: "helm.sh/helm/v3/cmd/helm" }
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
