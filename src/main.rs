//! The meshstor binary.

fn main() {}
