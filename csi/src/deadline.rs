//! How long a call may be held: the caller's `grpc-timeout`, as a point in time.
//!
//! `calls` puts a [`Deadline`] into the extensions of every request that carries the header; handlers pass
//! [`hold_for`] to `Inflight::run`. An early answer would double the caller's back-off (K7), a late one reaches nobody.
//! It never cancels anything.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

/// The answer must be on its way this long before the caller gives up.
const MARGIN: Duration = Duration::from_secs(1);
/// The gRPC protocol allows eight digits.
const DIGITS_MAX: usize = 8;
const HEADER: &str = "grpc-timeout";

/// The point in time at which the caller gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(pub Instant);

impl Deadline {
    /// The deadline that the headers of a request which arrived now set; none if there is no header that can be read.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let timeout = parse(headers.get(HEADER)?.to_str().ok()?)?;
        // A timeout beyond what the clock can express is as good as none.
        Instant::now().checked_add(timeout).map(Self)
    }

    /// The deadline of a call, if its caller has set one.
    pub fn of<T>(request: &tonic::Request<T>) -> Option<Self> {
        request.extensions().get::<Self>().copied()
    }

    /// How long an answer may still be held: until a second before the deadline, or half of the time where a second
    /// would be most of it.
    pub fn hold(self) -> Duration {
        let left = self.0.saturating_duration_since(Instant::now());
        left.saturating_sub(MARGIN.min(left / 2))
    }
}

/// How long the answer to this call may be held; `None` when the caller waits for ever.
pub fn hold_for<T>(request: &tonic::Request<T>) -> Option<Duration> {
    Deadline::of(request).map(Deadline::hold)
}

fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > DIGITS_MAX || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_units_and_no_nonsense() {
        let table = [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("60S", Some(Duration::from_secs(60))),
            ("15000m", Some(Duration::from_secs(15))),
            ("7u", Some(Duration::from_micros(7))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("123456789S", None),
            ("", None),
            ("S", None),
            ("5", None),
            ("-5S", None),
            ("5s", None),
            ("5ß", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_held_until_a_second_before_its_deadline() {
        let hold = |seconds: f64| Deadline(Instant::now() + Duration::from_secs_f64(seconds)).hold();
        assert_eq!(hold(15.0), Duration::from_secs(14));
        assert_eq!(hold(1.0), Duration::from_millis(500));
        assert_eq!(hold(0.0), Duration::ZERO);
        let past = Deadline(Instant::now());
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(past.hold(), Duration::ZERO);
    }

    #[test]
    fn no_header_means_no_deadline() {
        assert_eq!(Deadline::from_headers(&HeaderMap::new()), None);
        assert_eq!(hold_for(&tonic::Request::new(())), None);
    }

    proptest! {
        #[test]
        fn any_header_is_survived(text in ".*|[0-9]{1,9}[HMSmun]") {
            let _ = parse(&text);
        }
    }
}
