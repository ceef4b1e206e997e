//! Causal attention of new rows against the cache.
//!
//! For row `i` at position `p` and each head: `s_j = scale q_i k_j` for `j <= p`, `w = softmax(s)`,
//! `out_i = sum_j w_j v_j` (Vaswani et al. 2017, eq. 1). New keys and values go through the cache first, and prefill
//! and decode read them there by the same code: what was cached and what is recomputed are the same numbers.
//!
//! A head of keys and values serves a group of queries (Ainslie et al. 2023); whoever stores it attends for its group.
//! Queries and keys are made ready ([`crate::heads`]) where they are read: by the member that needs them, once a key
//! and once a query, so that no barrier lies between.

use crate::cache::{Past, keys_len};
use crate::heads::{Preparation, Side};
use crate::simd::{PANEL, Simd};
use crate::team::{Cut, Element, Member, Mine, Part, Place, Whole};
use formats::Result;
use formats::config::MAX_HEAD_SIZE;
use half::f16;
use std::ops::Range;

/// Rows that are attended for at once.
pub(crate) const TOGETHER: usize = 8;

/// What keys and values can be kept as.
pub(crate) trait Cached: Element {
    /// Zero.
    const ZERO: Self;
    /// Stores `values`, rounded to nearest.
    fn store(simd: &Simd, values: &[f32], to: &mut [Self]);
    /// See [`Simd::attend_f16`].
    fn attend(
        simd: &Simd,
        keys: &[Self],
        values: &[Self],
        queries: &[f32],
        sizes: [usize; 2],
        room: &mut [f32],
        out: &mut [f32],
    );
}

impl Cached for f16 {
    const ZERO: f16 = f16::ZERO;

    fn store(simd: &Simd, values: &[f32], to: &mut [f16]) {
        (simd.narrow_f16)(values, to);
    }

    fn attend(
        simd: &Simd,
        keys: &[f16],
        values: &[f16],
        queries: &[f32],
        sizes: [usize; 2],
        room: &mut [f32],
        out: &mut [f32],
    ) {
        (simd.attend_f16)(keys, values, queries, sizes, room, out);
    }
}

impl Cached for f32 {
    const ZERO: f32 = 0.0;

    fn store(_: &Simd, values: &[f32], to: &mut [f32]) {
        to.copy_from_slice(values);
    }

    fn attend(
        simd: &Simd,
        keys: &[f32],
        values: &[f32],
        queries: &[f32],
        sizes: [usize; 2],
        room: &mut [f32],
        out: &mut [f32],
    ) {
        (simd.attend_f32)(keys, values, queries, sizes, room, out);
    }
}

/// The sizes of one call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention<'a> {
    /// What happens to queries and keys before they meet.
    pub(crate) heads: Preparation<'a>,
    /// New rows.
    pub(crate) rows: usize,
    /// Position of the first.
    pub(crate) first: usize,
    /// The first row whose result is wanted; the keys and values of all are stored.
    pub(crate) wanted: usize,
    /// Positions the cache has room for.
    pub(crate) capacity: usize,
    /// Factor on the scores.
    pub(crate) scale: f32,
}

/// Where the new rows' queries, keys and values are.
pub(crate) enum New<'a> {
    /// In a slot.
    Shared(Place<f32>),
    /// In the results of a product that are still to be gathered, each member what it needs: the columns of so many
    /// elements, into the same columns of its own rows.
    Gathered {
        /// The results.
        from: Place<f32>,
        /// Gathers columns of all rows.
        gather: &'a dyn Fn(&[f32], Range<usize>, &mut [f32]),
        /// The member's own rows.
        to: &'a mut [f32],
    },
}

impl Attention<'_> {
    /// Stores the new rows' keys and values and attends, dealing heads: what a member attends to it has stored
    /// itself, so nobody waits. For few rows.
    pub(crate) fn by_heads<T: Cached>(
        &self,
        member: &mut Member<'_>,
        new: New<'_>,
        past: Past<T>,
        out: Place<f32>,
        room: &mut Room<'_>,
    ) -> Result<()> {
        let (place, gather) = match new {
            New::Shared(place) => (place, None),
            New::Gathered { from, gather, to } => (from, Some((gather, to))),
        };
        let views = (
            Whole(place),
            Mine(past.keys, Cut::Columns),
            Mine(past.values, Cut::Columns),
            Mine(out, Cut::Columns),
        );
        let (qkv, mut keys, mut values, mut out) = member.open(views)?;
        let qkv = match gather {
            None => qkv,
            Some((gather, to)) => {
                for columns in self.heads.columns(self.kv_heads(&keys)) {
                    gather(qkv, columns, to);
                }
                to
            }
        };
        let kv_heads = self.store(qkv, &mut keys, &mut values, room);
        let pasts =
            keys.row(0).chunks_exact(self.keys_len()).zip(values.row(0).chunks_exact(self.values_len()));
        for (index, (kv_head, (keys, values))) in kv_heads.zip(pasts).enumerate() {
            self.attend(qkv, self.wanted..self.rows, kv_head, keys, values, room, &mut out, index);
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
        room: &mut Room<'_>,
    ) -> Result<()> {
        let views = (Whole(qkv), Mine(past.keys, Cut::Columns), Mine(past.values, Cut::Columns));
        let (new, mut keys, mut values) = member.open(views)?;
        self.store(new, &mut keys, &mut values, room);

        let cut = Cut::Causal { rows: self.rows, first: self.first };
        let cancelled = member.cancelled();
        let views = (Whole(qkv), Whole(past.keys), Whole(past.values), Mine(out, cut));
        let (qkv, keys, values, mut out) = member.open(views)?;
        let pasts = keys.chunks_exact(self.keys_len()).zip(values.chunks_exact(self.values_len()));
        let rows = self.wanted.max(out.rows().start)..out.rows().end;
        // Heads outside, rows inside: a head's past stays in the processor's cache over all rows.
        for (kv_head, (keys, values)) in pasts.enumerate() {
            cancelled.check()?;
            self.attend(qkv, rows.clone(), kv_head, keys, values, room, &mut out, kv_head);
        }
        Ok(())
    }

    /// Length of one head's keys in the cache.
    fn keys_len(&self) -> usize {
        keys_len(self.capacity, self.heads.head_size)
    }

    /// Length of one head's values.
    fn values_len(&self) -> usize {
        self.capacity * self.heads.head_size
    }

    /// Queries that one head of keys serves.
    fn group(&self) -> usize {
        self.heads.heads / self.heads.kv_heads
    }

    /// The heads of keys and values that are the member's.
    fn kv_heads<T>(&self, keys: &Part<T>) -> Range<usize> {
        let columns = keys.columns();
        columns.start / self.keys_len()..columns.end / self.keys_len()
    }

    /// Stores the keys and values of the member's heads; returns which heads those are.
    fn store<T: Cached>(
        &self,
        qkv: &[f32],
        keys: &mut Part<T>,
        values: &mut Part<T>,
        room: &mut Room<'_>,
    ) -> Range<usize> {
        let Preparation { simd, head_size, heads, kv_heads, .. } = self.heads;
        let qkv = &qkv[..self.rows * self.heads.width()];
        self.heads.scales(qkv, room.scales);
        let mine = self.kv_heads(keys);
        let (keys, values) = (keys.row(0), values.row(0));
        let (mut key, mut rounded) = ([0.0; MAX_HEAD_SIZE], [T::ZERO; MAX_HEAD_SIZE]);
        let (key, rounded) = (&mut key[..head_size], &mut rounded[..head_size]);
        for (index, kv_head) in mine.clone().enumerate() {
            for row in 0..self.rows {
                let value = row * self.heads.width() + (heads + kv_heads + kv_head) * head_size;
                let position = self.first + row;
                self.heads.head(Side::Key, qkv, room.scales, row, kv_head, key);
                T::store(simd, key, rounded);
                let block = index * self.keys_len() + position / PANEL * PANEL * head_size;
                let (lines, _) = keys[block..][..PANEL * head_size].as_chunks_mut::<PANEL>();
                for (line, element) in lines.iter_mut().zip(&*rounded) {
                    line[position % PANEL] = *element;
                }
                let at = index * self.values_len() + position * head_size;
                T::store(simd, &qkv[value..][..head_size], &mut values[at..][..head_size]);
            }
        }
        mine
    }

    /// Some rows' queries of one head of keys, whose past is one head of [`Past`]: group `index` of the columns of `out`.
    fn attend<T: Cached>(
        &self,
        qkv: &[f32],
        rows: Range<usize>,
        kv_head: usize,
        keys: &[T],
        values: &[T],
        room: &mut Room<'_>,
        out: &mut Part<f32>,
        index: usize,
    ) {
        let Preparation { simd, head_size, .. } = self.heads;
        for start in rows.clone().step_by(TOGETHER) {
            let rows = start..rows.end.min(start + TOGETHER);
            let queries = &mut room.queries[..rows.len() * head_size];
            let results = &mut room.results[..rows.len() * head_size];
            for head in 0..self.group() {
                for (row, query) in rows.clone().zip(queries.chunks_exact_mut(head_size)) {
                    let head = kv_head * self.group() + head;
                    self.heads.head(Side::Query, qkv, room.scales, row, head, query);
                    query.iter_mut().for_each(|value| *value *= self.scale);
                }
                let sizes = [rows.len(), self.first + rows.start + 1];
                T::attend(simd, keys, values, queries, sizes, room.scores, results);
                let column = (index * self.group() + head) * head_size;
                for (row, result) in rows.clone().zip(results.chunks_exact(head_size)) {
                    out.row(row)[column..][..head_size].copy_from_slice(result);
                }
            }
        }
    }
}

/// A member's own memory for attention.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    /// Some queries of one head, ready to meet the keys.
    pub(crate) queries: &'a mut [f32],
    /// What comes of them.
    pub(crate) results: &'a mut [f32],
    /// One value a position.
    pub(crate) scores: &'a mut [f32],
    /// Two values a new row, see [`Preparation::scales`].
    pub(crate) scales: &'a mut [f32],
}
