//! Table tests of the export plan: fence and export orders, the epoch floor, quarantine.

use super::*;
use crate::Step;
use crate::testing::*;
use meshstor_kernel::facts::{DATA_OFFSET, Superblock};

fn wish(epoch: Epoch, consumer: Option<&str>) -> ExportWish {
    ExportWish {
        cluster: cluster(),
        volume_name: "pvc-1".into(),
        epoch,
        generation: 0,
        consumer: consumer.map(|n| NodeName(n.into())),
        reported: None,
        in_sync: [ReplicaId(0)].into(),
        tombstoned: false,
        asked: None,
    }
}

fn look(wish: ExportWish, drive_epoch: Epoch) -> ExportLook {
    let mut partition = partition(0);
    partition.record = Some(record(0, drive_epoch, 0));
    ExportLook {
        me: NodeName("b".into()),
        wish: Some(wish),
        partition: Some(partition),
        exports: ExportFact::default(),
        addresses: [(Transport::Tcp, "10.77.0.12".parse().unwrap())].into(),
        quarantined: BTreeSet::new(),
    }
}

fn entry(linked: bool, host: &str) -> ExportEntry {
    let listen: BTreeSet<Listen> =
        [Listen { transport: Transport::Tcp, address: "10.77.0.12".parse().unwrap(), port: 20_007 }].into();
    ExportEntry {
        device_path: Some("/dev/nvme0n1p1".into()),
        enabled: linked,
        bytes: partition(0).kernel_bytes,
        hosts: [NodeName(host.into()).host_nqn()].into(),
        ports: if linked { listen.clone() } else { BTreeSet::new() },
        unlinked_ports: if linked { BTreeSet::new() } else { listen },
        ..ExportEntry::default()
    }
}

fn at(epoch: Epoch) -> ExportKey {
    ExportKey { replica: key(0), epoch, generation: 0 }
}

fn name(plan: &Plan<ExportReport>) -> &'static str {
    plan.next.as_ref().map_or("rest", Step::name)
}

fn plan(look: &ExportLook) -> Plan<ExportReport> {
    Export::plan(Some(&key(0)), look)
}

#[test]
fn a_new_consumer_is_served_only_after_fence_record_and_in_this_order() {
    let mut l = look(wish(3, Some("c")), 2);
    l.exports.entries.insert(at(2), entry(true, "a"));
    assert_eq!(plan(&l).next, Some(Step::Kernel(Op::Fence { key: at(2) })));
    assert_eq!(plan(&l).status.fenced_epoch, 2, "nothing is reported before the fence");
    l.exports.entries.insert(at(2), entry(false, "a"));
    assert_eq!(name(&plan(&l)), "write-record");
    assert_eq!(plan(&l).status.fenced_epoch, 2, "nothing is reported before it is on the drive");
    l.partition.as_mut().unwrap().record = Some(record(0, 3, 0));
    assert_eq!(name(&plan(&l)), "export");
    assert_eq!(plan(&l).status.fenced_epoch, 3);
    assert_eq!(plan(&l).status.retire.len(), 1, "the old port still has to be quarantined");
    l.quarantined.insert(20_007);
    assert_eq!(plan(&l).next, Some(Step::Kernel(Op::RemoveExport { key: at(2) })));
}

#[test]
fn detached_means_fence_and_export_nothing() {
    let mut l = look(wish(4, None), 3);
    l.exports.entries.insert(at(3), entry(true, "a"));
    assert_eq!(name(&plan(&l)), "fence");
    l.exports.entries.clear();
    assert_eq!(name(&plan(&l)), "write-record");
    l.partition.as_mut().unwrap().record = Some(record(0, 4, 0));
    let done = plan(&l);
    assert_eq!((name(&done), done.status.fenced_epoch, done.status.export), ("rest", 4, None));
}

#[test]
fn a_buried_copy_leaves_no_export_behind() {
    let mut l = look(ExportWish { tombstoned: true, ..wish(4, None) }, 4);
    l.exports.entries.insert(at(3), entry(false, "a"));
    assert_eq!((name(&plan(&l)), plan(&l).status.retire.len()), ("rest", 1), "its port is recorded first");
    l.partition = None;
    assert_eq!((name(&plan(&l)), plan(&l).status.retire.len()), ("rest", 1));
    l.quarantined.insert(20_007);
    assert_eq!(plan(&l).next, Some(Step::Kernel(Op::RemoveExport { key: at(3) })));
    l.exports.entries.clear();
    assert_eq!((name(&plan(&l)), plan(&l).status.objects), ("rest", 0));
}

#[test]
fn a_record_below_the_drives_epoch_exports_nothing() {
    let l = look(wish(2, Some("c")), 5);
    let p = plan(&l);
    assert_eq!((name(&p), p.status.reason), ("rest", Some(Reason::EpochRegressed { drive: 5, record: 2 })));
}

#[test]
fn a_live_export_survives_an_unreadable_record() {
    let mut l = look(wish(3, Some("c")), 3);
    l.exports.entries.insert(at(3), entry(true, "c"));
    l.wish = None;
    assert_eq!(name(&plan(&l)), "rest");
    assert_eq!(name(&Export::plan(None, &l)), "rest");
}

#[test]
fn a_local_array_of_an_older_epoch_blocks_the_report() {
    let mut l = look(wish(3, Some("c")), 2);
    l.partition.as_mut().unwrap().holders.insert("md1000".into());
    let p = plan(&l);
    assert_eq!((name(&p), p.status.fenced_epoch), ("rest", 2));
    assert!(matches!(p.status.reason, Some(Reason::HeldByArray { .. })));
}

#[test]
fn a_partition_in_a_local_array_is_never_exported() {
    let mut l = look(wish(3, Some("c")), 3);
    l.partition.as_mut().unwrap().holders.insert("md1000".into());
    assert_eq!(name(&plan(&l)), "rest");
}

#[test]
fn the_consumers_own_copy_needs_no_port() {
    let l = look(wish(3, Some("b")), 3);
    let p = plan(&l);
    assert_eq!(name(&p), "rest");
    assert!(p.status.export.is_some_and(|e| e.listen.is_empty()));
}

#[test]
fn a_rebooted_target_listens_where_it_did() {
    let mut w = wish(3, Some("c"));
    let listen = Listen { transport: Transport::Tcp, address: "10.77.0.12".parse().unwrap(), port: 21_234 };
    w.reported = Some(ExportKeyListen { epoch: 3, generation: 0, listen: [listen.clone()].into() });
    let Some(Step::Kernel(Op::Export { listen: got, .. })) = plan(&look(w, 3)).next else { panic!() };
    assert_eq!(got, [listen].into());
}

#[test]
fn quarantined_and_used_ports_are_not_given_out() {
    let mut l = look(wish(3, Some("c")), 3);
    l.quarantined = (PORT_RANGE.start..PORT_RANGE.end - 2).collect();
    l.exports.ports_in_use.insert(PORT_RANGE.end - 1);
    let Some(Step::Kernel(Op::Export { listen, .. })) = plan(&l).next else { panic!() };
    assert_eq!(listen.first().unwrap().port, PORT_RANGE.end - 2);
    l.quarantined.insert(PORT_RANGE.end - 2);
    assert_eq!(plan(&l).status.reason, Some(Reason::NoPort));
}

#[test]
fn a_new_generation_goes_through_a_drain() {
    let mut w = wish(3, Some("c"));
    w.generation = 1;
    let mut l = look(w, 3);
    l.exports.entries.insert(at(3), entry(true, "c"));
    assert_eq!(plan(&l).next, Some(Step::Kernel(Op::Fence { key: at(3) })));
}

#[test]
fn an_assembly_that_udev_made_is_taken_down() {
    let mut l = look(wish(3, Some("c")), 2);
    l.partition.as_mut().unwrap().holders.insert("md127".into());
    assert_eq!(plan(&l).next, Some(Step::Kernel(Op::StopForeignArray { name: "md127".into() })));
}

#[test]
fn a_buried_copys_export_goes_even_in_its_own_epoch() {
    let mut w = wish(3, Some("c"));
    w.tombstoned = true;
    let mut l = look(w, 3);
    l.exports.entries.insert(at(3), entry(true, "c"));
    assert_eq!(plan(&l).next, Some(Step::Kernel(Op::Fence { key: at(3) })));
    l.exports.entries.insert(at(3), entry(false, "c"));
    l.partition = None;
    let waiting = plan(&l);
    assert_eq!(name(&waiting), "rest");
    let retire: BTreeSet<u16> = waiting.status.retire.iter().map(|(port, ..)| *port).collect();
    assert!(!retire.is_empty(), "its number has to be recorded before its objects may go");
    l.quarantined = retire;
    assert_eq!(plan(&l).next, Some(Step::Kernel(Op::RemoveExport { key: at(3) })));
}

// ------------------------------------------------------------------------------------ foreign assemblies (F11)

fn superblock(device: u128) -> Superblock {
    Superblock {
        set_uuid: volume().md_uuid(),
        name: "ms".into(),
        level: 1,
        raid_disks: 2,
        events: 9,
        dev_number: 0,
        roles: vec![0, 1],
        device_uuid: uuid::Uuid::from_u128(device),
        data_offset: DATA_OFFSET,
        component_bytes: 1 << 30,
        recovery_offset: None,
        write_mostly: false,
        resync_pending: false,
        bitmap: None,
    }
}

#[test]
fn a_foreign_assembly_is_written_down_before_it_is_stopped() {
    let mut l = look(wish(3, Some("c")), 3);
    let held = l.partition.as_mut().unwrap();
    held.holders.insert("md127".into());
    held.superblock = Some(superblock(7));
    let written = |l: &ExportLook| match plan(l).next {
        Some(Step::Kernel(Op::WriteRecord { record, .. })) => record,
        other => panic!("{other:?}"),
    };
    let marked = EpochRecord { tainted: Some(uuid::Uuid::from_u128(7)), ..record(0, 3, 0) };
    assert_eq!(written(&l), marked);
    // Also when nobody can say what is wanted: it is gone, unseen, at any moment.
    l.wish = None;
    assert_eq!((written(&l), plan(&l).status.reason.unwrap().word()), (marked.clone(), "HeldByArray"));
    l.wish = Some(wish(3, Some("c")));
    l.partition.as_mut().unwrap().record = Some(marked);
    assert_eq!(name(&plan(&l)), "stop-foreign-array");
    // A whole recovery has made another member of it since, and that one is assembled by somebody else as well.
    l.partition.as_mut().unwrap().superblock = Some(superblock(8));
    assert_eq!(written(&l).tainted, Some(uuid::Uuid::from_u128(8)));
}

#[test]
fn what_is_no_array_taints_as_well_and_our_own_array_does_not() {
    let mut l = look(wish(3, Some("c")), 3);
    l.partition.as_mut().unwrap().superblock = Some(superblock(7));
    l.partition.as_mut().unwrap().holders.insert("dm-3".into());
    assert_eq!(name(&plan(&l)), "write-record");
    l.partition.as_mut().unwrap().holders = ["md1003".to_string()].into();
    assert_eq!(name(&plan(&l)), "rest");
}

#[test]
fn the_mark_outlives_new_epochs() {
    let mut l = look(wish(4, Some("c")), 3);
    l.partition.as_mut().unwrap().record.as_mut().unwrap().tainted = Some(uuid::Uuid::from_u128(7));
    let Some(Step::Kernel(Op::WriteRecord { record, .. })) = plan(&l).next else { panic!() };
    assert_eq!((record.epoch, record.tainted), (4, Some(uuid::Uuid::from_u128(7))));
}

// ---------------------------------------------------------------------------------- volatile caches (rule 11)

/// Epoch 3 for node c, on a drive whose cache is on.
fn volatile() -> ExportLook {
    let mut l = look(wish(3, Some("c")), 3);
    l.partition.as_mut().unwrap().volatile_cache = true;
    l
}

fn noted(l: &ExportLook) -> Option<String> {
    match plan(l).next {
        Some(Step::Kernel(Op::WriteRecord { record, .. })) => record.unflushed,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_life_on_a_volatile_cache_is_noted_before_it_is_offered() {
    let mut l = volatile();
    assert_eq!(noted(&l), Some("boot/1".into()));
    l.partition.as_mut().unwrap().record.as_mut().unwrap().unflushed = Some("boot/1".into());
    assert_eq!(name(&plan(&l)), "export");
    // The note comes with a new life as well.
    l.wish = Some(wish(4, Some("c")));
    assert_eq!(noted(&l), Some("boot/1".into()));
    l.partition.as_mut().unwrap().volatile_cache = false;
    assert_eq!(noted(&l), None);
}

#[test]
fn a_life_whose_drive_lost_its_power_never_answers_again() {
    let mut l = volatile();
    l.partition.as_mut().unwrap().record.as_mut().unwrap().unflushed = Some("boot/1".into());
    l.partition.as_mut().unwrap().power = "boot/2".into();
    let p = plan(&l);
    assert_eq!((name(&p), p.status.export.is_none(), p.status.fenced_epoch), ("rest", true, 3));
    assert_eq!(p.status.reason.unwrap().word(), "CacheLost");
    // Nor when its cache is off by now: what was lost before is lost.
    l.partition.as_mut().unwrap().volatile_cache = false;
    assert_eq!((name(&plan(&l)), plan(&l).status.export.is_none()), ("rest", true));
    // Its drive was away, its node was not: the port closes.
    l.exports.entries.insert(at(3), entry(true, "c"));
    assert_eq!(plan(&l).next, Some(Step::Kernel(Op::Fence { key: at(3) })));
    l.exports.entries.insert(at(3), entry(false, "c"));
    assert_eq!(name(&plan(&l)), "rest");
    // The consumer has dropped it: the next life begins.
    l.wish = Some(ExportWish { generation: 1, ..wish(3, Some("c")) });
    l.quarantined.insert(20_007);
    l.exports.entries.clear();
    assert_eq!(noted(&l), None);
}

#[test]
fn a_drive_of_which_nobody_can_tell_is_taken_for_one_that_lost_its_power() {
    let mut l = volatile();
    l.partition.as_mut().unwrap().power = String::new();
    l.partition.as_mut().unwrap().record.as_mut().unwrap().unflushed = Some(String::new());
    assert_eq!((name(&plan(&l)), plan(&l).status.reason.unwrap().word()), ("rest", "CacheLost"));
}

#[test]
fn a_reboot_of_a_drive_that_keeps_everything_changes_nothing() {
    let mut l = look(wish(3, Some("c")), 3);
    l.partition.as_mut().unwrap().power = "another/1".into();
    assert_eq!(name(&plan(&l)), "export");
    // Its cache was turned off while the life was served.
    l.partition.as_mut().unwrap().record.as_mut().unwrap().unflushed = Some("another/1".into());
    assert_eq!(noted(&l), None);
}

#[test]
fn an_export_whose_drive_was_taken_away_is_closed_and_made_anew_at_its_port() {
    let mut l = look(wish(3, Some("c")), 3);
    l.exports.entries.insert(at(3), ExportEntry { gone: true, ..entry(true, "c") });
    let partition = l.partition.take();
    assert_eq!(plan(&l).next, Some(Step::Kernel(Op::Fence { key: at(3) })), "while the drive is away");
    l.partition = partition;
    assert_eq!(plan(&l).next, Some(Step::Kernel(Op::Fence { key: at(3) })), "when it is back");
    assert_eq!(plan(&l).status.export, None);
    l.exports.entries.insert(at(3), entry(false, "c"));
    let listen = entry(true, "c").ports;
    let Some(Step::Kernel(Op::Export { key, listen: new, .. })) = plan(&l).next else { panic!("{:?}", plan(&l)) };
    assert_eq!((key, new), (at(3), listen));
    assert!(plan(&l).status.retire.is_empty(), "the number stays in use");
}

#[test]
fn a_partition_that_grew_under_its_export_is_told_to_its_host_and_stays_offered() {
    let mut l = look(wish(3, Some("c")), 3);
    l.exports.entries.insert(at(3), entry(true, "c"));
    assert_eq!(name(&plan(&l)), "rest");
    l.partition.as_mut().unwrap().kernel_bytes = Some(2 << 30);
    let told = plan(&l);
    assert_eq!(told.next, Some(Step::Kernel(Op::RevalidateExport { key: at(3) })));
    assert!(told.status.export.is_some(), "it serves meanwhile");
    l.exports.entries.get_mut(&at(3)).unwrap().bytes = Some(2 << 30);
    assert_eq!(name(&plan(&l)), "rest");
    // After a restart of the agent nobody knows what was told.
    l.exports.entries.get_mut(&at(3)).unwrap().bytes = None;
    assert_eq!(name(&plan(&l)), "revalidate-export");
}
