//! Checks that many requests share: names, ids and paths.
//!
//! Called by the other files of `request`. A value that passes is safe to use as an object name part and, for paths, to
//! hand to mount: ids never climb out of a directory, paths never contain `..`. It never looks at a file system.

use std::path::PathBuf;

use crate::Refusal;

/// The CSI specification caps strings at 128 bytes.
const NAME_BYTES_MAX: usize = 128;
/// The CSI specification allows 256 bytes for a node id; a Kubernetes node name has at most 253.
const NODE_ID_BYTES_MAX: usize = 256;
/// PATH_MAX of Linux without its final NUL.
const PATH_BYTES_MAX: usize = 4095;

/// The name a caller proposes for a new volume.
pub(super) fn name(field: &'static str, value: &str) -> Result<String, Refusal> {
    if value.is_empty() {
        return Err(Refusal::missing(field));
    }
    if value.len() > NAME_BYTES_MAX || value.chars().any(char::is_control) {
        return Err(Refusal::value(field, value, "1 to 128 bytes of text without control characters"));
    }
    Ok(value.to_owned())
}

/// The id of a volume, as answered by CreateVolume.
pub(super) fn volume_id(value: &str) -> Result<String, Refusal> {
    id("volume_id", value, NAME_BYTES_MAX)
}

/// The id of a node, as answered by NodeGetInfo.
pub(super) fn node_id(value: &str) -> Result<String, Refusal> {
    id("node_id", value, NODE_ID_BYTES_MAX)
}

/// Ids become names of API objects and parts of paths, so what could climb out of a directory is refused here.
fn id(field: &'static str, value: &str, bytes_max: usize) -> Result<String, Refusal> {
    if value.is_empty() {
        return Err(Refusal::missing(field));
    }
    let climbs = value == "." || value == ".." || value.contains('/');
    if climbs || value.len() > bytes_max || value.chars().any(char::is_control) {
        let allowed = format!("an id of 1 to {bytes_max} bytes without '/' and control characters");
        return Err(Refusal::value(field, value, &allowed));
    }
    Ok(value.to_owned())
}

/// An absolute path that the caller must give.
pub(super) fn path(field: &'static str, value: &str) -> Result<PathBuf, Refusal> {
    if value.is_empty() {
        return Err(Refusal::missing(field));
    }
    // The root directory itself passes "absolute" and would then be unmounted by an unstage.
    let is_root = value.split('/').all(|part| part.is_empty() || part == ".");
    let climbs = value.split('/').any(|part| part == "..");
    if !value.starts_with('/') || is_root || climbs || value.len() > PATH_BYTES_MAX || value.contains('\0') {
        return Err(Refusal::value(field, value, "an absolute path below / without '..'"));
    }
    Ok(PathBuf::from(value))
}

/// An absolute path that the caller may leave out.
pub(super) fn optional_path(field: &'static str, value: &str) -> Result<Option<PathBuf>, Refusal> {
    if value.is_empty() { Ok(None) } else { path(field, value).map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_1_to_128_bytes() {
        assert_eq!(name("name", ""), Err(Refusal::missing("name")));
        assert!(name("name", &"n".repeat(128)).is_ok());
        assert!(name("name", &"n".repeat(129)).is_err());
        assert!(name("name", "a\u{7f}").is_err());
    }

    #[test]
    fn ids_cannot_climb() {
        for bad in [".", "..", "../x", "a/b", "a\0", "a\n"] {
            assert!(volume_id(bad).is_err(), "{bad:?}");
        }
        assert_eq!(volume_id("pvc-5f.a_b").as_deref(), Ok("pvc-5f.a_b"));
        assert!(node_id(&"n".repeat(253)).is_ok());
        assert!(volume_id(&"n".repeat(129)).is_err());
    }

    #[test]
    fn paths_are_absolute_and_below_root() {
        for bad in ["relative", "./x", "/", "//", "/.", "/./", "/a/../b", "/..", "/a\0b"] {
            assert!(path("target_path", bad).is_err(), "{bad:?}");
        }
        assert!(path("target_path", &format!("/{}", "p".repeat(PATH_BYTES_MAX))).is_err());
        assert_eq!(path("target_path", "/var/lib/..x/a"), Ok(PathBuf::from("/var/lib/..x/a")));
        assert_eq!(optional_path("staging_target_path", ""), Ok(None));
    }
}
