//! Which logits can be among the best, found without reading the head.
//!
//! A token is chosen among the best few logits `y_i = x . w_i + bias_i`, yet the head `W` is the largest matrix there is. So a
//! coarse copy of it is kept in eight bits, `w_i ~ m + s_i q_i` with whole `q_i` from -127 to 127, one scale a row, and one `m`
//! for all rows, some mean of them. It is read instead, and says of every logit where it lies, but for `x . m`, which moves
//! all of them alike and decides nothing:
//!
//! ```text
//! c_i  = s_i (x . q_i) + bias_i                   |y_i - x . m - c_i| <= r_i
//! r_i  = |x| e_i + 8 u |bias_i| + t
//! e_i >= |w_i - m - s_i q_i| + g (|w_i| + s_i |q_i|)
//! ```
//!
//! with Euclidean norms. The first term of `e_i` is Cauchy and Schwarz's inequality for what the copy leaves out. The second
//! is what rounding adds: `u = 2^-24`, and a sum of `n` products in any order, fused or not, is wrong by no more than
//! `n u / (1 - n u)` of the sum of their sizes (Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1),
//! which is no more than the two norms. `g` is that for a few terms more than `n`, for what is done to a sum afterwards;
//! `t` is what products below the smallest normal number lose.
//!
//! If `b` is the k-th largest of the `c_i - r_i`, at least k logits reach it, so that only rows with `c_i + r_i >= b` can be
//! among the best k or equal to one of them. These are computed from the head itself, by the routine that computes all: they
//! have the same bits. Any part of the rows may be treated so by itself: its own `b` is no larger than that of all.
//!
//! Holds the copy, the bounds and the choice; what a candidate's logit is, its caller computes.

use crate::machine::widen;
use crate::memory;
use crate::model::Shared;
use crate::simd::routines::{LANES, Unit};
use crate::simd::{Origin, Simd, Work};
use crate::team::{Cancelled, Slots};
use formats::checkpoint::large_pages;
use formats::layout::Linear;
use formats::{Error, Result};
use memmap2::MmapMut;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

/// Most of the best that are looked for: for many more the head is read faster as it stands.
pub(crate) const MOST_BEST: usize = 256;
/// Of so many rows one may be a candidate: more cost what reading the head in one stream costs.
pub(crate) const ROWS_A_CANDIDATE: usize = 8;
/// What stands in place of a logit that was not computed: no logit is as low where this table is used.
pub(crate) const NOT_AMONG_THE_BEST: f32 = f32::MIN;

/// The largest whole number of the copy.
const LARGEST: f32 = 127.0;
/// Rows of which one enters `m`: a mean need not be exact, and is not worth reading the head for.
const MEAN_OF_EVERY: usize = 64;
/// Below it a row's largest weight has no scale, and the copy of the row is zero.
const LEAST: f32 = 1e-30;
/// `1.5 2^23`: adding it leaves the nearest whole number in the low bits.
const ROUND: f32 = 12_582_912.0;
/// Half the distance from one to the next number.
const UNIT: f64 = 1.0 / (1 << 24) as f64;
/// Half the smallest number there is.
const HALF_SMALLEST: f64 = f32::from_bits(1) as f64 / 2.0;
/// Roundings besides those of a sum, with room to spare.
const MORE_TERMS: usize = 16;
/// Covers the roundings of the bounds themselves.
const SLACK: f64 = 1.0 + 16.0 * UNIT;
/// No product of norms, and no bias, may be larger: so no sum on the way overflows.
const MOST: f64 = (1u128 << 100) as f64;
/// The most columns for which the bound holds.
const MOST_COLUMNS: usize = 1 << 21;

/// The coarse copy of a head.
#[derive(Debug)]
pub(crate) struct Shortlist {
    /// `[rows, columns]`
    numbers: MmapMut,
    /// `s`, one a row.
    scales: Vec<f32>,
    /// `e`, one a row.
    errors: Vec<f32>,
    /// `t`.
    least: f32,
    /// The largest norm of `x` that overflows nothing.
    most: f64,
}

/// `m`: the mean of a few of a head's rows, taken from all parts of it.
fn common(model: &Shared) -> Vec<f32> {
    let Linear { weight, inputs, .. } = model.layout.head;
    let (mut row, mut sums, mut count) = (vec![0.0; inputs], vec![0.0f64; inputs], 0.0);
    for piece in model.weights.pieces(weight) {
        for first in (0..piece.values.len()).step_by(MEAN_OF_EVERY * inputs) {
            widen(model.simd, piece.values, first, &mut row);
            sums.iter_mut().zip(&row).for_each(|(sum, weight)| *sum += f64::from(*weight));
            count += 1.0;
        }
    }
    sums.into_iter().map(|sum| (sum / count) as f32).collect()
}

/// Some rows of the copy while it is made.
struct Rows<'a> {
    first: usize,
    numbers: &'a mut [i8],
    scales: &'a mut [f32],
    errors: &'a mut [f32],
    /// The largest of what [`Copied::largest`] gave.
    largest: f64,
}

impl Shortlist {
    /// Bytes of the copy of a head.
    pub(crate) fn bytes(head: &Linear) -> u64 {
        head.outputs as u64 * (head.inputs + 2 * size_of::<f32>()) as u64
    }

    /// The copy of a model's head, made by the model's threads; `None` where a weight is not finite or far too large.
    pub(crate) fn new(model: &Shared, cancelled: &AtomicBool) -> Result<Option<Shortlist>> {
        let head = &model.layout.head;
        let bias = head.bias.map_or(&[][..], |id| model.vector(id));
        if head.inputs > MOST_COLUMNS || !bias.iter().all(|bias| f64::from(bias.abs()) <= MOST) {
            return Ok(None);
        }
        memory::expect(Shortlist::bytes(head))?;
        let mut shortlist = Shortlist::empty(head.outputs, head.inputs)?;
        let common = common(model);
        let parts: Vec<_> = shortlist.parts(head.outputs.div_ceil(model.threads())).map(Mutex::new).collect();
        model.run(&mut Slots::default(), cancelled, &|member| {
            let Some(part) = parts.get(member.index()) else { return Ok(()) };
            part.lock().unwrap_or_else(PoisonError::into_inner).fill(model, &common, member.cancelled())
        })?;
        let largest =
            parts.into_iter().map(|part| part.into_inner().unwrap_or_else(PoisonError::into_inner).largest);
        let largest = largest.fold(0.0, f64::max);
        Ok(shortlist.finish(largest))
    }

    fn empty(rows: usize, columns: usize) -> Result<Shortlist> {
        Ok(Shortlist {
            numbers: large_pages(rows * columns).map_err(|_| memory::refusal((rows * columns) as u64))?,
            scales: memory::filled(rows, 0.0)?,
            errors: memory::filled(rows, 0.0)?,
            least: 0.0,
            most: 0.0,
        })
    }

    /// The rows, in parts of so many, to be copied.
    fn parts(&mut self, rows: usize) -> impl Iterator<Item = Rows<'_>> {
        let columns = self.numbers.len() / self.scales.len();
        let numbers = bytemuck::cast_slice_mut(&mut self.numbers).chunks_mut(rows * columns);
        let (scales, errors) = (self.scales.chunks_mut(rows), self.errors.chunks_mut(rows));
        numbers.zip(scales.zip(errors)).enumerate().map(move |(part, (numbers, (scales, errors)))| Rows {
            first: part * rows,
            numbers,
            scales,
            errors,
            largest: 0.0,
        })
    }

    /// The copy, all rows being there; `largest` is that of all parts.
    fn finish(self, largest: f64) -> Option<Shortlist> {
        let columns = self.numbers.len() / self.scales.len();
        let steepest = self.scales.iter().fold(1.0, |most: f32, scale| most.max(*scale));
        let lost = 4.0 * f64::from(steepest) * (columns + MORE_TERMS) as f64 * HALF_SMALLEST;
        let least = (lost as f32).next_up().max(f32::MIN_POSITIVE);
        (largest <= MOST).then(|| Shortlist { least, most: MOST / largest.max(1.0), ..self })
    }

    /// A bound of the norm of `x`; `None` if so large an `x`, or one that is no number, has to go through the head itself.
    pub(crate) fn norm(&self, x: &[f32]) -> Option<f32> {
        let norm = x.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        (norm <= self.most).then(|| ((norm * SLACK) as f32).next_up())
    }

    /// For some of the rows: leaves in `out` the logit of each that can be among the `best`, by `exact`, which gets the row
    /// and its place, and [`NOT_AMONG_THE_BEST`] in all others. `bias` is that of all rows, `room` is for `2 best` values.
    /// Gives the number of candidates; with too many of them `out` is left unfinished, and nothing is given.
    pub(crate) fn choose(
        &self,
        simd: &Simd,
        (x, norm): (&[f32], f32),
        rows: Range<usize>,
        bias: Option<&[f32]>,
        best: usize,
        room: &mut Vec<f32>,
        out: &mut [f32],
        exact: impl FnMut(usize, &mut f32),
    ) -> Option<usize> {
        let columns = x.len();
        (simd.gemv_i8)(
            &bytemuck::cast_slice(&self.numbers)[rows.start * columns..rows.end * columns],
            Origin::Memory,
            x,
            out,
        );
        let bounds = Bounds {
            scales: &self.scales[rows.clone()],
            errors: &self.errors[rows.clone()],
            bias: bias.map(|bias| &bias[rows.clone()]),
            norm,
            least: self.least,
        };
        let threshold = simd.run(Threshold { bounds, sums: out, best, room });
        simd.run(Candidates { bounds, first: rows.start, threshold, out, exact })
    }
}

impl Rows<'_> {
    fn fill(&mut self, model: &Shared, common: &[f32], cancelled: Cancelled<'_>) -> Result<()> {
        let Linear { weight, inputs, .. } = model.layout.head;
        let wanted = self.first..self.first + self.scales.len();
        let mut row = vec![0.0; inputs];
        for piece in model.weights.pieces(weight) {
            if piece.inputs_first {
                return Err(Error::Internal("a head whose lines are inputs is copied row by row".into()));
            }
            for index in wanted.start.max(piece.rows.start)..wanted.end.min(piece.rows.end) {
                cancelled.check()?;
                widen(model.simd, piece.values, (index - piece.rows.start) * inputs, &mut row);
                self.copy(model.simd, index - self.first, &row, common);
            }
        }
        Ok(())
    }

    /// Copies the row that is `at` from the first.
    fn copy(&mut self, simd: &Simd, at: usize, row: &[f32], common: &[f32]) {
        let numbers = &mut self.numbers[at * row.len()..][..row.len()];
        let copied = simd.run(Copy { row, common, numbers });
        self.scales[at] = copied.scale;
        self.errors[at] = copied.error(row.len());
        self.largest = self.largest.max(copied.largest());
    }
}

/// What copying one row came to.
struct Copied {
    scale: f32,
    /// `|w|`, not finite if a weight is not.
    norm: f64,
    /// `|q|`.
    numbers: f64,
    /// `s |q|`.
    copy: f64,
    /// `|w - m - s q|`.
    missing: f64,
}

impl Copied {
    /// The largest of the norms; infinite if a weight is not finite.
    fn largest(&self) -> f64 {
        if (self.norm + self.missing).is_finite() {
            self.norm.max(self.numbers).max(self.copy)
        } else {
            f64::INFINITY
        }
    }

    /// `e`, rounded up.
    fn error(&self, columns: usize) -> f32 {
        let terms = (columns + MORE_TERMS) as f64 * UNIT;
        let rounding = terms / (1.0 - terms) * (self.norm + self.copy);
        (((self.missing + rounding) * SLACK) as f32).next_up()
    }
}

/// Copies one row.
struct Copy<'a> {
    row: &'a [f32],
    common: &'a [f32],
    numbers: &'a mut [i8],
}

impl Work for Copy<'_> {
    type Output = Copied;

    #[inline(always)]
    fn run(self, _: Unit) -> Copied {
        let Copy { row, common, numbers } = self;
        let mut largest = [0.0f32; LANES];
        let ((blocks, rest), (of_all, rest_of_all)) = (row.as_chunks::<LANES>(), common.as_chunks::<LANES>());
        for (block, common) in blocks.iter().zip(of_all) {
            for lane in 0..LANES {
                largest[lane] = largest[lane].max((block[lane] - common[lane]).abs());
            }
        }
        // Zeros past the end add nothing.
        let padded = |rest: &[f32]| {
            let mut block = [0.0; LANES];
            block[..rest.len()].copy_from_slice(rest);
            block
        };
        let (rest, rest_of_all) = (padded(rest), padded(rest_of_all));
        for lane in 0..LANES {
            largest[lane] = largest[lane].max((rest[lane] - rest_of_all[lane]).abs());
        }
        let largest = largest.into_iter().fold(0.0, f32::max);
        let (scale, by) = if largest > LEAST { (largest / LARGEST, LARGEST / largest) } else { (0.0, 0.0) };

        let mut sums = Squares([[0.0; LANES]; 3]);
        let (to, last) = numbers.as_chunks_mut::<LANES>();
        for ((block, common), to) in blocks.iter().zip(of_all).zip(to) {
            sums.copy(block, common, to, scale, by);
        }
        let mut to = [0; LANES];
        sums.copy(&rest, &rest_of_all, &mut to, scale, by);
        last.copy_from_slice(&to[..last.len()]);

        let [norm, numbers, missing] = sums.0.map(|lanes| lanes.iter().sum::<f64>().sqrt());
        Copied { scale, norm, numbers, copy: f64::from(scale) * numbers, missing }
    }
}

/// Sums of squares, of weights, numbers and what is missing.
struct Squares([[f64; LANES]; 3]);

impl Squares {
    #[inline(always)]
    fn copy(
        &mut self,
        block: &[f32; LANES],
        common: &[f32; LANES],
        to: &mut [i8; LANES],
        scale: f32,
        by: f32,
    ) {
        let [norm, numbers, missing] = &mut self.0;
        for lane in 0..LANES {
            let shifted = (block[lane] - common[lane]) * by + ROUND;
            to[lane] = shifted.to_bits() as i8;
            let (weight, number) = (f64::from(block[lane]), f64::from(shifted - ROUND));
            let left = weight - f64::from(common[lane]) - f64::from(scale) * number;
            norm[lane] += weight * weight;
            numbers[lane] += number * number;
            missing[lane] += left * left;
        }
    }
}

/// Where the logits of some rows lie, given the sums `x . q`.
#[derive(Clone, Copy)]
struct Bounds<'a> {
    scales: &'a [f32],
    errors: &'a [f32],
    bias: Option<&'a [f32]>,
    norm: f32,
    least: f32,
}

/// The `N` values from `first` on.
#[inline(always)]
fn some<const N: usize>(values: &[f32], first: usize) -> [f32; N] {
    let mut some = [0.0; N];
    some.copy_from_slice(&values[first..first + N]);
    some
}

impl Bounds<'_> {
    /// `c` and `r` of `N` rows.
    #[inline(always)]
    fn of<const N: usize>(&self, sums: &[f32], first: usize) -> [[f32; N]; 2] {
        const OF_BIAS: f32 = 8.0 * UNIT as f32;
        let (mut centre, mut radius) = (some::<N>(sums, first), some::<N>(self.errors, first));
        let scales = some::<N>(self.scales, first);
        let bias = self.bias.map_or([0.0; N], |bias| some(bias, first));
        for lane in 0..N {
            centre[lane] = scales[lane] * centre[lane] + bias[lane];
            radius[lane] = self.norm * radius[lane] + (OF_BIAS * bias[lane].abs() + self.least);
        }
        [centre, radius]
    }
}

/// Finds the `best`-th largest lower bound, or minus infinity if there are fewer.
struct Threshold<'a> {
    bounds: Bounds<'a>,
    sums: &'a [f32],
    best: usize,
    room: &'a mut Vec<f32>,
}

impl Threshold<'_> {
    /// Remembers those of `N` rows' lower bounds that rise above `floor`, which rises whenever the memory is full.
    #[inline(always)]
    fn meet<const N: usize>(&mut self, first: usize, floor: &mut f32) {
        let [centre, radius] = self.bounds.of::<N>(self.sums, first);
        let mut lower = [0.0; N];
        let mut any = false;
        for lane in 0..N {
            lower[lane] = centre[lane] - radius[lane];
            any |= lower[lane] > *floor;
        }
        if !any {
            return;
        }
        for lower in lower {
            if lower > *floor {
                self.room.push(lower);
                if self.room.len() == 2 * self.best {
                    *floor = nth(self.room, self.best);
                    self.room.truncate(self.best);
                }
            }
        }
    }
}

impl Work for Threshold<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(mut self, _: Unit) -> f32 {
        let (rows, mut floor) = (self.sums.len(), f32::NEG_INFINITY);
        let whole = rows / LANES * LANES;
        self.room.clear();
        for first in (0..whole).step_by(LANES) {
            self.meet::<LANES>(first, &mut floor);
        }
        for first in whole..rows {
            self.meet::<1>(first, &mut floor);
        }
        if self.room.len() < self.best { f32::NEG_INFINITY } else { nth(self.room, self.best) }
    }
}

/// The `n`-th largest of as many values or more, all larger ones before it.
fn nth(values: &mut [f32], n: usize) -> f32 {
    *values.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a)).1
}

/// Replaces sums by logits where the upper bound reaches the threshold.
struct Candidates<'a, F> {
    bounds: Bounds<'a>,
    /// The row of the first.
    first: usize,
    threshold: f32,
    out: &'a mut [f32],
    exact: F,
}

impl<F: FnMut(usize, &mut f32)> Candidates<'_, F> {
    /// `N` rows, and how many of them are candidates.
    #[inline(always)]
    fn meet<const N: usize>(&mut self, first: usize) -> usize {
        let [centre, radius] = self.bounds.of::<N>(self.out, first);
        let mut reaches = [false; N];
        let mut any = false;
        for lane in 0..N {
            reaches[lane] = centre[lane] + radius[lane] >= self.threshold;
            any |= reaches[lane];
        }
        let out = &mut self.out[first..first + N];
        out.fill(NOT_AMONG_THE_BEST);
        if !any {
            return 0;
        }
        let mut count = 0;
        for (lane, out) in out.iter_mut().enumerate() {
            if reaches[lane] {
                (self.exact)(self.first + first + lane, out);
                count += 1;
            }
        }
        count
    }
}

impl<F: FnMut(usize, &mut f32)> Work for Candidates<'_, F> {
    type Output = Option<usize>;

    #[inline(always)]
    fn run(mut self, _: Unit) -> Option<usize> {
        let rows = self.out.len();
        let (whole, most) = (rows / LANES * LANES, rows / ROWS_A_CANDIDATE);
        let mut count = 0;
        for first in (0..whole).step_by(LANES) {
            count += self.meet::<LANES>(first);
            if count > most {
                return None;
            }
        }
        for first in whole..rows {
            count += self.meet::<1>(first);
        }
        (count <= most).then_some(count)
    }
}

#[cfg(test)]
mod tests;
