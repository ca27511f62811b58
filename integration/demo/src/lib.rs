//! The main job on real kernels, step by step, timed and verified.
