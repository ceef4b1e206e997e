//! Learning-rate curves as pure functions of the step; no state, so that resuming needs nothing but the step.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// The shape of the curve after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Curve {
    /// The peak, for ever.
    Constant,
    /// Half a cosine from the peak to the floor (Loshchilov and Hutter 2017, eq. 5), then the floor.
    Cosine,
    /// A straight line from the peak to the floor, then the floor.
    Linear,
    /// The peak over the root of the steps since the warm-up began (Vaswani et al. 2017, eq. 3).
    InverseSqrt,
}

/// A learning rate for every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// What follows the warm-up.
    pub curve: Curve,
    /// The highest rate.
    pub peak: f64,
    /// Where a cosine or a line ends.
    pub floor: f64,
    /// Steps of linear rise: step `s` of them has `peak (s + 1) / (warmup + 1)`.
    pub warmup: u64,
    /// The step at which a cosine or a line reaches the floor.
    pub decay_steps: u64,
}

impl Schedule {
    /// The rate of `step`, counted from zero.
    pub fn learning_rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / (self.warmup + 1) as f64;
        }
        match self.curve {
            Curve::Constant => self.peak,
            Curve::InverseSqrt => self.peak * ((self.warmup + 1) as f64 / (step as f64 + 1.0)).sqrt(),
            Curve::Cosine | Curve::Linear if step >= self.decay_steps => self.floor,
            Curve::Cosine => {
                self.floor + 0.5 * (1.0 + (PI * self.done(step)).cos()) * (self.peak - self.floor)
            }
            Curve::Linear => self.floor + (1.0 - self.done(step)) * (self.peak - self.floor),
        }
    }

    /// How much of the way to the floor is done at a step between.
    fn done(&self, step: u64) -> f64 {
        (step - self.warmup) as f64 / (self.decay_steps - self.warmup) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nano() -> Schedule {
        Schedule { curve: Curve::Cosine, peak: 1e-3, floor: 1e-4, warmup: 100, decay_steps: 2000 }
    }

    #[track_caller]
    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-15, "{found} for {expected}");
    }

    #[test]
    fn the_curve_is_that_of_nanogpt() {
        // nanoGPT's get_lr(it) with learning_rate 1e-3, min_lr 1e-4, warmup_iters 100, lr_decay_iters 2000.
        near(nano().learning_rate(0), 9.900990099009901e-06);
        near(nano().learning_rate(99), 0.0009900990099009901);
        near(nano().learning_rate(100), 0.001);
        near(nano().learning_rate(575), 0.0008681980515339464);
        near(nano().learning_rate(1050), 0.00055);
        near(nano().learning_rate(1999), 0.00010000061514140841);
        near(nano().learning_rate(2000), 0.0001);
        near(nano().learning_rate(u64::MAX), 0.0001);
    }

    #[test]
    fn a_constant_rate_is_constant() {
        let schedule = Schedule { curve: Curve::Constant, warmup: 0, ..nano() };
        for step in [0, 1, 4999, u64::MAX] {
            near(schedule.learning_rate(step), 1e-3);
        }
    }

    #[test]
    fn a_line_falls_evenly_and_an_inverse_root_never_ends() {
        let line = Schedule { curve: Curve::Linear, ..nano() };
        near(line.learning_rate(99), 0.0009900990099009901);
        near(line.learning_rate(100), 1e-3);
        near(line.learning_rate(1050), 0.00055);
        near(line.learning_rate(2000), 1e-4);
        near(line.learning_rate(u64::MAX), 1e-4);
        let root = Schedule { curve: Curve::InverseSqrt, ..nano() };
        near(root.learning_rate(99), 0.0009900990099009901);
        near(root.learning_rate(100), 1e-3);
        // Four times the steps, half the rate.
        near(root.learning_rate(4 * 101 - 1), 5e-4);
        near(root.learning_rate(100 * 101 - 1), 1e-4);
    }

    #[test]
    fn a_run_shorter_than_its_warm_up_only_rises() {
        let schedule = Schedule { decay_steps: 50, ..nano() };
        for step in 1..100 {
            assert!(schedule.learning_rate(step) > schedule.learning_rate(step - 1));
        }
        near(schedule.learning_rate(100), 1e-4);
    }
}
