//! `tokenizer.json`, in and out: characters, byte-pair encoding of bytes, and of characters that fall back on bytes
//! (`fallback`); a sentence for any other.
//!
//! What changes no id is read and passed over (a byte-level post-processor, `trim_offsets`); what would change one and
//! is not computed here is refused by name, and told apart from what is damaged.

mod fallback;
mod write;

pub(super) use write::to_json;

use super::bpe::{Bpe, Parts};
use super::special::Added;
use super::vocabulary::{Pair, Vocabulary, merges_by_id};
use super::{Split, Tokenizer, byte_table};
use crate::error::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::Path;

/// The tokenizer of a file's text; `origin` names it in errors.
pub(super) fn from_json(text: &str, origin: &Path) -> Result<Tokenizer> {
    let read = serde_json::from_str(text).map_err(|error| match foreign_model(text) {
        Some(problem) => foreign(problem),
        None => Refusal::Damaged(format!("not a tokenizer we know: {error}")),
    });
    read.and_then(TokenizerFile::check).map_err(|refusal| match refusal {
        Refusal::Damaged(problem) => Error::file(origin, problem, HELP),
        Refusal::Foreign(problem) => {
            Error::Foreign { path: origin.to_path_buf(), problem, help: HELP.to_owned() }
        }
    })
}

const HELP: &str = "use a tokenizer.json of characters, bytes or byte-pair encoding, as `trainer`, GPT-2, Llama, Mistral or \
                    Qwen have it";

/// Why a file gives no tokenizer.
enum Refusal {
    /// It is no tokenizer, or it contradicts itself.
    Damaged(String),
    /// It is whole, and of a kind that is not computed here.
    Foreign(String),
}

impl From<String> for Refusal {
    fn from(problem: String) -> Refusal {
        Refusal::Damaged(problem)
    }
}

fn foreign(problem: impl Into<String>) -> Refusal {
    Refusal::Foreign(problem.into())
}

/// The sentence for a file whose model is of another kind, which no typed reading of ours can name.
fn foreign_model(text: &str) -> Option<String> {
    let file: Value = serde_json::from_str(text).ok()?;
    let kind = file.get("model")?.get("type")?.as_str()?;
    (kind != "BPE").then(|| format!("its model is of type {kind:?}; only \"BPE\" is read"))
}

/// A `tokenizer.json`, with the parts that come in many forms kept as they came.
#[derive(Deserialize)]
struct TokenizerFile {
    version: Option<String>,
    truncation: Option<Value>,
    padding: Option<Value>,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    model: Model,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    /// Whether it is looked for in normalized text. Composed text is not asked: there we look in the text as it comes.
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    dropout: Option<Value>,
    unk_token: Option<Value>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: Vocabulary,
    #[serde(default)]
    merges: Vec<Pair>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// The name of one of the file's parts.
fn kind(value: &Value) -> Option<&str> {
    value.get("type")?.as_str()
}

impl TokenizerFile {
    /// The tokenizer, or the first reason why this file is not one of the forms we compute.
    fn check(self) -> Result<Tokenizer, Refusal> {
        self.model.check_form()?;
        let others = self.added_tokens.iter().flat_map(|token| token.others.keys());
        let mut others = self.others.keys().chain(self.model.others.keys()).chain(others);
        if let Some(name) = others.next() {
            return Err(foreign(format!("it has an unknown field `{name}`")));
        }
        if let Some(version) = self.version.as_ref().filter(|version| *version != "1.0") {
            return Err(foreign(format!("version is {version:?}; \"1.0\" is read")));
        }
        let absent = [
            ("truncation", &self.truncation),
            ("padding", &self.padding),
            ("model.dropout", &self.model.dropout),
        ];
        // No dropout is what a dropout of zero is.
        let set = |value: &Option<Value>| value.as_ref().is_some_and(|value| value.as_f64() != Some(0.0));
        if let Some((name, _)) = absent.iter().find(|(_, value)| set(value)) {
            return Err(foreign(format!("{name} is set; it must be null")));
        }
        let decoder = self.decoder.as_ref().map(|decoder| kind(decoder).unwrap_or("unnamed"));
        match decoder {
            _ if self.model.byte_fallback => self.fallback(),
            _ if self.model.fuse_unk => Err(foreign("model.fuse_unk is true and model.byte_fallback false")),
            Some("Fuse") => self.characters(),
            Some("ByteLevel") => self.byte_level(),
            decoder => Err(foreign(format!(
                "decoder is {}; \"Fuse\" (characters) or \"ByteLevel\" (bytes and their merges) is read",
                decoder.unwrap_or("null")
            ))),
        }
    }

    /// One id a character.
    fn characters(self) -> Result<Tokenizer, Refusal> {
        let absent = [
            ("normalizer", &self.normalizer),
            ("pre_tokenizer", &self.pre_tokenizer),
            ("post_processor", &self.post_processor),
            ("model.unk_token", &self.model.unk_token),
        ];
        if let Some((name, _)) = absent.iter().find(|(_, value)| value.is_some()) {
            return Err(foreign(format!("{name} is set; with decoder \"Fuse\" it must be null")));
        }
        if let Some(token) = self.added_tokens.first() {
            return Err(foreign(format!(
                "it adds the token {:?}; characters are read without added tokens",
                token.content
            )));
        }
        if !self.model.merges.is_empty() {
            return Err(foreign(format!("it has {} merges; characters have none", self.model.merges.len())));
        }
        let tokens = self.model.vocab.by_id(&[])?;
        let characters = tokens.iter().enumerate().map(|(id, token)| {
            let mut characters = token.chars();
            match (characters.next(), characters.next()) {
                (Some(character), None) => Ok(character),
                _ => Err(format!("token {token:?} (id {id}) is not one character, and there are no merges")),
            }
        });
        Ok(Tokenizer::of_characters(characters.collect::<Result<_, _>>()?))
    }

    /// Bytes and their merges. An unknown token is never needed: every byte is known.
    fn byte_level(self) -> Result<Tokenizer, Refusal> {
        let compose = match self.normalizer.as_ref().map(|normalizer| kind(normalizer).unwrap_or("unnamed")) {
            None => false,
            Some("NFC") => true,
            Some(other) => return Err(foreign(format!("normalizer is {other}; null or \"NFC\" is read"))),
        };
        let split = self.split()?;
        self.check_added()?;
        let added: Vec<(String, u32)> =
            self.added_tokens.iter().map(|token| (token.content.clone(), token.id)).collect();
        let tokens = self.model.vocab.by_id(&added)?;
        let merges = merges_by_id(&self.model.merges, &tokens)?;
        let prefix = prefix(self.post_processor.as_ref(), &tokens)?;

        let mut bytes: Vec<Option<Vec<u8>>> = vec![None; tokens.len()];
        for (content, id) in &added {
            if let Some(slot) = bytes.get_mut(*id as usize) {
                *slot = Some(content.as_bytes().to_vec());
            }
        }
        for ((token, slot), id) in tokens.iter().zip(&mut bytes).zip(0usize..) {
            if slot.is_none() {
                let read = byte_table::read(token).map_err(|character| {
                    format!("token {token:?} (id {id}) has {character:?}, which stands for no byte")
                })?;
                *slot = Some(read);
            }
        }
        let added = self.added_tokens.iter().map(|token| Added { id: token.id, special: token.special });
        let parts = Parts {
            tokens: bytes.into_iter().flatten().collect(),
            merges,
            added: added.collect(),
            prefix,
            split,
            ignore_merges: self.model.ignore_merges,
            compose,
        };
        Ok(Tokenizer::of_bpe(Bpe::new(parts)?))
    }

    /// Refuses added tokens that take more of a text than themselves, or less of it than stands there.
    fn check_added(&self) -> Result<(), Refusal> {
        for token in &self.added_tokens {
            let flags =
                [("single_word", token.single_word), ("lstrip", token.lstrip), ("rstrip", token.rstrip)];
            if let Some((name, _)) = flags.iter().find(|(_, set)| *set) {
                return Err(foreign(format!(
                    "added token {:?} has {name}, which is not computed here",
                    token.content
                )));
            }
        }
        Ok(())
    }

    /// How text is cut: a byte-level pre-tokenizer with GPT-2's pattern or none, or a pattern we know before it.
    fn split(&self) -> Result<Split, Refusal> {
        let value = self.pre_tokenizer.as_ref().unwrap_or(&Value::Null);
        let steps = match (kind(value), value.get("pretokenizers").and_then(Value::as_array)) {
            (Some("Sequence"), Some(steps)) => steps.as_slice(),
            _ => std::slice::from_ref(value),
        };
        match steps {
            [bytes] => Ok(if byte_level(bytes)? { Split::Gpt2 } else { Split::None }),
            [first, bytes] if kind(first) == Some("Split") => {
                if byte_level(bytes)? {
                    return Err(foreign("pre_tokenizer cuts twice: use_regex must be false after a Split"));
                }
                pattern(first)
            }
            _ => Err(foreign(format!(
                "pre_tokenizer is {}; \"ByteLevel\", or \"Split\" and \"ByteLevel\", is read with decoder \"ByteLevel\"",
                steps.iter().map(|step| kind(step).unwrap_or("null")).collect::<Vec<_>>().join(", ")
            ))),
        }
    }
}

/// Whether a byte-level pre-tokenizer cuts by GPT-2's pattern.
fn byte_level(value: &Value) -> Result<bool, Refusal> {
    if kind(value) != Some("ByteLevel") {
        return Err(foreign(format!(
            "pre_tokenizer is {}; it must be \"ByteLevel\" as the decoder is",
            kind(value).unwrap_or("null")
        )));
    }
    let flag = |name: &str| match value.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(other) => Err(format!("pre_tokenizer.{name} is {other}, neither true nor false")),
    };
    if flag("add_prefix_space")? != Some(false) {
        return Err(foreign("pre_tokenizer.add_prefix_space must be false"));
    }
    Ok(flag("use_regex")?.unwrap_or(true))
}

/// The split whose pattern a `Split` names.
fn pattern(value: &Value) -> Result<Split, Refusal> {
    if value.get("behavior").and_then(Value::as_str) != Some("Isolated")
        || value.get("invert").is_some_and(|invert| *invert != Value::Bool(false))
    {
        return Err(foreign("pre_tokenizer.Split must have behavior \"Isolated\" and invert false"));
    }
    let regex = value.get("pattern").and_then(|pattern| pattern.get("Regex")?.as_str());
    let Some(regex) = regex else { return Err(foreign("pre_tokenizer.Split has no pattern.Regex")) };
    let known = Split::ALL.into_iter().find(|split| split.pattern() == Some(regex));
    known.ok_or_else(|| {
        let names: Vec<&str> =
            Split::ALL.into_iter().filter(|s| s.pattern().is_some()).map(Split::name).collect();
        foreign(format!(
            "pre_tokenizer.Split has the pattern {regex:?}; those of {} are read",
            names.join(", ")
        ))
    })
}

/// What a post-processor puts before a text; what would follow one is refused.
fn prefix(value: Option<&Value>, tokens: &[String]) -> Result<Vec<u32>, Refusal> {
    let Some(value) = value else { return Ok(Vec::new()) };
    match kind(value) {
        Some("ByteLevel") => Ok(Vec::new()),
        Some("Sequence") => {
            let steps = value.get("processors").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let mut ids = Vec::new();
            for step in steps {
                if kind(step) == Some("Sequence") {
                    return Err(foreign("post_processor is a Sequence of Sequences"));
                }
                let before = prefix(Some(step), tokens)?;
                ids.splice(0..0, before);
            }
            Ok(ids)
        }
        Some("TemplateProcessing") => template(value, tokens),
        other => Err(foreign(format!(
            "post_processor is {}; \"ByteLevel\" and \"TemplateProcessing\" are read",
            other.unwrap_or("unnamed")
        ))),
    }
}

/// The special tokens that a template puts before its one sequence.
fn template(value: &Value, tokens: &[String]) -> Result<Vec<u32>, Refusal> {
    let steps = value.get("single").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let Some((_, before)) = steps.split_last().filter(|(last, _)| last.get("Sequence").is_some()) else {
        return Err(foreign(
            "post_processor puts tokens after a text; only what stands before it is computed",
        ));
    };
    let mut ids = Vec::with_capacity(before.len());
    for step in before {
        let name = step.get("SpecialToken").and_then(|token| token.get("id")?.as_str());
        let Some(name) = name else {
            return Err(foreign("post_processor has a step that is no special token"));
        };
        let id = tokens.iter().position(|token| token == name);
        ids.push(
            id.ok_or_else(|| format!("post_processor names {name:?}, which the vocabulary lacks"))? as u32
        );
    }
    Ok(ids)
}

impl Model {
    fn check_form(&self) -> Result<(), Refusal> {
        if let Some(kind) = self.kind.as_ref().filter(|kind| *kind != "BPE") {
            return Err(foreign(format!("its model is of type {kind:?}; only \"BPE\" is read")));
        }
        let affixes = [
            ("continuing_subword_prefix", &self.continuing_subword_prefix),
            ("end_of_word_suffix", &self.end_of_word_suffix),
        ];
        if let Some((name, _)) =
            affixes.iter().find(|(_, affix)| affix.as_ref().is_some_and(|a| !a.is_empty()))
        {
            return Err(foreign(format!("model.{name} is set; it must be null")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
