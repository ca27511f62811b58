//! A drive of our own from label to last removal, with neighbours, exports and arrays beside it.

use crate::Suite;
use crate::helpers::{Checked, MIB, changed, key, must, record, refused, same, settle, tool, wipe};
use meshstor_kernel::facts::{DriveClass, DriveFact, Extent, MemberProbe, Superblock};
use meshstor_kernel::id::DriveId;
use meshstor_kernel::linux::{gpt, ioctl, partition, probe};
use meshstor_kernel::ops::Changed;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

impl Suite {
    pub fn life(&mut self, drive: &DriveFact) {
        let DriveClass::Blank(proof) = drive.class.clone() else { return };
        let id = &drive.id;
        let extent = |i: u64| Extent { start: (1 + i * 400) * MIB, length: 400 * MIB };
        self.check("a blank drive is labelled once, soundly", |suite| {
            changed(gpt::label(&suite.root, &proof), Changed::Yes)?;
            changed(gpt::label(&suite.root, &proof), Changed::No)?;
            same(suite.drive(id)?.class, DriveClass::Ours)?;
            same(must(&format!("sgdisk -v {}", drive.path))?.contains("No problems found"), true)
        });
        self.check("a partition is added, announced, and not added twice", |suite| {
            changed(partition::add(&suite.root, key(1), id, extent(0)), Changed::Yes)?;
            settle();
            changed(partition::add(&suite.root, key(1), id, extent(0)), Changed::No)?;
            let fact = suite.partition(1)?;
            same(fact.kernel_bytes, Some(extent(0).length))?;
            same(fact.path.as_deref().is_some_and(|path| Path::new(path).exists()), true)?;
            same(fact.zeroed, false)
        });
        self.check("it is blanked once", |suite| {
            changed(partition::blank(&suite.root, &suite.unclaimed(1)?, &record(1, 3)), Changed::Yes)?;
            settle();
            changed(partition::blank(&suite.root, &suite.unclaimed(1)?, &record(1, 3)), Changed::No)?;
            refused(partition::blank(&suite.root, &suite.unclaimed(1)?, &record(1, 4)), "carries a record")?;
            same(suite.partition(1)?.zeroed, true)
        });
        self.check("its record rises and never falls", |suite| {
            changed(partition::write_record(&suite.root, key(1), &record(1, 5)), Changed::Yes)?;
            changed(partition::write_record(&suite.root, key(1), &record(1, 5)), Changed::No)?;
            refused(partition::write_record(&suite.root, key(1), &record(1, 4)), "already")?;
            let found = suite.partition(1)?.record.ok_or("no record")?;
            same((found.epoch, found.sequence), (5, 2))
        });
        self.check("a partition that the kernel forgot is announced again", |suite| suite.forgotten(drive));
        self.check("a partition grown in the table is grown in the kernel while it is open", |suite| {
            suite.grown(drive)
        });
        self.check("a mounted neighbour does not notice", |suite| suite.neighbour(drive, extent(1)));
        self.check("an export is neither blanked nor removed", Suite::exported);
        self.check("an import that hangs harms no other read", Suite::hung);
        self.check("MD's own superblock and bitmap are read as mdadm reads them", |suite| suite.arrays(id, extent(1)));
        self.check("an array's member is neither blanked nor removed", |suite| suite.held());
        self.check("removed, its bytes are gone and the drive is empty", |suite| {
            changed(partition::remove(&suite.root, &suite.unclaimed(1)?), Changed::Yes)?;
            settle();
            let fact = suite.drive(id)?;
            same((fact.class, fact.entries.len(), fact.free.len()), (DriveClass::Ours, 0, 1))?;
            let (file, mut bytes) = (File::open(&drive.path).map_err(|e| e.to_string())?, vec![1; 32 << 20]);
            file.read_exact_at(&mut bytes, extent(0).start).map_err(|e| e.to_string())?;
            same(bytes.iter().all(|b| *b == 0), true)?;
            same(must(&format!("sgdisk -v {}", drive.path))?.contains("No problems found"), true)
        });
        self.check("the drive is handed back blank", |suite| {
            wipe(drive)?;
            same(matches!(suite.drive(id)?.class, DriveClass::Blank(_)), true)
        });
    }

    fn forgotten(&self, drive: &DriveFact) -> Checked {
        let disk = File::open(&drive.path).map_err(|e| e.to_string())?;
        let number = self.partition(1)?.number;
        settle();
        ioctl::delete_partition(&disk, number).map_err(|e| e.to_string())?;
        same(self.partition(1)?.path, None)?;
        refused(partition::write_record(&self.root, key(1), &record(1, 6)), "as the table says")?;
        changed(partition::announce(&self.root, key(1)), Changed::Yes)?;
        changed(partition::announce(&self.root, key(1)), Changed::No)?;
        settle();
        same(self.partition(1)?.path.is_some(), true)
    }

    /// The kernel has a shorter partition than the table; somebody has it open.
    fn grown(&self, drive: &DriveFact) -> Checked {
        let disk = File::open(&drive.path).map_err(|e| e.to_string())?;
        let fact = self.partition(1)?;
        ioctl::resize_partition(&disk, fact.number, fact.extent.start, 64 * MIB).map_err(|e| e.to_string())?;
        same(self.partition(1)?.kernel_bytes, Some(64 * MIB))?;
        let opened = File::open(fact.path.ok_or("no node")?).map_err(|e| e.to_string())?;
        changed(partition::announce(&self.root, key(1)), Changed::Yes)?;
        drop(opened);
        same(self.partition(1)?.kernel_bytes, Some(fact.extent.length))
    }

    /// A foreign file system on the drive is written to without a pause while partitions of ours come and go.
    fn neighbour(&self, drive: &DriveFact, extent: Extent) -> Checked {
        must(&format!("sgdisk -n 9:-128M:0 -c 9:theirs {}", drive.path))?;
        settle();
        must(&format!("mkfs.ext4 -q -F {}p9", drive.path))?;
        std::fs::create_dir_all("/run/suite").map_err(|e| e.to_string())?;
        must(&format!("mount {}p9 /run/suite", drive.path))?;
        let result = self.beside(drive, extent);
        must("umount /run/suite")?;
        must(&format!("sgdisk -d 9 {}", drive.path))?;
        settle();
        result
    }

    fn beside(&self, drive: &DriveFact, extent: Extent) -> Checked {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writer = std::thread::spawn({
            let (stop, written) = (stop.clone(), written.clone());
            move || -> std::io::Result<()> {
                let mut file = File::create("/run/suite/data")?;
                while !stop.load(Ordering::Relaxed) {
                    file.seek(SeekFrom::Start(0))?;
                    file.write_all(&[0x5a; 64 << 10])?;
                    file.sync_all()?;
                    written.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }
        });
        let work = || -> Checked {
            for _ in 0..3 {
                changed(partition::add(&self.root, key(2), &drive.id, extent), Changed::Yes)?;
                changed(partition::blank(&self.root, &self.unclaimed(2)?, &record(2, 1)), Changed::Yes)?;
                changed(partition::remove(&self.root, &self.unclaimed(2)?), Changed::Yes)?;
            }
            // Open, but neither a holder nor an export: the kernel's own refusal is what protects it.
            let device = self.partition(1)?.path.ok_or("no node")?;
            let opened = File::open(&device).map_err(|e| e.to_string())?;
            refused(partition::remove(&self.root, &self.unclaimed(1)?), "busy")?;
            drop(opened);
            same(self.partition(1)?.path, Some(device))
        };
        let done = work();
        stop.store(true, Ordering::Relaxed);
        let wrote = writer.join().map_err(|_| "the writer panicked")?;
        wrote.map_err(|e| format!("the neighbour's writer failed: {e}"))?;
        println!("       {} synchronous writes meanwhile", written.load(Ordering::Relaxed));
        same(std::fs::read("/run/suite/data").map_err(|e| e.to_string())?, vec![0x5a; 64 << 10])?;
        done
    }

    fn exported(&mut self) -> Checked {
        must("modprobe nvmet")?;
        let device = self.partition(1)?.path.ok_or("no node")?;
        let subsystem = Path::new("/sys/kernel/config/nvmet/subsystems/nqn.2025-12.io.meshstor:suite");
        let namespace = subsystem.join("namespaces/1");
        let prepare = || -> std::io::Result<()> {
            std::fs::create_dir(subsystem)?;
            std::fs::create_dir(&namespace)?;
            std::fs::write(namespace.join("device_path"), device)?;
            std::fs::write(namespace.join("enable"), "1")
        };
        prepare().map_err(|e| e.to_string())?;
        let blank = refused(partition::blank(&self.root, &self.unclaimed(1)?, &record(1, 9)), "exported");
        let remove = refused(partition::remove(&self.root, &self.unclaimed(1)?), "exported");
        // The record is written while the export is up, as the fence does.
        let write = changed(partition::write_record(&self.root, key(1), &record(1, 7)), Changed::Yes);
        let undo = || -> std::io::Result<()> {
            std::fs::write(namespace.join("enable"), "0")?;
            std::fs::remove_dir(&namespace)?;
            std::fs::remove_dir(subsystem)
        };
        undo().map_err(|e| e.to_string())?;
        blank.and(remove).and(write)
    }

    pub fn probe(&self, device: &str) -> Result<MemberProbe, String> {
        self.runtime.block_on(probe::member(&self.ring, device, true)).map_err(|e| e.to_string())
    }

    /// A mirror over two replicas, one of which is taken away under writes.
    fn arrays(&self, id: &DriveId, extent: Extent) -> Checked {
        changed(partition::add(&self.root, key(2), id, extent), Changed::Yes)?;
        changed(partition::blank(&self.root, &self.unclaimed(2)?, &record(2, 1)), Changed::Yes)?;
        let (one, two) = (self.partition(1)?.path.ok_or("no node")?, self.partition(2)?.path.ok_or("no node")?);
        same(self.probe(&two)?.blank.is_some(), true)?;
        must(&format!(
            "mdadm --create /dev/md78 --run --metadata=1.2 --homehost=any --name=suite --level=1 --raid-devices=2 \
             --assume-clean --data-offset=4M --bitmap=internal --bitmap-chunk=64M {one} {two}"
        ))?;
        let compare = self.compare(&one, &two);
        let _ = tool("mdadm --stop /dev/md78");
        settle();
        compare
    }

    /// mdadm creates a bitmap with every bit set; MD clears them some seconds later.
    fn clean(&self, one: &str) -> Result<Superblock, String> {
        let give_up = Instant::now() + Duration::from_secs(60);
        loop {
            let superblock = self.probe(one)?.superblock.ok_or("no superblock")?;
            let dirty = superblock.bitmap.as_ref().map(|bitmap| bitmap.dirty.len());
            match dirty {
                Some(0) => return Ok(superblock),
                _ if Instant::now() > give_up => return Err(format!("{dirty:?} dirty chunks after a minute")),
                _ => std::thread::sleep(Duration::from_millis(500)),
            }
        }
    }

    fn compare(&self, one: &str, two: &str) -> Checked {
        let clean = self.clean(one)?;
        same((clean.level, clean.raid_disks, clean.data_offset), (1, 2, 4 << 20))?;
        same((clean.name.as_str(), clean.active_slot(), clean.live_slots()), ("any:suite", Some(0), 2))?;
        must(&format!("mdadm /dev/md78 --fail {two}"))?;
        let file = OpenOptions::new().write(true).open("/dev/md78").map_err(|e| e.to_string())?;
        let write = file.write_all_at(&[7; 4096], 200 * MIB).and_then(|()| file.sync_all());
        write.map_err(|e| e.to_string())?;
        drop(file);
        let dirty = self.probe(one)?.superblock.ok_or("no superblock")?;
        let left = self.probe(two)?.superblock.ok_or("no superblock")?;
        same(dirty.bitmap.as_ref().map(|b| (b.chunk_bytes, b.dirty.clone())), Some((64 << 20, BTreeSet::from([3]))))?;
        same(dirty.bitmap.as_ref().map(|b| b.uuid), Some(dirty.set_uuid))?;
        same((dirty.events > left.events, dirty.live_slots(), left.live_slots()), (true, 1, 2))?;
        let examined = must(&format!("mdadm --examine {one}"))?;
        same(examined.contains(&format!("Events : {}", dirty.events)), true)?;
        let bits = must(&format!("mdadm --examine-bitmap {one}"))?;
        println!("       mdadm: {}", bits.lines().last().unwrap_or_default().trim());
        // What is on a member of a running array is still seen where our record lies.
        same(self.probe(one)?.record.is_some() && self.probe(two)?.record.is_some(), true)
    }

    fn held(&self) -> Checked {
        let two = self.partition(2)?.path.ok_or("no node")?;
        must(&format!("mdadm --assemble --run /dev/md78 {two}"))?;
        let blank = refused(partition::blank(&self.root, &self.unclaimed(2)?, &record(2, 9)), "held by md78");
        let remove = refused(partition::remove(&self.root, &self.unclaimed(2)?), "held by md78");
        must("mdadm --stop /dev/md78")?;
        settle();
        blank.and(remove)?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.partition(2)?.holders.is_empty() && Instant::now() < deadline {
            // udev may have started it by itself.
            let _ = tool("mdadm --stop --scan");
            settle();
        }
        changed(partition::remove(&self.root, &self.unclaimed(2)?), Changed::Yes)
    }
}
