//! Real kernels in QEMU: guests, faults and a real control plane for tests.
//!
//! Called by `cargo xtask vm` and by everything that tests on real kernels. Blocking code on purpose: a test is a
//! sequence of steps, and the steps are other programs. Nothing here is part of the product.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use meshstor_lab::{Config, Lab};
//! let lab = Lab::up(&Config { nodes: 2, fresh: true, ..Config::default() })?;
//! let a = lab.guest("node-a")?;
//! println!("{}", a.ssh_checked("uname -r")?);
//! a.power_cut()?;
//! a.power_on()?;
//! lab.down()
//! # }
//! ```
//!
//! How the parts fit: [`tools`] installs or builds the programs, [`image`] makes the root disk, `snapshot` boots each
//! node once and saves it ready to run, [`Lab`] starts nodes from that, [`Guest`] runs commands in one and does harm to
//! it, [`ControlPlane`] is an etcd and a kube-apiserver on the host.
//!
//! What it never does: listen on anything but loopback, end a process whose pid it did not record, or use hardware.

pub mod container;
mod control;
mod exec;
mod faults;
mod guest;
pub mod image;
mod lab;
mod monitor;
mod paths;
mod ports;
mod process;
mod qemu;
mod snapshot;
mod ssh;
mod state;
pub mod tools;
mod worker;

pub use container::ImageFile;
pub use control::{Client, ControlPlane, Reach, kubernetes};
pub use exec::Output;
pub use guest::Guest;
pub use lab::{Config, Lab, NodeStatus};
pub use paths::Paths;
pub use state::Turn;
