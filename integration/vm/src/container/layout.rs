//! One image as one tar: an OCI layout with the index of the older docker archive beside it, so that containerd, podman
//! and docker all take it.
//!
//! Used by `container`. The documents are made here; layers come finished.

use super::archive::{Layer, digest_of, empty, pack};
use crate::exec::run;
use crate::paths::make_dir;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// What an image is made of.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its full name, such as `ghcr.io/meshstor/meshstor:0.1.0`.
    pub reference: String,
    /// From the lowest to the highest.
    pub layers: Vec<Layer>,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
}

/// The documents of an image.
struct Documents {
    config: Vec<u8>,
    manifest: Vec<u8>,
    index: Vec<u8>,
    docker: Vec<u8>,
}

impl Image {
    /// Writes the archive and returns the digest of its manifest. `work` is a directory that this may empty.
    pub fn write(&self, work: &Path, output: &Path) -> Result<String> {
        let documents = self.documents()?;
        let tree = empty(work)?;
        let blobs = tree.join("blobs/sha256");
        make_dir(&blobs)?;
        let put = |path: &str, bytes: &[u8]| {
            std::fs::write(tree.join(path), bytes).with_context(|| format!("write {path} of an image"))
        };
        for layer in &self.layers {
            let blob = tree.join(blob(&layer.digest));
            // The copy is only for the archive: a link is one where the file system can.
            if std::fs::hard_link(&layer.file, &blob).is_err() {
                std::fs::copy(&layer.file, &blob).with_context(|| format!("copy {}", layer.file.display()))?;
            }
        }
        for document in [&documents.config, &documents.manifest] {
            put(&blob(&digest_of(document)), document)?;
        }
        put("oci-layout", &json_bytes(&json!({"imageLayoutVersion": "1.0.0"}))?)?;
        put("index.json", &documents.index)?;
        put("manifest.json", &documents.docker)?;
        // The mask of who runs this must not show.
        run(Command::new("find").arg(&tree).args(["-type", "f", "-exec", "chmod", "644", "{}", "+"]))?;
        pack(&tree, output)?;
        std::fs::remove_dir_all(&tree).context("remove the unpacked image")?;
        Ok(digest_of(&documents.manifest))
    }

    fn documents(&self) -> Result<Documents> {
        let Some((name, tag)) = self
            .reference
            .rsplit_once(':')
            .filter(|(name, tag)| name.contains('/') && !tag.is_empty() && !tag.contains('/'))
        else {
            bail!("{:?} is not an image's name: expected HOST/NAME:TAG", self.reference);
        };
        let digests: Vec<&str> = self.layers.iter().map(|layer| layer.digest.as_str()).collect();
        let config = json_bytes(&json!({
            "architecture": "amd64",
            "os": "linux",
            // Nothing of when it was made: the same inputs have the same digest.
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "Entrypoint": self.entrypoint,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Labels": {"org.opencontainers.image.title": name, "org.opencontainers.image.version": tag},
            },
            // Layers are not compressed, so their digests are those of what they unpack to.
            "rootfs": {"type": "layers", "diff_ids": digests},
        }))?;
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar", &layer.digest, layer.size))
            .collect();
        let manifest = json_bytes(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &digest_of(&config), config.len() as u64),
            "layers": layers,
        }))?;
        let mut entry =
            descriptor("application/vnd.oci.image.manifest.v1+json", &digest_of(&manifest), manifest.len() as u64);
        entry["annotations"] =
            json!({"io.containerd.image.name": self.reference, "org.opencontainers.image.ref.name": tag});
        let index = json_bytes(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [entry],
        }))?;
        let blobs: Vec<String> = digests.iter().map(|digest| blob(digest)).collect();
        let docker = json_bytes(&json!([{
            "Config": blob(&digest_of(&config)), "RepoTags": [self.reference], "Layers": blobs,
        }]))?;
        Ok(Documents { config, manifest, index, docker })
    }
}

/// Puts several archives into one, in which a layer that images share is there once: guests read slowly.
pub(super) fn merge(files: &[&Path], work: &Path, output: &Path) -> Result<()> {
    let tree = empty(work)?;
    let (mut index, mut docker) = (Value::Null, Vec::new());
    for file in files {
        run(Command::new("tar").arg("-xf").arg(file).arg("-C").arg(&tree))?;
        let read = |name: &str| -> Result<Value> {
            let text = std::fs::read(tree.join(name)).with_context(|| format!("read {name} of {}", file.display()))?;
            serde_json::from_slice(&text).with_context(|| format!("understand {name} of {}", file.display()))
        };
        let (mut next, entries) = (read("index.json")?, read("manifest.json")?);
        docker.extend(entries.as_array().cloned().unwrap_or_default());
        if let (Some(all), Some(more)) = (index["manifests"].as_array_mut(), next["manifests"].as_array_mut()) {
            all.append(more);
        } else {
            index = next;
        }
    }
    for (name, value) in [("index.json", &index), ("manifest.json", &Value::Array(docker))] {
        std::fs::write(tree.join(name), json_bytes(value)?).with_context(|| format!("write the common {name}"))?;
    }
    pack(&tree, output)?;
    std::fs::remove_dir_all(&tree).context("remove the unpacked images")
}

fn descriptor(kind: &str, digest: &str, size: u64) -> Value {
    json!({"mediaType": kind, "digest": digest, "size": size})
}

/// Where a blob lies in the layout.
fn blob(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

fn json_bytes(value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(value).context("encode an image's document")
}

#[cfg(test)]
mod tests {
    use super::super::archive::{Entry, digest};
    use super::*;

    fn image(dir: &Path) -> Image {
        let entry = |text: &str| {
            let from = dir.join(format!("{text}.content"));
            std::fs::write(&from, text).unwrap();
            Entry { path: format!("usr/bin/{text}"), from, mode: 0o755 }
        };
        let layer = |name: &str| Layer::of_files(&[entry(name)], &dir.join(name)).unwrap();
        Image {
            reference: "lab.invalid/name:1".into(),
            layers: vec![layer("low"), layer("high")],
            entrypoint: vec!["/usr/bin/high".into()],
        }
    }

    fn unpacked(file: &Path, dir: &Path) -> impl Fn(&str) -> Value {
        let tree = empty(&dir.join("unpacked")).unwrap();
        run(Command::new("tar").arg("-xf").arg(file).arg("-C").arg(&tree)).unwrap();
        move |path: &str| serde_json::from_slice(&std::fs::read(tree.join(path)).unwrap()).unwrap()
    }

    #[test]
    fn every_digest_and_size_in_the_documents_is_that_of_a_file_of_the_archive() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image.tar");
        let told = image(dir.path()).write(&dir.path().join("work"), &file).unwrap();
        let read = unpacked(&file, dir.path());
        let index = read("index.json");
        let entry = &index["manifests"][0];
        assert_eq!(entry["digest"], told.as_str());
        assert_eq!(entry["annotations"]["io.containerd.image.name"], "lab.invalid/name:1");
        let manifest = read(&blob(&told));
        let layers = manifest["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 2);
        for told in layers.iter().chain([entry, &manifest["config"]]) {
            let path = dir.path().join("unpacked").join(blob(told["digest"].as_str().unwrap()));
            let (found, size) = digest(&path).unwrap();
            assert_eq!((told["digest"].as_str(), told["size"].as_u64()), (Some(found.as_str()), Some(size)));
        }
        let config = read(&blob(manifest["config"]["digest"].as_str().unwrap()));
        let unpacked_to: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
        assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().iter().collect::<Vec<_>>(), unpacked_to);
        assert_eq!(config["config"]["Entrypoint"][0], "/usr/bin/high");
        let docker = read("manifest.json");
        assert_eq!(docker[0]["RepoTags"][0], "lab.invalid/name:1");
        assert_eq!(docker[0]["Layers"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn the_same_inputs_give_the_same_archive() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one.tar"), dir.path().join("two.tar"));
        let image = image(dir.path());
        image.write(&dir.path().join("work"), &one).unwrap();
        image.write(&dir.path().join("work"), &two).unwrap();
        assert_eq!(digest(&one).unwrap(), digest(&two).unwrap());
    }

    #[test]
    fn merged_archives_have_all_images_and_a_shared_layer_once() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["one.tar", "two.tar", "both.tar"].map(|name| dir.path().join(name));
        let one = image(dir.path());
        let two = Image { reference: "lab.invalid/other:2".into(), layers: one.layers[..1].to_vec(), ..one.clone() };
        one.write(&dir.path().join("work"), &files[0]).unwrap();
        two.write(&dir.path().join("work"), &files[1]).unwrap();
        merge(&[&files[0], &files[1]], &dir.path().join("work"), &files[2]).unwrap();
        let read = unpacked(&files[2], dir.path());
        let names: Vec<_> =
            read("manifest.json").as_array().unwrap().iter().map(|i| i["RepoTags"][0].clone()).collect();
        assert_eq!(names, ["lab.invalid/name:1", "lab.invalid/other:2"]);
        let index = read("index.json");
        assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
        for entry in index["manifests"].as_array().unwrap() {
            for layer in read(&blob(entry["digest"].as_str().unwrap()))["layers"].as_array().unwrap() {
                assert!(dir.path().join("unpacked").join(blob(layer["digest"].as_str().unwrap())).is_file());
            }
        }
        let blobs = std::fs::read_dir(dir.path().join("unpacked/blobs/sha256")).unwrap().count();
        assert_eq!(blobs, 2 + 2 + 2, "two layers, two configurations, two manifests");
    }

    #[test]
    fn a_name_without_host_or_tag_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for wrong in ["name:1", "lab.invalid/name", "lab.invalid:80/name", "a/b:"] {
            let image = Image { reference: wrong.into(), ..image(dir.path()) };
            assert!(image.write(&dir.path().join("work"), &dir.path().join("o.tar")).is_err(), "{wrong}");
        }
    }
}
