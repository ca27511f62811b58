//! Whose turn it is.

use super::*;

fn ask(volume: &str, consumer: &str, target: &str, in_sync: usize) -> Recovery {
    let [volume, consumer, target] = [volume, consumer, target].map(str::to_string);
    Recovery { volume, consumer, target, in_sync, granted: false }
}

fn running(recovery: Recovery) -> Recovery {
    Recovery { granted: true, ..recovery }
}

fn given(asks: &[Recovery], node: usize, cluster: usize) -> Vec<String> {
    grants(asks.to_vec(), ResyncLimits { node, cluster }).into_iter().collect()
}

#[test]
fn the_most_endangered_volume_goes_first() {
    let asks = [ask("a", "n1", "n2", 2), ask("b", "n3", "n4", 1), ask("c", "n5", "n6", 1), ask("d", "n7", "n8", 2)];
    assert_eq!(given(&asks, 2, 1), ["b"]);
    assert_eq!(given(&asks, 2, 3), ["a", "b", "c"]);
    assert_eq!(given(&asks, 2, 9).len(), 4);
}

#[test]
fn a_node_takes_part_in_no_more_than_its_limit_from_either_end() {
    let asks = [ask("a", "n1", "n2", 1), ask("b", "n1", "n3", 1), ask("c", "n4", "n1", 1), ask("d", "n4", "n5", 2)];
    assert_eq!(given(&asks, 2, 16), ["a", "b", "d"], "n1 is full, n4 is not");
    assert_eq!(given(&asks, 1, 16), ["a", "d"]);
    // A copy on the consumer's own node counts once.
    assert_eq!(given(&[ask("a", "n1", "n1", 1), ask("b", "n1", "n2", 1)], 2, 16), ["a", "b"]);
}

#[test]
fn what_runs_keeps_its_leave_and_counts() {
    let asks = [running(ask("z", "n1", "n2", 3)), ask("a", "n3", "n4", 1)];
    assert_eq!(given(&asks, 2, 1), ["z"]);
    assert_eq!(given(&[running(ask("y", "n1", "n2", 3)), running(ask("z", "n1", "n2", 3))], 1, 1), ["y", "z"]);
}

fn object(value: Value) -> DynamicObject {
    serde_json::from_value(value).unwrap()
}

fn volume(name: &str, copying: Option<&str>) -> DynamicObject {
    object(serde_json::json!({
        "metadata": {"name": name}, "spec": {"attachment": {"consumer": "n1"}},
        "status": {"inSync": ["r0"], "array": {"copying": copying}}
    }))
}

fn copy(volume: &str, recovery: Value) -> DynamicObject {
    object(serde_json::json!({
        "metadata": {"name": format!("{volume}-r1")},
        "spec": {"volume": volume, "replica": "r1", "node": "n2", "export": {"epoch": 3, "generation": 1}, "recovery": recovery}
    }))
}

const SILENT: Duration = Duration::from_secs(60);

/// The watches have listed everything: volume `a` has leave, `b` asks.
fn watched() -> Budget {
    let budget = Budget::default();
    budget.heard("n1".into());
    for name in ["a", "b"] {
        budget.volume(&volume(name, Some("r1")));
    }
    let granted = serde_json::json!({"epoch": 3, "generation": 1});
    let known = [budget.copy(&copy("a", granted)), budget.copy(&copy("b", Value::Null))];
    budget.copies_listed(&known.into_iter().flatten().collect());
    budget.volumes_listed(&["a", "b"].map(|name| (name.to_string(), None)).into());
    budget
}

fn turn(budget: &Budget, volume: &str, limit: usize) -> bool {
    let ask = Ask { replica: "r1".into(), consumer: "n1".into(), in_sync: 1 };
    let place = Copy { node: "n2".into(), granted: false };
    budget.turn(volume, ask, place, ResyncLimits { node: limit, cluster: 16 }, SILENT)
}

#[tokio::test(start_paused = true)]
async fn a_recovery_counts_until_its_copy_is_complete_or_its_life_is_over() {
    assert!(!turn(&watched(), "b", 1));
    assert!(turn(&watched(), "b", 2));
    let budget = watched();
    assert!(turn(&budget, "b", 2) && !turn(&budget, "c", 2), "counted before the watch shows it");
    budget.volume(&volume("a", None));
    assert!(!turn(&budget, "c", 1) && turn(&budget, "c", 3), "a is done");
    let budget = watched();
    budget.copy(&copy("a", serde_json::json!({"epoch": 3, "generation": 0})));
    assert!(!turn(&budget, "b", 1) && turn(&budget, "a", 1), "a left, and asks anew under its new life");
    let budget = watched();
    budget.copy_gone(&copy("a", Value::Null));
    assert!(turn(&budget, "b", 1));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_given_before_everything_was_seen_and_a_silent_consumer_holds_nothing() {
    assert!(!turn(&Budget::default(), "b", 9));
    let budget = watched();
    tokio::time::sleep(SILENT).await;
    assert!(!turn(&budget, "b", 1), "nor is it given anything");
    budget.heard("n3".into());
    let ask = Ask { replica: "r1".into(), consumer: "n3".into(), in_sync: 1 };
    let place = Copy { node: "n2".into(), granted: false };
    assert!(budget.turn("c", ask, place, ResyncLimits { node: 1, cluster: 1 }, SILENT));
}
