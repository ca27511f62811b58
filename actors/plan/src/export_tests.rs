//! Table tests of the export plan: fence and export orders, the epoch floor, quarantine.

use super::*;
use crate::Step;
use crate::testing::*;

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
