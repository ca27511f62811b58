//! Connections on a fake sysfs.

use super::*;
use crate::error::Class;
use crate::id::{ReplicaId, ReplicaKey};
use std::fs;

fn key() -> ExportKey {
    let volume = "0f9a2c56-1c1b-4a1e-9f43-0d8a1c2b3e4f".parse().unwrap();
    ExportKey { replica: ReplicaKey { volume, replica: ReplicaId(1) }, epoch: 3, generation: 1 }
}

fn put(root: &Root, path: &str, text: &str) {
    let path = root.sys.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// One controller and its head `nvme3n1`, member of `md1000` beside `nvme0n1p1`.
fn fake() -> (tempfile::TempDir, Root) {
    let temp = tempfile::tempdir().unwrap();
    let root = Root::at(temp.path());
    for (name, text) in [
        ("subsysnqn", key().nqn().0.as_str()),
        ("transport", "tcp\n"),
        ("address", "traddr=10.77.0.12,trsvcid=5001,src_addr=10.77.0.11\n"),
        ("state", "live\n"),
        ("delete_controller", ""),
    ] {
        put(&root, &format!("class/nvme/nvme3/{name}"), text);
    }
    put(&root, "block/nvme3c3n1/uuid", &key().namespace_uuid().to_string());
    put(&root, "block/nvme3n1/uuid", &key().namespace_uuid().to_string());
    put(&root, "block/nvme3n1/size", "2048\n");
    put(&root, "block/nvme3n1/queue/logical_block_size", "4096\n");
    put(&root, "class/block/nvme3n1/x", "");
    put(&root, "class/block/nvme0n1p1/x", "");
    put(&root, "block/md1000/md/uuid", &key().replica.volume.md_uuid().to_string());
    put(&root, "block/md1000/md/array_state", "clean\n");
    put(&root, "block/md1000/md/dev-nvme0n1p1/state", "in_sync\n");
    put(&root, "block/md1000/md/dev-nvme3n1/state", "in_sync,write_mostly\n");
    (temp, root)
}

fn listen() -> Listen {
    Listen { transport: Transport::Tcp, address: "10.77.0.12".parse().unwrap(), port: 5001 }
}

#[test]
fn a_connection_shows_its_controllers_and_the_head_never_the_hidden_path() {
    let (_temp, root) = fake();
    let fact = connection(&root, &Clocks::default(), key());
    assert_eq!(fact.controllers["nvme3"], ControllerFact { state: "live".into(), address: listen() });
    let head = fact.head.unwrap();
    assert_eq!((head.name.as_str(), head.size_bytes, head.sector_bytes), ("nvme3n1", 1 << 20, 4096));
    assert!(connected(&root, key(), &listen()));
    assert_eq!(connections(&root, &Clocks::default(), key().replica.volume).len(), 1);
    let mut other = key();
    other.generation += 1;
    assert_eq!(connection(&root, &Clocks::default(), other), ConnectionFact::default());
}

#[test]
fn a_controller_being_deleted_is_no_path() {
    let (_temp, root) = fake();
    put(&root, "class/nvme/nvme3/state", "deleting (no IO)\n");
    assert!(!connected(&root, key(), &listen()));
}

#[test]
fn the_connect_string_blocks_for_ever_and_caps_the_queues() {
    let text = connect_options(key(), &NodeName("a".into()), &listen(), 64);
    assert!(text.contains(",ctrl_loss_tmo=-1,reconnect_delay=2,keep_alive_tmo=5,nr_io_queues=4"), "{text}");
    assert!(text.starts_with(&format!("nqn={},transport=tcp,traddr=10.77.0.12,trsvcid=5001,", key().nqn())));
    assert!(!text.contains("fast_io_fail") && !text.contains(' '), "{text}");
}

#[test]
fn a_held_head_is_not_disconnected() {
    let (_temp, root) = fake();
    put(&root, "block/nvme3n1/holders/md1000", "");
    let error = disconnect(&root, key()).unwrap_err();
    assert!(error.class == Class::Refuse && error.detail.contains("md1000"), "{error}");
    assert_eq!(fs::read_to_string(root.sys.join("class/nvme/nvme3/delete_controller")).unwrap(), "");
}

#[test]
fn a_living_consumer_is_not_abandoned() {
    let (_temp, root) = fake();
    put(&root, "block/md1000/dev", "9:1000\n");
    fs::create_dir_all(root.proc.join("self")).unwrap();
    let line = |target: &str| format!("90 28 9:1000 / {target} rw - xfs /dev/md1000 rw\n");
    // The temporary folder stands for a file system that answers.
    fs::write(root.proc.join("self/mountinfo"), line(root.proc.to_str().unwrap())).unwrap();
    let error = abandon(&root, key(), 4).unwrap_err();
    assert!(error.class == Class::Refuse && error.detail.contains("alive"), "{error}");
    fs::write(root.proc.join("self/mountinfo"), "").unwrap();
    let error = abandon(&root, key(), 3).unwrap_err();
    assert!(error.class == Class::Refuse && error.detail.contains("depose"), "{error}");
    fs::remove_dir_all(root.sys.join("class/nvme/nvme3")).unwrap();
    assert_eq!(abandon(&root, key(), 4), Ok(Changed::No));
}

/// ext4 calls a write that was held and then let go a success, shut down or not: whoever waits for one must not hear of it.
#[test]
fn who_has_a_file_open_on_a_dead_ext4_is_killed_before_the_controllers_go() {
    for (filesystem, killed) in [("ext4", true), ("xfs", false)] {
        let (_temp, root) = fake();
        put(&root, "block/md1000/dev", "9:1000\n");
        fs::create_dir_all(root.proc.join("self")).unwrap();
        // What is not there does not answer, as a file system that is shut down.
        let table = format!("90 28 9:1000 / /no/such/folder rw - {filesystem} /dev/md1000 rw\n");
        fs::write(root.proc.join("self/mountinfo"), &table).unwrap();
        fs::remove_dir_all(root.sys.join("class/nvme/nvme3")).unwrap();
        let mut writer = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = root.proc.join(writer.id().to_string());
        fs::create_dir_all(process.join("fd")).unwrap();
        fs::create_dir_all(process.join("fdinfo")).unwrap();
        fs::write(process.join("mountinfo"), &table).unwrap();
        fs::write(process.join("fd/3"), "").unwrap();
        fs::write(process.join("fdinfo/3"), "pos:\t0\nmnt_id:\t90\n").unwrap();
        let task = process.join("task").join(writer.id().to_string());
        fs::create_dir_all(&task).unwrap();
        fs::write(task.join("status"), "State:\tD (disk sleep)\n").unwrap();
        // Of the table of processes here it stays alive: what was asked for is what counts.
        let done = abandon(&root, key(), 4);
        assert_eq!(done.is_err(), killed, "{filesystem}: {done:?}");
        assert_eq!(writer.try_wait().unwrap().is_some(), killed, "{filesystem}");
        let _ended = writer.kill();
        writer.wait().unwrap();
    }
}

#[test]
fn a_member_is_not_dropped_without_a_survivor_that_holds_now() {
    type Spoil = fn(&Root);
    let spoils: [Spoil; 5] = [
        |root| put(root, "block/md1000/md/dev-nvme0n1p1/state", "faulty\n"),
        |root| put(root, "block/md1000/md/dev-nvme0n1p1/state", "spare\n"),
        |root| put(root, "block/md1000/md/array_state", "broken\n"),
        |root| fs::remove_dir_all(root.sys.join("class/block/nvme0n1p1")).unwrap(),
        |root| fs::remove_dir_all(root.sys.join("block/md1000")).unwrap(),
    ];
    for (number, spoil) in spoils.iter().enumerate() {
        let (_temp, root) = fake();
        spoil(&root);
        let error = drop_member(&root, key(), key().replica.volume, "nvme0n1p1").unwrap_err();
        assert_eq!(error.class, Class::Refuse, "{number}: {error}");
        assert_eq!(fs::read_to_string(root.sys.join("class/nvme/nvme3/delete_controller")).unwrap(), "", "{number}");
    }
    let (_temp, root) = fake();
    let error = drop_member(&root, key(), key().replica.volume, "nvme3n1").unwrap_err();
    assert_eq!(error.class, Class::Refuse, "{error}");
}

#[test]
fn an_idle_array_is_made_to_look_at_a_member_that_is_gone() {
    let (_temp, root) = fake();
    // The controller is gone already and so is the head: only MD does not know yet.
    fs::remove_dir_all(root.sys.join("class/nvme/nvme3")).unwrap();
    fs::remove_dir_all(root.sys.join("class/block/nvme3n1")).unwrap();
    let survivor = root.sys.join("block/md1000/md/dev-nvme0n1p1/state");
    let kernel = {
        let (root, survivor) = (root.clone(), survivor.clone());
        std::thread::spawn(move || {
            while fs::read_to_string(&survivor).unwrap() != "-writemostly" {
                std::thread::sleep(Duration::from_millis(5));
            }
            fs::write(&survivor, "in_sync\n").unwrap();
            put(&root, "block/md1000/md/dev-nvme3n1/state", "faulty,write_mostly\n");
        })
    };
    // In a plain file the short text leaves the rest of the longer one: start with an empty flag list's length.
    let done = drop_member(&root, key(), key().replica.volume, "nvme0n1p1");
    kernel.join().unwrap();
    assert_eq!(done, Ok(Changed::Yes));
}

/// The RDMA path beside the TCP one: `nvme4`.
fn beside(root: &Root, state: &str) {
    for (name, text) in [
        ("subsysnqn", key().nqn().0.as_str()),
        ("transport", "rdma\n"),
        ("address", "traddr=10.77.0.12,trsvcid=5001\n"),
        ("state", state),
        ("fast_io_fail_tmo", "off\n"),
        ("delete_controller", ""),
    ] {
        put(root, &format!("class/nvme/nvme4/{name}"), text);
    }
}

fn asked(root: &Root, name: &str) -> bool {
    let file = root.sys.join("class/nvme").join(name).join("delete_controller");
    fs::read_to_string(file).is_ok_and(|text| text == "1")
}

#[test]
fn a_lost_target_is_let_go_of_over_tcp_while_rdma_is_still_connecting() {
    let (_temp, root) = fake();
    put(&root, "class/nvme/nvme3/state", "connecting\n");
    beside(&root, "connecting\n");
    let kernel = {
        let root = root.clone();
        std::thread::spawn(move || {
            while !asked(&root, "nvme3") {
                std::thread::sleep(Duration::from_millis(5));
            }
            let early = asked(&root, "nvme4");
            fs::remove_dir_all(root.sys.join("class/nvme/nvme3")).unwrap();
            put(&root, "block/md1000/md/dev-nvme3n1/state", "faulty,write_mostly\n");
            early
        })
    };
    let start = Instant::now();
    // The RDMA controller never goes: its target is dead, and nobody waits for the attempt to reach it.
    let done = drop_member(&root, key(), key().replica.volume, "nvme0n1p1");
    assert_eq!(done, Ok(Changed::Yes));
    assert!(start.elapsed() < HELD, "{:?}", start.elapsed());
    assert!(!kernel.join().unwrap(), "an RDMA controller that is being deleted counts as a path");
    let end = Instant::now() + Duration::from_secs(5);
    while !asked(&root, "nvme4") && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(asked(&root, "nvme4"), "it goes as well");
}

#[test]
fn an_rdma_path_that_hangs_alive_is_deleted_at_once() {
    let (_temp, root) = fake();
    beside(&root, "live\n");
    let kernel = {
        let root = root.clone();
        std::thread::spawn(move || {
            while !(asked(&root, "nvme3") && asked(&root, "nvme4")) {
                std::thread::sleep(Duration::from_millis(5));
            }
            fs::remove_dir_all(root.sys.join("class/nvme/nvme3")).unwrap();
            fs::remove_dir_all(root.sys.join("class/nvme/nvme4")).unwrap();
            put(&root, "block/md1000/md/dev-nvme3n1/state", "faulty,write_mostly\n");
        })
    };
    assert_eq!(drop_member(&root, key(), key().replica.volume, "nvme0n1p1"), Ok(Changed::Yes));
    kernel.join().unwrap();
}

#[test]
fn an_rdma_path_is_expendable_only_beside_a_tcp_one() {
    let (_temp, root) = fake();
    beside(&root, "live\n");
    let told = |root: &Root| fs::read_to_string(root.sys.join("class/nvme/nvme4/fast_io_fail_tmo")).unwrap();
    delete::expendable(&root, &key().nqn());
    assert_eq!(told(&root), "2");
    assert!(!root.sys.join("class/nvme/nvme3/fast_io_fail_tmo").exists(), "TCP holds for ever");
    put(&root, "class/nvme/nvme3/state", "deleting\n");
    delete::expendable(&root, &key().nqn());
    assert_eq!(told(&root), "-1");
}

#[tokio::test(flavor = "current_thread")]
async fn a_host_that_refuses_a_dial_is_alive_for_rdma_and_no_target_for_tcp() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = |transport| {
        let address = listener.local_addr().unwrap();
        Listen { transport, address: address.ip(), port: address.port() }
    };
    let (tcp, rdma) = (at(Transport::Tcp), at(Transport::Rdma));
    assert_eq!(dial("test", &tcp).await, Ok(()));
    drop(listener);
    assert_eq!(dial("test", &tcp).await.unwrap_err().errno, Some(111));
    assert_eq!(dial("test", &rdma).await, Ok(()));
}
