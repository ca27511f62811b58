//! Topology: the two segments that say where a volume can be reached.
//!
//! Called by CreateVolume and GetCapacity, and by handlers that answer with a topology. Every node that may run pods
//! with our volumes has both segments, so a volume is never "accessible everywhere": that would let pods start on nodes
//! without this driver (K11). It never knows which nodes exist.

use std::collections::HashMap;

use crate::Refusal;
use crate::proto;

/// Segment key of a node's name.
pub const NODE_KEY: &str = "csi.meshstor.io/node";
/// Segment key of the storage network that a node is connected to.
pub const FABRIC_KEY: &str = "csi.meshstor.io/fabric";

/// A place in the topology; at least one of the two is set in a parsed one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Place {
    /// One node.
    pub node: Option<String>,
    /// One storage network.
    pub fabric: Option<String>,
}

/// Where a new volume must and should be reachable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct TopologyRequirement {
    /// It must be reachable from at least one of these; empty means that the caller does not mind.
    pub requisite: Vec<Place>,
    /// Where it should rather be, the best first; the node that the scheduler has chosen comes first.
    pub preferred: Vec<Place>,
}

impl Place {
    /// This place as a CSI topology.
    pub fn to_proto(&self) -> proto::Topology {
        let segments = [(NODE_KEY, &self.node), (FABRIC_KEY, &self.fabric)]
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)))
            .collect();
        proto::Topology { segments }
    }

    fn parse(field: &str, segments: &HashMap<String, String>) -> Result<Self, Refusal> {
        // The smallest unknown key, so that the same request gets the same sentence each time.
        if let Some(key) = segments.keys().filter(|key| *key != NODE_KEY && *key != FABRIC_KEY).min() {
            let allowed = format!("{NODE_KEY} and {FABRIC_KEY}");
            return Err(Refusal::value(format!("{field}.segments"), key, &allowed));
        }
        if segments.is_empty() {
            return Err(Refusal::missing(format!("{field}.segments")));
        }
        Ok(Self { node: segment(field, segments, NODE_KEY)?, fabric: segment(field, segments, FABRIC_KEY)? })
    }

    /// Reads a place that the caller may leave out.
    pub(super) fn optional(field: &str, message: Option<&proto::Topology>) -> Result<Option<Self>, Refusal> {
        message.map(|message| Self::parse(field, &message.segments)).transpose()
    }
}

/// A segment's value; Kubernetes stores it as a label, where empty means nothing.
fn segment(field: &str, segments: &HashMap<String, String>, key: &str) -> Result<Option<String>, Refusal> {
    match segments.get(key) {
        None => Ok(None),
        Some(value) if value.is_empty() => Err(Refusal::missing(format!("{field}.segments[{key}]"))),
        Some(value) => Ok(Some(value.clone())),
    }
}

impl TopologyRequirement {
    /// Reads the requirement of a new volume; absent means that the caller does not mind.
    pub(super) fn parse(field: &str, message: Option<&proto::TopologyRequirement>) -> Result<Self, Refusal> {
        let Some(message) = message else { return Ok(Self::default()) };
        Ok(Self {
            requisite: places(&format!("{field}.requisite"), &message.requisite)?,
            preferred: places(&format!("{field}.preferred"), &message.preferred)?,
        })
    }
}

fn places(field: &str, list: &[proto::Topology]) -> Result<Vec<Place>, Refusal> {
    list.iter().enumerate().map(|(index, place)| Place::parse(&format!("{field}[{index}]"), &place.segments)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topology(pairs: &[(&str, &str)]) -> proto::Topology {
        let segments = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        proto::Topology { segments }
    }

    fn refused(pairs: &[(&str, &str)]) -> String {
        Place::optional("accessible_topology", Some(&topology(pairs)))
            .map_or_else(|refusal| refusal.message, |place| format!("accepted as {place:?}"))
    }

    #[test]
    fn requisite_and_preferred_keep_their_order() {
        let message = proto::TopologyRequirement {
            requisite: vec![topology(&[(FABRIC_KEY, "default")])],
            preferred: vec![topology(&[(NODE_KEY, "b"), (FABRIC_KEY, "default")]), topology(&[(NODE_KEY, "a")])],
        };
        let default = || Some("default".to_owned());
        let expected = TopologyRequirement {
            requisite: vec![Place { node: None, fabric: default() }],
            preferred: vec![
                Place { node: Some("b".into()), fabric: default() },
                Place { node: Some("a".into()), fabric: None },
            ],
        };
        assert_eq!(TopologyRequirement::parse("accessibility_requirements", Some(&message)), Ok(expected));
        assert_eq!(TopologyRequirement::parse("accessibility_requirements", None), Ok(Default::default()));
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        assert_eq!(
            refused(&[("topology.kubernetes.io/zone", "z"), (NODE_KEY, "a")]),
            "accessible_topology.segments is \"topology.kubernetes.io/zone\": \
             allowed is csi.meshstor.io/node and csi.meshstor.io/fabric"
        );
        assert!(refused(&[]).starts_with("accessible_topology.segments is missing"));
        assert!(
            refused(&[(NODE_KEY, "")]).starts_with("accessible_topology.segments[csi.meshstor.io/node] is missing")
        );
    }

    proptest! {
        #[test]
        fn places_round_trip(node in prop::option::of("[a-z0-9.-]{1,20}"), fabric in prop::option::of("[a-z]{1,9}")) {
            let place = Place { node, fabric };
            let parsed = Place::optional("t", Some(&place.to_proto()));
            if place == Place::default() {
                prop_assert!(parsed.is_err());
            } else {
                prop_assert_eq!(parsed, Ok(Some(place)));
            }
        }
    }
}
