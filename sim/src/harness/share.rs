//! What must hold of all runs of a sweep together, where one run can say nothing: so many in a hundred.

/// Among some counters, those that must have at least a share of the sum.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// The scenario that counts them.
    pub scenario: &'static str,
    /// What the share is of, for people.
    pub about: &'static str,
    /// The counters that are as they should be ...
    pub good: &'static [&'static str],
    /// ... and the others.
    pub bad: &'static [&'static str],
    /// At least so many in a hundred must be good.
    pub percent: u64,
}

/// Fewer than so many are printed and not judged: a hundredth of them is less than one.
const JUDGED_FROM: u64 = 100;

impl Share {
    /// The share as a line, an error if it is too small.
    pub fn judge(&self, count: impl Fn(&str) -> u64) -> Result<String, String> {
        let sum = |names: &[&str]| names.iter().map(|name| count(name)).sum::<u64>();
        let (good, all) = (sum(self.good), sum(self.good) + sum(self.bad));
        let Share { scenario, about, percent, .. } = self;
        let share = good as f64 * 100.0 / all.max(1) as f64;
        let line = format!("{scenario}: {about}: {good} of {all}, {share:.2} %");
        match all >= JUDGED_FROM && good * 100 < all * percent {
            true => Err(format!("{line}; it must be {percent} %")),
            false => Ok(line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_are_judged_and_fewer_are_not() {
        let share =
            Share { scenario: "s", about: "quick", good: &["a", "b"], bad: &["c"], percent: 99 };
        let of = |a: u64, c: u64| {
            share.judge(move |name| match name {
                "a" => a,
                "c" => c,
                _ => 0,
            })
        };
        assert_eq!(of(99, 1), Ok("s: quick: 99 of 100, 99.00 %".to_owned()));
        assert!(of(98, 2).is_err() && of(90, 9).is_ok() && of(0, 0).is_ok());
    }
}
