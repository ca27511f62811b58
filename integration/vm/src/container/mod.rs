//! Container images without a container engine: the product's own, the CSI project's sidecars, and two small ones of the
//! lab. Each is a tar that `ctr images import` takes.
//!
//! Called by `cargo xtask image` and `cargo xtask kube`. Cached by a hash of the inputs; nothing is pushed or pulled.

mod archive;
mod debian;
mod layout;

use crate::exec::{run, step};
use crate::image::digest;
use crate::paths::{Paths, make_dir};
use crate::tools;
use anyhow::{Context, Result};
use archive::{Entry, Layer};
use layout::Image;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Raise it when the way of building changes without a change of the inputs.
const FORMAT: &str = "1";

/// What every pod's first container runs: nothing.
pub(crate) const PAUSE: &str = "lab.invalid/pause:1";

/// What the lab's own pods run: the test program.
pub const WORKLOAD: &str = "lab.invalid/workload:1";

/// What the example of the README runs.
const BUSYBOX: &str = "docker.io/library/busybox:1.37";

/// An image as one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFile {
    /// The archive.
    pub file: PathBuf,
    /// Its full name, as pods say it.
    pub reference: String,
    /// The digest of its manifest: the same inputs, the same digest.
    pub digest: String,
}

/// The product's image, with the binary that lies at `binary`. It is stripped: what is left out only debuggers read.
pub fn product(paths: &Paths, binary: &Path, reference: &str) -> Result<ImageFile> {
    let base = debian::layer(paths)?;
    let program = stripped(paths, binary)?;
    let entries = [Entry::program("usr/bin/meshstor", &program)];
    image(paths, reference, Some(base), &entries, &["/usr/bin/meshstor"])
}

/// The image of the lab's own pods, with the test program that lies at `binary` and the libraries of this machine that it was
/// linked with: small, because every guest unpacks it.
pub fn workload(paths: &Paths, binary: &Path) -> Result<ImageFile> {
    let program = stripped(paths, binary)?;
    let listed = run(Command::new("ldd").arg(&program))?;
    let mut entries = vec![Entry::program("usr/bin/meshstor-demo", &program)];
    entries.extend(
        libraries(&listed).into_iter().map(|path| Entry::program(path.trim_start_matches('/'), Path::new(path))),
    );
    image(paths, WORKLOAD, None, &entries, &["/usr/bin/meshstor-demo"])
}

/// Paths in what `ldd` prints: `NAME => PATH (ADDRESS)`, and the loader's `PATH (ADDRESS)`.
fn libraries(listed: &str) -> Vec<&str> {
    listed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/'))).collect()
}

/// The image that holds a pod's namespaces.
pub fn pause(paths: &Paths) -> Result<ImageFile> {
    let entries = [Entry::program("bin/busybox", &debian::busybox(paths)?)];
    image(paths, PAUSE, None, &entries, &["/bin/busybox", "sleep", "2147483647"])
}

/// The image of the README's example: Debian's busybox under the name that the example gives it, for there is no registry.
pub fn busybox(paths: &Paths) -> Result<ImageFile> {
    let program = debian::busybox(paths)?;
    let entries =
        ["bin/busybox", "bin/sh", "bin/grep", "bin/sleep", "bin/sync"].map(|name| Entry::program(name, &program));
    image(paths, BUSYBOX, None, &entries, &["/bin/sh"])
}

/// The image of a sidecar under the name that the chart gives it. Sidecars are static programs that talk to the API
/// server alone, whose authority comes with their service account: there is nothing else in the image.
pub fn sidecar(paths: &Paths, reference: &str) -> Result<ImageFile> {
    let name = program_of(reference)?;
    let entries = [Entry::program(name, &tools::sidecar(paths, name)?)];
    image(paths, reference, None, &entries, &[&format!("/{name}")])
}

/// Puts several images as one file where guests see it, and returns its path there.
pub fn share(paths: &Paths, images: &[ImageFile]) -> Result<String> {
    let digests: Vec<&str> = images.iter().map(|image| image.digest.as_str()).collect();
    let file = paths.containers().join(format!("bundle-{}.tar", digest(&[&[FORMAT], &digests[..]].concat())));
    if !file.is_file() {
        step(&format!("put {} images into one file", images.len()), || {
            let (work, part) = (file.with_extension("work"), file.with_extension("part"));
            let files: Vec<&Path> = images.iter().map(|image| image.file.as_path()).collect();
            layout::merge(&files, &work, &part)?;
            std::fs::rename(&part, &file).context("move the images into place")
        })?;
    }
    make_dir(&paths.bin())?;
    // Guests see the shared directory, so it must be a real file in it; a hard link costs no space.
    run(Command::new("ln").arg("-f").arg(&file).arg(paths.bin().join("images.tar")))?;
    Ok("/tools/images.tar".into())
}

/// The program in an image: its repository's last word.
fn program_of(reference: &str) -> Result<&str> {
    let name = reference.rsplit('/').next().and_then(|last| last.split([':', '@']).next());
    name.filter(|name| !name.is_empty()).with_context(|| format!("no program's name in {reference:?}"))
}

fn image(
    paths: &Paths,
    reference: &str,
    base: Option<Layer>,
    entries: &[Entry],
    entrypoint: &[&str],
) -> Result<ImageFile> {
    let mut inputs = vec![FORMAT.to_string(), reference.to_string(), entrypoint.join(" ")];
    inputs.extend(base.iter().map(|layer| layer.digest.clone()));
    for entry in entries {
        inputs.push(format!("{} {:o}", entry.path, entry.mode));
        inputs.push(archive::digest(&entry.from)?.0);
    }
    let key = digest(&inputs.iter().map(String::as_str).collect::<Vec<_>>());
    let dir = paths.containers();
    let name = program_of(reference)?;
    let (file, said) = (dir.join(format!("{name}-{key}.tar")), dir.join(format!("{name}-{key}.digest")));
    // The digest is written last: where it is, the archive is whole.
    if !said.is_file() {
        make_dir(&dir)?;
        step(&format!("make the image {reference}"), || {
            let work = dir.join(format!("{name}-{key}.work"));
            let layer = Layer::of_files(entries, &work.join("layer"))?;
            let image = Image {
                reference: reference.into(),
                layers: base.into_iter().chain([layer]).collect(),
                entrypoint: entrypoint.iter().map(ToString::to_string).collect(),
            };
            let told = image.write(&work.join("image"), &file)?;
            std::fs::write(&said, told).context("write the image's digest")?;
            std::fs::remove_dir_all(&work).context("remove the image's parts")
        })?;
    }
    let digest = std::fs::read_to_string(&said).context("read the image's digest")?;
    Ok(ImageFile { file, reference: reference.into(), digest })
}

/// The program without what only debuggers read: a debug build is five times as large.
fn stripped(paths: &Paths, binary: &Path) -> Result<PathBuf> {
    let name = binary.file_name().with_context(|| format!("{} names no program", binary.display()))?;
    make_dir(&paths.containers())?;
    let to = paths.containers().join(format!("{}.stripped", name.to_string_lossy()));
    run(Command::new("strip").arg("-o").arg(&to).arg(binary))?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_paths_that_ldd_prints() {
        let listed = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x2)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        assert_eq!(libraries(listed), ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
    }

    #[test]
    fn programs_of_images() {
        assert_eq!(program_of("registry.k8s.io/sig-storage/csi-attacher:v4.12.0").unwrap(), "csi-attacher");
        assert_eq!(program_of("lab.invalid:80/pause@sha256:1").unwrap(), "pause");
        assert!(program_of("a/").is_err());
    }

    #[test]
    fn an_image_is_made_once_for_its_inputs_and_anew_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::at(dir.path()).unwrap();
        let entries = |text: &str| {
            let from = dir.path().join(text);
            std::fs::write(&from, text).unwrap();
            [Entry { path: "x".into(), from, mode: 0o755 }]
        };
        let make = |text: &str| image(&paths, "lab.invalid/x:1", None, &entries(text), &["/x"]).unwrap();
        let one = make("one");
        let time = std::fs::metadata(&one.file).unwrap().modified().unwrap();
        assert_eq!(make("one"), one);
        assert_eq!(std::fs::metadata(&one.file).unwrap().modified().unwrap(), time, "made again");
        assert_ne!(make("two").digest, one.digest);
    }
}
