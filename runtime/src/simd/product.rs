//! The general matrix product `C = A B` or `C += A B`, with any orientation of `A` and `B`.
//!
//! A register tile of `C` walks the inner dimension, adding to what it began with (zero, a bias, or `C`), so an
//! element's sum runs over the inner index in order, whatever the blocking: splitting rows or columns between
//! threads changes no bit. `B` is read from packed panels, in place, or packed block by block (which hides a
//! transpose); so is a transposed `A`, in place or packed.
//!
//! What a tile waits for was far away a moment ago: the old values it adds to, and the next columns of `B`. One of the two is
//! asked for while the tile before multiplies.

use super::gemv::{prefetch, prefetch_lines};
use super::lanes::{Element, Lanes};
use super::{Aligned, PANEL};
use std::cell::UnsafeCell;
use std::ops::Range;

/// Inner indices of one block: a panel pair of this length stays in the first-level cache.
const INNER: usize = 256;
/// Rows of one block: a block of `A` stays in the second-level cache. A multiple of every tile.
const ROWS: usize = 120;
/// Longest stride, in elements, over which a factor is read in place: beyond, each row is a page of its own.
const IN_PLACE_STRIDE: usize = 1600;
/// Strides of so many elements fall into few sets of any cache.
const CROWDED_STRIDE: usize = 1024;
/// A transposed `A` is packed when more column groups than these read it; fewer do not repay the copy.
const IN_PLACE_GROUPS: usize = 2;
/// Rows are asked for so many rows before they are laid into panels.
const ROWS_AHEAD: usize = 16;
/// Values between packed strips.
const STRIP_GAP: usize = 16;
/// Widest tile, in panels, of any instruction set.
const PANELS: usize = 2;

/// The sizes and orientations of one product.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// Rows of `A` and `C`.
    pub rows: usize,
    /// Columns of `A`, rows of `B`.
    pub inner: usize,
    /// Columns of `B` and `C`.
    pub columns: usize,
    /// Distance between rows of `A`, in elements.
    pub a_row_stride: usize,
    /// Distance between columns of `A`; one of the two strides is 1.
    pub a_inner_stride: usize,
    /// Where the elements of `B` are.
    pub b: Operand,
    /// Distance between rows of `C`.
    pub c_stride: usize,
    /// Whether `C`'s old values count.
    pub write: Write,
}

/// How the second factor is stored.
#[derive(Clone, Copy, Debug)]
pub enum Operand {
    /// Packed by `pack_*`: panels of [`PANEL`] columns.
    Panels,
    /// Element `(k, j)` at `k * stride + j`.
    Rows {
        /// Distance between rows.
        stride: usize,
    },
    /// Element `(k, j)` at `j * stride + k`: the product with a transpose.
    Transposed {
        /// Distance between columns.
        stride: usize,
    },
}

/// What happens to the old values of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// They are replaced.
    Set,
    /// They are added to.
    Accumulate,
}

/// What else is added to a product where it is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// What each sum begins with, one value a column; needs [`Write::Set`].
    pub bias: Option<&'a [f32]>,
    /// What is added to each finished sum, a matrix that lies as `C` does.
    pub residual: Option<&'a [f32]>,
}

impl<'a> Epilogue<'a> {
    /// No residual, and a bias if there is one.
    pub fn of(bias: Option<&'a [f32]>) -> Epilogue<'a> {
        Epilogue { bias, residual: None }
    }
}

/// See [`Product`].
///
/// # Safety
/// `L`'s instruction set must be present.
#[inline(always)]
pub(super) unsafe fn product<L: Lanes>(
    p: &Product,
    a: &[f32],
    b: &[f32],
    epilogue: Epilogue<'_>,
    c: &mut [f32],
) {
    if p.rows == 0 || p.columns == 0 {
        return;
    }
    check(p, a, b, epilogue, c);
    if p.inner == 0 {
        return empty(p, epilogue, c);
    }
    let group = L::TILE_VECTORS * L::WIDTH;
    let blocks = p.inner.div_ceil(INNER);
    let block = p.inner.div_ceil(blocks);
    let (strips, panels) = scratch();
    for first_inner in (0..p.inner).step_by(block) {
        let inner = block.min(p.inner - first_inner);
        for first_row in (0..p.rows).step_by(ROWS) {
            let rows = ROWS.min(p.rows - first_row);
            // SAFETY: all pointers below are offsets that `check` proved to be inside `a`, `b` and `c`; the
            // scratch blocks hold `ROWS x INNER` and `PANELS x PANEL x INNER` values and are written before
            // they are read.
            unsafe {
                let mut left = a.as_ptr().add(first_row * p.a_row_stride + first_inner * p.a_inner_stride);
                let (mut row_stride, mut inner_stride) = (p.a_row_stride, p.a_inner_stride);
                let packed_rows = inner_stride != 1
                    && inner > 1
                    && p.columns > IN_PLACE_GROUPS * group
                    && !in_place(inner_stride);
                if packed_rows {
                    pack_strips::<L>(left, row_stride, inner_stride, rows, inner, strips);
                    (left, row_stride, inner_stride) = (strips, 1, L::TILE_ROWS);
                }
                let share = inner.div_ceil(rows.div_ceil(L::TILE_ROWS));
                for first_column in (0..p.columns).step_by(group) {
                    let columns = group.min(p.columns - first_column);
                    let right = right_block::<L>(p, b, first_inner, inner, first_column, columns, panels);
                    let begin = match (p.write, epilogue.bias) {
                        _ if first_inner > 0 => Begin::Old,
                        (Write::Accumulate, _) => Begin::Old,
                        (Write::Set, Some(bias)) => Begin::Bias(bias.as_ptr().add(first_column)),
                        (Write::Set, None) => Begin::Zero,
                    };
                    let mut at = 0;
                    while at < rows {
                        let count = L::TILE_ROWS.min(rows - at);
                        // What follows is asked for while a tile multiplies: the next old values where they
                        // come from elsewhere, or else a share of the next columns of `B`. Where one tile has
                        // all rows its columns go by as one stream, which the processor follows better alone.
                        if p.write == Write::Accumulate {
                            let below = at + count < rows;
                            let column = if below { first_column } else { first_column + group };
                            ask_for_old::<L>(p, c, first_row + if below { at + count } else { 0 }, column);
                        } else if p.rows > L::TILE_ROWS {
                            let from = first_inner + at / L::TILE_ROWS * share;
                            let until = (from + share).min(first_inner + inner);
                            ask_for_right(p, b, from..until, first_column + group, group);
                        }
                        let tile = Tile {
                            inner,
                            // A packed strip of TILE_ROWS rows is contiguous; rows in place are strided.
                            a: if packed_rows {
                                left.add(at / L::TILE_ROWS * strip_len::<L>(inner))
                            } else {
                                left.add(at * row_stride)
                            },
                            a_row_stride: row_stride,
                            a_inner_stride: inner_stride,
                            b: right,
                            c: c.as_mut_ptr().add((first_row + at) * p.c_stride + first_column),
                            c_stride: p.c_stride,
                            columns,
                            begin,
                            residual: match epilogue.residual {
                                Some(residual) if first_inner + inner == p.inner => {
                                    residual.as_ptr().add((first_row + at) * p.c_stride + first_column)
                                }
                                _ => std::ptr::null(),
                            },
                        };
                        tile.run::<L>(count);
                        at += count;
                    }
                }
            }
        }
    }
}

/// This thread's blocks: [`ROWS`] x [`INNER`] of `A` and [`PANELS`] panels of [`INNER`] rows of `B`. They are too
/// large for the stack of a call that may be over in a microsecond.
#[inline(always)]
fn scratch() -> (*mut f32, *mut f32) {
    const STRIPS: usize = ROWS * (INNER + STRIP_GAP);
    thread_local! {
        static BLOCKS: UnsafeCell<Aligned> =
            UnsafeCell::new(Aligned::zeroed(STRIPS + PANELS * PANEL * INNER));
    }
    BLOCKS.with(|blocks| {
        // SAFETY: only `product` asks for the blocks, never while it already holds them on this thread, and both
        // parts lie inside the allocation.
        unsafe {
            let first = (*blocks.get()).as_mut_ptr();
            (first, first.add(STRIPS))
        }
    })
}

/// The product over no inner index.
fn empty(p: &Product, epilogue: Epilogue<'_>, c: &mut [f32]) {
    for row in 0..p.rows {
        let place = row * p.c_stride..row * p.c_stride + p.columns;
        match (p.write, epilogue.bias) {
            (Write::Accumulate, _) => {}
            (Write::Set, Some(bias)) => c[place.clone()].copy_from_slice(bias),
            (Write::Set, None) => c[place.clone()].fill(0.0),
        }
        if let Some(residual) = epilogue.residual {
            c[place.clone()].iter_mut().zip(&residual[place]).for_each(|(c, residual)| *c += residual);
        }
    }
}

/// Proves that every element the product touches lies inside its slice.
#[inline(always)]
fn check(p: &Product, a: &[f32], b: &[f32], epilogue: Epilogue<'_>, c: &[f32]) {
    assert!(p.a_row_stride == 1 || p.a_inner_stride == 1 || p.rows == 1 || p.inner <= 1, "A is a matrix");
    assert!(p.c_stride >= p.columns || p.rows == 1, "rows of C overlap");
    assert!((p.rows - 1) * p.c_stride + p.columns <= c.len(), "C is too short");
    if let Some(bias) = epilogue.bias {
        assert!(bias.len() == p.columns && p.write == Write::Set, "bias: one value a column, and no old C");
    }
    if let Some(residual) = epilogue.residual {
        assert!((p.rows - 1) * p.c_stride + p.columns <= residual.len(), "the residual is too short");
    }
    if p.inner == 0 {
        return;
    }
    assert!((p.rows - 1) * p.a_row_stride + (p.inner - 1) * p.a_inner_stride < a.len(), "A is too short");
    let needed = match p.b {
        Operand::Panels => super::packed_len(p.columns, p.inner),
        Operand::Rows { stride } => (p.inner - 1) * stride + p.columns,
        Operand::Transposed { stride } => (p.columns - 1) * stride + p.inner,
    };
    assert!(needed <= b.len(), "B is too short");
}

/// Whether a factor's rows, so far apart, are read where they stand.
fn in_place(stride: usize) -> bool {
    stride <= IN_PLACE_STRIDE && !stride.is_multiple_of(CROWDED_STRIDE)
}

/// Asks for the tile of `C` that begins at `(row, column)`, if there is one.
#[inline(always)]
fn ask_for_old<L: Lanes>(p: &Product, c: &[f32], row: usize, column: usize) {
    for row in row..p.rows.min(row + L::TILE_ROWS) {
        let columns = p.columns.saturating_sub(column).min(L::TILE_VECTORS * L::WIDTH);
        prefetch_lines::<_, true>(c.as_ptr().wrapping_add(row * p.c_stride + column), columns);
    }
}

/// Asks for some rows of at most `width` columns of `B`, unless it stands transposed.
#[inline(always)]
fn ask_for_right(p: &Product, b: &[f32], inner: Range<usize>, column: usize, width: usize) {
    let width = width.min(p.columns.saturating_sub(column));
    match p.b {
        Operand::Panels => {
            for panel in (column..column + width).step_by(PANEL) {
                let from = b.as_ptr().wrapping_add(panel * p.inner + inner.start * PANEL);
                prefetch_lines::<_, true>(from, inner.len() * PANEL);
            }
        }
        Operand::Rows { stride } => {
            for k in inner {
                prefetch_lines::<_, true>(b.as_ptr().wrapping_add(k * stride + column), width);
            }
        }
        Operand::Transposed { .. } => {}
    }
}

/// Where a tile finds its columns of `B`: up to [`PANELS`] places, each advancing by `stride`.
#[derive(Clone, Copy)]
struct Right {
    at: [*const f32; PANELS],
    stride: usize,
}

/// The block `[inner, columns]` of `B` from `(first_inner, first_column)`, in place where that is fast.
#[inline(always)]
unsafe fn right_block<L: Lanes>(
    p: &Product,
    b: &[f32],
    first_inner: usize,
    inner: usize,
    first_column: usize,
    columns: usize,
    scratch: *mut f32,
) -> Right {
    // SAFETY: `check` proved the block to be inside `b`; the scratch holds `PANELS` panels of `INNER` rows.
    unsafe {
        let places = |base: *const f32, distance: usize| {
            let second = if columns > PANEL { base.add(distance) } else { base };
            [base, second]
        };
        match p.b {
            Operand::Panels => {
                let base = b.as_ptr().add(first_column * p.inner + first_inner * PANEL);
                Right { at: places(base, p.inner * PANEL), stride: PANEL }
            }
            Operand::Rows { stride } => {
                let base = b.as_ptr().add(first_inner * stride + first_column);
                if in_place(stride) && columns.is_multiple_of(L::WIDTH) {
                    return Right { at: places(base, PANEL), stride };
                }
                lay::<L, f32>(base, stride, inner, columns, scratch);
                Right { at: places(scratch, inner * PANEL), stride: PANEL }
            }
            Operand::Transposed { stride } => {
                let base = b.as_ptr().add(first_column * stride + first_inner);
                for panel in 0..columns.div_ceil(PANEL) {
                    let count = PANEL.min(columns - panel * PANEL);
                    let to = scratch.add(panel * inner * PANEL);
                    transpose::<L, f32>(base.add(panel * PANEL * stride), stride, count, inner, to, None);
                }
                Right { at: places(scratch, inner * PANEL), stride: PANEL }
            }
        }
    }
}

/// `inner` rows of `columns` values at `stride` into panels of as many rows; columns that a last panel lacks are zero.
#[inline(always)]
unsafe fn lay<L: Lanes, T: Element>(
    from: *const T,
    stride: usize,
    inner: usize,
    columns: usize,
    to: *mut f32,
) {
    for k in 0..inner {
        for first in (0..columns).step_by(PANEL) {
            prefetch::<_, true>(from.wrapping_add((k + ROWS_AHEAD) * stride + first));
            // SAFETY: the caller vouches for the rows at `from` and for whole panels at `to`.
            unsafe {
                let (from, to) = (from.add(k * stride + first), to.add(first * inner + k * PANEL));
                for lane in (0..PANEL).step_by(L::WIDTH) {
                    let count = (columns - first).saturating_sub(lane);
                    let value = match count {
                        0 => L::splat(0.0),
                        _ if count >= L::WIDTH => T::load(from.add(lane)),
                        _ => T::load_part(from.add(lane), count),
                    };
                    value.store(to.add(lane));
                }
            }
        }
    }
}

/// `count <= PANEL` rows of `inner` values at `stride`, transposed to `[inner, PANEL]`; missing rows are zero. As many
/// values as a whole panel has are asked for at `next` meanwhile.
#[inline(always)]
unsafe fn transpose<L: Lanes, T: Element>(
    from: *const T,
    stride: usize,
    count: usize,
    inner: usize,
    to: *mut f32,
    next: Option<*const T>,
) {
    // SAFETY: the caller vouches for `count` rows of `inner` values and for `inner x PANEL` at `to`.
    unsafe {
        for first_row in (0..PANEL).step_by(L::WIDTH) {
            let mut k = 0;
            while k < inner {
                let width = L::WIDTH.min(inner - k);
                if let (Some(next), 0) = (next, first_row) {
                    prefetch_lines::<T, true>(next.wrapping_add(k * PANEL), width * PANEL);
                }
                let mut square = [L::splat(0.0); PANEL];
                for row in first_row..(first_row + L::WIDTH).min(count) {
                    let source = from.add(row * stride + k);
                    square[row - first_row] =
                        if width == L::WIDTH { T::load(source) } else { T::load_part(source, width) };
                }
                L::transpose(&mut square);
                for step in 0..width {
                    square[step].store(to.add((k + step) * PANEL + first_row));
                }
                k += width;
            }
        }
    }
}

/// All of `W` `[outputs, inputs]` into panels.
///
/// # Safety
/// `L`'s instruction set must be present.
#[inline(always)]
pub(super) unsafe fn pack<L: Lanes, T: Element>(
    weight: &[T],
    outputs: usize,
    inputs: usize,
    panels: &mut [f32],
) {
    assert_eq!(weight.len(), outputs * inputs, "weight is [outputs, inputs]");
    assert_eq!(panels.len(), super::packed_len(outputs, inputs), "panels are whole");
    // Sixteen rows side by side are too many streams for the processor to follow: a panel's rows lie one after the
    // other, and are asked for as they lie while the panel before is packed. What is as wide as here is mostly near.
    let ask = size_of::<T>() < size_of::<f32>();
    if ask {
        prefetch_lines::<T, true>(weight.as_ptr(), inputs * PANEL.min(outputs));
    }
    for first in (0..outputs).step_by(PANEL) {
        let count = PANEL.min(outputs - first);
        // SAFETY: both lengths were checked; panel `first / PANEL` begins at `first * inputs`.
        unsafe {
            let from = weight.as_ptr().add(first * inputs);
            let next = (ask && first + PANEL < outputs).then_some(from.wrapping_add(PANEL * inputs));
            let to = panels.as_mut_ptr().add(first * inputs);
            transpose::<L, T>(from, inputs, count, inputs, to, next);
        }
    }
}

/// The first `outputs` of `W` `[inputs, stride]`, which stands transposed, into the same panels.
///
/// # Safety
/// `L`'s instruction set must be present.
#[inline(always)]
pub(super) unsafe fn pack_rows<L: Lanes, T: Element>(
    weight: &[T],
    [outputs, inputs, stride]: [usize; 3],
    panels: &mut [f32],
) {
    assert!(outputs <= stride, "rows of W overlap");
    let needed = inputs.checked_sub(1).map_or(0, |last| last * stride + outputs);
    assert!(needed <= weight.len(), "weight is [inputs, stride]");
    assert_eq!(panels.len(), super::packed_len(outputs, inputs), "panels are whole");
    // SAFETY: both lengths were checked.
    unsafe { lay::<L, T>(weight.as_ptr(), stride, inputs, outputs, panels.as_mut_ptr()) }
}

/// A block of `A` into strips `[rows / TILE_ROWS][inner][TILE_ROWS]`; missing rows of the last strip are zero.
#[inline(always)]
unsafe fn pack_strips<L: Lanes>(
    from: *const f32,
    row_stride: usize,
    inner_stride: usize,
    rows: usize,
    inner: usize,
    to: *mut f32,
) {
    let strip = strip_len::<L>(inner);
    for k in 0..inner {
        for at in (0..rows).step_by(L::TILE_ROWS) {
            let count = L::TILE_ROWS.min(rows - at);
            // SAFETY: the caller vouches for the block at `from` and for as many strips at `to`;
            // `ROWS` is a multiple of every instruction set's tile.
            unsafe {
                let source = from.add(at * row_stride + k * inner_stride);
                let target = to.add(at / L::TILE_ROWS * strip + k * L::TILE_ROWS);
                if count == L::TILE_ROWS && row_stride == 1 {
                    std::ptr::copy_nonoverlapping(source, target, L::TILE_ROWS);
                } else {
                    for row in 0..L::TILE_ROWS {
                        *target.add(row) = if row < count { *source.add(row * row_stride) } else { 0.0 };
                    }
                }
            }
        }
    }
}

/// Distance between strips: a line more than they are long, or all would begin in the same cache set.
const fn strip_len<L: Lanes>(inner: usize) -> usize {
    inner * L::TILE_ROWS + STRIP_GAP
}

/// What a register tile holds before its first product.
#[derive(Clone, Copy)]
enum Begin {
    Zero,
    Bias(*const f32),
    Old,
}

/// One register tile of `C`.
struct Tile {
    inner: usize,
    a: *const f32,
    a_row_stride: usize,
    a_inner_stride: usize,
    b: Right,
    c: *mut f32,
    c_stride: usize,
    columns: usize,
    begin: Begin,
    /// What is added at the end, as far apart as `c`; null if nothing.
    residual: *const f32,
}

impl Tile {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self, rows: usize) {
        // SAFETY: the caller made a tile of `rows` rows inside its matrices.
        unsafe {
            if self.columns > (L::TILE_VECTORS - 1) * L::WIDTH {
                self.rows_of::<L, 2>(rows);
            } else {
                self.rows_of::<L, 1>(rows);
            }
        }
    }

    #[inline(always)]
    unsafe fn rows_of<L: Lanes, const VECTORS: usize>(&self, rows: usize) {
        // SAFETY: as in `run`.
        unsafe {
            match rows {
                1 => self.multiply::<L, 1, VECTORS>(),
                2 => self.multiply::<L, 2, VECTORS>(),
                3 => self.multiply::<L, 3, VECTORS>(),
                4 => self.multiply::<L, 4, VECTORS>(),
                5 => self.multiply::<L, 5, VECTORS>(),
                6 => self.multiply::<L, 6, VECTORS>(),
                7 => self.multiply::<L, 7, VECTORS>(),
                _ => self.multiply::<L, 8, VECTORS>(),
            }
        }
    }

    #[inline(always)]
    unsafe fn multiply<L: Lanes, const ROWS: usize, const VECTORS: usize>(&self) {
        // SAFETY: as in `run`; a vector that reaches past `columns` is read and written in part.
        unsafe {
            let whole = self.columns >= VECTORS * L::WIDTH;
            let part = |vector: usize| self.columns.saturating_sub(vector * L::WIDTH);
            let mut sum = [[L::splat(0.0); VECTORS]; ROWS];
            match self.begin {
                Begin::Zero => {}
                Begin::Bias(bias) => {
                    for vector in 0..VECTORS {
                        let from = bias.add(vector * L::WIDTH);
                        let value = if whole { L::load(from) } else { load_some(from, part(vector)) };
                        for row in &mut sum {
                            row[vector] = value;
                        }
                    }
                }
                Begin::Old => {
                    for (row, sums) in sum.iter_mut().enumerate() {
                        for (vector, value) in sums.iter_mut().enumerate() {
                            let from = self.c.add(row * self.c_stride + vector * L::WIDTH);
                            *value = if whole { L::load(from) } else { load_some(from, part(vector)) };
                        }
                    }
                }
            }
            let mut right = [self.b.at[0]; VECTORS];
            if VECTORS == 2 {
                right[1] = if L::WIDTH == PANEL { self.b.at[1] } else { self.b.at[0].add(L::WIDTH) };
            }
            // A pointer a row, hidden from the compiler, which would otherwise compute each one anew from the
            // stride at every step, on the ports that the multiplications need.
            let mut rows = [self.a; ROWS];
            for (row, at) in rows.iter_mut().enumerate() {
                *at = self.a.add(row * self.a_row_stride);
            }
            let rows = std::hint::black_box(rows);
            let (mut at, end) = (0, self.inner * self.a_inner_stride);
            while at != end {
                let mut values = [L::splat(0.0); VECTORS];
                for vector in 0..VECTORS {
                    values[vector] = L::load(right[vector]);
                    right[vector] = right[vector].add(self.b.stride);
                }
                for (row, sums) in sum.iter_mut().enumerate() {
                    let by = L::splat(*rows[row].add(at));
                    for vector in 0..VECTORS {
                        sums[vector] = by.multiply_add(values[vector], sums[vector]);
                    }
                }
                at += self.a_inner_stride;
            }
            if !self.residual.is_null() {
                for (row, sums) in sum.iter_mut().enumerate() {
                    for (vector, value) in sums.iter_mut().enumerate() {
                        let from = self.residual.add(row * self.c_stride + vector * L::WIDTH);
                        let old = if whole { L::load(from) } else { load_some(from, part(vector)) };
                        *value = old.add(*value);
                    }
                }
            }
            for (row, sums) in sum.iter().enumerate() {
                for (vector, value) in sums.iter().enumerate() {
                    let to = self.c.add(row * self.c_stride + vector * L::WIDTH);
                    if whole {
                        value.store(to);
                    } else {
                        store_some(*value, to, part(vector));
                    }
                }
            }
        }
    }
}

/// Reads up to a whole vector.
#[inline(always)]
unsafe fn load_some<L: Lanes>(from: *const f32, count: usize) -> L {
    // SAFETY: the caller vouches for `count` values, or for a whole vector when there are as many.
    unsafe { if count >= L::WIDTH { L::load(from) } else { L::load_part(from, count) } }
}

/// Writes up to a whole vector.
#[inline(always)]
unsafe fn store_some<L: Lanes>(value: L, to: *mut f32, count: usize) {
    // SAFETY: as in `load_some`.
    unsafe { if count >= L::WIDTH { value.store(to) } else { value.store_part(to, count) } }
}
