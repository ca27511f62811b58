//! StorageClass parameters: the whole vocabulary, its defaults and its limits.
//!
//! Called by CreateVolume, GetCapacity and ValidateVolumeCapabilities. It never guesses: an unknown key is refused with
//! the list of known ones, because a misspelt `replicaCount` would otherwise silently cost a copy.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::capability::Filesystem;
use crate::Refusal;

const REPLICA_COUNT: &str = "replicaCount";
const STRIPE_WIDTH: &str = "stripeWidth";
const MEMBER_MISSING_TIMEOUT: &str = "memberMissingTimeout";
const RELOCATION_DELAY: &str = "relocationDelay";
const SECTOR_SIZE: &str = "sectorSize";
const LOCAL_COPY: &str = "localCopy";
const TOPOLOGY_SPREAD: &str = "topologySpread";
/// Older spelling of `replicaCount`.
const NUMBER_OF_COPIES: &str = "numberOfCopies";
/// Older spelling of `stripeWidth`.
const DRIVES_PER_COPY: &str = "drivesPerCopy";
/// Keys under this prefix are notes of the Kubernetes sidecars to themselves.
const KUBERNETES_PREFIX: &str = "csi.storage.k8s.io/";
pub(super) const KUBERNETES_FSTYPE: &str = "csi.storage.k8s.io/fstype";

const KNOWN: &[&str] = &[
    REPLICA_COUNT,
    STRIPE_WIDTH,
    MEMBER_MISSING_TIMEOUT,
    RELOCATION_DELAY,
    SECTOR_SIZE,
    LOCAL_COPY,
    TOPOLOGY_SPREAD,
    NUMBER_OF_COPIES,
    DRIVES_PER_COPY,
    KUBERNETES_FSTYPE,
];

const REPLICA_COUNT_DEFAULT: u8 = 2;
/// The record of in-sync replicas is validated by the API server up to this many.
const REPLICA_COUNT_MAX: u64 = 16;
const MISSING_SECONDS_DEFAULT: u64 = 900;
/// Below a minute every reboot of a switch would start a rebuild.
const MISSING_SECONDS_MIN: u64 = 60;
/// One year: beyond it a number is a slip of the keyboard.
const MISSING_SECONDS_MAX: u64 = 31_536_000;

/// Longer than a pod that is only passing through, shorter than a working day of remote reads.
const RELOCATION_SECONDS_DEFAULT: u64 = 300;

/// What a StorageClass says about its volumes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VolumeParameters {
    /// Full copies, each on another node; 1 to 16.
    pub replica_count: u8,
    /// Drives under each copy; only 1 in this version.
    pub stripe_width: u8,
    /// How long a copy may be missing before it is replaced.
    pub member_missing_timeout: Duration,
    /// How long a consumer without a copy of its own stays the same before one moves to it; `None`: none ever does.
    pub relocation_delay: Option<Duration>,
    /// Logical block size that every drive of the volume must have.
    pub sector_size: SectorSize,
    /// Whether the node of the pod gets a copy.
    pub local_copy: LocalCopy,
    /// Whether each copy is in a zone of its own.
    pub topology_spread: TopologySpread,
    /// File system asked for through `csi.storage.k8s.io/fstype`, if it was.
    pub filesystem: Option<Filesystem>,
}

/// Logical block size of the drives of a volume, which is the same for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SectorSize {
    /// 4096 bytes where there is room on such drives, else 512: most drives are delivered with 512.
    Any,
    /// 512 bytes.
    B512,
    /// 4096 bytes.
    B4096,
}

/// Whether the node that runs the pod holds a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LocalCopy {
    /// A local copy where possible, all copies remote otherwise.
    Preferred,
    /// The pod runs only where a copy is.
    Required,
    /// Where the pod runs plays no part in placement.
    None,
}

/// Whether copies are spread over the zones of nodes (`topology.kubernetes.io/zone`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TopologySpread {
    /// Zones play no part.
    None,
    /// Each copy in a zone of its own; no volume where that cannot be. Whoever names zones counts on surviving the loss of
    /// one, and would learn of two copies in the same zone when it is lost.
    Zone,
    /// As evenly as can be: a volume is made in any case.
    ZonePreferred,
}

impl Default for VolumeParameters {
    fn default() -> Self {
        Self {
            replica_count: REPLICA_COUNT_DEFAULT,
            stripe_width: 1,
            member_missing_timeout: Duration::from_secs(MISSING_SECONDS_DEFAULT),
            relocation_delay: Some(Duration::from_secs(RELOCATION_SECONDS_DEFAULT)),
            sector_size: SectorSize::Any,
            local_copy: LocalCopy::Preferred,
            topology_spread: TopologySpread::None,
            filesystem: None,
        }
    }
}

impl SectorSize {
    /// What a volume may have, in bytes, the best first.
    pub fn choices(self) -> &'static [u32] {
        match self {
            SectorSize::Any => &[4096, 512],
            SectorSize::B512 => &[512],
            SectorSize::B4096 => &[4096],
        }
    }

    /// The word in a StorageClass.
    pub fn as_str(self) -> &'static str {
        match self {
            SectorSize::Any => "any",
            SectorSize::B512 => "512",
            SectorSize::B4096 => "4096",
        }
    }
}

impl LocalCopy {
    /// The word in a StorageClass and in our CRDs.
    pub fn as_str(self) -> &'static str {
        match self {
            LocalCopy::Preferred => "preferred",
            LocalCopy::Required => "required",
            LocalCopy::None => "none",
        }
    }
}

impl TopologySpread {
    /// The word in a StorageClass and in our CRDs.
    pub fn as_str(self) -> &'static str {
        match self {
            TopologySpread::None => "none",
            TopologySpread::Zone => "zone",
            TopologySpread::ZonePreferred => "zonePreferred",
        }
    }
}

impl VolumeParameters {
    /// Reads the parameters of a StorageClass; keys that are absent get their defaults.
    pub fn parse(map: &HashMap<String, String>) -> Result<Self, Refusal> {
        let map: BTreeMap<&str, &str> = map.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        refuse_unknown(&map)?;
        let defaults = Self::default();
        let replica_count = either(&map, REPLICA_COUNT, NUMBER_OF_COPIES, replica_count)?;
        let stripe_width = either(&map, STRIPE_WIDTH, DRIVES_PER_COPY, stripe_width)?;
        Ok(Self {
            replica_count: replica_count.unwrap_or(defaults.replica_count),
            stripe_width: stripe_width.unwrap_or(defaults.stripe_width),
            member_missing_timeout: one(&map, MEMBER_MISSING_TIMEOUT, missing_timeout)?
                .unwrap_or(defaults.member_missing_timeout),
            relocation_delay: one(&map, RELOCATION_DELAY, relocation_delay)?.unwrap_or(defaults.relocation_delay),
            sector_size: one(&map, SECTOR_SIZE, sector_size)?.unwrap_or(defaults.sector_size),
            local_copy: one(&map, LOCAL_COPY, local_copy)?.unwrap_or(defaults.local_copy),
            topology_spread: one(&map, TOPOLOGY_SPREAD, topology_spread)?.unwrap_or(defaults.topology_spread),
            filesystem: one(&map, KUBERNETES_FSTYPE, Filesystem::parse)?.flatten(),
        })
    }

    /// The same parameters as a StorageClass would spell them, every key present; `parse` reads them back unchanged.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        let mut map = BTreeMap::from([
            (REPLICA_COUNT.to_owned(), self.replica_count.to_string()),
            (STRIPE_WIDTH.to_owned(), self.stripe_width.to_string()),
            (MEMBER_MISSING_TIMEOUT.to_owned(), self.member_missing_timeout.as_secs().to_string()),
            (
                RELOCATION_DELAY.to_owned(),
                self.relocation_delay.map_or("never".to_owned(), |delay| delay.as_secs().to_string()),
            ),
            (SECTOR_SIZE.to_owned(), self.sector_size.as_str().to_owned()),
            (LOCAL_COPY.to_owned(), self.local_copy.as_str().to_owned()),
            (TOPOLOGY_SPREAD.to_owned(), self.topology_spread.as_str().to_owned()),
        ]);
        if let Some(filesystem) = self.filesystem {
            map.insert(KUBERNETES_FSTYPE.to_owned(), filesystem.as_str().to_owned());
        }
        map
    }
}

fn refuse_unknown(map: &BTreeMap<&str, &str>) -> Result<(), Refusal> {
    let unknown = map.keys().find(|key| !KNOWN.contains(key) && !key.starts_with(KUBERNETES_PREFIX));
    match unknown {
        None => Ok(()),
        Some(key) => {
            let message = format!(
                "parameters has the unknown key {}: allowed are {}",
                crate::refusal::quoted(key),
                KNOWN.join(", ")
            );
            Err(Refusal::new(tonic::Code::InvalidArgument, "parameters", message))
        }
    }
}

/// A parser of one value: gets the field for its refusal, and the text.
type Parser<T> = fn(String, &str) -> Result<T, Refusal>;

fn one<T>(map: &BTreeMap<&str, &str>, key: &str, parser: Parser<T>) -> Result<Option<T>, Refusal> {
    map.get(key).map(|value| parser(format!("parameters.{key}"), value)).transpose()
}

/// A value under its present or its older name; both may stand there as long as they agree.
fn either<T: PartialEq>(
    map: &BTreeMap<&str, &str>,
    key: &str,
    older: &str,
    parser: Parser<T>,
) -> Result<Option<T>, Refusal> {
    match (one(map, key, parser)?, one(map, older, parser)?) {
        (Some(new), Some(old)) if new != old => {
            let message = format!(
                "parameters.{key} and parameters.{older} are two spellings of one setting and differ: \
                 allowed is one of them, or the same value in both"
            );
            Err(Refusal::new(tonic::Code::InvalidArgument, format!("parameters.{key}"), message))
        }
        (new, old) => Ok(new.or(old)),
    }
}

/// Digits only: no sign, no space, no leading zero, so that what is written is what is meant.
fn decimal(text: &str) -> Option<u64> {
    let strict = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if strict { text.parse().ok() } else { None }
}

fn replica_count(field: String, text: &str) -> Result<u8, Refusal> {
    match decimal(text) {
        Some(count @ 1..=REPLICA_COUNT_MAX) => Ok(count as u8),
        _ => Err(Refusal::value(field, text, "a whole number from 1 to 16")),
    }
}

fn stripe_width(field: String, text: &str) -> Result<u8, Refusal> {
    match decimal(text) {
        Some(1) => Ok(1),
        Some(2..) => Err(Refusal::not_available(field, "striped volumes are", "1")),
        _ => Err(Refusal::value(field, text, "1")),
    }
}

fn missing_timeout(field: String, text: &str) -> Result<Duration, Refusal> {
    match decimal(text) {
        Some(seconds @ MISSING_SECONDS_MIN..=MISSING_SECONDS_MAX) => Ok(Duration::from_secs(seconds)),
        _ => Err(Refusal::value(
            field,
            text,
            "a whole number of seconds from 60 to 31536000 (a missing copy is always replaced in the end: there is no 0 and no never)",
        )),
    }
}

fn relocation_delay(field: String, text: &str) -> Result<Option<Duration>, Refusal> {
    match decimal(text) {
        _ if text == "never" => Ok(None),
        Some(seconds @ 0..=MISSING_SECONDS_MAX) => Ok(Some(Duration::from_secs(seconds))),
        _ => Err(Refusal::value(field, text, "a whole number of seconds from 0 to 31536000, or never")),
    }
}

fn sector_size(field: String, text: &str) -> Result<SectorSize, Refusal> {
    match text {
        "any" => Ok(SectorSize::Any),
        "512" => Ok(SectorSize::B512),
        "4096" => Ok(SectorSize::B4096),
        _ => Err(Refusal::value(field, text, "any, 512 or 4096")),
    }
}

fn local_copy(field: String, text: &str) -> Result<LocalCopy, Refusal> {
    match text {
        "preferred" => Ok(LocalCopy::Preferred),
        "required" => Ok(LocalCopy::Required),
        "none" => Ok(LocalCopy::None),
        _ => Err(Refusal::value(field, text, "preferred, required or none")),
    }
}

fn topology_spread(field: String, text: &str) -> Result<TopologySpread, Refusal> {
    match text {
        "none" => Ok(TopologySpread::None),
        "zone" => Ok(TopologySpread::Zone),
        "zonePreferred" => Ok(TopologySpread::ZonePreferred),
        _ => Err(Refusal::value(field, text, "none, zone (a zone for each copy or no volume) or zonePreferred")),
    }
}

#[cfg(test)]
#[path = "parameters_tests.rs"]
mod tests;
