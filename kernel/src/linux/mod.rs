//! The real bindings.

pub mod attr;
pub mod classify;
pub mod cmd;
pub mod drives;
pub mod fabrics;
pub mod fs;
pub mod gpt;
pub mod ioctl;
pub mod md;
pub mod mounts;
pub mod netlink;
pub mod node;
pub mod nvmet;
pub mod openers;
pub mod partition;
pub mod probe;
pub mod root;
pub mod superblock;
pub mod udev;
pub mod uring;
