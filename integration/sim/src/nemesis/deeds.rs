//! What each kind of harm does, and how it is undone.
//!
//! Called by the nemesis, one task for each deed; several run at a time.

use super::{Harm, Nemesis, TENDER, drive};
use crate::cluster::pass;
use meshstor_kernel::facts::Transport;
use meshstor_kernel::sim::{FaultRates, OpFault};
use meshstor_memstore::{Fault, Link, Outcome, WatchEnd};
use std::time::Duration;

impl Nemesis {
    pub(super) async fn harm(&self, kind: Harm) {
        let (node, other, time) = (self.pick(), self.pick(), self.duration());
        let (world, faults) = (&self.cluster.world, self.cluster.store.faults());
        self.say(format!("{kind:?} {node} {other} {time:.1} s"));
        match kind {
            Harm::Cut if node != other => world.cut(&node, &other),
            Harm::CutOneWay if node != other => world.cut_one_way(&node, &other),
            Harm::Isolate => world.isolate(&node),
            Harm::CutOff => {
                world.isolate(&node);
                self.cluster.api_link(&node, Link::Hang);
            }
            Harm::ApiHangs => self.cluster.api_link(&node, Link::Hang),
            Harm::ApiRefuses => self.cluster.api_link(&node, Link::Refuse),
            Harm::ControllerHangs => self.cluster.api_link("c1", Link::Hang),
            Harm::ApiErrors => {
                for outcome in [Outcome::Status(500), Outcome::Reset, Outcome::Status(409)] {
                    faults.inject(Fault::before_effect(outcome).client(&node).times(2));
                    faults.inject(Fault::after_effect(outcome).client(&node).times(2));
                }
                return;
            }
            Harm::ApiSlow => {
                faults.set_latency(&node, Duration::from_millis(400), Duration::from_millis(700));
                pass(time).await;
                return faults.set_latency(&node, Duration::ZERO, Duration::ZERO);
            }
            Harm::EventsLost => return faults.drop_events(&node, None, 5),
            Harm::WatchesClosed => return faults.close_watches(Some(&node), WatchEnd::Expired),
            Harm::HintsLost => return world.lose_hints(&node, 20),
            Harm::LooksFail => return world.fail_looks(&node, 10),
            Harm::Rough => {
                world.set_rates(FaultRates::rough());
                pass(time).await;
                return world.set_rates(FaultRates::default());
            }
            Harm::DriveHangs => world.drive_hang(&node, &drive(&node), true),
            Harm::DrivePulled => world.drive_pull(&node, &drive(&node)),
            Harm::DriveBreaks => world.drive_break(&node, &drive(&node), true),
            Harm::RdmaCut if node != other => world.cut_transport(&node, &other, Transport::Rdma),
            Harm::BothControllersHang => ["c1", "c2"].iter().for_each(|c| self.cluster.api_link(c, Link::Hang)),
            Harm::EventsHeld => faults.hold_events(&node, true),
            Harm::SlowOps | Harm::FailingOps => return self.hurt_operations(kind, &node),
            Harm::ObjectGone | Harm::SetAbsent | Harm::RolledBack => return self.hurt_record(kind, time).await,
            Harm::PowerCut | Harm::ShutDown | Harm::Freeze | Harm::KillAgent => {
                return self.down(kind, &node, time).await;
            }
            Harm::Forsaken => return self.forsake(&node, &other, time).await,
            Harm::Torn => return self.tear(&node).await,
            Harm::Estranged => return self.estrange(&node).await,
            Harm::Ghost => return self.haunt(&node, &other).await,
            Harm::Retired => return self.retire(),
            Harm::NodeRemoved => return self.remove(&node, time).await,
            Harm::NodeLost => return self.lose(&node).await,
            Harm::Cut | Harm::CutOneWay | Harm::RdmaCut => return,
        }
        pass(time).await;
        if !self.over.get() {
            self.undo(kind, &node, &other);
        }
    }

    /// Ends harm that has a duration.
    fn undo(&self, kind: Harm, node: &str, other: &str) {
        let (world, faults) = (&self.cluster.world, self.cluster.store.faults());
        match kind {
            Harm::Cut | Harm::CutOneWay | Harm::RdmaCut => world.heal(node, other),
            Harm::CutOff => {
                self.cluster.nodes.iter().filter(|n| *n != node).for_each(|n| world.heal(node, n));
                self.cluster.api_link(node, Link::Up);
            }
            Harm::Isolate => self.cluster.nodes.iter().filter(|n| *n != node).for_each(|n| world.heal(node, n)),
            Harm::ApiHangs | Harm::ApiRefuses => self.cluster.api_link(node, Link::Up),
            Harm::ControllerHangs => self.cluster.api_link("c1", Link::Up),
            Harm::BothControllersHang => ["c1", "c2"].iter().for_each(|c| self.cluster.api_link(c, Link::Up)),
            Harm::EventsHeld => faults.hold_events(node, false),
            Harm::DriveHangs => world.drive_hang(node, &drive(node), false),
            Harm::DrivePulled => world.drive_insert(node, &drive(node)),
            Harm::DriveBreaks => world.drive_break(node, &drive(node), false),
            _ => {}
        }
        self.say(format!("{kind:?} {node} {other} is over"));
    }

    /// Operations to come are late, or fail: done, half done or not at all.
    fn hurt_operations(&self, kind: Harm, node: &str) {
        for _ in 0..3 {
            let op = TENDER[self.rng.borrow_mut().usize(..TENDER.len())];
            let choice = self.rng.borrow_mut().usize(..3);
            let fault = match (kind, choice) {
                (Harm::SlowOps, _) => OpFault::Slow(Duration::from_secs_f64(self.between(1.0, 25.0))),
                (_, 0) => OpFault::Before,
                (_, 1) => OpFault::After,
                _ => OpFault::Half,
            };
            self.cluster.world.fail_next(node, op, fault);
        }
    }

    /// Objects vanish, lose their in-sync set, or go back in time, until somebody puts them right.
    async fn hurt_record(&self, kind: Harm, time: f64) {
        let time = time.min(20.0);
        let choice = self.rng.borrow_mut().usize(..1 << 16);
        let done = match kind {
            Harm::ObjectGone => self.records.remove(choice),
            Harm::SetAbsent => self.records.strip(choice),
            // With a node away nobody might know of the lost future: that cannot be detected (F16).
            _ if !self.down.borrow().is_empty() => None,
            _ => {
                // Whoever restores etcd starts the API server's clients at their own pace: nodes before controllers.
                self.down.borrow_mut().extend(self.cluster.nodes.iter().cloned());
                let done = self.records.roll_back(choice);
                ["c1", "c2"].iter().for_each(|c| self.cluster.api_link(c, Link::Hang));
                pass(5.0).await;
                ["c1", "c2"].iter().for_each(|c| self.cluster.api_link(c, Link::Up));
                done
            }
        };
        let Some(what) = done else {
            if kind == Harm::RolledBack {
                self.down.borrow_mut().retain(|node| !self.cluster.nodes.contains(node));
            }
            return;
        };
        self.say(format!("{kind:?}: {what}"));
        pass(time).await;
        if !self.over.get() {
            self.records.put_back(&what);
            self.say(format!("{kind:?}: {what} is put right"));
        }
        if kind == Harm::RolledBack {
            self.down.borrow_mut().clear();
        }
    }

    /// See [`Harm::Forsaken`]. The cut lasts longer than a lost member is waited for.
    async fn forsake(&self, node: &str, other: &str, time: f64) {
        if node == other {
            return;
        }
        self.cluster.api_link(node, Link::Hang);
        self.cluster.world.cut(node, other);
        pass(self.between(7.0, 16.0)).await;
        if !self.over.get() {
            self.down(Harm::PowerCut, node, time + 20.0).await;
        }
        if !self.over.get() {
            self.cluster.api_link(node, Link::Up);
            self.cluster.world.heal(node, other);
            self.say(format!("Forsaken {node} {other} is over"));
        }
    }

    /// See [`Harm::Torn`].
    async fn tear(&self, node: &str) {
        self.cluster.world.isolate(node);
        pass(self.between(0.3, 2.0)).await;
        if !self.over.get() {
            self.down(Harm::PowerCut, node, self.between(0.1, 2.0)).await;
        }
        if !self.over.get() {
            self.undo(Harm::Isolate, node, node);
        }
    }

    /// See [`Harm::Estranged`]. It still dials where it has been fenced, and has not heard of it.
    async fn estrange(&self, node: &str) {
        self.cluster.api_link(node, Link::Hang);
        self.cluster.world.isolate(node);
        pass(self.between(8.0, 45.0)).await;
        if !self.over.get() {
            self.undo(Harm::Isolate, node, node);
            pass(self.between(3.0, 20.0)).await;
        }
        if !self.over.get() {
            self.cluster.api_link(node, Link::Up);
        }
    }

    /// See [`Harm::Ghost`].
    async fn haunt(&self, node: &str, other: &str) {
        let time = Duration::from_secs_f64(self.between(2.0, 25.0));
        self.cluster.world.drive_throttle(other, &drive(other), 3, time);
        pass(self.between(0.3, 1.5)).await;
        if !self.over.get() && node != other {
            self.down(Harm::PowerCut, node, self.between(0.1, 1.0)).await;
        }
    }

    /// Harm to a whole machine or its agent.
    pub(super) async fn down(&self, kind: Harm, node: &str, time: f64) {
        if self.down.borrow().iter().any(|down| down == node) {
            return;
        }
        self.down.borrow_mut().push(node.into());
        let world = &self.cluster.world;
        match kind {
            Harm::PowerCut => {
                self.cluster.kill_agent(node).await;
                if self.over.get() {
                    return self.cluster.start_agent(node);
                }
                world.power_cut(node);
            }
            Harm::ShutDown => {
                self.cluster.kill_agent(node).await;
                if self.over.get() {
                    return self.cluster.start_agent(node);
                }
                world.shut_down(node);
            }
            Harm::Freeze => {
                world.freeze(node);
                self.cluster.api_link(node, Link::Hang);
            }
            _ => self.cluster.kill_agent(node).await,
        }
        pass(time).await;
        if !self.over.get() {
            match kind {
                Harm::PowerCut | Harm::ShutDown => {
                    // A shutdown of less than its own time is a power cut in its last second.
                    world.power_cut(node);
                    world.power_on(node);
                }
                Harm::Freeze => {
                    world.thaw(node);
                    self.cluster.api_link(node, Link::Up);
                }
                _ => {}
            }
            self.cluster.start_agent(node);
            self.say(format!("{kind:?} {node} is over"));
        }
        self.down.borrow_mut().retain(|down| down != node);
    }
}
