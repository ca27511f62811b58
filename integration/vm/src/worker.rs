//! A guest as a node of a Kubernetes cluster: containerd and kubelet in it, pods on a bridge of its own.
//!
//! Called by tests of whole clusters through [`Guest::join`]. It brings what a distribution brings and nothing of the
//! product: that is installed with Helm. Pods reach the API server and pods of their node; there is no other network.

use crate::container::PAUSE;
use crate::control::{Client, ControlPlane, Reach};
use crate::guest::Guest;
use anyhow::{Result, bail};
use serde_json::json;
use std::time::Duration;

const SCRIPT: &str = include_str!("image/files/worker");
/// Where the script is in a guest.
const PROGRAM: &str = "/usr/local/sbin/lab-worker";
/// Importing images of some hundred megabytes takes a minute and more under emulation; tests share the machine.
const PATIENCE: Duration = Duration::from_secs(900);

impl Guest {
    /// Makes the guest a node of the cluster, with the images in an archive that [`crate::container::share`] has put where guests
    /// see it. Its Node object may exist already, with annotations.
    pub fn join(&self, control: &ControlPlane, images: &str) -> Result<()> {
        let client = Client::kubelet(&self.name());
        let kubeconfig = control.kubeconfig(&client, Reach::Guest)?;
        let index = self.node.index;
        let worker =
            format!("NODE={} ADDRESS={} INDEX={index} API_PORT={}\n", self.name(), self.address(), control.port()?);
        self.put(&kubeconfig, "/etc/lab/kubelet.kubeconfig")?;
        self.put_bytes(worker.as_bytes(), "/etc/lab/worker", 0o644)?;
        self.put_bytes(containerd().as_bytes(), "/etc/lab/containerd.toml", 0o644)?;
        self.put_bytes(kubelet().to_string().as_bytes(), "/etc/lab/kubelet.yaml", 0o644)?;
        self.put_bytes(network(index).to_string().as_bytes(), "/etc/cni/net.d/10-lab.conflist", 0o644)?;
        self.put_bytes(SCRIPT.as_bytes(), PROGRAM, 0o755)?;
        self.work(images)
    }

    /// Starts containerd and kubelet again, after a boot or after they were ended.
    pub fn rejoin(&self) -> Result<()> {
        self.work("")
    }

    /// Ends kubelet at once. Containers go on, and nobody tells the API server about them.
    pub fn stop_kubelet(&self) -> Result<()> {
        self.ssh_checked("kill -9 $(cat /run/kubelet.pid) && rm /run/kubelet.pid").map(drop)
    }

    /// The last lines of kubelet's log.
    pub fn kubelet_log(&self, lines: usize) -> String {
        let read = self.ssh_checked(&format!("tail -n {lines} /var/log/kubelet.log"));
        read.unwrap_or_else(|error| format!("no log of the kubelet: {error:#}"))
    }

    fn work(&self, images: &str) -> Result<()> {
        let out = self.ssh_within(&format!("{PROGRAM} {images}"), PATIENCE)?;
        if !out.ok() {
            bail!("{}: {PROGRAM}: {}{}", self.name(), out.stdout.trim(), out.stderr.trim());
        }
        Ok(())
    }
}

fn containerd() -> String {
    let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
    format!(
        "version = 2\n[{cri}]\nsandbox_image = \"{PAUSE}\"\n[{cri}.cni]\nbin_dir = \"/usr/lib/cni\"\n\
         conf_dir = \"/etc/cni/net.d\"\n[{cri}.containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\
         [{cri}.containerd.runtimes.runc.options]\nSystemdCgroup = false\n"
    )
}

/// Kubelet's configuration; JSON is YAML. The guest has little disk, and the API server does not call it. The script says who has
/// the cgroups, here and in containerd's.
fn kubelet() -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "address": "127.0.0.1",
        "failSwapOn": false,
        "evictionHard": {},
        "imageGCHighThresholdPercent": 100,
        // No name service: pods find the API server by its address.
        "resolvConf": "",
    })
}

fn network(index: u8) -> serde_json::Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "lab",
        "plugins": [{
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": format!("10.88.{index}.0/24")}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_two_nodes_have_different_addresses() {
        assert_ne!(network(0), network(1));
        assert!(SCRIPT.contains("10.88.$INDEX.0/24"), "the script masks other addresses than pods have");
    }

    #[test]
    fn the_runtime_looks_where_debian_puts_network_plugins() {
        assert!(containerd().contains("/usr/lib/cni") && containerd().contains(PAUSE));
    }
}
