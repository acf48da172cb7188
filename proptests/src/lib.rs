//! An obvious in-memory model filesystem and operation generators.
