//! PyTorch's CPU generator: MT19937 (Matsumoto and Nishimura 1998) and the ways `uniform_`, `normal_` and `randint`
//! spend its draws. The one generator of ours with a state; it exists so that a log made by PyTorch can be replayed.

use serde::{Deserialize, Serialize};
use std::f32::consts::PI;

/// Words of state.
const WORDS: usize = 624;
/// Distance of the word that is mixed in.
const MIDDLE: usize = 397;
/// `normal_` works on blocks of this many values, and value by value on tensors smaller than one.
const BLOCK: usize = 16;
/// From this range on `randint` takes 64 bits for each draw.
const WIDE_RANGE: u64 = 1 << 28;

/// The generator behind `torch.manual_seed`.
#[derive(Clone, Debug, PartialEq)]
pub struct Torch {
    words: Box<[u32; WORDS]>,
    next: usize,
    /// The second value of the last pair that a small `normal_` made and has not yet given out.
    spare: Option<f64>,
}

impl Torch {
    /// The state that `torch.manual_seed(seed)` sets; the low 32 bits of the seed count.
    pub fn new(seed: u64) -> Torch {
        let mut words = Box::new([0u32; WORDS]);
        words[0] = seed as u32;
        for index in 1..WORDS {
            let before = words[index - 1];
            words[index] = 1_812_433_253u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(index as u32);
        }
        Torch { words, next: WORDS, spare: None }
    }

    /// The next 32 bits.
    pub fn draw(&mut self) -> u32 {
        if self.next == WORDS {
            self.twist();
        }
        let mut word = self.words[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn twist(&mut self) {
        for index in 0..WORDS {
            let joined = (self.words[index] & 0x8000_0000) | (self.words[(index + 1) % WORDS] & 0x7fff_ffff);
            let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.words[index] = self.words[(index + MIDDLE) % WORDS] ^ (joined >> 1) ^ odd;
        }
        self.next = 0;
    }

    fn draw_wide(&mut self) -> u64 {
        let high = u64::from(self.draw());
        high << 32 | u64::from(self.draw())
    }

    /// `torch.randint(range, ..)`, one value. `range` is not zero.
    pub fn below(&mut self, range: u64) -> u64 {
        if range >= WIDE_RANGE { self.draw_wide() % range } else { u64::from(self.draw()) % range }
    }

    /// `values.uniform_(-bound, bound)`.
    pub fn uniform(&mut self, values: &mut [f32], bound: f32) {
        for value in values {
            // PyTorch's build fuses the multiplication with the addition, so this must.
            *value = self.fraction().mul_add(bound + bound, -bound);
        }
    }

    /// `values.normal_(0, std)`.
    pub fn normal(&mut self, values: &mut [f32], std: f32) {
        if values.len() < BLOCK {
            for value in values {
                *value = (self.normal_wide() * f64::from(std)) as f32;
            }
            return;
        }
        for value in values.iter_mut() {
            *value = self.fraction();
        }
        let (blocks, rest) = values.as_chunks_mut::<BLOCK>();
        for block in blocks {
            box_muller(block, std);
        }
        if !rest.is_empty() {
            // The last block is drawn anew, over values that the block before it may have finished.
            let start = values.len() - BLOCK;
            if let Some(block) = values[start..].first_chunk_mut::<BLOCK>() {
                for value in block.iter_mut() {
                    *value = self.fraction();
                }
                box_muller(block, std);
            }
        }
    }

    /// Uniform in `[0, 1)`, 24 bits.
    fn fraction(&mut self) -> f32 {
        (self.draw() & 0x00ff_ffff) as f32 * (1.0 / (1u32 << 24) as f32)
    }

    /// Standard normal from pairs of 53-bit fractions.
    fn normal_wide(&mut self) -> f64 {
        if let Some(value) = self.spare.take() {
            return value;
        }
        let mut fraction = || (self.draw_wide() & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64;
        let angle = 2.0 * std::f64::consts::PI * fraction();
        let radius = (-2.0 * (-fraction()).ln_1p()).sqrt();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }

    /// The state as plain data.
    pub fn state(&self) -> TorchState {
        TorchState { words: self.words.to_vec(), next: self.next, spare_bits: self.spare.map(f64::to_bits) }
    }

    /// The generator that gave this state; none if it is not one.
    pub fn from_state(state: &TorchState) -> Option<Torch> {
        let words: [u32; WORDS] = state.words.as_slice().try_into().ok()?;
        (state.next <= WORDS).then(|| Torch {
            words: Box::new(words),
            next: state.next,
            spare: state.spare_bits.map(f64::from_bits),
        })
    }
}

/// Turns 16 uniform values into 16 normal ones, each of the first eight with its partner in the second eight.
/// PyTorch computes in f32 with vector routines of its own: equal to these within a rounding.
fn box_muller(block: &mut [f32; BLOCK], std: f32) {
    let (first, second) = block.split_at_mut(BLOCK / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * f64::from(1.0 - *a).ln() as f32).sqrt();
        let angle = f64::from(2.0 * PI * *b);
        *a = radius * angle.cos() as f32 * std;
        *b = radius * angle.sin() as f32 * std;
    }
}

/// What [`Torch`] remembers, as a checkpoint holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TorchState {
    words: Vec<u32>,
    next: usize,
    /// As bits: no decimal in between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spare_bits: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    // Every expected value below was printed by PyTorch 2.15.0 on a CPU.

    #[track_caller]
    fn close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (index, (x, y)) in found.iter().zip(expected).enumerate() {
            assert!((x - y).abs() <= 4.0 * f32::EPSILON * y.abs().max(1e-3), "{index}: {x} for {y}");
        }
    }

    #[test]
    fn randint_gives_torchs_integers() {
        let mut torch = Torch::new(1337);
        let offsets = [80533, 243841, 937616, 564622, 976157, 588787, 201485, 348920];
        assert_eq!(offsets.map(|_| torch.below(1_003_842)), offsets);
        // Either side of the range where PyTorch begins to take 64 bits.
        let mut torch = Torch::new(5);
        assert_eq!([0; 3].map(|_| torch.below((1 << 28) - 1)), [148147046, 236996814, 250105852]);
        let mut torch = Torch::new(5);
        assert_eq!([0; 3].map(|_| torch.below(1 << 28)), [236996814, 80864957, 220060790]);
        let mut torch = Torch::new(5);
        assert_eq!([0; 3].map(|_| torch.below(1 << 33)), [4531964110, 7865493181, 1562238070]);
    }

    #[test]
    fn uniform_gives_torchs_bits() {
        let mut values = [0.0; 5];
        Torch::new(1337).uniform(&mut values, 0.125);
        assert_eq!(values, [-0.10542072, -0.0010958165, 0.030774534, -0.019390464, -0.07490291]);
        // A bound that is no power of two shows whether the product is rounded before the sum.
        let mut values = [0.0; 6];
        Torch::new(3).uniform(&mut values, 0.1);
        assert_eq!(values, UNIFORM_TENTH);
    }

    const UNIFORM_TENTH: [f32; 6] =
        [-0.0991473, -0.07888613, -0.042831507, -0.09460904, -0.0056771277, -0.087976746];

    #[test]
    fn normal_of_whole_blocks_gives_torchs_values() {
        let mut values = [0.0; 16];
        Torch::new(1337).normal(&mut values, 1.0);
        close(
            &values,
            &[
                0.18077159,
                -0.069988094,
                -0.3596235,
                -0.91520447,
                0.6257653,
                0.025509924,
                0.95451367,
                0.06434853,
                0.36115056,
                1.1678782,
                -1.3498932,
                -0.5101767,
                0.2359577,
                -0.23977837,
                -0.9211147,
                1.543297,
            ],
        );
    }

    #[test]
    fn a_last_block_that_is_not_whole_is_drawn_anew() {
        for (length, next, tail) in [
            (17, [946129, 606639], [0.030472228, 0.050171737, 0.0033236446]),
            (20, [152819, 677433], [0.024109036, 0.003766358, -0.043200713]),
            (31, [551428, 972959], [-0.024114296, 0.011436396, -0.011947089]),
            (33, [940321, 946636], [-0.011947089, -0.013873514, -0.014592465]),
        ] {
            let mut torch = Torch::new(1337);
            let mut values = vec![0.0; length];
            torch.normal(&mut values, 0.02);
            close(&values[length - 3..], &tail);
            close(&values[..1], &[0.0036154317]);
            assert_eq!([0; 2].map(|_| torch.below(1_000_000)), next, "after {length} values");
        }
    }

    #[test]
    fn a_small_normal_goes_value_by_value_and_keeps_its_spare() {
        for (length, next) in
            [(1, [544295, 513753]), (2, [544295, 513753]), (3, [686834, 987090]), (15, [713326, 946129])]
        {
            let mut torch = Torch::new(1337);
            let mut values = vec![0.0; length];
            torch.normal(&mut values, 0.02);
            let expected = [-0.04051984, -0.041310176, -0.024107255];
            close(&values[..length.min(3)], &expected[..length.min(3)]);
            assert_eq!([0; 2].map(|_| torch.below(1_000_000)), next, "after {length} values");
        }
        let mut whole = [0.0; 6];
        Torch::new(2).normal(&mut whole, 1.0);
        let mut halves = [0.0; 6];
        let mut torch = Torch::new(2);
        torch.normal(&mut halves[..3], 1.0);
        torch.normal(&mut halves[3..], 1.0);
        assert_eq!(halves, whole);
    }

    #[test]
    fn the_state_is_the_whole_generator() {
        let mut torch = Torch::new(7);
        torch.normal(&mut [0.0; 3], 1.0);
        for _ in 0..700 {
            torch.draw();
        }
        let text = serde_json::to_string(&torch.state()).expect("plain data");
        let state = serde_json::from_str(&text).expect("what was written");
        let mut copy = Torch::from_state(&state).expect("a state of its own");
        assert_eq!(copy, torch);
        assert_eq!(copy.draw(), torch.draw());
        for broken in
            [TorchState { next: 625, ..torch.state() }, TorchState { words: vec![1; 623], ..torch.state() }]
        {
            assert!(Torch::from_state(&broken).is_none());
        }
    }
}
