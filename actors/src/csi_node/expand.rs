//! NodeExpandVolume: waits until the array and its file system have the size that the controller has recorded.
//!
//! Called by the handler. The work is that of the volume's own actors, which do it as soon as they see the record, whether
//! anybody calls or not; this makes them look and says what they wait for. It never shrinks and never fails for being
//! asked again.

use super::{Inner, text};
use crate::csi_codes;
use crate::failure::Failure;
use crate::node::messages::{AskGrowth, Growth};
use meshstor_csi::request::{Capability, NodeExpandVolume};
use std::time::Duration;
use tonic::Status;

/// Between two looks: a growth takes a few steps of some milliseconds each.
const AGAIN: Duration = Duration::from_millis(200);

/// Waits until the volume at the path is as large as asked for; answers the size that it has.
pub(super) async fn expand(inner: &Inner, key: &str, request: &NodeExpandVolume) -> Result<u64, Status> {
    let path = text(&request.volume_path)?;
    let raw = request.capability.as_ref().is_some_and(Capability::is_block);
    let question = || AskGrowth { path: path.clone(), device_of: raw.then(|| request.volume_id.clone()) };
    let wanted = request.capacity.map_or(0, |capacity| capacity.required_bytes);
    loop {
        let answer: Result<Option<Growth>, Failure> = inner.ask(question()).await?;
        let Some(growth) = answer.map_err(|failure| csi_codes::status(&failure))? else {
            return Err(Status::not_found(format!("volume_path is {path:?}: no volume of ours is there")));
        };
        match lacks(&growth, wanted) {
            None => return within(request, growth.array_bytes),
            Some(what) => inner.say(key, format!("{}: {what}", request.volume_id)),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// What is still to be done, in words; `None`: nothing.
fn lacks(growth: &Growth, asked: u64) -> Option<String> {
    let Growth { raw, array_bytes, filled, recorded, reason } = growth;
    let wanted = recorded.unwrap_or(0).max(asked);
    let because = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    if *array_bytes >= wanted {
        let fills = *raw || filled >= array_bytes;
        return (!fills)
            .then(|| format!("its file system does not fill its array of {array_bytes} bytes yet{because}"));
    }
    Some(match recorded {
        None => format!("its array has {array_bytes} bytes, asked for are {asked}; its record was not read yet"),
        Some(recorded) if *recorded < asked => format!(
            "its array has {array_bytes} bytes, asked for are {asked}, recorded are {recorded}: ControllerExpandVolume \
             comes first"
        ),
        Some(recorded) => format!("its array has {array_bytes} bytes, it is to have {recorded}{because}"),
    })
}

/// The answer, unless the caller wants less than there is: nothing shrinks.
fn within(request: &NodeExpandVolume, bytes: u64) -> Result<u64, Status> {
    match request.capacity.and_then(|capacity| capacity.limit_bytes).filter(|limit| *limit < bytes) {
        Some(limit) => Err(Status::out_of_range(format!(
            "capacity_range.limit_bytes is {limit}: the volume has {bytes} bytes, and volumes never shrink: allowed is a \
             limit not below that"
        ))),
        None => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshstor_plan::Reason;

    const GIB: u64 = 1 << 30;

    fn growth(array: u64, filled: u64, recorded: Option<u64>) -> Growth {
        Growth { raw: false, array_bytes: array, filled, recorded, reason: None }
    }

    #[test]
    fn it_is_done_when_the_array_has_the_size_and_the_file_system_fills_it() {
        assert_eq!(lacks(&growth(2 * GIB, 2 * GIB, Some(2 * GIB)), 2 * GIB), None);
        assert_eq!(lacks(&growth(2 * GIB, 2 * GIB, None), 0), None, "as large as it is");
        assert_eq!(lacks(&growth(3 * GIB, 3 * GIB, Some(3 * GIB)), 2 * GIB), None, "more than asked for");
        let raw = Growth { raw: true, ..growth(2 * GIB, 0, Some(2 * GIB)) };
        assert_eq!(lacks(&raw, 2 * GIB), None, "nobody but its user knows what lies on it");
        assert!(lacks(&growth(2 * GIB, GIB, Some(2 * GIB)), GIB).unwrap().contains("does not fill"));
    }

    #[test]
    fn whoever_waits_hears_for_what() {
        let waits = Growth {
            reason: Some(Reason::AwaitingSize { replicas: [meshstor_kernel::id::ReplicaId(1)].into(), bytes: 5 }),
            ..growth(GIB, GIB, Some(2 * GIB))
        };
        let said = lacks(&waits, 2 * GIB).unwrap();
        assert!(
            said.ends_with("it is to have 2147483648: the array is to grow and waits until r1 has 5 bytes"),
            "{said}"
        );
        let early = lacks(&growth(GIB, GIB, Some(GIB)), 2 * GIB).unwrap();
        assert!(early.contains("ControllerExpandVolume comes first"), "{early}");
        assert!(lacks(&growth(GIB, GIB, None), 2 * GIB).unwrap().contains("not read yet"));
        // Without a size in the call it is the recorded one that counts.
        assert!(lacks(&growth(GIB, GIB, Some(2 * GIB)), 0).is_some());
    }
}
