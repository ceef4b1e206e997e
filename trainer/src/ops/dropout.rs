//! Dropout: each value is zeroed with probability `p`, the others are divided by `1 - p`
//! (Srivastava et al. 2014, section 10, inverted).
//!
//! Forward `y = x m`, backward `d_x = d_y m`, with `m` either 0 or `1 / (1 - p)`. The mask is never stored: it
//! is a function of seed, step, place in the model and place in the batch, drawn again for the backward pass.

use runtime::random::{Purpose, Stream};

/// Elements one site of one step can tell apart.
const SITE_SHIFT: u32 = 40;

/// Which values are dropped at one place of one step; `None` drops nothing.
pub type Mask = Option<Drop>;

/// The mask of one site.
#[derive(Clone, Copy, Debug)]
pub struct Drop {
    stream: Stream,
    step: u64,
    /// First block of this site and shard.
    first_block: u64,
    /// A word below this is dropped.
    threshold: u32,
    scale: f32,
}

/// Everything that decides the masks of one step; [`Noise::at`] gives each site's.
#[derive(Clone, Copy, Debug)]
pub struct Noise {
    stream: Stream,
    step: u64,
    probability: f32,
}

impl Noise {
    /// The masks of `step` under `seed`.
    pub fn new(seed: u64, step: u64, probability: f32) -> Noise {
        Noise { stream: Stream::new(seed, Purpose::Dropout), step, probability }
    }

    /// The mask of one site, for elements counted from `first_element` of the whole batch.
    pub fn at(&self, site: usize, first_element: u64) -> Mask {
        (self.probability > 0.0).then(|| Drop {
            stream: self.stream,
            step: self.step,
            first_block: ((site as u64) << SITE_SHIFT) + first_element / 4,
            threshold: (f64::from(self.probability) * 2f64.powi(32)) as u32,
            scale: 1.0 / (1.0 - self.probability),
        })
    }
}

impl Drop {
    /// Calls `apply(index, factor)` for elements `from .. from + count`; `from` is a multiple of four.
    #[inline(always)]
    pub fn factors(&self, from: usize, count: usize, mut apply: impl FnMut(usize, f32)) {
        for block in 0..count.div_ceil(4) {
            let words = self.stream.draws(self.step, self.first_block + (from / 4 + block) as u64);
            for (lane, word) in words.into_iter().enumerate().take(count - 4 * block) {
                apply(4 * block + lane, if word < self.threshold { 0.0 } else { self.scale });
            }
        }
    }
}

/// `out = x m`, or a copy without a mask.
pub fn apply(mask: Mask, x: &[f32], out: &mut [f32]) {
    match mask {
        None => out.copy_from_slice(x),
        Some(mask) => mask.factors(0, x.len(), |index, factor| out[index] = x[index] * factor),
    }
}

/// `out += x m`.
pub fn apply_accumulate(mask: Mask, x: &[f32], out: &mut [f32]) {
    match mask {
        None => out.iter_mut().zip(x).for_each(|(out, x)| *out += x),
        Some(mask) => mask.factors(0, x.len(), |index, factor| out[index] += x[index] * factor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_stays_and_the_share_is_the_probability() {
        let x = vec![1.0; 200_000];
        let mut out = vec![0.0; x.len()];
        apply(Noise::new(1, 1, 0.2).at(3, 0), &x, &mut out);
        let dropped = out.iter().filter(|value| **value == 0.0).count() as f64 / x.len() as f64;
        let mean = out.iter().map(|value| f64::from(*value)).sum::<f64>() / x.len() as f64;
        // Five standard deviations of a Bernoulli mean.
        let bound = 5.0 * (0.2 * 0.8 / x.len() as f64).sqrt();
        assert!((dropped - 0.2).abs() < bound, "{dropped}");
        assert!((mean - 1.0).abs() < bound / 0.8, "{mean}");
    }

    #[test]
    fn shards_see_their_part_of_one_mask() {
        let x = vec![1.0; 64];
        let (mut whole, mut part) = (vec![0.0; 64], vec![0.0; 32]);
        let noise = Noise::new(9, 4, 0.5);
        apply(noise.at(2, 0), &x, &mut whole);
        apply(noise.at(2, 32), &x[..32], &mut part);
        assert_eq!(whole[32..], part);
    }

    #[test]
    fn sites_steps_and_seeds_differ() {
        let x = vec![1.0; 256];
        let draw = |seed, step, site| {
            let mut out = vec![0.0; 256];
            apply(Noise::new(seed, step, 0.5).at(site, 0), &x, &mut out);
            out
        };
        let base = draw(1, 1, 1);
        assert_eq!(base, draw(1, 1, 1));
        for other in [draw(2, 1, 1), draw(1, 2, 1), draw(1, 1, 2)] {
            assert_ne!(base, other);
        }
    }
}
