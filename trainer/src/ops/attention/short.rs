//! Attention over windows no longer than a vector: the lecture's block of eight.
//!
//! Scores are held transposed, one vector of queries a key, so that maxima, sums and exponentials run down whole
//! vectors and nothing is reduced across lanes. Equations and signs are those of the room above.

use super::{Heads, Place};
use crate::ops::dropout::Mask;
use runtime::simd::routines::{LANES, Unit};
use runtime::simd::{Simd, Work};
use std::ops::Range;

/// Longest window of this room.
pub const MOST: usize = 16;

/// Scratch of one head: its queries or output gradients transposed, and the gradients of its weights.
pub fn scratch(s: &Heads) -> usize {
    (s.size + s.block) * MOST
}

/// Length of what the forward pass keeps: the weights themselves, a vector of queries a key.
pub fn kept(s: &Heads) -> usize {
    s.sequences * s.heads * s.block * MOST
}

/// See [`super::forward`].
pub fn forward(
    simd: &Simd,
    s: &Heads,
    qkv: &[f32],
    mask: Mask,
    out: &mut [f32],
    kept: &mut [f32],
    scratch: &mut [f32],
) {
    if s.block <= 8 {
        simd.run(Forward::<8> { s, qkv, mask, out, kept, scratch });
    } else {
        simd.run(Forward::<MOST> { s, qkv, mask, out, kept, scratch });
    }
}

/// See [`super::backward`].
pub fn backward(
    simd: &Simd,
    s: &Heads,
    qkv: &[f32],
    kept: &[f32],
    mask: Mask,
    d_out: &[f32],
    d_qkv: &mut [f32],
    scratch: &mut [f32],
) {
    if s.block <= 8 {
        simd.run(Backward::<8> { s, qkv, kept, mask, d_out, d_qkv, scratch });
    } else {
        simd.run(Backward::<MOST> { s, qkv, kept, mask, d_out, d_qkv, scratch });
    }
}

/// One row of a strided matrix.
#[inline(always)]
fn row(values: &[f32], at: usize, size: usize) -> &[f32] {
    &values[at..at + size]
}

/// Rows of a strided matrix: row `i` begins at `at + i stride`.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    values: &'a [f32],
    at: usize,
    stride: usize,
}

/// `to[c][i] = from[i][c]` for the rows of one head; lanes beyond the block are zero.
#[inline(always)]
fn transpose<const N: usize>(from: Matrix<'_>, block: usize, to: &mut [[f32; N]]) {
    /// Columns that stay in registers while rows go by.
    const COLUMNS: usize = 8;
    let (whole, rest) = to.as_chunks_mut::<COLUMNS>();
    let rest_at = whole.len() * COLUMNS;
    for (chunk, to) in whole.iter_mut().enumerate() {
        let mut lanes = [[0.0; N]; COLUMNS];
        let mut lay = |query: usize| {
            let values = row(from.values, from.at + query * from.stride + chunk * COLUMNS, COLUMNS);
            for column in 0..COLUMNS {
                lanes[column][query] = values[column];
            }
        };
        // A block as long as the vector is transposed in registers.
        if block == N {
            (0..N).for_each(&mut lay)
        } else {
            (0..block.min(N)).for_each(&mut lay)
        }
        *to = lanes;
    }
    for (column, lanes) in rest.iter_mut().enumerate() {
        *lanes = [0.0; N];
        for query in 0..block.min(N) {
            lanes[query] = from.values[from.at + query * from.stride + rest_at + column];
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
    kept: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl<const N: usize> Work for Forward<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run(self, unit: Unit) {
        let Forward { s, qkv, mask, out, kept, scratch } = self;
        let (size, width, stride) = (s.size, s.width(), s.row());
        let queries = &mut scratch.as_chunks_mut::<N>().0[..size];
        let (kept, _) = kept.as_chunks_mut::<N>();
        for sequence in 0..s.sequences {
            for head in 0..s.heads {
                let Place { query: at_query, key: at_key, value: at_value, out: at_out } =
                    s.place(sequence, head);
                let place = sequence * s.heads + head;
                let weights = &mut kept[place * s.block..][..s.block];
                transpose(Matrix { values: qkv, at: at_query, stride }, s.block, queries);
                let mut maximum = [f32::NEG_INFINITY; N];
                for (key, weights) in weights.iter_mut().enumerate() {
                    let score = combine(unit, row(qkv, at_key + key * stride, size), queries);
                    for lane in 0..N {
                        // A key no query may see has a score that leaves nothing after the exponential.
                        weights[lane] = if lane < key { f32::NEG_INFINITY } else { score[lane] * s.scale };
                        // A NaN replaces whatever stands there and is never replaced by less.
                        let keep = maximum[lane] >= weights[lane] || maximum[lane].is_nan();
                        maximum[lane] = if keep { maximum[lane] } else { weights[lane] };
                    }
                }
                for weights in weights.iter_mut() {
                    for lane in 0..N {
                        weights[lane] -= maximum[lane];
                    }
                }
                for weight in weights.as_flattened_mut() {
                    *weight = unit.exp(*weight);
                }
                let mut sum = [0.0; N];
                for (key, weights) in weights.iter_mut().enumerate() {
                    for lane in 0..N {
                        weights[lane] = if lane < key { 0.0 } else { weights[lane] };
                        sum[lane] += weights[lane];
                    }
                }
                for lane in 0..N {
                    sum[lane] = 1.0 / sum[lane];
                }
                for weights in weights.iter_mut() {
                    for lane in 0..N {
                        weights[lane] *= sum[lane];
                    }
                }
                let values = Matrix { values: qkv, at: at_value, stride };
                let mut dropped = [[0.0; N]; MOST];
                let used = match mask {
                    None => &*weights,
                    Some(_) => {
                        let dropped = &mut dropped[..s.block];
                        dropped.copy_from_slice(weights);
                        drop(mask, place * s.block, s.block, dropped);
                        dropped
                    }
                };
                for query in 0..s.block {
                    let to = &mut out[at_out + query * width..][..size];
                    mix(unit, 0..query + 1, |key| used[key][query], values, to);
                }
            }
        }
    }
}

struct Backward<'a, const N: usize> {
    s: &'a Heads,
    qkv: &'a [f32],
    kept: &'a [f32],
    mask: Mask,
    d_out: &'a [f32],
    d_qkv: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl<const N: usize> Work for Backward<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run(self, unit: Unit) {
        let Backward { s, qkv, kept, mask, d_out, d_qkv, scratch } = self;
        let (size, width, stride) = (s.size, s.width(), s.row());
        let (d_outs, chunks) = scratch.as_chunks_mut::<N>().0.split_at_mut(size);
        let d_weights = &mut chunks[..s.block];
        let (kept, _) = kept.as_chunks::<N>();
        for sequence in 0..s.sequences {
            for head in 0..s.heads {
                let Place { query: at_query, key: at_key, value: at_value, out: at_out } =
                    s.place(sequence, head);
                let place = sequence * s.heads + head;
                let weights = &kept[place * s.block..][..s.block];
                transpose(Matrix { values: d_out, at: at_out, stride: width }, s.block, d_outs);
                for (key, d_weights) in d_weights.iter_mut().enumerate() {
                    *d_weights = combine(unit, row(qkv, at_value + key * stride, size), d_outs);
                }
                drop(mask, place * s.block, s.block, d_weights);
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
                let mut dropped = [[0.0; N]; MOST];
                let used = match mask {
                    None => weights,
                    Some(_) => {
                        let dropped = &mut dropped[..s.block];
                        dropped.copy_from_slice(weights);
                        drop(mask, place * s.block, s.block, dropped);
                        dropped
                    }
                };
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
                    mix(unit, seen, |query| used[key][query], rows(d_out, at_out, width), to);
                }
            }
        }
    }
}
