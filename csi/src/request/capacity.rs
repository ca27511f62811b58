//! Sizes: what the caller asks for turned into the one size that we make.
//!
//! Called by CreateVolume and the two expand calls. Sizes are usable bytes of the volume; what partitions need on top
//! is not known here. It never looks at free space.

use crate::Refusal;
use crate::proto;

/// Volumes are made in whole mebibytes.
pub const MIB: u64 = 1 << 20;
/// mkfs.xfs refuses anything smaller.
pub const BYTES_MIN: u64 = 300 * MIB;
/// The size of a volume whose PVC does not say one.
pub const BYTES_DEFAULT: u64 = 1 << 30;

const REQUIRED: &str = "capacity_range.required_bytes";
const LIMIT: &str = "capacity_range.limit_bytes";

/// A size to make, and the range in which an existing volume counts as what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CapacityRange {
    /// The size to make: whole mebibytes, within the range.
    pub bytes: u64,
    /// The least the caller accepts; 0 if anything will do.
    pub required_bytes: u64,
    /// The most the caller accepts.
    pub limit_bytes: Option<u64>,
}

impl CapacityRange {
    /// The range of a new volume; absent means "as you like".
    pub(super) fn for_create(range: Option<&proto::CapacityRange>) -> Result<Self, Refusal> {
        let (required_bytes, limit_bytes) = bounds(range)?;
        let bytes = match (required_bytes, limit_bytes) {
            (0, Some(limit)) => BYTES_DEFAULT.min(limit - limit % MIB).max(BYTES_MIN),
            (0, None) => BYTES_DEFAULT,
            (required, _) => required.next_multiple_of(MIB).max(BYTES_MIN),
        };
        Self { bytes, required_bytes, limit_bytes }.checked()
    }

    /// The range of an expansion; here the caller must say a size.
    pub(super) fn for_expand(range: Option<&proto::CapacityRange>) -> Result<Self, Refusal> {
        let (required_bytes, limit_bytes) = bounds(range)?;
        if required_bytes == 0 {
            return Err(Refusal::missing(REQUIRED));
        }
        Self { bytes: required_bytes.next_multiple_of(MIB), required_bytes, limit_bytes }.checked()
    }

    /// Whether an existing volume of this size is what the caller asks for.
    pub fn admits(&self, existing_bytes: u64) -> bool {
        existing_bytes >= self.required_bytes && self.limit_bytes.is_none_or(|limit| existing_bytes <= limit)
    }

    fn checked(self) -> Result<Self, Refusal> {
        let bytes = self.bytes;
        match self.limit_bytes {
            Some(limit) if bytes > limit => {
                let message = format!(
                    "{LIMIT} is {limit}: the smallest volume for this request has {bytes} bytes \
                     (whole MiB, at least {BYTES_MIN}): allowed is a limit not below it"
                );
                Err(Refusal::out_of_range(LIMIT, message))
            }
            // The answer of CreateVolume is a signed number.
            _ if i64::try_from(bytes).is_err() => {
                let required = self.required_bytes;
                Err(Refusal::out_of_range(REQUIRED, format!("{REQUIRED} is {required}: allowed is less than 8 EiB")))
            }
            _ => Ok(self),
        }
    }
}

/// Required bytes (0: none) and limit (0 on the wire: none).
fn bounds(range: Option<&proto::CapacityRange>) -> Result<(u64, Option<u64>), Refusal> {
    let Some(range) = range else { return Ok((0, None)) };
    let required = unsigned(REQUIRED, range.required_bytes)?;
    let limit = Some(unsigned(LIMIT, range.limit_bytes)?).filter(|limit| *limit > 0);
    match limit {
        Some(limit) if limit < required => {
            let allowed = format!("0 for no limit, or {REQUIRED} ({required}) and more");
            Err(Refusal::value(LIMIT, &limit.to_string(), &allowed))
        }
        limit => Ok((required, limit)),
    }
}

fn unsigned(field: &'static str, value: i64) -> Result<u64, Refusal> {
    u64::try_from(value).map_err(|_| Refusal::value(field, &value.to_string(), "0 and more"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tonic::Code;

    use super::*;

    fn create(required_bytes: i64, limit_bytes: i64) -> Result<u64, Code> {
        let range = proto::CapacityRange { required_bytes, limit_bytes };
        CapacityRange::for_create(Some(&range)).map(|range| range.bytes).map_err(|refusal| refusal.code)
    }

    fn expand(required_bytes: i64, limit_bytes: i64) -> Result<u64, Code> {
        let range = proto::CapacityRange { required_bytes, limit_bytes };
        CapacityRange::for_expand(Some(&range)).map(|range| range.bytes).map_err(|refusal| refusal.code)
    }

    const M: i64 = MIB as i64;

    #[test]
    fn sizes_of_new_volumes() {
        let none = CapacityRange { bytes: BYTES_DEFAULT, required_bytes: 0, limit_bytes: None };
        assert_eq!(CapacityRange::for_create(None), Ok(none));
        let table = [
            ((0, 0), Ok(BYTES_DEFAULT)),
            ((1, 0), Ok(BYTES_MIN)),
            ((300 * M, 0), Ok(300 * MIB)),
            ((300 * M + 1, 0), Ok(301 * MIB)),
            ((300 * M + 1, 301 * M), Ok(301 * MIB)),
            ((300 * M + 1, 301 * M - 1), Err(Code::OutOfRange)),
            ((1, 299 * M), Err(Code::OutOfRange)),
            ((0, 500 * M + 7), Ok(500 * MIB)),
            ((0, 2048 * M), Ok(BYTES_DEFAULT)),
            ((0, 299 * M), Err(Code::OutOfRange)),
            ((-1, 0), Err(Code::InvalidArgument)),
            ((0, -1), Err(Code::InvalidArgument)),
            ((2 * M, M), Err(Code::InvalidArgument)),
            ((i64::MAX, 0), Err(Code::OutOfRange)),
            ((i64::MAX, i64::MAX), Err(Code::OutOfRange)),
        ];
        for ((required, limit), expected) in table {
            assert_eq!(create(required, limit), expected, "required {required}, limit {limit}");
        }
    }

    #[test]
    fn sizes_of_expansions() {
        assert_eq!(CapacityRange::for_expand(None), Err(Refusal::missing(REQUIRED)));
        assert_eq!(expand(0, 5 * M), Err(Code::InvalidArgument));
        assert_eq!(expand(M + 1, 0), Ok(2 * MIB));
        assert_eq!(expand(M + 1, M + 2), Err(Code::OutOfRange));
        assert_eq!(expand(-5, 0), Err(Code::InvalidArgument));
    }

    #[test]
    fn an_existing_volume_is_admitted_by_what_was_asked_not_by_what_we_would_make() {
        let range = CapacityRange { bytes: BYTES_MIN, required_bytes: 1, limit_bytes: Some(400 * MIB) };
        assert!(range.admits(1) && range.admits(400 * MIB));
        assert!(!range.admits(0) && !range.admits(400 * MIB + 1));
    }

    /// Nonsense and sizes that people use, about as often.
    fn any_bytes() -> impl Strategy<Value = i64> {
        prop_oneof![any::<i64>(), 0..4i64 << 30, Just(0)]
    }

    proptest! {
        #[test]
        fn what_is_made_is_admitted_and_whole(required_bytes in any_bytes(), limit_bytes in any_bytes()) {
            let message = proto::CapacityRange { required_bytes, limit_bytes };
            let ranges = [CapacityRange::for_create(Some(&message)), CapacityRange::for_expand(Some(&message))];
            for range in ranges.into_iter().flatten() {
                prop_assert!(range.admits(range.bytes));
                prop_assert_eq!(range.bytes % MIB, 0);
                prop_assert!(i64::try_from(range.bytes).is_ok());
            }
        }
    }
}
