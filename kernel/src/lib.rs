//! Facts, operations and identities of the Linux storage kernel, with a real and a simulated implementation.
//!
//! ```text
//!  actors' shell ──observe──▶ Kernel ──▶ facts (values)          linux/  the node's own kernel
//!        │                                                        sim/    simulated kernels of N nodes
//!        └─────────apply(Op)─▶ Kernel ──▶ Changed | KernelError
//!  kernel ──hints()──▶ node actor        "look again", never a fact
//! ```
//!
//! Called by the actors' shell and by `meshstor doctor`. It never decides, never retries, never talks to Kubernetes.

pub mod content;
pub mod error;
pub mod facts;
pub mod hint;
pub mod id;
#[cfg(feature = "linux")]
pub mod linux;
pub mod mutant;
pub mod ops;
pub mod record;
#[cfg(feature = "seam")]
mod seam;
#[cfg(feature = "sim")]
pub mod sim;

pub use error::{Class, KernelError, Result};

#[cfg(feature = "seam")]
pub use seam::{Kernel, MountFact, SharedKernel};
