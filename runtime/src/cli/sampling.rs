//! How tokens are chosen and when a text ends, as `generate` and `chat` take it: flags over what the model's own
//! `generation_config.json` asks for.

use clap::Args;
use runtime::generate::GenerateOptions;
use runtime::model::Model;
use std::hash::{BuildHasher, RandomState};

/// The flags.
#[derive(Args, Debug)]
pub struct SamplingFlags {
    /// Most tokens to generate
    #[arg(
        short,
        long = "max-new-tokens",
        aliases = ["max_new_tokens", "n-predict", "n_predict"],
        value_name = "N",
        default_value_t = 256
    )]
    n: usize,
    /// Divide scores by this; 0 is greedy
    #[arg(long, visible_alias = "temp", value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Keep the K best tokens; 0 keeps all
    #[arg(long, alias = "top_k", value_name = "K")]
    top_k: Option<usize>,
    /// Keep the best tokens that together reach probability P; 1 keeps all
    #[arg(long, alias = "top_p", value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Keep tokens at least P times as probable as the best; 0 keeps all
    #[arg(long, alias = "min_p", value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Make tokens already seen less probable by R; 1 does nothing
    #[arg(
        long,
        visible_alias = "repeat-penalty",
        aliases = ["repetition_penalty", "repeat_penalty"],
        value_name = "R",
        allow_negative_numbers = true
    )]
    repetition_penalty: Option<f32>,
    /// The same seed gives the same text; by default a new one, which is printed
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Always take the most probable token
    #[arg(long, conflicts_with = "temperature")]
    greedy: bool,
    /// End where this text is generated; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Go on past the ids that end a text
    #[arg(long, alias = "ignore_eos")]
    ignore_eos: bool,
}

impl SamplingFlags {
    /// The model's own wishes, and the flags over them.
    pub fn options(&self, model: &Model) -> GenerateOptions {
        let mut options = GenerateOptions::of(model);
        let sampling = &mut options.sampling;
        sampling.temperature = self.temperature.unwrap_or(sampling.temperature);
        sampling.top_k = self.top_k.unwrap_or(sampling.top_k);
        sampling.top_p = self.top_p.unwrap_or(sampling.top_p);
        sampling.min_p = self.min_p.unwrap_or(sampling.min_p);
        sampling.repetition_penalty = self.repetition_penalty.unwrap_or(sampling.repetition_penalty);
        if self.greedy {
            sampling.temperature = 0.0;
        }
        if self.ignore_eos {
            options.end.clear();
        }
        GenerateOptions {
            max_tokens: self.n,
            stop: self.stop.clone(),
            // The standard library's hash maps are keyed from the system's entropy, and so is this.
            seed: self.seed.unwrap_or_else(|| RandomState::new().hash_one(0)),
            ..options
        }
    }
}
