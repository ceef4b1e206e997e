//! Dropout: each value is zeroed with probability `p`, the others are divided by `1 - p`
//! (Srivastava et al. 2014, section 10, inverted).
//!
//! Forward `y = x m`, backward `d_x = d_y m`, with `m` either 0 or `1 / (1 - p)`. The mask is never stored: it
//! is a function of seed, step, place in the model and place in the batch, drawn again for the backward pass.

pub mod cuda;

use runtime::random::{Purpose, Stream};

/// Blocks of four values one site of one step can tell apart, as a power of two.
const SITE_BITS: u32 = 40;

/// Which values are dropped at one place of one step; `None` drops nothing.
pub type Mask = Option<Drop>;

/// The mask of the rows after the first `rows`.
pub fn after(mask: Mask, rows: usize) -> Mask {
    mask.map(|mask| {
        let first_row = mask.draws.first_row + rows as u64;
        Drop { draws: Draws { first_row, ..mask.draws }, ..mask }
    })
}

/// The random words of one site for the rows of one shard.
#[derive(Clone, Copy, Debug)]
pub struct Draws {
    stream: Stream,
    step: u64,
    /// The site's first block.
    site: u64,
    /// Number of the shard's first row in the whole batch.
    first_row: u64,
    /// Width of a row.
    width: usize,
}

/// The mask of one site for the rows of one shard.
#[derive(Clone, Copy, Debug)]
pub struct Drop {
    draws: Draws,
    /// A word below this is dropped.
    threshold: u32,
    scale: f32,
}

/// Everything that decides the noise of one step; [`Noise::at`] gives each site's mask.
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

    /// The same noise with another probability of dropping.
    pub fn with(self, probability: f32) -> Noise {
        Noise { probability, ..self }
    }

    /// The words of one site for rows of `width` counted from `first_row` of the whole batch.
    pub fn draws(&self, site: usize, first_row: usize, width: usize) -> Draws {
        Draws {
            stream: self.stream,
            step: self.step,
            site: (site as u64) << SITE_BITS,
            first_row: first_row as u64,
            width,
        }
    }

    /// The mask of one site for such rows.
    pub fn at(&self, site: usize, first_row: usize, width: usize) -> Mask {
        (self.probability > 0.0).then(|| Drop {
            draws: self.draws(site, first_row, width),
            threshold: (f64::from(self.probability) * 2f64.powi(32)) as u32,
            scale: 1.0 / (1.0 - self.probability),
        })
    }
}

impl Draws {
    /// Calls `apply(column, word)` for the first `count` columns of one of the shard's rows.
    #[inline(always)]
    pub fn row(&self, row: usize, count: usize, mut apply: impl FnMut(usize, u32)) {
        let blocks = self.width.div_ceil(4) as u64;
        let first = self.site + (self.first_row + row as u64) * blocks;
        for (block, column) in (first..).zip((0..count).step_by(4)) {
            let words = self.stream.draws(self.step, block);
            for (lane, word) in words.into_iter().enumerate().take(count - column) {
                apply(column + lane, word);
            }
        }
    }
}

impl Drop {
    /// Calls `apply(column, factor)` for the first `count` columns of one of the shard's rows.
    #[inline(always)]
    pub fn row(&self, row: usize, count: usize, mut apply: impl FnMut(usize, f32)) {
        self.draws.row(row, count, |column, word| {
            apply(column, if word < self.threshold { 0.0 } else { self.scale });
        });
    }

    /// Calls `apply(index, factor)` for every value of `rows` rows.
    #[inline(always)]
    pub fn rows(&self, rows: usize, mut apply: impl FnMut(usize, f32)) {
        let width = self.draws.width;
        for row in 0..rows {
            self.row(row, width, |column, factor| apply(row * width + column, factor));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(noise: Noise, site: usize, first_row: usize, rows: usize, width: usize) -> Vec<f32> {
        let mut factors = vec![f32::NAN; rows * width];
        let mask = noise.at(site, first_row, width).expect("the probability is not zero");
        mask.rows(rows, |index, factor| factors[index] = factor);
        factors
    }

    #[test]
    fn the_mean_stays_and_the_share_is_the_probability() {
        let factors = factors(Noise::new(1, 1, 0.2), 3, 0, 200, 1001);
        let count = factors.len() as f64;
        let dropped = factors.iter().filter(|factor| **factor == 0.0).count() as f64 / count;
        let mean = factors.iter().map(|factor| f64::from(*factor)).sum::<f64>() / count;
        // Five standard deviations of a Bernoulli mean.
        let bound = 5.0 * (0.2 * 0.8 / count).sqrt();
        assert!((dropped - 0.2).abs() < bound, "{dropped}");
        assert!((mean - 1.0).abs() < bound / 0.8, "{mean}");
    }

    #[test]
    fn shards_see_their_part_of_one_mask_at_any_width() {
        for width in 1..=33 {
            let noise = Noise::new(9, 4, 0.5);
            assert_eq!(factors(noise, 2, 0, 6, width)[2 * width..], factors(noise, 2, 2, 4, width));
            let mut later = vec![];
            let mask = after(noise.at(2, 1, width), 1).expect("the probability is not zero");
            mask.rows(4, |_, factor| later.push(factor));
            assert_eq!(later, factors(noise, 2, 2, 4, width));
        }
    }

    #[test]
    fn a_short_row_is_the_beginning_of_a_long_one() {
        let mask = Noise::new(2, 3, 0.5).at(1, 0, 13).expect("the probability is not zero");
        let (mut long, mut short) = (vec![], vec![]);
        mask.row(4, 13, |_, factor| long.push(factor));
        mask.row(4, 6, |_, factor| short.push(factor));
        assert_eq!(long[..6], short);
    }

    #[test]
    fn sites_steps_and_seeds_differ() {
        let draw = |seed, step, site| factors(Noise::new(seed, step, 0.5), site, 0, 16, 16);
        let base = draw(1, 1, 1);
        assert_eq!(base, draw(1, 1, 1));
        for other in [draw(2, 1, 1), draw(1, 2, 1), draw(1, 1, 2)] {
            assert_ne!(base, other);
        }
    }
}
