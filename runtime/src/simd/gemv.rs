//! Products of a matrix with one vector, and the row operations around them: weights are converted in
//! registers, the vector stays f32.
//!
//! Each row's sum is built the same way whatever rows stand beside it, so a row's value does not depend on how
//! rows were dealt to threads.

use super::Origin;
use super::lanes::{Element, Lanes};
use half::f16;

/// Vectors of a row that are summed side by side.
const SUMS: usize = 4;
/// Vectors of results that are kept in registers while rows are added to them.
const COLUMNS: usize = 4;
/// Rows that are added to them together where weights come from a cache: results are read and written less often.
/// From memory one row after the other comes faster.
const TOGETHER: usize = 4;
/// Bytes of weights that are asked for ahead of their use where they come from memory.
const AHEAD: usize = 9216;
/// The same where they come from a cache, which is faster by more than it is nearer.
const CACHE_AHEAD: usize = 12288;

/// `y = W x`: row after row, so that the weights go by as one stream, which is what memory gives fastest.
///
/// # Safety
/// `L`'s instruction set must be present.
#[inline(always)]
pub(super) unsafe fn gemv<L: Lanes, T: Element>(weight: &[T], origin: Origin, x: &[f32], y: &mut [f32]) {
    let columns = x.len();
    assert_eq!(weight.len(), columns * y.len(), "weight is [rows, columns]");
    for (row, out) in y.iter_mut().enumerate() {
        // SAFETY: the row lies inside `weight`, whose length was checked above.
        *out = unsafe {
            let row = weight.as_ptr().add(row * columns);
            match origin {
                Origin::Cache => sum::<L, T, AHEAD, true>(row, x),
                Origin::Memory => sum::<L, T, AHEAD, false>(row, x),
            }
        };
    }
}

/// Bytes that come from memory together.
const LINE_BYTES: usize = 64;

/// Asks for what will be read soon, to `KEEP` it in every cache afterwards or in none. Any address may be asked for.
#[inline(always)]
pub(super) fn prefetch<T, const KEEP: bool>(at: *const T) {
    // SAFETY: hints of every x86-64 processor, which read nothing that could fault.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_NTA, _MM_HINT_T0, _mm_prefetch};
        if KEEP { _mm_prefetch::<_MM_HINT_T0>(at.cast()) } else { _mm_prefetch::<_MM_HINT_NTA>(at.cast()) }
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Asks for the lines of `count` values, see [`prefetch`].
#[inline(always)]
pub(super) fn prefetch_lines<T, const KEEP: bool>(at: *const T, count: usize) {
    for line in (0..count * size_of::<T>()).step_by(LINE_BYTES) {
        prefetch::<_, KEEP>(at.wrapping_byte_add(line));
    }
}

/// `y = x W` for the first `y.len()` columns of `W`, whose rows lie `stride` apart: each row is read as it stands, and
/// every column's sum runs over the rows in order, whatever columns stand beside it and wherever `W` comes from.
///
/// # Safety
/// `L`'s instruction set must be present.
#[inline(always)]
pub(super) unsafe fn gemv_rows<L: Lanes, T: Element>(
    weight: &[T],
    stride: usize,
    origin: Origin,
    x: &[f32],
    y: &mut [f32],
) {
    assert!(y.len() <= stride, "rows of W overlap");
    let needed = x.len().checked_sub(1).map_or(0, |last| last * stride + y.len());
    assert!(needed <= weight.len(), "weight is [x.len(), stride]");
    y.fill(0.0);
    let (groups, rest) = x.as_chunks::<TOGETHER>();
    let mut row = weight.as_ptr();
    // SAFETY: each row has `y.len()` columns inside `weight`, whose length was checked above.
    unsafe {
        for group in groups {
            match origin {
                Origin::Cache => add_rows::<L, T, TOGETHER, CACHE_AHEAD, true>(group, row, stride, y),
                Origin::Memory => {
                    for (index, by) in group.iter().enumerate() {
                        add_rows::<L, T, 1, AHEAD, false>(&[*by], row.add(index * stride), stride, y);
                    }
                }
            }
            row = row.wrapping_add(TOGETHER * stride);
        }
        for by in rest {
            add_rows::<L, T, 1, AHEAD, false>(&[*by], row, stride, y);
            row = row.wrapping_add(stride);
        }
    }
}

/// `out += sum_i weights[i] v_i` in the order of `i`, each `v_i` being as long and `stride` after the one before. What
/// stands `AHEAD` bytes later is asked for, if that is not zero, to be kept in the caches or not.
#[inline(always)]
unsafe fn add_rows<L: Lanes, T: Element, const ROWS: usize, const AHEAD: usize, const KEEP: bool>(
    weights: &[f32; ROWS],
    v: *const T,
    stride: usize,
    out: &mut [f32],
) {
    // SAFETY: the caller vouches for `out.len()` values in each of `ROWS` rows at `v`.
    unsafe {
        let mut by = [L::splat(0.0); ROWS];
        for row in 0..ROWS {
            by[row] = L::splat(weights[row]);
        }
        let mut at = 0;
        while at + COLUMNS * L::WIDTH <= out.len() {
            let to = out.as_mut_ptr().add(at);
            let mut sums = [L::splat(0.0); COLUMNS];
            for n in 0..COLUMNS {
                sums[n] = L::load(to.add(n * L::WIDTH));
            }
            for row in 0..ROWS {
                let from = v.add(row * stride + at);
                if AHEAD > 0 {
                    prefetch_lines::<T, KEEP>(from.wrapping_byte_add(AHEAD), COLUMNS * L::WIDTH);
                }
                for n in 0..COLUMNS {
                    sums[n] = T::load::<L>(from.add(n * L::WIDTH)).multiply_add(by[row], sums[n]);
                }
            }
            for n in 0..COLUMNS {
                sums[n].store(to.add(n * L::WIDTH));
            }
            at += COLUMNS * L::WIDTH;
        }
        while at + L::WIDTH <= out.len() {
            let to = out.as_mut_ptr().add(at);
            let mut sum = L::load(to);
            for row in 0..ROWS {
                sum = T::load::<L>(v.add(row * stride + at)).multiply_add(by[row], sum);
            }
            sum.store(to);
            at += L::WIDTH;
        }
        if at < out.len() {
            let (to, count) = (out.as_mut_ptr().add(at), out.len() - at);
            let mut sum = L::load_part(to, count);
            for row in 0..ROWS {
                sum = T::load_part::<L>(v.add(row * stride + at), count).multiply_add(by[row], sum);
            }
            sum.store_part(to, count);
        }
    }
}

/// `sum k q`.
///
/// # Safety
/// `L`'s instruction set must be present.
#[inline(always)]
pub(super) unsafe fn dot<L: Lanes, T: Element>(k: &[T], q: &[f32]) -> f32 {
    assert_eq!(k.len(), q.len(), "dot product");
    // SAFETY: both have `q.len()` values.
    unsafe { sum::<L, T, 0, true>(k.as_ptr(), q) }
}

/// `sum w_i x_i` in [`SUMS`] sums of every so many vectors, added in pairs; asks ahead as [`add_rows`] does.
#[inline(always)]
unsafe fn sum<L: Lanes, T: Element, const AHEAD: usize, const KEEP: bool>(
    weight: *const T,
    x: &[f32],
) -> f32 {
    // SAFETY: the caller vouches for `x.len()` values at `weight`.
    unsafe {
        let mut sums = [L::splat(0.0); SUMS];
        let mut at = 0;
        while at + SUMS * L::WIDTH <= x.len() {
            if AHEAD > 0 {
                prefetch_lines::<T, KEEP>(weight.wrapping_add(at).wrapping_byte_add(AHEAD), SUMS * L::WIDTH);
            }
            for n in 0..SUMS {
                let place = at + n * L::WIDTH;
                let value = L::load(x.as_ptr().add(place));
                sums[n] = T::load::<L>(weight.add(place)).multiply_add(value, sums[n]);
            }
            at += SUMS * L::WIDTH;
        }
        let mut n = 0;
        while at + L::WIDTH <= x.len() {
            sums[n] = T::load::<L>(weight.add(at)).multiply_add(L::load(x.as_ptr().add(at)), sums[n]);
            (at, n) = (at + L::WIDTH, n + 1);
        }
        if at < x.len() {
            let count = x.len() - at;
            let rest = L::load_part(x.as_ptr().add(at), count);
            sums[SUMS - 1] = T::load_part::<L>(weight.add(at), count).multiply_add(rest, sums[SUMS - 1]);
        }
        sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum()
    }
}

/// `out += weight v`.
///
/// # Safety
/// `L`'s instruction set must be present.
#[inline(always)]
pub(super) unsafe fn axpy<L: Lanes, T: Element>(weight: f32, v: &[T], out: &mut [f32]) {
    assert_eq!(v.len(), out.len(), "axpy");
    // SAFETY: both slices have `out.len()` values.
    unsafe { add_rows::<L, T, 1, 0, true>(&[weight], v.as_ptr(), 0, out) };
}

/// Rounds to half precision.
///
/// # Safety
/// `L`'s instruction set must be present.
#[inline(always)]
pub(super) unsafe fn narrow<L: Lanes>(x: &[f32], out: &mut [f16]) {
    assert_eq!(x.len(), out.len(), "narrow");
    let whole = x.len() / L::WIDTH * L::WIDTH;
    for at in (0..whole).step_by(L::WIDTH) {
        // SAFETY: `at + WIDTH <= whole <= len` of both.
        unsafe { L::load(x.as_ptr().add(at)).store_f16(out.as_mut_ptr().add(at)) };
    }
    for (half, value) in out[whole..].iter_mut().zip(&x[whole..]) {
        *half = f16::from_f32(*value);
    }
}

/// Widens to f32, exactly.
///
/// # Safety
/// `L`'s instruction set must be present.
#[inline(always)]
pub(super) unsafe fn widen<L: Lanes, T: Element>(x: &[T], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "widen");
    let whole = x.len() / L::WIDTH * L::WIDTH;
    for at in (0..whole).step_by(L::WIDTH) {
        // SAFETY: `at + WIDTH <= whole <= len` of both.
        unsafe { T::load::<L>(x.as_ptr().add(at)).store(out.as_mut_ptr().add(at)) };
    }
    for (wide, value) in out[whole..].iter_mut().zip(&x[whole..]) {
        *wide = value.widen();
    }
}
