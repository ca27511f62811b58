//! File systems on our arrays: what is there, making one, mounting, unmounting, shutting down.
//!
//! Called by the seam. Reads of the array go through the ring, because a member may be stuck; system calls that can
//! wait run on the blocking pool. It never repairs a file system and never formats what is not proven blank (P4).

use super::attr;
use super::cmd::args;
use super::ioctl::{self, GoingDown};
use super::mounts::{self, Mount};
use super::root::Root;
use super::uring::Ring;
use super::{Shared, growfs, md};
use crate::content::Filesystem;
use crate::error::{KernelError, Result};
use crate::facts::FsFact;
use crate::id::VolumeId;
use crate::ops::{Changed, FormatPermit};
use crate::seam::MountFact;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use std::fs::{self, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// Where the signatures we tell apart lie: XFS at 0, ext4 at 1080; a boot sector or LVM label is "unknown".
const HEAD_BYTES: usize = 64 << 10;
/// `sb_inprogress` of XFS's superblock (fs/xfs/libxfs/xfs_format.h, `struct xfs_dsb`).
const XFS_IN_PROGRESS: usize = 126;
const READ_DEADLINE: Duration = Duration::from_secs(5);
/// An attribute that no folder has: only whether the question is answered counts. `trusted`, because only root may set these.
const NO_ATTRIBUTE: &str = "trusted.meshstor.none";
/// Below the operation's own.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const MKFS_DEADLINE: Duration = Duration::from_secs(55);
/// Layers of mounts on one path that an unmount takes off; kubelet makes one, a retried bind two.
const LAYERS_MAX: u32 = 64;
/// Features of the oldest kernel we run on, so that a volume moves between nodes of any age (xfsprogs: mkfs/lts_*.conf).
const XFS_FLOOR: &str = "/usr/share/xfsprogs/mkfs/lts_6.1.conf";
/// The same for ext4, which has no such file: `none` first, so that neither the version of mkfs nor the node's
/// /etc/mke2fs.conf adds to it.
const EXT4_FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
                             large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

// ---------------------------------------------------------------------------------------------- facts

/// What lies at the start of a device, by its bytes. A file system that mkfs has not finished is none: mkfs.xfs marks its
/// first superblock as unfinished until it is done (mkfs/xfs_mkfs.c), and mkfs.ext4 writes the one at 1024 last, behind
/// a flush of everything else (lib/ext2fs/closefs.c).
pub fn signature(head: &[u8]) -> Option<String> {
    let in_progress = || head.get(XFS_IN_PROGRESS).is_some_and(|byte| *byte != 0);
    if head.starts_with(b"XFSB") && !in_progress() {
        Some("xfs".into())
    } else if head.get(1080..1082) == Some(&[0x53, 0xef]) {
        Some("ext4".into())
    } else if head.iter().any(|byte| *byte != 0) {
        Some("unknown".into())
    } else {
        None
    }
}

/// Reads the signature of an array.
pub async fn read_signature(ring: &Ring, device: &str) -> Result<Option<String>> {
    let head = ring.read(device, 0, HEAD_BYTES, true, READ_DEADLINE).await?;
    if head.len() < HEAD_BYTES {
        return Err(KernelError::retry("read signature", device, format!("only {} bytes came", head.len())));
    }
    Ok(signature(&head))
}

/// The whole fact. A mounted array is not read: what is mounted says what it is, and a member may be stuck.
pub(super) async fn observe(shared: &Arc<Shared>, volume: VolumeId) -> Result<FsFact> {
    let mut fact = shared.look("observe file system", move |shared| mounts_of(&shared.root, volume)).await?;
    if let (None, Some(array)) = (&fact.signature, md::find(&shared.root, volume)) {
        let device = attr::show(&shared.root.dev.join(array));
        fact.signature = read_signature(&shared.ring, &device).await?;
    }
    Ok(fact)
}

/// The mounts of an array, with whether each still answers. Blocking.
pub(super) fn mounts_of(root: &Root, volume: VolumeId) -> Result<FsFact> {
    let array = md::find(root, volume).and_then(|name| Some((md::device_number(root, &name)?, name)));
    let Some((device, name)) = array else { return Ok(FsFact::default()) };
    let table = mounts::read(root)?;
    let raw = mounts::of_node(&table, &name).map(|mount| mount.target.clone()).collect();
    let mut fact = FsFact { raw, ..FsFact::default() };
    for mount in mounts::of_device(&table, device) {
        fact.signature = Some(mount.fs.clone());
        let alive = alive(mount);
        fact.mounts.insert(mount.target.clone(), alive);
        if alive && fact.bytes.is_none() {
            fact.bytes = growfs::bytes(mount);
        }
    }
    Ok(fact)
}

/// What is mounted at a path, and the array of ours it comes from. Blocking.
pub fn mount_at(root: &Root, target: &str) -> Result<Option<(MountFact, Option<String>)>> {
    let table = mounts::read(root)?;
    let Some(mount) = mounts::at(&table, target) else { return Ok(None) };
    let of_device = md::names(root).into_iter().find(|name| md::device_number(root, name) == Some(mount.device));
    // The node of a raw volume, bound onto a file.
    let node = mount.node().filter(|(name, _)| md::minor(name).is_some());
    let alive = match node {
        Some((array, there)) => there && md::dir(root, array).is_dir(),
        None => alive(mount),
    };
    let (raw, read_only) = (node.is_some(), mount.read_only());
    let fact = MountFact { volume: None, source: mount.source.clone(), alive, raw, read_only };
    let bound = node.filter(|(_, there)| *there).map(|(array, _)| array.to_string());
    Ok(Some((fact, of_device.or(bound))))
}

/// Whether a mounted file system still works. `statfs` fails on none that is shut down, and waits on none. XFS refuses to
/// open anything then (xfs_file.c `xfs_file_open`). ext4 opens its folders all the same, and says in its options what
/// became of it since 6.14 only; but it answers no question for an attribute (xattr.c `ext4_xattr_get`).
pub fn alive(mount: &Mount) -> bool {
    if mount.says_shut_down() || nix::sys::statfs::statfs(Path::new(&mount.target)).is_err() {
        return false;
    }
    // Any other failure is this process's problem, not the file system's: nobody has given the folder that attribute.
    match mount.fs.as_str() {
        "ext4" => rustix::fs::getxattr(&mount.target, NO_ATTRIBUTE, &mut [0u8; 1]) != Err(rustix::io::Errno::IO),
        _ => !matches!(fs::File::open(&mount.target), Err(e) if e.raw_os_error() == Some(Errno::EIO as i32)),
    }
}

// --------------------------------------------------------------------------------------------- format

/// Makes a file system. Refused while mounted, and on anything but zeroes unless the record says a first attempt of ours
/// was never handed out.
pub(super) async fn make(
    shared: &Arc<Shared>,
    volume: VolumeId,
    filesystem: Filesystem,
    permit: &FormatPermit,
) -> Result<Changed> {
    let op = format!("make-filesystem {}", volume.short());
    let device = shared.look(&op, move |shared| unmounted(&shared.root, volume)).await?;
    let found = read_signature(&shared.ring, &device).await?;
    let again = matches!(permit, FormatPermit::StartedNotDone { .. });
    if let (Some(found), false) = (&found, again) {
        return Err(KernelError::refuse(op, device, format!("{found} content where the members were blank")));
    }
    let (program, list) = match filesystem {
        Filesystem::Xfs => ("mkfs.xfs", mkfs_xfs(&device, again, Path::new(XFS_FLOOR).is_file())),
        Filesystem::Ext4 => ("mkfs.ext4", mkfs_ext4(&device, again)),
    };
    shared.tools.run(program, &list, MKFS_DEADLINE).await?;
    Ok(Changed::Yes)
}

/// The device node of the volume's array, when nothing of it is mounted.
fn unmounted(root: &Root, volume: VolumeId) -> Result<String> {
    let op = format!("make-filesystem {}", volume.short());
    let name =
        md::find(root, volume).ok_or_else(|| KernelError::refuse(&op, volume.short(), "the volume has no array"))?;
    let number = md::device_number(root, &name).unwrap_or_default();
    let table = mounts::read(root)?;
    let mut mounted = mounts::of_device(&table, number).chain(mounts::of_node(&table, &name));
    match mounted.next() {
        Some(mount) => Err(KernelError::refuse(op, &name, format!("it is mounted at {}", mount.target))),
        None => Ok(attr::show(&root.dev.join(&name))),
    }
}

/// `-K`: the members were zeroed when their partitions were made; a second discard costs minutes on large drives.
/// Sector and block size follow the device. `-f` only where a half-made file system of ours may lie.
fn mkfs_xfs(device: &str, force: bool, floor: bool) -> Vec<String> {
    let mut list = args(&["-q", "-K"]);
    if floor {
        list.extend(["-c".into(), format!("options={XFS_FLOOR}")]);
    }
    if force {
        list.push("-f".into());
    }
    list.push(device.into());
    list
}

/// Why each of these: docs/adr/0013-ext4-defaults.md. `-F` as above.
fn mkfs_ext4(device: &str, force: bool) -> Vec<String> {
    let mut list = args(&["-q", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-e", "remount-ro"]);
    list.extend(args(&["-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=0", "-O", EXT4_FEATURES]));
    if force {
        list.push("-F".into());
    }
    list.push(device.into());
    list
}

// ---------------------------------------------------------------------------------------------- mount

/// Mounts the volume's file system. Blocking.
pub fn mount(root: &Root, volume: VolumeId, target: &str, fs: Filesystem, options: &str) -> Result<Changed> {
    let op = format!("mount {} at {target}", volume.short());
    let name =
        md::find(root, volume).ok_or_else(|| KernelError::refuse(&op, volume.short(), "the volume has no array"))?;
    let number = md::device_number(root, &name).unwrap_or_default();
    if let Some(now) = mounts::at(&mounts::read(root)?, target) {
        return if now.device == number && now.root == "/" && alive(now) {
            Ok(Changed::No)
        } else {
            Err(KernelError::refuse(op, target, format!("{} is mounted there already", now.source)))
        };
    }
    fs::create_dir_all(target).map_err(|e| KernelError::io(format!("{op}: mkdir"), target, &e))?;
    let (flags, data) = split_options(options);
    let device = attr::show(&root.dev.join(name));
    system(
        &op,
        target,
        nix::mount::mount(Some(device.as_str()), target, Some(fs.as_str()), flags, Some(data.as_str())),
    )?;
    Ok(Changed::Yes)
}

/// Options of the mount itself, and whether they set their flag or clear it (mount(8), "filesystem-independent").
const FLAGS: [(&str, MsFlags, bool); 20] = [
    ("ro", MsFlags::MS_RDONLY, true),
    ("rw", MsFlags::MS_RDONLY, false),
    ("noatime", MsFlags::MS_NOATIME, true),
    ("atime", MsFlags::MS_NOATIME, false),
    ("nodiratime", MsFlags::MS_NODIRATIME, true),
    ("diratime", MsFlags::MS_NODIRATIME, false),
    ("relatime", MsFlags::MS_RELATIME, true),
    ("strictatime", MsFlags::MS_STRICTATIME, true),
    ("lazytime", MsFlags::MS_LAZYTIME, true),
    ("nolazytime", MsFlags::MS_LAZYTIME, false),
    ("nosuid", MsFlags::MS_NOSUID, true),
    ("suid", MsFlags::MS_NOSUID, false),
    ("nodev", MsFlags::MS_NODEV, true),
    ("dev", MsFlags::MS_NODEV, false),
    ("noexec", MsFlags::MS_NOEXEC, true),
    ("exec", MsFlags::MS_NOEXEC, false),
    ("sync", MsFlags::MS_SYNCHRONOUS, true),
    ("async", MsFlags::MS_SYNCHRONOUS, false),
    ("dirsync", MsFlags::MS_DIRSYNC, true),
    // Nothing of its own.
    ("defaults", MsFlags::empty(), true),
];

/// Options of the mount itself become flags, of two that contradict each other the later one; the rest is the file
/// system's.
fn split_options(options: &str) -> (MsFlags, String) {
    let (mut flags, mut rest) = (MsFlags::empty(), Vec::new());
    for option in options.split(',').map(str::trim).filter(|option| !option.is_empty()) {
        match FLAGS.iter().find(|(name, ..)| *name == option) {
            Some((_, flag, on)) => flags.set(*flag, *on),
            None => rest.push(option),
        }
    }
    (flags, rest.join(","))
}

/// Bind-mounts a folder, or the device node of a raw volume onto a file. Blocking.
pub fn bind(root: &Root, source: &str, target: &str, read_only: bool) -> Result<Changed> {
    let op = format!("bind {source} at {target}");
    let meta = fs::metadata(source).map_err(|e| KernelError::io(&op, source, &e))?;
    match mounts::at(&mounts::read(root)?, target) {
        Some(now) if same_place(source, target) && now.read_only() == read_only => return Ok(Changed::No),
        Some(_) if same_place(source, target) => return remount(&op, target, read_only).map(|()| Changed::Yes),
        Some(now) => return Err(KernelError::refuse(op, target, format!("{} is mounted there already", now.source))),
        None => {}
    }
    let made = if meta.is_dir() {
        fs::create_dir_all(target)
    } else {
        let parent = Path::new(target).parent().unwrap_or(Path::new("/"));
        let file = || OpenOptions::new().write(true).create(true).truncate(false).open(target);
        fs::create_dir_all(parent).and_then(|()| file()).map(drop)
    };
    made.map_err(|e| KernelError::io(format!("{op}: make the mount point"), target, &e))?;
    let none: Option<&str> = None;
    system(&op, target, nix::mount::mount(Some(source), target, none, MsFlags::MS_BIND, none))?;
    if read_only {
        // A bind takes no other flag at once; a reader who got in between finds it writable for a moment, so the
        // caller publishes the mount only after this answered.
        remount(&op, target, true)?;
    }
    Ok(Changed::Yes)
}

fn remount(op: &str, target: &str, read_only: bool) -> Result<()> {
    let ro = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    let none: Option<&str> = None;
    system(op, target, nix::mount::mount(none, target, none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | ro, none))
}

fn same_place(source: &str, target: &str) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |path: &str| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    place(source).is_some_and(|at| place(target) == Some(at))
}

/// Unmounts every layer at a path and removes the empty mount point. Blocking.
pub fn unmount(root: &Root, target: &str, lazy: bool) -> Result<Changed> {
    let op = format!("unmount {target}");
    let mut changed = Changed::No;
    let flags = if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() } | MntFlags::UMOUNT_NOFOLLOW;
    for _ in 0..LAYERS_MAX {
        if mounts::at(&mounts::read(root)?, target).is_none() {
            return Ok(super::attr::either(changed, remove_mount_point(target)));
        }
        system(&op, target, nix::mount::umount2(target, flags))?;
        changed = Changed::Yes;
    }
    Err(KernelError::bug(op, target, format!("still mounted after {LAYERS_MAX} layers")))
}

/// Removes an empty folder, or the empty file a raw volume was bound to. What is not empty stays: it is not ours.
fn remove_mount_point(target: &str) -> Changed {
    let done = match fs::symlink_metadata(target) {
        Ok(meta) if meta.is_dir() => fs::remove_dir(target),
        Ok(meta) if meta.is_file() && meta.len() == 0 => fs::remove_file(target),
        _ => return Changed::No,
    };
    if done.is_ok() { Changed::Yes } else { Changed::No }
}

/// Shuts the volume's file system down without writing its log: nothing that was not durable becomes so. Blocking.
pub fn shut_down(root: &Root, volume: VolumeId) -> Result<Changed> {
    let op = format!("shutdown-filesystem {}", volume.short());
    let Some(number) = md::find(root, volume).and_then(|name| md::device_number(root, &name)) else {
        return Ok(Changed::No);
    };
    let table = mounts::read(root)?;
    let Some(mount) = mounts::of_device(&table, number).find(|mount| alive(mount)) else { return Ok(Changed::No) };
    let flags = nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC;
    let failed = |e: &std::io::Error| KernelError::io(&op, &mount.target, e);
    let folder =
        OpenOptions::new().read(true).custom_flags(flags.bits()).open(&mount.target).map_err(|e| failed(&e))?;
    let (tell, told) = mpsc::channel();
    let call = move || drop(tell.send(ioctl::goingdown(folder.as_fd(), GoingDown::NoLogFlush)));
    std::thread::Builder::new().name("shutdown".into()).spawn(call).map_err(|e| failed(&e))?;
    // ext4 refuses everything at once and then writes its journal's superblock (`jbd2_journal_abort`), which waits for a
    // member that is away for as long as the array has it: the caller would wait for what it has yet to let go.
    let begin = Instant::now();
    loop {
        match told.recv_timeout(LOOK_AGAIN) {
            Ok(done) => return done.map(|()| Changed::Yes).map_err(|e| failed(&e)),
            Err(_) if !alive(mount) => return Ok(Changed::Yes),
            Err(_) if begin.elapsed() < SHUTDOWN_DEADLINE => {}
            Err(_) => return Err(KernelError::retry(op, &mount.target, "the file system does not shut down")),
        }
    }
}

fn system(op: &str, path: &str, done: nix::Result<()>) -> Result<()> {
    done.map_err(|errno| KernelError::io(op, path, &errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_told_by_their_bytes() {
        let mut head = vec![0; HEAD_BYTES];
        assert_eq!(signature(&head), None);
        head[5000] = 1;
        assert_eq!(signature(&head).as_deref(), Some("unknown"));
        head[1080..1082].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(signature(&head).as_deref(), Some("ext4"));
        head[..4].copy_from_slice(b"XFSB");
        assert_eq!(signature(&head).as_deref(), Some("xfs"));
        head[1080..1082].fill(0);
        head[XFS_IN_PROGRESS] = 1;
        assert_eq!(signature(&head).as_deref(), Some("unknown"), "mkfs has not finished it");
    }

    #[test]
    fn generic_options_become_flags() {
        let (flags, data) = split_options("rw,noatime,nouuid, ro,logbufs=8,");
        assert_eq!(flags, MsFlags::MS_NOATIME | MsFlags::MS_RDONLY);
        assert_eq!(data, "nouuid,logbufs=8");
        assert_eq!(split_options(""), (MsFlags::empty(), String::new()));
        assert_eq!(split_options("nosuid,noexec,suid,defaults").0, MsFlags::MS_NOEXEC);
    }

    #[test]
    fn only_a_redo_is_forced() {
        assert_eq!(mkfs_xfs("/dev/md1000", false, false), ["-q", "-K", "/dev/md1000"]);
        let redo = mkfs_xfs("/dev/md1000", true, true);
        assert!(redo.contains(&"-f".to_string()) && redo.contains(&format!("options={XFS_FLOOR}")));
        assert!(!mkfs_ext4("/dev/md1000", false).contains(&"-F".to_string()));
        assert!(mkfs_ext4("/dev/md1000", true).contains(&"-F".to_string()));
    }

    /// The tool itself, where this machine has it: the arguments are understood, what is made is told by its bytes, and
    /// its features are ours alone.
    #[test]
    fn what_mkfs_ext4_makes_is_told_by_its_bytes_and_has_no_feature_of_its_own() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(300 << 20).unwrap();
        let path = image.path().to_str().unwrap();
        let tool = std::process::Command::new("/usr/sbin/mkfs.ext4").args(mkfs_ext4(path, true)).output();
        let Ok(output) = tool else { return };
        assert!(output.status.success(), "{output:?}");
        let bytes = fs::read(path).unwrap();
        assert_eq!(signature(&bytes[..HEAD_BYTES]).as_deref(), Some("ext4"));
        // s_feature_compat, _incompat, _ro_compat at 0x5c of the superblock (fs/ext4/ext4.h).
        let word = |at: usize| u32::from_le_bytes(bytes[1024 + at..1028 + at].try_into().unwrap());
        assert_eq!([word(0x5c), word(0x60), word(0x64)], [0x3c, 0x2c2, 0x46b]);
        assert_eq!(word(0x18), 2, "blocks of 4096 bytes");
    }

    #[test]
    fn only_an_ext4_that_went_read_only_by_itself_is_dead_for_that() {
        let temp = tempfile::tempdir().unwrap();
        let at = |fs: &str, options: &str, super_options: &str| {
            let target = temp.path().display();
            let line = format!("9 1 9:1000 / {target} {options} - {fs} /dev/md1000 {super_options}");
            alive(&mounts::parse(&line)[0])
        };
        assert!(at("ext4", "rw", "rw") && at("ext4", "ro", "ro") && at("ext4", "ro", "rw"));
        assert!(!at("ext4", "rw", "ro") && !at("ext4", "rw", "rw,shutdown"));
        assert!(at("xfs", "rw", "rw"));
    }

    #[test]
    fn a_mount_point_with_something_in_it_stays() {
        let temp = tempfile::tempdir().unwrap();
        let (full, empty) = (temp.path().join("full"), temp.path().join("empty"));
        fs::create_dir_all(full.join("x")).unwrap();
        fs::write(&empty, "").unwrap();
        assert_eq!(remove_mount_point(full.to_str().unwrap()), Changed::No);
        assert_eq!(remove_mount_point(empty.to_str().unwrap()), Changed::Yes);
        assert!(full.exists() && !empty.exists());
    }

    #[test]
    fn what_is_not_mounted_is_unmounted_already() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        fs::create_dir_all(root.proc.join("self")).unwrap();
        fs::write(root.proc.join("self/mountinfo"), "").unwrap();
        let target = temp.path().join("m");
        assert_eq!(unmount(&root, target.to_str().unwrap(), false), Ok(Changed::No));
        fs::create_dir(&target).unwrap();
        assert_eq!(unmount(&root, target.to_str().unwrap(), false), Ok(Changed::Yes), "the empty folder goes");
    }

    #[test]
    fn bind_mounts_for_real_where_the_machine_lets_us() {
        let temp = tempfile::tempdir().unwrap();
        let (source, target) = (temp.path().join("source"), temp.path().join("target"));
        fs::create_dir(&source).unwrap();
        let (source, target) = (source.to_str().unwrap(), target.to_str().unwrap());
        let root = Root::host();
        match bind(&root, source, target, true) {
            Err(e) if e.errno == Some(Errno::EPERM as i32) => return,
            other => assert_eq!(other, Ok(Changed::Yes)),
        }
        assert_eq!(bind(&root, source, target, true), Ok(Changed::No));
        assert!(fs::write(Path::new(target).join("x"), "").is_err());
        assert_eq!(bind(&root, source, target, false), Ok(Changed::Yes));
        assert_eq!(unmount(&root, target, false), Ok(Changed::Yes));
        assert_eq!(unmount(&root, target, false), Ok(Changed::No));
    }
}
