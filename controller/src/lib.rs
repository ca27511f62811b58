//! Placement, takeover and deletion: the controller role.
