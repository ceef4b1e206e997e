//! The parts of a `tokenizer.json` whose characters fall back on bytes: how blanks are written, and how they are read back.

use super::{Refusal, TokenizerFile, foreign, kind, prefix};
use crate::tokenizer::Tokenizer;
use crate::tokenizer::fallback::{Blanks, Fallback, Parts};
use crate::tokenizer::special::Added;
use crate::tokenizer::vocabulary::merges_by_id;
use serde_json::{Value, json};

/// The character that stands for a blank.
const BLANK: &str = "\u{2581}";

/// The step of a normalizer, or of a decoder, that puts one string for another.
fn replacing(from: &str, to: &str) -> Value {
    json!({"type": "Replace", "pattern": {"String": from}, "content": to})
}

/// The normalizer and the pre-tokenizer that write blanks so.
pub(super) fn written(blanks: Blanks) -> [Value; 2] {
    let replace = replacing(" ", BLANK);
    let prepend = json!({"type": "Prepend", "prepend": BLANK});
    let metaspace = |scheme: &str| {
        let step =
            json!({"type": "Metaspace", "replacement": BLANK, "prepend_scheme": scheme, "split": false});
        [Value::Null, step]
    };
    match blanks {
        Blanks::Prepended => [json!({"type": "Sequence", "normalizers": [prepend, replace]}), Value::Null],
        Blanks::Replaced => [replace, Value::Null],
        Blanks::First => metaspace("first"),
        Blanks::Always => metaspace("always"),
        Blanks::Never => metaspace("never"),
    }
}

/// The decoder that reads blanks and bytes back, and takes off the one before a text if `strip`.
pub(super) fn decoder(strip: bool) -> Value {
    let mut steps = vec![replacing(BLANK, " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if strip {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}

impl TokenizerFile {
    /// Characters and their merges, with bytes for the characters that are no token.
    pub(super) fn fallback(self) -> Result<Tokenizer, Refusal> {
        let blanks = self.blanks()?;
        let given = self.decoder.clone().unwrap_or_default();
        let Some(strip) = [true, false].into_iter().find(|&strip| decoder(strip) == given) else {
            return Err(foreign(format!(
                "decoder is {given}; with model.byte_fallback it must be {}, with or without \"Strip\"",
                decoder(true)
            )));
        };
        if self.model.ignore_merges {
            return Err(foreign("model.ignore_merges is true; with model.byte_fallback it must be false"));
        }
        self.check_added()?;
        let added: Vec<(String, u32)> =
            self.added_tokens.iter().map(|token| (token.content.clone(), token.id)).collect();
        let spelt = self.model.vocab.by_id(&added)?;
        let merges = merges_by_id(&self.model.merges, &spelt)?;
        let unknown = match self.model.unk_token.as_ref().map(Value::as_str) {
            None => None,
            Some(name) => {
                let id = name.and_then(|name| spelt.iter().position(|token| token == name));
                Some(id.ok_or_else(|| {
                    format!("model.unk_token is {}, which the vocabulary lacks", name.unwrap_or("no text"))
                })? as u32)
            }
        };
        let normalized = self.added_tokens.iter().filter(|token| token.normalized);
        let added = self.added_tokens.iter().map(|token| Added { id: token.id, special: token.special });
        let parts = Parts {
            prefix: prefix(self.post_processor.as_ref(), &spelt)?,
            spelt,
            merges,
            added: added.collect(),
            normalized: normalized.map(|token| token.id).collect(),
            blanks,
            strip,
            unknown,
        };
        Ok(Tokenizer::of_fallback(Fallback::new(parts)?))
    }

    /// How blanks are written: by the normalizer, or by the pre-tokenizer.
    fn blanks(&self) -> Result<Blanks, Refusal> {
        let given = [&self.normalizer, &self.pre_tokenizer].map(|part| part.clone().unwrap_or_default());
        if kind(&given[1]) == Some("Metaspace") && given[0].is_null() {
            return metaspace(&given[1]);
        }
        [Blanks::Prepended, Blanks::Replaced].into_iter().find(|&blanks| written(blanks) == given).ok_or_else(|| {
            foreign(format!(
                "normalizer is {} and pre_tokenizer {}; with model.byte_fallback the normalizers \"Prepend\" and \
                 \"Replace\" of \"{BLANK}\" are read, or the pre_tokenizer \"Metaspace\"",
                given[0], given[1]
            ))
        })
    }
}

/// How a pre-tokenizer `Metaspace` puts a blank before a text.
fn metaspace(value: &Value) -> Result<Blanks, Refusal> {
    if value.get("replacement").and_then(Value::as_str) != Some(BLANK) {
        return Err(foreign(format!("pre_tokenizer.replacement must be \"{BLANK}\"")));
    }
    // Where nothing is said it cuts.
    if value.get("split") != Some(&Value::Bool(false)) {
        return Err(foreign("pre_tokenizer.split must be false"));
    }
    let scheme = match value.get("prepend_scheme") {
        None if value.get("add_prefix_space") == Some(&Value::Bool(false)) => "never",
        None => "always",
        Some(scheme) => scheme.as_str().unwrap_or_default(),
    };
    let known = [("first", Blanks::First), ("always", Blanks::Always), ("never", Blanks::Never)];
    let found = known.into_iter().find(|(name, _)| *name == scheme).map(|(_, blanks)| blanks);
    found.ok_or_else(|| {
        foreign(format!("pre_tokenizer.prepend_scheme is {scheme:?}; first, always and never are read"))
    })
}
