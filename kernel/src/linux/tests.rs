//! The seam as a whole on fake trees: deadlines, objects taken, looks that say nothing is there.

use super::*;
use crate::error::Class;
use crate::id::ReplicaId;
use md::tests::{array, volume};

/// What operations need, on fake trees and without the watchers.
pub(super) fn shared(root: Root) -> Shared {
    Shared::new(LinuxConfig { node: NodeName("a".into()), ports: 5000..=5999, root })
}

fn linux(root: Root) -> Linux {
    Linux { shared: Arc::new(shared(root)), stop: Arc::default(), tasks: Vec::new() }
}

#[tokio::test(flavor = "current_thread")]
async fn an_empty_node_has_nothing_and_says_so() {
    let temp = tempfile::tempdir().unwrap();
    let root = Root::at(temp.path());
    std::fs::create_dir_all(root.proc.join("self")).unwrap();
    std::fs::write(root.proc.join("self/mountinfo"), "").unwrap();
    let kernel = linux(root);
    let replica = ReplicaKey { volume: volume(), replica: ReplicaId(0) };
    let export = ExportKey { replica, epoch: 1, generation: 1 };
    assert_eq!(kernel.exports(replica).await, Ok(ExportFact::default()));
    assert_eq!(kernel.connection(export).await, Ok(ConnectionFact::default()));
    assert_eq!(kernel.connections(volume()).await, Ok(BTreeMap::new()));
    assert_eq!(kernel.array(volume()).await, Ok(None));
    assert_eq!(kernel.filesystem(volume()).await, Ok(FsFact::default()));
    assert_eq!(kernel.mount_at("/nowhere").await, Ok(None));
    assert_eq!(kernel.apply(&Op::StopArray { volume: volume() }).await, Ok(Changed::No));
    assert_eq!(kernel.apply(&Op::Fence { key: export }).await, Ok(Changed::No));
    assert_eq!(kernel.apply(&Op::KillOpeners { volume: volume() }).await, Ok(Changed::No));
    let refused = kernel.apply(&Op::ActivateArray { volume: volume() }).await.unwrap_err();
    assert_eq!(refused.class, Class::Refuse);
}

#[tokio::test(flavor = "current_thread")]
async fn a_raw_volumes_node_is_known_by_its_array() {
    let temp = tempfile::tempdir().unwrap();
    let root = Root::at(temp.path());
    array(&root, "md1004");
    let line = "91 28 0:5 /md1004 /pods/dev rw - devtmpfs udev rw\n";
    std::fs::write(root.proc.join("self/mountinfo"), line).unwrap();
    let kernel = linux(root);
    assert!(kernel.array(volume()).await.unwrap().is_some(), "the look notes the volume");
    let fact = kernel.mount_at("/pods/dev").await.unwrap().unwrap();
    assert_eq!((fact.volume, fact.alive, fact.read_only), (Some(volume()), true, false));
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn past_its_deadline_an_operation_goes_on_and_its_object_stays_taken() {
    let temp = tempfile::tempdir().unwrap();
    let root = Root::at(temp.path());
    array(&root, "md1004");
    // A fifo for an attribute: the open for writing hangs until somebody reads, as a sysfs write on MD's mutex would.
    let attribute = md::dir(&root, "md1004").join("dev-nvme0n1p1/state");
    std::fs::remove_file(&attribute).unwrap();
    std::fs::create_dir_all(attribute.parent().unwrap()).unwrap();
    std::fs::write(&attribute, "in_sync\n").unwrap();
    let raid_disks = md::dir(&root, "md1004").join("raid_disks");
    std::fs::remove_file(&raid_disks).unwrap();
    nix::unistd::mkfifo(&raid_disks, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let kernel = linux(root);
    let op = Op::SetRaidDisks { volume: volume(), count: 3 };
    // The clock does not advance by itself while a blocking thread runs.
    let pass = async {
        tokio::task::yield_now().await;
        tokio::time::advance(op.deadline() + Duration::from_secs(1)).await;
    };
    let (late, ()) = futures::join!(kernel.apply(&op), pass);
    let late = late.unwrap_err();
    assert!(late.class == Class::Retry && late.detail.contains("goes on"), "{late}");
    let taken = kernel.apply(&op).await.unwrap_err();
    assert!(taken.class == Class::Retry && taken.detail.contains("still running"), "{taken}");
    // The freezer is another object and gets through.
    let freeze = Op::FreezeWrites { volume: volume(), component: "nvme0n1p1".into(), frozen: true };
    assert_eq!(kernel.apply(&freeze).await, Ok(Changed::Yes));
    // Let the hanging thread go: first it reads the attribute, then it writes it.
    std::thread::spawn(move || {
        std::fs::write(&raid_disks, "2\n").unwrap();
        std::fs::read(&raid_disks).unwrap();
    });
}
