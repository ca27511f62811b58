//! Operations on MD arrays through sysfs, blocking: assemble, activate, sync, bitmap bits, member flags, stop.
//!
//! Called by the seam on the blocking pool. What needs a superblock written is mdadm's (`mdadm.rs`). It writes
//! `faulty` only to a local member that the record is without, and never uses `want_replacement`: the first can hang or
//! break the last copy, the second moves the truth without asking (docs/protocol.md, moves).

pub mod grow;
mod stop;

use super::attr;
use super::fabrics;
use super::md::{self, Minors};
use super::root::Root;
use crate::error::{KernelError, Result};
use crate::id::VolumeId;
use crate::ops::Changed;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use stop::clear;
pub use stop::{stop, stop_foreign};

/// MD clears bits of the bitmap that nobody needs, on disk, some seconds after assembly, read-only or not
/// (md-bitmap.c `bitmap_daemon_work`, called by `md_check_recovery` before it looks at `ro`). An hour is enough for any
/// merge; [`release_sync`] sets the ordinary 5 s again.
const DAEMON_ASLEEP: &str = "3600";
const DAEMON_AWAKE: &str = "5";
/// udev opens a device for a moment after each event; a stop meets EBUSY meanwhile.
const BUSY_DEADLINE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// sysfs takes at most a page for each write, its final zero included.
const WRITE_MAX: usize = 4000;

/// The array's folder, or an error that says there is none.
pub fn array(root: &Root, op: &str, volume: VolumeId) -> Result<(String, PathBuf)> {
    let name = md::find(root, volume);
    let name = name.ok_or_else(|| KernelError::refuse(op, volume.short(), "the volume has no array on this node"))?;
    let dir = md::dir(root, &name);
    Ok((name, dir))
}

fn state(dir: &Path) -> String {
    attr::read_opt(&dir.join("array_state")).unwrap_or_default()
}

/// Whether the array runs read-write; an array that does not run at all is an error.
fn writable(op: &str, dir: &Path) -> Result<bool> {
    match state(dir).as_str() {
        "readonly" | "read-auto" => Ok(false),
        "clean" | "active" | "active-idle" | "write-pending" => Ok(true),
        other => Err(KernelError::refuse(op, attr::show(dir), format!("the array is {other:?}"))),
    }
}

// ------------------------------------------------------------------------------------------- assemble

/// Assembles read-only, with sync frozen and the bitmap daemon asleep, from exactly these devices. Through sysfs, not
/// mdadm: nothing is guessed from names, no other device joins, nothing is written but the bitmap's own header.
pub fn assemble(root: &Root, minors: &Minors, volume: VolumeId, devices: &[String]) -> Result<Changed> {
    let op = format!("assemble-array {}", volume.short());
    let wanted: BTreeSet<String> = devices.iter().map(|device| md::component(device)).collect();
    if let Some(name) = md::find(root, volume) {
        return already(root, &op, &name, &wanted);
    }
    clear_half_made(root, &wanted);
    for component in &wanted {
        let holders = md::holders(root, component);
        if !holders.is_empty() {
            return Err(KernelError::wait(&op, component, format!("{} holds it", holders.join(", "))));
        }
    }
    let name = new_array(root, &op, minors)?;
    let done = run_read_only(root, &op, &name, volume, &wanted);
    if done.is_err() {
        // Best effort: a half-made array is cleared by the next attempt as well.
        let _ = clear(root, &op, &name);
    }
    done.map(|()| Changed::Yes)
}

/// The array exists: it must be made of exactly these members, and while it is read-only its sync must be frozen.
fn already(root: &Root, op: &str, name: &str, wanted: &BTreeSet<String>) -> Result<Changed> {
    let dir = md::dir(root, name);
    let bound: BTreeSet<String> = md::members(&dir).into_keys().collect();
    if bound != *wanted {
        return Err(KernelError::refuse(op, name, format!("it is assembled from {bound:?}, not from {wanted:?}")));
    }
    if writable(op, &dir)? { Ok(Changed::No) } else { hold(op, &dir) }
}

fn new_array(root: &Root, op: &str, minors: &Minors) -> Result<String> {
    let path = root.sys.join("module/md_mod/parameters/new_array");
    for _ in 0..10 {
        let minor = minors.next(root);
        let minor = minor.ok_or_else(|| KernelError::wait(op, attr::show(&path), "all minors are taken"))?;
        let name = format!("md{minor}");
        match attr::write(op, &path, &name) {
            // Somebody opened the node of a stopped array, which makes an empty one (md.c `md_probe`).
            Err(e) if e.errno == Some(nix::errno::Errno::EEXIST as i32) => {}
            other => return other.map(|()| name),
        }
    }
    Err(KernelError::retry(op, attr::show(&path), "ten minors in a row were taken while we looked"))
}

fn run_read_only(root: &Root, op: &str, name: &str, volume: VolumeId, wanted: &BTreeSet<String>) -> Result<()> {
    let dir = md::dir(root, name);
    attr::write(op, &dir.join("metadata_version"), "1.2")?;
    for component in wanted {
        let number = root.sys.join("class/block").join(component).join("dev");
        let number = attr::read(&number).map_err(|e| KernelError::io(op, attr::show(&number), &e))?;
        attr::write(op, &dir.join("new_dev"), &number).map_err(|e| KernelError { path: component.clone(), ..e })?;
    }
    attr::write(op, &dir.join("array_state"), "readonly")?;
    if md::uuid(root, name) != Some(volume.md_uuid()) {
        return Err(KernelError::refuse(op, name, "the members are of another array"));
    }
    // The kernel drops members whose superblock is behind (md.c `analyze_sbs`): then this is not what was asked for.
    let bound: BTreeSet<String> = md::members(&dir).into_keys().collect();
    if bound != *wanted {
        return Err(KernelError::refuse(op, name, format!("of {wanted:?} the kernel took only {bound:?}")));
    }
    hold(op, &dir).map(drop)
}

/// Keeps everything as it is on disk: no sync, no clearing of bits.
fn hold(op: &str, dir: &Path) -> Result<Changed> {
    let frozen = attr::set(op, &dir.join("sync_action"), "frozen")?;
    if md::has_bitmap(dir) {
        attr::write(op, &dir.join("bitmap/time_base"), DAEMON_ASLEEP)?;
    }
    Ok(frozen)
}

/// Clears arrays of our range that never ran and hold one of these components: a crash left them between two steps.
pub fn clear_half_made(root: &Root, components: &BTreeSet<String>) {
    for name in md::names(root) {
        let dir = md::dir(root, &name);
        let ours = md::members(&dir).into_keys().any(|component| components.contains(&component));
        if ours && matches!(state(&dir).as_str(), "inactive" | "clear") {
            tracing::warn!(name, "clearing a half-made array");
            let _ = clear(root, "clear half-made array", &name);
        }
    }
}

/// Makes an assembled array read-write; sync stays frozen.
pub fn activate(root: &Root, volume: VolumeId) -> Result<Changed> {
    let op = format!("activate-array {}", volume.short());
    let (_, dir) = array(root, &op, volume)?;
    if writable(&op, &dir)? {
        return Ok(Changed::No);
    }
    // A crash between run and freeze must not let a resync start before the bitmaps are merged.
    hold(&op, &dir)?;
    attr::write(&op, &dir.join("array_state"), "active")?;
    Ok(Changed::Yes)
}

// ----------------------------------------------------------------------------------------------- sync

/// Lets sync run, wakes the bitmap daemon and keeps the array from going clean between writes: each dirty-clean change
/// writes every superblock, the remote ones too, and the bitmap makes a dirty array cheap.
pub fn release_sync(root: &Root, volume: VolumeId) -> Result<Changed> {
    let op = format!("release-sync {}", volume.short());
    let (name, dir) = array(root, &op, volume)?;
    if !writable(&op, &dir)? {
        return Err(KernelError::refuse(op, name, "the array is read-only"));
    }
    let mut changed = Changed::No;
    if !md::safe_mode_off(&dir) {
        attr::write(&op, &dir.join("safe_mode_delay"), "0")?;
        changed = Changed::Yes;
    }
    if md::has_bitmap(&dir) && attr::read_opt(&dir.join("bitmap/time_base")).as_deref() == Some(DAEMON_ASLEEP) {
        attr::write(&op, &dir.join("bitmap/time_base"), DAEMON_AWAKE)?;
        changed = Changed::Yes;
    }
    let action = attr::read_opt(&dir.join("sync_action")).unwrap_or_default();
    // Idle with a resync pending: bits were set after the last look of MD's thread, it has to be sent again.
    if action == "frozen" || (action == "idle" && !md::resync_done(&dir)) {
        attr::write(&op, &dir.join("sync_action"), "idle")?;
        changed = Changed::Yes;
    }
    Ok(changed)
}

/// Marks chunks for resync in the running array and on its members. Always done when asked for: a bit that is set on
/// disk may still be one that MD does not mean to resync (F1), and the two look the same from outside.
pub fn merge_bitmap(root: &Root, volume: VolumeId, chunks: &BTreeSet<u64>) -> Result<Changed> {
    let op = format!("merge-bitmap {}", volume.short());
    let (name, dir) = array(root, &op, volume)?;
    if chunks.is_empty() {
        return Ok(Changed::No);
    }
    let refuse = |detail: String| Err(KernelError::refuse(&op, &name, detail));
    if !writable(&op, &dir)? {
        return refuse("the array is read-only".into());
    }
    if !md::has_bitmap(&dir) {
        return refuse("the array has no bitmap".into());
    }
    // Setting a bit moves resync_offset down, and reads above it go to the lowest slot, in sync or not (F17).
    let recovering = |m: &crate::facts::MemberFact| m.slot.is_some() && !m.in_sync() && !m.flags.contains("faulty");
    if md::members(&dir).values().any(recovering) {
        return Err(KernelError::wait(op, name, "a member is recovering"));
    }
    let limit = chunk_count(&dir);
    if let Some(beyond) = chunks.iter().find(|chunk| limit.is_none_or(|limit| **chunk >= limit)) {
        // The kernel does not check: it would write past its own bitmap (md-bitmap.c `bitmap_dirty_bits`).
        return refuse(format!("chunk {beyond} lies beyond the array's {limit:?} chunks"));
    }
    for text in ranges(chunks) {
        attr::write(&op, &dir.join("bitmap_set_bits"), &text)?;
    }
    Ok(Changed::Yes)
}

fn chunk_count(dir: &Path) -> Option<u64> {
    let bytes = attr::read_number::<u64>(&dir.join("component_size"))?.checked_mul(1024)?;
    let chunk = attr::read_number::<u64>(&dir.join("bitmap/chunksize")).filter(|chunk| *chunk > 0)?;
    Some(bytes.div_ceil(chunk))
}

/// Chunks in the kernel's notation, `3 7-9`, cut into writes that sysfs takes.
fn ranges(chunks: &BTreeSet<u64>) -> Vec<String> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for chunk in chunks {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *chunk => *last = *chunk,
            _ => runs.push((*chunk, *chunk)),
        }
    }
    let mut writes = vec![String::new()];
    for (first, last) in runs {
        let run = if first == last { first.to_string() } else { format!("{first}-{last}") };
        if writes.last().is_some_and(|write| write.len() + run.len() >= WRITE_MAX) {
            writes.push(String::new());
        }
        if let Some(write) = writes.last_mut() {
            write.push_str(if write.is_empty() { "" } else { " " });
            write.push_str(&run);
        }
    }
    writes
}

// --------------------------------------------------------------------------------------------- members

/// Makes MD fail a local member, which no controller's end would take out. Only where `faulty` can neither hang on MD's
/// mutex (a superblock being written holds it) nor meet the last member (`raid1_error` would set MD_BROKEN): looked at in
/// the same step.
pub fn fail_member(root: &Root, volume: VolumeId, component: &str, survivor: &str) -> Result<Changed> {
    let op = format!("fail-member {} {component}", volume.short());
    let (name, dir) = array(root, &op, volume)?;
    if md::member(&dir, component).is_none_or(|member| member.flags.contains("faulty")) {
        return Ok(Changed::No);
    } else if survivor == component {
        return Err(KernelError::refuse(op, survivor, "it is itself the member that leaves"));
    }
    let now = state(&dir);
    if !matches!(now.as_str(), "clean" | "active" | "active-idle") {
        return Err(KernelError::wait(op, name, format!("the array is {now:?}")));
    } else if !md::member(&dir, survivor).is_some_and(|member| member.in_sync()) || !fabrics::answers(root, survivor) {
        return Err(KernelError::refuse(op, survivor, "the survivor is not in sync, or does not answer"));
    }
    attr::write(&op, &dir.join(format!("dev-{component}/state")), "faulty")?;
    Ok(Changed::Yes)
}

/// Detaches a member that MD has failed.
pub fn remove_faulty(root: &Root, volume: VolumeId, component: &str) -> Result<Changed> {
    let op = format!("remove-faulty {} {component}", volume.short());
    let (_, dir) = array(root, &op, volume)?;
    match md::member(&dir, component) {
        None => Ok(Changed::No),
        Some(member) if !member.flags.contains("faulty") => {
            Err(KernelError::refuse(op, component, "the member is not faulty"))
        }
        Some(_) => {
            // EBUSY while requests of its former life are still with it.
            busy(|| attr::write(&op, &dir.join(format!("dev-{component}/state")), "remove"))?;
            Ok(Changed::Yes)
        }
    }
}

/// Freezes or releases all writes through one member: MD waits before each write while a member is blocked.
pub fn freeze_writes(root: &Root, volume: VolumeId, component: &str, frozen: bool) -> Result<Changed> {
    let op = format!("freeze-writes {} {component}", volume.short());
    let words = if frozen { "blocked" } else { "-blocked" };
    flag(root, &op, volume, component, "blocked", frozen, words)
}

/// Sets or clears write-mostly. Not before the resync is done: until then reads go to the lowest slot anyway and would
/// change their answer when the flag comes (F17).
pub fn set_write_mostly(root: &Root, volume: VolumeId, component: &str, on: bool) -> Result<Changed> {
    let op = format!("set-write-mostly {} {component}", volume.short());
    let (name, dir) = array(root, &op, volume)?;
    if on && !md::resync_done(&dir) {
        return Err(KernelError::wait(op, name, "a resync is pending"));
    }
    let words = if on { "writemostly" } else { "-writemostly" };
    flag(root, &op, volume, component, "write_mostly", on, words)
}

fn flag(
    root: &Root,
    op: &str,
    volume: VolumeId,
    component: &str,
    flag: &str,
    on: bool,
    words: &str,
) -> Result<Changed> {
    let (_, dir) = array(root, op, volume)?;
    let member = md::member(&dir, component);
    let member = member.ok_or_else(|| KernelError::refuse(op, component, "the array has no such member"))?;
    if member.flags.contains(flag) == on {
        return Ok(Changed::No);
    }
    // One that is still copied to can be frozen as well: it is about to be one that the kernel counts (rule 3).
    let (may, lacks) = match flag {
        "blocked" => (!member.flags.contains("faulty"), "the member is faulty"),
        _ => (member.in_sync(), "the member is not in sync"),
    };
    if on && !may {
        return Err(KernelError::refuse(op, component, lacks));
    }
    attr::write(op, &dir.join(format!("dev-{component}/state")), words)?;
    Ok(Changed::Yes)
}

/// Changes the number of slots.
pub fn set_raid_disks(root: &Root, volume: VolumeId, count: u32) -> Result<Changed> {
    let op = format!("set-raid-disks {} {count}", volume.short());
    let (_, dir) = array(root, &op, volume)?;
    attr::set(&op, &dir.join("raid_disks"), &count.to_string())
}

/// Repeats what the kernel answers with EBUSY, for a moment.
fn busy(mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let end = Instant::now() + BUSY_DEADLINE;
    loop {
        match attempt() {
            Err(e) if e.errno == Some(nix::errno::Errno::EBUSY as i32) && Instant::now() < end => {
                std::thread::sleep(LOOK_AGAIN);
            }
            other => return other,
        }
    }
}

#[cfg(test)]
#[path = "mdops_tests.rs"]
mod tests;
