//! One replica's export: what is recorded for it, read by quorum (F12), its partition, nvmet's objects, the addresses
//! and the service numbers that must rest.

use crate::env::Env;
use crate::failure::Failure;
use crate::shell::World;
use meshstor_api::convert::replica_record;
use meshstor_api::replica::CONNECTED_ANNOTATION;
use meshstor_api::{MeshStorReplica, MeshStorVolume};
use meshstor_kernel::facts::PartitionFact;
use meshstor_kernel::id::{NodeName, ReplicaId, ReplicaKey};
use meshstor_kernel::ops::Changed;
use meshstor_plan::Step;
use meshstor_plan::export::{Export, ExportKeyListen, ExportLook, ExportWish};
use std::collections::BTreeSet;
use std::rc::Rc;

/// The world of one replica's export.
pub struct ExportWorld {
    env: Rc<Env>,
    key: ReplicaKey,
}

impl ExportWorld {
    /// Of this replica.
    pub fn new(env: Rc<Env>, key: ReplicaKey) -> Self {
        ExportWorld { env, key }
    }

    /// What is recorded now, but for the in-sync set; `None` when it cannot be read, is not there, or is not this replica's.
    async fn wish(&self) -> Option<ExportWish> {
        let name = self.env.book.borrow().replicas.get(&self.key).cloned()?;
        let object: MeshStorReplica = match self.env.server.get(&name).await {
            Ok(object) => object?,
            Err(error) => {
                tracing::debug!(key = %self.key, %error, "what is recorded for the export could not be read");
                return None;
            }
        };
        let spec = &object.spec;
        let ours = spec.volume_id == self.key.volume.to_string() && spec.cluster_id == self.env.cluster.to_string();
        let (replica, record) = replica_record(&object)
            .inspect_err(|garbage| tracing::error!(key = %self.key, %garbage, "not exported anew"))
            .ok()?;
        if !ours || replica != self.key.replica || record.node != self.env.me {
            return None;
        }
        let reported =
            record.export.map(|e| ExportKeyListen { epoch: e.epoch, generation: e.generation, listen: e.listen });
        Some(ExportWish {
            cluster: self.env.cluster,
            volume_name: spec.volume.clone(),
            epoch: spec.export.epoch,
            generation: spec.export.generation,
            consumer: spec.export.consumer.clone().map(NodeName),
            reported,
            in_sync: BTreeSet::new(),
            tombstoned: spec.tombstone.is_some(),
            asked: object.metadata.annotations.as_ref().and_then(|all| all.get(CONNECTED_ANNOTATION)).cloned(),
        })
    }

    /// The in-sync set for the drive's own record. Only recovery reads it there, so the volume's object is asked for
    /// only when that record is about to be written, and what the drive says already will do when it does not answer.
    async fn in_sync(&self, epoch: u64, volume: &str, partition: Option<&PartitionFact>) -> BTreeSet<ReplicaId> {
        let Some(record) = partition.and_then(|p| p.record.as_ref()) else { return BTreeSet::new() };
        if record.epoch >= epoch {
            return record.in_sync.clone();
        }
        let object: Option<MeshStorVolume> = self.env.server.get(volume).await.ok().flatten();
        let set = object.and_then(|object| object.status?.in_sync);
        let set = set.map(|set| set.iter().filter_map(|text| text.parse().ok()).collect());
        set.unwrap_or_else(|| record.in_sync.clone())
    }
}

impl World<Export> for ExportWorld {
    async fn observe(&self, _: Option<&ReplicaKey>) -> Result<ExportLook, Failure> {
        let kernel = &self.env.kernel;
        // The record first: what the kernel shows is then not older than what it is compared with.
        let mut wish = self.wish().await;
        let quarantined = self.env.resting_ports().await.inspect_err(|_| wish = None).unwrap_or_default();
        let partition = kernel.partition(self.key).await?;
        if let Some(wish) = &mut wish {
            wish.in_sync = self.in_sync(wish.epoch, &wish.volume_name, partition.as_ref()).await;
        }
        Ok(ExportLook {
            me: self.env.me.clone(),
            wish,
            partition,
            exports: kernel.exports(self.key).await?,
            addresses: self.env.addresses().await?,
            quarantined,
        })
    }

    async fn apply(&self, step: &Step) -> Result<Changed, Failure> {
        self.env.apply_to_kernel(step).await
    }
}
