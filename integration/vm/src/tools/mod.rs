//! The programs the lab needs: Debian packages, QEMU, and Kubernetes built from source.
//!
//! Called at the start of every `up`; when all is there it costs a few milliseconds. Installs Debian packages on the
//! machine it runs on (root needed only when one is missing); everything else goes to the cache directory.

pub(crate) mod apt;
mod go;
mod kube;
mod programs;
mod qemu;

use crate::paths::Paths;
use anyhow::Result;
use std::path::PathBuf;

pub use kube::{KubeTool, VERSION as KUBE_VERSION};
pub(crate) use qemu::version as qemu_version;

/// A program and the Debian package it comes from.
const PROGRAMS: &[(&str, &str)] = &[
    ("mmdebstrap", "mmdebstrap"),
    ("ssh", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
    ("openssl", "openssl"),
    ("etcd", "etcd-server"),
    ("mke2fs", "e2fsprogs"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
    ("tar", "tar"),
];

/// What container images need.
const IMAGE_PROGRAMS: &[(&str, &str)] = &[("mmdebstrap", "mmdebstrap"), ("tar", "tar"), ("strip", "binutils")];

/// What guests need: packages and QEMU.
pub fn ensure_vm(paths: &Paths) -> Result<()> {
    install_missing(PROGRAMS)?;
    qemu::ensure(paths)
}

/// What container images need: packages.
pub fn ensure_images() -> Result<()> {
    install_missing(IMAGE_PROGRAMS)
}

fn install_missing(programs: &[(&str, &'static str)]) -> Result<()> {
    let missing: Vec<&str> = programs.iter().filter(|(program, _)| find(program).is_none()).map(|(_, p)| *p).collect();
    apt::install(&missing)
}

/// What the control plane needs: etcd (a package) and Kubernetes programs, built once for each version.
pub fn ensure_control_plane(paths: &Paths) -> Result<()> {
    ensure_vm(paths)?;
    kube::ensure(paths, &[KubeTool::Apiserver, KubeTool::Kubectl]).map(drop)
}

/// What a whole cluster needs besides: everything that makes and runs pods. The sidecars are built when their images are.
pub fn ensure_cluster(paths: &Paths) -> Result<()> {
    ensure_control_plane(paths)?;
    ensure_images()?;
    kube::ensure(paths, &[KubeTool::ControllerManager, KubeTool::Scheduler, KubeTool::Kubelet])
}

/// A sidecar by its program's name, built when the cache lacks it.
pub(crate) fn sidecar(paths: &Paths, name: &str) -> Result<PathBuf> {
    programs::sidecar(name)?.ensure(paths)
}

/// Installs Debian packages of the machine's own suite: what builds and other tests need.
pub fn install(packages: &[&str]) -> Result<()> {
    apt::install(packages)
}

/// `promtool`, from Debian's prometheus package: unpacked, not installed, so that no server is started.
pub fn promtool(paths: &Paths) -> Result<PathBuf> {
    let dir = paths.root().join("prometheus");
    let program = dir.join("usr/bin/promtool");
    if !program.is_file() {
        let suites = apt::Suites::open(paths, &[&apt::own_suite()?])?;
        suites.update()?;
        let package = suites.download("prometheus", &dir)?;
        crate::exec::run(std::process::Command::new("dpkg-deb").arg("-x").arg(&package).arg(&dir))?;
    }
    Ok(program)
}

/// `csi-sanity`, built when the cache lacks it.
pub fn csi_sanity(paths: &Paths) -> Result<PathBuf> {
    programs::csi_sanity().ensure(paths)
}

/// Helm, built when the cache lacks it.
pub fn helm(paths: &Paths) -> Result<PathBuf> {
    programs::helm().ensure(paths)
}

/// The path of one Kubernetes program, building it when the cache lacks it.
pub fn kube_tool(paths: &Paths, tool: KubeTool) -> Result<PathBuf> {
    kube::ensure(paths, &[tool])?;
    Ok(kube::path(paths, tool))
}

/// Looks a program up in `PATH` and in the directories for administrators, which `PATH` may lack.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}
