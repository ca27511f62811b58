//! What all parts of the suite use: comparisons, tools of the guest, bytes of a drive.

use meshstor_kernel::facts::{DriveFact, EpochRecord};
use meshstor_kernel::id::{ClusterId, ReplicaId, ReplicaKey, VolumeId};
use meshstor_kernel::linux::ioctl;
use meshstor_kernel::ops::Changed;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::process::Command;
use uuid::Uuid;

pub const MIB: u64 = 1 << 20;

/// The outcome of one check: the reason when it failed.
pub type Checked = Result<(), String>;

pub fn key(replica: u32) -> ReplicaKey {
    ReplicaKey { volume: VolumeId(Uuid::from_u128(0x5eed)), replica: ReplicaId(replica) }
}

pub fn record(replica: u32, epoch: u64) -> EpochRecord {
    EpochRecord {
        volume: key(replica).volume,
        cluster: ClusterId(Uuid::from_u128(0xc1)),
        replica: ReplicaId(replica),
        epoch,
        generation: 1,
        in_sync: BTreeSet::from([ReplicaId(replica)]),
        volume_name: "suite".into(),
        sequence: 0,
        tainted: None,
        unflushed: None,
        content: Default::default(),
    }
}

pub fn same<T: PartialEq + std::fmt::Debug>(found: T, wanted: T) -> Checked {
    if found == wanted { Ok(()) } else { Err(format!("{found:?} instead of {wanted:?}")) }
}

pub fn refused<T: std::fmt::Debug>(result: meshstor_kernel::Result<T>, word: &str) -> Checked {
    match result {
        Err(error) if error.to_string().contains(word) => {
            println!("       says: {error}");
            Ok(())
        }
        other => Err(format!("{other:?} instead of an error about {word:?}")),
    }
}

pub fn changed(result: meshstor_kernel::Result<Changed>, wanted: Changed) -> Checked {
    same(result.map_err(|e| e.to_string())?, wanted)
}

/// Runs a tool; `None` when it is not installed.
pub fn tool(line: &str) -> Option<Result<String, String>> {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next()?);
    let output = command.args(words).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Some(if output.status.success() { Ok(text) } else { Err(format!("{line}: {text}")) })
}

pub fn must(line: &str) -> Result<String, String> {
    tool(line).ok_or_else(|| format!("{line}: not installed"))?
}

pub fn settle() {
    let _ = tool("udevadm settle -t 20");
}

/// Checksum of the drive's first and last 16 MiB, as they lie on the medium.
pub fn ends(drive: &DriveFact) -> Result<u32, String> {
    let read = || -> std::io::Result<u32> {
        let mut file = File::open(&drive.path)?;
        ioctl::flush_buffers(&file)?;
        let mut bytes = vec![0; 16 << 20];
        let mut hash = crc32fast::Hasher::new();
        file.read_exact(&mut bytes)?;
        hash.update(&bytes);
        file.seek(SeekFrom::End(-(16 << 20)))?;
        file.read_exact(&mut bytes)?;
        hash.update(&bytes);
        Ok(hash.finalize())
    };
    read().map_err(|e| e.to_string())
}

pub fn wipe(drive: &DriveFact) -> Checked {
    settle();
    let write = || -> std::io::Result<()> {
        let file = OpenOptions::new().write(true).open(&drive.path)?;
        let zeroes = vec![0; 32 << 20];
        file.write_all_at(&zeroes, 0)?;
        file.write_all_at(&zeroes, drive.size_bytes - (32 << 20))?;
        file.sync_all()
    };
    write().map_err(|e| e.to_string())?;
    must(&format!("blockdev --rereadpt {}", drive.path))?;
    settle();
    Ok(())
}
