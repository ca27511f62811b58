//! Replicas on this node: their objects become wishes of partition and export actors, whose reports become the objects'
//! status.
//!
//! An object that a watch no longer shows is asked for by name; one that does not exist changes nothing on the drive:
//! its partition is an orphan, served on as it was, reported, never exported anew, never wiped (K2, K5).

use super::NodeActor;
use super::messages::Verified;
use super::report;
use crate::events;
use crate::sources::{Change, Seen};
use crate::status::{Object, Overwritten, Put};
use crate::worlds::partition::tombstone;
use meshstor_api::MeshStorReplica;
use meshstor_api::node::DriveUse;
use meshstor_api::replica::ReplicaSpec;
use meshstor_kernel::content::Content;
use meshstor_kernel::id::{DriveId, ReplicaKey};
use meshstor_kernel::mutant::{self, Mutant};
use meshstor_plan::drive::DriveUsage;
use meshstor_plan::partition::{PartitionState, PartitionWish, TombstoneWish};
use serde_json::json;
use std::collections::BTreeSet;
use uuid::Uuid;

/// What the volume holds, as the copy's object says.
fn content(spec: &ReplicaSpec) -> Result<Content, String> {
    let word = spec.filesystem.as_deref().map(str::parse).transpose();
    word.map(Option::unwrap_or_default).map_err(|error: String| format!("spec.filesystem: {error}"))
}

/// A replica of this node.
#[derive(Debug)]
pub(super) struct Held {
    /// Which.
    pub(super) key: ReplicaKey,
    /// Its object as last seen.
    pub(super) object: MeshStorReplica,
    /// It was ready once: nothing is ever made in its place, and its status never goes back.
    was_ready: bool,
    /// The server says that the object does not exist.
    orphan: bool,
}

impl NodeActor {
    pub(super) fn replicas_changed(&mut self, change: Change<MeshStorReplica>) {
        match change {
            Change::Applied(object) => self.replica_applied(*object),
            Change::Gone(name) if mutant::on(Mutant::DeletedIsDeletion) => self.wipe_unasked(&name),
            Change::Gone(name) => self.verify_replica(name),
            Change::Listed(objects) => {
                let listed: BTreeSet<String> = objects.iter().filter_map(|o| o.metadata.name.clone()).collect();
                let missing: Vec<String> =
                    self.replicas.keys().filter(|name| !listed.contains(*name)).cloned().collect();
                objects.into_iter().for_each(|object| self.replica_applied(object));
                missing.into_iter().for_each(|name| self.verify_replica(name));
            }
        }
    }

    pub(super) fn replica_applied(&mut self, object: MeshStorReplica) {
        let Some(name) = object.metadata.name.clone() else { return };
        if object.spec.node != self.env.me.0 {
            return;
        }
        let key = match self.key_of(&object) {
            Ok(key) => key,
            Err(why) => {
                tracing::error!(replica = name, why, "not served");
                let said = report::replica_refused(&why);
                let uid = object.metadata.uid.clone();
                let put = Put { fields: json!({}), conditions: vec![said], uid, ..Put::default() };
                self.board.put(Object::Replica(name), put);
                return;
            }
        };
        let recorded = object.status.as_ref().and_then(|status| status.partition.as_ref());
        let ready = recorded.is_some_and(|partition| partition.state == "Ready");
        self.set_aside(&name, key);
        let was_ready = ready || self.replicas.get(&name).is_some_and(|held| held.was_ready);
        {
            let mut book = self.env.book.borrow_mut();
            book.replicas.insert(key, name.clone());
            book.volumes.insert(key.volume, object.spec.volume.clone());
        }
        let status = serde_json::to_value(&object.status).unwrap_or_default();
        if self.board.disagrees(&Object::Replica(name.clone()), &status) {
            let _ = self.writer.try_send(Overwritten(Object::Replica(name.clone())));
        }
        self.replicas.insert(name.clone(), Held { key, object, was_ready, orphan: false });
        self.want_replica(&name);
    }

    /// An object of this name was there before, for another copy: a volume was deleted and made again under its name. What
    /// this node still has of the old copy is nobody's, and is kept like every copy without an object.
    fn set_aside(&mut self, name: &str, key: ReplicaKey) {
        let Some(held) = self.replicas.get(name).filter(|held| held.key != key) else { return };
        let old = held.key;
        if let Some(held) = self.replicas.remove(name) {
            tracing::warn!(replica = name, %old, new = %key, "another copy has its name now");
            self.env.book.borrow_mut().replicas.remove(&old);
            let aside = old.to_string();
            self.replicas.insert(aside.clone(), Held { orphan: true, ..held });
            self.want_replica(&aside);
            self.drop_empty_orphans();
        }
    }

    /// Passes a replica's wish on; also after the operator changed what may be used.
    pub(super) fn want_replica(&mut self, name: &str) {
        let Some(held) = self.replicas.get(name) else { return };
        let (key, orphan) = (held.key, held.orphan);
        let wish = (!orphan).then(|| self.partition_wish(held));
        self.partitions.want(&key, wish);
        self.exports.want(&key, Some(key));
        self.exports.look(&key);
    }

    fn partition_wish(&self, held: &Held) -> PartitionWish {
        let spec = &held.object.spec;
        PartitionWish {
            key: held.key,
            drive: DriveId(spec.drive.clone()),
            bytes: spec.partition_bytes,
            usage: self.usage(&spec.drive),
            cluster: self.env.cluster,
            volume_name: spec.volume.clone(),
            content: content(spec).unwrap_or_default(),
            was_ready: held.was_ready,
            tombstone: tombstone(&held.object),
        }
    }

    /// What the operator allows on a drive.
    pub(super) fn usage(&self, drive: &str) -> DriveUsage {
        let device = self.devices.values().find(|device| device.spec.drive == drive);
        match device.map(|device| device.spec.r#use) {
            None | Some(DriveUse::Auto) => DriveUsage::Auto,
            Some(DriveUse::Use) => DriveUsage::Use,
            Some(DriveUse::Ignore) => DriveUsage::Ignore,
        }
    }

    fn key_of(&self, object: &MeshStorReplica) -> Result<ReplicaKey, String> {
        let spec = &object.spec;
        let volume = spec.volume_id.parse().map_err(|error| format!("spec.volumeID: {error}"))?;
        let replica = spec.replica.parse().map_err(|error| format!("spec.replica: {error}"))?;
        if spec.cluster_id != self.env.cluster.to_string() {
            return Err(format!("spec.clusterID is {}, this cluster is {}", spec.cluster_id, self.env.cluster));
        }
        content(spec)?;
        Ok(ReplicaKey { volume, replica })
    }

    /// Lists this node's replicas anew: a watch that missed an event must not hide it for as long as the watch lasts.
    pub(super) fn list_replicas(&self) {
        let (env, me) = (self.env.clone(), self.me.clone());
        actix::spawn(async move {
            match env.server.replicas_on(&env.me.0).await {
                Ok(objects) => {
                    let _ = me.send(Seen::Replica(Change::Listed(objects))).await;
                }
                Err(error) => tracing::debug!(%error, "this node's replicas could not be listed"),
            }
        });
    }

    /// Wipes a replica because a watch no longer shows its object: what [`Mutant::DeletedIsDeletion`] does.
    fn wipe_unasked(&mut self, name: &str) {
        let Some(held) = self.replicas.get(name) else { return };
        let (key, mut wish) = (held.key, self.partition_wish(held));
        let partition_uuid = key.partition_uuid();
        let (cluster, volume) = (self.env.cluster, key.volume);
        wish.tombstone = Some(TombstoneWish { partition_uuid, cluster, volume, living: false });
        self.partitions.want(&key, Some(wish));
        self.exports.retire(&key);
    }

    /// Asks for an object that a watch no longer shows.
    pub(super) fn verify_replica(&mut self, name: String) {
        let env = self.env.clone();
        let me = self.me.clone();
        actix::spawn(async move {
            let answer = env.server.get::<MeshStorReplica>(&name).await;
            let _ = me.send(Verified { name, answer: answer.map(|object| object.map(Box::new)) }).await;
        });
    }

    pub(super) fn replica_verified(&mut self, verified: Verified) {
        let Verified { name, answer } = verified;
        match answer {
            Ok(Some(object)) => self.replica_applied(*object),
            Ok(None) => self.replica_orphaned(&name),
            // Asked again when the watch lists again, and with every survey.
            Err(error) => {
                tracing::warn!(replica = name, %error, "a replica's object is out of sight and cannot be asked for");
                self.doubtful.insert(name);
            }
        }
    }

    fn replica_orphaned(&mut self, name: &str) {
        let Some(held) = self.replicas.get_mut(name) else { return };
        if !held.orphan {
            held.orphan = true;
            tracing::warn!(replica = name, key = %held.key, "its object does not exist: kept as it is");
        }
        self.board.forget(&Object::Replica(name.to_string()));
        self.want_replica(name);
        self.drop_empty_orphans();
    }

    /// Forgets orphans of which nothing is left on a drive.
    pub(super) fn drop_empty_orphans(&mut self) {
        let gone = |held: &Held, node: &NodeActor| {
            let unwanted = node.partitions.wanted(&held.key).is_none();
            let answer = node.partitions.current(&held.key).filter(|report| report.failing.is_none());
            held.orphan && unwanted && answer.is_some_and(|answer| answer.status.state == PartitionState::Waiting)
        };
        let names: Vec<String> =
            self.replicas.iter().filter(|(_, held)| gone(held, self)).map(|(name, _)| name.clone()).collect();
        for name in names {
            let Some(held) = self.replicas.remove(&name) else { continue };
            self.partitions.retire(&held.key);
            self.exports.retire(&held.key);
            let mut book = self.env.book.borrow_mut();
            book.replicas.remove(&held.key);
            book.found.remove(&held.key);
        }
    }

    /// Writes what a replica's two actors report.
    pub(super) fn report_replica(&mut self, key: ReplicaKey) {
        let found = self.replicas.iter_mut().find(|(_, held)| held.key == key && !held.orphan);
        let Some((name, held)) = found else { return self.drop_empty_orphans() };
        let (Some(partition), Some(export)) = (self.partitions.report(&key), self.exports.report(&key)) else { return };
        // Nothing is known before both have looked: an empty report must not overwrite a true one.
        if partition.revision == 0 || export.revision == 0 {
            return;
        }
        held.was_ready |= partition.status.state == PartitionState::Ready;
        let boot = self.boot.as_ref().map(|boot| boot.0.clone()).unwrap_or_default();
        let uid = held.object.metadata.uid.clone();
        let put = Put { uid: uid.clone(), ..report::replica(&partition, &export, held.was_ready, boot) };
        let removed = partition.failing.is_none() && partition.status.state == PartitionState::Removed;
        // The volume's object, which says who has let go of the ports, goes only after this one.
        let unexported = export.failing.is_none() && export.status.objects == 0;
        if removed && unexported && held.object.spec.tombstone.is_some() {
            self.board.finish(name.clone(), uid.unwrap_or_default());
        }
        self.board.put(Object::Replica(name.clone()), put);
        let (name, was_ready) = (name.clone(), held.was_ready);
        if was_ready {
            self.want_replica_quietly(&name);
        }
    }

    /// As [`NodeActor::want_replica`], without a look: for what changes no decision of a healthy replica.
    fn want_replica_quietly(&mut self, name: &str) {
        let Some(held) = self.replicas.get(name) else { return };
        let (key, wish) = (held.key, self.partition_wish(held));
        self.partitions.want(&key, Some(wish));
    }

    /// Counts partitions of ours that no object names.
    pub(super) fn count_orphans(&self, partitions: impl Iterator<Item = Uuid>) {
        let named: BTreeSet<Uuid> =
            self.replicas.values().filter(|held| !held.orphan).map(|held| held.key.partition_uuid()).collect();
        let orphans: Vec<Uuid> = partitions.filter(|partition| !named.contains(partition)).collect();
        if !orphans.is_empty() && self.replicas_listed {
            tracing::warn!(?orphans, "partitions of ours that no object names: kept, not exported");
        }
        events::orphans(orphans.len());
    }
}
