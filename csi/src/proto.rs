//! The generated half of the protocol: messages, servers and clients of package `csi.v1`, and the list of its methods.
//!
//! Called by everything in this crate and by the handlers on top of it. Nothing here is written by hand; the source is
//! `proto/csi.proto`, and `tests/descriptor.rs` proves that it says what the official file says.

pub use v1::*;

#[allow(missing_docs, reason = "generated: the CSI specification documents these items")]
#[allow(clippy::all, reason = "generated")]
mod v1 {
    tonic::include_proto!("csi.v1");
}

/// Every gRPC method of CSI as it stands on the wire, for instance `/csi.v1.Identity/Probe`.
pub const METHODS: &[&str] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));
