//! The head and its loss on a device: logits, and then their gradients in the same place, exist for one chunk of rows.

use super::Classes;
use crate::device::{Device, Element, Grid, Precision, View, ViewMut};
use crate::launch;
use crate::ops::columns;
use crate::ops::linear::cuda::{Shape, backward_input, backward_weight, forward as product};
use runtime::simd::product::Write;

/// Most logits held at once: enough rows that the head's products are as large as any.
const LOGITS: usize = 1 << 28;
/// Rows of logits begin at multiples of this many, so that products read them 16 bytes at a time.
const ALIGNED: usize = 8;
/// The same where there are many classes: whole lines of the cache.
const ALIGNED_MANY: usize = 64;
/// Fewest classes for which a row is a block's.
const MANY: usize = 1024;
/// Threads of a block for rows of few classes, one a warp.
const THREADS_FEW: u32 = 256;
/// Threads of a block for rows of many.
const THREADS_MANY: u32 = 1024;
/// Threads that add up losses.
const TOTAL_THREADS: u32 = 1024;

impl Classes {
    /// From one row of logits to the next.
    fn stride(&self) -> usize {
        let aligned = if self.vocabulary < MANY { ALIGNED } else { ALIGNED_MANY };
        self.vocabulary.next_multiple_of(aligned)
    }

    /// Rows of one chunk on a device: as many as are held at once, a power of two, unless there are fewer.
    fn chunk_on_device(&self) -> usize {
        let most = (LOGITS / self.stride()).max(1);
        (1 << most.ilog2()).min(self.rows)
    }
}

/// The head's parameters.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// `W` in the working precision.
    pub weight: View<'a>,
    /// `b`, if there is one.
    pub bias: Option<View<'a>>,
}

/// The gradients one pass leaves.
pub struct Gradients<'a> {
    /// What every row's loss is multiplied by.
    pub scale: f32,
    /// Of the input.
    pub d_x: (ViewMut<'a>, Write),
    /// Of the weight, accumulated.
    pub d_weight: ViewMut<'a>,
    /// Of the bias, accumulated.
    pub d_bias: Option<ViewMut<'a>>,
}

/// Floats [`forward`] works in.
pub fn scratch(precision: Precision, s: &Classes) -> usize {
    scratch_of(precision, s, s.chunk_on_device())
}

/// The same for chunks of so many rows.
fn scratch_of(precision: Precision, s: &Classes, chunk: usize) -> usize {
    room(precision, chunk * s.stride()) + columns::cuda::scratch(chunk, s.vocabulary)
}

/// Floats that hold so many values and end at a multiple of 16 bytes.
fn room(precision: Precision, values: usize) -> usize {
    let floats = match precision {
        Precision::Bf16 => values.div_ceil(2),
        Precision::F32 => values,
    };
    floats.next_multiple_of(4)
}

/// See [`super::forward`].
pub fn forward(
    device: &Device,
    s: &Classes,
    x: View<'_>,
    head: &Head<'_>,
    targets: View<'_>,
    losses: ViewMut<'_>,
    gradients: Option<Gradients<'_>>,
    scratch: ViewMut<'_>,
) {
    by_chunks(device, s, s.chunk_on_device(), x, head, targets, losses, gradients, scratch);
}

/// The same by chunks of so many rows.
fn by_chunks(
    device: &Device,
    s: &Classes,
    chunk: usize,
    x: View<'_>,
    head: &Head<'_>,
    targets: View<'_>,
    mut losses: ViewMut<'_>,
    mut gradients: Option<Gradients<'_>>,
    scratch: ViewMut<'_>,
) {
    let stride = s.stride();
    let (logits, mut sums) = scratch.split(room(device.precision(), chunk * stride));
    let mut logits = logits.cast(Element::Value);
    for first in (0..s.rows).step_by(chunk.max(1)) {
        let rows = chunk.min(s.rows - first);
        let shape = Shape { rows, inputs: s.width, outputs: s.vocabulary, out_stride: stride };
        let x = x.part(first * s.width..(first + rows) * s.width);
        product(device, &shape, x, head.weight, head.bias, logits.reborrow());
        judge(
            device,
            s.vocabulary,
            stride,
            logits.reborrow(),
            targets.part(first..first + rows),
            losses.reborrow().part(first..first + rows),
            gradients.as_ref().map(|gradients| gradients.scale),
        );
        let Some(Gradients { d_x: (d_x, write), d_weight, d_bias, .. }) = &mut gradients else { continue };
        let d_x = d_x.reborrow().part(first * s.width..(first + rows) * s.width);
        backward_input(device, &shape, logits.view(), head.weight, (d_x, *write));
        backward_weight(device, &shape, x, logits.view(), d_weight.reborrow());
        if let Some(d_bias) = d_bias {
            let (d_bias, sums) = (d_bias.reborrow(), sums.reborrow());
            columns::cuda::add_sums(device, rows, s.vocabulary, stride, logits.view(), d_bias, sums);
        }
    }
}

/// Rows of logits to their losses and, where a scale is given, to the gradients of their scaled sum.
fn judge(
    device: &Device,
    vocabulary: usize,
    stride: usize,
    logits: ViewMut<'_>,
    targets: View<'_>,
    losses: ViewMut<'_>,
    scale: Option<f32>,
) {
    let (rows, backwards, scale) = (targets.len(), scale.is_some(), scale.unwrap_or_default());
    if vocabulary < MANY {
        let grid = Grid::line(rows.div_ceil(THREADS_FEW as usize / 32), THREADS_FEW);
        let kernel = "loss_judge_narrow";
        return launch!(
            device, kernel, grid, logits, targets, losses, rows, vocabulary, stride, backwards, scale
        );
    }
    let grid = Grid::line(rows, THREADS_MANY);
    launch!(device, "loss_judge", grid, logits, targets, losses, vocabulary, stride, backwards, scale);
}

/// Adds the losses of the first `rows` rows to the first of `into`.
pub fn total(device: &Device, losses: View<'_>, rows: usize, into: ViewMut<'_>) {
    launch!(device, "loss_total", Grid::line(1, TOTAL_THREADS), losses, rows, into);
}

/// Adds sums to sums.
pub fn tally(device: &Device, from: View<'_>, into: ViewMut<'_>) {
    let count = from.len();
    launch!(device, "sums_tally", Grid::line(count.div_ceil(256), 256), from, into, count);
}

#[cfg(test)]
mod tests;
