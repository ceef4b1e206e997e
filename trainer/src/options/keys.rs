//! The one list of what can be set: each key's name, kind, bounds and sentence.
//!
//! A key stands in a config file as it is written here and on the command line with dashes; both are checked against
//! the same bounds. What a key means belongs to [`super::Options`].

use crate::data::TokenizerSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use formats::config::{
    MAX_CONTEXT, MAX_EXPERTS, MAX_FEED_FORWARD, MAX_HEAD_SIZE, MAX_HEADS, MAX_LAYERS, MAX_WIDTH,
};
use formats::{Error, Result};
use toml::Value;

/// What values a key takes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A whole number, both bounds included.
    Count(u64, u64),
    /// A number from zero up to but not including one.
    Fraction,
    /// A number above zero, at most this.
    Positive(f64),
    /// A number from zero to this.
    Amount(f64),
    /// `true` or `false`.
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// One of these words, or a path.
    WordOrPath(&'static [&'static str]),
}

/// One thing that can be set.
#[derive(Debug)]
pub struct Key {
    /// Its name in a config file.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// Under which heading help lists it.
    pub heading: &'static str,
    /// What it does, for help.
    pub about: &'static str,
}

const MODEL: &str = "Model";
const EXPERTS: &str = "Mixture of experts";
const TRAINING: &str = "Training";
const RUN: &str = "Run";

/// Keys that may change when a run is resumed: none of them changes what a run means, only, on another device, how it
/// rounds.
pub const CHANGEABLE: &[&str] =
    &["steps", "device", "precision", "threads", "save_every", "keep", "recompute", "progress"];

/// Every key but `preset`, `from`, `upcycle` and those of the data.
pub const KEYS: &[Key] = &[
    key(
        MODEL,
        "tokenizer",
        Kind::WordOrPath(TokenizerSource::WORDS),
        "how text becomes tokens; a path is a tokenizer.json, or a model that has one",
    ),
    key(MODEL, "block", Kind::Count(1, MAX_CONTEXT as u64), "tokens the model sees at once"),
    key(
        MODEL,
        "context",
        Kind::Count(1, MAX_CONTEXT as u64),
        "tokens the model can see at once, of which training uses a block; the block unless set",
    ),
    key(MODEL, "width", Kind::Count(1, MAX_WIDTH as u64), "width of the residual stream"),
    key(MODEL, "layers", Kind::Count(1, MAX_LAYERS as u64), "decoder layers"),
    key(MODEL, "heads", Kind::Count(1, MAX_HEADS as u64), "attention heads"),
    key(MODEL, "kv_heads", Kind::Count(1, MAX_HEADS as u64), "heads with keys and values; all unless set"),
    key(
        MODEL,
        "head_size",
        Kind::Count(1, MAX_HEAD_SIZE as u64),
        "width of a head; width / heads unless set",
    ),
    key(MODEL, "position", Kind::Choice(&["learned", "rotary"]), "how positions enter"),
    key(MODEL, "rotary_base", Kind::Positive(1e8), "base of the rotary wavelengths"),
    key(MODEL, "feed_forward", Kind::Count(1, MAX_FEED_FORWARD as u64), "hidden width; 4 x width unless set"),
    key(
        MODEL,
        "activation",
        Kind::Choice(&["relu", "gelu-erf", "gelu-tanh", "swiglu"]),
        "feed-forward nonlinearity",
    ),
    key(
        MODEL,
        "attention_scale",
        Kind::Choice(&["head-size", "width"]),
        "what attention scores are divided by, as a root",
    ),
    key(MODEL, "norm", Kind::Choice(&["layer-norm", "rms-norm"]), "what normalises the residual stream"),
    key(
        MODEL,
        "norm_order",
        Kind::Choice(&["pre", "post"]),
        "whether norms stand before each half of a layer, or after it as in GPT-1",
    ),
    key(
        MODEL,
        "query_key_norm",
        Kind::Choice(&["none", "head", "whole"]),
        "whether queries and keys are normalised, each head or all together",
    ),
    key(MODEL, "norm_eps", Kind::Positive(1.0), "added to the variance, or the mean square"),
    key(MODEL, "norm_bias", Kind::Switch, "LayerNorm has a bias"),
    key(MODEL, "qkv_bias", Kind::Switch, "the query-key-value projection has a bias"),
    key(MODEL, "attention_bias", Kind::Switch, "the attention output projection has a bias"),
    key(MODEL, "feed_forward_bias", Kind::Switch, "the feed-forward projections have biases"),
    key(MODEL, "tied", Kind::Switch, "the head shares the token embedding"),
    key(MODEL, "head_bias", Kind::Switch, "the head has a bias"),
    key(
        MODEL,
        "dropout",
        Kind::Fraction,
        "part zeroed in training: embeddings, attention, both residual branches",
    ),
    key(MODEL, "init", Kind::Choice(&["torch", "gpt2"]), "how the parameters begin"),
    key(EXPERTS, "experts", Kind::Count(0, MAX_EXPERTS as u64), "experts of a layer; 0 is a dense model"),
    key(EXPERTS, "active_experts", Kind::Count(1, MAX_EXPERTS as u64), "experts chosen for each token"),
    key(
        EXPERTS,
        "expert_width",
        Kind::Count(1, MAX_FEED_FORWARD as u64),
        "hidden width of one expert; feed_forward unless set",
    ),
    key(EXPERTS, "expert_every", Kind::Count(1, MAX_LAYERS as u64), "every so many layers has experts"),
    key(EXPERTS, "shared_experts", Kind::Count(0, MAX_EXPERTS as u64), "experts for every token besides"),
    key(
        EXPERTS,
        "router_score",
        Kind::Choice(&["softmax", "sigmoid"]),
        "what turns the router's logits into scores",
    ),
    key(
        EXPERTS,
        "router_weight",
        Kind::Choice(&["score", "renormalised"]),
        "what an expert's output is weighted by; score with one active expert, else renormalised, unless set",
    ),
    key(EXPERTS, "balance", Kind::Amount(1e3), "factor of the load-balancing loss (Switch: 0.01)"),
    key(EXPERTS, "router_z", Kind::Amount(1e3), "factor of the router's z-loss (ST-MoE: 0.001)"),
    key(
        EXPERTS,
        "bias_rate",
        Kind::Amount(1.0),
        "step of the bias that balances without a loss (DeepSeek-V3: 0.001); 0 has none",
    ),
    key(EXPERTS, "router_noise", Kind::Switch, "learned noise on the router's logits (Shazeer et al.)"),
    key(
        EXPERTS,
        "router_jitter",
        Kind::Fraction,
        "reach of the factors on the router's input (Switch: 0.01)",
    ),
    key(EXPERTS, "expert_dropout", Kind::Fraction, "dropout inside experts (Switch: 0.4)"),
    key(EXPERTS, "output_dropout", Kind::Fraction, "part of experts' outputs masked whole (NLLB: 0.2)"),
    key(EXPERTS, "router_dropout", Kind::Fraction, "part of the experts each step does without"),
    key(
        EXPERTS,
        "capacity_factor",
        Kind::Amount(1e3),
        "rows an expert takes, as a multiple of its even share of a shard's; 0 drops none",
    ),
    key(TRAINING, "batch", Kind::Count(1, 1 << 20), "sequences in a step, or in each of its micro-batches"),
    key(
        TRAINING,
        "accumulate",
        Kind::Count(1, 1 << 20),
        "micro-batches of a step: as one batch of them all, but for the balancing terms, which are each one's own",
    ),
    key(
        TRAINING,
        "held_out",
        Kind::Fraction,
        "part of the data that validates: of shards whole documents, of a text its end",
    ),
    key(TRAINING, "steps", Kind::Count(1, 9_999_999_999), "steps in all"),
    key(TRAINING, "learning_rate", Kind::Positive(100.0), "the highest learning rate"),
    key(
        TRAINING,
        "schedule",
        Kind::Choice(&["constant", "cosine", "linear", "inverse-sqrt"]),
        "learning rate after the warm-up",
    ),
    key(TRAINING, "final_learning_rate", Kind::Amount(100.0), "where a cosine or a line ends"),
    key(TRAINING, "warmup", Kind::Count(0, 9_999_999_999), "steps of linear rise"),
    key(
        TRAINING,
        "decay_steps",
        Kind::Count(1, 9_999_999_999),
        "where a cosine or a line ends; the first run's steps unless set",
    ),
    key(
        TRAINING,
        "optimizer",
        Kind::Choice(&["adam", "adamw"]),
        "weight decay: part of the gradient (adam), or of the weights beside it (adamw)",
    ),
    key(TRAINING, "beta1", Kind::Fraction, "decay of the first moment"),
    key(TRAINING, "beta2", Kind::Fraction, "decay of the second moment"),
    key(TRAINING, "eps", Kind::Positive(1.0), "added to the root of the second moment"),
    key(TRAINING, "weight_decay", Kind::Amount(1.0), "weight decay"),
    key(TRAINING, "decay", Kind::Choice(&["everything", "matrices"]), "which parameters decay"),
    key(TRAINING, "clip", Kind::Amount(1e6), "largest gradient norm; 0 never clips"),
    key(
        TRAINING,
        "eval_every",
        Kind::Count(0, 9_999_999_999),
        "steps from one evaluation to the next; 0 never evaluates",
    ),
    key(TRAINING, "eval_batches", Kind::Count(1, 1_000_000), "batches of each split in an evaluation"),
    key(TRAINING, "seed", Kind::Count(0, i64::MAX as u64), "of everything random"),
    key(
        TRAINING,
        "rng",
        Kind::Choice(&["counter", "torch"]),
        "whose random numbers: ours, or PyTorch's CPU generator",
    ),
    key(
        RUN,
        "device",
        Kind::Choice(&["auto", "cpu", "cuda"]),
        "where to compute; auto is cuda where it can be used, and a run says which it took and why",
    ),
    key(
        RUN,
        "precision",
        Kind::Choice(&["bf16", "f32"]),
        "of activations and products; bf16 on cuda and f32 on the CPU unless set",
    ),
    key(RUN, "threads", Kind::Count(1, 1024), "CPU threads; all unless set"),
    key(
        RUN,
        "recompute",
        Kind::Choice(&["nothing", "layers"]),
        "what the backward pass computes a second time instead of keeping it; --keep layer-inputs is layers, --keep all \
         is nothing; the results are the same",
    ),
    key(RUN, "dtype", Kind::Choice(&["f16", "bf16", "f32"]), "type of the saved weights"),
    key(
        RUN,
        "save_every",
        Kind::Count(0, 9_999_999_999),
        "steps from one checkpoint to the next; 0 saves at the end only",
    ),
    key(RUN, "keep", Kind::Count(1, 1_000_000), "checkpoints kept"),
    key(RUN, "log_every", Kind::Count(1, 9_999_999_999), "steps from one logged step to the next"),
    key(RUN, "sample", Kind::Count(0, 100_000_000), "tokens of the sample at the end"),
    key(RUN, "progress", Kind::Choice(&["auto", "plain", "json", "off"]), "how progress is told, on stderr"),
];

const fn key(heading: &'static str, name: &'static str, kind: Kind, about: &'static str) -> Key {
    Key { name, kind, heading, about }
}

impl Key {
    /// The key called `name`.
    pub fn find(name: &str) -> Option<&'static Key> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// The key that `value` is for, and its value there: what of activations is kept is `recompute`'s.
    pub fn meant(&'static self, value: &Value) -> (&'static Key, Value) {
        let word = match (self.name, value.as_str()) {
            ("keep", Some("layer-inputs")) => "layers",
            ("keep", Some("all")) => "nothing",
            _ => return (self, value.clone()),
        };
        (Key::find("recompute").unwrap_or(self), Value::String(word.to_owned()))
    }

    /// Its flag on the command line.
    pub fn flag(&self) -> String {
        format!("--{}", self.name.replace('_', "-"))
    }

    /// What its values must be, in words.
    fn expected(&self) -> String {
        match self.kind {
            Kind::Count(least, most) => format!("a whole number from {least} to {most}"),
            Kind::Fraction => "a number from 0 up to, but not, 1".to_owned(),
            Kind::Positive(most) => format!("a number above 0, at most {most}"),
            Kind::Amount(most) => format!("a number from 0 to {most}"),
            Kind::Switch => "true or false".to_owned(),
            Kind::Choice(words) => format!("one of {}", words.join(", ")),
            Kind::WordOrPath(words) => format!("one of {}, or a path", words.join(", ")),
        }
    }

    /// A config file's value, checked; a whole number where a fraction may stand becomes one.
    pub fn check(&self, origin: &str, shown: &str, value: &Value) -> Result<Value> {
        let real = |within: fn(f64, f64) -> bool, most: f64| {
            let number = value.as_float().or_else(|| value.as_integer().map(|whole| whole as f64))?;
            within(number, most).then_some(Value::Float(number))
        };
        let checked = match self.kind {
            Kind::Count(least, most) => value
                .as_integer()
                .and_then(|count| u64::try_from(count).ok())
                .filter(|count| (least..=most).contains(count))
                .map(|_| value.clone()),
            Kind::Fraction => real(|x, most| (0.0..most).contains(&x), 1.0),
            Kind::Positive(most) => real(|x, most| x > 0.0 && x <= most, most),
            Kind::Amount(most) => real(|x, most| (0.0..=most).contains(&x), most),
            Kind::Switch => value.as_bool().map(Value::Boolean),
            Kind::Choice(words) => value.as_str().filter(|word| words.contains(word)).map(|_| value.clone()),
            Kind::WordOrPath(_) => value.as_str().filter(|text| !text.is_empty()).map(|_| value.clone()),
        };
        checked.ok_or_else(|| Error::config(origin, shown, value, self.expected()))
    }

    /// A flag's value, checked, with the key it is for.
    fn parse(&'static self, text: &str) -> Result<(&'static str, Value)> {
        let value = match self.kind {
            Kind::Count(..) => text.parse().ok().map(Value::Integer),
            Kind::Fraction | Kind::Positive(_) | Kind::Amount(_) => text.parse().ok().map(Value::Float),
            Kind::Switch => text.parse().ok().map(Value::Boolean),
            Kind::Choice(_) | Kind::WordOrPath(_) => None,
        };
        let value = value.unwrap_or_else(|| Value::String(text.to_owned()));
        let (key, value) = self.meant(&value);
        Ok((key.name, key.check("command line", &self.flag(), &value)?))
    }
}

/// The word of `words` that `word` was most likely meant to be, if any is near.
pub fn nearest<'a>(word: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let typed = word.replace('-', "_");
    let near = 1 + word.chars().count() / 3;
    words
        .map(|known| (distance(&typed, &known.replace('-', "_")), known))
        .filter(|(d, _)| *d <= near)
        .min()
        .map(|(_, known)| known)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Flags of every key, as they were given.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    values: Vec<(&'static str, String)>,
}

impl Flags {
    /// The keys set by flags, with their values checked.
    pub fn values(&self) -> Result<Vec<(&'static str, Value)>> {
        self.values
            .iter()
            .filter_map(|(name, text)| Key::find(name).map(|key| (key, text)))
            .map(|(key, text)| key.parse(text))
            .collect()
    }
}

impl clap::Args for Flags {
    fn augment_args(command: Command) -> Command {
        KEYS.iter().fold(command, |command, key| {
            let name = key.flag().trim_start_matches('-').to_owned();
            let arg = Arg::new(key.name)
                .long(name)
                .help(format!("{}: {}", key.about, key.expected()))
                .help_heading(key.heading)
                // `--keep` says two things: how many checkpoints, and which activations.
                .action(if key.name == "keep" { ArgAction::Append } else { ArgAction::Set })
                .allow_negative_numbers(true);
            command.arg(match key.kind {
                // `--tied` alone means true.
                Kind::Switch => arg.value_name("BOOL").num_args(0..=1).default_missing_value("true"),
                Kind::Choice(_) => arg.value_name("WORD"),
                Kind::WordOrPath(_) => arg.value_name("WORD|PATH"),
                _ => arg.value_name("N"),
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Flags::augment_args(command)
    }
}

impl clap::FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Flags, clap::Error> {
        let given = |key: &'static Key| {
            let values = matches.get_many::<String>(key.name).into_iter().flatten();
            values.map(|value| (key.name, value.clone()))
        };
        Ok(Flags { values: KEYS.iter().flat_map(given).collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        *self = Flags::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
impl Flags {
    /// Flags as if typed.
    pub(crate) fn of(values: &[(&'static str, &str)]) -> Flags {
        Flags { values: values.iter().map(|(name, value)| (*name, (*value).to_owned())).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_and_the_options_have_the_same_keys() {
        let options = crate::presets::find("nano").expect("a preset").settled();
        let options = crate::options::Options {
            threads: Some(1),
            precision: Some(crate::device::Precision::F32),
            context: Some(1),
            kv_heads: Some(1),
            head_size: Some(1),
            expert_width: Some(1),
            router_weight: Some(formats::config::RouterWeight::Score),
            ..options
        };
        let mut options = options.table().expect("plain data");
        assert!(options.remove("preset").is_some());
        let mut listed: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
        let mut held: Vec<&str> = options.keys().map(String::as_str).collect();
        listed.sort_unstable();
        held.sort_unstable();
        assert_eq!(listed, held);
        assert!(CHANGEABLE.iter().all(|name| Key::find(name).is_some()));
    }

    #[test]
    fn every_bound_is_kept_and_named() {
        for key in KEYS {
            let refused: &[&str] = match key.kind {
                Kind::Count(..) => &["-1", "1.5", "many", "99999999999999999999", ""],
                Kind::Fraction => &["-0.1", "1", "nan", "inf", "x"],
                Kind::Positive(_) | Kind::Amount(_) => &["-1e-9", "nan", "inf", "1e9", "-inf"],
                Kind::Switch => &["1", "yes", ""],
                Kind::Choice(_) => &["", "something", "3"],
                Kind::WordOrPath(_) => &[""],
            };
            for text in refused {
                let error = key.parse(text).expect_err(key.name);
                assert_eq!(error.exit_code(), 4);
                let sentence = error.to_string();
                assert!(sentence.contains(&key.flag()) && sentence.contains(&key.expected()), "{sentence}");
            }
            let accepted = match key.kind {
                Kind::Count(least, most) => vec![least.to_string(), most.to_string()],
                Kind::Fraction => vec!["0".to_owned(), "0.999999".to_owned()],
                Kind::Positive(most) | Kind::Amount(most) => vec!["1e-12".to_owned(), most.to_string()],
                Kind::Switch => vec!["true".to_owned(), "false".to_owned()],
                Kind::Choice(words) => words.iter().map(|word| (*word).to_owned()).collect(),
                Kind::WordOrPath(words) => vec![words[0].to_owned(), "models/tokenizer.json".to_owned()],
            };
            for text in accepted {
                key.parse(&text).expect(key.name);
            }
        }
    }

    #[test]
    fn keep_counts_checkpoints_or_names_activations() {
        let keep = Key::find("keep").expect("a key");
        assert_eq!(keep.parse("5").expect("a count"), ("keep", Value::Integer(5)));
        for (typed, meant) in [("layer-inputs", "layers"), ("all", "nothing")] {
            assert_eq!(keep.parse(typed).expect("a word"), ("recompute", Value::String(meant.to_owned())));
        }
        assert!(keep.parse("layers").is_err());
    }

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let names = || KEYS.iter().map(|key| key.name);
        for (typed, meant) in [
            ("widht", "width"),
            ("learning-rate", "learning_rate"),
            ("lerning_rate", "learning_rate"),
            ("layer", "layers"),
        ] {
            assert_eq!(nearest(typed, names()), Some(meant));
        }
        assert_eq!(nearest("xylophone", names()), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
