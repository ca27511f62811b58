//! `meshstor crds`: the custom resource definitions, for `kubectl apply` and for the chart's hook.

use anyhow::Result;
use std::io::Write;
use std::process::ExitCode;

/// Prints one YAML document for each kind.
pub fn run() -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    for crd in meshstor_api::crds() {
        write!(out, "---\n{}", serde_yaml::to_string(&crd)?)?;
    }
    Ok(ExitCode::SUCCESS)
}
