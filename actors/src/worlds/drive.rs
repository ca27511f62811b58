//! One drive: the kernel's fact, and whether its cache has refused to be turned off, which no kernel remembers.

use crate::env::Env;
use crate::failure::Failure;
use crate::shell::World;
use meshstor_kernel::Class;
use meshstor_kernel::id::DriveId;
use meshstor_kernel::ops::{Changed, Op};
use meshstor_plan::Step;
use meshstor_plan::drive::{Drive, DriveLook, DriveUsage};
use std::cell::Cell;
use std::rc::Rc;

/// The world of one drive.
pub struct DriveWorld {
    env: Rc<Env>,
    drive: DriveId,
    cache_refused: Cell<bool>,
}

impl DriveWorld {
    /// Of this drive.
    pub fn new(env: Rc<Env>, drive: DriveId) -> Self {
        DriveWorld { env, drive, cache_refused: Cell::default() }
    }
}

impl World<Drive> for DriveWorld {
    async fn observe(&self, _: Option<&DriveUsage>) -> Result<DriveLook, Failure> {
        let drive = self.env.kernel.drive(&self.drive).await?;
        // Another drive of the same name may come in its place.
        if drive.is_none() {
            self.cache_refused.set(false);
        }
        Ok(DriveLook { drive, cache_stays: self.cache_refused.get() || self.env.keep_caches })
    }

    async fn apply(&self, step: &Step) -> Result<Changed, Failure> {
        let result = self.env.apply_to_kernel(step).await;
        if let (Step::Kernel(Op::DisableCache { .. }), Err(error)) = (step, &result)
            && error.class() == Class::Refuse
        {
            tracing::warn!(drive = %self.drive, %error, "its volatile cache stays on: see rule 11 in docs/protocol.md");
            self.cache_refused.set(true);
            return Ok(Changed::Yes);
        }
        result
    }
}
