//! CreateVolume: an object, reservations that nodes accept, then the record, made once while the epoch is 0.
//!
//! Called by the CSI service. The same name is the same volume: whoever calls again, through whichever controller, goes
//! on where the objects are. It answers when every partition exists and is blank. It never formats, never attaches, and
//! leaves nothing behind when it answers that there is no room.

use crate::Context;
use crate::decide::{self, Recorded};
use crate::delete;
use crate::error::ControlError;
use crate::list;
use crate::names;
use crate::reserve::{Progress, Reservations};
use crate::writer::{Creation, Endpoint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use meshstor_api::replica::MeshStorReplica;
use meshstor_api::volume::{Attachment, Claim, LocalCopy, MeshStorVolume, TopologySpread, VolumeSpec};
use meshstor_api::{FINALIZER, convert, patch};
use meshstor_csi::proto;
use meshstor_csi::request::{self, CreateVolume};
use meshstor_kernel::id::ReplicaId;
use meshstor_plan::placement::Shortage;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;

/// One call at work.
struct Create {
    context: Arc<Context>,
    request: CreateVolume,
    name: String,
    reservations: Reservations,
    /// Uid of the object this call works on: another one of that name is another volume.
    uid: Option<String>,
}

/// What one look led to.
enum Step {
    Done(proto::Volume),
    Again,
    Wait(String),
}

/// Makes the volume, or finds it made.
pub(crate) async fn create(
    context: Arc<Context>,
    request: CreateVolume,
    name: String,
    key: String,
) -> Result<proto::Volume, Status> {
    let mut hints = context.hints.listen(&name, context.config.poll);
    let reservations = Reservations::new(request.topology.clone(), request.parameters.local_copy);
    let mut call = Create { context, request, name, reservations, uid: None };
    loop {
        match call.step().await? {
            Step::Done(volume) => return Ok(volume),
            Step::Again => hints.again().await,
            Step::Wait(sentence) => {
                call.context.awaited.say(&key, sentence);
                hints.wait().await;
            }
        }
    }
}

impl Create {
    async fn step(&mut self) -> Result<Step, Status> {
        let name = &self.name;
        let Some((volume, replicas)) = self.context.writer.look(name).await? else {
            return match self.uid {
                None => self.begin().await,
                Some(_) => Err(self.deleted_meanwhile().await?),
            };
        };
        let another = self.uid.is_some() && self.uid != volume.metadata.uid;
        if another || volume.spec.deletion_requested.is_some() || volume.metadata.deletion_timestamp.is_some() {
            return Err(self.deleted_meanwhile().await?);
        }
        self.uid.clone_from(&volume.metadata.uid);
        if let Some(why) = incompatible(&self.request, &volume.spec) {
            return Err(Status::already_exists(format!("volume {name} exists with other parameters: {why}")));
        }
        let record = convert::volume_record(&volume, &replicas, self.context.writer.cluster().await?);
        match decide::recorded(&record.map_err(ControlError::from)?) {
            Recorded::Yes(_) => Ok(Step::Done(list::describe(&self.context, &volume, &replicas).await?)),
            Recorded::Lost(reason) => {
                Err(Status::failed_precondition(format!("volume {name} exists and cannot be used: {reason}")))
            }
            Recorded::NotYet => self.reserve(&volume, &replicas).await,
        }
    }

    /// The answer when the volume goes away, with nothing of this call left behind.
    async fn deleted_meanwhile(&self) -> Result<Status, ControlError> {
        self.reservations.take_back(&self.context).await?;
        let name = &self.name;
        Ok(Status::aborted(format!(
            "volume {name} is being deleted; a new one of that name is made when it is gone; ask again"
        )))
    }

    /// Makes the volume's object, once there is room for it.
    async fn begin(&mut self) -> Result<Step, Status> {
        let volume = self.planned().await?;
        if let Creation::Made(uid) = self.context.writer.create(&volume).await? {
            tracing::info!(volume = %self.name, id = %volume.spec.volume_id, "begun");
            self.uid = uid;
        }
        Ok(Step::Again)
    }

    /// The volume in the first sector size that there is room for. Without any, the shortage that lacks the least is told.
    async fn planned(&mut self) -> Result<MeshStorVolume, Status> {
        let mut volume = self.new_volume().await?;
        let mut shortages = Vec::new();
        for sector_size in self.request.parameters.sector_size.choices() {
            volume.spec.sector_size = *sector_size;
            match self.reservations.plan(&self.context, &volume).await? {
                Ok(()) => return Ok(volume),
                Err(shortage) => shortages.push(shortage),
            }
        }
        let nearest = shortages.into_iter().rev().max_by_key(|shortage| shortage.possible);
        Err(nearest.map_or_else(|| Status::internal("no sector size to choose from"), |s| no_room(&self.name, &s)))
    }

    async fn new_volume(&self) -> Result<MeshStorVolume, ControlError> {
        let parameters = &self.request.parameters;
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        let spec = VolumeSpec {
            volume_id: (self.context.config.new_id)().to_string(),
            cluster_id: self.context.writer.cluster().await?.to_string(),
            size_bytes: self.request.capacity.bytes,
            replica_count: parameters.replica_count.into(),
            stripe_width: parameters.stripe_width.into(),
            // Chosen when there is room: see [`Self::planned`].
            sector_size: 0,
            filesystem: self.request.content.as_str().to_string(),
            member_missing_timeout_seconds: seconds(parameters.member_missing_timeout),
            local_copy: local_copy(parameters.local_copy),
            relocation_delay_seconds: parameters.relocation_delay.map(seconds),
            topology_spread: topology_spread(parameters.topology_spread),
            claim: self.request.claim.as_ref().map(claim),
            dismissed: Vec::new(),
            next_replica: 0,
            attachment: Attachment::default(),
            deletion_requested: None,
        };
        let metadata = ObjectMeta {
            name: Some(self.name.clone()),
            finalizers: Some(vec![FINALIZER.to_string()]),
            labels: Some(names::labels()),
            ..ObjectMeta::default()
        };
        Ok(MeshStorVolume { metadata, spec, status: None })
    }

    async fn reserve(&mut self, volume: &MeshStorVolume, replicas: &[MeshStorReplica]) -> Result<Step, Status> {
        match self.reservations.step(&self.context, volume, replicas).await? {
            Progress::Changed => Ok(Step::Again),
            Progress::Waiting(sentence) => Ok(Step::Wait(sentence)),
            Progress::Ready(in_sync) => self.record(volume, &in_sync).await,
            Progress::Short(shortage) => match delete::withdraw(&self.context, volume, "csi.CreateVolume").await {
                Ok(()) => Err(no_room(&self.name, &shortage)),
                // Somebody has finished or deleted it meanwhile.
                Err(error) if error.is_stale() => Ok(Step::Again),
                Err(error) => Err(error.into()),
            },
        }
    }

    /// The one time that the in-sync set goes from absent to present.
    async fn record(&self, volume: &MeshStorVolume, in_sync: &BTreeSet<ReplicaId>) -> Result<Step, Status> {
        let patch = patch::first_record(volume, in_sync).map_err(ControlError::from)?;
        match self.context.writer.patch::<MeshStorVolume>(&self.name, Endpoint::Status, patch).await {
            Ok(()) => {
                tracing::info!(volume = %self.name, copies = in_sync.len(), "recorded");
                Ok(Step::Again)
            }
            Err(error) if error.is_stale() => Ok(Step::Again),
            Err(error) => Err(error.into()),
        }
    }
}

/// Kubernetes places the pod elsewhere on this code, and expects that nothing is left here (K7).
fn no_room(name: &str, shortage: &Shortage) -> Status {
    Status::resource_exhausted(format!("no room for volume {name}: {shortage}"))
}

pub(crate) fn local_copy(local: request::LocalCopy) -> LocalCopy {
    match local {
        request::LocalCopy::Preferred => LocalCopy::Preferred,
        request::LocalCopy::Required => LocalCopy::Required,
        request::LocalCopy::None => LocalCopy::None,
    }
}

fn claim(claim: &request::Claim) -> Claim {
    let request::Claim { namespace, name, persistent_volume } = claim.clone();
    Claim { namespace, name, persistent_volume }
}

pub(crate) fn topology_spread(spread: request::TopologySpread) -> TopologySpread {
    match spread {
        request::TopologySpread::None => TopologySpread::None,
        request::TopologySpread::Zone => TopologySpread::Zone,
        request::TopologySpread::ZonePreferred => TopologySpread::ZonePreferred,
    }
}

/// Why an existing volume is not what is asked for; `None` when it is. Where it should lie plays no part (K7).
fn incompatible(request: &CreateVolume, spec: &VolumeSpec) -> Option<String> {
    let size = spec.size_bytes;
    if !request.capacity.admits(size) {
        let required = request.capacity.required_bytes;
        let limit = request.capacity.limit_bytes.map_or("none".to_string(), |limit| limit.to_string());
        return Some(format!("it has {size} bytes, asked for are required_bytes {required} and limit_bytes {limit}"));
    }
    differing(&request.parameters, spec).or_else(|| {
        let wanted = request.content.as_str();
        (spec.filesystem != wanted).then(|| format!("filesystem is {}, asked for is {wanted}", spec.filesystem))
    })
}

/// The first parameter in which a volume differs from a StorageClass.
pub(crate) fn differing(parameters: &request::VolumeParameters, spec: &VolumeSpec) -> Option<String> {
    let word = |local: LocalCopy| match local {
        LocalCopy::Preferred => "preferred",
        LocalCopy::Required => "required",
        LocalCopy::None => "none",
    };
    let sectors = match parameters.sector_size.choices().contains(&spec.sector_size) {
        true => spec.sector_size.to_string(),
        false => parameters.sector_size.as_str().to_string(),
    };
    let pairs = [
        ("replicaCount", spec.replica_count.to_string(), parameters.replica_count.to_string()),
        ("stripeWidth", spec.stripe_width.to_string(), parameters.stripe_width.to_string()),
        ("sectorSize", spec.sector_size.to_string(), sectors),
        (
            "memberMissingTimeout",
            spec.member_missing_timeout_seconds.to_string(),
            parameters.member_missing_timeout.as_secs().to_string(),
        ),
        (
            "relocationDelay",
            spec.relocation_delay_seconds.map_or("never".to_string(), |seconds| seconds.to_string()),
            parameters.relocation_delay.map_or("never".to_string(), |delay| delay.as_secs().to_string()),
        ),
        ("localCopy", word(spec.local_copy).to_string(), parameters.local_copy.as_str().to_string()),
        ("topologySpread", spec.topology_spread.as_str().to_string(), parameters.topology_spread.as_str().to_string()),
    ];
    let differs = pairs.into_iter().find(|(_, have, asked)| have != asked);
    differs.map(|(field, have, asked)| format!("{field} is {have}, asked for is {asked}"))
}
