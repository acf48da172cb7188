use super::*;
use crate::limits::{BLOCK_BYTES, CELL_BYTES, CHUNK_BYTES_MAX};

/// Bytes that differ everywhere and are the same each time.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len).map(|_| step() as u8).collect()
}

fn layout(text: &str) -> Layout {
    text.parse().expect("a possible layout")
}

fn shards_of(codec: &Codec, len: usize) -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = (0..codec.layout().data()).map(|i| noise(i as u64, len)).collect();
    let cells: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
    let parity = codec.encode(&cells);
    all.extend(parity);
    all
}

/// Calls `each` with every choice of `k` out of `n` indexes.
fn choices(n: usize, k: usize, each: &mut impl FnMut(&[usize])) {
    fn go(
        n: usize,
        k: usize,
        from: usize,
        picked: &mut Vec<usize>,
        each: &mut dyn FnMut(&[usize]),
    ) {
        if picked.len() == k {
            return each(picked);
        }
        for i in from..n {
            picked.push(i);
            go(n, k, i + 1, picked, each);
            picked.pop();
        }
    }
    go(n, k, 0, &mut Vec::new(), each);
}

const LAYOUTS: [&str; 9] = ["1+0", "1+1", "1+2", "2+1", "3+0", "4+2", "5+3", "8+3", "8+4"];

#[test]
fn any_k_shards_rebuild_all() {
    for text in LAYOUTS {
        let codec = Codec::new(layout(text));
        let (k, n) = (codec.layout().data(), codec.layout().shards());
        let all = shards_of(&codec, 100);
        choices(n, k, &mut |kept| {
            let mut given: Vec<Option<Vec<u8>>> =
                (0..n).map(|i| kept.contains(&i).then(|| all[i].clone())).collect();
            codec.reconstruct(&mut given).expect("k shards are enough");
            let rebuilt: Vec<Vec<u8>> = given.into_iter().flatten().collect();
            assert_eq!(rebuilt, all, "{text} from {kept:?}");
        });
    }
}

#[test]
fn a_combination_rebuilds_one_shard_from_any_k() {
    for text in LAYOUTS {
        let codec = Codec::new(layout(text));
        let (k, n) = (codec.layout().data(), codec.layout().shards());
        let all = shards_of(&codec, 70);
        choices(n, k, &mut |kept| {
            let mut order = kept.to_vec();
            order.reverse();
            let sources: Vec<&[u8]> = order.iter().map(|i| all[*i].as_slice()).collect();
            for (target, expected) in all.iter().enumerate() {
                let mut out = vec![0xee; 70];
                codec.combination(&order, target).expect("k sources").apply(&sources, &mut out);
                assert_eq!(&out, expected, "{text}: {target} from {order:?}");
            }
        });
    }
}

#[test]
fn columns_join_without_a_seam() {
    let codec = Codec::new(layout("4+2"));
    for len in [1, 16 << 10, (16 << 10) + 1, 100_000, CELL_BYTES] {
        let all = shards_of(&codec, len);
        let mut given: Vec<Option<Vec<u8>>> = all.iter().cloned().map(Some).collect();
        given[1] = None;
        given[4] = None;
        codec.reconstruct(&mut given).expect("four shards are there");
        assert!(given.into_iter().flatten().eq(all.iter().cloned()), "length {len}");
        let sources: Vec<&[u8]> = [0, 2, 3, 5].iter().map(|i| all[*i].as_slice()).collect();
        let mut out = vec![0; len];
        codec.combination(&[0, 2, 3, 5], 1).expect("four").apply(&sources, &mut out);
        assert_eq!(out, all[1]);
    }
}

#[test]
fn too_few_or_misshapen_shards_are_refused() {
    let codec = Codec::new(layout("4+2"));
    let all = shards_of(&codec, 10);
    let mut given: Vec<Option<Vec<u8>>> = all.iter().cloned().map(Some).collect();
    given[..3].fill(None);
    let few = codec.reconstruct(&mut given);
    assert_eq!(few, Err(ErasureError::TooFew { present: 3, needed: 4 }));
    given[0] = Some(vec![0; 9]);
    assert_eq!(codec.reconstruct(&mut given), Err(ErasureError::Shape(layout("4+2"))));
    assert!(codec.reconstruct(&mut given[..5]).is_err());
    assert!(codec.combination(&[0, 1, 2, 2], 5).is_err(), "a source named twice");
    assert!(codec.combination(&[0, 1, 2], 5).is_err());
    assert!(codec.combination(&[0, 1, 2, 6], 5).is_err());
    assert!(codec.combination(&[0, 1, 2, 3], 6).is_err());
}

#[test]
fn locate_and_logical_are_inverse_and_shards_fill_without_gaps() {
    for text in LAYOUTS {
        let layout = layout(text);
        let stripe = layout.stripe_bytes();
        let total = 3 * stripe + 5000;
        let mut seen = vec![0u64; layout.data()];
        for piece in layout.pieces(0, total) {
            assert_eq!(layout.locate(piece.logical_off), (piece.shard, piece.shard_off));
            assert_eq!(layout.logical(piece.shard, piece.shard_off), Some(piece.logical_off));
            let last = piece.logical_off + piece.len - 1;
            assert_eq!(layout.locate(last), (piece.shard, piece.shard_off + piece.len - 1));
            assert_eq!(piece.shard_off, seen[piece.shard], "{text}: a shard fills from its start");
            seen[piece.shard] += piece.len;
        }
        assert_eq!(seen.iter().sum::<u64>(), total);
        assert!(seen.iter().all(|len| *len <= layout.shard_len(total)));
        assert!(layout.shard_len(total).is_multiple_of(BLOCK_BYTES as u64));
        assert!(layout.shard_len(total) < seen[0] + CELL_BYTES as u64);
        if !layout.is_copies() {
            assert_eq!(layout.logical(layout.data(), 0), None, "parity is nobody's byte");
        }
    }
}

#[test]
fn pieces_cover_any_range_once() {
    let layout = layout("4+2");
    let cell = CELL_BYTES as u64;
    for (off, len) in [(0, 1), (cell - 1, 2), (3 * cell + 7, 6 * cell), (5, 0), (8 * cell, cell)] {
        let mut at = off;
        for piece in layout.pieces(off, len) {
            assert_eq!(piece.logical_off, at);
            assert!(piece.len > 0 && piece.len <= cell);
            at += piece.len;
        }
        assert_eq!(at, off + len);
    }
}

#[test]
fn lengths_of_shards() {
    assert_eq!(layout("1+1").shard_len(0), 0);
    assert_eq!(layout("1+1").shard_len(5000), 8192);
    assert_eq!(layout("4+2").shard_len(0), 0);
    assert_eq!(layout("4+2").shard_len(1), CELL_BYTES as u64);
    assert_eq!(layout("4+2").shard_len(4 * CELL_BYTES as u64 + 1), 2 * CELL_BYTES as u64);
    assert_eq!(layout("1+2").shard_len_max(), CHUNK_BYTES_MAX as u64);
    assert_eq!(layout("3+1").shard_len_max(), 342 * CELL_BYTES as u64);
}

#[test]
fn layouts_that_cannot_be_are_refused() {
    for text in ["0+1", "33+1", "32+17", "4", "4+", "+2", "4+-1", "4+2+1", "", "4294967296+1"] {
        let error = text.parse::<Layout>().expect_err(text).to_string();
        assert!(error.contains("is not possible") && !error.contains('\n'), "{error}");
    }
    assert!(Layout::new(u32::MAX, u32::MAX).is_err());
    assert!(Layout::copies(0).is_err());
    assert_eq!(Layout::copies(2), Ok(layout("1+1")));
    assert_eq!(layout("32+16").shards(), 48);
    let raw = pb_round_trip(layout("16+4"));
    assert_eq!(raw, Ok(layout("16+4")));
}

fn pb_round_trip(layout: Layout) -> Result<Layout, LayoutError> {
    crate::pb::Layout::from(layout).try_into()
}

#[test]
fn crc_seeds_tell_shards_apart_but_not_copies() {
    assert_eq!(layout("1+2").crc_shard(2), 0);
    assert_eq!(layout("4+2").crc_shard(5), 5);
}
