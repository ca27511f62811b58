//! csi-sanity, the conformance suite of the Kubernetes CSI project, against `meshstor dev`.
//!
//! Called by `meshstor-demo sanity` for `cargo xtask sanity`; `kube` runs the same suite against an installed driver. It judges nothing itself: it counts what the suite reports,
//! and says why tests were left out.

use crate::dev::Dev;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

/// Sizes of the suite's volumes, in bytes.
const SIZE: u64 = 1 << 30;
const EXPANDED: u64 = 2 << 30;
/// Fewer tests than this are no run of the suite: most of its 92 apply to every driver that attaches.
const ENOUGH: usize = 40;

/// What the suite writes of itself (Ginkgo's JSON report), as far as it is read here.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Vec<Spec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    failure: Option<Failure>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    message: String,
}

/// What came of the tests.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// How many passed.
    pub passed: usize,
    /// Names with their reasons.
    pub failed: Vec<(String, String)>,
    /// How many for each reason.
    pub skipped: BTreeMap<String, usize>,
}

impl Count {
    /// Fails when so few tests ran that it was no run of the suite.
    pub fn enough(self) -> Result<Count> {
        ensure!(self.passed + self.failed.len() >= ENOUGH, "only {} tests of csi-sanity ran", self.passed);
        Ok(self)
    }
}

/// Runs the suite for both kinds of volumes; `binary` is the product's, `suite` is csi-sanity.
pub fn run(binary: &Path, suite: &Path) -> Result<()> {
    let mut all = Count::default();
    for access in ["mount", "block"] {
        let what = || format!("csi-sanity with volumes of access type {access}");
        let count = once(binary, suite, access).with_context(what)?;
        for (reason, number) in &count.skipped {
            println!("sanity: {access}: {number} skipped: {reason}");
        }
        for (name, reason) in &count.failed {
            println!("sanity: {access}: FAILED {name}: {reason}");
        }
        all.passed += count.passed;
        all.failed.extend(count.failed);
        count.skipped.into_iter().for_each(|(reason, number)| *all.skipped.entry(reason).or_default() += number);
    }
    let skipped: usize = all.skipped.values().sum();
    println!("sanity: {} passed, {} failed, {skipped} skipped", all.passed, all.failed.len());
    ensure!(all.failed.is_empty(), "csi-sanity found {} failures", all.failed.len());
    Ok(())
}

fn once(binary: &Path, suite: &Path, access: &str) -> Result<Count> {
    let dev = Dev::start(binary)?;
    let dir = dev.dir();
    let own = dir.join("csi-sanity");
    std::fs::copy(suite, &own).with_context(|| format!("copy {}", suite.display()))?;
    let socket = |name: &str| format!("unix://{}", dir.join(format!("{name}.sock")).display());
    let mut command = dev.command(&own);
    command
        .current_dir(dir)
        .arg(format!("--csi.endpoint={}", socket("node-1")))
        .arg(format!("--csi.controllerendpoint={}", socket("controller")))
        .arg(format!("--csi.mountdir={}", dir.join("mount").display()))
        .arg(format!("--csi.stagingdir={}", dir.join("stage").display()))
        .args(settings(access, SIZE, EXPANDED));
    let output = command.stdin(Stdio::null()).output().context("run csi-sanity")?;
    let report = std::fs::read(dir.join("report.json")).with_context(|| {
        let said = String::from_utf8_lossy(&output.stdout);
        format!("csi-sanity left no report; it said: {}", said.lines().last().unwrap_or("nothing"))
    })?;
    let count = count(&report)?.enough()?;
    // What failed is told by its name.
    ensure!(output.status.success() || !count.failed.is_empty(), "csi-sanity ended with {}", output.status);
    Ok(count)
}

/// Arguments that do not depend on where the driver is; sizes in bytes. The report is `report.json` in its directory.
pub fn settings(access: &str, size: u64, expanded: u64) -> [String; 5] {
    [
        format!("--csi.testvolumeaccesstype={access}"),
        format!("--csi.testvolumesize={size}"),
        format!("--csi.testvolumeexpandsize={expanded}"),
        "--ginkgo.no-color".into(),
        "--ginkgo.json-report=report.json".into(),
    ]
}

/// What a report says.
pub fn count(report: &[u8]) -> Result<Count> {
    let suites: Vec<Suite> = serde_json::from_slice(report).context("read csi-sanity's report")?;
    let mut count = Count::default();
    for spec in suites.into_iter().flat_map(|suite| suite.spec_reports).filter(|spec| spec.leaf_node_type == "It") {
        let reason = spec.failure.map(|failure| failure.message.lines().next().unwrap_or_default().to_string());
        let reason = reason.filter(|reason| !reason.is_empty());
        match spec.state.as_str() {
            "passed" => count.passed += 1,
            "skipped" => *count.skipped.entry(reason.unwrap_or_else(|| "no reason given".into())).or_default() += 1,
            "pending" => *count.skipped.entry("switched off by the suite itself".into()).or_default() += 1,
            state => {
                let mut name = spec.container_hierarchy_texts.unwrap_or_default();
                name.push(spec.leaf_node_text);
                count.failed.push((name.join(": "), reason.unwrap_or_else(|| state.to_string())));
            }
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_counted_by_their_state() {
        let spec = |state: &str, message: &str| {
            serde_json::json!({"ContainerHierarchyTexts": ["Node"], "LeafNodeType": "It", "LeafNodeText": "works",
                               "State": state, "Failure": {"Message": message}})
        };
        let setup = serde_json::json!({"ContainerHierarchyTexts": null, "LeafNodeType": "ReportAfterSuite",
                                       "LeafNodeText": "", "State": "passed"});
        let specs = [
            spec("passed", ""),
            spec("skipped", "no snapshots"),
            spec("skipped", "no snapshots"),
            spec("pending", ""),
            spec("failed", "wrong code\nmore"),
            spec("panicked", ""),
            setup,
        ];
        let report = serde_json::json!([{"SpecReports": specs}]).to_string();
        let found = count(report.as_bytes()).unwrap();
        assert_eq!(found.passed, 1);
        let name = || "Node: works".to_string();
        assert_eq!(found.failed, [(name(), "wrong code".to_string()), (name(), "panicked".to_string())]);
        let skipped = [("no snapshots".to_string(), 2), ("switched off by the suite itself".to_string(), 1)];
        assert_eq!(found.skipped, skipped.into());
        assert!(count(b"[").is_err());
    }
}
