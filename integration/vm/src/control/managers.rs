//! The rest of a control plane: controller manager and scheduler, so that pods run; and what the API server has to be told
//! for it.
//!
//! Used by `control` for whole clusters. Both talk to the API server as the identities that Kubernetes' own rules know.

use super::{Client, ControlPlane, ControlState, Reach};
use crate::paths::Paths;
use crate::process::Recorded;
use crate::tools::{self, KUBE_VERSION, KubeTool};
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::process::Command;

/// The oldest that programs of this version emulate, as a minor number: three below their own.
const EMULATED: std::ops::RangeInclusive<u32> = 33..=36;

/// What a whole cluster has besides etcd and an API server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cluster {
    /// The minor version that the programs behave like; none for their own.
    emulated: Option<u32>,
    manager: Option<Recorded>,
    scheduler: Option<Recorded>,
}

impl Cluster {
    /// Accepts `1.36` and the older ones that can be emulated.
    fn parse(kubernetes: &str) -> Result<Cluster> {
        let minor = kubernetes.strip_prefix("1.").and_then(|minor| minor.parse::<u32>().ok());
        let Some(minor) = minor.filter(|minor| EMULATED.contains(minor)) else {
            bail!("Kubernetes {kubernetes:?}: allowed are 1.{} to 1.{}", EMULATED.start(), EMULATED.end());
        };
        Ok(Cluster { emulated: (minor != *EMULATED.end()).then_some(minor), ..Cluster::default() })
    }

    fn emulation(&self) -> Option<String> {
        self.emulated.map(|minor| format!("--emulated-version=kube=1.{minor}"))
    }

    /// What the API server is told.
    pub(super) fn api_arguments(&self) -> Vec<String> {
        let mut arguments =
            vec!["--authorization-mode=Node,RBAC".into(), "--enable-admission-plugins=NodeRestriction".into()];
        arguments.extend(self.emulation());
        arguments
    }

    pub(super) fn end(&mut self) -> Result<()> {
        [self.manager.take(), self.scheduler.take()].into_iter().flatten().try_for_each(|process| process.kill())
    }
}

impl ControlPlane {
    /// A whole cluster's control plane, fresh: controller manager and scheduler as well. `kubernetes` is a minor version
    /// such as `1.36`; an older one is emulated by the same programs.
    pub fn up_cluster(paths: &Paths, kubernetes: &str) -> Result<ControlPlane> {
        let cluster = Cluster::parse(kubernetes)?;
        tools::ensure_cluster(paths)?;
        let plane = ControlPlane::started(paths, true, Some(cluster))?;
        plane.start_managers()?;
        Ok(plane)
    }

    /// Starts controller manager and scheduler where they do not run.
    pub fn start_managers(&self) -> Result<()> {
        let kubeconfig = |name: &str| {
            let client = Client { user: format!("system:{name}"), groups: Vec::new() };
            self.kubeconfig(&client, Reach::Host)
        };
        let (manager, scheduler) = (kubeconfig("kube-controller-manager")?, kubeconfig("kube-scheduler")?);
        self.locked(|state| {
            let pki = self.dir.join("pki");
            let ControlState { cluster: Some(cluster), .. } = state else {
                bail!("this control plane has no managers")
            };
            let emulation = cluster.emulation();
            let start = |tool: KubeTool, config: &Path, more: &[String]| -> Result<Recorded> {
                let mut command = Command::new(tools::kube_tool(&self.paths, tool)?);
                command.arg(format!("--kubeconfig={}", config.display())).args(["--secure-port=0"]);
                command.args(["--leader-elect=false"]).args(&emulation).args(more);
                Recorded::spawn(&mut command, &self.dir.join(format!("{}.log", tool.name())))
            };
            let alive = |process: &Option<Recorded>| process.is_some_and(|process| process.alive());
            if !alive(&cluster.manager) {
                let more = [
                    "--use-service-account-credentials=true".to_string(),
                    format!("--service-account-private-key-file={}", pki.join("accounts.key").display()),
                    format!("--root-ca-file={}", pki.join("ca.crt").display()),
                ];
                cluster.manager = Some(start(KubeTool::ControllerManager, &manager, &more)?);
            }
            if !alive(&cluster.scheduler) {
                cluster.scheduler = Some(start(KubeTool::Scheduler, &scheduler, &[])?);
            }
            Ok(())
        })
    }
}

/// The version that is built, as `1.36`: the default.
pub fn kubernetes() -> String {
    KUBE_VERSION.trim_start_matches('v').rsplit_once('.').map_or_else(String::new, |(minor, _)| minor.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_minors_are_emulated_and_others_refused() {
        assert_eq!(Cluster::parse("1.36").unwrap().emulation(), None);
        assert_eq!(Cluster::parse("1.34").unwrap().emulation().as_deref(), Some("--emulated-version=kube=1.34"));
        for wrong in ["1.32", "1.37", "2.0", "1.36.3", "", "1."] {
            let error = Cluster::parse(wrong).unwrap_err().to_string();
            assert!(error.contains("1.33 to 1.36"), "{wrong}: {error}");
        }
    }

    #[test]
    fn the_newest_is_the_one_that_is_built() {
        assert_eq!(kubernetes(), format!("1.{}", EMULATED.end()));
    }

    #[test]
    fn service_accounts_are_admitted_only_where_somebody_makes_them() {
        let mut state = ControlState::default();
        let has = |state: &ControlState, word: &str| {
            super::super::api_arguments(Path::new("/d"), state).iter().any(|a| a.contains(word))
        };
        assert!(has(&state, "disable-admission-plugins=ServiceAccount"));
        state.cluster = Some(Cluster::default());
        assert!(!has(&state, "ServiceAccount,") && !has(&state, "disable-admission-plugins"));
        assert!(has(&state, "Node,RBAC"));
    }
}
