//! A volume that finds no place: what was needed, what was found, and what each node lacks, in one sentence.
//!
//! Made by [`super::place`], told to whoever asked. Pure.

use super::{Lost, Request, Zones};
use meshstor_kernel::id::NodeName;
use std::collections::BTreeSet;
use std::fmt;

/// A message names at most this many nodes: gRPC carries it in a header.
const NAMED_MAX: usize = 12;

/// There is no placement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// Copies wanted.
    pub wanted: usize,
    /// Nodes that could hold one; where each copy needs a zone of its own, zones with such a node.
    pub possible: usize,
    /// Each copy needs a zone of its own.
    pub zones: bool,
    /// Bytes each of them needs.
    pub partition_bytes: u64,
    /// One of these nodes would have to hold a copy and cannot.
    pub required: BTreeSet<NodeName>,
    /// Why the others cannot, by name.
    pub lost: Vec<Lost>,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shortage { wanted, possible, zones, partition_bytes, required, lost } = self;
        if required.is_empty() && *zones {
            let room = format!("a node with {partition_bytes} bytes free on one drive");
            write!(f, "topologySpread is zone: {wanted} zones with {room} are needed, {possible} found")?;
        } else if required.is_empty() {
            let (nodes, are) = if *wanted == 1 { ("node", "is") } else { ("nodes", "are") };
            let room = format!("{wanted} {nodes} with {partition_bytes} bytes free on one drive");
            write!(f, "{room} {are} needed, {possible} found")?;
        } else {
            let names: Vec<&str> = required.iter().map(|node| node.0.as_str()).collect();
            write!(f, "localCopy is required and {} cannot hold a copy", names.join(", "))?;
        }
        for (index, Lost { node, why }) in lost.iter().take(NAMED_MAX).enumerate() {
            write!(f, "{} {node} {why}", if index == 0 { ":" } else { ";" })?;
        }
        match lost.len().saturating_sub(NAMED_MAX) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl Shortage {
    pub(super) fn of(
        request: &Request,
        possible: usize,
        mut lost: Vec<Lost>,
        required: BTreeSet<NodeName>,
    ) -> Shortage {
        lost.sort();
        let Request { copies, partition_bytes, .. } = *request;
        let zones = matches!(request.zones, Zones::Own(_));
        Shortage { wanted: copies, possible, zones, partition_bytes, required, lost }
    }
}
