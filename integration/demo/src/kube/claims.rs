//! Claims by the dozen: some that want the same room, and many that come and go.
//!
//! Called by `kube`. Room that is promised twice, and volumes that nobody deletes, show only when several calls run at once.

use super::Scenario;
use super::cluster::{Kube, PATIENCE};
use super::pods::{Set, text};
use crate::cluster::wait;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::time::Instant;

pub const ALL: &[(&str, Scenario)] = &[
    ("race: one claim more than there is room for, all at once; the last one is told why it waits", race),
    ("churn: claims made and deleted 200 times, 8 at a time; nothing is left", churn),
];

const DRIVER: &str = "io.meshstor.csi.mesh";
/// How many claims come and go, and how many exist at once.
const CYCLES: usize = 200;
const AT_ONCE: usize = 8;

fn class(kube: &Kube, name: &str, copies: usize, binding: &str) -> Result<()> {
    kube.apply(&json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": DRIVER, "volumeBindingMode": binding, "parameters": {"replicaCount": copies.to_string()},
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
    let guests = kube.lab.guests();
    class(kube, CLASS, guests.len(), "WaitForFirstConsumer")?;
    let room = largest(kube, CLASS)?;
    // A copy on every node, each of six tenths of a drive: as many volumes fit as a node has drives.
    let places = guests.first().map_or(0, |guest| guest.drive_serials().len());
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
    class(kube, CLASS, 2, "Immediate")?;
    let begin = Instant::now();
    let lanes: Vec<Result<()>> = std::thread::scope(|scope| {
        let lane = |lane: usize| {
            (0..CYCLES / AT_ONCE).try_for_each(|cycle| come_and_go(kube, CLASS, &format!("churn-{lane}-{cycle}")))
        };
        let lanes: Vec<_> = (0..AT_ONCE).map(|index| scope.spawn(move || lane(index))).collect();
        let ended = |thread: std::thread::ScopedJoinHandle<'_, Result<()>>| thread.join();
        lanes.into_iter().map(|thread| ended(thread).unwrap_or_else(|_| bail!("a lane panicked"))).collect()
    });
    lanes.into_iter().collect::<Result<()>>().with_context(|| kube.diagnosis())?;
    let took = begin.elapsed().as_secs_f64();
    let gone = kube.nothing_left()?;
    Ok(format!("{CYCLES} claims made and deleted, {AT_ONCE} at a time, in {took:.1} s\n{gone}"))
}

fn come_and_go(kube: &Kube, class: &str, name: &str) -> Result<()> {
    kube.apply(&json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": class, "resources": {"requests": {"storage": "320Mi"}},
        },
    }))?;
    wait(&format!("{name} bound"), PATIENCE, || Ok(kube.get(&["pvc", name])?["status"]["phase"] == "Bound"))?;
    kube.control.kubectl(&["delete", "pvc", name, "--wait=true"]).map(drop)
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
