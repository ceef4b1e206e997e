//! The router's kernels, launched: no step of it waits for the host.
//!
//! What is decided stays on the device; sizes are those of the most that could be, and the order of every sum follows
//! from them.

use super::{Disturbance, Router};
use crate::device::{Buffer, Device, Element, Grid, View, ViewMut};
use crate::launch;
use crate::ops::dropout::cuda::{Factors, Words, factors};
use formats::Result;
use formats::config::{RouterScore, RouterWeight};
use runtime::simd::product::Write;
use std::sync::{Mutex, PoisonError};

/// Rows of a chunk: as many as a word has bits.
const CHUNK: usize = 32;
/// Rows of one part of a load.
const PART: usize = 256;
/// Rows of one slice of a parameter's gradient, at least.
const SLICE: usize = 64;

/// Which rows go to which expert, on the device; see [`super::Routing`].
#[derive(Default)]
pub struct Routing {
    /// `[rows, slots]`.
    pub chosen: Buffer,
    /// `[rows, slots]`.
    pub place: Buffer,
    /// One an expert, and their end.
    pub offsets: Buffer,
    /// `[rows slots]`.
    pub rows: Buffer,
    /// `[rows slots]`: which assignment stands at each place, counted row by row and slot by slot.
    pub assigned: Buffer,
    /// `[count, chunks]`: which rows of a chunk chose an expert, a bit a row.
    masks: Buffer,
    /// `[count, chunks]`: how many rows of the chunks before chose it.
    before: Buffer,
    /// `[count]`: how many rows chose it.
    totals: Buffer,
    /// `[parts, 2 count + 2]`: what is summed to a load.
    parts: Mutex<Buffer>,
}

impl Routing {
    /// Room for a router's choices.
    pub fn new(device: &Device, s: &Router) -> Result<Routing> {
        let [assignments, offsets, chunks, totals, parts] = lengths(s);
        Ok(Routing {
            chosen: device.indices(assignments)?,
            place: device.indices(assignments)?,
            offsets: device.indices(offsets)?,
            rows: device.indices(assignments)?,
            assigned: device.indices(assignments)?,
            masks: device.indices(chunks)?,
            before: device.indices(chunks)?,
            totals: device.indices(totals)?,
            parts: Mutex::new(device.buffer(Element::F64, parts)?),
        })
    }

    /// Bytes it takes.
    pub fn bytes(s: &Router) -> u64 {
        let [assignments, offsets, chunks, totals, parts] = lengths(s);
        (4 * (4 * assignments + offsets + 2 * chunks + totals) + 8 * parts) as u64
    }

    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Most assignments there can be.
    pub fn assignments(&self) -> usize {
        self.chosen.len()
    }
}

/// Assignments, offsets, masks, totals and parts of a router.
fn lengths(s: &Router) -> [usize; 5] {
    let (chunks, parts) = (s.rows.div_ceil(CHUNK), s.rows.div_ceil(PART));
    [s.rows * s.slots(), s.experts() + 1, s.count * chunks, s.count, parts * s.load()]
}

/// The router's parameters, all f32.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    /// `[count, width]`.
    pub router: View<'a>,
    /// `[count]`.
    pub selection_bias: Option<View<'a>>,
    /// `[count, width]`.
    pub noise: Option<View<'a>>,
}

/// Uniform factors on the input as kernels take them; none have no reach.
fn jitter(disturbance: &Disturbance) -> (Words, f32) {
    disturbance.jitter.map_or((Words::default(), 0.0), |(draws, reach)| (draws.words(), reach))
}

/// See [`super::forward`]; `clock` holds the step.
pub fn forward(
    device: &Device,
    s: &Router,
    x: View,
    parameters: &Weights,
    disturbance: &Disturbance,
    clock: View,
    mut weights: ViewMut,
    mut kept: ViewMut,
    routing: &mut Routing,
    scratch: ViewMut,
) {
    let (matrix, chunks) = (s.rows * s.count, s.rows.div_ceil(CHUNK));
    let grid =
        Grid { blocks: [s.rows.div_ceil(32) as u32, s.count.div_ceil(8) as u32, 1], ..Grid::line(0, 256) };
    let product = |weight: View, (words, reach): (Words, f32), out: ViewMut| {
        launch!(
            device,
            "route_product",
            grid,
            x,
            weight,
            out,
            s.rows,
            s.width,
            s.count,
            clock,
            words.seed,
            words.site,
            words.first_row,
            reach
        );
    };
    product(parameters.router, jitter(disturbance), kept.reborrow().part(0..matrix));
    let noise = parameters.noise.zip(disturbance.noise);
    let scales = noise.map(|(weight, _)| {
        let mut scales = scratch.part(0..matrix);
        product(weight, (Words::default(), 0.0), scales.reborrow());
        scales
    });
    let noise = noise.map_or(Words::default(), |(_, draws)| draws.words());
    let (outputs, experts) = (factors(disturbance.outputs), factors(disturbance.experts));
    launch!(
        device,
        "route_choose",
        Grid::line(chunks, 256).with_shared(4 * s.count),
        kept,
        scales.as_ref().map(ViewMut::view),
        parameters.selection_bias,
        weights.reborrow(),
        &mut routing.chosen,
        &mut routing.masks,
        s.rows,
        s.count,
        s.active,
        s.shared,
        s.score == RouterScore::Sigmoid,
        s.weight == RouterWeight::Renormalised,
        s.noisy,
        clock,
        noise.seed,
        noise.site,
        noise.first_row,
        outputs.words.seed,
        outputs.words.site,
        outputs.words.first_row,
        outputs.threshold,
        outputs.scale,
        experts.words.seed,
        experts.words.site,
        experts.threshold
    );
    sort(device, s, routing);
}

/// Sorts the assignments by expert, rows in order.
fn sort(device: &Device, s: &Router, routing: &mut Routing) {
    let chunks = s.rows.div_ceil(CHUNK);
    launch!(
        device,
        "route_scan",
        Grid::line(s.count.div_ceil(8), 256),
        &routing.masks,
        &mut routing.before,
        &mut routing.totals,
        chunks,
        s.count
    );
    let capacity = s.capacity.and_then(|most| u32::try_from(most).ok()).unwrap_or(u32::MAX);
    let assignments = s.rows * s.slots();
    launch!(
        device,
        "route_place",
        Grid::line(assignments.div_ceil(256), 256).with_shared(4 * (s.experts() + 1)),
        &routing.chosen,
        &routing.masks,
        &routing.before,
        &routing.totals,
        &mut routing.place,
        &mut routing.offsets,
        &mut routing.rows,
        &mut routing.assigned,
        s.rows,
        assignments,
        chunks,
        s.count,
        s.active,
        s.shared,
        capacity
    );
}

/// See [`super::backward`]; the shares are read where their factor is above zero.
pub fn backward(
    device: &Device,
    s: &Router,
    x: View,
    parameters: &Weights,
    disturbance: &Disturbance,
    clock: View,
    (shares, factor, z_factor): (View, f32, f32),
    kept: View,
    routing: &Routing,
    d_weights: View,
    (d_x, write): (ViewMut, Write),
    d_router: ViewMut,
    d_noise: Option<ViewMut>,
    scratch: ViewMut,
) {
    let matrix = s.rows * s.count;
    let (mut d_logits, rest) = scratch.split(matrix);
    let (mut d_scales, mut partial) = rest.split(matrix);
    let noisy = s.noisy && parameters.noise.is_some() && d_noise.is_some();
    let outputs: Factors = factors(disturbance.outputs);
    launch!(
        device,
        "route_logits_backward",
        Grid::line(s.rows.div_ceil(8), 256),
        kept,
        &routing.chosen,
        d_weights,
        (factor > 0.0).then_some(shares),
        d_logits.reborrow(),
        noisy.then(|| d_scales.reborrow()),
        s.rows,
        s.count,
        s.active,
        s.slots(),
        s.score == RouterScore::Sigmoid,
        s.weight == RouterWeight::Renormalised,
        factor,
        z_factor,
        clock,
        outputs.words.seed,
        outputs.words.site,
        outputs.words.first_row,
        outputs.threshold,
        outputs.scale
    );
    let (words, reach) = jitter(disturbance);
    launch!(
        device,
        "route_input_backward",
        Grid { blocks: [s.rows.div_ceil(32) as u32, s.width.div_ceil(256) as u32, 1], ..Grid::line(0, 256) },
        d_logits.view(),
        noisy.then(|| d_scales.view()),
        parameters.router,
        parameters.noise.filter(|_| noisy),
        d_x,
        write,
        s.rows,
        s.width,
        s.count,
        clock,
        words.seed,
        words.site,
        words.first_row,
        reach
    );
    by_parameter(device, s, d_logits.view(), x, clock, (words, reach), d_router, partial.reborrow());
    if let Some(d_noise) = d_noise.filter(|_| noisy) {
        by_parameter(device, s, d_scales.view(), x, clock, (Words::default(), 0.0), d_noise, partial);
    }
}

/// Adds `d^T (x u)` to a gradient: slices of rows side by side, then their sum.
fn by_parameter(
    device: &Device,
    s: &Router,
    d: View,
    x: View,
    clock: View,
    (words, reach): (Words, f32),
    mut to: ViewMut,
    mut partial: ViewMut,
) {
    // With two rows an expert in each slice, the sums of all slices fit where jittered rows would stand.
    let slice = SLICE.max(2 * s.count);
    let (slices, len) = (s.rows.div_ceil(slice), s.count * s.width);
    let alone = slices == 1;
    let work = s.width.div_ceil(256) * s.count.div_ceil(8);
    launch!(
        device,
        "route_weight_backward",
        Grid { blocks: [work.div_ceil(4) as u32, slices as u32, 1], ..Grid::line(0, 128) },
        d,
        x,
        if alone { to.reborrow() } else { partial.reborrow().part(0..slices * len) },
        alone,
        s.rows,
        slice,
        s.width,
        s.count,
        clock,
        words.seed,
        words.site,
        words.first_row,
        reach
    );
    if !alone {
        let grid = Grid::line(len.div_ceil(32), 256);
        launch!(device, "route_weight_sum", grid, partial.view(), to, slices, len);
    }
}

/// See [`super::load`]: added to `into`, `2 count + 2` sums on the device.
pub fn load(device: &Device, s: &Router, kept: View, routing: &Routing, rows: usize, into: ViewMut) {
    let mut parts = routing.parts.lock().unwrap_or_else(PoisonError::into_inner);
    let count = rows.div_ceil(PART);
    launch!(
        device,
        "route_load",
        Grid::line(count, 256),
        kept,
        &routing.masks,
        &routing.place,
        &mut *parts,
        rows,
        s.rows.div_ceil(CHUNK),
        s.count,
        s.active,
        s.slots(),
        s.count.next_power_of_two().min(256)
    );
    let grid = Grid::line(s.load().div_ceil(256), 256);
    launch!(device, "route_load_sum", grid, &*parts, into, count, s.load());
}

/// Each expert's share of the choices in a load, see [`super::Balance`].
pub fn shares(device: &Device, s: &Router, load: View, shares: ViewMut) {
    launch!(device, "route_shares", Grid::line(1, 256), load, shares, s.count);
}

/// Moves a selection bias against a load by `rate`, unless `record` says that the step came to nothing.
pub fn shift(device: &Device, bias: ViewMut, load: View, rate: f32, record: View) {
    let count = bias.len();
    launch!(device, "route_shift", Grid::line(1, 256), load, record, bias, count, rate);
}

#[cfg(test)]
mod tests;
