//! The claim that a volume is made for, as external-provisioner notes it beside the parameters of the StorageClass
//! (`--extra-create-metadata`).
//!
//! Called by CreateVolume. It serves for telling people only: a note that is incomplete is none, and never an error.

use std::collections::HashMap;

const CLAIM_NAME: &str = "csi.storage.k8s.io/pvc/name";
const CLAIM_NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";
const VOLUME_NAME: &str = "csi.storage.k8s.io/pv/name";

/// A PersistentVolumeClaim.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Claim {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The PersistentVolume that will be bound to it.
    pub persistent_volume: Option<String>,
}

impl Claim {
    /// Reads the note, if there is one.
    pub(super) fn read(parameters: &HashMap<String, String>) -> Option<Self> {
        let text = |key: &str| parameters.get(key).filter(|text| !text.is_empty()).cloned();
        Some(Self { namespace: text(CLAIM_NAMESPACE)?, name: text(CLAIM_NAME)?, persistent_volume: text(VOLUME_NAME) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_that_is_incomplete_is_none() {
        let read = |pairs: &[(&str, &str)]| {
            Claim::read(&pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
        };
        let all = [(CLAIM_NAME, "db"), (CLAIM_NAMESPACE, "prod"), (VOLUME_NAME, "pvc-1")];
        let claim = Claim { namespace: "prod".into(), name: "db".into(), persistent_volume: Some("pvc-1".into()) };
        assert_eq!(read(&all), Some(claim.clone()));
        assert_eq!(read(&all[..2]), Some(Claim { persistent_volume: None, ..claim }));
        assert_eq!((read(&all[..1]), read(&all[1..]), read(&[])), (None, None, None));
        assert_eq!(read(&[(CLAIM_NAME, ""), (CLAIM_NAMESPACE, "prod")]), None);
    }
}
