//! A tokenizer in llama.cpp's terms, so that it cuts any text into the same ids.
//!
//! Byte-level pairs are llama.cpp's model `gpt2`: tokens through GPT-2's byte-to-unicode table, merges, the name of the
//! pre-tokenizer. A character of several bytes is such a token too, with merges that put it together byte by byte; an
//! intermediate piece of them needs no id. That model always has a token that ends a text, id 11 if the file names none.
//! An alphabet of single bytes without one is the model `rwkv` instead: the longest token first, and no token ends.

use super::gguf::Value;
use formats::Result;
use formats::checkpoint::Directory;
use formats::tokenizer::byte_character;
use std::collections::HashSet;

/// What llama.cpp calls an ordinary token.
const NORMAL: i32 = 1;

/// The metadata of the directory's tokenizer.
pub(super) fn metadata(directory: &Directory, notes: &mut Vec<String>) -> Result<Vec<(String, Value)>> {
    let Some(tokenizer) = &directory.tokenizer else {
        notes.push("the model has no tokenizer: llama.cpp will take and give ids only".to_owned());
        return Ok(list([("model", Value::Text("none".to_owned()))]));
    };
    let tokens: Vec<&[u8]> =
        (0..tokenizer.vocabulary() as u32).map(|id| tokenizer.token(id).unwrap_or_default()).collect();
    let end = directory.generation.eos_token_id.first().copied();
    let types = Value::Integers(vec![NORMAL; tokens.len()]);
    if end.is_none() && tokens.iter().all(|token| token.len() == 1) {
        return Ok(list([
            ("model", Value::Text("rwkv".to_owned())),
            ("tokens", Value::Texts(tokens.iter().map(|token| escaped(token)).collect())),
            ("token_type", types),
        ]));
    }
    let last = tokens.len().saturating_sub(1) as u32;
    if end.is_none() {
        notes.push(format!(
            "no token ends a text, and llama.cpp always has one: it will end at the last id, {last} ({:?})",
            String::from_utf8_lossy(tokens.last().copied().unwrap_or_default())
        ));
    }
    let end = end.unwrap_or(last);
    let begin = directory.generation.bos_token_id.unwrap_or(0);
    Ok(list([
        ("model", Value::Text("gpt2".to_owned())),
        ("pre", Value::Text("gpt-2".to_owned())),
        ("tokens", Value::Texts(tokens.iter().map(|token| spelt(token)).collect())),
        ("token_type", types),
        ("merges", Value::Texts(assembly(&tokens))),
        ("bos_token_id", Value::Count(begin)),
        ("eos_token_id", Value::Count(end)),
        ("add_bos_token", Value::Bool(false)),
        ("add_eos_token", Value::Bool(false)),
    ]))
}

fn list<const N: usize>(pairs: [(&str, Value); N]) -> Vec<(String, Value)> {
    pairs.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect()
}

/// Bytes as GPT-2's table writes them.
fn spelt(bytes: &[u8]) -> String {
    bytes.iter().copied().map(byte_character).collect()
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
