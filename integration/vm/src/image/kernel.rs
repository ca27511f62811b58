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
        format!("{} {} {}", SUITES.join(","), self.series, EXCLUDED.join(","))
    }

    /// The newest kernel package of the series, downloaded.
    pub(super) fn download(&self, paths: &Paths) -> Result<PathBuf> {
        step(&format!("download a Linux {} package", self.series), || {
            let suites = Suites::open(paths, SUITES)?;
            suites.update()?;
            let series = self.series.replace('.', "\\.");
            let names = suites.search(&format!("^linux-image-{series}\\.[0-9]+\\+deb[0-9]+-amd64$"))?;
            let package =
                newest(&names).with_context(|| format!("{} have no kernel {}", SUITES.join(" and "), self.series))?;
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

/// The name with the highest third number: `linux-image-6.18.15+deb13-amd64` over `6.18.9`.
fn newest(names: &[String]) -> Option<String> {
    let patch = |name: &String| name.split(['.', '+']).nth(2).and_then(|n| n.parse::<u32>().ok());
    names.iter().max_by_key(|name| patch(name)).cloned()
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
    }

    #[test]
    fn other_kernels_are_other_images() {
        assert_ne!(Choice::parse("6.12").unwrap().inputs(), Choice::parse("6.18").unwrap().inputs());
    }
}
