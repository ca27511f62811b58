//! One drive: the kernel's fact, nothing else. Drives are only reported; the plan takes no step.

use crate::env::Env;
use crate::failure::Failure;
use crate::shell::World;
use meshstor_kernel::facts::DriveFact;
use meshstor_kernel::id::DriveId;
use meshstor_kernel::ops::Changed;
use meshstor_plan::Step;
use meshstor_plan::drive::{Drive, DriveUsage};
use std::rc::Rc;

/// The world of one drive.
pub struct DriveWorld {
    env: Rc<Env>,
    drive: DriveId,
}

impl DriveWorld {
    /// Of this drive.
    pub fn new(env: Rc<Env>, drive: DriveId) -> Self {
        DriveWorld { env, drive }
    }
}

impl World<Drive> for DriveWorld {
    async fn observe(&self, _: Option<&DriveUsage>) -> Result<Option<DriveFact>, Failure> {
        Ok(self.env.kernel.drive(&self.drive).await?)
    }

    async fn apply(&self, step: &Step) -> Result<Changed, Failure> {
        self.env.apply_to_kernel(step).await
    }
}
