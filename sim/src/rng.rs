//! Random numbers drawn from the run's seed. Every part of a simulation forks its own child by name, so that
//! one more draw in one part does not change another.

/// xoshiro256++, seeded through SplitMix64.
#[derive(Clone, Debug)]
pub struct Rng([u64; 4]);

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A probability as an integer ratio, so that a seed means the same everywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Ratio {
    /// How often ...
    pub hits: u32,
    /// ... out of how many; zero means never.
    pub out_of: u32,
}

impl Ratio {
    /// Never.
    pub const NEVER: Ratio = Ratio { hits: 0, out_of: 1 };

    /// Once in `n`.
    pub const fn one_in(n: u32) -> Ratio {
        Ratio { hits: 1, out_of: n }
    }
}

impl Rng {
    /// The generator of this seed.
    pub fn new(seed: u64) -> Rng {
        let mut state = seed;
        Rng(std::array::from_fn(|_| split_mix(&mut state)))
    }

    /// A child whose numbers depend on this generator's seed and `name` only: forking draws nothing.
    pub fn fork(&self, name: &str) -> Rng {
        let mut state = self.0[0] ^ self.0[2].rotate_left(17);
        for byte in name.bytes() {
            state = split_mix(&mut state) ^ u64::from(byte);
        }
        Rng::new(split_mix(&mut state))
    }

    /// 64 random bits.
    pub fn u64(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// In `[0, n)`; 0 if `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.u64()) * u128::from(n)) >> 64) as u64
    }

    /// In `[low, high)`; `low` if the range is empty.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low))
    }

    /// True `hits` times out of `out_of`.
    pub fn chance(&mut self, hits: u32, out_of: u32) -> bool {
        self.below(u64::from(out_of)) < u64::from(hits)
    }

    /// True as often as the ratio says; a ratio of never draws nothing.
    pub fn hit(&mut self, ratio: Ratio) -> bool {
        ratio.hits > 0 && self.chance(ratio.hits, ratio.out_of)
    }

    /// An index below `len`.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// One of the items.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.index(items.len())]
    }

    /// Puts the items in random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.index(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_depend_on_seed_and_name_only() {
        let mut a = Rng::new(7).fork("disk");
        let mut b = Rng::new(7).fork("disk");
        let mut other = Rng::new(7).fork("net");
        let first = a.u64();
        assert_eq!(first, b.u64());
        assert_ne!(first, other.u64());
    }

    #[test]
    fn draws_stay_in_range_and_vary() {
        let mut rng = Rng::new(1);
        let draws: Vec<u64> = (0..1000).map(|_| rng.range(10, 20)).collect();
        assert!(draws.iter().all(|draw| (10..20).contains(draw)));
        assert!((10..20).all(|value| draws.contains(&value)));
        assert_eq!(rng.below(0), 0);
        let hits = (0..10_000).filter(|_| rng.chance(1, 4)).count();
        assert!((2200..2800).contains(&hits), "{hits}");
    }
}
