//! The description of a model: a decoder named by its parts, so that the lecture's GPT and its successors are
//! values, not code. Holds every bound a model must keep; never holds how it is trained.

use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize};

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
/// Most experts of one layer, the shared ones among them.
pub const MAX_EXPERTS: usize = 4096;
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
    /// Attention heads, each with a query of its own.
    pub heads: usize,
    /// Heads that have keys and values; each serves `heads / kv_heads` queries (Ainslie et al. 2023).
    pub kv_heads: usize,
    /// Width of one head.
    pub head_size: usize,
    /// Hidden width of a dense feed-forward layer.
    pub feed_forward: usize,
    /// The mixture of experts that stands in for it, in some or all layers.
    #[serde(deserialize_with = "stated")]
    pub experts: Option<Experts>,
    /// How positions enter.
    pub position: Position,
    /// Base of the rotary wavelengths; nothing without them.
    pub rotary_base: f32,
    /// What normalises the residual stream.
    pub norm: NormKind,
    /// Where it does. Configs written before there was a choice do not say.
    #[serde(default)]
    pub norm_order: NormOrder,
    /// Whether queries and keys are normalised before they meet.
    pub query_key_norm: QueryKeyNorm,
    /// The feed-forward layer's nonlinearity.
    pub activation: Activation,
    /// What the attention scores are divided by.
    pub attention_scale: AttentionScale,
    /// Added to the variance, or to the mean square.
    pub norm_eps: f32,
    /// Whether norms have a bias.
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

/// A value that may be null and may not be left out.
fn stated<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Experts>, D::Error> {
    Option::deserialize(deserializer)
}

/// How a token's place in the window enters the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Position {
    /// A learned vector for each place, added to the token's (GPT-1, 2018).
    Learned,
    /// Queries and keys are rotated by an angle that grows with the place (Su et al. 2021, section 3.2.2); a pair is
    /// one element of each half of a head, as Llama has it.
    Rotary,
}

/// What normalises a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormKind {
    /// Mean zero and variance one (Ba et al. 2016).
    LayerNorm,
    /// Mean square one (Zhang and Sennrich 2019).
    RmsNorm,
}

/// Where a layer normalises the residual stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormOrder {
    /// What enters a branch, and last what enters the head: `x + f(norm(x))` (Radford et al. 2019, section 2.3).
    #[default]
    Pre,
    /// What a branch was added to: `norm(x + f(x))`, and nothing after the last layer (GPT-1, 2018).
    Post,
}

/// Over what queries and keys are normalised, by RMSNorm with a gain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueryKeyNorm {
    /// They are not.
    None,
    /// Each head by itself, one gain for all (Qwen3).
    Head,
    /// All heads of a row together (OLMoE).
    Whole,
}

/// Several feed-forward layers of which a router picks a few for each token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experts {
    /// Experts the router chooses from.
    pub count: usize,
    /// How many it chooses for each token; of equal scores the lower index wins.
    pub active: usize,
    /// Hidden width of one expert.
    pub width: usize,
    /// Every `every`-th layer has experts, counted from 1; the others are dense.
    pub every: usize,
    /// Experts that every token passes through besides, with weight one.
    pub shared: usize,
    /// What turns the router's logits into probabilities.
    pub score: RouterScore,
    /// What a chosen expert's output is multiplied by.
    pub weight: RouterWeight,
    /// Whether a bias is added to the scores for the choice alone (DeepSeek-V3, section 2.1.2).
    pub selection_bias: bool,
    /// Whether training adds learned noise to the logits (Shazeer et al. 2017, eq. 4). Never part of a stored model.
    #[serde(skip)]
    pub noise: bool,
}

/// What turns router logits into scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouterScore {
    /// `softmax(h)`.
    Softmax,
    /// `1 / (1 + e^-h)`, expert by expert.
    Sigmoid,
}

/// What a chosen expert's output is weighted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouterWeight {
    /// Its score: `y = sum G_i(x) E_i(x)` over the chosen.
    Score,
    /// Its score divided by the sum of the chosen ones'.
    Renormalised,
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
    /// `silu(gate) up`, a projection to twice the hidden width that multiplies its halves (Shazeer 2020, eq. 6).
    #[serde(rename = "swiglu")]
    SwiGlu,
}

impl Activation {
    /// Whether it takes two values, a gate and what passes it, for each that it gives.
    pub fn gated(self) -> bool {
        self == Activation::SwiGlu
    }

    /// Width of the projection into a layer of this hidden width.
    pub fn inputs(self, hidden: usize) -> usize {
        if self.gated() { 2 * hidden } else { hidden }
    }
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
    /// Width of all queries of a row, and of what attention gives.
    pub fn attention_width(&self) -> usize {
        self.heads * self.head_size
    }

    /// Width of queries, keys and values side by side.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_size
    }

    /// The experts of a layer, if it is not dense.
    pub fn experts_of(&self, layer: usize) -> Option<&Experts> {
        self.experts.as_ref().filter(|experts| (layer + 1).is_multiple_of(experts.every))
    }

    /// The widest hidden layer of any feed-forward layer, a gate's half counted with what passes it.
    pub fn widest_hidden(&self) -> usize {
        let dense = (0..self.layers).any(|layer| self.experts_of(layer).is_none());
        let expert = self.experts.as_ref().map_or(0, |experts| experts.width);
        self.activation.inputs(expert.max(if dense { self.feed_forward } else { 0 }))
    }

    /// The factor on attention scores.
    pub fn score_scale(&self) -> f32 {
        let divisor = match self.attention_scale {
            AttentionScale::HeadSize => self.head_size,
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
        bounded("kv_heads", self.kv_heads, self.heads)?;
        bounded("head_size", self.head_size, MAX_HEAD_SIZE)?;
        if !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a divisor of heads ({})", self.heads);
            return Err(Error::config(origin, "kv_heads", self.kv_heads, expected));
        }
        if self.position == Position::Rotary && !self.head_size.is_multiple_of(2) {
            let expected = "an even number with rotary positions";
            return Err(Error::config(origin, "head_size", self.head_size, expected));
        }
        if !(self.rotary_base.is_finite() && self.rotary_base > 1.0) {
            return Err(Error::config(origin, "rotary_base", self.rotary_base, "a number above 1"));
        }
        if let Some(experts) = &self.experts {
            experts.validate(origin, self.layers)?;
        }
        if self.norm == NormKind::RmsNorm && self.norm_bias {
            return Err(Error::config(origin, "norm_bias", true, "false: RMSNorm has no bias"));
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
        let [vocabulary, context, width, layers, hidden, attention] = [
            self.vocabulary,
            self.context,
            self.width,
            self.layers,
            self.feed_forward,
            self.attention_width(),
        ]
        .map(|value| value as u128);
        let layer = |hidden: u128| 3 * (width + 1) * (hidden + 1);
        let experts = self.experts.as_ref().map_or(0, |experts| {
            let count = (experts.count + experts.shared) as u128;
            count * (layer(experts.width as u128) + 2 * (width + 1))
        });
        2 * vocabulary * width
            + context * width
            + layers * (4 * (width + 3) * (attention + 3) + layer(hidden) + experts + 8 * width)
            + 2 * width
            + vocabulary
    }
}

impl Experts {
    /// Experts whose outputs one token is given: the chosen and the shared.
    pub fn slots(&self) -> usize {
        self.active + self.shared
    }

    fn validate(&self, origin: &str, layers: usize) -> Result<()> {
        let bounded = |field: &str, value: usize, least: usize, most: usize| {
            if value < least || value > most {
                return Err(Error::config(origin, field, value, format!("{least} to {most}")));
            }
            Ok(())
        };
        bounded("experts.count", self.count, 1, MAX_EXPERTS)?;
        bounded("experts.active", self.active, 1, self.count)?;
        bounded("experts.width", self.width, 1, MAX_FEED_FORWARD)?;
        bounded("experts.every", self.every, 1, layers)?;
        bounded("experts.shared", self.shared, 0, MAX_EXPERTS - self.count)
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
            kv_heads: 4,
            head_size: 16,
            feed_forward: 256,
            experts: None,
            position: Position::Learned,
            rotary_base: 10_000.0,
            norm: NormKind::LayerNorm,
            norm_order: NormOrder::Pre,
            query_key_norm: QueryKeyNorm::None,
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
        let fields: [fn(&mut Config) -> &mut usize; 8] = [
            |c| &mut c.vocabulary,
            |c| &mut c.context,
            |c| &mut c.width,
            |c| &mut c.layers,
            |c| &mut c.heads,
            |c| &mut c.kv_heads,
            |c| &mut c.head_size,
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
    fn kv_heads_divide_heads_for_every_small_pair() {
        for heads in 1..9 {
            for kv_heads in 1..9 {
                let config = Config { heads, kv_heads, ..lecture() };
                let fits = kv_heads <= heads && heads % kv_heads == 0;
                assert_eq!(config.validate("test").is_ok(), fits, "{heads} / {kv_heads}");
            }
        }
    }

    #[test]
    fn experts_have_both_bounds() {
        let mixture = Experts {
            count: 4,
            active: 2,
            width: 8,
            every: 1,
            shared: 1,
            score: RouterScore::Softmax,
            weight: RouterWeight::Renormalised,
            selection_bias: false,
            noise: false,
        };
        let with = |experts| Config { experts: Some(experts), ..lecture() }.validate("test");
        assert!(with(mixture).is_ok());
        for bad in [
            Experts { count: 0, ..mixture },
            Experts { active: 0, ..mixture },
            Experts { active: 5, ..mixture },
            Experts { width: 0, ..mixture },
            Experts { every: 0, ..mixture },
            Experts { every: 5, ..mixture },
            Experts { count: usize::MAX, ..mixture },
            Experts { shared: usize::MAX, ..mixture },
        ] {
            assert!(matches!(with(bad), Err(Error::Config { .. })), "{bad:?}");
        }
    }
}
