//! The crash that the regressions begin with: a write that reached one member of two and was never acknowledged.
//!
//! node-a is the consumer, with replica r0 on its own drive (slot 0) and r1 on node-b's (slot 1, over TCP). Block `K`
//! carries an acknowledged `X`; the storage cable is cut, `W` goes to the same block, and node-a loses its power. Every
//! step is checked, so that a run in which the crash did not happen is not taken for one.

use anyhow::{Context, Result, bail, ensure};
use meshstor_lab::{Guest, Lab};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The contested block (4 KiB), in the bitmap's first chunk.
pub const K: u64 = 1000;
/// A block in the third chunk, for a write that is acknowledged after the takeover.
pub const LATER: u64 = 40_000;
/// Members' data begin here (`DATA_OFFSET` of the kernel crate), in blocks.
const DATA: u64 = 1024;
/// Longer than MD's bitmap daemon needs for its passes (5 s each) under emulation.
const DAEMON: Duration = Duration::from_secs(90);

/// The two machines after the crash.
pub struct Crash {
    /// The consumer that lost its power.
    pub a: Guest,
    /// The survivor.
    pub b: Guest,
}

/// Two blank machines; node-b's replica r1 is exported to node-a and connected there.
pub fn pair(lab: &Lab) -> Result<(Guest, Guest)> {
    let (a, b) = exported(lab)?;
    connected(&a, &b)?;
    Ok((a, b))
}

/// Two blank machines; node-b's replica r1 is exported to node-a, which has not connected yet.
pub fn exported(lab: &Lab) -> Result<(Guest, Guest)> {
    let (a, b) = (lab.guest("node-a")?, lab.guest("node-b")?);
    for guest in [&a, &b] {
        // The drive with 512-byte sectors would do as well, but both members need the same.
        guest.drive_pull(1)?;
    }
    suite(&b, &["prepare r1 320", &format!("y export r1 1 1 node-a t:{}:5001", b.address())])?;
    suite(&a, &["prepare r0 320"])?;
    Ok((a, b))
}

/// node-a connects to what node-b has [`exported`].
pub fn connected(a: &Guest, b: &Guest) -> Result<()> {
    suite(a, &[&format!("y connect r1 1 1 t:{}:5001", b.address()), "until conn r1 1 1 head:Some("]).map(drop)
}

/// Bytes of a component of the array that [`pair`] can carry.
pub const COMPONENT: u64 = 256 << 20;

/// A writer on the array of a guest that runs for ever; [`count_acks`] says how far it is.
pub fn start_writing(guest: &Guest) -> Result<()> {
    let array = array(guest)?;
    let writer = format!("/host/meshstor-demo write --file {array} --blocks 64");
    guest.ssh_checked(&format!("setsid nohup {writer} >/tmp/acks 2>&1 </dev/null & echo $! >/tmp/writer.pid")).map(drop)
}

/// MD's level of the array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Mirrors, as all volumes are today.
    Raid1,
    /// Stripes of mirrors; with two members the blocks lie where RAID1 has them.
    Raid10,
}

/// Creates the array of [`pair`]'s two members on node-a. The product has no striped volumes, so theirs is made by hand,
/// with the product's own values.
fn create(a: &Guest, level: Level) -> Result<()> {
    if level == Level::Raid1 {
        return suite(a, &[&format!("once create {COMPONENT} local:r0 head:r1:1:1")]).map(drop);
    }
    let told = suite(a, &["uuid"])?;
    let uuid = told.split_whitespace().find(|word| word.len() == 36).context("no uuid")?;
    let (part, head) = (partition(a)?, head(a)?);
    a.ssh_checked(&format!(
        "mdadm -q --create /dev/md1000 --run --metadata=1.2 --level=10 --layout=n2 --raid-devices=2 --assume-clean \
         --data-offset=4096K --size={}K --uuid={uuid} --name=ms-suite --homehost=none --bitmap=internal \
         --bitmap-chunk=65536K {part} {head} && echo 0 >/sys/block/md1000/md/safe_mode_delay",
        COMPONENT >> 10
    ))
    .map(drop)
}

/// Builds the array, crashes the consumer. With `flagged` the consumer's own member is write-mostly in the superblocks,
/// as after a move there and back.
pub fn make(lab: &Lab, level: Level, flagged: bool) -> Result<Crash> {
    let (a, b) = pair(lab)?;
    create(&a, level)?;
    if flagged {
        // The product creates remote members with the flag; mdadm was not told to.
        let other = if level == Level::Raid1 { "y" } else { "n" };
        suite(&a, &["y wm local:r0 on", &format!("{other} wm head:r1:1:1 off")])?;
    }
    let array = array(&a)?;
    put(&a, &array, K, 'X')?;
    start_writing(&a)?;
    // Until the bitmap's events_cleared has caught up: what makes the kernel take the bits for settled.
    std::thread::sleep(Duration::from_secs(12));
    let acks = count_acks(&a)?;
    ensure!(acks > 20, "a healthy array acknowledged {acks} writes only");
    let parts = [partition(&a)?, partition(&b)?];
    for (guest, part) in [&a, &b].into_iter().zip(&parts) {
        let (value, dirty) = (raw(guest, part, K)?, dirty(guest, part)?);
        ensure!(value == 'X' && dirty.contains(&0), "{}: {value:?}, dirty {dirty:?}", guest.name());
    }
    b.cable(false)?;
    std::thread::sleep(Duration::from_secs(2));
    let line = write_line(&array, K, 'W');
    a.ssh_checked(&format!(
        "setsid nohup sh -c '{line}; echo acknowledged >/tmp/w.ack' >/tmp/w.log 2>&1 </dev/null &"
    ))?;
    std::thread::sleep(Duration::from_secs(3));
    let (on_a, on_b) = (raw(&a, &parts[0], K)?, raw(&b, &parts[1], K)?);
    let acknowledged = a.ssh("[ -e /tmp/w.ack ]")?.ok();
    ensure!((on_a, on_b) == ('W', 'X'), "the last write is on the wrong members: r0 {on_a:?}, r1 {on_b:?}");
    ensure!(!acknowledged, "the last write was acknowledged");
    a.power_cut()?;
    b.cable(true)?;
    suite(&b, &["once fence r1 1 1"])?;
    Ok(Crash { a, b })
}

impl Crash {
    /// node-a gets its power back and exports its replica to node-b. Returns the device on node-b.
    pub fn comes_back(&self) -> Result<String> {
        self.a.power_on()?;
        let held = self.a.ssh_checked("grep ^md /proc/mdstat || true")?;
        ensure!(held.is_empty(), "something assembled the returning member before us: {held}");
        let address = format!("t:{}:5002", self.a.address());
        suite(&self.a, &[&format!("y export r0 2 1 node-b {address}")])?;
        suite(&self.b, &[&format!("y connect r0 2 1 {address}"), "until conn r0 2 1 head:Some("])?;
        head(&self.b)
    }

    /// Both members' own value of a block, r0 first.
    pub fn members(&self, block: u64) -> Result<(char, char)> {
        Ok((raw(&self.a, &partition(&self.a)?, block)?, raw(&self.b, &partition(&self.b)?, block)?))
    }
}

/// What the array on a guest answers, ten times, each answer once.
pub fn answers(guest: &Guest, block: u64) -> Result<BTreeSet<char>> {
    let array = array(guest)?;
    (0..10).map(|_| read(guest, &array, block)).collect()
}

/// Waits until chunk 0 is no longer dirty on a member's drive; `None` when that does not happen.
pub fn forgotten(guest: &Guest, part: &str) -> Result<Option<Duration>> {
    let begin = Instant::now();
    while begin.elapsed() < DAEMON {
        if !dirty(guest, part)?.contains(&0) {
            return Ok(Some(begin.elapsed()));
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(None)
}

/// A connected member, such as `r0:2:1`, comes back to the array by its own bitmap and the array's (rule 6).
pub fn return_by_bitmaps(guest: &Guest, life: &str) -> Result<()> {
    let device = head(guest)?;
    let own: Vec<String> = dirty(guest, &device)?.iter().map(u64::to_string).collect();
    let merge = format!("once merge {}", own.join(" "));
    suite(guest, &[&merge, "once release", "until array resync_done:true", "until array sync_action:\"idle\""])?;
    suite(guest, &[&format!("once readd head:{life}")]).map(drop)
}

/// The device of the one connection that a guest has.
pub fn head(guest: &Guest) -> Result<String> {
    let find = "for s in /sys/class/nvme-subsystem/*; do grep -q meshstor $s/subsysnqn && \
                ls $s | grep -E '^nvme[0-9]+n[0-9]+$'; done | head -1";
    Ok(format!("/dev/{}", guest.ssh_checked(find)?.trim()))
}

/// Waits until the array on a guest has no member missing and no sync running or pending.
pub fn await_whole(guest: &Guest) -> Result<()> {
    let array = array(guest)?;
    let md = format!("/sys/block/{}/md", array.trim_start_matches("/dev/"));
    let ask = format!("cat {md}/degraded {md}/sync_action {md}/resync_start | tr '\\n' ' '");
    let begin = Instant::now();
    loop {
        let now = guest.ssh_checked(&ask)?;
        if now.trim() == "0 idle none" {
            return Ok(());
        }
        ensure!(begin.elapsed() < Duration::from_secs(120), "the array is still {now:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Lines for the kernel crate's console in a guest; each must do what it says. A release may find nothing to do.
pub fn suite(guest: &Guest, lines: &[&str]) -> Result<String> {
    let name = guest.name();
    let out = guest.ssh_with_input(&format!("/host/examples/kernel-suite {name}"), lines.join("\n").as_bytes())?;
    let told = out.stdout.lines().filter(|line| line.starts_with("FAIL") && !line.contains("once release"));
    let failures: Vec<&str> = told.collect();
    if !failures.is_empty() || !out.ok() || !out.stdout.contains("READY") {
        bail!("{name}: {} {}", failures.join("\n"), out.stderr.trim());
    }
    Ok(out.stdout)
}

/// Chunks that a member's own bitmap on its drive has as dirty.
pub fn dirty(guest: &Guest, device: &str) -> Result<BTreeSet<u64>> {
    let told = suite(guest, &[&format!("probe {device}")])?;
    let list = told.split_once("dirty: {").and_then(|(_, rest)| rest.split_once('}'));
    let (list, _) = list.with_context(|| format!("no bitmap in {told}"))?;
    list.split(',').map(str::trim).filter(|n| !n.is_empty()).map(|n| Ok(n.parse()?)).collect()
}

/// The one partition of ours on a guest's first drive.
pub fn partition(guest: &Guest) -> Result<String> {
    let drive = guest.drive_path(0);
    guest.ssh_checked(&format!(
        "lsblk -nrpo NAME,TYPE $(readlink -f {drive}) | awk '$2 == \"part\" {{print $1}}' | head -1"
    ))
}

/// The one array that a guest has.
pub fn array(guest: &Guest) -> Result<String> {
    let name = guest.ssh_checked("ls /sys/block | grep ^md | head -1")?;
    ensure!(!name.is_empty(), "{} has no array", guest.name());
    Ok(format!("/dev/{name}"))
}

/// Writes that were acknowledged to [`start_writing`]'s writer.
pub fn count_acks(guest: &Guest) -> Result<usize> {
    Ok(guest.ssh_checked("grep -c ^ack /tmp/acks || true")?.trim().parse()?)
}

fn write_line(device: &str, block: u64, value: char) -> String {
    format!(
        "head -c 4096 /dev/zero | tr \"\\\\0\" {value} | \
         dd of={device} bs=4096 seek={block} iflag=fullblock oflag=direct conv=notrunc status=none"
    )
}

/// Writes a block that consists of one letter; returns when it is acknowledged.
pub fn put(guest: &Guest, device: &str, block: u64, value: char) -> Result<()> {
    guest.ssh_checked(&write_line(device, block, value)).map(drop)
}

/// The letter a block consists of, read past every cache.
pub fn read(guest: &Guest, device: &str, block: u64) -> Result<char> {
    let line = format!("dd if={device} bs=4096 skip={block} count=1 iflag=direct status=none | tr -s '\\0-\\377'");
    let text = guest.ssh_checked(&line)?;
    let mut letters = text.chars();
    match (letters.next(), letters.next()) {
        (Some(letter), None) => Ok(letter),
        (None, _) => Ok('0'),
        _ => bail!("block {block} of {device} is a mixture: {text:?}"),
    }
}

/// A block of a member's data, from the member itself.
pub fn raw(guest: &Guest, part: &str, block: u64) -> Result<char> {
    read(guest, part, DATA + block)
}
