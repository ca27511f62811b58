//! Which kernel, and how its files get into a guest's tree.
//!
//! Used by `image`. Never picks a kernel by itself: without a choice it is trixie's own 6.12. The package is unpacked,
//! not installed: backports keeps kernel packages of older series, but not all that they depend on.

use crate::exec::{run, step};
use crate::paths::Paths;
use crate::tools::apt::Suites;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where kernels are looked for; other packages come from the first.
const SUITES: &[&str] = &["trixie", "trixie-backports"];
/// The oldest series that the product runs on.
const OLDEST: &str = "6.1";
/// Where that is the release's own kernel.
const OLDEST_SUITES: &[&str] = &["bookworm"];
/// What later kernels have built in and the root disk needs.
const OLDEST_BOOT_MODULES: &[&str] = &["virtio_pci"];

/// Drivers of hardware that no guest has; leaving them out halves the disk.
const EXCLUDED: &[&str] = &["gpu", "media", "iio", "staging", "net/wireless", "net/ethernet", "usb", "input"];

/// The directory link matters: the tree's /lib leads to /usr/lib, and some packages still say /lib.
const UNPACK: &str = "package=$1 tree=$2; shift 2
    dpkg-deb --fsys-tarfile \"$package\" | tar --extract --keep-directory-symlink --directory \"$tree\" \"$@\"";

/// A kernel series such as `6.18`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    series: String,
}

impl Choice {
    /// Accepts `MAJOR.MINOR`.
    pub(crate) fn parse(series: &str) -> Result<Choice> {
        let numbers: Vec<&str> = series.split('.').collect();
        if numbers.len() != 2 || numbers.iter().any(|n| n.is_empty() || n.parse::<u32>().is_err()) {
            bail!("kernel {series:?}: expected MAJOR.MINOR, such as 6.12");
        }
        Ok(Choice { series: series.to_string() })
    }

    /// What the image key depends on.
    pub(crate) fn inputs(&self) -> String {
        let modules = self.boot_modules().iter().map(|module| format!(" {module}")).collect::<String>();
        format!("{} {} {}{modules}", self.suites().join(","), self.series, EXCLUDED.join(","))
    }

    /// Modules that the root disk needs beside those of every series.
    pub(super) fn boot_modules(&self) -> &'static [&'static str] {
        if self.series == OLDEST { OLDEST_BOOT_MODULES } else { &[] }
    }

    fn suites(&self) -> &'static [&'static str] {
        if self.series == OLDEST { OLDEST_SUITES } else { SUITES }
    }

    /// The newest kernel package of the series, downloaded.
    pub(super) fn download(&self, paths: &Paths) -> Result<PathBuf> {
        step(&format!("download a Linux {} package", self.series), || {
            let suites = Suites::open(paths, self.suites())?;
            suites.update()?;
            let series = self.series.replace('.', "\\.");
            // Until bookworm the third number was always 0, and an ABI number followed: 6.1.0-50.
            let names = suites.search(&format!("^linux-image-{series}\\.[0-9]+(\\+deb|-)[0-9]+-amd64$"))?;
            let none = || format!("no kernel {} in Debian's {}", self.series, self.suites().join(" and "));
            let package = newest(&names).with_context(none)?;
            suites.download(&package, &paths.rootfs())
        })
    }
}

/// Unpacks a kernel package into the tree, without the drivers that no guest needs.
pub(super) fn unpack(package: &Path, tree: &Path) -> Result<()> {
    let excluded = EXCLUDED.iter().map(|dir| format!("--exclude=*/kernel/drivers/{dir}"));
    run(Command::new("sh")
        .args(["-c", UNPACK, "sh"])
        .arg(package)
        .arg(tree)
        .args(excluded)
        .args(["--exclude=*/kernel/sound", "--exclude=./usr/share"]))
    .map(drop)
}

/// The name with the highest numbers: `linux-image-6.18.15+deb13-amd64` over `6.18.9`, `6.1.0-50` over `6.1.0-9`.
fn newest(names: &[String]) -> Option<String> {
    let numbers = |name: &String| -> Vec<u32> {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    names.iter().max_by_key(|name| numbers(name)).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_only() {
        assert!(Choice::parse("6.12").is_ok());
        for wrong in ["6", "6.12.1", "6.x", "", "6."] {
            assert!(Choice::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn newest_by_number_not_by_letter() {
        let names = ["linux-image-6.18.9+deb13-amd64", "linux-image-6.18.15+deb13-amd64"].map(str::to_string);
        assert_eq!(newest(&names).unwrap(), names[1]);
        let names = ["linux-image-6.1.0-50-amd64", "linux-image-6.1.0-9-amd64"].map(str::to_string);
        assert_eq!(newest(&names).unwrap(), names[0]);
    }

    #[test]
    fn other_kernels_are_other_images() {
        assert_ne!(Choice::parse("6.12").unwrap().inputs(), Choice::parse("6.18").unwrap().inputs());
    }
}
