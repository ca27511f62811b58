//! `meshstor doctor`: what this node can do, check by check.

use anyhow::Result;
use std::process::ExitCode;

/// Check this node.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  meshstor doctor")]
pub struct Arguments {
    /// Name of the node, as Kubernetes knows it
    #[arg(long, env = "NODE_NAME", default_value = "this-node")]
    node_name: String,
}

/// Prints one line for each check; fails when a required one fails.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let facts = crate::node::look_once(&arguments.node_name)?;
    println!("kernel {}, boot {}", facts.kernel, facts.boot);
    for (transport, address, device) in &facts.addresses {
        println!("address {address} on {device} ({})", transport.as_str());
    }
    for (name, check) in &facts.checks {
        let word = match (check.ok, check.required) {
            (true, _) => "ok      ",
            (false, true) => "MISSING ",
            (false, false) => "optional",
        };
        println!("{word} {name}: {}", check.message);
    }
    let failed = facts.checks.values().filter(|c| c.required && !c.ok).count();
    println!("{}", if failed == 0 { "this node is ready".into() } else { format!("{failed} required checks failed") });
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
