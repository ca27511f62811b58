//! csi-sanity against the driver as it is installed: the agent's socket of a node, a controller's socket of the same node.
//!
//! Called by `kube`. The suite runs in a guest, below kubelet's directory, where what the agent mounts is seen by all.

use super::Scenario;
use super::cluster::{Kube, NAMESPACE};
use super::pods::text;
use crate::sanity::{self, Count};
use anyhow::{Context, Result, bail, ensure};
use meshstor_lab::{Guest, Paths, tools};
use std::time::Duration;

pub const ALL: &[(&str, Scenario)] =
    &[("csi-sanity: the conformance suite against the installed driver, mounted and raw block", both)];

/// The smallest file systems, for the sake of emulated drives, in bytes.
const SIZE: u64 = 320 << 20;
const EXPANDED: u64 = 640 << 20;
/// Some eighty tests, seconds each on an emulated processor.
const PATIENCE: Duration = Duration::from_secs(3600);
const DIR: &str = "/var/lib/kubelet/csi-sanity";
const AGENT: &str = "/var/lib/kubelet/plugins/io.meshstor.csi.mesh/csi.sock";

fn both(kube: &Kube) -> Result<String> {
    let (guest, controller) = controller(kube)?;
    let suite = tools::csi_sanity(&Paths::from_env()?)?;
    guest.ssh_checked(&format!("mkdir -p {DIR}"))?;
    guest.put(&suite, &format!("{DIR}/csi-sanity"))?;
    let mut lines = Vec::new();
    for access in ["mount", "block"] {
        let count = once(&guest, &controller, access).with_context(|| format!("access type {access}"))?;
        let skipped: usize = count.skipped.values().sum();
        lines.push(format!("{access}: {} passed, {} failed, {skipped} skipped", count.passed, count.failed.len()));
        let failed: Vec<String> = count.failed.iter().map(|(name, why)| format!("{name}: {why}")).collect();
        ensure!(failed.is_empty(), "{}\n{}", lines.join("\n"), failed.join("\n"));
    }
    guest.ssh_checked(&format!("rm -r {DIR}"))?;
    lines.push(kube.nothing_left()?);
    Ok(lines.join("\n"))
}

/// A guest with a controller on it, and where that one's socket is there.
fn controller(kube: &Kube) -> Result<(Guest, String)> {
    let pods = kube.items(&["pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=controller"])?;
    let pod = pods.first().context("no controller pod")?;
    let uid = text(&pod["metadata"]["uid"]);
    let guest = kube.lab.guest(&text(&pod["spec"]["nodeName"]))?;
    Ok((guest, format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/csi/csi.sock")))
}

fn once(guest: &Guest, controller: &str, access: &str) -> Result<Count> {
    let settings = sanity::settings(access, SIZE, EXPANDED).join(" ");
    let script = format!(
        "cd {DIR} && rm -rf report.json mount stage && ./csi-sanity --csi.endpoint=unix://{AGENT} \
         --csi.controllerendpoint=unix://{controller} --csi.mountdir={DIR}/mount --csi.stagingdir={DIR}/stage {settings} \
         >log 2>&1; tail -n 3 log"
    );
    let said = guest.ssh_within(&script, PATIENCE)?.stdout;
    let report = guest.ssh_within(&format!("cat {DIR}/report.json"), Duration::from_secs(60))?;
    if !report.ok() {
        bail!("csi-sanity left no report; it said: {said}");
    }
    sanity::count(report.stdout.as_bytes())?.enough()
}
