//! Pods that write: stateful sets whose pods print every acknowledged write, and the comparison with what volumes hold.
//!
//! Used by the scenarios of this directory. Acknowledgements come over ssh from the container's log, so they outlive the
//! guest that gave them.

use super::cluster::{Kube, PATIENCE, is_ready};
use crate::checks;
use crate::cluster::wait;
use crate::history::{History, Running};
use anyhow::{Context, Result, ensure};
use meshstor_lab::{Guest, container};
use serde_json::{Value, json};
use std::time::Duration;

/// Above the smallest XFS (300 MiB), small enough for an emulated drive.
const SIZE: &str = "512Mi";
/// Blocks of a pod's file: 2 MiB.
const BLOCKS: u64 = 512;
/// Milliseconds between two writes: emulated machines have other things to do as well.
const PAUSE: u64 = 50;

/// A pod of a set, and what its writers were told so far.
pub struct Writer {
    /// The pod's name, which is the same on each node.
    pub pod: String,
    uid: String,
    node: String,
    /// How often its container was started again: each start has a log of its own.
    restarts: u64,
    history: History,
    running: Option<Running>,
}

/// A stateful set with a volume for each pod.
pub struct Set {
    name: String,
    /// Its pods.
    pub writers: Vec<Writer>,
}

impl Set {
    /// Makes the set, waits until all pods are ready, and begins to listen.
    pub fn up(kube: &Kube, name: &str, pods: usize) -> Result<Set> {
        Set::up_as(kube, name, pods, |_| {})
    }

    /// The same with something changed in the set's manifest.
    pub fn up_as(kube: &Kube, name: &str, pods: usize, change: impl FnOnce(&mut Value)) -> Result<Set> {
        let mut set = Set::begin(kube, name, pods, change)?;
        for writer in &mut set.writers {
            writer.await_ready(kube)?;
            writer.follow(kube)?;
        }
        Ok(set)
    }

    /// Makes the set and does not wait for anything.
    pub fn begin(kube: &Kube, name: &str, pods: usize, change: impl FnOnce(&mut Value)) -> Result<Set> {
        let mut manifest = manifest(name, pods);
        change(&mut manifest);
        kube.apply(&manifest)?;
        let writer = |index| Writer {
            pod: format!("{name}-{index}"),
            uid: String::new(),
            node: String::new(),
            restarts: 0,
            history: History::default(),
            running: None,
        };
        Ok(Set { name: name.into(), writers: (0..pods).map(writer).collect() })
    }

    /// Waits until each pod was told of `more` further writes.
    pub fn wait_for(&self, more: usize) -> Result<()> {
        self.writers.iter().try_for_each(|writer| writer.wait_for(more))
    }

    /// How many writes were acknowledged, and the longest of them.
    pub fn told(&self) -> (usize, Duration) {
        let all: Vec<History> = self.writers.iter().map(Writer::so_far).collect();
        let longest = all.iter().map(History::longest).max().unwrap_or_default();
        (all.iter().map(|history| history.acks.len()).sum(), longest)
    }

    /// Reads every block of every pod's file from the devices. Returns how many were compared.
    pub fn verify(&self, kube: &Kube) -> Result<usize> {
        self.writers.iter().map(|writer| writer.verify(kube)).sum()
    }

    /// No writer has met an error, none was started again: the same pods all the time.
    pub fn undisturbed(&self, kube: &Kube) -> Result<()> {
        for writer in &self.writers {
            let pod = kube.get(&["pod", &writer.pod])?;
            ensure!(pod["metadata"]["uid"] == writer.uid.as_str(), "{} is another pod now", writer.pod);
            let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
            ensure!(*restarts == 0, "{} was started again {restarts} times", writer.pod);
            let errors = writer.so_far().errors;
            ensure!(errors.is_empty(), "{} met an error: {}", writer.pod, errors.join("; "));
        }
        Ok(())
    }

    /// Deletes set and claims, and waits until they are gone.
    pub fn remove(self, kube: &Kube) -> Result<()> {
        kube.control.kubectl(&["delete", "statefulset", &self.name, "--wait=true"])?;
        kube.control.kubectl(&["delete", "pvc", "-l", &format!("app={}", self.name), "--wait=false"])?;
        let app = format!("app={}", self.name);
        wait("pods and claims gone", PATIENCE, || Ok(kube.items(&["pods,pvc", "-l", &app])?.is_empty()))
            .with_context(|| kube.diagnosis())
    }

    /// Deletes the last set; nothing of any volume may be left.
    pub fn down(self, kube: &Kube) -> Result<String> {
        self.remove(kube)?;
        kube.nothing_left()
    }
}

impl Writer {
    /// The pod is ready; remembers where.
    pub fn await_ready(&mut self, kube: &Kube) -> Result<()> {
        let mut pod = Value::Null;
        wait(&format!("{} ready", self.pod), PATIENCE, || {
            pod = kube.get(&["pod", &self.pod]).unwrap_or(Value::Null);
            Ok(is_ready(&pod) && pod["metadata"]["deletionTimestamp"].is_null())
        })
        .with_context(|| kube.diagnosis())?;
        self.uid = text(&pod["metadata"]["uid"]);
        self.node = text(&pod["spec"]["nodeName"]);
        self.restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0);
        Ok(())
    }

    /// Listens to the pod that there is now; what earlier ones were told is kept.
    pub fn follow(&mut self, kube: &Kube) -> Result<()> {
        self.stop_listening()?;
        // What the runtime writes before each line is cut off.
        let command = format!(
            "tail -n +1 -F /var/log/pods/default_{}_{}/writer/{}.log 2>/dev/null | sed -u 's/^[^ ]* [^ ]* [^ ]* //'",
            self.pod, self.uid, self.restarts
        );
        self.running = Some(Running::start(kube.lab.guest(&self.node)?.ssh_command(&command)?)?);
        Ok(())
    }

    /// Keeps what was received; the pod may go on.
    pub fn stop_listening(&mut self) -> Result<()> {
        if let Some(running) = self.running.take() {
            self.history.append(&running.finish(Duration::ZERO)?);
        }
        Ok(())
    }

    /// Everything that was received from this pod, wherever it ran.
    pub fn so_far(&self) -> History {
        let mut all = self.history.clone();
        if let Some(running) = &self.running {
            all.append(&running.so_far());
        }
        all
    }

    /// Waits for further acknowledgements.
    pub fn wait_for(&self, more: usize) -> Result<()> {
        let running = self.running.as_ref().with_context(|| format!("nobody listens to {}", self.pod))?;
        running.wait_for(more, PATIENCE).with_context(|| self.pod.clone())
    }

    /// Where it runs.
    pub fn guest(&self, kube: &Kube) -> Result<Guest> {
        kube.lab.guest(&self.node)
    }

    /// The pod's uid, which another pod of the same name does not have.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// How often the pod's container had been started again when it was last found ready.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// The name of its volume: object of ours and PersistentVolume alike.
    pub fn volume(&self, kube: &Kube) -> Result<String> {
        Ok(text(&kube.get(&["pvc", &format!("data-{}", self.pod)])?["spec"]["volumeName"]))
    }

    /// Where the pod's node has its volume: a mount, or a device.
    pub fn place(&self, kube: &Kube) -> Result<String> {
        let (volume, uid) = (self.volume(kube)?, &self.uid);
        let raw = kube.get(&["pv", &volume])?["spec"]["volumeMode"] == "Block";
        Ok(if raw {
            format!("/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/{volume}/{uid}")
        } else {
            format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/{volume}/mount")
        })
    }

    /// Reads the file on the pod's node, from the devices, and compares with every acknowledged write.
    pub fn verify(&self, kube: &Kube) -> Result<usize> {
        // First what was told, then what is there: the pod goes on writing.
        let told = self.so_far();
        let place = self.place(kube)?;
        let file =
            if place.ends_with("/mount") { format!("{place}/blocks") } else { format!("{place} --blocks {BLOCKS}") };
        let read = format!("echo 3 >/proc/sys/vm/drop_caches; /host/meshstor-demo read --file {file}");
        told.verify(&self.guest(kube)?.ssh_checked(&read)?).with_context(|| format!("{}'s volume", self.pod))
    }

    /// Which transport carries the volume's remote copy, by the kernel of its node; none when all copies are local.
    pub fn carrier(&self, kube: &Kube) -> Result<String> {
        let volume = kube.get(&["msvol", &self.volume(kube)?])?;
        checks::carrier_on(&self.guest(kube)?, &text(&volume["spec"]["volumeID"]))
    }
}

/// A string of an object; empty where there is none.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}

fn manifest(name: &str, pods: usize) -> Value {
    let labels = json!({"app": name});
    let command = [
        "/usr/bin/meshstor-demo".to_string(),
        "write".into(),
        "--file=/data/blocks".into(),
        format!("--blocks={BLOCKS}"),
        format!("--pause-ms={PAUSE}"),
        "--resume".into(),
    ];
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "serviceName": name, "replicas": pods, "podManagementPolicy": "Parallel", "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {
                // The writer is process 1 of its container and does not hear SIGTERM.
                "terminationGracePeriodSeconds": 1,
                "topologySpreadConstraints": [{
                    "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": labels},
                }],
                "containers": [{
                    "name": "writer", "image": container::WORKLOAD, "imagePullPolicy": "Never", "command": command,
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                }],
            }},
            "volumeClaimTemplates": [{
                "metadata": {"name": "data", "labels": labels},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": SIZE}}},
            }],
        },
    })
}
