//! Scenarios of wrong input: requests that must be refused with a sentence, drives that must not be touched.
//!
//! Called by `scenarios`. Nothing may be left behind by a refusal, and no byte of a foreign drive may change.

use crate::checks;
use crate::cluster::{Cluster, wait};
use crate::csi::{Access, Wanted};
use crate::scenarios::Scenario;
use crate::story::*;
use anyhow::{Result, bail, ensure};
use serde_json::Value;
use std::time::Duration;

/// The scenarios of this file.
pub const ALL: &[(&str, Scenario)] = &[
    ("bad-input: every wrong request gets its code and a sentence", bad_input),
    ("foreign-drives: refused with the reason, bytes unchanged", foreign_drives),
];

/// One wrong request: what is asked, the code and the words the sentence must carry.
struct Wrong<'a> {
    parameters: &'a [(&'a str, &'a str)],
    bytes: i64,
    code: tonic::Code,
    words: &'a [&'a str],
}

fn bad_input(cluster: &mut Cluster) -> Result<String> {
    use tonic::Code::{InvalidArgument, OutOfRange, ResourceExhausted};
    let wrong = |parameters, bytes, code, words| Wrong { parameters, bytes, code, words };
    let size = 512 * MIB;
    let cases = [
        wrong(&[("replicaCount", "two")], size, InvalidArgument, &["replicaCount", "two"]),
        wrong(&[("replicaCount", "0")], size, InvalidArgument, &["replicaCount", "0"]),
        wrong(&[("stripeWidth", "-1")], size, InvalidArgument, &["stripeWidth", "-1"]),
        wrong(&[("sectorSize", "1024")], size, InvalidArgument, &["sectorSize", "1024", "512"]),
        wrong(&[("memberMissingTimeout", "5")], size, InvalidArgument, &["memberMissingTimeout", "60"]),
        wrong(&[("localCopy", "maybe")], size, InvalidArgument, &["localCopy", "maybe", "preferred"]),
        wrong(&[("replicas", "2")], size, InvalidArgument, &["replicas", "replicaCount"]),
        wrong(&[], -1, InvalidArgument, &["-1"]),
        wrong(&[("replicaCount", "4")], size, ResourceExhausted, &["4", "3"]),
        wrong(&[], 1 << 50, ResourceExhausted, &["node-a"]),
    ];
    let mut lines = Vec::new();
    for case in &cases {
        let wanted =
            Wanted { access: Access::Xfs, name: "bad", bytes: case.bytes, parameters: case.parameters, nodes: &[] };
        let Err(status) = cluster.csi.try_create(&wanted).0 else { bail!("{:?} was accepted", case.parameters) };
        let fits = status.code() == case.code || (case.code == ResourceExhausted && status.code() == OutOfRange);
        ensure!(
            fits,
            "{:?} {}: {:?}, wanted {:?}: {}",
            case.parameters,
            case.bytes,
            status.code(),
            case.code,
            status.message()
        );
        for word in case.words {
            ensure!(
                status.message().contains(word),
                "{:?} does not name {word:?}: {}",
                case.parameters,
                status.message()
            );
        }
        lines.push(format!("{:?}: {}", status.code(), status.message()));
    }
    lines.push(unknown_things(cluster)?);
    ensure!(checks::no_leaks(cluster).is_ok(), "a refused request left something behind");
    Ok(lines.join("\n"))
}

/// Unknown node, unknown volume, a second node, the same volume again.
fn unknown_things(cluster: &Cluster) -> Result<String> {
    use tonic::Code;
    let code =
        |result: Result<std::collections::HashMap<String, String>, tonic::Status>| result.err().map(|s| s.code());
    ensure!(code(cluster.csi.publish("no-such-volume", "node-a").0) == Some(Code::NotFound));
    let (volume, _) = cluster.csi.create(&two_copies("bad-input-volume"))?;
    let (again, _) = cluster.csi.create(&two_copies("bad-input-volume"))?;
    ensure!(again == volume, "the same CreateVolume gave another volume");
    let other = Wanted { parameters: &[("replicaCount", "1")], ..two_copies("bad-input-volume") };
    ensure!(cluster.csi.try_create(&other).0.err().map(|s| s.code()) == Some(Code::AlreadyExists));
    let id = &volume.volume_id;
    ensure!(code(cluster.csi.publish(id, "no-such-node").0) == Some(Code::NotFound));
    let first = cluster.csi.publish(id, "node-a").0?;
    ensure!(cluster.csi.publish(id, "node-a").0? == first, "the same publish gave another answer");
    let Err(refused) = cluster.csi.publish(id, "node-b").0 else { bail!("published to two nodes") };
    ensure!(refused.code() == Code::FailedPrecondition && refused.message().contains("node-a"), "{refused}");
    ensure!(
        cluster.csi.delete(id).0.err().map(|s| s.code()) == Some(Code::FailedPrecondition),
        "deleted while published"
    );
    cluster.csi.unpublish(id, "node-a").0?;
    cluster.csi.delete(id).0?;
    cluster.csi.delete(id).0?;
    wait("nothing left", Duration::from_secs(30), || Ok(checks::no_leaks(cluster).is_ok()))?;
    let garbage = r#"{"apiVersion":"csi.meshstor.io/v1alpha1","kind":"MeshStorVolume","metadata":{"name":"garbage"},"spec":{"replicaCount":"many"}}"#;
    let file = cluster.lab.paths().run().join("garbage.json");
    std::fs::write(&file, garbage)?;
    let Err(refused) = cluster.control.kubectl(&["apply", "-f", &file.display().to_string()]) else {
        bail!("garbage accepted")
    };
    Ok(format!("{refused:#}").lines().take(3).collect::<Vec<_>>().join(" "))
}

fn foreign_drives(cluster: &mut Cluster) -> Result<String> {
    let guest = cluster.guest("node-c")?;
    let drive = guest.drive_path(1);
    let serial = guest.drive_serials()[1].clone();
    let cases = [
        ("foreign GPT", "sgdisk -n 1:0:+64M -t 1:8300 DRIVE >/dev/null"),
        ("MBR", "printf 'label: dos\\n,32M,83\\n' | sfdisk -q DRIVE"),
        ("LVM", "pvcreate -qq -ff -y DRIVE"),
        ("ext4", "mkfs.ext4 -q -F DRIVE"),
        // The uberblock magic of ZFS (0x00bab10c, little endian) where the first label keeps its uberblocks.
        (
            "ZFS",
            "printf '\\x0c\\xb1\\xba\\x00\\x00\\x00\\x00\\x00' | dd of=DRIVE bs=1 seek=135168 conv=notrunc status=none",
        ),
    ];
    let mut lines = Vec::new();
    for (name, make) in cases {
        guest.ssh_checked(&format!(
            "wipefs -qa {drive}; blkdiscard -z -l 16M {drive}; blkdiscard {drive}; {}",
            make.replace("DRIVE", &drive)
        ))?;
        let hash = |_| {
            guest.ssh_checked(&format!(
                "sync; blockdev --flushbufs {drive}; (head -c 16M {drive}; tail -c 16M {drive}) | sha256sum"
            ))
        };
        let before = hash(())?;
        let mut sentence = String::new();
        wait(&format!("{name} is noticed"), Duration::from_secs(40), || {
            let found = condition(&cluster.get(&["msnd"])?, &serial);
            let noticed = found.as_ref().is_some_and(|(status, _)| status == "False");
            sentence = found.map(|(_, message)| message).unwrap_or_default();
            Ok(noticed)
        })?;
        // The other drive of that sector size is on nodes a and b: three copies of 512 must be refused.
        let wanted = Wanted {
            access: Access::Xfs,
            name: "foreign",
            bytes: 512 * MIB,
            parameters: &[("replicaCount", "3"), ("sectorSize", "512")],
            nodes: &[],
        };
        let Err(status) = cluster.csi.try_create(&wanted).0 else { bail!("{name}: a volume was made on it") };
        ensure!(status.code() == tonic::Code::ResourceExhausted, "{status}");
        ensure!(before == hash(())?, "{name}: bytes changed");
        lines.push(format!("{name}: {sentence}"));
    }
    guest.ssh_checked(&format!("wipefs -qa {drive}; blkdiscard -z -l 16M {drive}; blkdiscard {drive}"))?;
    Ok(lines.join("\n"))
}

/// Status and message of the `Usable` condition of the drive with this serial number.
fn condition(devices: &Value, serial: &str) -> Option<(String, String)> {
    let items = devices["items"].as_array()?;
    let device = items.iter().find(|d| d["status"]["serial"] == serial)?;
    let usable = device["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "Usable")?;
    Some((usable["status"].as_str()?.into(), usable["message"].as_str()?.into()))
}
