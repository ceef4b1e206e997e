//! What a model is, among all that a run is told: a run that trains a model further takes it from there.

use super::{Options, plain};
use formats::config::{Config, Experts, RouterScore, RouterWeight};
use formats::{Error, Result};
use std::path::Path;
use toml::{Table, Value};

/// Keys that say what a model is: a run that begins as another model takes them from there.
const SHAPE: &[&str] = &[
    "context",
    "width",
    "layers",
    "heads",
    "kv_heads",
    "head_size",
    "position",
    "rotary_base",
    "feed_forward",
    "activation",
    "attention_scale",
    "norm",
    "norm_order",
    "query_key_norm",
    "norm_eps",
    "norm_bias",
    "qkv_bias",
    "attention_bias",
    "feed_forward_bias",
    "tied",
    "head_bias",
    "experts",
];

/// The same of a model that has experts.
const EXPERTS_SHAPE: &[&str] =
    &["active_experts", "expert_width", "expert_every", "shared_experts", "router_score", "router_weight"];

/// What a run is told of experts that has none.
const NO_EXPERTS: Experts = Experts {
    count: 0,
    active: 1,
    width: 1,
    every: 1,
    shared: 0,
    score: RouterScore::Softmax,
    weight: RouterWeight::Score,
    selection_bias: false,
    noise: false,
};
/// DeepSeek-V3's step of the bias that balances.
const DEFAULT_BIAS_RATE: f64 = 0.001;

impl Options {
    /// These options for a model of another description; `given` is what was asked for besides.
    pub(super) fn shaped(self, config: &Config, given: &Table) -> Result<Options> {
        let experts = config.experts.unwrap_or(NO_EXPERTS);
        // Shortest in decimal, as people write them.
        let decimal = |value: f32| value.to_string().parse().unwrap_or(f64::from(value));
        let shaped = Options {
            block: config.context,
            context: Some(config.context),
            width: config.width,
            layers: config.layers,
            heads: config.heads,
            kv_heads: Some(config.kv_heads),
            head_size: Some(config.head_size),
            feed_forward: Some(config.feed_forward),
            experts: experts.count,
            active_experts: experts.active,
            expert_width: config.experts.map(|experts| experts.width),
            expert_every: experts.every,
            shared_experts: experts.shared,
            router_score: experts.score,
            router_weight: config.experts.map(|experts| experts.weight),
            position: config.position,
            rotary_base: decimal(config.rotary_base),
            norm: config.norm,
            norm_order: config.norm_order,
            query_key_norm: config.query_key_norm,
            activation: config.activation,
            attention_scale: config.attention_scale,
            norm_eps: decimal(config.norm_eps),
            norm_bias: config.norm_bias,
            qkv_bias: config.qkv_bias,
            attention_bias: config.attention_bias,
            feed_forward_bias: config.feed_forward_bias,
            tied: config.tied,
            head_bias: config.head_bias,
            dropout: decimal(config.dropout),
            bias_rate: match (experts.selection_bias, self.bias_rate) {
                (false, _) => 0.0,
                (true, 0.0) => DEFAULT_BIAS_RATE,
                (true, rate) => rate,
            },
            ..self
        };
        let asked = given.get("bias_rate").and_then(Value::as_float);
        if asked.is_some_and(|asked| (asked > 0.0) != experts.selection_bias) {
            let expected = match experts.selection_bias {
                true => "above 0: the model that is trained further has a bias on its routers' choice",
                false => "0: the model that is trained further has no bias on its routers' choice",
            };
            return Err(Error::config("options", "bias_rate", asked.unwrap_or_default(), expected));
        }
        Ok(shaped)
    }
}

/// Refuses what was `given` of a model's description and is not what the model in `from` is.
pub(super) fn refuse_another_shape(
    config: &Config,
    shaped: &Table,
    given: &Table,
    from: &Path,
    origin: &str,
) -> Result<()> {
    for name in SHAPE.iter().chain(EXPERTS_SHAPE.iter().filter(|_| config.experts.is_some())) {
        if let (Some(asked), Some(is)) = (given.get(*name), shaped.get(*name))
            && !alike(asked, is)
        {
            let expected = format!("{}, as the model in {} has it", plain(is), from.display());
            return Err(Error::config(origin, *name, plain(asked), expected));
        }
    }
    Ok(())
}

/// Whether two values are the same to a model: its numbers are f32.
fn alike(a: &Value, b: &Value) -> bool {
    match (a.as_float(), b.as_float()) {
        (Some(a), Some(b)) => a as f32 == b as f32,
        _ => a == b,
    }
}
