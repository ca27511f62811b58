//! One replica's partition: the drive, the entry, its exports. A wish to wipe is read again by quorum at the time of
//! the wipe (docs/protocol.md, rule 10).

use crate::env::Env;
use crate::failure::Failure;
use crate::shell::World;
use meshstor_api::MeshStorReplica;
use meshstor_kernel::id::ReplicaKey;
use meshstor_kernel::mutant::{self, Mutant};
use meshstor_kernel::ops::{Changed, Op};
use meshstor_plan::Step;
use meshstor_plan::partition::{Partition, PartitionLook, PartitionWish, TombstoneWish};
use std::rc::Rc;

/// The world of one replica's partition.
pub struct PartitionWorld {
    env: Rc<Env>,
    key: ReplicaKey,
}

impl PartitionWorld {
    /// Of this replica.
    pub fn new(env: Rc<Env>, key: ReplicaKey) -> Self {
        PartitionWorld { env, key }
    }

    /// The replica's object as the server has it now.
    async fn object(&self) -> Result<Option<MeshStorReplica>, Failure> {
        let name = self.env.book.borrow().replicas.get(&self.key).cloned().unwrap_or_default();
        self.env.server.get(&name).await
    }

    /// The object is there now and is to live. A watch that lags behind a list shows one that was buried and is gone: what is
    /// made for it is nobody's, and stays for ever (simulator, seed 2223).
    async fn living(&self) -> Result<(), Failure> {
        let lives = self
            .object()
            .await?
            .is_some_and(|object| object.spec.tombstone.is_none() && object.metadata.deletion_timestamp.is_none());
        if lives { Ok(()) } else { Err(Failure::Raced { what: format!("making {}", self.key) }) }
    }

    /// The tombstone stands in the object now, word for word.
    async fn confirm(&self, wanted: &TombstoneWish) -> Result<(), Failure> {
        if mutant::on(Mutant::DeletedIsDeletion) {
            return Ok(());
        }
        let object = self.object().await?;
        let stands = object.as_ref().and_then(tombstone).is_some_and(|now| now == *wanted);
        if stands { Ok(()) } else { Err(Failure::Raced { what: format!("the tombstone of {}", self.key) }) }
    }
}

/// The tombstone of a replica, when every name in it can be read; anything else is no wish.
pub fn tombstone(object: &MeshStorReplica) -> Option<TombstoneWish> {
    let tombstone = object.spec.tombstone.as_ref()?;
    Some(TombstoneWish {
        partition_uuid: tombstone.partition_uuid.parse().ok()?,
        cluster: tombstone.cluster_id.parse().ok()?,
        volume: tombstone.volume_id.parse().ok()?,
        living: tombstone.reason == "Dismissed",
    })
}

impl World<Partition> for PartitionWorld {
    async fn observe(&self, wish: Option<&PartitionWish>) -> Result<PartitionLook, Failure> {
        let kernel = &self.env.kernel;
        let partition = kernel.partition(self.key).await?;
        if let (Some(tombstone), Some(_)) = (wish.and_then(|wish| wish.tombstone.as_ref()), &partition) {
            self.confirm(tombstone).await?;
        }
        let living = wish.and_then(|wish| wish.tombstone.as_ref()).is_some_and(|tombstone| tombstone.living);
        let record = match living && partition.is_some() {
            true => Some(self.env.read_record(self.key.volume).await.look),
            false => None,
        };
        let drive = match wish {
            Some(wish) => kernel.drive(&wish.drive).await?,
            None => None,
        };
        Ok(PartitionLook { drive, partition, exports: kernel.exports(self.key).await?, record })
    }

    async fn apply(&self, step: &Step) -> Result<Changed, Failure> {
        if let (Step::Kernel(Op::AddPartition { .. }), false) = (step, mutant::on(Mutant::MadeUnread)) {
            self.living().await?;
        }
        self.env.apply_to_kernel(step).await
    }
}
