//! Wall time as plans see it: seconds that somebody else's clock showed, for what is recorded and must outlive a boot.
//!
//! Read by worlds and put into looks and records; nothing here asks a clock. Clocks of two nodes differ, so nothing that
//! must be right is decided on it.

use std::fmt;
use std::time::Duration;

/// Seconds since 1970, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct WallTime(pub i64);

impl WallTime {
    /// So much later.
    pub fn after(self, duration: Duration) -> WallTime {
        WallTime(self.0.saturating_add(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)))
    }

    /// Time since `earlier`; zero when that lies ahead.
    pub fn since(self, earlier: WallTime) -> Duration {
        Duration::from_secs(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

fn leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// RFC 3339 in whole seconds, as Kubernetes writes it. Years before 1970 and after 9999 are shown as those.
impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.clamp(0, 253_402_300_799);
        let (mut day, rest) = (seconds / 86_400, seconds % 86_400);
        let mut year = 1970;
        while day >= 365 + i64::from(leap(year)) {
            day -= 365 + i64::from(leap(year));
            year += 1;
        }
        let lengths = [31, 28 + i64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let mut month = 1;
        for length in lengths {
            if day < length {
                break;
            }
            day -= length;
            month += 1;
        }
        let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
        write!(f, "{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", day + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_kubernetes_writes_them() {
        let known = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (i64::MAX, "9999-12-31T23:59:59Z"),
            (-1, "1970-01-01T00:00:00Z"),
        ];
        for (seconds, text) in known {
            assert_eq!(WallTime(seconds).to_string(), text);
        }
    }

    #[test]
    fn what_lies_ahead_is_no_time_ago() {
        assert_eq!(WallTime(5).since(WallTime(9)), Duration::ZERO);
        assert_eq!(WallTime(9).since(WallTime(5)), Duration::from_secs(4));
        assert_eq!(WallTime(9).after(Duration::from_secs(4)), WallTime(13));
    }
}
