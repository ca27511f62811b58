//! Tests of the simulated kernels, on a paused clock. One file for each group of promises of the simulator itself.

mod chaos;
mod faults;
mod first;
mod grow;
mod idempotence;
mod lab;
mod laws;
mod life;
mod md;
