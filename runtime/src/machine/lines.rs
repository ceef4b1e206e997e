//! Few rows through matrices that store a line an input, not a line an output.
//!
//! The lines are read where they stand, in [`SEGMENTS`] stretches of inputs that are dealt to the threads: each then reads
//! one stream of whole lines. What the stretches add to an output is added in a tree, neighbours first; a thread adds its
//! own, and the rest is left to whoever needs the outputs: attention those of its heads, the next product those of its
//! stretches, the residual stream all of them, on every thread. So a product costs one barrier. The tree is that of the
//! stretches, of which no number of threads changes any.

use super::projection::Projection;
use super::{FEW_ROWS, Rows, Worker};
use crate::team::{Cancelled, Cut, Mine, Part, Place, Whole};
use formats::layout::{Linear, Role};
use formats::{Error, Result};
use std::ops::Range;

/// Stretches of inputs.
pub(super) const SEGMENTS: usize = 8;

/// A product of few rows of which what each stretch adds is known.
#[derive(Clone, Copy)]
pub(super) struct Stretched<'a> {
    pub(super) projection: Projection<'a>,
    linear: Linear,
    /// `[FEW_ROWS, SEGMENTS, stride]`
    pub(super) results: Place<f32>,
    /// Stretches that have been added into the first of them.
    folded: usize,
}

impl Stretched<'_> {
    /// Outputs `columns` of a row, counted from the first of the product's, to the beginning of `out`.
    pub(super) fn gather(&self, results: &[f32], row: usize, columns: Range<usize>, out: &mut [f32]) {
        let stride = results.len() / (FEW_ROWS * SEGMENTS);
        let results = &results[row * SEGMENTS * stride..][..SEGMENTS * stride];
        self.projection.gather(results, stride, self.folded, columns, out);
    }
}

/// Where a product's inputs are.
enum Source<'a> {
    /// All of them, from the first row on.
    Rows(&'a [f32]),
    /// This member's columns of one row, which are all that it needs.
    Mine { row: usize, part: Part<'a, f32> },
    /// Still to be gathered, into the last.
    Stretched(Stretched<'a>, &'a [f32], &'a mut [f32]),
}

impl<'w> Worker<'w, '_> {
    /// Whether the rows still wanted go through a matrix line by line.
    pub(super) fn walks(&self, linear: &Linear) -> bool {
        let rows = self.rows();
        !rows.is_empty()
            && self.board.stretches.is_some()
            && Projection::new(self.model, linear).walks_inputs(rows.len())
    }

    /// The stretches of a product that [`Worker::walks`].
    pub(super) fn stretch(&mut self, x: &Rows, linear: &Linear) -> Result<()> {
        let (rows, cancelled, inputs) = (self.rows(), self.member.cancelled(), linear.inputs);
        let places = self.board.stretches.ok_or_else(|| Error::Internal("no line is an input's".into()))?;
        let results = places[self.stretches % places.len()];
        self.stretches += 1;
        let members = self.member.members();
        let folded = if SEGMENTS.is_multiple_of(members) { SEGMENTS / members } else { 1 };
        let projection = Projection::new(self.model, linear);
        let next = Stretched { projection, linear: *linear, results, folded };
        let mine = Mine(results, Cut::Rows { rows: rows.len() * SEGMENTS });
        match x {
            Rows::Local => {
                let (out,) = self.member.open((mine,))?;
                next.sum(Source::Rows(&self.local.norm), out, cancelled)?;
            }
            Rows::Stretched => {
                let before = self.stretched()?;
                let (from, out) = self.member.open((Whole(before.results), mine))?;
                next.sum(Source::Stretched(before, from, &mut self.local.hidden), out, cancelled)?;
            }
            _ => {
                let place = self.shared(x)?;
                if rows.len() == 1 && self.member.deals_alike(place, SEGMENTS, inputs / SEGMENTS) {
                    let (part, out) = self.member.open((Mine(place, Cut::Columns), mine))?;
                    next.sum(Source::Mine { row: rows.start, part }, out, cancelled)?;
                } else {
                    let (x, out) = self.member.open((Whole(place), mine))?;
                    next.sum(Source::Rows(&x[rows.start * inputs..]), out, cancelled)?;
                }
            }
        }
        self.stretched = Some(next);
        Ok(())
    }

    /// The product that waits for being gathered.
    pub(super) fn stretched(&mut self) -> Result<Stretched<'w>> {
        self.stretched.take().ok_or_else(|| Error::Internal("no product waits for being gathered".into()))
    }

    /// Rows that others can read: what waits is gathered, each member its columns.
    pub(super) fn settle(&mut self, rows: Rows) -> Result<Rows> {
        let (Rows::Stretched, Some(stretched)) = (&rows, &self.stretched) else { return Ok(rows) };
        let rows = match self.model.layout.parameter(stretched.linear.weight).role {
            Role::Qkv(_) => Rows::Qkv,
            Role::Up(_) => Rows::Hidden,
            _ => self.take()?.0,
        };
        self.gather_into(self.shared(&rows)?, self.from)?;
        Ok(rows)
    }

    /// Gathers into the rows of `out` from `to` on, each member its columns.
    pub(super) fn gather_into(&mut self, out: Place<f32>, to: usize) -> Result<()> {
        let (rows, stretched) = (self.rows().len(), self.stretched()?);
        let (results, mut out) = self.member.open((Whole(stretched.results), Mine(out, Cut::Columns)))?;
        for row in 0..rows {
            let columns = out.columns();
            stretched.gather(results, row, columns, out.row(to + row));
        }
        Ok(())
    }
}

impl Stretched<'_> {
    /// This member's stretches, and those of its own that are neighbours added up.
    fn sum(&self, mut source: Source<'_>, mut out: Part<f32>, cancelled: Cancelled<'_>) -> Result<()> {
        let (inputs, outputs) = (self.linear.inputs, self.projection.outputs());
        let simd = self.projection.simd();
        for index in out.rows() {
            cancelled.check()?;
            let (row, segment) = (index / SEGMENTS, index % SEGMENTS);
            let wanted = self.projection.inputs(segment);
            let x = match &mut source {
                Source::Rows(rows) => &rows[row * inputs..][wanted],
                Source::Mine { row, part } => {
                    let first = part.columns().start;
                    &part.row(*row)[wanted.start - first..wanted.end - first]
                }
                Source::Stretched(before, results, hidden) => {
                    let hidden = &mut hidden[..wanted.len()];
                    before.gather(results, row, wanted, hidden);
                    &*hidden
                }
            };
            self.projection.stretch(x, segment, &mut out.row(index)[..outputs]);
            let mut width = 1;
            while width < self.folded && (index + 1).is_multiple_of(2 * width) {
                let first = index + 1 - 2 * width;
                let stride = out.columns().len();
                let rest =
                    out.rest(first).ok_or_else(|| Error::Internal("a stretch's results are cut".into()))?;
                let (to, from) = rest.split_at_mut(width * stride);
                (simd.add)(&mut to[..outputs], &from[..outputs]);
                width *= 2;
            }
        }
        Ok(())
    }
}
