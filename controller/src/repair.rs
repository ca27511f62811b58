//! Repair: lost copies are replaced, copies that are to leave get a successor, and copies follow the pod.
//!
//! Called by the loop for every volume whose record can be trusted. One step at a time, each by compare-and-swap on what
//! was read: [`plan`] decides, [`missing`] says who is lost and since when, what is here reads and writes. Any number of
//! controllers may do so at once, and each may die anywhere: numbers of new copies follow all that were seen, so two that
//! see the same loss make the same object.
//!
//! It never wipes a copy that may be complete. A copy is dismissed in the volume's own object first, while it is outside of
//! the set; whoever takes copies into the set tests that nothing of that object has changed. Only then comes the tombstone.

mod missing;
mod plan;
mod reserve;

use crate::Context;
use crate::decide;
use crate::delete;
use crate::error::ControlError;
use crate::expand;
use crate::offers;
use crate::reconcile::Next;
use crate::telemetry;
use crate::writer::Endpoint;
use k8s_openapi::jiff::Timestamp;
use meshstor_api::condition::Condition;
use meshstor_api::patch;
use meshstor_api::replica::{MeshStorReplica, ReplicaRole};
use meshstor_api::volume::{LocalCopy, MeshStorVolume, TopologySpread};
use meshstor_kernel::id::ReplicaId;
use meshstor_plan::Reason;
use meshstor_plan::record::VolumeRecord;
use missing::Missing;
use plan::{Action, Cause, CopyView, View};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub(crate) use reserve::Refusals;

/// The condition of a volume that says what repair does, or why it cannot.
const REPAIR: &str = "Repair";

/// One reading of a volume, for repair.
struct Case<'a> {
    context: &'a Context,
    volume: &'a MeshStorVolume,
    record: &'a VolumeRecord,
    in_sync: &'a BTreeSet<ReplicaId>,
    /// All that were seen, leftovers of earlier volumes included.
    seen: &'a [MeshStorReplica],
    /// This volume's.
    own: BTreeMap<ReplicaId, &'a MeshStorReplica>,
    /// Of these, the ones that do not come back.
    lost: BTreeSet<ReplicaId>,
    /// Copies in the zone of the consumer; known when one is about to follow it, and only where zones matter.
    neighbours: BTreeSet<ReplicaId>,
}

/// One step of repair. `None`: there is nothing to do, and nothing to wait for.
pub(crate) async fn step(
    context: &Context,
    volume: &MeshStorVolume,
    record: &VolumeRecord,
    seen: &[MeshStorReplica],
) -> Result<Option<Next>, ControlError> {
    let decide::Recorded::Yes(in_sync) = decide::recorded(record) else { return Ok(None) };
    // A record that went back in time, or an object that somebody deletes by hand: nothing is moved, nothing wiped.
    if decide::regressed(volume, seen).is_some() || volume.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let mine = seen.iter().filter(|replica| decide::belongs(volume, replica));
    let own = mine.filter_map(|replica| Some((replica.spec.replica.parse().ok()?, replica))).collect();
    let (lost, neighbours) = (BTreeSet::new(), BTreeSet::new());
    let mut case = Case { context, volume, record, in_sync: &in_sync, seen, own, lost, neighbours };
    let missing = case.missing().await?;
    if case.mark(&missing).await? {
        return Ok(Some(Next::After(context.config.poll)));
    }
    case.lost = case.lost(&missing);
    case.neighbours = case.neighbours().await?;
    let view = case.view();
    let mut blocked = None;
    if let Some(action) = plan::decide(&view) {
        match case.act(&action).await {
            Ok(Acted::Done) => {
                tracing::info!(volume = %record.name, ?action, "repair");
                return Ok(Some(Next::After(context.config.poll)));
            }
            Ok(Acted::Blocked(reason)) => blocked = Some(reason),
            Ok(Acted::Nothing) => {}
            Err(error) if error.is_stale() => return Ok(Some(Next::After(context.config.poll))),
            Err(error) => return Err(error),
        }
    }
    let state = blocked.or_else(|| state(&view));
    case.report(state.as_ref()).await?;
    // A heartbeat that stops and a delay that is over give no hint.
    if state.is_some() || case.own.keys().any(|id| case.awaited(*id)) {
        return Ok(Some(Next::After(context.config.repair_poll)));
    }
    let left = case.away(&view).then(|| case.residence()).flatten();
    Ok(left.map(|left| Next::After(if left.is_zero() { context.config.resync } else { left })))
}

/// What became of a step.
pub(crate) enum Acted {
    /// Something has changed: look again.
    Done,
    /// This stands in its way.
    Blocked(Reason),
    /// It would be good and is not needed.
    Nothing,
}

/// What is under way.
fn state(view: &View) -> Option<Reason> {
    let pending = view.copies.iter().find(|(_, copy)| !copy.in_sync && !copy.lost && !copy.retiring && !copy.buried);
    let moving = view.copies.iter().find(|(_, copy)| copy.retiring && copy.in_sync);
    let lost = view.copies.iter().find(|(_, copy)| copy.lost && !copy.retiring && !copy.buried);
    match (moving, lost, pending) {
        (Some((replica, _)), ..) => Some(Reason::Moving { replica: *replica }),
        (None, Some((replica, _)), Some((by, _))) => Some(Reason::Replacing { replica: *replica, by: *by }),
        _ => None,
    }
}

impl Case<'_> {
    fn now(&self) -> Timestamp {
        (self.context.config.now)()
    }

    /// Members outside of the set that are missing.
    async fn missing(&self) -> Result<BTreeMap<ReplicaId, Missing>, ControlError> {
        let timeout = Duration::from_secs(self.volume.spec.member_missing_timeout_seconds.into());
        let mut missing = BTreeMap::new();
        for (id, replica) in self.own.iter().filter(|(id, _)| self.awaited(**id)) {
            if let Some(found) = missing::look(self.context, replica, timeout).await? {
                missing.insert(*id, found);
            }
        }
        Ok(missing)
    }

    /// Whether a copy should be in the set and is not.
    fn awaited(&self, id: ReplicaId) -> bool {
        !self.in_sync.contains(&id) && self.record.replicas.get(&id).is_some_and(|copy| copy.wanted)
    }

    /// Starts and stops the clocks. Returns whether anything was written.
    async fn mark(&self, missing: &BTreeMap<ReplicaId, Missing>) -> Result<bool, ControlError> {
        let now = self.context.timestamp();
        let mut written = false;
        for (id, replica) in self.own.iter().filter(|(_, replica)| replica.spec.tombstone.is_none()) {
            let Some(condition) = missing::condition(replica, missing.get(id), &now) else { continue };
            let have = replica.status.as_ref().map(|status| status.conditions.as_slice());
            let Some(patch) = patch::conditions(&replica.metadata, have, &[condition])? else { continue };
            let name = replica.metadata.name.as_deref().unwrap_or_default();
            match self.context.writer.patch::<MeshStorReplica>(name, Endpoint::Status, patch).await {
                Ok(()) => {}
                Err(error) if error.is_stale() => {}
                Err(error) => return Err(error),
            }
            written = true;
        }
        Ok(written)
    }

    fn lost(&self, missing: &BTreeMap<ReplicaId, Missing>) -> BTreeSet<ReplicaId> {
        let lost = |id: &ReplicaId, replica: &MeshStorReplica| {
            missing.get(id).is_some_and(|missing| missing::lost(replica, missing, self.now()))
        };
        self.own.iter().filter(|(id, replica)| lost(id, replica)).map(|(id, _)| *id).collect()
    }

    /// Nodes of the copies that the volume is to keep, one that is about to leave apart.
    fn staying(&self, leaving: Option<ReplicaId>) -> impl Iterator<Item = &str> {
        let stays = move |id: &ReplicaId, replica: &MeshStorReplica| {
            let going = replica.spec.role == ReplicaRole::Retiring || replica.spec.tombstone.is_some();
            !going && !self.lost.contains(id) && leaving != Some(*id)
        };
        self.own.iter().filter(move |(id, replica)| stays(id, replica)).map(|(_, replica)| replica.spec.node.as_str())
    }

    /// Copies in the zone of a consumer that is to get one of its own: that one goes, so that zones stay as they are.
    async fn neighbours(&self) -> Result<BTreeSet<ReplicaId>, ControlError> {
        let spread = self.volume.spec.topology_spread;
        let Some(consumer) = self.record.consumer.as_ref().map(|node| node.0.as_str()) else {
            return Ok(BTreeSet::new());
        };
        let away = self.own.values().all(|replica| replica.spec.node != consumer);
        if spread == TopologySpread::None || !away || self.residence().is_none_or(|left| !left.is_zero()) {
            return Ok(BTreeSet::new());
        }
        let zones = offers::zones(self.context, spread).await?;
        let zone = zones.get(consumer);
        let near = |replica: &MeshStorReplica| zone.is_some() && zones.get(&replica.spec.node) == zone;
        Ok(self.own.iter().filter(|(_, replica)| near(replica)).map(|(id, _)| *id).collect())
    }

    fn view(&self) -> View {
        let now = self.now();
        let dismissed = &self.volume.spec.dismissed;
        let array = self.volume.status.as_ref().and_then(|status| status.array.as_ref());
        let member = |id: &ReplicaId| {
            let prefix = format!("{id}=");
            array.is_some_and(|array| array.members.iter().any(|member| member.starts_with(&prefix)))
        };
        let copy = |id: &ReplicaId, replica: &MeshStorReplica| CopyView {
            node: replica.spec.node.clone(),
            in_sync: self.in_sync.contains(id),
            retiring: replica.spec.role == ReplicaRole::Retiring,
            relocating: replica.spec.retired_by.as_deref() == Some(Cause::Relocation.word()),
            move_to: replica.spec.move_to.clone(),
            used: member(id),
            dismissed: dismissed.contains(&replica.spec.replica),
            buried: replica.spec.tombstone.is_some(),
            deleting: replica.metadata.deletion_timestamp.is_some(),
            lost: self.lost.contains(id),
            cramped: expand::cramped(self.volume, replica),
            neighbour: self.neighbours.contains(id),
            refused: reserve::refusal(self.context, replica, now).is_some(),
        };
        let copies = self.own.iter().map(|(id, replica)| (*id, copy(id, replica))).collect();
        let attachment = &self.volume.spec.attachment;
        View {
            count: self.record.replica_count as usize,
            consumer: attachment.consumer.clone(),
            resident: self.residence().is_some_and(|left| left.is_zero()),
            copies,
        }
    }

    /// How long the consumer has still to stay before a copy follows it; `None`: none ever does.
    fn residence(&self) -> Option<Duration> {
        let delay = self.volume.spec.relocation_delay_seconds?;
        let since: Timestamp = self.volume.spec.attachment.since.as_ref()?.parse().ok()?;
        let in_use = self.record.consumer.is_some() && self.record.activated_epoch == self.record.epoch;
        if !in_use || self.volume.spec.local_copy == LocalCopy::None {
            return None;
        }
        let stayed = u64::try_from(self.now().as_second().saturating_sub(since.as_second())).unwrap_or(0);
        Some(Duration::from_secs(u64::from(delay).saturating_sub(stayed)))
    }

    /// No copy is where the volume is used.
    fn away(&self, view: &View) -> bool {
        view.consumer.as_ref().is_some_and(|node| view.copies.values().all(|copy| copy.node != *node))
    }

    /// Does one step.
    async fn act(&self, action: &Action) -> Result<Acted, ControlError> {
        match action {
            Action::Bury(id) => match self.own.get(id) {
                Some(replica) => delete::bury(self.context, replica, "Dismissed").await?,
                None => return Ok(Acted::Nothing),
            },
            Action::Dismiss(id) => {
                let existing = self.own.keys().copied().collect();
                self.of_volume(Endpoint::Main, patch::dismissal(self.volume, *id, &existing)?).await?;
            }
            Action::Shrink(id) => self.of_volume(Endpoint::Status, patch::detached_shrink(self.volume, *id)?).await?,
            Action::Stay(id) => self.role(*id, ReplicaRole::Member, None, None).await?,
            Action::Retire(id, cause) => {
                if let (Cause::Refused, Some(replica)) = (cause, self.own.get(id)) {
                    let why = reserve::refusal(self.context, replica, self.now()).unwrap_or_default();
                    self.context.refusals.note(&self.record.name, &replica.spec.node, why);
                }
                self.role(*id, ReplicaRole::Retiring, None, Some(*cause)).await?;
            }
            Action::Relocate(id, to) => {
                // Without room there the copies stay where they are; that is no fault.
                if reserve::place(self, &plan::Place::Only(to.clone()), Some(*id)).await?.is_err() {
                    return Ok(Acted::Nothing);
                }
                self.role(*id, ReplicaRole::Retiring, Some(to.clone()), Some(Cause::Relocation)).await?;
            }
            Action::Reserve(place) => return self.reserve(place).await,
        }
        Ok(Acted::Done)
    }

    /// One more copy; a move for locality's sake is called off when there is no place after all.
    async fn reserve(&self, place: &plan::Place) -> Result<Acted, ControlError> {
        let acted = reserve::reserve(self, place).await?;
        let vain = |(id, replica): &(&ReplicaId, &&MeshStorReplica)| {
            let relocating = replica.spec.retired_by.as_deref() == Some(Cause::Relocation.word());
            relocating && replica.spec.role == ReplicaRole::Retiring && self.in_sync.contains(*id)
        };
        match (&acted, self.own.iter().find(vain)) {
            (Acted::Blocked(_), Some((id, _))) => {
                self.role(*id, ReplicaRole::Member, None, None).await?;
                Ok(Acted::Done)
            }
            _ => Ok(acted),
        }
    }

    async fn of_volume(&self, at: Endpoint, patch: json_patch::Patch) -> Result<(), ControlError> {
        self.context.writer.patch::<MeshStorVolume>(&self.record.name, at, patch).await
    }

    async fn role(
        &self,
        id: ReplicaId,
        role: ReplicaRole,
        to: Option<String>,
        cause: Option<Cause>,
    ) -> Result<(), ControlError> {
        let Some(replica) = self.own.get(&id) else { return Ok(()) };
        let name = replica.metadata.name.as_deref().unwrap_or_default();
        let patch = patch::role(replica, role, to, cause.map(|cause| cause.word().to_string()))?;
        self.context.writer.patch::<MeshStorReplica>(name, Endpoint::Main, patch).await?;
        if let Some(cause) = cause {
            telemetry::retired(cause.word());
        }
        Ok(())
    }

    /// Says what is under way; nothing is written about a volume that never needed repair.
    async fn report(&self, state: Option<&Reason>) -> Result<(), ControlError> {
        let old = self.volume.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        if state.is_none() && old.iter().all(|condition| condition.type_ != REPAIR) {
            return Ok(());
        }
        let mut list: Vec<Condition> = old.to_vec();
        let (word, message) = state.map_or(("Healthy", String::new()), |reason| (reason.word(), reason.to_string()));
        meshstor_api::condition::set(&mut list, REPAIR, state.is_some(), word, &message, &self.context.timestamp());
        list.retain(|condition| condition.type_ == REPAIR);
        let Some(patch) = patch::volume_conditions(self.volume, &list)? else { return Ok(()) };
        match self.of_volume(Endpoint::Status, patch).await {
            Ok(()) => {
                self.context.tell(self.volume, &list).await;
                Ok(())
            }
            Err(error) if error.is_stale() => Ok(()),
            Err(error) => Err(error),
        }
    }
}
