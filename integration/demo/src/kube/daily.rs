//! What a cluster's users do every day: a claim for a pod, a stateful set, more room.
//!
//! Called by `kube`. Every write that a pod was told of is read back from the devices.

use super::Scenario;
use super::cluster::{Kube, PATIENCE};
use super::pods::{Set, text};
use crate::cluster::wait;
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::time::Instant;

pub const ALL: &[(&str, Scenario)] = &[
    ("first-claim: a claim, a pod ready with it, writes, everything deleted", first_claim),
    ("stateful-set: three pods with two copies each, written to and read back", stateful_set),
    ("larger-claim: a claim patched to twice its size during writes", larger_claim),
    ("ext4: the same with an ext4 volume", ext4),
    ("raw-block: the same with a raw block volume", raw_block),
];

fn first_claim(kube: &Kube) -> Result<String> {
    let begin = Instant::now();
    let set = Set::up(kube, "first", 1)?;
    let ready = begin.elapsed();
    let writer = &set.writers[0];
    writer.wait_for(50)?;
    let volume = kube.get(&["msvol", &writer.volume(kube)?])?;
    ensure!(text(&volume["spec"]["filesystem"]) == "xfs", "the file system is not XFS: {volume}");
    let at = writer.guest(kube)?.name();
    let carrier = transport_seen(kube, &set)?;
    let compared = set.verify(kube)?;
    set.undisturbed(kube)?;
    let (acks, longest) = set.told();
    let gone = set.down(kube)?;
    Ok(format!(
        "claim → pod ready on {at} in {:.1} s; {carrier}\n{acks} writes, longest {longest:?}, {compared} blocks verified\n{gone}",
        ready.as_secs_f64()
    ))
}

/// Volumes with a copy elsewhere run over the transport that this run is about.
pub fn transport_seen(kube: &Kube, set: &Set) -> Result<String> {
    let (mut remote, mut all) = (0, 0);
    for writer in &set.writers {
        let carrier = writer.carrier(kube)?;
        all += 1;
        match carrier.as_str() {
            "none" => {}
            word if word == kube.transport.word() => remote += 1,
            word => bail!("{}'s remote copy is reached over {word}, not {}", writer.pod, kube.transport.word()),
        }
    }
    ensure!(remote > 0, "none of {all} volumes has a copy on another node");
    Ok(format!("{remote} of {all} volumes with a remote copy, over {}", kube.transport.word()))
}

fn stateful_set(kube: &Kube) -> Result<String> {
    let begin = Instant::now();
    let set = Set::up(kube, "db", 3)?;
    let ready = begin.elapsed();
    set.wait_for(100)?;
    let carrier = transport_seen(kube, &set)?;
    kube.await_whole()?;
    let compared = set.verify(kube)?;
    set.undisturbed(kube)?;
    let (acks, longest) = set.told();
    let gone = set.down(kube)?;
    Ok(format!(
        "3 pods ready in {:.1} s; {carrier}\n{acks} writes, no error, longest {longest:?}; {compared} blocks verified\n{gone}",
        ready.as_secs_f64()
    ))
}

fn larger_claim(kube: &Kube) -> Result<String> {
    grows(kube, Set::up(kube, "larger", 1)?, "xfs", "findmnt -no FSTYPE,SIZE")
}

fn ext4(kube: &Kube) -> Result<String> {
    const CLASS: &str = "meshstor-ext4";
    kube.apply(&json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": CLASS},
        "provisioner": "io.meshstor.csi.mesh", "volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": true,
        "parameters": {"replicaCount": "2", "csi.storage.k8s.io/fstype": "ext4"},
    }))?;
    let set = Set::up_as(kube, "ext4", 1, |set| {
        set["spec"]["volumeClaimTemplates"][0]["spec"]["storageClassName"] = CLASS.into()
    })?;
    grows(kube, set, "ext4", "findmnt -no FSTYPE,SIZE")
}

fn raw_block(kube: &Kube) -> Result<String> {
    let set = Set::up_as(kube, "raw", 1, |set| {
        set["spec"]["volumeClaimTemplates"][0]["spec"]["volumeMode"] = "Block".into();
        let container = &mut set["spec"]["template"]["spec"]["containers"][0];
        container["volumeDevices"] = json!([{"name": "data", "devicePath": "/dev/data"}]);
        container["command"][2] = "--file=/dev/data".into();
        if let Some(map) = container.as_object_mut() {
            map.remove("volumeMounts");
        }
    })?;
    grows(kube, set, "none", "blockdev --getsize64")
}

/// Patches the claim of a set's only pod to twice its size while it writes. `look` shows the size in the pod's node.
fn grows(kube: &Kube, set: Set, filesystem: &str, look: &str) -> Result<String> {
    let writer = &set.writers[0];
    writer.wait_for(50)?;
    kube.await_whole()?;
    let volume = kube.get(&["msvol", &writer.volume(kube)?])?;
    ensure!(text(&volume["spec"]["filesystem"]) == filesystem, "another file system than {filesystem:?}: {volume}");
    let shown = || writer.guest(kube)?.ssh_checked(&format!("{look} {}", writer.place(kube)?));
    let before = shown()?;
    let claim = format!("data-{}", writer.pod);
    let begin = Instant::now();
    let patch = r#"{"spec":{"resources":{"requests":{"storage":"1Gi"}}}}"#;
    kube.control.kubectl(&["patch", "pvc", &claim, "--type=merge", "-p", patch])?;
    wait("the claim has its new size", PATIENCE, || {
        Ok(kube.get(&["pvc", &claim])?["status"]["capacity"]["storage"] == "1Gi")
    })
    .with_context(|| kube.diagnosis())?;
    let took = begin.elapsed();
    writer.wait_for(50)?;
    let volume = kube.get(&["msvol", &writer.volume(kube)?])?;
    ensure!(volume["spec"]["sizeBytes"] == 1 << 30, "the volume has another size: {}", volume["spec"]["sizeBytes"]);
    let after = shown()?;
    ensure!(after != before, "the pod's node still shows {before}");
    let compared = set.verify(kube)?;
    set.undisturbed(kube)?;
    let (acks, longest) = set.told();
    let gone = set.down(kube)?;
    Ok(format!(
        "512 MiB → 1 GiB in {:.1} s ({} → {}); {acks} writes, no error, longest {longest:?}; {compared} blocks verified\n{gone}",
        took.as_secs_f64(),
        before.trim(),
        after.trim()
    ))
}
