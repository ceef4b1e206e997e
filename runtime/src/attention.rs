//! Causal attention of new rows against the cache.
//!
//! For row `i` at position `p` and each head: `s_j = scale q_i k_j` for `j <= p`, `w = softmax(s)`,
//! `out_i = sum_j w_j v_j` (Vaswani et al. 2017, eq. 1). New keys and values go through the cache first, and prefill
//! and decode read them there by the same code: what was cached and what is recomputed are the same numbers.

use crate::cache::Past;
use crate::simd::Simd;
use crate::team::{Cut, Element, Member, Mine, Part, Place, Whole};
use formats::Result;
use formats::config::MAX_HEAD_SIZE;
use half::f16;
use std::ops::Range;

/// What keys and values can be kept as.
pub(crate) trait Cached: Element {
    /// Stores `values`, rounded to nearest.
    fn store(simd: &Simd, values: &[f32], to: &mut [Self]);
    /// One score a row of `keys` `[scores.len(), query.len()]`.
    fn scores(simd: &Simd, keys: &[Self], query: &[f32], scores: &mut [f32]);
    /// `out += weight value`.
    fn accumulate(simd: &Simd, weight: f32, value: &[Self], out: &mut [f32]);
}

impl Cached for f16 {
    fn store(simd: &Simd, values: &[f32], to: &mut [f16]) {
        (simd.narrow_f16)(values, to);
    }

    fn scores(simd: &Simd, keys: &[f16], query: &[f32], scores: &mut [f32]) {
        (simd.gemv_f16)(keys, query, scores);
    }

    fn accumulate(simd: &Simd, weight: f32, value: &[f16], out: &mut [f32]) {
        (simd.axpy_f16)(weight, value, out);
    }
}

impl Cached for f32 {
    fn store(_: &Simd, values: &[f32], to: &mut [f32]) {
        to.copy_from_slice(values);
    }

    fn scores(simd: &Simd, keys: &[f32], query: &[f32], scores: &mut [f32]) {
        (simd.gemv_f32)(keys, query, scores);
    }

    fn accumulate(simd: &Simd, weight: f32, value: &[f32], out: &mut [f32]) {
        (simd.axpy_f32)(weight, value, out);
    }
}

/// The sizes of one call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention<'a> {
    /// The routines in use.
    pub(crate) simd: &'a Simd,
    /// New rows.
    pub(crate) rows: usize,
    /// Position of the first.
    pub(crate) first: usize,
    /// The first row whose result is wanted; the keys and values of all are stored.
    pub(crate) wanted: usize,
    /// Heads.
    pub(crate) heads: usize,
    /// Width of one.
    pub(crate) head_size: usize,
    /// Positions the cache has room for.
    pub(crate) capacity: usize,
    /// Factor on the scores.
    pub(crate) scale: f32,
}

impl Attention<'_> {
    /// Stores the new rows' keys and values and attends, dealing heads: what a member attends to it has stored
    /// itself, so nobody waits. For few rows. `scores` has room for every position.
    pub(crate) fn by_heads<T: Cached>(
        &self,
        member: &mut Member<'_>,
        qkv: Place<f32>,
        past: Past<T>,
        out: Place<f32>,
        scores: &mut [f32],
    ) -> Result<()> {
        let views = (
            Whole(qkv),
            Mine(past.keys, Cut::Columns),
            Mine(past.values, Cut::Columns),
            Mine(out, Cut::Columns),
        );
        let (qkv, mut keys, mut values, mut out) = member.open(views)?;
        let heads = self.store(qkv, &mut keys, &mut values);
        let pasts =
            keys.row(0).chunks_exact(self.head_len()).zip(values.row(0).chunks_exact(self.head_len()));
        for (index, (head, (keys, values))) in heads.zip(pasts).enumerate() {
            for row in self.wanted..self.rows {
                let out = &mut out.row(row)[index * self.head_size..][..self.head_size];
                self.attend(qkv, row, head, keys, values, scores, out);
            }
        }
        Ok(())
    }

    /// The same, dealing rows by the work in them: every row's keys must be stored before anyone attends, which
    /// costs a barrier. For many rows.
    pub(crate) fn by_rows<T: Cached>(
        &self,
        member: &mut Member<'_>,
        qkv: Place<f32>,
        past: Past<T>,
        out: Place<f32>,
        scores: &mut [f32],
    ) -> Result<()> {
        let views = (Whole(qkv), Mine(past.keys, Cut::Columns), Mine(past.values, Cut::Columns));
        let (new, mut keys, mut values) = member.open(views)?;
        self.store(new, &mut keys, &mut values);

        let cut = Cut::Causal { rows: self.rows, first: self.first };
        let cancelled = member.cancelled();
        let views = (Whole(qkv), Whole(past.keys), Whole(past.values), Mine(out, cut));
        let (qkv, keys, values, mut out) = member.open(views)?;
        let pasts = keys.chunks_exact(self.head_len()).zip(values.chunks_exact(self.head_len()));
        // Heads outside, rows inside: a head's past stays in the processor's cache over all rows.
        for (head, (keys, values)) in pasts.enumerate() {
            cancelled.check()?;
            for row in out.rows().filter(|&row| row >= self.wanted) {
                let out = &mut out.row(row)[head * self.head_size..][..self.head_size];
                self.attend(qkv, row, head, keys, values, scores, out);
            }
        }
        Ok(())
    }

    /// Length of one head's keys or values in the cache.
    fn head_len(&self) -> usize {
        self.capacity * self.head_size
    }

    /// Stores the keys and values of the member's heads; returns which heads those are.
    fn store<T: Cached>(&self, qkv: &[f32], keys: &mut Part<T>, values: &mut Part<T>) -> Range<usize> {
        let width = self.heads * self.head_size;
        let columns = keys.columns();
        let heads = columns.start / self.head_len()..columns.end / self.head_len();
        let (keys, values) = (keys.row(0), values.row(0));
        for (index, head) in heads.clone().enumerate() {
            for row in 0..self.rows {
                let new = &qkv[row * 3 * width..][..3 * width];
                let (key, value) = (width + head * self.head_size, 2 * width + head * self.head_size);
                let at = index * self.head_len() + (self.first + row) * self.head_size;
                T::store(self.simd, &new[key..][..self.head_size], &mut keys[at..][..self.head_size]);
                T::store(self.simd, &new[value..][..self.head_size], &mut values[at..][..self.head_size]);
            }
        }
        heads
    }

    /// One row, one head: `keys` and `values` are the head's, `[capacity, head_size]`.
    fn attend<T: Cached>(
        &self,
        qkv: &[f32],
        row: usize,
        head: usize,
        keys: &[T],
        values: &[T],
        scores: &mut [f32],
        out: &mut [f32],
    ) {
        let positions = self.first + row + 1;
        let mut query = [0.0; MAX_HEAD_SIZE];
        let query = &mut query[..self.head_size];
        let start = row * 3 * self.heads * self.head_size + head * self.head_size;
        for (scaled, value) in query.iter_mut().zip(&qkv[start..][..self.head_size]) {
            *scaled = value * self.scale;
        }
        let scores = &mut scores[..positions];
        T::scores(self.simd, &keys[..positions * self.head_size], query, scores);
        (self.simd.softmax)(scores);
        out.fill(0.0);
        for (weight, value) in scores.iter().zip(values.chunks_exact(self.head_size)) {
            T::accumulate(self.simd, *weight, value, out);
        }
    }
}
