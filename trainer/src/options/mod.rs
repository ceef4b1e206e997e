//! What a run is told: a preset, departed from by a config file, departed from by flags.
//!
//! The three say the same things under the same keys ([`keys`]). They are resolved (`request`) into one [`Options`],
//! which checks what single bounds cannot. Nothing here reads a text or makes a run directory.

pub mod keys;
mod request;
mod shape;

pub use keys::{Flags, nearest};
pub use request::{Recipe, Request, refuse_differences};

use crate::data::TokenizerSource;
use crate::device::Precision;
use crate::mixing::Mixing;
use crate::optimizer::{Decay, OptimizerKind, OptimizerOptions};
use crate::progress::ProgressMode;
use crate::random::RngKind;
use crate::schedule::{Curve, Schedule};
use crate::tape::recompute::Recompute;
use formats::checkpoint::Dtype;
use formats::config::{
    Activation, AttentionScale, Config, Experts, NormKind, NormOrder, Position, QueryKeyNorm, RouterScore,
    RouterWeight,
};
use formats::layout::InitScheme;
use formats::{Error, Result};
use keys::CHANGEABLE;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use toml::{Table, Value};

/// Most tokens in one step: their ids are counted in 32 bits on some devices.
const MAX_STEP_TOKENS: u64 = 1 << 31;

/// Where a run computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// The fastest there is.
    #[default]
    Auto,
    /// This processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// Everything a run is told but its text and its directory. [`keys::KEYS`] documents each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Options {
    /// The preset the run started from.
    pub preset: String,
    pub tokenizer: TokenizerSource,
    pub block: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<usize>,
    pub width: usize,
    pub layers: usize,
    pub heads: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_size: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feed_forward: Option<usize>,
    pub experts: usize,
    pub active_experts: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expert_width: Option<usize>,
    pub expert_every: usize,
    pub shared_experts: usize,
    pub router_score: RouterScore,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_weight: Option<RouterWeight>,
    pub router_noise: bool,
    pub position: Position,
    pub rotary_base: f64,
    pub norm: NormKind,
    pub norm_order: NormOrder,
    pub query_key_norm: QueryKeyNorm,
    pub activation: Activation,
    pub attention_scale: AttentionScale,
    pub norm_eps: f64,
    pub norm_bias: bool,
    pub qkv_bias: bool,
    pub attention_bias: bool,
    pub feed_forward_bias: bool,
    pub tied: bool,
    pub head_bias: bool,
    pub dropout: f64,
    pub init: InitScheme,
    pub batch: usize,
    pub held_out: f64,
    pub accumulate: usize,
    pub steps: u64,
    pub optimizer: OptimizerKind,
    pub learning_rate: f64,
    pub schedule: Curve,
    pub final_learning_rate: f64,
    pub warmup: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay_steps: Option<u64>,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    pub decay: Decay,
    pub clip: f64,
    pub balance: f64,
    pub router_z: f64,
    pub bias_rate: f64,
    pub router_jitter: f64,
    pub expert_dropout: f64,
    pub output_dropout: f64,
    pub router_dropout: f64,
    pub capacity_factor: f64,
    pub eval_every: u64,
    pub eval_batches: u64,
    pub seed: u64,
    pub rng: RngKind,
    #[serde(default)]
    pub device: Device,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    pub recompute: Recompute,
    pub dtype: Dtype,
    pub save_every: u64,
    pub keep: usize,
    pub log_every: u64,
    pub sample: usize,
    pub progress: ProgressMode,
}

impl Options {
    /// The model these options describe over `vocabulary` tokens, checked.
    pub fn model(&self, vocabulary: usize) -> Result<Config> {
        let config = Config {
            vocabulary,
            context: self.context.unwrap_or(self.block),
            width: self.width,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads.unwrap_or(self.heads),
            head_size: self.head_size()?,
            feed_forward: self.hidden(),
            experts: self.mixture(),
            position: self.position,
            rotary_base: self.rotary_base as f32,
            norm: self.norm,
            norm_order: self.norm_order,
            query_key_norm: self.query_key_norm,
            activation: self.activation,
            attention_scale: self.attention_scale,
            norm_eps: self.norm_eps as f32,
            norm_bias: self.norm_bias,
            qkv_bias: self.qkv_bias,
            attention_bias: self.attention_bias,
            feed_forward_bias: self.feed_forward_bias,
            tied: self.tied,
            head_bias: self.head_bias,
            dropout: self.dropout as f32,
        };
        config.validate("options")?;
        Ok(config)
    }

    /// Width of a head: what was asked for, or an even share of the width.
    fn head_size(&self) -> Result<usize> {
        match self.head_size {
            Some(size) => Ok(size),
            None if self.width.is_multiple_of(self.heads) => Ok(self.width / self.heads),
            None => {
                let expected = format!("a multiple of heads ({}), or a head_size", self.heads);
                Err(Error::config("options", "width", self.width, expected))
            }
        }
    }

    /// Hidden width of a dense layer.
    fn hidden(&self) -> usize {
        self.feed_forward.unwrap_or(4 * self.width)
    }

    /// What a chosen expert's output is weighted by. Of one expert alone the score is kept: a weight that is always
    /// one would teach the router nothing.
    fn router_weight(&self) -> RouterWeight {
        self.router_weight.unwrap_or(match self.active_experts {
            1 => RouterWeight::Score,
            _ => RouterWeight::Renormalised,
        })
    }

    /// The mixture of experts, if there is one.
    fn mixture(&self) -> Option<Experts> {
        (self.experts > 0).then(|| Experts {
            count: self.experts,
            active: self.active_experts,
            width: self.expert_width.unwrap_or(self.hidden()),
            every: self.expert_every,
            shared: self.shared_experts,
            score: self.router_score,
            weight: self.router_weight(),
            selection_bias: self.bias_rate > 0.0,
            noise: self.router_noise,
        })
    }

    /// Sequences of a step, all its micro-batches together.
    pub fn sequences(&self) -> usize {
        self.batch.saturating_mul(self.accumulate)
    }

    /// What keeps the experts alive.
    pub fn mixing(&self) -> Mixing {
        Mixing {
            balance: self.balance as f32,
            router_z: self.router_z as f32,
            bias_rate: self.bias_rate as f32,
            jitter: self.router_jitter as f32,
            expert_dropout: self.expert_dropout as f32,
            output_dropout: self.output_dropout as f32,
            router_dropout: self.router_dropout as f32,
            capacity: self.capacity_factor as f32,
        }
    }

    /// What the optimiser is told.
    pub fn optimizer(&self) -> OptimizerOptions {
        OptimizerOptions {
            kind: self.optimizer,
            learning_rate: self.learning_rate as f32,
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            eps: self.eps as f32,
            weight_decay: self.weight_decay as f32,
            decay: self.decay,
            clip: self.clip as f32,
        }
    }

    /// The learning rate's curve.
    pub fn curve(&self) -> Schedule {
        Schedule {
            curve: self.schedule,
            peak: self.learning_rate,
            floor: self.final_learning_rate,
            warmup: self.warmup,
            decay_steps: self.decay_steps.unwrap_or(self.steps),
        }
    }

    /// The same with every value that follows from others written out, so that changing `steps` later bends no curve
    /// that a run has already followed.
    pub fn settled(self) -> Options {
        Options {
            feed_forward: Some(self.hidden()),
            decay_steps: match self.schedule {
                Curve::Constant | Curve::InverseSqrt => self.decay_steps,
                Curve::Cosine | Curve::Linear => Some(self.decay_steps.unwrap_or(self.steps)),
            },
            ..self
        }
    }

    /// Checks what the bounds of single keys cannot. `origin` names where the values came from.
    pub fn validate(&self, origin: &str) -> Result<()> {
        self.model(1)?;
        if let Some(context) = self.context.filter(|context| *context < self.block) {
            let expected = format!("at most the {context} tokens of the model's context");
            return Err(Error::config(origin, "block", self.block, expected));
        }
        let tokens = self.sequences() as u64 * self.block as u64;
        if tokens > MAX_STEP_TOKENS {
            let expected = format!("at most {MAX_STEP_TOKENS}");
            return Err(Error::config(
                origin,
                "batch x accumulate x block",
                format!("{tokens} tokens"),
                expected,
            ));
        }
        let disturbances = [
            ("dropout", self.dropout),
            ("router_jitter", self.router_jitter),
            ("expert_dropout", self.expert_dropout),
            ("output_dropout", self.output_dropout),
            ("router_dropout", self.router_dropout),
        ];
        if self.rng == RngKind::Torch {
            let expected = "0 with rng torch, whose replay has no masks (or rng counter)";
            for (name, value) in disturbances {
                if value > 0.0 {
                    return Err(Error::config(origin, name, value, expected));
                }
            }
            if self.router_noise {
                let expected = "false with rng torch, whose replay has no noise (or rng counter)";
                return Err(Error::config(origin, "router_noise", true, expected));
            }
        }
        if self.experts > 0 && self.active_experts == 1 && self.router_weight() == RouterWeight::Renormalised
        {
            let expected = "score with one active expert: its renormalised weight is always 1, so that the router's \
                            gradient is zero and it never learns";
            return Err(Error::config(origin, "router_weight", "renormalised", expected));
        }
        if (self.device, self.precision) == (Device::Cpu, Some(Precision::Bf16)) {
            let expected = "f32 with device cpu, which computes in nothing else";
            return Err(Error::config(origin, "precision", "bf16", expected));
        }
        self.mixing().validate(origin)?;
        let falls = matches!(self.schedule, Curve::Cosine | Curve::Linear);
        if falls && self.final_learning_rate > self.learning_rate {
            let expected = format!("at most learning_rate ({})", self.learning_rate);
            return Err(Error::config(origin, "final_learning_rate", self.final_learning_rate, expected));
        }
        Ok(())
    }

    /// The options as keys and values.
    pub(crate) fn table(&self) -> Result<Table> {
        Table::try_from(self).map_err(|error| Error::Internal(format!("options as TOML: {error}")))
    }

    /// What may not change when the run is resumed, key by key, as text that compares exactly.
    pub fn fixed(&self) -> Result<BTreeMap<String, String>> {
        let mut table = self.table()?;
        CHANGEABLE.iter().for_each(|name| drop(table.remove(*name)));
        if let TokenizerSource::File(_) = self.tokenizer {
            // Where a file lies is of no consequence; the tokenizer itself stands in every checkpoint.
            table.insert("tokenizer".to_owned(), Value::String("a file".to_owned()));
        }
        Ok(table.into_iter().map(|(name, value)| (name, plain(&value))).collect())
    }
}

/// A value as people write it: words without quotation marks.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
