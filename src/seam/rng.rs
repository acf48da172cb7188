//! Random numbers: the operating system's, which madsim replaces by the seed's in a simulation.

/// 64 random bits. A system call in the real world: for ids and jitter, not for hot paths.
#[expect(clippy::disallowed_methods, reason = "the seam itself")]
pub fn random_u64() -> u64 {
    getrandom::u64().expect("the operating system gives random numbers")
}

/// A random number in `[low, high)`; `low` if the range is empty.
pub fn random_range(low: u64, high: u64) -> u64 {
    if high <= low { low } else { low + random_u64() % (high - low) }
}

/// 16 random bytes.
pub fn random_uuid() -> crate::ids::Uuid {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&random_u64().to_le_bytes());
    bytes[8..].copy_from_slice(&random_u64().to_le_bytes());
    crate::ids::Uuid(bytes)
}
