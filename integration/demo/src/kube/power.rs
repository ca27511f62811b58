//! The power of a pod's node cut: the pod writes again on another node, nothing that was acknowledged is lost.
//!
//! Called by `kube`. Once by ourselves (automatic fail-over), once with fail-over's work done by an operator who sets the
//! out-of-service taint as soon as the node is not ready. The time line says what took how long.

use super::Scenario;
use super::cluster::{Kube, PATIENCE, is_ready};
use super::pods::{Set, Writer, text};
use crate::cluster::wait;
use anyhow::{Context, Result, bail, ensure};
use meshstor_lab::Guest;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

pub const ALL: &[(&str, Scenario)] = &[
    ("fail-over: a pod's node loses power; nobody does anything, it writes again elsewhere", by_ourselves),
    ("power-cut: the same without automatic fail-over, with the out-of-service taint", by_an_operator),
];

const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// Set, pod, claim and volume of somebody else's storage.
const FOREIGN: &str = "foreign";
const UNREACHABLE: &str = "meshstor.io/unreachable";
/// What fail-over may take from the mark to the first write elsewhere, beyond what a pod that is simply deleted takes to write
/// again in the same run: emulated processors are slow, and that is no fault of fail-over's (K6).
const BUDGET: Duration = Duration::from_secs(15);

fn by_ourselves(kube: &Kube) -> Result<String> {
    let mut set = Set::up(kube, "gone", 1)?;
    set.wait_for(50)?;
    let usual = made_anew(kube, &mut set.writers[0])?;
    set.wait_for(50)?;
    let lost = set.writers[0].guest(kube)?;
    // This pod has a volume of somebody else besides ours: nobody may say that it is safe elsewhere.
    let mut other = with_foreign_volume(kube, &lost)?;
    other.wait_for(20)?;
    kube.await_whole()?;
    let kept = other.writers[0].uid().to_string();
    let mut time = TimeLine::cut(kube, &lost, &mut [&mut set, &mut other])?;
    let marked = time.until("the node is marked", || has_taint(kube, &lost, UNREACHABLE))?;
    let wrote = time.follow(&mut set.writers[0])?;
    let took = wrote - marked;
    time.lines.push(format!(
        "{:6.1} s  from mark to write; a deleted pod took {:.1} s, {} s more are allowed",
        took.as_secs_f64(),
        usual.as_secs_f64(),
        BUDGET.as_secs()
    ));
    time.lines.push(fail_over_event(kube, &set.writers[0].pod)?);
    let seen = time.lines.clone();
    still_there(kube, &mut time, &mut set, &mut other, &kept).with_context(|| seen.join("\n"))?;
    kube.control.kubectl(&["delete", "pv", FOREIGN, "--wait=false"])?;
    other.remove(kube)?;
    time.lines.push(set.down(kube)?);
    ensure!(took <= usual + BUDGET, "from mark to write: {took:?}\n{}", time.lines.join("\n"));
    Ok(time.lines.join("\n"))
}

/// The pod with a foreign volume is as it was, and goes on when its node is back.
fn still_there(kube: &Kube, time: &mut TimeLine<'_>, set: &mut Set, other: &mut Set, kept: &str) -> Result<()> {
    let lost = time.lost;
    let pod = kube.get(&["pod", &other.writers[0].pod])?;
    ensure!(pod["metadata"]["uid"] == kept, "the pod with a foreign volume was deleted");
    let compared = set.verify(kube)?;
    time.lines.push(format!("{compared} blocks verified; the pod with a foreign volume is as it was"));
    time.lines.push(comes_back(kube, lost)?);
    wait("the mark gone", PATIENCE, || Ok(!has_taint(kube, lost, UNREACHABLE)?))?;
    other.writers[0].await_ready(kube).context("the pod with a foreign volume, its node being back")?;
    other.writers[0].follow(kube)?;
    other.wait_for(20)?;
    let again = set.verify(kube)? + other.verify(kube)?;
    time.lines.push(format!("both pods write, {again} blocks verified"));
    kube.await_whole()?;
    Ok(())
}

/// Deletes a pod; how long it takes until the one that is made in its place writes.
fn made_anew(kube: &Kube, writer: &mut Writer) -> Result<Duration> {
    writer.stop_listening()?;
    let (begin, uid) = (Instant::now(), writer.uid().to_string());
    kube.control.kubectl(&["delete", "pod", &writer.pod, "--wait=true"])?;
    writer.await_ready(kube)?;
    ensure!(writer.uid() != uid, "the pod was not made anew");
    writer.follow(kube)?;
    writer.wait_for(1)?;
    Ok(begin.elapsed())
}

fn by_an_operator(kube: &Kube) -> Result<String> {
    kube.fail_over(false)?;
    let mut set = Set::up(kube, "cut", 1)?;
    set.wait_for(100)?;
    kube.await_whole()?;
    let lost = set.writers[0].guest(kube)?;
    let mut time = TimeLine::cut(kube, &lost, &mut [&mut set])?;
    time.until("the node is not ready", || Ok(!is_ready(&kube.get(&["node", &lost.name()])?)))?;
    ensure!(!has_taint(kube, &lost, UNREACHABLE)?, "fail-over is off, and the node is marked");
    kube.control.kubectl(&["taint", "node", &lost.name(), &format!("{OUT_OF_SERVICE}=nodeshutdown:NoExecute")])?;
    time.lines.push("          the test sets the out-of-service taint".into());
    time.follow(&mut set.writers[0])?;
    let compared = set.verify(kube)?;
    time.lines.push(format!("{compared} blocks verified"));
    time.lines.push(comes_back(kube, &lost)?);
    kube.control.kubectl(&["taint", "node", &lost.name(), &format!("{OUT_OF_SERVICE}-")])?;
    let again = set.verify(kube)?;
    time.lines.push(format!("{again} blocks verified; {}", set.down(kube)?));
    kube.fail_over(true)?;
    Ok(time.lines.join("\n"))
}

/// A pod on this node with a volume of ours and one that no driver of ours knows.
fn with_foreign_volume(kube: &Kube, on: &Guest) -> Result<Set> {
    let storage = json!({"storage": "1Mi"});
    kube.apply(&json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": FOREIGN},
        "spec": {
            "capacity": storage, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": "/run/foreign", "type": "DirectoryOrCreate"},
            "claimRef": {"namespace": "default", "name": FOREIGN},
        },
    }))?;
    kube.apply(&json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": FOREIGN, "namespace": "default", "labels": {"app": FOREIGN}},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": FOREIGN, "resources": {"requests": storage},
        },
    }))?;
    Set::up_as(kube, FOREIGN, 1, |manifest| {
        let pod = &mut manifest["spec"]["template"]["spec"];
        pod["nodeSelector"] = json!({"kubernetes.io/hostname": on.name()});
        pod["volumes"] = json!([{"name": "other", "persistentVolumeClaim": {"claimName": FOREIGN}}]);
        if let Some(mounts) = pod["containers"][0]["volumeMounts"].as_array_mut() {
            mounts.push(json!({"name": "other", "mountPath": "/other"}));
        }
    })
}

fn has_taint(kube: &Kube, guest: &Guest, key: &str) -> Result<bool> {
    let node = kube.get(&["node", &guest.name()])?;
    Ok(node["spec"]["taints"].as_array().is_some_and(|taints| taints.iter().any(|taint| taint["key"] == key)))
}

/// What was told of a pod that was released.
fn fail_over_event(kube: &Kube, pod: &str) -> Result<String> {
    let events = kube.items(&["events.events.k8s.io", "-A"])?;
    let told = events.iter().filter(|event| event["reason"] == "FailedOver").map(|event| text(&event["note"]));
    let note = told.into_iter().find(|note| note.contains(pod)).context("no event FailedOver")?;
    ensure!(note.contains("in-sync copies at epoch"), "the event does not say what was fenced: {note}");
    Ok(format!("event: {note}"))
}

/// What was seen after the power was cut, and when.
struct TimeLine<'a> {
    kube: &'a Kube,
    lost: &'a Guest,
    begin: Instant,
    lines: Vec<String>,
}

impl<'a> TimeLine<'a> {
    /// Cuts the power of a node that these sets have pods on.
    fn cut(kube: &'a Kube, lost: &'a Guest, sets: &mut [&mut Set]) -> Result<TimeLine<'a>> {
        let begin = Instant::now();
        lost.power_cut()?;
        let mut told = 0;
        for writer in sets.iter_mut().flat_map(|set| &mut set.writers) {
            writer.stop_listening()?;
            told += writer.so_far().acks.len();
        }
        let lines = vec![format!("{told} writes acknowledged; power of {} cut", lost.name())];
        Ok(TimeLine { kube, lost, begin, lines })
    }

    /// Waits, and notes when it came.
    fn until(&mut self, what: &str, mut seen: impl FnMut() -> Result<bool>) -> Result<Duration> {
        while !seen()? {
            if self.begin.elapsed() > PATIENCE {
                bail!("waited in vain: {what}\n{}\n{}", self.lines.join("\n"), self.kube.diagnosis());
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        let at = self.begin.elapsed();
        self.lines.push(format!("{:6.1} s  {what}", at.as_secs_f64()));
        Ok(at)
    }

    /// A writer's way to another node: its pod deleted, made anew, placed, attached, ready, writing.
    fn follow(&mut self, writer: &mut Writer) -> Result<Duration> {
        let (kube, lost) = (self.kube, self.lost.name());
        let (pod, uid) = (writer.pod.clone(), writer.uid().to_string());
        let claim = writer.volume(kube)?;
        let new = |all: &[Value]| of(all, "Pod", &pod).filter(|p| p["metadata"]["uid"] != uid.as_str()).cloned();
        let attached = |all: &[Value]| {
            all.iter().any(|o| {
                o["kind"] == "VolumeAttachment"
                    && o["spec"]["source"]["persistentVolumeName"] == claim.as_str()
                    && o["spec"]["nodeName"] != lost.as_str()
                    && o["status"]["attached"] == true
            })
        };
        type Seen<'b> = Box<dyn Fn(&[Value]) -> bool + 'b>;
        let phases: [(&str, Seen<'_>); 4] = [
            ("the old pod is gone, a new one exists", Box::new(|all| new(all).is_some())),
            ("the new pod has a node", Box::new(|all| new(all).is_some_and(|p| p["spec"]["nodeName"].is_string()))),
            ("the volume is attached there", Box::new(attached)),
            ("the new pod is ready", Box::new(|all| new(all).is_some_and(|p| is_ready(&p)))),
        ];
        for (what, seen) in &phases {
            self.until(what, || Ok(seen(&kube.items(&["pods,volumeattachments"])?)))?;
        }
        writer.await_ready(kube)?;
        writer.follow(kube)?;
        writer.wait_for(1)?;
        let node = writer.guest(kube)?.name();
        let wrote = self.until(&format!("it writes on {node}"), || Ok(true))?;
        writer.wait_for(50)?;
        Ok(wrote)
    }
}

fn of<'a>(all: &'a [Value], kind: &str, name: &str) -> Option<&'a Value> {
    all.iter().find(|o| o["kind"] == kind && text(&o["metadata"]["name"]) == name)
}

/// The node gets its power back, and the volume its copy there.
fn comes_back(kube: &Kube, lost: &Guest) -> Result<String> {
    let begin = Instant::now();
    lost.power_on()?;
    lost.rejoin()?;
    kube.await_node(lost, true)?;
    kube.await_agents()?;
    let ready = begin.elapsed();
    kube.await_whole().context("the copy on the node that came back")?;
    ensure!(!kube.items(&["msvol"])?.is_empty(), "the volume is gone");
    Ok(format!(
        "power back: node and agent ready after {:.1} s, every copy in sync after {:.1} s",
        ready.as_secs_f64(),
        begin.elapsed().as_secs_f64()
    ))
}
