//! What simulations break: single requests, links, watches. [`Faults`] is the handle tests hold; [`FaultTable`] is
//! its memory inside the store's lock, asked by `service.rs` before and after each request and by `watch.rs` before
//! each event. Never random: a simulation draws its own numbers and says exactly what fails.

use crate::route::{Call, Verb};
use crate::state::WatchEnd;
use crate::store::Inner;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How the network between one client and the store behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// Everything passes.
    #[default]
    Up,
    /// Packets are lost without a word: requests and watches hang, and go on when the link is up again, as TCP does.
    Hang,
    /// Requests are refused at once and open watches break.
    Refuse,
}

/// What the client of a failed request gets to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer with this HTTP status code and a matching `Status` body.
    Status(u16),
    /// A broken connection.
    Reset,
    /// No answer, ever; the client needs its own timeout.
    Hang,
}

/// A rule that makes requests fail. It matches everything until narrowed, and once until [`Fault::times`] says more.
#[derive(Clone, Debug)]
pub struct Fault {
    client: Option<String>,
    verb: Option<Verb>,
    resource: Option<String>,
    name: Option<String>,
    after_effect: bool,
    outcome: Outcome,
    times: u32,
}

impl Fault {
    /// The request fails and changes nothing.
    pub fn before_effect(outcome: Outcome) -> Self {
        Self { client: None, verb: None, resource: None, name: None, after_effect: false, outcome, times: 1 }
    }

    /// The request is carried out, whatever its result, and the reply is lost.
    pub fn after_effect(outcome: Outcome) -> Self {
        Self { after_effect: true, ..Self::before_effect(outcome) }
    }

    /// Only requests of this client.
    pub fn client(mut self, name: &str) -> Self {
        self.client = Some(name.into());
        self
    }

    /// Only requests with this verb.
    pub fn verb(mut self, verb: Verb) -> Self {
        self.verb = Some(verb);
        self
    }

    /// Only this resource: `plural` covers the kind and its status, `plural/status` the status alone.
    pub fn resource(mut self, resource: &str) -> Self {
        self.resource = Some(resource.into());
        self
    }

    /// Only requests for the object of this name.
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How many requests fail before the rule is used up.
    pub fn times(mut self, times: u32) -> Self {
        self.times = times;
        self
    }

    fn matches(&self, client: &str, call: &Call) -> bool {
        let resource_matches = |wanted: &String| {
            call.resource == *wanted || call.resource.strip_suffix("/status").is_some_and(|plural| plural == wanted)
        };
        self.client.as_ref().is_none_or(|wanted| wanted == client)
            && self.verb.is_none_or(|wanted| wanted == call.verb)
            && self.resource.as_ref().is_none_or(resource_matches)
            && self.name.as_ref().is_none_or(|wanted| *wanted == call.name)
    }
}

/// Delays on the wire of one client, in each direction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Latency {
    pub(crate) request: Duration,
    pub(crate) reply: Duration,
}

#[derive(Debug)]
struct DropRule {
    client: String,
    plural: Option<String>,
    left: u32,
}

/// The faults in force.
#[derive(Debug, Default)]
pub(crate) struct FaultTable {
    rules: Vec<Fault>,
    links: BTreeMap<String, Link>,
    latencies: BTreeMap<String, Latency>,
    held: BTreeMap<String, bool>,
    drops: Vec<DropRule>,
}

impl FaultTable {
    pub(crate) fn link(&self, client: &str) -> Link {
        self.links.get(client).copied().unwrap_or_default()
    }

    pub(crate) fn latency(&self, client: &str) -> Latency {
        self.latencies.get(client).copied().unwrap_or_default()
    }

    pub(crate) fn holds_events(&self, client: &str) -> bool {
        self.held.get(client).copied().unwrap_or(false)
    }

    /// Uses up one count of the first rule that fits. Oldest first, so that a test can queue different failures.
    pub(crate) fn take(&mut self, client: &str, call: &Call) -> Option<(bool, Outcome)> {
        let at = self.rules.iter().position(|rule| rule.times > 0 && rule.matches(client, call))?;
        let rule = self.rules.get_mut(at)?;
        rule.times -= 1;
        let hit = (rule.after_effect, rule.outcome);
        self.rules.retain(|rule| rule.times > 0);
        Some(hit)
    }

    /// Whether the next event for this client is to be lost.
    pub(crate) fn take_drop(&mut self, client: &str, plural: &str) -> bool {
        let fits = |rule: &&mut DropRule| {
            rule.left > 0 && rule.client == client && rule.plural.as_ref().is_none_or(|wanted| wanted == plural)
        };
        let Some(rule) = self.drops.iter_mut().find(fits) else { return false };
        rule.left -= 1;
        self.drops.retain(|rule| rule.left > 0);
        true
    }
}

/// The handle through which a simulation breaks things; see [`crate::Store::faults`].
#[derive(Clone)]
pub struct Faults {
    pub(crate) inner: Arc<Inner>,
}

impl Faults {
    /// Adds a rule behind those that are already there.
    pub fn inject(&self, fault: Fault) {
        self.inner.change(|state| state.faults.rules.push(fault));
    }

    /// How many requests the rules in force can still fail.
    pub fn pending(&self) -> u32 {
        self.inner.change(|state| state.faults.rules.iter().map(|rule| rule.times).sum())
    }

    /// Sets the link of one client.
    pub fn set_link(&self, client: &str, link: Link) {
        self.inner.change(|state| state.faults.links.insert(client.into(), link));
    }

    /// A partition: `true` is [`Link::Hang`], `false` is [`Link::Up`].
    pub fn cut(&self, client: &str, cut: bool) {
        self.set_link(client, if cut { Link::Hang } else { Link::Up });
    }

    /// Delays every request of a client before it takes effect, and every reply after. Runs on tokio's clock.
    pub fn set_latency(&self, client: &str, request: Duration, reply: Duration) {
        self.inner.change(|state| state.faults.latencies.insert(client.into(), Latency { request, reply }));
    }

    /// Loses the next `count` watch events of a client without a trace, of one kind or (`None`) of any.
    pub fn drop_events(&self, client: &str, plural: Option<&str>, count: u32) {
        let rule = DropRule { client: client.into(), plural: plural.map(str::to_owned), left: count };
        self.inner.change(|state| state.faults.drops.push(rule));
    }

    /// Stops a client's watches while its requests still pass: its caches grow stale. `false` lets them catch up.
    pub fn hold_events(&self, client: &str, hold: bool) {
        self.inner.change(|state| state.faults.held.insert(client.into(), hold));
    }

    /// Ends the open watches of one client, or (`None`) of all.
    pub fn close_watches(&self, client: Option<&str>, end: WatchEnd) {
        self.inner.change(|state| state.end_watches(client, end));
    }

    /// Ends all faults: rules, links, latencies, held and dropped events.
    pub fn clear(&self) {
        self.inner.change(|state| state.faults = FaultTable::default());
    }
}
