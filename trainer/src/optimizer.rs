//! The optimiser's options and its state: Adam or AdamW over the whole arena, with the gradient's norm clipped.

use crate::backend::Backend;
use crate::ops::adamw::Adam;
use formats::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// How weights are updated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerOptions {
    /// What weight decay acts on.
    pub kind: OptimizerKind,
    /// The peak of the schedule.
    pub learning_rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Weight decay.
    pub weight_decay: f32,
    /// What decays.
    pub decay: Decay,
    /// Largest norm of the gradient; 0 does not clip.
    pub clip: f32,
}

/// Whose update it is; without weight decay the two are one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerKind {
    /// Kingma and Ba 2015: decay is a term of the gradient, and so of both moments.
    Adam,
    /// Loshchilov and Hutter 2019: weights decay beside the gradient's step.
    #[default]
    Adamw,
}

/// Which parameters decay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// Every parameter, biases and norms too, as PyTorch's default does.
    Everything,
    /// Matrices and embeddings only, as GPT-2's successors do.
    Matrices,
}

impl OptimizerOptions {
    /// Checks every bound. `origin` names the file or flags the values came from.
    pub fn validate(&self, origin: &str) -> Result<()> {
        let within = |field: &str, value: f32, holds: bool, expected: &str| {
            if value.is_finite() && holds {
                Ok(())
            } else {
                Err(Error::config(origin, field, value, expected))
            }
        };
        let rate = self.learning_rate;
        within("learning_rate", rate, (0.0..=1e3).contains(&rate), "0 to 1000")?;
        within("beta1", self.beta1, (0.0..1.0).contains(&self.beta1), "0 or more, below 1")?;
        within("beta2", self.beta2, (0.0..1.0).contains(&self.beta2), "0 or more, below 1")?;
        within("eps", self.eps, self.eps > 0.0 && self.eps <= 1.0, "above 0, at most 1")?;
        within("weight_decay", self.weight_decay, (0.0..=1e3).contains(&self.weight_decay), "0 to 1000")?;
        within("clip", self.clip, self.clip >= 0.0, "0 (off) or more")
    }
}

/// Both moments of every parameter.
pub struct Optimizer<B: Backend> {
    /// First moment, in the layout's order.
    pub first: B::Floats,
    /// Second moment.
    pub second: B::Floats,
    options: OptimizerOptions,
}

/// `value` as the decimal number it was written as: 0.9, not the f32 next to it, so that `1 - beta` is right.
fn decimal(value: f32) -> f64 {
    let mut digits = Digits { text: [0; 64], len: 0 };
    let written = write!(digits, "{value}").is_ok();
    let text = std::str::from_utf8(&digits.text[..digits.len]).unwrap_or_default();
    text.parse().ok().filter(|_| written).unwrap_or(f64::from(value))
}

/// A short text that needs no memory of its own: updates allocate nothing.
struct Digits {
    text: [u8; 64],
    len: usize,
}

impl Write for Digits {
    fn write_str(&mut self, part: &str) -> std::fmt::Result {
        let room = self.text.get_mut(self.len..self.len + part.len()).ok_or(std::fmt::Error)?;
        room.copy_from_slice(part.as_bytes());
        self.len += part.len();
        Ok(())
    }
}

impl<B: Backend> Optimizer<B> {
    /// Moments of `len` parameters, zero.
    pub fn new(backend: &B, len: usize, options: &OptimizerOptions) -> Result<Optimizer<B>> {
        Ok(Optimizer { first: backend.floats(len)?, second: backend.floats(len)?, options: options.clone() })
    }

    /// What update number `step`, from 1, is made with.
    pub fn adam(&self, learning_rate: f32, step: u64) -> Adam {
        Adam {
            learning_rate: decimal(learning_rate),
            beta1: decimal(self.options.beta1),
            beta2: decimal(self.options.beta2),
            eps: decimal(self.options.eps),
            weight_decay: decimal(self.options.weight_decay),
            decay_vectors: self.options.decay == Decay::Everything,
            coupled: self.options.kind == OptimizerKind::Adam,
            step,
            clip: f64::from(self.options.clip),
            gradient_scale: 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_the_decimal_it_was_written_as() {
        for (value, expected) in [(0.9, 0.9), (2.5e-4, 2.5e-4), (1e-8, 1e-8), (0.0, 0.0), (1e-45, 1e-45)] {
            assert_eq!(decimal(value), expected);
        }
        assert_eq!(decimal(f32::MAX), f32::MAX.to_string().parse::<f64>().unwrap_or(0.0));
        assert_eq!(decimal(f32::INFINITY), f64::INFINITY);
    }
}
