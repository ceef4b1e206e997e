//! What the suites share; each suite stands in `tests/tests`.
//!
//! - [`mod@reference`]: the model in plain float64, the judge of every other machine
//! - [`compare`]: comparers that cannot be fooled by NaN, infinities or missing values
//! - [`models`]: small configs, random weights, model directories
//! - [`emulator`]: commands on an emulated CUDA device
//! - [`fixtures`]: what PyTorch computed, from `tests/fixtures`
//! - [`folder`]: directories that vanish with the test
//! - [`gguf`]: a file for llama.cpp, read back
//! - [`peers`]: other programs that read and write the same files
//! - [`programs`]: the two built commands, run as a user runs them
//! - [`training`]: runs short enough for a test, and their directories byte for byte

pub mod compare;
pub mod emulator;
pub mod fixtures;
pub mod folder;
pub mod gguf;
pub mod models;
pub mod peers;
pub mod programs;
pub mod reference;
pub mod training;

/// Random numbers for tests, apart from every generator under test (Steele et al. 2014, SplitMix64).
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// The sequence of one seed.
    pub fn new(seed: u64) -> Chance {
        Chance(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    /// One of the items.
    pub fn of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// Uniform in `[-1, 1)`.
    pub fn signed(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// Token ids below `vocabulary`.
    pub fn ids(&mut self, count: usize, vocabulary: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(vocabulary) as u32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_is_spread_and_repeats_only_with_its_seed() {
        let mut chance = Chance::new(1);
        let mean = (0..10_000).map(|_| chance.signed()).sum::<f64>() / 10_000.0;
        assert!(mean.abs() < 0.03, "{mean}");
        assert_ne!(chance.ids(20, 1000), chance.ids(20, 1000));
        assert_eq!(Chance::new(2).ids(20, 7), Chance::new(2).ids(20, 7));
        assert_ne!(Chance::new(2).bits(), Chance::new(3).bits());
    }
}
