//! Layouts k+m, the arithmetic of stripes, and the Reed-Solomon codec.
//!
//! A chunk of layout `k+m` has one logical run of bytes and `k + m` shards. With `k = 1` (replication) every
//! shard holds the logical bytes themselves and no mathematics is done. With `k > 1` the logical bytes are cut
//! into stripes of `k` cells of [`CELL_BYTES`](crate::limits::CELL_BYTES): data shard `i` holds cell `i` of
//! every stripe one after the other, the `m` parity shards hold the parity cells.

mod codec;
mod layout;
#[cfg(test)]
mod tests;

pub use codec::{Codec, Combination, ErasureError};
pub use layout::{Layout, LayoutError, Piece};
