//! Wall time, for the timestamps in objects alone. Every pause and age in this crate runs on tokio's clock instead,
//! which simulations stop.

use k8s_openapi::jiff::Timestamp;
use meshstor_plan::wall::WallTime;
use std::sync::Arc;

/// Source of the timestamps that people read; simulations bring their own.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// A clock that asks `now`.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Clock {
        Clock(Arc::new(now))
    }

    /// Now, RFC 3339, in whole seconds as Kubernetes writes it.
    pub fn now(&self) -> String {
        let seconds = (self.0)().as_second();
        Timestamp::from_second(seconds).unwrap_or_default().to_string()
    }

    /// Now, for what plans record.
    pub fn wall(&self) -> WallTime {
        WallTime((self.0)().as_second())
    }
}

impl Default for Clock {
    fn default() -> Self {
        Clock::new(Timestamp::now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_what_kubernetes_writes() {
        let clock = Clock::new(|| Timestamp::from_millisecond(1_700_000_000_999).unwrap());
        assert_eq!(clock.now(), "2023-11-14T22:13:20Z");
    }
}
