//! Helpers of this crate's tests: a paused clock under an actix system, and a machine that counts up to what is wanted.

use crate::failure::Failure;
use crate::messages::{Died, Poke};
use crate::shell::World;
use actix::{Actor, Context, Handler, Recipient, System};
use meshstor_kernel::id::VolumeId;
use meshstor_kernel::ops::{Changed, Op};
use meshstor_kernel::{Class, KernelError};
use meshstor_plan::{Machine, Plan, Step};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// Runs `test` as the first task of an actix system whose clock stands still while anything can run.
pub fn paused<T>(test: impl Future<Output = T>) -> T {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    System::with_tokio_rt(runtime).block_on(test)
}

/// Lets `seconds` of simulated time pass.
pub async fn pass(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}

/// Counts up to the wish.
pub struct Counter;

impl Machine for Counter {
    const KIND: &'static str = "counter";
    type Desired = u32;
    type Fact = u32;
    type Status = u32;

    fn plan(desired: Option<&u32>, fact: &u32) -> Plan<u32> {
        if desired.is_some_and(|wanted| fact < wanted) { Plan::step(up(), *fact) } else { Plan::rest(*fact) }
    }

    /// From 100 on, whoever began has to come to the next hundred.
    fn unfinished(fact: &u32, step: Option<&Step>) -> bool {
        let begun = |value: u32| value > 100 && !value.is_multiple_of(100);
        begun(*fact) || step.is_some() && begun(*fact + 1)
    }
}

fn up() -> Op {
    Op::ReleaseSync { volume: VolumeId(uuid::Uuid::nil()) }
}

/// What happens to one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Works,
    FailsBefore(Class),
    FailsAfter(Class),
    ChangesNothing,
    Panics,
    Hangs,
}

/// The world that a [`Counter`] counts in; clones share it.
#[derive(Clone, Default)]
pub struct Abacus {
    inner: Rc<RefCell<Beads>>,
}

#[derive(Default)]
pub struct Beads {
    pub value: u32,
    pub looks: Vec<Instant>,
    pub steps: Vec<Instant>,
    pub fates: VecDeque<Fate>,
    pub always: Option<Fate>,
    pub panic_on_look: bool,
    pub look_fails: Option<Class>,
    pub step_takes: Duration,
}

impl Abacus {
    pub fn with<R>(&self, f: impl FnOnce(&mut Beads) -> R) -> R {
        f(&mut self.inner.borrow_mut())
    }
}

fn error(class: Class) -> Failure {
    Failure::Kernel(KernelError { class, ..KernelError::retry("count", "abacus", "stuck bead") })
}

impl World<Counter> for Abacus {
    async fn observe(&self, _: Option<&u32>) -> Result<u32, Failure> {
        tokio::task::yield_now().await;
        let mut beads = self.inner.borrow_mut();
        beads.looks.push(Instant::now());
        assert!(!beads.panic_on_look, "asked to");
        match beads.look_fails {
            Some(class) => Err(error(class)),
            None => Ok(beads.value),
        }
    }

    async fn apply(&self, _: &Step) -> Result<Changed, Failure> {
        let fate = self.with(|beads| {
            beads.steps.push(Instant::now());
            beads.fates.pop_front().or(beads.always).unwrap_or(Fate::Works)
        });
        let takes = self.with(|beads| beads.step_takes);
        tokio::time::sleep(takes).await;
        match fate {
            Fate::Works => self.with(|beads| beads.value += 1),
            Fate::FailsBefore(class) => return Err(error(class)),
            Fate::FailsAfter(class) => {
                self.with(|beads| beads.value += 1);
                return Err(error(class));
            }
            Fate::ChangesNothing => return Ok(Changed::No),
            Fate::Panics => panic!("asked to"),
            Fate::Hangs => std::future::pending().await,
        }
        Ok(Changed::Yes)
    }
}

/// A parent that only counts what it hears.
#[derive(Default)]
pub struct Ear {
    pub heard: Rc<RefCell<Vec<String>>>,
}

impl Actor for Ear {
    type Context = Context<Self>;
}

impl Handler<Died> for Ear {
    type Result = ();
    fn handle(&mut self, died: Died, _: &mut Self::Context) {
        self.heard.borrow_mut().push(format!("{} {} {}", died.kind, died.key, died.generation));
    }
}

impl Handler<Poke> for Ear {
    type Result = ();
    fn handle(&mut self, _: Poke, _: &mut Self::Context) {}
}

impl Ear {
    /// A parent, and what it has heard of deaths.
    pub fn listen() -> (Recipient<Died>, Recipient<Poke>, Rc<RefCell<Vec<String>>>) {
        let ear = Ear::default();
        let heard = Rc::clone(&ear.heard);
        let addr = ear.start();
        (addr.clone().recipient(), addr.recipient(), heard)
    }
}
