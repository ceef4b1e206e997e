//! Products of a matrix with one vector, and the row operations around them: weights are converted in
//! registers, the vector stays f32.
//!
//! Each row's sum is built the same way whatever rows stand beside it, so a row's value does not depend on how
//! rows were dealt to threads.

use super::lanes::{Element, Lanes};
use half::f16;

/// Vectors of a row that are summed side by side.
const SUMS: usize = 4;
/// Bytes of weights that are asked for ahead of their use.
const AHEAD: usize = 4096;

/// `y = W x`: row after row, so that the weights go by as one stream, which is what memory gives fastest.
///
/// # Safety
/// `L`'s instruction set must be present.
#[inline(always)]
pub(super) unsafe fn gemv<L: Lanes, T: Element>(weight: &[T], x: &[f32], y: &mut [f32]) {
    let columns = x.len();
    assert_eq!(weight.len(), columns * y.len(), "weight is [rows, columns]");
    for (row, out) in y.iter_mut().enumerate() {
        // SAFETY: the row lies inside `weight`, whose length was checked above.
        *out = unsafe { sum::<L, T>(weight.as_ptr().add(row * columns), x) };
    }
}

/// Bytes that come from memory together.
const LINE_BYTES: usize = 64;

/// Asks for what will be read soon. Any address may be asked for.
#[inline(always)]
pub(super) fn prefetch<T>(at: *const T) {
    // SAFETY: a hint of every x86-64 processor, which reads nothing that could fault.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast())
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// `y = x W` for the first `y.len()` columns of `W`, whose rows lie `stride` apart: each row is read as it stands, and
/// every column's sum runs over the rows in order, whatever columns stand beside it.
///
/// # Safety
/// `L`'s instruction set must be present.
#[inline(always)]
pub(super) unsafe fn gemv_rows<L: Lanes, T: Element>(weight: &[T], stride: usize, x: &[f32], y: &mut [f32]) {
    assert!(y.len() <= stride, "rows of W overlap");
    let needed = x.len().checked_sub(1).map_or(0, |last| last * stride + y.len());
    assert!(needed <= weight.len(), "weight is [x.len(), stride]");
    y.fill(0.0);
    for (row, by) in x.iter().enumerate() {
        // SAFETY: the row has `y.len()` columns inside `weight`, whose length was checked above.
        unsafe { add_row::<L, T>(*by, weight.as_ptr().add(row * stride), y) };
    }
}

/// `out += weight v`, `v` being as long.
#[inline(always)]
unsafe fn add_row<L: Lanes, T: Element>(weight: f32, v: *const T, out: &mut [f32]) {
    // SAFETY: the caller vouches for `out.len()` values at `v`.
    unsafe {
        let by = L::splat(weight);
        let mut at = 0;
        while at + 4 * L::WIDTH <= out.len() {
            for n in 0..4 {
                let (from, to) = (v.add(at + n * L::WIDTH), out.as_mut_ptr().add(at + n * L::WIDTH));
                T::load::<L>(from).multiply_add(by, L::load(to)).store(to);
            }
            at += 4 * L::WIDTH;
        }
        while at + L::WIDTH <= out.len() {
            let to = out.as_mut_ptr().add(at);
            T::load::<L>(v.add(at)).multiply_add(by, L::load(to)).store(to);
            at += L::WIDTH;
        }
        if at < out.len() {
            let (to, count) = (out.as_mut_ptr().add(at), out.len() - at);
            T::load_part::<L>(v.add(at), count)
                .multiply_add(by, L::load_part(to, count))
                .store_part(to, count);
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
    unsafe { sum::<L, T>(k.as_ptr(), q) }
}

/// `sum w_i x_i` in [`SUMS`] sums of every so many vectors, added in pairs.
#[inline(always)]
unsafe fn sum<L: Lanes, T: Element>(weight: *const T, x: &[f32]) -> f32 {
    // SAFETY: the caller vouches for `x.len()` values at `weight`.
    unsafe {
        let mut sums = [L::splat(0.0); SUMS];
        let mut at = 0;
        while at + SUMS * L::WIDTH <= x.len() {
            for line in (0..SUMS * L::WIDTH * size_of::<T>()).step_by(LINE_BYTES) {
                prefetch(weight.add(at).wrapping_byte_add(AHEAD + line));
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
    unsafe { add_row::<L, T>(weight, v.as_ptr(), out) };
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
