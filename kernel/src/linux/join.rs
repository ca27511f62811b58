//! Adding a replica to a running array for a full recovery: a superblock of our own, then sysfs.
//!
//! Called by `apply.rs`. Not through mdadm: its `--add` turns a former member into a re-add, which trusts bits that
//! nobody vouches for, and gives the new member a bad-block log, with which MD keeps a member that lacks blocks.
//! It overwrites only what lies before the data of a device that carries our record for this very volume (P3).
//!
//! ```text
//!  survivor's superblock and bitmap ─ patched: spare, own number and uuid ─▶ new device ─▶ new_dev ─▶ recovery
//! ```

use super::ioctl::{AlignedBuf, O_DIRECT};
use super::superblock::{self, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET};
use super::{Shared, attr, md, mdadm};
use crate::error::{KernelError, Result};
use crate::facts::{DATA_OFFSET, RECORD_OFFSET};
use crate::id::{ReplicaKey, VolumeId};
use crate::ops::Changed;
use nix::libc::{O_DSYNC, O_EXCL};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

const READ_DEADLINE: Duration = Duration::from_secs(5);
const SECTOR: u64 = 512;
/// Where `dev_roles` starts, and the role of a device that has no slot (md_p.h, `struct mdp_superblock_1`).
const ROLES: usize = 256;
const SPARE: u16 = 0xffff;
/// The only feature a spare of ours keeps: the internal bitmap. No recovery offset, replacement or bad blocks.
const FEATURE_BITMAP: u32 = 1;

/// What is written on the new member, and where it goes.
struct Joining {
    array: String,
    component: String,
    device: String,
    /// From [`SUPERBLOCK_OFFSET`] on: superblock, then the bitmap when there is one.
    bytes: Vec<u8>,
}

/// Adds a replica with a full recovery.
pub(super) async fn add(shared: &Arc<Shared>, volume: VolumeId, device: &str) -> Result<Changed> {
    let op = format!("add-member {} {device}", volume.short());
    let (words, path) = (op.clone(), device.to_string());
    let look = move |s: &Shared| {
        let Some(array) = mdadm::joining(&s.root, &words, volume, &path)? else { return Ok(None) };
        let dir = md::dir(&s.root, &array);
        if attr::read_number::<u32>(&dir.join("degraded")).unwrap_or(0) == 0 {
            return Err(KernelError::refuse(words, array, "the array has no free slot"));
        }
        let survivor = survivor(&dir).ok_or_else(|| KernelError::refuse(words, &array, "no member is in sync"))?;
        Ok(Some((array, attr::show(&s.root.dev.join(survivor)))))
    };
    let Some((array, survivor)) = shared.look(&op, look).await? else { return Ok(Changed::No) };
    let seen = mdadm::ours(shared, &op, volume, device, false).await?;
    let replica = seen.record.map(|record| ReplicaKey { volume, replica: record.replica });
    let replica = replica.ok_or_else(|| KernelError::refuse(&op, device, "the device carries no record"))?;
    let front = front(shared, &op, &survivor).await?;
    let length = shared.ring.device_bytes(device).await?;
    let bytes = spare(&front, length, replica);
    let bytes = bytes.ok_or_else(|| KernelError::bug(&op, survivor, "no superblock to copy from the survivor"))?;
    let joining = Joining { array, component: md::component(device), device: device.into(), bytes };
    let words = op.clone();
    shared.blocking(&op, move |s| write_and_bind(s, &words, &joining)).await
}

/// A member to copy from: in sync, and rather one that reads are sent to.
fn survivor(dir: &Path) -> Option<String> {
    let members = md::members(dir).into_iter().filter(|(_, member)| member.in_sync());
    members.min_by_key(|(_, member)| member.flags.contains("write_mostly")).map(|(name, _)| name)
}

/// The survivor's superblock and bitmap.
async fn front(shared: &Shared, op: &str, survivor: &str) -> Result<Vec<u8>> {
    let read = |length| shared.ring.read(survivor, SUPERBLOCK_OFFSET, length, true, READ_DEADLINE);
    let first = read(3 * SUPERBLOCK_BYTES).await?;
    let end = bitmap_end(&first).unwrap_or(SUPERBLOCK_BYTES as u64);
    let end = end.next_multiple_of(SUPERBLOCK_BYTES as u64);
    if SUPERBLOCK_OFFSET + end > RECORD_OFFSET.min(DATA_OFFSET) {
        return Err(KernelError::refuse(op, survivor, "its bitmap reaches into the record"));
    }
    read(end as usize).await
}

/// Where the bitmap ends, counted from the superblock; `None` without one.
fn bitmap_end(front: &[u8]) -> Option<u64> {
    let at = superblock::bitmap_location(front)?.checked_sub(SUPERBLOCK_OFFSET)?;
    let header = front.get(usize::try_from(at).ok()?..)?;
    Some(at + superblock::bitmap_bytes(header)?)
}

/// The survivor's metadata as that of a spare of the same array on a device of `length` bytes. The number is the
/// replica's own where it is free, so that one number means one replica in every superblock of the volume.
fn spare(front: &[u8], length: u64, replica: ReplicaKey) -> Option<Vec<u8>> {
    let model = superblock::parse(front.get(..SUPERBLOCK_BYTES)?)?;
    let free = |number: &usize| model.roles.get(*number) == Some(&SPARE) && *number != model.dev_number as usize;
    let own = replica.replica.0 as usize;
    let number = Some(own).filter(free).or_else(|| (model.raid_disks as usize..model.roles.len()).find(free))?;
    let data_sectors = length.checked_sub(model.data_offset)? / SECTOR;
    let uuid = Uuid::new_v5(&replica.partition_uuid(), format!("member/{}", model.events).as_bytes());

    let mut bytes = front.to_vec();
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let features = u32::from_le_bytes(front.get(8..12)?.try_into().ok()?);
    put(8, &(features & FEATURE_BITMAP).to_le_bytes());
    put(136, &data_sectors.to_le_bytes());
    put(152, &0u64.to_le_bytes()); // recovery_offset: nothing is recovered yet
    put(160, &(number as u32).to_le_bytes());
    put(164, &0u32.to_le_bytes()); // cnt_corrected_read
    put(168, uuid.as_bytes());
    put(184, &[0; 8]); // devflags (write-mostly, failfast) and the whole bad-block log
    put(ROLES + 2 * number, &SPARE.to_le_bytes());
    let sum = superblock::checksum(&bytes[..SUPERBLOCK_BYTES], model.roles.len())?;
    bytes[216..220].copy_from_slice(&sum.to_le_bytes());
    Some(bytes)
}

/// Writes the metadata to a device nobody holds, then gives it to MD.
fn write_and_bind(shared: &Shared, op: &str, joining: &Joining) -> Result<Changed> {
    let write = || -> io::Result<()> {
        let mut buffer = AlignedBuf::zeroed(joining.bytes.len())?;
        buffer.copy_from_slice(&joining.bytes);
        let mut options = OpenOptions::new();
        let file = options.write(true).custom_flags(O_DIRECT | O_DSYNC | O_EXCL).open(&joining.device)?;
        file.write_all_at(&buffer, SUPERBLOCK_OFFSET)
    };
    write().map_err(|e| KernelError::io(format!("{op}: write the superblock"), &joining.device, &e))?;
    let dir = md::dir(&shared.root, &joining.array);
    let number = shared.root.sys.join("class/block").join(&joining.component).join("dev");
    let number = attr::read(&number).map_err(|e| KernelError::io(op, attr::show(&number), &e))?;
    attr::write(op, &dir.join("new_dev"), &number)?;
    // MD takes a bound spare into a free slot when it is told to look; a frozen array looks when it is released.
    if attr::read_opt(&dir.join("sync_action")).as_deref() == Some("idle") {
        attr::write(op, &dir.join("sync_action"), "idle")?;
    }
    Ok(Changed::Yes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ReplicaId;
    use crate::linux::md::tests::{put, volume};
    use crate::linux::root::Root;

    /// A survivor's metadata: slots 0 and 1 of two, number 0, write-mostly, with a bad-block log and a bitmap.
    fn survivor_bytes(roles: &[u16]) -> Vec<u8> {
        let mut bytes = vec![0u8; 3 * SUPERBLOCK_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &0xa92b_4efcu32.to_le_bytes());
        put(4, &1u32.to_le_bytes());
        put(8, &(1u32 | 2 | 8).to_le_bytes());
        put(16, volume().md_uuid().as_bytes());
        put(72, &1u32.to_le_bytes());
        put(80, &204_800u64.to_le_bytes());
        put(92, &2u32.to_le_bytes());
        put(96, &8u32.to_le_bytes());
        put(128, &8192u64.to_le_bytes());
        put(144, &8u64.to_le_bytes());
        put(152, &77u64.to_le_bytes());
        put(168, &[9; 16]);
        put(184, &[1, 9, 8, 0, 16, 0, 0, 0]);
        put(200, &42u64.to_le_bytes());
        put(208, &u64::MAX.to_le_bytes());
        put(220, &(roles.len() as u32).to_le_bytes());
        roles.iter().enumerate().for_each(|(at, role)| put(ROLES + 2 * at, &role.to_le_bytes()));
        // The bitmap's header: magic, version, sync size in sectors, chunk bytes.
        put(4096, &0x6d74_6962u32.to_le_bytes());
        put(4100, &4u32.to_le_bytes());
        put(4096 + 40, &204_800u64.to_le_bytes());
        put(4096 + 52, &(64u32 << 20).to_le_bytes());
        put(4096 + 256, &[0b11]);
        let sum = superblock::checksum(&bytes[..SUPERBLOCK_BYTES], roles.len()).unwrap();
        bytes[216..220].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn replica(number: u32) -> ReplicaKey {
        ReplicaKey { volume: volume(), replica: ReplicaId(number) }
    }

    #[test]
    fn a_spare_is_the_survivor_but_for_what_is_its_own() {
        let front = survivor_bytes(&[0, 1, 0xffff, 0xffff]);
        let bytes = spare(&front, 300 << 20, replica(2)).unwrap();
        let (model, made) = (superblock::parse(&front).unwrap(), superblock::parse(&bytes).unwrap());
        assert_eq!((made.dev_number, made.active_slot(), made.recovery_offset), (2, None, None));
        assert_eq!((made.set_uuid, made.events, made.roles), (model.set_uuid, model.events, model.roles));
        assert_ne!(made.device_uuid, model.device_uuid);
        assert_eq!(bytes[184..192], [0; 8], "no flags and no bad-block log");
        assert_eq!(u64::from_le_bytes(bytes[136..144].try_into().unwrap()) * SECTOR, 296 << 20);
        assert_eq!(bytes[4096..], front[4096..], "the bitmap comes along");
        assert_eq!(bitmap_end(&front), Some(4096 + 256 + 1));
    }

    #[test]
    fn a_number_in_use_is_never_taken() {
        let number = |roles: &[u16], own| {
            let bytes = spare(&survivor_bytes(roles), 300 << 20, replica(own));
            bytes.map(|bytes| superblock::parse(&bytes).unwrap().dev_number)
        };
        assert_eq!(number(&[0, 0xffff, 0xffff, 0xffff], 1), Some(1), "the replica's own number");
        assert_eq!(number(&[0, 1, 0xffff, 0xffff], 1), Some(2), "somebody has it");
        assert_eq!(number(&[0, 1, 0xfffe, 0xffff], 900), Some(3), "faulty is not free");
        assert_eq!(number(&[0, 1], 2), None);
    }

    #[test]
    fn the_new_member_is_written_bound_and_recovered_unless_frozen() {
        for (action, after) in [("idle\n", "idle"), ("frozen\n", "frozen")] {
            let temp = tempfile::tempdir().unwrap();
            let root = Root::at(temp.path());
            put(&root, "block/md1004/md/new_dev", "");
            put(&root, "block/md1004/md/sync_action", action);
            put(&root, "class/block/nvme4n1/dev", "259:7\n");
            let device = temp.path().join("nvme4n1");
            std::fs::write(&device, vec![5; 1 << 20]).unwrap();
            let joining = Joining {
                array: "md1004".into(),
                component: "nvme4n1".into(),
                device: attr::show(&device),
                bytes: vec![6; 8192],
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let shared = runtime.block_on(async { crate::linux::tests::shared(root.clone()) });
            assert_eq!(write_and_bind(&shared, "test", &joining), Ok(Changed::Yes));
            let bytes = std::fs::read(&device).unwrap();
            assert!(bytes[..4096] == [5; 4096] && bytes[4096..12288] == [6; 8192] && bytes[12288] == 5);
            let get = |name: &str| attr::read(&root.sys.join("block/md1004/md").join(name)).unwrap();
            assert_eq!((get("new_dev").as_str(), get("sync_action").as_str()), ("259:7", after));
        }
    }
}
