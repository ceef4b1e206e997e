//! The description of a model: a decoder named by its parts, so that the lecture's GPT and its successors are
//! values, not code. Holds every bound a model must keep; never holds how it is trained.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Largest vocabulary a config may ask for.
pub const MAX_VOCABULARY: usize = 1 << 24;
/// Largest context, in tokens.
pub const MAX_CONTEXT: usize = 1 << 24;
/// Largest residual width.
pub const MAX_WIDTH: usize = 1 << 16;
/// Most layers.
pub const MAX_LAYERS: usize = 1024;
/// Most attention heads.
pub const MAX_HEADS: usize = 1024;
/// Widest attention head; the attention kernels keep one head's accumulators on the stack.
pub const MAX_HEAD_SIZE: usize = 512;
/// Widest feed-forward layer.
pub const MAX_FEED_FORWARD: usize = 1 << 20;
/// Most parameters in all: keeps every offset and byte count below 2^45, far from overflow.
pub const MAX_PARAMETERS: u64 = 1 << 42;

/// One decoder model: its shape and the choices that change what it computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Number of token ids.
    pub vocabulary: usize,
    /// Most tokens the model attends over at once.
    pub context: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Attention heads; they share `width` evenly.
    pub heads: usize,
    /// Hidden width of the feed-forward layer.
    pub feed_forward: usize,
    /// How positions enter.
    pub position: Position,
    /// The feed-forward layer's nonlinearity.
    pub activation: Activation,
    /// What the attention scores are divided by.
    pub attention_scale: AttentionScale,
    /// Added to the variance in LayerNorm.
    pub norm_eps: f32,
    /// Whether LayerNorm has a bias.
    pub norm_bias: bool,
    /// Whether the fused query-key-value projection has a bias.
    pub qkv_bias: bool,
    /// Whether the attention output projection has a bias.
    pub attention_bias: bool,
    /// Whether the two feed-forward projections have biases.
    pub feed_forward_bias: bool,
    /// Whether the head shares the token embedding's matrix.
    pub tied: bool,
    /// Whether the head has a bias.
    pub head_bias: bool,
    /// Probability of zeroing, in training only: embeddings, attention weights, both residual branches.
    pub dropout: f32,
}

/// How a token's place in the window enters the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Position {
    /// A learned vector for each place, added to the token's (GPT-1, 2018).
    Learned,
}

/// The feed-forward nonlinearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// `x Phi(x)` with the exact normal distribution function (Hendrycks and Gimpel 2016, eq. 1).
    GeluErf,
    /// The tanh approximation of the same (same paper, section 2), as GPT-2 uses it.
    GeluTanh,
}

/// What attention scores are scaled by before the softmax.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttentionScale {
    /// `head_size^-0.5` (Vaswani et al. 2017, eq. 1).
    HeadSize,
    /// `width^-0.5`: what the lecture's `gpt_dev` computes.
    Width,
}

impl Config {
    /// Width of one attention head.
    pub fn head_size(&self) -> usize {
        self.width / self.heads
    }

    /// The factor on attention scores.
    pub fn score_scale(&self) -> f32 {
        let divisor = match self.attention_scale {
            AttentionScale::HeadSize => self.head_size(),
            AttentionScale::Width => self.width,
        };
        (1.0 / (divisor as f64).sqrt()) as f32
    }

    /// Checks every bound. `origin` names the file or flags the values came from.
    pub fn validate(&self, origin: &str) -> Result<()> {
        let bounded = |field: &str, value: usize, most: usize| {
            if value == 0 || value > most {
                return Err(Error::config(origin, field, value, format!("1 to {most}")));
            }
            Ok(())
        };
        bounded("vocabulary", self.vocabulary, MAX_VOCABULARY)?;
        bounded("context", self.context, MAX_CONTEXT)?;
        bounded("width", self.width, MAX_WIDTH)?;
        bounded("layers", self.layers, MAX_LAYERS)?;
        bounded("heads", self.heads, MAX_HEADS)?;
        bounded("feed_forward", self.feed_forward, MAX_FEED_FORWARD)?;
        if !self.width.is_multiple_of(self.heads) {
            return Err(Error::config(
                origin,
                "width",
                self.width,
                format!("a multiple of heads ({})", self.heads),
            ));
        }
        if self.head_size() > MAX_HEAD_SIZE {
            return Err(Error::config(
                origin,
                "heads",
                self.heads,
                format!("enough heads that width / heads is at most {MAX_HEAD_SIZE}"),
            ));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps > 0.0 && self.norm_eps <= 1.0) {
            return Err(Error::config(origin, "norm_eps", self.norm_eps, "above 0, at most 1"));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::config(origin, "dropout", self.dropout, "0 or more, below 1"));
        }
        let parameters = self.parameters_bound();
        if parameters > u128::from(MAX_PARAMETERS) {
            return Err(Error::config(
                origin,
                "width, layers, vocabulary",
                format!("{parameters} parameters together"),
                format!("at most {MAX_PARAMETERS}"),
            ));
        }
        Ok(())
    }

    /// An upper bound on the parameter count, in arithmetic that cannot overflow for any `usize` fields within
    /// their own bounds; the exact count is [`crate::Layout::parameters`].
    fn parameters_bound(&self) -> u128 {
        let [vocabulary, context, width, layers, hidden] =
            [self.vocabulary, self.context, self.width, self.layers, self.feed_forward]
                .map(|value| value as u128);
        2 * vocabulary * width
            + context * width
            + layers * (4 * width * width + 2 * width * hidden + 12 * width + hidden)
            + 2 * width
            + vocabulary
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn lecture() -> Config {
        Config {
            vocabulary: 65,
            context: 8,
            width: 64,
            layers: 4,
            heads: 4,
            feed_forward: 256,
            position: Position::Learned,
            activation: Activation::GeluErf,
            attention_scale: AttentionScale::HeadSize,
            norm_eps: 1e-5,
            norm_bias: true,
            qkv_bias: true,
            attention_bias: true,
            feed_forward_bias: true,
            tied: false,
            head_bias: true,
            dropout: 0.0,
        }
    }

    #[test]
    fn every_size_has_both_bounds() {
        assert!(lecture().validate("test").is_ok());
        let fields: [fn(&mut Config) -> &mut usize; 6] = [
            |c| &mut c.vocabulary,
            |c| &mut c.context,
            |c| &mut c.width,
            |c| &mut c.layers,
            |c| &mut c.heads,
            |c| &mut c.feed_forward,
        ];
        for field in fields {
            for value in [0, 1 << 25, 1 << 40, usize::MAX] {
                let mut config = lecture();
                *field(&mut config) = value;
                assert!(matches!(config.validate("test"), Err(Error::Config { .. })), "{config:?}");
            }
        }
    }

    #[test]
    fn values_that_are_no_numbers_are_refused() {
        for value in [f32::NAN, f32::INFINITY, -0.1, 1.0] {
            let config = Config { dropout: value, ..lecture() };
            assert!(config.validate("test").is_err(), "dropout {value}");
        }
        for value in [f32::NAN, f32::INFINITY, -1e-5, 0.0, 2.0] {
            let config = Config { norm_eps: value, ..lecture() };
            assert!(config.validate("test").is_err(), "norm_eps {value}");
        }
    }

    #[test]
    fn heads_divide_width_for_every_small_pair() {
        for width in 1..9 {
            for heads in 1..9 {
                let config = Config { width, heads, ..lecture() };
                assert_eq!(config.validate("test").is_ok(), width % heads == 0, "{width} / {heads}");
            }
        }
    }
}
