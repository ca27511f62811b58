//! ControllerExpandVolume: room on every copy first, then the volume's own size (docs/protocol.md, expansion).
//!
//! ```text
//!  spec.partitionBytes of every copy ─▶ its node grows the partition ─▶ … all complete copies ─▶ spec.sizeBytes ─▶ answer
//! ```
//!
//! Called by the CSI service; [`follow`] by the loop. Level-triggered: whoever calls again, through whichever controller,
//! goes on where the objects are. It never shrinks anything, and never raises the size of a volume before every copy of the
//! in-sync set has it: the consumer grows the array on the strength of that.

use crate::Context;
use crate::decide::{self, Recorded};
use crate::error::ControlError;
use crate::names;
use crate::writer::Endpoint;
use meshstor_api::condition::Condition;
use meshstor_api::node::MeshStorNodeDevice;
use meshstor_api::replica::MeshStorReplica;
use meshstor_api::volume::MeshStorVolume;
use meshstor_api::{convert, patch};
use meshstor_csi::request::{CapacityRange, ControllerExpandVolume};
use meshstor_kernel::facts::COMPONENT_MAX;
use meshstor_kernel::id::ReplicaId;
use meshstor_plan::placement;
use std::collections::BTreeSet;
use std::sync::Arc;
use tonic::Status;

/// Words of a copy's conditions that mean that its partition does not grow, however long we wait.
const REFUSALS: [&str; 2] = ["NoRoomBehind", "DriveRefused"];

/// What one look led to.
enum Step {
    Done(u64),
    Again,
    Wait(String),
}

/// Makes the volume larger, or finds it large enough. Answers the size that it has.
pub(crate) async fn expand(context: Arc<Context>, request: ControllerExpandVolume, key: String) -> Result<u64, Status> {
    let mut hints = context.hints.listen(&request.volume_id, context.config.poll);
    loop {
        match step(&context, &request).await? {
            Step::Done(bytes) => return Ok(bytes),
            Step::Again => hints.again().await,
            Step::Wait(sentence) => {
                context.awaited.say(&key, sentence);
                hints.wait().await;
            }
        }
    }
}

async fn step(context: &Context, request: &ControllerExpandVolume) -> Result<Step, Status> {
    let name = &request.volume_id;
    let missing = || Status::not_found(format!("volume_id is {name:?}: there is no such volume"));
    if !names::is_object_name(name) {
        return Err(missing());
    }
    let (volume, replicas) = context.writer.look(name).await?.ok_or_else(missing)?;
    if let Some(why) = request.capability.as_ref().and_then(|used| used.unfit(&volume.spec.filesystem)) {
        return Err(Status::invalid_argument(why));
    }
    let refused = |why: String| Status::failed_precondition(format!("volume {name} cannot be made larger: {why}"));
    if let Some(deletion) = &volume.spec.deletion_requested {
        return Err(refused(format!("it is being deleted (by {} at {})", deletion.by, deletion.at)));
    }
    let record = convert::volume_record(&volume, &replicas, context.writer.cluster().await?);
    let in_sync = match decide::recorded(&record.map_err(ControlError::from)?) {
        Recorded::Yes(in_sync) => in_sync,
        Recorded::NotYet => return Err(refused("its creation is not finished".into())),
        Recorded::Lost(reason) => return Err(refused(reason.to_string())),
    };
    let size = volume.spec.size_bytes;
    if let Some(answer) = large_enough(size, &request.capacity) {
        return answer.map(Step::Done);
    }
    let bytes = request.capacity.bytes;
    let copies = Copies::of(&volume, &replicas, &in_sync);
    if let Some(changed) = copies.reserve(context, bytes).await? {
        return Ok(changed);
    }
    match copies.lacking(bytes) {
        Some(sentence) => Ok(Step::Wait(sentence)),
        None => raise(context, &volume, bytes).await,
    }
}

/// The answer when there is nothing to do, or nothing that can ever be done.
fn large_enough(size: u64, wanted: &CapacityRange) -> Option<Result<u64, Status>> {
    let out = |message: String| Some(Err(Status::out_of_range(message)));
    match wanted.limit_bytes {
        Some(limit) if limit < size => out(format!(
            "capacity_range.limit_bytes is {limit}: the volume has {size} bytes, and volumes never shrink: allowed is a \
             limit not below that"
        )),
        _ if wanted.required_bytes <= size => Some(Ok(size)),
        _ if wanted.bytes > COMPONENT_MAX => out(format!(
            "capacity_range.required_bytes is {}: allowed are {COMPONENT_MAX} bytes, for which the array's bitmap has room",
            wanted.required_bytes
        )),
        _ => None,
    }
}

/// Every complete copy has it: from now on the consumer may.
async fn raise(context: &Context, volume: &MeshStorVolume, bytes: u64) -> Result<Step, Status> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let patch = patch::volume_size(volume, bytes).map_err(ControlError::from)?;
    match context.writer.patch::<MeshStorVolume>(name, Endpoint::Main, patch).await {
        Ok(()) => {
            tracing::info!(volume = %name, from = volume.spec.size_bytes, bytes, "larger");
            Ok(Step::Again)
        }
        Err(error) if error.is_stale() => Ok(Step::Again),
        Err(error) => Err(error.into()),
    }
}

/// The copies of one reading of a volume.
struct Copies<'a> {
    volume: &'a MeshStorVolume,
    /// Those that are to stay.
    living: Vec<&'a MeshStorReplica>,
    /// Those that must have grown before the volume does: complete ones, and one that is being made so.
    awaited: Vec<&'a MeshStorReplica>,
}

impl<'a> Copies<'a> {
    fn of(volume: &'a MeshStorVolume, replicas: &'a [MeshStorReplica], in_sync: &BTreeSet<ReplicaId>) -> Copies<'a> {
        let living = |replica: &&MeshStorReplica| decide::belongs(volume, replica) && replica.spec.tombstone.is_none();
        let living: Vec<&MeshStorReplica> = replicas.iter().filter(living).collect();
        let array = volume.status.as_ref().and_then(|status| status.array.as_ref());
        let copying = array.and_then(|array| array.copying.as_ref());
        let awaited = |replica: &&&MeshStorReplica| {
            let text = &replica.spec.replica;
            copying == Some(text) || text.parse().is_ok_and(|id: ReplicaId| in_sync.contains(&id))
        };
        let awaited = living.iter().filter(awaited).copied().collect();
        Copies { volume, living, awaited }
    }

    /// Asks every copy's node for the room, unless one of those that count cannot have it. `None`: all are asked.
    async fn reserve(&self, context: &Context, bytes: u64) -> Result<Option<Step>, Status> {
        let partition = placement::partition_bytes(bytes);
        let unasked: Vec<_> = self.living.iter().copied().filter(|r| r.spec.partition_bytes < partition).collect();
        if !unasked.is_empty() {
            if let Some(why) = self.hopeless(context, partition).await? {
                return Err(self.no_room(&why));
            }
            return Ok(Some(ask(context, &unasked, partition).await.map(|()| Step::Again)?));
        }
        // Also one that is not waited for: once the volume is larger, a copy without room can never return.
        let refusals: Vec<String> = self.living.iter().filter_map(|replica| refusal(replica, partition)).collect();
        if refusals.is_empty() {
            return Ok(None);
        }
        self.take_back(context).await?;
        Err(self.no_room(&refusals.join("; ")))
    }

    /// What drives say already, before anything is changed: a partition grows where it lies, so no free extent of the drive
    /// may be smaller than what is lacking. Whether it lies right behind the partition only its node knows.
    async fn hopeless(&self, context: &Context, partition: u64) -> Result<Option<String>, ControlError> {
        let devices = context.writer.list::<MeshStorNodeDevice>().await?;
        let why = |replica: &&MeshStorReplica| {
            let spec = &replica.spec;
            let of = |device: &&MeshStorNodeDevice| device.spec.node == spec.node && device.spec.drive == spec.drive;
            let largest = devices.iter().find(of)?.status.as_ref()?.largest_free_bytes;
            let lacks = partition.saturating_sub(has(replica).max(spec.partition_bytes.min(partition)));
            (largest < lacks)
                .then(|| format!("{} lacks {lacks} bytes, the largest free extent there has {largest}", place(replica)))
        };
        let all: Vec<String> = self.awaited.iter().copied().filter_map(|replica| why(&replica)).collect();
        Ok((!all.is_empty()).then(|| all.join("; ")))
    }

    /// Wishes that were not fulfilled are taken back, so that no drive is asked for ever for what nobody gets. What has
    /// grown stays, and is used the next time.
    async fn take_back(&self, context: &Context) -> Result<(), ControlError> {
        let least = placement::partition_bytes(self.volume.spec.size_bytes);
        for replica in &self.living {
            let bytes = has(replica).max(least);
            if replica.spec.partition_bytes <= bytes {
                continue;
            }
            let name = replica.metadata.name.as_deref().unwrap_or_default();
            let patch = patch::partition_size(replica, bytes)?;
            match context.writer.patch::<MeshStorReplica>(name, Endpoint::Main, patch).await {
                // It has reported something meanwhile, perhaps that it has grown: the next call sees it.
                Err(error) if !error.is_stale() => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    fn no_room(&self, why: &str) -> Status {
        let name = self.volume.metadata.name.as_deref().unwrap_or_default();
        Status::resource_exhausted(format!("no room to make volume {name} larger: {why}"))
    }

    /// The copies whose partitions are awaited, in words.
    fn lacking(&self, bytes: u64) -> Option<String> {
        let partition = placement::partition_bytes(bytes);
        let small = self.awaited.iter().filter(|replica| has(replica) < partition);
        let list: Vec<String> =
            small.map(|replica| format!("{} (has {} of {partition} bytes)", place(replica), has(replica))).collect();
        (!list.is_empty()).then(|| format!("larger partitions are awaited: {}", list.join(", ")))
    }
}

/// Copies whose partitions are smaller than their volume needs are asked to grow: one that was away, or was made while the
/// volume grew. Returns whether anything was changed.
pub(crate) async fn follow(
    context: &Context,
    volume: &MeshStorVolume,
    replicas: &[MeshStorReplica],
) -> Result<bool, ControlError> {
    let partition = placement::partition_bytes(volume.spec.size_bytes);
    let small = |replica: &&MeshStorReplica| {
        let recorded = volume.status.as_ref().is_some_and(|status| status.in_sync.is_some());
        recorded && decide::belongs(volume, replica) && replica.spec.tombstone.is_none() && lags(replica, partition)
    };
    let small: Vec<&MeshStorReplica> = replicas.iter().filter(small).collect();
    if small.is_empty() {
        return Ok(false);
    }
    ask(context, &small, partition).await.map(|()| true)
}

/// Whether a copy was asked for less than its volume needs. A volume that `meshstor recover` wrote anew has partitions as
/// they were found, which may lack the slack behind the data: what the array uses is there.
fn lags(replica: &MeshStorReplica, partition: u64) -> bool {
    replica.spec.partition_bytes.saturating_add(meshstor_kernel::facts::ALIGNMENT) < partition
}

/// Asks for the room on each of these copies' drives.
async fn ask(context: &Context, replicas: &[&MeshStorReplica], partition: u64) -> Result<(), ControlError> {
    for replica in replicas {
        let name = replica.metadata.name.as_deref().unwrap_or_default();
        let patch = patch::partition_size(replica, partition)?;
        match context.writer.patch::<MeshStorReplica>(name, Endpoint::Main, patch).await {
            Ok(()) => tracing::info!(replica = %name, bytes = partition, "a larger partition is asked for"),
            Err(error) if error.is_stale() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Bytes that a copy's partition has, as its node reports.
fn has(replica: &MeshStorReplica) -> u64 {
    let status = replica.status.as_ref().and_then(|status| status.partition.as_ref());
    status.filter(|partition| partition.state == "Ready").map_or(0, |partition| partition.size_bytes)
}

/// Why a copy's partition does not grow; `None` when it has grown, or may still.
fn refusal(replica: &MeshStorReplica, partition: u64) -> Option<String> {
    if has(replica) >= partition {
        return None;
    }
    let conditions = replica.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let said: &Condition = conditions.iter().find(|said| REFUSALS.contains(&said.reason.as_str()))?;
    Some(format!("{}: {}", place(replica), said.message))
}

/// Whether a copy is smaller than its volume needs and says that it cannot grow where it lies.
pub(crate) fn cramped(volume: &MeshStorVolume, replica: &MeshStorReplica) -> bool {
    let least = placement::partition_bytes(volume.spec.size_bytes).saturating_sub(meshstor_kernel::facts::ALIGNMENT);
    let has = has(replica);
    let conditions = replica.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    has > 0 && has < least && conditions.iter().any(|said| said.reason == "NoRoomBehind")
}

/// A copy, its node and its drive, for a sentence.
fn place(replica: &MeshStorReplica) -> String {
    let spec = &replica.spec;
    format!("{} on node {}, drive {}", spec.replica, spec.node, spec.drive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    const GIB: u64 = 1 << 30;

    fn asked(required: u64, limit: Option<u64>) -> CapacityRange {
        CapacityRange { bytes: required.next_multiple_of(1 << 20), required_bytes: required, limit_bytes: limit }
    }

    #[test]
    fn nothing_shrinks_and_what_can_never_be_is_out_of_range() {
        let code = |size, range| large_enough(size, &range).map(|answer| answer.map_err(|status| status.code()));
        assert_eq!(code(2 * GIB, asked(GIB, None)), Some(Ok(2 * GIB)));
        assert_eq!(code(2 * GIB, asked(2 * GIB, Some(2 * GIB))), Some(Ok(2 * GIB)));
        assert_eq!(code(2 * GIB, asked(GIB, Some(GIB))), Some(Err(Code::OutOfRange)));
        assert_eq!(code(2 * GIB, asked(2 * GIB + 1, None)), None);
        assert_eq!(code(GIB, asked(COMPONENT_MAX, None)), None);
        assert_eq!(code(GIB, asked(COMPONENT_MAX + 1, None)), Some(Err(Code::OutOfRange)));
    }
}
