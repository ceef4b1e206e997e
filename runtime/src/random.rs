//! Counter-based random numbers: a value is a function of seed, purpose, step and index, and of nothing else.
//!
//! Philox4x32 with ten rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3). There is
//! no state to save, to share or to lose: any thread may ask for any value in any order, and a resumed run
//! draws what the uninterrupted one would have. The sampler draws from here, and so does the trainer.

/// The multipliers of the two halves of a round.
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// What the key grows by from round to round: the golden ratio and the square root of three, less one.
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Blocks that one step of a stream can tell apart; a block holds four words.
const BLOCKS: u64 = 1 << 56;

/// What random numbers are drawn for; two purposes never share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Purpose {
    /// A model's first weights.
    Init = 1,
    /// Which windows of the text a training step reads.
    Batch = 2,
    /// Which windows an evaluation reads.
    Evaluation = 3,
    /// What dropout zeroes.
    Dropout = 4,
    /// Which token comes next.
    Sample = 5,
    /// In which order a corpus is read.
    Order = 6,
}

/// One seed's numbers for one purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
    purpose: Purpose,
}

impl Stream {
    /// The numbers of `seed` for `purpose`.
    pub fn new(seed: u64, purpose: Purpose) -> Stream {
        Stream { key: [seed as u32, (seed >> 32) as u32], purpose }
    }

    /// What [`Stream::new`] was given.
    pub fn seed(&self) -> u64 {
        u64::from(self.key[1]) << 32 | u64::from(self.key[0])
    }

    /// Word `index` of `step`: word `index % 4` of block `index / 4`.
    pub fn draw(&self, step: u64, index: u64) -> u32 {
        self.draws(step, index / 4)[(index % 4) as usize]
    }

    /// The four words of one block of `step`. Blocks repeat after 2^56, which no index of ours comes near.
    pub fn draws(&self, step: u64, block: u64) -> [u32; 4] {
        let place = (block % BLOCKS) | (u64::from(self.purpose as u8) << 56);
        philox([place as u32, (place >> 32) as u32, step as u32, (step >> 32) as u32], self.key)
    }

    /// Word `index` of `step` as a number in `[0, 1)`.
    pub fn uniform(&self, step: u64, index: u64) -> f32 {
        uniform(self.draw(step, index))
    }
}

/// A word as a number in `[0, 1)`: its upper 24 bits, which is what an `f32` holds exactly.
pub fn uniform(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / (1 << 24) as f32)
}

/// Two words as a number in `[0, 1)`: the upper 53 bits of both, which is what an `f64` holds exactly.
pub fn uniform_f64(words: [u32; 2]) -> f64 {
    let bits = u64::from(words[0]) << 32 | u64::from(words[1]);
    (bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// Ten rounds of Philox4x32: a bijection of the counter for every key.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let left = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let right = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (right >> 32) as u32 ^ counter[1] ^ key[0],
            right as u32,
            (left >> 32) as u32 ^ counter[3] ^ key[1],
            left as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// The known answers for `philox4x32 10` that Random123 publishes (`tests/kat_vectors`).
    #[test]
    fn philox_gives_the_published_answers() {
        let answers = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in answers {
            assert_eq!(philox(counter, key), expected, "counter {counter:x?} key {key:x?}");
        }
    }

    #[test]
    fn every_argument_changes_the_numbers() {
        let purposes =
            [Purpose::Init, Purpose::Batch, Purpose::Evaluation, Purpose::Dropout, Purpose::Sample];
        let far = [0, 1, 2, 1 << 31, 1 << 32, 1 << 55];
        let mut seen = HashSet::new();
        for seed in far {
            for purpose in purposes {
                for step in far {
                    for block in far {
                        assert!(seen.insert(Stream::new(seed, purpose).draws(step, block)));
                    }
                }
            }
        }
    }

    #[test]
    fn a_word_is_its_place_in_its_block() {
        let stream = Stream::new(1337, Purpose::Dropout);
        for index in 0..33 {
            assert_eq!(stream.draw(7, index), stream.draws(7, index / 4)[index as usize % 4]);
        }
    }

    #[test]
    fn uniform_numbers_fill_the_unit_interval_and_never_reach_one() {
        assert_eq!(uniform(0), 0.0);
        assert!(uniform(u32::MAX) < 1.0 && uniform(u32::MAX) > 0.999_999);
        assert_eq!(uniform_f64([0, 0]), 0.0);
        assert!(uniform_f64([u32::MAX; 2]) < 1.0 && uniform_f64([u32::MAX; 2]) > 0.999_999);
        let stream = Stream::new(3, Purpose::Init);
        let count = 100_000;
        let values = || (0..count).map(|index| f64::from(stream.uniform(0, index)));
        let mean = values().sum::<f64>() / count as f64;
        let variance = values().map(|value| (value - mean).powi(2)).sum::<f64>() / count as f64;
        // Five standard errors of each: 1/sqrt(12 n) and 1/sqrt(180 n).
        assert!((mean - 0.5).abs() <= 5.0 / (12.0 * count as f64).sqrt(), "mean {mean}");
        assert!((variance - 1.0 / 12.0).abs() <= 5.0 / (180.0 * count as f64).sqrt(), "variance {variance}");
    }
}
