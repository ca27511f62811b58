//! Tables and properties of the Controller requests.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::proto::volume_capability::{AccessMode, AccessType, MountVolume};
use crate::request::{BYTES_DEFAULT, FABRIC_KEY, MIB, NODE_KEY};

fn capability(mode: i32) -> proto::VolumeCapability {
    proto::VolumeCapability {
        access_mode: Some(AccessMode { mode }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

fn create() -> proto::CreateVolumeRequest {
    proto::CreateVolumeRequest { name: "pvc-1".into(), volume_capabilities: vec![capability(1)], ..Default::default() }
}

fn topology(node: &str) -> proto::TopologyRequirement {
    let segments = HashMap::from([(NODE_KEY.to_owned(), node.to_owned()), (FABRIC_KEY.to_owned(), "f".to_owned())]);
    proto::TopologyRequirement { requisite: vec![], preferred: vec![proto::Topology { segments }] }
}

#[test]
fn the_least_request_gets_all_defaults() {
    let volume = CreateVolume::try_from(&create()).unwrap();
    assert_eq!(volume.name, "pvc-1");
    assert_eq!(volume.capacity.bytes, BYTES_DEFAULT);
    assert_eq!(volume.parameters, VolumeParameters::default());
    assert_eq!(volume.content, Content::Files(Filesystem::Xfs));
    assert_eq!(volume.topology, TopologyRequirement::default());
}

#[test]
fn all_that_name_a_file_system_name_the_same() {
    let named = |of_capabilities: &[&str], of_parameters: Option<&str>| {
        let mut message = create();
        message.volume_capabilities = of_capabilities
            .iter()
            .map(|fs_type| proto::VolumeCapability {
                access_type: Some(AccessType::Mount(MountVolume { fs_type: (*fs_type).into(), ..Default::default() })),
                ..capability(1)
            })
            .collect();
        let parameters = of_parameters.map(|word| ("csi.storage.k8s.io/fstype".to_owned(), word.to_owned()));
        message.parameters = parameters.into_iter().collect();
        CreateVolume::try_from(&message).map(|volume| volume.content).map_err(|refusal| refusal.message)
    };
    assert_eq!(named(&["ext4"], None), Ok(Content::Files(Filesystem::Ext4)));
    assert_eq!(named(&["", "ext4"], Some("ext4")), Ok(Content::Files(Filesystem::Ext4)));
    assert_eq!(named(&[""], Some("ext4")), Ok(Content::Files(Filesystem::Ext4)));
    let two = named(&["", "ext4", "xfs"], None).unwrap_err();
    assert_eq!(
        two,
        "volume_capabilities[2].mount.fs_type is xfs and volume_capabilities[1].mount.fs_type is ext4: \
         allowed is the same file system in both"
    );
    let third = named(&["ext4"], Some("xfs")).unwrap_err();
    assert!(third.starts_with("parameters.csi.storage.k8s.io/fstype is xfs and volume_capabilities[0]"), "{third}");
}

#[test]
fn a_raw_block_volume_has_no_file_system_and_no_other_use() {
    let block =
        || proto::VolumeCapability { access_type: Some(AccessType::Block(Default::default())), ..capability(1) };
    let mut message = create();
    message.volume_capabilities = vec![block(), block()];
    message.parameters.insert("csi.storage.k8s.io/fstype".into(), "ext4".into());
    assert_eq!(CreateVolume::try_from(&message).unwrap().content, Content::Block);
    message.volume_capabilities.push(capability(1));
    let refusal = CreateVolume::try_from(&message).unwrap_err();
    assert_eq!((refusal.code, refusal.field.as_ref()), (Code::InvalidArgument, "volume_capabilities"));
    assert!(refusal.message.starts_with("volume_capabilities[0] is block and volume_capabilities[2] is mount"));
}

#[test]
fn create_refuses_field_by_field() {
    type Change = fn(&mut proto::CreateVolumeRequest);
    let table: &[(Change, Code, &str)] = &[
        (|m| m.name.clear(), Code::InvalidArgument, "name"),
        (|m| m.name = "n".repeat(129), Code::InvalidArgument, "name"),
        (|m| m.volume_capabilities.clear(), Code::InvalidArgument, "volume_capabilities"),
        (|m| m.volume_capabilities = vec![capability(2)], Code::InvalidArgument, "volume_capabilities"),
        (|m| m.volume_capabilities.push(capability(5)), Code::InvalidArgument, "volume_capabilities[1].access_mode"),
        (
            |m| m.volume_content_source = Some(proto::VolumeContentSource::default()),
            Code::InvalidArgument,
            "volume_content_source",
        ),
        (
            |m| {
                m.mutable_parameters.insert("a".into(), "b".into());
            },
            Code::InvalidArgument,
            "mutable_parameters",
        ),
        (
            |m| {
                m.parameters.insert("stripeWidth".into(), "2".into());
            },
            Code::InvalidArgument,
            "parameters.stripeWidth",
        ),
        (
            |m| m.capacity_range = Some(proto::CapacityRange { required_bytes: 1, limit_bytes: 2 }),
            Code::OutOfRange,
            "capacity_range.limit_bytes",
        ),
        (
            |m| m.accessibility_requirements = Some(topology("")),
            Code::InvalidArgument,
            "accessibility_requirements.preferred[0].segments[csi.meshstor.io/node]",
        ),
    ];
    for (change, code, field) in table {
        let mut message = create();
        change(&mut message);
        let refusal = CreateVolume::try_from(&message).unwrap_err();
        assert_eq!((refusal.code, refusal.field.as_ref()), (*code, *field), "{}", refusal.message);
        assert!(refusal.message.starts_with(field.split('[').next().unwrap()), "{}", refusal.message);
    }
}

#[test]
fn a_reader_beside_a_writer_is_fine() {
    let mut message = create();
    message.volume_capabilities.push(capability(2));
    assert_eq!(CreateVolume::try_from(&message).unwrap().capabilities.len(), 2);
}

#[test]
fn the_fingerprint_leaves_the_topology_out_and_nothing_else() {
    let base = CreateVolume::try_from(&create()).unwrap();
    let other = |change: fn(&mut proto::CreateVolumeRequest)| {
        let mut message = create();
        change(&mut message);
        CreateVolume::try_from(&message).unwrap().fingerprint() == base.fingerprint()
    };
    assert!(other(|m| m.accessibility_requirements = Some(topology("b"))));
    assert!(!other(|m| m.name = "pvc-2".into()));
    assert!(!other(|m| m.volume_capabilities = vec![capability(6)]));
    assert!(!other(|m| m.capacity_range = Some(proto::CapacityRange { required_bytes: 400 << 20, limit_bytes: 0 })));
    assert!(!other(|m| {
        m.parameters.insert("replicaCount".into(), "3".into());
    }));
}

#[test]
fn publish_needs_volume_node_and_capability() {
    let good = proto::ControllerPublishVolumeRequest {
        volume_id: "v".into(),
        node_id: "a".into(),
        volume_capability: Some(capability(1)),
        ..Default::default()
    };
    assert_eq!(ControllerPublishVolume::try_from(&good).unwrap().node_id, "a");
    let field = |message: proto::ControllerPublishVolumeRequest| {
        ControllerPublishVolume::try_from(&message).unwrap_err().field.into_owned()
    };
    assert_eq!(field(proto::ControllerPublishVolumeRequest { volume_id: String::new(), ..good.clone() }), "volume_id");
    assert_eq!(field(proto::ControllerPublishVolumeRequest { node_id: String::new(), ..good.clone() }), "node_id");
    assert_eq!(field(proto::ControllerPublishVolumeRequest { volume_capability: None, ..good }), "volume_capability");
}

#[test]
fn unpublish_without_a_node_means_whichever_has_it() {
    let message = proto::ControllerUnpublishVolumeRequest { volume_id: "v".into(), ..Default::default() };
    assert_eq!(ControllerUnpublishVolume::try_from(&message).unwrap().node_id, None);
    let nameless = proto::ControllerUnpublishVolumeRequest { node_id: "a".into(), ..Default::default() };
    assert_eq!(ControllerUnpublishVolume::try_from(&nameless), Err(Refusal::missing("volume_id")));
}

#[test]
fn validate_answers_about_modes_and_refuses_only_gaps() {
    let ask = |modes: &[i32]| {
        let volume_capabilities = modes.iter().map(|mode| capability(*mode)).collect();
        let message = proto::ValidateVolumeCapabilitiesRequest {
            volume_id: "v".into(),
            volume_capabilities,
            ..Default::default()
        };
        ValidateVolumeCapabilities::try_from(&message)
    };
    assert_eq!(ask(&[]), Err(Refusal::missing("volume_capabilities")));
    assert_eq!(ask(&[1, 6]).unwrap().verdict.unwrap().len(), 2);
    assert!(ask(&[1, 5]).unwrap().verdict.unwrap_err().contains("volume_capabilities[1].access_mode"));
}

#[test]
fn capacity_may_be_asked_for_a_place() {
    let mut message = proto::GetCapacityRequest::default();
    assert_eq!(GetCapacity::try_from(&message).unwrap().place, None);
    message.accessible_topology = topology("a").preferred.pop();
    let place = Place { node: Some("a".into()), fabric: Some("f".into()) };
    assert_eq!(GetCapacity::try_from(&message).unwrap().place, Some(place));
    message.volume_capabilities = vec![capability(3)];
    assert_eq!(GetCapacity::try_from(&message).unwrap_err().field, "volume_capabilities[0].access_mode");
}

#[test]
fn expand_needs_a_size() {
    let mut message = proto::ControllerExpandVolumeRequest { volume_id: "v".into(), ..Default::default() };
    assert_eq!(ControllerExpandVolume::try_from(&message), Err(Refusal::missing("capacity_range.required_bytes")));
    message.capacity_range = Some(proto::CapacityRange { required_bytes: 1 << 30, limit_bytes: 0 });
    assert_eq!(ControllerExpandVolume::try_from(&message).unwrap().capacity.bytes, 1024 * MIB);
}

#[test]
fn delete_and_get_need_an_id() {
    assert_eq!(DeleteVolume::try_from(&Default::default()), Err(Refusal::missing("volume_id")));
    assert_eq!(ControllerGetVolume::try_from(&Default::default()), Err(Refusal::missing("volume_id")));
}

/// Any message at all, good fields more likely than chance would have them.
fn any_create() -> impl Strategy<Value = proto::CreateVolumeRequest> {
    let access = prop_oneof![
        Just(None),
        Just(Some(AccessType::Block(Default::default()))),
        (prop_oneof![Just(String::new()), Just("xfs".to_owned()), ".*"], prop::collection::vec(".*", 0..3)).prop_map(
            |(fs_type, mount_flags)| Some(AccessType::Mount(MountVolume {
                fs_type,
                mount_flags,
                ..Default::default()
            }))
        ),
    ];
    let capability = (prop::option::of(-1..9i32), access).prop_map(|(mode, access_type)| proto::VolumeCapability {
        access_mode: mode.map(|mode| AccessMode { mode }),
        access_type,
    });
    let range = (any::<i64>(), any::<i64>())
        .prop_map(|(required_bytes, limit_bytes)| proto::CapacityRange { required_bytes, limit_bytes });
    let parameters = prop::collection::hash_map("replicaCount|sectorSize|.*", "[0-9]{0,4}|.*", 0..3);
    let segments = prop::collection::hash_map("csi\\.meshstor\\.io/node|.*", ".*", 0..3);
    let places = prop::collection::vec(segments.prop_map(|segments| proto::Topology { segments }), 0..3);
    (".{0,140}", prop::collection::vec(capability, 0..3), prop::option::of(range), parameters, places).prop_map(
        |(name, volume_capabilities, capacity_range, parameters, preferred)| proto::CreateVolumeRequest {
            name,
            volume_capabilities,
            capacity_range,
            parameters,
            accessibility_requirements: Some(proto::TopologyRequirement { requisite: vec![], preferred }),
            ..Default::default()
        },
    )
}

proptest! {
    #[test]
    fn create_never_panics_and_always_names_the_field(message in any_create()) {
        match CreateVolume::try_from(&message) {
            Ok(volume) => {
                prop_assert!(volume.capacity.admits(volume.capacity.bytes));
                prop_assert!((1..=16).contains(&volume.parameters.replica_count));
                prop_assert!(!volume.name.is_empty() && !volume.capabilities.is_empty());
            }
            Err(refusal) => {
                let head = refusal.field.split(['[', '.']).next().unwrap_or_default();
                prop_assert!(!head.is_empty() && refusal.message.starts_with(head), "{}", refusal.message);
                prop_assert!(matches!(refusal.code, Code::InvalidArgument | Code::OutOfRange));
            }
        }
    }
}
