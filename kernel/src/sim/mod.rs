//! Simulated kernels.
