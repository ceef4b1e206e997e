//! Byte-level byte-pair encoding: a vocabulary of byte strings, the merges that make them, and what stands around
//! them. Everything is checked when it is put together; encoding then asks nothing that can be missing.

use super::byte_table;
use super::lexicon::{Lexicon, TokenKind, finder, pair_table};
use super::merge::{Merging, check_length};
use super::special::{Added, Finder};
use super::split::Split;
use super::table::{PairTable, PieceTable};
use crate::error::Result;
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
    lexicon: Lexicon,
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
        self.lexicon == other.lexicon && settings(self) == settings(other)
    }
}

impl Bpe {
    /// Checks the parts and builds the tables, or says what is wrong with them.
    pub(super) fn new(parts: Parts) -> Result<Bpe, String> {
        let Parts { tokens, merges, added, prefix, split, ignore_merges, compose } = parts;
        let lexicon = Lexicon::new(&tokens, merges, added, prefix)?;
        let is_added = |id: u32| lexicon.kind(id) != Some(TokenKind::Normal);
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
        let pairs = pair_table(&tokens, lexicon.merges(), &by_bytes, byte_table::written)?;
        let sought = lexicon.added().iter().map(|&added| (tokens[added.id as usize].clone(), added));
        let finder = finder(sought.collect())?;
        let pieces = PieceTable::new(tokens.len());
        let mut bpe = Bpe { lexicon, split, ignore_merges, compose, finder, bytes, pairs, pieces };
        bpe.fill_pieces(&by_bytes);
        Ok(bpe)
    }

    /// What a piece is before anything is merged.
    fn symbols<'bytes>(&'bytes self, piece: &'bytes [u8]) -> impl ExactSizeIterator<Item = u32> + 'bytes {
        piece.iter().map(|&byte| self.bytes[usize::from(byte)])
    }

    /// Notes the pieces that are one token: those that merging makes one, and all of them if merges are ignored.
    fn fill_pieces(&mut self, by_bytes: &HashMap<&[u8], u32>) {
        let (mut merging, mut ids) = (Merging::default(), Vec::new());
        for (&token, &id) in by_bytes {
            if self.lexicon.kind(id) == Some(TokenKind::Special) {
                continue;
            }
            if !self.ignore_merges {
                // Pieces of that length are rare in any text; they are merged when they come.
                if token.len() > LONGEST_PIECE {
                    continue;
                }
                ids.clear();
                merging.merge(self.symbols(token), &self.pairs, &mut ids);
            }
            if self.ignore_merges || ids == [id] {
                self.pieces.insert(token, id);
            }
        }
    }

    pub(super) fn lexicon(&self) -> &Lexicon {
        &self.lexicon
    }

    /// An id of the vocabulary as files write it: GPT-2's characters for its bytes, an added token as its text.
    pub(super) fn written(&self, id: u32) -> String {
        let token = self.lexicon.token(id).unwrap_or_default();
        match self.lexicon.kind(id) {
            Some(TokenKind::Added | TokenKind::Special) => String::from_utf8_lossy(token).into_owned(),
            _ => byte_table::written(token),
        }
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
        let added = self.lexicon.added().iter().map(|added| added.id);
        let mut all = added.chain(0..self.lexicon.vocabulary() as u32);
        all.find(|&id| self.lexicon.token(id) == Some(token))
    }

    /// The ids of any bytes; `special` says whether special tokens are recognised.
    pub(super) fn encode(&self, text: &[u8], special: bool) -> Result<Vec<u32>> {
        // Four bytes a token is what vocabularies reach on plain text.
        let mut ids =
            Vec::with_capacity(if self.lexicon.merges().is_empty() { text.len() } else { text.len() / 4 });
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
        if self.lexicon.merges().is_empty() && !self.ignore_merges {
            ids.extend(text.iter().map(|&byte| self.bytes[usize::from(byte)]));
            return Ok(());
        }
        let mut start = 0;
        while start < text.len() {
            let end = self.split.end(text, start);
            let piece = &text[start..end];
            if let [byte] = piece {
                ids.push(self.bytes[usize::from(*byte)]);
            } else if let Some(id) = self.pieces.get(piece, |id| self.lexicon.token(id).unwrap_or_default()) {
                ids.push(id);
            } else {
                check_length(piece)?;
                merging.merge(self.symbols(piece), &self.pairs, ids);
            }
            start = end;
        }
        Ok(())
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
