//! The clocks of fabric connections: since when no path is live, since when I/O completes nothing.
//!
//! ```text
//!  every 250 ms:  list /sys/class/nvme ─▶ one ring batch: state, inflight, stat of every path ─▶ Clocks ─▶ hints
//! ```
//!
//! Started once by the seam; read by `fabrics.rs`. Path loss sends neither a uevent nor a sysfs notification (seen on
//! 6.12: nvme_change_ctrl_state has none), so it has to be asked for. It never touches a device, only its attributes.

use super::attr;
use super::root::Root;
use super::uring::{ReadRequest, Ring};
use crate::hint::Hint;
use crate::id::{ExportKey, Nqn};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::broadcast;

/// A twentieth of the default stall time (5 s): a loss is seen early enough not to matter against it.
const TICK: Duration = Duration::from_millis(250);
/// While something is down or stalled the clock itself is news, as often as a person would look.
const REMIND: Duration = Duration::from_secs(1);
/// sysfs answers from memory; more means a lock that hangs, and the next tick asks again.
const READ_DEADLINE: Duration = Duration::from_secs(2);
const ATTRIBUTE_BYTES: usize = 4096;

/// What one look showed of one NQN.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sample {
    /// State of each controller.
    pub states: BTreeMap<String, String>,
    /// Requests that the paths have with the target.
    pub in_flight: u64,
    /// Requests that the paths ever completed.
    pub completed: u64,
}

impl Sample {
    fn live(&self) -> bool {
        self.states.values().any(|state| state == "live")
    }
}

#[derive(Debug)]
struct Clock {
    sample: Sample,
    down_since: Option<Instant>,
    progress: Instant,
    reminded: Instant,
}

/// All clocks. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Clocks(Arc<Mutex<BTreeMap<Nqn, Clock>>>);

impl Clocks {
    /// How long no controller of the NQN has been live. `live` is what the caller sees now, and wins.
    pub fn down_for(&self, nqn: &Nqn, live: bool, now: Instant) -> Duration {
        let since = self.lock().get(nqn).and_then(|clock| clock.down_since);
        let age = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        if live { Duration::ZERO } else { age }
    }

    /// How long I/O has been in flight without a completion.
    pub fn stalled_for(&self, nqn: &Nqn, now: Instant) -> Duration {
        let clocks = self.lock();
        let stalled = clocks.get(nqn).filter(|clock| clock.sample.in_flight > 0);
        stalled.map_or(Duration::ZERO, |clock| now.saturating_duration_since(clock.progress))
    }

    /// Takes one look at everything in and answers whose connection changed or is still down or stalled.
    pub fn advance(&self, samples: BTreeMap<Nqn, Sample>, now: Instant) -> BTreeSet<Nqn> {
        let mut clocks = self.lock();
        let mut news: BTreeSet<Nqn> = clocks.keys().filter(|nqn| !samples.contains_key(*nqn)).cloned().collect();
        clocks.retain(|nqn, _| samples.contains_key(nqn));
        for (nqn, sample) in samples {
            let clock = clocks.entry(nqn.clone()).or_insert_with(|| {
                news.insert(nqn.clone());
                Clock { sample: Sample::default(), down_since: None, progress: now, reminded: now }
            });
            if clock.step(sample, now) {
                news.insert(nqn);
            }
        }
        news
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Nqn, Clock>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Clock {
    fn step(&mut self, sample: Sample, now: Instant) -> bool {
        if sample.in_flight == 0 || sample.completed != self.sample.completed {
            self.progress = now;
        }
        self.down_since = if sample.live() { None } else { self.down_since.or(Some(now)) };
        let changed = sample.states != self.sample.states;
        let stalled = sample.in_flight > 0 && now.saturating_duration_since(self.progress) >= REMIND;
        let remind = (self.down_since.is_some() || stalled) && now.saturating_duration_since(self.reminded) >= REMIND;
        if changed || remind {
            self.reminded = now;
        }
        self.sample = sample;
        changed || remind
    }
}

/// A controller as the poller remembers it: the inode tells a reused name from the same controller.
struct Known {
    inode: u64,
    nqn: Option<Nqn>,
}

/// Polls for ever. Spawned once on the runtime of the seam.
pub async fn run(root: Root, ring: Ring, clocks: Clocks, hints: broadcast::Sender<Hint>) {
    let mut known = BTreeMap::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        refresh(&root, &mut known);
        let samples = sample(&root, &ring, &known).await;
        for nqn in clocks.advance(samples, Instant::now()) {
            let hint = ExportKey::from_nqn(&nqn).map_or(Hint::Connections, |k| Hint::Connection(k.replica.volume));
            // Nobody listening is no reason to stop keeping time.
            let _ = hints.send(hint);
        }
    }
}

/// Brings the list of controllers up to date. One that is not known as an export is asked each time who it is: its
/// folder is there before its subsystem's name can be read (seen on 6.12), and a clock that never starts lets a volume
/// wait for ever.
fn refresh(root: &Root, known: &mut BTreeMap<String, Known>) {
    let class = root.sys.join("class/nvme");
    let mut now = BTreeMap::new();
    for name in attr::names(&class) {
        let dir = class.join(&name);
        let Ok(inode) = std::fs::metadata(&dir).map(|meta| meta.ino()) else { continue };
        let entry = match known.remove(&name) {
            Some(entry) if entry.inode == inode && entry.nqn.is_some() => entry,
            _ => Known { inode, nqn: export_nqn(&dir) },
        };
        now.insert(name, entry);
    }
    *known = now;
}

/// The NQN, when it is an export of ours.
fn export_nqn(dir: &Path) -> Option<Nqn> {
    attr::read_opt(&dir.join("subsysnqn")).map(Nqn).filter(|nqn| ExportKey::from_nqn(nqn).is_some())
}

/// The attributes to ask for, each with what it is.
#[derive(Clone, Copy)]
enum Ask {
    State,
    InFlight,
    Stat,
}

async fn sample(root: &Root, ring: &Ring, known: &BTreeMap<String, Known>) -> BTreeMap<Nqn, Sample> {
    let mut asked = Vec::new();
    for (name, entry) in known {
        let Some(nqn) = &entry.nqn else { continue };
        let dir = root.sys.join("class/nvme").join(name);
        asked.push((nqn, name, Ask::State, dir.join("state")));
        for path in attr::names(&dir).iter().filter(|child| hidden_path(child)) {
            asked.push((nqn, name, Ask::InFlight, dir.join(path).join("inflight")));
            asked.push((nqn, name, Ask::Stat, dir.join(path).join("stat")));
        }
    }
    let request = |path: &Path| ReadRequest { path: attr::show(path), offset: 0, len: ATTRIBUTE_BYTES, direct: false };
    let answers = ring.read_many(asked.iter().map(|ask| request(&ask.3)).collect(), READ_DEADLINE).await;
    let mut samples: BTreeMap<Nqn, Sample> = BTreeMap::new();
    for ((nqn, name, ask, _), answer) in asked.into_iter().zip(answers) {
        // A controller that went away between the listing and the read shows up as gone at the next tick.
        let Ok(answer) = answer else { continue };
        let text = String::from_utf8_lossy(&answer);
        let sample = samples.entry(nqn.clone()).or_default();
        match ask {
            Ask::State => drop(sample.states.insert(name.clone(), text.trim().to_string())),
            Ask::InFlight => sample.in_flight += sum_of(&text, &[0, 1]),
            // Documentation/block/stat.rst: completed reads, writes, discards and flushes.
            Ask::Stat => sample.completed += sum_of(&text, &[0, 4, 11, 15]),
        }
    }
    samples
}

/// `nvme3c3n1`: the path's own disk, below the shared head `nvme3n1`.
pub fn hidden_path(name: &str) -> bool {
    name.strip_prefix("nvme").is_some_and(|rest| rest.contains('c') && rest.contains('n'))
}

fn sum_of(text: &str, fields: &[usize]) -> u64 {
    let values: Vec<u64> = text.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    fields.iter().filter_map(|field| values.get(*field)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nqn() -> Nqn {
        Nqn("n".into())
    }

    fn look(clocks: &Clocks, state: &str, in_flight: u64, completed: u64, now: Instant) -> bool {
        let states = BTreeMap::from([("nvme1".to_string(), state.to_string())]);
        let sample = Sample { states, in_flight, completed };
        !clocks.advance(BTreeMap::from([(nqn(), sample)]), now).is_empty()
    }

    #[test]
    fn the_down_clock_starts_with_the_last_live_path_and_stops_with_the_first() {
        let (clocks, start) = (Clocks::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert!(look(&clocks, "live", 0, 0, at(0)), "a new connection is news");
        assert!(!look(&clocks, "live", 0, 0, at(250)));
        assert!(look(&clocks, "connecting", 0, 0, at(500)), "the loss is news");
        assert!(!look(&clocks, "connecting", 0, 0, at(750)));
        assert!(look(&clocks, "connecting", 0, 0, at(1500)), "still down is news every second");
        assert_eq!(clocks.down_for(&nqn(), false, at(2500)), Duration::from_secs(2));
        assert_eq!(clocks.down_for(&nqn(), true, at(2500)), Duration::ZERO);
        look(&clocks, "live", 0, 0, at(2750));
        assert_eq!(clocks.down_for(&nqn(), false, at(3000)), Duration::ZERO);
    }

    #[test]
    fn a_stall_is_io_in_flight_and_nothing_completed() {
        let (clocks, start) = (Clocks::default(), Instant::now());
        let at = |s| start + Duration::from_secs(s);
        look(&clocks, "live", 3, 10, at(0));
        look(&clocks, "live", 3, 11, at(1));
        look(&clocks, "live", 3, 11, at(2));
        assert_eq!(clocks.stalled_for(&nqn(), at(4)), Duration::from_secs(3));
        look(&clocks, "live", 3, 12, at(5));
        assert_eq!(clocks.stalled_for(&nqn(), at(5)), Duration::ZERO);
        look(&clocks, "live", 0, 12, at(6));
        assert_eq!(clocks.stalled_for(&nqn(), at(9)), Duration::ZERO);
    }

    #[test]
    fn a_connection_that_is_gone_is_news_once() {
        let (clocks, now) = (Clocks::default(), Instant::now());
        look(&clocks, "live", 0, 0, now);
        assert_eq!(clocks.advance(BTreeMap::new(), now), BTreeSet::from([nqn()]));
        assert_eq!(clocks.advance(BTreeMap::new(), now), BTreeSet::new());
    }

    #[test]
    fn a_controller_that_says_its_name_late_gets_its_clock() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        let dir = root.sys.join("class/nvme/nvme1");
        std::fs::create_dir_all(&dir).unwrap();
        let mut known = BTreeMap::new();
        refresh(&root, &mut known);
        assert!(known["nvme1"].nqn.is_none());
        let nqn = "nqn.2025-12.io.meshstor:0f9a2c56-1c1b-4a1e-9f43-0d8a1c2b3e4f:r1:e3g1";
        std::fs::write(dir.join("subsysnqn"), nqn).unwrap();
        refresh(&root, &mut known);
        assert_eq!(known["nvme1"].nqn, Some(Nqn(nqn.into())));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn one_look_reads_states_and_sums_the_paths() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        let key = "nqn.2025-12.io.meshstor:0f9a2c56-1c1b-4a1e-9f43-0d8a1c2b3e4f:r1:e3g1";
        for (name, nqn) in [("nvme0", "nqn.2019-08.org.qemu:local"), ("nvme1", key), ("nvme2", key)] {
            let dir = root.sys.join("class/nvme").join(name);
            let path = dir.join(format!("{name}c1n1").replacen("nvme", "nvme", 1));
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(dir.join("subsysnqn"), nqn).unwrap();
            std::fs::write(dir.join("state"), "live\n").unwrap();
            std::fs::write(path.join("inflight"), "       1        2\n").unwrap();
            std::fs::write(path.join("stat"), "10 0 0 0 20 0 0 0 0 0 0 30 0 0 0 40 0\n").unwrap();
        }
        let mut known = BTreeMap::new();
        refresh(&root, &mut known);
        let samples = sample(&root, &Ring::start(), &known).await;
        let sample = &samples[&Nqn(key.into())];
        assert_eq!((samples.len(), sample.states.len(), sample.in_flight, sample.completed), (1, 2, 6, 200));
    }
}
