//! etcd taken back in time: what an operator does who restores yesterday's snapshot.
//!
//! Used by scenarios. Both servers are ended for it and started again, as in a real restore; clients see an outage.

use super::ControlPlane;
use crate::exec::run;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Command;

impl ControlPlane {
    /// Keeps everything that etcd holds now, in place of what was kept before.
    pub fn keep(&self) -> Result<()> {
        self.ended(|plane| {
            let kept = plane.kept();
            match std::fs::remove_dir_all(&kept) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(error).context("forget what was kept")
                }
                _ => Ok(()),
            }?;
            run(Command::new("cp").arg("-a").arg(plane.dir.join("etcd")).arg(&kept)).map(drop)
        })
    }

    /// Makes etcd hold again what was kept, revisions included.
    pub fn rewind(&self) -> Result<()> {
        let kept = self.kept();
        if !kept.exists() {
            bail!("nothing was kept: {} does not exist", kept.display());
        }
        self.ended(|plane| {
            let now = plane.dir.join("etcd");
            std::fs::remove_dir_all(&now).with_context(|| format!("remove {}", now.display()))?;
            run(Command::new("cp").arg("-a").arg(&kept).arg(&now)).map(drop)
        })
    }

    fn kept(&self) -> PathBuf {
        self.dir.join("etcd.kept")
    }

    /// Does something to etcd's files while nobody has them open.
    fn ended(&self, work: impl FnOnce(&ControlPlane) -> Result<()>) -> Result<()> {
        self.locked(|state| {
            if let Some(api) = state.api.take() {
                api.kill()?;
            }
            if let Some(etcd) = state.etcd.take() {
                etcd.terminate()?;
            }
            work(self)?;
            self.start_etcd(state)?;
            self.start_server(state)
        })
    }
}
