//! GPT-2's pair of files: `vocab.json`, a map of tokens to ids, and `merges.txt`, one merge a line (Radford et al.
//! 2019). They say neither how text is cut, which is GPT-2's way, nor which tokens are special: those that no merge
//! makes.

use super::bpe::{Bpe, Parts};
use super::special::Added;
use super::vocabulary::{Pair, Vocabulary, merges_by_id};
use super::{Split, Tokenizer, byte_table};
use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::HashSet;
use std::fmt::Write;
use std::path::Path;

/// What the two files are called, by the field and as they were first published.
pub(super) const NAMES: [(&str, &str); 2] = [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")];

/// The tokenizer of the two files' texts; the paths name them in errors.
pub(super) fn read(
    vocabulary: &str,
    vocabulary_path: &Path,
    merges: &str,
    merges_path: &Path,
) -> Result<Tokenizer> {
    const HELP: &str = "use a vocabulary and merges of byte-level byte-pair encoding, as GPT-2's";
    let refuse = |problem: String| Error::file(vocabulary_path, problem, HELP);
    let vocabulary: Vocabulary = serde_json::from_str(vocabulary)
        .map_err(|error| refuse(format!("not a map of tokens to ids: {error}")))?;
    let tokens = vocabulary.by_id(&[]).map_err(refuse)?;
    let mut pairs = Vec::new();
    for (line, number) in merges.lines().zip(1usize..) {
        if line.is_empty() || line.starts_with("#version") {
            continue;
        }
        pairs.push(Pair::of_line(line).ok_or_else(|| {
            Error::file(
                merges_path,
                format!("line {number} is {line:?}, not two tokens with a space between"),
                HELP,
            )
        })?);
    }
    let merges = merges_by_id(&pairs, &tokens).map_err(|problem| Error::file(merges_path, problem, HELP))?;

    let made: HashSet<String> = pairs.into_iter().map(|Pair(left, right)| left + &right).collect();
    let mut added = Vec::new();
    let mut bytes = Vec::with_capacity(tokens.len());
    for (token, id) in tokens.iter().zip(0..) {
        match byte_table::read(token) {
            Ok(read) if read.len() == 1 || made.contains(token) => bytes.push(read),
            _ => {
                added.push(Added { id, special: true });
                bytes.push(token.as_bytes().to_vec());
            }
        }
    }
    let parts = Parts { tokens: bytes, merges, added, split: Split::Gpt2, ..Parts::default() };
    Bpe::new(parts).map(Tokenizer::of_bpe).map_err(refuse)
}

/// The texts of the two files.
pub(super) fn write(bpe: &Bpe) -> (String, String) {
    let tokens: Vec<String> = (0..bpe.lexicon().vocabulary() as u32).map(|id| bpe.written(id)).collect();
    let entry = |(id, token): (usize, &String)| format!("{}: {id}", Value::String(token.clone()));
    let entries: Vec<String> = tokens.iter().enumerate().map(entry).collect();
    let mut merges = String::from("#version: 0.2\n");
    for &(left, right) in bpe.lexicon().merges() {
        let (left, right) = (&tokens[left as usize], &tokens[right as usize]);
        // Writing to a string cannot fail.
        let _ = writeln!(merges, "{left} {right}");
    }
    (format!("{{{}}}\n", entries.join(", ")), merges)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(vocabulary: &str, merges: &str) -> Result<Tokenizer> {
        read(vocabulary, Path::new("vocab.json"), merges, Path::new("merges.txt"))
    }

    /// The bytes in GPT-2's order and what follows them.
    fn vocabulary(more: &str) -> String {
        let order = byte_table::in_character_order();
        let entry = |(id, &byte)| format!("{}: {id}", Value::String(byte_table::character(byte).to_string()));
        let entries: Vec<String> = order.iter().enumerate().map(entry).collect();
        format!("{{{}{more}}}", entries.join(", "))
    }

    fn refused(vocabulary: &str, merges: &str, words: &str) {
        let error = pair(vocabulary, merges).expect_err(words);
        assert!(error.to_string().contains(words), "{error} does not say {words:?}");
        assert_eq!(error.exit_code(), 3);
    }

    #[test]
    fn what_no_merge_makes_is_special() {
        let vocabulary = vocabulary(", \"ab\": 256, \"<|endoftext|>\": 257");
        let tokenizer = pair(&vocabulary, "#version: 0.2\na b\n\n").expect("a pair");
        assert_eq!(tokenizer.end_of_text(), Some(257));
        assert_eq!(tokenizer.split(), Some(Split::Gpt2));
        assert_eq!(tokenizer.encode_with_special("ab<|endoftext|>").expect("text"), [256, 257]);
        let (again, merges) = tokenizer.to_pair().expect("it has merges");
        assert_eq!(pair(&again, &merges).expect("our own files"), tokenizer);
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let good = vocabulary(", \"ab\": 256");
        refused(&good, "a b\nab c", "merge 1 joins \"ab\" and \"c\" into what the vocabulary lacks");
        refused(&good, "a b\nabc d", "merge 1 names \"abc\", which the vocabulary lacks");
        refused(&good, "a b\nab", "merges.txt: line 2 is \"ab\"");
        refused(&good, "a  b", "line 1 is");
        refused(&vocabulary(", \"ab\": 257"), "a b", "without gaps");
        refused(&vocabulary(", \"ab\": 255"), "a b", "both have id 255");
        refused(&good.replacen("\"!\": 0", "\"!!\": 0", 1), "a b", "byte 0x21 (written \"!\") is missing");
        refused("[]", "", "not a map of tokens to ids");
        refused("{}", "", "vocabulary is empty");
    }
}
