//! Who a node agent is: what its root actor is started with.
//!
//! Made by the binary, by `meshstor dev` and by tests; read once, at the start. It never changes in the life of an agent.

use crate::clock::Clock;
use meshstor_kernel::id::{ClusterId, NodeName};
use meshstor_plan::array::SyncSpeeds;

/// Who a node agent is.
#[derive(Clone)]
pub struct NodeConfig {
    /// The node's name.
    pub node: NodeName,
    /// The cluster.
    pub cluster: ClusterId,
    /// The storage network it is on.
    pub fabric: String,
    /// Wall time for objects.
    pub clock: Clock,
    /// How fast resyncs of this node's arrays run.
    pub speeds: SyncSpeeds,
    /// Drives keep their volatile write caches on.
    pub keep_caches: bool,
}
