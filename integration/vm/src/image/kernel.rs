//! Which kernel, and from which Debian suite.
//!
//! Used by `image`. Never picks a kernel by itself: without a choice it is trixie's own 6.12.

use crate::paths::Paths;
use crate::tools::apt::Suites;
use anyhow::{Context, Result, bail};

const RELEASE: &str = "trixie";
const BACKPORTS: &str = "trixie-backports";

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
        format!("{} {}", self.suites().join(","), self.series)
    }

    /// The suites to install from; packages other than the kernel always come from the release.
    pub(crate) fn suites(&self) -> Vec<&'static str> {
        if self.is_stock() { vec![RELEASE] } else { vec![RELEASE, BACKPORTS] }
    }

    /// The kernel's package name, looked up in the mirror's lists when it is not the release's own.
    pub(crate) fn package(&self, paths: &Paths) -> Result<String> {
        if self.is_stock() {
            return Ok("linux-image-amd64".to_string());
        }
        let suites = Suites::open(paths, &[BACKPORTS])?;
        suites.update()?;
        let series = self.series.replace('.', "\\.");
        let names = suites.search(&format!("^linux-image-{series}\\.[0-9]+\\+deb13-amd64$"))?;
        newest(&names).with_context(|| format!("{BACKPORTS} has no linux-image of series {}", self.series))
    }

    fn is_stock(&self) -> bool {
        self.series == "6.12"
    }
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
