//! Turns `proto/csi.proto` into Rust without protoc: protox parses it, tonic-prost-build writes the code.
//!
//! Called by cargo only. It also writes the list of all gRPC methods, so that metric labels stay bounded without a list
//! kept by hand. It never reads anything outside this crate.

use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/csi.proto");
    let descriptors = protox::compile(["proto/csi.proto"], ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("methods.rs"), methods(&descriptors)?)?;
    tonic_prost_build::configure().build_server(true).build_client(true).compile_fds(descriptors)?;
    Ok(())
}

/// Rust text of a slice with every method as the path it has on the wire, `/package.Service/Method`.
fn methods(descriptors: &prost_types::FileDescriptorSet) -> Result<String, std::fmt::Error> {
    let mut text = String::from("&[\n");
    for file in &descriptors.file {
        for service in &file.service {
            for method in &service.method {
                writeln!(text, "    \"/{}.{}/{}\",", file.package(), service.name(), method.name())?;
            }
        }
    }
    text.push(']');
    Ok(text)
}
