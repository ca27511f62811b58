//! Kubernetes events of our own objects: what `kubectl describe` shows of a change, beside the condition that stands there
//! afterwards. Claims and pods are told by the controller's herald.
//!
//! Called by the node agents and by the controller after a condition was written. Nothing depends on an event: a server
//! that takes none costs a line in the log. Agents send them beside their work, the controller waits for each, [`PATIENCE`] at
//! most.

use crate::condition::Condition;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long an event may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest note that the API server takes: 1 KiB (`NoteLengthLimit` of events.k8s.io/v1).
pub const NOTE_MAX: usize = 1000;

/// One thing to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Whether somebody should look.
    pub warning: bool,
    /// A word from `docs/errors.md`.
    pub reason: String,
    /// A sentence for people.
    pub note: String,
}

/// Whether a condition says that something is wrong or under way: some are good when they hold, all others bad.
pub fn bad(condition: &Condition) -> bool {
    let positive = matches!(condition.type_.as_str(), "Ready" | "Healthy" | "Takeover" | "Claimed" | "Usable");
    (condition.status == "True") != positive
}

/// Whether a condition names what every volume goes through on its way: that stands in the object, and is no news. One that
/// is made and deleted again would be ten events.
pub fn passing(condition: &Condition) -> bool {
    matches!(condition.reason.as_str(), "AwaitingPartition" | "Releasing")
}

/// What is to be told of conditions that were written: a status or a reason that is another one. `Ready` is silent beside
/// `Healthy`, which says the same of a volume that is in use, and nothing of one that is not.
pub fn changes(before: &[Condition], after: &[Condition]) -> Vec<Told> {
    let find = |list: &[Condition], type_: &str| list.iter().find(|c| c.type_ == type_).cloned();
    let mut told: BTreeMap<String, Told> = BTreeMap::new();
    for now in after {
        let old = find(before, &now.type_);
        let same = old.as_ref().is_some_and(|old| (&old.status, &old.reason) == (&now.status, &now.reason));
        if same || (now.type_ == "Ready" && find(after, "Healthy").is_some()) {
            continue;
        }
        let bad = bad(now);
        // The first good word about an object is no news, nor is what passes, nor its end.
        if passing(now) || !bad && old.as_ref().is_none_or(passing) {
            continue;
        }
        let note =
            if now.message.is_empty() { format!("{} is {}", now.type_, now.status) } else { now.message.clone() };
        // A drive that is somebody else's is as it should be: every node has one.
        let warning = bad && !(now.type_ == "Usable" && now.reason == "DriveRefused");
        told.insert(now.reason.clone(), Told { warning, reason: now.reason.clone(), note });
    }
    told.into_values().collect()
}

/// What is to be told of `status.array.members` (`r1=rdma`) that changed: which transport carries a member's I/O.
pub fn paths(before: &Value, after: &Value) -> Vec<Told> {
    let read = |status: &Value| -> BTreeMap<String, String> {
        let list = status.pointer("/array/members").and_then(Value::as_array).into_iter().flatten();
        let pair = |text: &Value| text.as_str()?.split_once('=').map(|(id, path)| (id.to_string(), path.to_string()));
        list.filter_map(pair).collect()
    };
    let (old, new) = (read(before), read(after));
    let moved = new.into_iter().filter_map(|(id, path)| {
        let was = old.get(&id).filter(|was| **was != path && **was != "local" && path != "local")?;
        let better = was == "none" || path == "rdma";
        let reason = if better { "PathBack" } else { "PathLost" };
        let note = match path.as_str() {
            "none" => format!("{id}: no path, its last one was {was}"),
            path if was == "none" => format!("{id}: reads and writes go over {path} again"),
            path => format!("{id}: reads and writes go over {path} now, before over {was}"),
        };
        Some(Told { warning: !better, reason: reason.into(), note })
    });
    moved.collect()
}

/// The way to tell.
#[derive(Clone)]
pub struct Teller {
    recorder: Recorder,
}

impl Teller {
    /// In the name of a part of ours: `csi.meshstor.io/node` on this instance.
    pub fn new(client: kube::Client, part: &str, instance: Option<String>) -> Teller {
        let reporter = Reporter { controller: format!("csi.meshstor.io/{part}"), instance };
        Teller { recorder: Recorder::new(client, reporter) }
    }

    /// Tells it all of one object. Equal ones in a row are counted by the server.
    pub async fn tell<K: Resource<DynamicType = ()>>(&self, name: &str, uid: Option<String>, told: &[Told]) {
        let regarding = ObjectReference {
            api_version: Some(K::api_version(&()).into_owned()),
            kind: Some(K::kind(&()).into_owned()),
            name: Some(name.to_string()),
            uid,
            ..ObjectReference::default()
        };
        for one in told {
            let event = Event {
                type_: if one.warning { EventType::Warning } else { EventType::Normal },
                reason: one.reason.clone(),
                note: Some(one.note.chars().take(NOTE_MAX).collect()),
                action: "Watch".into(),
                secondary: None,
            };
            match tokio::time::timeout(PATIENCE, self.recorder.publish(&event, &regarding)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(name, reason = one.reason, %error, "no event could be written"),
                Err(_elapsed) => tracing::debug!(name, reason = one.reason, "no event could be written in time"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::condition::set;
    use serde_json::json;

    fn conditions(said: &[(&str, bool, &str, &str)]) -> Vec<Condition> {
        let mut list = Vec::new();
        for (type_, status, reason, message) in said {
            set(&mut list, type_, *status, reason, message, "t");
        }
        list
    }

    #[test]
    fn a_change_for_the_worse_is_a_warning_and_one_for_the_better_is_told_once() {
        let good = conditions(&[("Ready", true, "Healthy", ""), ("Healthy", true, "Healthy", "")]);
        let bad = conditions(&[("Ready", true, "Degraded", "r1"), ("Healthy", false, "Degraded", "not in sync: r1")]);
        let told = changes(&good, &bad);
        assert_eq!(told, [Told { warning: true, reason: "Degraded".into(), note: "not in sync: r1".into() }]);
        let told = changes(&bad, &good);
        assert_eq!(told, [Told { warning: false, reason: "Healthy".into(), note: "Healthy is True".into() }]);
        assert_eq!((changes(&good, &good), changes(&[], &good)), (vec![], vec![]));
    }

    #[test]
    fn what_every_volume_goes_through_is_no_news_and_trouble_on_the_way_is() {
        let good = conditions(&[("Ready", true, "Healthy", "")]);
        let not = |reason: &str| conditions(&[("Ready", false, reason, "r1")]);
        assert_eq!(changes(&[], &not("AwaitingPartition")), []);
        assert_eq!(changes(&not("AwaitingPartition"), &good), []);
        assert_eq!(changes(&good, &not("Releasing")), []);
        assert_eq!(changes(&not("AwaitingPartition"), &not("NoSpace"))[0].reason, "NoSpace");
        assert_eq!(changes(&not("NoSpace"), &not("AwaitingPartition")), []);
        assert_eq!(changes(&not("NoSpace"), &good)[0].reason, "Healthy");
    }

    #[test]
    fn a_message_alone_is_no_news_and_other_conditions_are_bad_when_they_hold() {
        let waits = |message: &str| conditions(&[("Missing", true, "Silent", message)]);
        assert_eq!(changes(&waits("1 s"), &waits("2 s")), []);
        assert!(changes(&[], &waits("1 s"))[0].warning);
        let over = conditions(&[("Missing", false, "Healthy", "")]);
        assert!(!changes(&waits("1 s"), &over)[0].warning);
        assert!(
            changes(&[], &conditions(&[("Takeover", false, "AwaitingFence", "r0")]))[0].warning,
            "a takeover that waits"
        );
    }

    #[test]
    fn a_drive_that_cannot_be_read_is_a_warning_and_a_foreign_one_a_word() {
        let drive = |usable, reason: &str| conditions(&[("Usable", usable, reason, "ext4")]);
        let warning = |before: &[Condition], after: &[Condition]| -> Vec<bool> {
            changes(before, after).iter().map(|told| told.warning).collect()
        };
        let good = drive(true, "Healthy");
        assert_eq!(warning(&good, &drive(false, "DriveUnreadable")), [true]);
        assert_eq!(warning(&drive(false, "DriveUnreadable"), &good), [false]);
        assert_eq!(warning(&[], &drive(false, "DriveRefused")), [false]);
        assert!(warning(&[], &good).is_empty());
    }

    #[test]
    fn another_transport_is_told_with_both_names() {
        let of = |members: &[&str]| json!({"array": {"members": members}});
        let told = paths(&of(&["r0=local", "r1=rdma"]), &of(&["r0=local", "r1=tcp"]));
        assert_eq!((told.len(), told[0].warning, told[0].reason.as_str()), (1, true, "PathLost"));
        assert_eq!(told[0].note, "r1: reads and writes go over tcp now, before over rdma");
        let told = paths(&of(&["r1=tcp"]), &of(&["r1=rdma"]));
        assert_eq!((told[0].warning, told[0].reason.as_str()), (false, "PathBack"));
        assert!(paths(&of(&["r1=tcp"]), &of(&["r1=none"]))[0].warning);
        assert!(!paths(&of(&["r1=none"]), &of(&["r1=tcp"]))[0].warning);
        assert_eq!(paths(&of(&["r1=tcp"]), &of(&["r1=local"])), []);
        assert_eq!(paths(&json!({}), &of(&["r1=tcp"])), [], "a first word is no change");
    }
}
