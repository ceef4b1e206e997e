//! AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2), as PyTorch computes it.
//!
//! With `g` the clipped gradient and `t` the update's number, from 1:
//! `m = m + (1 - b1)(g - m)`, `v = b2 v + (1 - b2) g^2`,
//! `w = (1 - lr d) w - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)`,
//! `d` the weight decay of a parameter that decays and zero for the others.

pub mod cuda;

use runtime::simd::routines::Unit;
use runtime::simd::{Simd, Work};

/// One update's constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// `lr`.
    pub learning_rate: f64,
    /// `b1`.
    pub beta1: f64,
    /// `b2`.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// `d` of parameters that decay.
    pub weight_decay: f64,
    /// Whether vectors (norms and biases) decay too.
    pub decay_vectors: bool,
    /// Whether decay is a term of the gradient: see [`couple`].
    pub coupled: bool,
    /// `t`, from 1.
    pub step: u64,
    /// Largest norm of the gradient; 0 does not clip.
    pub clip: f64,
    /// What the gradient is multiplied by: below 1 where its norm was clipped.
    pub gradient_scale: f32,
}

/// Added to the norm that divides when clipping, as PyTorch does.
const CLIP_EPS: f64 = 1e-6;

/// Where a step's record has the mean loss before its update.
pub const LOSS: usize = 0;
/// Where it has the gradient's norm before clipping.
pub const NORM: usize = 1;
/// Where it has the first update that was not made, because of these two; 0 if every one was.
pub const DIVERGED: usize = 2;
/// Length of a record.
pub const RECORD: usize = 3;

/// Records what a step saw, and says what its gradient is to be multiplied by. A loss or a norm that is not finite, in this
/// step or in one before it, allows no update.
pub fn judge(adam: &Adam, loss: f64, norm: f64, record: &mut [f64]) -> Option<f32> {
    if record[DIVERGED] > 0.0 {
        return None;
    }
    (record[LOSS], record[NORM]) = (loss, norm);
    if !(loss.is_finite() && norm.is_finite()) {
        record[DIVERGED] = adam.step as f64;
        return None;
    }
    Some(if adam.clip > 0.0 { (adam.clip / (norm + CLIP_EPS)).min(1.0) as f32 } else { 1.0 })
}

/// The constants rounded once, as PyTorch rounds its Python floats.
#[derive(Clone, Copy, Debug)]
pub struct Rounded {
    /// `1 - lr d`.
    pub keep: f32,
    /// `1 - b1`.
    pub first: f32,
    /// `b2`.
    pub beta2: f32,
    /// `1 - b2`.
    pub second: f32,
    /// `1 / sqrt(1 - b2^t)`.
    pub root: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// `-lr / (1 - b1^t)`.
    pub size: f32,
    /// The gradient's factor.
    pub scale: f32,
}

impl Rounded {
    /// Those of parameters that decay, or do not.
    pub fn of(adam: &Adam, decays: bool) -> Rounded {
        let decay = if decays { adam.weight_decay } else { 0.0 };
        // Powers past i32 are one to any precision.
        let step = i32::try_from(adam.step).unwrap_or(i32::MAX);
        Rounded {
            keep: (1.0 - adam.learning_rate * decay) as f32,
            first: (1.0 - adam.beta1) as f32,
            beta2: adam.beta2 as f32,
            second: (1.0 - adam.beta2) as f32,
            root: (1.0 / (1.0 - adam.beta2.powi(step)).sqrt()) as f32,
            eps: adam.eps as f32,
            size: -(adam.learning_rate / (1.0 - adam.beta1.powi(step))) as f32,
            scale: adam.gradient_scale,
        }
    }
}

/// Adam's own weight decay (Kingma and Ba 2015, as PyTorch has it), `g = scale g + d w`, before an [`update`] of what
/// this returns.
pub fn couple(simd: &Simd, adam: &Adam, decays: bool, weights: &[f32], grads: &mut [f32]) -> Adam {
    let decay = if decays { adam.weight_decay as f32 } else { 0.0 };
    simd.run(Couple { scale: adam.gradient_scale, decay, weights, grads });
    Adam { weight_decay: 0.0, gradient_scale: 1.0, ..*adam }
}

struct Couple<'a> {
    scale: f32,
    decay: f32,
    weights: &'a [f32],
    grads: &'a mut [f32],
}

impl Work for Couple<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, unit: Unit) {
        for (grad, weight) in self.grads.iter_mut().zip(self.weights) {
            *grad = unit.multiply_add(self.decay, *weight, *grad * self.scale);
        }
    }
}

/// Updates one stretch of parameters that all decay or all do not; zeroes their gradient.
pub fn update(
    simd: &Simd,
    adam: &Adam,
    decays: bool,
    weights: &mut [f32],
    first: &mut [f32],
    second: &mut [f32],
    grads: &mut [f32],
) {
    simd.run(Stretch { constants: Rounded::of(adam, decays), weights, first, second, grads });
}

struct Stretch<'a> {
    constants: Rounded,
    weights: &'a mut [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
    grads: &'a mut [f32],
}

impl Work for Stretch<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, unit: Unit) {
        let Stretch { constants: c, weights, first, second, grads } = self;
        for (((weight, m), v), grad) in weights.iter_mut().zip(first).zip(second).zip(grads) {
            let g = *grad * c.scale;
            *grad = 0.0;
            *m = unit.multiply_add(c.first, g - *m, *m);
            *v = unit.multiply_add(c.second * g, g, *v * c.beta2);
            let root = unit.multiply_add(v.sqrt(), c.root, c.eps);
            *weight = unit.multiply_add(c.size, *m / root, *weight * c.keep);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::values;

    #[test]
    fn ten_updates_match_float64() {
        for simd in Simd::available() {
            for (len, decays, coupled) in
                [(1, true, false), (17, false, false), (33, true, false), (33, true, true), (18, false, true)]
            {
                let mut weights = values(len, 1);
                let (mut m, mut v) = (vec![0.0; len], vec![0.0; len]);
                let mut exact: Vec<[f64; 3]> = weights.iter().map(|w| [f64::from(*w), 0.0, 0.0]).collect();
                for step in 1..=10 {
                    let adam = Adam {
                        learning_rate: 1e-3,
                        beta1: 0.9,
                        beta2: 0.999,
                        eps: 1e-8,
                        weight_decay: 0.1,
                        decay_vectors: false,
                        coupled,
                        step,
                        clip: 0.0,
                        gradient_scale: 0.5,
                    };
                    let mut grads = values(len, 10 + step);
                    for (state, g) in exact.iter_mut().zip(&grads) {
                        let [w, m, v] = *state;
                        let (added, decay) = match (decays, coupled) {
                            (false, _) => (0.0, 0.0),
                            (true, true) => (0.1, 0.0),
                            (true, false) => (0.0, 0.1),
                        };
                        let g = 0.5 * f64::from(*g) + added * w;
                        let (m, v) = (0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g);
                        let t = step as i32;
                        let root = (v / (1.0 - 0.999f64.powi(t))).sqrt() + 1e-8;
                        *state = [w * (1.0 - 1e-3 * decay) - 1e-3 * m / (1.0 - 0.9f64.powi(t)) / root, m, v];
                    }
                    let adam = if coupled { couple(simd, &adam, decays, &weights, &mut grads) } else { adam };
                    update(simd, &adam, decays, &mut weights, &mut m, &mut v, &mut grads);
                    assert!(grads.iter().all(|g| *g == 0.0), "the gradient is left for the next step");
                }
                for (got, want) in weights.iter().zip(&exact) {
                    let error = (f64::from(*got) - want[0]).abs();
                    assert!(error <= 1e-6, "{got} is not {}", want[0]);
                }
            }
        }
    }
}
