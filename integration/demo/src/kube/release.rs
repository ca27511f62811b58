//! The product's own life under load: another version rolled out, uninstalled, installed again.
//!
//! Called by `kube`. I/O must not notice any of it; nothing that holds data may go.

use super::Scenario;
use super::cluster::{Kube, NAMESPACE, TO_NEXT, Transport};
use super::pods::{Set, text};
use anyhow::{Context, Result, ensure};
use meshstor_lab::Guest;
use std::collections::BTreeMap;
use std::time::Instant;

pub const ALL: &[(&str, Scenario)] = &[
    ("upgrade: another version rolled out by helm during writes", upgrade),
    ("readme: the README's section on installation, word for word", readme),
    ("reinstall: helm uninstall during writes keeps every object and partition, helm install takes them on", reinstall),
];

fn upgrade(kube: &Kube) -> Result<String> {
    let set = Set::up(kube, "upgraded", 3)?;
    set.wait_for(50)?;
    kube.await_whole()?;
    let (before, _) = set.told();
    let begin = Instant::now();
    kube.deploy("upgrade", &[TO_NEXT])?;
    let took = begin.elapsed();
    for pod in kube.items(&["pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/name=meshstor"])? {
        let image = &pod["spec"]["containers"][0]["image"];
        ensure!(text(image).ends_with(":next"), "{} still runs {image}", pod["metadata"]["name"]);
    }
    let (during, longest) = set.told();
    set.wait_for(50)?;
    set.undisturbed(kube)?;
    let compared = set.verify(kube)?;
    kube.deploy("upgrade", &[])?;
    set.undisturbed(kube)?;
    kube.await_whole()?;
    let again = set.verify(kube)?;
    let gone = set.down(kube)?;
    ensure!(during > before, "nothing was written during the rollout");
    Ok(format!(
        "rolled out in {:.1} s, {} writes meanwhile, no error, no restart, longest {longest:?}; {compared} blocks verified\n\
         and back to the first version: {again} blocks verified\n{gone}",
        took.as_secs_f64(),
        during - before
    ))
}

/// What a new user does, on a cluster without the product.
fn readme(kube: &Kube) -> Result<String> {
    if kube.transport != Transport::Tcp {
        return Ok(String::from("its commands are for TCP; not run on this cluster"));
    }
    kube.uninstall()?;
    let readme = std::fs::read_to_string(kube.source.join("README.md")).context("read README.md")?;
    let lines = commands(&readme, "## Install");
    ensure!(lines.iter().any(|line| line.starts_with("helm install")), "no helm install in README.md: {lines:?}");
    let mut told = Vec::new();
    for line in &lines {
        let begin = Instant::now();
        let said = kube.as_user(line).with_context(|| kube.diagnosis())?;
        let shown: Vec<&str> = said.lines().take(12).map(str::trim_end).collect();
        told.push(format!("$ {line}  ({:.1} s)", begin.elapsed().as_secs_f64()));
        if line.starts_with("kubectl get") {
            ensure!(said.lines().count() > 1, "{line} shows nothing: {said}");
            told.push(shown.join("\n"));
        }
    }
    kube.await_agents()?;
    told.push(kube.nothing_left()?);
    Ok(told.join("\n"))
}

/// The commands of the console blocks in a section of a page.
fn commands<'a>(page: &'a str, section: &str) -> Vec<&'a str> {
    let lines = page.lines().skip_while(|line| *line != section).skip(1);
    let lines = lines.take_while(|line| !line.starts_with("## "));
    let mut inside = false;
    let mut found = Vec::new();
    for line in lines {
        match line.strip_prefix("```") {
            Some(language) => inside = language == "console",
            None => found.extend(line.strip_prefix("$ ").filter(|_| inside)),
        }
    }
    found
}

/// What must outlive an uninstallation: our objects by name and uid, definitions, partitions by node.
fn kept(kube: &Kube) -> Result<BTreeMap<String, String>> {
    let mut kept = BTreeMap::new();
    for kind in ["msvol", "msrep", "msnode", "msnd", "crd"] {
        for item in kube.items(&[kind])? {
            kept.insert(format!("{kind} {}", text(&item["metadata"]["name"])), text(&item["metadata"]["uid"]));
        }
    }
    for guest in kube.lab.guests() {
        for line in partitions(&guest)? {
            let (label, uuid) = line.split_once(' ').with_context(|| format!("a partition {line:?}"))?;
            kept.insert(format!("partition {} {label}", guest.name()), uuid.into());
        }
    }
    Ok(kept)
}

fn partitions(guest: &Guest) -> Result<Vec<String>> {
    let script = "lsblk -rno PARTLABEL,PARTUUID | grep ^meshstor- || true";
    Ok(guest.ssh_checked(script)?.lines().map(String::from).collect())
}

fn reinstall(kube: &Kube) -> Result<String> {
    let mut set = Set::up(kube, "kept", 2)?;
    set.wait_for(50)?;
    kube.await_whole()?;
    let before = kept(kube)?;
    let count = |kind: &str| before.keys().filter(|name| name.starts_with(&format!("{kind} "))).count();
    ensure!(count("msvol") == 2 && count("partition") == 4 && count("crd") >= 4, "before: {before:?}");
    let begin = Instant::now();
    kube.uninstall()?;
    let removed = begin.elapsed();
    ensure!(kept(kube)? == before, "uninstalling changed something:\n{:?}\n{before:?}", kept(kube)?);
    set.wait_for(100)?;
    set.undisturbed(kube)?;
    let without = set.verify(kube)?;
    let begin = Instant::now();
    kube.deploy("install", &[])?;
    let took = begin.elapsed();
    kube.await_whole()?;
    ensure!(kept(kube)? == before, "installing again changed something:\n{:?}\n{before:?}", kept(kube)?);
    set.wait_for(50)?;
    set.undisturbed(kube)?;
    // What was taken on can be detached and attached as before.
    let writer = &mut set.writers[0];
    let uid = writer.uid().to_string();
    kube.control.kubectl(&["delete", "pod", &writer.pod, "--wait=true"])?;
    writer.await_ready(kube)?;
    ensure!(writer.uid() != uid, "the pod was not made anew");
    writer.follow(kube)?;
    set.wait_for(50)?;
    let again = set.verify(kube)?;
    let gone = set.down(kube)?;
    Ok(format!(
        "uninstalled in {:.1} s: {} objects and partitions as before, writes go on, {without} blocks verified\n\
         installed again in {:.1} s: the same objects; a pod made anew on its old volume, {again} blocks verified\n{gone}",
        removed.as_secs_f64(),
        before.len(),
        took.as_secs_f64()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_those_of_the_section_and_of_its_console_blocks() {
        let page = "# A\n## Install\ntext `$ no`\n$ no\n```console\n$ one --x\noutput\n$ two\n```\n```yaml\n$ no\n```\n## Next\n```console\n$ no\n```\n";
        assert_eq!(commands(page, "## Install"), ["one --x", "two"]);
    }

    #[test]
    fn the_readme_installs_uses_and_deletes() {
        let lines = commands(include_str!("../../../../README.md"), "## Install");
        assert_eq!(lines.iter().filter(|line| line.starts_with("helm install")).count(), 1, "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("delete -f deploy/examples/first-volume.yaml")), "{lines:?}");
    }
}
