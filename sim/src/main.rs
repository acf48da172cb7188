//! Runs one scenario with one seed and prints its timeline.
fn main() {}
