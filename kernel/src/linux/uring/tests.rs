//! The ring and its twin: the same answers, deadlines that hurt nobody, no leaked descriptors, life after a panic.

use super::*;
use std::io::Write;

const SOON: Duration = Duration::from_secs(5);

fn rings() -> Vec<Ring> {
    let mut engines = vec![Engine::Pool];
    // Where the machine that runs the tests forbids io_uring, the twin alone is tested.
    if Engine::detect() == Engine::Uring {
        engines.push(Engine::Uring);
    }
    engines.into_iter().map(|engine| Ring::start_with(Root::host(), engine)).collect()
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    // Not in /tmp, which may be a file system without O_DIRECT.
    let beside = std::env::current_exe().unwrap();
    let mut file = tempfile::NamedTempFile::new_in(beside.parent().unwrap()).unwrap();
    file.write_all(bytes).unwrap();
    file.as_file().sync_all().unwrap();
    file
}

fn name(file: &tempfile::NamedTempFile) -> &str {
    file.path().to_str().unwrap()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test]
async fn reads_are_exact_direct_or_not() {
    let bytes: Vec<u8> = (0..64 << 10).map(|i| (i / 512) as u8).collect();
    let file = file(&bytes);
    for ring in rings() {
        for (offset, len, direct) in [(0, 4096, true), (8192, 32768, true), (3, 700, false), (65000, 536, false)] {
            let read = ring.read(name(&file), offset, len, direct, SOON).await.unwrap();
            assert_eq!(read, bytes[offset as usize..offset as usize + len], "{:?}", ring.engine());
        }
    }
}

#[tokio::test]
async fn a_read_beyond_the_end_is_short() {
    let file = file(&[7; 5000]);
    for ring in rings() {
        assert_eq!(ring.read(name(&file), 4096, 8192, true, SOON).await.unwrap(), [7; 904]);
        assert_eq!(ring.read(name(&file), 8192, 4096, true, SOON).await.unwrap(), [0; 0]);
        assert_eq!(ring.device_bytes(name(&file)).await.unwrap(), 5000);
    }
}

#[tokio::test]
async fn an_absent_file_is_told_by_its_errno() {
    for ring in rings() {
        let error = ring.read("/dev/meshstor-none", 0, 512, true, SOON).await.unwrap_err();
        assert_eq!(error.errno, Some(2));
        assert_eq!(error.path, "/dev/meshstor-none");
    }
}

#[tokio::test]
async fn attributes_are_read_again_and_again() {
    for ring in rings() {
        for _ in 0..3 {
            assert!(!ring.read_text("/proc/sys/kernel/random/boot_id").await.unwrap().contains('\n'));
        }
    }
}

#[tokio::test]
async fn many_reads_answer_in_order() {
    let bytes: Vec<u8> = (0..64u8).flat_map(|i| [i; 512]).collect();
    let file = file(&bytes);
    for ring in rings() {
        let request = |i: u64| ReadRequest { path: name(&file).into(), offset: i * 512, len: 512, direct: false };
        let results = ring.read_many((0..64).map(request).collect(), SOON).await;
        for (i, result) in results.into_iter().enumerate() {
            assert_eq!(result.unwrap(), [i as u8; 512]);
        }
    }
}

/// A pipe that nobody opens for writing is as silent as a device that hangs: its open does not return.
#[tokio::test]
async fn a_hanging_read_misses_its_deadline_and_disturbs_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let other = file(&[1; 512]);
    for (i, ring) in rings().into_iter().enumerate() {
        let pipe = dir.path().join(format!("hangs{i}"));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
        let hang = ReadRequest { path: pipe.display().to_string(), offset: 0, len: 16, direct: false };
        let results = ring.read_many(vec![hang; 100], Duration::from_millis(200)).await;
        assert!(results.iter().all(|r| r.as_ref().unwrap_err().detail.contains("no answer within")));
        let started = std::time::Instant::now();
        assert_eq!(ring.read(name(&other), 0, 512, true, SOON).await.unwrap(), [1; 512]);
        assert!(started.elapsed() < Duration::from_secs(1));
        // Lets the opens return, so that the threads of this test can end.
        drop(std::fs::OpenOptions::new().write(true).open(&pipe).unwrap());
    }
}

#[tokio::test]
async fn a_path_has_a_bounded_number_of_turns_and_a_waiter_may_leave() {
    let paths = Paths::default();
    let mut turns = Vec::new();
    for _ in 0..IN_FLIGHT_PER_PATH {
        turns.push(paths.turn("a", std::future::pending()).await.unwrap());
    }
    assert!(paths.turn("a", std::future::ready(())).await.is_none(), "the path is full");
    assert!(paths.turn("b", std::future::pending()).await.is_some(), "another path is not");
    turns.pop();
    let one_more = paths.turn("a", std::future::pending()).await;
    assert!(one_more.is_some());
    drop((turns, one_more));
    assert!(paths.idle());
}

#[tokio::test]
async fn abandoned_reads_leak_no_descriptors() {
    let file = file(&[1; 4096]);
    for ring in rings() {
        ring.read(name(&file), 0, 4096, false, SOON).await.unwrap();
        let before = descriptors();
        for _ in 0..500 {
            let read = ring.read(name(&file), 0, 4096, false, Duration::from_nanos(1));
            let _ = read.await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        // Other tests open files meanwhile, but not hundreds.
        assert!(descriptors() < before + 100, "{} then {}", before, descriptors());
    }
}

#[test]
fn the_handle_works_on_every_runtime_and_across_threads() {
    let file = file(&[9; 512]);
    for ring in rings() {
        let path = name(&file).to_string();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (shared, there) = (ring.clone(), path.clone());
        let read = runtime.spawn(async move { shared.read(&there, 0, 512, false, SOON).await });
        assert_eq!(runtime.block_on(read).unwrap().unwrap(), [9; 512]);
        let read = actix::System::new().block_on(async move { ring.read(&path, 0, 512, false, SOON).await });
        assert_eq!(read.unwrap(), [9; 512]);
    }
}

#[tokio::test]
async fn a_reader_that_died_is_replaced() {
    let file = file(&[3; 512]);
    for ring in rings() {
        let address = ring.attributes.reader.borrow().clone();
        if let Some(address) = address {
            let _ = address.send(tests_only::Panic).await;
        }
        assert_eq!(ring.read(name(&file), 0, 512, false, SOON).await.unwrap(), [3; 512]);
    }
}

#[tokio::test]
async fn the_threads_end_with_the_last_handle() {
    for ring in rings() {
        ring.read_text("/proc/version").await.unwrap();
        let reader = ring.attributes.reader.clone();
        drop(ring);
        let ended = async {
            let mut reader = reader;
            while reader.changed().await.is_ok() {}
        };
        tokio::time::timeout(SOON, ended).await.unwrap();
    }
}

mod tests_only {
    use super::super::Reader;

    /// Makes the actor panic.
    #[derive(actix::Message)]
    #[rtype(result = "()")]
    pub struct Panic;

    impl actix::Handler<Panic> for Reader {
        type Result = ();
        fn handle(&mut self, _: Panic, _: &mut Self::Context) {
            panic!("asked for by a test");
        }
    }
}

// -------------------------------------------------------------------------- fabric devices without io_uring

fn controller(at: &std::path::Path, transport: &str, state: &str) {
    std::fs::create_dir_all(at).unwrap();
    std::fs::write(at.join("transport"), transport).unwrap();
    std::fs::write(at.join("state"), state).unwrap();
}

/// A head below its subsystem with one controller linked, as native multipath makes it, and a plain PCIe namespace.
fn nodes(state: &str) -> (tempfile::TempDir, Root) {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::at(dir.path());
    let devices = root.sys.join("devices");
    controller(&devices.join("ctl/nvme1"), "tcp", state);
    controller(&devices.join("pci/nvme0"), "pcie", state);
    std::fs::create_dir_all(devices.join("subsys1/nvme1n1/nvme1n1p1")).unwrap();
    std::fs::write(devices.join("subsys1/nvme1n1/nvme1n1p1/partition"), "1").unwrap();
    std::fs::create_dir_all(devices.join("pci/nvme0/nvme0n1")).unwrap();
    std::os::unix::fs::symlink("../ctl/nvme1", devices.join("subsys1/nvme1")).unwrap();
    std::fs::create_dir_all(root.sys.join("class/block")).unwrap();
    std::fs::create_dir_all(&root.dev).unwrap();
    for (name, target) in
        [("nvme1n1", "subsys1/nvme1n1"), ("nvme1n1p1", "subsys1/nvme1n1/nvme1n1p1"), ("nvme0n1", "pci/nvme0/nvme0n1")]
    {
        std::os::unix::fs::symlink(devices.join(target), root.sys.join("class/block").join(name)).unwrap();
        std::fs::write(root.dev.join(name), [5; 512]).unwrap();
    }
    (dir, root)
}

#[tokio::test]
async fn the_twin_reads_a_fabric_device_only_while_a_path_is_live() {
    for (state, name, readable) in [
        ("live", "nvme1n1", true),
        ("live", "nvme1n1p1", true),
        ("connecting", "nvme1n1", false),
        ("connecting", "nvme1n1p1", false),
        ("resetting", "nvme0n1", true),
    ] {
        let (_dir, root) = nodes(state);
        let path = root.dev.join(name).display().to_string();
        let ring = Ring::start_with(root, Engine::Pool);
        match ring.read(&path, 0, 512, false, SOON).await {
            Ok(bytes) => assert!(readable && bytes == [5; 512], "{state} {name}"),
            Err(error) => {
                assert!(!readable, "{state} {name}: {error}");
                assert_eq!(error.class, crate::Class::Wait);
                assert!(error.detail.contains("connecting"), "{error}");
            }
        }
    }
}
