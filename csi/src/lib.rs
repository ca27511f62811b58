//! The CSI 1.12 protocol and thin handlers for it.
//!
//! Who calls it: the node agent, the controller and `meshstor dev` serve CSI sockets with it; tests and the demo talk
//! to those sockets with [`client`]. From the wire inwards:
//!
//! ```text
//! socket -> server (unix socket, shutdown) -> calls (id, span, metrics, deadline) -> handler
//!           handler: request (protobuf -> typed, or a Refusal) -> inflight (one operation per key) -> the real work
//! ```
//!
//! What it never does: touch a kernel or the Kubernetes API, keep state that must survive a restart, or log a whole
//! request (a request may carry secrets).

pub mod calls;
pub mod client;
pub mod deadline;
pub mod identity;
pub mod inflight;
pub mod proto;
pub mod refusal;
pub mod request;
pub mod server;

pub use refusal::Refusal;

/// The name under which Kubernetes knows this driver (CSIDriver object, StorageClass `provisioner`, CSINode entry).
pub const DRIVER_NAME: &str = "io.meshstor.csi.mesh";
