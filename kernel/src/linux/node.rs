//! The node itself: identity, addresses, and the preflight that says in words what is missing.
//!
//! Asked by the seam for [`NodeFact`]; its [`prepare`] runs once at start and loads what the checks look for. It never
//! changes a setting of the host beyond loading modules and mounting configfs.

use super::attr;
use super::cmd::{Tools, args};
use super::netlink;
use super::root::Root;
use super::udev;
use super::uring::{Engine, Ring};
use crate::error::{KernelError, Result};
use crate::facts::{Check, NodeFact};
use crate::id::{BootId, NodeName};
use std::collections::BTreeMap;
use std::time::Duration;

/// Modules without which nothing works, by the folder that shows them loaded.
const MODULES: [&str; 6] = ["nvmet", "nvmet_tcp", "nvme_tcp", "md_mod", "raid1", "xfs"];
/// Needed by ext4 volumes only.
const MODULE_EXT4: &str = "ext4";
const MODULES_RDMA: [&str; 2] = ["nvmet_rdma", "nvme_rdma"];
const DEADLINE: Duration = Duration::from_secs(10);
/// Reconnects that are refused give up since 6.12 only on a definite refusal, which is what the protocol counts on.
const KERNEL_FLOOR: (u32, u32) = (6, 1);
const KERNEL_BEST: (u32, u32) = (6, 12);

/// Loads modules and mounts configfs. Nothing here is fatal: the checks tell what is still missing.
pub async fn prepare(root: &Root, tools: &Tools) {
    for module in MODULES.iter().chain(&MODULES_RDMA).chain([&MODULE_EXT4]) {
        if root.sys.join("module").join(module).is_dir() {
            continue;
        }
        if let Err(error) = tools.run("modprobe", &args(&[module]), DEADLINE).await {
            tracing::warn!(module, %error, "module not loaded");
        }
    }
    if attr::names(&root.configfs).is_empty() {
        let none: Option<&str> = None;
        let flags = nix::mount::MsFlags::empty();
        if let Err(errno) = nix::mount::mount(Some("configfs"), &root.configfs, Some("configfs"), flags, none) {
            tracing::warn!(%errno, "configfs not mounted");
        }
    }
}

/// The whole fact. An address listing that fails leaves the addresses empty and says so in a check.
pub async fn observe(root: &Root, ring: &Ring, tools: &Tools, name: &NodeName) -> Result<NodeFact> {
    let boot = root.proc.join("sys/kernel/random/boot_id");
    let boot = attr::read(&boot).map_err(|e| KernelError::io("read boot id", attr::show(&boot), &e))?;
    let kernel = attr::read_opt(&root.proc.join("sys/kernel/osrelease")).unwrap_or_default();
    let mut checks = checks(root, ring.engine(), &kernel);
    for program in ["mdadm", "mkfs.xfs", "mkfs.ext4"] {
        checks.insert(program.to_string(), program_check(tools, program).await);
    }
    let rule_root = root.clone();
    let rule = tokio::task::spawn_blocking(move || udev::check(&rule_root)).await;
    let rule = rule.unwrap_or_else(|e| Check { ok: false, required: true, message: format!("the look failed: {e}") });
    checks.insert("udev-rule".into(), rule);
    let addresses = match netlink::addresses().await {
        Ok(addresses) => addresses,
        Err(error) => {
            checks.insert("network".into(), required(false, error.to_string()));
            Default::default()
        }
    };
    Ok(NodeFact { name: name.clone(), boot: BootId(boot), machine_id: machine_id(root), kernel, addresses, checks })
}

/// `/etc/machine-id`, or what the firmware calls the machine where the image has none.
fn machine_id(root: &Root) -> String {
    let etc = attr::read_opt(std::path::Path::new("/etc/machine-id")).filter(|id| !id.is_empty());
    etc.or_else(|| attr::read_opt(&root.sys.join("class/dmi/id/product_uuid"))).unwrap_or_default()
}

// --------------------------------------------------------------------------------------------- checks

fn required(ok: bool, message: String) -> Check {
    Check { ok, required: true, message }
}

fn optional(ok: bool, message: String) -> Check {
    Check { ok, required: false, message }
}

/// The checks that need no program. Reads of attributes only.
fn checks(root: &Root, engine: Engine, kernel: &str) -> BTreeMap<String, Check> {
    let mut checks = BTreeMap::from([
        ("kernel".to_string(), kernel_check(kernel)),
        ("io_uring".to_string(), uring_check(engine)),
        ("multipath".to_string(), multipath_check(root)),
        ("configfs".to_string(), configfs_check(root)),
        ("nvme-fabrics".to_string(), fabrics_check(root)),
    ]);
    for module in MODULES {
        checks.insert(format!("module-{}", module.replace('_', "-")), required_module(root, module));
    }
    let ext4 = loaded(root, MODULE_EXT4);
    let words = if ext4 { "loaded" } else { "ext4 is not loaded and could not be: volumes with XFS work" };
    checks.insert("module-ext4".into(), optional(ext4, words.into()));
    let rdma = MODULES_RDMA.iter().all(|module| loaded(root, module));
    let words = if rdma { "nvmet-rdma and nvme-rdma are loaded" } else { "no RDMA: exports use TCP only" };
    checks.insert("rdma".into(), optional(rdma, words.into()));
    checks
}

fn loaded(root: &Root, module: &str) -> bool {
    // A module that is built in has a folder only when it has parameters; `modules.builtin` is not ours to search.
    root.sys.join("module").join(module).is_dir() || built_in(root, module)
}

fn built_in(root: &Root, module: &str) -> bool {
    match module {
        "xfs" | "ext4" => attr::read_opt(&root.proc.join("filesystems")).is_some_and(|text| text.contains(module)),
        "raid1" => attr::read_opt(&root.proc.join("mdstat")).is_some_and(|text| text.contains("[raid1]")),
        "nvmet" => root.configfs.join("nvmet").is_dir(),
        _ => false,
    }
}

fn required_module(root: &Root, module: &str) -> Check {
    let ok = loaded(root, module);
    let message = if ok { "loaded".into() } else { format!("{module} is not loaded and could not be") };
    required(ok, message)
}

fn kernel_check(release: &str) -> Check {
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().ok());
    let version = numbers.next().flatten().zip(numbers.next().flatten());
    let ok = version.is_some_and(|version| version >= KERNEL_FLOOR);
    let best = version.is_some_and(|version| version >= KERNEL_BEST);
    let message = match (ok, best) {
        (true, true) => release.to_string(),
        (true, false) => format!("{release} works; 6.12 or newer is better tested and reconnects faster"),
        _ => format!("{release} is older than 6.1"),
    };
    required(ok, message)
}

fn uring_check(engine: Engine) -> Check {
    match engine {
        Engine::Uring => optional(true, "reads go through io_uring".into()),
        Engine::Pool => {
            optional(false, "io_uring is forbidden here: reads of a stuck device hold a thread each".into())
        }
    }
}

fn multipath_check(root: &Root) -> Check {
    let path = root.sys.join("module/nvme_core/parameters/multipath");
    match attr::read_opt(&path).as_deref() {
        Some("Y") => required(true, "native NVMe multipath is on".into()),
        other => {
            required(false, format!("nvme_core.multipath is {other:?}: path loss would fail I/O instead of holding it"))
        }
    }
}

fn configfs_check(root: &Root) -> Check {
    let ok = root.configfs.join("nvmet/subsystems").is_dir();
    let path = root.configfs.join("nvmet");
    required(ok, format!("{} {}", path.display(), if ok { "is there" } else { "is missing" }))
}

fn fabrics_check(root: &Root) -> Check {
    let path = root.dev.join("nvme-fabrics");
    // Reading it lists the options this kernel takes (fabrics.c `nvmf_dev_show`).
    let needed = ["ctrl_loss_tmo", "reconnect_delay", "keep_alive_tmo", "nr_io_queues", "hostid"];
    match attr::read_opt(&path) {
        None => required(false, format!("{} cannot be read: is nvme-fabrics loaded?", path.display())),
        // Before 5.17 the file could not be read for its options; those kernels are below the floor anyway.
        Some(text) => match needed.iter().find(|option| !text.contains(**option)) {
            None => required(true, "connections can be made".into()),
            Some(option) => required(false, format!("the kernel knows no connect option {option}")),
        },
    }
}

async fn program_check(tools: &Tools, program: &str) -> Check {
    let Some(path) = tools.path(program) else {
        return match program {
            "mkfs.ext4" => optional(false, "mkfs.ext4 is not installed: volumes with XFS work".into()),
            _ => required(false, format!("{program} is not installed")),
        };
    };
    // mdadm prints its version to standard error, so success alone is asked for.
    let version = match program {
        "mkfs.xfs" => tools.version(program, "-V", DEADLINE).await,
        _ => String::new(),
    };
    let message = format!("{} {}", path.display(), version).trim_end().to_string();
    Check { ok: true, required: program != "mkfs.ext4", message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn kernels_below_the_floor_fail_and_old_ones_are_told() {
        assert!(!kernel_check("5.15.0-91-generic").ok);
        assert!(!kernel_check("").ok);
        let old = kernel_check("6.1.0-18-amd64");
        assert!(old.ok && old.message.contains("6.12"));
        assert_eq!(kernel_check("6.12.117+deb13-amd64").message, "6.12.117+deb13-amd64");
        assert!(kernel_check("7.0.0").ok);
    }

    #[test]
    fn an_empty_machine_fails_every_required_check_and_a_full_one_none() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::at(temp.path());
        let failed = |root: &Root| {
            let checks = checks(root, Engine::Uring, "6.12.1");
            let failed = checks.into_iter().filter(|(_, check)| check.required && !check.ok);
            failed.map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(failed(&root).len(), MODULES.len() + 3);
        for module in MODULES {
            fs::create_dir_all(root.sys.join("module").join(module)).unwrap();
        }
        fs::create_dir_all(root.configfs.join("nvmet/subsystems")).unwrap();
        fs::create_dir_all(root.sys.join("module/nvme_core/parameters")).unwrap();
        fs::write(root.sys.join("module/nvme_core/parameters/multipath"), "Y\n").unwrap();
        fs::create_dir_all(&root.dev).unwrap();
        let options =
            "instance=-1,cntlid=-1,nr_io_queues=%d,reconnect_delay=%d,ctrl_loss_tmo=%d,keep_alive_tmo=%d,hostid=%s";
        fs::write(root.dev.join("nvme-fabrics"), options).unwrap();
        assert_eq!(failed(&root), Vec::<String>::new());
    }
}
