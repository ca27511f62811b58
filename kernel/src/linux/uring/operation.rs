//! One read from open to close, in its two kinds. Called by the reader alone, always detached; never cancelled.

use super::{ReadRequest, fabric};
use crate::linux::ioctl::{AlignedBuf, O_DIRECT};
use crate::linux::root::Root;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use tokio_uring::buf::BoundedBuf;

/// Through the ring. Must run to its end: a dropped open leaks a descriptor.
pub(super) async fn uring(request: &ReadRequest) -> io::Result<Vec<u8>> {
    let mut options = tokio_uring::fs::OpenOptions::new();
    let file = options.read(true).custom_flags(flags(request)).open(&request.path).await?;
    let bytes = fill(&file, request).await;
    // What was read is as good as before when the close of a vanished device fails.
    let _ = file.close().await;
    bytes
}

async fn fill(file: &tokio_uring::fs::File, request: &ReadRequest) -> io::Result<Vec<u8>> {
    let mut buffer = AlignedBuf::zeroed(request.len)?;
    let mut done = 0;
    while done < request.len {
        let (result, slice) = file.read_at(buffer.slice(done..), request.offset + done as u64).await;
        buffer = slice.into_inner();
        match step(result, request, done)? {
            0 => break,
            count => done += count,
        }
    }
    Ok(buffer[..done].to_vec())
}

/// On a thread that may block.
pub(super) async fn pool(root: Root, request: ReadRequest) -> io::Result<Vec<u8>> {
    let read = move || {
        fabric::refuse_unless_live(&root, &request.path)?;
        let file = std::fs::OpenOptions::new().read(true).custom_flags(flags(&request)).open(&request.path)?;
        let mut buffer = AlignedBuf::zeroed(request.len)?;
        let mut done = 0;
        while done < request.len {
            match step(file.read_at(&mut buffer[done..], request.offset + done as u64), &request, done)? {
                0 => break,
                count => done += count,
            }
        }
        Ok(buffer[..done].to_vec())
    };
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

fn flags(request: &ReadRequest) -> i32 {
    if request.direct { O_DIRECT } else { 0 }
}

/// Bytes to count for one result: zero ends the read.
fn step(result: io::Result<usize>, request: &ReadRequest, done: usize) -> io::Result<usize> {
    match result {
        // A direct read that stops inside a block has reached the end of the file: going on from there would be
        // unaligned and fail with EINVAL.
        Ok(count) if request.direct && !(done + count).is_multiple_of(512) => Ok(count.min(request.len - done)),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        other => other,
    }
}
