//! Text to ids and back: characters or bytes, as Hugging Face `tokenizer.json` files.
//!
//! `file` reads and writes those files, `stream` turns bytes that arrive in pieces into text.
//!
//! Both kinds are byte-pair models without merges, so `tokenizers` and `transformers` open the files unchanged:
//! characters with no pre-tokenizer and a `Fuse` decoder, bytes through GPT-2's byte-to-unicode table. What is
//! read is checked whole at load; encoding and decoding then index nothing they have not proven.

mod file;
mod stream;

pub use file::byte_character;
pub use stream::Utf8Stream;

use crate::checkpoint::source;
use crate::error::{Error, Result};
use std::collections::BTreeSet;
use std::path::Path;

/// Largest `tokenizer.json` that is read; the field's largest vocabularies need about half of it.
const MOST_BYTES: u64 = 64 << 20;

/// Every byte once, so that a token of a byte vocabulary is a slice of it.
static BYTES: [u8; 256] = {
    let mut bytes = [0; 256];
    let mut value = 0;
    while value < 256 {
        bytes[value] = value as u8;
        value += 1;
    }
    bytes
};

/// Turns text into ids and ids into bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Tokenizer {
    alphabet: Alphabet,
}

#[derive(Clone, Debug, PartialEq)]
enum Alphabet {
    /// One id a character.
    Characters {
        /// Sorted by character.
        ids: Vec<(char, u32)>,
        /// By id.
        tokens: Vec<Character>,
    },
    /// One id a byte, the byte's value.
    Bytes,
}

/// A character's UTF-8 form, kept in place so that a vocabulary is one allocation.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Character {
    bytes: [u8; 4],
    len: u8,
}

impl Character {
    fn new(character: char) -> Character {
        let mut bytes = [0; 4];
        let len = character.encode_utf8(&mut bytes).len() as u8;
        Character { bytes, len }
    }
}

impl Tokenizer {
    /// The lecture's vocabulary: the distinct characters of `text`, sorted.
    pub fn characters(text: &str) -> Result<Tokenizer> {
        if text.is_empty() {
            return Err(Error::Usage("the text is empty, so it has no characters to learn from".into()));
        }
        // A set, not a sorted copy: the text may be most of what fits in memory.
        let characters: BTreeSet<char> = text.chars().collect();
        Ok(Tokenizer::of_characters(characters.into_iter().collect()))
    }

    /// One id for each of the 256 bytes: any text encodes.
    pub fn bytes() -> Tokenizer {
        Tokenizer { alphabet: Alphabet::Bytes }
    }

    /// Characters that are distinct, by id.
    fn of_characters(characters: Vec<char>) -> Tokenizer {
        let tokens = characters.iter().map(|&character| Character::new(character)).collect();
        let mut ids: Vec<(char, u32)> = characters.into_iter().zip(0..).collect();
        ids.sort_unstable();
        Tokenizer { alphabet: Alphabet::Characters { ids, tokens } }
    }

    /// Reads a `tokenizer.json`.
    pub fn open(path: &Path) -> Result<Tokenizer> {
        Tokenizer::from_json(&source::read_text(path, MOST_BYTES)?, path)
    }

    /// Reads the text of a `tokenizer.json`; `origin` names it in errors.
    pub fn from_json(text: &str, origin: &Path) -> Result<Tokenizer> {
        file::from_json(text, origin)
    }

    /// The text of a `tokenizer.json` that [`Tokenizer::from_json`] and Hugging Face's libraries read.
    pub fn to_json(&self) -> String {
        file::to_json(self)
    }

    /// Number of ids; they are `0..vocabulary`.
    pub fn vocabulary(&self) -> usize {
        match &self.alphabet {
            Alphabet::Characters { tokens, .. } => tokens.len(),
            Alphabet::Bytes => BYTES.len(),
        }
    }

    /// The ids of `text`; a character outside the vocabulary is an error that names it and its place.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.alphabet {
            Alphabet::Characters { ids, .. } => text
                .char_indices()
                .map(|(position, character)| {
                    let found = ids.binary_search_by_key(&character, |&(known, _)| known);
                    found.map(|index| ids[index].1).map_err(|_| {
                        Error::Usage(format!(
                            "the character {character:?} (U+{:04X}) at byte {position} is not among the {} that \
                             this tokenizer knows",
                            u32::from(character),
                            ids.len()
                        ))
                    })
                })
                .collect(),
            Alphabet::Bytes => Ok(text.bytes().map(u32::from).collect()),
        }
    }

    /// The bytes of one id, if there is such an id.
    pub fn token(&self, id: u32) -> Option<&[u8]> {
        let id = usize::try_from(id).ok()?;
        match &self.alphabet {
            Alphabet::Characters { tokens, .. } => tokens.get(id).map(|token| &**token),
            Alphabet::Bytes => BYTES.get(id..id + 1),
        }
    }

    /// The bytes of `ids`, one after the other; with a byte vocabulary they need not be UTF-8.
    pub fn decode(&self, ids: &[u32]) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(ids.len());
        for (position, &id) in ids.iter().enumerate() {
            let token = self.token(id).ok_or_else(|| {
                Error::Usage(format!(
                    "id {id} at position {position} is outside the vocabulary, whose ids are 0 to {}",
                    self.vocabulary() - 1
                ))
            })?;
            bytes.extend_from_slice(token);
        }
        Ok(bytes)
    }
}

impl std::ops::Deref for Character {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_the_sorted_set_of_the_text() {
        let tokenizer = Tokenizer::characters("hello\n wörld").expect("not empty");
        assert_eq!(tokenizer.vocabulary(), 10);
        assert_eq!(tokenizer.token(0), Some(&b"\n"[..]));
        assert_eq!(tokenizer.token(9), Some("ö".as_bytes()));
        assert_eq!(tokenizer.token(10), None);
        assert_eq!(tokenizer.encode("\n hö").expect("known"), [0, 1, 4, 9]);
        assert_eq!(tokenizer.decode(&[9, 4, 1, 0]).expect("known"), "öh \n".as_bytes());
    }

    #[test]
    fn an_unknown_character_is_named_with_its_place() {
        let tokenizer = Tokenizer::characters("aé").expect("not empty");
        let message = tokenizer.encode("éa日").expect_err("unknown").to_string();
        assert!(message.contains("'日' (U+65E5) at byte 3"), "{message}");
        let message = tokenizer.decode(&[0, 2]).expect_err("outside").to_string();
        assert!(message.contains("id 2 at position 1"), "{message}");
        assert!(Tokenizer::bytes().decode(&[u32::MAX]).is_err());
    }

    #[test]
    fn an_empty_text_has_no_vocabulary() {
        assert_eq!(Tokenizer::characters("").expect_err("empty").exit_code(), 2);
    }
}
