//! `/proc/<pid>/mountinfo`, read and taken apart: who is mounted where.
//!
//! Called by the file system, array and opener code. Pure but for [`read`]; it never follows a mount.

use super::attr;
use super::root::Root;
use crate::error::{KernelError, Result};
use std::path::Path;

/// One line of mountinfo (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Mount id, unique while mounted: what `fdinfo` of an open file names.
    pub id: u64,
    /// Device number of the mounted file system.
    pub device: (u32, u32),
    /// The folder of the file system that is mounted (not `/` for bind mounts of folders and files).
    pub root: String,
    /// Mount point, in the root of the process that was asked.
    pub target: String,
    /// Options of this mount alone.
    pub options: String,
    /// File system type.
    pub fs: String,
    /// What was mounted, as the mounter spelled it.
    pub source: String,
    /// Options of the file system itself.
    pub super_options: String,
}

impl Mount {
    /// Whether writes through this mount are refused, by the mount or by the file system.
    pub fn read_only(&self) -> bool {
        has_option(&self.options, "ro") || has_option(&self.super_options, "ro")
    }

    /// The device node that is bound there, and whether it is still the node of a device: once the device is gone, and
    /// whoever comes under its name later, mountinfo calls the old node deleted (fs/d_path.c `prepend_path`).
    pub fn node(&self) -> Option<(&str, bool)> {
        let name = self.root.strip_prefix('/').filter(|name| self.fs == "devtmpfs" && !name.is_empty())?;
        match name.strip_suffix("//deleted") {
            Some(gone) => Some((gone, false)),
            None => Some((name, true)),
        }
    }

    /// Whether the file system says of itself that it is shut down (ext4 since 6.14, super.c `_ext4_show_options`), or has
    /// turned read-only by itself after an error (ext4 before that: its own flag changes, that of the mount does not).
    pub fn says_shut_down(&self) -> bool {
        let turned = self.fs == "ext4" && has_option(&self.super_options, "ro") && !has_option(&self.options, "ro");
        turned || has_option(&self.super_options, "shutdown") || has_option(&self.super_options, "emergency_ro")
    }
}

/// Mounts in this process's mount namespace, in mount order.
pub fn read(root: &Root) -> Result<Vec<Mount>> {
    let path = root.proc.join("self/mountinfo");
    let text = attr::read(&path).map_err(|e| KernelError::io("list mounts", attr::show(&path), &e))?;
    Ok(parse(&text))
}

/// Mounts of a device, by its number.
pub fn of_device(mounts: &[Mount], device: (u32, u32)) -> impl Iterator<Item = &Mount> {
    mounts.iter().filter(move |mount| mount.device == device)
}

/// Places where the node of a device is bound to, by its kernel name: mountinfo names it below devtmpfs.
pub fn of_node<'a>(mounts: &'a [Mount], name: &'a str) -> impl Iterator<Item = &'a Mount> {
    mounts.iter().filter(move |mount| mount.node() == Some((name, true)))
}

/// What is mounted at exactly this path now: the last one mounted there hides the others.
pub fn at<'a>(mounts: &'a [Mount], target: &str) -> Option<&'a Mount> {
    let target = tidy(target);
    mounts.iter().rev().find(|mount| mount.target == target)
}

/// The mount that a path lies on.
pub fn covering<'a>(mounts: &'a [Mount], path: &str) -> Option<&'a Mount> {
    let below = |mount: &&Mount| Path::new(path).starts_with(&mount.target);
    // Of equal mount points the later one is on top, and `max_by_key` keeps the last of equals.
    mounts.iter().filter(below).max_by_key(|mount| mount.target.len())
}

/// A path without the slash at its end, as mountinfo spells it.
pub fn tidy(path: &str) -> &str {
    if path.len() > 1 { path.trim_end_matches('/') } else { path }
}

/// All well-formed lines.
pub fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(line).collect()
}

fn line(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ');
    let id = before.next()?.parse().ok()?;
    let (major, minor) = before.nth(1)?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let (root, target, options) = (before.next()?, before.next()?, before.next()?);
    let mut after = after.splitn(3, ' ');
    let (fs, source, super_options) = (after.next()?, after.next()?, after.next().unwrap_or_default());
    Some(Mount {
        id,
        device,
        root: unescape(root),
        target: unescape(target),
        options: options.to_string(),
        fs: fs.to_string(),
        source: unescape(source),
        super_options: super_options.to_string(),
    })
}

/// Space, tab, newline and backslash come as three octal digits (fs/seq_file.c `mangle_path`).
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| tail.get(..3)).flatten();
        let code = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn has_option(options: &str, wanted: &str) -> bool {
    options.split(',').any(|option| option == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
23 28 0:21 / /proc rw,nosuid shared:13 - proc proc rw
28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
90 28 9:1000 / /var/lib/kubelet/my\\040vol rw,noatime shared:40 - xfs /dev/md1000 rw,attr2
91 28 9:1000 /sub /pods/a ro,noatime shared:40 master:2 - xfs /dev/md1000 rw,attr2
92 28 9:1001 / /pods/a rw - ext4 /dev/md1001 ro,shutdown
93 28 0:6 /md1002 /pods/b/raw rw - devtmpfs udev rw,size=1k
94 28 0:6 /md1003//deleted /pods/c/raw rw - devtmpfs udev rw,size=1k
95 28 0:6 / /dev rw - devtmpfs udev rw,size=1k
garbage
";

    #[test]
    fn lines_with_any_number_of_tags_and_escapes_are_understood() {
        let mounts = parse(TEXT);
        assert_eq!(mounts.len(), 8);
        assert_eq!(mounts[2].target, "/var/lib/kubelet/my vol");
        assert_eq!((mounts[2].device, mounts[2].fs.as_str(), mounts[2].id), ((9, 1000), "xfs", 90));
        assert_eq!((mounts[3].root.as_str(), mounts[3].read_only()), ("/sub", true));
        assert!(mounts[4].read_only() && mounts[4].says_shut_down() && !mounts[2].read_only());
    }

    #[test]
    fn the_topmost_mount_of_a_path_counts() {
        let mounts = parse(TEXT);
        assert_eq!(at(&mounts, "/pods/a/").unwrap().id, 92);
        assert_eq!(covering(&mounts, "/pods/a/file").unwrap().id, 92);
        assert_eq!(covering(&mounts, "/pods/ab").unwrap().id, 28);
        assert_eq!(of_device(&mounts, (9, 1000)).count(), 2);
    }

    #[test]
    fn a_bound_device_node_is_told_from_one_whose_device_is_gone() {
        let mounts = parse(TEXT);
        let raw = |name: &str| of_node(&mounts, name).map(|mount| mount.target.clone()).collect::<Vec<_>>();
        assert_eq!(raw("md1002"), ["/pods/b/raw"]);
        assert!(raw("md1003").is_empty());
        assert_eq!(at(&mounts, "/pods/c/raw").unwrap().node(), Some(("md1003", false)));
        assert_eq!((at(&mounts, "/dev").unwrap().node(), at(&mounts, "/pods/a").unwrap().node()), (None, None));
    }
}
