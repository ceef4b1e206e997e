//! Attention to what is remembered: scores of keys, their softmax, and the weighted sum of values.
//!
//! Keys stand in blocks of [`super::PANEL`] positions, `[block][element][position]`: a vector holds one element of many
//! keys, so that a score is never summed across lanes. Values stand `[position][element]`. Both are converted in
//! registers, and every sum has one order whatever stands beside it. Where all that is seen is one block, scores never leave
//! the registers, and a few queries go side by side: one alone is a chain of steps that wait for each other.
//!
//! Blocks side by side are several short streams, which a processor does not follow: those of a long past are asked for while
//! the ones before them are read. Values are one stream, which it follows by itself.

use super::PANEL;
use super::gemv::prefetch_lines;
use super::lanes::{Element, Lanes};
use super::routines::{self, Unit};

/// Most vectors of one block, over all instruction sets.
const VECTORS: usize = 4;

/// Queries whose steps are taken together where they see one block.
const TOGETHER: usize = 4;

/// Bytes of keys that are likely to be in the nearest cache still.
const NEAR: usize = 16 << 10;

/// For each of `count` queries, `s_j = sum_c query[c] key_j[c]`, `w = softmax(s)`, `out = sum_j w_j value_j`; the first sees
/// `seen` positions, at least one, and each one more than that before it. `room` is for as many values as the last sees.
///
/// # Safety
/// `L`'s instruction set must be present.
#[inline(always)]
pub(super) unsafe fn attend<L: Lanes, T: Element>(
    unit: Unit,
    keys: &[T],
    values: &[T],
    queries: &[f32],
    [count, seen]: [usize; 2],
    room: &mut [f32],
    out: &mut [f32],
) {
    assert!(seen > 0 && queries.len() == out.len() && out.len().is_multiple_of(count), "one result a query");
    let size = out.len() / count;
    let mut first = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while first < count && seen + first <= PANEL {
            let (queries, out) = (&queries[first * size..], &mut out[first * size..]);
            let most = (count - first).min(PANEL + 1 - seen - first);
            first += match most {
                TOGETHER.. => block::<L, T, TOGETHER>(unit, keys, values, queries, seen + first, size, out),
                _ => block::<L, T, 1>(unit, keys, values, queries, seen + first, size, out),
            };
        }
        for index in first..count {
            let (query, out) = (&queries[index * size..][..size], &mut out[index * size..][..size]);
            let weights = &mut room[..seen + index];
            // Queries that come together find the keys near, all but the first.
            if count == 1 && weights.len() * size * size_of::<T>() > NEAR {
                scores::<L, T, true>(keys, query, weights, values.as_ptr());
            } else {
                scores::<L, T, false>(keys, query, weights, values.as_ptr());
            }
            routines::softmax(unit, weights, &mut [0.0; 2]);
            mix::<L, T>(weights, values, out);
        }
    }
}

/// `N` queries that see no more than one block; returns how many they are.
#[inline(always)]
unsafe fn block<L: Lanes, T: Element, const N: usize>(
    unit: Unit,
    keys: &[T],
    values: &[T],
    queries: &[f32],
    seen: usize,
    size: usize,
    out: &mut [f32],
) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        let mut weights = [[0.0; PANEL]; N];
        for (weights, query) in weights.iter_mut().zip(queries.chunks_exact(size)) {
            scores::<L, T, false>(keys, query, weights, values.as_ptr());
        }
        routines::softmax_lanes(unit, &mut weights, seen);
        for (index, (weights, out)) in weights.iter().zip(out.chunks_exact_mut(size)).enumerate() {
            mix::<L, T>(&weights[..seen + index], values, out);
        }
    }
    N
}

/// `scores[j] = sum_c query[c] key_j[c]`, even elements and odd ones apart. If `FAR`, keys are asked for ahead, and
/// `then`, which is read after them.
///
/// # Safety
/// `L`'s instruction set must be present.
#[inline(always)]
unsafe fn scores<L: Lanes, T: Element, const FAR: bool>(
    keys: &[T],
    query: &[f32],
    scores: &mut [f32],
    then: *const T,
) {
    let block = query.len() * PANEL;
    assert!(scores.len().div_ceil(PANEL) * block <= keys.len(), "keys are whole blocks");
    let mut at = 0;
    // SAFETY: the blocks of positions `at ..` lie inside `keys`, whose length was checked above, and no more of
    // `scores` is written than there is.
    unsafe {
        // Blocks side by side, as many as there are registers for, so that additions do not wait for each other.
        while L::WIDTH == PANEL && at + 4 * PANEL <= scores.len() {
            let from = keys.as_ptr().add(at / PANEL * block);
            let next = if at + 8 * PANEL <= scores.len() { from.wrapping_add(4 * block) } else { then };
            blocks::<L, T, 4, FAR>(from, query, &mut scores[at..at + 4 * PANEL], next);
            at += 4 * PANEL;
        }
        while at + 2 * PANEL <= scores.len() {
            let from = keys.as_ptr().add(at / PANEL * block);
            let next = if at + 4 * PANEL <= scores.len() { from.wrapping_add(2 * block) } else { then };
            blocks::<L, T, 2, FAR>(from, query, &mut scores[at..at + 2 * PANEL], next);
            at += 2 * PANEL;
        }
        while at < scores.len() {
            let end = scores.len().min(at + PANEL);
            blocks::<L, T, 1, false>(
                keys.as_ptr().add(at / PANEL * block),
                query,
                &mut scores[at..end],
                then,
            );
            at = end;
        }
    }
}

/// The scores of `N` blocks; of the last, as many as there is room for. If `FAR`, as many values are asked for at `next`
/// meanwhile.
#[inline(always)]
unsafe fn blocks<L: Lanes, T: Element, const N: usize, const FAR: bool>(
    keys: *const T,
    query: &[f32],
    scores: &mut [f32],
    next: *const T,
) {
    let (vectors, block) = (PANEL / L::WIDTH, query.len() * PANEL);
    // SAFETY: the caller vouches for `N` blocks at `keys`; stores stay inside `scores`.
    unsafe {
        let (mut even, mut odd) = ([[L::splat(0.0); VECTORS]; N], [[L::splat(0.0); VECTORS]; N]);
        let mut element = 0;
        while element + 2 <= query.len() {
            if FAR {
                prefetch_lines::<T, true>(next.wrapping_add(element * N * PANEL), 2 * N * PANEL);
            }
            let (first, second) = (L::splat(query[element]), L::splat(query[element + 1]));
            for n in 0..N {
                for vector in 0..vectors {
                    let from = keys.add(n * block + element * PANEL + vector * L::WIDTH);
                    even[n][vector] = T::load::<L>(from).multiply_add(first, even[n][vector]);
                    odd[n][vector] = T::load::<L>(from.add(PANEL)).multiply_add(second, odd[n][vector]);
                }
            }
            element += 2;
        }
        if element < query.len() {
            let last = L::splat(query[element]);
            for n in 0..N {
                for vector in 0..vectors {
                    let from = keys.add(n * block + element * PANEL + vector * L::WIDTH);
                    even[n][vector] = T::load::<L>(from).multiply_add(last, even[n][vector]);
                }
            }
        }
        for n in 0..N {
            for vector in 0..vectors {
                let at = n * PANEL + vector * L::WIDTH;
                let sum = even[n][vector].add(odd[n][vector]);
                if at + L::WIDTH <= scores.len() {
                    sum.store(scores.as_mut_ptr().add(at));
                } else if at < scores.len() {
                    sum.store_part(scores.as_mut_ptr().add(at), scores.len() - at);
                }
            }
        }
    }
}

/// `out = sum_j weights[j] value_j`.
///
/// # Safety
/// `L`'s instruction set must be present.
#[inline(always)]
unsafe fn mix<L: Lanes, T: Element>(weights: &[f32], values: &[T], out: &mut [f32]) {
    let width = out.len();
    assert!(weights.len() * width <= values.len(), "one value a weight");
    let mut at = 0;
    // SAFETY: columns `at ..` of each of `weights.len()` rows lie inside `values`, and inside `out`.
    unsafe {
        while at + 4 * L::WIDTH <= width {
            columns::<L, T, 4, 2>(weights, values.as_ptr().add(at), width, out.as_mut_ptr().add(at));
            at += 4 * L::WIDTH;
        }
        while at + L::WIDTH <= width {
            columns::<L, T, 1, 8>(weights, values.as_ptr().add(at), width, out.as_mut_ptr().add(at));
            at += L::WIDTH;
        }
        if at < width {
            let mut sum = L::splat(0.0);
            for (index, weight) in weights.iter().enumerate() {
                let value = T::load_part::<L>(values.as_ptr().add(index * width + at), width - at);
                sum = value.multiply_add(L::splat(*weight), sum);
            }
            sum.store_part(out.as_mut_ptr().add(at), width - at);
        }
    }
}

/// `N` vectors of columns, in `CHAINS` sums of every `CHAINS`-th position that are added in order at the end.
#[inline(always)]
unsafe fn columns<L: Lanes, T: Element, const N: usize, const CHAINS: usize>(
    weights: &[f32],
    values: *const T,
    stride: usize,
    out: *mut f32,
) {
    // SAFETY: the caller vouches for `N` vectors in each row at `values` and at `out`.
    unsafe {
        let mut sums = [[L::splat(0.0); N]; CHAINS];
        let (groups, rest) = weights.as_chunks::<CHAINS>();
        let mut row = values;
        for group in groups {
            for chain in 0..CHAINS {
                let by = L::splat(group[chain]);
                for n in 0..N {
                    sums[chain][n] = T::load::<L>(row.add(n * L::WIDTH)).multiply_add(by, sums[chain][n]);
                }
                row = row.add(stride);
            }
        }
        // Counted by the chains, whose number is known, so that their sums stay in registers.
        for chain in 0..CHAINS {
            let Some(weight) = rest.get(chain) else { break };
            let by = L::splat(*weight);
            for n in 0..N {
                sums[chain][n] = T::load::<L>(row.add(n * L::WIDTH)).multiply_add(by, sums[chain][n]);
            }
            row = row.add(stride);
        }
        for n in 0..N {
            let mut sum = sums[0][n];
            for chain in 1..CHAINS {
                sum = sum.add(sums[chain][n]);
            }
            sum.store(out.add(n * L::WIDTH));
        }
    }
}
