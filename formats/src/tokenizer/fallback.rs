//! Byte-pair encoding over characters with bytes to fall back on: what the vocabularies of SentencePiece are in Hugging
//! Face's files (Llama 2, Mistral, Mixtral). A blank is written "▁", and one more stands before a text, so that its first
//! word is spelt as the others are; a character that is no token is the tokens of its UTF-8 bytes (`<0xE6>`).
//!
//! Merges reach across the whole text between two added tokens. Where none joins a "▁" to what is no "▁" before it, no
//! token reaches from a word into the next, and words are merged one by one: the same ids, sooner.

use super::lexicon::{Lexicon, TokenKind, Tokens, finder, pair_table};
use super::merge::{Merging, check_length};
use super::special::{Added, Finder};
use super::table::{PairTable, PieceTable};
use crate::error::Result;
use std::collections::HashMap;

/// The character that stands for a blank (U+2581), in UTF-8.
const BLANK: &[u8] = "\u{2581}".as_bytes();
/// Longest token, in bytes, that is known to be a word of its own without looking at its merges.
const LONGEST_PIECE: usize = 128;

/// How blanks become "▁" and where one is put before a text; a stretch of text is what stands between two added tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Blanks {
    /// Normalizers `Prepend` and `Replace`: each stretch gets one more.
    #[default]
    Prepended,
    /// Normalizer `Replace`: none is put.
    Replaced,
    /// Pre-tokenizer `Metaspace`, scheme `first`: a stretch at the text's start gets one if it does not begin with one.
    First,
    /// Pre-tokenizer `Metaspace`, scheme `always`: each stretch gets one if it does not begin with one.
    Always,
    /// Pre-tokenizer `Metaspace`, scheme `never`.
    Never,
}

impl Blanks {
    /// Whether they are the work of a normalizer: added tokens that say `normalized` are then looked for after it.
    fn normalize(self) -> bool {
        matches!(self, Blanks::Prepended | Blanks::Replaced)
    }

    /// A stretch of text with its blanks written so; `first` says whether it is what a text begins with, `opens` whether
    /// one may be put before it at all.
    fn written(self, text: &[u8], first: bool, opens: bool) -> Vec<u8> {
        let begun = text.starts_with(b" ") || text.starts_with(BLANK);
        let put = match self {
            Blanks::Prepended => opens,
            Blanks::First => first && !begun,
            Blanks::Always => opens && !begun,
            Blanks::Replaced | Blanks::Never => false,
        };
        let mut out = Vec::with_capacity(text.len() + text.len() / 2 + BLANK.len());
        if put {
            out.extend_from_slice(BLANK);
        }
        for &byte in text {
            match byte {
                b' ' => out.extend_from_slice(BLANK),
                _ => out.push(byte),
            }
        }
        out
    }
}

/// What such a vocabulary is made of; [`Fallback::new`] checks it.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts {
    /// How the file writes each id.
    pub(super) spelt: Vec<String>,
    /// Pairs of ids, the first to merge first; the result is the token spelt as both together.
    pub(super) merges: Vec<(u32, u32)>,
    /// Tokens that are looked for in the text itself.
    pub(super) added: Vec<Added>,
    /// Those of them that are looked for in normalized text.
    pub(super) normalized: Vec<u32>,
    /// The ids that a text for the model begins with.
    pub(super) prefix: Vec<u32>,
    /// How blanks are written.
    pub(super) blanks: Blanks,
    /// Whether decoding takes a blank off the beginning of a text.
    pub(super) strip: bool,
    /// The token for what cannot be encoded; bytes leave nothing to it.
    pub(super) unknown: Option<u32>,
}

/// Such a vocabulary, ready to encode.
#[derive(Clone, Debug)]
pub(super) struct Fallback {
    lexicon: Lexicon,
    spelt: Tokens,
    /// Sorted.
    normalized: Vec<u32>,
    blanks: Blanks,
    strip: bool,
    unknown: Option<u32>,

    /// Added tokens in the text as it comes, and in normalized text.
    finders: [Finder; 2],
    /// The tokens of the 256 bytes.
    bytes: [u32; 256],
    pairs: PairTable,
    /// Single characters, and words that merge into one token.
    pieces: PieceTable,
    /// Whether no merge crosses from a word to the next.
    words: bool,
}

/// Equal if they encode and decode alike; the tables follow from the rest.
impl PartialEq for Fallback {
    fn eq(&self, other: &Fallback) -> bool {
        let settings = |tokenizer: &Fallback| (tokenizer.blanks, tokenizer.strip, tokenizer.unknown);
        self.lexicon == other.lexicon
            && self.spelt == other.spelt
            && self.normalized == other.normalized
            && settings(self) == settings(other)
    }
}

impl Fallback {
    /// Checks the parts and builds the tables, or says what is wrong with them.
    pub(super) fn new(parts: Parts) -> Result<Fallback, String> {
        let Parts { spelt, merges, added, mut normalized, prefix, blanks, strip, unknown } = parts;
        normalized.sort_unstable();
        // What is looked for in normalized text is normalized itself, and stands for the blanks it takes with it.
        let late = |id: u32| blanks.normalize() && normalized.binary_search(&id).is_ok();
        let sought = |id: u32, token: &[u8]| match late(id) {
            true => blanks.written(token, true, true),
            false => token.to_vec(),
        };
        let spelt: Vec<Vec<u8>> = spelt.into_iter().map(String::into_bytes).collect();
        let tokens: Vec<Vec<u8>> =
            (0u32..).zip(&spelt).map(|(id, token)| decoded(&sought(id, token))).collect();
        let lexicon = Lexicon::new(&tokens, merges, added, prefix)?;
        let mut finders = [Vec::new(), Vec::new()];
        for &added in lexicon.added() {
            let text = sought(added.id, &spelt[added.id as usize]);
            finders[usize::from(late(added.id))].push((text, added));
        }
        let [in_text, in_normal] = finders;
        let finders = [finder(in_text)?, finder(in_normal)?];
        let by_spelling: HashMap<&[u8], u32> = spelt.iter().map(Vec::as_slice).zip(0..).collect();
        let mut bytes = [0; 256];
        for byte in 0..=u8::MAX {
            let written = byte_token(byte);
            let Some(&id) = by_spelling.get(written.as_bytes()) else {
                return Err(format!(
                    "byte 0x{byte:02X} (written {written:?}) is missing, so there are texts it cannot encode"
                ));
            };
            bytes[usize::from(byte)] = id;
        }
        let pairs = pair_table(&spelt, lexicon.merges(), &by_spelling, |token| {
            String::from_utf8_lossy(token).into_owned()
        })?;
        let text = |id: u32| spelt[id as usize].as_slice();
        let crosses =
            |&(left, right): &(u32, u32)| text(right).starts_with(BLANK) && !text(left).ends_with(BLANK);
        let words = !lexicon.merges().iter().any(crosses);
        let mut tokenizer = Fallback {
            spelt: Tokens::new(&spelt)?,
            lexicon,
            normalized,
            blanks,
            strip,
            unknown,
            finders,
            bytes,
            pairs,
            pieces: PieceTable::new(spelt.len()),
            words,
        };
        tokenizer.fill_pieces(&spelt);
        Ok(tokenizer)
    }

    /// Notes single characters, then the words that merging makes one token. Special tokens are never among them: plain
    /// text does not yield them.
    fn fill_pieces(&mut self, spelt: &[Vec<u8>]) {
        let single = |token: &[u8]| std::str::from_utf8(token).is_ok_and(|text| text.chars().count() == 1);
        let plain = |tokenizer: &Fallback, id: u32| tokenizer.lexicon.kind(id) != Some(TokenKind::Special);
        for (id, token) in (0u32..).zip(spelt) {
            if single(token) && plain(self, id) {
                self.pieces.insert(token, id);
            }
        }
        let (mut room, mut ids) = (Room::default(), Vec::new());
        for (id, token) in (0u32..).zip(spelt) {
            if !self.words || token.len() > LONGEST_PIECE || single(token) || !plain(self, id) {
                continue;
            }
            ids.clear();
            self.merge(token, &mut room, &mut ids);
            if ids == [id] {
                self.pieces.insert(token, id);
            }
        }
    }

    pub(super) fn lexicon(&self) -> &Lexicon {
        &self.lexicon
    }

    /// An id as the file writes it.
    pub(super) fn written(&self, id: u32) -> String {
        String::from_utf8_lossy(self.spelt.get(id).unwrap_or_default()).into_owned()
    }

    /// The id that the file writes as `token`.
    pub(super) fn id_of(&self, token: &str) -> Option<u32> {
        (0..self.spelt.len() as u32).find(|&id| self.spelt.get(id) == Some(token.as_bytes()))
    }

    /// Whether an added token is looked for in normalized text.
    pub(super) fn is_normalized(&self, id: u32) -> bool {
        self.normalized.binary_search(&id).is_ok()
    }

    pub(super) fn blanks(&self) -> Blanks {
        self.blanks
    }

    pub(super) fn strips(&self) -> bool {
        self.strip
    }

    pub(super) fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// The token of a byte.
    pub(super) fn byte(&self, byte: u8) -> u32 {
        self.bytes[usize::from(byte)]
    }

    /// The ids of any bytes; `special` says whether special tokens are recognised, `begins` whether a text begins here:
    /// where it goes on, nothing is put before it.
    pub(super) fn encode(&self, text: &[u8], special: bool, begins: bool) -> Result<Vec<u32>> {
        // Three bytes a token is what vocabularies of this kind reach on plain text.
        let mut ids = Vec::with_capacity(if self.words { text.len() / 3 } else { 0 });
        let mut room = Room::default();
        between(&self.finders[0], text, special, &mut ids, &mut |stretch, place, ids| {
            let (first, opens) = (begins && place == 0, begins || place > 0);
            let normal = self.blanks.written(stretch, first, opens);
            between(&self.finders[1], &normal, special, ids, &mut |piece, _, ids| {
                self.encode_piece(piece, &mut room, ids)
            })
        })?;
        Ok(ids)
    }

    /// Appends the ids of a text whose blanks are written as the vocabulary has them.
    fn encode_piece(&self, text: &[u8], room: &mut Room, ids: &mut Vec<u32>) -> Result<()> {
        let mut start = 0;
        while start < text.len() {
            let rest = &text[start..];
            let word = if self.words { &rest[..word_end(rest)] } else { rest };
            match self.pieces.get(word, |id| self.spelt.get(id).unwrap_or_default()) {
                Some(id) => ids.push(id),
                None => {
                    check_length(word)?;
                    self.merge(word, room, ids);
                }
            }
            start += word.len();
        }
        Ok(())
    }

    /// Appends what the characters of `word`, or their bytes, merge into.
    fn merge(&self, word: &[u8], room: &mut Room, ids: &mut Vec<u32>) {
        let symbols = &mut room.symbols;
        symbols.clear();
        let bytes = |bytes: &[u8], symbols: &mut Vec<u32>| {
            symbols.extend(bytes.iter().map(|&byte| self.byte(byte)));
        };
        for chunk in word.utf8_chunks() {
            for character in chunk.valid().chars() {
                let mut utf8 = [0; 4];
                let character = character.encode_utf8(&mut utf8).as_bytes();
                match self.pieces.get(character, |id| self.spelt.get(id).unwrap_or_default()) {
                    Some(id) => symbols.push(id),
                    None => bytes(character, symbols),
                }
            }
            bytes(chunk.invalid(), symbols);
        }
        room.merging.merge(symbols.iter().copied(), &self.pairs, ids);
    }
}

/// Buffers that encoding uses again and again.
#[derive(Default)]
struct Room {
    merging: Merging,
    symbols: Vec<u32>,
}

/// Pushes the added tokens of `text` and gives what stands between them, where it is something, to `take` with its place.
fn between(
    finder: &Finder,
    text: &[u8],
    special: bool,
    ids: &mut Vec<u32>,
    take: &mut dyn FnMut(&[u8], usize, &mut Vec<u32>) -> Result<()>,
) -> Result<()> {
    let mut start = 0;
    while let Some((range, id)) = finder.find(text, start, special) {
        if range.start > start {
            take(&text[start..range.start], start, ids)?;
        }
        ids.push(id);
        start = range.end;
    }
    if start < text.len() {
        take(&text[start..], start, ids)?;
    }
    Ok(())
}

/// Where the first word of `text` ends: before a "▁" that follows something else.
fn word_end(text: &[u8]) -> usize {
    let mut place = 0;
    while text[place..].starts_with(BLANK) {
        place += BLANK.len();
    }
    while place < text.len() && !text[place..].starts_with(BLANK) {
        place += 1;
    }
    place
}

/// How a file writes the token of a byte.
fn byte_token(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

/// The bytes that a token stands for, as Hugging Face's decoders `Replace` and `ByteFallback` read it.
fn decoded(token: &[u8]) -> Vec<u8> {
    let token = String::from_utf8_lossy(token);
    let byte = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    match byte.filter(|digits| digits.len() == 2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
        Some(byte) => vec![byte],
        None => token.replace('\u{2581}', " ").into_bytes(),
    }
}
