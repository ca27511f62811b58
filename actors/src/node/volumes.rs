//! Volumes that this node has staged, is staging or letting go: who has to want what, in which order, and what those who
//! wait get to see.
//!
//! ```text
//!  stage:    array wants `staged` ─ record ─▶ connections want its exports        file system wants its target
//!  unstage:  file system wants none ─ready─▶ array wants not staged ─released─▶ connections want none ─▶ forgotten
//! ```
//!
//! It decides nothing about data: each actor's plan does. What is here survives a restart because it is found again in
//! the kernel.

use super::NodeActor;
use super::health::{Copies, Health, health};
use super::messages::{AskVolumeGrowth, Growth};
use super::report;
use super::survey::Survey;
use crate::events;
use crate::sources::{Sources, Watching};
use crate::status::Object;
use meshstor_kernel::Class;
use meshstor_kernel::id::{ReplicaId, ReplicaKey, VolumeId};
use meshstor_plan::Reason;
use meshstor_plan::array::{ArrayPhase, ArrayWish};
use meshstor_plan::connection::ConnectionWish;
use meshstor_plan::record::VolumeRecord;
use meshstor_plan::stage::StageWish;
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::watch;

/// How a volume is on this node, for those who wait for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeView {
    /// Rises whenever something else is wanted of the volume.
    pub wish: u64,
    /// How far it is.
    pub state: VolumeState,
    /// What it waits for, and whether trying again can help.
    pub waits: Option<(Reason, Class)>,
    /// The epoch that its array runs under, as last looked at; `None` while none runs.
    pub epoch: Option<u64>,
}

/// How far a volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeState {
    /// On its way up.
    Staging,
    /// Mounted here, and alive; or a raw block volume that was staged under this path.
    Staged(String),
    /// On its way down.
    Releasing,
    /// This node holds nothing of it any more.
    Gone,
}

/// A volume of this node.
pub(super) struct Staged {
    name: String,
    wish: u64,
    going: Going,
    view: watch::Sender<VolumeView>,
    wired: Option<VolumeRecord>,
    connections: BTreeSet<ReplicaKey>,
    copies: Watching,
}

impl Staged {
    /// How it is.
    pub(super) fn view(&self) -> VolumeView {
        self.view.borrow().clone()
    }

    /// Its object's name has become known.
    pub(super) fn rename(&mut self, name: &str, sources: &Sources) {
        if self.name != name {
            self.name = name.to_string();
            self.copies = sources.watch_copies(name);
        }
    }
}

/// Where a volume that is up is to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere: found running without a mount, kept running.
    Found,
    /// Its file system is mounted here.
    Mounted(String),
    /// It is a raw block volume, staged under this path, where nothing is.
    Raw(String),
}

/// Where a volume is going.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Going {
    /// Up, to be had there.
    Up(Place),
    /// Away; whether the file system's end is waited for before the array may stop.
    Down,
}

impl NodeActor {
    /// Takes up what was found in the kernel: a restart of this agent changes nothing.
    pub(super) fn adopt(&mut self, survey: &Survey) {
        for (volume, found) in &survey.volumes {
            if let Some(name) = &found.name {
                self.env.book.borrow_mut().volumes.entry(*volume).or_insert_with(|| name.clone());
            }
            if self.volumes.contains_key(volume) || !(found.array || found.connected) {
                continue;
            }
            let target = found.staging_target();
            tracing::info!(%volume, name = found.name, array = found.array, target, "found in the kernel");
            let name = found.name.clone().unwrap_or_else(|| volume.to_string());
            if found.array {
                self.bring_up(&name, *volume, target.map_or(Place::Found, Place::Mounted), Vec::new());
            } else {
                // Connections that nothing uses: what is left of a half-done stage or unstage.
                self.let_go(&name, *volume);
            }
        }
    }

    /// Wants a volume up and to be had at a place, mounted with these options.
    pub(super) fn bring_up(
        &mut self,
        name: &str,
        volume: VolumeId,
        place: Place,
        options: Vec<String>,
    ) -> watch::Receiver<VolumeView> {
        if self.stopping.is_some() {
            return ending();
        }
        self.head_for(name, volume, Going::Up(place.clone()));
        let array = Some(ArrayWish { volume, staged: true });
        // Whoever asks must not be told what was true before a mount died, or before the volume was attached anew: the
        // mount of a former epoch lives until its array is deposed (simulator, seed 221).
        match place {
            Place::Found => {
                self.arrays.want(&volume, array);
            }
            Place::Raw(_) => {
                // One that was let go a moment ago still unmounts whatever there is of the volume.
                self.stages.retire(&volume);
                self.arrays.want_afresh(&volume, array);
            }
            Place::Mounted(target) => {
                self.arrays.want_afresh(&volume, array);
                self.stages.want_afresh(&volume, Some(StageWish { volume, target: Some(target), options }));
            }
        }
        self.advance(volume)
    }

    /// Wants a volume gone from this node.
    pub(super) fn let_go(&mut self, name: &str, volume: VolumeId) -> watch::Receiver<VolumeView> {
        if self.stopping.is_some() {
            return ending();
        }
        self.head_for(name, volume, Going::Down);
        self.stages.want(&volume, Some(StageWish { volume, target: None, options: Vec::new() }));
        if !self.arrays.contains(&volume) {
            // It has to be there to say that it is released; it waits until the file system is unmounted.
            self.arrays.want(&volume, None);
        }
        self.advance(volume)
    }

    fn head_for(&mut self, name: &str, volume: VolumeId, going: Going) {
        if name != volume.to_string() {
            self.env.book.borrow_mut().volumes.insert(volume, name.to_string());
        }
        if let Some(staged) = self.volumes.get_mut(&volume) {
            if staged.going != going {
                staged.going = going;
                staged.wish += 1;
            }
            return;
        }
        let view = VolumeView { wish: 1, state: VolumeState::Staging, waits: None, epoch: None };
        let staged = Staged {
            name: name.to_string(),
            wish: 1,
            going,
            view: watch::Sender::new(view),
            wired: None,
            connections: BTreeSet::new(),
            copies: self.sources.watch_copies(name),
        };
        self.volumes.insert(volume, staged);
    }

    /// Does what follows from the present reports of a volume's actors, and shows how far it is.
    pub(super) fn advance(&mut self, volume: VolumeId) -> watch::Receiver<VolumeView> {
        self.wire(volume);
        let down = matches!(self.volumes.get(&volume).map(|s| &s.going), Some(Going::Down));
        let (state, waits) = if down { self.advance_down(volume) } else { self.look_up(volume) };
        let array = self.arrays.current(&volume).filter(|array| array.status.phase == ArrayPhase::Active);
        let epoch = array.map(|array| array.status.epoch);
        let Some(staged) = self.volumes.get(&volume) else { return gone() };
        let view = VolumeView { wish: staged.wish, state, waits, epoch };
        let receiver = staged.view.subscribe();
        let finished = view.state == VolumeState::Gone;
        staged.view.send_if_modified(|now| std::mem::replace(now, view.clone()) != view);
        self.report_volume(volume);
        if finished && self.quiet(volume) {
            self.forget_volume(volume);
        }
        receiver
    }

    fn look_up(&self, volume: VolumeId) -> (VolumeState, Option<(Reason, Class)>) {
        let place = match self.volumes.get(&volume).map(|staged| &staged.going) {
            Some(Going::Up(place)) => place.clone(),
            _ => Place::Found,
        };
        let stage = self.stages.current(&volume);
        let mounted = stage.as_ref().is_some_and(|stage| stage.failing.is_none() && stage.status.ready);
        let array = self.arrays.current(&volume);
        // A record in doubt stops nothing: what runs is as good as before.
        let runs = array.as_ref().is_some_and(|array| {
            let doubt = matches!(array.status.reason, Some(Reason::EpochRegressed { .. } | Reason::RecordLost { .. }));
            array.failing.is_none() && (array.status.phase == ArrayPhase::Active || doubt)
        });
        match place {
            Place::Mounted(target) if mounted && runs => return (VolumeState::Staged(target), None),
            Place::Raw(target) if runs => return (VolumeState::Staged(target), None),
            _ => {}
        }
        let of_array = array.filter(|a| a.failing.is_some() || a.status.phase != ArrayPhase::Active);
        let of_array = of_array.and_then(|a| match a.failing {
            Some(failing) => Some((failing.reason, failing.class)),
            None => a.status.reason.map(|reason| (reason, Class::Wait)),
        });
        let of_stage = stage.and_then(|s| match s.failing {
            Some(failing) => Some((failing.reason, failing.class)),
            None => s.status.reason.map(|reason| (reason, Class::Wait)),
        });
        (VolumeState::Staging, of_array.or(of_stage))
    }

    fn advance_down(&mut self, volume: VolumeId) -> (VolumeState, Option<(Reason, Class)>) {
        let Some(stage) = self.stages.current(&volume) else { return (VolumeState::Releasing, None) };
        let array = || self.arrays.current(&volume).and_then(|array| array.status.reason);
        if let Some(failing) = stage.failing {
            return (VolumeState::Releasing, unmounting(Some((failing.reason, failing.class)), array()));
        }
        if !stage.status.ready {
            let waits = stage.status.reason.map(|reason| (reason, Class::Wait));
            return (VolumeState::Releasing, unmounting(waits, array()));
        }
        self.arrays.want(&volume, Some(ArrayWish { volume, staged: false }));
        match self.arrays.current(&volume) {
            Some(array) if array.status.phase == ArrayPhase::Released => (VolumeState::Gone, None),
            Some(array) => {
                let failing = array.failing.map(|failing| (failing.reason, failing.class));
                (VolumeState::Releasing, failing.or(array.status.reason.map(|reason| (reason, Class::Wait))))
            }
            None => (VolumeState::Releasing, Some((Reason::Releasing, Class::Wait))),
        }
    }

    /// Passes the record's exports on to the connections.
    fn wire(&mut self, volume: VolumeId) {
        let record = self.env.last_record(volume);
        let Some(staged) = self.volumes.get_mut(&volume) else { return };
        let up = matches!(staged.going, Going::Up(_));
        let mine = record.as_ref().is_some_and(|record| record.consumer.as_ref() == Some(&self.env.me));
        let mut wanted: BTreeMap<ReplicaKey, ConnectionWish> = BTreeMap::new();
        let wish = |replica, export| ConnectionWish { replica, me: self.env.me.clone(), export };
        for key in &staged.connections {
            wanted.insert(*key, wish(*key, None));
        }
        match &record {
            Some(record) if up && mine => {
                let remote = |replica: &ReplicaId| {
                    let there = record.replicas.get(replica).is_some_and(|r| r.node != self.env.me);
                    let usable = record.usable_export(*replica).filter(|(_, export)| !export.listen.is_empty());
                    there.then(|| (record.key(*replica), usable.map(|(key, export)| (key, export.listen.clone()))))
                };
                for (key, export) in record.replicas.keys().filter_map(remote) {
                    wanted.insert(key, wish(key, export));
                }
            }
            // Never read since the start: whatever is connected stays as it is.
            None if up => return,
            _ => {}
        }
        staged.wired = record;
        staged.connections = wanted.keys().copied().collect();
        for (key, wish) in wanted {
            self.connections.want(&key, Some(wish));
        }
    }

    /// How far a volume has grown. Its actors look again, because whoever asks knows that it is to be larger.
    pub(super) fn growth(&self, asked: AskVolumeGrowth) -> Growth {
        let AskVolumeGrowth { volume, raw, array_bytes } = asked;
        self.arrays.look(&volume);
        self.stages.look(&volume);
        let (array, stage) = (self.arrays.report(&volume), self.stages.report(&volume));
        let of_array = array.and_then(|a| a.failing.map(|failing| failing.reason).or(a.status.reason));
        let of_stage = stage.as_ref().and_then(|s| s.failing.as_ref().map(|f| f.reason.clone()));
        let of_stage = of_stage.or(stage.as_ref().and_then(|s| s.status.reason.clone()));
        Growth {
            raw,
            array_bytes,
            filled: stage.map_or(0, |stage| stage.status.filled),
            recorded: self.env.last_record(volume).map(|record| record.size_bytes),
            reason: of_array.or(of_stage),
        }
    }

    /// How a volume of this node is.
    pub(super) fn health(&self, volume: VolumeId) -> Health {
        let (array, stage) = (self.arrays.report(&volume), self.stages.report(&volume));
        let record = self.env.last_record(volume);
        let copies = record.and_then(|r| Some(Copies { wanted: r.replica_count as usize, in_sync: r.in_sync? }));
        health(array.as_ref(), stage.as_ref(), copies.as_ref())
    }

    /// Says how much this node's arrays have still to copy.
    pub(super) fn count_resyncs(&self) {
        let left = self.volumes.keys().filter_map(|volume| Some(self.arrays.report(volume)?.status.sync_bytes_left));
        events::resyncs(left.sum(), self.env.speeds.max_kib);
    }

    /// Volumes whose record was read anew since their connections were wired.
    pub(super) fn rewired(&self) -> Vec<VolumeId> {
        let changed = |(volume, staged): &(&VolumeId, &Staged)| self.env.last_record(**volume) != staged.wired;
        self.volumes.iter().filter(changed).map(|(volume, _)| *volume).collect()
    }

    fn report_volume(&mut self, volume: VolumeId) {
        let Some(staged) = self.volumes.get(&volume) else { return };
        let mine = staged.wired.as_ref().is_some_and(|record| record.consumer.as_ref() == Some(&self.env.me));
        let content = staged.wired.as_ref().map(|record| record.content).unwrap_or_default();
        let object = Object::Volume(staged.name.clone());
        let array = self.arrays.report(&volume);
        let put = array.and_then(|array| report::volume(&array, self.stages.report(&volume).as_ref(), content));
        match put {
            Some(put) if mine => {
                self.board.put(object, put);
            }
            _ => self.board.forget(&object),
        }
    }

    /// Whether nothing of a volume that was let go has still to be done: the record says so, and no connection is left.
    fn quiet(&self, volume: VolumeId) -> bool {
        let recorded = self.arrays.current(&volume).is_some_and(|array| array.failing.is_none());
        let keys = self.connections.keys().filter(|key| key.volume == volume);
        let parted = |key: &ReplicaKey| self.connections.current(key).is_some_and(|c| c.failing.is_none());
        self.env.server.reachable() && recorded && keys.into_iter().all(parted)
    }

    fn forget_volume(&mut self, volume: VolumeId) {
        let keys: Vec<ReplicaKey> = self.connections.keys().filter(|key| key.volume == volume).copied().collect();
        keys.iter().for_each(|key| self.connections.retire(key));
        self.stages.retire(&volume);
        self.arrays.retire(&volume);
        // What is on the board is still written: it says that the array is stopped.
        self.volumes.remove(&volume);
        self.env.forget(volume);
    }
}

/// What those get to see who ask an agent that ends: a channel that closes.
fn ending() -> watch::Receiver<VolumeView> {
    watch::channel(VolumeView { wish: 0, state: VolumeState::Releasing, waits: None, epoch: None }).1
}

/// A view of a volume that this node holds nothing of.
fn gone() -> watch::Receiver<VolumeView> {
    watch::channel(VolumeView { wish: 0, state: VolumeState::Gone, waits: None, epoch: None }).1
}

/// What a volume waits for that is being unmounted. Nothing can be unmounted that still writes to a copy that is away (F23):
/// that is the reason, and not how the unmount failed for it.
fn unmounting(of_stage: Option<(Reason, Class)>, of_array: Option<Reason>) -> Option<(Reason, Class)> {
    match of_array {
        Some(frozen @ Reason::LastCopyFrozen { .. }) => Some((frozen, Class::Wait)),
        _ => of_stage,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshstor_kernel::id::ReplicaId;

    #[test]
    fn an_unmount_that_fails_for_a_frozen_copy_says_so() {
        let busy = || Some((Reason::Busy { holder: "a process".into() }, Class::Retry));
        let frozen = Reason::LastCopyFrozen { replica: ReplicaId(1) };
        assert_eq!(unmounting(busy(), Some(frozen.clone())), Some((frozen, Class::Wait)));
        assert_eq!(unmounting(busy(), Some(Reason::Releasing)), busy());
        assert_eq!(unmounting(busy(), None), busy());
    }
}
