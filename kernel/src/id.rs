//! Identities: every name the kernel, the drives and the fabric know us by, derived from one own `VolumeId`.
//!
//! Used by every crate. Never derived from Kubernetes object uids: a custom resource restored from a backup gets
//! a new uid, while partitions, arrays and subsystems must stay recognisable (docs/protocol.md, rule 9).

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use uuid::{Uuid, uuid};

/// GPT partition type of a replica. Our own type, so that no stock rule takes the partition for a plain RAID member.
pub const PARTITION_TYPE: Uuid = uuid!("6d657368-7374-4f72-8001-5265706c6963");
/// Namespace of all version-5 uuids made here.
const NAMESPACE: Uuid = uuid!("9d2c1a9e-7f0b-5f6e-9a53-6d6573687374");
/// Base of every NQN we make.
pub const NQN_BASE: &str = "nqn.2025-12.io.meshstor";

/// A text that is not the identity it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {text:?} is not valid: {expected}")]
pub struct ParseIdError {
    /// What was being parsed, for instance `replica id`.
    pub kind: &'static str,
    /// The offending text.
    pub text: String,
    /// What would have been accepted.
    pub expected: &'static str,
}

/// The identity of a volume's data, made once at creation and written on every drive that holds a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VolumeId(pub Uuid);

/// The cluster a volume belongs to: the uid of the `kube-system` namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub Uuid);

/// A replica's number inside its volume, written `r0`, `r1`, …; never reused for another copy of the same volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(pub u32);

/// Name of a Kubernetes node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeName(pub String);

/// A drive's stable identity on its node: serial number and NVMe namespace id, in characters Kubernetes accepts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DriveId(pub String);

/// `/proc/sys/kernel/random/boot_id`: one life of a machine's kernel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub String);

/// NVMe qualified name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nqn(pub String);

/// Number that rises each time the consumer of a volume changes.
pub type Epoch = u64;

/// Number that rises each time a replica is exported anew inside one epoch (docs/protocol.md, rule 6).
pub type Generation = u64;

/// One replica of one volume: the key of partitions and exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaKey {
    /// The volume's own identity.
    pub volume: VolumeId,
    /// The replica inside it.
    pub replica: ReplicaId,
}

/// One life of an export: what the subsystem NQN names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ExportKey {
    /// The exported replica.
    pub replica: ReplicaKey,
    /// The consumer's epoch it is exported for.
    pub epoch: Epoch,
    /// The export's generation inside the epoch.
    pub generation: Generation,
}

impl VolumeId {
    /// The MD array's uuid: the same on every node, so that any of them can assemble it.
    pub fn md_uuid(&self) -> Uuid {
        self.derive("md")
    }

    /// First eight hexadecimal digits, for names with little room (MD set name, GPT label, log lines).
    pub fn short(&self) -> String {
        self.0.simple().to_string().chars().take(8).collect()
    }

    fn derive(&self, what: &str) -> Uuid {
        Uuid::new_v5(&NAMESPACE, format!("{}/{what}", self.0).as_bytes())
    }
}

impl ReplicaKey {
    /// The GPT entry's unique GUID.
    pub fn partition_uuid(&self) -> Uuid {
        self.volume.derive(&format!("partition/{}", self.replica))
    }

    /// The GPT entry's name, at most 36 characters.
    pub fn partition_name(&self) -> String {
        format!("meshstor-{}-{}", self.volume.short(), self.replica)
    }

    /// What every NQN of this replica starts with, of any epoch and generation.
    pub fn nqn_prefix(&self) -> String {
        format!("{NQN_BASE}:{}:{}:", self.volume, self.replica)
    }
}

impl ExportKey {
    /// The subsystem's NQN. It differs for each epoch and generation, so a stale host can never match a new export.
    pub fn nqn(&self) -> Nqn {
        Nqn(format!("{}e{}g{}", self.replica.nqn_prefix(), self.epoch, self.generation))
    }

    /// Reads an export's identity back from an NQN; `None` for any NQN that is not an export of ours.
    pub fn from_nqn(nqn: &Nqn) -> Option<ExportKey> {
        let rest = nqn.0.strip_prefix(NQN_BASE)?.strip_prefix(':')?;
        let mut parts = rest.split(':');
        let volume = parts.next()?.parse().ok()?;
        let replica = parts.next()?.parse().ok()?;
        let (epoch, generation) = parts.next()?.strip_prefix('e')?.split_once('g')?;
        if parts.next().is_some() {
            return None;
        }
        let replica = ReplicaKey { volume, replica };
        Some(ExportKey { replica, epoch: epoch.parse().ok()?, generation: generation.parse().ok()? })
    }

    /// The namespace's uuid. It differs for each export life: a host ignores a second namespace with a uuid it
    /// already knows ("duplicate IDs"), which would hide a fresh export behind a dying one.
    pub fn namespace_uuid(&self) -> Uuid {
        self.replica.volume.derive(&format!("ns/{}/e{}g{}", self.replica.replica, self.epoch, self.generation))
    }
}

impl NodeName {
    /// The host NQN all connections of this node carry.
    pub fn host_nqn(&self) -> Nqn {
        Nqn(format!("{NQN_BASE}:host:{}", self.0))
    }

    /// The NVMe host id that goes with the host NQN: one fixed pair for each node, as the kernel demands.
    pub fn host_id(&self) -> Uuid {
        Uuid::new_v5(&NAMESPACE, format!("host/{}", self.0).as_bytes())
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for VolumeId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseIdError { kind: "volume id", text: text.into(), expected: "a hyphenated lower-case uuid" };
        let id = Uuid::parse_str(text).map_err(|_| bad())?;
        // One spelling only: NQNs and CRs compare as text.
        if id.to_string() == text { Ok(VolumeId(id)) } else { Err(bad()) }
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ClusterId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text).map(ClusterId).map_err(|_| ParseIdError {
            kind: "cluster id",
            text: text.into(),
            expected: "a uuid (that of the kube-system namespace)",
        })
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

impl FromStr for ReplicaId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseIdError { kind: "replica id", text: text.into(), expected: "r and a number, as in r0" };
        let number = text.strip_prefix('r').and_then(|n| n.parse().ok()).map(ReplicaId).ok_or_else(bad)?;
        if number.to_string() == text { Ok(number) } else { Err(bad()) }
    }
}

impl Serialize for ReplicaId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ReplicaId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for ReplicaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.volume.short(), self.replica)
    }
}

impl fmt::Display for ExportKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@e{}g{}", self.replica, self.epoch, self.generation)
    }
}

macro_rules! display_as_text {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}
display_as_text!(NodeName, DriveId, BootId, Nqn);

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ExportKey {
        let volume = "0f9a2c56-1c1b-4a1e-9f43-0d8a1c2b3e4f".parse().unwrap();
        ExportKey { replica: ReplicaKey { volume, replica: ReplicaId(2) }, epoch: 7, generation: 3 }
    }

    #[test]
    fn an_nqn_reads_back_to_the_export_it_was_made_from() {
        assert_eq!(ExportKey::from_nqn(&key().nqn()), Some(key()));
    }

    #[test]
    fn foreign_and_garbled_nqns_are_not_ours() {
        let good = key().nqn().0;
        for bad in [
            "nqn.2014-08.org.nvmexpress.discovery".to_string(),
            NodeName("a".into()).host_nqn().0,
            format!("{good}:x"),
            good.replace(":r2:", ":2:"),
            good.replace("e7g3", "e7"),
            good.to_uppercase(),
        ] {
            assert_eq!(ExportKey::from_nqn(&Nqn(bad.clone())), None, "{bad}");
        }
    }

    #[test]
    fn each_export_life_has_its_own_namespace_uuid() {
        let (a, mut b) = (key(), key());
        b.generation += 1;
        assert_ne!(a.namespace_uuid(), b.namespace_uuid());
        b = key();
        b.epoch += 1;
        assert_ne!(a.namespace_uuid(), b.namespace_uuid());
    }

    #[test]
    fn partition_names_fit_a_gpt_entry() {
        let mut replica = key().replica;
        replica.replica = ReplicaId(u32::MAX);
        assert!(replica.partition_name().len() <= 36);
    }
}
