//! Where choices come from: a seed, or a tape that proptest can shrink.

/// A source of choices.
pub trait Draw {
    /// Any 64 bits.
    fn draw(&mut self) -> u64;

    /// One of `0..n` (0 if `n` is 0).
    fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.draw() % n }
    }

    /// True in `num` of `den` cases.
    fn chance(&mut self, num: u64, den: u64) -> bool {
        self.below(den) < num
    }

    /// One of the items; `None` if there is none.
    fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        let at = usize::try_from(self.below(items.len() as u64)).ok()?;
        items.get(at)
    }
}

/// Pseudo-random choices from a 64-bit seed; the same everywhere.
#[derive(Clone, Debug)]
pub struct SplitMix(pub u64);

impl Draw for SplitMix {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Choices read off a list, zeros after its end: one list an operation, so that every shrunk list of lists is
/// a valid program.
#[derive(Clone, Debug)]
pub struct Tape<'a>(pub &'a [u32]);

impl Draw for Tape<'_> {
    fn draw(&mut self) -> u64 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                u64::from(*first)
            }
            None => 0,
        }
    }
}

impl<F: FnMut() -> u64> Draw for F {
    fn draw(&mut self) -> u64 {
        self()
    }
}
