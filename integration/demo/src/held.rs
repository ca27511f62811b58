//! Scenario: a whole copy comes to its end while the consumer's agent is dead. The kernel must not count it as complete
//! before somebody can record it (docs/protocol.md, rule 3).
//!
//! Called by `scenarios`. It looks at MD's own files in the guest, not at what the product says of them.

use crate::cluster::{Cluster, wait};
use crate::csi::{Access, Wanted};
use crate::scenarios::Scenario;
use crate::story::*;
use anyhow::{Context, Result, ensure};
use std::time::Duration;

/// The scenarios of this file.
pub const ALL: &[(&str, Scenario)] =
    &[("held-recovery: the consumer's agent is killed while a copy is made, and does not come back", held_recovery)];

/// Small, as all of it is copied by emulated machines, and large enough for the agent to be killed meanwhile.
const SMALL: i64 = 320 * MIB;
/// Sectors before the end at which a held recovery waits, at most.
const NEARLY: u64 = 256;

fn held_recovery(cluster: &mut Cluster) -> Result<String> {
    let parameters = [("replicaCount", "2")];
    let wanted = Wanted {
        access: Access::Xfs,
        name: "held",
        bytes: SMALL,
        parameters: &parameters,
        nodes: &["node-a", "node-b"],
    };
    let (mut volume, _) = bring_up(cluster, &wanted, "node-a")?;
    volume.history.append(&write(cluster, &volume, 200)?);
    let guest = cluster.guest("node-a")?;
    let leaves = cluster.replicas(&volume.id)?.get("node-b").cloned().context("a copy on node-b")?;
    let object = format!("{}-{leaves}", volume.id);
    cluster.control.kubectl(&["patch", "msrep", &object, "--type=merge", "-p", r#"{"spec":{"role":"Retiring"}}"#])?;
    // In the guest itself: the copy takes seconds.
    let kill = "for i in $(seq 600); do grep -qs recover /sys/block/md*/md/sync_action && break; sleep 0.1; done; \
                p=$(cat /run/meshstor/agent.pid); kill -9 $p; sleep 0.2; ! kill -0 $p 2>/dev/null";
    ensure!(guest.ssh_within(kill, Duration::from_secs(90))?.ok(), "the agent was not killed");
    let look = || guest.ssh_checked("cat /sys/block/md*/md/sync_action /sys/block/md*/md/sync_completed");
    let mut last = String::new();
    wait("the copy comes to its end", Duration::from_secs(120), || {
        last = look()?;
        Ok(arrived(&last))
    })
    .with_context(|| last.clone())?;
    // Far longer than the rest would take.
    std::thread::sleep(Duration::from_secs(8));
    last = look()?;
    ensure!(arrived(&last), "it went on without the agent: {last}");
    let complete = guest.ssh_checked("cat /sys/block/md*/md/dev-*/state | grep -c in_sync")?;
    ensure!(complete.trim() == "2", "MD counts {} complete copies", complete.trim());
    let copies = cluster.in_sync(&volume.id)?.len();
    ensure!(copies == 2, "{copies} copies are recorded");
    volume.history.append(&write(cluster, &volume, 50)?);
    cluster.start_agent(&guest)?;
    wait("the new copy is recorded and the old one gone", Duration::from_secs(120), || {
        Ok(cluster.whole(&volume.id)? && !cluster.replicas(&volume.id)?.contains_key("node-b"))
    })?;
    let blocks = verify(cluster, &volume)?;
    take_down(cluster, &volume)?;
    Ok(format!(
        "held at {}, recorded when the agent was back, {blocks} blocks verified",
        last.replace('\n', " ").trim()
    ))
}

/// Whether MD's files say that a recovery waits just before its end: `recover`, `655232 / 655360`.
fn arrived(text: &str) -> bool {
    let mut lines = text.lines();
    let recovers = lines.next() == Some("recover");
    let sectors = lines.next().and_then(|line| line.split_once(" / "));
    let numbers =
        sectors.and_then(|(done, all)| Some((done.trim().parse::<u64>().ok()?, all.trim().parse::<u64>().ok()?)));
    recovers && numbers.is_some_and(|(done, all)| done < all && done + NEARLY >= all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_recovery_is_told_from_one_that_runs_or_is_over() {
        assert!(arrived("recover\n655232 / 655360\n"));
        assert!(!arrived("recover\n1000 / 655360\n") && !arrived("recover\n655360 / 655360\n"));
        assert!(!arrived("idle\nnone\n") && !arrived(""));
    }
}
