//! What a change of a volume's conditions is to people: worse, better, or nothing to tell. Pure.
//!
//! Called by [`super`] for every volume that a watch shows. The same change gives the same news in every controller, names
//! of events included, so that it is told once however many of them run.

use k8s_openapi::api::core::v1::Pod;
use meshstor_api::condition::Condition;
use meshstor_api::tell;
use uuid::{Uuid, uuid};

const NAMESPACE: Uuid = uuid!("2f7f6f1c-8c53-5b0e-9d0b-6d6573687374");
/// Of an object's name, so that an event's stays below the 253 characters that a name may have.
const NAME_KEPT_MAX: usize = 200;

/// One thing to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct News {
    pub(super) warning: bool,
    /// A word from `docs/errors.md`.
    pub(super) reason: String,
    pub(super) note: String,
    /// What tells this change from every other one.
    pub(super) mark: String,
}

/// What is to be told of a volume whose conditions were `before`, if it was seen before, and are `now` in the version
/// `version` of its object. Worse and better are told, a volume that was never well nor ill is not; nor is a volume that
/// is published or let go.
pub(super) fn news(before: Option<&[Condition]>, now: &[Condition], attached: bool, version: &str) -> Vec<News> {
    // Of the two summaries one speaks of the volume in use, the other one of the volume at rest.
    let idle = if attached { "Ready" } else { "Healthy" };
    let spoken = now.iter().filter(|condition| condition.type_ != idle);
    let one = |condition: &Condition| {
        let old = before.and_then(|list| list.iter().find(|old| old.type_ == condition.type_));
        let (bad, was_bad) = (tell::bad(condition), old.is_some_and(tell::bad));
        let same = old.is_some_and(|old| old.status == condition.status && old.reason == condition.reason);
        let passes = tell::passing(condition) || !bad && old.is_some_and(tell::passing);
        if same || passes || !(bad || was_bad) {
            return None;
        }
        let note = match (bad, condition.message.as_str(), old) {
            (false, "", Some(old)) => format!("{} is over", old.reason),
            (_, "", _) => format!("{} is {}", condition.type_, condition.status),
            (_, message, _) => message.to_string(),
        };
        // What was there already when this controller began is told by its own time, so that it is not told at each start.
        let when = if before.is_some() { version } else { &condition.last_transition_time };
        let mark = format!("{} {} {} {when}", condition.type_, condition.status, condition.reason);
        Some(News { warning: bad, reason: condition.reason.clone(), note, mark })
    };
    spoken.filter_map(one).collect()
}

/// The name of the event by which an object is told, the same in every controller.
pub(super) fn event_name(object: &str, uid: &str, volume: &str, mark: &str) -> String {
    let id = Uuid::new_v5(&NAMESPACE, format!("{uid} {volume} {mark}").as_bytes()).simple();
    let kept: String = object.chars().take(NAME_KEPT_MAX).collect();
    format!("{}.{id}", kept.trim_end_matches(['.', '-']))
}

/// Whether a pod uses a claim: by name, or by a volume of its own whose claim Kubernetes made for it.
pub(super) fn uses(pod: &Pod, claim: &str) -> bool {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let mut volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.any(|volume| {
        let named = volume.persistent_volume_claim.as_ref().is_some_and(|source| source.claim_name == claim);
        named || volume.ephemeral.is_some() && format!("{name}-{}", volume.name) == claim
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshstor_api::condition::set;

    fn list(said: &[(&str, bool, &str, &str)]) -> Vec<Condition> {
        let mut list = Vec::new();
        for (type_, status, reason, message) in said {
            set(&mut list, type_, *status, reason, message, "t1");
        }
        list
    }

    fn told(before: Option<&[Condition]>, now: &[Condition], attached: bool) -> Vec<(bool, String, String)> {
        news(before, now, attached, "7").into_iter().map(|n| (n.warning, n.reason, n.note)).collect()
    }

    #[test]
    fn worse_is_a_warning_and_better_is_told_once() {
        let good = list(&[("Ready", true, "Healthy", ""), ("Healthy", true, "Healthy", "")]);
        let bad = list(&[("Ready", true, "Degraded", "r1"), ("Healthy", false, "Degraded", "not in sync: r1")]);
        let frozen = list(&[("Healthy", false, "LastCopyFrozen", "r0")]);
        let warn = |reason: &str, note: &str| vec![(true, reason.to_string(), note.to_string())];
        assert_eq!(told(Some(&good), &bad, true), warn("Degraded", "not in sync: r1"));
        assert_eq!(told(Some(&bad), &frozen, true), warn("LastCopyFrozen", "r0"));
        assert_eq!(
            told(Some(&frozen), &good, true),
            [(false, "Healthy".to_string(), "LastCopyFrozen is over".to_string())]
        );
        assert_eq!(told(Some(&bad), &bad, true), []);
        assert_eq!(told(Some(&[]), &good, true), [], "the first good word is no news");
        let repair = list(&[("Repair", true, "Replacing", "r1 is lost, r2 is being made in its place")]);
        assert!(told(Some(&[]), &repair, true)[0].0);
        let over = list(&[("Repair", false, "Healthy", "")]);
        assert_eq!(told(Some(&repair), &over, true)[0].2, "Replacing is over");
    }

    #[test]
    fn a_pod_that_comes_and_goes_is_no_news_and_a_lost_record_is() {
        let used = list(&[("Ready", true, "Healthy", ""), ("Healthy", true, "Healthy", "")]);
        let at_rest = list(&[("Ready", true, "Detached", "not published"), ("Healthy", true, "Healthy", "")]);
        let between = list(&[("Ready", false, "NotMounted", "not mounted yet"), ("Healthy", true, "Healthy", "")]);
        assert_eq!(told(Some(&used), &at_rest, false), []);
        assert_eq!(told(Some(&at_rest), &between, true), []);
        assert_eq!(told(Some(&between), &used, true), []);
        let lost = list(&[("Ready", false, "RecordLost", "x"), ("Healthy", true, "Healthy", "")]);
        assert_eq!(told(Some(&at_rest), &lost, false)[0].1, "RecordLost");
    }

    #[test]
    fn a_controller_that_begins_tells_what_is_wrong_by_its_own_time() {
        let bad = list(&[("Healthy", false, "Degraded", "not in sync: r1")]);
        let first = news(None, &bad, true, "7");
        assert_eq!(first, news(None, &bad, true, "8"), "another start, the same news");
        let change = news(Some(&[]), &bad, true, "7");
        assert_ne!(change, news(Some(&[]), &bad, true, "8"), "a condition that comes back is news");
        let good = list(&[("Healthy", true, "Healthy", "")]);
        assert_eq!(news(None, &good, true, "7"), []);
    }

    #[test]
    fn names_are_the_same_everywhere_and_fit() {
        let long = format!("{}-x", "n".repeat(199));
        let name = event_name(&long, "u", "v", "m");
        assert!(name.len() <= 253 && name.starts_with(&format!("{}.", "n".repeat(199))), "{name}");
        assert_eq!(event_name("db", "u", "v", "m"), event_name("db", "u", "v", "m"));
        let others =
            [event_name("db", "u2", "v", "m"), event_name("db", "u", "v2", "m"), event_name("db", "u", "v", "m2")];
        assert!(others.iter().all(|other| *other != event_name("db", "u", "v", "m")));
    }

    #[test]
    fn pods_use_a_claim_by_name_or_as_their_own() {
        let pod = |volume: serde_json::Value| -> Pod {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "web"}, "spec": {"containers": [], "volumes": [volume]},
            }))
            .unwrap()
        };
        let named = pod(serde_json::json!({"name": "data", "persistentVolumeClaim": {"claimName": "db"}}));
        assert!(uses(&named, "db") && !uses(&named, "data"));
        let own = pod(serde_json::json!({"name": "data", "ephemeral": {}}));
        assert!(uses(&own, "web-data") && !uses(&own, "data"));
        assert!(!uses(&pod(serde_json::json!({"name": "x", "emptyDir": {}})), "web-x"));
    }
}
