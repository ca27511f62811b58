//! QEMU 10 or newer.
//!
//! Called by `tools`. Version 10 is a floor found by measurement: the NVMe device of 7.2 loses interrupts under load,
//! seen in guests as I/O timeouts of 30 seconds. Debian bookworm has version 10 in its backports suite.

use super::apt::{Suites, install, own_suite};
use crate::exec::{run, step};
use crate::paths::Paths;
use anyhow::{Context, Result, bail};
use std::process::Command;

const OLDEST: u32 = 10;
const PACKAGES: &[&str] = &["qemu-system-x86", "qemu-utils"];

/// Installs QEMU when it is missing or too old.
pub(super) fn ensure(paths: &Paths) -> Result<()> {
    if new_enough() && super::find("qemu-img").is_some() {
        return Ok(());
    }
    let own = own_suite()?;
    if own != "bookworm" {
        install(PACKAGES)?;
    } else {
        let backports = format!("{own}-backports");
        step(&format!("install QEMU from {backports}"), || {
            let suites = Suites::open(paths, &[&own, &backports])?;
            suites.update()?;
            suites.install(&backports, PACKAGES)
        })?;
    }
    if !new_enough() {
        bail!("QEMU {OLDEST} or newer is needed, found {}", version().unwrap_or_else(|e| e.to_string()));
    }
    Ok(())
}

/// The installed version, such as `10.0.2`.
pub(crate) fn version() -> Result<String> {
    let text = run(Command::new("qemu-system-x86_64").arg("--version"))?;
    parse(&text).with_context(|| format!("no version in {text:?}"))
}

fn new_enough() -> bool {
    let version = version().ok();
    version.and_then(|v| v.split('.').next()?.parse::<u32>().ok()).is_some_and(|major| major >= OLDEST)
}

fn parse(text: &str) -> Option<String> {
    text.split_whitespace().skip_while(|word| *word != "version").nth(1).map(str::to_string)
}

#[cfg(test)]
mod tests {
    #[test]
    fn reads_the_version_line() {
        let line = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright";
        assert_eq!(super::parse(line).as_deref(), Some("10.0.2"));
        assert_eq!(super::parse("nonsense"), None);
    }
}
