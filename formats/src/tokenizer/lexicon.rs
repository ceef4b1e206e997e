//! What every vocabulary with merges has, whatever its symbols are: the bytes of each id, the merges, the tokens that are
//! looked for in the text, and what a text for the model begins with. Holds no alphabet and cuts no text.

use super::special::{Added, Finder, LONGEST};
use super::table::{Merged, PairTable};
use std::collections::HashMap;

/// The bytes of all tokens in one piece.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tokens {
    bytes: Vec<u8>,
    /// Where each token begins, and where the last ends.
    starts: Vec<u32>,
}

impl Tokens {
    pub(super) fn new(tokens: &[Vec<u8>]) -> Result<Tokens, String> {
        let bytes = tokens.concat();
        let mut starts = vec![0];
        let mut end = 0usize;
        for token in tokens {
            end += token.len();
            starts.push(u32::try_from(end).map_err(|_| "its tokens are longer than 4 GiB together")?);
        }
        Ok(Tokens { bytes, starts })
    }

    pub(super) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    #[inline]
    pub(super) fn get(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let (start, end) = (*self.starts.get(id)?, *self.starts.get(id + 1)?);
        self.bytes.get(start as usize..end as usize)
    }
}

/// What an id stands for, beyond its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// A part of text.
    Normal,
    /// A part of text that is looked for before the text is cut, and never split.
    Added,
    /// A sign to the model, as the end of a text: plain text never yields it.
    Special,
}

/// Tokens and what is known of them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lexicon {
    /// The bytes that each id stands for.
    tokens: Tokens,
    /// Pairs of ids, the first to merge first.
    merges: Vec<(u32, u32)>,
    /// Sorted by id.
    added: Vec<Added>,
    /// The ids that a text for the model begins with.
    prefix: Vec<u32>,
}

impl Lexicon {
    /// Checks that added tokens and the prefix are tokens, each added once.
    pub(super) fn new(
        tokens: &[Vec<u8>],
        merges: Vec<(u32, u32)>,
        mut added: Vec<Added>,
        prefix: Vec<u32>,
    ) -> Result<Lexicon, String> {
        let tokens = Tokens::new(tokens)?;
        added.sort_unstable_by_key(|added| added.id);
        if let Some(pair) = added.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(format!("id {} is added twice", pair[0].id));
        }
        if let Some(added) = added.iter().find(|added| tokens.get(added.id).is_none_or(<[u8]>::is_empty)) {
            return Err(format!("added id {} is no token", added.id));
        }
        if let Some(id) = prefix.iter().find(|id| **id as usize >= tokens.len()) {
            return Err(format!("texts begin with id {id}, which is no token"));
        }
        Ok(Lexicon { tokens, merges, added, prefix })
    }

    pub(super) fn vocabulary(&self) -> usize {
        self.tokens.len()
    }

    #[inline]
    pub(super) fn token(&self, id: u32) -> Option<&[u8]> {
        self.tokens.get(id)
    }

    pub(super) fn kind(&self, id: u32) -> Option<TokenKind> {
        if id as usize >= self.vocabulary() {
            return None;
        }
        Some(match self.added.binary_search_by_key(&id, |added| added.id) {
            Ok(place) if self.added[place].special => TokenKind::Special,
            Ok(_) => TokenKind::Added,
            Err(_) => TokenKind::Normal,
        })
    }

    pub(super) fn merges(&self) -> &[(u32, u32)] {
        &self.merges
    }

    pub(super) fn added(&self) -> &[Added] {
        &self.added
    }

    pub(super) fn prefix(&self) -> &[u32] {
        &self.prefix
    }
}

/// The merges by pair, each proven to join two tokens into a third. `spelt` are the tokens as merges join them, `by_spelling`
/// their ids, and `written` writes one for a sentence.
pub(super) fn pair_table(
    spelt: &[Vec<u8>],
    merges: &[(u32, u32)],
    by_spelling: &HashMap<&[u8], u32>,
    written: fn(&[u8]) -> String,
) -> Result<PairTable, String> {
    let mut pairs = PairTable::new(merges.len());
    let mut joined = Vec::new();
    for (&(left, right), rank) in merges.iter().zip(0u32..) {
        let (Some(first), Some(second)) = (spelt.get(left as usize), spelt.get(right as usize)) else {
            return Err(format!(
                "merge {rank} joins ids {left} and {right}; there are {} tokens",
                spelt.len()
            ));
        };
        joined.clear();
        joined.extend_from_slice(first);
        joined.extend_from_slice(second);
        let Some(&id) = by_spelling.get(&joined[..]) else {
            return Err(format!(
                "merge {rank} joins {:?} and {:?} into what the vocabulary lacks",
                written(first),
                written(second)
            ));
        };
        if !pairs.insert(left, right, Merged { rank, id }) {
            return Err(format!(
                "merge {rank} joins {:?} and {:?} a second time",
                written(first),
                written(second)
            ));
        }
    }
    Ok(pairs)
}

/// Added tokens, each with the text it is looked for by, ready to be looked for.
pub(super) fn finder(mut sought: Vec<(Vec<u8>, Added)>) -> Result<Finder, String> {
    if let Some((text, added)) = sought.iter().find(|(text, _)| text.len() > LONGEST) {
        let (id, length) = (added.id, text.len());
        return Err(format!("added id {id} has {length} bytes; at most {LONGEST} are read"));
    }
    sought.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    match sought.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(format!("added ids {} and {} have the same text", pair[0].1.id, pair[1].1.id)),
        None => Ok(Finder::new(sought)),
    }
}
