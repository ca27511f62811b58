//! `csi-sanity`, the conformance suite of the Kubernetes CSI project. Called by `tools`.

use super::go::Module;
use crate::paths::Paths;
use anyhow::Result;
use std::path::PathBuf;

const PACKAGE: &str = "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity";

fn module() -> Module {
    Module {
        name: "sanity",
        version: "v5.4.0",
        go_mod: include_str!("../../tools/sanity/go.mod"),
        go_sum: include_str!("../../tools/sanity/go.sum"),
        link_flags: "-s -w".into(),
    }
}

pub(super) fn ensure(paths: &Paths) -> Result<PathBuf> {
    module().ensure(paths, &[PACKAGE.to_string()])?;
    Ok(module().program(paths, "csi-sanity"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_the_pinned_one() {
        let Module { go_mod, version, .. } = module();
        assert!(go_mod.contains(&format!("github.com/kubernetes-csi/csi-test/v5 {version}")), "go.mod pins another");
    }
}
