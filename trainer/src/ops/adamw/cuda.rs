//! The gradient's norm, the judgement of a step and the update on a device.
//!
//! Of what changes from update to update, the host writes [`Factors`] into the clock beforehand; the gradient's factor is
//! written there by [`judge`].

use super::{Adam, CLIP_EPS, Rounded};
use crate::device::{Buffer, Device, Grid, View, ViewMut};
use crate::launch;
use formats::{Layout, Result};

/// Threads of a block.
const THREADS: u32 = 256;
/// Values of a block, eight a thread.
const VALUES: usize = 8 * THREADS as usize;

/// Most blocks that square a gradient: the sums [`norm`] works in.
pub const PARTIALS: usize = 1024;

/// Which parameters may decay, as runs of the arena: what never does, vectors, matrices.
pub struct Decays {
    runs: Buffer,
    count: usize,
}

impl Decays {
    /// Those of a layout.
    pub fn new(device: &Device, layout: &Layout) -> Result<Decays> {
        let mut words = Vec::new();
        let mut last = None;
        for (_, parameter) in layout.iter() {
            let kind = u32::from(parameter.is_learned()) * (1 + u32::from(parameter.is_matrix()));
            if last != Some(kind) {
                let begin = parameter.offset as u64;
                words.extend([begin as u32, (begin >> 32) as u32, kind]);
                last = Some(kind);
            }
        }
        let mut runs = device.indices(words.len())?;
        device.upload(&words, &mut runs);
        Ok(Decays { runs, count: words.len() / 3 })
    }
}

/// What the host writes into the clock before an update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    /// `1 - lr d`; 1 where decay is a term of the gradient.
    pub keep: f32,
    /// `1 / sqrt(1 - b2^t)`.
    pub root: f32,
    /// `-lr / (1 - b1^t)`.
    pub size: f32,
}

impl Adam {
    /// Those of this update.
    pub fn factors(&self) -> Factors {
        let Rounded { keep, root, size, .. } = Rounded::of(self, !self.coupled);
        Factors { keep, root, size }
    }
}

/// `into = |grads|^2`; `partials` has [`PARTIALS`] sums.
pub fn norm(device: &Device, grads: View<'_>, mut partials: ViewMut<'_>, into: ViewMut<'_>) {
    let (values, blocks) = (grads.len(), grads.len().div_ceil(VALUES).min(PARTIALS));
    launch!(device, "gradient_squares", Grid::line(blocks, THREADS), grads, partials.reborrow(), values);
    launch!(device, "gradient_norm", Grid::line(1, THREADS), partials.view(), blocks, into);
}

/// See [`super::judge`]: `loss` is the sum over `rows` rows, `squares` the gradient's squared norm. Where the step may not be
/// made the clock's update becomes 0.
pub fn judge(
    device: &Device,
    loss: View<'_>,
    squares: View<'_>,
    rows: usize,
    clip: f64,
    record: ViewMut<'_>,
    clock: ViewMut<'_>,
) {
    let rows = rows as u64;
    launch!(device, "gradient_judge", Grid::line(1, 32), loss, squares, rows, clip, CLIP_EPS, record, clock);
}

/// See [`super::update`] and [`super::couple`], over the whole arena at once; zeroes the gradient, and remakes `working`, if
/// it is not the weights themselves.
pub fn update(
    device: &Device,
    adam: &Adam,
    decays: &Decays,
    weights: ViewMut<'_>,
    working: Option<ViewMut<'_>>,
    first: ViewMut<'_>,
    second: ViewMut<'_>,
    grads: ViewMut<'_>,
    clock: View<'_>,
) {
    let constants = Rounded::of(adam, true);
    let decay = if adam.coupled { adam.weight_decay as f32 } else { 0.0 };
    let values = weights.len();
    launch!(
        device,
        "adamw_update",
        Grid::line(values.div_ceil(VALUES), THREADS),
        weights,
        working,
        first,
        second,
        grads,
        values,
        &decays.runs,
        decays.count,
        adam.decay_vectors,
        decay,
        constants.first,
        constants.beta2,
        constants.second,
        constants.eps,
        clock
    );
}

/// The working form of weights.
pub fn refresh(device: &Device, weights: View<'_>, working: ViewMut<'_>) {
    let values = weights.len();
    let grid = Grid::line(values.div_ceil(VALUES), THREADS);
    launch!(device, "working_refresh", grid, weights, working, values);
}
