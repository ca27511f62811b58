//! Free TCP ports on loopback.
//!
//! Used wherever a server of the lab needs a port. The ports lie below the range that Linux gives to outgoing
//! connections, because they are used again: a guest gets its old port back when its power returns, and an API server
//! its old address after an outage. Never holds a port: another program can take it first, then the server says so.

use anyhow::{Context, Result};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

const FIRST: u32 = 20_000;
const COUNT: u32 = 10_000;

/// A port that nobody uses now, and that this program did not get before.
pub(crate) fn free_port() -> Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    (0..COUNT)
        .map(|_| candidate(std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .with_context(|| format!("no free port between {FIRST} and {}", FIRST + COUNT))
}

/// Programs start far from each other, so that two at once do not race for the same ports.
fn candidate(pid: u32, attempt: u32) -> u16 {
    (FIRST + pid.wrapping_mul(97).wrapping_add(attempt) % COUNT) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ_and_lie_below_the_outgoing_range() {
        let (one, two) = (free_port().unwrap(), free_port().unwrap());
        assert_ne!(one, two);
        for port in [one, two, candidate(u32::MAX, 3), candidate(1, u32::MAX)] {
            assert!((20_000..30_000).contains(&port));
        }
    }
}
