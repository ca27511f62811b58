//! `cargo xtask tools`: have the lab's programs before they are needed.
//!
//! Called by people and CI jobs that want the slow parts done and cached ahead. Starts no guest and no server.

use anyhow::Result;
use meshstor_lab::{Paths, image, tools};
use std::process::ExitCode;

/// Installs Debian packages and QEMU, builds Kubernetes programs, makes the guests' root disk.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask tools\n  cargo xtask tools --kernel 6.12 --kernel 6.18")]
pub struct Arguments {
    /// Make the root disk for this kernel series (may be given several times)
    #[arg(long, value_name = "SERIES", default_value = "6.12")]
    kernel: Vec<String>,
}

/// Does what the arguments say.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let paths = Paths::from_env()?;
    tools::ensure_control_plane(&paths)?;
    for kernel in &arguments.kernel {
        let image = image::ensure(&paths, kernel)?;
        println!("Linux {}: {}", image.release()?, image.disk().display());
    }
    println!("tools: all present, cached in {}", paths.root().display());
    Ok(ExitCode::SUCCESS)
}
