//! The norm of queries and keys on a device: that of [`crate::ops::norm`], a stretch being a row; values are copied.

use super::Stretches;
use crate::backend::Rows;
use crate::device::{Device, Grid, View, ViewMut};
use crate::launch;
use crate::ops::norm::cuda::{Places, backward_at, backward_scratch as norm_scratch, forward_at};
use crate::ops::octets::{self, THREADS};
use runtime::simd::product::Write;

impl Stretches {
    /// Each side's stretches as rows of a norm, and where they stand.
    fn sides_at(&self) -> [(Rows, Places); 2] {
        let moment_stride = self.kept() / self.heads.rows().max(1);
        let sides = self.sides();
        let first = 2 * self.rows_of(&sides[0]).rows;
        [(&sides[0], 0), (&sides[1], first)].map(|(side, moment_offset)| {
            let one = self.rows_of(side);
            let (several, stride) = (one.rows, self.heads.row());
            let places = Places { several, stride, offset: side.start, moment_stride, moment_offset };
            (Rows { rows: several * self.heads.rows(), ..one }, places)
        })
    }

    /// Copies the values.
    fn pass(&self, device: &Device, from: View<'_>, to: ViewMut<'_>) {
        let (rows, row, offset) = (self.heads.rows(), self.heads.row(), self.sides()[1].end);
        let grid = Grid::line(octets::blocks(rows, row - offset), THREADS);
        launch!(device, "query_key_norm_pass", grid, from, to, rows, row - offset, row, offset);
    }
}

/// See [`super::forward`].
pub fn forward(
    device: &Device,
    s: &Stretches,
    gains: [View<'_>; 2],
    from: View<'_>,
    mut to: ViewMut<'_>,
    mut kept: ViewMut<'_>,
) {
    for ((shape, places), gain) in s.sides_at().iter().zip(gains) {
        forward_at(device, shape, places, from, gain, None, to.reborrow(), kept.reborrow());
    }
    s.pass(device, from, to);
}

/// Floats [`backward`] works in.
pub fn backward_scratch(s: &Stretches) -> usize {
    s.sides_at().iter().map(|(shape, _)| norm_scratch(shape.rows, shape.width)).max().unwrap_or(0)
}

/// See [`super::backward`].
pub fn backward(
    device: &Device,
    s: &Stretches,
    gains: [View<'_>; 2],
    x: View<'_>,
    kept: View<'_>,
    d_out: View<'_>,
    mut d_x: ViewMut<'_>,
    d_gains: [ViewMut<'_>; 2],
    mut scratch: ViewMut<'_>,
) {
    for (((shape, places), gain), d_gain) in s.sides_at().iter().zip(gains).zip(d_gains) {
        let (d_x, scratch) = ((d_x.reborrow(), Write::Set), scratch.reborrow());
        backward_at(device, shape, places, x, gain, kept, d_out, d_x, d_gain, None, scratch);
    }
    s.pass(device, d_out, d_x);
}
