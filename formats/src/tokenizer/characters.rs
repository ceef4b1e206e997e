//! The lecture's vocabulary: one id a character. Encoding fails at a character it lacks, and names it.

use crate::error::{Error, Result};

/// Distinct characters and their ids.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Characters {
    /// Sorted by character.
    ids: Vec<(char, u32)>,
    /// By id.
    tokens: Vec<Character>,
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

impl Characters {
    /// Characters that are distinct, by id.
    pub(super) fn new(characters: Vec<char>) -> Characters {
        let tokens = characters.iter().map(|&character| Character::new(character)).collect();
        let mut ids: Vec<(char, u32)> = characters.into_iter().zip(0..).collect();
        ids.sort_unstable();
        Characters { ids, tokens }
    }

    pub(super) fn vocabulary(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn token(&self, id: u32) -> Option<&[u8]> {
        self.tokens.get(id as usize).map(|token| &token.bytes[..usize::from(token.len)])
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        text.char_indices()
            .map(|(position, character)| {
                let found = self.ids.binary_search_by_key(&character, |&(known, _)| known);
                found.map(|index| self.ids[index].1).map_err(|_| {
                    Error::Usage(format!(
                        "the character {character:?} (U+{:04X}) at byte {position} is not among the {} that \
                         this tokenizer knows",
                        u32::from(character),
                        self.ids.len()
                    ))
                })
            })
            .collect()
    }
}
