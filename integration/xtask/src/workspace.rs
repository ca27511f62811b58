//! Where the workspace lies and which cargo builds it.
//!
//! Used by every subcommand that reads the tree or calls cargo.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace's directory.
pub fn root() -> Result<PathBuf> {
    // Set at run time by `cargo run`; the compiled-in value serves a copied binary as long as the tree stays in place.
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&manifest).ancestors().nth(2).map(Path::to_path_buf).context("the workspace is two directories up")
}

/// Where cargo puts what it builds.
pub fn target() -> Result<PathBuf> {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => std::path::absolute(PathBuf::from(dir)).context("make CARGO_TARGET_DIR absolute"),
        None => Ok(root()?.join("target")),
    }
}

/// A command of the cargo that started us, or the one in `PATH`. Without what `cargo run` says of this package: build
/// scripts that look at it (ring's) would run again whenever cargo is called by hand, and all that depends on them.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    for name in names.filter(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
        command.env_remove(name);
    }
    command
}
