//! Custom resource types and the rules the API server enforces on them.
//!
//! Used by the controller, the node agent and `meshstor crds`. Nothing but [`tell`], which sends events, talks to a server.

pub mod condition;
pub mod convert;
pub mod node;
pub mod patch;
pub mod replica;
pub mod tell;
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

/// Number of the definitions below, which rises with every field: a definition that does not know a field makes the API
/// server drop it at the next write, and the fields are the record (K16).
pub const SCHEMA: u32 = 1;
/// Where a definition carries its number.
pub const SCHEMA_ANNOTATION: &str = "csi.meshstor.io/schema";

/// The four custom resource definitions.
pub fn crds() -> Vec<CustomResourceDefinition> {
    let all = [MeshStorVolume::crd(), MeshStorReplica::crd(), MeshStorNode::crd(), MeshStorNodeDevice::crd()];
    all.into_iter().map(plain_formats).map(numbered).collect()
}

fn numbered(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let annotations = crd.metadata.annotations.get_or_insert_default();
    annotations.insert(SCHEMA_ANNOTATION.to_string(), SCHEMA.to_string());
    crd
}

/// The number of a definition; 0 when it has none that can be read.
pub fn schema_of(crd: &CustomResourceDefinition) -> u32 {
    let number = crd.metadata.annotations.as_ref().and_then(|annotations| annotations.get(SCHEMA_ANNOTATION));
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// The same definition with integer formats that the API server knows: it warns at `uint64` and the like at each apply.
/// The lower bound that comes with them stays.
fn plain_formats(crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let Ok(mut value) = serde_json::to_value(&crd) else { return crd };
    rename_formats(&mut value);
    serde_json::from_value(value).unwrap_or(crd)
}

fn rename_formats(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            if let Some(format) = map.get_mut("format") {
                match format.as_str() {
                    Some("uint64") => *format = "int64".into(),
                    Some("uint32" | "uint16" | "uint8") => *format = "int32".into(),
                    _ => {}
                }
            }
            map.values_mut().for_each(rename_formats);
        }
        serde_json::Value::Array(list) => list.iter_mut().for_each(rename_formats),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_name_no_format_that_the_server_does_not_know() {
        for crd in crds() {
            let text = serde_json::to_string(&crd).unwrap();
            assert!(!text.contains("uint"), "{}", crd.metadata.name.unwrap_or_default());
        }
    }

    /// Every field with its type: `MeshStorVolume .spec.sizeBytes integer`.
    fn fields(at: &str, schema: &serde_json::Value, into: &mut Vec<String>) {
        into.push(format!("{at} {}", schema["type"].as_str().unwrap_or("any")));
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            fields(&format!("{at}.{name}"), inner, into);
        }
        for (mark, inner) in [("[]", &schema["items"]), ("{}", &schema["additionalProperties"])] {
            if inner.is_object() {
                fields(&format!("{at}{mark}"), inner, into);
            }
        }
    }

    #[test]
    fn a_changed_schema_has_another_number() {
        let mut lines = vec![format!("schema {SCHEMA}")];
        for crd in crds() {
            let schema = crd.spec.versions[0].schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref()).unwrap();
            fields(&format!("{} ", crd.spec.names.kind), &serde_json::to_value(schema).unwrap(), &mut lines);
        }
        let now = lines.join("\n") + "\n";
        let copy = std::env::temp_dir().join("meshstor-schema.txt");
        if now != include_str!("../schema.txt") {
            std::fs::write(&copy, &now).unwrap();
            panic!(
                "the fields are not those of controller/api/schema.txt: take none away, raise SCHEMA if the former ones were \
                 released, and copy {} there",
                copy.display()
            );
        }
    }

    #[test]
    fn every_kind_has_a_status_columns_and_a_short_name() {
        for crd in crds() {
            let version = &crd.spec.versions[0];
            assert!(version.subresources.as_ref().is_some_and(|s| s.status.is_some()));
            assert!(version.additional_printer_columns.as_ref().is_some_and(|c| c.len() >= 4));
            assert_eq!(crd.spec.names.short_names.as_ref().map(Vec::len), Some(1));
            assert_eq!(crd.spec.scope, "Cluster");
        }
    }
}
