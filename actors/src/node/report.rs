//! Reports turned into what stands in objects: fields and conditions. Pure.
//!
//! Called by the root actor after a report has changed. The words are those of [`Reason`]; the word of a thing that needs
//! nothing is `Healthy`.

use super::survey::Copies;
use crate::shell::Report;
use crate::status::{Put, Said};
use meshstor_api::convert::{listen_status, node_address};
use meshstor_api::node::QuarantinedPort;
use meshstor_kernel::content::Content;
use meshstor_kernel::facts::{Check, DriveClass, NodeFact, Transport};
use meshstor_kernel::id::{DriveId, ReplicaId};
use meshstor_plan::Reason;
use meshstor_plan::array::{ArrayPhase, ArrayReport, MemberReport};
use meshstor_plan::drive::DriveReport;
use meshstor_plan::export::ExportReport;
use meshstor_plan::partition::{PartitionReport, PartitionState};
use meshstor_plan::stage::StageReport;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The word of what needs nothing.
pub const HEALTHY: &str = "Healthy";

fn said(type_: &'static str, status: bool, reason: Option<&Reason>) -> Said {
    Said {
        type_,
        status,
        reason: reason.map_or(HEALTHY, Reason::word).to_string(),
        message: reason.map(ToString::to_string).unwrap_or_default(),
    }
}

/// What fails, or else what is waited for.
fn first<'a, S>(report: &'a Report<S>, reason: Option<&'a Reason>) -> Option<&'a Reason> {
    report.failing.as_ref().map(|failing| &failing.reason).or(reason)
}

/// A replica's object that cannot be served.
pub(super) fn replica_refused(why: &str) -> Said {
    said("Ready", false, Some(&Reason::RecordLost { what: why.to_string() }))
}

/// A replica. Once it was ready its partition's state never goes back: the condition says what is wrong, and no later
/// agent takes the replica for one that was never made.
pub(super) fn replica(
    partition: &Report<PartitionReport>,
    export: &Report<ExportReport>,
    was_ready: bool,
    boot: String,
) -> Put {
    let state = match partition.status.state {
        PartitionState::Removed => "Removed",
        _ if was_ready => "Ready",
        PartitionState::Ready => "Ready",
        PartitionState::Accepted => "Accepted",
        PartitionState::Waiting => "Waiting",
    };
    let live = export.status.export.as_ref().map(|live| {
        let listen: Vec<_> = live.listen.iter().map(listen_status).collect();
        json!({"epoch": live.epoch, "generation": live.generation, "listen": listen, "ready": true, "boot": boot})
    });
    let reason = first(partition, partition.status.reason.as_ref()).or(first(export, export.status.reason.as_ref()));
    // What keeps a copy from growing does not keep it from serving.
    let serves = |reason: &Reason| matches!(reason, Reason::NoRoomBehind { .. });
    let ready = partition.status.state == PartitionState::Ready && reason.is_none_or(serves);
    let mut fields = json!({
        "partition": {"state": state, "sizeBytes": partition.status.bytes},
        "fencedEpoch": export.status.fenced_epoch,
        "export": live,
    });
    // Until it is asked there is nothing to answer.
    if let (Some((asked, transports)), Value::Object(fields)) = (&export.status.connected, &mut fields) {
        let transports: Vec<&str> = transports.iter().map(Transport::as_str).collect();
        fields.insert("connection".into(), json!({"asked": asked, "transports": transports}));
    }
    Put { fields, conditions: vec![said("Ready", ready, reason)], ..Put::default() }
}

/// A drive.
pub(super) fn device(node: &str, drive: &str, report: &Report<DriveReport>) -> Put {
    let status = &report.status;
    let reason = first(report, status.refused.as_ref());
    let class = match status.fact.as_ref().map(|fact| &fact.class) {
        None => "gone",
        Some(DriveClass::Ours) => "ours",
        Some(DriveClass::Shared) => "shared",
        Some(DriveClass::Blank(_)) => "blank",
        Some(DriveClass::Theirs(_)) => "theirs",
        Some(DriveClass::Unreadable(_)) => "unreadable",
    };
    let mut fields = json!({
        "class": class,
        "freeBytes": status.free_bytes,
        "largestFreeBytes": status.largest_free_bytes,
        "foreignPartitions": status.foreign_partitions,
    });
    // Of a drive that is gone, the last that was known stays.
    if let (Some(fact), Value::Object(fields)) = (&status.fact, &mut fields) {
        fields.insert("path".into(), json!(fact.path));
        fields.insert("model".into(), json!(fact.model));
        fields.insert("serial".into(), json!(fact.serial));
        fields.insert("sizeBytes".into(), json!(fact.size_bytes));
        fields.insert("sectorSize".into(), json!(fact.sector_bytes));
        fields.insert("volatileCache".into(), json!(fact.volatile_cache));
    }
    Put {
        fields,
        conditions: vec![said("Usable", reason.is_none(), reason)],
        create: Some(json!({"node": node, "drive": drive})),
        ..Put::default()
    }
}

/// What every copy on a drive said of itself, added to what is reported of the drive. One that was not read is silent.
pub(super) fn copies(put: &mut Put, copies: &Copies, drive: &DriveId) {
    if let (Some(found), Value::Object(fields)) = (copies.drives.get(drive), &mut put.fields) {
        fields.insert("lookAnswered".into(), json!(copies.asked));
        fields.insert("copies".into(), if found.is_empty() { Value::Null } else { json!(found) });
    }
}

/// Name of the object of a drive that has none yet.
pub(super) fn device_name(node: &str, drive: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' || c == '-';
    let text = format!("{node}-{drive}").to_ascii_lowercase();
    let text: String = text.chars().map(|c| if plain(c) { c } else { '-' }).collect();
    text.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_string()
}

/// The node itself.
pub(super) fn node(
    fact: &NodeFact,
    fabric: &str,
    addresses: &BTreeSet<(Transport, IpAddr)>,
    quarantine: Option<&BTreeMap<u16, QuarantinedPort>>,
    now: &str,
) -> Put {
    let addresses: Vec<_> = addresses.iter().map(|(transport, address)| node_address(*transport, *address)).collect();
    let mut fields = json!({
        "bootID": fact.boot.0,
        "machineID": fact.machine_id,
        "hostNQN": fact.name.host_nqn().0,
        "kernel": fact.kernel,
        "fabric": fabric,
        "addresses": addresses,
    });
    if let (Some(ports), Value::Object(fields)) = (quarantine, &mut fields) {
        let list: Vec<_> = ports.values().collect();
        fields.insert("quarantinedPorts".into(), if list.is_empty() { Value::Null } else { json!(list) });
    }
    Put {
        fields,
        telemetry: json!({ "heartbeat": now }),
        conditions: preflight(&fact.checks),
        create: Some(json!({})),
        ..Put::default()
    }
}

/// `Ready`, and one condition that names the checks that failed though the node can do without them.
fn preflight(checks: &BTreeMap<String, Check>) -> Vec<Said> {
    let sentence = |required: bool| {
        let failed = checks.iter().filter(|(_, check)| !check.ok && check.required == required);
        failed.map(|(name, check)| format!("{name}: {}", check.message)).collect::<Vec<_>>().join("; ")
    };
    let condition = |type_, good: bool, message: String| {
        let failed = !message.is_empty();
        let reason = if failed { "PreflightFailed" } else { HEALTHY };
        Said { type_, status: failed != good, reason: reason.to_string(), message }
    };
    let mut conditions = vec![condition("Ready", true, sentence(true))];
    let limited = sentence(false);
    if !limited.is_empty() {
        conditions.push(condition("Limited", false, limited));
    }
    conditions
}

/// A volume that this node consumes. `None`: nothing worth saying yet.
pub(super) fn volume(
    array: &Report<ArrayReport>,
    stage: Option<&Report<StageReport>>,
    content: Content,
) -> Option<Put> {
    if array.revision == 0 {
        return None;
    }
    let status = &array.status;
    let array_reason = first(array, status.reason.as_ref());
    let stage_reason = stage.and_then(|stage| first(stage, stage.status.reason.as_ref()));
    // A raw block volume is there as soon as its array is.
    let staged = content == Content::Block || stage.is_some_and(|stage| stage.status.ready && stage.failing.is_none());
    let reason = array_reason.or(stage_reason);
    let healthy = said("Healthy", reason.is_none(), reason);
    let active = status.phase == ArrayPhase::Active;
    let ready = match reason {
        None if !(staged && active) => Said {
            type_: "Ready",
            status: false,
            reason: if active { "NotMounted" } else { "Stopped" }.to_string(),
            message: format!("not mounted on its consumer; the array is {}", if active { "active" } else { "stopped" }),
        },
        reason => said("Ready", staged && active, reason),
    };
    let fields = match state(status) {
        Some(state) => {
            let copying = status.copying.map(|replica| replica.to_string());
            json!({"array": {"state": state, "members": members(&status.members), "copying": copying}})
        }
        None => json!({}),
    };
    let telemetry = json!({"array": {"syncPercent": status.sync_percent}});
    let telemetry = if status.phase == ArrayPhase::Active { telemetry } else { json!({}) };
    Some(Put { fields, telemetry, conditions: vec![ready, healthy], ..Put::default() })
}

/// Whether a copy is outside of the set, whatever it waits for.
fn outside(reason: &Reason) -> bool {
    use Reason::{Degraded, Flapping, NeedsGrowBeforeRejoin, WaitsForResyncBudget};
    matches!(reason, Degraded { .. } | Flapping { .. } | WaitsForResyncBudget { .. } | NeedsGrowBeforeRejoin { .. })
}

/// The array's state in one word; `None` while it is on its way.
fn state(status: &ArrayReport) -> Option<&'static str> {
    match (status.phase, &status.reason) {
        (ArrayPhase::Between, _) => None,
        (ArrayPhase::Absent | ArrayPhase::Released, _) => Some("stopped"),
        (ArrayPhase::Broken, _) => Some("broken"),
        (ArrayPhase::Active, Some(Reason::LastCopyFrozen { .. })) => Some("frozen"),
        (ArrayPhase::Active, Some(Reason::Resyncing { .. })) => {
            let whole = status.members.values().all(|member| member.in_sync);
            Some(if whole { "resyncing" } else { "recovering" })
        }
        (ArrayPhase::Active, Some(reason)) if outside(reason) => Some("degraded"),
        (ArrayPhase::Active, _) => Some("active"),
    }
}

/// `r0=local r1=rdma`: the first transport of a member carries its I/O.
fn members(members: &BTreeMap<ReplicaId, MemberReport>) -> Vec<String> {
    let path = |member: &MemberReport| match member.transports.first() {
        _ if member.local => "local",
        Some(transport) => transport.as_str(),
        None => "none",
    };
    members.iter().map(|(replica, member)| format!("{replica}={}", path(member))).collect()
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
