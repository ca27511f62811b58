//! A console for the real bindings, for guests with stock kernels: one line in, one operation or look, one line out.
//!
//! ```text
//!  kernel-suite node-a                # reads commands from standard input until it ends
//!  y export r1 3 1 node-a t:10.77.0.12:5001
//! ```
//!
//! `y` before a command demands that it changes something and, said again at once, changes nothing; `n` that it changes
//! nothing; `once` that it changes something (operations that are always done); `e:Wait` (or Refuse, Retry, Bug) that
//! it fails so. It works on one fixed volume, overwrites blank drives, and never runs outside a throw-away machine.

use meshstor_kernel::content::Filesystem;
use meshstor_kernel::facts::{
    BlankData, DriveClass, EpochRecord, Extent, Listen, MemberFact, OtherCopyInSync, SyncSpeed, Transport, Unclaimed,
};
use meshstor_kernel::id::{ClusterId, DriveId, ExportKey, NodeName, ReplicaId, ReplicaKey, VolumeId};
use meshstor_kernel::linux::root::Root;
use meshstor_kernel::linux::{Linux, LinuxConfig, partition};
use meshstor_kernel::ops::{Changed, FormatPermit, Op};
use meshstor_kernel::{Kernel, KernelError};
use std::collections::BTreeSet;
use std::io::{BufRead, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use uuid::Uuid;

type Answer = Result<String, String>;

const VOLUME: VolumeId = VolumeId(Uuid::from_u128(0x0f9a2c56_1c1b_4a1e_9f43_0d8a1c2b3e4f));
const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(0xc1));

fn main() {
    let node = NodeName(std::env::args().nth(1).unwrap_or_else(|| "node-a".into()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => tokio::task::LocalSet::new().block_on(&runtime, console(node)),
        Err(error) => println!("FAIL runtime: {error}"),
    }
}

async fn console(node: NodeName) {
    let config = LinuxConfig { node: node.clone(), ports: 5000..=5999, root: Root::host() };
    let kernel = match Linux::start(config).await {
        Ok(kernel) => kernel,
        Err(error) => return println!("FAIL start: {error}"),
    };
    println!("READY {node}");
    let mut suite = Suite { node, hints: kernel.hints(), kernel, writer: None };
    // Lines come through a thread, so that the clocks run while nobody types.
    let (lines, mut received) = tokio::sync::mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                break;
            }
        }
    });
    while let Some(line) = received.recv().await {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.is_empty() || line.starts_with('#') {
            continue;
        }
        let begin = Instant::now();
        let (verdict, text) = suite.judge(&words).await;
        println!("{verdict} {line} -> {text} [{} ms]", begin.elapsed().as_millis());
        let _ = std::io::stdout().flush();
    }
}

/// Does all of it at the same time, each until it works or has failed for a minute.
fn at_once<W: Fn() -> meshstor_kernel::Result<Changed> + Send>(works: Vec<W>) -> Result<(), String> {
    let until = Instant::now() + Duration::from_secs(60);
    let work = move |work: W| loop {
        match work() {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > until => return Err(error.to_string()),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = works.into_iter().map(|one| scope.spawn(move || work(one))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| Err("a thread panicked".into())))
    })
}

struct Suite {
    node: NodeName,
    kernel: Linux,
    hints: tokio::sync::broadcast::Receiver<meshstor_kernel::hint::Hint>,
    writer: Option<Arc<Writer>>,
}

/// A synchronous writer on a thread of its own.
#[derive(Default)]
struct Writer {
    stop: AtomicBool,
    count: AtomicU64,
    longest_ms: AtomicU64,
    errors: AtomicU64,
}

impl Suite {
    async fn judge(&mut self, words: &[&str]) -> (&'static str, String) {
        let (wanted, rest) = match words[0] {
            first @ ("y" | "n" | "once") => (first, &words[1..]),
            first if first.starts_with("e:") => (first, &words[1..]),
            _ => ("", words),
        };
        if wanted.is_empty() {
            return match self.look(rest).await {
                Ok(text) => ("ok", text),
                Err(text) => ("FAIL", text),
            };
        }
        let op = match self.op(rest).await {
            Ok(op) => op,
            Err(text) => return ("FAIL", text),
        };
        let first = self.kernel.apply(&op).await;
        let text = shown(&first);
        let good = match (wanted, &first) {
            ("y" | "once", Ok(Changed::Yes)) | ("n", Ok(Changed::No)) => true,
            (wanted, Err(error)) => wanted == format!("e:{:?}", error.class),
            _ => false,
        };
        if wanted != "y" || !good {
            return (if good { "PASS" } else { "FAIL" }, text);
        }
        let again = self.kernel.apply(&op).await;
        (if again == Ok(Changed::No) { "PASS" } else { "FAIL" }, format!("{text}, again {}", shown(&again)))
    }

    async fn op(&self, words: &[&str]) -> Result<Op, String> {
        let volume = VOLUME;
        let word = |at: usize| words.get(at).copied().ok_or(format!("word {at} is missing"));
        Ok(match words[0] {
            "export" => {
                let host = NodeName(word(4)?.into()).host_nqn();
                let listen = words[5..].iter().map(|text| listen(text)).collect::<Result<_, _>>()?;
                Op::Export { key: key(&words[1..])?, host, listen }
            }
            "fence" => Op::Fence { key: key(&words[1..])? },
            "unexport" => Op::RemoveExport { key: key(&words[1..])? },
            "connect" => Op::Connect { key: key(&words[1..])?, node: self.node.clone(), address: listen(word(4)?)? },
            "disconnect" => Op::Disconnect { key: key(&words[1..])? },
            "abandon" => Op::Abandon { key: key(&words[1..])?, deposed_by: number(word(4)?)? },
            "drop" => Op::DropMember { key: key(&words[1..])?, volume, evidence: self.other_copy(word(4)?).await? },
            "create" => {
                let mut members = Vec::new();
                for device in &words[2..] {
                    members.push(self.blank(device).await?);
                }
                let local = members.iter().take_while(|m| m.device().contains("n1p")).count();
                Op::CreateArray { volume, members, local, component_bytes: number(word(1)?)? }
            }
            "mkfs" if words.len() > 1 => {
                let mut blank = Vec::new();
                for device in &words[1..] {
                    blank.push(self.blank(device).await?);
                }
                Op::MakeFilesystem { volume, filesystem: Filesystem::Xfs, permit: FormatPermit::Blank(blank) }
            }
            "mkfs" => Op::MakeFilesystem {
                volume,
                filesystem: Filesystem::Xfs,
                permit: FormatPermit::StartedNotDone { record_of: Uuid::from_u128(1) },
            },
            "assemble" => {
                let mut members = Vec::new();
                for device in &words[1..] {
                    members.push(self.device(device).await?);
                }
                Op::AssembleArray { volume, members }
            }
            "activate" => Op::ActivateArray { volume },
            "release" => Op::ReleaseSync { volume },
            "hold" => Op::HoldSync { volume, held: word(1)? == "on" },
            "merge" => {
                let chunks = words[1..].iter().map(|text| number(text)).collect::<Result<_, _>>()?;
                Op::MergeBitmap { volume, chunks }
            }
            "readd" => Op::ReAddMember { volume, device: self.device(word(1)?).await? },
            "add" => Op::AddMember { volume, device: self.device(word(1)?).await? },
            "fail" => {
                let component = self.component(word(1)?).await?;
                Op::FailMember { volume, component, evidence: self.other_copy(word(2)?).await? }
            }
            "rmfaulty" => Op::RemoveFaulty { volume, component: self.faulty(word(1)?).await? },
            "freeze" => {
                Op::FreezeWrites { volume, component: self.component(word(1)?).await?, frozen: word(2)? == "on" }
            }
            "wm" => Op::SetWriteMostly { volume, component: self.component(word(1)?).await?, on: word(2)? == "on" },
            "bitmap" => Op::AddBitmap { volume },
            "nobitmap" => Op::RemoveBitmap { volume },
            "disks" => Op::SetRaidDisks { volume, count: number(word(1)?)? },
            "speed" => {
                let speed = SyncSpeed { min_kib: number(word(1)?)?, max_kib: number(word(2)?)? };
                Op::SetSyncSpeed { volume, speed }
            }
            "cacheoff" => Op::DisableCache { drive: DriveId(word(1)?.into()) },
            "stop" => Op::StopArray { volume },
            "stopforeign" => Op::StopForeignArray { name: word(1)?.into() },
            "mount" => Op::Mount {
                volume,
                target: word(1)?.into(),
                fs: Filesystem::Xfs,
                options: words.get(2).unwrap_or(&"noatime").to_string(),
            },
            "bind" => Op::BindMount { source: word(1)?.into(), target: word(2)?.into(), read_only: word(3)? == "ro" },
            "umount" => Op::Unmount { target: word(1)?.into(), lazy: words.get(2) == Some(&"lazy") },
            "kill" => Op::KillOpeners { volume },
            "goingdown" => Op::ShutdownFilesystem { volume },
            "record" => {
                let key = replica(word(1)?)?;
                let mut record = self.record(key);
                (record.epoch, record.generation) = (number(word(2)?)?, number(word(3)?)?);
                Op::WriteRecord { key, record }
            }
            "rmpart" => {
                let key = replica(word(1)?)?;
                Op::RemovePartition { evidence: self.unclaimed(key).await? }
            }
            other => return Err(format!("no operation {other:?}")),
        })
    }

    async fn look(&mut self, words: &[&str]) -> Answer {
        let word = |at: usize| words.get(at).copied().ok_or(format!("word {at} is missing"));
        match words[0] {
            "node" => self.kernel.node().await.map(|fact| format!("{fact:#?}")).map_err(told),
            "drives" => self.kernel.drives().await.map(|fact| format!("{fact:#?}")).map_err(told),
            "cache" => {
                let found = self.kernel.drive(&DriveId(word(1)?.into())).await.map_err(told)?;
                found.map(|fact| format!("volatile {}", fact.volatile_cache)).ok_or_else(|| "no such drive".into())
            }
            "volumes" => self.kernel.volumes().await.map(|fact| format!("{fact:?}")).map_err(told),
            "exports" => self.kernel.exports(replica(word(1)?)?).await.map(|f| format!("{f:?}")).map_err(told),
            "partition" => self.kernel.partition(replica(word(1)?)?).await.map(|f| format!("{f:?}")).map_err(told),
            "uuid" => Ok(VOLUME.md_uuid().to_string()),
            "conn" => self.kernel.connection(key(&words[1..])?).await.map(|f| format!("{f:?}")).map_err(told),
            "conns" => self.kernel.connections(VOLUME).await.map(|f| format!("{f:?}")).map_err(told),
            "array" => self.kernel.array(VOLUME).await.map(|f| format!("{f:?}")).map_err(told),
            "fs" => self.kernel.filesystem(VOLUME).await.map(|f| format!("{f:?}")).map_err(told),
            "at" => self.kernel.mount_at(word(1)?).await.map(|f| format!("{f:?}")).map_err(told),
            "probe" => {
                let device = self.device(word(1)?).await?;
                self.kernel.probe(&device, words.get(2) == Some(&"data")).await.map(|f| format!("{f:?}")).map_err(told)
            }
            "prepare" => self.prepare(replica(word(1)?)?, number::<u64>(word(2)?)? << 20).await,
            "crowd" => self.crowd(&DriveId(word(1)?.into()), number(word(2)?)?).await,
            "writer" => self.start_writer(word(1)?),
            "wrote" => self.wrote(),
            "unwriter" => {
                let writer = self.writer.take().ok_or("no writer")?;
                writer.stop.store(true, Ordering::Relaxed);
                Ok("stopping".into())
            }
            "sleep" => {
                tokio::time::sleep(Duration::from_millis(number(word(1)?)?)).await;
                Ok("slept".into())
            }
            "hints" => Ok(self.drain_hints()),
            "until" => self.until(&words[1..]).await,
            other => Err(format!("no look {other:?}")),
        }
    }

    /// Waits until a word stands in the array's or a connection's fact: `until array idle`, `until conn r1 3 1 live`.
    async fn until(&mut self, words: &[&str]) -> Answer {
        let (last, look) = words.split_last().ok_or("until what")?;
        let look: Vec<&str> = look.to_vec();
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let text = Box::pin(self.look(&look)).await?;
            // The word is one token of the command, so blanks of the fact are left out.
            if text.replace(' ', "").contains(*last) {
                return Ok(text);
            }
            if Instant::now() > end {
                return Err(format!("after 60 s still {text}"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// A partition of the replica on the first drive that has room, from a blank drive to a first record.
    async fn prepare(&self, key: ReplicaKey, bytes: u64) -> Answer {
        let drives = self.kernel.drives().await.map_err(told)?;
        let ours = |class: &DriveClass| matches!(class, DriveClass::Ours | DriveClass::Blank(_));
        let drive = drives.into_iter().find(|drive| ours(&drive.class)).ok_or("no drive to use")?;
        if let DriveClass::Blank(evidence) = &drive.class {
            self.kernel.apply(&Op::LabelDrive { evidence: evidence.clone() }).await.map_err(told)?;
        }
        let drive = self.kernel.drive(&drive.id).await.map_err(told)?.ok_or("the drive is gone")?;
        let free = drive.free.iter().find(|free| free.length >= bytes).ok_or("no room")?;
        let extent = Extent { start: free.start, length: bytes };
        self.kernel.apply(&Op::AddPartition { key, drive: drive.id, extent }).await.map_err(told)?;
        let evidence = self.unclaimed(key).await?;
        let record = self.record(key);
        self.kernel.apply(&Op::BlankPartition { evidence, record }).await.map_err(told)?;
        self.kernel.partition(key).await.map(|fact| format!("{fact:?}")).map_err(told)
    }

    /// Edits a drive's table from many threads at once: what one of them has written, no other may lose.
    async fn crowd(&self, drive: &DriveId, count: u32) -> Answer {
        let fact = self.kernel.drive(drive).await.map_err(told)?.ok_or("no such drive")?;
        if let DriveClass::Blank(evidence) = &fact.class {
            self.kernel.apply(&Op::LabelDrive { evidence: evidence.clone() }).await.map_err(told)?;
        }
        let fact = self.kernel.drive(drive).await.map_err(told)?.ok_or("the drive is gone")?;
        let start = fact.free.first().ok_or("no room")?.start.next_multiple_of(1 << 20);
        let key = |index: u32| ReplicaKey { volume: VOLUME, replica: ReplicaId(index) };
        let add = |index: u32| {
            let extent = Extent { start: start + (u64::from(index) << 22), length: 1 << 22 };
            partition::add(&Root::host(), key(index), drive, extent)
        };
        at_once((0..count).map(|index| move || add(index)).collect())?;
        let mut evidence = Vec::new();
        for index in 0..count {
            evidence.push(self.unclaimed(key(index)).await.map_err(|why| format!("r{index}: {why}"))?);
        }
        let remove = |evidence: Unclaimed| move || partition::remove(&Root::host(), &evidence);
        let mut both: Vec<Box<dyn Fn() -> meshstor_kernel::Result<Changed> + Send + '_>> = Vec::new();
        for (index, evidence) in (count..2 * count).zip(evidence) {
            both.push(Box::new(move || add(index)));
            both.push(Box::new(remove(evidence)));
        }
        at_once(both)?;
        let fact = self.kernel.drive(drive).await.map_err(told)?.ok_or("the drive is gone")?;
        let wanted: BTreeSet<Uuid> = (count..2 * count).map(|index| key(index).partition_uuid()).collect();
        let found: BTreeSet<Uuid> = fact.entries.values().map(|entry| entry.unique_guid).collect();
        for index in count..2 * count {
            let evidence = self.unclaimed(key(index)).await.map_err(|why| format!("r{index}: {why}"))?;
            self.kernel.apply(&Op::RemovePartition { evidence }).await.map_err(told)?;
        }
        if found != wanted {
            return Err(format!("{} of {count} entries are left: {found:?}", found.len()));
        }
        Ok(format!("{} edits at once, none lost", 3 * count))
    }

    async fn unclaimed(&self, key: ReplicaKey) -> Result<Unclaimed, String> {
        let partition = self.kernel.partition(key).await.map_err(told)?.ok_or("no partition")?;
        let exports = self.kernel.exports(key).await.map_err(told)?;
        Unclaimed::prove(key, &partition, &exports).ok_or("the partition is in use".into())
    }

    fn record(&self, key: ReplicaKey) -> EpochRecord {
        EpochRecord {
            volume: VOLUME,
            cluster: CLUSTER,
            replica: key.replica,
            epoch: 1,
            generation: 0,
            in_sync: BTreeSet::from([ReplicaId(0), ReplicaId(1)]),
            volume_name: "suite".into(),
            sequence: 0,
            tainted: None,
            unflushed: None,
            content: Default::default(),
        }
    }

    async fn blank(&self, device: &str) -> Result<BlankData, String> {
        let device = self.device(device).await?;
        self.kernel.probe(&device, true).await.map_err(told)?.blank.ok_or(format!("{device} is not blank"))
    }

    /// `local:r0` and `head:r1:3:1` become device nodes; anything else is one.
    async fn device(&self, text: &str) -> Result<String, String> {
        let parts: Vec<&str> = text.split(':').collect();
        match parts[..] {
            ["local", name] => {
                let fact = self.kernel.partition(replica(name)?).await.map_err(told)?.ok_or("no partition")?;
                fact.path.ok_or("the kernel does not know the partition".into())
            }
            ["head", ..] => {
                let fact = self.kernel.connection(key(&parts[1..])?).await.map_err(told)?;
                fact.head.map(|head| head.path).ok_or("no head".into())
            }
            _ => Ok(text.to_string()),
        }
    }

    async fn component(&self, text: &str) -> Result<String, String> {
        let device = self.device(text).await?;
        Ok(device.rsplit('/').next().unwrap_or_default().to_string())
    }

    /// `faulty` stands for whatever member is faulty now.
    async fn faulty(&self, text: &str) -> Result<String, String> {
        if text != "faulty" {
            return self.component(text).await;
        }
        let array = self.kernel.array(VOLUME).await.map_err(told)?.ok_or("no array")?;
        let faulty = |member: &MemberFact| member.flags.contains("faulty");
        array.members.into_iter().find(|(_, m)| faulty(m)).map(|(name, _)| name).ok_or("no faulty member".into())
    }

    async fn other_copy(&self, survivor: &str) -> Result<OtherCopyInSync, String> {
        let survivor = self.component(survivor).await?;
        let array = self.kernel.array(VOLUME).await.map_err(told)?.ok_or("no array")?;
        OtherCopyInSync::prove(&array, "", &survivor, true).ok_or("no survivor".into())
    }

    fn start_writer(&mut self, path: &str) -> Answer {
        let flags = nix::fcntl::OFlag::O_DSYNC.bits();
        let file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).custom_flags(flags).open(path);
        let mut file = file.map_err(|e| e.to_string())?;
        let writer = Arc::new(Writer::default());
        self.writer = Some(writer.clone());
        std::thread::spawn(move || {
            while !writer.stop.load(Ordering::Relaxed) {
                let begin = Instant::now();
                let done = file.write_all(&[7; 4096]);
                writer.longest_ms.fetch_max(begin.elapsed().as_millis() as u64, Ordering::Relaxed);
                let count = if done.is_ok() { &writer.count } else { &writer.errors };
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Ok("writing".into())
    }

    /// What the writer did since the last time this was asked.
    fn wrote(&self) -> Answer {
        let writer = self.writer.as_ref().ok_or("no writer")?;
        let take = |value: &AtomicU64| value.swap(0, Ordering::Relaxed);
        let (count, errors, longest) = (take(&writer.count), take(&writer.errors), take(&writer.longest_ms));
        Ok(format!("{count} writes, {errors} errors, longest {longest} ms"))
    }

    fn drain_hints(&mut self) -> String {
        let mut seen = BTreeSet::new();
        while let Ok(hint) = self.hints.try_recv() {
            seen.insert(format!("{hint:?}"));
        }
        seen.into_iter().collect::<Vec<_>>().join(" ")
    }
}

fn shown(done: &Result<Changed, KernelError>) -> String {
    match done {
        Ok(changed) => format!("{changed:?}"),
        Err(error) => format!("{:?}: {error}", error.class),
    }
}

fn told(error: KernelError) -> String {
    format!("{:?}: {error}", error.class)
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is no number"))
}

fn replica(text: &str) -> Result<ReplicaKey, String> {
    let replica = text.parse().map_err(|e| format!("{e}"))?;
    Ok(ReplicaKey { volume: VOLUME, replica })
}

/// `r1 3 1`: replica, epoch, generation.
fn key(words: &[&str]) -> Result<ExportKey, String> {
    match words {
        [name, epoch, generation, ..] => {
            Ok(ExportKey { replica: replica(name)?, epoch: number(epoch)?, generation: number(generation)? })
        }
        _ => Err("replica, epoch and generation are missing".into()),
    }
}

/// `t:10.77.0.12:5001` or `r:…`.
fn listen(text: &str) -> Result<Listen, String> {
    let (kind, rest) = text.split_once(':').ok_or("t:ADDRESS:PORT")?;
    let (address, port) = rest.rsplit_once(':').ok_or("t:ADDRESS:PORT")?;
    let transport = if kind == "r" { Transport::Rdma } else { Transport::Tcp };
    Ok(Listen { transport, address: address.parse().map_err(|_| "no address")?, port: number(port)? })
}
