//! A look at one member of an array: superblock, bitmap, our record, and whether its data area is blank.
//!
//! Called by the real kernel's `probe` for local partitions and fabric heads alike, and by the partition observation.
//! All bytes are read past the page cache from the device itself, never through the array. It never writes; a device
//! that hangs costs its caller the deadline and nothing else.

use crate::error::{KernelError, Result};
use crate::facts::{BLANK_BYTES, BlankData, DATA_OFFSET, EpochRecord, MemberProbe, Superblock};
use crate::linux::superblock::{self, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET};
use crate::linux::uring::{ReadRequest, Ring};
use crate::record::{self, SLOT_BYTES, slot_offsets};
use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// A member that does not answer within this counts as away (docs/protocol.md, rule 2).
pub const DEADLINE: Duration = Duration::from_secs(5);
/// Read at once from the member's start: superblock and, where mdadm puts it, the bitmap of volumes up to 4 TiB (8 KiB of
/// bits, 64 MiB each). A larger one takes a second read.
const FRONT_BYTES: usize = 16 << 10;
/// The largest bitmap that is read: 4 MiB of bits cover 2 PiB in 64 MiB chunks.
const BITMAP_MAX: u64 = 4 << 20;

/// What lies before a member's data.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    /// MD superblock with its bitmap.
    pub superblock: Option<Superblock>,
    /// Our record.
    pub record: Option<EpochRecord>,
}

/// A part of a device: a member is a whole device, or an extent of its drive.
#[derive(Debug, Clone)]
pub struct Part {
    /// Device to read.
    pub device: String,
    /// Where the member starts in it.
    pub start: u64,
    /// The member's length.
    pub length: u64,
}

impl Part {
    fn request(&self, offset: u64, len: usize) -> ReadRequest {
        // Never beyond the member: what follows on the drive is somebody else's.
        let len = (self.length.saturating_sub(offset)).min(len as u64) as usize;
        ReadRequest { path: self.device.clone(), offset: self.start.saturating_add(offset), len, direct: true }
    }
}

/// Probes a local partition or a fabric head. Answers within [`DEADLINE`].
pub async fn member(ring: &Ring, device: &str, data_too: bool) -> Result<MemberProbe> {
    let give_up = Instant::now() + DEADLINE;
    let length = ring.device_bytes(device).await?;
    let part = Part { device: device.to_string(), start: 0, length };
    let blank = async {
        match data_too {
            true => blank(ring, &part, remaining(give_up)).await,
            false => Ok(None),
        }
    };
    let (metadata, blank) = futures::future::join(metadata(ring, &part, give_up), blank).await;
    let Metadata { superblock, record } = metadata?;
    Ok(MemberProbe { superblock, record, blank: blank? })
}

/// Superblock, bitmap and record of a member.
pub async fn metadata(ring: &Ring, part: &Part, give_up: Instant) -> Result<Metadata> {
    let [first, second] = slot_offsets();
    let wanted = vec![part.request(0, FRONT_BYTES), part.request(first, SLOT_BYTES), part.request(second, SLOT_BYTES)];
    let mut read = all(ring.read_many(wanted, remaining(give_up)).await)?.into_iter();
    let front = read.next().unwrap_or_default();
    let slots: Vec<Vec<u8>> = read.collect();
    let start = SUPERBLOCK_OFFSET as usize;
    let sb = front.get(start..start + SUPERBLOCK_BYTES).unwrap_or_default();
    let superblock = match superblock::parse(sb) {
        Some(mut parsed) => {
            parsed.bitmap = bitmap(ring, part, sb, &front, give_up).await?;
            Some(parsed)
        }
        None => None,
    };
    Ok(Metadata { superblock, record: record::newest(&slots) })
}

/// The bitmap from what was read already, or from a second read when it lies or reaches elsewhere.
async fn bitmap(
    ring: &Ring,
    part: &Part,
    sb: &[u8],
    front: &[u8],
    give_up: Instant,
) -> Result<Option<crate::facts::Bitmap>> {
    let Some(location) = superblock::bitmap_location(sb) else { return Ok(None) };
    let at_hand = usize::try_from(location).ok().and_then(|at| front.get(at..)).unwrap_or_default();
    if let Some(bitmap) = superblock::parse_bitmap(at_hand) {
        return Ok(Some(bitmap));
    }
    // Direct reads start and end on blocks; the location is a multiple of 512 only.
    let block = SLOT_BYTES as u64;
    let (aligned, skip) = (location / block * block, (location % block) as usize);
    let header = ring.read_many(vec![part.request(aligned, SLOT_BYTES)], remaining(give_up)).await;
    let header = all(header)?.pop().unwrap_or_default();
    let Some(needed) = superblock::bitmap_bytes(header.get(skip..).unwrap_or_default()) else { return Ok(None) };
    let len = (needed.saturating_add(skip as u64)).next_multiple_of(block);
    // More is not a bitmap of ours, and none beats half of one.
    if len > BITMAP_MAX {
        return Ok(None);
    }
    let bytes = all(ring.read_many(vec![part.request(aligned, len as usize)], remaining(give_up)).await)?.pop();
    Ok(superblock::parse_bitmap(bytes.unwrap_or_default().get(skip..).unwrap_or_default()))
}

/// Proof that the member's data area is blank at both ends.
async fn blank(ring: &Ring, part: &Part, timeout: Duration) -> Result<Option<BlankData>> {
    let Some(tail) = part.length.checked_sub(BLANK_BYTES).filter(|tail| *tail >= DATA_OFFSET) else {
        return Ok(None);
    };
    let tail = tail / SLOT_BYTES as u64 * SLOT_BYTES as u64;
    // From an aligned start to the very end, so that no odd last block escapes.
    let rest = (part.length - tail) as usize;
    let ends = vec![part.request(DATA_OFFSET, BLANK_BYTES as usize), part.request(tail, rest)];
    let read = all(ring.read_many(ends, timeout).await)?;
    match read.as_slice() {
        [head, tail] => Ok(BlankData::from_bytes(&part.device, head, tail)),
        _ => Err(KernelError::bug("probe", part.device.clone(), "two reads gave another number of answers")),
    }
}

fn all(results: Vec<Result<Vec<u8>>>) -> Result<Vec<Vec<u8>>> {
    results.into_iter().collect()
}

fn remaining(give_up: Instant) -> Duration {
    give_up.saturating_duration_since(Instant::now())
}
