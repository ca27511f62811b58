//! The one file of the workspace with `unsafe`: ioctls of block devices and file systems, and the aligned buffer that
//! `O_DIRECT` demands.
//!
//! Called by the partition code, by the ring and by `fs.rs`. Each wrapper takes an open file and plain numbers and does
//! exactly one call; it never decides whether the call is wise.
#![allow(unsafe_code, reason = "ioctl(2) and manually aligned memory have no safe interface; all of it is here")]

use nix::libc;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use tokio_uring::buf::{IoBuf, IoBufMut};

// -------------------------------------------------------------------------------------- partitions (BLKPG)

/// `struct blkpg_partition` (include/uapi/linux/blkpg.h).
#[repr(C)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    number: c_int,
    devname: [u8; 64],
    volname: [u8; 64],
}

/// `struct blkpg_ioctl_arg` (include/uapi/linux/blkpg.h).
#[repr(C)]
struct BlkpgArg {
    op: c_int,
    flags: c_int,
    datalen: c_int,
    data: *mut c_void,
}

const _: () = assert!(size_of::<BlkpgPartition>() == 152, "struct blkpg_partition: 2 * 8 + 4 + 2 * 64, padded to 8");
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<BlkpgArg>() == 24, "struct blkpg_ioctl_arg: 3 * 4, padded to 16, and a pointer");

/// `BLKPG_ADD_PARTITION`, `BLKPG_DEL_PARTITION`, `BLKPG_RESIZE_PARTITION`.
#[derive(Clone, Copy)]
enum BlkpgOp {
    Add = 1,
    Delete = 2,
    Resize = 3,
}

/// The calls themselves. Request numbers are the same on every architecture we build for.
mod raw {
    #![allow(missing_docs, reason = "private, made by macros that take no doc comment")]
    use super::{BlkpgArg, NvmeAdmin, XfsGeometry, XfsGrow};

    // include/uapi/linux/blkpg.h
    nix::ioctl_write_ptr_bad!(blkpg, nix::request_code_none!(0x12, 105), BlkpgArg);
    // include/uapi/linux/fs.h
    nix::ioctl_none_bad!(blkflsbuf, nix::request_code_none!(0x12, 97));
    nix::ioctl_write_ptr_bad!(blkdiscard, nix::request_code_none!(0x12, 119), [u64; 2]);
    nix::ioctl_read!(blkgetsize64, 0x12, 114, usize);
    // include/uapi/linux/nvme_ioctl.h
    nix::ioctl_readwrite!(nvme_admin, b'N', 0x41, NvmeAdmin);
    // XFS_IOC_GOINGDOWN (fs/xfs/libxfs/xfs_fs.h) and EXT4_IOC_SHUTDOWN (include/uapi/linux/ext4.h) are one and the
    // same number, _IOR('X', 125, __u32), although the kernel reads the argument.
    nix::ioctl_write_ptr_bad!(shutdown, nix::request_code_read!(b'X', 125, size_of::<u32>()), u32);
    // XFS_IOC_FSGEOMETRY_V1 and XFS_IOC_FSGROWFSDATA (fs/xfs/libxfs/xfs_fs.h).
    nix::ioctl_read!(xfs_geometry, b'X', 100, XfsGeometry);
    nix::ioctl_write_ptr!(xfs_grow, b'X', 110, XfsGrow);
    // EXT4_IOC_RESIZE_FS (include/uapi/linux/ext4.h).
    nix::ioctl_write_ptr!(ext4_resize, b'f', 16, u64);
}

fn partition_call(disk: &File, op: BlkpgOp, number: u32, start: u64, length: u64) -> io::Result<()> {
    let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let mut partition = BlkpgPartition {
        start: i64::try_from(start).map_err(too_large)?,
        length: i64::try_from(length).map_err(too_large)?,
        number: c_int::try_from(number).map_err(too_large)?,
        devname: [0; 64],
        volname: [0; 64],
    };
    let arg = BlkpgArg {
        op: op as c_int,
        flags: 0,
        datalen: size_of::<BlkpgPartition>() as c_int,
        data: (&raw mut partition).cast(),
    };
    // SAFETY: `arg` and the `partition` it points to are laid out as the kernel's structs (asserted above), live until
    // the call returns, and the kernel keeps no pointer to them (block/ioctl.c: blkpg_do_ioctl copies).
    unsafe { raw::blkpg(disk.as_raw_fd(), &arg) }?;
    Ok(())
}

/// Tells the kernel about a partition; `start` and `length` in bytes. EBUSY when it overlaps one the kernel knows.
pub fn add_partition(disk: &File, number: u32, start: u64, length: u64) -> io::Result<()> {
    partition_call(disk, BlkpgOp::Add, number, start, length)
}

/// Makes the kernel forget a partition. EBUSY when anybody has it open, ENXIO when it knows none of that number.
pub fn delete_partition(disk: &File, number: u32) -> io::Result<()> {
    partition_call(disk, BlkpgOp::Delete, number, 0, 0)
}

/// Changes the length of a partition, in use or not.
pub fn resize_partition(disk: &File, number: u32, start: u64, length: u64) -> io::Result<()> {
    partition_call(disk, BlkpgOp::Resize, number, start, length)
}

// ---------------------------------------------------------------------------------------- block devices

/// Writes back and drops what the page cache holds of a block device.
pub fn flush_buffers(device: &File) -> io::Result<()> {
    // SAFETY: takes no argument beyond the descriptor, which is open for as long as `device` is borrowed.
    unsafe { raw::blkflsbuf(device.as_raw_fd()) }?;
    Ok(())
}

/// Tells the drive that a range is not needed any more. What reads back afterwards is not defined.
pub fn discard(device: &File, start: u64, length: u64) -> io::Result<()> {
    let range = [start, length];
    // SAFETY: the kernel reads two u64 from `range`, which lives until the call returns.
    unsafe { raw::blkdiscard(device.as_raw_fd(), &range) }?;
    Ok(())
}

/// Size of a block device in bytes.
pub fn device_bytes(device: &File) -> io::Result<u64> {
    // The request number carries size_t, the kernel writes a u64 (block/ioctl.c: put_u64); both are one on 64 bits.
    const _: () = assert!(size_of::<usize>() == size_of::<u64>(), "64-bit targets only");
    let mut bytes: usize = 0;
    // SAFETY: the kernel writes eight bytes into `bytes`, which has them (asserted above).
    unsafe { raw::blkgetsize64(device.as_raw_fd(), &mut bytes) }?;
    Ok(bytes as u64)
}

// ------------------------------------------------------------------------------------- NVMe admin commands

/// `struct nvme_passthru_cmd` (include/uapi/linux/nvme_ioctl.h).
#[repr(C)]
#[derive(Default)]
struct NvmeAdmin {
    opcode: u8,
    flags: u8,
    rsvd1: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    addr: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    result: u32,
}

const _: () = assert!(size_of::<NvmeAdmin>() == 72, "struct nvme_passthru_cmd: 8 + 8 + 16 + 8 + 24 + 8");

/// Opcodes and the feature, NVM Express base specification, figures of the admin commands and of the features.
const SET_FEATURES: u8 = 0x09;
const GET_FEATURES: u8 = 0x0a;
const VOLATILE_WRITE_CACHE: u32 = 0x06;
/// `SV` of Set Features: the value holds after a reset and a power cut as well.
const SAVE: u32 = 1 << 31;
const ADMIN_TIMEOUT_MS: u32 = 5_000;

/// One admin command without data; answers dword 0 of the completion.
fn nvme_feature(drive: &File, opcode: u8, cdw10: u32, cdw11: u32) -> io::Result<u32> {
    let mut command = NvmeAdmin { opcode, cdw10, cdw11, timeout_ms: ADMIN_TIMEOUT_MS, ..NvmeAdmin::default() };
    // SAFETY: `command` is laid out as the kernel's struct (asserted above), names no buffer (addr and data_len are
    // zero), and lives until the call returns; the kernel writes nothing but its `result`.
    let status = unsafe { raw::nvme_admin(drive.as_raw_fd(), &mut command) }?;
    match status {
        0 => Ok(command.result),
        // A positive answer is the drive's own status: it understood and said no.
        status => Err(io::Error::new(io::ErrorKind::Unsupported, format!("NVMe status {status:#x}"))),
    }
}

/// Whether a drive's volatile write cache is on (feature 06h).
pub fn write_cache(drive: &File) -> io::Result<bool> {
    Ok(nvme_feature(drive, GET_FEATURES, VOLATILE_WRITE_CACHE, 0)? & 1 == 1)
}

/// Turns a drive's volatile write cache off; `saved`: for good, which not every drive can.
pub fn disable_write_cache(drive: &File, saved: bool) -> io::Result<()> {
    let save = if saved { SAVE } else { 0 };
    nvme_feature(drive, SET_FEATURES, VOLATILE_WRITE_CACHE | save, 0).map(|_| ())
}

// ---------------------------------------------------------------------------------------- file systems

/// What a file system does with its log when it is shut down (`XFS_FSOP_GOING_FLAGS_*`, `EXT4_GOING_FLAGS_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoingDown {
    /// Freeze, write everything, shut down.
    Default = 0,
    /// Write the log, not the data.
    LogFlush = 1,
    /// Write nothing at all.
    NoLogFlush = 2,
}

/// Shuts the file system down that `file` lies on: XFS or ext4, which share the call.
pub fn goingdown(file: BorrowedFd<'_>, flags: GoingDown) -> io::Result<()> {
    let flags = flags as u32;
    // SAFETY: the kernel reads one u32 from `flags`, which lives until the call returns.
    unsafe { raw::shutdown(file.as_raw_fd(), &flags) }?;
    Ok(())
}

/// `struct xfs_fsop_geom_v1` (fs/xfs/libxfs/xfs_fs.h), which every kernel with XFS answers.
#[repr(C)]
#[derive(Default)]
struct XfsGeometry {
    blocksize: u32,
    rtextsize: u32,
    agblocks: u32,
    agcount: u32,
    logblocks: u32,
    sectsize: u32,
    inodesize: u32,
    imaxpct: u32,
    datablocks: u64,
    rtblocks: u64,
    rtextents: u64,
    logstart: u64,
    uuid: [u8; 16],
    sunit: u32,
    swidth: u32,
    version: i32,
    flags: u32,
    logsectsize: u32,
    rtsectsize: u32,
    dirblocksize: u32,
}

const _: () =
    assert!(size_of::<XfsGeometry>() == 112, "struct xfs_fsop_geom_v1: 8 * 4 + 4 * 8 + 16 + 7 * 4, padded to 8");

/// `struct xfs_growfs_data` (fs/xfs/libxfs/xfs_fs.h).
#[repr(C)]
struct XfsGrow {
    newblocks: u64,
    imaxpct: u32,
}

const _: () = assert!(size_of::<XfsGrow>() == 16, "struct xfs_growfs_data: 8 + 4, padded to 8");

/// What an XFS says of its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Blocks of its data section.
    pub blocks: u64,
    /// Percent that inodes may take: growing sets it anew.
    pub max_inode_percent: u32,
}

/// The geometry of the XFS that `file` lies on.
pub fn xfs_geometry(file: &File) -> io::Result<Geometry> {
    let mut geometry = XfsGeometry::default();
    // SAFETY: the kernel writes one `struct xfs_fsop_geom_v1`, whose layout `geometry` has (asserted above).
    unsafe { raw::xfs_geometry(file.as_raw_fd(), &mut geometry) }?;
    let XfsGeometry { blocksize, datablocks, imaxpct, .. } = geometry;
    Ok(Geometry { block_bytes: blocksize, blocks: datablocks, max_inode_percent: imaxpct })
}

/// Grows the data section of the XFS that `file` lies on.
pub fn xfs_grow(file: &File, blocks: u64, max_inode_percent: u32) -> io::Result<()> {
    let wish = XfsGrow { newblocks: blocks, imaxpct: max_inode_percent };
    // SAFETY: the kernel reads one `struct xfs_growfs_data` from `wish`, which lives until the call returns.
    unsafe { raw::xfs_grow(file.as_raw_fd(), &wish) }?;
    Ok(())
}

/// Grows the ext4 that `file` lies on to so many of its blocks.
pub fn ext4_resize(file: &File, blocks: u64) -> io::Result<()> {
    // SAFETY: the kernel reads one u64 from `blocks`, which lives until the call returns.
    unsafe { raw::ext4_resize(file.as_raw_fd(), &blocks) }?;
    Ok(())
}

// ------------------------------------------------------------------------------------------- the buffer

/// The largest logical block size we work with; `O_DIRECT` wants memory aligned to the device's.
pub const BLOCK: usize = 4096;

/// Memory aligned to [`BLOCK`], zeroed, for `O_DIRECT`. A `Vec` is not aligned and gets EINVAL.
pub struct AlignedBuf {
    memory: NonNull<u8>,
    layout: Layout,
    len: usize,
}

// SAFETY: the buffer owns its memory alone, as a `Box<[u8]>` does.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access only reads, as with `Box<[u8]>`.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// A buffer of `len` zero bytes. An error for a length no address space has.
    pub fn zeroed(len: usize) -> io::Result<AlignedBuf> {
        // At least one byte: a layout of size zero must not be allocated.
        let layout = Layout::from_size_align(len.max(1), BLOCK)
            .map_err(|e| io::Error::new(io::ErrorKind::OutOfMemory, e.to_string()))?;
        // SAFETY: the layout's size is not zero.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(memory) = NonNull::new(memory) else { handle_alloc_error(layout) };
        Ok(AlignedBuf { memory, layout, len })
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this very layout, freed only here.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `memory` holds `len` bytes, initialised from the start, and `self` is borrowed for the slice's life.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.len) }
    }
}

// SAFETY: the pointer stays the same when the struct moves, since the memory is on the heap; all `len` bytes are
// initialised from the start, so initialised and total length are the same at all times.
unsafe impl IoBuf for AlignedBuf {
    fn stable_ptr(&self) -> *const u8 {
        self.memory.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.len
    }

    fn bytes_total(&self) -> usize {
        self.len
    }
}

// SAFETY: as above; the ring has the buffer moved into it while it writes.
unsafe impl IoBufMut for AlignedBuf {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.memory.as_ptr()
    }

    unsafe fn set_init(&mut self, _pos: usize) {
        // Every byte is initialised already.
    }
}

/// Flag for opening files without the page cache.
pub const O_DIRECT: i32 = libc::O_DIRECT;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn file() -> File {
        tempfile::tempfile().unwrap()
    }

    #[test]
    fn a_plain_file_is_not_a_block_device() {
        let file = file();
        let errnos = [
            add_partition(&file, 1, 1 << 20, 1 << 20),
            delete_partition(&file, 1),
            resize_partition(&file, 1, 1 << 20, 2 << 20),
            flush_buffers(&file),
            discard(&file, 0, 4096),
            device_bytes(&file).map(|_| ()),
            write_cache(&file).map(|_| ()),
            disable_write_cache(&file, true),
        ]
        .map(|result| result.unwrap_err().raw_os_error());
        assert_eq!(errnos, [Some(libc::ENOTTY); 8]);
    }

    #[test]
    fn a_pipe_is_on_no_file_system_that_grows() {
        let (end, _other) = io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(end));
        let errnos = [xfs_geometry(&file).map(|_| ()), xfs_grow(&file, 1, 25), ext4_resize(&file, 1)];
        assert_eq!(errnos.map(|result| result.unwrap_err().raw_os_error()), [Some(libc::ENOTTY); 3]);
    }

    #[test]
    fn a_pipe_cannot_be_shut_down() {
        let (end, _other) = io::pipe().unwrap();
        let error = goingdown(end.as_fd(), GoingDown::NoLogFlush).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }

    #[test]
    fn request_numbers_are_the_kernels() {
        assert_eq!(nix::request_code_none!(0x12, 105), 0x1269);
        assert_eq!(nix::request_code_none!(0x12, 97), 0x1261);
        assert_eq!(nix::request_code_none!(0x12, 119), 0x1277);
        assert_eq!(nix::request_code_read!(b'X', 125, 4), 0x8004_587d);
        assert_eq!(nix::request_code_readwrite!(b'N', 0x41, size_of::<NvmeAdmin>()), 0xc048_4e41);
        assert_eq!(nix::request_code_read!(b'X', 100, size_of::<XfsGeometry>()), 0x8070_5864);
        assert_eq!(nix::request_code_write!(b'X', 110, size_of::<XfsGrow>()), 0x4010_586e);
        assert_eq!(nix::request_code_write!(b'f', 16, size_of::<u64>()), 0x4008_6610);
    }

    #[test]
    fn numbers_beyond_the_kernels_range_are_refused_here() {
        let error = add_partition(&file(), 1, u64::MAX, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn the_buffer_is_aligned_zeroed_and_writable() {
        for len in [0, 1, 512, BLOCK, 3 * BLOCK + 1] {
            let mut buffer = AlignedBuf::zeroed(len).unwrap();
            assert_eq!(buffer.as_ptr() as usize % BLOCK, 0);
            assert_eq!(buffer.len(), len);
            assert!(buffer.iter().all(|b| *b == 0));
            buffer.fill(7);
            assert!(buffer.iter().all(|b| *b == 7));
        }
        assert!(AlignedBuf::zeroed(usize::MAX).is_err());
    }
}
