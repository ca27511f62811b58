//! What the data area of a volume holds: one of the file systems that we make, or whatever the user of a raw block
//! volume writes.
//!
//! Chosen when a volume is created and never changed. Plain values; nothing here looks at a device.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A file system that we make and mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Filesystem {
    /// XFS, also where nobody names one.
    #[default]
    Xfs,
    /// ext4.
    Ext4,
}

impl Filesystem {
    /// Every one of them.
    pub const ALL: [Filesystem; 2] = [Filesystem::Xfs, Filesystem::Ext4];

    /// The name that mkfs, mount and our objects use.
    pub fn as_str(self) -> &'static str {
        match self {
            Filesystem::Xfs => "xfs",
            Filesystem::Ext4 => "ext4",
        }
    }
}

impl fmt::Display for Filesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The word for a raw block volume, where others have the name of their file system.
const BLOCK: &str = "none";

/// What a volume holds, for its whole life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Content {
    /// This file system.
    Files(Filesystem),
    /// What its user writes: the array itself is handed out.
    Block,
}

impl Content {
    /// The word for it in our objects and on the drive.
    pub fn as_str(self) -> &'static str {
        match self {
            Content::Files(filesystem) => filesystem.as_str(),
            Content::Block => BLOCK,
        }
    }

    /// Whether it is what a volume holds of which nobody says anything.
    pub fn is_default(&self) -> bool {
        *self == Content::default()
    }
}

impl Default for Content {
    fn default() -> Content {
        Content::Files(Filesystem::default())
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Content {
    type Err = String;

    fn from_str(text: &str) -> Result<Content, String> {
        let files = Filesystem::ALL.into_iter().map(Content::Files);
        let mut all = files.chain([Content::Block]);
        all.find(|content| content.as_str() == text)
            .ok_or_else(|| format!("content is {text:?}: allowed is xfs, ext4 or none"))
    }
}

impl TryFrom<String> for Content {
    type Error = String;

    fn try_from(text: String) -> Result<Content, String> {
        text.parse()
    }
}

impl From<Content> for String {
    fn from(content: Content) -> String {
        content.as_str().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_content_reads_back_from_its_word() {
        for content in Filesystem::ALL.map(Content::Files).into_iter().chain([Content::Block]) {
            assert_eq!(content.as_str().parse(), Ok(content));
            assert_eq!(serde_json::from_value::<Content>(serde_json::to_value(content).unwrap()).unwrap(), content);
        }
        let error = "btrfs".parse::<Content>().unwrap_err();
        assert!(error.contains("\"btrfs\"") && error.contains("xfs, ext4 or none"), "{error}");
    }
}
