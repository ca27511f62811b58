//! The plays: what happens in each scene, up to the moment where its bug would show.
//!
//! Called by the scene. A play says what it must have come to; what came of it is judged elsewhere.

use super::{PATIENCE, Stage, drive};
use crate::cluster::pass;
use crate::records::{REPLICAS, Records};
use meshstor_kernel::sim::OpFault;
use meshstor_memstore::Link;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// A drop that takes longer than anybody waits for it; meanwhile the path is back (F9). The target hears of nothing, so the
/// old life of its export answers on.
pub(super) async fn a_drop_lands_late(stage: Rc<Stage>) {
    let (near, far, [new, _]) = (stage.home("r0"), stage.home("r1"), stage.others());
    stage.up(&near).await;
    stage.writes(&near, 10.0).await;
    stage.cluster.api_link(&far, Link::Hang);
    let late = Duration::from_secs(30);
    stage.cluster.world.fail_next(&near, "drop-member", OpFault::Slow(late));
    stage.cluster.world.cut(&near, &far);
    stage.until_set(&["r0"]).await;
    stage.cluster.world.heal(&near, &far);
    // Past the deadline of the drop (20 s), before it lands.
    stage.writes(&near, 26.0).await;
    // Nobody sees it land, or writes would be frozen.
    stage.cluster.api_link(&near, Link::Hang);
    stage.cluster.world.lose_hints(&near, 1000);
    stage.cluster.world.fail_looks(&near, 200);
    stage.writes(&near, 8.0).await;
    stage.power_cut(&near).await;
    stage.cluster.api_link(&near, Link::Up);
    stage.cluster.api_link(&far, Link::Up);
    stage.leave_by_force().await;
    if stage.life.bring_up(&new, 60.0).await {
        stage.writes(&new, 10.0).await;
    }
}

/// Writes that reached one copy only, then a restart: until the resync has passed, what is read must not change (F17).
/// The other copy has the lower slot, and MD reads the lowest while a resync is pending.
pub(super) async fn reads_while_copies_differ(stage: Rc<Stage>) {
    let (first, near) = (stage.home("r0"), stage.home("r1"));
    // Who creates the array gives its own copy the lowest slot.
    stage.up(&first).await;
    stage.life.leave(true).await;
    stage.up(&near).await;
    stage.writes(&near, 10.0).await;
    stage.cluster.world.isolate(&near);
    stage.begin_writes(&near, 6);
    pass(1.0).await;
    stage.power_cut(&near).await;
    stage.cluster.world.heal_all();
    stage.power_on(&near);
    stage.up(&near).await;
    stage.must(stage.array(&near).await.is_some_and(|a| !a.resync_done && a.degraded == 0), "a resync is pending");
    let Some(id) = stage.life.id.get() else { return };
    for _ in 0..10 {
        stage.life.replay(&near, id, Instant::now() + Duration::from_secs(30)).await;
        pass(60.0).await;
    }
}

/// The record of two moves ago comes back while the volume is in use (F16).
pub(super) async fn the_record_goes_back(stage: Rc<Stage>) {
    let (first, second, [third, _]) = (stage.home("r0"), stage.home("r1"), stage.others());
    let records = Records::new(stage.cluster.store.clone());
    stage.up(&first).await;
    stage.writes(&first, 10.0).await;
    records.remember();
    for node in [&second, &third] {
        stage.life.leave(true).await;
        stage.up(node).await;
        stage.writes(node, 10.0).await;
    }
    stage.must(records.roll_back(0).is_some(), "the record goes back");
    // What runs goes on, and an orchestrator that believes the record gets nothing.
    let goes_on = actix::spawn(stage.clone().goes_on(third.clone()));
    if stage.life.bring_up(&first, 60.0).await {
        stage.writes(&first, 10.0).await;
    }
    goes_on.abort();
    records.put_all_back();
    stage.life.at.replace(Some(third.clone()));
    stage.up(&third).await;
    stage.writes(&third, 10.0).await;
}

/// A consumer that was cut off, its agent dead, dials again; behind the old number something else answers by now (F13).
pub(super) async fn a_stranger_at_the_old_port(stage: Rc<Stage>) {
    let (old, [new, _]) = (stage.home("r0"), stage.others());
    stage.up(&old).await;
    stage.writes(&old, 10.0).await;
    stage.cluster.api_link(&old, Link::Hang);
    stage.cluster.world.isolate(&old);
    stage.cluster.kill_agent(&old).await;
    stage.begin_writes(&old, 4);
    pass(10.0).await;
    stage.leave_by_force().await;
    stage.up(&new).await;
    stage.cluster.world.heal_all();
    pass(30.0).await;
}

/// The objects of all copies are deleted past all rules, as with their definition, and made again from a backup (K5).
pub(super) async fn objects_are_lost(stage: Rc<Stage>) {
    let (node, [other, _]) = (stage.home("r0"), stage.others());
    stage.up(&node).await;
    stage.writes(&node, 10.0).await;
    stage.life.leave(true).await;
    pass(10.0).await;
    let store = &stage.cluster.store;
    let backup = store.list(REPLICAS);
    let named = || backup.iter().filter_map(|object| Some((object["metadata"]["name"].as_str()?, (**object).clone())));
    for (name, _) in named() {
        store.force(REPLICAS, "", name, None);
    }
    pass(30.0).await;
    for (name, object) in named() {
        store.force(REPLICAS, "", name, Some(object));
    }
    stage.up(&other).await;
}

/// A consumer has seen a copy become whole; before it has written that, the volume has moved on without that copy.
pub(super) async fn a_change_comes_too_late(stage: Rc<Stage>) {
    let ([old, new], far) = (stage.others(), stage.home("r1"));
    stage.up(&old).await;
    stage.writes(&old, 10.0).await;
    stage.power_cut(&far).await;
    stage.until_set(&["r0"]).await;
    stage.writes(&old, 5.0).await;
    stage.power_on(&far);
    stage.until_array(&old, "the copy returns", |a| a.sync_action == "recover").await;
    stage.cluster.store.faults().set_latency(&old, Duration::from_millis(2600), Duration::ZERO);
    stage.until_array(&old, "the copy is back", |a| a.degraded == 0).await;
    // What it sees now it wants to write in 2.6 s.
    pass(3.0).await;
    stage.leave_by_force().await;
    // The copy that was just made whole misses what is written now.
    stage.cluster.world.cut(&new, &far);
    stage.up(&new).await;
    // It would see, and mend, what is wrong with its record.
    stage.cluster.api_link(&new, Link::Hang);
    stage.writes(&new, 30.0).await;
    stage.power_cut(&stage.home("r0")).await;
    stage.power_cut(&new).await;
    stage.cluster.world.heal_all();
    stage.leave_by_force().await;
    stage.cluster.store.faults().set_latency(&old, Duration::ZERO, Duration::ZERO);
    if stage.life.bring_up(&old, 60.0).await {
        stage.writes(&old, 10.0).await;
    }
}

/// A record without its in-sync set, when the only copy at hand is an old one (K1).
pub(super) async fn the_set_is_lost(stage: Rc<Stage>) {
    let (near, far) = (stage.home("r0"), stage.home("r1"));
    let records = Records::new(stage.cluster.store.clone());
    stage.up(&near).await;
    stage.power_cut(&far).await;
    stage.until_set(&["r0"]).await;
    stage.writes(&near, 10.0).await;
    stage.power_cut(&near).await;
    stage.must(records.strip(0).is_some(), "the set is gone");
    stage.power_on(&far);
    stage.leave_by_force().await;
    if stage.life.bring_up(&far, 60.0).await {
        stage.writes(&far, 10.0).await;
    }
    records.put_all_back();
    stage.leave_by_force().await;
    stage.power_on(&near);
    stage.up(&near).await;
}

/// A copy comes back while its consumer's agent is dead; then the recorded one fails (rule 3).
pub(super) async fn nobody_sees_a_recovery_end(stage: Rc<Stage>) {
    let (near, far, [new, _]) = (stage.home("r0"), stage.home("r1"), stage.others());
    stage.until_a_copy_returns(&near, &far).await;
    stage.cluster.kill_agent(&near).await;
    pass(400.0).await;
    stage.cluster.world.drive_break(&near, &drive(&near), true);
    stage.writes(&near, 20.0).await;
    stage.power_cut(&near).await;
    stage.cluster.world.drive_break(&near, &drive(&near), false);
    stage.leave_by_force().await;
    stage.power_on(&near);
    stage.up(&new).await;
}

/// The last recorded copy fails between the end of another one's recovery and its record (rule 3).
pub(super) async fn the_recorded_copy_fails_first(stage: Rc<Stage>) {
    let (near, far, [new, _]) = (stage.home("r0"), stage.home("r1"), stage.others());
    stage.until_a_copy_returns(&near, &far).await;
    stage.cluster.store.faults().set_latency(&near, Duration::from_millis(2600), Duration::ZERO);
    stage.until_array(&near, "the copy is back", |a| a.degraded == 0).await;
    // It would be in the record 2.6 s later at the earliest, and nobody is there to freeze anything.
    stage.cluster.kill_agent(&near).await;
    stage.cluster.world.drive_break(&near, &drive(&near), true);
    stage.writes(&near, 10.0).await;
    stage.power_cut(&near).await;
    stage.must(stage.in_sync() == ["r0"], "the record has the lost copy alone");
    stage.cluster.world.drive_break(&near, &drive(&near), false);
    stage.cluster.store.faults().set_latency(&near, Duration::ZERO, Duration::ZERO);
    stage.leave_by_force().await;
    stage.power_on(&near);
    stage.up(&new).await;
}

/// The object of a copy in the making is lost; another one is made elsewhere.
pub(super) async fn a_new_copys_object_is_lost(stage: Rc<Stage>) {
    let (near, far, others) = (stage.home("r0"), stage.home("r1"), stage.others());
    stage.up(&near).await;
    stage.writes(&near, 10.0).await;
    stage.power_cut(&far).await;
    let copies = || stage.cluster.store.list(REPLICAS).len();
    let end = Instant::now() + Duration::from_secs_f64(PATIENCE);
    while copies() < 3 && Instant::now() < end {
        pass(0.2).await;
    }
    stage.must(copies() == 3, "another copy is made");
    pass(5.0).await;
    let (name, third, store) = (format!("{}-r2", stage.life.name), stage.home("r2"), &stage.cluster.store);
    let backup = store.get(REPLICAS, "", &name);
    // The next one has to be made on another node; the old one still answers its consumer.
    stage.ignore_drive(&third);
    store.force(REPLICAS, "", &name, None);
    let end = Instant::now() + Duration::from_secs_f64(PATIENCE);
    while stage.in_sync().len() < 2 && Instant::now() < end {
        pass(1.0).await;
    }
    stage.power_cut(&near).await;
    stage.leave_by_force().await;
    if store.get(REPLICAS, "", &name).is_none() {
        store.force(REPLICAS, "", &name, backup.map(|object| (*object).clone()));
    }
    let fourth = others.iter().find(|node| **node != third);
    stage.up(fourth.map_or("", String::as_str)).await;
}

/// The object of a copy to come is withdrawn before its node can look at its drive; the node does not hear of that. What it
/// then makes would be nobody's (simulator, seed 2223 of old).
pub(super) async fn a_copy_that_nobody_wants_any_more(stage: Rc<Stage>) {
    let (near, far, [third, fourth]) = (stage.home("r0"), stage.home("r1"), stage.others());
    stage.up(&near).await;
    stage.ignore_drive(&fourth);
    stage.power_cut(&far).await;
    stage.until_set(&["r0"]).await;
    let (name, store) = (format!("{}-r2", stage.life.name), &stage.cluster.store);
    store.faults().hold_events(&third, true);
    let end = Instant::now() + Duration::from_secs_f64(PATIENCE);
    while store.get(REPLICAS, "", &name).is_none() && Instant::now() < end {
        pass(0.01).await;
    }
    stage.must(stage.home("r2") == third, "another copy is to be made");
    stage.cluster.world.fail_looks(&third, 20);
    store.faults().hold_events(&third, false);
    pass(0.1).await;
    store.faults().drop_events(&third, Some(REPLICAS), 20);
    stage.power_on(&far);
    store.force(REPLICAS, "", &name, None);
    pass(60.0).await;
}
