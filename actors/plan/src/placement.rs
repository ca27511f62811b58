//! Placement: which nodes and drives hold the copies of a volume, and why each other one does not.
//!
//! Called by the controller for CreateVolume (and again for a reservation that nobody accepted) and for GetCapacity.
//! Pure and deterministic: the same offers give the same choice whatever their order. It never reserves anything; the
//! node that accepts the replica object does that, so a choice made on a stale offer is refused there, not here.
//!
//! ```text
//! offers -> one fabric -> nodes that can (ready, fresh, in service, reachable) -> their best drive -> the pod's node
//!           first, then the most free, then by name -> as many as there are copies, or a Shortage
//! ```

use meshstor_kernel::facts::{ALIGNMENT, DATA_OFFSET, Transport};
use meshstor_kernel::id::{DriveId, NodeName};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Left free at the end of a partition, so that a copy on a slightly smaller drive always fits the array.
const SLACK: u64 = ALIGNMENT;
/// A message names at most this many nodes: gRPC carries it in a header.
const NAMED_MAX: usize = 12;
/// And at most this many drives of each.
const DRIVES_NAMED_MAX: usize = 3;

/// Bytes of the partition that holds one copy of a volume of `size_bytes`.
pub fn partition_bytes(size_bytes: u64) -> u64 {
    aligned_up(size_bytes).saturating_add(DATA_OFFSET + SLACK)
}

/// The largest volume whose copy fits a free extent of `extent_bytes`; zero when none does.
pub fn volume_bytes(extent_bytes: u64) -> u64 {
    aligned_down(extent_bytes).saturating_sub(DATA_OFFSET + SLACK)
}

fn aligned_down(bytes: u64) -> u64 {
    bytes - bytes % ALIGNMENT
}

fn aligned_up(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(ALIGNMENT).unwrap_or(aligned_down(u64::MAX))
}

/// A node and what it offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeOffer {
    /// Name.
    pub name: NodeName,
    /// Why its agent says it is not ready; `None` when it is.
    pub not_ready: Option<String>,
    /// Why its last report is too old to be believed; `None` when it is fresh.
    pub silent: Option<String>,
    /// The operator wants no new copies on it.
    pub maintenance: bool,
    /// Fabric it is on.
    pub fabric: String,
    /// Transports it can export over.
    pub transports: BTreeSet<Transport>,
    /// Its drives.
    pub drives: Vec<DriveOffer>,
}

/// A drive and what is free on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveOffer {
    /// Identity on its node.
    pub drive: DriveId,
    /// Why it may not be used; `None` when it may.
    pub unusable: Option<String>,
    /// Logical block size.
    pub sector_bytes: u32,
    /// All bytes we may still allocate.
    pub free_bytes: u64,
    /// The largest extent among them.
    pub largest_free_bytes: u64,
    /// Bytes of copies placed here whose node has not taken the space yet.
    pub reserved_bytes: u64,
}

impl DriveOffer {
    /// The largest partition that is sure to fit. Pending reservations may all land in the largest extent.
    fn room(&self) -> u64 {
        aligned_down(self.largest_free_bytes.saturating_sub(self.reserved_bytes))
    }
}

/// Where a copy should be close to the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Local {
    /// Where the pod runs plays no part, or is not known.
    Anywhere,
    /// A copy on this node if it can, none there if it cannot.
    Preferred(NodeName),
    /// No volume without a copy on one of these.
    Required(BTreeSet<NodeName>),
}

/// What is to be placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Copies to place, each on a node of its own.
    pub copies: usize,
    /// Bytes of each partition.
    pub partition_bytes: u64,
    /// Logical block size that the drives must have.
    pub sector_bytes: u32,
    /// Closeness to the pod.
    pub local: Local,
    /// Fabrics that will do, the best first; empty when any will.
    pub fabrics: Vec<String>,
    /// Nodes that are out of the question, with the reason.
    pub excluded: BTreeMap<NodeName, String>,
}

/// Where one copy goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pick {
    /// Node.
    pub node: NodeName,
    /// Drive on it.
    pub drive: DriveId,
}

/// A node that gets no copy, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lost {
    /// Node.
    pub node: NodeName,
    /// Why, as the rest of a sentence that begins with the node.
    pub why: String,
}

/// A placement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Fabric that all copies are on.
    pub fabric: String,
    /// One node and drive for each copy; a copy close to the pod comes first.
    pub picks: Vec<Pick>,
    /// All other nodes, by name.
    pub lost: Vec<Lost>,
}

/// There is no placement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// Copies wanted.
    pub wanted: usize,
    /// Nodes that could hold one.
    pub possible: usize,
    /// Bytes each of them needs.
    pub partition_bytes: u64,
    /// One of these nodes would have to hold a copy and cannot.
    pub required: BTreeSet<NodeName>,
    /// Why the others cannot, by name.
    pub lost: Vec<Lost>,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shortage { wanted, possible, partition_bytes, required, lost } = self;
        if required.is_empty() {
            write!(f, "{wanted} nodes with {partition_bytes} bytes free on one drive are needed, {possible} found")?;
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

/// A node that could hold a copy.
struct Fit<'a> {
    node: &'a NodeOffer,
    drive: &'a DriveOffer,
}

/// Chooses nodes and drives. Fabrics are tried in order; all copies lie in one.
pub fn place(offers: &[NodeOffer], request: &Request) -> Result<Choice, Shortage> {
    let mut best: Option<Shortage> = None;
    for fabric in fabrics(offers, request) {
        match place_in(offers, request, &fabric) {
            Ok(choice) => return Ok(choice),
            // The fabric that came closest explains best; the first of equals, which is the preferred one.
            Err(shortage) if best.as_ref().is_none_or(|best| shortage.possible > best.possible) => {
                best = Some(shortage);
            }
            Err(_) => {}
        }
    }
    let nowhere = || Shortage {
        wanted: request.copies,
        possible: 0,
        partition_bytes: request.partition_bytes,
        required: BTreeSet::new(),
        lost: offers.iter().map(|node| lost(node, wrong_fabric(node, &request.fabrics))).collect(),
    };
    Err(sorted(best.unwrap_or_else(nowhere)))
}

/// Size of the largest volume that [`place`] finds room for, whatever `request.partition_bytes` says; zero when none.
///
/// Asked of [`place`] itself, so that the two cannot disagree. A volume may grow until it fills one of the drives that it
/// is on, so only the rooms of drives come into question; and what is placed once is placed in less room as well.
pub fn largest(offers: &[NodeOffer], request: &Request) -> u64 {
    let drives = offers.iter().flat_map(|node| &node.drives);
    let rooms: Vec<u64> = drives.map(DriveOffer::room).collect::<BTreeSet<u64>>().into_iter().collect();
    let placed = |room: &u64| place(offers, &Request { partition_bytes: *room, ..request.clone() }).is_ok();
    let sizes = rooms.partition_point(placed);
    volume_bytes(sizes.checked_sub(1).and_then(|index| rooms.get(index)).copied().unwrap_or(0))
}

/// The fabrics to try, in order.
fn fabrics(offers: &[NodeOffer], request: &Request) -> Vec<String> {
    let present: BTreeSet<String> = offers.iter().map(|node| node.fabric.clone()).collect();
    if request.fabrics.is_empty() {
        return present.into_iter().collect();
    }
    let mut seen = BTreeSet::new();
    request.fabrics.iter().filter(|f| present.contains(*f) && seen.insert((*f).clone())).cloned().collect()
}

fn place_in(offers: &[NodeOffer], request: &Request, fabric: &str) -> Result<Choice, Shortage> {
    let (mut fits, mut losers) = fits(offers, request, fabric);
    fits.sort_by_key(|fit| {
        let near = must_be(fit, request) || matches!(&request.local, Local::Preferred(node) if *node == fit.node.name);
        (Reverse(near), Reverse(free(fit.drive)), fit.node.name.clone())
    });
    if let Local::Required(nodes) = &request.local {
        if !fits.first().is_some_and(|fit| must_be(fit, request)) {
            return Err(shortage(request, &fits, losers, nodes.clone()));
        }
        // One close copy is asked for; the others compete by what is free.
        if let Some(others) = fits.get_mut(1..) {
            others.sort_by_key(|fit| (Reverse(free(fit.drive)), fit.node.name.clone()));
        }
    }
    if fits.len() < request.copies {
        return Err(shortage(request, &fits, losers, BTreeSet::new()));
    }
    let (chosen, others) = fits.split_at(request.copies);
    losers.extend(others.iter().map(|fit| {
        let why = format!("has room ({} bytes free), others have more or come first by name", free(fit.drive));
        lost(fit.node, why)
    }));
    losers.sort();
    let picks = chosen.iter().map(|fit| Pick { node: fit.node.name.clone(), drive: fit.drive.drive.clone() });
    Ok(Choice { fabric: fabric.to_string(), picks: picks.collect(), lost: losers })
}

fn shortage(request: &Request, fits: &[Fit<'_>], lost: Vec<Lost>, required: BTreeSet<NodeName>) -> Shortage {
    let Request { copies, partition_bytes, .. } = *request;
    sorted(Shortage { wanted: copies, possible: fits.len(), partition_bytes, required, lost })
}

fn sorted(mut shortage: Shortage) -> Shortage {
    shortage.lost.sort();
    shortage
}

fn lost(node: &NodeOffer, why: String) -> Lost {
    Lost { node: node.name.clone(), why }
}

fn must_be(fit: &Fit<'_>, request: &Request) -> bool {
    matches!(&request.local, Local::Required(nodes) if nodes.contains(&fit.node.name))
}

fn free(drive: &DriveOffer) -> u64 {
    drive.free_bytes.saturating_sub(drive.reserved_bytes)
}

/// Nodes that can hold a copy, and why the others cannot.
fn fits<'a>(offers: &'a [NodeOffer], request: &Request, fabric: &str) -> (Vec<Fit<'a>>, Vec<Lost>) {
    let pod = match &request.local {
        Local::Preferred(node) => offers.iter().find(|offer| offer.name == *node),
        Local::Anywhere | Local::Required(_) => None,
    };
    // A pod's node of another fabric, or without addresses, says nothing about how copies here must be reachable.
    let pod = pod.filter(|pod| pod.fabric == fabric && !pod.transports.is_empty());
    let (mut fits, mut losers) = (Vec::new(), Vec::new());
    for node in offers {
        match refusal(node, request, fabric, pod) {
            Some(why) => losers.push(lost(node, why)),
            None => match best_drive(node, request) {
                Ok(drive) => fits.push(Fit { node, drive }),
                Err(why) => losers.push(lost(node, why)),
            },
        }
    }
    (fits, losers)
}

/// Why a node cannot hold a copy, whatever its drives.
fn refusal(node: &NodeOffer, request: &Request, fabric: &str, pod: Option<&NodeOffer>) -> Option<String> {
    if node.fabric != fabric {
        return Some(wrong_fabric(node, &[fabric.to_string()]));
    }
    if let Some(why) = request.excluded.get(&node.name) {
        return Some(why.clone());
    }
    if node.maintenance {
        return Some("is in maintenance (spec.maintenance is true)".to_string());
    }
    if let Some(why) = &node.silent {
        return Some(format!("is silent: {why}"));
    }
    if let Some(why) = &node.not_ready {
        return Some(format!("is not ready: {why}"));
    }
    if node.transports.is_empty() {
        return Some("has no address to export on (status.addresses is empty)".to_string());
    }
    let pod = pod.filter(|pod| pod.transports.is_disjoint(&node.transports))?;
    Some(format!("has {}, {} has {}: no transport in common", words(node), pod.name, words(pod)))
}

fn words(node: &NodeOffer) -> String {
    node.transports.iter().map(Transport::as_str).collect::<Vec<_>>().join(" and ")
}

fn wrong_fabric(node: &NodeOffer, fabrics: &[String]) -> String {
    format!("is on fabric {}, wanted is {}", node.fabric, fabrics.join(" or "))
}

/// The drive with the most free space among those that have room, or why none has.
fn best_drive<'a>(node: &'a NodeOffer, request: &Request) -> Result<&'a DriveOffer, String> {
    let fit = |drive: &&DriveOffer| unfit(drive, request).is_none();
    let by_free = |drive: &&DriveOffer| (Reverse(free(drive)), drive.drive.clone());
    if let Some(best) = node.drives.iter().filter(fit).min_by_key(by_free) {
        return Ok(best);
    }
    let mut why: Vec<String> = node.drives.iter().filter_map(|drive| unfit(drive, request)).collect();
    why.sort();
    let more = why.len().saturating_sub(DRIVES_NAMED_MAX);
    if more > 0 {
        why.truncate(DRIVES_NAMED_MAX);
        why.push(format!("and {more} drives more"));
    }
    Err(if why.is_empty() { "reports no drive".to_string() } else { why.join(", ") })
}

fn unfit(drive: &DriveOffer, request: &Request) -> Option<String> {
    let DriveOffer { drive: id, sector_bytes, reserved_bytes, .. } = drive;
    if let Some(why) = &drive.unusable {
        return Some(format!("drive {id} may not be used: {why}"));
    }
    if *sector_bytes != request.sector_bytes {
        return Some(format!("drive {id} has sectors of {sector_bytes} bytes, sectorSize is {}", request.sector_bytes));
    }
    if drive.room() >= request.partition_bytes {
        return None;
    }
    let held = match reserved_bytes {
        0 => String::new(),
        bytes => format!(" ({bytes} bytes are held for copies under way)"),
    };
    let (room, wanted) = (drive.room(), request.partition_bytes);
    Some(format!("drive {id} has no free extent of {wanted} bytes, the largest is {room}{held}"))
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
