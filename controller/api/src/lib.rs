//! Custom resource types and the rules the API server enforces on them.
//!
//! Used by the controller, the node agent and `meshstor crds`. It never talks to a server.

pub mod condition;
pub mod convert;
pub mod node;
pub mod patch;
pub mod replica;
pub mod volume;

pub use condition::Condition;
pub use node::{MeshStorNode, MeshStorNodeDevice};
pub use replica::MeshStorReplica;
pub use volume::MeshStorVolume;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// Name of the CSI driver.
pub const DRIVER: &str = "io.meshstor.csi.mesh";
/// Finalizer of volumes and replicas: held by the controller, respectively by the replica's node.
pub const FINALIZER: &str = "csi.meshstor.io/data";

/// The four custom resource definitions.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![MeshStorVolume::crd(), MeshStorReplica::crd(), MeshStorNode::crd(), MeshStorNodeDevice::crd()]
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn print() {
        println!("{}", serde_json::to_string_pretty(&MeshStorVolume::crd()).unwrap());
    }
}
