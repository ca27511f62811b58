//! How full a mounted file system is.
//!
//! Asked by NodeGetVolumeStats for mounts that the kernel layer has just seen alive. A simulation brings its own answers,
//! because its mounts are not in this machine's tree.

use std::io;
use std::path::Path;
use std::sync::Arc;

/// How full a file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes: total, used, available to users.
    pub bytes: (u64, u64, u64),
    /// Inodes: total, used, available.
    pub inodes: (u64, u64, u64),
}

/// Asks a mount point how full it is; may block.
pub type AskUsage = Arc<dyn Fn(&Path) -> io::Result<Usage> + Send + Sync>;

/// Asks the kernel.
pub fn statvfs() -> AskUsage {
    Arc::new(|path| {
        let stat = nix::sys::statvfs::statvfs(path)?;
        let block = stat.fragment_size();
        let bytes = |blocks: u64| blocks.saturating_mul(block);
        let used = |total: u64, free: u64| total.saturating_sub(free);
        Ok(Usage {
            bytes: (
                bytes(stat.blocks()),
                bytes(used(stat.blocks(), stat.blocks_free())),
                bytes(stat.blocks_available()),
            ),
            inodes: (stat.files(), used(stat.files(), stat.files_free()), stat.files_available()),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_add_up() {
        let usage = statvfs()(Path::new("/")).unwrap();
        let (total, used, available) = usage.bytes;
        assert!(total > 0 && used + available <= total);
    }
}
