//! One look for all who ask while the one before it runs.
//!
//! Used by the seam for what many actors read at the same time: the partition tables of all drives. Whoever asks gets a
//! look that began after the question, so nothing is ever older than the hint that made somebody look; those who ask
//! while one runs share the next. It caches nothing: without a question no look is made, and none is kept.

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

type Waiting<T> = Shared<BoxFuture<'static, T>>;

/// A look that may be shared.
pub struct Share<T: Clone> {
    /// Asked for and not begun.
    next: Arc<Mutex<Option<Waiting<T>>>>,
    /// Held by the one that runs.
    lane: Arc<tokio::sync::Mutex<()>>,
}

impl<T: Clone> Default for Share<T> {
    fn default() -> Self {
        Share { next: Arc::default(), lane: Arc::default() }
    }
}

impl<T: Clone + Send + Sync + 'static> Share<T> {
    /// The result of a look that begins from now on.
    pub async fn look<F>(&self, work: impl FnOnce() -> F + Send + 'static) -> T
    where
        F: Future<Output = T> + Send + 'static,
    {
        let waiting = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            next.get_or_insert_with(|| self.begin(work)).clone()
        };
        waiting.await
    }

    fn begin<F>(&self, work: impl FnOnce() -> F + Send + 'static) -> Waiting<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let (next, lane) = (self.next.clone(), self.lane.clone());
        let run = async move {
            let _lane = lane.lock().await;
            // From here on a question needs a later look.
            *next.lock().unwrap_or_else(PoisonError::into_inner) = None;
            work().await
        };
        run.boxed().shared()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    async fn slow(count: Arc<AtomicU32>) -> u32 {
        let number = count.fetch_add(1, Ordering::SeqCst) + 1;
        tokio::time::sleep(Duration::from_secs(1)).await;
        number
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_ask_during_a_look_share_the_next_one() {
        let (share, count) = (Share::default(), Arc::new(AtomicU32::new(0)));
        let ask = |after: u64| {
            let (share, count) = (&share, count.clone());
            async move {
                tokio::time::sleep(Duration::from_millis(after)).await;
                share.look(move || slow(count)).await
            }
        };
        let asked = futures::future::join_all([0, 100, 500, 900, 2500].map(ask)).await;
        assert_eq!(asked, [1, 2, 2, 2, 3], "never one that had begun before the question");
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_stops_waiting_keeps_nobody_waiting() {
        let (share, count) = (Share::default(), Arc::new(AtomicU32::new(0)));
        let ask = || {
            share.look({
                let count = count.clone();
                move || slow(count)
            })
        };
        assert!(tokio::time::timeout(Duration::from_millis(10), ask()).await.is_err());
        assert!(tokio::time::timeout(Duration::from_secs(5), ask()).await.is_ok());
    }
}
