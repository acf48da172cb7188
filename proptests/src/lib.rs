//! An obvious in-memory model filesystem and operation generators.

pub mod disk_conformance;
