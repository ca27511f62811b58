//! Real Kubernetes on real kernels: `cargo xtask kube` runs `meshstor-demo kube`.
//!
//! One cluster for all scenarios: the chart is installed first, each scenario leaves the cluster as it found it.
//!
//! ```text
//!  cluster   control plane, guests with kubelet, helm          pods   sets that write, acknowledgements, comparison
//!  daily     claim, stateful set, growth            claims  races for room, claims by the hundred
//!  drain     a node drained, and one that has to wait
//!  cut       a node without the API server          power   power cut of a node
//!  release   upgrade, uninstall, reinstall          reboot  a node rebooted by systemd, without drain
//!  suite     csi-sanity against the installed driver
//! ```

mod claims;
mod cluster;
mod cut;
mod daily;
mod drain;
mod pods;
mod power;
mod reboot;
mod release;
mod suite;

use crate::story::Story;
use anyhow::{Result, bail};
use cluster::Kube;
pub use cluster::Options;

/// One scenario: harm or use, and what was proven.
type Scenario = fn(&Kube) -> Result<String>;

const ALL: [&[(&str, Scenario)]; 8] =
    [daily::ALL, drain::ALL, claims::ALL, cut::ALL, suite::ALL, release::ALL, power::ALL, reboot::ALL];

/// Runs the scenarios whose name contains `only`, or one of its parts between commas. The first one that fails ends the
/// run; with `keep` everything stays as it is.
pub fn run(options: &Options, only: &str, keep: bool) -> Result<()> {
    let wanted = |name: &&str| only.split(',').any(|part| name.contains(part));
    let names: Vec<&str> = ALL.into_iter().flatten().map(|(name, _)| *name).filter(wanted).collect();
    if names.is_empty() {
        bail!(
            "no scenario is called {only:?}; there are {}",
            ALL.into_iter().flatten().map(|(n, _)| *n).collect::<Vec<_>>().join(", ")
        );
    }
    let mut story = Story::begin();
    let kube =
        story.step("etcd, API server, controller manager, scheduler; containerd and kubelet in every guest", || {
            let kube = Kube::up(options)?;
            let proof = format!(
                "Kubernetes {}, {} nodes ready, kernel series {}",
                kube.version()?,
                options.nodes,
                options.kernel
            );
            Ok((kube, proof))
        })?;
    let result = all(&mut story, &kube, &names);
    if let Err((_, error)) = &result {
        println!("            FAILED: {error:#}");
    }
    if keep {
        println!("kube: everything is left running; `cargo xtask kube --down` ends it");
    } else {
        kube.down()?;
    }
    let seconds = story.begin.elapsed().as_secs();
    let failed = usize::from(result.is_err());
    println!(
        "kube: {} passed, {failed} failed in {seconds} s",
        result.as_ref().map_or_else(|(passed, _)| *passed, |n| *n)
    );
    result.map(drop).map_err(|(_, error)| error)
}

/// The installation, then each of these; how many passed, and what ended it.
fn all(story: &mut Story, kube: &Kube, names: &[&str]) -> Result<usize, (usize, anyhow::Error)> {
    let mut passed = 0;
    let install = || {
        if kube.installed() {
            return Ok(((), String::from("it is installed already")));
        }
        kube.deploy("install", &[])?;
        Ok((
            (),
            String::from("helm says that all pods are ready, every node's object does, and kubelets know the driver"),
        ))
    };
    story.step("install: helm install, all pods ready", install).map_err(|error| (passed, error))?;
    passed += 1;
    for (name, scenario) in ALL.into_iter().flatten().filter(|(name, _)| names.contains(name)) {
        story.step(name, || Ok(((), scenario(kube)?))).map_err(|error| (passed, error))?;
        passed += 1;
    }
    Ok(passed)
}
