//! A tokenizer in llama.cpp's terms, so that it cuts any text into the same ids.
//!
//! Byte-level pairs are llama.cpp's model `gpt2`: tokens as byte-level files write them, merges, the name of the
//! pre-tokenizer. A character of several bytes is such a token too, with merges that put it together byte by byte; an
//! intermediate piece of them needs no id. That model always has a token that ends a text, id 11 if the file names none.
//! An alphabet of single bytes without one is the model `rwkv` instead: the longest token first, and no token ends.

use super::gguf::Value;
use formats::checkpoint::Directory;
use formats::tokenizer::{Split, TokenKind, Tokenizer, byte_character};
use formats::{Error, Result};
use std::collections::HashSet;

/// What llama.cpp calls its kinds of tokens.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// The metadata of the directory's tokenizer.
pub(super) fn metadata(directory: &Directory, notes: &mut Vec<String>) -> Result<Vec<(String, Value)>> {
    let Some(tokenizer) = &directory.tokenizer else {
        notes.push("the model has no tokenizer: llama.cpp will take and give ids only".to_owned());
        return Ok(list([("model", Value::Text("none".to_owned()))]));
    };
    let known = tokenizer.vocabulary() as u32;
    let tokens: Vec<&[u8]> = (0..known).filter_map(|id| tokenizer.token(id)).collect();
    let end = directory.generation.eos_token_id.first().copied().or_else(|| tokenizer.end_of_text());
    let alphabet = tokenizer.merges().is_empty() && (0..known).all(|id| kind(tokenizer, id) == NORMAL);
    let whole = tokens.len() == directory.config.vocabulary;
    if alphabet && whole && end.is_none() && tokens.iter().all(|token| token.len() == 1) {
        return Ok(list([
            ("model", Value::Text("rwkv".to_owned())),
            ("tokens", Value::Texts(tokens.iter().map(|token| escaped(token)).collect())),
            ("token_type", Value::Integers(vec![NORMAL; tokens.len()])),
        ]));
    }
    let mut written: Vec<String> = (0..known).filter_map(|id| tokenizer.written(id)).collect();
    let mut kinds: Vec<i32> = (0..known).map(|id| kind(tokenizer, id)).collect();
    // Rows of the model that no token has: some families round their number up.
    for id in known..directory.config.vocabulary as u32 {
        written.push(format!("[PAD{id}]"));
        kinds.push(UNUSED);
    }
    refuse_twins(directory, &written)?;
    let end = end.unwrap_or_else(|| {
        let last = known.saturating_sub(1);
        notes.push(format!(
            "no token ends a text, and llama.cpp always has one: it will end at the last id, {last} ({:?})",
            String::from_utf8_lossy(tokens.last().copied().unwrap_or_default())
        ));
        last
    });
    let (begin, begins) = match (tokenizer.prefix(), directory.generation.bos_token_id) {
        (&[], Some(id)) => (id, false),
        (&[], None) => (tokenizer.end_of_text().unwrap_or(0), false),
        (&[id, ref others @ ..], _) => {
            if !others.is_empty() {
                notes.push(format!(
                    "a prompt begins with {} ids here and with the first of them in llama.cpp",
                    1 + others.len()
                ));
            }
            (id, true)
        }
    };
    let merges = match alphabet {
        true => assembly(&tokens),
        false => merges(tokenizer),
    };
    Ok(list([
        ("model", Value::Text("gpt2".to_owned())),
        ("pre", Value::Text(pre_tokenizer(directory, tokenizer, notes)?.to_owned())),
        ("tokens", Value::Texts(written)),
        ("token_type", Value::Integers(kinds)),
        ("merges", Value::Texts(merges)),
        ("bos_token_id", Value::Count(begin)),
        ("eos_token_id", Value::Count(end)),
        ("add_bos_token", Value::Bool(begins)),
        ("add_eos_token", Value::Bool(false)),
    ]))
}

fn list<const N: usize>(pairs: [(&str, Value); N]) -> Vec<(String, Value)> {
    pairs.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect()
}

fn kind(tokenizer: &Tokenizer, id: u32) -> i32 {
    match tokenizer.kind(id) {
        Some(TokenKind::Special) => CONTROL,
        Some(TokenKind::Added) => USER_DEFINED,
        Some(TokenKind::Normal) | None => NORMAL,
    }
}

/// llama.cpp ends the process at two tokens of one spelling.
fn refuse_twins(directory: &Directory, written: &[String]) -> Result<()> {
    let mut known = HashSet::new();
    match written.iter().find(|token| !known.insert(token.as_str())) {
        Some(token) => Err(Error::config(
            directory.path.display().to_string(),
            "tokenizer",
            format!("one that writes two tokens {token:?}"),
            "a spelling of its own for each token: llama.cpp tells them apart by nothing else",
        )),
        None => Ok(()),
    }
}

/// llama.cpp's name of how text is cut before it is merged.
fn pre_tokenizer(
    directory: &Directory,
    tokenizer: &Tokenizer,
    notes: &mut Vec<String>,
) -> Result<&'static str> {
    if tokenizer.composes() {
        notes.push(
            "the tokenizer composes characters first, and llama.cpp takes them as they come".to_owned(),
        );
    }
    match tokenizer.split() {
        // Without merges nothing depends on it.
        None => Ok("gpt-2"),
        Some(_) if tokenizer.merges().is_empty() => Ok("gpt-2"),
        Some(Split::Gpt2) => Ok("gpt-2"),
        Some(Split::Llama3) if tokenizer.ignores_merges() => Ok("llama-bpe"),
        // The same pattern, without taking whole words as they stand.
        Some(Split::Llama3) => Ok("dbrx"),
        Some(Split::Cl100k) => {
            notes.push(
                "llama.cpp cuts text as Llama 3 does, which is cl100k but for blank lines at a text's end"
                    .to_owned(),
            );
            Ok("dbrx")
        }
        Some(Split::Qwen2) => Ok("qwen2"),
        Some(Split::None) => Err(Error::config(
            directory.path.display().to_string(),
            "tokenizer",
            "merged across the whole text",
            "one that cuts text first (gpt2, llama3, cl100k, qwen2): llama.cpp has no pre-tokenizer that does not",
        )),
    }
}

/// The merges as pairs of written tokens.
fn merges(tokenizer: &Tokenizer) -> Vec<String> {
    let written = |id| tokenizer.written(id).unwrap_or_default();
    tokenizer.merges().iter().map(|&(left, right)| format!("{} {}", written(left), written(right))).collect()
}

/// Bytes as the model `rwkv` reads them: printable ones as they are, others as `\xNN`.
fn escaped(bytes: &[u8]) -> String {
    let escape = |&byte: &u8| match byte {
        b'\\' => "\\\\".to_owned(),
        b' '..=b'~' => char::from(byte).to_string(),
        _ => format!("\\x{byte:02x}"),
    };
    bytes.iter().map(escape).collect()
}

/// Bytes as byte-level files write them.
fn spelt(bytes: &[u8]) -> String {
    bytes.iter().copied().map(byte_character).collect()
}

/// The merges that put each token together from the left.
fn assembly(tokens: &[&[u8]]) -> Vec<String> {
    let mut known = HashSet::new();
    let pieces = tokens.iter().flat_map(|token| (1..token.len()).map(|last| &token[..=last]));
    pieces
        .filter(|piece| known.insert(*piece))
        .map(|piece| {
            let (left, right) = piece.split_at(piece.len() - 1);
            format!("{} {}", spelt(left), spelt(right))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_put_together_from_the_left() {
        // A, é and è share their first byte; the dash has three.
        let tokens = ["A", "é", "è", "—"].map(str::as_bytes);
        assert_eq!(assembly(&tokens), ["Ã ©", "Ã ¨", "â Ģ", "âĢ Ķ"]);
    }

    #[test]
    fn every_byte_has_a_spelling_of_its_own() {
        let mut all: Vec<String> = (0..=u8::MAX).map(|byte| escaped(&[byte])).collect();
        assert_eq!((all[0].as_str(), all[92].as_str(), all[65].as_str()), ("\\x00", "\\\\", "A"));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 256);
    }
}
