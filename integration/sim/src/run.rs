//! One seed: a cluster, volumes, a nemesis; then calm, the oracle, and the end of everything.

use crate::cluster::{Cluster, pass};
use crate::nemesis::Nemesis;
use crate::oracle;
use crate::workload::Life;
use fastrand::Rng;
use meshstor_kernel::mutant::{self, Mutant};
use meshstor_kernel::sim::Config;
use std::future::Future;
use std::rc::Rc;

/// After all harm: copies are in sync again within this many simulated seconds. Retries of CSI calls, back-offs of up to
/// 30 s, a quarantined actor (600 s) and a whole resync of each volume fit in.
const COME_RIGHT: f64 = 900.0;

/// And then all copies: one that kept leaving is kept out for a quarter of an hour at most (`actors/plan/src/array/flap.rs`).
const WHOLE: f64 = 900.0 + COME_RIGHT;

/// Seeds from here on grow some of their volumes. Those before it, the kept ones above all, are what they were.
const GROWS_FROM: u64 = 100_000;

/// A whole resync of the volumes at the rate of the simulation (1 GiB at 32 MiB/s), with room to spare.
const SYNCED: f64 = 120.0;

/// What became of a seed.
pub struct Outcome {
    /// What went wrong.
    pub failures: Vec<String>,
    /// One line for each event.
    pub trace: Vec<String>,
    /// Writes acknowledged.
    pub acknowledged: usize,
}

impl Outcome {
    /// What became of a cluster.
    pub fn of(cluster: &Cluster, failures: Vec<String>) -> Outcome {
        let acknowledged = cluster.world.history().iter().filter(|write| write.acknowledged.is_some()).count();
        Outcome { failures, trace: cluster.world.trace(), acknowledged }
    }

    /// Nothing could be run.
    pub fn failed(failure: String) -> Outcome {
        Outcome { failures: vec![failure], trace: vec![], acknowledged: 0 }
    }
}

/// Runs a seed, with a bug or without.
pub fn run(seed: u64, harm: u64, bug: Option<Mutant>) -> Outcome {
    simulated(seed, bug, one(seed, harm))
}

/// Runs a simulation on a paused clock.
pub fn simulated(seed: u64, bug: Option<Mutant>, simulation: impl Future<Output = Outcome>) -> Outcome {
    mutant::set(bug);
    // Libraries below us draw from the thread's generator: back-offs must be the seed's as well.
    fastrand::seed(seed);
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        match builder.enable_all().start_paused(true).build() {
            Ok(runtime) => runtime,
            // Without a runtime there is no simulation; the process has nothing else to do.
            Err(error) => {
                eprintln!("no runtime: {error}");
                std::process::exit(1)
            }
        }
    };
    let outcome = actix::System::with_tokio_rt(runtime).block_on(simulation);
    mutant::set(None);
    outcome
}

async fn one(seed: u64, harm: u64) -> Outcome {
    let mut rng = Rng::with_seed(seed);
    let nodes = 3 + rng.usize(..2);
    let config = Config { rdma: rng.bool(), sync_rate: 32 << 20, ..Config::default() };
    let cluster = match Cluster::new(seed, nodes, config).await {
        Ok(cluster) => cluster,
        Err(error) => return Outcome::failed(format!("no cluster: {error:#}")),
    };
    let volumes = 1 + rng.usize(..3);
    let lives: Vec<Rc<Life>> = (0..volumes).map(|n| Life::new(cluster.clone(), rng.fork(), n)).collect();
    if seed >= GROWS_FROM {
        lives.iter().enumerate().for_each(|(number, life)| life.growing.draw(seed, number));
    }
    let nemesis = Nemesis::new(cluster.clone(), rng.fork());
    pass(5.0).await;
    let tasks: Vec<_> = lives.iter().map(|life| actix::spawn(life.clone().live())).collect();
    lives.iter().for_each(|life| drop(actix::spawn(life.clone().kubelets())));
    actix::spawn(nemesis.clone().rage());
    pass(harm as f64).await;
    lives.iter().for_each(|life| life.calm());
    nemesis.end().await;
    // Whoever was in the middle of a call comes to its end.
    for task in tasks {
        let _ended = tokio::time::timeout(std::time::Duration::from_secs(700), task).await;
    }
    let mut failures = settle(&cluster, &lives).await;
    lives.iter().for_each(|life| failures.extend(life.broken.borrow().iter().cloned()));
    failures.extend(oracle::laws(&cluster));
    let mut outcome = Outcome::of(&cluster, failures);
    outcome.trace.extend(nemesis.log.borrow().iter().cloned());
    outcome.trace.sort_by(|a, b| time_of(a).total_cmp(&time_of(b)));
    outcome
}

/// The liveness phase, then the end of everything.
pub async fn settle(cluster: &Rc<Cluster>, lives: &[Rc<Life>]) -> Vec<String> {
    let mut failures = Vec::new();
    for life in lives {
        failures.extend(life.come_right(COME_RIGHT).await.err());
    }
    let whole = |life: &Rc<Life>| oracle::in_sync(cluster, &life.name).len() == life.copies as usize || life.cramped();
    for _ in 0..WHOLE as u64 {
        if lives.iter().all(whole) {
            break;
        }
        pass(1.0).await;
    }
    for life in lives.iter().filter(|life| !whole(life)) {
        let set = oracle::in_sync(cluster, &life.name);
        let said = oracle::said(cluster, &life.name);
        failures.push(format!("{}: {} copies, in sync are only {set:?}; {said}", life.name, life.copies));
    }
    // A resync that a takeover left makes equal what was never acknowledged; members count while it runs.
    let begun = tokio::time::Instant::now();
    pass(2.0).await;
    while begun.elapsed().as_secs_f64() < SYNCED && !all_idle(lives).await {
        pass(1.0).await;
    }
    lives.iter().for_each(|life| failures.extend(oracle::data(cluster, life)));
    if !failures.is_empty() {
        // What is wrong is to be looked at, not to be deleted.
        return failures;
    }
    // What returns now holds copies that others have replaced.
    cluster.repair();
    for life in lives {
        failures.extend(life.end(COME_RIGHT).await.err());
    }
    for _ in 0..120 {
        if oracle::leaks(cluster).is_empty() {
            break;
        }
        pass(1.0).await;
    }
    let left = oracle::leaks(cluster);
    if !left.is_empty() {
        failures.push(format!("left behind: {}", left.join("; ")));
    }
    failures
}

/// Whether no array that is in use syncs.
async fn all_idle(lives: &[Rc<Life>]) -> bool {
    for life in lives {
        if !life.idle().await {
            return false;
        }
    }
    true
}

/// The time at the start of a line of the trace.
fn time_of(line: &str) -> f64 {
    line.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}
