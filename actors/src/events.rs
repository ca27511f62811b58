//! Every event of the node agent that people and dashboards hear of, declared once: log line, metric, unit, help.
//!
//! Called by the other files of this crate. Names are conventional (`_total`, `_seconds`, `_bytes`), and every label value
//! comes from a closed list, so that no volume, node or error text ever becomes a label.

use crate::failure::Failure;
use meshstor_kernel::facts::Transport;
use meshstor_kernel::ops::Changed;
use meshstor_plan::Step;
use metrics::Unit;
use tokio::time::Instant;

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Only rises; its name ends in `_total`.
    Counter,
    /// Rises and falls.
    Gauge,
    /// A distribution.
    Histogram,
}

/// A metric of this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Name as Prometheus shows it.
    pub name: &'static str,
    /// What it is.
    pub shape: Shape,
    /// Unit.
    pub unit: Unit,
    /// One sentence for people.
    pub help: &'static str,
    /// Label names.
    pub labels: &'static [&'static str],
}

const OPS: Metric = Metric {
    name: "meshstor_ops_total",
    shape: Shape::Counter,
    unit: Unit::Count,
    help: "Steps the node agent has taken on its kernel and on the record, by outcome: changed, already, failed",
    labels: &["op", "outcome"],
};
const OP_DURATION: Metric = Metric {
    name: "meshstor_op_duration_seconds",
    shape: Shape::Histogram,
    unit: Unit::Seconds,
    help: "How long steps took",
    labels: &["op"],
};
const LOOK_DURATION: Metric = Metric {
    name: "meshstor_look_duration_seconds",
    shape: Shape::Histogram,
    unit: Unit::Seconds,
    help: "How long actors took to observe what they decide on",
    labels: &["kind"],
};
const RESTARTS: Metric = Metric {
    name: "meshstor_actor_restarts_total",
    shape: Shape::Counter,
    unit: Unit::Count,
    help: "Actors started anew after they ended unexpectedly",
    labels: &["kind"],
};
const QUARANTINES: Metric = Metric {
    name: "meshstor_actor_quarantines_total",
    shape: Shape::Counter,
    unit: Unit::Count,
    help: "Actors left alone for a while because they kept ending",
    labels: &["kind"],
};
const CIRCLES: Metric = Metric {
    name: "meshstor_actor_circles_total",
    shape: Shape::Counter,
    unit: Unit::Count,
    help: "Times an actor was slowed down because its steps led nowhere",
    labels: &["kind"],
};
const ACTORS: Metric = Metric {
    name: "meshstor_actors",
    shape: Shape::Gauge,
    unit: Unit::Count,
    help: "Actors that run",
    labels: &["kind"],
};
const STATUS_WRITES: Metric = Metric {
    name: "meshstor_status_writes_total",
    shape: Shape::Counter,
    unit: Unit::Count,
    help: "Status writes to the API server, by outcome: written, gone, failed",
    labels: &["kind", "outcome"],
};
const WATCH_FAILURES: Metric = Metric {
    name: "meshstor_watch_failures_total",
    shape: Shape::Counter,
    unit: Unit::Count,
    help: "Times a watch of the API server broke and was begun anew",
    labels: &["kind"],
};
const API_UP: Metric = Metric {
    name: "meshstor_api_reachable",
    shape: Shape::Gauge,
    unit: Unit::Count,
    help: "1 while the API server answered the last request for a record, else 0",
    labels: &[],
};
const ORPHANS: Metric = Metric {
    name: "meshstor_orphan_partitions",
    shape: Shape::Gauge,
    unit: Unit::Count,
    help: "Replica partitions on this node's drives that no MeshStorReplica names: kept, never exported, never wiped",
    labels: &[],
};
const RESYNC_LEFT: Metric = Metric {
    name: "meshstor_resync_left_bytes",
    shape: Shape::Gauge,
    unit: Unit::Bytes,
    help: "Bytes that running resyncs of this node's arrays have still to go through",
    labels: &[],
};
const RESYNC_LIMIT: Metric = Metric {
    name: "meshstor_resync_limit_bytes",
    shape: Shape::Gauge,
    unit: Unit::Bytes,
    help: "Bytes a second that one resync of this node may copy while its drives are otherwise idle",
    labels: &[],
};

const PATHS: Metric = Metric {
    name: "meshstor_paths",
    shape: Shape::Gauge,
    unit: Unit::Count,
    help: "Live NVMe paths from this node to copies on others",
    labels: &["transport"],
};
const PATHS_LOST: Metric = Metric {
    name: "meshstor_paths_lost_total",
    shape: Shape::Counter,
    unit: Unit::Count,
    help: "Times a live NVMe path to a copy on another node ceased to be live, for whatever reason",
    labels: &["transport"],
};

/// Every metric of this crate: documentation, dashboards and alert rules are checked against it.
pub const METRICS: &[Metric] = &[
    OPS,
    OP_DURATION,
    LOOK_DURATION,
    RESTARTS,
    QUARANTINES,
    CIRCLES,
    ACTORS,
    STATUS_WRITES,
    WATCH_FAILURES,
    API_UP,
    ORPHANS,
    RESYNC_LEFT,
    RESYNC_LIMIT,
    PATHS,
    PATHS_LOST,
];

/// Tells the metrics recorder what our metrics mean; call it once after a recorder is installed.
pub fn describe_metrics() {
    for metric in METRICS {
        match metric.shape {
            Shape::Counter => metrics::describe_counter!(metric.name, metric.unit, metric.help),
            Shape::Gauge => metrics::describe_gauge!(metric.name, metric.unit, metric.help),
            Shape::Histogram => metrics::describe_histogram!(metric.name, metric.unit, metric.help),
        }
    }
}

/// One step on its way: an audit line when it ends, whatever its end.
pub(crate) struct Audit {
    kind: &'static str,
    key: String,
    op: &'static str,
    step: String,
    begun: Instant,
}

impl Audit {
    /// A step begins.
    pub(crate) fn begin(kind: &'static str, key: &str, step: &Step) -> Audit {
        Audit { kind, key: key.to_string(), op: step.name(), step: step.to_string(), begun: Instant::now() }
    }

    /// It has ended.
    pub(crate) fn end(self, result: &Result<Changed, Failure>) {
        let Audit { kind, key, op, step, begun } = self;
        let elapsed = begun.elapsed();
        let milliseconds = elapsed.as_millis() as u64;
        let outcome = match result {
            Ok(Changed::Yes) => "changed",
            Ok(Changed::No) => "already",
            Err(_) => "failed",
        };
        match result {
            Ok(_) => tracing::info!(target: "audit", kind, key, op = step, outcome, milliseconds),
            Err(error) => {
                let class = format!("{:?}", error.class());
                tracing::warn!(target: "audit", kind, key, op = step, outcome, class, milliseconds, %error);
            }
        }
        metrics::counter!(OPS.name, "op" => op, "outcome" => outcome).increment(1);
        metrics::histogram!(OP_DURATION.name, "op" => op).record(elapsed);
    }
}

/// An observation has ended.
pub(crate) fn looked(kind: &'static str, key: &str, elapsed: std::time::Duration) {
    let milliseconds = elapsed.as_millis() as u64;
    tracing::debug!(target: "look", kind, key, milliseconds);
    metrics::histogram!(LOOK_DURATION.name, "kind" => kind).record(elapsed);
}

/// An actor's steps lead nowhere.
pub(crate) fn circles(kind: &'static str, key: &str, steps: u32) {
    tracing::error!(kind, key, steps, "steps lead nowhere: slowed down");
    metrics::counter!(CIRCLES.name, "kind" => kind).increment(1);
}

/// An actor ended although nobody stopped it, and is started anew after `pause`.
pub(crate) fn died(kind: &'static str, key: &str, generation: u64, pause: std::time::Duration) {
    let milliseconds = pause.as_millis() as u64;
    tracing::error!(kind, key, generation, milliseconds, "ended unexpectedly; a fresh one starts after a pause");
    metrics::counter!(RESTARTS.name, "kind" => kind).increment(1);
}

/// An actor keeps ending and is left alone for a while.
pub(crate) fn quarantined(kind: &'static str, key: &str, generation: u64, pause: std::time::Duration) {
    let seconds = pause.as_secs();
    tracing::error!(kind, key, generation, seconds, "keeps ending: quarantined");
    metrics::counter!(QUARANTINES.name, "kind" => kind).increment(1);
}

/// How many actors of a kind there are.
pub(crate) fn population(kind: &'static str, count: usize) {
    metrics::gauge!(ACTORS.name, "kind" => kind).set(count as f64);
}

/// A status write has ended.
pub(crate) fn status_write(kind: &'static str, outcome: &'static str) {
    metrics::counter!(STATUS_WRITES.name, "kind" => kind, "outcome" => outcome).increment(1);
}

/// A watch broke.
pub(crate) fn watch_failed(kind: &'static str, error: &dyn std::fmt::Display) {
    tracing::warn!(kind, %error, "watch broke; it is begun anew");
    metrics::counter!(WATCH_FAILURES.name, "kind" => kind).increment(1);
}

/// The API server answers a request for a record, or does not.
pub(crate) fn api_reachable(reachable: bool) {
    metrics::gauge!(API_UP.name).set(f64::from(u8::from(reachable)));
}

/// How many partitions nobody claims.
pub(crate) fn orphans(count: usize) {
    metrics::gauge!(ORPHANS.name).set(count as f64);
}

/// How much is still to be copied, and how fast at most.
pub(crate) fn resyncs(left_bytes: u64, limit_kib: u32) {
    metrics::gauge!(RESYNC_LEFT.name).set(left_bytes as f64);
    metrics::gauge!(RESYNC_LIMIT.name).set(f64::from(limit_kib) * 1024.0);
}

/// The number of live paths to a copy has changed.
pub(crate) fn paths(key: &str, transport: Transport, before: usize, now: usize) {
    let transport = transport.as_str();
    tracing::info!(key, transport, before, now, "live paths");
    metrics::gauge!(PATHS.name, "transport" => transport).increment(now as f64 - before as f64);
    let lost = before.saturating_sub(now) as u64;
    metrics::counter!(PATHS_LOST.name, "transport" => transport).increment(lost);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_conventional_and_unique() {
        let names: BTreeSet<_> = METRICS.iter().map(|m| m.name).collect();
        assert_eq!(names.len(), METRICS.len());
        for metric in METRICS {
            let name = metric.name;
            assert!(name.starts_with("meshstor_") && !metric.help.is_empty(), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert_eq!(name.ends_with("_total"), metric.shape == Shape::Counter, "{name}");
            assert_eq!(name.ends_with("_seconds"), metric.unit == Unit::Seconds, "{name}");
            assert_eq!(name.ends_with("_bytes"), metric.unit == Unit::Bytes, "{name}");
        }
    }

    #[test]
    fn what_is_counted_is_declared_and_described() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            describe_metrics();
            looked("array", "k", std::time::Duration::ZERO);
            circles("array", "k", 64);
            died("array", "k", 1, std::time::Duration::ZERO);
            quarantined("array", "k", 3, std::time::Duration::ZERO);
            population("array", 1);
            status_write("volume", "written");
            watch_failed("volume", &"reset");
            api_reachable(true);
            orphans(0);
            resyncs(1 << 30, 1024);
            paths("k", Transport::Rdma, 0, 2);
            paths("k", Transport::Rdma, 2, 1);
            let volume = meshstor_kernel::id::VolumeId(uuid::Uuid::nil());
            let step = Step::Kernel(meshstor_kernel::ops::Op::StopArray { volume });
            Audit::begin("array", "k", &step).end(&Ok(Changed::Yes));
        });
        let page = handle.render();
        assert!(page.contains("meshstor_paths{transport=\"rdma\"} 1"), "{page}");
        assert!(page.contains("meshstor_paths_lost_total{transport=\"rdma\"} 1"), "{page}");
        for metric in METRICS {
            assert!(page.contains(&format!("# HELP {} {}", metric.name, metric.help)), "{}\n{page}", metric.name);
        }
        let declared: BTreeSet<_> = METRICS.iter().map(|m| m.name).collect();
        for line in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let name = line.split(' ').next().unwrap();
            assert!(declared.contains(name), "{name} is not declared");
        }
    }
}
