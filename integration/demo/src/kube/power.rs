//! The power of a pod's node cut: the pod writes again on another node, nothing that was acknowledged is lost.
//!
//! Called by `kube`. Kubernetes takes a pod off a dead node only when somebody says that the node is dead: here the test
//! sets the out-of-service taint, as an operator does, as soon as the node is not ready. The time line says what took how
//! long.

use super::Scenario;
use super::cluster::{Kube, PATIENCE, is_ready};
use super::pods::{Set, text};
use anyhow::{Context, Result, bail, ensure};
use meshstor_lab::Guest;
use serde_json::Value;
use std::time::{Duration, Instant};

pub const ALL: &[(&str, Scenario)] =
    &[("power-cut: a pod's node loses power; with the out-of-service taint it writes again elsewhere", power_cut)];

const TAINT: &str = "node.kubernetes.io/out-of-service";

fn power_cut(kube: &Kube) -> Result<String> {
    let mut set = Set::up(kube, "cut", 1)?;
    set.wait_for(100)?;
    kube.await_whole()?;
    let lost = set.writers[0].guest(kube)?;
    let begin = Instant::now();
    lost.power_cut()?;
    set.writers[0].stop_listening()?;
    let told = set.writers[0].so_far().acks.len();
    let mut lines = vec![format!("{told} writes acknowledged; power of {} cut", lost.name())];
    lines.extend(fail_over(kube, &lost, &mut set, begin)?);
    let compared = set.verify(kube)?;
    lines.push(format!("{compared} blocks verified"));
    lines.extend(comes_back(kube, &lost)?);
    let again = set.verify(kube)?;
    lines.push(format!("{again} blocks verified; {}", set.down(kube)?));
    Ok(lines.join("\n"))
}

/// From the cut to the first write on another node.
fn fail_over(kube: &Kube, lost: &Guest, set: &mut Set, begin: Instant) -> Result<Vec<String>> {
    let since = || begin.elapsed().as_secs_f64();
    kube.await_node(lost, false)?;
    let mut lines = vec![format!("{:6.1} s  the node is not ready", since())];
    kube.control.kubectl(&["taint", "node", &lost.name(), &format!("{TAINT}=nodeshutdown:NoExecute")])?;
    lines.push(format!("{:6.1} s  the test sets the out-of-service taint", since()));
    let writer = &mut set.writers[0];
    let (pod, uid) = (writer.pod.clone(), writer.uid().to_string());
    let claim = writer.volume(kube)?;
    let new = |all: &[Value]| of(all, "Pod", &pod).filter(|p| p["metadata"]["uid"] != uid.as_str()).cloned();
    let attached = |all: &[Value]| {
        all.iter().any(|o| {
            o["kind"] == "VolumeAttachment"
                && o["spec"]["source"]["persistentVolumeName"] == claim.as_str()
                && o["spec"]["nodeName"] != lost.name().as_str()
                && o["status"]["attached"] == true
        })
    };
    type Seen<'a> = Box<dyn Fn(&[Value]) -> bool + 'a>;
    let phases: [(&str, Seen<'_>); 4] = [
        ("the old pod is gone, a new one exists", Box::new(|all| new(all).is_some())),
        ("the new pod has a node", Box::new(|all| new(all).is_some_and(|p| p["spec"]["nodeName"].is_string()))),
        ("the volume is attached there", Box::new(attached)),
        ("the new pod is ready", Box::new(|all| new(all).is_some_and(|p| is_ready(&p)))),
    ];
    for (what, seen) in &phases {
        while !seen(&kube.items(&["pods,volumeattachments"])?) {
            if begin.elapsed() > PATIENCE {
                bail!("waited in vain: {what}\n{}\n{}", lines.join("\n"), kube.diagnosis());
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        lines.push(format!("{:6.1} s  {what}", since()));
    }
    writer.await_ready(kube)?;
    writer.follow(kube)?;
    writer.wait_for(1)?;
    lines.push(format!("{:6.1} s  it writes on {}", since(), writer.guest(kube)?.name()));
    writer.wait_for(50)?;
    Ok(lines)
}

fn of<'a>(all: &'a [Value], kind: &str, name: &str) -> Option<&'a Value> {
    all.iter().find(|o| o["kind"] == kind && text(&o["metadata"]["name"]) == name)
}

/// The node gets its power back, and the volume its copy there.
fn comes_back(kube: &Kube, lost: &Guest) -> Result<Vec<String>> {
    let begin = Instant::now();
    lost.power_on()?;
    lost.rejoin()?;
    kube.control.kubectl(&["taint", "node", &lost.name(), &format!("{TAINT}-")])?;
    kube.await_node(lost, true)?;
    kube.await_agents()?;
    let ready = begin.elapsed();
    kube.await_whole().context("the copy on the node that came back")?;
    ensure!(!kube.items(&["msvol"])?.is_empty(), "the volume is gone");
    Ok(vec![format!(
        "power back: node and agent ready after {:.1} s, every copy in sync after {:.1} s",
        ready.as_secs_f64(),
        begin.elapsed().as_secs_f64()
    )])
}
