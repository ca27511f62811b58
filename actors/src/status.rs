//! The one writer of what this node reports: status of its replicas, drives and itself, and the telemetry and conditions
//! of volumes it consumes. (The record itself is changed by the compare-and-swaps of `api.rs` alone.)
//!
//! The root actor puts what should stand in each object on a [`Board`]; the last value wins, and the writer makes the
//! server agree with it, one write for each object at a time. A value that is already written costs nothing; telemetry
//! that alone changed waits (K9). It never reads the board as a fact and never writes `inSync`.

mod board;

pub use board::{Board, Object, Put, Said};

use crate::api::MANAGER;
use crate::env::Env;
use crate::events;
use crate::failure::Failure;
use crate::messages::{Kill, Poke};
use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, WrapFuture};
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use meshstor_api::condition::{self, Condition};
use meshstor_api::tell::{self, Teller, Told};
use meshstor_api::{FINALIZER, MeshStorNode, MeshStorNodeDevice, MeshStorReplica, MeshStorVolume, patch as api_patch};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// Writes that run at the same time.
const WRITES_MAX: usize = 8;
/// How long telemetry that alone changed waits after the last write of its object.
const TELEMETRY_EVERY: Duration = Duration::from_secs(10);
/// How often the writer looks for what is due.
const TICK: Duration = Duration::from_millis(500);
/// How long an object that does not exist is left alone.
const GONE_FOR: Duration = Duration::from_secs(30);
/// Keeps our objects out of backups: a restored record is a lost one (K1).
const NO_BACKUP_LABEL: &str = "velero.io/exclude-from-backup";

/// The writer.
pub struct StatusWriter {
    env: Rc<Env>,
    board: Board,
    slots: BTreeMap<Object, Slot>,
    teller: Teller,
}

/// What is known of one object's writes.
#[derive(Default)]
struct Slot {
    written: Option<Put>,
    written_at: Option<Instant>,
    conditions: Option<Vec<Condition>>,
    busy: bool,
    failures: u32,
    not_before: Option<Instant>,
}

/// What one write has to do.
struct Job {
    object: Object,
    put: Option<Put>,
    conditions: Option<Vec<Condition>>,
    /// uid of the object that may go.
    finish: Option<String>,
}

/// How a write ended.
enum Done {
    /// These conditions stand there now; people are to hear of what changed, of the object with this uid.
    Written(Vec<Condition>, Vec<Told>, Option<String>),
    Gone,
}

impl StatusWriter {
    /// Writes what is on `board`.
    pub fn new(env: Rc<Env>, board: Board) -> StatusWriter {
        let teller = Teller::new(env.server.client(), "node", Some(env.me.0.clone()));
        StatusWriter { env, board, slots: BTreeMap::new(), teller }
    }

    /// Begins the writes that are due.
    fn pump(&mut self, ctx: &mut Context<Self>) {
        // The root holds the board, too: alone with it, this writer has nobody to write for.
        if Rc::strong_count(&self.board.wanted) == 1 {
            return actix::ActorContext::stop(ctx);
        }
        let now = Instant::now();
        let busy = self.slots.values().filter(|slot| slot.busy).count();
        self.slots.retain(|object, slot| slot.busy || self.board.wanted.borrow().contains_key(object));
        for job in self.due(now).into_iter().take(WRITES_MAX.saturating_sub(busy)) {
            self.slots.entry(job.object.clone()).or_default().busy = true;
            let (object, put, finish) = (job.object.clone(), job.put.clone(), job.finish.is_some());
            let write = write(Rc::clone(&self.env), job);
            ctx.spawn(write.into_actor(self).map(move |result, writer, ctx| {
                writer.done(object, put, finish, result);
                writer.pump(ctx);
            }));
        }
    }

    fn due(&self, now: Instant) -> Vec<Job> {
        let wanted = self.board.wanted.borrow();
        let finished = self.board.finished.borrow();
        let fresh = Slot::default();
        let mut jobs = Vec::new();
        for (object, put) in wanted.iter() {
            let slot = self.slots.get(object).unwrap_or(&fresh);
            if !slot.free(now) {
                continue;
            }
            let finish = match object {
                Object::Replica(name) => finished.get(name).cloned(),
                _ => None,
            };
            // What is known of another object of that name says nothing of this one.
            let same = slot.written.as_ref().is_some_and(|written| written.uid == put.uid);
            let conditions = slot.conditions.clone().filter(|_| same);
            let put = slot.needs(put, now).then(|| put.clone());
            if put.is_some() || finish.is_some() {
                jobs.push(Job { object: object.clone(), put, conditions, finish });
            }
        }
        jobs
    }

    fn done(&mut self, object: Object, put: Option<Put>, finish: bool, result: Result<Done, Failure>) {
        let now = Instant::now();
        let slot = self.slots.entry(object.clone()).or_default();
        slot.busy = false;
        match result {
            Ok(done) => {
                slot.failures = 0;
                slot.written_at = Some(now);
                match done {
                    Done::Written(conditions, mut told, uid) => {
                        events::status_write(object.kind(), "written");
                        slot.conditions = Some(conditions);
                        if let (Some(old), Some(new)) = (&slot.written, &put) {
                            told.extend(tell::paths(&old.fields, &new.fields));
                        }
                        tell(self.teller.clone(), object.clone(), uid, told);
                        slot.written = put.or_else(|| slot.written.take());
                    }
                    Done::Gone => {
                        events::status_write(object.kind(), "gone");
                        slot.conditions = None;
                        slot.not_before = Some(now + GONE_FOR);
                        if matches!(object, Object::Volume(_)) {
                            self.board.forget(&object);
                        }
                    }
                }
                if finish {
                    self.board.finished.borrow_mut().remove(object.name());
                }
            }
            Err(failure) => {
                events::status_write(object.kind(), "failed");
                slot.failures += 1;
                slot.conditions = None;
                slot.not_before = Some(now + failure.pause(slot.failures));
                tracing::warn!(kind = object.kind(), name = object.name(), error = %failure, "status not written");
            }
        }
    }
}

impl Slot {
    fn free(&self, now: Instant) -> bool {
        !self.busy && self.not_before.is_none_or(|at| at <= now)
    }

    fn needs(&self, put: &Put, now: Instant) -> bool {
        let Some(written) = &self.written else { return true };
        if written == put {
            return false;
        }
        let telemetry_alone = written.fields == put.fields && written.conditions == put.conditions;
        !telemetry_alone || self.written_at.is_none_or(|at| now.duration_since(at) >= TELEMETRY_EVERY)
    }
}

impl Actor for StatusWriter {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if !crate::shell::running() {
            return;
        }
        ctx.run_interval(TICK, |writer, ctx| writer.pump(ctx));
        self.pump(ctx);
    }
}

impl Handler<Poke> for StatusWriter {
    type Result = ();

    fn handle(&mut self, _: Poke, ctx: &mut Self::Context) {
        self.pump(ctx);
    }
}

impl Handler<Kill> for StatusWriter {
    type Result = ();

    fn handle(&mut self, _: Kill, ctx: &mut Self::Context) {
        actix::ActorContext::terminate(ctx);
    }
}

/// The object was changed by somebody else: what was written may not stand there any more.
#[derive(actix::Message, Debug, Clone)]
#[rtype(result = "()")]
pub struct Overwritten(pub Object);

impl Handler<Overwritten> for StatusWriter {
    type Result = ();

    fn handle(&mut self, Overwritten(object): Overwritten, ctx: &mut Self::Context) {
        if let Some(slot) = self.slots.get_mut(&object) {
            slot.written = None;
            slot.conditions = None;
            slot.not_before = None;
        }
        self.pump(ctx);
    }
}

/// One write, and the finalizer behind it.
async fn write(env: Rc<Env>, job: Job) -> Result<Done, Failure> {
    let api: Api<DynamicObject> = Api::all_with(env.server.client(), &job.object.resource());
    let name = job.object.name();
    let stored = match (&job.conditions, &job.object) {
        // Objects of our own: what was written last is what stands there.
        (Some(_), Object::Replica(_) | Object::Device(_) | Object::Node(_)) if job.finish.is_none() => None,
        _ => match read_or_create(&env, &api, &job).await? {
            Some(stored) => Some(stored),
            None => return Ok(Done::Gone),
        },
    };
    let of = job.put.as_ref().and_then(|put| put.uid.as_ref()).or(job.finish.as_ref());
    if of.is_some_and(|uid| stored.as_ref().is_some_and(|stored| stored.metadata.uid.as_ref() != Some(uid))) {
        return Ok(Done::Gone);
    }
    if let (Object::Volume(_), Some(stored)) = (&job.object, &stored) {
        // Another consumer's by now: its telemetry is none of ours.
        let consumer = stored.data.pointer("/spec/attachment/consumer").and_then(Value::as_str);
        if consumer != Some(env.me.0.as_str()) {
            return Ok(Done::Gone);
        }
    }
    let mut conditions = match (&stored, &job.conditions) {
        (Some(stored), _) => conditions_of(stored),
        (None, known) => known.clone().unwrap_or_default(),
    };
    let before = conditions.clone();
    if let Some(put) = &job.put {
        let own = !matches!(job.object, Object::Volume(_));
        if own {
            conditions.retain(|c| put.conditions.iter().any(|said| said.type_ == c.type_));
        }
        let mut said_anew = false;
        for said in &put.conditions {
            said_anew |=
                condition::set(&mut conditions, said.type_, said.status, &said.reason, &said.message, &env.clock.now());
        }
        let mut status = put.fields.clone();
        merge(&mut status, &put.telemetry);
        if let (true, Value::Object(fields)) = (own, &mut status) {
            fields.insert("conditions".into(), json!(conditions));
        }
        if !patch_status(&env, &api, name, &Patch::Merge(json!({ "status": status }))).await? {
            return Ok(Done::Gone);
        }
        if let (false, true, Some(stored)) = (own, said_anew, &stored) {
            write_shared_conditions(&env, &api, stored, put, &conditions).await?;
        }
    }
    if let (Some(_), Some(stored)) = (&job.finish, &stored)
        && stored.metadata.uid == job.finish
    {
        release(&env, &api, stored).await?;
    }
    let ours = |c: &&Condition| job.put.iter().flat_map(|put| &put.conditions).any(|said| said.type_ == c.type_);
    let told = tell::changes(&before, &conditions.iter().filter(ours).cloned().collect::<Vec<_>>());
    Ok(Done::Written(conditions, told, stored.and_then(|stored| stored.metadata.uid)))
}

/// Events are sent beside the writes, which wait for none of them.
fn tell(teller: Teller, object: Object, uid: Option<String>, told: Vec<Told>) {
    if told.is_empty() {
        return;
    }
    actix::spawn(async move {
        match &object {
            Object::Volume(name) => teller.tell::<MeshStorVolume>(name, uid, &told).await,
            Object::Replica(name) => teller.tell::<MeshStorReplica>(name, uid, &told).await,
            Object::Device(name) => teller.tell::<MeshStorNodeDevice>(name, uid, &told).await,
            Object::Node(name) => teller.tell::<MeshStorNode>(name, uid, &told).await,
        }
    });
}

async fn read_or_create(env: &Env, api: &Api<DynamicObject>, job: &Job) -> Result<Option<DynamicObject>, Failure> {
    let name = job.object.name();
    let what = || format!("reading {} {name}", job.object.kind());
    if let Some(stored) = env.server.ask(what, api.get_opt(name)).await? {
        return Ok(Some(stored));
    }
    let Some(spec) = job.put.as_ref().and_then(|put| put.create.clone()) else { return Ok(None) };
    let mut object = DynamicObject::new(name, &job.object.resource()).data(json!({ "spec": spec }));
    object.metadata.labels = Some([(NO_BACKUP_LABEL.to_string(), "true".to_string())].into());
    let what = || format!("creating {} {name}", job.object.kind());
    let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
    env.server.ask(what, api.create(&params, &object)).await.map(Some)
}

/// Whether the object was there to be written to.
async fn patch_status(env: &Env, api: &Api<DynamicObject>, name: &str, patch: &Patch<Value>) -> Result<bool, Failure> {
    let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    let sent = async {
        match api.patch_status(name, &params, patch).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(error),
        }
    };
    env.server.ask(|| format!("writing the status of {name}"), sent).await
}

/// Conditions of an object in which others own some, too: each by its type.
async fn write_shared_conditions(
    env: &Env,
    api: &Api<DynamicObject>,
    stored: &DynamicObject,
    put: &Put,
    conditions: &[Condition],
) -> Result<(), Failure> {
    let ours: Vec<Condition> =
        conditions.iter().filter(|c| put.conditions.iter().any(|said| said.type_ == c.type_)).cloned().collect();
    let name = stored.metadata.name.clone().unwrap_or_default();
    // The fields were written a moment ago: the version is another one, the conditions are not.
    let Some(fresh) = env.server.ask(|| format!("reading {name}"), api.get_opt(&name)).await? else { return Ok(()) };
    let have = conditions_of(&fresh);
    let have = fresh.data.get("status").map(|_| have.as_slice());
    let drafted = api_patch::conditions(&fresh.metadata, have, &ours);
    let drafted = drafted.map_err(|error| Failure::Refused { what: name.clone(), error: error.to_string() })?;
    match drafted {
        Some(patch) => patch_status(env, api, &name, &Patch::Json(patch)).await.map(|_| ()),
        None => Ok(()),
    }
}

/// Takes our finalizer off a replica whose data are gone.
async fn release(env: &Env, api: &Api<DynamicObject>, stored: &DynamicObject) -> Result<(), Failure> {
    let name = stored.metadata.name.clone().unwrap_or_default();
    let drafted = api_patch::without_finalizer(&stored.metadata, FINALIZER);
    let drafted = drafted.map_err(|error| Failure::Refused { what: name.clone(), error: error.to_string() })?;
    let Some(patch) = drafted else { return Ok(()) };
    let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    let patch: Patch<()> = Patch::Json(patch);
    let sent = async {
        match api.patch(&name, &params, &patch).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(|_| ()),
        }
    };
    env.server.ask(|| format!("letting go of {name}"), sent).await
}

fn conditions_of(object: &DynamicObject) -> Vec<Condition> {
    let list = object.data.pointer("/status/conditions").cloned();
    list.and_then(|list| serde_json::from_value(list).ok()).unwrap_or_default()
}

/// Puts the fields of `more` into `into`, object by object.
fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (name, value) in more {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (into, value) => *into = value.clone(),
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
