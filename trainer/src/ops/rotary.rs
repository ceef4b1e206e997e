//! Rotary positions (Su et al. 2021, eq. 34), on the queries and keys within fused rows.
//!
//! Forward, with `a = p base^(-2i / size)` for place `p` and pair `i < size / 2` of a head:
//! `y_i = x_i cos a - x_(i + size/2) sin a`, `y_(i + size/2) = x_(i + size/2) cos a + x_i sin a`; values pass.
//!
//! Backward: the rotation by `-a`.

pub mod cuda;

use super::attention::Heads;
use formats::Config;
use runtime::rotary;
use runtime::simd::routines::Unit;
use runtime::simd::{Simd, Work};

/// `[block, head size]`: the cosines of a place's pairs, then their sines; empty without rotary positions.
pub fn table(config: &Config, block: usize) -> Vec<f32> {
    let frequencies = rotary::frequencies(config);
    let mut table = vec![0.0; block * 2 * frequencies.len()];
    if !frequencies.is_empty() {
        rotary::angles(&frequencies, 0, &mut table);
    }
    table
}

/// Rotates every row of `from` into `to`; `backwards` turns the other way.
pub fn rotate(simd: &Simd, s: &Heads, table: &[f32], backwards: bool, from: &[f32], to: &mut [f32]) {
    simd.run(Rotate { s, table, sign: if backwards { -1.0 } else { 1.0 }, from, to });
}

struct Rotate<'a> {
    s: &'a Heads,
    table: &'a [f32],
    sign: f32,
    from: &'a [f32],
    to: &'a mut [f32],
}

impl Work for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, unit: Unit) {
        let Rotate { s, table, sign, from, to } = self;
        let half = s.size / 2;
        let rotated = (s.heads + s.kv_heads) * s.size;
        let rows = from.chunks_exact(s.row()).zip(to.chunks_exact_mut(s.row()));
        for (row, (from, to)) in rows.enumerate() {
            let (cos, sin) = table[row % s.block * s.size..][..s.size].split_at(half);
            let heads = from[..rotated].chunks_exact(s.size).zip(to[..rotated].chunks_exact_mut(s.size));
            for (from, to) in heads {
                let (from_low, from_high) = from.split_at(half);
                let (to_low, to_high) = to.split_at_mut(half);
                for pair in 0..half {
                    let turn = sign * sin[pair];
                    to_low[pair] = unit.multiply_add(from_low[pair], cos[pair], -(from_high[pair] * turn));
                    to_high[pair] = unit.multiply_add(from_high[pair], cos[pair], from_low[pair] * turn);
                }
            }
            to[rotated..].copy_from_slice(&from[rotated..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{gradient, values};

    fn turns(block: usize, head_size: usize, rotary_base: f32) -> Vec<f32> {
        let options = crate::presets::find("moe-nano").expect("a preset");
        let config = options.model(1).expect("a config");
        table(&Config { head_size, rotary_base, ..config }, block)
    }

    fn shape(block: usize, heads: usize, kv_heads: usize, size: usize) -> Heads {
        Heads { sequences: 2, block, heads, kv_heads, size, scale: 1.0 }
    }

    #[test]
    fn each_pair_is_turned_by_its_angle() {
        let s = shape(3, 2, 1, 4);
        let x = values(6 * s.row(), 1);
        let mut y = vec![f32::NAN; x.len()];
        rotate(Simd::best(), &s, &turns(3, 4, 10_000.0), false, &x, &mut y);
        for row in 0..6 {
            for head in 0..4 {
                for pair in 0..2 {
                    let at = row * s.row() + head * 4 + pair;
                    let angle = (row % 3) as f64 * 10_000f64.powf(-(pair as f64) / 2.0);
                    // The last head holds values, which pass.
                    let (sin, cos) = if head < 3 { angle.sin_cos() } else { (0.0, 1.0) };
                    let (low, high) = (f64::from(x[at]), f64::from(x[at + 2]));
                    assert!((f64::from(y[at]) - (low * cos - high * sin)).abs() < 1e-6);
                    assert!((f64::from(y[at + 2]) - (high * cos + low * sin)).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        for simd in Simd::available() {
            for s in [shape(1, 1, 1, 2), shape(3, 2, 1, 6), shape(2, 2, 2, 34)] {
                let table = turns(s.block, s.size, 100.0);
                let (x, d_out) = (values(s.rows() * s.row(), 1), values(s.rows() * s.row(), 2));
                let mut d_x = vec![f32::NAN; x.len()];
                rotate(simd, &s, &table, true, &d_out, &mut d_x);
                gradient("x", &x, &d_x, &d_out, |x| {
                    let mut y = vec![f32::NAN; x.len()];
                    rotate(simd, &s, &table, false, x, &mut y);
                    y
                });
            }
        }
    }
}
