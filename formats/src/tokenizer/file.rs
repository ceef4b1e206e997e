//! `tokenizer.json`, in and out: the two forms that are ours, and a sentence for any other.

use super::{Alphabet, BYTES, Tokenizer};
use crate::config::MAX_VOCABULARY;
use crate::error::{Error, Result};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use std::fmt;
use std::path::Path;

/// The tokenizer of a file's text; `origin` names it in errors.
pub(super) fn from_json(text: &str, origin: &Path) -> Result<Tokenizer> {
    let file: TokenizerFile = serde_json::from_str(text).map_err(|error| {
        let problem = foreign_model(text).unwrap_or_else(|| format!("not a tokenizer we know: {error}"));
        refuse(origin, problem)
    })?;
    file.check().map_err(|problem| refuse(origin, problem))
}

/// The whole text, ids in order.
pub(super) fn to_json(tokenizer: &Tokenizer) -> String {
    let (pre_tokenizer, decoder) = match tokenizer.alphabet {
        Alphabet::Characters { .. } => ("null", r#"{"type": "Fuse"}"#),
        Alphabet::Bytes => (
            r#"{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}"#,
            r#"{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}"#,
        ),
    };
    let tokens: Vec<String> = match &tokenizer.alphabet {
        Alphabet::Characters { tokens, .. } => {
            tokens.iter().map(|token| String::from_utf8_lossy(token).into_owned()).collect()
        }
        Alphabet::Bytes => BYTES.iter().map(|&byte| byte_character(byte).to_string()).collect(),
    };
    let entries: Vec<String> = tokens
        .into_iter()
        .enumerate()
        .map(|(id, token)| format!("      {}: {id}", Value::String(token)))
        .collect();
    format!(
        r#"{{
  "version": "1.0",
  "truncation": null,
  "padding": null,
  "added_tokens": [],
  "normalizer": null,
  "pre_tokenizer": {pre_tokenizer},
  "post_processor": null,
  "decoder": {decoder},
  "model": {{
    "type": "BPE",
    "dropout": null,
    "unk_token": null,
    "continuing_subword_prefix": null,
    "end_of_word_suffix": null,
    "fuse_unk": false,
    "byte_fallback": false,
    "ignore_merges": false,
    "vocab": {{
{}
    }},
    "merges": []
  }}
}}
"#,
        entries.join(",\n")
    )
}

/// The character that stands for `byte` in a byte-level file: itself where it prints, else the next free one
/// from U+0100 (Radford et al. 2019, `encoder.py`, `bytes_to_unicode`).
pub fn byte_character(byte: u8) -> char {
    let free = match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => return char::from(byte),
        0..=b' ' => u32::from(byte),
        0x7F..=0xA0 => u32::from(byte) - 0x7F + 33,
        0xAD => 67,
    };
    char::from_u32(256 + free).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn refuse(origin: &Path, problem: String) -> Error {
    Error::file(origin, problem, "use a tokenizer.json of characters or bytes as `trainer` writes it")
}

/// The sentence for a file whose model is of another kind, which no typed reading of ours can name.
fn foreign_model(text: &str) -> Option<String> {
    let file: Value = serde_json::from_str(text).ok()?;
    let kind = file.get("model")?.get("type")?.as_str()?;
    (kind != "BPE").then(|| format!("its model is of type {kind:?}; only \"BPE\" is read"))
}

/// A `tokenizer.json`, with the parts that must be absent kept as they came.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenizerFile {
    version: Option<String>,
    truncation: Option<Value>,
    padding: Option<Value>,
    #[serde(default)]
    added_tokens: Vec<Value>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    model: Model,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
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
    merges: Vec<Value>,
}

/// The vocabulary in file order; a map would silently keep the last of two equal tokens.
struct Vocabulary(Vec<(String, u32)>);

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Vocabulary, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Vocabulary;

            fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
                out.write_str("a map of tokens to ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Vocabulary(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl TokenizerFile {
    /// The tokenizer, or the first reason why this file is not one of the two forms we compute.
    fn check(self) -> Result<Tokenizer, String> {
        if let Some(version) = self.version.filter(|version| version != "1.0") {
            return Err(format!("version is {version:?}; \"1.0\" is read"));
        }
        let absent = [
            ("truncation", &self.truncation),
            ("padding", &self.padding),
            ("normalizer", &self.normalizer),
            ("post_processor", &self.post_processor),
            ("model.dropout", &self.model.dropout),
            ("model.unk_token", &self.model.unk_token),
        ];
        if let Some((name, _)) = absent.iter().find(|(_, value)| value.is_some()) {
            return Err(format!("{name} is set; it must be null"));
        }
        if !self.added_tokens.is_empty() {
            return Err("added_tokens is not empty; added tokens are not read yet".into());
        }
        self.model.check_form()?;
        let tokens = self.model.vocab.by_id()?;
        let kind = |value: &Option<Value>| {
            value.as_ref().and_then(|value| value.get("type")).and_then(Value::as_str).map(str::to_owned)
        };
        match (kind(&self.pre_tokenizer).as_deref(), kind(&self.decoder).as_deref()) {
            (None, Some("Fuse")) if self.pre_tokenizer.is_none() => characters_by_id(tokens),
            (Some("ByteLevel"), Some("ByteLevel")) => {
                let flag = |name| self.pre_tokenizer.as_ref().and_then(|value| value.get(name)?.as_bool());
                for name in ["add_prefix_space", "use_regex"] {
                    if flag(name) != Some(false) {
                        return Err(format!("pre_tokenizer.{name} must be false"));
                    }
                }
                bytes_by_id(tokens)
            }
            (pre_tokenizer, decoder) => Err(format!(
                "pre_tokenizer is {} and decoder is {}; null with \"Fuse\" (characters) or \"ByteLevel\" twice \
                 (bytes) is read",
                pre_tokenizer.unwrap_or("null"),
                decoder.unwrap_or("null")
            )),
        }
    }
}

impl Model {
    fn check_form(&self) -> Result<(), String> {
        if let Some(kind) = self.kind.as_ref().filter(|kind| *kind != "BPE") {
            return Err(format!("its model is of type {kind:?}; only \"BPE\" is read"));
        }
        let affixes = [
            ("continuing_subword_prefix", &self.continuing_subword_prefix),
            ("end_of_word_suffix", &self.end_of_word_suffix),
        ];
        if let Some((name, _)) =
            affixes.iter().find(|(_, affix)| affix.as_ref().is_some_and(|a| !a.is_empty()))
        {
            return Err(format!("model.{name} is set; it must be null"));
        }
        let flags = [
            ("fuse_unk", self.fuse_unk),
            ("byte_fallback", self.byte_fallback),
            ("ignore_merges", self.ignore_merges),
        ];
        if let Some((name, _)) = flags.iter().find(|(_, set)| *set) {
            return Err(format!("model.{name} is true; it must be false"));
        }
        if !self.merges.is_empty() {
            return Err(format!("it has {} merges; byte-pair merges are not read yet", self.merges.len()));
        }
        Ok(())
    }
}

impl Vocabulary {
    /// The tokens in id order, having proven that the ids are exactly `0..len` and the tokens distinct.
    fn by_id(self) -> Result<Vec<String>, String> {
        let Vocabulary(entries) = self;
        let count = entries.len();
        if count == 0 {
            return Err("its vocabulary is empty".into());
        }
        if count > MAX_VOCABULARY {
            return Err(format!("its vocabulary has {count} tokens; at most {MAX_VOCABULARY} are read"));
        }
        let mut tokens: Vec<Option<String>> = vec![None; count];
        for (token, id) in entries {
            if token.is_empty() {
                return Err(format!("the token of id {id} is empty"));
            }
            let Some(slot) = tokens.get_mut(id as usize) else {
                return Err(format!(
                    "token {token:?} has id {id}; {count} tokens must have the ids 0 to {} without gaps",
                    count - 1
                ));
            };
            if let Some(other) = slot {
                return Err(format!("tokens {other:?} and {token:?} both have id {id}"));
            }
            *slot = Some(token);
        }
        // As many ids in range as slots, none twice: every slot is filled.
        let tokens: Vec<String> = tokens.into_iter().flatten().collect();
        let mut sorted: Vec<&String> = tokens.iter().collect();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("token {:?} has two ids", pair[0]));
        }
        Ok(tokens)
    }
}

fn characters_by_id(tokens: Vec<String>) -> Result<Tokenizer, String> {
    let characters = tokens.iter().enumerate().map(|(id, token)| {
        let mut characters = token.chars();
        match (characters.next(), characters.next()) {
            (Some(character), None) => Ok(character),
            _ => Err(format!("token {token:?} (id {id}) is not one character, and there are no merges")),
        }
    });
    Ok(Tokenizer::of_characters(characters.collect::<Result<_, _>>()?))
}

fn bytes_by_id(tokens: Vec<String>) -> Result<Tokenizer, String> {
    for byte in 0..=u8::MAX {
        let expected = byte_character(byte).to_string();
        if tokens.get(usize::from(byte)) == Some(&expected) {
            continue;
        }
        match tokens.iter().position(|token| *token == expected) {
            Some(id) => return Err(format!("byte 0x{byte:02X} has id {id}; its id must be {byte}")),
            None => return Err(format!("byte 0x{byte:02X} (written {expected:?}) is missing")),
        }
    }
    match tokens.get(BYTES.len()) {
        Some(token) => Err(format!("token {token:?} is none of the 256 bytes, and there are no merges")),
        None => Ok(Tokenizer::bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Tokenizer> {
        Tokenizer::from_json(text, Path::new("tokenizer.json"))
    }

    fn refused(text: &str, words: &str) {
        let message = read(text).expect_err("must be refused").to_string();
        assert!(message.contains(words), "{message:?} does not say {words:?}");
        assert!(message.starts_with("tokenizer.json: "), "{message}");
    }

    /// Characters `a` and `b`, with one piece of the file exchanged.
    fn changed(from: &str, to: &str) -> String {
        let text = Tokenizer::characters("ab").expect("not empty").to_json();
        assert!(text.contains(from), "{from} is not in {text}");
        text.replacen(from, to, 1)
    }

    #[test]
    fn both_kinds_survive_their_file() {
        let odd = "\u{0}\t\n\r \"\\/{}é\u{7f}\u{ad}\u{2028}日\u{fffd}\u{10ffff}";
        for tokenizer in [Tokenizer::characters(odd).expect("not empty"), Tokenizer::bytes()] {
            let text = tokenizer.to_json();
            assert_eq!(read(&text).expect("our own file"), tokenizer);
            assert_eq!(text, tokenizer.to_json());
            let ids = tokenizer.encode(odd).expect("known");
            assert_eq!(tokenizer.decode(&ids).expect("known"), odd.as_bytes());
        }
    }

    #[test]
    fn key_order_and_permuted_ids_do_not_matter() {
        let text = r#"{"model": {"merges": [], "vocab": {"b": 0, "a": 1}}, "decoder": {"type": "Fuse"}}"#;
        let tokenizer = read(text).expect("the same form");
        assert_eq!(tokenizer.encode("ab").expect("known"), [1, 0]);
        assert_eq!(tokenizer.decode(&[1, 0]).expect("known"), b"ab");
    }

    #[test]
    fn bytes_stand_under_gpt2s_characters() {
        assert_eq!(byte_character(b'A'), 'A');
        assert_eq!(byte_character(b' '), 'Ġ');
        assert_eq!(byte_character(b'\n'), 'Ċ');
        assert_eq!(byte_character(0xAD), 'Ń');
        let mut all: Vec<char> = BYTES.iter().map(|&byte| byte_character(byte)).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 256);
        assert_eq!(all.last(), Some(&'Ń'));
    }

    #[test]
    fn broken_vocabularies_are_refused() {
        refused(&changed("\"b\": 1", "\"b\": 2"), "has id 2; 2 tokens must have the ids 0 to 1 without gaps");
        refused(&changed("\"b\": 1", "\"b\": 0"), "both have id 0");
        refused(&changed("\"b\": 1", "\"a\": 1"), "\"a\" has two ids");
        refused(&changed("\"b\": 1", "\"\": 1"), "is empty");
        refused(&changed("\"b\": 1", "\"bc\": 1"), "is not one character");
        refused(&changed("\"b\": 1", "\"b\": -1"), "not a tokenizer we know");
        refused(&changed("\"b\": 1", "\"b\": 1.0"), "not a tokenizer we know");
        refused(&changed("\"b\": 1", "\"b\": 4294967296"), "not a tokenizer we know");
        refused(&changed("\"a\": 0,\n      \"b\": 1", ""), "vocabulary is empty");
    }

    #[test]
    fn what_we_do_not_compute_is_refused_by_name() {
        refused(&changed("\"merges\": []", "\"merges\": [\"a b\"]"), "byte-pair merges are not read yet");
        refused(&changed("\"added_tokens\": []", "\"added_tokens\": [{}]"), "added tokens are not read yet");
        refused(&changed("\"normalizer\": null", "\"normalizer\": {\"type\": \"NFC\"}"), "normalizer is set");
        refused(&changed("\"truncation\": null", "\"truncation\": {}"), "truncation is set");
        refused(&changed("\"unk_token\": null", "\"unk_token\": \"a\""), "model.unk_token is set");
        refused(
            &changed("\"end_of_word_suffix\": null", "\"end_of_word_suffix\": \"w\""),
            "end_of_word_suffix",
        );
        refused(&changed("\"byte_fallback\": false", "\"byte_fallback\": true"), "byte_fallback is true");
        refused(&changed("\"version\": \"1.0\"", "\"version\": \"2.0\""), "version is \"2.0\"");
        refused(&changed("\"BPE\"", "\"WordLevel\""), "type \"WordLevel\"");
        refused(&changed("\"Fuse\"", "\"WordPiece\""), "decoder is WordPiece");
        refused(&changed("\"pre_tokenizer\": null", "\"pre_tokenizer\": {}"), "pre_tokenizer is");
        refused(&changed("\"padding\": null", "\"color\": null"), "unknown field `color`");
        refused(&changed("\"padding\": null", "\"truncation\": null"), "duplicate field");
        refused("", "not a tokenizer we know");
        refused(
            r#"{"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}}"#,
            "type \"Unigram\"; only",
        );
        refused(&"[".repeat(100_000), "not a tokenizer we know");
    }

    #[test]
    fn a_byte_file_must_have_every_byte_at_its_value() {
        let text = Tokenizer::bytes().to_json();
        refused(&text.replacen("\"A\": 65", "\"日\": 65", 1), "byte 0x41 (written \"A\") is missing");
        refused(
            &text.replacen("\"A\": 65", "\"A\": 66", 1).replacen("\"B\": 66", "\"B\": 65", 1),
            "byte 0x41 has id 66",
        );
        refused(&text.replacen("\"A\": 65", "\"A\": 65,\"AB\": 256", 1), "none of the 256 bytes");
        refused(
            &text.replacen("\"add_prefix_space\": false", "\"add_prefix_space\": true", 1),
            "add_prefix_space",
        );
        refused(&text.replacen(", \"use_regex\": false", "", 1), "pre_tokenizer.use_regex must be false");
    }

    #[test]
    fn every_truncation_and_bit_flip_of_a_file_is_an_error_or_a_tokenizer() {
        let text = Tokenizer::characters("ab\n").expect("not empty").to_json();
        for end in 0..text.trim_end().len() {
            assert!(read(&text[..end]).is_err(), "cut at {end}");
        }
        for place in 0..text.len() {
            for bit in 0..8 {
                let mut bytes = text.clone().into_bytes();
                bytes[place] ^= 1 << bit;
                if let Ok(Ok(tokenizer)) = String::from_utf8(bytes).map(|text| read(&text)) {
                    assert_eq!(tokenizer.vocabulary(), 3);
                }
            }
        }
    }
}
