//! GPT-1 and GPT-2: learned positions, LayerNorm, biases everywhere but on the head. Names and keys are those of
//! Hugging Face's `transformers`.
//!
//! Matrices of layers stand there as `[inputs, outputs]`; embeddings and the head as everywhere. Some files leave out
//! the prefix of every name but the head's.

use super::{Family, Stored, keys::Keys};
use crate::checkpoint::Dtype;
use crate::config::{Activation, AttentionScale, Config, NormKind, NormOrder, Position, QueryKeyNorm};
use crate::error::Result;
use crate::layout::{Layout, Parameter, ParameterId, Part, Role};
use serde::Serialize;
use serde_json::Value;

/// What stands before every name but the head's, if anything does.
pub(super) const PREFIX: &str = "transformer.";
/// What a file that does not say drops in training.
const DROPOUT: f64 = 0.1;

/// Which of the two expresses a config, if any.
pub(super) fn of(config: &Config) -> Option<Family> {
    let biased = config.norm_bias && config.qkv_bias && config.attention_bias && config.feed_forward_bias;
    let shaped = config.position == Position::Learned
        && config.norm == NormKind::LayerNorm
        && config.query_key_norm == QueryKeyNorm::None
        && config.attention_scale == AttentionScale::HeadSize
        && config.experts.is_none()
        && config.kv_heads == config.heads
        && config.attention_width() == config.width;
    if !shaped || !biased || config.head_bias || config.activation.gated() {
        return None;
    }
    match config.norm_order {
        NormOrder::Pre => Some(Family::Gpt2),
        // Its config has no key for the hidden width, and what it calls gelu is the approximation.
        NormOrder::Post => (config.feed_forward == 4 * config.width
            && config.activation != Activation::GeluErf)
            .then_some(Family::OpenaiGpt),
    }
}

/// The tensor of one parameter.
pub(super) fn stored(family: Family, id: ParameterId, parameter: &Parameter) -> Stored {
    let (tokens, positions) = match family {
        Family::OpenaiGpt => ("tokens_embed", "positions_embed"),
        _ => ("wte", "wpe"),
    };
    let layer = |name: &str| format!("{PREFIX}h.{}.{name}", parameter.layer.unwrap_or_default());
    let (name, part) = match parameter.role {
        Role::TokenEmbedding => (format!("{PREFIX}{tokens}"), Part::Weight),
        Role::PositionEmbedding => (format!("{PREFIX}{positions}"), Part::Weight),
        Role::AttentionNorm(part) => (layer("ln_1"), part),
        Role::Qkv(part) => (layer("attn.c_attn"), part),
        Role::AttentionOut(part) => (layer("attn.c_proj"), part),
        Role::FeedForwardNorm(part) => (layer("ln_2"), part),
        Role::Up(part) => (layer("mlp.c_fc"), part),
        Role::Down(part) => (layer("mlp.c_proj"), part),
        Role::FinalNorm(part) => (format!("{PREFIX}ln_f"), part),
        Role::Head(part) => ("lm_head".to_owned(), part),
        // No config of these families has them, see `of`; a name all the same, so that a mistake is a missing tensor.
        Role::QueryNorm | Role::KeyNorm | Role::Router | Role::SelectionBias | Role::RouterNoise => {
            (layer("unknown"), Part::Weight)
        }
    };
    let inputs_first = matches!(
        parameter.role,
        Role::Qkv(Part::Weight)
            | Role::AttentionOut(Part::Weight)
            | Role::Up(Part::Weight)
            | Role::Down(Part::Weight)
    );
    let shape = match (parameter.is_matrix(), inputs_first) {
        (true, false) => vec![parameter.rows, parameter.columns],
        (true, true) => vec![parameter.columns, parameter.rows],
        (false, _) => vec![parameter.columns],
    };
    let part = match part {
        Part::Weight => "weight",
        Part::Bias => "bias",
    };
    Stored { id, name: format!("{name}.{part}"), shape, first_row: 0, inputs_first }
}

/// Whether a file of these families may hold a tensor that is no parameter: the masks and counters that older versions
/// saved, and the head of a model that shares its embedding.
pub(super) fn is_ignored(layout: &Layout, name: &str) -> bool {
    let tied = layout.head.weight == layout.token_embedding;
    let mask = name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias");
    mask || name.ends_with("position_ids") || (tied && name == "lm_head.weight")
}

/// A `config.json`. Ids of special tokens are null, not absent: an absent one has a default, which would end texts at
/// whatever the vocabulary has in its place.
#[derive(Serialize)]
struct File {
    architectures: [&'static str; 1],
    model_type: &'static str,
    dtype: &'static str,
    torch_dtype: &'static str,
    vocab_size: usize,
    n_positions: usize,
    n_ctx: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    n_inner: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    activation_function: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    afn: Option<&'static str>,
    layer_norm_epsilon: f32,
    resid_pdrop: f32,
    embd_pdrop: f32,
    attn_pdrop: f32,
    tie_word_embeddings: bool,
    bos_token_id: Option<u32>,
    eos_token_id: Option<u32>,
    pad_token_id: Option<u32>,
    initializer_range: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    use_cache: Option<bool>,
}

/// The text of a config that [`of`] gave this family.
pub(super) fn config_json(family: Family, config: &Config, dtype: Dtype) -> String {
    let second = family == Family::Gpt2;
    let activation = match config.activation {
        Activation::Relu => "relu",
        Activation::GeluTanh if second => "gelu_new",
        _ => "gelu",
    };
    let file = File {
        architectures: [family.architecture()],
        model_type: family.model_type(),
        dtype: dtype.long_name(),
        torch_dtype: dtype.long_name(),
        vocab_size: config.vocabulary,
        n_positions: config.context,
        n_ctx: config.context,
        n_embd: config.width,
        n_layer: config.layers,
        n_head: config.heads,
        n_inner: (second && config.feed_forward != 4 * config.width).then_some(config.feed_forward),
        activation_function: second.then_some(activation),
        afn: (!second).then_some(activation),
        layer_norm_epsilon: config.norm_eps,
        resid_pdrop: config.dropout,
        embd_pdrop: config.dropout,
        attn_pdrop: config.dropout,
        tie_word_embeddings: config.tied,
        bos_token_id: None,
        eos_token_id: None,
        pad_token_id: None,
        initializer_range: 0.02,
        use_cache: second.then_some(true),
    };
    serde_json::to_string_pretty(&file).expect("numbers, names and flags are always JSON") + "\n"
}

/// Reads a config of these families; what it asks for that is not computed is refused by name.
pub(super) fn read(family: Family, keys: &Keys<'_>) -> Result<Config> {
    for (key, expected) in [
        ("scale_attn_weights", true),
        ("scale_attn_by_inverse_layer_idx", false),
        ("add_cross_attention", false),
    ] {
        keys.must_be(key, &Value::Bool(expected))?;
    }
    keys.must_be("quantization_config", &Value::Null)?;
    let width = keys.count("n_embd", None)?;
    let heads = keys.count("n_head", None)?;
    let second = family == Family::Gpt2;
    let activation = match second {
        true => keys.word(
            "activation_function",
            "gelu_new",
            &[
                ("gelu_new", Activation::GeluTanh),
                ("gelu_pytorch_tanh", Activation::GeluTanh),
                ("gelu_fast", Activation::GeluTanh),
                ("gelu", Activation::GeluErf),
                ("relu", Activation::Relu),
            ],
        )?,
        false => keys.word("afn", "gelu", &[("gelu", Activation::GeluTanh), ("relu", Activation::Relu)])?,
    };
    let hidden = width.saturating_mul(4);
    Ok(Config {
        vocabulary: keys.count("vocab_size", None)?,
        context: keys.count("n_positions", None)?,
        width,
        layers: keys.count("n_layer", None)?,
        heads,
        kv_heads: heads,
        head_size: width.checked_div(heads).unwrap_or(0),
        feed_forward: if second { keys.count("n_inner", Some(hidden))? } else { hidden },
        experts: None,
        position: Position::Learned,
        rotary_base: 10_000.0,
        norm: NormKind::LayerNorm,
        norm_order: if second { NormOrder::Pre } else { NormOrder::Post },
        query_key_norm: QueryKeyNorm::None,
        activation,
        attention_scale: AttentionScale::HeadSize,
        norm_eps: keys.number("layer_norm_epsilon", 1e-5)? as f32,
        norm_bias: true,
        qkv_bias: true,
        attention_bias: true,
        feed_forward_bias: true,
        tied: keys.switch("tie_word_embeddings", true)?,
        head_bias: false,
        dropout: keys.number("resid_pdrop", DROPOUT)? as f32,
    })
}
