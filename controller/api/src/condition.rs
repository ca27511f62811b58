//! Conditions: the Kubernetes shape, with an update that keeps `lastTransitionTime` honest.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A condition of an object (the shape of `meta/v1.Condition`).
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which condition.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// A word from `docs/errors.md`.
    pub reason: String,
    /// A sentence for people.
    #[serde(default)]
    pub message: String,
    /// When `status` last changed, RFC 3339.
    pub last_transition_time: String,
}

/// Sets a condition in a list. The transition time changes only with `status`. Returns whether anything changed.
pub fn set(list: &mut Vec<Condition>, type_: &str, status: bool, reason: &str, message: &str, now: &str) -> bool {
    let status = if status { "True" } else { "False" };
    match list.iter_mut().find(|c| c.type_ == type_) {
        Some(old) => {
            let changed = old.status != status || old.reason != reason || old.message != message;
            if old.status != status {
                old.last_transition_time = now.to_string();
            }
            old.status = status.into();
            old.reason = reason.into();
            old.message = message.into();
            changed
        }
        None => {
            list.push(Condition {
                type_: type_.into(),
                status: status.into(),
                reason: reason.into(),
                message: message.into(),
                last_transition_time: now.into(),
            });
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transition_time_follows_the_status_alone() {
        let mut list = vec![];
        assert!(set(&mut list, "Ready", false, "Waiting", "a", "t1"));
        assert!(set(&mut list, "Ready", false, "Waiting", "b", "t2"));
        assert_eq!(list[0].last_transition_time, "t1");
        assert!(!set(&mut list, "Ready", false, "Waiting", "b", "t3"));
        assert!(set(&mut list, "Ready", true, "Healthy", "", "t4"));
        assert_eq!(list[0].last_transition_time, "t4");
    }
}
