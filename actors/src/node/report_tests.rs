//! What people read of what actors report.

use super::*;
use crate::shell::Failing;
use meshstor_kernel::Class;

fn report<S>(status: S) -> Report<S> {
    Report { status, revision: 1, failing: None }
}

fn partition(state: PartitionState, reason: Option<Reason>) -> Report<PartitionReport> {
    report(PartitionReport { state, bytes: 5, reason })
}

#[test]
fn a_partition_that_was_ready_never_looks_as_if_it_had_not_been() {
    let export = report(ExportReport::default());
    let gone = partition(PartitionState::Waiting, Some(Reason::DriveGone));
    let put = replica(&gone, &export, true, "boot".into());
    assert_eq!(put.fields["partition"]["state"], "Ready");
    assert_eq!((put.conditions[0].status, put.conditions[0].reason.as_str()), (false, "DriveGone"));
    let fresh = replica(&gone, &export, false, "boot".into());
    assert_eq!(fresh.fields["partition"]["state"], "Waiting");
    let removed = partition(PartitionState::Removed, None);
    assert_eq!(replica(&removed, &export, true, "boot".into()).fields["partition"]["state"], "Removed");
}

#[test]
fn an_absent_export_removes_the_field() {
    let put = replica(&partition(PartitionState::Ready, None), &report(ExportReport::default()), true, "b".into());
    assert!(put.fields["export"].is_null() && put.fields.as_object().unwrap().contains_key("export"));
    assert_eq!((put.conditions[0].status, put.conditions[0].reason.as_str()), (true, HEALTHY));
}

#[test]
fn a_failure_speaks_louder_than_the_last_good_status() {
    let mut export = report(ExportReport::default());
    let reason = Reason::Failing { error: "EIO".into() };
    export.failing = Some(Failing { reason, class: Class::Retry });
    let put = replica(&partition(PartitionState::Ready, None), &export, true, "b".into());
    assert_eq!(put.conditions[0].message, "retrying: EIO");
}

fn array(phase: ArrayPhase, reason: Option<Reason>) -> Report<ArrayReport> {
    let local = MemberReport { in_sync: true, transports: BTreeSet::new(), local: true };
    let remote = MemberReport { in_sync: true, transports: [Transport::Tcp, Transport::Rdma].into(), local: false };
    let members = [(ReplicaId(0), local), (ReplicaId(1), remote)].into();
    report(ArrayReport { phase, members, reason, ..ArrayReport::default() })
}

#[test]
fn an_array_is_told_in_one_word_with_its_paths() {
    let mounted = report(StageReport { ready: true, ..StageReport::default() });
    let put = volume(&array(ArrayPhase::Active, None), Some(&mounted), Content::default()).unwrap();
    let told = json!({"state": "active", "members": ["r0=local", "r1=rdma"], "copying": null});
    assert_eq!(put.fields, json!({ "array": told }));
    assert!(put.conditions.iter().all(|said| said.status));
    let frozen = Some(Reason::LastCopyFrozen { replica: ReplicaId(0) });
    let put = volume(&array(ArrayPhase::Active, frozen), Some(&mounted), Content::default()).unwrap();
    assert_eq!(put.fields["array"]["state"], "frozen");
    assert_eq!(put.conditions.iter().map(|said| said.status).collect::<Vec<_>>(), [true, false]);
    let stopped = volume(&array(ArrayPhase::Released, None), None, Content::default()).unwrap();
    assert_eq!((stopped.conditions[0].status, stopped.conditions[0].reason.as_str()), (false, "Stopped"));
    assert_eq!(volume(&Report::default(), None, Content::default()), None);
}

#[test]
fn progress_alone_is_telemetry() {
    let at = |percent| {
        let mut report = array(ArrayPhase::Active, Some(Reason::Resyncing { percent: 0 }));
        report.status.sync_percent = Some(percent);
        volume(&report, None, Content::default()).unwrap()
    };
    assert_eq!(at(1).fields, at(2).fields);
    assert_ne!(at(1).telemetry, at(2).telemetry);
}

#[test]
fn drives_get_names_that_kubernetes_takes() {
    assert_eq!(device_name("Node-A", "S3_X 9-1"), "node-a-s3-x-9-1");
    assert_eq!(device_name("n", "x_"), "n-x");
}

#[test]
fn a_node_without_a_required_tool_is_not_ready_and_says_which() {
    let check = |ok, required| Check { ok, required, message: "is missing".into() };
    let checks = [("nvmet".to_string(), check(false, true)), ("rdma".to_string(), check(false, false))].into();
    let said = preflight(&checks);
    assert_eq!((said[0].type_, said[0].status, said[0].message.as_str()), ("Ready", false, "nvmet: is missing"));
    assert_eq!((said[1].type_, said[1].status), ("Limited", true));
    assert_eq!(preflight(&BTreeMap::new()).len(), 1);
}

#[test]
fn a_copy_that_cannot_grow_is_as_good_as_before_and_says_so() {
    let cramped = partition(PartitionState::Ready, Some(Reason::NoRoomBehind { lacks: 7, free: 3 }));
    let put = replica(&cramped, &report(ExportReport::default()), true, "b".into());
    assert_eq!((put.conditions[0].status, put.conditions[0].reason.as_str()), (true, "NoRoomBehind"));
    assert!(put.conditions[0].message.contains("7 more bytes right behind"), "{}", put.conditions[0].message);
}
