//! The writer and the reader that run inside a guest.
//!
//! Each 4 KiB block carries a sequence number and a checksum. A write is acknowledged when `pwrite` with `O_DSYNC`
//! returns; the line printed then reaches the host, so an acknowledgement outlives the guest that got it.

use anyhow::{Context, Result, bail};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
    /// Milliseconds between two writes
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
}

/// Arguments of `read`.
#[derive(clap::Args)]
pub struct Read {
    /// The file
    #[arg(long)]
    file: PathBuf,
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

/// Writes until told to stop. Prints `ack SEQUENCE INDEX BEGIN_US END_US`, or `error …` and fails at the first error.
pub fn write(arguments: &Write) -> Result<()> {
    let name = arguments.file.display().to_string();
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .custom_flags(nix::libc::O_DSYNC)
        .open(&arguments.file)
        .with_context(|| format!("open {name}"))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "begin {}", micros())?;
    out.flush()?;
    for step in 0..arguments.count {
        if arguments.until.as_ref().is_some_and(|f| f.exists()) {
            break;
        }
        let sequence = arguments.first + step;
        let index = sequence % arguments.blocks;
        let begin = micros();
        if let Err(error) = file.write_all_at(&block(sequence, index), index * BLOCK as u64) {
            writeln!(out, "error {sequence} {index} {} {error}", micros())?;
            bail!("write {sequence} to {name}: {error}");
        }
        writeln!(out, "ack {sequence} {index} {begin} {}", micros())?;
        out.flush()?;
        if arguments.pause_ms > 0 {
            std::thread::sleep(Duration::from_millis(arguments.pause_ms));
        }
    }
    writeln!(out, "end {}", micros())?;
    Ok(())
}

/// Prints `block INDEX SEQUENCE` for each block, `torn INDEX` for one that is not whole.
pub fn read(arguments: &Read) -> Result<()> {
    let name = arguments.file.display().to_string();
    let file = File::open(&arguments.file).with_context(|| format!("open {name}"))?;
    let length = file.metadata()?.len();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut bytes = vec![0u8; BLOCK];
    for index in 0..length / BLOCK as u64 {
        file.read_exact_at(&mut bytes, index * BLOCK as u64)
            .with_context(|| format!("read block {index} of {name}"))?;
        match identity(&bytes, index) {
            Some(sequence) => writeln!(out, "block {index} {sequence}")?,
            None => writeln!(out, "torn {index}")?,
        }
    }
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
