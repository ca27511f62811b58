//! Hints from MD: a thread that polls `/proc/mdstat` and the attributes of our arrays for `POLLPRI`.
//!
//! Started by the seam. MD sends no uevent for a failed member, a degraded array or a recovery (seen on 6.12); sysfs
//! notifies instead. It never reads a value for its meaning: reading only arms the next notification (fs/kernfs/file.c).

use super::attr;
use super::md;
use super::root::Root;
use crate::hint::Hint;
use crate::id::VolumeId;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::broadcast;
use uuid::Uuid;

/// How often the list of watched files is made anew when nothing happens, and a sleeping thread looks whether to end.
const WAKE_MS: u16 = 1000;
/// The attributes that MD notifies (md.c, callers of `sysfs_notify_dirent_safe`).
const ATTRIBUTES: [&str; 4] = ["array_state", "sync_action", "degraded", "sync_completed"];

/// Which volume an array uuid belongs to. The uuid is derived from the volume's and cannot be turned back, so every
/// volume that passes through the seam is noted.
#[derive(Debug, Clone, Default)]
pub struct Volumes(Arc<Mutex<BTreeMap<Uuid, VolumeId>>>);

impl Volumes {
    /// Remembers a volume.
    pub fn note(&self, volume: VolumeId) {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).entry(volume.md_uuid()).or_insert(volume);
    }

    /// The volume of an array of ours.
    pub fn of_array(&self, root: &Root, name: &str) -> Option<VolumeId> {
        let uuid = md::uuid(root, name)?;
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get(&uuid).copied()
    }
}

struct Watched {
    file: File,
    array: Option<String>,
}

/// Watches until `stop` is set.
pub fn start(root: Root, volumes: Volumes, hints: broadcast::Sender<Hint>, stop: Arc<AtomicBool>) {
    let watch = move || {
        let mut watched = BTreeMap::new();
        let mut there = all(&root);
        while !stop.load(Ordering::Relaxed) {
            renew(&root, &mut watched);
            for array in round(&mut watched) {
                // `/proc/mdstat` tells of every change of every array; the arrays' own files say which. It alone tells
                // of arrays that come and go, the host's own among them.
                let Some(name) = array else {
                    let now = all(&root);
                    if std::mem::replace(&mut there, now.clone()) != now {
                        let _ = hints.send(Hint::Arrays);
                    }
                    continue;
                };
                let _ = hints.send(volumes.of_array(&root, &name).map_or(Hint::Arrays, Hint::Array));
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("md-watch".into()).spawn(watch) {
        tracing::error!(%error, "the md thread could not be started; arrays are seen at the periodic looks only");
    }
}

/// Names of all arrays, whoever made them.
fn all(root: &Root) -> Vec<String> {
    let mut names = attr::names(&root.sys.join("block"));
    names.retain(|name| name.starts_with("md"));
    names.sort();
    names
}

/// Opens what is new and forgets what is gone. Files stay open over rounds: a notification between two opens is lost.
fn renew(root: &Root, watched: &mut BTreeMap<PathBuf, Watched>) {
    let mut wanted: Vec<(PathBuf, Option<String>)> = vec![(root.proc.join("mdstat"), None)];
    for name in md::names(root) {
        let dir = md::dir(root, &name);
        let members = attr::names(&dir).into_iter().filter(|entry| entry.starts_with("dev-"));
        let files = ATTRIBUTES.iter().map(|attribute| dir.join(attribute));
        let files = files.chain(members.map(|member| dir.join(member).join("state")));
        wanted.extend(files.map(|file| (file, Some(name.clone()))));
    }
    watched.retain(|path, _| wanted.iter().any(|(wanted, _)| wanted == path));
    for (path, array) in wanted {
        if let (false, Ok(file)) = (watched.contains_key(&path), File::open(&path)) {
            let mut entry = Watched { file, array };
            arm(&mut entry);
            watched.insert(path, entry);
        }
    }
}

/// Reads the file from its start: without that `poll` reports the old news again.
fn arm(entry: &mut Watched) -> bool {
    let mut text = Vec::new();
    entry.file.seek(SeekFrom::Start(0)).and_then(|_| entry.file.read_to_end(&mut text)).is_ok()
}

/// Waits for news and answers whose: `None` for an array that is not known by name.
fn round(watched: &mut BTreeMap<PathBuf, Watched>) -> Vec<Option<String>> {
    let mut fds: Vec<PollFd> = watched
        .values()
        .map(|entry| PollFd::new(entry.file.as_fd(), PollFlags::POLLPRI | PollFlags::POLLERR))
        .collect();
    if fds.is_empty() {
        // Neither md nor its proc file is there yet.
        std::thread::sleep(std::time::Duration::from_millis(WAKE_MS.into()));
        return Vec::new();
    }
    if poll(&mut fds, PollTimeout::from(WAKE_MS)).unwrap_or(0) == 0 {
        return Vec::new();
    }
    let news = PollFlags::POLLPRI | PollFlags::POLLERR;
    let ready: Vec<bool> = fds.iter().map(|fd| fd.revents().is_some_and(|events| events.intersects(news))).collect();
    let mut changed = Vec::new();
    let mut dead = Vec::new();
    for ((path, entry), _) in watched.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
        // A removed member's file answers ENODEV for ever: it would keep the poll awake.
        if !arm(entry) {
            dead.push(path.clone());
        }
        if !changed.contains(&entry.array) {
            changed.push(entry.array.clone());
        }
    }
    dead.iter().for_each(|path| drop(watched.remove(path)));
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::md::tests::{array, volume};

    #[test]
    fn the_list_follows_the_arrays_that_are_there() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        let mut watched = BTreeMap::new();
        renew(&root, &mut watched);
        assert_eq!(watched.len(), 0);
        array(&root, "md1004");
        array(&root, "md127");
        renew(&root, &mut watched);
        // Four attributes and two members; the foreign array is not watched.
        assert_eq!(watched.len(), 6);
        std::fs::remove_dir_all(md::dir(&root, "md1004").join("dev-nvme3n1")).unwrap();
        renew(&root, &mut watched);
        assert_eq!(watched.len(), 5);
    }

    #[test]
    fn an_array_leads_back_to_a_volume_that_was_noted() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        array(&root, "md1004");
        let volumes = Volumes::default();
        assert_eq!(volumes.of_array(&root, "md1004"), None);
        volumes.note(volume());
        assert_eq!(volumes.of_array(&root, "md1004"), Some(volume()));
    }
}
