//! Attention over windows no longer than a vector: the lecture's block of eight.
//!
//! Scores are held transposed, one vector of queries a key, so that maxima, sums and exponentials run down whole
//! vectors and nothing is reduced across lanes. Equations and signs are those of the room above.

use super::Heads;
use crate::ops::dropout::Mask;
use runtime::simd::routines::{LANES, Unit};
use runtime::simd::{Simd, Work};
use std::ops::Range;

/// Longest window of this room.
pub const MOST: usize = 16;

/// Scratch of one head: its queries and output gradients transposed, its weights and their gradients.
pub fn scratch(s: &Heads) -> usize {
    (2 * s.size + 2 * s.block) * MOST
}

/// See [`super::forward`].
pub fn forward(
    simd: &Simd,
    s: &Heads,
    qkv: &[f32],
    mask: Mask,
    out: &mut [f32],
    log_sums: &mut [f32],
    scratch: &mut [f32],
) {
    if s.block <= 8 {
        simd.run(Forward::<8> { s, qkv, mask, out, log_sums, scratch });
    } else {
        simd.run(Forward::<MOST> { s, qkv, mask, out, log_sums, scratch });
    }
}

/// See [`super::backward`].
#[allow(clippy::too_many_arguments)]
pub fn backward(
    simd: &Simd,
    s: &Heads,
    qkv: &[f32],
    log_sums: &[f32],
    mask: Mask,
    d_out: &[f32],
    d_qkv: &mut [f32],
    scratch: &mut [f32],
) {
    if s.block <= 8 {
        simd.run(Backward::<8> { s, qkv, log_sums, mask, d_out, d_qkv, scratch });
    } else {
        simd.run(Backward::<MOST> { s, qkv, log_sums, mask, d_out, d_qkv, scratch });
    }
}

/// One row of a strided matrix.
#[inline(always)]
fn row(values: &[f32], at: usize, size: usize) -> &[f32] {
    &values[at..at + size]
}

/// `to[c][i] = from[i][c]` for the rows of one head; lanes beyond the block are zero.
#[inline(always)]
fn transpose<const N: usize>(from: &[f32], at: usize, stride: usize, block: usize, to: &mut [[f32; N]]) {
    for lanes in to.iter_mut() {
        *lanes = [0.0; N];
    }
    for query in 0..block {
        let values = row(from, at + query * stride, to.len());
        for (lanes, value) in to.iter_mut().zip(values) {
            lanes[query] = *value;
        }
    }
}

/// `sum_c weights[c] columns[c]`, a vector of queries.
#[inline(always)]
fn combine<const N: usize>(unit: Unit, weights: &[f32], columns: &[[f32; N]]) -> [f32; N] {
    let mut sum = [0.0; N];
    for (weight, column) in weights.iter().zip(columns) {
        for lane in 0..N {
            sum[lane] = unit.multiply_add(*weight, column[lane], sum[lane]);
        }
    }
    sum
}

/// Rows of a strided matrix: row `i` begins at `at + i stride`.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    values: &'a [f32],
    at: usize,
    stride: usize,
}

/// `to = sum_i weight(i) row_i`, for `i` in `range`, in registers a chunk of columns at a time.
#[inline(always)]
fn mix(unit: Unit, range: Range<usize>, weight: impl Fn(usize) -> f32, rows: Matrix<'_>, to: &mut [f32]) {
    let (whole, rest) = to.as_chunks_mut::<LANES>();
    let rest_at = rows.at + whole.len() * LANES;
    for (chunk, to) in whole.iter_mut().enumerate() {
        let mut sum = [0.0; LANES];
        for index in range.clone() {
            let by = weight(index);
            let from = row(rows.values, rows.at + index * rows.stride + chunk * LANES, LANES);
            for lane in 0..LANES {
                sum[lane] = unit.multiply_add(by, from[lane], sum[lane]);
            }
        }
        *to = sum;
    }
    if rest.is_empty() {
        return;
    }
    rest.fill(0.0);
    for index in range {
        let by = weight(index);
        let from = row(rows.values, rest_at + index * rows.stride, rest.len());
        for (to, from) in rest.iter_mut().zip(from) {
            *to = unit.multiply_add(by, *from, *to);
        }
    }
}

/// The scaled scores of every key with the queries that see it; a score no query may see is `-inf`.
#[inline(always)]
fn scores<const N: usize>(
    unit: Unit,
    s: &Heads,
    qkv: &[f32],
    at_key: usize,
    queries: &[[f32; N]],
    to: &mut [[f32; N]],
) {
    for (key, scores) in to.iter_mut().enumerate() {
        let sums = combine(unit, row(qkv, at_key + key * 3 * s.width(), queries.len()), queries);
        for query in 0..N {
            scores[query] = if query < key { f32::NEG_INFINITY } else { sums[query] * s.scale };
        }
    }
}

/// Multiplies weights by their dropout factors.
#[inline(always)]
fn drop<const N: usize>(mask: Mask, first_row: usize, block: usize, weights: &mut [[f32; N]]) {
    let Some(mask) = mask else { return };
    for query in 0..block {
        mask.row(first_row + query, query + 1, |key, factor| weights[key][query] *= factor);
    }
}

struct Forward<'a, const N: usize> {
    s: &'a Heads,
    qkv: &'a [f32],
    mask: Mask,
    out: &'a mut [f32],
    log_sums: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl<const N: usize> Work for Forward<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run(self, unit: Unit) {
        let Forward { s, qkv, mask, out, log_sums, scratch } = self;
        let size = s.size;
        let (width, stride) = (s.width(), 3 * s.width());
        let (chunks, _) = scratch.as_chunks_mut::<N>();
        let (queries, chunks) = chunks.split_at_mut(size);
        let weights = &mut chunks[..s.block];
        for sequence in 0..s.sequences {
            for head in 0..s.heads {
                let (at_query, at_out) = s.place(sequence, head);
                let first_row = (sequence * s.heads + head) * s.block;
                transpose(qkv, at_query, stride, s.block, &mut queries[..size]);
                scores(unit, s, qkv, at_query + width, &queries[..size], weights);
                let mut maximum = [f32::NEG_INFINITY; N];
                for scores in weights.iter() {
                    for lane in 0..N {
                        // A NaN replaces whatever stands there and is never replaced by less.
                        let keep = maximum[lane] >= scores[lane] || maximum[lane].is_nan();
                        maximum[lane] = if keep { maximum[lane] } else { scores[lane] };
                    }
                }
                let mut sum = [0.0; N];
                for (key, scores) in weights.iter_mut().enumerate() {
                    for lane in 0..N {
                        let weight = unit.exp(scores[lane] - maximum[lane]);
                        scores[lane] = if lane < key { 0.0 } else { weight };
                        sum[lane] += scores[lane];
                    }
                }
                for scores in weights.iter_mut() {
                    for lane in 0..N {
                        scores[lane] /= sum[lane];
                    }
                }
                for (query, log_sum) in log_sums[first_row..first_row + s.block].iter_mut().enumerate() {
                    *log_sum = maximum[query] + sum[query].ln();
                }
                drop(mask, first_row, s.block, weights);
                let values = Matrix { values: qkv, at: at_query + 2 * width, stride };
                for query in 0..s.block {
                    let to = &mut out[at_out + query * width..][..size];
                    mix(unit, 0..query + 1, |key| weights[key][query], values, to);
                }
            }
        }
    }
}

struct Backward<'a, const N: usize> {
    s: &'a Heads,
    qkv: &'a [f32],
    log_sums: &'a [f32],
    mask: Mask,
    d_out: &'a [f32],
    d_qkv: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl<const N: usize> Work for Backward<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run(self, unit: Unit) {
        let Backward { s, qkv, log_sums, mask, d_out, d_qkv, scratch } = self;
        let size = s.size;
        let (width, stride) = (s.width(), 3 * s.width());
        let (chunks, _) = scratch.as_chunks_mut::<N>();
        let (queries, chunks) = chunks.split_at_mut(size);
        let (d_outs, chunks) = chunks.split_at_mut(size);
        let (weights, chunks) = chunks.split_at_mut(s.block);
        let d_weights = &mut chunks[..s.block];
        for sequence in 0..s.sequences {
            for head in 0..s.heads {
                let (at_query, at_out) = s.place(sequence, head);
                let (at_key, at_value) = (at_query + width, at_query + 2 * width);
                let first_row = (sequence * s.heads + head) * s.block;
                transpose(qkv, at_query, stride, s.block, &mut queries[..size]);
                transpose(d_out, at_out, width, s.block, &mut d_outs[..size]);
                scores(unit, s, qkv, at_key, &queries[..size], weights);
                let mut log_sum = [0.0; N];
                log_sum[..s.block].copy_from_slice(&log_sums[first_row..first_row + s.block]);
                for (key, (weights, d_weights)) in weights.iter_mut().zip(d_weights.iter_mut()).enumerate() {
                    *d_weights = combine(unit, row(qkv, at_value + key * stride, size), &d_outs[..size]);
                    for lane in 0..N {
                        let weight = unit.exp(weights[lane] - log_sum[lane]);
                        weights[lane] = if lane < key { 0.0 } else { weight };
                    }
                }
                drop(mask, first_row, s.block, d_weights);
                let mut dot = [0.0; N];
                for (weights, d_weights) in weights.iter().zip(d_weights.iter()) {
                    for lane in 0..N {
                        dot[lane] = unit.multiply_add(weights[lane], d_weights[lane], dot[lane]);
                    }
                }
                for (weights, d_weights) in weights.iter().zip(d_weights.iter_mut()) {
                    for lane in 0..N {
                        d_weights[lane] = s.scale * weights[lane] * (d_weights[lane] - dot[lane]);
                    }
                }
                drop(mask, first_row, s.block, weights);
                let rows = |values, at, stride| Matrix { values, at, stride };
                for query in 0..s.block {
                    let to = &mut d_qkv[at_query + query * stride..][..size];
                    mix(unit, 0..query + 1, |key| d_weights[key][query], rows(qkv, at_key, stride), to);
                }
                for key in 0..s.block {
                    let seen = key..s.block;
                    let to = &mut d_qkv[at_key + key * stride..][..size];
                    mix(unit, seen.clone(), |query| d_weights[key][query], rows(qkv, at_query, stride), to);
                    let to = &mut d_qkv[at_value + key * stride..][..size];
                    mix(unit, seen, |query| weights[key][query], rows(d_out, at_out, width), to);
                }
            }
        }
    }
}
