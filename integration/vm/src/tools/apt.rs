//! Debian packages: the machine's own suite, and other suites from the mirror the machine already uses.
//!
//! Used by `tools` and `image`. Never writes to the machine's apt configuration or package lists of other suites: a
//! private sources list with its own list directory leaves `apt upgrade` on the machine as it was. Never names a mirror:
//! the address is taken from the machine's own sources.

use crate::exec::{run, run_logged, step};
use crate::paths::{Paths, make_dir, write_atomically};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Signs all suites; part of every Debian system.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Installs packages of the machine's own suite.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    need_root(packages)?;
    let log = std::env::temp_dir().join(format!("meshstor-apt-{}.log", std::process::id()));
    step(&format!("install {} with apt", packages.join(", ")), || {
        run_logged(apt_get().arg("update"), &log)?;
        run_logged(apt_get().args(["install", "--yes", "--no-install-recommends"]).args(packages), &log)
    })?;
    // Only a failed run's log is worth keeping, and that one is named in the error.
    let _ = std::fs::remove_file(&log);
    Ok(())
}

fn need_root(packages: &[&str]) -> Result<()> {
    if !nix::unistd::Uid::effective().is_root() {
        bail!("missing packages: {} (install them, or run once as root)", packages.join(", "));
    }
    Ok(())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    // Another package manager run on the machine is waited for, not an error.
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=300"]);
    command
}

/// Other suites than the machine's, looked at through a private sources list.
pub(crate) struct Suites {
    dir: PathBuf,
}

impl Suites {
    /// Writes the sources list for these suites.
    pub(crate) fn open(paths: &Paths, suites: &[&str]) -> Result<Suites> {
        let dir = paths.root().join("apt").join(suites.join("+"));
        make_dir(&dir.join("lists/partial"))?;
        write_atomically(&dir.join("list.sources"), sources(suites)?.as_bytes())?;
        Ok(Suites { dir })
    }

    /// Downloads the package lists.
    pub(crate) fn update(&self) -> Result<()> {
        run_logged(self.private(&mut apt_get()).arg("update"), &self.dir.join("update.log"))
    }

    /// Installs packages on this machine, preferring `suite`.
    pub(crate) fn install(&self, suite: &str, packages: &[&str]) -> Result<()> {
        need_root(packages)?;
        let mut command = apt_get();
        self.private(&mut command)
            .args(["install", "--yes", "--no-install-recommends", "--target-release", suite])
            .args(packages);
        run_logged(&mut command, &self.dir.join("install.log"))
    }

    /// Downloads one package's file into a directory and returns its path. Needs none of what the package depends on.
    pub(crate) fn download(&self, package: &str, dir: &Path) -> Result<PathBuf> {
        make_dir(dir)?;
        let mut command = apt_get();
        run(self.private(&mut command).current_dir(dir).args(["download", package]))?;
        let entries = std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
        let prefix = format!("{package}_");
        let found = entries.flatten().find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
        found.map(|entry| entry.path()).with_context(|| format!("apt-get downloaded no file of {package}"))
    }

    /// Package names that match a regular expression.
    pub(crate) fn search(&self, expression: &str) -> Result<Vec<String>> {
        let mut command = Command::new("apt-cache");
        let text = run(self.private(&mut command).args(["search", "--names-only", expression]))?;
        Ok(text.lines().filter_map(|l| l.split_whitespace().next()).map(str::to_string).collect())
    }

    fn private<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let option = |name: &str, value: &Path| format!("{name}={}", value.display());
        command
            .args(["-o", &option("Dir::Etc::SourceList", &self.dir.join("list.sources"))])
            .args(["-o", "Dir::Etc::SourceParts=/dev/null"])
            .args(["-o", &option("Dir::State::Lists", &self.dir.join("lists"))])
            .args(["-o", &option("Dir::Cache::pkgcache", &self.dir.join("pkgcache.bin"))])
            .args(["-o", &option("Dir::Cache::srcpkgcache", &self.dir.join("srcpkgcache.bin"))])
            // The cache may lie in a home directory that the download user cannot read.
            .args(["-o", "APT::Sandbox::User=root"])
            .args(["-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false"])
    }
}

/// A deb822 sources list for these suites, from the machine's own mirror.
pub(crate) fn sources(suites: &[&str]) -> Result<String> {
    let mirror = own_mirror(Path::new("/etc/apt"))?;
    Ok(format!("Types: deb\nURIs: {mirror}\nSuites: {}\nComponents: main\nSigned-By: {KEYRING}\n", suites.join(" ")))
}

/// The machine's suite name, such as `bookworm`.
pub(crate) fn own_suite() -> Result<String> {
    let text = std::fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    text.lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_string())
        .context("/etc/os-release names no VERSION_CODENAME: the lab needs Debian")
}

fn own_mirror(etc: &Path) -> Result<String> {
    let mut files = vec![etc.join("sources.list")];
    let parts = etc.join("sources.list.d");
    if let Ok(entries) = std::fs::read_dir(&parts) {
        let mut more: Vec<_> = entries.flatten().map(|e| e.path()).collect();
        more.sort();
        files.extend(more);
    }
    files
        .iter()
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .flat_map(|text| addresses(&text))
        .find(|address| address.trim_end_matches('/').ends_with("/debian"))
        .with_context(|| format!("no Debian mirror found in the apt sources below {}", etc.display()))
}

/// The addresses in a sources list of either format.
fn addresses(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let wanted = lines.filter(|line| line.starts_with("URIs:") || line.starts_with("deb "));
    wanted.flat_map(str::split_whitespace).filter(|word| word.contains("://")).map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirror_from_both_formats() {
        let dir = tempfile::tempdir().unwrap();
        let parts = dir.path().join("sources.list.d");
        std::fs::create_dir(&parts).unwrap();
        std::fs::write(parts.join("a.list"), "deb https://example.org/other stable main\n").unwrap();
        std::fs::write(parts.join("b.sources"), "Types: deb\n# http://old/debian\nURIs: http://m.example/debian\n")
            .unwrap();
        assert_eq!(own_mirror(dir.path()).unwrap(), "http://m.example/debian");
        std::fs::write(dir.path().join("sources.list"), "deb [trusted=yes] http://n.example/debian/ x main\n").unwrap();
        assert_eq!(own_mirror(dir.path()).unwrap(), "http://n.example/debian/");
    }
}
