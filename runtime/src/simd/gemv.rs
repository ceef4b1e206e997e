//! Products of a matrix with one vector, and the row operations around them: weights are converted in
//! registers, the vector stays f32.
//!
//! Each row's sum is built the same way whatever rows stand beside it, so a row's value does not depend on how
//! rows were dealt to threads.

use super::lanes::{Element, Lanes};
use half::f16;

/// Rows that share one pass over the vector.
const ROWS: usize = 4;

/// `y = W x`.
///
/// # Safety
/// `L`'s instruction set must be present.
#[inline(always)]
pub(super) unsafe fn gemv<L: Lanes, T: Element>(weight: &[T], x: &[f32], y: &mut [f32]) {
    let columns = x.len();
    assert_eq!(weight.len(), columns * y.len(), "weight is [rows, columns]");
    let mut row = 0;
    while row + ROWS <= y.len() {
        // SAFETY: rows `row .. row + ROWS` lie inside `weight`, whose length was checked above.
        let sums = unsafe { rows::<L, T, ROWS>(weight.as_ptr().add(row * columns), x) };
        y[row..row + ROWS].copy_from_slice(&sums);
        row += ROWS;
    }
    while row < y.len() {
        // SAFETY: as above, for one row.
        y[row] = unsafe { rows::<L, T, 1>(weight.as_ptr().add(row * columns), x) }[0];
        row += 1;
    }
}

/// Inputs whose rows are read side by side, so that sums are loaded and stored once for all of them.
const INPUTS: usize = 8;
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
    let (groups, rest) = x.as_chunks::<INPUTS>();
    let mut at = 0;
    for group in groups {
        // SAFETY: rows `at .. at + INPUTS` have `y.len()` columns inside `weight`, whose length was checked above.
        unsafe { add_rows::<L, T, INPUTS>(weight.as_ptr().add(at * stride), stride, group, y) };
        at += INPUTS;
    }
    for value in rest {
        // SAFETY: as above, for one row.
        unsafe { add_rows::<L, T, 1>(weight.as_ptr().add(at * stride), stride, &[*value], y) };
        at += 1;
    }
}

/// `y += sum x_n W_n` over `N` rows, in order.
#[inline(always)]
unsafe fn add_rows<L: Lanes, T: Element, const N: usize>(
    weight: *const T,
    stride: usize,
    x: &[f32; N],
    y: &mut [f32],
) {
    // SAFETY: every access below stays inside `y` and inside `N` rows of as many columns.
    unsafe {
        let (mut by, mut rows) = ([L::splat(0.0); N], [weight; N]);
        for n in 0..N {
            by[n] = L::splat(x[n]);
            rows[n] = weight.add(n * stride);
        }
        let mut at = 0;
        while at + 2 * L::WIDTH <= y.len() {
            let to = y.as_mut_ptr().add(at);
            let (mut even, mut odd) = (L::load(to), L::load(to.add(L::WIDTH)));
            for n in 0..N {
                let row = rows[n].add(at);
                // A row is too short for the processor to see where the next group's begin.
                prefetch(row.wrapping_add(N * stride));
                if 2 * L::WIDTH * size_of::<T>() > LINE_BYTES {
                    prefetch(row.wrapping_add(N * stride + L::WIDTH));
                }
                even = T::load::<L>(row).multiply_add(by[n], even);
                odd = T::load::<L>(row.add(L::WIDTH)).multiply_add(by[n], odd);
            }
            even.store(to);
            odd.store(to.add(L::WIDTH));
            at += 2 * L::WIDTH;
        }
        if at + L::WIDTH <= y.len() {
            let to = y.as_mut_ptr().add(at);
            let mut sum = L::load(to);
            for n in 0..N {
                sum = T::load::<L>(rows[n].add(at)).multiply_add(by[n], sum);
            }
            sum.store(to);
            at += L::WIDTH;
        }
        if at < y.len() {
            let (to, count) = (y.as_mut_ptr().add(at), y.len() - at);
            let mut sum = L::load_part(to, count);
            for n in 0..N {
                sum = T::load_part::<L>(rows[n].add(at), count).multiply_add(by[n], sum);
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
    // SAFETY: `k` is one row of `q.len()` columns.
    let [sum] = unsafe { rows::<L, T, 1>(k.as_ptr(), q) };
    sum
}

/// The products of `N` adjacent rows with `x`: two accumulators a row, alternating, then the tail.
#[inline(always)]
unsafe fn rows<L: Lanes, T: Element, const N: usize>(weight: *const T, x: &[f32]) -> [f32; N] {
    let columns = x.len();
    // SAFETY: every read below stays inside `N` rows of `columns` weights and inside `x`.
    unsafe {
        let zero = L::splat(0.0);
        let (mut even, mut odd) = ([zero; N], [zero; N]);
        let mut at = 0;
        while at + 2 * L::WIDTH <= columns {
            let (first, second) = (L::load(x.as_ptr().add(at)), L::load(x.as_ptr().add(at + L::WIDTH)));
            for n in 0..N {
                let row = weight.add(n * columns + at);
                even[n] = T::load::<L>(row).multiply_add(first, even[n]);
                odd[n] = T::load::<L>(row.add(L::WIDTH)).multiply_add(second, odd[n]);
            }
            at += 2 * L::WIDTH;
        }
        if at + L::WIDTH <= columns {
            let first = L::load(x.as_ptr().add(at));
            for n in 0..N {
                even[n] = T::load::<L>(weight.add(n * columns + at)).multiply_add(first, even[n]);
            }
            at += L::WIDTH;
        }
        if at < columns {
            let count = columns - at;
            let rest = L::load_part(x.as_ptr().add(at), count);
            for n in 0..N {
                odd[n] = T::load_part::<L>(weight.add(n * columns + at), count).multiply_add(rest, odd[n]);
            }
        }
        let mut sums = [0.0; N];
        for n in 0..N {
            sums[n] = even[n].add(odd[n]).sum();
        }
        sums
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
    unsafe {
        let by = L::splat(weight);
        let mut at = 0;
        while at + L::WIDTH <= out.len() {
            let to = out.as_mut_ptr().add(at);
            T::load::<L>(v.as_ptr().add(at)).multiply_add(by, L::load(to)).store(to);
            at += L::WIDTH;
        }
        if at < out.len() {
            let (to, count) = (out.as_mut_ptr().add(at), out.len() - at);
            T::load_part::<L>(v.as_ptr().add(at), count)
                .multiply_add(by, L::load_part(to, count))
                .store_part(to, count);
        }
    }
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
