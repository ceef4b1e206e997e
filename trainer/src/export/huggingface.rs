//! A directory in a public family's own names, which `transformers` opens unchanged.
//!
//! A model lacks nothing of a family but biases that would be zero: those are written as zeros.

use super::{Misfit, Written, misfits, refuse, spelt};
use crate::memory;
use crate::weights;
use formats::checkpoint::{Commit, Directory, Dtype, ModelFiles, write_model};
use formats::config::{Activation, AttentionScale, Config, NormKind, NormOrder, Position};
use formats::families::{Family, stored};
use formats::{Error, Layout, Result};
use std::path::Path;

/// Writes the directory.
pub(super) fn export(
    directory: &Directory,
    dtype: Dtype,
    out: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Written> {
    let config = completed(&directory.config);
    let family = Family::of(&config);
    if family == Family::Lectern {
        return Err(refuse(directory, "the nearest public family", &lacking(&config)));
    }
    let layout = Layout::new(&config);
    let all = (layout.parameters() * size_of::<f32>()) as u64;
    check_memory(all)?;
    let mut values = vec![0.0; layout.parameters()];
    for (source, parameter) in directory.layout.iter() {
        let same = layout.iter().find(|(_, other)| {
            (other.role, other.layer, other.expert) == (parameter.role, parameter.layer, parameter.expert)
        });
        if let Some((_, place)) = same {
            weights::read(&directory.weights, &directory.layout, source, &mut values[place.range()]);
        }
    }
    let model = ModelFiles {
        config: &config,
        layout: &layout,
        dtype,
        values: &values,
        tokenizer: directory.tokenizer.as_ref(),
        generation: &directory.generation,
    };
    let mut commit = Commit::directory(out)?;
    write_model(&mut commit, "", &model)?;
    commit.publish()?;
    progress(all, all);
    Ok(Written {
        architecture: family.architecture().to_owned(),
        tensors: stored(&config, &layout).len(),
        notes: Vec::new(),
    })
}

/// Refuses what does not fit: all values are held in f32 while they are written.
fn check_memory(needed: u64) -> Result<()> {
    match memory::available() {
        Some(available) if available < needed => Err(Error::Memory {
            what: "the model in f32".to_owned(),
            needed,
            available,
            help: "export on a machine with more memory".to_owned(),
        }),
        _ => Ok(()),
    }
}

/// The config with the biases that its kind has in every public family.
fn completed(config: &Config) -> Config {
    if config.norm != NormKind::LayerNorm || config.experts.is_some() {
        return config.clone();
    }
    Config {
        norm_bias: true,
        qkv_bias: true,
        attention_bias: true,
        feed_forward_bias: true,
        ..config.clone()
    }
}

/// The parts of a model that no public family has: those it keeps of GPT-2 where positions are learned, of Llama and its
/// mixtures where they are rotary.
fn lacking(config: &Config) -> Vec<Misfit> {
    let learned = config.position == Position::Learned;
    let norm = if learned { NormKind::LayerNorm } else { NormKind::RmsNorm };
    let activation = if learned { Activation::GeluTanh } else { Activation::SwiGlu };
    let experts = config.experts.as_ref();
    let biased = config.qkv_bias || config.attention_bias || config.feed_forward_bias;
    let even = config.width / config.heads;
    let mut parts = misfits([
        (config.norm == norm, "norm", spelt(config.norm), spelt(norm)),
        (config.activation.gated() != learned, "activation", spelt(config.activation), spelt(activation)),
        (
            config.attention_scale == AttentionScale::HeadSize,
            "attention_scale",
            spelt(config.attention_scale),
            spelt(AttentionScale::HeadSize),
        ),
        (!config.head_bias, "head_bias", "true".into(), "false".into()),
        (learned || !biased, "biases", "true".into(), "false with rotary positions".into()),
        (
            learned || config.norm_order == NormOrder::Pre,
            "norm_order",
            spelt(config.norm_order),
            spelt(NormOrder::Pre),
        ),
        (
            !learned || config.kv_heads == config.heads,
            "kv_heads",
            config.kv_heads.to_string(),
            config.heads.to_string(),
        ),
        (
            !learned || config.attention_width() == config.width,
            "head_size",
            config.head_size.to_string(),
            format!("{even}, the width over the heads"),
        ),
        (!learned || experts.is_none(), "experts", "a mixture".into(), "null with learned positions".into()),
    ]);
    if parts.is_empty() {
        // Each part is known, and together they are no family: the router's, the norms of queries and keys, or GPT-1's.
        let found = experts.map_or(spelt(config.query_key_norm), |experts| {
            format!("{} with the weight {}", spelt(config.query_key_norm), spelt(experts.weight))
        });
        parts.push(Misfit {
            field: "query_key_norm",
            found,
            expected: "what llama, mixtral, olmoe, qwen3_moe or openai-gpt combine it with".to_owned(),
        });
    }
    parts
}
