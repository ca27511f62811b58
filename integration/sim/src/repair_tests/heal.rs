//! What keeps repair from doing harm, end to end: members that keep leaving, budgets, drives that forget.

use super::*;

impl Pod {
    fn condition(&self, word: &str) -> Option<String> {
        let status = self.stored().status?;
        status.conditions.into_iter().find(|c| c.reason == word).map(|c| c.message)
    }

    /// Cuts a node off until its copy has left; answers how long it then stays away.
    async fn flap(&self, node: &str, replica: u32) -> f64 {
        let at = self.at.borrow().clone();
        self.cluster.world.cut(&at, node);
        let id = ReplicaId(replica);
        self.until("it leaves", 30.0, |pod| !pod.in_sync().contains(&id)).await;
        let left = Instant::now();
        self.cluster.world.heal(&at, node);
        self.until("it returns", 1000.0, |pod| pod.in_sync().contains(&id)).await;
        left.elapsed().as_secs_f64()
    }
}

#[test]
fn a_member_that_keeps_leaving_returns_later_each_time_whoever_looks_after_it() {
    simulated(async {
        let pod = Pod::new(4, 3, "a", 512 * MIB).await;
        let mut away = Vec::new();
        for turn in 0..4 {
            away.push(pod.flap("b", 1).await);
            if turn == 2 {
                // Neither a new agent nor a new consumer begins anew.
                pod.cluster.kill_agent("a").await;
                pod.cluster.start_agent("a");
                pass(20.0).await;
                pod.moves("d", true).await;
                pass(20.0).await;
            }
        }
        let due = [(0.0, 25.0), (30.0, 55.0), (60.0, 85.0), (120.0, 145.0)];
        for (away, (least, most)) in away.iter().zip(due) {
            assert!((least..most).contains(away), "{away:?}: due {due:?}\n{}", pod.trace());
        }
        let at = pod.at.borrow().clone();
        pod.cluster.world.cut(&at, "b");
        pod.until("it says so", 60.0, |pod| pod.condition("Flapping").is_some()).await;
        let said = pod.condition("Flapping").unwrap();
        assert!(said.starts_with("r1 has left 5 times") && said.contains("returns at 2026-"), "{said}");
        pod.cluster.world.heal(&at, "b");
        pod.until("it returns", 400.0, |pod| pod.in_sync().len() == 3).await;
        pass(3700.0).await;
        assert!(pod.flap("b", 1).await < 25.0, "an hour of calm: {}", pod.trace());
        assert_eq!(pod.stored().status.unwrap().flaps.len(), 1);
        pod.whole(60.0).await;
    });
}

#[test]
fn the_only_other_copy_is_back_half_a_minute_after_it_left_however_often() {
    simulated(async {
        let pod = Pod::new(2, 2, "a", 512 * MIB).await;
        for _ in 0..7 {
            let away = pod.flap("b", 1).await;
            assert!(away < 55.0, "{away}: {}", pod.trace());
        }
        pod.whole(60.0).await;
    });
}
