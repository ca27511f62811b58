//! `cargo xtask demo`: the main job on real kernels, from a fresh machine.
//!
//! Called by people and by `cargo xtask test`. Builds the binary and the story's program, then lets the story run; all
//! installing is done by the lab and by [`crate::build`].

use crate::build;
use anyhow::{Context, Result};
use std::process::ExitCode;

/// The main job on real kernels, timed and verified.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask demo\n  cargo xtask demo --kernel 6.18\n  cargo xtask demo --keep")]
pub struct Arguments {
    /// Debian kernel series of the guests
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// Leave guests, control plane and processes running at the end
    #[arg(long)]
    keep: bool,
}

/// Builds and runs the story; its last line is `demo: passed in N s`.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let status = build::story("run", &arguments.kernel, arguments.keep)?.status().context("run meshstor-demo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
