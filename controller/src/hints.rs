//! Wake-ups and sentences for calls that wait.
//!
//! The loop's watches ring [`Hints`] for a volume; calls that wait for its nodes look again at once. A lost ring costs
//! one poll period, never more. [`Awaited`] holds what each running operation waits for, because every caller that joins
//! it must be able to say so when its own time is over. Neither carries a fact.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Rings for volumes, by name.
#[derive(Default)]
pub(crate) struct Hints {
    bells: Mutex<BTreeMap<String, watch::Sender<()>>>,
}

/// Looks in a row that may follow each other at once.
const LOOKS_IN_A_ROW: u32 = 16;

/// Somebody who wants to know that a volume may have changed.
pub(crate) struct Listener {
    bell: watch::Receiver<()>,
    poll: Duration,
    looks: u32,
}

impl Hints {
    /// Listens from now on; rings that come before the first wait are not lost.
    pub(crate) fn listen(&self, volume: &str, poll: Duration) -> Listener {
        let mut bells = lock(&self.bells);
        bells.retain(|name, bell| name == volume || bell.receiver_count() > 0);
        let bell = bells.entry(volume.to_string()).or_insert_with(|| watch::channel(()).0);
        Listener { bell: bell.subscribe(), poll, looks: 0 }
    }

    /// Wakes everyone who listens for this volume.
    pub(crate) fn ring(&self, volume: &str) {
        if let Some(bell) = lock(&self.bells).get(volume) {
            bell.send_replace(());
        }
    }
}

impl Listener {
    /// Looks again at once, but not for ever: a change that is refused each time must not become a storm of requests.
    pub(crate) async fn again(&mut self) {
        self.looks += 1;
        if self.looks > LOOKS_IN_A_ROW {
            tokio::time::sleep(self.poll).await;
            self.looks = 0;
        }
    }

    /// Waits for a ring, at most for one poll period.
    pub(crate) async fn wait(&mut self) {
        self.looks = 0;
        match tokio::time::timeout(self.poll, self.bell.changed()).await {
            Ok(Ok(())) | Err(_) => {}
            // Nobody can ring any more: do not spin.
            Ok(Err(_)) => tokio::time::sleep(self.poll).await,
        }
    }
}

/// What running operations wait for, by the operation's key.
#[derive(Default)]
pub(crate) struct Awaited {
    sentences: Mutex<BTreeMap<String, String>>,
}

impl Awaited {
    /// Records what is awaited; logs it when it is new.
    pub(crate) fn say(&self, key: &str, sentence: String) {
        let mut sentences = lock(&self.sentences);
        if sentences.get(key) != Some(&sentence) {
            tracing::info!(operation = key, awaited = %sentence, "waiting");
            sentences.insert(key.to_string(), sentence);
        }
    }

    /// What is awaited now.
    pub(crate) fn sentence(&self, key: &str) -> String {
        let sentence = lock(&self.sentences).get(key).cloned();
        let sentence = sentence.unwrap_or_else(|| "the API server has not answered all requests yet".to_string());
        format!("{key}: {sentence}; the work goes on, ask again")
    }

    /// The operation has ended.
    pub(crate) fn forget(&self, key: &str) {
        lock(&self.sentences).remove(key);
    }
}

/// Nothing panics while holding these locks, and what they guard is never half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_ring_wakes_and_silence_costs_one_period() {
        let hints = Hints::default();
        let mut listener = hints.listen("v", Duration::from_secs(3));
        let start = Instant::now();
        hints.ring("other");
        hints.ring("v");
        listener.wait().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        listener.wait().await;
        assert_eq!(start.elapsed(), Duration::from_secs(3));
    }

    #[test]
    fn bells_nobody_listens_to_go_away() {
        let hints = Hints::default();
        drop(hints.listen("a", Duration::ZERO));
        let _listener = hints.listen("b", Duration::ZERO);
        assert_eq!(lock(&hints.bells).len(), 1);
    }
}
