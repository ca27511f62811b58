//! The writer and the reader that run inside a guest.
//!
//! Each 4 KiB block carries a sequence number and a checksum. A write is acknowledged when the kernel says that it is
//! durable (`O_DSYNC`), by whichever interface; the line printed then reaches the host, so an acknowledgement outlives
//! the guest that got it.

use anyhow::{Context, Result, bail};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_uring::buf::BoundedBuf;

/// One block: the file system's own block size, so that a write never reads.
pub const BLOCK: usize = 4096;

/// Arguments of `write`.
#[derive(clap::Args)]
pub struct Write {
    /// The file
    #[arg(long)]
    file: PathBuf,
    /// Blocks of the file, written round and round
    #[arg(long, default_value_t = 4096)]
    blocks: u64,
    /// First sequence number
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Stop after this many writes
    #[arg(long, default_value_t = u64::MAX)]
    count: u64,
    /// Stop when this file appears
    #[arg(long)]
    until: Option<PathBuf>,
    /// Go on after the newest write that the file holds, instead of `--first`; fail if a block of it is not whole
    #[arg(long)]
    resume: bool,
    /// Milliseconds between two writes
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
    /// By which of the kernel's interfaces
    #[arg(long, value_enum, default_value_t = How::Sync)]
    how: How,
}

/// How a block is given to the kernel. What a killed process may still be told differs (docs/kernel-hazards.md, X4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum How {
    /// `pwrite` through the page cache
    Sync,
    /// `pwrite` past the page cache (`O_DIRECT`)
    Direct,
    /// io_uring, past the page cache
    Uring,
}

impl How {
    fn flags(self) -> i32 {
        match self {
            How::Sync => nix::libc::O_DSYNC,
            How::Direct | How::Uring => nix::libc::O_DSYNC | nix::libc::O_DIRECT,
        }
    }
}

/// Arguments of `read`.
#[derive(clap::Args)]
pub struct Read {
    /// The file, or a block device
    #[arg(long)]
    file: PathBuf,
    /// At most so many blocks, from the beginning
    #[arg(long, default_value_t = u64::MAX)]
    blocks: u64,
}

/// The bytes of one block.
fn block(sequence: u64, index: u64) -> Vec<u8> {
    let mut bytes = vec![0u8; BLOCK];
    for (i, byte) in bytes.iter_mut().enumerate().skip(32) {
        *byte = (sequence as usize).wrapping_mul(31).wrapping_add(i) as u8;
    }
    bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
    bytes[16..24].copy_from_slice(&index.to_le_bytes());
    let crc = crc32fast::hash(&bytes[8..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The sequence number a block carries: 0 for a block never written, `None` for one that is not whole.
fn identity(bytes: &[u8], index: u64) -> Option<u64> {
    if bytes.iter().all(|b| *b == 0) {
        return Some(0);
    }
    let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let crc = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?);
    (crc32fast::hash(bytes.get(8..)?) == crc && word(16)? == index).then(|| word(8)).flatten()
}

fn micros() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_micros()).unwrap_or(0)
}

/// A block at an address that `O_DIRECT` takes: where it begins in the vector, which must not grow.
fn aligned(sequence: u64, index: u64) -> (Vec<u8>, usize) {
    let mut room = vec![0u8; 2 * BLOCK];
    let begin = room.as_ptr().align_offset(BLOCK);
    room[begin..begin + BLOCK].copy_from_slice(&block(sequence, index));
    (room, begin)
}

/// Writes until told to stop. Prints `ack SEQUENCE INDEX BEGIN_US END_US`, or `error …` and fails at the first error.
pub fn write(arguments: &Write) -> Result<()> {
    let name = arguments.file.display().to_string();
    let open = || {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).custom_flags(arguments.how.flags());
        options.open(&arguments.file).with_context(|| format!("open {name}"))
    };
    if arguments.how == How::Uring {
        let file = open()?;
        return tokio_uring::start(async move {
            let file = tokio_uring::fs::File::from_std(file);
            let mut tale = Tale::begin(arguments)?;
            while let Some((sequence, index)) = tale.next()? {
                let (room, begin) = aligned(sequence, index);
                let (result, _room) =
                    file.write_at(room.slice(begin..begin + BLOCK), index * BLOCK as u64).submit().await;
                let written =
                    result.and_then(|n| if n == BLOCK { Ok(()) } else { Err(std::io::ErrorKind::WriteZero.into()) });
                tale.told(written)?;
            }
            tale.end()
        });
    }
    let file = open()?;
    let mut tale = Tale::begin(arguments)?;
    while let Some((sequence, index)) = tale.next()? {
        let (room, begin) = aligned(sequence, index);
        tale.told(file.write_all_at(&room[begin..begin + BLOCK], index * BLOCK as u64))?;
    }
    tale.end()
}

/// What a writer prints of what it does.
struct Tale<'a> {
    arguments: &'a Write,
    out: std::io::Stdout,
    first: u64,
    step: u64,
    /// The write that was asked for: its number, its block and when.
    asked: (u64, u64, u128),
}

impl<'a> Tale<'a> {
    fn begin(arguments: &'a Write) -> Result<Tale<'a>> {
        let first = if arguments.resume { newest(&arguments.file, arguments.blocks)? + 1 } else { arguments.first };
        let mut tale = Tale { arguments, out: std::io::stdout(), first, step: 0, asked: (0, 0, 0) };
        tale.say(format_args!("begin {}", micros()))?;
        Ok(tale)
    }

    /// The next write to ask for: its number and its block. `None`: it is enough.
    fn next(&mut self) -> Result<Option<(u64, u64)>> {
        let over = self.arguments.until.as_ref().is_some_and(|file| file.exists());
        if over || self.step == self.arguments.count {
            return Ok(None);
        }
        let sequence = self.first + self.step;
        let index = sequence % self.arguments.blocks;
        self.step += 1;
        self.asked = (sequence, index, micros());
        Ok(Some((sequence, index)))
    }

    /// What the kernel answered.
    fn told(&mut self, result: std::io::Result<()>) -> Result<()> {
        let (sequence, index, begin) = self.asked;
        if let Err(error) = result {
            self.say(format_args!("error {sequence} {index} {} {error}", micros()))?;
            bail!("write {sequence} to {}: {error}", self.arguments.file.display());
        }
        self.say(format_args!("ack {sequence} {index} {begin} {}", micros()))?;
        if self.arguments.pause_ms > 0 {
            std::thread::sleep(Duration::from_millis(self.arguments.pause_ms));
        }
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        self.say(format_args!("end {}", micros()))
    }

    fn say(&mut self, line: std::fmt::Arguments<'_>) -> Result<()> {
        writeln!(self.out, "{line}")?;
        self.out.flush()?;
        Ok(())
    }
}

/// Prints `block INDEX SEQUENCE` for each block, `torn INDEX` for one that is not whole.
pub fn read(arguments: &Read) -> Result<()> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for (index, sequence) in blocks(&arguments.file, arguments.blocks)? {
        match sequence {
            Some(sequence) => writeln!(out, "block {index} {sequence}")?,
            None => writeln!(out, "torn {index}")?,
        }
    }
    out.flush()?;
    Ok(())
}

/// What each block of a file carries, up to a number of blocks.
fn blocks(path: &Path, most: u64) -> Result<Vec<(u64, Option<u64>)>> {
    let name = path.display();
    let mut file = File::open(path).with_context(|| format!("open {name}"))?;
    // A device has no length in its metadata.
    let length = file.seek(SeekFrom::End(0)).with_context(|| format!("length of {name}"))?;
    let mut bytes = vec![0u8; BLOCK];
    let read = |index| {
        file.read_exact_at(&mut bytes, index * BLOCK as u64)
            .with_context(|| format!("read block {index} of {name}"))?;
        Ok((index, identity(&bytes, index)))
    };
    (0..(length / BLOCK as u64).min(most)).map(read).collect()
}

/// The highest sequence number in the first blocks of a file; 0 for one that is empty or not there.
fn newest(path: &Path, most: u64) -> Result<u64> {
    if !path.exists() {
        return Ok(0);
    }
    let mut newest = 0;
    for (index, sequence) in blocks(path, most)? {
        let Some(sequence) = sequence else { bail!("block {index} of {} is not whole", path.display()) };
        newest = newest.max(sequence);
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_for_direct_writes_is_whole_and_aligned() {
        let (room, begin) = aligned(77, 5);
        assert_eq!((room.as_ptr() as usize + begin) % BLOCK, 0);
        assert_eq!(identity(&room[begin..begin + BLOCK], 5), Some(77));
    }

    #[test]
    fn a_writer_that_resumes_goes_on_after_the_newest_write_and_not_over_damage() {
        let file = std::env::temp_dir().join(format!("meshstor-writer-{}", std::process::id()));
        let _none_yet = std::fs::remove_file(&file);
        assert_eq!(newest(&file, 10).unwrap(), 0);
        std::fs::write(&file, [block(8, 0), block(9, 1), block(3, 2)].concat()).unwrap();
        assert_eq!(newest(&file, 10).unwrap(), 9);
        let mut torn = block(10, 3);
        torn[100] ^= 1;
        std::fs::write(&file, [block(8, 0), torn].concat()).unwrap();
        assert!(newest(&file, 10).is_err());
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn a_block_tells_its_identity_and_nothing_else_does() {
        assert_eq!(identity(&block(77, 5), 5), Some(77));
        assert_eq!(identity(&block(77, 5), 6), None, "a block at the wrong place");
        assert_eq!(identity(&vec![0; BLOCK], 5), Some(0));
        let mut torn = block(77, 5);
        torn[2048..].copy_from_slice(&block(78, 5)[2048..]);
        assert_eq!(identity(&torn, 5), None);
    }
}
