//! Names of objects: the volume's from the name CSI gives it, the replica's from the volume and its number.
//!
//! Called by CreateVolume and by every call that names a volume. A CSI name may be any text; an object's name may not.

use meshstor_kernel::id::ReplicaId;
use std::collections::BTreeMap;
use uuid::{Uuid, uuid};

/// Names made from a hash begin with this, so no such name is taken as it is.
const HASHED_PREFIX: &str = "msv-";
const NAMESPACE: Uuid = uuid!("5b0f0f43-3a9e-5d0c-8d0a-6d6573687374");
/// A name that also serves as a label value.
const NAME_BYTES_MAX: usize = 63;

/// Name of the object of the volume that CSI calls `csi_name`; always the same for the same name.
pub(crate) fn volume(csi_name: &str) -> String {
    if is_object_name(csi_name) && !csi_name.starts_with(HASHED_PREFIX) {
        return csi_name.to_string();
    }
    format!("{HASHED_PREFIX}{}", Uuid::new_v5(&NAMESPACE, csi_name.as_bytes()).simple())
}

/// Name of a replica's object.
pub(crate) fn replica(volume: &str, replica: ReplicaId) -> String {
    format!("{volume}-{replica}")
}

/// Labels of every object that carries recorded truth: backups of it must not be restored (K1), so none are made.
pub(crate) fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([("velero.io/exclude-from-backup".to_string(), "true".to_string())])
}

/// Whether an object of ours can have this name: a DNS-1123 subdomain of at most 63 characters. Anything else in a call
/// names nothing, and must not become part of a URL.
pub(crate) fn is_object_name(text: &str) -> bool {
    let plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    let label = |label: &str| {
        label.starts_with(plain) && label.ends_with(plain) && label.chars().all(|letter| plain(letter) || letter == '-')
    };
    text.len() <= NAME_BYTES_MAX && text.split('.').all(label)
}

/// Whether an object of any kind can have this name: nodes may have longer ones.
pub(crate) fn is_node_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_object_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_stay_and_all_others_are_hashed() {
        for good in ["pvc-5f0a", "a.b-c.d", "0"] {
            assert_eq!(volume(good), good);
        }
        let long = "n".repeat(64);
        let strange = ["", "A", "a_b", "-a", "a-", "a..b", ".", "a/b", "ä", "sanity name", &long, "msv-1"];
        let hashed: std::collections::BTreeSet<String> = strange.iter().map(|name| volume(name)).collect();
        assert_eq!(hashed.len(), strange.len(), "different names are different volumes");
        assert!(hashed.iter().all(|name| name.starts_with("msv-") && is_object_name(name)));
        assert_eq!(volume("a_b"), volume("a_b"));
        assert_ne!(volume(&volume("a_b")), volume("a_b"), "a hash cannot be asked for by its text");
    }

    #[test]
    fn nodes_may_have_long_names_of_short_labels() {
        assert!(is_node_name(&["label"; 20].join(".")));
        assert!(!is_node_name("a/b") && !is_node_name(""));
    }
}
