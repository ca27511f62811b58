//! What nodes and drives offer, and what a CSI request asks for, in the terms of placement.
//!
//! Called by CreateVolume, by reservations that are placed again, and by GetCapacity. Reads lists; decides nothing.

use crate::Context;
use crate::error::ControlError;
use k8s_openapi::jiff::Timestamp;
use meshstor_api::condition::Condition;
use meshstor_api::convert::transport;
use meshstor_api::node::{DriveUse, MeshStorNode, MeshStorNodeDevice};
use meshstor_api::replica::MeshStorReplica;
use meshstor_api::volume::TopologySpread;
use meshstor_csi::request::{LocalCopy, Place, TopologyRequirement};
use meshstor_kernel::id::{DriveId, NodeName};
use meshstor_plan::placement::{DriveOffer, Local, NodeOffer, Zones};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The fabric of nodes that do not name one.
const FABRIC_DEFAULT: &str = "default";

/// All nodes with their drives as they stand now. Zones are asked for only where they are wanted.
pub(crate) async fn read(context: &Context, spread: TopologySpread) -> Result<Vec<NodeOffer>, ControlError> {
    let writer = &context.writer;
    let (nodes, devices, replicas, mut zones) = futures::try_join!(
        writer.list::<MeshStorNode>(),
        writer.list::<MeshStorNodeDevice>(),
        writer.list::<MeshStorReplica>(),
        zones(context, spread)
    )?;
    let held = reserved(&replicas);
    let mut drives: BTreeMap<&str, Vec<DriveOffer>> = BTreeMap::new();
    for device in &devices {
        drives.entry(&device.spec.node).or_default().push(drive(device, &held));
    }
    let now = (context.config.now)();
    let offer = |node: &MeshStorNode| {
        let name = node.metadata.name.clone().unwrap_or_default();
        let drives = drives.remove(name.as_str()).unwrap_or_default();
        let zone = zones.remove(name.as_str());
        NodeOffer { zone, ..node_offer(node, name, drives, now, context.config.heartbeat_max) }
    };
    Ok(nodes.iter().map(offer).collect())
}

/// Zone of each node that has one; none where nobody wants to know.
pub(crate) async fn zones(context: &Context, spread: TopologySpread) -> Result<BTreeMap<String, String>, ControlError> {
    match spread {
        TopologySpread::None => Ok(BTreeMap::new()),
        TopologySpread::Zone | TopologySpread::ZonePreferred => context.writer.zones().await,
    }
}

/// How copies are to be spread beside those on these nodes.
pub(crate) fn spread<'a>(spread: TopologySpread, offers: &[NodeOffer], held: impl Iterator<Item = &'a str>) -> Zones {
    let zone = |node: &str| offers.iter().find(|offer| offer.name.0 == node).and_then(|offer| offer.zone.clone());
    match spread {
        TopologySpread::None => Zones::Any,
        TopologySpread::Zone => Zones::Own(held.filter_map(zone).collect()),
        TopologySpread::ZonePreferred => {
            let mut count: BTreeMap<String, usize> = BTreeMap::new();
            held.for_each(|node| *count.entry(zone(node).unwrap_or_default()).or_default() += 1);
            Zones::Even(count)
        }
    }
}

/// Bytes of copies that their nodes have not accepted yet, by node and drive.
fn reserved(replicas: &[MeshStorReplica]) -> BTreeMap<(&str, &str), u64> {
    let mut held: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for replica in replicas {
        let state = replica.status.as_ref().and_then(|status| status.partition.as_ref());
        let accepted = state.is_some_and(|partition| partition.state != "Waiting");
        if !accepted && replica.spec.tombstone.is_none() {
            let bytes = held.entry((&replica.spec.node, &replica.spec.drive)).or_default();
            *bytes = bytes.saturating_add(replica.spec.partition_bytes);
        }
    }
    held
}

fn drive(device: &MeshStorNodeDevice, held: &BTreeMap<(&str, &str), u64>) -> DriveOffer {
    let spec = &device.spec;
    let status = device.status.clone().unwrap_or_default();
    let usable = condition(&status.conditions, "Usable");
    let unusable = match usable {
        _ if spec.r#use == DriveUse::Ignore => Some("spec.use is ignore".to_string()),
        _ if device.status.is_none() => Some("its node has not reported it yet".to_string()),
        Some(usable) if usable.status != "True" => Some(words(usable)),
        _ => None,
    };
    DriveOffer {
        drive: DriveId(spec.drive.clone()),
        unusable,
        sector_bytes: status.sector_size,
        free_bytes: status.free_bytes,
        largest_free_bytes: status.largest_free_bytes,
        reserved_bytes: held.get(&(spec.node.as_str(), spec.drive.as_str())).copied().unwrap_or(0),
    }
}

fn node_offer(
    node: &MeshStorNode,
    name: String,
    drives: Vec<DriveOffer>,
    now: Timestamp,
    heartbeat_max: Duration,
) -> NodeOffer {
    let status = node.status.clone().unwrap_or_default();
    let ready = condition(&status.conditions, "Ready");
    NodeOffer {
        name: NodeName(name),
        not_ready: match ready {
            None => Some("its agent has not reported the condition Ready".to_string()),
            Some(ready) if ready.status != "True" => Some(words(ready)),
            Some(_) => None,
        },
        silent: silence(status.heartbeat.as_deref(), now, heartbeat_max),
        maintenance: node.spec.maintenance,
        fabric: fabric(node),
        zone: None,
        transports: status.addresses.iter().filter_map(|address| transport(&address.transport)).collect(),
        drives,
    }
}

/// Fabric of a node.
pub(crate) fn fabric(node: &MeshStorNode) -> String {
    let fabric = node.status.as_ref().map(|status| status.fabric.as_str()).unwrap_or_default();
    if fabric.is_empty() { FABRIC_DEFAULT.to_string() } else { fabric.to_string() }
}

/// Why a node's last report is too old; `None` when it is fresh.
pub(crate) fn silence(heartbeat: Option<&str>, now: Timestamp, max: Duration) -> Option<String> {
    let max = max.as_secs();
    let Some(text) = heartbeat else { return Some(format!("status.heartbeat is absent, allowed are {max} s")) };
    let Ok(at) = text.parse::<Timestamp>() else {
        return Some(format!("status.heartbeat is {text:?}, allowed is an RFC 3339 time"));
    };
    // A clock that is ahead of ours makes a report young, never old.
    let age = u64::try_from(now.as_second().saturating_sub(at.as_second())).unwrap_or(0);
    (age > max).then(|| format!("status.heartbeat is {age} s old, allowed are {max} s"))
}

fn condition<'a>(list: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    list.iter().find(|condition| condition.type_ == type_)
}

fn words(condition: &Condition) -> String {
    if condition.message.is_empty() { condition.reason.clone() } else { condition.message.clone() }
}

/// What a place of the topology means for placement: closeness to the pod, and the fabrics that will do.
pub(crate) fn wish(local: LocalCopy, topology: &TopologyRequirement, offers: &[NodeOffer]) -> (Local, Vec<String>) {
    let node = |place: &Place| place.node.clone().map(NodeName);
    // Only the first preferred place is where the pod is, or may be; the order of the others carries nothing.
    let pod = topology.preferred.first().and_then(node);
    let requisite: BTreeSet<NodeName> = topology.requisite.iter().filter_map(node).collect();
    let local = match (local, pod) {
        (LocalCopy::None, _) => Local::Anywhere,
        (LocalCopy::Preferred, Some(pod)) => Local::Preferred(pod),
        (LocalCopy::Preferred, None) => match requisite.len() {
            1 => requisite.into_iter().next().map_or(Local::Anywhere, Local::Preferred),
            _ => Local::Anywhere,
        },
        (LocalCopy::Required, None) if requisite.is_empty() => Local::Anywhere,
        // The pod will run in one of the requisite places, in the first preferred one if it is up to us.
        (LocalCopy::Required, first) => {
            let of = if requisite.is_empty() { first.clone().into_iter().collect() } else { requisite };
            Local::Required { of, first }
        }
    };
    let fabric_of = |place: &Place| match (&place.fabric, &place.node) {
        (Some(fabric), _) => Some(fabric.clone()),
        (None, Some(name)) => {
            let known = offers.iter().find(|offer| offer.name.0 == *name).map(|offer| offer.fabric.clone());
            Some(known.unwrap_or_else(|| format!("(that of {name}, which is no MeshStor node)")))
        }
        (None, None) => None,
    };
    let mut fabrics: Vec<String> = topology.preferred.iter().chain(&topology.requisite).filter_map(fabric_of).collect();
    if topology.requisite.is_empty() && !fabrics.is_empty() {
        // Preferred alone excludes nothing.
        fabrics.extend(offers.iter().map(|offer| offer.fabric.clone()).collect::<BTreeSet<_>>());
    }
    (local, fabrics)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_measured_by_the_wall_clock() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap_or_default();
        let now = at("2026-01-01T00:02:00Z");
        let max = Duration::from_secs(60);
        assert_eq!(silence(Some("2026-01-01T00:01:00Z"), now, max), None);
        assert_eq!(silence(Some("2026-01-01T09:00:00Z"), now, max), None, "a clock ahead of ours");
        let old = silence(Some("2026-01-01T00:00:59Z"), now, max);
        assert_eq!(old.as_deref(), Some("status.heartbeat is 61 s old, allowed are 60 s"));
        assert!(silence(None, now, max).is_some() && silence(Some("noon"), now, max).is_some());
    }

    #[test]
    fn topology_becomes_closeness_and_fabrics() {
        let place = |node: Option<&str>, fabric: Option<&str>| Place {
            node: node.map(str::to_string),
            fabric: fabric.map(str::to_string),
        };
        let full = TopologyRequirement {
            requisite: vec![place(Some("a"), Some("f")), place(Some("b"), Some("g"))],
            preferred: vec![place(Some("b"), Some("g")), place(Some("a"), Some("f"))],
        };
        let name = |text: &str| NodeName(text.into());
        let (local, fabrics) = wish(LocalCopy::Preferred, &full, &[]);
        assert_eq!((local, fabrics.first().map(String::as_str)), (Local::Preferred(name("b")), Some("g")));
        assert_eq!(wish(LocalCopy::None, &full, &[]).0, Local::Anywhere);
        let both = |first: Option<&str>| Local::Required { of: [name("a"), name("b")].into(), first: first.map(name) };
        assert_eq!(wish(LocalCopy::Required, &full, &[]).0, both(Some("b")));
        let strict = TopologyRequirement { requisite: full.preferred[..1].to_vec(), ..full.clone() };
        let only = Local::Required { of: [name("b")].into(), first: Some(name("b")) };
        assert_eq!(
            wish(LocalCopy::Required, &strict, &[]).0,
            only,
            "as the provisioner says it with --strict-topology"
        );
        let hint = TopologyRequirement { requisite: vec![], ..strict };
        assert_eq!(wish(LocalCopy::Required, &hint, &[]).0, only);
        let loose = TopologyRequirement { preferred: vec![], ..full };
        assert_eq!(wish(LocalCopy::Required, &loose, &[]).0, both(None));
        assert_eq!(wish(LocalCopy::Preferred, &loose, &[]).0, Local::Anywhere);
        assert_eq!(wish(LocalCopy::Required, &TopologyRequirement::default(), &[]), (Local::Anywhere, vec![]));
    }
}
