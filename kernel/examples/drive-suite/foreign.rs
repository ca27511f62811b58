//! Everybody else's drives: named, refused, and the same bytes afterwards (P3).

use crate::Suite;
use crate::helpers::{Checked, MIB, changed, ends, key, must, record, refused, same, settle, tool, wipe};
use meshstor_kernel::facts::{BlankDrive, DriveClass, DriveFact, Extent};
use meshstor_kernel::linux::{gpt, partition};
use meshstor_kernel::ops::Changed;

impl Suite {
    /// Everybody else's drives: named, refused, and the same bytes afterwards.
    pub fn foreign(&mut self, drive: &DriveFact) {
        let DriveClass::Blank(proof) = &drive.class else { return };
        let dev = &drive.path;
        let cases: Vec<(Vec<String>, &str)> = vec![
            (vec![format!("mkfs.ext4 -q -F {dev}")], "ext4"),
            (vec![format!("mkfs.xfs -q -f {dev}")], "XFS"),
            (vec![format!("mkswap -q {dev}")], "swap"),
            (vec![format!("pvcreate -q -y {dev}")], "LVM"),
            (vec![format!("mkfs.btrfs -q -f {dev}")], "btrfs"),
            (md_on(dev, "1.2"), "metadata 1.2"),
            (md_on(dev, "1.0"), "metadata 1.0"),
            (md_on(dev, "0.90"), "metadata 0.90"),
            (vec![format!("sgdisk -n 1:0:+64M {dev}"), format!("sgdisk -h 1 {dev}")], "hybrid"),
            (vec![format!("dd if=/dev/urandom of={dev} bs=4096 count=1 seek=100 status=none")], "unrecognised"),
        ];
        for (commands, word) in cases {
            let (proof, dev) = (proof.clone(), drive.clone());
            if commands.iter().any(|line| {
                tool(&format!("which {}", line.split(' ').next().unwrap_or_default())).is_none_or(|r| r.is_err())
            }) {
                println!("skip   foreign: {word} (tool not installed)");
                continue;
            }
            self.check(&format!("foreign: {word} is refused and not changed"), |suite| {
                commands.iter().try_for_each(|line| must(line).map(drop))?;
                settle();
                let result = suite.refuses(&dev, &proof, word);
                let _ = tool("mdadm --stop --scan");
                wipe(&dev)?;
                result
            });
        }
        self.check("a drive shared with others keeps their partitions byte for byte", |suite| suite.shared(drive));
    }

    fn refuses(&self, drive: &DriveFact, proof: &BlankDrive, word: &str) -> Checked {
        let before = ends(drive)?;
        match self.drive(&drive.id)?.class {
            DriveClass::Theirs(reason) if reason.contains(word) => println!("       {reason}"),
            other => return Err(format!("{other:?}")),
        }
        refused(gpt::label(&self.root, proof), "")?;
        refused(partition::add(&self.root, key(0), &drive.id, Extent { start: 64 * MIB, length: 64 * MIB }), "")?;
        settle();
        same(ends(drive)?, before)
    }

    fn shared(&self, drive: &DriveFact) -> Checked {
        let dev = &drive.path;
        must(&format!("sgdisk -n 3:0:+64M -c 3:theirs {dev}"))?;
        settle();
        must(&format!("mkfs.ext4 -q -F {dev}p3"))?;
        let theirs = std::fs::read(format!("{dev}p3")).map_err(|e| e.to_string())?;
        same(self.drive(&drive.id)?.class, DriveClass::Shared)?;
        let free = self.drive(&drive.id)?.free;
        let gap = free.iter().max_by_key(|gap| gap.length).ok_or("no space")?;
        let extent = Extent { start: gap.start, length: 64 * MIB };
        changed(partition::add(&self.root, key(0), &drive.id, extent), Changed::Yes)?;
        changed(partition::blank(&self.root, &self.unclaimed(0)?, &record(0, 1)), Changed::Yes)?;
        same(self.partition(0)?.number, 1)?;
        changed(partition::remove(&self.root, &self.unclaimed(0)?), Changed::Yes)?;
        settle();
        same(std::fs::read(format!("{dev}p3")).map_err(|e| e.to_string())? == theirs, true)?;
        same(must(&format!("sgdisk -i 3 {dev}"))?.contains("theirs"), true)?;
        same(must(&format!("sgdisk -v {dev}"))?.contains("No problems found"), true)?;
        wipe(drive)
    }
}

fn md_on(dev: &str, metadata: &str) -> Vec<String> {
    vec![
        format!("mdadm --create /dev/md77 --run --force --metadata={metadata} --level=1 --raid-devices=1 {dev}"),
        "mdadm --stop /dev/md77".into(),
    ]
}
