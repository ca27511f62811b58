//! The epoch record's bytes: one 4 KiB block with magic, length and checksum, in two slots written in turn.
//!
//! Pure. Called by both kernel implementations; reading and writing the blocks is theirs.

use crate::facts::{EpochRecord, RECORD_OFFSET, RECORD_STRIDE};

/// Bytes of one slot: the largest logical block size, so that one write is one block on every drive.
pub const SLOT_BYTES: usize = 4096;
const MAGIC: &[u8; 8] = b"MSRECORD";
const VERSION: u32 = 1;
/// magic 8, version 4, length 4, crc 4, reserved 12.
const HEADER_BYTES: usize = 32;

/// A record that does not fit a slot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a record of {0} bytes does not fit the {SLOT_BYTES}-byte slot")]
pub struct TooLarge(usize);

/// Byte offsets of the two slots inside the partition.
pub fn slot_offsets() -> [u64; 2] {
    [RECORD_OFFSET, RECORD_OFFSET + RECORD_STRIDE]
}

/// Which slot a record goes to: the other one than the record before it.
pub fn slot_of(sequence: u64) -> u64 {
    slot_offsets()[(sequence % 2) as usize]
}

/// The record as the bytes of one slot.
pub fn encode(record: &EpochRecord) -> Result<Vec<u8>, TooLarge> {
    // Serialising a struct of numbers, uuids and strings cannot fail; an empty body would not decode.
    let body = serde_json::to_vec(record).unwrap_or_default();
    if body.len() > SLOT_BYTES - HEADER_BYTES {
        return Err(TooLarge(body.len()));
    }
    let mut slot = vec![0u8; SLOT_BYTES];
    slot[..8].copy_from_slice(MAGIC);
    slot[8..12].copy_from_slice(&VERSION.to_le_bytes());
    slot[12..16].copy_from_slice(&(body.len() as u32).to_le_bytes());
    slot[16..20].copy_from_slice(&crc32fast::hash(&body).to_le_bytes());
    slot[HEADER_BYTES..HEADER_BYTES + body.len()].copy_from_slice(&body);
    Ok(slot)
}

/// The record in one slot; `None` when the slot is blank, torn or not ours.
pub fn decode(slot: &[u8]) -> Option<EpochRecord> {
    let word = |at: usize| Some(u32::from_le_bytes(slot.get(at..at + 4)?.try_into().ok()?));
    if slot.get(..8)? != MAGIC || word(8)? != VERSION {
        return None;
    }
    let body = slot.get(HEADER_BYTES..HEADER_BYTES + word(12)? as usize)?;
    if crc32fast::hash(body) != word(16)? {
        return None;
    }
    serde_json::from_slice(body).ok()
}

/// The newer of the valid slots.
pub fn newest(slots: &[Vec<u8>]) -> Option<EpochRecord> {
    slots.iter().filter_map(|slot| decode(slot)).max_by_key(|record| record.sequence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{ClusterId, ReplicaId, VolumeId};
    use uuid::Uuid;

    fn record(sequence: u64) -> EpochRecord {
        EpochRecord {
            volume: VolumeId(Uuid::from_u128(7)),
            cluster: ClusterId(Uuid::from_u128(8)),
            replica: ReplicaId(1),
            epoch: 4,
            generation: 2,
            in_sync: (0..16).map(ReplicaId).collect(),
            volume_name: "pvc-1".into(),
            sequence,
            tainted: None,
            unflushed: None,
            content: Default::default(),
        }
    }

    #[test]
    fn a_record_reads_back() {
        assert_eq!(decode(&encode(&record(1)).unwrap()), Some(record(1)));
    }

    #[test]
    fn any_flipped_byte_of_the_record_spoils_it() {
        let good = encode(&record(1)).unwrap();
        let used = HEADER_BYTES + good[HEADER_BYTES..].iter().rposition(|b| *b != 0).unwrap() + 1;
        for at in (0..20).chain(HEADER_BYTES..used) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert_eq!(decode(&bad), None, "byte {at}");
        }
    }

    #[test]
    fn a_torn_write_leaves_the_older_record() {
        let mut slots = vec![encode(&record(8)).unwrap(), encode(&record(9)).unwrap()];
        assert_eq!(newest(&slots).unwrap().sequence, 9);
        slots[1][100] ^= 1;
        assert_eq!(newest(&slots).unwrap().sequence, 8);
        assert_ne!(slot_of(8), slot_of(9));
    }

    #[test]
    fn a_record_too_large_for_its_slot_is_refused() {
        let mut large = record(1);
        large.volume_name = "x".repeat(SLOT_BYTES);
        assert!(encode(&large).is_err());
    }
}
