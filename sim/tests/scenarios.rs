//! Cluster simulations, one OS process per seed.
fn main() {}
