//! Scenes: short scripted lives of one volume, each made for a mutant whose conditions seeds meet too rarely.
//!
//! Called by the hunt for mutants. Without the bug a scene must end as every run has to, and it must really have come to
//! where the bug would show; with the bug the oracle must object. A scene never judges: `run::settle` does.

mod plays;

use crate::cluster::{Cluster, pass};
use crate::oracle;
use crate::records::REPLICAS;
use crate::run::{self, Outcome};
use crate::workload::Life;
use fastrand::Rng;
use meshstor_api::MeshStorReplica;
use meshstor_kernel::facts::ArrayFact;
use meshstor_kernel::id::DriveId;
use meshstor_kernel::mutant::Mutant;
use meshstor_kernel::sim::{Config, SimDrive};
use meshstor_memstore::Link;
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

const DEVICES: &str = "meshstornodedevices";

type Play = fn(Rc<Stage>) -> Pin<Box<dyn Future<Output = ()>>>;

/// Longest wait for anything that a scene needs.
const PATIENCE: f64 = 300.0;
/// A chunk of the bitmap (64 MiB) takes a minute: long enough to do something meanwhile.
const SLOW: u64 = 1 << 20;
const FAST: u64 = 64 << 20;

/// One of them.
pub struct Scene {
    /// The bug that it is made for.
    pub shows: Mutant,
    sync_rate: u64,
    parameters: &'static [(&'static str, &'static str)],
    play: Play,
}

const SCENES: [Scene; 12] = [
    scene(Mutant::DropCalledOff, FAST, &[], |stage| Box::pin(plays::a_drop_lands_late(stage))),
    scene(Mutant::WriteMostlyDuringResync, SLOW, &[], |stage| Box::pin(plays::reads_while_copies_differ(stage))),
    scene(Mutant::FloorIgnored, FAST, &[], |stage| Box::pin(plays::the_record_goes_back(stage))),
    scene(Mutant::PortReusedAtOnce, FAST, &[], |stage| Box::pin(plays::a_stranger_at_the_old_port(stage))),
    scene(Mutant::DeletedIsDeletion, FAST, &[], |stage| Box::pin(plays::objects_are_lost(stage))),
    scene(Mutant::BlindRetry, 16 * SLOW, &[], |stage| Box::pin(plays::a_change_comes_too_late(stage))),
    scene(Mutant::AbsentIsAll, FAST, &[], |stage| Box::pin(plays::the_set_is_lost(stage))),
    scene(Mutant::EndsAlone, 4 * SLOW, &[], |stage| Box::pin(plays::nobody_sees_a_recovery_end(stage))),
    scene(Mutant::HoldLeapt, 4 * SLOW, &[], |stage| Box::pin(plays::nobody_sees_a_recovery_end(stage))),
    scene(Mutant::EndsUnfrozen, 4 * SLOW, &[], |stage| Box::pin(plays::the_recorded_copy_fails_first(stage))),
    scene(Mutant::NumberUsedAgain, 4 * SLOW, &[("memberMissingTimeout", "60")], |stage| {
        Box::pin(plays::a_new_copys_object_is_lost(stage))
    }),
    scene(Mutant::MadeUnread, FAST, &[("memberMissingTimeout", "60")], |stage| {
        Box::pin(plays::a_copy_that_nobody_wants_any_more(stage))
    }),
];

const fn scene(
    shows: Mutant,
    sync_rate: u64,
    parameters: &'static [(&'static str, &'static str)],
    play: Play,
) -> Scene {
    Scene { shows, sync_rate, parameters, play }
}

/// The scene that is made for a mutant.
pub fn of(mutant: Mutant) -> Option<&'static Scene> {
    static ALL: [Scene; 12] = SCENES;
    ALL.iter().find(|scene| scene.shows == mutant)
}

impl Scene {
    /// Plays it to its end, with a bug or without.
    pub fn run(&'static self, bug: Option<Mutant>) -> Outcome {
        run::simulated(1, bug, self.one(bug.is_some()))
    }

    async fn one(&self, bug: bool) -> Outcome {
        let config = Config { sync_rate: self.sync_rate, ..Config::default() };
        let cluster = match Cluster::new(1, 4, config).await {
            Ok(cluster) => cluster,
            Err(error) => return Outcome::failed(format!("no cluster: {error:#}")),
        };
        let mut parameters = vec![("replicaCount", "2".to_string()), ("relocationDelay", "never".to_string())];
        parameters.extend(self.parameters.iter().map(|(key, value)| (*key, value.to_string())));
        let life = Life::of(cluster.clone(), Rng::with_seed(1), 0, 2, parameters);
        let stage = Rc::new(Stage { cluster: cluster.clone(), life: life.clone(), missed: RefCell::default() });
        pass(5.0).await;
        while life.id.get().is_none() {
            life.create().await;
        }
        (self.play)(stage.clone()).await;
        stage.make_whole().await;
        life.calm();
        let mut failures = run::settle(&cluster, std::slice::from_ref(&life)).await;
        failures.extend(life.broken.take());
        failures.extend(oracle::laws(&cluster));
        if !bug {
            // With the bug anything may go another way.
            failures.extend(stage.missed.take());
        }
        Outcome::of(&cluster, failures)
    }
}

/// What a scene is played with: four nodes and a volume of two copies.
struct Stage {
    cluster: Rc<Cluster>,
    life: Rc<Life>,
    /// What the scene needed and did not get.
    missed: RefCell<Vec<String>>,
}

impl Stage {
    /// What is left on nodes that the volume has left by force is cleaned up.
    async fn leave_by_force(&self) {
        self.life.leave(false).await;
        actix::spawn(self.life.clone().kubelets());
    }

    fn must(&self, so: bool, what: &str) {
        if !so {
            self.missed.borrow_mut().push(format!("the scene did not come to this: {what}"));
        }
    }

    /// The node of a copy.
    fn home(&self, replica: &str) -> String {
        let objects = self.cluster.store.list(REPLICAS);
        let mut read = objects.iter().filter_map(|o| serde_json::from_value::<MeshStorReplica>((**o).clone()).ok());
        let node = read.find(|r| r.spec.replica == replica).map(|r| r.spec.node);
        self.must(node.is_some(), replica);
        node.unwrap_or_default()
    }

    /// The nodes without a copy.
    fn others(&self) -> [String; 2] {
        let homes = [self.home("r0"), self.home("r1")];
        let mut others = self.cluster.nodes.iter().filter(|node| !homes.contains(node)).cloned();
        [others.next().unwrap_or_default(), others.next().unwrap_or_default()]
    }

    async fn up(&self, node: &str) {
        self.must(self.life.bring_up(node, PATIENCE).await, &format!("in use on {node}"));
    }

    async fn writes(&self, node: &str, seconds: f64) {
        self.life.write_until(node, Instant::now() + Duration::from_secs_f64(seconds)).await;
    }

    /// Writes that are asked for and not waited for.
    fn begin_writes(&self, node: &str, count: usize) {
        for _ in 0..count {
            let (life, node) = (self.life.clone(), node.to_string());
            actix::spawn(async move {
                if let Some(id) = life.id.get() {
                    let _answer = life.write_one(&node, id).await;
                }
            });
        }
    }

    /// Nothing new is placed on a node's drive.
    fn ignore_drive(&self, node: &str) {
        for object in self.cluster.store.list(DEVICES).iter().filter(|o| o["spec"]["node"] == node) {
            let mut object = (**object).clone();
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_string();
            object["spec"]["use"] = "ignore".into();
            self.must(self.cluster.store.force(DEVICES, "", &name, Some(object)), "a drive is ignored");
        }
    }

    /// Writes every second; one that fails is a promise broken.
    async fn goes_on(self: Rc<Self>, node: String) {
        while let Some(id) = self.life.id.get() {
            let write = self.life.write_one(&node, id);
            let answer = tokio::time::timeout(Duration::from_secs(30), write).await;
            if !matches!(answer, Ok(Ok(()))) {
                let line = format!("{}: what ran on {node} does not go on: {answer:?}", self.life.name);
                return self.life.broken.borrow_mut().push(line);
            }
            pass(1.0).await;
        }
    }

    async fn power_cut(&self, node: &str) {
        self.cluster.kill_agent(node).await;
        self.cluster.world.power_cut(node);
    }

    fn power_on(&self, node: &str) {
        self.cluster.world.power_on(node);
        self.cluster.start_agent(node);
    }

    async fn array(&self, node: &str) -> Option<ArrayFact> {
        self.cluster.world.kernel(node).array(self.life.id.get()?).await.ok().flatten()
    }

    fn in_sync(&self) -> Vec<String> {
        oracle::in_sync(&self.cluster, &self.life.name).iter().map(ToString::to_string).collect()
    }

    async fn until_set(&self, wanted: &[&str]) {
        let end = Instant::now() + Duration::from_secs_f64(PATIENCE);
        while self.in_sync() != wanted && Instant::now() < end {
            pass(0.2).await;
        }
        self.must(self.in_sync() == wanted, &format!("in sync are {wanted:?}"));
    }

    /// Writes at `near`, while `far` is away for a time and then begins to be copied to.
    async fn until_a_copy_returns(&self, near: &str, far: &str) {
        self.up(near).await;
        self.writes(near, 10.0).await;
        self.power_cut(far).await;
        self.until_set(&["r0"]).await;
        self.writes(near, 10.0).await;
        self.power_on(far);
        self.until_array(near, "the copy returns", |a| a.sync_action == "recover").await;
    }

    async fn until_array(&self, node: &str, what: &str, so: impl Fn(&ArrayFact) -> bool) {
        let end = Instant::now() + Duration::from_secs_f64(PATIENCE);
        while Instant::now() < end {
            if self.array(node).await.is_some_and(|array| so(&array)) {
                return;
            }
            pass(0.05).await;
        }
        self.must(false, what);
    }

    /// All harm ends.
    async fn make_whole(&self) {
        self.cluster.world.heal_all();
        self.cluster.store.faults().clear();
        for client in self.cluster.nodes.iter().map(String::as_str).chain(["c1", "c2"]) {
            self.cluster.api_link(client, Link::Up);
            self.cluster.store.faults().set_latency(client, Duration::ZERO, Duration::ZERO);
        }
        for node in &self.cluster.nodes {
            self.cluster.world.drive_break(node, &drive(node), false);
            if !self.cluster.world.is_up(node) {
                self.cluster.world.power_on(node);
            }
            self.cluster.start_agent(node);
        }
    }
}

fn drive(node: &str) -> DriveId {
    SimDrive::new(&format!("serial-{node}"), 0).id()
}
