//! The drive half of the real kernel bindings, tried on real drives. **Destroys every blank NVMe drive it finds.**
//!
//! ```text
//! drive-suite --destroy        inside a guest, as root, with blank NVMe drives
//! ```
//!
//! Prints one line for each check; the exit status says whether all passed. Needs sgdisk, mkfs.ext4, mkfs.xfs, mdadm;
//! checks whose tool is missing are skipped and say so. Run by people and by the lab; never by unit tests.

mod foreign;
mod helpers;
mod hung;
mod life;

use helpers::{Checked, key};
use meshstor_kernel::facts::{DriveClass, DriveFact, ExportFact, PartitionFact, Unclaimed};
use meshstor_kernel::id::DriveId;
use meshstor_kernel::linux::root::Root;
use meshstor_kernel::linux::uring::Ring;
use meshstor_kernel::linux::{drives, partition};
use std::process::ExitCode;
use std::time::Instant;

struct Suite {
    root: Root,
    ring: Ring,
    runtime: tokio::runtime::Runtime,
    failed: u32,
    passed: u32,
}

fn main() -> ExitCode {
    if !std::env::args().any(|argument| argument == "--destroy") {
        eprintln!("usage: drive-suite --destroy\n\nOverwrites every blank NVMe drive of this machine.");
        return ExitCode::from(2);
    }
    let Ok(runtime) = tokio::runtime::Builder::new_multi_thread().enable_all().build() else {
        return ExitCode::FAILURE;
    };
    let mut suite = Suite { root: Root::host(), ring: Ring::start(), runtime, failed: 0, passed: 0 };
    println!("reads by {:?}", suite.ring.engine());
    let blank: Vec<DriveFact> = suite.scan().into_iter().filter(|d| matches!(d.class, DriveClass::Blank(_))).collect();
    println!("{} blank drives", blank.len());
    for drive in &blank {
        println!("--- {} {} ({}-byte blocks)", drive.id, drive.path, drive.sector_bytes);
        suite.foreign(drive);
        suite.life(drive);
    }
    println!("{} passed, {} failed", suite.passed, suite.failed);
    if suite.failed == 0 && !blank.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Suite {
    fn check(&mut self, name: &str, check: impl FnOnce(&mut Suite) -> Checked) {
        let begin = Instant::now();
        match check(self) {
            Ok(()) => {
                self.passed += 1;
                println!("ok     {name} ({} ms)", begin.elapsed().as_millis());
            }
            Err(why) => {
                self.failed += 1;
                println!("FAILED {name}: {why}");
            }
        }
    }

    fn scan(&self) -> Vec<DriveFact> {
        let scanned = self.runtime.block_on(drives::scan(&self.ring, &self.root));
        scanned.unwrap_or_else(|error| {
            println!("scan: {error}");
            Vec::new()
        })
    }

    fn drive(&self, id: &DriveId) -> Result<DriveFact, String> {
        self.scan().into_iter().find(|drive| drive.id == *id).ok_or_else(|| "the drive is gone".to_string())
    }

    fn partition(&self, replica: u32) -> Result<PartitionFact, String> {
        let found =
            self.runtime.block_on(partition::observe(&self.ring, &self.root, &Default::default(), key(replica)));
        found.map_err(|e| e.to_string())?.ok_or_else(|| "no such partition".to_string())
    }

    fn unclaimed(&self, replica: u32) -> Result<Unclaimed, String> {
        let mut fact = self.partition(replica)?;
        // The evidence is forged on purpose: the operation's own look has to catch what it misses.
        fact.holders.clear();
        Unclaimed::prove(key(replica), &fact, &ExportFact::default()).ok_or_else(|| "claimed".to_string())
    }
}
