//! Asks every drive for what its copies say of themselves, now: an annotation with a value of its own, which the nodes
//! answer in the status of the drive's object.

use crate::Context;
use crate::error::ControlError;
use crate::writer;
use futures::future::join_all;
use kube::api::{Patch, PatchParams};
use meshstor_api::node::{LOOK_ANNOTATION, MeshStorNodeDevice};
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

/// How often answers are looked for.
const POLL: Duration = Duration::from_millis(500);

/// Who answered.
pub(super) struct Asked {
    /// Drives with an answer to this very question.
    pub answered: Vec<MeshStorNodeDevice>,
    /// The others, as people name them.
    pub silent: Vec<String>,
}

pub(super) async fn ask(context: &Context, patience: Duration) -> Result<Asked, ControlError> {
    let question = format!("{} {}", context.timestamp(), (context.config.new_id)());
    let end = Instant::now() + patience;
    let mut put = 0;
    loop {
        let devices = context.writer.list::<MeshStorNodeDevice>().await?;
        // Objects that agents make anew meanwhile are asked as well.
        let unasked: Vec<&MeshStorNodeDevice> =
            devices.iter().filter(|device| annotation(device) != Some(&question)).collect();
        put += unasked.len();
        join_all(unasked.into_iter().map(|device| annotate(context, device, &question)))
            .await
            .into_iter()
            .collect::<Result<Vec<()>, _>>()?;
        let answers = |device: &MeshStorNodeDevice| {
            device.status.as_ref().is_some_and(|status| status.look_answered.as_ref() == Some(&question))
        };
        let waiting = devices.iter().any(|device| !answers(device));
        if (put > 0 && !waiting && !devices.is_empty()) || Instant::now() >= end {
            let (answered, silent): (Vec<_>, Vec<_>) = devices.into_iter().partition(|device| answers(device));
            let silent = silent.iter().map(|d| format!("{}: drive {}", d.spec.node, d.spec.drive)).collect();
            return Ok(Asked { answered, silent });
        }
        tokio::time::sleep(POLL).await;
    }
}

fn annotation(device: &MeshStorNodeDevice) -> Option<&String> {
    device.metadata.annotations.as_ref()?.get(LOOK_ANNOTATION)
}

async fn annotate(context: &Context, device: &MeshStorNodeDevice, question: &str) -> Result<(), ControlError> {
    let name = device.metadata.name.as_deref().unwrap_or_default();
    let patch = Patch::Merge(json!({ "metadata": { "annotations": { LOOK_ANNOTATION: question } } }));
    let params = PatchParams { field_manager: Some(writer::FIELD_MANAGER.into()), ..PatchParams::default() };
    match context.writer.api::<MeshStorNodeDevice>().patch(name, &params, &patch).await {
        Ok(_) => Ok(()),
        // Gone meanwhile: the next list tells.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(source) => Err(ControlError::Api { what: format!("asking drive {name}"), source: Box::new(source) }),
    }
}
