//! Programs built from source through the Go module proxy, pinned by a `go.mod` and a `go.sum` of ours.
//!
//! Called by the files of the programs. A finished file in the cache is never built again; another pin is another
//! directory. It installs no Go.

use crate::exec::{run_logged, step};
use crate::paths::{Paths, make_dir};
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::process::Command;

/// A set of programs that share their pins.
pub(super) struct Module {
    /// Its directory in the cache.
    pub name: &'static str,
    /// For people and for the cache.
    pub version: &'static str,
    pub go_mod: &'static str,
    pub go_sum: &'static str,
    /// Programs of our own: path in the module and text.
    pub sources: &'static [(&'static str, &'static str)],
    /// For the linker.
    pub link_flags: String,
}

impl Module {
    /// Where one of its programs lies once it is built.
    pub(super) fn program(&self, paths: &Paths, name: &str) -> PathBuf {
        self.dir(paths).join(name)
    }

    fn dir(&self, paths: &Paths) -> PathBuf {
        let pins = Sha256::new().chain_update(self.go_mod).chain_update(self.go_sum);
        let digest = self.sources.iter().fold(pins, |hash, (_, text)| hash.chain_update(text)).finalize();
        let short: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        paths.root().join(self.name).join(format!("{}-{short}", self.version))
    }

    /// Builds those of its packages that the cache lacks. A program has the last word of its package's path as its name.
    pub(super) fn ensure(&self, paths: &Paths, packages: &[String]) -> Result<()> {
        let missing: Vec<&String> =
            packages.iter().filter(|package| !self.program(paths, file(package)).is_file()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = missing.iter().map(|package| file(package)).collect();
        let what = format!("build {} {} (minutes, once)", names.join(" and "), self.version);
        step(&what, || self.build(paths, &missing))
    }

    fn build(&self, paths: &Paths, packages: &[&String]) -> Result<()> {
        if super::find("go").is_none() {
            bail!("the Go toolchain is needed to build {} {}: install Go 1.26 or newer", self.name, self.version);
        }
        let target = self.dir(paths);
        let work = target.join("work");
        let module = work.join("module");
        make_dir(&module)?;
        std::fs::write(module.join("go.mod"), self.go_mod).context("write go.mod")?;
        std::fs::write(module.join("go.sum"), self.go_sum).context("write go.sum")?;
        for (path, text) in self.sources {
            let file = module.join(path);
            make_dir(file.parent().unwrap_or(&module))?;
            std::fs::write(&file, text).with_context(|| format!("write {path}"))?;
        }
        let mut command = Command::new("nice");
        command
            .current_dir(&module)
            .env("CGO_ENABLED", "0")
            .env("GOBIN", work.join("bin"))
            .args(["go", "install", "-trimpath", "-ldflags", &self.link_flags])
            .args(packages);
        run_logged(&mut command, &target.join("build.log"))?;
        for package in packages {
            // Renamed only when complete: a file in place is a finished file.
            let name = file(package);
            std::fs::rename(work.join("bin").join(name), target.join(name))
                .with_context(|| format!("move {name} into place"))?;
        }
        std::fs::remove_dir_all(&work).context("remove the build directory")
    }
}

fn file(package: &str) -> &str {
    package.rsplit('/').next().unwrap_or(package)
}
