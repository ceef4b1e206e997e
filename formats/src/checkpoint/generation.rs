//! `generation_config.json`: how a model wants to be sampled, in Hugging Face's keys.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;

/// What the file says; what it does not say is `None`. Keys of others are ignored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GenerationConfig {
    /// Whether to sample at all; `false` takes the likeliest token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub do_sample: Option<bool>,
    /// Divides the logits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Keeps the k likeliest tokens; 0 keeps all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Keeps the likeliest tokens that together have this probability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Keeps the tokens that have this share of the likeliest one's probability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// Makes tokens that occurred less likely; 1 does nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// Tokens that end the text.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_many")]
    pub eos_token_id: Vec<u32>,
    /// The token a text starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos_token_id: Option<u32>,
}

impl GenerationConfig {
    /// Samples from the model's own distribution: temperature 1 and no filter, as the lecture does.
    pub fn plain() -> GenerationConfig {
        GenerationConfig {
            do_sample: Some(true),
            temperature: Some(1.0),
            top_k: Some(0),
            top_p: Some(1.0),
            min_p: Some(0.0),
            repetition_penalty: Some(1.0),
            eos_token_id: Vec::new(),
            bos_token_id: None,
        }
    }

    /// Reads the text of a `generation_config.json`; `origin` names it in errors.
    pub fn read_json(text: &str, origin: &Path) -> Result<GenerationConfig> {
        let refuse = |problem: &dyn fmt::Display| {
            Error::file(
                origin,
                format!("is not a generation config: {problem}"),
                "correct or remove the file",
            )
        };
        // A derived reader would take a list of the values as well.
        if !text.trim_start().starts_with('{') {
            return Err(refuse(&"expected an object"));
        }
        let config: GenerationConfig = serde_json::from_str(text).map_err(|error| refuse(&error))?;
        config.validate(origin)?;
        Ok(config)
    }

    /// The text of a `generation_config.json`.
    pub fn to_json(&self) -> String {
        let text = serde_json::to_string_pretty(self).expect("numbers and flags are always JSON");
        text + "\n"
    }

    /// Refuses ids that a model of `vocabulary` tokens does not have.
    pub fn check_ids(&self, vocabulary: usize, origin: &Path) -> Result<()> {
        let ids = self.eos_token_id.iter().map(|id| ("eos_token_id", id));
        let ids = ids.chain(self.bos_token_id.iter().map(|id| ("bos_token_id", id)));
        for (field, &id) in ids {
            if id as usize >= vocabulary {
                let expected = format!("an id below the vocabulary of {vocabulary}");
                return Err(Error::config(origin.display().to_string(), field, id, expected));
            }
        }
        Ok(())
    }

    fn validate(&self, origin: &Path) -> Result<()> {
        type Bound = (&'static str, Option<f32>, fn(f32) -> bool, &'static str);
        let bounds: [Bound; 4] = [
            ("temperature", self.temperature, |value| value >= 0.0, "0 or more"),
            ("top_p", self.top_p, |value| value > 0.0 && value <= 1.0, "above 0, at most 1"),
            ("min_p", self.min_p, |value| (0.0..=1.0).contains(&value), "0 to 1"),
            ("repetition_penalty", self.repetition_penalty, |value| value > 0.0, "above 0"),
        ];
        for (field, value, within, expected) in bounds {
            if let Some(value) = value.filter(|&value| !(value.is_finite() && within(value))) {
                return Err(Error::config(origin.display().to_string(), field, value, expected));
            }
        }
        Ok(())
    }
}

/// `eos_token_id` is a number, a list of them, or null.
fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "an id or a list of ids")]
    enum Ids {
        One(u32),
        Many(Vec<u32>),
    }
    Ok(match Option::<Ids>::deserialize(deserializer)? {
        None => Vec::new(),
        Some(Ids::One(id)) => vec![id],
        Some(Ids::Many(ids)) => ids,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<GenerationConfig> {
        GenerationConfig::read_json(text, Path::new("generation_config.json"))
    }

    #[test]
    fn what_is_absent_stays_absent() {
        let nothing = read("{}").expect("an empty object");
        assert_eq!(nothing, GenerationConfig::default());
        assert_eq!(nothing.to_json(), "{}\n");
    }

    #[test]
    fn a_config_survives_its_file() {
        let config = GenerationConfig {
            temperature: Some(0.8),
            eos_token_id: vec![3, 5],
            bos_token_id: Some(0),
            ..GenerationConfig::plain()
        };
        assert!(config.to_json().contains("\"temperature\": 0.8,"), "{}", config.to_json());
        assert_eq!(read(&config.to_json()).expect("our own file"), config);
    }

    #[test]
    fn public_files_are_read_with_keys_of_others_ignored() {
        let text = r#"{"_from_model_config": true, "bos_token_id": 1, "eos_token_id": 2, "top_k": 50,
            "temperature": null, "transformers_version": "5.0.0", "max_length": 4096}"#;
        let config = read(text).expect("a public file");
        assert_eq!((config.bos_token_id, config.eos_token_id, config.top_k), (Some(1), vec![2], Some(50)));
        assert_eq!(config.temperature, None);
        assert!(read(r#"{"eos_token_id": null}"#).expect("null is absent").eos_token_id.is_empty());
    }

    #[test]
    fn impossible_values_are_refused_by_name() {
        for (text, words) in [
            (r#"{"temperature": -1}"#, "temperature is -1"),
            (r#"{"temperature": 1e39}"#, "temperature is inf"),
            (r#"{"top_p": 0}"#, "top_p is 0"),
            (r#"{"top_p": 1.5}"#, "top_p is 1.5"),
            (r#"{"min_p": 2}"#, "min_p is 2"),
            (r#"{"repetition_penalty": 0}"#, "repetition_penalty is 0"),
            (r#"{"top_k": -1}"#, "not a generation config"),
            (r#"{"eos_token_id": "x"}"#, "an id or a list of ids"),
            (r#"{"eos_token_id": [4294967296]}"#, "an id or a list of ids"),
            ("[]", "not a generation config"),
            ("", "not a generation config"),
        ] {
            let message = read(text).expect_err(text).to_string();
            assert!(message.contains(words), "{message:?} does not say {words:?}");
        }
    }

    #[test]
    fn ids_beyond_the_vocabulary_are_refused() {
        let path = Path::new("generation_config.json");
        let config = GenerationConfig { eos_token_id: vec![1, 65], ..Default::default() };
        assert!(config.check_ids(66, path).is_ok());
        assert!(config.check_ids(65, path).expect_err("65").to_string().contains("eos_token_id is 65"));
        let config = GenerationConfig { bos_token_id: Some(u32::MAX), ..Default::default() };
        assert!(config.check_ids(65, path).expect_err("bos").to_string().contains("bos_token_id"));
    }
}
