//! `cargo xtask model`: the protocol itself, explored exhaustively, and each of its rules broken once.
//!
//! Called by people and by `cargo xtask test`. It builds the model and passes the arguments on.

use crate::build;
use anyhow::{Context, Result};
use std::process::{Command, ExitCode};

/// The protocol as an exhaustively explored model.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask model\n  cargo xtask model --small\n  cargo xtask model --variant no-merge"
)]
pub struct Arguments {
    /// Smaller bounds: some seconds instead of minutes
    #[arg(long)]
    small: bool,
    /// Break this rule and print the way to the broken promise
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Name the scopes and variants and do nothing
    #[arg(long)]
    list: bool,
}

/// Builds and runs the model; its last line is `model: N passed, N failed`.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut command = command(arguments.small)?;
    if let Some(name) = &arguments.variant {
        command.args(["--variant", name]);
    }
    if arguments.list {
        command.arg("--list");
    }
    let status = command.status().context("run meshstor-model")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The model over all scopes and variants.
pub fn command(small: bool) -> Result<Command> {
    let mut command = Command::new(build::binaries()?.join("meshstor-model"));
    if small {
        command.arg("--small");
    }
    Ok(command)
}
