//! Errors of the kernel seam. Each knows whether to look again soon, to wait, or to give up and say so.
//!
//! Made by the two implementations of [`crate::Kernel`]; read by the actors' shell and by the status conditions.

use std::fmt;

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Transient: look again after the ordinary back-off.
    Retry,
    /// Something outside has to change first (a peer, a cable, a busy holder): look again when told or slowly.
    Wait,
    /// Doing it would break a promise, or the input can never work: do not repeat without a new fact.
    Refuse,
    /// An impossible answer: a bug here or in the kernel. Shown loudly, repeated slowly.
    Bug,
}

/// A failed observation or operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelError {
    /// What was being done, in the words of the audit line.
    pub op: String,
    /// The file, device or program it failed on.
    pub path: String,
    /// The errno, when the kernel gave one.
    pub errno: Option<i32>,
    /// The rest of the sentence: what was found, what is needed.
    pub detail: String,
    /// What to do about it.
    pub class: Class,
}

/// Result of the kernel seam.
pub type Result<T, E = KernelError> = std::result::Result<T, E>;

impl KernelError {
    /// An error from an I/O call on `path`; the class follows from the errno.
    pub fn io(op: impl Into<String>, path: impl Into<String>, error: &std::io::Error) -> KernelError {
        let errno = error.raw_os_error();
        let class = errno.map_or(Class::Retry, class_of_errno);
        KernelError { op: op.into(), path: path.into(), errno, detail: error.to_string(), class }
    }

    /// An operation refused because its precondition does not hold.
    pub fn refuse(op: impl Into<String>, path: impl Into<String>, detail: impl Into<String>) -> KernelError {
        KernelError { op: op.into(), path: path.into(), errno: None, detail: detail.into(), class: Class::Refuse }
    }

    /// A transient failure without an errno, such as a deadline that passed.
    pub fn retry(op: impl Into<String>, path: impl Into<String>, detail: impl Into<String>) -> KernelError {
        KernelError { op: op.into(), path: path.into(), errno: None, detail: detail.into(), class: Class::Retry }
    }

    /// Something outside has to change first.
    pub fn wait(op: impl Into<String>, path: impl Into<String>, detail: impl Into<String>) -> KernelError {
        KernelError { op: op.into(), path: path.into(), errno: None, detail: detail.into(), class: Class::Wait }
    }

    /// An answer that should not be possible.
    pub fn bug(op: impl Into<String>, path: impl Into<String>, detail: impl Into<String>) -> KernelError {
        KernelError { op: op.into(), path: path.into(), errno: None, detail: detail.into(), class: Class::Bug }
    }
}

/// Linux errno numbers (asm-generic/errno.h, the same on every architecture we build for). Spelled out, so that this
/// crate needs no libc for its values.
mod errno {
    pub const EPERM: i32 = 1;
    pub const ENOENT: i32 = 2;
    pub const EINTR: i32 = 4;
    pub const EIO: i32 = 5;
    pub const ENXIO: i32 = 6;
    pub const EAGAIN: i32 = 11;
    pub const EACCES: i32 = 13;
    pub const EBUSY: i32 = 16;
    pub const ENODEV: i32 = 19;
    pub const EINVAL: i32 = 22;
    pub const ENOSPC: i32 = 28;
    pub const EROFS: i32 = 30;
    pub const ENETUNREACH: i32 = 101;
    pub const ECONNRESET: i32 = 104;
    pub const ETIMEDOUT: i32 = 110;
    pub const ECONNREFUSED: i32 = 111;
    pub const EHOSTUNREACH: i32 = 113;
    pub const EALREADY: i32 = 114;
}

/// The class of an errno, arm by arm with its reason (errno(3)).
fn class_of_errno(errno: i32) -> Class {
    match errno {
        // Somebody holds the device or the mutex; it passes.
        errno::EBUSY | errno::EAGAIN | errno::EINTR | errno::EALREADY => Class::Retry,
        // Peer or path away.
        errno::ECONNREFUSED | errno::ETIMEDOUT | errno::ECONNRESET | errno::EHOSTUNREACH | errno::ENETUNREACH => {
            Class::Wait
        }
        // Device vanished or not there yet: observation will tell.
        errno::ENOENT | errno::ENODEV | errno::ENXIO => Class::Retry,
        // Media or target error.
        errno::EIO => Class::Wait,
        // No room: needs a decision elsewhere.
        errno::ENOSPC => Class::Refuse,
        // Not permitted here, ever.
        errno::EPERM | errno::EACCES | errno::EROFS => Class::Refuse,
        // A value the kernel does not take: ours is wrong.
        errno::EINVAL => Class::Bug,
        _ => Class::Retry,
    }
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}: {}", self.op, self.path, self.detail)
    }
}

impl std::error::Error for KernelError {}
