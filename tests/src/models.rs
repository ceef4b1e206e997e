//! Small models: configs of every switch, random weights, and directories written as `trainer` writes them.

use crate::Chance;
use crate::folder::Folder;
use formats::checkpoint::{Commit, Dtype, GenerationConfig, ModelFiles, write_model};
use formats::config::{
    Activation, AttentionScale, Config, Experts, NormKind, NormOrder, Position, QueryKeyNorm, RouterScore,
    RouterWeight,
};
use formats::layout::{Layout, Part, Role};
use formats::tokenizer::Tokenizer;
use std::path::PathBuf;

/// The lecture's model.
pub fn lecture() -> Config {
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

/// The lecture's model at a size where everything can be tried.
pub fn small() -> Config {
    Config {
        vocabulary: 11,
        context: 6,
        width: 12,
        layers: 2,
        heads: 3,
        kv_heads: 3,
        head_size: 4,
        feed_forward: 20,
        ..lecture()
    }
}

/// A small config of any shape and any switches.
pub fn random_config(seed: u64) -> Config {
    let mut chance = Chance::new(seed);
    // Drawn apart, so that what else a seed gives stays what it was.
    let norm_order = Chance::new(seed ^ 0x90D).of(&[NormOrder::Pre, NormOrder::Pre, NormOrder::Post]);
    let heads = 1 + chance.below(4);
    let size = 1 + chance.below(9);
    let config = Config {
        vocabulary: 2 + chance.below(40),
        context: 1 + chance.below(20),
        width: heads * size,
        layers: 1 + chance.below(3),
        heads,
        kv_heads: heads,
        head_size: size,
        feed_forward: 1 + chance.below(50),
        experts: None,
        position: Position::Learned,
        rotary_base: 10_000.0,
        norm: NormKind::LayerNorm,
        norm_order,
        query_key_norm: QueryKeyNorm::None,
        activation: chance.of(&[Activation::Relu, Activation::GeluErf, Activation::GeluTanh]),
        attention_scale: chance.of(&[AttentionScale::HeadSize, AttentionScale::Width]),
        norm_eps: chance.of(&[1e-5, 1e-6, 1e-3]),
        norm_bias: chance.of(&[true, false]),
        qkv_bias: chance.of(&[true, false]),
        attention_bias: chance.of(&[true, false]),
        feed_forward_bias: chance.of(&[true, false]),
        tied: chance.of(&[true, false]),
        head_bias: chance.of(&[true, false]),
        dropout: 0.0,
    };
    config.validate("a random config").expect("a valid config");
    config
}

/// A small config with parts of Llama, Mixtral and DeepSeek in any combination.
pub fn random_mixture(seed: u64) -> Config {
    let mut chance = Chance::new(seed ^ 0x31C5);
    let kv_heads = 1 + chance.below(3);
    let norm = chance.of(&[NormKind::LayerNorm, NormKind::RmsNorm]);
    let layers = 1 + chance.below(3);
    let count = 1 + chance.below(6);
    let experts = Experts {
        count,
        active: 1 + chance.below(count),
        width: 1 + chance.below(24),
        every: 1 + chance.below(layers),
        shared: chance.of(&[0, 0, 1, 2]),
        score: chance.of(&[RouterScore::Softmax, RouterScore::Sigmoid]),
        weight: chance.of(&[RouterWeight::Score, RouterWeight::Renormalised]),
        selection_bias: chance.of(&[true, false]),
        noise: false,
    };
    let config = Config {
        width: 1 + chance.below(30),
        layers,
        heads: kv_heads * (1 + chance.below(3)),
        kv_heads,
        head_size: 2 * (1 + chance.below(6)),
        experts: chance.of(&[Some(experts), Some(experts), None]),
        position: chance.of(&[Position::Learned, Position::Rotary]),
        rotary_base: chance.of(&[100.0, 10_000.0]),
        norm,
        query_key_norm: Chance::new(seed ^ 0x94).of(&[
            QueryKeyNorm::None,
            QueryKeyNorm::Head,
            QueryKeyNorm::Whole,
        ]),
        norm_bias: norm == NormKind::LayerNorm && chance.of(&[true, false]),
        activation: chance.of(&[Activation::GeluErf, Activation::GeluTanh, Activation::SwiGlu]),
        ..random_config(seed)
    };
    config.validate("a random mixture").expect("a valid config");
    config
}

/// Weights that leave every part of the model something to do: matrices keep a row's size, gains lie around one,
/// biases around zero. Each fits f16 exactly, so that a model of any dtype holds the same numbers.
pub fn random_weights(config: &Config, seed: u64) -> Vec<f32> {
    let mut chance = Chance::new(seed ^ 0x5EED);
    let layout = Layout::new(config);
    let mut weights = Vec::with_capacity(layout.parameters());
    for (_, parameter) in layout.iter() {
        let gain = matches!(
            parameter.role,
            Role::AttentionNorm(Part::Weight)
                | Role::FeedForwardNorm(Part::Weight)
                | Role::FinalNorm(Part::Weight)
                | Role::QueryNorm
                | Role::KeyNorm
        );
        let centre = if gain { 1.0 } else { 0.0 };
        let spread = if parameter.is_matrix() { (3.0 / parameter.columns as f64).sqrt() } else { 0.4 };
        weights.extend(
            (0..parameter.len()).map(|_| half::f16::from_f64(centre + spread * chance.signed()).to_f32()),
        );
    }
    weights
}

/// A text whose characters are exactly as many as `vocabulary`, for models that need a tokenizer.
pub fn alphabet(vocabulary: usize) -> String {
    // From the space on, then the Latin letters beyond ASCII: one, two and three bytes a character.
    (0..vocabulary as u32)
        .filter_map(|index| char::from_u32(if index < 95 { 32 + index } else { 0x900 + index }))
        .collect()
}

/// A model directory of the given weights, with a character tokenizer of [`alphabet`].
#[derive(Debug)]
pub struct Written {
    /// Keeps the files.
    pub folder: Folder,
    /// The directory to open.
    pub path: PathBuf,
}

/// Writes a model as `trainer` does.
#[track_caller]
pub fn write(config: &Config, weights: &[f32], dtype: Dtype) -> Written {
    let folder = Folder::new("model");
    let layout = Layout::new(config);
    let tokenizer = Tokenizer::characters(&alphabet(config.vocabulary)).expect("a tokenizer");
    let generation = GenerationConfig::default();
    let files = ModelFiles {
        config,
        layout: &layout,
        dtype,
        values: weights,
        tokenizer: Some(&tokenizer),
        generation: &generation,
    };
    let mut commit = Commit::begin(folder.path(), 0).expect("a directory to write into");
    write_model(&mut commit, "model/", &files).expect("a written model");
    let path = commit.finish().expect("a committed model").join("model");
    Written { folder, path }
}

/// A model whose weights no save would take: they may be no numbers. Written as f32, by hand.
#[track_caller]
pub fn write_unchecked(config: &Config, weights: &[f32]) -> Written {
    let written = write(config, &random_weights(config, 0), Dtype::F32);
    let layout = Layout::new(config);
    let path = written.path.join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("a file");
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let text: serde_json::Value = serde_json::from_slice(&bytes[8..header]).expect("a header");
    for stored in formats::families::stored(config, &layout) {
        let parameter = layout.parameter(stored.id);
        let at = header + text[&stored.name]["data_offsets"][0].as_u64().expect("an offset") as usize;
        let values = &weights[parameter.range()][stored.range(parameter)];
        for (index, to) in bytes[at..].chunks_exact_mut(4).take(values.len()).enumerate() {
            let from = match stored.inputs_first {
                true => index % parameter.rows * parameter.columns + index / parameter.rows,
                false => index,
            };
            to.copy_from_slice(&values[from].to_le_bytes());
        }
    }
    // No file of a checkpoint is modified in place, in tests neither.
    std::fs::remove_file(&path).and_then(|()| std::fs::write(&path, bytes)).expect("can be written");
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_configs_are_valid_and_differ() {
        let mixtures: Vec<Config> = (0..50).map(random_mixture).collect();
        assert!(mixtures.iter().any(|c| c.experts.is_none()) && mixtures.windows(2).all(|p| p[0] != p[1]));
        let configs: Vec<Config> = (0..50).map(random_config).collect();
        assert!(configs.iter().any(|c| c.tied) && configs.iter().any(|c| !c.tied));
        assert!(configs.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn random_configs_have_every_order_of_norms_and_every_family() {
        let drawn: Vec<Config> =
            (0..60).flat_map(|seed| [random_config(seed), random_mixture(seed)]).collect();
        for order in [NormOrder::Pre, NormOrder::Post] {
            assert!(drawn.iter().any(|config| config.norm_order == order));
        }
        for norm in [QueryKeyNorm::None, QueryKeyNorm::Head, QueryKeyNorm::Whole] {
            assert!(drawn.iter().any(|config| config.query_key_norm == norm));
        }
    }

    #[test]
    fn random_weights_fit_every_type_and_fill_the_layout() {
        let weights = random_weights(&small(), 3);
        assert_eq!(weights.len(), Layout::new(&small()).parameters());
        assert!(weights.iter().all(|&w| half::f16::from_f32(w).to_f32() == w));
        assert_ne!(weights, random_weights(&small(), 4));
    }

    #[test]
    fn an_alphabet_has_as_many_characters_as_asked() {
        for vocabulary in [1, 2, 65, 95, 96, 300] {
            let tokenizer = Tokenizer::characters(&alphabet(vocabulary)).expect("a tokenizer");
            assert_eq!(tokenizer.vocabulary(), vocabulary);
        }
    }
}
