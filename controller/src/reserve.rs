//! Reservations of a volume that is being created: one MeshStorReplica object each, accepted or refused by its node.
//!
//! Called by CreateVolume after every look. The node arbitrates: what two controllers or a stale offer promised twice,
//! it accepts once. It never touches a volume that was recorded, and buries a reservation only if that has not
//! reported anything since it was read.

use crate::decide;
use crate::delete;
use crate::error::ControlError;
use crate::names;
use crate::offers;
use crate::telemetry;
use crate::writer::Creation;
use crate::{Context, ControllerConfig};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use meshstor_api::FINALIZER;
use meshstor_api::replica::{ExportSpec, MeshStorReplica, ReplicaRole, ReplicaSpec};
use meshstor_api::volume::MeshStorVolume;
use meshstor_csi::request::{LocalCopy, TopologyRequirement};
use meshstor_kernel::id::{NodeName, ReplicaId};
use meshstor_plan::placement::{self, Choice, Local, Pick, Request, Shortage};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// Words of a node's conditions that mean it will not accept this reservation, however long we wait.
pub(crate) const REFUSALS: [&str; 4] = ["NoSpace", "DriveRefused", "DriveUnreadable", "DriveGone"];

/// Refusals in a row after which a reservation is left as it is.
const LOOKS_MAX: usize = 16;

/// How far the reservations of a volume are.
pub(crate) enum Progress {
    /// Every copy has its partition.
    Ready(BTreeSet<ReplicaId>),
    /// Something was changed: look again at once.
    Changed,
    /// These copies are awaited.
    Waiting(String),
    /// There is no room for the copies that are missing.
    Short(Shortage),
}

/// What a reservation's node says.
enum Answer {
    Ready,
    Underway(String),
    Refused(String),
    /// Nothing for so long that another place would be better, if there is one.
    Silent(String),
}

/// The memory of one CreateVolume call: how long each reservation has been waiting, and who refused.
pub(crate) struct Reservations {
    topology: TopologyRequirement,
    local: LocalCopy,
    /// When each reservation was first seen in its present state, by uid; our own clock, not the API server's.
    since: BTreeMap<(String, bool), Instant>,
    refused: BTreeMap<NodeName, String>,
    /// Below this no number is given again, even if its object is gone by now.
    next: u32,
    /// Made before the volume's object, used for its first copies.
    planned: Vec<Pick>,
    /// Objects this call has made, each with the identity of the volume it was made for.
    made: Vec<(String, String)>,
}

impl Reservations {
    pub(crate) fn new(topology: TopologyRequirement, local: LocalCopy) -> Reservations {
        let (since, refused) = (BTreeMap::new(), BTreeMap::new());
        Reservations { topology, local, since, refused, next: 0, planned: Vec::new(), made: Vec::new() }
    }

    /// The volume was deleted meanwhile: a reservation made too late for the deletion to see must not stay.
    pub(crate) async fn take_back(&self, context: &Context) -> Result<(), ControlError> {
        for (name, volume_id) in &self.made {
            // Its node reports at the same time, which is no reason to let it stay.
            for _ in 0..LOOKS_MAX {
                let replica = context.writer.get::<MeshStorReplica>(name).await?;
                // By now the name may belong to a copy of a later volume.
                let Some(replica) = replica.filter(|replica| replica.spec.volume_id == *volume_id) else { break };
                match delete::bury(context, &replica, "ReservationRefused").await {
                    Ok(()) => break,
                    Err(error) if error.is_stale() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Looks for room before anything is made.
    pub(crate) async fn plan(
        &mut self,
        context: &Context,
        volume: &MeshStorVolume,
    ) -> Result<Result<(), Shortage>, ControlError> {
        let choice = self.place(context, volume, &[], volume.spec.replica_count as usize).await?;
        Ok(choice.map(|choice| self.planned = choice.picks))
    }

    /// One step towards all copies being ready.
    pub(crate) async fn step(
        &mut self,
        context: &Context,
        volume: &MeshStorVolume,
        replicas: &[MeshStorReplica],
    ) -> Result<Progress, ControlError> {
        let own: Vec<&MeshStorReplica> = replicas.iter().filter(|replica| decide::belongs(volume, replica)).collect();
        let live: Vec<&MeshStorReplica> =
            own.iter().copied().filter(|replica| replica.spec.tombstone.is_none()).collect();
        let (mut ready, mut waiting) = (BTreeSet::new(), Vec::new());
        for replica in &live {
            match self.answer(context, replica) {
                Answer::Ready => ready.extend(replica.spec.replica.parse::<ReplicaId>()),
                Answer::Underway(sentence) => waiting.push(sentence),
                Answer::Refused(why) => {
                    self.give_up(context, replica, why).await?;
                    return Ok(Progress::Changed);
                }
                // A slow node is better than none: without another place the answer would be that there is no room, and
                // all that was done would be undone.
                Answer::Silent(why) => match self.place(context, volume, &live, 1).await? {
                    Ok(_) => {
                        self.give_up(context, replica, why).await?;
                        return Ok(Progress::Changed);
                    }
                    Err(_) => waiting.push(format!("{} {why}", replica.spec.node)),
                },
            }
        }
        let missing = (volume.spec.replica_count as usize).saturating_sub(live.len());
        if missing > 0 {
            return self.fill(context, volume, replicas, &live, missing).await;
        }
        if waiting.is_empty() {
            return Ok(Progress::Ready(ready));
        }
        Ok(Progress::Waiting(format!("partitions are awaited: {}", waiting.join(", "))))
    }

    /// What a node says to its reservation, silence included.
    fn answer(&mut self, context: &Context, replica: &MeshStorReplica) -> Answer {
        let ReplicaSpec { replica: id, node, .. } = &replica.spec;
        let status = replica.status.as_ref();
        let state = status.and_then(|status| status.partition.as_ref()).map_or("", |partition| &partition.state);
        let accepted = match state {
            "Ready" => return Answer::Ready,
            "Accepted" => true,
            _ => false,
        };
        let conditions = status.map(|status| status.conditions.as_slice()).unwrap_or_default();
        let refusal = conditions.iter().find(|c| c.status == "False" && REFUSALS.contains(&c.reason.as_str()));
        if let Some(refusal) = refusal.filter(|_| !accepted) {
            return Answer::Refused(format!("refused {id}: {} ({})", refusal.message, refusal.reason));
        }
        let uid = replica.metadata.uid.clone().unwrap_or_default();
        let waited = self.since.entry((uid, accepted)).or_insert_with(Instant::now).elapsed();
        let ControllerConfig { reservation_timeout, preparation_timeout, .. } = context.config;
        let late =
            |done: &str, limit: Duration| format!("has not {done} the reservation {id} within {} s", limit.as_secs());
        match accepted {
            true if waited >= preparation_timeout => return Answer::Refused(late("prepared", preparation_timeout)),
            false if waited >= preparation_timeout => return Answer::Refused(late("accepted", preparation_timeout)),
            false if waited >= reservation_timeout => return Answer::Silent(late("accepted", reservation_timeout)),
            _ => {}
        }
        Answer::Underway(format!("{id} on {node} ({})", if accepted { "accepted" } else { "not accepted yet" }))
    }

    async fn give_up(&mut self, context: &Context, replica: &MeshStorReplica, why: String) -> Result<(), ControlError> {
        match delete::bury(context, replica, "ReservationRefused").await {
            Ok(()) => {
                telemetry::reservation_refused();
                tracing::warn!(node = %replica.spec.node, drive = %replica.spec.drive, %why, "placed elsewhere");
                self.refused.insert(NodeName(replica.spec.node.clone()), why);
                Ok(())
            }
            // It has reported something after all, or is gone: the next look shows it.
            Err(error) if error.is_stale() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Reserves room for the missing copies.
    async fn fill(
        &mut self,
        context: &Context,
        volume: &MeshStorVolume,
        replicas: &[MeshStorReplica],
        live: &[&MeshStorReplica],
        missing: usize,
    ) -> Result<Progress, ControlError> {
        let planned = std::mem::take(&mut self.planned);
        let picks = if replicas.is_empty() && planned.len() == missing {
            planned
        } else {
            let withdrawn = replicas.iter().filter(|r| decide::belongs(volume, r) && r.spec.tombstone.is_some());
            for replica in withdrawn {
                let why = format!("still holds the withdrawn reservation {}", replica.spec.replica);
                self.refused.entry(NodeName(replica.spec.node.clone())).or_insert(why);
            }
            match self.place(context, volume, live, missing).await? {
                Ok(choice) => choice.picks,
                Err(shortage) => return Ok(Progress::Short(shortage)),
            }
        };
        // Numbers follow all that were seen, leftovers of earlier volumes included. A number taken meanwhile means that
        // another controller reserves too: look again before reserving more.
        let used = replicas.iter().filter_map(|replica| replica.spec.replica.parse::<ReplicaId>().ok());
        self.next = used.map(|id| id.0.saturating_add(1)).chain([self.next]).max().unwrap_or(0);
        for pick in picks {
            let id = ReplicaId(self.next);
            self.next = self.next.saturating_add(1);
            let reservation = reservation(volume, id, &pick);
            // Noted first: a creation whose answer is lost may have happened.
            self.made.push((names::replica(&reservation.spec.volume, id), reservation.spec.volume_id.clone()));
            if context.writer.create(&reservation).await? == Creation::Exists {
                self.made.pop();
                break;
            }
            tracing::info!(replica = %id, node = %pick.node, drive = %pick.drive, "reserved");
        }
        Ok(Progress::Changed)
    }

    /// Chooses places for `copies` more, in the fabric of those that live.
    async fn place(
        &self,
        context: &Context,
        volume: &MeshStorVolume,
        live: &[&MeshStorReplica],
        copies: usize,
    ) -> Result<Result<Choice, Shortage>, ControlError> {
        let spread = volume.spec.topology_spread;
        let offers = offers::read(context, spread).await?;
        let (local, fabrics) = offers::wish(self.local, &self.topology, &offers);
        let holders: BTreeMap<NodeName, String> = live
            .iter()
            .map(|replica| (NodeName(replica.spec.node.clone()), format!("holds {} of it", replica.spec.replica)))
            .collect();
        let near = match &local {
            Local::Anywhere => true,
            Local::Preferred(node) => holders.contains_key(node),
            Local::Required { of, .. } => of.iter().any(|node| holders.contains_key(node)),
        };
        let fabric = offers.iter().find(|offer| holders.contains_key(&offer.name)).map(|offer| offer.fabric.clone());
        let mut excluded = self.refused.clone();
        excluded.extend(holders);
        let request = Request {
            copies,
            partition_bytes: placement::partition_bytes(volume.spec.size_bytes),
            sector_bytes: volume.spec.sector_size,
            local: if near { Local::Anywhere } else { local },
            fabrics: fabric.map_or(fabrics, |fabric| vec![fabric]),
            zones: offers::spread(spread, &offers, live.iter().map(|replica| replica.spec.node.as_str())),
            excluded,
        };
        Ok(placement::place(&offers, &request))
    }
}

/// The object of a reservation. Its finalizer is the node's: it goes when the partition is gone.
pub(crate) fn reservation(volume: &MeshStorVolume, id: ReplicaId, pick: &Pick) -> MeshStorReplica {
    let name = volume.metadata.name.clone().unwrap_or_default();
    let spec = ReplicaSpec {
        volume: name.clone(),
        volume_id: volume.spec.volume_id.clone(),
        cluster_id: volume.spec.cluster_id.clone(),
        replica: id.to_string(),
        node: pick.node.0.clone(),
        drive: pick.drive.0.clone(),
        partition_bytes: placement::partition_bytes(volume.spec.size_bytes),
        filesystem: meshstor_api::convert::unless_default(&volume.spec.filesystem),
        role: ReplicaRole::Member,
        move_to: None,
        retired_by: None,
        export: ExportSpec::default(),
        recovery: None,
        tombstone: None,
    };
    let metadata = ObjectMeta {
        name: Some(names::replica(&name, id)),
        finalizers: Some(vec![FINALIZER.to_string()]),
        labels: Some(names::labels()),
        ..ObjectMeta::default()
    };
    MeshStorReplica { metadata, spec, status: None }
}
