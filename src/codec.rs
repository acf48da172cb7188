//! Framed, versioned, checksummed records.
