//! The hash of a row, and of a set of rows.
//!
//! The state hash is the wrapping sum of the hashes of all rows: it does not depend on the order of the
//! operations that made them, and one changed row costs two hashes. It finds differences between replicas;
//! it is no defence against somebody who looks for collisions.

const SEEDS: [u64; 4] =
    [0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db, 0x8ebc_6af0_9c88_c6e3, 0x5899_65cc_7537_4cc3];

/// 64-bit hash of a raw key (with its table id) and its encoded row.
pub fn row_hash(key: &[u8], row: &[u8]) -> u64 {
    let state = absorb(SEEDS[0] ^ key.len() as u64, key);
    let state = absorb(state ^ SEEDS[2], row);
    fold(state ^ SEEDS[3], row.len() as u64 ^ SEEDS[1])
}

fn absorb(mut state: u64, data: &[u8]) -> u64 {
    let mut words = data.chunks_exact(16);
    for word in &mut words {
        let (low, high) = word.split_at(8);
        state = fold(le64(low) ^ SEEDS[1], le64(high) ^ state);
    }
    let rest = words.remainder();
    let mut last = [0; 16];
    last[..rest.len()].copy_from_slice(rest);
    fold(le64(&last[..8]) ^ SEEDS[2], le64(&last[8..]) ^ state)
}

/// Both halves of the 128-bit product, folded: every bit of either factor moves every bit of the result.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

fn le64(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_bit_of_key_and_row_and_the_border_between_them_count() {
        let (key, row) = (vec![0u8; 19], vec![0u8; 45]);
        let mut seen = BTreeSet::from([row_hash(&key, &row)]);
        for bit in 0..(key.len() + row.len()) * 8 {
            let mut bytes = [key.clone(), row.clone()].concat();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let (k, r) = bytes.split_at(key.len());
            assert!(seen.insert(row_hash(k, r)), "bit {bit}");
        }
        let zeros = [0u8; 64];
        for border in (0..=64).filter(|border| *border != 19) {
            let (k, r) = zeros.split_at(border);
            assert!(seen.insert(row_hash(k, r)), "border {border}");
        }
        (0..40).for_each(|len| assert!(seen.insert(row_hash(b"k", &zeros[..len])), "row of {len}"));
    }

    #[test]
    fn a_fixed_value_because_replicas_of_several_builds_compare_it() {
        assert_eq!(row_hash(b"key", b"row"), 0x273a_064a_7e1e_a9cf);
    }
}
