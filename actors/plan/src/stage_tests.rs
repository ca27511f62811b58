//! Table tests of the stage plan: format at most once, mount only what is whole.

use super::*;
use crate::Step;
use crate::array::MemberReport;
use crate::record::*;
use crate::testing::{cluster, volume};
use meshstor_kernel::content::Filesystem;
use meshstor_kernel::facts::ALIGNMENT;
use meshstor_kernel::id::ReplicaId;
use std::collections::{BTreeMap, BTreeSet};

const TARGET: &str = "/stage";

fn look(format: FormatRecord, signature: Option<&str>, blank: bool) -> StageLook {
    let record = VolumeRecord {
        name: "pvc-1".into(),
        uid: "11111111-1111-4111-8111-111111111111".into(),
        volume: volume(),
        cluster: cluster(),
        size_bytes: 1 << 30,
        content: Default::default(),
        replica_count: 1,
        epoch: 1,
        consumer: None,
        consumer_boot: None,
        in_sync: Some([ReplicaId(0)].into()),
        foreign: None,
        activated_epoch: 1,
        departures: BTreeMap::new(),
        flaps: Default::default(),
        format,
        released_epoch: 0,
        replicas: BTreeMap::new(),
    };
    let member = MemberReport { in_sync: true, transports: BTreeSet::new(), local: true };
    let zeros = vec![0; ALIGNMENT as usize];
    StageLook {
        record: RecordLook::Fresh(Box::new(record)),
        array: ArrayReport {
            phase: ArrayPhase::Active,
            members: [(ReplicaId(0), member)].into(),
            ..ArrayReport::default()
        },
        fs: FsFact { signature: signature.map(Into::into), ..FsFact::default() },
        blank: if blank { BlankData::from_bytes("/dev/p1", &zeros, &zeros).into_iter().collect() } else { vec![] },
        array_bytes: 0,
        filled: None,
        not_grown: None,
    }
}

fn name(look: &StageLook) -> String {
    let wish = StageWish { volume: volume(), target: Some(TARGET.into()), options: vec![] };
    let plan = Stage::plan(Some(&wish), look);
    match (&plan.next, &plan.status.reason) {
        (Some(step), _) => step.name().to_string(),
        (None, Some(reason)) => reason.word().to_string(),
        (None, None) => format!("ready={}", plan.status.ready),
    }
}

#[test]
fn a_new_volume_is_recorded_formatted_recorded_mounted() {
    assert_eq!(name(&look(FormatRecord::Never, None, true)), "record-format-started");
    assert_eq!(name(&look(FormatRecord::Started, None, true)), "make-filesystem");
    assert_eq!(name(&look(FormatRecord::Started, Some("xfs"), false)), "record-format-done");
    assert_eq!(name(&look(FormatRecord::Done, Some("xfs"), false)), "mount");
    let mut mounted = look(FormatRecord::Done, Some("xfs"), false);
    mounted.fs.mounts.insert(TARGET.into(), true);
    assert_eq!(name(&mounted), "ready=true");
}

/// The same volume, made for ext4.
fn ext4(mut look: StageLook) -> StageLook {
    let RecordLook::Fresh(record) = &mut look.record else { panic!() };
    record.content = Content::Files(Filesystem::Ext4);
    look
}

#[test]
fn the_file_system_that_the_record_names_is_made_and_mounted() {
    for (filesystem, made) in [("xfs", false), ("ext4", true)] {
        let at = |look| if made { ext4(look) } else { look };
        let step = |look| {
            let wish = StageWish { volume: volume(), target: Some(TARGET.into()), options: vec![] };
            Stage::plan(Some(&wish), &at(look)).next
        };
        let made = step(look(FormatRecord::Started, None, true));
        assert!(
            matches!(made, Some(Step::Kernel(Op::MakeFilesystem { filesystem: f, .. })) if f.as_str() == filesystem)
        );
        let again = step(look(FormatRecord::Started, Some("unknown"), false));
        assert!(
            matches!(again, Some(Step::Kernel(Op::MakeFilesystem { filesystem: f, .. })) if f.as_str() == filesystem)
        );
        let mounted = step(look(FormatRecord::Done, Some(filesystem), false));
        assert!(matches!(mounted, Some(Step::Kernel(Op::Mount { fs, .. })) if fs.as_str() == filesystem));
        assert_eq!(name(&at(look(FormatRecord::Started, Some(filesystem), false))), "record-format-done");
    }
}

#[test]
fn what_was_formatted_is_never_formatted_again() {
    for (signature, blank) in [(None, true), (None, false), (Some("ext4"), false), (Some("unknown"), false)] {
        assert_eq!(name(&look(FormatRecord::Done, signature, blank)), "DataMissing");
    }
    for (signature, blank) in [(None, true), (None, false), (Some("xfs"), false), (Some("unknown"), false)] {
        assert_eq!(name(&ext4(look(FormatRecord::Done, signature, blank))), "DataMissing");
    }
}

#[test]
fn what_carries_data_is_never_formatted() {
    assert_eq!(name(&look(FormatRecord::Never, Some("xfs"), false)), "DataMissing");
    assert_eq!(name(&look(FormatRecord::Never, Some("unknown"), false)), "DataMissing");
    assert_eq!(name(&look(FormatRecord::Never, None, false)), "DataMissing", "one member not proven blank");
}

#[test]
fn a_half_made_file_system_that_nobody_got_is_made_again() {
    let plan = Stage::plan(
        Some(&StageWish { volume: volume(), target: Some(TARGET.into()), options: vec![] }),
        &look(FormatRecord::Started, Some("unknown"), false),
    );
    let Some(Step::Kernel(Op::MakeFilesystem { permit, .. })) = plan.next else { panic!() };
    assert!(matches!(permit, FormatPermit::StartedNotDone { .. }));
}

#[test]
fn nothing_happens_without_an_active_array_or_a_record() {
    let mut at = look(FormatRecord::Done, Some("xfs"), false);
    at.array.phase = ArrayPhase::Between;
    assert_eq!(name(&at), "Releasing");
    let mut at = look(FormatRecord::Never, None, true);
    at.record = RecordLook::Unreachable;
    assert_eq!(name(&at), "ApiUnreachable");
}

#[test]
fn what_was_asked_for_reaches_the_mount_beside_what_we_want() {
    let options = |asked: &[&str]| {
        let asked = asked.iter().map(|option| (*option).to_string()).collect();
        let wish = StageWish { volume: volume(), target: Some(TARGET.into()), options: asked };
        match Stage::plan(Some(&wish), &look(FormatRecord::Done, Some("xfs"), false)).next {
            Some(Step::Kernel(Op::Mount { options, .. })) => options,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(options(&[]), "noatime");
    assert_eq!(options(&["nosuid", "ro"]), "noatime,nosuid,ro");
    assert_eq!(options(&["noatime", "nodev"]), "noatime,nodev");
    assert_eq!(options(&["logbufs=8", "relatime"]), "logbufs=8,relatime");
}

#[test]
fn a_dead_mount_is_replaced() {
    let mut at = look(FormatRecord::Done, Some("xfs"), false);
    at.fs.mounts.insert(TARGET.into(), false);
    assert_eq!(name(&at), "unmount");
}

#[test]
fn a_raw_block_volume_is_never_formatted_nor_mounted() {
    for format in [FormatRecord::Never, FormatRecord::Started, FormatRecord::Done] {
        let mut at = look(format, None, true);
        let RecordLook::Fresh(record) = &mut at.record else { panic!() };
        record.content = Content::Block;
        assert_eq!(name(&at), "DataMissing");
    }
}

#[test]
fn unstaging_takes_the_places_of_a_raw_volume_too() {
    let mut at = look(FormatRecord::Never, None, true);
    at.fs.raw.insert("/pods/1/raw".into());
    let wish = StageWish { volume: volume(), target: None, options: vec![] };
    assert_eq!(Stage::plan(Some(&wish), &at).next.unwrap().name(), "unmount");
    at.fs.raw.clear();
    assert!(Stage::plan(Some(&wish), &at).status.ready);
}

#[test]
fn unstaging_unmounts_everything_of_the_volume() {
    let mut at = look(FormatRecord::Done, Some("xfs"), false);
    at.fs.mounts.insert(TARGET.into(), true);
    let wish = StageWish { volume: volume(), target: None, options: vec![] };
    assert_eq!(Stage::plan(Some(&wish), &at).next.unwrap().name(), "unmount");
    at.fs.mounts.clear();
    assert!(Stage::plan(Some(&wish), &at).status.ready);
}

#[test]
fn a_broken_array_takes_its_file_system_down() {
    let mut look = look(FormatRecord::Done, Some("xfs"), false);
    look.fs.mounts.insert(TARGET.into(), true);
    assert_eq!(name(&look), "ready=true");
    look.array.phase = ArrayPhase::Broken;
    look.array.reason = Some(Reason::LastCopyFailed { replica: ReplicaId(0) });
    assert_eq!(name(&look), "shutdown-filesystem");
    look.fs.mounts.insert(TARGET.into(), false);
    assert_eq!(name(&look), "unmount");
    look.fs.mounts.clear();
    assert_eq!(name(&look), "LastCopyFailed");
}

#[test]
fn a_mounted_file_system_fills_its_array_and_serves_whatever_comes_of_it() {
    let mut at = look(FormatRecord::Done, Some("xfs"), false);
    at.fs.mounts.insert(TARGET.into(), true);
    (at.array_bytes, at.fs.bytes) = (2 << 30, Some(1 << 30));
    let wish = StageWish { volume: volume(), target: Some(TARGET.into()), options: vec![] };
    let plan = |at: &StageLook| Stage::plan(Some(&wish), at);
    let grow = Op::GrowFilesystem { volume: volume(), target: TARGET.into() };
    assert_eq!(plan(&at).next, Some(Step::Kernel(grow)));
    assert!(plan(&at).status.ready, "it serves meanwhile");
    // Nobody can tell how large it is: once for each size of the array.
    at.fs.bytes = None;
    assert_eq!(name(&at), "grow-filesystem");
    at.filled = Some(1 << 30);
    assert_eq!(name(&at), "grow-filesystem");
    at.filled = Some(2 << 30);
    assert_eq!((name(&at).as_str(), plan(&at).status.filled), ("ready=true", 2 << 30));
    at.filled = None;
    at.fs.bytes = Some(2 << 30);
    assert_eq!((name(&at).as_str(), plan(&at).status.filled), ("ready=true", 2 << 30));
    at.fs.bytes = Some(1 << 30);
    at.not_grown = Some("EIO".into());
    let stuck = plan(&at);
    assert!(stuck.next.is_none() && stuck.status.ready && stuck.status.filled == 0);
    assert_eq!(stuck.status.reason, Some(Reason::Failing { error: "EIO".into() }));
    at.array.phase = ArrayPhase::Broken;
    assert_eq!(name(&at), "shutdown-filesystem");
}
