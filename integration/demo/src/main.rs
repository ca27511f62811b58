//! The main job on real kernels, step by step, timed and verified: `cargo xtask demo` runs `meshstor-demo run`.
//!
//! The same program is the writer and the reader inside the guests (`write`, `read`). Nothing here is part of the
//! product; it talks to the product only through CSI sockets, custom resources and kernels.

mod chaos;
mod chart;
mod checks;
mod cluster;
mod copies;
mod csi;
mod cuts;
mod dev;
mod drives;
mod follows;
mod hand;
mod held;
mod history;
mod inputs;
mod kinds;
mod kube;
mod larger;
mod rdma;
mod regressions;
mod rewind;
mod sanity;
mod scenarios;
mod script;
mod story;
mod throttled;
mod writer;

use anyhow::Result;
use clap::{Parser, Subcommand};
use meshstor_lab::{Paths, Turn};
use std::path::PathBuf;

#[derive(Parser)]
#[command(name = "meshstor-demo")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the whole story in the lab
    Run {
        /// The directory that holds the freshly built `meshstor` and this program
        #[arg(long)]
        binaries: PathBuf,
        /// Debian kernel series of the guests
        #[arg(long, default_value = "6.12")]
        kernel: String,
        /// Leave guests, control plane and processes running at the end
        #[arg(long)]
        keep: bool,
    },
    /// Run the scenarios that the story has no room for
    Scenarios {
        /// The directory that holds the freshly built `meshstor` and this program
        #[arg(long)]
        binaries: PathBuf,
        /// Debian kernel series of the guests
        #[arg(long, default_value = "6.12")]
        kernel: String,
        /// Only scenarios whose name contains this (or one of these, with commas)
        #[arg(long, default_value = "")]
        only: String,
        /// Leave guests, control plane and processes running at the end
        #[arg(long)]
        keep: bool,
    },
    /// Rounds of drawn faults under load; nothing promised may be broken
    Chaos {
        /// The directory that holds the freshly built `meshstor` and this program
        #[arg(long)]
        binaries: PathBuf,
        /// Debian kernel series of the guests
        #[arg(long, default_value = "6.12")]
        kernel: String,
        #[command(flatten)]
        draw: chaos::Draw,
        /// Leave guests, control plane and processes running at the end
        #[arg(long)]
        keep: bool,
    },
    /// Run the kernel regressions: the plain way must do harm, ours must not
    Regressions {
        /// The directory that holds this program and `examples/kernel-suite`
        #[arg(long)]
        binaries: PathBuf,
        /// Debian kernel series of the guests
        #[arg(long, default_value = "6.12")]
        kernel: String,
        /// Only the one with this number, such as F1
        #[arg(long, default_value = "")]
        only: String,
        /// Leave guests running at the end
        #[arg(long)]
        keep: bool,
    },
    /// Start `meshstor dev` without root and lead a volume through its life by CSI calls
    Dev {
        /// The `meshstor` binary
        #[arg(long)]
        binary: PathBuf,
        /// Where to put the metrics page
        #[arg(long)]
        page: Option<PathBuf>,
    },
    /// Run csi-sanity against `meshstor dev`
    Sanity {
        /// The `meshstor` binary
        #[arg(long)]
        binary: PathBuf,
        /// The `csi-sanity` binary
        #[arg(long)]
        suite: PathBuf,
    },
    /// Check the Helm chart on a real API server, and what a node's account may do there
    Chart {
        /// The chart's directory
        #[arg(long)]
        chart: PathBuf,
        /// The `helm` binary
        #[arg(long)]
        helm: PathBuf,
        /// The `meshstor` binary
        #[arg(long)]
        binary: PathBuf,
    },
    /// Real Kubernetes on real kernels, the product installed by Helm
    Kube {
        #[command(flatten)]
        options: kube::Options,
        /// Only scenarios whose name contains this (or one of these, with commas)
        #[arg(long, default_value = "")]
        only: String,
        /// Leave everything running at the end
        #[arg(long)]
        keep: bool,
    },
    /// In a guest: write blocks that carry their identity, each synchronously, and print each acknowledgement
    Write(writer::Write),
    /// In a guest: read the blocks back and print what they carry
    Read(writer::Read),
}

/// Runs a command that starts guests or the control plane, unless another program has them.
fn alone(run: impl FnOnce() -> Result<()>) -> Result<()> {
    let _turn = Turn::take(&Paths::from_env()?)?;
    run()
}

fn main() -> std::process::ExitCode {
    let result = match Arguments::parse().command {
        Command::Run { binaries, kernel, keep } => alone(|| script::run(&binaries, &kernel, keep)),
        Command::Scenarios { binaries, kernel, only, keep } => {
            alone(|| scenarios::run(&binaries, &kernel, &only, keep))
        }
        Command::Chaos { binaries, kernel, draw, keep } => alone(|| chaos::run(&binaries, &kernel, &draw, keep)),
        Command::Regressions { binaries, kernel, only, keep } => {
            alone(|| regressions::run(&binaries, &kernel, &only, keep))
        }
        Command::Dev { binary, page } => dev::run(&binary, page.as_deref()),
        Command::Sanity { binary, suite } => sanity::run(&binary, &suite),
        Command::Chart { chart, helm, binary } => alone(|| chart::run(&chart, &helm, &binary)),
        Command::Kube { options, only, keep } => alone(|| kube::run(&options, &only, keep)),
        Command::Write(arguments) => writer::write(&arguments),
        Command::Read(arguments) => writer::read(&arguments),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
