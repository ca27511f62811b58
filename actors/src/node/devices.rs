//! Drives of this node: each gets an actor that reports it and an object in which the operator may forbid or allow its
//! use. A drive that is gone keeps both.

use super::NodeActor;
use super::report;
use super::survey::Copies;
use crate::shell::Report;
use crate::sources::{Change, Seen};
use crate::status::{Object, Overwritten};
use meshstor_api::MeshStorNodeDevice;
use meshstor_api::node::LOOK_ANNOTATION;
use meshstor_kernel::id::DriveId;
use meshstor_plan::drive::DriveReport;
use std::collections::BTreeSet;

/// Questions that are remembered as asked.
const QUESTIONS_MAX: usize = 64;

impl NodeActor {
    pub(super) fn devices_changed(&mut self, change: Change<MeshStorNodeDevice>) {
        match change {
            Change::Applied(device) => self.device_applied(*device),
            Change::Gone(name) => self.device_gone(&name),
            Change::Listed(devices) => {
                let listed: BTreeSet<String> = devices.iter().filter_map(|d| d.metadata.name.clone()).collect();
                let missing: Vec<String> = self.devices.keys().filter(|n| !listed.contains(*n)).cloned().collect();
                missing.iter().for_each(|name| self.device_gone(name));
                devices.into_iter().for_each(|device| self.device_applied(device));
                self.devices_listed = true;
                let drives: Vec<DriveId> = self.drives.keys().cloned().collect();
                drives.iter().for_each(|drive| self.want_drive(drive));
            }
        }
    }

    /// Lists this node's drives anew: a watch that is ahead of a restored etcd says nothing for as long as it lasts.
    pub(super) fn list_devices(&self) {
        let (env, me) = (self.env.clone(), self.me.clone());
        actix::spawn(async move {
            match env.server.devices_on(&env.me.0).await {
                Ok(objects) => {
                    let _ = me.send(Seen::Device(Change::Listed(objects))).await;
                }
                Err(error) => tracing::debug!(%error, "this node's drives could not be listed"),
            }
        });
    }

    fn device_applied(&mut self, device: MeshStorNodeDevice) {
        let (Some(name), drive) = (device.metadata.name.clone(), DriveId(device.spec.drive.clone())) else { return };
        let object = Object::Device(name.clone());
        let status = serde_json::to_value(&device.status).unwrap_or_default();
        if self.board.disagrees(&object, &status) {
            let _ = self.writer.try_send(Overwritten(object));
        }
        self.ask_for_copies(&device);
        self.devices.insert(name, device);
        self.want_drive(&drive);
    }

    /// Somebody wants to know what every copy on this node's drives says of itself (`meshstor recover`). Surveys have a
    /// rest between them, so that no stream of questions wears the drives.
    fn ask_for_copies(&mut self, device: &MeshStorNodeDevice) {
        let Some(asked) = device.metadata.annotations.as_ref().and_then(|all| all.get(LOOK_ANNOTATION)) else { return };
        let stands = device.status.as_ref().is_some_and(|status| status.look_answered.as_ref() == Some(asked));
        // Each question once: one that a drive cannot answer must not come up again with every change of its object.
        if self.questions.len() >= QUESTIONS_MAX {
            self.questions.clear();
        }
        if !stands && self.questions.insert(asked.clone()) {
            self.asked = Some(asked.clone());
            self.survey_soon();
        }
    }

    /// Every copy was read.
    pub(super) fn copies_read(&mut self, copies: Copies) {
        if self.asked.as_ref() == Some(&copies.asked) {
            self.asked = None;
        }
        self.copies = Some(copies);
        let drives: Vec<DriveId> = self.drives.keys().cloned().collect();
        for drive in drives {
            if let Some(report) = self.drives.report(&drive) {
                self.report_drive(&drive, &report);
            }
        }
    }

    /// Without its object a drive is used as if the operator had said nothing; the object is made anew.
    fn device_gone(&mut self, name: &str) {
        if let Some(device) = self.devices.remove(name) {
            let _ = self.writer.try_send(Overwritten(Object::Device(name.to_string())));
            self.want_drive(&DriveId(device.spec.drive));
        }
    }

    /// Passes on what the operator allows: to the drive, and to the partitions that are to be on it.
    pub(super) fn want_drive(&mut self, drive: &DriveId) {
        let usage = self.usage(&drive.0);
        self.drives.want(drive, Some(usage));
        let on_it = self.replicas.iter().filter(|(_, held)| held.object.spec.drive == drive.0);
        let names: Vec<String> = on_it.map(|(name, _)| name.clone()).collect();
        names.iter().for_each(|name| self.want_replica(name));
        if let Some(report) = self.drives.report(drive) {
            self.report_drive(drive, &report);
        }
    }

    /// Writes what a drive's actor reports, once it is known which objects there are.
    pub(super) fn report_drive(&mut self, drive: &DriveId, report: &Report<DriveReport>) {
        if !self.devices_listed || report.revision == 0 {
            return;
        }
        let node = &self.env.me.0;
        let known = self.devices.iter().find(|(_, device)| device.spec.drive == drive.0).map(|(name, _)| name.clone());
        // A drive that was never seen and never had an object gets none.
        if known.is_none() && report.status.fact.is_none() {
            return;
        }
        let name = known.unwrap_or_else(|| report::device_name(node, &drive.0));
        let mut put = report::device(node, &drive.0, report);
        if let Some(copies) = &self.copies {
            report::copies(&mut put, copies, drive);
        }
        self.board.put(Object::Device(name), put);
    }
}
