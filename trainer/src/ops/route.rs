//! The router of a mixture of experts (Shazeer et al. 2017, section 2; Fedus et al. 2021, section 2.1).
//!
//! Forward, for each row `x`, all in f32:
//! `h = W (x u) + e softplus(W_n x)`, `u` the input jitter, `e` normal noise where there is some;
//! `s = softmax(h)`, or `s = sigma(h)`; `T` the `k` best of `s + b`, ties to the lower index, `b` the selection bias;
//! `w_i = s_i m_i` for `i` in `T`, or `w_i = s_i / (sum_T s) m_i`, `m` the mask of whole outputs.
//! Shared experts have weight one.
//!
//! Backward, the choice held fixed, with `g_i = m_i dL/dw_i`, `G = sum_T g_i w'_i` and `w'` the weight without its mask:
//! - softmax: `d_h_j = s_j (g_j [j in T] - G)`; renormalised: `d_h_j = w'_j (g_j - G)` in `T`, zero elsewhere
//! - logistic: `d_h_j = s_j (1 - s_j) g_j` in `T`; renormalised: `(1 - s_j) w'_j (g_j - G)`
//!
//! The balancing loss `a E sum_i f_i P_i`, with `f` the share of choices that expert `i` had in the whole micro-batch,
//! taken as constant, and `P` the mean of `p = s / sum s`, adds `a E / N r_j (f_j - sum_i f_i p_i)`, where `r = p` for
//! softmax and `s (1 - s) / sum s` for logistic scores. The z-loss `c / N sum (log sum e^h)^2` (Zoph et al. 2022,
//! eq. 5) adds `2 c / N (log sum e^h) softmax(h)_j`.
//! Then `d_x = u (d_h W) + (d_h e sigma(W_n x)) W_n`, `d_W = d_h^T (x u)`, `d_W_n = (d_h e sigma(W_n x))^T x`.

pub mod cuda;

use super::dropout::{Draws, Mask};
use formats::config::{RouterScore, RouterWeight};
use runtime::random::uniform;
use runtime::simd::Simd;
use runtime::simd::product::{Epilogue, Operand, Product, Write};
use std::cmp::Ordering;
use std::collections::TryReserveError;

/// The place of an assignment that a full expert dropped.
pub const DROPPED: u32 = u32::MAX;

/// The shape of one router over one shard.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Router {
    /// The layer it belongs to.
    pub layer: usize,
    /// Rows.
    pub rows: usize,
    /// Width of a row.
    pub width: usize,
    /// Experts to choose from.
    pub count: usize,
    /// How many each row chooses.
    pub active: usize,
    /// Experts that every row gets besides.
    pub shared: usize,
    /// How logits become scores.
    pub score: RouterScore,
    /// How scores become weights.
    pub weight: RouterWeight,
    /// Whether there is learned noise to keep for the backward pass.
    pub noisy: bool,
    /// Most rows an expert takes; the rest drop it.
    pub capacity: Option<usize>,
}

impl Router {
    /// Experts whose outputs one row is given.
    pub fn slots(&self) -> usize {
        self.active + self.shared
    }

    /// Experts in all.
    pub fn experts(&self) -> usize {
        self.count + self.shared
    }

    /// Length of what the forward pass keeps: scores, the logarithm of each row's sum, the noise's slope.
    pub fn kept(&self) -> usize {
        self.rows * (self.count * if self.noisy { 2 } else { 1 } + 1)
    }

    /// Length of the scratch of one pass: jittered rows, and two matrices of logits.
    pub fn scratch(&self) -> usize {
        self.rows * (self.width + 2 * self.count)
    }

    /// Length of one router's load, see [`load`].
    pub fn load(&self) -> usize {
        2 * self.count + 2
    }
}

/// Which rows go to which expert: decided forward, read by everything that follows.
#[derive(Clone, Debug, Default)]
pub struct Routing {
    /// `[rows, slots]`: the experts of each row, best first, the shared ones last.
    pub chosen: Vec<u32>,
    /// `[rows, slots]`: where each assignment stands once they are sorted by expert, or [`DROPPED`].
    pub place: Vec<u32>,
    /// Where each expert's assignments begin among the sorted ones, and after the last their number.
    pub offsets: Vec<u32>,
    /// `[rows slots]`: the row of each sorted assignment.
    pub rows: Vec<u32>,
    /// Where each expert's next assignment goes while they are sorted.
    next: Vec<u32>,
}

impl Routing {
    /// Room for `assignments` of rows to `experts`; an error where there is no memory for them.
    pub fn new(assignments: usize, experts: usize) -> Result<Routing, TryReserveError> {
        Ok(Routing {
            chosen: filled(assignments, 0)?,
            place: filled(assignments, DROPPED)?,
            offsets: filled(experts + 1, 0)?,
            rows: filled(assignments, 0)?,
            next: filled(experts, 0)?,
        })
    }

    /// One expert's range among the sorted assignments.
    pub fn of(&self, expert: usize) -> std::ops::Range<usize> {
        self.offsets[expert] as usize..self.offsets[expert + 1] as usize
    }
}

fn filled(len: usize, value: u32) -> Result<Vec<u32>, TryReserveError> {
    let mut values = Vec::new();
    values.try_reserve_exact(len)?;
    values.resize(len, value);
    Ok(values)
}

/// What a router is told besides its input.
#[derive(Clone, Copy, Default)]
pub struct Disturbance {
    /// Uniform factors on the input, and how far they lie from one.
    pub jitter: Option<(Draws, f32)>,
    /// Normal noise on the logits.
    pub noise: Option<Draws>,
    /// Masks of whole outputs, `[rows, slots]`.
    pub outputs: Mask,
    /// Experts that this step does without, one row.
    pub experts: Mask,
}

/// The router's parameters.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    /// `[count, width]`, as the products read them.
    pub panels: &'a [f32],
    /// The same in rows.
    pub router: &'a [f32],
    /// `[count]`.
    pub selection_bias: Option<&'a [f32]>,
    /// `[count, width]` and its panels.
    pub noise: Option<(&'a [f32], &'a [f32])>,
}

fn logits_product(s: &Router) -> Product {
    Product {
        rows: s.rows,
        inner: s.width,
        columns: s.count,
        a_row_stride: s.width,
        a_inner_stride: 1,
        b: Operand::Panels,
        c_stride: s.count,
        write: Write::Set,
    }
}

/// `weights` `[rows, slots]`; `kept` and `routing` are what the backward pass and the experts need.
pub fn forward(
    simd: &Simd,
    s: &Router,
    x: &[f32],
    parameters: &Weights<'_>,
    disturbance: &Disturbance,
    weights: &mut [f32],
    kept: &mut [f32],
    routing: &mut Routing,
    scratch: &mut [f32],
) {
    let (jittered, logits) = scratch.split_at_mut(s.rows * s.width);
    let (scores, rest) = kept.split_at_mut(s.rows * s.count);
    let (log_sums, slopes) = rest.split_at_mut(s.rows);
    let input = jitter(s, x, disturbance, jittered);
    (simd.product)(&logits_product(s), input, parameters.panels, Epilogue::default(), scores);
    if let (Some((_, panels)), Some(draws)) = (parameters.noise, disturbance.noise) {
        let scales = &mut logits[..s.rows * s.count];
        (simd.product)(&logits_product(s), x, panels, Epilogue::default(), scales);
        add_noise(s, draws, scales, scores, slopes);
    } else {
        slopes.fill(0.0);
    }
    if let Some(mask) = disturbance.experts {
        without_some(s, mask, scores);
    }
    let scores = &mut scores[..s.rows * s.count];
    for (row, scores) in scores.chunks_exact_mut(s.count).enumerate() {
        log_sums[row] = match s.score {
            RouterScore::Softmax => {
                let mut moments = [0.0; 2];
                (simd.softmax)(scores, &mut moments);
                let [maximum, sum] = moments;
                maximum + sum.ln()
            }
            RouterScore::Sigmoid => {
                let sum = (simd.log_sum_exp)(scores);
                scores.iter_mut().for_each(|score| *score = 1.0 / (1.0 + (-*score).exp()));
                sum
            }
        };
        let slots = row * s.slots()..(row + 1) * s.slots();
        let (chosen, weights) = (&mut routing.chosen[slots.clone()], &mut weights[slots]);
        choose(s, scores, parameters.selection_bias, chosen);
        weigh(s, scores, chosen, weights);
    }
    if let Some(mask) = disturbance.outputs {
        mask.rows(s.rows, |index, factor| {
            if index % s.slots() < s.active {
                weights[index] *= factor;
            }
        });
    }
    sort(s, routing);
}

/// The rows the router reads: jittered ones in `to`, or `x` itself.
fn jitter<'a>(s: &Router, x: &'a [f32], disturbance: &Disturbance, to: &'a mut [f32]) -> &'a [f32] {
    let Some((draws, reach)) = disturbance.jitter else { return x };
    for (row, (to, x)) in to.chunks_exact_mut(s.width).zip(x.chunks_exact(s.width)).enumerate() {
        draws.row(row, s.width, |column, word| to[column] = x[column] * jitter_factor(word, reach));
    }
    to
}

fn jitter_factor(word: u32, reach: f32) -> f32 {
    1.0 + reach * (2.0 * uniform(word) - 1.0)
}

/// `h += e softplus(n)`; keeps `e sigma(n)`.
fn add_noise(s: &Router, draws: Draws, scales: &[f32], logits: &mut [f32], slopes: &mut [f32]) {
    let mut first = 0;
    for row in 0..s.rows {
        // Two words make one normal number (Box and Muller 1958).
        draws.row(row, 2 * s.count, |index, word| {
            if index % 2 == 0 {
                first = word;
                return;
            }
            let at = row * s.count + index / 2;
            let size = (-2.0 * (1.0 - uniform(first)).ln()).sqrt();
            let normal = size * (std::f32::consts::TAU * uniform(word)).cos();
            let scale = scales[at];
            logits[at] += normal * (scale.max(0.0) + (-scale.abs()).exp().ln_1p());
            slopes[at] = normal / (1.0 + (-scale).exp());
        });
    }
}

/// Takes the masked experts from every row, unless too few would be left.
fn without_some(s: &Router, mask: super::dropout::Drop, logits: &mut [f32]) {
    let mut left = 0;
    mask.row(0, s.count, |_, factor| left += usize::from(factor > 0.0));
    if left < s.active {
        return;
    }
    mask.row(0, s.count, |expert, factor| {
        if factor == 0.0 {
            logits.iter_mut().skip(expert).step_by(s.count).for_each(|logit| *logit = f32::NEG_INFINITY);
        }
    });
}

/// The best experts of one row, and the shared ones. What is not a number counts as the worst.
fn choose(s: &Router, scores: &[f32], bias: Option<&[f32]>, chosen: &mut [u32]) {
    let value = |expert: usize| {
        let value = scores[expert] + bias.map_or(0.0, |bias| bias[expert]);
        if value.is_nan() { f32::NEG_INFINITY } else { value }
    };
    for slot in 0..s.active {
        let (taken, rest) = chosen.split_at_mut(slot);
        let free = (0..s.count).filter(|&expert| !taken.contains(&(expert as u32)));
        let best = free.reduce(|best, expert| if value(expert) > value(best) { expert } else { best });
        rest[0] = best.unwrap_or(0) as u32;
    }
    for (slot, expert) in chosen[s.active..].iter_mut().zip(s.count as u32..) {
        *slot = expert;
    }
}

/// The weights of one row's experts, without a mask.
fn weigh(s: &Router, scores: &[f32], chosen: &[u32], weights: &mut [f32]) {
    let (weights, shared) = weights.split_at_mut(s.active);
    let sum: f32 = chosen[..s.active].iter().map(|&expert| scores[expert as usize]).sum();
    for (weight, &expert) in weights.iter_mut().zip(chosen) {
        let score = scores[expert as usize];
        *weight = match s.weight {
            RouterWeight::Score => score,
            RouterWeight::Renormalised => score / sum,
        };
    }
    shared.fill(1.0);
}

/// Sorts the assignments by expert, rows in order; a full expert drops what comes later.
fn sort(s: &Router, routing: &mut Routing) {
    let Routing { chosen, place, offsets, rows, next } = routing;
    let capacity = s.capacity.and_then(|most| u32::try_from(most).ok()).unwrap_or(u32::MAX);
    offsets.fill(0);
    for &expert in chosen.iter() {
        let most = if (expert as usize) < s.count { capacity } else { u32::MAX };
        let count = &mut offsets[expert as usize + 1];
        *count = (*count + 1).min(most);
    }
    for expert in 1..offsets.len() {
        offsets[expert] += offsets[expert - 1];
    }
    next.copy_from_slice(&offsets[..offsets.len() - 1]);
    for (assignment, (&expert, place)) in chosen.iter().zip(place.iter_mut()).enumerate() {
        let next = &mut next[expert as usize];
        if *next == offsets[expert as usize + 1] {
            *place = DROPPED;
            continue;
        }
        *place = *next;
        rows[*next as usize] = (assignment / s.slots()) as u32;
        *next += 1;
    }
}

/// What keeps experts alive, in one backward pass.
#[derive(Clone, Copy, Debug)]
pub struct Balance<'a> {
    /// `[count]`: each expert's share of the choices in the whole micro-batch; empty without such a loss.
    pub shares: &'a [f32],
    /// `a E / N`.
    pub factor: f32,
    /// `2 c / N`.
    pub z_factor: f32,
}

/// The gradients: that of `x` written as asked, those of the parameters added to what is there. `d_noise` goes with
/// [`Weights::noise`].
pub fn backward(
    simd: &Simd,
    s: &Router,
    x: &[f32],
    parameters: &Weights<'_>,
    disturbance: &Disturbance,
    balance: &Balance<'_>,
    kept: &[f32],
    routing: &Routing,
    d_weights: &[f32],
    (d_x, write): (&mut [f32], Write),
    d_router: &mut [f32],
    d_noise: Option<&mut [f32]>,
    scratch: &mut [f32],
) {
    let (jittered, rest) = scratch.split_at_mut(s.rows * s.width);
    let (d_logits, d_scales) = rest.split_at_mut(s.rows * s.count);
    let (scores, rest) = kept.split_at(s.rows * s.count);
    let (log_sums, slopes) = rest.split_at(s.rows);
    for row in 0..s.rows {
        let slots = row * s.slots()..row * s.slots() + s.active;
        let experts = row * s.count..(row + 1) * s.count;
        let (scores, d_logits) = (&scores[experts.clone()], &mut d_logits[experts]);
        let chosen = &routing.chosen[slots.clone()];
        d_logits.fill(0.0);
        through_weights(s, scores, chosen, &d_weights[slots], row, disturbance.outputs, d_logits);
        if !balance.shares.is_empty() {
            through_shares(s, scores, balance, d_logits);
        }
        if balance.z_factor > 0.0 {
            let factor = balance.z_factor * log_sums[row];
            for (d, score) in d_logits.iter_mut().zip(scores) {
                *d += factor
                    * match s.score {
                        RouterScore::Softmax => *score,
                        // `h = ln(s / (1 - s))`, which is never above the logarithm of the sum.
                        RouterScore::Sigmoid => {
                            ((score / (1.0 - score)).ln().min(log_sums[row]) - log_sums[row]).exp()
                        }
                    };
            }
        }
    }
    let input = jitter(s, x, disturbance, jittered);
    let by_parameter = |d: &[f32], x: &[f32], to: &mut [f32]| {
        let product = Product {
            rows: s.count,
            inner: s.rows,
            columns: s.width,
            a_row_stride: 1,
            a_inner_stride: s.count,
            b: Operand::Rows { stride: s.width },
            c_stride: s.width,
            write: Write::Accumulate,
        };
        (simd.product)(&product, d, x, Epilogue::default(), to);
    };
    by_parameter(d_logits, input, d_router);
    let by_input = |d: &[f32], weight: &[f32], write: Write, to: &mut [f32]| {
        let product = Product {
            rows: s.rows,
            inner: s.count,
            columns: s.width,
            a_row_stride: s.count,
            a_inner_stride: 1,
            b: Operand::Rows { stride: s.width },
            c_stride: s.width,
            write,
        };
        (simd.product)(&product, d, weight, Epilogue::default(), to);
    };
    match disturbance.jitter {
        None => by_input(d_logits, parameters.router, write, d_x),
        Some((draws, reach)) => {
            by_input(d_logits, parameters.router, Write::Set, jittered);
            for row in 0..s.rows {
                draws.row(row, s.width, |column, word| {
                    let at = row * s.width + column;
                    let d = jittered[at] * jitter_factor(word, reach);
                    d_x[at] = if write == Write::Set { d } else { d_x[at] + d };
                });
            }
        }
    }
    if let (Some((weight, _)), Some(d_noise)) = (parameters.noise, d_noise) {
        let d_scales = &mut d_scales[..s.rows * s.count];
        for ((d_scale, d), slope) in d_scales.iter_mut().zip(&*d_logits).zip(slopes) {
            *d_scale = d * slope;
        }
        by_parameter(d_scales, x, d_noise);
        by_input(d_scales, weight, Write::Accumulate, d_x);
    }
}

/// One row's gradient of the logits through the weights of its experts.
fn through_weights(
    s: &Router,
    scores: &[f32],
    chosen: &[u32],
    d_weights: &[f32],
    row: usize,
    outputs: Mask,
    d_logits: &mut [f32],
) {
    // The gradient of a chosen expert's unmasked weight waits in its logit's place.
    for (&expert, d) in chosen.iter().zip(d_weights) {
        d_logits[expert as usize] = *d;
    }
    if let Some(mask) = outputs {
        mask.row(row, s.slots(), |slot, factor| {
            if let Some(&expert) = chosen.get(slot) {
                d_logits[expert as usize] *= factor;
            }
        });
    }
    let sum: f32 = match s.weight {
        RouterWeight::Score => 1.0,
        RouterWeight::Renormalised => chosen.iter().map(|&expert| scores[expert as usize]).sum(),
    };
    let mixed: f32 = chosen.iter().map(|&e| d_logits[e as usize] * (scores[e as usize] / sum)).sum();
    match (s.score, s.weight) {
        (RouterScore::Softmax, RouterWeight::Score) => {
            d_logits.iter_mut().zip(scores).for_each(|(d, score)| *d = score * (*d - mixed));
        }
        (RouterScore::Softmax, RouterWeight::Renormalised) => {
            for &expert in chosen {
                let d = &mut d_logits[expert as usize];
                *d = scores[expert as usize] / sum * (*d - mixed);
            }
        }
        (RouterScore::Sigmoid, RouterWeight::Score) => {
            d_logits.iter_mut().zip(scores).for_each(|(d, score)| *d *= score * (1.0 - score));
        }
        (RouterScore::Sigmoid, RouterWeight::Renormalised) => {
            for &expert in chosen {
                let (d, score) = (&mut d_logits[expert as usize], scores[expert as usize]);
                *d = (1.0 - score) * (score / sum) * (*d - mixed);
            }
        }
    }
}

/// One row's gradient of the logits through the mean probabilities of the balancing loss.
fn through_shares(s: &Router, scores: &[f32], balance: &Balance<'_>, d_logits: &mut [f32]) {
    let sum: f32 = match s.score {
        RouterScore::Softmax => 1.0,
        RouterScore::Sigmoid => scores.iter().sum(),
    };
    let mixed: f32 = scores.iter().zip(balance.shares).map(|(score, share)| score / sum * share).sum();
    for ((d, score), share) in d_logits.iter_mut().zip(scores).zip(balance.shares) {
        let reach = match s.score {
            RouterScore::Softmax => *score,
            RouterScore::Sigmoid => score * (1.0 - score) / sum,
        };
        *d += balance.factor * reach * (share - mixed);
    }
}

/// What the first `rows` rows asked of each expert: how often it was chosen, the sum of its probabilities, and
/// then the sum of the rows' entropies (nats) and the number of assignments dropped. Added to what is there.
pub fn load(s: &Router, kept: &[f32], routing: &Routing, rows: usize, into: &mut [f64]) {
    let (counts, rest) = into.split_at_mut(s.count);
    let (probabilities, rest) = rest.split_at_mut(s.count);
    for row in 0..rows {
        let slots = row * s.slots()..row * s.slots() + s.active;
        for &expert in &routing.chosen[slots.clone()] {
            counts[expert as usize] += 1.0;
        }
        rest[1] += routing.place[slots].iter().filter(|place| **place == DROPPED).count() as f64;
        let scores = &kept[row * s.count..][..s.count];
        let sum: f64 = scores.iter().map(|score| f64::from(*score)).sum();
        for (total, score) in probabilities.iter_mut().zip(scores) {
            let probability = f64::from(*score) / sum;
            *total += probability;
            rest[0] -= if probability > 0.0 { probability * probability.ln() } else { 0.0 };
        }
    }
}

/// Moves the selection biases against the load of a step by `rate` (Wang et al. 2024, algorithm 1).
pub fn shift(counts: &[f64], rate: f32, biases: &mut [f32]) {
    let mean = counts.iter().sum::<f64>() / counts.len() as f64;
    for (bias, count) in biases.iter_mut().zip(counts) {
        *bias += match count.total_cmp(&mean) {
            Ordering::Less => rate,
            Ordering::Equal => 0.0,
            Ordering::Greater => -rate,
        };
    }
}

#[cfg(test)]
mod tests;
