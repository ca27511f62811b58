//! `cargo xtask vm`: guests with real kernels, and the control plane they talk to.
//!
//! Called by people; tests call the `meshstor_lab` library themselves. Touches only processes that the lab recorded.

use crate::{build, vm_check, workspace};
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use meshstor_lab::{Config, ControlPlane, Guest, Lab};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Real kernels in QEMU and a real control plane.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start guests (or leave them alone when they run already)
    #[command(after_help = "Examples:\n  cargo xtask vm up\n  cargo xtask vm up --nodes 2 --fresh\n  \
                            cargo xtask vm up --kernel 6.18 --fresh\n\nThe first run on a machine installs packages and \
                            builds the root disk: minutes. Later runs take seconds.")]
    Up(Up),
    /// End all guests; drives keep their data
    Down,
    /// Run a command in one guest, or get a shell there
    #[command(after_help = "Examples:\n  cargo xtask vm ssh node-a\n  cargo xtask vm ssh node-a nvme list\n  \
                            cargo xtask vm ssh node-b 'cat /proc/mdstat; dmesg | tail'")]
    Ssh {
        /// Which guest
        node: String,
        /// The command, passed to the guest's shell; its exit status becomes ours
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Run a command in all guests at once
    #[command(after_help = "Examples:\n  cargo xtask vm run uname -r\n  cargo xtask vm run 'nvme list; lsblk'")]
    Run {
        /// The command, passed to each guest's shell
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Say what is up
    Status,
    /// Cut a guest's power, or turn it on again
    #[command(after_help = "Examples:\n  cargo xtask vm power node-b off\n  cargo xtask vm power node-b on")]
    Power {
        /// Which guest
        node: String,
        /// `off` is a power cut, `on` a real boot
        state: Switch,
    },
    /// Check that the lab itself works: a fresh lab, every function of it once (overwrites the drives)
    #[command(after_help = "Examples:\n  cargo xtask vm check\n  cargo xtask vm check --kernel 6.18")]
    Check(Up),
    /// Harm done to a whole cluster of ours on a fresh lab: agents killed, objects deleted, foreign drives, bad input
    #[command(
        after_help = "Examples:\n  cargo xtask vm scenarios\n  cargo xtask vm scenarios --only agent-killed --keep"
    )]
    Scenarios {
        /// Debian kernel series
        #[arg(long, default_value = "6.12")]
        kernel: String,
        /// Only scenarios whose name contains this (or one of these, with commas)
        #[arg(long, default_value = "")]
        only: String,
        /// Leave guests, control plane and processes running at the end
        #[arg(long)]
        keep: bool,
    },
    /// What stock kernels do wrong with the plain commands, and right with ours (two fresh guests for each way)
    #[command(
        after_help = "Examples:\n  cargo xtask vm regressions\n  cargo xtask vm regressions --kernel 6.18 --only F1"
    )]
    Regressions {
        /// Debian kernel series
        #[arg(long, default_value = "6.12")]
        kernel: String,
        /// Only the one with this number, such as F1
        #[arg(long, default_value = "")]
        only: String,
        /// Leave guests running at the end
        #[arg(long)]
        keep: bool,
    },
    /// Rounds of faults drawn by a seed under load, on a whole cluster of ours: no promise may be broken
    #[command(after_help = "Examples:\n  cargo xtask vm chaos\n  cargo xtask vm chaos --rounds 20 --seed 7\n  \
                            cargo xtask vm chaos --rounds 10 --first 11 --seed 7\n\nA round takes \
                            two to five minutes. The same seed draws the same faults; what they meet differs.")]
    Chaos {
        /// Debian kernel series
        #[arg(long, default_value = "6.12")]
        kernel: String,
        /// How many rounds
        #[arg(long, default_value_t = 5)]
        rounds: u64,
        /// The first of them: many rounds of one seed can be run in pieces
        #[arg(long, default_value_t = 1)]
        first: u64,
        /// What the faults are drawn from
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Leave guests, control plane and processes running at the end
        #[arg(long)]
        keep: bool,
    },
    /// etcd and kube-apiserver on this machine's loopback
    #[command(subcommand)]
    ControlPlane(ControlPlaneCommand),
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(clap::Args)]
struct Up {
    /// How many guests: node-a, node-b, …
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Debian kernel series
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// Blank drives and a new start, whatever runs now
    #[arg(long)]
    fresh: bool,
    /// Size of each drive in GiB (sparse files)
    #[arg(long, default_value_t = 8)]
    drive_gib: u64,
    /// Memory of each guest in MiB
    #[arg(long, default_value_t = 1536)]
    memory_mib: u32,
    /// Directory that guests see read-only at /host [default: the workspace's target directory]
    #[arg(long)]
    share: Option<PathBuf>,
}

#[derive(Subcommand)]
enum ControlPlaneCommand {
    /// Start both servers and wait until they are ready
    #[command(
        after_help = "Examples:\n  cargo xtask vm control-plane up\n  cargo xtask vm control-plane up --fresh\n\n\
                            Then: kubectl --kubeconfig ~/.cache/meshstor/run/control/lab-admin.host.kubeconfig get ns"
    )]
    Up {
        /// Forget all objects first
        #[arg(long)]
        fresh: bool,
    },
    /// End both servers; objects are kept
    Down,
    /// End the API server only: an outage
    StopApi,
    /// End the outage
    StartApi,
    /// Keep a copy of everything that etcd holds (both servers are started anew)
    Keep,
    /// Make etcd hold again what was kept: a restore from an old snapshot
    Rewind,
}

/// Does what the arguments say.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.command {
        Command::Up(options) => up(options),
        Command::Down => down(),
        Command::Ssh { node, command } => ssh(&node, &command),
        Command::Run { command } => run_everywhere(&command.join(" ")),
        Command::Status => status(),
        Command::Power { node, state } => power(&node, state),
        Command::Check(options) => check(options),
        Command::Scenarios { kernel, only, keep } => story("scenarios", &kernel, &["--only", &only], keep),
        Command::Regressions { kernel, only, keep } => story("regressions", &kernel, &["--only", &only], keep),
        Command::Chaos { kernel, rounds, first, seed, keep } => {
            let numbers = [rounds, first, seed].map(|number| number.to_string());
            let words = ["--rounds", &numbers[0], "--first", &numbers[1], "--seed", &numbers[2]];
            story("chaos", &kernel, &words, keep)
        }
        Command::ControlPlane(command) => control_plane(command),
    }
}

fn config(options: Up) -> Result<Config> {
    Ok(Config {
        nodes: options.nodes,
        kernel: options.kernel,
        drive_bytes: options.drive_gib << 30,
        memory_mib: options.memory_mib,
        fresh: options.fresh,
        share: Some(options.share.map_or_else(workspace::target, Ok)?),
        paths: None,
    })
}

fn check(options: Up) -> Result<ExitCode> {
    let begin = Instant::now();
    let lab = Lab::up(&Config { fresh: true, nodes: options.nodes.max(2), ..config(options)? })?;
    let passed = vm_check::run(&lab)?;
    println!("check: passed, {passed} checks on Linux {} in {:.0} s", lab.kernel(), begin.elapsed().as_secs_f32());
    Ok(ExitCode::SUCCESS)
}

fn up(options: Up) -> Result<ExitCode> {
    let begin = Instant::now();
    let lab = Lab::up(&config(options)?)?;
    let names: Vec<String> = lab.guests().iter().map(Guest::name).collect();
    println!("up: {} (Linux {}) in {:.1} s", names.join(", "), lab.kernel(), begin.elapsed().as_secs_f32());
    Ok(ExitCode::SUCCESS)
}

fn down() -> Result<ExitCode> {
    match Lab::attach() {
        Ok(lab) => {
            lab.down()?;
            println!("down: all guests ended, drives kept");
        }
        Err(_) => println!("down: nothing was up"),
    }
    Ok(ExitCode::SUCCESS)
}

fn ssh(node: &str, command: &[String]) -> Result<ExitCode> {
    let guest = Lab::attach()?.guest(node)?;
    let mut ssh = match command {
        [] => guest.ssh_interactive(None)?,
        words => guest.ssh_command(&words.join(" "))?,
    };
    let status = ssh.status().with_context(|| format!("run ssh to {node}"))?;
    Ok(exit_code(status.code()))
}

fn run_everywhere(command: &str) -> Result<ExitCode> {
    let guests = Lab::attach()?.guests();
    let outputs: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = guests.iter().map(|guest| scope.spawn(|| guest.ssh(command))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| bail!("a guest's thread panicked"))).collect()
    });
    let mut failed = Vec::new();
    for (guest, output) in guests.iter().zip(outputs) {
        let name = guest.name();
        match output {
            Ok(out) => {
                for line in out.stdout.lines().chain(out.stderr.lines()) {
                    println!("{name}: {line}");
                }
                if !out.ok() {
                    failed.push(format!("{name} ({})", out.status));
                }
            }
            Err(error) => {
                println!("{name}: {error:#}");
                failed.push(name);
            }
        }
    }
    if failed.is_empty() {
        println!("run: passed on all {} guests", guests.len());
        return Ok(ExitCode::SUCCESS);
    }
    println!("run: failed on {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn status() -> Result<ExitCode> {
    let control = match ControlPlane::attach() {
        Ok(plane) if plane.is_up()? => {
            println!("control plane: {}, kubeconfig {}", plane.url()?, plane.host_kubeconfig()?.display());
            "up"
        }
        _ => "down",
    };
    let lines = Lab::attach().and_then(|lab| lab.status()).unwrap_or_default();
    for line in &lines {
        let power = line.pid.map_or("off".to_string(), |pid| format!("on (pid {pid}, ssh port {})", line.ssh_port));
        let mut harm: Vec<String> = line.cut.iter().map(|network| format!("{network} cut")).collect();
        harm.extend(line.pulled.iter().map(|slot| format!("drive {slot} pulled")));
        println!("{} {}: {power} {}", line.name, line.address, harm.join(", "));
    }
    let on = lines.iter().filter(|line| line.pid.is_some()).count();
    println!("status: {on} of {} guests on, control plane {control}", lines.len());
    Ok(ExitCode::SUCCESS)
}

fn power(node: &str, state: Switch) -> Result<ExitCode> {
    let begin = Instant::now();
    let guest = Lab::attach()?.guest(node)?;
    let word = match state {
        Switch::Off => guest.power_cut().map(|()| "off")?,
        Switch::On => guest.power_on().map(|()| "on")?,
    };
    println!("power: {node} is {word} after {:.1} s", begin.elapsed().as_secs_f32());
    Ok(ExitCode::SUCCESS)
}

/// Runs a subcommand of `meshstor-demo` with freshly built binaries.
fn story(what: &str, kernel: &str, more: &[&str], keep: bool) -> Result<ExitCode> {
    let mut command = build::story(what, kernel, keep)?;
    let status = command.args(more).status().context("run meshstor-demo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn control_plane(command: ControlPlaneCommand) -> Result<ExitCode> {
    match command {
        ControlPlaneCommand::Up { fresh } => {
            let plane = ControlPlane::up(fresh)?;
            println!("control-plane: up at {}, kubeconfig {}", plane.url()?, plane.host_kubeconfig()?.display());
        }
        ControlPlaneCommand::Down => {
            if let Ok(plane) = ControlPlane::attach() {
                plane.down()?;
            }
            println!("control-plane: down, objects kept");
        }
        ControlPlaneCommand::StopApi => {
            ControlPlane::attach()?.stop_api()?;
            println!("control-plane: API server ended");
        }
        ControlPlaneCommand::Keep => {
            ControlPlane::attach()?.keep()?;
            println!("control-plane: kept");
        }
        ControlPlaneCommand::Rewind => {
            ControlPlane::attach()?.rewind()?;
            println!("control-plane: as it was when it was kept");
        }
        ControlPlaneCommand::StartApi => {
            let plane = ControlPlane::attach()?;
            plane.start_api()?;
            println!("control-plane: API server ready at {}", plane.url()?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn exit_code(code: Option<i32>) -> ExitCode {
    ExitCode::from(u8::try_from(code.unwrap_or(255)).unwrap_or(255))
}
