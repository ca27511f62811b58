//! The publish context: what ControllerPublishVolume hands to the node through Kubernetes.
//!
//! Written by the Controller handler, read by the Node requests. It lives in the VolumeAttachment for its whole life
//! and anybody may read it there, so it holds an epoch *floor* only: never an address, a port or a key (K4, K10).

use std::collections::HashMap;

use crate::Refusal;

const ATTACH_EPOCH: &str = "attachEpoch";

/// What a node learns from the attachment of a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct PublishContext {
    /// The epoch at which the volume was attached. A node may stage at this epoch or a later one, never at an earlier
    /// one. `None` when the caller passed no context.
    pub attach_epoch: Option<u64>,
}

impl PublishContext {
    /// The context for an attachment made at `epoch`.
    pub fn at(epoch: u64) -> Self {
        Self { attach_epoch: Some(epoch) }
    }

    /// As CSI carries it.
    pub fn to_map(self) -> HashMap<String, String> {
        self.attach_epoch.map(|epoch| (ATTACH_EPOCH.to_owned(), epoch.to_string())).into_iter().collect()
    }

    /// Reads a context; other keys are left alone, because an attachment may outlive the version that wrote it.
    pub(super) fn parse(map: &HashMap<String, String>) -> Result<Self, Refusal> {
        let Some(text) = map.get(ATTACH_EPOCH) else { return Ok(Self::default()) };
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(epoch) if digits => Ok(Self::at(epoch)),
            _ => Err(Refusal::value(format!("publish_context.{ATTACH_EPOCH}"), text, "a whole number")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn absent_is_no_floor_and_nonsense_is_refused() {
        assert_eq!(PublishContext::parse(&HashMap::new()), Ok(PublishContext { attach_epoch: None }));
        for bad in ["", "-1", "+1", "x", "99999999999999999999"] {
            let map = HashMap::from([(ATTACH_EPOCH.to_owned(), bad.to_owned())]);
            assert!(PublishContext::parse(&map).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn contexts_round_trip(epoch in any::<u64>()) {
            prop_assert_eq!(PublishContext::parse(&PublishContext::at(epoch).to_map()), Ok(PublishContext::at(epoch)));
        }
    }
}
