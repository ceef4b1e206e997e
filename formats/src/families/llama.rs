//! The families that grew from Llama: rotary positions, RMSNorm, a gated feed-forward layer, no biases. Names and keys
//! are those of Hugging Face's `transformers`.
//!
//! Queries, keys and values are stored apart, and so are a gate and what passes it: pieces of one parameter here.

use super::{Family, Stored, keys::Keys};
use crate::checkpoint::Dtype;
use crate::config::{
    Activation, AttentionScale, Config, Experts, NormKind, NormOrder, Position, QueryKeyNorm, RouterScore,
    RouterWeight,
};
use crate::error::Result;
use crate::layout::{Layout, Parameter, ParameterId, Role};
use serde::Serialize;
use serde_json::Value;

/// What `rope_theta` is where a file does not say.
const THETA: f64 = 10_000.0;

/// Which of these families expresses a config, if any: whatever is read as one is again that one.
pub(super) fn of(config: &Config) -> Option<Family> {
    let shaped = config.position == Position::Rotary
        && config.norm == NormKind::RmsNorm
        && config.norm_order == NormOrder::Pre
        && config.activation == Activation::SwiGlu
        && config.attention_scale == AttentionScale::HeadSize;
    let biased = config.qkv_bias || config.attention_bias || config.feed_forward_bias || config.head_bias;
    if !shaped || biased {
        return None;
    }
    let Some(experts) = &config.experts else {
        return (config.query_key_norm == QueryKeyNorm::None).then_some(Family::Llama);
    };
    if experts.shared > 0 || experts.selection_bias || experts.score != RouterScore::Softmax {
        return None;
    }
    let everywhere = experts.every == 1;
    match config.query_key_norm {
        QueryKeyNorm::None => {
            (everywhere && experts.weight == RouterWeight::Renormalised).then_some(Family::Mixtral)
        }
        // Its config has no key for the width of a head.
        QueryKeyNorm::Whole => {
            (everywhere && config.attention_width() == config.width).then_some(Family::Olmoe)
        }
        QueryKeyNorm::Head => Some(Family::Qwen3Moe),
    }
}

/// The tensors of one parameter.
pub(super) fn stored(family: Family, config: &Config, id: ParameterId, parameter: &Parameter) -> Vec<Stored> {
    let whole = |name: String| {
        let shape = match parameter.is_matrix() {
            true => vec![parameter.rows, parameter.columns],
            false => vec![parameter.columns],
        };
        vec![Stored { id, name: name + ".weight", shape, first_row: 0, inputs_first: false }]
    };
    let pieces = |names: &[(String, usize)]| {
        let mut first_row = 0;
        let piece = |(name, rows): &(String, usize)| {
            let shape = vec![*rows, parameter.columns];
            first_row += rows;
            let name = format!("{name}.weight");
            Stored { id, name, shape, first_row: first_row - rows, inputs_first: false }
        };
        names.iter().map(piece).collect()
    };
    let layer = format!("model.layers.{}", parameter.layer.unwrap_or_default());
    let (block, gate, up, down) = match (family, parameter.expert) {
        (Family::Mixtral, Some(expert)) => {
            (format!("{layer}.block_sparse_moe.experts.{expert}"), "w1", "w3", "w2")
        }
        (_, Some(expert)) => (format!("{layer}.mlp.experts.{expert}"), "gate_proj", "up_proj", "down_proj"),
        (_, None) => (format!("{layer}.mlp"), "gate_proj", "up_proj", "down_proj"),
    };
    match parameter.role {
        Role::TokenEmbedding => whole("model.embed_tokens".into()),
        Role::AttentionNorm(_) => whole(format!("{layer}.input_layernorm")),
        Role::Qkv(_) => {
            let (queries, keys) = (config.attention_width(), config.kv_heads * config.head_size);
            let projection = |letter: char| format!("{layer}.self_attn.{letter}_proj");
            pieces(&[(projection('q'), queries), (projection('k'), keys), (projection('v'), keys)])
        }
        Role::QueryNorm => whole(format!("{layer}.self_attn.q_norm")),
        Role::KeyNorm => whole(format!("{layer}.self_attn.k_norm")),
        Role::AttentionOut(_) => whole(format!("{layer}.self_attn.o_proj")),
        Role::FeedForwardNorm(_) => whole(format!("{layer}.post_attention_layernorm")),
        Role::Router => whole(match family {
            Family::Mixtral => format!("{layer}.block_sparse_moe.gate"),
            _ => format!("{layer}.mlp.gate"),
        }),
        Role::Up(_) => {
            let half = parameter.rows / 2;
            pieces(&[(format!("{block}.{gate}"), half), (format!("{block}.{up}"), half)])
        }
        Role::Down(_) => whole(format!("{block}.{down}")),
        Role::FinalNorm(_) => whole("model.norm".into()),
        Role::Head(_) => whole("lm_head".into()),
        // No config of these families has them, see `of`; a name all the same, so that a mistake is a missing tensor.
        Role::PositionEmbedding | Role::SelectionBias | Role::RouterNoise => {
            whole(format!("{layer}.unknown"))
        }
    }
}

/// Whether a file of these families may hold a tensor that is no parameter: buffers that older versions saved, and
/// the head of a model that shares its embedding.
pub(super) fn is_ignored(layout: &Layout, name: &str) -> bool {
    let tied = layout.head.weight == layout.token_embedding;
    name.ends_with(".rotary_emb.inv_freq") || (tied && name == "lm_head.weight")
}

#[derive(Serialize)]
struct RopeParameters {
    rope_type: &'static str,
    rope_theta: f32,
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
    max_position_embeddings: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    head_dim: Option<usize>,
    intermediate_size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    moe_intermediate_size: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    num_local_experts: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    num_experts: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    num_experts_per_tok: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    norm_topk_prob: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decoder_sparse_step: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mlp_only_layers: Option<[usize; 0]>,
    hidden_act: &'static str,
    rms_norm_eps: f32,
    rope_theta: f32,
    rope_parameters: RopeParameters,
    attention_bias: bool,
    attention_dropout: f32,
    sliding_window: Option<usize>,
    tie_word_embeddings: bool,
    bos_token_id: Option<u32>,
    eos_token_id: Option<u32>,
    pad_token_id: Option<u32>,
    initializer_range: f32,
    use_cache: bool,
}

/// The text of a config that [`of`] gave this family.
pub(super) fn config_json(family: Family, config: &Config, dtype: Dtype) -> String {
    let experts = config.experts.as_ref();
    let file = File {
        architectures: [family.architecture()],
        model_type: family.model_type(),
        dtype: dtype.long_name(),
        torch_dtype: dtype.long_name(),
        vocab_size: config.vocabulary,
        max_position_embeddings: config.context,
        hidden_size: config.width,
        num_hidden_layers: config.layers,
        num_attention_heads: config.heads,
        num_key_value_heads: config.kv_heads,
        head_dim: (family != Family::Olmoe).then_some(config.head_size),
        intermediate_size: match (family, experts) {
            (Family::Mixtral | Family::Olmoe, Some(experts)) => experts.width,
            _ => config.feed_forward,
        },
        moe_intermediate_size: experts.filter(|_| family == Family::Qwen3Moe).map(|experts| experts.width),
        num_local_experts: experts.filter(|_| family == Family::Mixtral).map(|experts| experts.count),
        num_experts: experts.filter(|_| family != Family::Mixtral).map(|experts| experts.count),
        num_experts_per_tok: experts.map(|experts| experts.active),
        norm_topk_prob: experts
            .filter(|_| family != Family::Mixtral)
            .map(|experts| experts.weight == RouterWeight::Renormalised),
        decoder_sparse_step: experts.filter(|_| family == Family::Qwen3Moe).map(|experts| experts.every),
        mlp_only_layers: (family == Family::Qwen3Moe).then_some([]),
        hidden_act: "silu",
        rms_norm_eps: config.norm_eps,
        rope_theta: config.rotary_base,
        rope_parameters: RopeParameters { rope_type: "default", rope_theta: config.rotary_base },
        attention_bias: false,
        attention_dropout: 0.0,
        sliding_window: None,
        tie_word_embeddings: config.tied,
        bos_token_id: None,
        eos_token_id: None,
        pad_token_id: None,
        initializer_range: 0.02,
        use_cache: true,
    };
    serde_json::to_string_pretty(&file).expect("numbers, names and flags are always JSON") + "\n"
}

/// Reads a config of these families; what it asks for that is not computed is refused by name.
pub(super) fn read(family: Family, keys: &Keys<'_>) -> Result<Config> {
    refuse_what_is_not_computed(keys)?;
    let (width, heads) = (keys.count("hidden_size", None)?, keys.count("num_attention_heads", None)?);
    let even = width.checked_div(heads).unwrap_or(0);
    let head_size = match family {
        Family::Olmoe => even,
        _ => keys.count("head_dim", Some(even))?,
    };
    let hidden = keys.count("intermediate_size", None)?;
    let renormalised = |renormalised: bool| match renormalised {
        true => RouterWeight::Renormalised,
        false => RouterWeight::Score,
    };
    let mixture = |count: usize, hidden: usize, every: usize, weight: RouterWeight| -> Result<Experts> {
        Ok(Experts {
            count,
            active: keys.count("num_experts_per_tok", None)?,
            width: hidden,
            every,
            shared: 0,
            score: RouterScore::Softmax,
            weight,
            selection_bias: false,
            noise: false,
        })
    };
    let count =
        || keys.count(if keys.has("num_local_experts") { "num_local_experts" } else { "num_experts" }, None);
    let experts = match family {
        Family::Llama | Family::Lectern | Family::Gpt2 | Family::OpenaiGpt => None,
        Family::Mixtral => Some(mixture(count()?, hidden, 1, RouterWeight::Renormalised)?),
        Family::Olmoe => {
            Some(mixture(count()?, hidden, 1, renormalised(keys.switch("norm_topk_prob", false)?))?)
        }
        Family::Qwen3Moe => Some(mixture(
            count()?,
            keys.count("moe_intermediate_size", None)?,
            keys.count("decoder_sparse_step", Some(1))?,
            renormalised(keys.switch("norm_topk_prob", false)?),
        )?),
    };
    Ok(Config {
        vocabulary: keys.count("vocab_size", None)?,
        context: keys.count("max_position_embeddings", None)?,
        width,
        layers: keys.count("num_hidden_layers", None)?,
        heads,
        kv_heads: keys.count("num_key_value_heads", Some(heads))?,
        head_size,
        feed_forward: hidden,
        experts,
        position: Position::Rotary,
        rotary_base: theta(keys)? as f32,
        norm: NormKind::RmsNorm,
        norm_order: NormOrder::Pre,
        query_key_norm: match family {
            Family::Olmoe => QueryKeyNorm::Whole,
            Family::Qwen3Moe => QueryKeyNorm::Head,
            _ => QueryKeyNorm::None,
        },
        activation: Activation::SwiGlu,
        attention_scale: AttentionScale::HeadSize,
        norm_eps: keys.number("rms_norm_eps", 1e-6)? as f32,
        norm_bias: false,
        qkv_bias: false,
        attention_bias: false,
        feed_forward_bias: false,
        tied: keys.switch("tie_word_embeddings", false)?,
        head_bias: false,
        dropout: 0.0,
    })
}

/// `rope_theta`, where transformers before and since 5 put it.
fn theta(keys: &Keys<'_>) -> Result<f64> {
    match keys.within("rope_parameters") {
        Some(inner) if inner.has("rope_theta") => inner.number("rope_theta", THETA),
        _ => keys.number("rope_theta", THETA),
    }
}

fn refuse_what_is_not_computed(keys: &Keys<'_>) -> Result<()> {
    for (key, expected) in [
        ("attention_bias", Value::Bool(false)),
        ("mlp_bias", Value::Bool(false)),
        ("hidden_act", Value::from("silu")),
        ("clip_qkv", Value::Null),
        ("quantization_config", Value::Null),
        ("mlp_only_layers", Value::Array(vec![])),
    ] {
        keys.must_be(key, &expected)?;
    }
    for key in ["partial_rotary_factor", "pretraining_tp"] {
        keys.must_equal(key, 1.0)?;
    }
    if keys.switch("use_sliding_window", true)? {
        keys.must_be("sliding_window", &Value::Null)?;
    }
    keys.all_must_be("layer_types", "full_attention")?;
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(inner) = keys.within(key) else {
            keys.must_be(key, &Value::Null)?;
            continue;
        };
        for name in ["rope_type", "type"] {
            inner.must_be(name, &Value::from("default"))?;
        }
        inner.must_equal("partial_rotary_factor", 1.0)?;
    }
    Ok(())
}
