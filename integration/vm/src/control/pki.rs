//! Certificates and kubeconfig files of the lab's control plane.
//!
//! Used by `control`. Everything is signed by an authority of the lab's own that nothing else trusts; keys lie in the
//! run directory and are made anew with it.

use super::Client;
use crate::exec::run;
use crate::paths::{make_dir, write_atomically};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every name by which host, guests and pods call the server. Pods have the first address of the service network.
const SERVER_NAMES: &str =
    "subjectAltName=IP:127.0.0.1,IP:10.0.2.2,IP:10.96.0.1,DNS:localhost,DNS:kubernetes.default.svc";

/// openssl's default configuration would make every certificate an authority.
const OPENSSL_CONFIG: &str = "[req]\ndistinguished_name = name\nprompt = no\n[name]\n";

/// Makes the authority, the server's certificate and the key that signs service account tokens.
pub(super) fn ensure_server(dir: &Path) -> Result<()> {
    let pki = dir.join("pki");
    // Made last, so its presence means that all is there.
    let last = pki.join("accounts.pub");
    if last.exists() {
        return Ok(());
    }
    make_dir(&pki)?;
    write_atomically(&pki.join("openssl.cnf"), OPENSSL_CONFIG.as_bytes())?;
    certificate(&pki, "ca", "/CN=meshstor-lab", &["basicConstraints=critical,CA:TRUE"], false)?;
    certificate(&pki, "server", "/CN=kube-apiserver", &[SERVER_NAMES, "extendedKeyUsage=serverAuth"], true)?;
    let (key, public) = (pki.join("accounts.key"), pki.join("accounts.pub"));
    run(openssl().args(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"]).arg(&key))?;
    run(openssl().args(["ec", "-pubout", "-in"]).arg(&key).arg("-out").arg(&public)).map(drop)
}

/// A self-contained kubeconfig file for this client and server address.
pub(super) fn kubeconfig(dir: &Path, client: &Client, server: &str, reach: &str) -> Result<PathBuf> {
    let subject = subject(client)?;
    let stem = file_stem(&client.user);
    let file = dir.join(format!("{stem}.{reach}.kubeconfig"));
    if file.exists() {
        return Ok(file);
    }
    let clients = dir.join("pki");
    if !clients.join(format!("{stem}.crt")).exists() {
        certificate(&clients, &stem, &subject, &["extendedKeyUsage=clientAuth"], true)?;
    }
    let data = |name: &str| base64(&clients.join(name));
    let content = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": client.user}}],
        "clusters": [{"name": "lab", "cluster": {
            "server": server,
            "certificate-authority-data": data("ca.crt")?,
        }}],
        "users": [{"name": client.user, "user": {
            "client-certificate-data": data(&format!("{stem}.crt"))?,
            "client-key-data": data(&format!("{stem}.key"))?,
        }}],
    });
    // JSON is YAML; every reader of kubeconfig files takes it.
    write_atomically(&file, format!("{content:#}\n").as_bytes())?;
    Ok(file)
}

/// One key and its certificate, signed by the authority or by itself.
fn certificate(dir: &Path, stem: &str, subject: &str, extensions: &[&str], signed: bool) -> Result<()> {
    let file = |ending: &str| dir.join(format!("{stem}.{ending}"));
    let part = file("crt.part");
    let mut command = openssl();
    command
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650"])
        .arg("-config")
        .arg(dir.join("openssl.cnf"))
        .args(["-subj", subject])
        .args(extensions.iter().flat_map(|extension| ["-addext", extension]))
        .arg("-keyout")
        .arg(file("key"))
        .arg("-out")
        .arg(&part);
    if signed {
        command.arg("-CA").arg(dir.join("ca.crt")).arg("-CAkey").arg(dir.join("ca.key"));
    }
    run(&mut command)?;
    std::fs::rename(&part, file("crt")).with_context(|| format!("move the certificate of {stem} into place"))
}

fn openssl() -> Command {
    Command::new("openssl")
}

/// Kubernetes reads the user from the common name and groups from organisations.
fn subject(client: &Client) -> Result<String> {
    let mut subject = String::new();
    for (kind, value) in client.groups.iter().map(|group| ("O", group)).chain([("CN", &client.user)]) {
        if value.is_empty() || value.contains(['/', '=', '+', '\\']) {
            bail!("{value:?} cannot be a user or group in a certificate");
        }
        subject.push_str(&format!("/{kind}={value}"));
    }
    Ok(subject)
}

fn file_stem(user: &str) -> String {
    user.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "-")
}

fn base64(file: &Path) -> Result<String> {
    Ok(run(openssl().args(["base64", "-A", "-in"]).arg(file))?.trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subject_carries_user_and_groups() {
        let subject_of = |user: &str| subject(&Client { user: user.into(), groups: vec!["g:h".into()] });
        assert_eq!(subject_of("a:b").unwrap(), "/O=g:h/CN=a:b");
        assert!(subject_of("a/CN=root").is_err());
        assert!(subject_of("").is_err());
    }

    #[test]
    fn certificates_chain_to_the_authority() {
        let dir = tempfile::tempdir().unwrap();
        ensure_server(dir.path()).unwrap();
        let config = kubeconfig(dir.path(), &Client::node("node-a"), "https://10.0.2.2:1", "guest").unwrap();
        let text = std::fs::read_to_string(&config).unwrap();
        assert!(text.contains("https://10.0.2.2:1") && text.contains("client-key-data"));
        let pki = dir.path().join("pki");
        for leaf in ["server.crt", "meshstor-node-node-a.crt"] {
            run(openssl().arg("verify").arg("-CAfile").arg(pki.join("ca.crt")).arg(pki.join(leaf))).unwrap();
        }
        let server = run(openssl().args(["x509", "-noout", "-text", "-in"]).arg(pki.join("server.crt"))).unwrap();
        assert!(server.contains("10.0.2.2") && !server.contains("CA:TRUE"), "{server}");
    }
}
