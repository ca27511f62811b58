//! Whether a copy outside of the set is missing, since when, and for how long that is borne.
//!
//! Called by [`super::step`]. The clock is the condition `Missing` of the copy's object: its transition is when a
//! controller first saw the copy missing, by the controllers' wall clock, and it outlives every controller. A later sign
//! of life of the node moves it on, so that a node that came and went while no controller ran is not taken for one that
//! was away all the time. It never judges a copy that is in the set: that is the consumer's to take out.

use crate::Context;
use crate::error::ControlError;
use crate::offers;
use k8s_openapi::jiff::Timestamp;
use meshstor_api::condition::Condition;
use meshstor_api::node::MeshStorNode;
use meshstor_api::replica::MeshStorReplica;
use meshstor_plan::Reason;
use std::time::Duration;

/// The condition's type.
pub(crate) const MISSING: &str = "Missing";
/// What is said to be gone for good is looked at again for this long: longer than a node's heartbeat period (20 s), so
/// that one that lives has shown it meanwhile, and long enough for a Node object to be made anew by its kubelet.
const CONFIRM: Duration = Duration::from_secs(30);
/// A node that was heard of this lately is alive, whatever its Node object says.
const PULSE: Duration = Duration::from_secs(25);

/// A copy that is missing.
pub(crate) struct Missing {
    pub(crate) reason: Reason,
    /// Last sign of life of its node, if it ever gave one.
    heard: Option<Timestamp>,
    patience: Duration,
}

/// Looks for a copy.
pub(crate) async fn look(
    context: &Context,
    replica: &MeshStorReplica,
    timeout: Duration,
) -> Result<Option<Missing>, ControlError> {
    let name = &replica.spec.node;
    let now = (context.config.now)();
    let node = context.writer.get::<MeshStorNode>(name).await?;
    let heartbeat = node.and_then(|node| node.status).and_then(|status| status.heartbeat);
    let heard: Option<Timestamp> = heartbeat.as_ref().and_then(|text| text.parse().ok());
    let missing = |reason, patience: Duration| Some(Missing { reason, heard, patience: patience.min(timeout) });
    if offers::silence(heartbeat.as_deref(), now, PULSE).is_some() && !context.writer.node_exists(name).await? {
        return Ok(missing(Reason::NodeDeleted { node: name.clone() }, CONFIRM));
    }
    if let Some(why) = offers::silence(heartbeat.as_deref(), now, context.config.heartbeat_max) {
        return Ok(missing(Reason::NodeSilent { node: name.clone(), why }, timeout));
    }
    // The volume has grown without it, and it cannot grow where it lies: it never returns from there.
    let cramped = conditions(replica).iter().find(|said| said.type_ == "Ready" && said.reason == "NoRoomBehind");
    if let Some(said) = cramped {
        let reason = Reason::NoRoom { what: format!("for it to grow: {}", said.message) };
        return Ok(Some(Missing { reason, heard: None, patience: timeout }));
    }
    let said = conditions(replica).iter().find(|said| said.type_ == "Ready" && said.status == "False");
    // The node speaks, and what it says is of now.
    let heard = None;
    Ok(match said.map(|said| (said.reason.as_str(), said.message.clone())) {
        Some(("DataMissing", what)) => {
            Some(Missing { reason: Reason::DataMissing { what }, heard, patience: CONFIRM.min(timeout) })
        }
        Some(("DriveGone", _)) => Some(Missing { reason: Reason::DriveGone, heard, patience: timeout }),
        _ => None,
    })
}

/// Whether it has been missing for longer than is borne.
pub(crate) fn lost(replica: &MeshStorReplica, missing: &Missing, now: Timestamp) -> bool {
    let stands = stands(replica).filter(|said| said.reason == missing.reason.word());
    let Some(since) = stands.and_then(|said| said.last_transition_time.parse::<Timestamp>().ok()) else { return false };
    let since = missing.heard.map_or(since, |heard| heard.max(since));
    now.as_second().saturating_sub(since.as_second()) >= i64::try_from(missing.patience.as_secs()).unwrap_or(i64::MAX)
}

/// The condition as it is to be; `None` when it stands there already, or was never needed. Another reason is another
/// loss, with a time of its own.
pub(crate) fn condition(replica: &MeshStorReplica, missing: Option<&Missing>, now: &str) -> Option<Condition> {
    let old = conditions(replica).iter().find(|said| said.type_ == MISSING);
    let (status, reason, message) = match missing {
        Some(missing) => ("True", missing.reason.word(), missing.reason.to_string()),
        None => ("False", "Found", String::new()),
    };
    match old {
        None if missing.is_none() => return None,
        // The message of a silent node counts seconds: it is not written each time.
        Some(old) if old.status == status && old.reason == reason => return None,
        _ => {}
    }
    Some(Condition {
        type_: MISSING.to_string(),
        status: status.to_string(),
        reason: reason.to_string(),
        message,
        last_transition_time: now.to_string(),
    })
}

fn stands(replica: &MeshStorReplica) -> Option<&Condition> {
    conditions(replica).iter().find(|said| said.type_ == MISSING && said.status == "True")
}

fn conditions(replica: &MeshStorReplica) -> &[Condition] {
    replica.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default()
}
