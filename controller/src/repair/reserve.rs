//! One more copy of a volume that lives: where it goes, and its object.
//!
//! Called by [`super`]. The node arbitrates, as for CreateVolume; a reservation that it does not take is retired like any
//! other copy, and its node is left alone for a while. What is remembered of that is for patience only.

use super::plan::Place;
use super::{Acted, Case};
use crate::Context;
use crate::delete;
use crate::error::ControlError;
use crate::names;
use crate::offers;
use crate::reserve::{REFUSALS, reservation};
use crate::telemetry;
use crate::writer::{Creation, Endpoint};
use k8s_openapi::jiff::Timestamp;
use meshstor_api::patch;
use meshstor_api::replica::MeshStorReplica;
use meshstor_api::volume::{LocalCopy, MeshStorVolume};
use meshstor_kernel::id::{NodeName, ReplicaId};
use meshstor_kernel::mutant::{self, Mutant};
use meshstor_plan::Reason;
use meshstor_plan::placement::{self, Choice, Local, Request, Shortage};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// A reservation that its node has not answered after this long is made elsewhere. By the objects' clock, so generous.
const ANSWER: Duration = Duration::from_secs(60);
/// A node that refused a copy of a volume is not asked again for this long.
const REST: Duration = Duration::from_secs(300);
/// Looks at a volume in a row after which a reservation is left as it is.
const LOOKS_MAX: usize = 16;

/// Nodes that refused a copy lately, by volume.
#[derive(Default)]
pub(crate) struct Refusals {
    list: Mutex<BTreeMap<(String, String), (String, Instant)>>,
}

impl Refusals {
    /// Remembers a refusal.
    pub(crate) fn note(&self, volume: &str, node: &str, why: String) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|_, (_, at)| at.elapsed() < REST);
        list.insert((volume.to_string(), node.to_string()), (why, Instant::now()));
    }

    fn of(&self, volume: &str) -> BTreeMap<NodeName, String> {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = list.iter().filter(|((name, _), (_, at))| name == volume && at.elapsed() < REST);
        fresh.map(|((_, node), (why, _))| (NodeName(node.clone()), why.clone())).collect()
    }
}

/// Why a node does not take a reservation; `None` when it has taken it, or may still.
pub(crate) fn refusal(context: &Context, replica: &MeshStorReplica, now: Timestamp) -> Option<String> {
    let status = replica.status.as_ref();
    let state = status.and_then(|status| status.partition.as_ref()).map_or("", |partition| &partition.state);
    if matches!(state, "Accepted" | "Ready") {
        return None;
    }
    let conditions = status.map(|status| status.conditions.as_slice()).unwrap_or_default();
    let refused = conditions.iter().find(|said| said.status == "False" && REFUSALS.contains(&said.reason.as_str()));
    if let Some(said) = refused {
        return Some(format!("refused it: {} ({})", said.message, said.reason));
    }
    let limit = ANSWER.max(context.config.reservation_timeout).as_secs();
    let made = replica.metadata.creation_timestamp.as_ref()?.0;
    let age = u64::try_from(now.as_second().saturating_sub(made.as_second())).unwrap_or(0);
    (age >= limit).then(|| format!("has not accepted it within {limit} s"))
}

/// Looks for a place beside all copies that exist, in the fabric of one that is complete. `leaving`: a copy that goes as
/// soon as the new one is there, and whose zone is free then.
pub(super) async fn place(
    case: &Case<'_>,
    place: &Place,
    leaving: Option<ReplicaId>,
) -> Result<Result<Choice, Shortage>, ControlError> {
    let spread = case.volume.spec.topology_spread;
    let offers = offers::read(case.context, spread).await?;
    let held = case.own.values().map(|replica| {
        let why = format!("holds {} of it", replica.spec.replica);
        (NodeName(replica.spec.node.clone()), why)
    });
    let mut excluded = case.context.refusals.of(&case.record.name);
    excluded.extend(held);
    let complete = case.own.iter().find(|(id, _)| case.in_sync.contains(id)).map(|(_, replica)| &replica.spec.node);
    let fabric = offers.iter().find(|offer| Some(&offer.name.0) == complete).map(|offer| offer.fabric.clone());
    let local = match (place, &case.record.consumer) {
        (Place::Only(node), _) => Local::only(NodeName(node.clone())),
        (Place::Free, Some(consumer)) if case.volume.spec.local_copy != LocalCopy::None => {
            Local::Preferred(consumer.clone())
        }
        (Place::Free, _) => Local::Anywhere,
    };
    let request = Request {
        copies: 1,
        partition_bytes: placement::partition_bytes(case.volume.spec.size_bytes),
        sector_bytes: case.volume.spec.sector_size,
        local,
        fabrics: fabric.into_iter().collect(),
        zones: offers::spread(spread, &offers, case.staying(leaving)),
        excluded,
    };
    Ok(placement::place(&offers, &request))
}

/// Reserves room for one more copy.
pub(super) async fn reserve(case: &Case<'_>, wanted: &Place) -> Result<Acted, ControlError> {
    let choice = match place(case, wanted, None).await? {
        Ok(choice) => choice,
        Err(shortage) => return Ok(Acted::Blocked(Reason::NoRoom { what: format!("for one more copy: {shortage}") })),
    };
    let Some(pick) = choice.picks.first() else { return Ok(Acted::Nothing) };
    let id = next(case);
    if !mutant::on(Mutant::NumberUsedAgain) {
        let number = patch::numbered(case.volume, id)?;
        case.context.writer.patch::<MeshStorVolume>(&case.record.name, Endpoint::Main, number).await?;
    }
    let reservation = reservation(case.volume, id, pick);
    // Taken: another controller has seen the same; the next look shows it.
    if let Creation::Made(_) = case.context.writer.create(&reservation).await? {
        tracing::info!(volume = %case.record.name, replica = %id, node = %pick.node, drive = %pick.drive, "one more copy");
        telemetry::reserved();
        take_back(case, &names::replica(&case.record.name, id)).await?;
    }
    Ok(Acted::Done)
}

/// A number that no copy ever had: a partition whose object was lost must not meet another one of the same name.
fn next(case: &Case<'_>) -> ReplicaId {
    let parsed = |text: &String| text.parse::<ReplicaId>().ok();
    let seen = case.seen.iter().filter_map(|replica| parsed(&replica.spec.replica));
    let dismissed = case.volume.spec.dismissed.iter().filter_map(parsed);
    let known = case.record.departures.keys().chain(case.in_sync).copied();
    let remembered = if mutant::on(Mutant::NumberUsedAgain) { 0 } else { case.volume.spec.next_replica };
    let above = seen.chain(dismissed).chain(known).map(|id| id.0.saturating_add(1));
    ReplicaId(above.chain([remembered]).max().unwrap_or(0))
}

/// The volume was deleted meanwhile: a copy made too late for the deletion to see must not stay.
async fn take_back(case: &Case<'_>, name: &str) -> Result<(), ControlError> {
    let writer = &case.context.writer;
    let volume = writer.get::<MeshStorVolume>(&case.record.name).await?;
    let lives = |volume: &MeshStorVolume| {
        volume.metadata.uid == case.volume.metadata.uid && volume.spec.deletion_requested.is_none()
    };
    if volume.as_ref().is_some_and(lives) {
        return Ok(());
    }
    for _ in 0..LOOKS_MAX {
        let replica = writer.get::<MeshStorReplica>(name).await?;
        // By now the name may belong to a copy of a later volume.
        let Some(replica) = replica.filter(|replica| replica.spec.volume_id == case.volume.spec.volume_id) else {
            return Ok(());
        };
        match delete::bury(case.context, &replica, "ReservationRefused").await {
            Err(error) if error.is_stale() => {}
            done => return done,
        }
    }
    Ok(())
}
