//! RMSNorm of the queries and of the keys within fused rows: each head by itself (Qwen3), or all heads of a side
//! together (OLMoE).
//!
//! Forward, over each stretch `x` of `n` values that is normalised together, with `r = 1 / sqrt(<x^2> + eps)` and the
//! side's gain `g`: `y = x r g`; values pass.
//!
//! Backward: that of [`super::norm`] over each stretch, `d_x = r (e - x r <e x r>)` with `e = d_y g`, and
//! `d_g += d_y x r`, rows in order; the gradient of values passes.

pub mod cuda;

use super::attention::Heads;
use super::norm;
use crate::backend::{Rows, Write};
use formats::config::{NormKind, QueryKeyNorm};
use runtime::simd::Simd;
use std::ops::Range;

/// What is normalised together, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stretches {
    /// The heads of a row.
    pub heads: Heads,
    /// Whether all heads of a side are one stretch.
    pub whole: bool,
    /// Added to the mean square.
    pub eps: f32,
}

impl Stretches {
    /// Stretches of the kind a config names.
    pub fn new(heads: Heads, kind: QueryKeyNorm, eps: f32) -> Stretches {
        Stretches { heads, whole: kind == QueryKeyNorm::Whole, eps }
    }

    /// Values the forward pass keeps: two a stretch, as [`norm`] has them.
    pub fn kept(&self) -> usize {
        let [queries, keys] = self.sides().map(|side| self.rows_of(&side).rows);
        2 * (queries + keys) * self.heads.rows()
    }

    /// Where queries and keys are in a row.
    fn sides(&self) -> [Range<usize>; 2] {
        let queries = self.heads.heads * self.heads.size;
        [0..queries, queries..queries + self.heads.kv_heads * self.heads.size]
    }

    /// One side of one row as rows of a norm.
    fn rows_of(&self, side: &Range<usize>) -> Rows {
        let width = if self.whole { side.len() } else { self.heads.size };
        Rows { rows: side.len() / width, width, eps: self.eps, kind: NormKind::RmsNorm }
    }
}

/// Every row of `from` into `to`; `kept` keeps what the backward pass needs.
pub fn forward(
    simd: &Simd,
    s: &Stretches,
    gains: [&[f32]; 2],
    from: &[f32],
    to: &mut [f32],
    kept: &mut [f32],
) {
    let row = s.heads.row();
    let each = s.kept() / s.heads.rows();
    let rows = from.chunks_exact(row).zip(to.chunks_exact_mut(row)).zip(kept.chunks_exact_mut(each));
    for ((from, to), mut kept) in rows {
        for (side, gain) in s.sides().into_iter().zip(gains) {
            let shape = s.rows_of(&side);
            let (moments, rest) = kept.split_at_mut(2 * shape.rows);
            norm::forward(simd, &shape, &from[side.clone()], gain, None, &mut to[side], moments);
            kept = rest;
        }
        let values = s.sides()[1].end..;
        to[values.clone()].copy_from_slice(&from[values]);
    }
}

/// The gradients; those of the gains are added to what is there, the rows' are set.
pub fn backward(
    simd: &Simd,
    s: &Stretches,
    gains: [&[f32]; 2],
    x: &[f32],
    kept: &[f32],
    d_out: &[f32],
    d_x: &mut [f32],
    mut d_gains: [&mut [f32]; 2],
) {
    let row = s.heads.row();
    let each = s.kept() / s.heads.rows();
    let rows = x.chunks_exact(row).zip(kept.chunks_exact(each));
    for ((x, mut kept), (d_out, d_x)) in rows.zip(d_out.chunks_exact(row).zip(d_x.chunks_exact_mut(row))) {
        for ((side, gain), d_gain) in s.sides().into_iter().zip(gains).zip(&mut d_gains) {
            let shape = s.rows_of(&side);
            let (moments, rest) = kept.split_at(2 * shape.rows);
            let (x, d_out, d_x) = (&x[side.clone()], &d_out[side.clone()], &mut d_x[side]);
            norm::backward(simd, &shape, x, gain, moments, d_out, (d_x, Write::Set), d_gain, None);
            kept = rest;
        }
        let values = s.sides()[1].end..;
        d_x[values.clone()].copy_from_slice(&d_out[values]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{gradient, values};

    #[test]
    fn stretches_have_the_mean_square_one_times_their_gain() {
        for whole in [false, true] {
            let heads = Heads { sequences: 1, block: 2, heads: 4, kv_heads: 2, size: 6, scale: 1.0 };
            let s = Stretches { heads, whole, eps: 1e-5 };
            let lens = if whole { [24, 12] } else { [6, 6] };
            let (x, gains) = (values(2 * 48, 1), lens.map(|len| values(len, 2)));
            let (mut y, mut kept) = (vec![f32::NAN; x.len()], vec![f32::NAN; s.kept()]);
            forward(Simd::best(), &s, [&gains[0], &gains[1]], &x, &mut y, &mut kept);
            assert!(kept.iter().all(|value| value.is_finite()));
            for (x, y) in x.chunks(48).zip(y.chunks(48)) {
                assert_eq!(x[36..], y[36..], "values pass");
                for (side, (range, len)) in [(0..24, lens[0]), (24..36, lens[1])].into_iter().enumerate() {
                    for (x, y) in x[range.clone()].chunks(len).zip(y[range].chunks(len)) {
                        let square = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / len as f64;
                        for ((x, y), gain) in x.iter().zip(y).zip(&gains[side]) {
                            let exact = f64::from(*x) / (square + 1e-5).sqrt() * f64::from(*gain);
                            assert!((f64::from(*y) - exact).abs() <= 1e-6, "{y} is not {exact}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        for simd in Simd::available() {
            for (whole, [heads, kv_heads, size]) in [
                (false, [2, 1, 6]),
                (true, [2, 1, 6]),
                (false, [3, 3, 17]),
                (true, [4, 2, 9]),
                (true, [1, 1, 1]),
            ] {
                let heads = Heads { sequences: 1, block: 2, heads, kv_heads, size, scale: 1.0 };
                let s = Stretches { heads, whole, eps: 1e-5 };
                let [query, key] =
                    s.sides().map(|side| values(s.rows_of(&side).width, 3 + side.start as u64));
                let (x, d_out) = (values(2 * heads.row(), 1), values(2 * heads.row(), 2));
                let run = |x: &[f32], query: &[f32], key: &[f32]| {
                    let (mut y, mut kept) = (vec![f32::NAN; x.len()], vec![f32::NAN; s.kept()]);
                    forward(simd, &s, [query, key], x, &mut y, &mut kept);
                    (y, kept)
                };
                let (_, kept) = run(&x, &query, &key);
                let mut d_x = vec![f32::NAN; x.len()];
                let (mut d_query, mut d_key) = (vec![0.0; query.len()], vec![0.0; key.len()]);
                let d_gains = [&mut d_query[..], &mut d_key[..]];
                backward(simd, &s, [&query, &key], &x, &kept, &d_out, &mut d_x, d_gains);
                gradient("x", &x, &d_x, &d_out, |x| run(x, &query, &key).0);
                gradient("query gain", &query, &d_query, &d_out, |query| run(&x, query, &key).0);
                gradient("key gain", &key, &d_key, &d_out, |key| run(&x, &query, key).0);
            }
        }
    }
}
