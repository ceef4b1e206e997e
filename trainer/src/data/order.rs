//! Orders in which a corpus is read, none of which is ever stored.
//!
//! - [`Permutation`]: a bijection of `0..count` under a key, one value at a time in constant memory. A Feistel network
//!   (Luby and Rackoff 1988) permutes the smallest even number of bits that holds the count; a value that falls
//!   outside is permuted again until it falls inside (cycle walking, Black and Rogaway 2002, section 3).
//! - [`Proportions`]: which of several sources a sequence comes from, and the how-many-eth of that source it is.

use formats::{Error, Result};
use runtime::random::Stream;

/// Rounds of the network; four make a pseudorandom permutation of a good round function.
const ROUNDS: usize = 6;
/// Sequences after which the pattern of sources repeats, at most.
const MOST_PERIOD: u64 = 1 << 16;

/// A bijection of `0..count`.
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    count: u64,
    /// Bits of half a value.
    half: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The bijection of `0..count` whose key is the words of `stream` at `step` and `index`.
    pub fn new(count: u64, stream: &Stream, step: u64, index: u64) -> Permutation {
        let mut keys = [0; ROUNDS];
        for (block, pair) in keys.chunks_mut(2).enumerate() {
            let [a, b, c, d] = stream.draws(step, index * (ROUNDS as u64 / 2) + block as u64);
            let words = [u64::from(a) << 32 | u64::from(b), u64::from(c) << 32 | u64::from(d)];
            pair.copy_from_slice(&words[..pair.len()]);
        }
        let bits = u64::BITS - count.saturating_sub(1).leading_zeros();
        Permutation { count, half: bits.div_ceil(2).max(1), keys }
    }

    /// Where `index`, which is below the count, goes.
    pub fn at(&self, index: u64) -> u64 {
        // The walk ends: it is part of a cycle that holds `index`, which is inside.
        let mut value = self.network(index);
        while value >= self.count {
            value = self.network(value);
        }
        value
    }

    fn network(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half) - 1;
        let (mut left, mut right) = (value >> self.half, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ mix(right ^ key) & mask);
        }
        left << self.half | right
    }
}

/// Spreads the bits of a number over all of it (Steele et al. 2014, SplitMix64's finaliser).
pub(super) fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ value >> 31
}

/// Which source each sequence comes from, so that of any first `k` sequences each source has its share of `k`, within
/// one.
///
/// The shares are whole numbers of a period. Within it, source `i` with the share `g/P` has a slot for its `j`-th
/// sequence not before `floor(j P / g)` and before `ceil((j + 1) P / g)`; the earliest deadline first meets all of
/// them (Baruah et al. 1996, "Proportionate progress"; for one slot at a time any tie will do).
#[derive(Clone, Debug, PartialEq)]
pub struct Proportions {
    shares: Vec<u64>,
    /// For each slot of a period: the source, and how many slots of the period it had before.
    slots: Vec<(u32, u32)>,
}

impl Proportions {
    /// The pattern of sources with these weights. Weights whose ratio is that of whole numbers of few digits are
    /// honoured exactly, others to a share of 1/65,536.
    pub fn new(weights: &[f64]) -> Result<Proportions> {
        let wrong = |problem: String| {
            Error::Usage(format!(
                "{problem}\n  help: --data-weight takes numbers above 0, one for each --data"
            ))
        };
        if let Some(weight) = weights.iter().find(|weight| !(weight.is_finite() && **weight > 0.0)) {
            return Err(wrong(format!("a weight of the data is {weight}")));
        }
        if weights.is_empty() || weights.len() as u64 > MOST_PERIOD {
            return Err(wrong(format!("there are {} weights, expected 1 to {MOST_PERIOD}", weights.len())));
        }
        let shares = whole(weights).unwrap_or_else(|| rounded(weights));
        Ok(Proportions { slots: period(&shares), shares })
    }

    /// The source of sequence `sequence`, and which of that source's sequences it is.
    pub fn of(&self, sequence: u64) -> (usize, u64) {
        let period = self.slots.len() as u64;
        let (source, before) = self.slots[(sequence % period) as usize];
        (source as usize, sequence / period * self.shares[source as usize] + u64::from(before))
    }

    /// Each source's share of all sequences.
    pub fn shares(&self) -> impl Iterator<Item = f64> {
        let period = self.slots.len() as f64;
        self.shares.iter().map(move |&share| share as f64 / period)
    }
}

/// The weights as the smallest whole numbers of their ratio, if those make a period.
fn whole(weights: &[f64]) -> Option<Vec<u64>> {
    let divisor = |a: u64, b: u64| {
        let (mut a, mut b) = (a, b);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    for scale in [1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6] {
        let scaled = weights.iter().map(|weight| {
            // A decimal is not exact in binary: what is a whole number but for that is one.
            let number = weight * scale;
            let near = (number - number.round()).abs() <= 1e-9 * number;
            (near && (1.0..1e15).contains(&number)).then(|| number.round() as u64)
        });
        let Some(scaled) = scaled.collect::<Option<Vec<u64>>>() else { continue };
        let common = scaled.iter().copied().fold(0, divisor).max(1);
        let shares: Vec<u64> = scaled.iter().map(|share| share / common).collect();
        if shares.iter().map(|&share| u128::from(share)).sum::<u128>() <= u128::from(MOST_PERIOD) {
            return Some(shares);
        }
    }
    None
}

/// The weights rounded to shares of the longest period, each at least one slot.
fn rounded(weights: &[f64]) -> Vec<u64> {
    // Divided by the largest first, so that no sum overflows.
    let largest = weights.iter().copied().fold(0.0, f64::max);
    let sum: f64 = weights.iter().map(|weight| weight / largest).sum();
    let free = MOST_PERIOD - weights.len() as u64;
    weights.iter().map(|weight| 1 + (weight / largest / sum * free as f64) as u64).collect()
}

/// One period, earliest deadline first.
fn period(shares: &[u64]) -> Vec<(u32, u32)> {
    let period: u64 = shares.iter().sum();
    let mut had = vec![0u64; shares.len()];
    (0..period)
        .map(|slot| {
            let open = |&source: &usize| had[source] * period / shares[source] <= slot;
            let deadline = |&source: &usize| ((had[source] + 1) * period).div_ceil(shares[source]);
            // Some source is always open: the shares sum to the period.
            let source = (0..shares.len()).filter(open).min_by_key(deadline).unwrap_or(0);
            had[source] += 1;
            (source as u32, had[source] as u32 - 1)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::random::Purpose;
    use std::collections::BTreeSet;

    fn permutation(count: u64, seed: u64, epoch: u64) -> Permutation {
        Permutation::new(count, &Stream::new(seed, Purpose::Order), epoch, 0)
    }

    #[test]
    fn every_size_is_permuted_onto_itself() {
        for count in (1..=300).chain([511, 512, 513, 1000, 4095, 4097, 65_536, 65_537, 100_003]) {
            for seed in 0..3 {
                let order = permutation(count, seed, 7);
                let mut seen = vec![false; count as usize];
                for index in 0..count {
                    let value = order.at(index) as usize;
                    assert!(!std::mem::replace(&mut seen[value], true), "{count}: {value} comes twice");
                }
            }
        }
    }

    #[test]
    fn the_largest_counts_stay_inside() {
        for count in [u64::MAX, 1 << 63, (1 << 62) + 1, 1 << 40] {
            let order = permutation(count, 1, 0);
            let values: BTreeSet<u64> =
                (0..50).chain(count - 50..count).map(|index| order.at(index)).collect();
            assert_eq!(values.len(), 100);
            assert!(values.iter().all(|value| *value < count));
        }
    }

    #[test]
    fn keys_make_orders_and_orders_look_like_chance() {
        let all = |seed, epoch| (0..500).map(|i| permutation(500, seed, epoch).at(i)).collect::<Vec<_>>();
        assert_ne!(all(1, 0), all(2, 0));
        assert_ne!(all(1, 0), all(1, 1));
        assert_eq!(all(1, 0), all(1, 0));
        // Where one index goes under many keys is even, and neighbours part.
        let (mut counts, mut neighbours) = ([0u32; 10], 0);
        for epoch in 0..10_000 {
            let order = permutation(10, 5, epoch);
            counts[order.at(3) as usize] += 1;
            neighbours += u32::from(order.at(4) == (order.at(3) + 1) % 10);
        }
        // Binomial with n 10,000, p 0.1 and p 1/9: deviations 30 and 31.
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
        assert!((950..1270).contains(&neighbours), "{neighbours}");
    }

    /// The largest distance of a source's count from its share over every prefix.
    fn worst(weights: &[f64], prefix: u64) -> f64 {
        let proportions = Proportions::new(weights).expect("weights");
        let shares: Vec<f64> = proportions.shares().collect();
        let (mut had, mut worst) = (vec![0u64; weights.len()], 0.0f64);
        for sequence in 0..prefix {
            let (source, number) = proportions.of(sequence);
            assert_eq!(number, had[source], "sequence {sequence} of {weights:?}");
            had[source] += 1;
            for (had, share) in had.iter().zip(&shares) {
                worst = worst.max((*had as f64 - share * (sequence + 1) as f64).abs());
            }
        }
        worst
    }

    #[test]
    fn every_prefix_honours_the_weights_within_one_sequence() {
        let cases: [&[f64]; 9] = [
            &[1.0],
            &[1.0, 1.0],
            &[3.0, 1.0],
            &[0.5, 0.3, 0.2],
            &[0.001, 0.2, 0.2, 0.6],
            &[1.0, 1e-4],
            &[std::f64::consts::PI, 1.0, std::f64::consts::E],
            &[1.0; 37],
            &[8.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        ];
        for weights in cases {
            let worst = worst(weights, 150_000);
            assert!(worst < 1.0 + 1e-9, "{weights:?}: {worst}");
            let proportions = Proportions::new(weights).expect("weights");
            let sum: f64 = weights.iter().sum();
            for (share, weight) in proportions.shares().zip(weights) {
                assert!((share - weight / sum).abs() < 1e-4, "{weights:?}");
            }
        }
        let of = |weights: &[f64]| Proportions::new(weights).expect("weights");
        assert_eq!(of(&[0.75, 0.25]), of(&[3.0, 1.0]));
        assert_eq!(of(&[3.0, 1.0]).slots.len(), 4);
    }

    #[test]
    fn weights_that_are_none_are_refused() {
        for weights in [&[][..], &[0.0], &[1.0, -1.0], &[f64::NAN], &[f64::INFINITY]] {
            assert_eq!(Proportions::new(weights).expect_err("no weights").exit_code(), 2);
        }
        Proportions::new(&[f64::MAX, f64::MAX, f64::MIN_POSITIVE]).expect("large and small ones are weights");
    }
}
