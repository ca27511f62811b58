//! Reads, writes and zeroes inside one replica's extent, past the page cache.
//!
//! Called by the partition operations alone, on threads that may block. It knows where things lie, not whether they may
//! be touched.

use crate::error::{KernelError, Result};
use crate::facts::{ALIGNMENT, DATA_OFFSET, EpochRecord, Extent, Superblock};
use crate::linux::drives::{KernelPartition, open_quietly};
use crate::linux::ioctl::{self, AlignedBuf, O_DIRECT};
use crate::linux::superblock::{self, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET};
use crate::record::{self, SLOT_BYTES, slot_of, slot_offsets};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc::{O_DSYNC, O_EXCL};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

/// Zeroed by one call: small enough that a killed process is not held for long, large enough to cost nothing.
const ZERO_STEP: u64 = 1 << 30;
/// Written at once where a drive cannot zero by itself.
const WRITE_STEP: usize = 4 << 20;
/// Two of our own calls that write the same record may meet; each takes milliseconds.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// An extent of an open device.
pub struct Bytes<'a> {
    file: Opened<'a>,
    name: String,
    extent: Extent,
}

enum Opened<'a> {
    Owned(File),
    Borrowed(&'a File),
}

impl Bytes<'static> {
    /// A partition nobody else has claimed; nobody can claim it while this lives.
    pub fn open_exclusive(partition: &KernelPartition, length: u64) -> Result<Bytes<'static>> {
        Bytes::open(partition, length, O_EXCL)
    }

    /// A partition that others may use at the same time.
    pub fn open_shared(partition: &KernelPartition, length: u64) -> Result<Bytes<'static>> {
        let bytes = Bytes::open(partition, length, 0)?;
        let give_up = Instant::now() + LOCK_WAIT;
        loop {
            match bytes.file().try_lock() {
                Ok(()) => return Ok(bytes),
                Err(TryLockError::WouldBlock) if Instant::now() < give_up => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(KernelError::retry("lock partition", bytes.name, "another program has it locked"));
                }
                Err(TryLockError::Error(e)) => return Err(bytes.failed("lock partition")(e)),
            }
        }
    }

    fn open(partition: &KernelPartition, length: u64, flags: i32) -> Result<Bytes<'static>> {
        let name = partition.path.display().to_string();
        let mut options = OpenOptions::new();
        // O_DSYNC: a write returns when the drive's own cache has given it to the medium.
        options.read(true).write(true).custom_flags(O_DIRECT | O_DSYNC | flags);
        let file = open_quietly(&partition.path, partition.numbers.as_deref(), &options);
        let file = file.map_err(|e| KernelError::io("open partition", name.clone(), &e))?;
        Ok(Bytes { file: Opened::Owned(file), name, extent: Extent { start: 0, length } })
    }
}

impl<'a> Bytes<'a> {
    /// An extent of the whole drive, for a partition that the kernel does not have (any more).
    pub fn in_drive(file: &'a File, name: &str, extent: Extent) -> Bytes<'a> {
        Bytes { file: Opened::Borrowed(file), name: name.to_string(), extent }
    }

    fn file(&self) -> &File {
        match &self.file {
            Opened::Owned(file) => file,
            Opened::Borrowed(file) => file,
        }
    }

    fn failed(&self, op: &'static str) -> impl Fn(io::Error) -> KernelError + '_ {
        move |e| KernelError::io(op, self.name.clone(), &e)
    }

    /// Reads inside the extent; an extent too short for it has nothing there.
    fn read(&self, at: u64, len: usize) -> Result<Option<AlignedBuf>> {
        if at.saturating_add(len as u64) > self.extent.length {
            return Ok(None);
        }
        let read = || -> io::Result<AlignedBuf> {
            let mut buffer = AlignedBuf::zeroed(len)?;
            self.file().read_exact_at(&mut buffer, self.extent.start + at)?;
            Ok(buffer)
        };
        read().map(Some).map_err(self.failed("read partition"))
    }

    /// The newest valid record.
    pub fn record(&self) -> Result<Option<EpochRecord>> {
        let mut slots = Vec::new();
        for at in slot_offsets() {
            slots.extend(self.read(at, SLOT_BYTES)?.map(|slot| slot.to_vec()));
        }
        Ok(record::newest(&slots))
    }

    /// The MD superblock.
    pub fn superblock(&self) -> Result<Option<Superblock>> {
        let read = self.read(SUPERBLOCK_OFFSET, SUPERBLOCK_BYTES)?;
        Ok(read.and_then(|sb| superblock::parse(&sb)))
    }

    /// Whether the data area reads zero at both ends.
    pub fn data_is_blank(&self) -> Result<bool> {
        let tail = self.extent.length.saturating_sub(ALIGNMENT);
        let ends = [self.read(DATA_OFFSET, ALIGNMENT as usize)?, self.read(tail, ALIGNMENT as usize)?];
        Ok(ends.iter().all(|end| end.as_ref().is_some_and(|bytes| bytes.iter().all(|b| *b == 0))))
    }

    /// Writes a record into its slot, durably, and reads it back.
    pub fn write_record(&self, record: &EpochRecord) -> Result<()> {
        let encoded = record::encode(record);
        let encoded = encoded.map_err(|e| KernelError::refuse("write record", self.name.clone(), e.to_string()))?;
        let at = slot_of(record.sequence);
        if at + SLOT_BYTES as u64 > self.extent.length {
            return Err(KernelError::refuse("write record", self.name.clone(), "too short to hold a record"));
        }
        let write = || -> io::Result<()> {
            let mut buffer = AlignedBuf::zeroed(SLOT_BYTES)?;
            buffer.copy_from_slice(&encoded);
            self.file().write_all_at(&buffer, self.extent.start + at)?;
            self.file().sync_all()
        };
        write().map_err(self.failed("write record"))?;
        if self.record()?.as_ref() == Some(record) {
            return Ok(());
        }
        Err(KernelError::bug("write record", self.name.clone(), "another record was read back"))
    }

    /// Zeroes all of it, durably.
    pub fn zero(&self) -> Result<()> {
        let zeroed = zero_range(self.file(), self.extent.start, self.extent.length);
        zeroed.and_then(|()| self.file().sync_all()).map_err(self.failed("zero partition"))
    }

    /// Zeroes all of it, durably, and reads both ends back.
    pub fn zero_and_check(&self) -> Result<()> {
        self.zero()?;
        let length = ALIGNMENT.min(self.extent.length);
        for at in [0, self.extent.length - length] {
            let end = self.read(at, length as usize)?;
            if !end.is_some_and(|bytes| bytes.iter().all(|b| *b == 0)) {
                let detail = "it does not read zero after zeroing";
                return Err(KernelError::bug("zero free space", self.name.clone(), detail));
            }
        }
        Ok(())
    }

    /// Gives all of it back to the drive, so that none of it can be read again. A drive that can neither zero nor
    /// discard keeps what lies in the middle; it is zeroed before anybody else gets it (see `blank`).
    pub fn discard(&self) -> Result<()> {
        let Extent { start, length } = self.extent;
        if punch(self.file(), start, length).is_err() {
            // Advice to the drive, nothing more: the ends are zeroed in any case.
            let _ = ioctl::discard(self.file(), start, length);
            let (head, tail) = (DATA_OFFSET.min(length), ALIGNMENT.min(length));
            let ends = [(start, head), (self.extent.end() - tail, tail)];
            let zeroed = ends.iter().try_for_each(|(at, len)| zero_range(self.file(), *at, *len));
            zeroed.map_err(self.failed("zero partition"))?;
        }
        self.file().sync_all().map_err(self.failed("discard partition"))?;
        match (self.record()?, self.superblock()?) {
            (None, None) => Ok(()),
            _ => Err(KernelError::bug("discard partition", self.name.clone(), "its record or superblock reads back")),
        }
    }
}

/// Deallocates a range such that it reads zero: on a block device `FALLOC_FL_PUNCH_HOLE` is WRITE ZEROES with permission
/// to unmap, and fails where the drive cannot (block/fops.c: blkdev_fallocate, BLKDEV_ZERO_NOFALLBACK).
fn punch(file: &File, start: u64, length: u64) -> io::Result<()> {
    in_steps(file, start, length, FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE)
}

fn in_steps(file: &File, start: u64, length: u64, flags: FallocateFlags) -> io::Result<()> {
    let mut done = 0;
    while done < length {
        let step = ZERO_STEP.min(length - done);
        let number = |n: u64| i64::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
        fallocate(file, flags, number(start + done)?, number(step)?)?;
        done += step;
    }
    Ok(())
}

/// Makes a range read zero by the cheapest way the device has. Not durable until the next sync.
pub fn zero_range(file: &File, start: u64, length: u64) -> io::Result<()> {
    // ZERO_RANGE on a block device writes zeroes by itself where the drive has no command for it.
    let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    punch(file, start, length)
        .or_else(|_| in_steps(file, start, length, zero))
        .or_else(|_| write_zeroes(file, start, length))
}

fn write_zeroes(file: &File, start: u64, length: u64) -> io::Result<()> {
    let zeroes = AlignedBuf::zeroed(WRITE_STEP)?;
    let mut done = 0;
    while done < length {
        let step = (WRITE_STEP as u64).min(length - done);
        file.write_all_at(&zeroes[..step as usize], start + done)?;
        done += step;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_zeroing_zeroes_its_range_and_no_byte_more() {
        type Way = fn(&File, u64, u64) -> io::Result<()>;
        let ways: [Way; 3] = [zero_range, punch, write_zeroes];
        for way in ways {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&vec![7; 3 << 20], 0).unwrap();
            way(&file, 1 << 20, 1 << 20).unwrap();
            let mut read = vec![0; 3 << 20];
            file.read_exact_at(&mut read, 0).unwrap();
            let (before, rest) = read.split_at(1 << 20);
            let (zeroed, after) = rest.split_at(1 << 20);
            assert!(before.iter().chain(after).all(|b| *b == 7));
            assert!(zeroed.iter().all(|b| *b == 0));
        }
    }
}
