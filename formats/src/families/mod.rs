//! How each family of models names and stores the layout's parameters on disk, and how it writes its config.
//!
//! A model that a public family can express is written as one of it, so that the tools of the field open it
//! unchanged; which one follows from the config alone. Any other says `"model_type": "lectern"`, so that nothing else
//! misreads it.

mod gpt;
mod keys;
mod llama;

use crate::checkpoint::Dtype;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::layout::{Layout, Parameter, ParameterId, Part, Role};
use keys::Keys;
use serde::de::value::MapDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::path::Path;

/// A way to name and store a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Our own.
    Lectern,
    /// GPT-1: norms after each half of a layer.
    OpenaiGpt,
    /// GPT-2.
    Gpt2,
    /// Dense, rotary positions, RMSNorm, SwiGLU.
    Llama,
    /// The same with experts whose weights are renormalised.
    Mixtral,
    /// The same with queries and keys normalised whole.
    Olmoe,
    /// The same with queries and keys normalised head by head.
    Qwen3Moe,
}

impl Family {
    /// Every family.
    pub const ALL: [Family; 7] = [
        Family::Lectern,
        Family::OpenaiGpt,
        Family::Gpt2,
        Family::Llama,
        Family::Mixtral,
        Family::Olmoe,
        Family::Qwen3Moe,
    ];

    /// The one that stores a model of this config.
    pub fn of(config: &Config) -> Family {
        llama::of(config).or_else(|| gpt::of(config)).unwrap_or(Family::Lectern)
    }

    /// Its name in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Family::Lectern => "lectern",
            Family::OpenaiGpt => "openai-gpt",
            Family::Gpt2 => "gpt2",
            Family::Llama => "llama",
            Family::Mixtral => "mixtral",
            Family::Olmoe => "olmoe",
            Family::Qwen3Moe => "qwen3_moe",
        }
    }

    /// The class name other tools look for.
    pub fn architecture(self) -> &'static str {
        match self {
            Family::Lectern => "LecternForCausalLM",
            Family::OpenaiGpt => "OpenAIGPTLMHeadModel",
            Family::Gpt2 => "GPT2LMHeadModel",
            Family::Llama => "LlamaForCausalLM",
            Family::Mixtral => "MixtralForCausalLM",
            Family::Olmoe => "OlmoeForCausalLM",
            Family::Qwen3Moe => "Qwen3MoeForCausalLM",
        }
    }
}

/// Most keys of a `config.json`; each is compared with all others.
const MOST_KEYS: usize = 256;

/// One tensor as it stands in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The parameter it holds.
    pub id: ParameterId,
    /// Its name in the file.
    pub name: String,
    /// Its shape in the file: `[rows, columns]`, `[columns, rows]` with inputs first, or `[len]` for a vector.
    pub shape: Vec<usize>,
    /// The first of the parameter's rows that it holds: some families store a parameter in pieces.
    pub first_row: usize,
    /// Whether it stands transposed: one line an input, not one an output.
    pub inputs_first: bool,
}

impl Stored {
    /// How many of the parameter's rows it holds.
    pub fn rows(&self) -> usize {
        match self.shape[..] {
            [rows, _] if !self.inputs_first => rows,
            [_, rows] => rows,
            _ => 1,
        }
    }

    /// Where its values are among the parameter's, in elements; with inputs first, they are these transposed.
    pub fn range(&self, parameter: &Parameter) -> Range<usize> {
        let start = self.first_row * parameter.columns;
        start..start + self.shape.iter().product::<usize>()
    }
}

/// The tensors of a model's file, in the layout's order, the pieces of a parameter by their rows.
pub fn stored(config: &Config, layout: &Layout) -> Vec<Stored> {
    let family = Family::of(config);
    let parameters = layout.iter().filter(|(_, parameter)| parameter.is_stored());
    let tensors = parameters.flat_map(|(id, parameter)| match family {
        Family::Lectern => vec![own(id, parameter)],
        Family::Gpt2 | Family::OpenaiGpt => vec![gpt::stored(family, id, parameter)],
        family => llama::stored(family, config, id, parameter),
    });
    tensors.collect()
}

/// Whether a file may hold a tensor of this name although it is no parameter of the model.
pub fn is_ignored(config: &Config, layout: &Layout, name: &str) -> bool {
    match Family::of(config) {
        Family::Lectern => false,
        Family::Gpt2 | Family::OpenaiGpt => gpt::is_ignored(layout, name),
        _ => llama::is_ignored(layout, name),
    }
}

/// The other name under which some files of a model's family hold what is called `name`.
pub fn short_name<'a>(config: &Config, name: &'a str) -> Option<&'a str> {
    match Family::of(config) {
        Family::Gpt2 | Family::OpenaiGpt => name.strip_prefix(gpt::PREFIX),
        _ => None,
    }
}

fn own(id: ParameterId, parameter: &Parameter) -> Stored {
    let shape = match parameter.is_matrix() {
        true => vec![parameter.rows, parameter.columns],
        false => vec![parameter.columns],
    };
    Stored { id, name: name(parameter), shape, first_row: 0, inputs_first: false }
}

fn name(parameter: &Parameter) -> String {
    let (role, part) = match parameter.role {
        Role::TokenEmbedding => ("token_embedding", Part::Weight),
        Role::PositionEmbedding => ("position_embedding", Part::Weight),
        Role::AttentionNorm(part) => ("attention_norm", part),
        Role::Qkv(part) => ("attention.qkv", part),
        Role::QueryNorm => ("attention.query_norm", Part::Weight),
        Role::KeyNorm => ("attention.key_norm", Part::Weight),
        Role::AttentionOut(part) => ("attention.out", part),
        Role::FeedForwardNorm(part) => ("feed_forward_norm", part),
        Role::Router => ("router", Part::Weight),
        Role::SelectionBias => ("router.selection", Part::Bias),
        Role::RouterNoise => ("router.noise", Part::Weight),
        Role::Up(part) => ("feed_forward.up", part),
        Role::Down(part) => ("feed_forward.down", part),
        Role::FinalNorm(part) => ("final_norm", part),
        Role::Head(part) => ("head", part),
    };
    let part = match part {
        Part::Weight => "weight",
        Part::Bias => "bias",
    };
    match (parameter.layer, parameter.expert) {
        (Some(layer), Some(expert)) => format!("layers.{layer}.experts.{expert}.{role}.{part}"),
        (Some(layer), None) => format!("layers.{layer}.{role}.{part}"),
        (None, _) => format!("{role}.{part}"),
    }
}

/// The text of a `config.json`: what the model is, in its family's own keys.
pub fn config_json(config: &Config, dtype: Dtype) -> String {
    let family = Family::of(config);
    match family {
        Family::Lectern => {}
        Family::Gpt2 | Family::OpenaiGpt => return gpt::config_json(family, config, dtype),
        _ => return llama::config_json(family, config, dtype),
    }
    #[derive(Serialize)]
    struct File<'a> {
        model_type: &'static str,
        architectures: [&'static str; 1],
        dtype: &'static str,
        #[serde(flatten)]
        config: &'a Config,
    }
    let file = File {
        model_type: family.model_type(),
        architectures: [family.architecture()],
        dtype: dtype.long_name(),
        config,
    };
    let text = serde_json::to_string_pretty(&file).expect("numbers, names and flags are always JSON");
    text + "\n"
}

/// Reads the text of a `config.json`; `origin` names it in errors. Every value must be within its bounds; of our own
/// files every key must be known, of a public family's those that would change what is computed.
pub fn read_config(text: &str, origin: &Path) -> Result<Config> {
    let place = origin.display().to_string();
    let Entries(mut entries) = serde_json::from_str(text).map_err(|error| {
        Error::file(
            origin,
            format!("not a JSON object: {error}"),
            "config.json was damaged or cut short; copy it again",
        )
    })?;
    let mut taken = |key: &str| {
        let index = entries.iter().position(|(known, _)| known == key)?;
        Some(entries.remove(index).1)
    };
    let known = || Family::ALL.map(Family::model_type).join(", ");
    let family = match taken("model_type") {
        Some(kind) => Family::ALL
            .into_iter()
            .find(|family| kind == family.model_type())
            .ok_or_else(|| Error::config(&place, "model_type", kind, format!("one of {}", known())))?,
        None => return Err(Error::config(place, "model_type", "missing", format!("one of {}", known()))),
    };
    // Informative only: each tensor says its own type. Two spellings, for transformers before and since 5.
    for key in ["dtype", "torch_dtype"] {
        let Some(found) = taken(key) else { continue };
        if !Dtype::ALL.iter().any(|dtype| found == dtype.long_name()) {
            return Err(Error::config(place, key, found, "\"float32\", \"float16\" or \"bfloat16\""));
        }
    }
    taken("architectures");
    // Ours to skip because transformers adds it whenever it writes a config back.
    taken("transformers_version");
    let config = match family {
        Family::Lectern => own_keys(entries, &place)?,
        family => {
            let entries = entries.into_iter().collect();
            let keys = Keys::new(&entries, &place);
            match family {
                Family::Gpt2 | Family::OpenaiGpt => gpt::read(family, &keys)?,
                _ => llama::read(family, &keys)?,
            }
        }
    };
    config.validate(&place)?;
    if Family::of(&config) != family {
        return Err(Error::config(
            place,
            "model_type",
            family.model_type(),
            format!("{:?}, which a model of these parts is", Family::of(&config).model_type()),
        ));
    }
    Ok(config)
}

/// The config's own keys, with the one at fault named: serde's error alone would not say which.
fn own_keys(entries: Vec<(String, Value)>, place: &str) -> Result<Config> {
    let last: RefCell<(String, Value)> = RefCell::default();
    let watched = entries.into_iter().inspect(|(key, value)| {
        last.replace((key.clone(), value.clone()));
    });
    Config::deserialize(MapDeserializer::new(watched)).map_err(|error: serde_json::Error| {
        let sentence = error.to_string();
        let missing = sentence.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'));
        let (key, value) = last.take();
        match missing {
            Some(missing) => Error::config(place, missing, "missing", "a value"),
            None => Error::config(place, key, value, format!("something else: {sentence}")),
        }
    })
}

/// The entries of a JSON object in file order, equal keys kept so that they can be refused.
struct Entries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Entries, D::Error> {
        struct Collector;
        impl<'de> Visitor<'de> for Collector {
            type Value = Entries;

            fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
                out.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries: Vec<(String, Value)> = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, Value>()? {
                    if entries.iter().any(|(known, _)| *known == key) {
                        return Err(serde::de::Error::custom(format!("the key {key:?} stands twice")));
                    }
                    if entries.len() == MOST_KEYS {
                        return Err(serde::de::Error::custom(format!("more than {MOST_KEYS} keys")));
                    }
                    entries.push((key, value));
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Collector)
    }
}

#[cfg(test)]
mod tests;
