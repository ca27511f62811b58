//! The faults: drawn by a seed, done, proven, undone.
//!
//! Used by `chaos`. Every fault proves that it happened before the round goes on: a fault that did not bite would make a
//! round pass for nothing.

use super::Load;
use crate::cluster::{Cluster, wait};
use crate::cuts::carrier;
use anyhow::{Context, Result, ensure};
use std::time::Duration;

/// One fault. Nodes and volumes by number, durations in seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Power cut of a node, longer than the stall time.
    PowerCut(usize),
    /// Storage cable.
    StorageCut(usize, u64),
    /// Cable to the API server.
    ApiCut(usize, u64),
    /// Both cables.
    BothCut(usize, u64),
    /// The machine hangs: shorter or longer than all timeouts.
    Freeze(usize, u64),
    /// The drive with all copies of a node is pulled, and put back.
    DrivePull(usize, u64),
    /// SIGKILL of the agent.
    AgentKill(usize, u64),
    /// SIGKILL of the controller.
    ControllerKill(u64),
    /// No API server.
    ApiStop(u64),
    /// Unpublished without unstage while it is written to; published elsewhere when the round settles.
    ForcedMove(usize),
}

/// The kinds, for the table.
pub const KINDS: [&str; 11] = [
    "power cut",
    "storage cut",
    "API cut",
    "both cut",
    "freeze",
    "long freeze",
    "drive pull",
    "agent kill",
    "controller kill",
    "API stop",
    "forced move",
];

impl Fault {
    /// Its row in the table.
    pub fn kind(&self) -> &'static str {
        let number = match self {
            Fault::PowerCut(_) => 0,
            Fault::StorageCut(..) => 1,
            Fault::ApiCut(..) => 2,
            Fault::BothCut(..) => 3,
            Fault::Freeze(_, seconds) if *seconds < 10 => 4,
            Fault::Freeze(..) => 5,
            Fault::DrivePull(..) => 6,
            Fault::AgentKill(..) => 7,
            Fault::ControllerKill(_) => 8,
            Fault::ApiStop(_) => 9,
            Fault::ForcedMove(_) => 10,
        };
        KINDS[number]
    }

    /// How long it lasts before it is undone.
    pub fn lasts(&self) -> Duration {
        Duration::from_secs(match self {
            Fault::PowerCut(_) => 12,
            Fault::ForcedMove(_) => 5,
            Fault::StorageCut(_, s) | Fault::ApiCut(_, s) | Fault::BothCut(_, s) | Fault::Freeze(_, s) => *s,
            Fault::DrivePull(_, s) | Fault::AgentKill(_, s) | Fault::ControllerKill(s) | Fault::ApiStop(s) => *s,
        })
    }

    /// The node whose machine it hits.
    pub fn node(&self) -> Option<usize> {
        match self {
            Fault::PowerCut(n) | Fault::StorageCut(n, _) | Fault::ApiCut(n, _) | Fault::BothCut(n, _) => Some(*n),
            Fault::Freeze(n, _) | Fault::DrivePull(n, _) | Fault::AgentKill(n, _) => Some(*n),
            Fault::ControllerKill(_) | Fault::ApiStop(_) | Fault::ForcedMove(_) => None,
        }
    }
}

/// One or two faults of a round. Two never hit the same machine, and a drive is pulled only while every other copy is
/// well: with none left its volume must fail, which says nothing of us.
pub fn draw(rng: &mut fastrand::Rng, nodes: usize, volumes: usize) -> Vec<Fault> {
    let count = rng.usize(1..=2);
    let mut faults: Vec<Fault> = Vec::new();
    while faults.len() < count {
        let fault = one(rng, nodes, volumes);
        let same =
            |other: &Fault| other.kind() == fault.kind() || (other.node().is_some() && other.node() == fault.node());
        let pulls = |f: &Fault| matches!(f, Fault::DrivePull(..));
        let harms = |f: &Fault| f.node().is_some() && !matches!(f, Fault::AgentKill(..) | Fault::ApiCut(..));
        let twice = |other: &Fault| (pulls(other) && harms(&fault)) || (pulls(&fault) && harms(other));
        if !faults.iter().any(|other| same(other) || twice(other)) {
            faults.push(fault);
        }
    }
    // What needs the API server comes before what takes it away.
    faults.sort_by_key(|fault| !matches!(fault, Fault::ForcedMove(_)));
    faults
}

fn one(rng: &mut fastrand::Rng, nodes: usize, volumes: usize) -> Fault {
    let (node, seconds) = (rng.usize(..nodes), rng.u64(2..25));
    match rng.u8(..11) {
        0 => Fault::PowerCut(node),
        1 => Fault::StorageCut(node, seconds),
        2 => Fault::ApiCut(node, seconds),
        3 => Fault::BothCut(node, seconds),
        4 => Fault::Freeze(node, 3),
        // The kernel's command timeout is 30 s, ours are shorter.
        5 => Fault::Freeze(node, 45),
        6 => Fault::DrivePull(node, seconds),
        7 => Fault::AgentKill(node, seconds),
        8 => Fault::ControllerKill(seconds),
        9 => Fault::ApiStop(seconds),
        _ => Fault::ForcedMove(rng.usize(..volumes)),
    }
}

/// Does the fault and proves it.
pub fn strike(cluster: &mut Cluster, loads: &mut [Load], fault: &Fault) -> Result<()> {
    let guest = cluster.lab.guests().get(fault.node().unwrap_or(0)).cloned().context("a guest")?;
    match fault {
        Fault::PowerCut(_) => {
            guest.power_cut()?;
            ensure!(!guest.is_on()?, "{} is on after a power cut", guest.name());
        }
        Fault::StorageCut(..) | Fault::ApiCut(..) | Fault::BothCut(..) => {
            if !matches!(fault, Fault::ApiCut(..)) {
                guest.cable(false)?;
                ensure!(!carrier(&guest, "stor0")?, "the storage cable of {} carries", guest.name());
            }
            if !matches!(fault, Fault::StorageCut(..)) {
                guest.api_cable(false)?;
                ensure!(!carrier(&guest, "api0")?, "the API cable of {} carries", guest.name());
            }
        }
        Fault::Freeze(..) => {
            guest.freeze()?;
            ensure!(guest.ssh_within("true", Duration::from_secs(2)).is_err(), "{} is not frozen", guest.name());
        }
        Fault::DrivePull(..) => {
            guest.drive_pull(0)?;
            let gone = || Ok(!guest.ssh(&format!("[ -b {} ]", guest.drive_path(0)))?.ok());
            wait("the drive is gone", Duration::from_secs(20), gone)?;
        }
        Fault::AgentKill(..) => {
            let line = "p=$(cat /run/meshstor/agent.pid); kill -9 $p; sleep 0.2; ! kill -0 $p 2>/dev/null";
            guest.ssh_checked(line).context("the agent lives on")?;
        }
        Fault::ControllerKill(_) => cluster.kill_controller()?,
        Fault::ApiStop(_) => {
            cluster.control.stop_api()?;
            let answer = cluster.control.kubectl(&["--request-timeout=2s", "get", "msvol"]);
            ensure!(answer.is_err(), "a stopped API server answers");
        }
        Fault::ForcedMove(number) => {
            let load = &mut loads[*number];
            let before = cluster.epoch(&load.volume.id)?;
            cluster.csi.unpublish(&load.volume.id, &load.volume.at).0.context("ControllerUnpublishVolume")?;
            ensure!(cluster.epoch(&load.volume.id)? > before, "the epoch did not rise");
            load.forced = true;
        }
    }
    Ok(())
}

/// Undoes the fault. Machines that were off are booted when the round settles.
pub fn heal(cluster: &mut Cluster, fault: &Fault) -> Result<()> {
    let guest = cluster.lab.guests().get(fault.node().unwrap_or(0)).cloned().context("a guest")?;
    match fault {
        Fault::PowerCut(_) => guest.power_on()?,
        Fault::StorageCut(..) => guest.cable(true)?,
        Fault::ApiCut(..) => guest.api_cable(true)?,
        Fault::BothCut(..) => {
            guest.cable(true)?;
            guest.api_cable(true)?;
        }
        Fault::Freeze(..) => {
            guest.thaw()?;
            guest.set_clock()?;
        }
        Fault::DrivePull(..) => guest.drive_insert(0)?,
        Fault::AgentKill(..) | Fault::ForcedMove(_) => {}
        Fault::ControllerKill(_) => cluster.restart_controller()?,
        Fault::ApiStop(_) => cluster.control.start_api()?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_faults_and_all_kinds_come_up() {
        let faults = |seed| draw(&mut fastrand::Rng::with_seed(seed), 3, 4);
        assert_eq!(faults(5), faults(5));
        let kinds: std::collections::BTreeSet<_> = (0..300).flat_map(faults).map(|f| f.kind()).collect();
        assert_eq!(kinds.len(), KINDS.len(), "{kinds:?}");
    }

    #[test]
    fn no_machine_is_hit_twice_and_no_pulled_drive_is_the_last_copy() {
        for seed in 0..500 {
            let faults = draw(&mut fastrand::Rng::with_seed(seed), 3, 4);
            if let [first, second] = &faults[..] {
                assert!(first.node().is_none() || first.node() != second.node(), "{faults:?}");
                let cut = |f: &Fault| matches!(f, Fault::PowerCut(_) | Fault::StorageCut(..) | Fault::Freeze(..));
                let pull = |f: &Fault| matches!(f, Fault::DrivePull(..));
                assert!(!(pull(first) && cut(second) || pull(second) && cut(first)), "{faults:?}");
            }
        }
    }
}
