//! Volume capabilities: how a volume is to be used, by how many, and with which file system.
//!
//! Called by the requests of both services. It never offers what the protocol cannot keep: one consumer at a time (P2),
//! so every mode with more than one node is refused.

use tonic::Code;

use super::options;
use crate::Refusal;
use crate::proto::VolumeCapability;
use crate::proto::volume_capability::access_mode::Mode;
use crate::proto::volume_capability::{AccessType, MountVolume};

const MODES: &str =
    "SINGLE_NODE_WRITER, SINGLE_NODE_SINGLE_WRITER, SINGLE_NODE_MULTI_WRITER or SINGLE_NODE_READER_ONLY";

/// One way in which a volume is to be used.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Capability {
    /// Who may use it.
    pub mode: AccessMode,
    /// As what.
    pub access: Access,
}

/// As what a volume is used.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Access {
    /// A file system.
    Mount {
        /// Which one, if the caller names one.
        filesystem: Option<Filesystem>,
        /// Options for mount, one by one, in the order given.
        flags: Vec<String>,
    },
    /// A raw block device.
    Block,
}

/// Who may use a volume: always one node, because a volume has one consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AccessMode {
    /// One node reads and writes; how many pods is not said.
    SingleNodeWriter,
    /// One pod on one node reads and writes.
    SingleNodeSingleWriter,
    /// Several pods on one node read and write.
    SingleNodeMultiWriter,
    /// One node reads.
    SingleNodeReaderOnly,
}

/// A file system that we make and mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Filesystem {
    /// XFS, also when the caller names none.
    #[default]
    Xfs,
    /// ext4.
    Ext4,
}

impl Filesystem {
    /// The name that mkfs and mount use.
    pub fn as_str(self) -> &'static str {
        match self {
            Filesystem::Xfs => "xfs",
            Filesystem::Ext4 => "ext4",
        }
    }

    /// Reads a file system type; the empty text means that the caller leaves it to us.
    pub(super) fn parse(field: String, text: &str) -> Result<Option<Self>, Refusal> {
        match text {
            "" => Ok(None),
            "xfs" => Ok(Some(Filesystem::Xfs)),
            "ext4" => Ok(Some(Filesystem::Ext4)),
            _ => Err(Refusal::value(field, text, "xfs or ext4")),
        }
    }
}

/// What a volume is made for, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// This file system.
    Files(Filesystem),
    /// Raw block.
    Block,
}

/// The word for a raw block volume, where others have the name of their file system.
const BLOCK: &str = "none";

impl Content {
    /// The word in a volume's object.
    pub fn as_str(self) -> &'static str {
        match self {
            Content::Files(filesystem) => filesystem.as_str(),
            Content::Block => BLOCK,
        }
    }
}

impl AccessMode {
    /// Whether this mode never writes.
    pub fn is_read_only(self) -> bool {
        self == AccessMode::SingleNodeReaderOnly
    }

    /// Whether this mode allows one place at a time only.
    pub fn is_exclusive(self) -> bool {
        self == AccessMode::SingleNodeSingleWriter
    }

    fn parse(field: &str, number: i32) -> Result<Self, Refusal> {
        let field = format!("{field}.access_mode");
        match Mode::try_from(number) {
            Ok(Mode::SingleNodeWriter) => Ok(AccessMode::SingleNodeWriter),
            Ok(Mode::SingleNodeSingleWriter) => Ok(AccessMode::SingleNodeSingleWriter),
            Ok(Mode::SingleNodeMultiWriter) => Ok(AccessMode::SingleNodeMultiWriter),
            Ok(Mode::SingleNodeReaderOnly) => Ok(AccessMode::SingleNodeReaderOnly),
            Ok(mode @ (Mode::MultiNodeReaderOnly | Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter)) => {
                let message = format!(
                    "{field} is {}: a MeshStor volume is used by one node at a time: allowed is {MODES}",
                    mode.as_str_name()
                );
                Err(Refusal::new(Code::InvalidArgument, field, message))
            }
            Ok(Mode::Unknown) => Err(Refusal::missing(field)),
            Err(_) => Err(Refusal::value(field, &number.to_string(), MODES)),
        }
    }
}

impl Capability {
    /// Reads a capability that the caller must give.
    pub(super) fn required(field: &str, message: Option<&VolumeCapability>) -> Result<Self, Refusal> {
        match message {
            None => Err(Refusal::missing(field.to_owned())),
            Some(message) => Self::parse(field, message),
        }
    }

    /// Reads a capability that the caller may leave out.
    pub(super) fn optional(field: &str, message: Option<&VolumeCapability>) -> Result<Option<Self>, Refusal> {
        message.map(|message| Self::parse(field, message)).transpose()
    }

    /// Reads a list of capabilities; an empty list passes.
    pub(super) fn list(field: &str, messages: &[VolumeCapability]) -> Result<Vec<Self>, Refusal> {
        messages.iter().enumerate().map(|(index, message)| Self::parse(&format!("{field}[{index}]"), message)).collect()
    }

    /// Whether it is used as a raw block device.
    pub fn is_block(&self) -> bool {
        self.access == Access::Block
    }

    /// The file system that the caller names.
    pub fn filesystem(&self) -> Option<Filesystem> {
        match &self.access {
            Access::Mount { filesystem, .. } => *filesystem,
            Access::Block => None,
        }
    }

    /// Options for mount.
    pub fn mount_flags(&self) -> &[String] {
        match &self.access {
            Access::Mount { flags, .. } => flags,
            Access::Block => &[],
        }
    }

    /// Whether whoever uses it so only reads.
    pub fn only_reads(&self) -> bool {
        self.mode.is_read_only() || self.mount_flags().iter().any(|flag| flag == "ro")
    }

    /// Why a volume cannot be used so; `None` when it can. `made_for` is the word in its object ([`Content::as_str`]): a
    /// volume is one thing for its whole life.
    pub fn unfit(&self, made_for: &str) -> Option<String> {
        match (&self.access, made_for == BLOCK) {
            (Access::Block, false) => Some(format!(
                "volume_capability.block: the volume was made with the file system {made_for}: \
                 allowed is volumeMode Filesystem"
            )),
            (Access::Mount { .. }, true) => Some(
                "volume_capability.mount: the volume was made as a raw block device: allowed is volumeMode Block"
                    .into(),
            ),
            (Access::Mount { filesystem: Some(wanted), .. }, false) if wanted.as_str() != made_for => {
                let wanted = wanted.as_str();
                Some(format!("volume_capability.mount.fs_type is {wanted}: the volume was made for {made_for}"))
            }
            _ => None,
        }
    }

    fn parse(field: &str, message: &VolumeCapability) -> Result<Self, Refusal> {
        let mode = message.access_mode.as_ref().map_or(0, |access_mode| access_mode.mode);
        let mode = AccessMode::parse(field, mode)?;
        match &message.access_type {
            None => Err(Refusal::missing(format!("{field}.access_type"))),
            Some(AccessType::Block(_)) => Ok(Self { mode, access: Access::Block }),
            Some(AccessType::Mount(mount)) => Self::mount(field, mode, mount),
        }
    }

    fn mount(field: &str, mode: AccessMode, mount: &MountVolume) -> Result<Self, Refusal> {
        let filesystem = Filesystem::parse(format!("{field}.mount.fs_type"), &mount.fs_type)?;
        if !mount.volume_mount_group.is_empty() {
            return Err(Refusal::not_available(
                format!("{field}.mount.volume_mount_group"),
                "mounting with a group is",
                "fsGroup applied by Kubernetes",
            ));
        }
        let flags = options::parse(&format!("{field}.mount.mount_flags"), &mount.mount_flags)?;
        Ok(Self { mode, access: Access::Mount { filesystem, flags } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::volume_capability::{AccessMode as AccessModeMessage, BlockVolume};

    fn message(mode: i32, access_type: Option<AccessType>) -> VolumeCapability {
        VolumeCapability { access_mode: Some(AccessModeMessage { mode }), access_type }
    }

    fn mount(fs_type: &str, flags: &[&str]) -> Option<AccessType> {
        let mount_flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Some(AccessType::Mount(MountVolume { fs_type: fs_type.to_owned(), mount_flags, ..Default::default() }))
    }

    fn refusal(message: &VolumeCapability) -> String {
        match Capability::required("volume_capability", Some(message)) {
            Ok(capability) => format!("accepted as {capability:?}"),
            Err(refusal) => {
                assert_eq!(refusal.code, Code::InvalidArgument);
                refusal.message
            }
        }
    }

    #[test]
    fn every_single_node_mode_is_accepted_and_no_other() {
        let accepted: Vec<i32> =
            (-1..10).filter(|mode| Capability::parse("c", &message(*mode, mount("", &[]))).is_ok()).collect();
        assert_eq!(accepted, [1, 2, 6, 7]);
        assert!(
            refusal(&message(5, mount("", &[]))).contains("MULTI_NODE_MULTI_WRITER: a MeshStor volume is used by one")
        );
        assert_eq!(
            refusal(&message(0, mount("", &[]))),
            "volume_capability.access_mode is missing: this call needs it"
        );
        assert!(refusal(&message(99, mount("", &[]))).contains("\"99\""));
        assert!(refusal(&VolumeCapability { access_mode: None, access_type: mount("", &[]) }).contains("access_mode"));
    }

    #[test]
    fn only_the_reader_is_read_only() {
        assert!(AccessMode::SingleNodeReaderOnly.is_read_only());
        assert!(!AccessMode::SingleNodeWriter.is_read_only());
    }

    #[test]
    fn access_types() {
        assert!(refusal(&message(1, None)).starts_with("volume_capability.access_type is missing"));
        let block = Some(AccessType::Block(BlockVolume {}));
        assert!(Capability::parse("c", &message(1, block.clone())).is_ok_and(|c| c.is_block() && !c.only_reads()));
        assert!(refusal(&message(5, block)).contains("used by one node at a time"), "a block device is no exception");
        assert_eq!(
            refusal(&message(1, mount("btrfs", &[]))),
            "volume_capability.mount.fs_type is \"btrfs\": allowed is xfs or ext4"
        );
        let group = MountVolume { volume_mount_group: "1000".into(), ..Default::default() };
        assert!(refusal(&message(1, Some(AccessType::Mount(group)))).contains("volume_mount_group"));
        assert!(Capability::required("volume_capability", None).is_err());
        assert_eq!(Capability::optional("volume_capability", None), Ok(None));
    }

    #[test]
    fn xfs_ext4_or_nothing_may_be_named() {
        let named = |fs_type: &str| Capability::parse("c", &message(1, mount(fs_type, &[]))).map(|c| c.filesystem());
        assert_eq!(named(""), Ok(None));
        assert_eq!(named("xfs"), Ok(Some(Filesystem::Xfs)));
        assert_eq!(named("ext4"), Ok(Some(Filesystem::Ext4)));
        assert!(named("ext3").is_err() && named("XFS").is_err());
    }

    #[test]
    fn mount_flags_are_read_and_refused_by_their_place() {
        let capability = Capability::parse("c", &message(1, mount("xfs", &["noatime", "discard,ro"])));
        let expected = Capability {
            mode: AccessMode::SingleNodeWriter,
            access: Access::Mount {
                filesystem: Some(Filesystem::Xfs),
                flags: vec!["noatime".into(), "discard".into(), "ro".into()],
            },
        };
        assert_eq!(capability, Ok(expected));
        let text = refusal(&message(1, mount("", &["noatime", "nouuid"])));
        assert!(text.starts_with("volume_capability.mount.mount_flags[1] has the option nouuid"), "{text}");
    }

    #[test]
    fn a_volume_is_one_thing_for_its_whole_life() {
        let used = |access_type| Capability::parse("c", &message(1, access_type)).ok();
        let unfit = |access_type, made_for: &str| used(access_type).and_then(|c| c.unfit(made_for));
        let block = || Some(AccessType::Block(BlockVolume {}));
        for (access_type, made_for) in
            [(mount("", &[]), "xfs"), (mount("", &[]), "ext4"), (mount("ext4", &[]), "ext4"), (block(), "none")]
        {
            assert_eq!(unfit(access_type, made_for), None);
        }
        assert!(unfit(mount("ext4", &[]), "xfs").unwrap().contains("fs_type is ext4: the volume was made for xfs"));
        assert!(
            unfit(mount("", &[]), "none").unwrap().starts_with("volume_capability.mount: the volume was made as a raw")
        );
        assert!(
            unfit(block(), "xfs").unwrap().starts_with("volume_capability.block: the volume was made with the file")
        );
    }

    #[test]
    fn lists_name_the_entry_at_fault() {
        let list = [message(1, mount("", &[])), message(3, mount("", &[]))];
        let refusal = Capability::list("volume_capabilities", &list);
        assert_eq!(refusal.map_err(|refusal| refusal.field), Err("volume_capabilities[1].access_mode".into()));
    }
}
