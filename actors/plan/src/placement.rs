//! Placement: which nodes and drives hold the copies of a volume, and why each other one does not.
//!
//! Called by the controller for CreateVolume (and again for a reservation that nobody accepted) and for GetCapacity.
//! Pure and deterministic: the same offers give the same choice whatever their order. It never reserves anything; the
//! node that accepts the replica object does that, so a choice made on a stale offer is refused there, not here.
//!
//! ```text
//! offers -> one fabric -> nodes that can (ready, fresh, in service, reachable) -> their best drive -> the pod's node
//!           first, then the most free, then by name -> as many as there are copies, each in a zone of its own where the
//!           class asks for that, or a Shortage
//! ```

mod shortage;
mod spread;

use meshstor_kernel::facts::{ALIGNMENT, DATA_OFFSET, Transport};
use meshstor_kernel::id::{DriveId, NodeName};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

pub use shortage::Shortage;
pub use spread::Zones;

/// Left free at the end of a partition, so that a copy on a slightly smaller drive always fits the array.
const SLACK: u64 = ALIGNMENT;
/// A message names at most this many drives of a node.
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
    /// Zone it is in, if one is known and asked for.
    pub zone: Option<String>,
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
    /// No volume without a copy on one of these, on `first` if it can.
    Required {
        /// Any of these will do.
        of: BTreeSet<NodeName>,
        /// The best of them.
        first: Option<NodeName>,
    },
}

impl Local {
    /// A copy on this node and no other.
    pub fn only(node: NodeName) -> Local {
        Local::Required { of: [node].into(), first: None }
    }
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
    /// How copies are spread.
    pub zones: Zones,
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
    let nowhere = || {
        let strangers = offers.iter().map(|node| lost(node, wrong_fabric(node, &request.fabrics))).collect();
        Shortage::of(request, 0, strangers, BTreeSet::new())
    };
    Err(best.unwrap_or_else(nowhere))
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
        (
            Reverse(must_be(fit, request)),
            Reverse(is_best(fit, request)),
            Reverse(free(fit.drive)),
            fit.node.name.clone(),
        )
    });
    if let Local::Required { of, .. } = &request.local {
        if !fits.first().is_some_and(|fit| must_be(fit, request)) {
            return Err(Shortage::of(request, fits.len(), losers, of.clone()));
        }
        // One close copy is asked for; the others compete by what is free.
        if let Some(others) = fits.get_mut(1..) {
            others.sort_by_key(|fit| (Reverse(free(fit.drive)), fit.node.name.clone()));
        }
    }
    let bound = matches!(request.local, Local::Required { .. });
    let chosen = spread::choose(&fits, request.copies, &request.zones, bound);
    let enough = chosen.len() >= request.copies;
    let own = matches!(request.zones, Zones::Own(_));
    // Nodes that can, and that would not help: told where it is the zones that are missing.
    let others = fits.iter().enumerate().filter(|(index, _)| if enough { !chosen.contains(index) } else { own });
    losers.extend(others.map(|(_, fit)| lost(fit.node, left_out(fit, enough))));
    if !enough {
        return Err(Shortage::of(request, chosen.len(), losers, BTreeSet::new()));
    }
    losers.sort();
    let picks = chosen.iter().filter_map(|index| fits.get(*index));
    let picks = picks.map(|fit| Pick { node: fit.node.name.clone(), drive: fit.drive.drive.clone() }).collect();
    Ok(Choice { fabric: fabric.to_string(), picks, lost: losers })
}

/// Why a node that can hold a copy gets none.
fn left_out(fit: &Fit<'_>, enough: bool) -> String {
    let zone = fit.node.zone.as_ref().map(|zone| format!(" in zone {zone}")).unwrap_or_default();
    match enough {
        true => format!("has room ({} bytes free){zone}, others have more or come first", free(fit.drive)),
        false => format!("has room{zone}"),
    }
}

fn lost(node: &NodeOffer, why: String) -> Lost {
    Lost { node: node.name.clone(), why }
}

fn must_be(fit: &Fit<'_>, request: &Request) -> bool {
    matches!(&request.local, Local::Required { of, .. } if of.contains(&fit.node.name))
}

fn is_best(fit: &Fit<'_>, request: &Request) -> bool {
    match &request.local {
        Local::Anywhere => false,
        Local::Preferred(node) => *node == fit.node.name,
        Local::Required { first, .. } => first.as_ref() == Some(&fit.node.name),
    }
}

fn free(drive: &DriveOffer) -> u64 {
    drive.free_bytes.saturating_sub(drive.reserved_bytes)
}

/// Nodes that can hold a copy, and why the others cannot.
fn fits<'a>(offers: &'a [NodeOffer], request: &Request, fabric: &str) -> (Vec<Fit<'a>>, Vec<Lost>) {
    let pod = match &request.local {
        Local::Preferred(node) => offers.iter().find(|offer| offer.name == *node),
        Local::Anywhere | Local::Required { .. } => None,
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
    if let Some(why) = spread::refusal(node, &request.zones) {
        return Some(why);
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
