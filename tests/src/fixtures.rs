//! What PyTorch computed, read from `tests/fixtures`; `scripts/make_fixtures.py` makes it.

use formats::Config;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A file of `tests/fixtures`.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// A small model of random weights and the logits PyTorch gives one window of ids, in float64.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// Which switch it shows.
    pub name: String,
    /// Its shape.
    pub config: Config,
    /// Its weights in layout order; every one fits f16 exactly.
    pub weights: Vec<f32>,
    /// One window.
    pub ids: Vec<u32>,
    /// `[ids, vocabulary]`.
    pub logits: Vec<f64>,
}

/// Every model.
pub fn models() -> Vec<Fixture> {
    let configs = std::fs::read_to_string(path("models.json")).expect("the configs");
    let configs: BTreeMap<String, Config> = serde_json::from_str(&configs).expect("configs");
    let bytes = std::fs::read(path("models.safetensors")).expect("the tensors");
    let file = SafeTensors::deserialize(&bytes).expect("tensors");
    let numbers = |name: &str, dtype: Dtype| {
        let tensor = file.tensor(name).expect("a tensor for each config");
        assert_eq!(tensor.dtype(), dtype, "{name}");
        tensor.data().to_vec()
    };
    let list: Vec<Fixture> = configs
        .into_iter()
        .map(|(name, config)| Fixture {
            config,
            weights: values(&numbers(&format!("{name}.weights"), Dtype::F16), |b| {
                half::f16::from_le_bytes(b).to_f32()
            }),
            ids: values(&numbers(&format!("{name}.ids"), Dtype::I32), u32::from_le_bytes),
            logits: values(&numbers(&format!("{name}.logits"), Dtype::F64), f64::from_le_bytes),
            name,
        })
        .collect();
    assert!(list.len() > 10, "{} models", list.len());
    list
}

/// Numbers of `N` bytes each.
fn values<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, rest) = bytes.as_chunks::<N>();
    assert!(rest.is_empty(), "whole numbers");
    chunks.iter().map(|&chunk| read(chunk)).collect()
}

/// A training run and the rows PyTorch printed for it.
#[derive(Clone, Debug, Deserialize)]
pub struct Run {
    /// The model.
    pub model: Config,
    /// Sequences a step.
    pub batch: usize,
    /// Steps in all.
    pub steps: u64,
    /// Seed of everything drawn.
    pub seed: u64,
    /// Steps between rows; the last step has one too.
    pub evaluate_every: u64,
    /// Batches of each split in a row.
    pub evaluate_batches: usize,
    /// AdamW's, all else as PyTorch's defaults.
    pub learning_rate: f32,
    /// Step, training loss, validation loss.
    pub rows: Vec<(u64, f64, f64)>,
}

/// Every run on [`text`].
pub fn runs() -> BTreeMap<String, Run> {
    let text = std::fs::read_to_string(path("rows.json")).expect("the rows");
    serde_json::from_str(&text).expect("rows")
}

/// The text the runs learn from.
pub fn text() -> String {
    std::fs::read_to_string(path("text.txt")).expect("the text")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{Tolerance, assert_close};
    use crate::reference::Reference;

    #[test]
    fn the_reference_gives_pytorchs_logits() {
        for fixture in models() {
            fixture.config.validate(&fixture.name).expect("a valid config");
            let logits = Reference::new(&fixture.config, &fixture.weights).logits(&fixture.ids);
            let tolerance = Tolerance { absolute: 1e-11, relative: 1e-11 };
            assert_close(&fixture.name, &logits, &fixture.logits, tolerance);
        }
    }

    #[test]
    fn the_models_show_every_switch() {
        let list = models();
        let has = |test: &dyn Fn(&Config) -> bool| list.iter().any(|fixture| test(&fixture.config));
        use formats::config::{Activation::*, AttentionScale::*};
        for activation in [Relu, GeluErf, GeluTanh] {
            assert!(has(&|c| c.activation == activation), "{activation:?}");
        }
        for scale in [HeadSize, Width] {
            assert!(has(&|c| c.attention_scale == scale), "{scale:?}");
        }
        for value in [true, false] {
            assert!(has(&|c| c.norm_bias == value) && has(&|c| c.qkv_bias == value));
            assert!(has(&|c| c.attention_bias == value) && has(&|c| c.feed_forward_bias == value));
            assert!(has(&|c| c.tied == value) && has(&|c| c.head_bias == value));
        }
    }

    #[test]
    fn the_runs_fit_their_text() {
        let characters: std::collections::BTreeSet<char> = text().chars().collect();
        for (name, run) in runs() {
            assert_eq!(run.model.vocabulary, characters.len(), "{name}");
            assert!(run.rows.len() >= 3 && run.rows.last().expect("rows").0 == run.steps - 1, "{name}");
        }
    }
}
