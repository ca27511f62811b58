//! `meshstor recover`: writes the record of volumes anew from what their drives say. The decision and the writing are the
//! controller crate's; this reads arguments and prints.

mod table;

use crate::options;
use anyhow::{Result, bail, ensure};
use meshstor_controller::recover::{Picture, Recovery, VolumePicture, Written};
use meshstor_controller::{Controller, ControllerConfig};
use meshstor_kernel::id::ReplicaId;
use meshstor_plan::recover::{Accepted, Outcome};
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  meshstor recover --dry-run                 what every volume's drives say, and what would be written; changes nothing
  meshstor recover pvc-1 pvc-2               write the records of these two
  meshstor recover --all                     write every record that its drives contradict or that is lost
  meshstor recover --accept-data-loss pvc-1  a copy of pvc-1 that may be newer is gone for good: take the newest that answers
  meshstor recover --accept-data-loss pvc-1=r2
                                             the copies of pvc-1 went apart, or r2 is known to be the one: take r2

A written volume has a new epoch: it is fenced everywhere, a pod that still runs on it is stopped, and it is attached
anew. docs/operations/recover.md leads through it step by step.";

/// Rebuild the record of volumes from their drives
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Volumes to write, by the name of their object
    #[arg(value_name = "VOLUME")]
    volumes: Vec<String>,
    /// Every volume whose record is older than its drives, lost or absent
    #[arg(long, conflicts_with = "volumes")]
    all: bool,
    /// Only show what would be written
    #[arg(long)]
    dry_run: bool,
    /// Give up, for this volume, what only copies have that do not answer; with =COPY, what this copy does not have
    #[arg(long, value_name = "VOLUME[=COPY]", value_parser = accepted)]
    accept_data_loss: Vec<(String, Accepted)>,
    /// Seconds to wait for the answers of drives, and again for fences; after a restore of etcd an agent may hear the
    /// question only when it lists its drives again, once a minute
    #[arg(long, default_value_t = 75, value_parser = clap::value_parser!(u64).range(1..=3600))]
    patience: u64,
}

fn accepted(text: &str) -> Result<(String, Accepted), String> {
    let (volume, copy) = text.split_once('=').map_or((text, None), |(volume, copy)| (volume, Some(copy)));
    if volume.is_empty() {
        return Err(format!("{text:?} names no volume: allowed is VOLUME or VOLUME=COPY, as in pvc-1=r2"));
    }
    let accepted = match copy {
        None => Accepted::Newest,
        Some(copy) => {
            let copy: ReplicaId =
                copy.parse().map_err(|_| format!("copy {copy:?}: allowed is r and a number, as in r2"))?;
            Accepted::Copy(copy)
        }
    };
    Ok((volume.to_string(), accepted))
}

/// Looks, prints, and writes what it was told to.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    options::start_logging(false);
    let named: BTreeSet<&String> =
        arguments.volumes.iter().chain(arguments.accept_data_loss.iter().map(|(volume, _)| volume)).collect();
    if named.is_empty() && !arguments.all && !arguments.dry_run {
        bail!("nothing was named: look with --dry-run, then name volumes, or say --all");
    }
    let accepted: BTreeMap<String, Accepted> = arguments.accept_data_loss.iter().cloned().collect();
    ensure!(accepted.len() == arguments.accept_data_loss.len(), "--accept-data-loss names a volume twice");
    let patience = Duration::from_secs(arguments.patience);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let client = options::kube_client().await?;
        let recovery = Controller::new(client, ControllerConfig::default()).recovery();
        let picture = recovery.look(&accepted, patience).await?;
        let mut unknown = named.iter().filter(|name| !picture.volumes.iter().any(|volume| volume.name == ***name));
        if let Some(name) = unknown.next() {
            bail!("{name:?} is no volume: neither an object nor a drive that answers has that name");
        }
        let everything = arguments.all || named.is_empty();
        let chosen: Vec<&VolumePicture> =
            picture.volumes.iter().filter(|volume| everything || named.contains(&volume.name)).collect();
        print!("{}", table::render(&picture, &chosen));
        match arguments.dry_run {
            true => {
                println!("dry run: nothing was changed");
                Ok(ExitCode::SUCCESS)
            }
            false => write(&recovery, &picture, &chosen, patience).await,
        }
    })
}

async fn write(
    recovery: &Recovery,
    picture: &Picture,
    chosen: &[&VolumePicture],
    patience: Duration,
) -> Result<ExitCode> {
    let (mut written, mut failed) = (Vec::new(), 0);
    for volume in chosen {
        let name = &volume.name;
        match (&volume.finding.outcome, volume.proposal()) {
            (Outcome::Sound, _) => {}
            (_, None) => failed += 1,
            (_, Some(proposal)) => match recovery.write(volume).await {
                Ok(Written::Done) => {
                    println!("{name}: written, epoch {}", proposal.epoch);
                    written.push(*volume);
                }
                Ok(Written::Changed) => {
                    println!("{name}: it has changed since it was looked at; run the command again");
                    failed += 1;
                }
                Err(error) => {
                    println!("{name}: {error}");
                    failed += 1;
                }
            },
        }
    }
    for volume in &written {
        let open = recovery.fenced(volume, patience).await?;
        let open: Vec<String> = open.iter().map(ToString::to_string).collect();
        if !open.is_empty() {
            println!("{}: not fenced yet: {} (it is attached as soon as one copy is)", volume.name, open.join(", "));
        }
    }
    for (name, copies) in recovery.confirm(&written, patience).await? {
        let copies: Vec<String> = copies.iter().map(ToString::to_string).collect();
        println!(
            "{name}: {} fell behind before the fence and left the set; copied anew when attached",
            copies.join(", ")
        );
    }
    let sound = chosen.iter().filter(|volume| volume.finding.outcome == Outcome::Sound).count();
    println!("recover: {} written, {sound} sound, {failed} not written", written.len());
    if !picture.silent.is_empty() {
        println!("drives that did not answer: run the command again when they are back");
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_accepted_for_one_volume_by_name() {
        assert_eq!(accepted("pvc-1"), Ok(("pvc-1".into(), Accepted::Newest)));
        assert_eq!(accepted("pvc-1=r2"), Ok(("pvc-1".into(), Accepted::Copy(ReplicaId(2)))));
        for bad in ["", "=r1", "pvc-1=", "pvc-1=2", "pvc-1=node-a"] {
            let refused = accepted(bad).unwrap_err();
            assert!(refused.contains("allowed is"), "{bad}: {refused}");
        }
    }
}
