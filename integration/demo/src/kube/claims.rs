//! Claims by the dozen: some that want the same room, and many that come and go.
//!
//! Called by `kube`. Room that is promised twice, and volumes that nobody deletes, show only when several calls run at once.

use super::Scenario;
use super::cluster::{Kube, PATIENCE};
use super::pods::{Set, text};
use crate::cluster::wait;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

pub const ALL: &[(&str, Scenario)] = &[
    ("race: two claims at once for room that one of them needs; the other is told why it waits", race),
    ("churn: claims made and deleted 200 times, 8 at a time; nothing is left", churn),
];

const DRIVER: &str = "io.meshstor.csi.mesh";
/// How many claims come and go, and how many exist at once.
const CYCLES: usize = 200;
const AT_ONCE: usize = 8;

fn class(kube: &Kube, name: &str, copies: usize, binding: &str, sector_size: &str) -> Result<()> {
    kube.apply(&json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": DRIVER, "volumeBindingMode": binding,
        "parameters": {"replicaCount": copies.to_string(), "sectorSize": sector_size},
    }))
}

/// The largest volume of a class that Kubernetes was told of, in MiB.
fn largest(kube: &Kube, class: &str) -> Result<u64> {
    let mut most = 0;
    wait("the capacity of the class published", PATIENCE, || {
        let all = kube.items(&["csistoragecapacities", "-A"])?;
        let sizes = all.iter().filter(|one| one["storageClassName"] == class).filter_map(mebibytes);
        most = sizes.max().unwrap_or(0);
        Ok(most > 0)
    })?;
    Ok(most)
}

fn mebibytes(capacity: &Value) -> Option<u64> {
    let text = capacity["maximumVolumeSize"].as_str().or(capacity["capacity"].as_str())?;
    let units = [("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30u64), ("", 1)];
    let (digits, unit) = units.iter().find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, unit)))?;
    digits.parse::<u64>().ok().map(|number| number * unit / (1 << 20))
}

fn race(kube: &Kube) -> Result<String> {
    const CLASS: &str = "meshstor-everywhere";
    // A copy on every node, each of six tenths of a drive, and every node has one drive of a sector size.
    let places = 1;
    class(kube, CLASS, kube.lab.guests().len(), "WaitForFirstConsumer", "4096")?;
    let room = largest(kube, CLASS)?;
    let size = format!("{}Mi", room * 6 / 10);
    let begin = Instant::now();
    let set = Set::begin(kube, "race", places + 1, |set| {
        let claim = &mut set["spec"]["volumeClaimTemplates"][0]["spec"];
        claim["storageClassName"] = CLASS.into();
        claim["resources"]["requests"]["storage"] = size.clone().into();
    })?;
    let mut pending = String::new();
    wait("all but one of the claims bound", PATIENCE, || {
        let claims = kube.items(&["pvc", "-l", "app=race"])?;
        let (bound, open): (Vec<Value>, Vec<Value>) = claims.into_iter().partition(|c| c["status"]["phase"] == "Bound");
        pending = open.iter().map(|claim| text(&claim["metadata"]["name"])).collect();
        Ok(bound.len() == places && open.len() == 1)
    })
    .with_context(|| kube.diagnosis())?;
    let mut told = String::new();
    wait("the last one told why it waits", PATIENCE, || {
        told = refusal(kube, &pending)?;
        Ok(!told.is_empty())
    })
    .with_context(|| kube.diagnosis())?;
    let waited = begin.elapsed().as_secs_f64();
    ensure!(kube.get(&["pvc", &pending])?["status"]["phase"] == "Pending", "{pending} was bound after all");
    let gone = set.down(kube)?;
    Ok(format!(
        "{places} of {} claims of {size} bound; {pending} told within {waited:.1} s: {told}\n{gone}",
        places + 1
    ))
}

/// What Kubernetes says of a claim without room, or of the pod that waits for it.
fn refusal(kube: &Kube, claim: &str) -> Result<String> {
    let pod = claim.trim_start_matches("data-");
    let about = |event: &&Value| {
        let name = &event["regarding"]["name"];
        *name == claim || *name == pod
    };
    let events = kube.items(&["events.events.k8s.io", "-n", "default"])?;
    let mut notes = events.iter().filter(about).map(|event| text(&event["note"]));
    Ok(notes.find(|note| note.contains("no room") || note.contains("enough free storage")).unwrap_or_default())
}

fn churn(kube: &Kube) -> Result<String> {
    const CLASS: &str = "meshstor-immediate";
    class(kube, CLASS, 2, "Immediate", "any")?;
    let begin = Instant::now();
    let (mut made, mut gone, mut moved) = (0, 0, begin);
    while gone < CYCLES {
        // One look for all: the processor is needed for the guests.
        let (mut there, mut bound) = (0, Vec::new());
        for claim in kube.items(&["pvc", "-l", "app=churn"])? {
            there += 1;
            if claim["status"]["phase"] == "Bound" && claim["metadata"]["deletionTimestamp"].is_null() {
                bound.push(text(&claim["metadata"]["name"]));
            }
        }
        let more: Vec<usize> = (made..CYCLES).take(AT_ONCE - there).collect();
        if made - there > gone || !bound.is_empty() || !more.is_empty() {
            moved = Instant::now();
        }
        gone = made - there;
        if !bound.is_empty() {
            let names = bound.iter().map(String::as_str);
            kube.control.kubectl(&["delete", "pvc", "--wait=false"].into_iter().chain(names).collect::<Vec<_>>())?;
        }
        for number in more {
            kube.apply(&small_claim(CLASS, number))?;
            made = number + 1;
        }
        ensure!(moved.elapsed() < PATIENCE, "{gone} of {CYCLES} went, and no claim since\n{}", kube.diagnosis());
        std::thread::sleep(Duration::from_secs(1));
    }
    let took = begin.elapsed().as_secs_f64();
    let gone = kube.nothing_left()?;
    Ok(format!("{CYCLES} claims made and deleted, {AT_ONCE} at a time, in {took:.1} s\n{gone}"))
}

fn small_claim(class: &str, number: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": format!("churn-{number}"), "namespace": "default", "labels": {"app": "churn"}},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": class, "resources": {"requests": {"storage": "320Mi"}},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_with_their_units() {
        let size = |text: &str| mebibytes(&json!({"maximumVolumeSize": text}));
        assert_eq!(size("8190Mi"), Some(8190));
        assert_eq!(size("2Gi"), Some(2048));
        assert_eq!(size("3145728"), Some(3));
        assert_eq!(size("much"), None);
    }
}
