//! The lecture's vocabulary: one id a character. Encoding fails at a character it lacks, and names it.

use crate::error::{Error, Result};

/// Distinct characters and their ids.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Characters {
    /// Sorted by character.
    ids: Vec<(char, u32)>,
    /// Of the characters that are one byte each, which most texts are made of.
    ascii: [Option<u32>; 128],
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
        let mut ascii = [None; 128];
        for &(character, id) in &ids {
            if let Some(known) = ascii.get_mut(character as usize) {
                *known = Some(id);
            }
        }
        Characters { ids, ascii, tokens }
    }

    /// The distinct characters of a text, sorted. Takes a bit a character there could be, whatever the text's length.
    pub(super) fn of(text: &str) -> Vec<char> {
        let mut seen = vec![0u64; (char::MAX as usize + 1) / 64];
        for character in text.chars() {
            seen[character as usize / 64] |= 1 << (character as usize % 64);
        }
        // Most of the words are empty: a text has few of the characters there could be.
        let words = (0u32..).zip(seen).filter(|(_, word)| *word != 0);
        let numbers = words.flat_map(|(index, word)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| 64 * index + bit)
        });
        numbers.filter_map(char::from_u32).collect()
    }

    fn id(&self, character: char) -> Option<u32> {
        match self.ascii.get(character as usize) {
            Some(id) => *id,
            None => {
                let found = self.ids.binary_search_by_key(&character, |&(known, _)| known);
                found.ok().map(|index| self.ids[index].1)
            }
        }
    }

    pub(super) fn vocabulary(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn token(&self, id: u32) -> Option<&[u8]> {
        self.tokens.get(id as usize).map(|token| &token.bytes[..usize::from(token.len)])
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len());
        for (position, character) in text.char_indices() {
            ids.push(self.id(character).ok_or_else(|| {
                Error::Usage(format!(
                    "the character {character:?} (U+{:04X}) at byte {position} is not among the {} that this tokenizer \
                     knows",
                    u32::from(character),
                    self.ids.len()
                ))
            })?);
        }
        Ok(ids)
    }
}
