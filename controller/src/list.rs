//! What volumes there are and what room is left: ListVolumes, ControllerGetVolume, ValidateVolumeCapabilities, GetCapacity.
//!
//! Called by the CSI service; CreateVolume describes its answer with it. Only reads.

use crate::Context;
use crate::create;
use crate::decide::{self, Recorded};
use crate::error::ControlError;
use crate::health::health;
use crate::names;
use crate::offers;
use meshstor_api::convert;
use meshstor_api::node::MeshStorNode;
use meshstor_api::replica::MeshStorReplica;
use meshstor_api::volume::{LocalCopy, MeshStorVolume};
use meshstor_csi::proto;
use meshstor_csi::request::{
    BYTES_MIN, GetCapacity, ListVolumes, Place, TopologyRequirement, ValidateVolumeCapabilities, VolumeParameters,
};
use meshstor_plan::placement::{self, Request};
use std::collections::BTreeMap;
use tonic::{Code, Status};

/// All nodes as they stand now, by name.
struct Nodes(BTreeMap<String, Known>);

/// What is told of a node.
struct Known {
    fabric: String,
    /// Why its last report is too old to be believed.
    silent: Option<String>,
}

impl Nodes {
    async fn read(context: &Context) -> Result<Nodes, ControlError> {
        let now = (context.config.now)();
        let known = |node: &MeshStorNode| {
            let heartbeat = node.status.as_ref().and_then(|status| status.heartbeat.as_deref());
            Known {
                fabric: offers::fabric(node),
                silent: offers::silence(heartbeat, now, context.config.heartbeat_max),
            }
        };
        let nodes = context.writer.list::<MeshStorNode>().await?;
        Ok(Nodes(nodes.iter().map(|node| (node.metadata.name.clone().unwrap_or_default(), known(node))).collect()))
    }

    /// Why nothing is to be believed that a volume's consumer has said; `None` when it is, or when there is no consumer.
    fn silence(&self, volume: &MeshStorVolume) -> Option<String> {
        let consumer = volume.spec.attachment.consumer.as_ref()?;
        match self.0.get(consumer) {
            Some(node) => node.silent.clone(),
            None => Some("there is no MeshStorNode of that name".to_string()),
        }
    }
}

/// A volume as CSI describes it.
pub(crate) async fn describe(
    context: &Context,
    volume: &MeshStorVolume,
    replicas: &[MeshStorReplica],
) -> Result<proto::Volume, ControlError> {
    Ok(described(volume, replicas, &Nodes::read(context).await?))
}

fn described(volume: &MeshStorVolume, replicas: &[MeshStorReplica], nodes: &Nodes) -> proto::Volume {
    let copies = replicas.iter().filter(|replica| decide::belongs(volume, replica) && replica.spec.tombstone.is_none());
    let places = copies.filter_map(|replica| {
        let node = replica.spec.node.clone();
        let fabric = nodes.0.get(&node)?.fabric.clone();
        Some(Place { node: Some(node), fabric: Some(fabric) })
    });
    let mut places: Vec<Place> = places.collect();
    if volume.spec.local_copy != LocalCopy::Required {
        // Reachable from everywhere on the fabric; all copies are on one.
        places.truncate(1);
        places.iter_mut().for_each(|place| place.node = None);
    }
    proto::Volume {
        capacity_bytes: signed(volume.spec.size_bytes),
        volume_id: volume.metadata.name.clone().unwrap_or_default(),
        accessible_topology: places.iter().map(Place::to_proto).collect(),
        ..proto::Volume::default()
    }
}

/// CSI counts in signed numbers.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// One page of all volumes whose creation is finished.
pub(crate) async fn volumes(context: &Context, request: &ListVolumes) -> Result<proto::ListVolumesResponse, Status> {
    let (mut volumes, replicas, nodes) = futures::try_join!(
        context.writer.list::<MeshStorVolume>(),
        context.writer.list::<MeshStorReplica>(),
        Nodes::read(context)
    )?;
    // Before it is recorded nobody was told that the volume exists.
    volumes.retain(|volume| {
        volume.spec.attachment.epoch > 0 || volume.status.as_ref().is_some_and(|status| status.in_sync.is_some())
    });
    let name = |volume: &MeshStorVolume| volume.metadata.name.clone().unwrap_or_default();
    volumes.sort_by_key(name);
    let named: Vec<(String, MeshStorVolume)> = volumes.into_iter().map(|volume| (name(&volume), volume)).collect();
    let (page, next) = request.page(&named, |(name, _)| name.as_str());
    let mut copies: BTreeMap<String, Vec<MeshStorReplica>> = BTreeMap::new();
    for replica in replicas {
        copies.entry(replica.spec.volume.clone()).or_default().push(replica);
    }
    let entry = |(name, volume): &(String, MeshStorVolume)| proto::list_volumes_response::Entry {
        volume: Some(described(volume, copies.get(name).map(Vec::as_slice).unwrap_or_default(), &nodes)),
        status: Some(proto::list_volumes_response::VolumeStatus {
            published_node_ids: volume.spec.attachment.consumer.iter().cloned().collect(),
            volume_condition: Some(health(volume, nodes.silence(volume))),
        }),
    };
    Ok(proto::ListVolumesResponse {
        entries: page.iter().map(entry).collect(),
        next_token: next.map(|token| token.to_string()).unwrap_or_default(),
    })
}

/// One volume.
pub(crate) async fn volume(context: &Context, name: &str) -> Result<proto::ControllerGetVolumeResponse, Status> {
    let (volume, replicas) = existing(context, name).await?;
    let nodes = Nodes::read(context).await?;
    Ok(proto::ControllerGetVolumeResponse {
        volume: Some(described(&volume, &replicas, &nodes)),
        status: Some(proto::controller_get_volume_response::VolumeStatus {
            published_node_ids: volume.spec.attachment.consumer.iter().cloned().collect(),
            volume_condition: Some(health(&volume, nodes.silence(&volume))),
        }),
    })
}

async fn existing(context: &Context, name: &str) -> Result<(MeshStorVolume, Vec<MeshStorReplica>), Status> {
    let found = if names::is_object_name(name) { context.writer.look(name).await? } else { None };
    found.ok_or_else(|| Status::not_found(format!("volume_id is {name:?}: there is no such volume")))
}

/// Whether a volume can be used in certain ways.
pub(crate) async fn validate(
    context: &Context,
    request: &ValidateVolumeCapabilities,
    message: proto::ValidateVolumeCapabilitiesRequest,
) -> Result<proto::ValidateVolumeCapabilitiesResponse, Status> {
    let (volume, replicas) = existing(context, &request.volume_id).await?;
    let no = |why: String| Ok(proto::ValidateVolumeCapabilitiesResponse { confirmed: None, message: why });
    if let Err(why) = &request.verdict {
        return no(why.clone());
    }
    if let Some(why) = request.verdict.iter().flatten().find_map(|capability| capability.unfit(&volume.spec.filesystem))
    {
        return no(why);
    }
    let record = convert::volume_record(&volume, &replicas, context.writer.cluster().await?);
    if let Recorded::Lost(reason) = decide::recorded(&record.map_err(ControlError::from)?) {
        return no(reason.to_string());
    }
    if !message.parameters.is_empty() {
        let parameters = VolumeParameters::parse(&message.parameters)?;
        if let Some(why) = create::differing(&parameters, &volume.spec) {
            return no(why);
        }
    }
    let confirmed = proto::validate_volume_capabilities_response::Confirmed {
        volume_context: message.volume_context,
        volume_capabilities: message.volume_capabilities,
        parameters: message.parameters,
        ..Default::default()
    };
    Ok(proto::ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed), message: String::new() })
}

/// The largest volume that CreateVolume would make for a pod at this place (K11).
pub(crate) async fn capacity(context: &Context, request: &GetCapacity) -> Result<proto::GetCapacityResponse, Status> {
    let spread = create::topology_spread(request.parameters.topology_spread);
    let offers = offers::read(context, spread).await?;
    let here: Vec<Place> = request.place.iter().cloned().collect();
    let topology = TopologyRequirement { requisite: here.clone(), preferred: here };
    let parameters = &request.parameters;
    let (local, fabrics) = offers::wish(parameters.local_copy, &topology, &offers);
    let largest = |sector_bytes: &u32| {
        let wanted = Request {
            copies: parameters.replica_count.into(),
            partition_bytes: 0,
            sector_bytes: *sector_bytes,
            local: local.clone(),
            fabrics: fabrics.clone(),
            zones: offers::spread(spread, &offers, std::iter::empty()),
            excluded: BTreeMap::new(),
        };
        placement::largest(&offers, &wanted)
    };
    let bytes = signed(offered(parameters.sector_size.choices().iter().map(largest).max().unwrap_or(0)));
    Ok(proto::GetCapacityResponse {
        available_capacity: bytes,
        maximum_volume_size: Some(bytes),
        minimum_volume_size: Some(signed(BYTES_MIN)),
    })
}

/// A smaller request is made this large: where not even that has room, there is none for anything.
fn offered(largest: u64) -> u64 {
    if largest < BYTES_MIN { 0 } else { largest }
}

/// What this version does not offer.
pub(crate) fn unimplemented(what: &str) -> Status {
    Status::new(Code::Unimplemented, format!("{what} is not offered by this version"))
}
