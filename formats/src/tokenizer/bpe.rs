//! Byte-level byte-pair encoding: a vocabulary of byte strings, the merges that make them, and what stands around
//! them. Everything is checked when it is put together; encoding then asks nothing that can be missing.

use super::byte_table;
use super::merge::Merging;
use super::special::{Added, Finder, LONGEST};
use super::split::Split;
use super::table::{Merged, PairTable, PieceTable};
use crate::error::{Error, Result};
use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// Longest token, in bytes, that is known to be a piece of its own without looking at its merges.
const LONGEST_PIECE: usize = 128;

/// What a byte-level vocabulary is made of; [`Bpe::new`] checks it.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts {
    /// The bytes of each id.
    pub(super) tokens: Vec<Vec<u8>>,
    /// Pairs of ids, the first to merge first; the result is the token of their bytes together.
    pub(super) merges: Vec<(u32, u32)>,
    /// Tokens that are looked for in the text itself.
    pub(super) added: Vec<Added>,
    /// The ids that a text for the model begins with.
    pub(super) prefix: Vec<u32>,
    /// How text is cut before it is merged.
    pub(super) split: Split,
    /// Whether a piece that is a token is that token even where the merges do not make it.
    pub(super) ignore_merges: bool,
    /// Whether text is brought to Unicode's composed form first.
    pub(super) compose: bool,
}

/// A byte-level vocabulary, ready to encode.
#[derive(Clone, Debug)]
pub(super) struct Bpe {
    tokens: Tokens,
    merges: Vec<(u32, u32)>,
    /// Sorted by id.
    added: Vec<Added>,
    prefix: Vec<u32>,
    split: Split,
    ignore_merges: bool,
    compose: bool,

    finder: Finder,
    bytes: [u32; 256],
    pairs: PairTable,
    pieces: PieceTable,
}

/// Equal if they encode and decode alike; the tables follow from the rest.
impl PartialEq for Bpe {
    fn eq(&self, other: &Bpe) -> bool {
        let settings = |bpe: &Bpe| (bpe.split, bpe.ignore_merges, bpe.compose);
        self.tokens == other.tokens
            && self.merges == other.merges
            && self.added == other.added
            && self.prefix == other.prefix
            && settings(self) == settings(other)
    }
}

/// The bytes of all tokens in one piece.
#[derive(Clone, Debug, PartialEq)]
struct Tokens {
    bytes: Vec<u8>,
    /// Where each token begins, and where the last ends.
    starts: Vec<u32>,
}

impl Tokens {
    fn new(tokens: &[Vec<u8>]) -> Option<Tokens> {
        let bytes = tokens.concat();
        let mut starts = vec![0];
        let mut end = 0usize;
        for token in tokens {
            end += token.len();
            starts.push(u32::try_from(end).ok()?);
        }
        Some(Tokens { bytes, starts })
    }

    fn len(&self) -> usize {
        self.starts.len() - 1
    }

    #[inline]
    fn get(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let (start, end) = (*self.starts.get(id)?, *self.starts.get(id + 1)?);
        self.bytes.get(start as usize..end as usize)
    }
}

impl Bpe {
    /// Checks the parts and builds the tables, or says what is wrong with them.
    pub(super) fn new(parts: Parts) -> Result<Bpe, String> {
        let Parts { tokens, merges, mut added, prefix, split, ignore_merges, compose } = parts;
        added.sort_unstable_by_key(|added| added.id);
        let is_added = |id: u32| added.binary_search_by_key(&id, |added| added.id).is_ok();
        let mut by_bytes: HashMap<&[u8], u32> = HashMap::with_capacity(tokens.len());
        for (token, id) in tokens.iter().zip(0u32..) {
            // An added token may be spelled as one that merges make; it is looked for before anything is merged.
            match by_bytes.entry(token) {
                Entry::Vacant(entry) => drop(entry.insert(id)),
                Entry::Occupied(mut entry) if is_added(*entry.get()) => drop(entry.insert(id)),
                Entry::Occupied(_) if is_added(id) => {}
                Entry::Occupied(entry) => {
                    let other = entry.get();
                    return Err(format!("ids {other} and {id} are both {:?}", byte_table::written(token)));
                }
            }
        }
        let mut bytes = [0; 256];
        for byte in 0..=u8::MAX {
            let Some(&id) = by_bytes.get(&[byte][..]) else {
                return Err(format!(
                    "byte 0x{byte:02X} (written {:?}) is missing, so there are texts it cannot encode",
                    byte_table::character(byte).to_string()
                ));
            };
            bytes[usize::from(byte)] = id;
        }
        let pairs = pair_table(&tokens, &merges, &by_bytes)?;
        let finder = finder(&tokens, &added)?;
        if let Some(id) = prefix.iter().find(|id| **id as usize >= tokens.len()) {
            return Err(format!("texts begin with id {id}, which is no token"));
        }
        let flat = Tokens::new(&tokens).ok_or("its tokens are longer than 4 GiB together")?;
        let mut bpe = Bpe {
            tokens: flat,
            merges,
            added,
            prefix,
            split,
            ignore_merges,
            compose,
            finder,
            bytes,
            pairs,
            pieces: PieceTable::new(tokens.len()),
        };
        bpe.fill_pieces(&by_bytes);
        Ok(bpe)
    }

    /// Notes the pieces that are one token: those that merging makes one, and all of them if merges are ignored.
    fn fill_pieces(&mut self, by_bytes: &HashMap<&[u8], u32>) {
        let (mut merging, mut ids) = (Merging::default(), Vec::new());
        for (&token, &id) in by_bytes {
            if self.kind(id) == Some(TokenKind::Special) {
                continue;
            }
            if !self.ignore_merges {
                // Pieces of that length are rare in any text; they are merged when they come.
                if token.len() > LONGEST_PIECE {
                    continue;
                }
                ids.clear();
                merging.merge(token, &self.bytes, &self.pairs, &mut ids);
            }
            if self.ignore_merges || ids == [id] {
                self.pieces.insert(token, id);
            }
        }
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

    /// An id of the vocabulary as files write it: GPT-2's characters for its bytes, an added token as its text.
    pub(super) fn written(&self, id: u32) -> String {
        let token = self.token(id).unwrap_or_default();
        match self.kind(id) {
            Some(TokenKind::Added | TokenKind::Special) => String::from_utf8_lossy(token).into_owned(),
            _ => byte_table::written(token),
        }
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

    pub(super) fn split(&self) -> Split {
        self.split
    }

    pub(super) fn ignore_merges(&self) -> bool {
        self.ignore_merges
    }

    pub(super) fn composes(&self) -> bool {
        self.compose
    }

    /// The id whose bytes are `token`; of an added one and another, the added one.
    pub(super) fn id_of(&self, token: &[u8]) -> Option<u32> {
        let added = self.added.iter().map(|added| added.id);
        let mut all = added.chain(0..self.vocabulary() as u32);
        all.find(|&id| self.token(id) == Some(token))
    }

    /// The ids of any bytes; `special` says whether special tokens are recognised.
    pub(super) fn encode(&self, text: &[u8], special: bool) -> Result<Vec<u32>> {
        // Four bytes a token is what vocabularies reach on plain text.
        let mut ids = Vec::with_capacity(if self.merges.is_empty() { text.len() } else { text.len() / 4 });
        let mut merging = Merging::default();
        let mut start = 0;
        while let Some((range, id)) = self.finder.find(text, start, special) {
            self.encode_plain(&text[start..range.start], &mut merging, &mut ids)?;
            ids.push(id);
            start = range.end;
        }
        self.encode_plain(&text[start..], &mut merging, &mut ids)?;
        Ok(ids)
    }

    /// Appends the ids of a text in which nothing is looked for.
    fn encode_plain(&self, text: &[u8], merging: &mut Merging, ids: &mut Vec<u32>) -> Result<()> {
        let text = if self.compose { composed(text) } else { Cow::Borrowed(text) };
        let text = &*text;
        if self.merges.is_empty() && !self.ignore_merges {
            ids.extend(text.iter().map(|&byte| self.bytes[usize::from(byte)]));
            return Ok(());
        }
        let mut start = 0;
        while start < text.len() {
            let end = self.split.end(text, start);
            let piece = &text[start..end];
            if let [byte] = piece {
                ids.push(self.bytes[usize::from(*byte)]);
            } else if let Some(id) = self.pieces.get(piece, |id| self.token(id).unwrap_or_default()) {
                ids.push(id);
            } else {
                if piece.len() >= u32::MAX as usize {
                    let length = piece.len();
                    return Err(Error::Usage(format!(
                        "a piece of {length} bytes cannot be encoded; cut the text where words end"
                    )));
                }
                merging.merge(piece, &self.bytes, &self.pairs, ids);
            }
            start = end;
        }
        Ok(())
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

/// The merges by pair, each proven to join two tokens into a third.
fn pair_table(
    tokens: &[Vec<u8>],
    merges: &[(u32, u32)],
    by_bytes: &HashMap<&[u8], u32>,
) -> Result<PairTable, String> {
    let mut pairs = PairTable::new(merges.len());
    let mut joined = Vec::new();
    for (&(left, right), rank) in merges.iter().zip(0u32..) {
        let (Some(first), Some(second)) = (tokens.get(left as usize), tokens.get(right as usize)) else {
            return Err(format!(
                "merge {rank} joins ids {left} and {right}; there are {} tokens",
                tokens.len()
            ));
        };
        joined.clear();
        joined.extend_from_slice(first);
        joined.extend_from_slice(second);
        let written = || (byte_table::written(first), byte_table::written(second));
        let Some(&id) = by_bytes.get(&joined[..]) else {
            let (first, second) = written();
            return Err(format!(
                "merge {rank} joins {first:?} and {second:?} into what the vocabulary lacks"
            ));
        };
        if !pairs.insert(left, right, Merged { rank, id }) {
            let (first, second) = written();
            return Err(format!("merge {rank} joins {first:?} and {second:?} a second time"));
        }
    }
    Ok(pairs)
}

fn finder(tokens: &[Vec<u8>], added: &[Added]) -> Result<Finder, String> {
    if let Some(pair) = added.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(format!("id {} is added twice", pair[0].id));
    }
    let mut found = Vec::with_capacity(added.len());
    for &added in added {
        let Some(token) = tokens.get(added.id as usize).filter(|token| !token.is_empty()) else {
            return Err(format!("added id {} is no token", added.id));
        };
        if token.len() > LONGEST {
            let length = token.len();
            return Err(format!("added id {} has {length} bytes; at most {LONGEST} are read", added.id));
        }
        found.push((token.clone(), added));
    }
    found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    match found.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(format!("added ids {} and {} have the same text", pair[0].1.id, pair[1].1.id)),
        None => Ok(Finder::new(found)),
    }
}

/// Unicode's composed form (NFC) of what is text in `bytes`; the rest stays.
fn composed(bytes: &[u8]) -> Cow<'_, [u8]> {
    let is_composed = |text: &str| text.is_ascii() || is_nfc_quick(text.chars()) == IsNormalized::Yes;
    if bytes.utf8_chunks().all(|chunk| is_composed(chunk.valid())) {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.extend_from_slice(chunk.valid().nfc().collect::<String>().as_bytes());
        out.extend_from_slice(chunk.invalid());
    }
    Cow::Owned(out)
}
