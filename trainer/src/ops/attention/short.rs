//! Attention over windows of at most eight rows: the lecture's block.
//!
//! Weights are held transposed, one vector of queries a key, so that maxima, sums and exponentials run down whole
//! vectors and nothing is reduced across lanes; one head's square lives in registers. Equations and signs are those
//! of the room above. Rows and keys beyond a shorter window repeat its last; they weigh nothing and are not written.
//!
//! Windows may share the rows of their beginnings, see [`crate::windows`]: a window then writes only what it adds, and
//! may read each row where its id and place stand.

use super::Heads;
use crate::ops::dropout::Mask;
use crate::windows::Windows;
use runtime::simd::Simd;
use runtime::simd::octets::{OCTET, Octet, OctetWork, Octets};

/// Longest window of this room.
pub const MOST: usize = OCTET;

/// A head's square of weights or their gradients, `[keys, queries]`.
const SQUARE: usize = OCTET * OCTET;

/// Whether this room serves heads of this shape.
pub fn serves(s: &Heads) -> bool {
    s.block <= MOST && s.size.is_multiple_of(OCTET) && s.kv_heads == s.heads
}

/// Scratch of one head: its queries or output gradients transposed.
pub fn scratch(s: &Heads) -> usize {
    s.size * OCTET
}

/// Length of what the forward pass keeps: the weights themselves, a square a head.
pub fn kept(s: &Heads) -> usize {
    s.sequences * s.heads * SQUARE
}

/// See [`super::forward`].
pub fn forward(
    simd: &Simd,
    s: &Heads,
    windows: Windows<'_>,
    qkv: &[f32],
    mask: Mask,
    out: &mut [f32],
    kept: &mut [f32],
    scratch: &mut [f32],
) {
    simd.run_octets(Forward { s, windows, qkv, mask, out, kept, scratch });
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
    simd.run_octets(Backward { s, qkv, kept, mask, d_out, d_qkv, scratch });
}

/// Where the rows of one window stand.
#[derive(Clone, Copy)]
struct Window {
    rows: [usize; OCTET],
    /// Where its queries, keys and values do.
    read: [usize; OCTET],
    /// How many of them a window before this one has written.
    known: usize,
}

impl Window {
    #[inline(always)]
    fn new(s: &Heads, windows: Windows<'_>, window: usize) -> Window {
        let Some(shared) = windows.shared() else {
            let rows = std::array::from_fn(|place| window * s.block + place.min(s.block - 1));
            return Window { rows, read: rows, known: 0 };
        };
        let from = &shared.rows[window * s.block..][..s.block];
        let rows: [usize; OCTET] = std::array::from_fn(|place| from[place.min(s.block - 1)] as usize);
        let mut read = rows;
        if let Windows::Placed(_) = windows {
            for (place, row) in read.iter_mut().enumerate() {
                *row = shared.ids[*row] as usize * s.block + place.min(s.block - 1);
            }
        }
        Window { rows, read, known: shared.known[window] as usize }
    }
}

/// The columns of one head in a row of the fused projection.
#[derive(Clone, Copy)]
struct Columns {
    query: usize,
    key: usize,
    value: usize,
}

impl Columns {
    #[inline(always)]
    fn new(s: &Heads, head: usize) -> Columns {
        let query = head * s.size;
        Columns { query, key: s.width() + query, value: 2 * s.width() + query }
    }
}

/// One head's rows within a wider matrix.
#[derive(Clone, Copy)]
struct Rows<'a>([&'a [f32]; OCTET]);

impl<'a> Rows<'a> {
    #[inline(always)]
    fn new(s: &Heads, window: &Window, values: &'a [f32], column: usize, stride: usize) -> Rows<'a> {
        let mut rows: [&[f32]; OCTET] = [&[]; OCTET];
        for (slice, row) in rows.iter_mut().zip(window.read) {
            *slice = &values[row * stride + column..][..s.size];
        }
        Rows(rows)
    }

    /// The rows as columns, eight lanes each.
    #[inline(always)]
    fn transpose<O: Octet>(&self, octets: Octets<O>, to: &mut [f32]) {
        for (square, to) in to.chunks_exact_mut(SQUARE).enumerate() {
            let mut lanes = [octets.splat(0.0); OCTET];
            for (lane, row) in lanes.iter_mut().zip(self.0) {
                *lane = octets.load(&row[square * OCTET..]);
            }
            octets.transpose(&mut lanes);
            for (column, to) in lanes.into_iter().zip(to.chunks_exact_mut(OCTET)) {
                octets.store(column, to);
            }
        }
    }

    /// `sum_c row[c] columns[c]` for every row.
    #[inline(always)]
    fn combine<O: Octet>(&self, octets: Octets<O>, columns: &[f32]) -> [O; OCTET] {
        let mut sums = [octets.splat(0.0); OCTET];
        for (c, column) in columns.chunks_exact(OCTET).enumerate() {
            let column = octets.load(column);
            for (sum, row) in sums.iter_mut().zip(&self.0) {
                *sum = octets.multiply_add(octets.splat(row[c]), column, *sum);
            }
        }
        sums
    }
}

/// Which triangle of a square of weights a sum runs over.
trait Triangle {
    /// Whether row `source` is part of the sum for row `target`.
    fn has(source: usize, target: usize) -> bool;
    /// Where its weight stands.
    fn at(source: usize, target: usize) -> usize;
}

/// Sums over the keys that a query sees.
struct Keys;

impl Triangle for Keys {
    #[inline(always)]
    fn has(key: usize, query: usize) -> bool {
        key <= query
    }

    #[inline(always)]
    fn at(key: usize, query: usize) -> usize {
        key * OCTET + query
    }
}

/// Sums over the queries that see a key.
struct Queries;

impl Triangle for Queries {
    #[inline(always)]
    fn has(query: usize, key: usize) -> bool {
        key <= query
    }

    #[inline(always)]
    fn at(query: usize, key: usize) -> usize {
        key * OCTET + query
    }
}

/// Adds source row `SOURCE`, if the window has it, to the sums it is part of; its number is constant so that the
/// sums are registers.
#[inline(always)]
fn spread<const SOURCE: usize, T: Triangle, O: Octet>(
    octets: Octets<O>,
    s: &Heads,
    weights: &[f32; SQUARE],
    row: &[f32],
    sums: &mut [O; OCTET],
) {
    if SOURCE >= s.block {
        return;
    }
    let row = octets.load(row);
    for target in 0..OCTET {
        if T::has(SOURCE, target) {
            let weight = octets.splat(weights[T::at(SOURCE, target)]);
            sums[target] = octets.multiply_add(weight, row, sums[target]);
        }
    }
}

/// `to_target = sum over sources of weight(source, target) row_source`, for the window's new rows of `to`, at `first` of
/// their columns.
#[inline(always)]
fn mix<T: Triangle, O: Octet>(
    octets: Octets<O>,
    s: &Heads,
    window: &Window,
    weights: &[f32; SQUARE],
    rows: &Rows<'_>,
    to: &mut [f32],
    first: usize,
    stride: usize,
) {
    for column in (0..s.size).step_by(OCTET) {
        let mut sums = [octets.splat(0.0); OCTET];
        let part = |row: usize| &rows.0[row][column..];
        spread::<0, T, O>(octets, s, weights, part(0), &mut sums);
        spread::<1, T, O>(octets, s, weights, part(1), &mut sums);
        spread::<2, T, O>(octets, s, weights, part(2), &mut sums);
        spread::<3, T, O>(octets, s, weights, part(3), &mut sums);
        spread::<4, T, O>(octets, s, weights, part(4), &mut sums);
        spread::<5, T, O>(octets, s, weights, part(5), &mut sums);
        spread::<6, T, O>(octets, s, weights, part(6), &mut sums);
        spread::<7, T, O>(octets, s, weights, part(7), &mut sums);
        for (place, (sum, row)) in sums.into_iter().zip(window.rows).enumerate() {
            if place < s.block && place >= window.known {
                octets.store(sum, &mut to[row * stride + first + column..]);
            }
        }
    }
}

/// What is added to a score and what its weight is multiplied by: nothing where the query sees the key, and what
/// leaves no weight where it does not. A window shorter than eight has no keys beyond its end.
struct Sight<O> {
    shift: [O; OCTET],
    share: [O; OCTET],
}

impl<O: Octet> Sight<O> {
    #[inline(always)]
    fn new(octets: Octets<O>, s: &Heads) -> Sight<O> {
        let mut sight = Sight { shift: [octets.splat(0.0); OCTET], share: [octets.splat(0.0); OCTET] };
        for key in 0..OCTET {
            let (mut shift, mut share) = ([f32::NEG_INFINITY; OCTET], [0.0; OCTET]);
            if key < s.block {
                shift[key..].fill(0.0);
                share[key..].fill(1.0);
            }
            (sight.shift[key], sight.share[key]) = (octets.load(&shift), octets.load(&share));
        }
        sight
    }

    /// The softmax of scaled scores down the keys. A NaN is passed over by the maximum and comes back through its
    /// own exponential.
    #[inline(always)]
    fn softmax(&self, octets: Octets<O>, scale: f32, scores: &mut [O; OCTET]) {
        let mut maximum = octets.splat(f32::NEG_INFINITY);
        for (score, shift) in scores.iter_mut().zip(self.shift) {
            *score = octets.multiply_add(*score, octets.splat(scale), shift);
            maximum = octets.maximum(*score, maximum);
        }
        let mut sum = octets.splat(0.0);
        for (score, share) in scores.iter_mut().zip(self.share) {
            *score = octets.multiply(octets.exp(octets.subtract(*score, maximum)), share);
            sum = octets.add(sum, *score);
        }
        let inverse = octets.divide(octets.splat(1.0), sum);
        for score in scores {
            *score = octets.multiply(*score, inverse);
        }
    }
}

/// A square of eight vectors in memory, where single weights can be had.
#[inline(always)]
fn lay<O: Octet>(octets: Octets<O>, square: [O; OCTET], to: &mut [f32; SQUARE]) {
    for (vector, to) in square.into_iter().zip(to.chunks_exact_mut(OCTET)) {
        octets.store(vector, to);
    }
}

/// Multiplies a head's square by its dropout factors.
#[inline(always)]
fn drop(s: &Heads, mask: Mask, head: usize, square: &mut [f32; SQUARE]) {
    let Some(mask) = mask else { return };
    for query in 0..s.block {
        mask.row(head * s.block + query, query + 1, |key, factor| square[key * OCTET + query] *= factor);
    }
}

struct Forward<'a> {
    s: &'a Heads,
    windows: Windows<'a>,
    qkv: &'a [f32],
    mask: Mask,
    out: &'a mut [f32],
    kept: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl OctetWork for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<O: Octet>(self, octets: Octets<O>) {
        let Forward { s, windows, qkv, mask, out, kept, scratch } = self;
        let queries = &mut scratch[..s.size * OCTET];
        let sight = Sight::new(octets, s);
        // Shared rows are evaluated, and nothing is kept of them: one window's squares are room enough.
        let (count, keeps) = match windows.shared() {
            None => (s.sequences, true),
            Some(shared) => (shared.windows(), false),
        };
        let kept = kept.as_chunks_mut().0;
        for index in 0..count {
            let window = Window::new(s, windows, index);
            for head in 0..s.heads {
                let place = index * s.heads + head;
                let weights = &mut kept[if keeps { place } else { head }];
                let Columns { query, key, value } = Columns::new(s, head);
                Rows::new(s, &window, qkv, query, s.row()).transpose(octets, queries);
                let mut scores = Rows::new(s, &window, qkv, key, s.row()).combine(octets, queries);
                sight.softmax(octets, s.scale, &mut scores);
                lay(octets, scores, weights);
                let values = Rows::new(s, &window, qkv, value, s.row());
                if mask.is_none() {
                    mix::<Keys, O>(octets, s, &window, weights, &values, out, query, s.width());
                } else {
                    let mut dropped = *weights;
                    drop(s, mask, place, &mut dropped);
                    mix::<Keys, O>(octets, s, &window, &dropped, &values, out, query, s.width());
                }
            }
        }
    }
}

struct Backward<'a> {
    s: &'a Heads,
    qkv: &'a [f32],
    kept: &'a [f32],
    mask: Mask,
    d_out: &'a [f32],
    d_qkv: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl OctetWork for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<O: Octet>(self, octets: Octets<O>) {
        let Backward { s, qkv, kept, mask, d_out, d_qkv, scratch } = self;
        let columns = &mut scratch[..s.size * OCTET];
        let mut square = [0.0; SQUARE];
        for (place, weights) in kept.as_chunks().0.iter().enumerate().take(s.sequences * s.heads) {
            let window = &Window::new(s, Windows::Whole, place / s.heads);
            let Columns { query, key, value } = Columns::new(s, place % s.heads);
            let d_outs = Rows::new(s, window, d_out, query, s.width());
            d_outs.transpose(octets, columns);
            let mut d_weights = Rows::new(s, window, qkv, value, s.row()).combine(octets, columns);
            let mut dropped = *weights;
            if mask.is_some() {
                lay(octets, d_weights, &mut square);
                drop(s, mask, place, &mut square);
                for (vector, from) in d_weights.iter_mut().zip(square.chunks_exact(OCTET)) {
                    *vector = octets.load(from);
                }
                drop(s, mask, place, &mut dropped);
            }
            let mut dot = octets.splat(0.0);
            let weight = |key: usize| octets.load(&weights[key * OCTET..]);
            for (key, d_weight) in d_weights.iter().enumerate() {
                dot = octets.multiply_add(weight(key), *d_weight, dot);
            }
            for (key, d_weight) in d_weights.iter_mut().enumerate() {
                let scaled = octets.multiply(octets.splat(s.scale), weight(key));
                *d_weight = octets.multiply(scaled, octets.subtract(*d_weight, dot));
            }
            lay(octets, d_weights, &mut square);
            let queries = Rows::new(s, window, qkv, query, s.row());
            let keys = Rows::new(s, window, qkv, key, s.row());
            mix::<Keys, O>(octets, s, window, &square, &keys, d_qkv, query, s.row());
            mix::<Queries, O>(octets, s, window, &square, &queries, d_qkv, key, s.row());
            mix::<Queries, O>(octets, s, window, &dropped, &d_outs, d_qkv, value, s.row());
        }
    }
}
