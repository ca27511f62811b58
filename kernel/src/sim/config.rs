//! Settings of a simulated world: sizes, speeds, odds of faults. Values only; read by all parts, changed by none.

use crate::id::DriveId;
use std::time::Duration;

/// A drive as it is plugged in: blank, healthy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimDrive {
    /// Serial number, unique in the world.
    pub serial: String,
    /// Size in bytes.
    pub size: u64,
    /// Logical block size in bytes: 512 or 4096.
    pub sector: u32,
    /// Whether it has a volatile write cache, which forgets unflushed writes when its power is cut.
    pub volatile_cache: bool,
    /// Whether that cache can be turned off; it is on again after every power cut.
    pub cache_switch: bool,
}

impl SimDrive {
    /// A drive of 4096-byte sectors without a volatile cache.
    pub fn new(serial: &str, size: u64) -> SimDrive {
        SimDrive { serial: serial.into(), size, sector: 4096, volatile_cache: false, cache_switch: false }
    }

    /// The same drive with a volatile write cache.
    pub fn with_volatile_cache(mut self) -> SimDrive {
        self.volatile_cache = true;
        self
    }

    /// The same drive with a volatile write cache that can be turned off.
    pub fn with_cache_switch(mut self) -> SimDrive {
        self.volatile_cache = true;
        self.cache_switch = true;
        self
    }

    /// The identity the kernel gives it: serial number and namespace id.
    pub fn id(&self) -> DriveId {
        DriveId(format!("{}-1", self.serial.to_lowercase()))
    }
}

/// Speeds and sizes. The defaults are those of the machines in the lab where a number is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Bytes of one simulated block; its whole content is one number. Must divide 1 MiB.
    pub block_bytes: u64,
    /// One way over the fabric.
    pub link_latency: Duration,
    /// One command on a drive.
    pub drive_latency: Duration,
    /// An operation takes from the first to the second.
    pub op_latency: (Duration, Duration),
    /// An observation takes this long.
    pub look_latency: Duration,
    /// Setting up a controller.
    pub connect_latency: Duration,
    /// `delete_controller` of a live controller; one that is dialling takes ten times as long.
    pub delete_latency: Duration,
    /// A silent path is noticed after this (`keep_alive_tmo`).
    pub keep_alive: Duration,
    /// Between two attempts of a controller that lost its path.
    pub reconnect_delay: Duration,
    /// A dial to an address that does not answer fails after this.
    pub dial_timeout: Duration,
    /// Between two passes of MD's bitmap daemon; a clean chunk is cleared at the third.
    pub bitmap_daemon: Duration,
    /// MD's `safe_mode_delay` until `ReleaseSync` sets it to zero.
    pub safe_mode_delay: Duration,
    /// Resync and recovery in bytes per second.
    pub sync_rate: u64,
    /// A hint comes this long after its cause; a lost path is only noticed by the poll, see `path_poll`.
    pub hint_delay: Duration,
    /// The poll of controller states, the only source of a hint for a lost path.
    pub path_poll: Duration,
    /// A read by the probe fails after this.
    pub probe_timeout: Duration,
    /// Evidence that was true this long ago may still be acted on without breaking a law: the refusal suffices.
    pub evidence_grace: Duration,
    /// Whether the nodes have RDMA addresses beside the TCP ones.
    pub rdma: bool,
    /// Create real directories for mount targets, so that CSI clients on this machine see a path.
    pub materialize_mounts: bool,
    /// Lines of trace and entries of write history kept; older ones are dropped.
    pub trace_limit: usize,
    /// Odds of the seeded faults.
    pub rates: FaultRates,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            block_bytes: 64 << 10,
            link_latency: Duration::from_micros(100),
            drive_latency: Duration::from_micros(80),
            op_latency: (Duration::from_millis(2), Duration::from_millis(20)),
            look_latency: Duration::ZERO,
            connect_latency: Duration::from_millis(50),
            delete_latency: Duration::from_millis(100),
            keep_alive: Duration::from_secs(5),
            reconnect_delay: Duration::from_secs(2),
            dial_timeout: Duration::from_secs(3),
            bitmap_daemon: Duration::from_secs(5),
            safe_mode_delay: Duration::from_millis(204),
            sync_rate: 1 << 30,
            hint_delay: Duration::from_millis(1),
            path_poll: Duration::from_millis(300),
            probe_timeout: Duration::from_secs(5),
            evidence_grace: Duration::from_secs(2),
            rdma: false,
            materialize_mounts: false,
            trace_limit: 200_000,
            rates: FaultRates::default(),
        }
    }
}

/// Odds of the faults that the seed chooses, each from 0 to 1. All zero: only faults asked for by name happen.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct FaultRates {
    /// An operation fails and did nothing.
    pub op_fails_before: f64,
    /// An operation fails although it was done.
    pub op_fails_after: f64,
    /// An operation of several steps stops in the middle and fails.
    pub op_fails_half: f64,
    /// An operation takes up to 30 s more.
    pub op_slow: f64,
    /// An observation fails.
    pub look_fails: f64,
    /// A hint is lost.
    pub hint_lost: f64,
    /// A hint is told twice, the second time up to a second later.
    pub hint_doubled: f64,
}

impl FaultRates {
    /// A world in which things go wrong often enough to be seen in a minute.
    pub fn rough() -> FaultRates {
        FaultRates {
            op_fails_before: 0.05,
            op_fails_after: 0.05,
            op_fails_half: 0.03,
            op_slow: 0.02,
            look_fails: 0.02,
            hint_lost: 0.3,
            hint_doubled: 0.1,
        }
    }
}
