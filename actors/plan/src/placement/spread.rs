//! Copies and zones: which of the nodes that can hold a copy are taken, so that a lost zone does not take all copies.
//!
//! Called by [`super::place`] with the nodes in the order in which they would be taken anyway; it passes over those whose
//! zone has a copy already. Pure. Which zone a node is in it is told; it never guesses one from a name.

use super::{Fit, NodeOffer};
use std::collections::{BTreeMap, BTreeSet};

/// How copies are spread over zones, given those that exist already.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Zones {
    /// Zones play no part.
    #[default]
    Any,
    /// Each copy in a zone of its own, or none. These have one.
    Own(BTreeSet<String>),
    /// As evenly as can be. So many copies are in these; the empty name stands for nodes of which no zone is known.
    Even(BTreeMap<String, usize>),
}

/// Why a node is out of the question, whatever its drives.
pub(super) fn refusal(node: &NodeOffer, zones: &Zones) -> Option<String> {
    let Zones::Own(taken) = zones else { return None };
    match &node.zone {
        None => Some("has no zone (its Node has no label topology.kubernetes.io/zone)".to_string()),
        Some(zone) if taken.contains(zone) => Some(format!("is in zone {zone}, which holds a copy of it")),
        Some(_) => None,
    }
}

/// The nodes to take, as indices into `fits`: the first one for sure if it is `bound`, whatever its zone. Fewer than
/// `copies` when there are not enough.
pub(super) fn choose(fits: &[Fit<'_>], copies: usize, zones: &Zones, bound: bool) -> Vec<usize> {
    let mut held = match zones {
        Zones::Any => return (0..fits.len().min(copies)).collect(),
        Zones::Own(_) => BTreeMap::new(),
        Zones::Even(held) => held.clone(),
    };
    let mut chosen: Vec<usize> = Vec::new();
    while chosen.len() < copies {
        let count = |index: &usize| fits.get(*index).map_or(0, |fit| held.get(zone(fit)).copied().unwrap_or(0));
        let free = (0..fits.len()).filter(|index| !chosen.contains(index));
        let next =
            if bound && chosen.is_empty() { free.min() } else { free.min_by_key(|index| (count(index), *index)) };
        let Some(next) = next.filter(|next| !(matches!(zones, Zones::Own(_)) && count(next) > 0)) else { break };
        if let Some(fit) = fits.get(next) {
            *held.entry(zone(fit).to_string()).or_default() += 1;
        }
        chosen.push(next);
    }
    chosen
}

/// Zone of a node; nodes without one may all be in the same.
fn zone<'a>(fit: &'a Fit<'_>) -> &'a str {
    fit.node.zone.as_deref().unwrap_or_default()
}
