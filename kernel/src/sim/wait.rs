//! Waiting: how futures and the queue of events meet.
//!
//! Nothing runs by itself. A future that waits for something sleeps until the next event of the world is due or
//! somebody changed the world, lets the events happen, and looks again. Called by `World` and `SimKernel`; it never
//! holds the state over an await.

use super::state::{State, Time};
use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

pub(super) struct Inner {
    state: RefCell<State>,
    /// The moment the world began, on tokio's clock.
    origin: Instant,
    changed: Notify,
}

impl Inner {
    pub(super) fn new(state: State) -> Rc<Inner> {
        // tokio's own clock, the one that tests pause.
        Rc::new(Inner { state: RefCell::new(state), origin: tokio::time::Instant::now(), changed: Notify::new() })
    }

    /// Lets everything happen that is due, then looks. `f` must not change anything others wait for.
    pub(super) fn look<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.borrow_mut();
        let due = state.queue.next_at().is_some_and(|at| at <= self.origin.elapsed());
        state.advance(self.origin.elapsed());
        let result = f(&mut state);
        drop(state);
        if due {
            self.changed.notify_waiters();
        }
        result
    }

    /// Lets everything happen that is due, then changes something.
    pub(super) fn change<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.borrow_mut();
        state.advance(self.origin.elapsed());
        let result = f(&mut state);
        state.pump();
        drop(state);
        self.changed.notify_waiters();
        result
    }

    /// Waits until something happened, or until `limit`.
    pub(super) async fn pause(&self, limit: Option<Time>) {
        let next = self.look(|s| s.queue.next_at());
        let changed = self.changed.notified();
        let at = next.into_iter().chain(limit).min();
        match at {
            Some(at) => first_of(changed, tokio::time::sleep_until(self.origin + at)).await,
            None => changed.await,
        }
        self.look(|_| ());
    }

    /// Waits for an answer; `None` when it will never come, or not before `limit`.
    pub(super) async fn answer<T>(&self, mut answer: oneshot::Receiver<T>, limit: Option<Time>) -> Option<T> {
        loop {
            let now = self.look(|s| s.now);
            match answer.try_recv() {
                Ok(value) => return Some(value),
                Err(oneshot::error::TryRecvError::Closed) => return None,
                Err(oneshot::error::TryRecvError::Empty) => {}
            }
            if limit.is_some_and(|limit| now >= limit) {
                return None;
            }
            self.pause(limit).await;
        }
    }
}

/// Waits for whichever comes first, the left one first when both have: no chance is involved.
async fn first_of(a: impl Future<Output = ()>, b: impl Future<Output = ()>) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    std::future::poll_fn(|cx| {
        if a.as_mut().poll(cx).is_ready() || b.as_mut().poll(cx).is_ready() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}
