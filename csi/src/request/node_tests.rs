//! Tables and properties of the Node requests.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::proto::volume_capability::{AccessMode, AccessType, MountVolume};

fn capability(mode: i32) -> Option<proto::VolumeCapability> {
    Some(proto::VolumeCapability {
        access_mode: Some(AccessMode { mode }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    })
}

fn stage() -> proto::NodeStageVolumeRequest {
    proto::NodeStageVolumeRequest {
        volume_id: "v".into(),
        staging_target_path: "/staging".into(),
        volume_capability: capability(1),
        publish_context: PublishContext::at(7).to_map(),
        ..Default::default()
    }
}

fn publish() -> proto::NodePublishVolumeRequest {
    proto::NodePublishVolumeRequest {
        volume_id: "v".into(),
        staging_target_path: "/staging".into(),
        target_path: "/target".into(),
        volume_capability: capability(1),
        ..Default::default()
    }
}

#[test]
fn stage_needs_id_path_and_capability() {
    let staged = NodeStageVolume::try_from(&stage()).unwrap();
    assert_eq!(staged.staging_target_path, Path::new("/staging"));
    assert_eq!(staged.publish_context.attach_epoch, Some(7));
    type Change = fn(&mut proto::NodeStageVolumeRequest);
    let table: &[(Change, &str)] = &[
        (|m| m.volume_id.clear(), "volume_id"),
        (|m| m.staging_target_path.clear(), "staging_target_path"),
        (|m| m.staging_target_path = "staging".into(), "staging_target_path"),
        (|m| m.volume_capability = None, "volume_capability"),
        (|m| m.volume_capability = capability(4), "volume_capability.access_mode"),
        (
            |m| {
                m.publish_context.insert("attachEpoch".into(), "seven".into());
            },
            "publish_context.attachEpoch",
        ),
    ];
    for (change, field) in table {
        let mut message = stage();
        change(&mut message);
        let refusal = NodeStageVolume::try_from(&message).unwrap_err();
        assert_eq!((refusal.code, refusal.field.as_ref()), (Code::InvalidArgument, *field));
        assert!(refusal.message.starts_with(field), "{}", refusal.message);
    }
}

#[test]
fn publish_needs_more_and_says_when_there_was_no_stage() {
    assert_eq!(NodePublishVolume::try_from(&publish()).unwrap().target_path, Path::new("/target"));
    type Change = fn(&mut proto::NodePublishVolumeRequest);
    let table: &[(Change, Code, &str)] = &[
        (|m| m.volume_id.clear(), Code::InvalidArgument, "volume_id"),
        (|m| m.target_path.clear(), Code::InvalidArgument, "target_path"),
        (|m| m.volume_capability = None, Code::InvalidArgument, "volume_capability"),
        (|m| m.staging_target_path.clear(), Code::FailedPrecondition, "staging_target_path"),
        (|m| m.staging_target_path = "/..".into(), Code::InvalidArgument, "staging_target_path"),
    ];
    for (change, code, field) in table {
        let mut message = publish();
        change(&mut message);
        let refusal = NodePublishVolume::try_from(&message).unwrap_err();
        assert_eq!((refusal.code, refusal.field.as_ref()), (*code, *field));
    }
}

#[test]
fn a_publish_is_read_only_by_flag_or_by_mode() {
    let readonly = |mode: i32, readonly: bool| {
        let message = proto::NodePublishVolumeRequest { volume_capability: capability(mode), readonly, ..publish() };
        NodePublishVolume::try_from(&message).unwrap().readonly
    };
    assert_eq!([readonly(1, false), readonly(1, true), readonly(2, false)], [false, true, true]);
    let flags = MountVolume { mount_flags: vec!["noatime,ro".into()], ..Default::default() };
    let volume_capability =
        Some(proto::VolumeCapability { access_type: Some(AccessType::Mount(flags)), ..capability(1).unwrap() });
    let message = proto::NodePublishVolumeRequest { volume_capability, ..publish() };
    assert!(NodePublishVolume::try_from(&message).unwrap().readonly);
}

#[test]
fn teardown_needs_an_id_and_a_path_and_nothing_else() {
    let unstage = proto::NodeUnstageVolumeRequest { volume_id: "v".into(), staging_target_path: "/s".into() };
    assert!(NodeUnstageVolume::try_from(&unstage).is_ok());
    let unpublish = proto::NodeUnpublishVolumeRequest { volume_id: "v".into(), target_path: "/t".into() };
    assert!(NodeUnpublishVolume::try_from(&unpublish).is_ok());
    for (id, path, field) in [("", "/s", "volume_id"), ("v", "", "path"), ("v", "s", "path"), ("v", "/", "path")] {
        let (volume_id, path) = (id.to_owned(), path.to_owned());
        let unstage =
            proto::NodeUnstageVolumeRequest { volume_id: volume_id.clone(), staging_target_path: path.clone() };
        assert!(NodeUnstageVolume::try_from(&unstage).unwrap_err().field.ends_with(field));
        let unpublish = proto::NodeUnpublishVolumeRequest { volume_id, target_path: path };
        assert!(NodeUnpublishVolume::try_from(&unpublish).unwrap_err().field.ends_with(field));
    }
}

#[test]
fn stats_and_expand_need_an_id_and_a_path() {
    let mut stats = proto::NodeGetVolumeStatsRequest { volume_id: "v".into(), ..Default::default() };
    assert_eq!(NodeGetVolumeStats::try_from(&stats), Err(Refusal::missing("volume_path")));
    stats.volume_path = "/t".into();
    assert_eq!(NodeGetVolumeStats::try_from(&stats).unwrap().staging_target_path, None);

    stats.volume_path = "some/path".into();
    assert_eq!(NodeGetVolumeStats::try_from(&stats).unwrap_err().code, tonic::Code::NotFound);

    let mut expand = proto::NodeExpandVolumeRequest { volume_id: "v".into(), ..Default::default() };
    assert_eq!(NodeExpandVolume::try_from(&expand), Err(Refusal::missing("volume_path")));
    expand.volume_path = "/t".into();
    assert_eq!(NodeExpandVolume::try_from(&expand).unwrap().capacity, None);
    expand.capacity_range = Some(proto::CapacityRange { required_bytes: 5 << 20, limit_bytes: 0 });
    assert_eq!(NodeExpandVolume::try_from(&expand).unwrap().capacity.unwrap().bytes, 5 << 20);
    expand.volume_capability = Some(proto::VolumeCapability {
        access_type: Some(AccessType::Block(Default::default())),
        ..capability(1).unwrap()
    });
    assert!(NodeExpandVolume::try_from(&expand).unwrap().capability.unwrap().is_block());
}

proptest! {
    #[test]
    fn publish_never_panics_and_lets_only_safe_paths_through(
        volume_id in ".{0,9}", staging in "(/?[a.]{0,3}){0,4}|.*", target in "(/?[a.]{0,3}){0,4}|.*", mode in -1..9i32,
        epoch in prop::option::of(".*"),
    ) {
        let message = proto::NodePublishVolumeRequest {
            volume_id,
            staging_target_path: staging,
            target_path: target,
            volume_capability: capability(mode),
            publish_context: epoch.map(|epoch| ("attachEpoch".to_owned(), epoch)).into_iter().collect(),
            ..Default::default()
        };
        if let Ok(request) = NodePublishVolume::try_from(&message) {
            for path in [&request.target_path, &request.staging_target_path] {
                prop_assert!(path.is_absolute() && path.parent().is_some());
                prop_assert!(path.components().all(|part| part != std::path::Component::ParentDir));
            }
            prop_assert!(!request.volume_id.contains('/'));
        }
    }
}
