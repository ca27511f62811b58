//! `meshstor guard`: does nothing until it is told to stop. The controller puts one on every storage node, and a disruption
//! budget decides when a drain may evict it; see `meshstor_controller`'s guards.

use crate::options;
use anyhow::Result;
use std::process::ExitCode;

/// Runs until asked to stop.
pub fn run() -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(options::stop_requested());
    Ok(ExitCode::SUCCESS)
}
